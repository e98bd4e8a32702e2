//! `examples/petstore`: the application tells its story and proves it, and its programs in Node
//! work against a daemon.

use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::support::petstore::{self, examples};
use super::support::{Daemon, WAIT_MAX, has_program, say};
use super::{list, publish, text};

#[tokio::test(flavor = "multi_thread")]
async fn petstore_proves_its_story() {
    let proofs = [
        "one outcome for each order",
        "Rex was sold once",
        "the state that Balto folds for each pet equals the aggregate",
        "the search equals the fold of the log",
        "one mail for each of 3 adoptions, with 1 duplicate met",
        "partners of versions 1.0 and 2.0 have heard the same adoptions",
        "its files are whole",
    ];
    let story = petstore::story(None, &proofs).await;
    assert!(story.contains("> To see orders over RabbitMQ, set PETSTORE_AMQP_URL"), "{story}");
}

/// A program in Node, killed on drop.
struct NodeProgram(Child);

impl NodeProgram {
    fn start(file: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new("node");
        command.arg(examples().join(file)).args(arguments).envs(environment.iter().copied());
        Self(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// The next line of its output.
    async fn line(&mut self) -> String {
        let mut output = self.0.stdout.take().unwrap();
        let read = tokio::task::spawn_blocking(move || {
            let (mut line, mut byte) = (Vec::new(), [0]);
            while std::io::Read::read(&mut output, &mut byte).unwrap() == 1 && byte[0] != b'\n' {
                line.push(byte[0]);
            }
            (String::from_utf8(line).unwrap(), output)
        });
        let (line, output) = tokio::time::timeout(WAIT_MAX, read).await.expect("a line").unwrap();
        self.0.stdout = Some(output);
        line
    }
}

impl Drop for NodeProgram {
    fn drop(&mut self) {
        // SIGKILL
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_programs_handle_each_event_once() {
    if !has_program("node") {
        say("SKIPPED: the machine has no node");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&directory.path().join("data")).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let body = json!({"url": format!("http://127.0.0.1:{port}/"), "retry": {"schedule": ["50ms", "50ms"]}});
    let made = daemon.post("/endpoints", &body.to_string()).await;
    let secret = text(&made, "secret");
    let mut receiver = NodeProgram::start("receiver.mjs", &[&secret, &port], &[]);
    assert_eq!(receiver.line().await, "listening");
    daemon.post("/queues", r#"{"name":"mails","visibility":"1s"}"#).await;
    let mut events = Vec::new();
    for pet in ["rex", "tom"] {
        let adoption = json!({"type": "pet.adopted", "data": {"petId": pet, "adopter": "Ann"}});
        events.push(publish(&daemon, adoption).await);
    }
    let mut received = [receiver.line().await, receiver.line().await];
    received.sort();
    let expected = |pet: &str| format!(r#"received pet.adopted {{"petId":"{pet}","adopter":"Ann"}}"#);
    assert_eq!(received, [expected("rex"), expected("tom")]);

    let mailbox = directory.path().join("mailbox");
    std::fs::create_dir(&mailbox).unwrap();
    let arguments = [daemon.api.strip_suffix("/v1").unwrap(), "mails", mailbox.to_str().unwrap()];
    // The first worker is killed between its mail and its acknowledgement.
    let mut first = NodeProgram::start("worker.mjs", &arguments, &[("HANG", "1")]);
    let killed_with = first.line().await.strip_prefix("sent ").unwrap().to_owned();
    drop(first);
    let mut second = NodeProgram::start("worker.mjs", &arguments, &[]);
    let mut lines = [second.line().await, second.line().await];
    lines.sort();
    assert_eq!(lines[0], format!("duplicate {killed_with}"));
    assert!(lines[1].starts_with("sent "), "{lines:?}");
    daemon.until("/queues/mails/lane", |lane| lane["pending"] == 0).await;
    assert_eq!(std::fs::read_dir(&mailbox).unwrap().count(), events.len());
    let done = daemon.get("/deliveries?status=delivered").await;
    assert_eq!(list(&done).len(), 4, "{done}");
}

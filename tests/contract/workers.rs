//! Workers of queues: `balto work`, `balto queues`, and the examples in `examples/workers`.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::command_line::{answer_of, balto};
use super::support::{Daemon, WAIT_MAX, has_program, say};
use super::{list, text};

/// A worker process, killed on drop.
struct WorkerProcess(Child);

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl WorkerProcess {
    /// `balto work` with these arguments. The tests may run under `nohup`, but it does not.
    fn start(daemon: &Daemon, arguments: &[&str]) -> Self {
        let url = daemon.api.strip_suffix("/v1").unwrap();
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP", env!("CARGO_BIN_EXE_balto"), "work"]);
        command.args(arguments).env("BALTO_URL", url).env("BALTO_API_KEY", "");
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    fn terminate(&self) {
        self.signal("-TERM");
    }

    fn hang_up(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Its exit code, once it has ended.
    async fn code(&mut self) -> i32 {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code().unwrap();
            }
            assert!(Instant::now() < deadline, "the worker does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The lines of its standard output.
    fn lines(&mut self) -> impl Iterator<Item = String> + use<> {
        BufReader::new(self.0.stdout.take().unwrap()).lines().map(Result::unwrap)
    }
}

async fn queue(daemon: &Daemon, name: &str, more: Value) {
    let mut body = json!({"name": name, "retry": {"initial": "10ms", "maxInterval": "10ms"}});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    daemon.post("/queues", &body.to_string()).await;
}

async fn send(daemon: &Daemon, event_type: &str, data: Value) -> String {
    text(&daemon.post("/events", &json!({"type": event_type, "data": data}).to_string()).await, "id")
}

/// Waits until the event has this status.
async fn until_status(daemon: &Daemon, event: &str, status: &str) -> Value {
    daemon.until(&format!("/events/{event}"), |event| event["status"] == status).await
}

fn script(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("handler.sh");
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_code_0_acknowledges_and_others_return() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&directory.path().join("data")).await;
    queue(&daemon, "mails", json!({"maxDeliveries": 3})).await;
    // The first delivery of each message fails; the event `bad` always fails.
    let handler = script(
        directory.path(),
        r#"event=$(cat); echo "$BALTO_EVENT_TYPE $BALTO_DELIVERY_COUNT $event"
           case $event in *'"data":"bad"'*) exit 9;; esac
           test "$BALTO_DELIVERY_COUNT" -gt 1"#,
    );
    let (good, bad) = (send(&daemon, "a.b", json!({"n": 1})).await, send(&daemon, "a.b", json!("bad")).await);
    let handler = handler.to_str().unwrap();
    let mut worker = WorkerProcess::start(&daemon, &["mails", "--concurrency", "2", "--", "sh", handler]);
    until_status(&daemon, &good, "delivered").await;
    until_status(&daemon, &bad, "failed").await;
    let letters = daemon.get("/dead-letters").await;
    assert_eq!((list(&letters).len(), &letters["data"][0]["reason"]), (1, &json!("attemptsExhausted")));
    worker.terminate();
    assert_eq!(worker.code().await, 0);
    let lines: Vec<_> = worker.lines().collect();
    assert_eq!(lines.iter().filter(|line| line.contains("\"data\":{\"n\":1}")).count(), 2, "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.contains("\"data\":\"bad\"")).count(), 3, "{lines:?}");
    assert!(lines.iter().all(|line| line.starts_with("a.b ")), "{lines:?}");
}

/// Whether the process runs. A zombie does not.
fn is_running(process: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    !matches!(status.rsplit(") ").next().and_then(|rest| rest.chars().next()), None | Some('Z' | 'X'))
}

/// The command and its children end, also if they ignore SIGTERM. The message goes to the next
/// worker.
#[tokio::test(flavor = "multi_thread")]
async fn killed_worker_leaves_no_command_running() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&directory.path().join("data")).await;
    queue(&daemon, "slow", json!({"visibility": "3s"})).await;
    for command in ["sleep 600 & echo $! $$; wait", "trap '' TERM; sleep 600 & echo $! $$; wait; wait"] {
        let event = send(&daemon, "a.b", json!(1)).await;
        let mut worker = WorkerProcess::start(&daemon, &["slow", "--", "sh", "-c", command]);
        let started = worker.lines().next().unwrap();
        let processes: Vec<_> = started.split(' ').collect();
        assert!(processes.iter().all(|process| is_running(process)), "{started}");
        worker.signal("-KILL");
        let deadline = Instant::now() + WAIT_MAX;
        while processes.iter().any(|process| is_running(process)) {
            assert!(Instant::now() < deadline, "`{command}` runs on as {started}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut next = WorkerProcess::start(&daemon, &["slow", "--", "true"]);
        until_status(&daemon, &event, "delivered").await;
        next.terminate();
        assert_eq!(next.code().await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_terminal_ends_the_worker_unless_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&directory.path().join("data")).await;
    queue(&daemon, "slow", json!({})).await;
    let event = send(&daemon, "a.b", json!(1)).await;
    let mut worker =
        WorkerProcess::start(&daemon, &["slow", "--", "sh", "-c", "echo started; exec sleep 600"]);
    assert_eq!(worker.lines().next().as_deref(), Some("started"));
    worker.hang_up();
    assert_eq!(worker.code().await, 0);
    let delivery = daemon.get("/deliveries?status=pending").await;
    let path = format!("/deliveries/{}", text(&list(&delivery)[0], "id"));
    assert_eq!(daemon.get(&path).await["attempts"][0]["outcome"], "released");
    // As under `nohup`.
    let url = daemon.api.strip_suffix("/v1").unwrap();
    let line = format!(
        "trap '' HUP; exec {} work slow -- sh -c 'echo started; sleep 1'",
        env!("CARGO_BIN_EXE_balto")
    );
    let mut command = Command::new("sh");
    command.args(["-c", &line]).env("BALTO_URL", url).env("BALTO_API_KEY", "");
    let mut worker = WorkerProcess(command.stdout(Stdio::piped()).spawn().unwrap());
    assert_eq!(worker.lines().next().as_deref(), Some("started"));
    worker.hang_up();
    until_status(&daemon, &event, "delivered").await;
    worker.terminate();
    assert_eq!(worker.code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_is_extended_while_the_command_runs() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&directory.path().join("data")).await;
    queue(&daemon, "slow", json!({"visibility": "1s"})).await;
    let event = send(&daemon, "a.b", json!(1)).await;
    let mut worker = WorkerProcess::start(
        &daemon,
        &["slow", "--until-empty", "--", "sh", "-c", "cat >/dev/null; sleep 4; echo $BALTO_DELIVERY_COUNT"],
    );
    assert_eq!(worker.code().await, 0);
    assert_eq!(worker.lines().collect::<Vec<_>>(), ["1"]);
    assert_eq!(daemon.get(&format!("/events/{event}")).await["status"], "delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_worker_releases_its_message_uncharged() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&directory.path().join("data")).await;
    queue(&daemon, "mails", json!({"visibility": "10m"})).await;
    let event = send(&daemon, "a.b", json!(1)).await;
    let command =
        ["mails", "--grace", "50ms", "--", "sh", "-c", "trap '' TERM; echo started; sleep 600 & wait; wait"];
    let mut worker = WorkerProcess::start(&daemon, &command);
    assert_eq!(worker.lines().next().unwrap(), "started");
    worker.terminate();
    assert_eq!(worker.code().await, 0);
    let next = ["mails", "--until-empty", "--", "sh", "-c", "cat >/dev/null; echo $BALTO_DELIVERY_COUNT"];
    let mut worker = WorkerProcess::start(&daemon, &next);
    assert_eq!(worker.code().await, 0);
    assert_eq!(worker.lines().collect::<Vec<_>>(), ["1"], "the stopped lease is not charged");
    until_status(&daemon, &event, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_without_a_command_or_queue_says_why() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let unknown = balto(&daemon, &["work", "nothing", "--", "true"]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.err.contains("404") && unknown.err.contains("nothing"), "{}", unknown.err);
    queue(&daemon, "mails", json!({})).await;
    let event = send(&daemon, "a.b", json!(1)).await;
    let missing = balto(&daemon, &["work", "mails", "--", "/no/such/program"]);
    assert_eq!(missing.code, 1);
    assert!(missing.err.contains("cannot run `/no/such/program`"), "{}", missing.err);
    assert_eq!(daemon.get(&format!("/events/{event}")).await["status"], "pending");
    for wrong in [
        &["work", "mails"][..],
        &["work", "a/b", "--", "true"],
        &["work", "mails", "--concurrency", "0", "--", "true"],
    ] {
        assert_eq!(balto(&daemon, wrong).code, 2, "{wrong:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_commands_cover_the_life_of_a_queue() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let create = [
        "queues",
        "create",
        "mails",
        "--event-types",
        "order.*",
        "--visibility",
        "2m",
        "--max-deliveries",
        "5",
    ];
    let made = answer_of(&daemon, &create);
    assert_eq!(
        (&made["name"], &made["visibility"], &made["maxDeliveries"]),
        (&json!("mails"), &json!("2m"), &json!(5))
    );
    assert_eq!(answer_of(&daemon, &create)["name"], "mails", "the same queue again");
    assert_eq!(list(&answer_of(&daemon, &["queues", "list"])).len(), 1);
    assert_eq!(answer_of(&daemon, &["queues", "show", "mails"])["eventTypes"], json!(["order.*"]));
    assert_eq!(answer_of(&daemon, &["queues", "update", "mails", "--ordering", "key"])["ordering"], "key");
    assert_eq!(answer_of(&daemon, &["queues", "pause", "mails"])["status"], "paused");
    assert_eq!(answer_of(&daemon, &["queues", "resume", "mails"])["status"], "active");
    let event = send(&daemon, "order.paid", json!(1)).await;
    assert_eq!(answer_of(&daemon, &["queues", "lane", "mails"])["pending"], 1);
    assert!(list(&answer_of(&daemon, &["queues", "leases", "mails"])).is_empty());
    assert_eq!(balto(&daemon, &["queues", "purge", "mails", "--confirm", "other"]).code, 2);
    assert_eq!(answer_of(&daemon, &["queues", "purge", "mails", "--confirm", "mails"])["count"], 1);
    until_status(&daemon, &event, "failed").await;
    assert_eq!(answer_of(&daemon, &["queues", "replay", "mails", "--since", "1h"])["count"], 1);
    assert_eq!(answer_of(&daemon, &["queues", "stats", "mails"])["backlog"], 1);
    assert_eq!(balto(&daemon, &["queues", "rm", "mails"]).code, 0);
    assert_eq!(balto(&daemon, &["queues", "show", "mails"]).code, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn example_workers_handle_each_event_once() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/workers");
    for (program, file) in [("python3", "worker.py"), ("node", "worker.mjs"), ("sh", "worker.sh")] {
        if !has_program(program) {
            say(&format!("SKIPPED {file}: no {program}"));
            continue;
        }
        let data = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(data.path()).await;
        queue(&daemon, "mails", json!({})).await;
        let mut events = Vec::new();
        for n in 0..5 {
            events.push(send(&daemon, "order.paid", json!({"n": n})).await);
        }
        let path = examples.join(file);
        let mut worker = if program == "sh" {
            WorkerProcess::start(&daemon, &["mails", "--", path.to_str().unwrap()])
        } else {
            let url = daemon.api.strip_suffix("/v1").unwrap();
            let mut command = Command::new(program);
            WorkerProcess(command.arg(path).args([url, "mails"]).stdout(Stdio::piped()).spawn().unwrap())
        };
        for event in &events {
            until_status(&daemon, event, "delivered").await;
        }
        worker.terminate();
        assert_eq!(worker.code().await, 0, "{file}");
        let mut handled: Vec<_> =
            worker.lines().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect();
        handled.sort();
        events.sort();
        assert_eq!(handled, events, "{file}");
    }
}

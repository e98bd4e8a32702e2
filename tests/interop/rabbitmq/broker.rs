//! RabbitMQ of Debian's packages, and clients of it that were not written here.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use crate::support::free_port;
use crate::support::judges::{install, python, root};

/// A program that answers each line with one.
struct Dialogue {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Dialogue {
    fn start(script: &str, arguments: &[String]) -> Self {
        let mut command = python("python");
        command.arg(format!("tests/judges/{script}")).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output) }
    }

    fn read(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "{:?} has ended", self.child.id());
        line
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        self.read()
    }
}

/// The broker. It ends with this process, because its input does.
pub(super) struct Broker {
    control: Dialogue,
    client: Dialogue,
    pub(super) port: u16,
    pub(super) tls_port: u16,
    pub(super) directory: TempDir,
}

/// The only broker of this process, for one test at a time.
static BROKER: Mutex<Option<Broker>> = Mutex::const_new(None);

/// The broker, started at the first call; `None` where its packages are not available.
pub(super) async fn broker() -> Option<MutexGuard<'static, Option<Broker>>> {
    install();
    if !Path::new(&root().join("target/judges/rabbitmq/usr/lib/rabbitmq")).exists() {
        crate::support::say("SKIPPED: Debian's packages of RabbitMQ are not available");
        return None;
    }
    let mut broker = BROKER.lock().await;
    if broker.is_none() {
        *broker = Some(tokio::task::spawn_blocking(Broker::start).await.unwrap());
    }
    Some(broker)
}

impl Broker {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        write_certificates(directory.path());
        let [port, tls_port, dist_port, epmd_port] = [(); 4].map(|()| free_port());
        let ports = [port, tls_port, dist_port, epmd_port].map(|port| port.to_string());
        let directory_text = directory.path().to_str().unwrap().to_owned();
        let arguments: Vec<_> = std::iter::once(directory_text).chain(ports).collect();
        let mut control = Dialogue::start("broker.py", &arguments);
        assert_eq!(control.read().trim(), "done");
        let client = Dialogue::start("amqp.py", &[port.to_string()]);
        Self { control, client, port, tls_port, directory }
    }

    /// Ends or starts the broker: `kill`, `stop`, `start`. Begins or ends its alarm about memory:
    /// `alarm`, `clear`.
    pub(super) fn control(&mut self, command: &str) {
        assert_eq!(self.control.ask(command).trim(), "done");
    }

    pub(super) fn url(&self, vhost: &str) -> String {
        format!("amqp://127.0.0.1:{}/{vhost}", self.port)
    }

    /// The client's answer to a command.
    pub(super) fn try_ask(&mut self, command: &Value) -> Value {
        serde_json::from_str(&self.client.ask(&command.to_string())).unwrap()
    }

    /// The result of a command that must succeed.
    pub(super) fn ask(&mut self, command: &Value) -> Value {
        let mut answer = self.try_ask(command);
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        answer["ok"].take()
    }

    /// A topic exchange, and a queue that gets what matches the pattern.
    pub(super) fn bound(&mut self, exchange: &str, queue: &str, pattern: &str) {
        self.ask(&json!({"op": "exchange", "name": exchange}));
        self.ask(&json!({"op": "queue", "name": queue}));
        self.ask(&json!({"op": "bind", "queue": queue, "exchange": exchange, "key": pattern}));
    }

    /// Takes all messages of a queue.
    pub(super) fn take(&mut self, queue: &str) -> Vec<Value> {
        self.ask(&json!({"op": "get", "queue": queue, "most": 100_000})).as_array().unwrap().clone()
    }

    /// Takes messages of a queue until there were `count`.
    pub(super) async fn take_until(&mut self, queue: &str, count: usize) -> Vec<Value> {
        let mut progress = crate::support::Progress::from(0);
        let mut found = Vec::new();
        while found.len() < count {
            found.extend(self.take(queue));
            assert!(progress.goes_on(found.len()), "{queue} has {} of {count} messages", found.len());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        found
    }
}

/// An authority, and a certificate of it for `localhost`.
fn write_certificates(directory: &Path) {
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let issued = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let own = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let own = own.signed_by(&key, &issuer).unwrap();
    for (name, text) in [("ca.pem", issued.pem()), ("cert.pem", own.pem()), ("key.pem", key.serialize_pem())]
    {
        std::fs::write(directory.join(name), text).unwrap();
    }
}

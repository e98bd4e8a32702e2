//! RabbitMQ of Debian's packages, and clients of it that were not written here.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
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
    fn start(mut program: Command, script: &str, arguments: &[String]) -> Self {
        let command = program.arg(format!("tests/judges/{script}")).args(arguments);
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

/// A client library of another author.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Library {
    Pika,
    Amqplib,
}

/// The broker. It ends with this process, because its input does.
pub(super) struct Broker {
    control: Dialogue,
    pika: Dialogue,
    /// Started at its first command.
    amqplib: Option<Dialogue>,
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
        let mut control = Dialogue::start(python("python"), "broker.py", &arguments);
        assert_eq!(control.read().trim(), "done");
        let pika = Dialogue::start(python("python"), "amqp.py", &[port.to_string()]);
        Self { control, pika, amqplib: None, port, tls_port, directory }
    }

    /// Ends or starts the broker: `kill`, `stop`, `start`. Begins or ends its alarm about memory:
    /// `alarm`, `clear`.
    pub(super) fn control(&mut self, command: &str) {
        assert_eq!(self.control.ask(command).trim(), "done");
    }

    pub(super) fn url(&self, vhost: &str) -> String {
        format!("amqp://127.0.0.1:{}/{vhost}", self.port)
    }

    /// The answer of a library to a command.
    fn answer(&mut self, library: Library, command: &Value) -> Value {
        let client = match library {
            Library::Pika => &mut self.pika,
            Library::Amqplib => self.amqplib.get_or_insert_with(|| {
                let mut node = Command::new(root().join("target/judges/node"));
                node.current_dir(root());
                Dialogue::start(node, "amqp.mjs", &[self.port.to_string()])
            }),
        };
        serde_json::from_str(&client.ask(&command.to_string())).unwrap()
    }

    /// The answer of pika to a command.
    pub(super) fn try_ask(&mut self, command: &Value) -> Value {
        self.answer(Library::Pika, command)
    }

    /// The result of a command that must succeed, by pika.
    pub(super) fn ask(&mut self, command: &Value) -> Value {
        self.ask_by(Library::Pika, command)
    }

    /// The result of a command that must succeed.
    pub(super) fn ask_by(&mut self, library: Library, command: &Value) -> Value {
        let mut answer = self.answer(library, command);
        assert!(answer.get("error").is_none(), "{library:?}: {command}: {answer}");
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

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// An authority, its certificates for the broker and for a client, and a client certificate of a
/// stranger.
fn write_certificates(directory: &Path) {
    let write = |name: &str, text: String| std::fs::write(directory.join(name), text).unwrap();
    let issue = |authority: &CertifiedIssuer<'static, KeyPair>, names: &[&str], files: [&str; 2]| {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let issued = CertificateParams::new(names).unwrap().signed_by(&key, authority).unwrap();
        write(files[0], issued.pem());
        write(files[1], key.serialize_pem());
    };
    let (own, stranger) = (authority("own"), authority("stranger"));
    write("ca.pem", own.pem());
    issue(&own, &["localhost", "mutual.localhost"], ["cert.pem", "key.pem"]);
    issue(&own, &["client"], ["client.pem", "client-key.pem"]);
    issue(&stranger, &["client"], ["stranger.pem", "stranger-key.pem"]);
}

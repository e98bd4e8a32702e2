//! RabbitMQ as `tests/judges/install` fetches it, and a publisher for it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use super::{ChildGuard, free_port};

/// Published messages that are not confirmed yet.
const UNCONFIRMED_MAX: usize = 1_000;

/// The broker, which ends with its standard input.
pub(crate) struct Broker {
    _process: ChildGuard,
    pub(crate) port: u16,
    _data: tempfile::TempDir,
}

impl Broker {
    /// `None` without the broker's packages.
    pub(crate) async fn start() -> Option<Self> {
        tokio::task::spawn_blocking(Self::start_and_wait).await.unwrap()
    }

    #[expect(clippy::print_stdout, reason = "a benchmark prints its results")]
    fn start_and_wait() -> Option<Self> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let judges = root.join("target/judges");
        if !judges.join("rabbitmq/usr/lib/rabbitmq").exists() {
            println!("SKIPPED: no RabbitMQ; tests/judges/install fetches it");
            return None;
        }
        let data = tempfile::tempdir().unwrap();
        let ports: [u16; 4] = [(); 4].map(|()| free_port());
        let child = Command::new(judges.join("venv/bin/python"))
            .arg(root.join("tests/judges/broker.py"))
            .arg(data.path())
            .args(ports.map(|port| port.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut process = ChildGuard(child.unwrap());
        let mut line = String::new();
        BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "done", "the broker has not started");
        Some(Self { _process: process, port: ports[0], _data: data })
    }

    /// A channel on a new connection.
    pub(crate) async fn channel(&self) -> Channel {
        let url = format!("amqp://127.0.0.1:{}/%2f", self.port);
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        connection.create_channel().await.unwrap()
    }
}

pub(crate) async fn declare_quorum_queue(channel: &Channel, queue: &str) {
    let arguments = [("x-queue-type".into(), AMQPValue::LongString("quorum".into()))];
    let arguments = FieldTable::from(BTreeMap::from(arguments));
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
}

/// Publishes persistent messages, and waits until each is confirmed.
pub(crate) async fn publish(channel: &Channel, exchange: &str, routing_key: &str, body: &[u8], count: usize) {
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    for first in (0..count).step_by(UNCONFIRMED_MAX) {
        let mut confirms = Vec::new();
        for _ in first..(first + UNCONFIRMED_MAX).min(count) {
            let persistent = BasicProperties::default().with_delivery_mode(2);
            let options = BasicPublishOptions::default();
            let sent = channel.basic_publish(exchange.into(), routing_key.into(), options, body, persistent);
            confirms.push(sent.await.unwrap());
        }
        for confirm in confirms {
            confirm.await.unwrap();
        }
    }
}

//! RabbitMQ: messages per second from a queue into the outbox, and from the outbox to an exchange.
//! The broker is the one of `tests/judges/install`, with durable quorum queues.

#![expect(clippy::unwrap_used, clippy::cast_precision_loss, reason = "a benchmark ends on an error")]

mod support;

use std::time::{Duration, Instant};

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use support::broker::{Broker, declare_quorum_queue, publish};
use support::{Subject, WAIT_MAX, connect, event, get, judge, post};

const MESSAGES: usize = 50_000;
const RATE_MIN: f64 = 10_000.0;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let Some(broker) = Broker::start().await else { return };
        source(&broker).await;
        destination(&broker).await;
    });
}

/// The queue is full before the source is created.
async fn source(broker: &Broker) {
    let channel = broker.channel().await;
    declare_quorum_queue(&channel, "to-balto").await;
    publish(&channel, "", "to-balto", event().as_bytes(), MESSAGES).await;
    let subject = Subject::start().await;
    let mut stream = connect(subject.port).await;
    let body = format!(
        r#"{{"name":"bench","url":"amqp://127.0.0.1:{}","queue":"to-balto","declare":false,"format":"raw"}}"#,
        broker.port
    );
    post(&mut stream, "/v1/sources", &body, 201).await;
    let started = Instant::now();
    let mut accepted = 0;
    while accepted < MESSAGES {
        assert!(started.elapsed() < WAIT_MAX, "{accepted} of {MESSAGES} messages became events");
        tokio::time::sleep(Duration::from_millis(5)).await;
        accepted = accepted_of(&get(subject.ops, "/metrics").await);
    }
    let rate = MESSAGES as f64 / started.elapsed().as_secs_f64();
    judge(rate >= RATE_MIN, &format!("from a queue: {rate:.0} messages/s, at least {RATE_MIN:.0}"));
}

fn accepted_of(metrics: &str) -> usize {
    let line = |line: &&str| line.starts_with("balto_source_messages_total") && line.contains("\"accepted\"");
    let value = metrics.lines().find(line).and_then(|line| line.rsplit(' ').next());
    value.map_or(0, |value| value.parse().unwrap())
}

/// The events are in the outbox before the endpoint starts.
async fn destination(broker: &Broker) {
    let channel = broker.channel().await;
    declare_quorum_queue(&channel, "from-balto").await;
    let subject = Subject::start().await;
    let mut stream = connect(subject.port).await;
    let endpoint = format!(
        r#"{{"url":"amqp://127.0.0.1:{}","status":"paused","maxInFlight":256,"amqp":{{"exchange":"","routingKey":{{"literal":"from-balto"}}}}}}"#,
        broker.port
    );
    let made = post(&mut stream, "/v1/endpoints", &endpoint, 201).await;
    let made = String::from_utf8(made).unwrap();
    let id = made.split_once(r#""id":""#).unwrap().1.split('"').next().unwrap();
    let batch = format!(r#"{{"events":[{}]}}"#, vec![event(); 1_000].join(","));
    for _ in 0..MESSAGES / 1_000 {
        post(&mut stream, "/v1/events/batch", &batch, 202).await;
    }
    let started = Instant::now();
    post(&mut stream, &format!("/v1/endpoints/{id}/resume"), "", 200).await;
    let mut arrived = 0;
    while arrived < MESSAGES {
        assert!(started.elapsed() < WAIT_MAX, "{arrived} of {MESSAGES} messages arrived");
        tokio::time::sleep(Duration::from_millis(5)).await;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("from-balto".into(), passive, FieldTable::default()).await;
        arrived = usize::try_from(queue.unwrap().message_count()).unwrap();
    }
    let rate = MESSAGES as f64 / started.elapsed().as_secs_f64();
    judge(rate >= RATE_MIN, &format!("to an exchange: {rate:.0} messages/s, at least {RATE_MIN:.0}"));
}

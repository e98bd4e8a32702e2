//! Queues: rates of workers, time to a waiting worker, memory, a key with a long backlog, and
//! RabbitMQ under the same load.
//!
//! `cargo bench --bench queues -- PART...` measures some parts: `batches`, `single`, `parked`,
//! `memory`, `keys`, `rabbitmq`. `scale=N` divides all counts by N, for a short trial. RabbitMQ is
//! the broker of `tests/judges/install`, with a durable quorum queue and lapin as its client. Its
//! acknowledgements have no answer, so that part ends with an answered call after the last one.

#![expect(clippy::unwrap_used, reason = "a benchmark ends on an error")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use support::broker::{Broker, declare_quorum_queue, publish};
use support::{Subject, connect, event, judge, median, most_memory, post};
use tokio::net::TcpStream;

const PARTS: [&str; 6] = ["batches", "single", "parked", "memory", "keys", "rabbitmq"];
const WORKERS: usize = 16;
const BATCH: usize = 10;
/// Messages of the parts `batches` and `single`.
const BATCHED: usize = 200_000;
const SINGLE: usize = 50_000;
/// Messages to a waiting worker.
const PARKED: usize = 2_000;
const WAITING: usize = 1_000_000;
const LEASED: usize = 10_000;
/// Messages of the one key, and turns of the others.
const ONE_KEY: usize = 500_000;
const TURNS: usize = 9;
const TURN: usize = 400;

const RATE_BATCHED_MIN: f64 = 20_000.0;
const RATE_SINGLE_MIN: f64 = 5_000.0;
const PARKED_P50_MAX: Duration = Duration::from_micros(1_200);
const MEMORY_MAX: u64 = 250_000_000;
const OTHERS_MAX: f64 = 1.2;
const BROKER_RATIO_MIN: f64 = 3.0;

fn main() {
    let mut parts = Vec::new();
    let mut scale = 1;
    for argument in std::env::args().skip(1).filter(|argument| argument != "--bench") {
        match argument.strip_prefix("scale=") {
            Some(number) => scale = number.parse().unwrap(),
            None => {
                assert!(PARTS.contains(&&*argument), "{argument} is none of {PARTS:?}");
                parts.push(argument);
            }
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let has = |part: &str| parts.is_empty() || parts.iter().any(|chosen| chosen == part);
    runtime.block_on(async {
        // The part `rabbitmq` compares with these two.
        let compares = has("rabbitmq");
        let mut own = [None; 2];
        if has("batches") || compares {
            own[0] = Some(batches(BATCHED / scale).await);
        }
        if has("single") || compares {
            own[1] = Some(single(SINGLE / scale).await);
        }
        if has("parked") {
            parked(PARKED / scale).await;
        }
        if has("memory") {
            memory(WAITING / scale, LEASED / scale).await;
        }
        if has("keys") {
            keys(ONE_KEY / scale, TURN / scale.min(10)).await;
        }
        if let (true, [Some(batched), Some(alone)]) = (compares, own) {
            rabbitmq([(BATCHED / scale, BATCH, batched), (SINGLE / scale, 1, alone)]).await;
        }
    });
}

async fn create(subject: &Subject, name: &str, more: &str) {
    let mut stream = connect(subject.port).await;
    let queue = format!(r#"{{"name":"{name}","eventTypes":["{name}"],"visibility":"1h"{more}}}"#);
    post(&mut stream, "/v1/queues", &queue, 201).await;
}

async fn fill(subject: &Subject, event: &str, count: usize) {
    let mut stream = connect(subject.port).await;
    for first in (0..count).step_by(1_000) {
        let events = vec![event; (count - first).min(1_000)].join(",");
        let body = format!(r#"{{"events":[{events}]}}"#);
        post(&mut stream, "/v1/events/batch", &body, 202).await;
    }
}

/// An event of half a kilobyte for the queue of this name.
fn event_for(queue: &str, more: &str) -> String {
    event().replacen(r#""order.paid""#, &format!(r#""{queue}"{more}"#), 1)
}

fn receipts(answer: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(answer).unwrap();
    text.split(r#""receipt":""#).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
}

async fn receive(stream: &mut TcpStream, queue: &str, body: &str) -> Vec<String> {
    receipts(&post(stream, &format!("/v1/queues/{queue}/receive"), body, 200).await)
}

async fn ack(stream: &mut TcpStream, queue: &str, receipts: &[String]) {
    let body = format!(r#"{{"receipts":["{}"]}}"#, receipts.join("\",\""));
    let answer = post(stream, &format!("/v1/queues/{queue}/ack"), &body, 200).await;
    let acked = std::str::from_utf8(&answer).unwrap().matches(r#""acked""#).count();
    assert_eq!(acked, receipts.len());
}

/// Receives and acknowledges all messages; returns messages per second.
async fn drain(port: u16, queue: &'static str, count: usize, batch: usize) -> f64 {
    let done = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let work = |_| {
        let done = done.clone();
        tokio::spawn(async move {
            let mut stream = connect(port).await;
            let body = format!(r#"{{"max":{batch},"wait":"200ms"}}"#);
            let mut last = Instant::now();
            while done.load(Ordering::Relaxed) < count {
                let got = receive(&mut stream, queue, &body).await;
                if !got.is_empty() {
                    ack(&mut stream, queue, &got).await;
                    done.fetch_add(got.len(), Ordering::Relaxed);
                    last = Instant::now();
                }
            }
            last
        })
    };
    let workers: Vec<_> = (0..WORKERS).map(work).collect();
    let mut last = started;
    for worker in workers {
        last = last.max(worker.await.unwrap());
    }
    assert_eq!(done.load(Ordering::Relaxed), count);
    count as f64 / (last - started).as_secs_f64()
}

async fn batches(count: usize) -> f64 {
    let subject = Subject::start().await;
    create(&subject, "batches", "").await;
    fill(&subject, &event_for("batches", ""), count).await;
    let rate = drain(subject.port, "batches", count, BATCH).await;
    judge(
        rate >= RATE_BATCHED_MIN,
        &format!(
            "receive and ack in batches of {BATCH}, {WORKERS} workers: {rate:.0} messages/s, at least {RATE_BATCHED_MIN:.0}"
        ),
    );
    rate
}

async fn single(count: usize) -> f64 {
    let subject = Subject::start().await;
    create(&subject, "single", "").await;
    fill(&subject, &event_for("single", ""), count).await;
    let rate = drain(subject.port, "single", count, 1).await;
    judge(
        rate >= RATE_SINGLE_MIN,
        &format!(
            "receive and ack one by one, {WORKERS} workers: {rate:.0} messages/s, at least {RATE_SINGLE_MIN:.0}"
        ),
    );
    rate
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}

/// Times from a post to the message at a worker that waits.
async fn times_to_worker(port: u16, queue: &str, events: &[String]) -> Vec<Duration> {
    let (mut publisher, mut worker) = (connect(port).await, connect(port).await);
    let mut times = Vec::with_capacity(events.len());
    for event in events {
        let asked = async {
            let got = receive(&mut worker, queue, r#"{"max":1,"wait":"20s"}"#).await;
            (got, Instant::now())
        };
        let posted = async {
            // The worker waits by then.
            tokio::time::sleep(Duration::from_millis(1)).await;
            let started = Instant::now();
            post(&mut publisher, "/v1/events", event, 202).await;
            started
        };
        let ((got, at), started) = tokio::join!(asked, posted);
        assert_eq!(got.len(), 1);
        times.push(at - started);
        ack(&mut worker, queue, &got).await;
    }
    times
}

async fn parked(count: usize) {
    let subject = Subject::start().await;
    create(&subject, "parked", "").await;
    let mut times = times_to_worker(subject.port, "parked", &vec![event_for("parked", ""); count]).await;
    let (p50, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
    judge(
        p50 < PARKED_P50_MAX,
        &format!("publish to a waiting worker: p50 {p50:.2?} (below 1.2 ms), p99 {p99:.2?}"),
    );
}

async fn memory(waiting: usize, leased: usize) {
    let subject = Subject::start().await;
    create(&subject, "memory", "").await;
    fill(&subject, &event_for("memory", ""), waiting).await;
    let mut stream = connect(subject.port).await;
    let mut held = 0;
    while held < leased {
        let got = receive(&mut stream, "memory", r#"{"max":100,"maxBytes":16000000}"#).await;
        assert!(!got.is_empty(), "{held} of {leased} are leased");
        held += got.len();
    }
    let most = most_memory(subject.daemon.0.id());
    judge(
        most < MEMORY_MAX,
        &format!("{waiting} messages, {held} of them leased: {} MB at most, below 250", most / 1_000_000),
    );
}

/// Two queues in alternating turns; in one of them a key has a long backlog.
async fn keys(backlog: usize, turn: usize) {
    let subject = Subject::start().await;
    for queue in ["alone", "beside"] {
        create(&subject, queue, r#","ordering":"key""#).await;
    }
    fill(&subject, &event_for("beside", r#","orderingKey":"busy""#), backlog).await;
    // The first message of the key is under lease, so the others of it wait.
    let mut stream = connect(subject.port).await;
    assert_eq!(receive(&mut stream, "beside", "").await.len(), 1);
    let mut ratios = Vec::new();
    for _ in 0..TURNS {
        let mut p99 = [Duration::ZERO; 2];
        for (queue, p99) in ["alone", "beside"].into_iter().zip(&mut p99) {
            let event = |number| event_for(queue, &format!(r#","orderingKey":"other-{}""#, number % 100));
            let events: Vec<_> = (0..turn).map(event).collect();
            *p99 = percentile(&mut times_to_worker(subject.port, queue, &events).await, 99);
        }
        ratios.push(p99[1].as_secs_f64() / p99[0].as_secs_f64());
    }
    let ratio = median(ratios);
    judge(
        ratio <= OTHERS_MAX,
        &format!(
            "p99 of other keys beside {backlog} messages of one: {ratio:.2} times alone, at most {OTHERS_MAX}"
        ),
    );
}

/// The rates of Balto as ratios to those of the broker.
async fn rabbitmq(loads: [(usize, usize, f64); 2]) {
    let Some(broker) = Broker::start().await else { return };
    for (count, batch, own) in loads {
        let queue = format!("of-{batch}");
        let channel = broker.channel().await;
        declare_quorum_queue(&channel, &queue).await;
        publish(&channel, "", &queue, event().as_bytes(), count).await;
        let rate = drain_broker(&broker, &queue, count, batch).await;
        let ratio = own / rate;
        judge(
            batch == 1 || ratio >= BROKER_RATIO_MIN,
            &format!("RabbitMQ, batches of {batch}: {rate:.0} messages/s; Balto has {ratio:.1} times that"),
        );
    }
}

/// As [`drain`]: each worker takes a batch and acknowledges it. The broker may send the next batch
/// before that.
async fn drain_broker(broker: &Broker, queue: &str, count: usize, batch: usize) -> f64 {
    let done = Arc::new(AtomicUsize::new(0));
    let mut channels = Vec::new();
    for _ in 0..WORKERS {
        let channel = broker.channel().await;
        let ahead = u16::try_from(2 * batch).unwrap();
        channel.basic_qos(ahead, BasicQosOptions::default()).await.unwrap();
        channels.push(channel);
    }
    let started = Instant::now();
    let work = |channel: Channel| {
        let (done, queue) = (done.clone(), queue.to_owned());
        tokio::spawn(async move {
            let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
            let mut consumer =
                channel.basic_consume((*queue).into(), "".into(), options, none).await.unwrap();
            let (mut open, mut tag, mut last) = (0, 0, Instant::now());
            while done.load(Ordering::Relaxed) < count {
                let next = tokio::time::timeout(Duration::from_millis(200), consumer.next()).await;
                if let Ok(delivery) = &next {
                    tag = delivery.as_ref().unwrap().as_ref().unwrap().delivery_tag;
                    open += 1;
                }
                if open == batch || next.is_err() && open > 0 {
                    channel.basic_ack(tag, BasicAckOptions { multiple: true }).await.unwrap();
                    if done.fetch_add(open, Ordering::Relaxed) + open == count {
                        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
                        channel.queue_declare((*queue).into(), passive, FieldTable::default()).await.unwrap();
                    }
                    (open, last) = (0, Instant::now());
                }
            }
            last
        })
    };
    let workers: Vec<_> = channels.into_iter().map(work).collect();
    let mut last = started;
    for worker in workers {
        last = last.max(worker.await.unwrap());
    }
    assert_eq!(done.load(Ordering::Relaxed), count);
    count as f64 / (last - started).as_secs_f64()
}

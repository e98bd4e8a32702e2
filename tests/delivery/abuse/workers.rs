//! Abusive workers of a queue: thousands that wait, half-closed ones, ones that do not read their
//! answer, and ones that die while it is written.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::until;
use crate::support::Daemon;
use crate::support::raw::{Raw, RawResponse, post};

/// A lone caller gets three quarters of the places of waiting requests.
const PLACES: usize = 1_500;
const SOCKETS: usize = 2_000;
/// Bytes of an event.
const LARGE: usize = 200_000;

fn receive(queue: &str, body: &Value) -> String {
    post(&format!("/v1/queues/{queue}/receive"), "", &body.to_string())
}

fn messages(answer: &RawResponse) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    body["messages"].as_array().unwrap().clone()
}

async fn create(daemon: &Daemon, mut queue: Value) {
    (queue["eventTypes"], queue["visibility"]) = (json!([queue["name"]]), json!("1h"));
    daemon.post("/queues", &queue.to_string()).await;
}

async fn send_all(daemon: &Daemon, event_type: &str, numbers: std::ops::Range<usize>) {
    let events: Vec<_> = numbers.map(|number| json!({"type": event_type, "data": number})).collect();
    for events in events.chunks(1_000) {
        daemon.post("/events/batch", &json!({"events": events}).to_string()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_and_dying_workers_lose_no_message() {
    let data = tempfile::tempdir().unwrap();
    let environment = [("BALTO__SERVER__ANSWER_TIMEOUT", "1s"), ("BALTO__SERVER__MAX_CONNECTIONS", "5000")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    create(&daemon, json!({"name": "jobs"})).await;
    let retry = json!({"initial": "10ms", "maxInterval": "10ms", "jitter": 0});
    create(&daemon, json!({"name": "large", "maxDeliveries": 3, "retry": retry})).await;
    let started = Instant::now();
    park(&daemon).await;
    let parked = started.elapsed();
    lose_answers(&daemon).await;
    crate::support::say(&format!("waiting: {parked:.1?}, lost answers: {:.1?}", started.elapsed() - parked));
}

/// Each message goes to exactly one of the parked workers, and each worker gets an answer.
async fn park(daemon: &Daemon) {
    // The first requests of a process allocate what stays.
    send_all(daemon, "warm", 0..2_000).await;
    let before = daemon.kibibytes("VmRSS");
    let mut parked = Vec::new();
    for _ in 0..SOCKETS {
        let mut worker = Raw::connect(daemon.address()).await;
        worker.send(receive("jobs", &json!({"max": 1, "wait": "60s"})).as_bytes()).await;
        parked.push(worker);
    }
    let mut refused = Vec::new();
    until("the others are refused", async || {
        for worker in std::mem::take(&mut parked) {
            let answered = tokio::time::timeout(Duration::ZERO, worker.stream.readable()).await;
            if answered.is_ok() { refused.push(worker) } else { parked.push(worker) }
        }
        refused.len() >= SOCKETS - PLACES
    })
    .await;
    assert_eq!(daemon.metric("balto_api_waiting_requests", "").await, PLACES as f64);
    for mut worker in refused {
        let answer = worker.answer().await.unwrap();
        assert_eq!(answer.status, 429, "{}", answer.body);
        assert!(answer.body.contains("too_many_waiters") && answer.head.contains("retry-after: "));
    }
    let after = daemon.kibibytes("VmRSS");
    crate::support::say(&format!("{PLACES} waiting workers: {before} KiB before, {after} KiB with them"));
    assert!(after < before + PLACES as u64 * 64, "{before} KiB before, {after} KiB after");
    // Workers that close their sending side wait for an answer, and get no message.
    let mut half_closed = parked.split_off(PLACES - 200);
    for worker in &mut half_closed {
        worker.half_close().await;
    }
    for worker in &mut half_closed {
        assert_eq!(messages(&worker.answer().await.unwrap()), Vec::<Value>::new());
    }
    until("their places are free", async || {
        daemon.metric("balto_api_waiting_requests", "").await == parked.len() as f64
    })
    .await;
    // Others whose time is up.
    let mut short = Vec::new();
    for _ in 0..100 {
        let mut worker = Raw::connect(daemon.address()).await;
        worker.send(receive("jobs", &json!({"wait": "200ms"})).as_bytes()).await;
        short.push(worker);
    }
    for worker in &mut short {
        assert_eq!(messages(&worker.answer().await.unwrap()), Vec::<Value>::new());
    }
    send_all(daemon, "jobs", 0..parked.len()).await;
    let mut got = HashSet::new();
    for worker in &mut parked {
        let [message] = &messages(&worker.answer().await.unwrap())[..] else { panic!("one message each") };
        assert!(got.insert(message["event"]["data"].as_u64().unwrap()), "sent twice: {message}");
        assert_eq!(message["deliveryCount"], 1);
    }
    assert_eq!(got.len(), parked.len());
    let rest = daemon.post("/queues/jobs/receive", "{}").await;
    assert_eq!(rest["messages"], json!([]));
}

/// Sends a receive of all large messages, over a connection that buffers less than one of them.
async fn ask_for_large(daemon: &Daemon, wait: &str) -> Raw {
    let mut raw = Raw::connect_narrow(daemon.address());
    raw.send(receive("large", &json!({"max": 100, "maxBytes": 16 << 20, "wait": wait})).as_bytes()).await;
    raw
}

async fn until_lane(daemon: &Daemon, leased: usize, returned: usize) {
    let is_so = |lane: &Value| lane["leased"] == leased && lane["returned"] == returned;
    daemon.until("/queues/large/lane", is_so).await;
}

/// Receives as a client that takes its answer.
async fn take_large(daemon: &Daemon) -> Vec<Value> {
    let body = json!({"max": 100, "maxBytes": 16 << 20, "wait": "10s"});
    let answer = daemon.post("/queues/large/receive", &body.to_string()).await;
    answer["messages"].as_array().unwrap().clone()
}

fn receipts(messages: &[Value]) -> String {
    let receipts: Vec<_> = messages.iter().map(|message| message["receipt"].clone()).collect();
    json!({"receipts": receipts}).to_string()
}

/// Messages whose answer is not written return within seconds: the visibility is 1 h. The first
/// time they are not charged.
async fn lose_answers(daemon: &Daemon) {
    const COUNT: usize = 7;
    for number in 0..COUNT {
        let event = json!({"type": "large", "data": {"n": number, "pad": "x".repeat(LARGE)}});
        daemon.post("/events", &event.to_string()).await;
    }
    let raw = ask_for_large(daemon, "0s").await;
    raw.stream.readable().await.unwrap();
    raw.stream.set_zero_linger().unwrap();
    drop(raw);
    until_lane(daemon, 0, COUNT).await;
    // A client that closes its sending side while it reads gets its answer whole.
    let mut reader = Raw::connect(daemon.address()).await;
    reader.send(receive("large", &json!({"max": 100, "maxBytes": 16 << 20})).as_bytes()).await;
    reader.stream.readable().await.unwrap();
    reader.half_close().await;
    let got = messages(&reader.answer().await.unwrap());
    assert_eq!(got.len(), COUNT);
    assert!(got.iter().all(|message| message["deliveryCount"] == 1), "nothing was charged");
    daemon.post("/queues/large/release", &receipts(&got)).await;
    // One of the readers takes all. The second loss of a series is charged.
    let mut readers = Vec::new();
    for _ in 0..10 {
        readers.push(ask_for_large(daemon, "0s").await);
    }
    for reader in &readers {
        reader.stream.readable().await.unwrap();
    }
    assert!(daemon.kibibytes("VmHWM") < 400 * 1024, "{} KiB", daemon.kibibytes("VmHWM"));
    drop(readers);
    until_lane(daemon, 0, 0).await;
    let lane = daemon.get("/queues/large/lane").await;
    assert_eq!(lane["pending"], COUNT, "{lane}");
    cut_one_for_ever(daemon, COUNT).await;
}

/// After the second loss each message comes alone. So all others get through, and the one whose
/// answer is always lost becomes a dead letter.
async fn cut_one_for_ever(daemon: &Daemon, count: usize) {
    for number in 0..count - 1 {
        let [message] = &take_large(daemon).await[..] else { panic!("one message in each answer") };
        assert_eq!((&message["event"]["data"]["n"], &message["deliveryCount"]), (&json!(number), &json!(2)));
        let ended = daemon.post("/queues/large/ack", &receipts(std::slice::from_ref(message))).await;
        assert_eq!(ended["results"][0]["status"], "acked", "{ended}");
    }
    for story in ["closed", "slow"] {
        let raw = ask_for_large(daemon, "10s").await;
        raw.stream.readable().await.unwrap();
        if story == "slow" {
            // Until the answer's time is up.
            until_lane(daemon, 0, 0).await;
        }
        drop(raw);
        until_lane(daemon, 0, 0).await;
    }
    let dead = daemon.until("/dead-letters?queue=large", |page| page["data"][0].is_object()).await;
    let dead = &dead["data"][0];
    assert_eq!(dead["reason"], "attemptsExhausted", "{dead}");
    let shown = daemon.get(&format!("/deliveries/{}", dead["id"].as_str().unwrap())).await;
    let history: Vec<_> = shown["attempts"].as_array().unwrap().iter().collect();
    let outcomes: Vec<_> = history.iter().map(|lease| lease["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["released", "released", "requeued", "requeued", "requeued"], "{shown}");
    for (index, lease) in history.iter().enumerate() {
        let reason = if index == 1 { Value::Null } else { json!("the answer could not be sent whole") };
        assert_eq!(lease["reason"], reason, "lease {index}: {shown}");
    }
    assert_eq!(take_large(daemon).await, Vec::<Value>::new());
}

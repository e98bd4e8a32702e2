//! Abusive workers of a queue: thousands that wait, half-closed ones, ones that do not read their
//! answer, and ones that die while it is written.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpSocket;

use super::until;
use crate::support::Daemon;
use crate::support::raw::{Raw, RawResponse, post};

/// A lone caller gets three quarters of the places of waiting requests.
const PLACES: usize = 1_500;
const SOCKETS: usize = 2_000;
/// Bytes of an event.
const LARGE: usize = 900_000;

fn receive(queue: &str, body: &Value) -> String {
    post(&format!("/v1/queues/{queue}/receive"), "", &body.to_string())
}

fn messages(answer: &RawResponse) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    body["messages"].as_array().unwrap().clone()
}

async fn create(daemon: &Daemon, name: &str) {
    let queue = json!({"name": name, "eventTypes": [name], "visibility": "1h"});
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
    let environment = [
        ("BALTO__SERVER__ANSWER_TIMEOUT", "1s"),
        ("BALTO__INGEST__MAX_EVENT_BYTES", "1MiB"),
        ("BALTO__SERVER__MAX_CONNECTIONS", "5000"),
    ];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    for queue in ["jobs", "large"] {
        create(&daemon, queue).await;
    }
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

/// Sends a receive of all large messages, over a connection that takes few bytes at a time.
async fn ask_for_large(daemon: &Daemon) -> Raw {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut raw = Raw::over(socket.connect(daemon.address()).await.unwrap());
    raw.send(receive("large", &json!({"max": 100, "maxBytes": 16 << 20})).as_bytes()).await;
    raw
}

async fn until_leased(daemon: &Daemon, count: usize) {
    let is_leased = |lane: &Value| lane["leased"] == count && lane["returned"] == 0;
    daemon.until("/queues/large/lane", is_leased).await;
}

async fn until_returned(daemon: &Daemon, count: usize) {
    daemon.until("/queues/large/lane", |lane| lane["returned"] == count).await;
}

/// Messages whose answer is not written return within seconds, uncharged: the visibility is 1 h.
async fn lose_answers(daemon: &Daemon) {
    // More than the kernel buffers.
    const COUNT: usize = 7;
    for number in 0..COUNT {
        let event = json!({"type": "large", "data": {"n": number, "pad": "x".repeat(LARGE)}});
        daemon.post("/events", &event.to_string()).await;
    }
    for story in ["reset", "closed", "slow"] {
        let raw = ask_for_large(daemon).await;
        until_leased(daemon, COUNT).await;
        raw.stream.readable().await.unwrap();
        match story {
            "reset" => {
                raw.stream.set_zero_linger().unwrap();
                drop(raw);
            }
            "closed" => drop(raw),
            // Until the answer's time is up.
            _ => {
                until_returned(daemon, COUNT).await;
                drop(raw);
            }
        }
        until_returned(daemon, COUNT).await;
    }
    let mut readers = Vec::new();
    for _ in 0..10 {
        readers.push(ask_for_large(daemon).await);
    }
    until_returned(daemon, COUNT).await;
    assert!(daemon.kibibytes("VmHWM") < 400 * 1024, "{} KiB", daemon.kibibytes("VmHWM"));
    drop(readers);
    // A client that closes its sending side while it reads gets its answer whole.
    let mut reader = Raw::connect(daemon.address()).await;
    reader.send(receive("large", &json!({"max": 100, "maxBytes": 16 << 20})).as_bytes()).await;
    reader.stream.readable().await.unwrap();
    reader.half_close().await;
    let got = messages(&reader.answer().await.unwrap());
    assert_eq!(got.len(), COUNT);
    assert!(got.iter().all(|message| message["deliveryCount"] == 1), "nothing was charged");
    let receipts: Vec<_> = got.iter().map(|message| message["receipt"].clone()).collect();
    let ended = daemon.post("/queues/large/ack", &json!({"receipts": receipts}).to_string()).await;
    let results = ended["results"].as_array().unwrap();
    assert!(results.iter().all(|result| result["status"] == "acked"), "{ended}");
}

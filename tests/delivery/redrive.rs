//! Ten thousand dead letters, redriven by a filter: each is sent again, also when the process is
//! killed in the middle.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Daemon, Receiver, answer, seed};
use serde_json::{Value, json};

const LETTERS: usize = 10_000;

/// A daemon whose receiver refused that many events for good, and accepts everything from now on.
async fn with_dead_letters(daemon: &Daemon) -> Receiver {
    let seen = Arc::new(AtomicUsize::new(0));
    let receiver = Receiver::start(move |_, _| {
        answer(if seen.fetch_add(1, Ordering::Relaxed) < LETTERS { 400 } else { 200 })
    })
    .await;
    let endpoint =
        json!({"url": receiver.url, "eventTypes": ["a.#"], "maxInFlight": 64, "retry": {"maxAttempts": 1}});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    let events: Vec<_> = (0..1_000).map(|number| json!({"type": "a.b", "data": number})).collect();
    let batch = json!({"events": events}).to_string();
    for _ in 0..LETTERS / 1_000 {
        daemon.post("/events/batch", &batch).await;
    }
    receiver.until(LETTERS).await;
    until_dead(daemon, LETTERS).await;
    receiver
}

/// Waits for this gauge value, which is read from the state once per second.
async fn until_dead(daemon: &Daemon, letters: usize) {
    daemon.until_metric("balto_dead_letters", "", |count| count == letters as f64).await;
}

/// The repetitions of each event.
fn repetitions(receiver: &Receiver) -> HashMap<String, usize> {
    let mut times = HashMap::new();
    for got in &receiver.got()[LETTERS..] {
        *times.entry(got.headers["webhook-id"].clone()).or_default() += 1;
    }
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_ten_thousand_is_delivered_once() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = with_dead_letters(&daemon).await;
    // Another filter matches nothing.
    let other = daemon.post("/dead-letters/redrive", r#"{"type":"b"}"#).await;
    assert_eq!((&other["count"], &other["status"]), (&json!(0), &json!("completed")), "{other}");
    let moved = daemon.post("/dead-letters/redrive", r#"{"type":"a.b","reason":"attemptsExhausted"}"#).await;
    assert_eq!((&moved["count"], &moved["status"]), (&json!(LETTERS), &json!("running")), "{moved}");
    let job = format!("/jobs/{}", moved["id"].as_str().unwrap());
    let ended = daemon.until(&job, |job| job["status"] != "running").await;
    assert_eq!((&ended["status"], &ended["done"]), (&json!("completed"), &json!(LETTERS)), "{ended}");
    receiver.until(2 * LETTERS).await;
    daemon.until("/dead-letters", |page: &Value| page["data"] == json!([])).await;
    daemon.until("/deliveries?status=pending", |page: &Value| page["data"] == json!([])).await;
    let times = repetitions(&receiver);
    assert_eq!((times.len(), times.values().max()), (LETTERS, Some(&1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redrive_is_complete_after_a_kill_in_the_middle() {
    let mut random = fastrand::Rng::with_seed(seed());
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let receiver = with_dead_letters(&daemon).await;
    // The process is killed during the command or the deliveries, until one command was answered.
    let mut commands = 0_u64;
    let mut answered = false;
    while !answered {
        commands += 1;
        // The delay grows, so that a slow machine eventually answers.
        let moment = tokio::time::sleep(Duration::from_millis(random.u64(1..4_000 * commands)));
        let redrive = async {
            answered = daemon.try_post("/dead-letters/redrive", "{}").await.is_some();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = moment => {}
            () = redrive => {}
        }
        daemon.kill();
        daemon = Daemon::start(data.path()).await;
    }
    // The job of the answered command, and those of commands that began one before the kill.
    daemon.until("/jobs?status=running", |page: &Value| page["data"] == json!([])).await;
    daemon.until("/deliveries?status=pending", |page: &Value| page["data"] == json!([])).await;
    assert_eq!(daemon.get("/dead-letters").await["data"], json!([]), "after {commands} commands");
    let times = repetitions(&receiver);
    assert_eq!(times.len(), LETTERS, "events that were redelivered");
}

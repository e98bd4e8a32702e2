//! The real daemon, killed repeatedly while workers receive and acknowledge messages.
//!
//! `BALTO_TEST_ROUNDS` sets the number of kills (default 24), `BALTO_TEST_SEED` the random choices.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use fastrand::Rng;
use serde_json::{Value, json};

use crate::support::{Daemon, WAIT_MAX, number, say, seed, serve};

const WORKERS: usize = 16;
const VISIBILITY: Duration = Duration::from_millis(1_500);

/// Facts that workers have learned from answers.
#[derive(Default)]
struct Answers {
    published: HashSet<String>,
    acked: HashSet<String>,
    /// End of the answered lease of a message, and whether its worker has given it back.
    leased: HashMap<String, SystemTime>,
    violations: Vec<String>,
    received: u64,
}

async fn call(client: &reqwest::Client, url: String, body: Value) -> Option<Value> {
    let request = client.post(url).header("content-type", "application/json").body(body.to_string());
    let answer = request.send().await.ok()?;
    if !answer.status().is_success() {
        return None;
    }
    serde_json::from_str(&answer.text().await.ok()?).ok()
}

/// Receives and ends leases until the daemon is killed.
async fn work(answers: Arc<Mutex<Answers>>, api: String, mut random: Rng) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let visibility = format!("{}ms", VISIBILITY.as_millis());
    loop {
        let body = json!({"max": random.u32(1..8), "wait": "200ms", "visibility": visibility});
        let asked = SystemTime::now();
        let Some(answer) = call(&client, format!("{api}/queues/jobs/receive"), body).await else { return };
        let messages = answer["messages"].as_array().unwrap().clone();
        {
            let mut known = answers.lock().unwrap();
            for message in &messages {
                let id = message["event"]["id"].as_str().unwrap().to_owned();
                known.received += 1;
                if known.acked.contains(&id) {
                    known.violations.push(format!("{id} came again after its ack"));
                }
                let now = SystemTime::now();
                if known.leased.get(&id).is_some_and(|until| *until > now) {
                    known.violations.push(format!("{id} was leased twice"));
                }
                // The lease began after the request.
                known.leased.insert(id, asked + VISIBILITY);
            }
        }
        if random.u8(0..10) == 0 {
            // The worker dies: its leases run out.
            continue;
        }
        for message in messages {
            let id = message["event"]["id"].as_str().unwrap().to_owned();
            let action = match random.u8(0..10) {
                0 => "nack",
                1 => "release",
                _ => "ack",
            };
            if action != "ack" {
                answers.lock().unwrap().leased.remove(&id);
            }
            let body = json!({"receipts": [message["receipt"]]});
            let Some(answer) = call(&client, format!("{api}/queues/jobs/{action}"), body).await else {
                return;
            };
            if answer["results"][0]["status"] == "acked" {
                answers.lock().unwrap().acked.insert(id);
            }
        }
    }
}

async fn publish(answers: Arc<Mutex<Answers>>, api: String) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    loop {
        let events = vec![json!({"type": "job", "data": 1}); 20];
        let body = json!({"events": events});
        let Some(answer) = call(&client, format!("{api}/events/batch"), body).await else { return };
        for result in answer["results"].as_array().unwrap() {
            answers.lock().unwrap().published.extend(result["id"].as_str().map(str::to_owned));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_and_acks_survive_repeated_kills() {
    let seed = seed();
    let mut random = Rng::with_seed(seed);
    let data = tempfile::tempdir().unwrap();
    // The delay does not grow: a message can be returned many times.
    let retry = json!({"initial": "1ms", "maxInterval": "1ms", "jitter": 0});
    let queue = json!({"name": "jobs", "maxDeliveries": 1000, "retry": retry});
    Daemon::start(data.path()).await.post("/queues", &queue.to_string()).await;
    let answers = Arc::<Mutex<Answers>>::default();
    let rounds = number("BALTO_TEST_ROUNDS").unwrap_or(24);
    for _ in 0..rounds {
        let mut daemon = Daemon::spawn(serve(data.path(), &["--dev"]));
        daemon.until_ready().await;
        let mut tasks = vec![tokio::spawn(publish(Arc::clone(&answers), daemon.api.clone()))];
        for _ in 0..WORKERS {
            tasks.push(tokio::spawn(work(Arc::clone(&answers), daemon.api.clone(), random.fork())));
        }
        let acked = || answers.lock().unwrap().acked.len();
        let (before, began) = (acked(), Instant::now());
        tokio::time::sleep(Duration::from_millis(random.u64(100..700))).await;
        // A busy machine needs longer.
        while acked() == before && began.elapsed() < WAIT_MAX {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        daemon.kill();
        for task in tasks {
            task.await.unwrap();
        }
    }
    let mut daemon = Daemon::start(data.path()).await;
    // Every message ends: the rest is acknowledged as the leases run out.
    let began = Instant::now();
    while daemon.get("/deliveries?limit=1&status=pending").await["data"] != json!([]) {
        assert!(began.elapsed() < WAIT_MAX, "BALTO_TEST_SEED={seed}: messages are left");
        let body = json!({"max": 100, "wait": "2s"}).to_string();
        let answer = daemon.post("/queues/jobs/receive", &body).await;
        let messages = answer["messages"].as_array().unwrap().clone();
        let mut receipts = Vec::new();
        for message in &messages {
            let id = message["event"]["id"].as_str().unwrap();
            assert!(!answers.lock().unwrap().acked.contains(id), "BALTO_TEST_SEED={seed}: {id} again");
            receipts.push(message["receipt"].clone());
        }
        if !receipts.is_empty() {
            daemon.post("/queues/jobs/ack", &json!({"receipts": receipts}).to_string()).await;
        }
    }
    let answers = std::mem::take(&mut *answers.lock().unwrap());
    assert_eq!(answers.violations, Vec::<String>::new(), "BALTO_TEST_SEED={seed}");
    assert!(answers.acked.len() > 20, "BALTO_TEST_SEED={seed}: only {} acks", answers.acked.len());
    assert_eq!(daemon.terminate(), Some(0));
    let verified = std::process::Command::new(env!("CARGO_BIN_EXE_balto"))
        .args(["verify", "--data-dir"])
        .arg(data.path())
        .status()
        .unwrap();
    assert!(verified.success(), "BALTO_TEST_SEED={seed}: verify finds damage");
    say(&format!(
        "{rounds} kills, {} published, {} received, {} acked",
        answers.published.len(),
        answers.received,
        answers.acked.len()
    ));
}

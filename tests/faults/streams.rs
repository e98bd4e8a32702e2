//! Many writers on one stream of the real daemon, killed repeatedly at random moments: each version
//! exists once, no append is torn, each acknowledged append is there, and repeating an unanswered
//! one appends once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

use crate::support::{Daemon, number, say, seed, serve};

const STREAM: &str = "/streams/account%2F1/events";

/// The writers' record of their appends, by number.
#[derive(Default)]
struct Appends {
    sent: u64,
    /// Version of the last event, and number of events.
    accepted: BTreeMap<u64, (u64, u64)>,
    /// Bodies without a response: to be repeated.
    unsure: BTreeMap<u64, Value>,
    conflicts: u64,
}

fn body(append: u64, count: u64, expected: Value) -> Value {
    let event = |index| json!({"type": "a", "data": {"append": append, "index": index, "of": count}});
    json!({"events": (0..count).map(event).collect::<Vec<_>>(), "expectedVersion": expected})
}

/// Status and answer of an append; `None` if the daemon died before its response.
async fn send(client: &reqwest::Client, api: &str, append: u64, body: &Value) -> Option<(u16, Value)> {
    let request = client
        .post(format!("{api}{STREAM}"))
        .header("content-type", "application/json")
        .header("idempotency-key", append.to_string());
    let reply = request.body(body.to_string()).send().await.ok()?;
    let status = reply.status().as_u16();
    Some((status, serde_json::from_str(&reply.text().await.ok()?).unwrap()))
}

/// Appends until the daemon dies. Half of the appends expect the version that the writer saw last.
async fn writer(appends: Arc<Mutex<Appends>>, api: String, mut random: Rng) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut seen = json!("none");
    loop {
        let append = {
            let mut appends = appends.lock().unwrap();
            appends.sent += 1;
            appends.sent
        };
        let count = random.u64(1..=4);
        let expected = if random.bool() { json!("any") } else { seen.clone() };
        let body = body(append, count, expected);
        let Some((status, answer)) = send(&client, &api, append, &body).await else {
            appends.lock().unwrap().unsure.insert(append, body);
            return;
        };
        let mut appends = appends.lock().unwrap();
        match status {
            202 => {
                seen = answer["version"].clone();
                appends.accepted.insert(append, (seen.as_u64().unwrap(), count));
            }
            409 => {
                seen = answer["actual"].clone();
                appends.conflicts += 1;
            }
            429 | 503 => {}
            other => panic!("{other}: {answer}"),
        }
    }
}

/// Repeats the unanswered appends. Each one gets an answer now.
async fn repeat(appends: &Mutex<Appends>, daemon: &Daemon) {
    let unsure = std::mem::take(&mut appends.lock().unwrap().unsure);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (append, body) in unsure {
        let (status, answer) = send(&client, &daemon.api, append, &body).await.unwrap();
        let count = body["events"].as_array().unwrap().len() as u64;
        match status {
            202 => {
                let version = answer["version"].as_u64().unwrap();
                appends.lock().unwrap().accepted.insert(append, (version, count));
            }
            409 => appends.lock().unwrap().conflicts += 1,
            other => panic!("{other}: {answer}"),
        }
    }
}

/// Reads the whole stream, and compares it with the record.
async fn check(appends: &Appends, daemon: &Daemon) -> u64 {
    let (mut next, mut versions) = (json!(1), 0);
    let mut found: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    while !next.is_null() {
        let page = daemon.get(&format!("{STREAM}?limit=1000&fromVersion={next}")).await;
        for event in page["data"].as_array().unwrap() {
            versions += 1;
            assert_eq!(event["streamVersion"], versions, "a version is missing or exists twice");
            let part = |name: &str| event["data"][name].as_u64().unwrap();
            let (append, index, count) = (part("append"), part("index"), part("of"));
            let (last, before) = found.entry(append).or_insert((versions, 0));
            assert_eq!(
                (index, versions),
                (*before, *last + u64::from(*before > 0)),
                "append {append} is torn"
            );
            (*last, *before) = (versions, *before + 1);
            assert!(*before <= count, "append {append} is there twice");
            if *before == count {
                assert_eq!(appends.accepted.get(&append), Some(&(versions, count)), "append {append}");
            }
        }
        next = page["nextVersion"].clone();
    }
    assert_eq!(found, appends.accepted, "the stream and the answers differ");
    versions
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_survive_repeated_kills() {
    let seed = seed();
    let mut random = Rng::with_seed(seed);
    let data = tempfile::tempdir().unwrap();
    let appends = Arc::<Mutex<Appends>>::default();
    let rounds = number("BALTO_TEST_ROUNDS").unwrap_or(12);
    for round in 0..rounds {
        let mut daemon = Daemon::spawn(serve(data.path(), &["--dev"]));
        if random.u8(0..6) == 0 {
            tokio::time::sleep(Duration::from_millis(random.u64(0..150))).await;
            daemon.kill();
            continue;
        }
        daemon.until_ready().await;
        repeat(&appends, &daemon).await;
        let writers = [8, 30, 100][round as usize % 3];
        let writers: Vec<_> = (0..writers)
            .map(|_| tokio::spawn(writer(appends.clone(), daemon.api.clone(), random.fork())))
            .collect();
        tokio::time::sleep(Duration::from_millis(random.u64(20..900))).await;
        daemon.kill();
        for writer in writers {
            writer.await.unwrap();
        }
    }
    let mut daemon = Daemon::start(data.path()).await;
    repeat(&appends, &daemon).await;
    let appends = std::mem::take(&mut *appends.lock().unwrap());
    let versions = check(&appends, &daemon).await;
    assert_eq!(daemon.terminate(), Some(0));
    let verified = std::process::Command::new(env!("CARGO_BIN_EXE_balto"))
        .args(["verify", "--data-dir"])
        .arg(data.path())
        .status()
        .unwrap();
    assert!(verified.success(), "verify finds damage");
    let (accepted, conflicts) = (appends.accepted.len(), appends.conflicts);
    assert!(accepted > 0 && conflicts > 0, "{accepted} appends, {conflicts} conflicts");
    say(&format!("{rounds} kills, {accepted} appends, {versions} versions, {conflicts} conflicts"));
}

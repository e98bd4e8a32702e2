//! Load from many publishers, and a record of their responses.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{Daemon, Progress};

/// Concurrent publishers.
const PUBLISHERS: u32 = 16;

/// The publishers' record: each event has a unique type, `n.<number>`.
#[derive(Default)]
pub(crate) struct Ledger {
    /// The id in the response for each type.
    pub(crate) accepted: BTreeMap<String, String>,
    /// Types that were sent with an idempotency key and got no response: to be repeated.
    pub(crate) unsure: Vec<String>,
    pub(crate) sent: u64,
}

/// One request; `None` without a response.
pub(crate) async fn publish(
    client: &reqwest::Client,
    api: &str,
    event_type: &str,
    key: bool,
) -> Option<String> {
    let body = json!({"type": event_type, "data": {"pad": "x".repeat(300)}}).to_string();
    let mut request = client.post(format!("{api}/events")).header("content-type", "application/json");
    if key {
        request = request.header("idempotency-key", event_type);
    }
    let reply = request.body(body).send().await.ok()?;
    if reply.status() != 202 {
        assert!([429, 503].contains(&reply.status().as_u16()), "an answer of {}", reply.status());
        return None;
    }
    let answer: Value = serde_json::from_str(&reply.text().await.ok()?).unwrap();
    Some(answer["id"].as_str().unwrap().to_owned())
}

/// Publishes until a request fails, which means that the daemon has died.
async fn publisher(ledger: Arc<Mutex<Ledger>>, api: String, mut random: Rng) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    loop {
        let event_type = {
            let mut ledger = ledger.lock().unwrap();
            ledger.sent += 1;
            format!("n.{}", ledger.sent)
        };
        let key = random.bool();
        let Some(id) = publish(&client, &api, &event_type, key).await else {
            if key {
                ledger.lock().unwrap().unsure.push(event_type);
            }
            return;
        };
        ledger.lock().unwrap().accepted.insert(event_type, id);
    }
}

/// Starts all publishers.
pub(crate) fn publishers(
    ledger: &Arc<Mutex<Ledger>>,
    daemon: &Daemon,
    random: &mut Rng,
) -> Vec<JoinHandle<()>> {
    (0..PUBLISHERS)
        .map(|_| tokio::spawn(publisher(ledger.clone(), daemon.api.clone(), random.fork())))
        .collect()
}

/// Waits until this number of events is acknowledged; returns all that are acknowledged by then.
pub(crate) async fn accepted(ledger: &Mutex<Ledger>, count: usize) -> BTreeMap<String, String> {
    let mut progress = Progress::from(0);
    loop {
        let accepted = ledger.lock().unwrap().accepted.clone();
        if accepted.len() >= count {
            return accepted;
        }
        assert!(
            progress.goes_on(accepted.len()),
            "only {} of {count} events are acknowledged",
            accepted.len()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Every stored event: type and id.
pub(crate) async fn stored_events(daemon: &Daemon) -> Vec<(String, String)> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = daemon.get(&format!("/events?limit=250{cursor}")).await;
        for event in page["data"].as_array().unwrap() {
            all.push((event["type"].as_str().unwrap().to_owned(), event["id"].as_str().unwrap().to_owned()));
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return all,
        }
    }
}

/// Asserts that no event is stored twice, and that each acknowledged event has its id.
pub(crate) fn check_stored(ledger: &Ledger, stored: &[(String, String)]) {
    let by_type: HashMap<_, _> = stored.iter().cloned().collect();
    let ids: HashSet<_> = stored.iter().map(|(_, id)| id).collect();
    assert_eq!((by_type.len(), ids.len()), (stored.len(), stored.len()), "an event is stored twice");
    for (event_type, id) in &ledger.accepted {
        assert_eq!(by_type.get(event_type), Some(id), "{event_type} was acknowledged as {id}");
    }
}

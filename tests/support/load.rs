//! Load from many publishers, and a book of what they were told.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{Daemon, Progress};

/// Publishers at the same time.
const PUBLISHERS: u32 = 16;

/// What the publishers know: each event has a type of its own, `n.<number>`.
#[derive(Default)]
pub(crate) struct Book {
    /// The id that was answered for each type.
    pub(crate) accepted: BTreeMap<String, String>,
    /// Types that were sent with an idempotency key and not answered: to be asked again.
    pub(crate) unsure: Vec<String>,
    pub(crate) sent: u64,
}

/// One request; `None` when it was not answered.
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

/// Publishes until a request fails, which is when the daemon has died.
async fn publisher(book: Arc<Mutex<Book>>, api: String, mut random: Rng) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    loop {
        let event_type = {
            let mut book = book.lock().unwrap();
            book.sent += 1;
            format!("n.{}", book.sent)
        };
        let key = random.bool();
        let Some(id) = publish(&client, &api, &event_type, key).await else {
            if key {
                book.lock().unwrap().unsure.push(event_type);
            }
            return;
        };
        book.lock().unwrap().accepted.insert(event_type, id);
    }
}

/// All publishers, started.
pub(crate) fn publishers(book: &Arc<Mutex<Book>>, daemon: &Daemon, random: &mut Rng) -> Vec<JoinHandle<()>> {
    (0..PUBLISHERS)
        .map(|_| tokio::spawn(publisher(book.clone(), daemon.api.clone(), random.fork())))
        .collect()
}

/// Waits until so many events are acknowledged; gives those that are by then.
pub(crate) async fn accepted(book: &Mutex<Book>, count: usize) -> BTreeMap<String, String> {
    let mut progress = Progress::from(0);
    loop {
        let accepted = book.lock().unwrap().accepted.clone();
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

/// Every event that the daemon holds: type and id.
pub(crate) async fn held(daemon: &Daemon) -> Vec<(String, String)> {
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

/// Nothing twice, and everything acknowledged under its id.
pub(crate) fn check_held(book: &Book, held: &[(String, String)]) {
    let by_type: HashMap<_, _> = held.iter().cloned().collect();
    let ids: HashSet<_> = held.iter().map(|(_, id)| id).collect();
    assert_eq!((by_type.len(), ids.len()), (held.len(), held.len()), "an event is held twice");
    for (event_type, id) in &book.accepted {
        assert_eq!(by_type.get(event_type), Some(id), "{event_type} was acknowledged as {id}");
    }
}

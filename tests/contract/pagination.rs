//! Pagination: items of different sizes are listed once while new items are added.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::support::{Daemon, Receiver};
use super::{endpoint, list, text};

/// Events of 240 kB: the byte limit of a page ends it early.
const EVENTS: usize = 20;
const EVENT_BYTES: usize = 240_000;

async fn publish_large(daemon: &Daemon, kind: &str, count: usize) {
    let event = json!({"type": kind, "data": "x".repeat(EVENT_BYTES)}).to_string();
    for _ in 0..count {
        daemon.post("/events", &event).await;
    }
}

/// Reads every page of a list; returns one member of all items in order and the number of pages.
/// `between` runs after each page.
async fn walk(
    daemon: &Daemon,
    path: &str,
    member: &str,
    mut between: impl AsyncFnMut(),
) -> (Vec<String>, usize) {
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    for pages in 1.. {
        let page = daemon.get(&format!("{path}{cursor}")).await;
        seen.extend(list(&page).iter().map(|item| text(item, member)));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return (seen, pages),
        }
        assert!(pages < 100, "{path} does not end");
        between().await;
    }
    unreachable!("the loop returns")
}

/// Asserts that each item that existed before the walk is listed once, newest first.
async fn assert_listed_once(daemon: &Daemon, path: &str, member: &str, newer: &Value) {
    let (calm, pages) = walk(daemon, path, member, async || ()).await;
    assert_eq!(calm.len(), EVENTS, "{path}: on {pages} pages");
    assert_eq!(calm.iter().collect::<BTreeSet<_>>().len(), EVENTS, "{path}: an item is listed twice");
    assert!(pages > 1, "{path}: all items are on one page");
    let (busy, _) = walk(daemon, path, member, async || {
        daemon.post("/events", &newer.to_string()).await;
    })
    .await;
    let known: Vec<_> = busy.iter().filter(|item| calm.contains(*item)).collect();
    assert_eq!(known, calm.iter().collect::<Vec<_>>(), "{path}: while more is added");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_events_are_listed_once_over_several_pages() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    publish_large(&daemon, "large.one", EVENTS).await;
    let newer = json!({"type": "small", "data": 1});
    for path in ["/events?limit=15&type=large.one", "/events?limit=15&status=unmatched&type=large.one"] {
        assert_listed_once(&daemon, path, "id", &newer).await;
    }
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    publish_large(&daemon, "large.one", EVENTS).await;
    assert_listed_once(&daemon, "/events?limit=15", "id", &newer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_and_dead_letters_are_listed_once_over_pages() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    // Only this delivery is refused for good: a failing receiver would open the circuit.
    let receiver = Receiver::status(400).await;
    let made = endpoint(&daemon, &receiver, json!({"retry": {"maxAttempts": 1}})).await;
    publish_large(&daemon, "a.b", EVENTS).await;
    daemon.until("/deliveries?status=pending", |page| list(page).is_empty()).await;
    let newer = json!({"type": "a.b", "data": 1});
    let filter = format!("&endpointId={}", text(&made, "id"));
    let dead_letters = format!("/dead-letters?limit=7{filter}");
    let (all, pages) = walk(&daemon, &dead_letters, "deliveryId", async || ()).await;
    assert_eq!((all.len(), pages), (EVENTS, 3));
    assert_listed_once(&daemon, "/dead-letters?limit=7", "deliveryId", &newer).await;
    let older = all;
    for path in [
        "/deliveries?limit=7".to_owned(),
        format!("/deliveries?limit=7{filter}"),
        "/deliveries?limit=7&status=dead".to_owned(),
        dead_letters,
    ] {
        let member = if path.starts_with("/dead") { "deliveryId" } else { "id" };
        let (seen, _) = walk(&daemon, &path, member, async || {
            daemon.post("/events", &newer.to_string()).await;
        })
        .await;
        let known: Vec<_> = seen.iter().filter(|item| older.contains(*item)).collect();
        assert_eq!(known.iter().collect::<BTreeSet<_>>().len(), known.len(), "{path}: listed twice");
        assert_eq!(known.len(), EVENTS, "{path}");
    }
}

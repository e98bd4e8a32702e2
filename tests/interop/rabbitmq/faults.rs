//! Failures of the broker and of the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::broker::broker;
use crate::support::{Daemon, number};

/// All events of the default tenant by id, with their number.
async fn events_by_id(daemon: &Daemon) -> BTreeMap<String, usize> {
    let (mut after, mut found) = ("oldest".to_owned(), BTreeMap::new());
    loop {
        let page = daemon.get(&format!("/feed?after={after}&limit=1000&tenant=default")).await;
        for event in page["data"].as_array().unwrap() {
            *found.entry(event["id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        after = page["next"].to_string().trim_matches('"').to_owned();
        if page["caughtUp"] == true {
            return found;
        }
    }
}

async fn restarted(mut daemon: Daemon, data: &Path) -> Daemon {
    daemon.kill();
    Daemon::start(data).await
}

/// The broker and the daemon are killed while messages go through both. Each message becomes one
/// event. An event may become several messages with its id, because a confirm can get lost.
#[tokio::test]
async fn killed_broker_and_daemon_keep_each_event_once() {
    let Some(mut guard) = broker().await else { return };
    let broker = guard.as_mut().unwrap();
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    broker.bound("crash-out", "crash-out", "#");
    // RabbitMQ may lose the leader of a quorum queue when it is killed soon after the declaration.
    let source = json!({"name": "crash", "url": broker.url("%2F"), "queue": "crash-in",
        "queueType": "classic", "exchange": "crash-in"});
    daemon.post("/sources", &source.to_string()).await;
    let retry = json!({"schedule": vec!["500ms"; 100]});
    let endpoint = json!({"url": broker.url("%2F"), "amqp": {"exchange": "crash-out"}, "retry": retry});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    daemon.until("/sources/crash", |source| source["state"] == "connected").await;
    let count = number("BALTO_TEST_CRASH_MESSAGES").unwrap_or(300);
    let mut confirmed = Vec::new();
    for index in 0..count {
        let id = format!("crash-{index}");
        let command = json!({"op": "publish", "exchange": "crash-in", "key": "crash.test", "body": "{}",
            "properties": {"message_id": id, "content_type": "application/json"}});
        if broker.try_ask(&command)["ok"] == true {
            confirmed.push(id);
        }
        let refused = index + 1 - confirmed.len() as u64;
        assert!(refused <= count / 10, "{refused} of {count} messages were not confirmed");
        match index {
            index if index == count / 3 => daemon = restarted(daemon, data.path()).await,
            index if index == count / 2 => {
                broker.control("kill");
                broker.control("start");
            }
            index if index == count * 2 / 3 => daemon = restarted(daemon, data.path()).await,
            _ => {}
        }
    }
    let mut progress = crate::support::Progress::from(0);
    let events = loop {
        let events = events_by_id(&daemon).await;
        if confirmed.iter().all(|id| events.contains_key(id)) {
            break events;
        }
        assert!(progress.goes_on(events.len()), "{} of {} events", events.len(), confirmed.len());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert!(events.values().all(|count| *count == 1), "an event exists twice: {events:?}");
    let mut arrived: BTreeSet<String> = BTreeSet::new();
    let mut progress = crate::support::Progress::from(0);
    while !events.keys().all(|id| arrived.contains(id)) {
        for message in broker.take("crash-out") {
            arrived.insert(message["message_id"].as_str().unwrap().to_owned());
        }
        assert!(progress.goes_on(arrived.len()), "{} of {} messages", arrived.len(), events.len());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(broker.ask(&json!({"op": "count", "name": "crash-in"})), 0);
}

/// A deleted queue, a wrong password, and a store that refuses events.
#[tokio::test]
async fn source_recovers_from_what_operators_can_mend() {
    let Some(mut guard) = broker().await else { return };
    let broker = guard.as_mut().unwrap();
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let source = json!({"name": "mend", "url": broker.url("%2F"), "username": "guest", "password": "wrong",
        "queue": "mend", "exchange": "mend", "tenant": "small"});
    daemon.post("/sources", &source.to_string()).await;
    let failed = daemon.until("/sources/mend", |source| source["state"] == "failed").await;
    let error = failed["lastError"].as_str().unwrap();
    assert!(error.contains("broker: 403 ACCESS_REFUSED") && !error.contains("wrong"), "{error}");
    let fixed = daemon.call("PATCH", "/sources/mend", &[], r#"{"password":"guest"}"#).await;
    assert_eq!(fixed.0, 200, "{}", fixed.1);
    daemon.until("/sources/mend", |source| source["state"] == "connected").await;

    broker.ask(&json!({"op": "deleteQueue", "name": "mend"}));
    daemon.until("/sources/mend", |source| source["connections"] == 2).await;
    let shown = daemon.get("/sources/mend").await;
    assert!(shown["lastError"].as_str().unwrap().contains("is the queue deleted"), "{shown}");

    let quota = r#"{"quotas":{"eventsPerSecond":1}}"#;
    assert!(daemon.call("PUT", "/tenants/small", &[], quota).await.0 < 300);
    let publish = |index: usize| {
        json!({"op": "publish", "exchange": "mend", "key": "a.b", "body": "1",
            "properties": {"message_id": format!("mend-{index}")}})
    };
    for index in 0..8 {
        broker.ask(&publish(index));
    }
    let holding = daemon.until("/sources/mend", |source| source["state"] == "holding").await;
    assert!(holding["messages"]["unacknowledged"].as_u64().unwrap() > 0, "{holding}");
    assert_eq!(daemon.metric("balto_sources", "\"holding\"").await, 1.0);
    assert!(daemon.call("PUT", "/tenants/small", &[], "{}").await.0 < 300);
    let done = daemon.until("/sources/mend", |source| source["messages"]["accepted"] == 8).await;
    assert_eq!((&done["state"], &done["messages"]["parked"]), (&json!("connected"), &json!(0)), "{done}");
    assert_eq!(done["connections"], 2, "no message was sent back: {done}");
}

/// A broker that is short of memory takes no messages. No attempt is charged for it.
#[tokio::test]
async fn blocked_broker_holds_the_lane_without_attempts() {
    let Some(mut guard) = broker().await else { return };
    let broker = guard.as_mut().unwrap();
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    broker.bound("blocked", "blocked", "#");
    let endpoint = json!({"url": broker.url("%2F"), "uid": "blocked", "amqp": {"exchange": "blocked"}});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    daemon.post("/events", r#"{"type":"a","data":1}"#).await;
    broker.take_until("blocked", 1).await;
    // The connection has published, so the broker tells it about the alarm.
    broker.control("alarm");
    let event = daemon.post("/events", r#"{"type":"a","data":2}"#).await;
    let lane = daemon.until("/endpoints/blocked/lane", |lane| lane["reason"] == "brokerBlocked").await;
    assert_eq!((&lane["pending"], &lane["circuit"]), (&json!(1), &json!("closed")), "{lane}");
    broker.control("clear");
    let path = format!("/events/{}", event["id"].as_str().unwrap());
    let shown: Value = daemon.until(&path, |event| event["status"] == "delivered").await;
    let delivery =
        daemon.get(&format!("/deliveries/{}", shown["deliveries"][0]["id"].as_str().unwrap())).await;
    assert_eq!(delivery["attemptCount"], 1, "{delivery}");
    broker.take_until("blocked", 1).await;
}

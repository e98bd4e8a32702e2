//! The disk reserve: publishers cannot fill the disk so far that nothing else works. And a lane on
//! a full disk.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::disk::{SmallVolume, fill_up};
use crate::support::{Daemon, Receiver, WAIT_MAX, say};

const SKIPPED: &str = "SKIPPED: this machine mounts no tmpfs";

/// Publishes until the daemon rejects events. Returns the number of accepted ones.
async fn publish_until_refused(daemon: &Daemon, event: &Value) -> u64 {
    let batch = json!({"events": vec![event.clone(); 100]}).to_string();
    let deadline = Instant::now() + WAIT_MAX;
    let mut accepted = 0;
    loop {
        let (_, answer, _) = daemon.call("POST", "/events/batch", &[], &batch).await;
        if answer.to_string().contains("disk_full") {
            break;
        }
        accepted += 100;
        assert!(Instant::now() < deadline, "the disk never fills");
    }
    // Smaller requests still fit.
    while daemon.call("POST", "/events", &[], &event.to_string()).await.0 == 202 {
        accepted += 1;
        assert!(Instant::now() < deadline, "the disk never fills");
    }
    accepted
}

#[tokio::test]
async fn full_disk_still_takes_revocations_pauses_and_outcomes() {
    let below = tempfile::tempdir().unwrap();
    let Some(small) = SmallVolume::mount_of_size(below.path().join("small"), "64m") else {
        return say(SKIPPED);
    };
    let receiver = Receiver::status(200).await;
    let mut daemon = Daemon::start(&small.0.join("data")).await;
    let endpoint = daemon.post("/endpoints", &json!({"url": receiver.url}).to_string()).await;
    let path = format!("/endpoints/{}", endpoint["id"].as_str().unwrap());
    let key = daemon.post("/keys", r#"{"role":"publisher","tenant":"evil"}"#).await;
    daemon.post(&format!("{path}/pause"), "").await;
    let first = daemon.post("/events", r#"{"type":"first","data":1}"#).await;
    let event = json!({"type": "a", "data": "x".repeat(9_000), "deliverAt": "9999-01-01T00:00:00Z"});
    let accepted = publish_until_refused(&daemon, &event).await;
    assert!(accepted >= 1_000, "{accepted} events of 9 kB on 64 MiB");
    assert!(!daemon.is_ready().await, "ready below the reserve");

    let (status, refusal, headers) = daemon.call("POST", "/events", &[], &event.to_string()).await;
    assert_eq!((status, refusal["code"].as_str()), (507, Some("disk_full")));
    assert!(headers.contains_key("retry-after"));
    let new_key = daemon.call("POST", "/keys", &[], r#"{"role":"viewer"}"#).await;
    assert_eq!(new_key.0, 507, "new keys use the reserve");
    let key_path = format!("/keys/{}", key["id"].as_str().unwrap());
    assert_eq!(daemon.call("DELETE", &key_path, &[], "").await.0, 204);
    // The pending delivery goes out, and its outcome fits.
    daemon.post(&format!("{path}/resume"), "").await;
    let first = format!("/events/{}", first["id"].as_str().unwrap());
    daemon.until(&first, |event| event["status"] == "delivered").await;
    daemon.post(&format!("{path}/pause"), "").await;
    assert_eq!(daemon.get("/events?limit=1").await["data"].as_array().unwrap().len(), 1);
    daemon.post("/dead-letters/purge", "{}").await;
    assert_eq!(daemon.call("DELETE", &path, &[], "").await.0, 204);

    assert_eq!(daemon.terminate(), Some(0), "a shutdown fits as well");
    let mut command = crate::support::serve(&small.0.join("data"), &["--dev"]);
    command.env("BALTO__STORE__RESERVE_BYTES", "0");
    let daemon = Daemon::spawn(command);
    daemon.until_ready().await;
    assert_eq!(daemon.call("GET", &key_path, &[], "").await.0, 404, "the revocation was durable");
    daemon.post("/events", r#"{"type":"a","data":1}"#).await;
}

#[tokio::test]
async fn changes_of_one_tenant_leave_the_reserve() {
    let below = tempfile::tempdir().unwrap();
    let Some(small) = SmallVolume::mount_of_size(below.path().join("small"), "64m") else {
        return say(SKIPPED);
    };
    let daemon = Daemon::start(&small.0.join("data")).await;
    let own = json!({"url": "http://127.0.0.1:19999/", "tenant": "evil"}).to_string();
    let endpoint = daemon.post("/endpoints", &own).await;
    let path = format!("/endpoints/{}", endpoint["id"].as_str().unwrap());
    let key = daemon.post("/keys", r#"{"role":"admin","tenant":"evil"}"#).await;
    let bearer = format!("Bearer {}", key["secret"].as_str().unwrap());
    let evil = [("authorization", bearer.as_str())];
    let event = json!({"type": "a", "data": "x".repeat(9_000)});
    publish_until_refused(&daemon, &event).await;

    let patterns: Vec<_> = (0..100).map(|number| format!("{number}{}", "x".repeat(100))).collect();
    let change = |number: usize| json!({"eventTypes": patterns[number % 2..]}).to_string();
    let mut changes = 0;
    while daemon.call("PATCH", &path, &evil, &change(changes)).await.0 == 200 {
        changes += 1;
        assert!(changes < 200, "a tenant's changes use up the reserve");
    }
    assert!(changes >= 10, "{changes} changes of 10 kB in a 32nd of 8 MiB");
    let (status, refusal, _) = daemon.call("POST", &format!("{path}/pause"), &evil, "").await;
    assert_eq!((status, refusal["code"].as_str()), (507, Some("disk_full")));
    // The operator's changes and the tenant's deletions fit.
    daemon.post(&format!("{path}/pause"), "").await;
    assert_eq!(daemon.call("DELETE", &path, &evil, "").await.0, 204);
}

#[tokio::test]
async fn space_that_returns_is_used_at_once() {
    let below = tempfile::tempdir().unwrap();
    let Some(small) = SmallVolume::mount(below.path().join("small")) else { return say(SKIPPED) };
    let daemon = Daemon::start(&small.0.join("data")).await;
    let event = r#"{"type":"a","data":1}"#;
    daemon.post("/events", event).await;
    let ballast = fill_up(&small.0, 1 << 20);
    assert_eq!(daemon.call("POST", "/events", &[], event).await.0, 507, "below an eighth of the disk");
    fs::remove_file(ballast).unwrap();
    daemon.post("/events", event).await;
    daemon.until_ready().await;
}

/// Fills the disk before an event of an endpoint is due. Returns whether it did in time.
async fn shows_the_full_store(lead: Duration, endpoint: &Value) -> Option<bool> {
    let below = tempfile::tempdir().unwrap();
    let small = SmallVolume::mount(below.path().join("small"))?;
    let receiver = Receiver::status(200).await;
    let daemon = Daemon::start(&small.0.join("data")).await;
    let mut endpoint = endpoint.clone();
    endpoint["url"] = json!(receiver.url);
    let endpoint = daemon.post("/endpoints", &endpoint.to_string()).await;
    let path = format!("/endpoints/{}/lane", endpoint["id"].as_str().unwrap());
    let due = std::time::SystemTime::now() + lead;
    let due = humantime(due);
    let event = daemon.post("/events", &json!({"type": "a", "data": 1, "deliverAt": due}).to_string()).await;
    let ballast = fill_up(&small.0, 0);
    // The state notices the full disk at its next checkpoint, and stops answering.
    let deadline = Instant::now() + WAIT_MAX;
    let health = async || daemon.ops("/readyz").await.1;
    while !health().await.contains("the disk is full") {
        if receiver.count() > 0 {
            return Some(false);
        }
        assert!(Instant::now() < deadline, "the full disk is not noticed");
        // Dirties the state, where the journal has preallocated space.
        daemon.call("POST", "/dead-letters/purge", &[], "{}").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let lane = daemon.until(&path, |lane| lane["reason"] != "notDue").await;
    if receiver.count() > 0 {
        return Some(false);
    }
    assert_eq!(lane["reason"], "storeFull", "{lane}");
    assert_eq!(lane["pending"], 1, "{lane}");
    daemon.until_metric("balto_lanes", "reason=\"storeFull\"", |lanes| lanes == 1.0).await;
    fs::remove_file(ballast).unwrap();
    receiver.until(1).await;
    let event = format!("/events/{}", event["id"].as_str().unwrap());
    daemon.until(&event, |event| event["status"] == "delivered").await;
    let lane = daemon.get(&path).await;
    assert_eq!((&lane["reason"], &lane["pending"]), (&Value::Null, &json!(0)), "{lane}");
    Some(true)
}

/// A time in the notation of the API.
fn humantime(at: std::time::SystemTime) -> String {
    let since = at.duration_since(std::time::UNIX_EPOCH).unwrap();
    balto::domain::Timestamp::from_millis(since.as_millis() as u64).rfc3339().to_string()
}

#[tokio::test]
async fn lane_on_a_full_disk_says_so_with_and_without_a_rate() {
    for endpoint in [json!({}), json!({"rateLimit": {"limit": 1, "per": "1s"}})] {
        let mut leads = [4, 8, 16, 32].into_iter();
        loop {
            let lead = leads.next().expect("the disk is always full too late");
            match shows_the_full_store(Duration::from_secs(lead), &endpoint).await {
                None => return say(SKIPPED),
                Some(true) => break,
                Some(false) => say(&format!("the disk was full too late for a lead of {lead} s")),
            }
        }
    }
}

//! `GET /v1/events/{id}?wait=`: the response comes when the event's status is final.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::raw::Raw;
use crate::support::{Daemon, Receiver, answer};
use serde_json::{Value, json};

use crate::{is_problem, text};

/// A receiver that answers 503 until it is opened, and the switch that opens it.
async fn closed_receiver() -> (Receiver, Arc<AtomicBool>) {
    let open = Arc::new(AtomicBool::new(false));
    let is_open = Arc::clone(&open);
    let receiver =
        Receiver::start(move |_, _| answer(if is_open.load(Ordering::SeqCst) { 200 } else { 500 })).await;
    (receiver, open)
}

async fn publish(daemon: &Daemon, event: &Value) -> String {
    text(&daemon.post("/events", &event.to_string()).await, "id")
}

/// Starts a request that waits.
fn waiting(daemon: &Arc<Daemon>, id: &str, wait: &str) -> tokio::task::JoinHandle<Value> {
    let (daemon, path) = (Arc::clone(daemon), format!("/events/{id}?wait={wait}"));
    tokio::spawn(async move { daemon.get(&path).await })
}

#[tokio::test]
async fn wait_ends_with_the_delivery_that_was_pending() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Arc::new(Daemon::start(data.path()).await);
    let (receiver, open) = closed_receiver().await;
    let endpoint = json!({"url": receiver.url, "retry": {"schedule": ["100ms", "100ms", "100ms", "1s", "1s", "1s", "1s"]}});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    let id = publish(&daemon, &json!({"type": "a", "data": 1})).await;
    let answers: Vec<_> = (0..20).map(|_| waiting(&daemon, &id, "60s")).collect();
    receiver.until(1).await;
    assert!(answers.iter().all(|answer| !answer.is_finished()), "answered while pending");
    open.store(true, Ordering::SeqCst);
    for answer in answers {
        let shown = answer.await.unwrap();
        assert_eq!(
            (&shown["status"], &shown["deliveries"][0]["status"]),
            (&json!("delivered"), &json!("delivered"))
        );
    }
}

#[tokio::test]
async fn cancelled_and_dead_deliveries_end_the_wait() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Arc::new(Daemon::start(data.path()).await);
    let (receiver, _) = closed_receiver().await;
    let endpoint = json!({"url": receiver.url, "eventTypes": ["dies"], "retry": {"schedule": ["200ms"]}});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    let endpoint = json!({"url": receiver.url, "eventTypes": ["cancelled"], "retry": {"schedule": ["1h"]}});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    let dying = publish(&daemon, &json!({"type": "dies", "data": 1})).await;
    assert_eq!(waiting(&daemon, &dying, "1m").await.unwrap()["status"], "failed");
    let cancelled = publish(&daemon, &json!({"type": "cancelled", "data": 1})).await;
    let answer = waiting(&daemon, &cancelled, "1m");
    let shown = daemon.get(&format!("/events/{cancelled}")).await;
    daemon.post(&format!("/deliveries/{}/cancel", text(&shown["deliveries"][0], "id")), "").await;
    assert_eq!(answer.await.unwrap()["status"], "failed");
}

#[tokio::test]
async fn wait_ends_at_its_time_and_at_once_when_nothing_is_pending() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Arc::new(Daemon::start(data.path()).await);
    let id = publish(&daemon, &json!({"type": "nothing", "data": 1})).await;
    assert_eq!(waiting(&daemon, &id, "60s").await.unwrap()["status"], "unmatched");
    let (receiver, _) = closed_receiver().await;
    let endpoint = json!({"url": receiver.url, "retry": {"schedule": ["1h"]}});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    let id = publish(&daemon, &json!({"type": "a", "data": 1})).await;
    for wait in ["0s", "1ms", "300ms"] {
        assert_eq!(waiting(&daemon, &id, wait).await.unwrap()["status"], "pending", "{wait}");
    }
}

#[tokio::test]
async fn invalid_waits_name_the_parameter() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let id = publish(&daemon, &json!({"type": "a", "data": 1})).await;
    for bad in ["", "10", "-1s", "61s", "2m", "1h", "s", "1.5s", "99999999999999999999s"] {
        let (status, problem, _) = daemon.call("GET", &format!("/events/{id}?wait={bad}"), &[], "").await;
        assert_eq!(problem["errors"][0]["parameter"], "wait", "{bad}: {problem}");
        is_problem(&(status, problem), 422, "validation_failed", bad);
    }
    let (status, problem, _) = daemon.call("GET", "/events/evt_none?wait=60s", &[], "").await;
    is_problem(&(status, problem), 404, "not_found", "an unknown event");
    let twice = daemon.call("GET", &format!("/events/{id}?wait=1s&wait=1s"), &[], "").await;
    assert_eq!(twice.0, 422, "{}", twice.1);
}

#[tokio::test]
async fn shutdown_answers_waiting_requests() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (receiver, _) = closed_receiver().await;
    let endpoint = json!({"url": receiver.url, "retry": {"schedule": ["1h"]}});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    let id = publish(&daemon, &json!({"type": "a", "data": 1})).await;
    let daemon = Arc::new(daemon);
    let answer = waiting(&daemon, &id, "60s");
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting == 1.0).await;
    daemon.signal("TERM");
    assert_eq!(answer.await.unwrap()["status"], "pending");
}

/// An event whose delivery stays pending for an hour.
async fn pending_event(daemon: &Daemon) -> String {
    let (receiver, _) = closed_receiver().await;
    let endpoint = json!({"url": receiver.url, "retry": {"schedule": ["1h"]}});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    publish(daemon, &json!({"type": "a", "data": 1})).await
}

fn waiting_request(id: &str) -> String {
    format!("GET /v1/events/{id}?wait=60s HTTP/1.1\r\nhost: localhost\r\n\r\n")
}

/// A half-closed client still reads its response. The wait ends early.
#[tokio::test]
async fn half_closed_client_is_answered_at_once() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let id = pending_event(&daemon).await;
    let started = std::time::Instant::now();
    for early in [true, false] {
        let mut client = Raw::connect(daemon.address()).await;
        client.send(waiting_request(&id).as_bytes()).await;
        if !early {
            daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting == 1.0).await;
        }
        client.half_close().await;
        let response = client.answer().await.expect("no response");
        assert!(response.status == 200 && response.body.contains(r#""status":"pending""#), "{response:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(50), "the waits ran until their time");
}

#[tokio::test]
async fn wait_of_a_client_that_has_gone_ends() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let id = pending_event(&daemon).await;
    let started = std::time::Instant::now();
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = Raw::connect(daemon.address()).await;
        // The next request of the connection is on its way as well.
        client.send(waiting_request(&id).repeat(2).as_bytes()).await;
        clients.push(client);
    }
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting == 20.0).await;
    drop(clients);
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting == 0.0).await;
    assert!(started.elapsed() < Duration::from_secs(50), "the waits ran until their time");
}

/// Bytes of a next request do not end the wait of the present one.
#[tokio::test]
async fn pipelined_request_does_not_end_a_wait() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let id = pending_event(&daemon).await;
    let mut client = Raw::connect(daemon.address()).await;
    let started = std::time::Instant::now();
    client.send(waiting_request(&id).replace("60s", "2s").as_bytes()).await;
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting == 1.0).await;
    client.send(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    assert!(started.elapsed() >= Duration::from_secs(2), "the wait ended early");
    assert_eq!(client.answer().await.unwrap().status, 200, "the second request");
}

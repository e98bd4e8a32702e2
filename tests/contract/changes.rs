//! Endpoint changes while a request to the endpoint is in flight.

use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

use serde_json::json;

use super::support::{Daemon, Receiver, answer};
use super::{list, publish, text};

/// A receiver that holds its first response until the test sends a signal.
async fn gated_receiver(first: impl Into<String>) -> (Receiver, Sender<()>) {
    let (go, gate) = channel();
    let (gate, first) = (Mutex::new(gate), first.into());
    let receiver = Receiver::start(move |number, _| {
        if number == 0 {
            // The other worker threads serve the other sockets.
            let _gone = tokio::task::block_in_place(|| gate.lock().unwrap().recv());
            return first.clone();
        }
        answer(200)
    })
    .await;
    (receiver, go)
}

/// Registers an endpoint at `old` and moves it to `new` while the first request is in flight; `go`
/// releases the response.
async fn move_in_flight(daemon: &Daemon, old: &Receiver, new: &Receiver, go: &Sender<()>) -> String {
    let made = daemon
        .post(
            "/endpoints",
            &json!({"url": old.url, "maxInFlight": 1, "retry": {"schedule": ["10ms"]}}).to_string(),
        )
        .await;
    let path = format!("/endpoints/{}", text(&made, "id"));
    publish(daemon, json!({"type": "a.b", "data": 1})).await;
    old.until(1).await;
    let (status, moved, _) = daemon.call("PATCH", &path, &[], &json!({"url": new.url}).to_string()).await;
    assert_eq!(status, 200, "{moved}");
    go.send(()).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn response_of_former_url_does_not_affect_the_new_one() {
    let data = tempfile::tempdir().unwrap();
    let throttled = "HTTP/1.1 429 x\r\nretry-after: 3600\r\ncontent-length: 0\r\n\r\n";
    for (story, first) in [("gone", answer(410)), ("throttled", throttled.to_owned())] {
        let daemon = Daemon::start(&data.path().join(story)).await;
        let (old, go) = gated_receiver(first).await;
        let new = Receiver::status(200).await;
        let path = move_in_flight(&daemon, &old, &new, &go).await;
        // One delivery is sent at a time: the outcome of the old request is recorded before the
        // next delivery starts.
        let event = publish(&daemon, json!({"type": "a.b", "data": 2})).await;
        daemon
            .until(&format!("/events/{}", text(&event, "id")), |event| event["status"] == "delivered")
            .await;
        assert_eq!(daemon.get(&path).await["status"], "active", "{story}");
        assert!(new.count() >= 1 && old.count() == 1, "{story}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn retry_goes_to_the_new_url_with_the_new_secret() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (old, go) = gated_receiver(answer(500)).await;
    let new = Receiver::status(200).await;
    let (release, held) = channel();
    let path = move_in_flight(&daemon, &old, &new, &release).await;
    held.recv().unwrap();
    // The rotation has no overlap: the key of the first attempt signs no further attempt.
    let rotated = daemon.post(&format!("{path}/secret/rotate"), r#"{"overlap":"0s"}"#).await;
    go.send(()).unwrap();
    let got = new.until(1).await.remove(0);
    assert_eq!(got.headers["balto-attempt"], "2");
    let key = standardwebhooks::Webhook::new(rotated["secret"].as_str().unwrap()).unwrap();
    let headers: std::collections::HashMap<_, _> = got.headers.clone();
    let signed = key
        .sign(&headers["webhook-id"], headers["webhook-timestamp"].parse().unwrap(), got.body.as_bytes())
        .unwrap();
    assert_eq!(headers["webhook-signature"], signed);
}

/// Consent is valid only for the URL, origin and rate of its request.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn consent_granted_before_a_change_is_void_after_it() {
    const AGREES: &str =
        "HTTP/1.1 200 x\r\nwebhook-allowed-origin: *\r\nwebhook-allowed-rate: *\r\ncontent-length: 0\r\n\r\n";
    let data = tempfile::tempdir().unwrap();
    let soon =
        [("BALTO__HANDSHAKE__RETRY_INITIAL", "100ms"), ("BALTO__HANDSHAKE__RETRY_MAX_INTERVAL", "100ms")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &soon).await;
    for (story, change) in [
        ("url", json!({"url": null})),
        ("origin", json!({"handshake": {"origin": "other.example.com"}})),
        ("rate", json!({"handshake": {"rate": 7}})),
    ] {
        // The receiver refuses every further request for consent.
        let (go, gate) = channel::<()>();
        let gate = Mutex::new(gate);
        let refuses =
            |got: &super::support::ReceivedRequest| answer(if got.method == "OPTIONS" { 405 } else { 200 });
        let old = Receiver::start(move |number, got| {
            if number == 0 {
                // The other worker threads serve the other sockets.
                let _gone = tokio::task::block_in_place(|| gate.lock().unwrap().recv());
                return AGREES.to_owned();
            }
            refuses(got)
        })
        .await;
        let new = Receiver::start(move |_, got| refuses(got)).await;
        let made = daemon
            .post(
                "/endpoints",
                &json!({"url": old.url, "eventTypes": [story], "timeout": "25s",
                    "handshake": {"origin": "events.example.com", "rate": 120}})
                .to_string(),
            )
            .await;
        let path = format!("/endpoints/{}", text(&made, "id"));
        old.until(1).await;
        let moves = change.get("url").is_some();
        let change = if moves { json!({"url": new.url}) } else { change };
        let (status, changed, _) = daemon.call("PATCH", &path, &[], &change.to_string()).await;
        assert_eq!(status, 200, "{story}: {changed}");
        go.send(()).unwrap();
        publish(&daemon, json!({"type": story, "data": 1})).await;
        // The receiver refuses the new request. The test waits for two refusals: by then the first
        // response was processed.
        if moves {
            new.until(2).await;
        } else {
            old.until(3).await;
        }
        let shown = daemon.get(&path).await;
        assert_eq!(shown["handshake"]["status"], "pending", "{story}: {shown}");
        daemon.until(&format!("{path}/lane"), |lane| lane["reason"] == "handshake").await;
        let posts =
            [&old, &new].map(|receiver| receiver.got().iter().filter(|got| got.method == "POST").count());
        assert_eq!(posts, [0, 0], "{story}: a delivery was sent without consent");
    }
}

/// An endpoint is paused, then deleted, between an attempt and its retry.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn retry_waits_for_a_pause_and_ends_with_a_deletion() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    for deletes in [false, true] {
        let kind = if deletes { "deleted" } else { "paused" };
        let (receiver, go) = gated_receiver(answer(500)).await;
        let made = daemon
            .post(
                "/endpoints",
                &json!({"url": receiver.url, "eventTypes": [kind], "retry": {"schedule": ["10ms"]}})
                    .to_string(),
            )
            .await;
        let path = format!("/endpoints/{}", text(&made, "id"));
        publish(&daemon, json!({"type": kind, "data": 1})).await;
        receiver.until(1).await;
        if deletes {
            let (status, ..) = daemon.call("DELETE", &path, &[], "").await;
            assert_eq!(status, 204);
        } else {
            daemon.post(&format!("{path}/pause"), "").await;
        }
        go.send(()).unwrap();
        if deletes {
            let dead = daemon.until("/dead-letters?type=deleted", |page| !list(page).is_empty()).await;
            assert_eq!(list(&dead)[0]["reason"], "endpointDeleted");
            assert_eq!(receiver.count(), 1);
        } else {
            let settled = |lane: &serde_json::Value| lane["reason"] == "paused" && lane["inFlight"] == 0;
            daemon.until(&format!("{path}/lane"), settled).await;
            assert_eq!(receiver.count(), 1);
            daemon.post(&format!("{path}/resume"), "").await;
            receiver.until(2).await;
        }
    }
}

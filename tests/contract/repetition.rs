//! Repeats every operation that a client can repeat.

use serde_json::{Value, json};

use super::support::{Daemon, Receiver, answer};
use super::{ADMIN, call_as, endpoint, is_problem, key, keyed, list, publish, settled, text};

async fn path_of(daemon: &Daemon, receiver: &Receiver, more: Value) -> String {
    format!("/endpoints/{}", text(&endpoint(daemon, receiver, more).await, "id"))
}

#[tokio::test]
async fn second_pause_or_resume_changes_nothing() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let path = path_of(&daemon, &receiver, json!({})).await;
    for round in 1..=2 {
        for _ in 0..2 {
            assert_eq!(daemon.post(&format!("{path}/pause"), "").await["status"], "paused");
        }
        publish(&daemon, json!({"type": "a.b", "data": round})).await;
        daemon.until(&format!("{path}/lane"), |lane| lane["reason"] == "paused").await;
        assert_eq!(receiver.count(), round - 1, "the paused endpoint got a request");
        for _ in 0..2 {
            assert_eq!(daemon.post(&format!("{path}/resume"), "").await["status"], "active");
        }
        receiver.until(round).await;
    }
    daemon.until("/deliveries?status=pending", |page| list(page).is_empty()).await;
    assert_eq!(receiver.count(), 2);
}

#[tokio::test]
async fn second_rotation_signs_with_three_secrets_for_its_overlap() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let made = endpoint(&daemon, &receiver, json!({})).await;
    let rotate = format!("/endpoints/{}/secret/rotate", text(&made, "id"));
    let first = daemon.post(&rotate, r#"{"overlap":"1h"}"#).await;
    let second = daemon.post(&rotate, r#"{"overlap":"2h"}"#).await;
    publish(&daemon, json!({"type": "a.b", "data": 1})).await;
    let got = receiver.until(1).await.remove(0);
    let keys = [&second, &first, &made].map(|shown| text(shown, "secret"));
    let signed = keys.map(|key| {
        let key = standardwebhooks::Webhook::new(&key).unwrap();
        let timestamp = got.headers["webhook-timestamp"].parse().unwrap();
        key.sign(&got.headers["webhook-id"], timestamp, got.body.as_bytes()).unwrap()
    });
    assert_eq!(got.headers["webhook-signature"], signed.join(" "), "the current one first");
    // A rotation without an overlap ends the overlap of all earlier secrets.
    let third = daemon.post(&rotate, r#"{"overlap":"0s"}"#).await;
    publish(&daemon, json!({"type": "a.b", "data": 2})).await;
    let got = receiver.until(2).await.remove(1);
    let parts: Vec<_> = got.headers["webhook-signature"].split(' ').collect();
    let key = standardwebhooks::Webhook::new(&text(&third, "secret")).unwrap();
    let timestamp = got.headers["webhook-timestamp"].parse().unwrap();
    let signed = key.sign(&got.headers["webhook-id"], timestamp, got.body.as_bytes()).unwrap();
    assert_eq!(parts.first(), Some(&&*signed));
    assert_eq!(parts.len(), third["previous"].as_array().unwrap().len() + 1, "{third}");
}

#[tokio::test]
async fn replay_runs_again_under_another_key_only() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let endpoint = path_of(&daemon, &receiver, json!({})).await;
    let event = publish(&daemon, json!({"type": "a.b", "data": 1})).await;
    settled(&daemon, &event).await;
    let of_event = format!("/events/{}/replay", text(&event, "id"));
    let of_endpoint = format!("{endpoint}/replay");
    let since = r#"{"since":"2020-01-01T00:00:00Z"}"#;
    let mut sent = 1;
    for (path, body) in [(&of_event, "{}"), (&of_endpoint, since)] {
        for (key, is_new) in [("one", true), ("one", false), ("two", true), ("two", false), ("one", false)] {
            let (status, answer, _) = daemon.call("POST", path, &[("idempotency-key", key)], body).await;
            assert_eq!((status, &answer["count"]), (202, &json!(1)), "{path} {key}: {answer}");
            sent += usize::from(is_new);
            daemon.until("/deliveries?status=pending", |page| list(page).is_empty()).await;
            assert_eq!(receiver.count(), sent, "{path} {key}, new: {is_new}");
        }
    }
}

#[tokio::test]
async fn redriven_dead_letter_gets_a_full_series_each_time() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(500).await;
    endpoint(&daemon, &receiver, json!({})).await;
    let event = publish(&daemon, json!({"type": "a.b", "data": 1})).await;
    let delivery = format!("/deliveries/{}", text(&settled(&daemon, &event).await, "id"));
    for round in 2..=4_usize {
        let letters = daemon.get("/dead-letters").await;
        let letter = text(&list(&letters)[0], "deliveryId");
        daemon.post(&format!("/dead-letters/{letter}/redrive"), "").await;
        receiver.until(2 * round).await;
        let shown = daemon.until(&delivery, |shown| shown["status"] == "dead").await;
        assert_eq!(shown["attempts"].as_array().unwrap().len(), 2 * round, "{shown}");
    }
    assert_eq!(list(&daemon.get("/dead-letters").await).len(), 1, "one letter, however often it died");
    assert_eq!(receiver.count(), 8);
}

#[tokio::test]
async fn delivery_can_be_cancelled_and_retried_twice() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::start(|_, _| answer(200)).await;
    let path = path_of(&daemon, &receiver, json!({})).await;
    daemon.post(&format!("{path}/pause"), "").await;
    let event = publish(&daemon, json!({"type": "a.b", "data": 1})).await;
    let shown = daemon.get(&format!("/events/{}", text(&event, "id"))).await;
    let delivery = format!("/deliveries/{}", text(&shown["deliveries"][0], "id"));
    for _ in 0..2 {
        assert_eq!(daemon.post(&format!("{delivery}/cancel"), "").await["status"], "cancelled");
        let again = daemon.call("POST", &format!("{delivery}/cancel"), &[], "").await;
        assert_eq!(again.0, 409, "{}", again.1);
        assert_eq!(daemon.post(&format!("{delivery}/retry"), "").await["status"], "pending");
    }
    daemon.post(&format!("{path}/resume"), "").await;
    daemon.until(&delivery, |shown| shown["status"] == "delivered").await;
    assert_eq!(receiver.count(), 1);
}

#[tokio::test]
async fn deleted_endpoint_returns_404_for_further_changes() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let path = path_of(&daemon, &receiver, json!({})).await;
    assert_eq!(daemon.call("DELETE", &path, &[], "").await.0, 204);
    let changes = [
        ("DELETE", path.clone(), "".to_owned()),
        ("PATCH", path.clone(), json!({"description": "back"}).to_string()),
        ("PATCH", path.clone(), json!({"url": receiver.url}).to_string()),
        ("POST", format!("{path}/pause"), "".to_owned()),
        ("POST", format!("{path}/resume"), "".to_owned()),
        ("POST", format!("{path}/test"), "".to_owned()),
        ("POST", format!("{path}/secret/rotate"), "".to_owned()),
        ("POST", format!("{path}/replay"), json!({"since": "2020-01-01T00:00:00Z"}).to_string()),
    ];
    for (method, path, body) in changes {
        let (status, answer, _) = daemon.call(method, &path, &[], &body).await;
        is_problem(&(status, answer), 404, "not_found", &format!("{method} {path}"));
    }
    publish(&daemon, json!({"type": "a.b", "data": 1})).await;
    assert_eq!(list(&daemon.get("/endpoints").await).len(), 0);
    // A new endpoint with the same URL gets a new id.
    let again = path_of(&daemon, &receiver, json!({})).await;
    assert_ne!(path, again);
    publish(&daemon, json!({"type": "a.b", "data": 2})).await;
    receiver.until(1).await;
}

#[tokio::test]
async fn revoked_key_stays_revoked_when_another_is_made() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let mut revoked = Vec::new();
    for _ in 0..2 {
        let secret = key(&daemon, "viewer", None).await;
        assert_eq!(call_as(&daemon, &secret, "GET", "/events", "").await.0, 200);
        let (_, keys) = call_as(&daemon, ADMIN, "GET", "/keys", "").await;
        let id = text(&list(&keys)[0], "id");
        assert_eq!(call_as(&daemon, ADMIN, "DELETE", &format!("/keys/{id}"), "").await.0, 204);
        assert_eq!(call_as(&daemon, ADMIN, "DELETE", &format!("/keys/{id}"), "").await.0, 404);
        revoked.push(secret);
        for secret in &revoked {
            assert_eq!(call_as(&daemon, secret, "GET", "/events", "").await.0, 401);
        }
    }
    let secret = key(&daemon, "viewer", None).await;
    assert_eq!(call_as(&daemon, &secret, "GET", "/events", "").await.0, 200);
    assert!(!revoked.contains(&secret));
}

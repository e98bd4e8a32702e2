//! Requests that a subscriber receives.

use serde_json::json;

use super::support::{Daemon, Receiver, answer};
use super::{endpoint, publish, settled, text};

#[tokio::test]
async fn request_has_the_body_and_headers_of_the_contract() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::start(|number, _| answer(if number == 0 { 500 } else { 200 })).await;
    endpoint(&daemon, &receiver, json!({"headers": {"X-Env": "prod"}})).await;
    let posted = r#"{"type":"order.paid","stream":"order-42","timestamp":"2026-03-13T10:35:00.000Z","metadata":{"hidden":1},"data":{ "z":1.0,"a":[1e2 ,"\u00e9"]}}"#;
    let event = daemon.post("/events", posted).await;
    settled(&daemon, &event).await;
    let got = receiver.until(2).await;
    let id = text(&event, "id");
    let body = format!(
        r#"{{"id":"{id}","type":"order.paid","timestamp":"2026-03-13T10:35:00.000Z","version":"1.0","tenant":"default","stream":"order-42","streamVersion":1,"data":{{ "z":1.0,"a":[1e2 ,"\u00e9"]}}}}"#
    );
    for (number, got) in got.iter().enumerate() {
        assert_eq!(got.body, body);
        let header = |name: &str| got.headers[name].as_str();
        assert_eq!((header("webhook-id"), header("content-type")), (id.as_str(), "application/json"));
        assert_eq!(header("balto-attempt"), (number + 1).to_string());
        assert_eq!(
            (header("user-agent"), header("x-env")),
            (concat!("balto/", env!("CARGO_PKG_VERSION")), "prod")
        );
        assert!(header("webhook-timestamp").bytes().all(|byte| byte.is_ascii_digit()), "{got:?}");
        assert!(header("webhook-signature").starts_with("v1,") && !header("webhook-signature").contains(' '));
    }
}

#[tokio::test]
async fn rotation_signs_with_both_secrets_in_every_preset() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let made = endpoint(&daemon, &receiver, json!({"eventTypes": ["a"]})).await;
    let rotate = format!("/endpoints/{}/secret/rotate", text(&made, "id"));
    let rotated = daemon.post(&rotate, r#"{"overlap":"1h"}"#).await;
    assert_eq!(rotated["previous"][0]["secret"], made["secret"], "{rotated}");
    publish(&daemon, json!({"type": "a", "data": 1})).await;
    let signature = receiver.until(1).await[0].headers["webhook-signature"].clone();
    let parts: Vec<_> = signature.split(' ').collect();
    assert!(parts.len() == 2 && parts.iter().all(|part| part.starts_with("v1,")), "{signature}");
    for (preset, header, start) in
        [("stripe", "stripe-signature", "t="), ("github", "x-hub-signature-256", "sha256=")]
    {
        let receiver = Receiver::status(200).await;
        endpoint(&daemon, &receiver, json!({"signature": preset, "eventTypes": [preset]})).await;
        publish(&daemon, json!({"type": preset, "data": 1})).await;
        let got = receiver.until(1).await.remove(0);
        assert!(got.headers[header].starts_with(start), "{got:?}");
    }
    let receiver = Receiver::status(200).await;
    endpoint(&daemon, &receiver, json!({"format": "cloudevents", "eventTypes": ["ce"]})).await;
    publish(&daemon, json!({"type": "ce", "data": 1})).await;
    let got = receiver.until(1).await.remove(0);
    assert_eq!(got.headers["content-type"], "application/cloudevents+json; charset=utf-8");
}

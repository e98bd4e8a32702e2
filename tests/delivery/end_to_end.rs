//! The whole daemon: a real process, real sockets, a real disk.

use std::collections::{HashMap, HashSet};

use crate::support::{Daemon, Receiver, answer};
use serde_json::{Value, json};

async fn endpoint(daemon: &Daemon, url: &str, more: Value) -> Value {
    let mut body =
        json!({"url": url, "retry": {"initial": "50ms", "maxInterval": "200ms", "maxAttempts": 3}});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    daemon.post("/endpoints", &body.to_string()).await
}

fn id(value: &Value) -> &str {
    value["id"].as_str().unwrap()
}

#[tokio::test]
async fn event_reaches_its_subscriber_signed_and_byte_for_byte() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let made = endpoint(&daemon, &receiver.url, json!({"eventTypes": ["order.*"]})).await;
    let body = r#"{"type":"order.paid","data":{ "z":1.0,"a":[1e2 ,"é\u00e9"] }}"#;
    let accepted = daemon.post("/events", body).await;
    assert_eq!((&accepted["deliveries"], &accepted["duplicate"]), (&json!(1), &json!(false)));
    let shown = daemon.get(&format!("/events/{}", id(&accepted))).await;
    assert!(["pending", "delivered"].contains(&shown["status"].as_str().unwrap()), "{shown}");
    let got = receiver.until(1).await.remove(0);
    assert!(got.body.ends_with(r#","data":{ "z":1.0,"a":[1e2 ,"é\u00e9"] }}"#), "{}", got.body);
    assert_eq!(got.headers["webhook-id"], id(&accepted));
    assert_eq!(got.headers["balto-attempt"], "1");
    let webhook = standardwebhooks::Webhook::new(made["secret"].as_str().unwrap()).unwrap();
    let mut headers = axum::http::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, got.headers[name].parse().unwrap());
    }
    webhook.verify(got.body.as_bytes(), &headers).expect("the reference library verifies it");
    let unmatched = daemon.post("/events", r#"{"type":"pet.adopted","data":null}"#).await;
    assert_eq!(unmatched["deliveries"], 0);
    assert_eq!(daemon.get(&format!("/events/{}", id(&unmatched))).await["status"], "unmatched");
    daemon.until(&format!("/events/{}", id(&accepted)), |event| event["status"] == "delivered").await;
}

#[tokio::test]
async fn failures_are_retried_then_dead_until_redriven() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::start(|number, _| answer(if number < 3 { 500 } else { 200 })).await;
    endpoint(&daemon, &receiver.url, json!({})).await;
    let accepted = daemon.post("/events", r#"{"type":"a","data":1}"#).await;
    let letters = daemon.until("/dead-letters", |list| !list["data"].as_array().unwrap().is_empty()).await;
    assert_eq!(letters["data"][0]["reason"], "attemptsExhausted");
    assert_eq!(daemon.terminate(), Some(0));
    let daemon = Daemon::start(data.path()).await;
    let redriven = daemon.post("/dead-letters/redrive", r#"{"reason":"attemptsExhausted"}"#).await;
    assert_eq!(redriven["count"], 1);
    let event =
        daemon.until(&format!("/events/{}", id(&accepted)), |event| event["status"] == "delivered").await;
    assert_eq!(event["deliveries"][0]["attemptCount"], 4);
    let delivery = daemon.get(&format!("/deliveries/{}", id(&event["deliveries"][0]))).await;
    let numbers: Vec<_> =
        delivery["attempts"].as_array().unwrap().iter().map(|attempt| attempt["number"].clone()).collect();
    assert_eq!(numbers, [1, 2, 3, 4].map(Value::from));
    assert!(daemon.get("/dead-letters").await["data"].as_array().unwrap().is_empty());
    let ids: HashSet<_> = receiver.got().into_iter().map(|got| got.headers["webhook-id"].clone()).collect();
    assert_eq!(ids, HashSet::from([id(&accepted).to_owned()]));
}

#[tokio::test]
async fn gone_receiver_disables_its_endpoint_until_it_is_resumed() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::start(|number, _| answer(if number == 0 { 410 } else { 200 })).await;
    let made = endpoint(&daemon, &receiver.url, json!({})).await;
    daemon.post("/events", r#"{"type":"a","data":1}"#).await;
    let path = format!("/endpoints/{}", id(&made));
    let disabled = daemon.until(&path, |endpoint| endpoint["status"] == "disabled").await;
    assert_eq!(disabled["disabledReason"], "gone");
    assert_eq!(daemon.get("/dead-letters").await["data"][0]["reason"], "gone");
    let second = daemon.post("/events", r#"{"type":"a","data":2}"#).await;
    let lane = daemon.until(&format!("{path}/lane"), |lane| lane["reason"] == "disabled").await;
    assert_eq!(lane["pending"], 1);
    daemon.post(&format!("{path}/resume"), "").await;
    daemon.until(&format!("/events/{}", id(&second)), |event| event["status"] == "delivered").await;
}

#[tokio::test]
async fn keys_ids_and_versions_are_checked_after_a_crash() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let body = r#"{"type":"a","data":1,"stream":"order-42","expectedVersion":"none"}"#;
    let key = [("idempotency-key", "k1")];
    let (status, first, _) = daemon.call("POST", "/events", &key, body).await;
    assert_eq!((status, &first["streamVersion"]), (202, &json!(1)));
    daemon.kill();
    drop(daemon);
    let daemon = Daemon::start(data.path()).await;
    let (status, again, headers) = daemon.call("POST", "/events", &key, body).await;
    assert_eq!((status, &again["id"], headers["idempotent-replayed"].as_str()), (202, &first["id"], "true"));
    let (status, problem, _) = daemon.call("POST", "/events", &key, r#"{"type":"b","data":1}"#).await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("idempotency_mismatch")));
    let (status, problem, _) = daemon.call("POST", "/events", &[], body).await;
    assert_eq!((status, &problem["code"], &problem["actual"]), (409, &json!("version_conflict"), &json!(1)));
    let next =
        daemon.post("/events", r#"{"type":"a","data":1,"stream":"order-42","expectedVersion":1}"#).await;
    assert_eq!(next["streamVersion"], 2);
    let chosen = r#"{"type":"a","data":1,"id":"mine-1"}"#;
    daemon.post("/events", chosen).await;
    assert_eq!(daemon.post("/events", chosen).await["duplicate"], true);
    assert_eq!(daemon.get("/events/mine-1").await["id"], "mine-1");
    let (status, ..) = daemon.call("POST", "/events", &[], r#"{"type":"a","data":2,"id":"mine-1"}"#).await;
    assert_eq!(status, 422);
}

#[tokio::test]
async fn strict_order_survives_failures() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::start(|number, _| answer(if number % 3 == 1 { 500 } else { 200 })).await;
    endpoint(
        &daemon,
        &receiver.url,
        json!({"ordering": "endpoint", "retry": {"schedule": ["20ms", "20ms", "20ms", "20ms"]}}),
    )
    .await;
    let events: Vec<_> = (0..20).map(|number| json!({"type": "a", "data": number})).collect();
    daemon.post("/events/batch", &json!({"events": events}).to_string()).await;
    daemon.until("/events?status=pending", |list| list["data"].as_array().unwrap().is_empty()).await;
    let mut order: Vec<_> =
        receiver.got().into_iter().map(|got| got.body.rsplit_once(':').unwrap().1.to_owned()).collect();
    order.dedup();
    assert_eq!(order, (0..20).map(|number| format!("{number}}}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn second_daemon_cannot_use_the_same_directory() {
    let data = tempfile::tempdir().unwrap();
    let _daemon = Daemon::start(data.path()).await;
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_balto"))
        .args(["serve", "--dev", "--data-dir"])
        .arg(data.path())
        .env("BALTO__SERVER__API_LISTEN", "127.0.0.1:0")
        .env("BALTO__SERVER__OPS_LISTEN", "127.0.0.1:0")
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && words.contains("in use by another process"), "{words}");
}

/// Kills the daemon at different moments under load: each acknowledged event is delivered under its
/// own id.
#[tokio::test]
async fn acknowledged_events_survive_a_kill_at_any_moment() {
    let data = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(|number, _| answer(if number % 7 == 3 { 503 } else { 200 })).await;
    let mut acknowledged: HashMap<String, u64> = HashMap::new();
    let mut number = 0_u64;
    for round in 0..12_u64 {
        let mut daemon = Daemon::start(data.path()).await;
        if round == 0 {
            endpoint(
                &daemon,
                &receiver.url,
                json!({"retry": {"initial": "50ms", "maxInterval": "200ms", "maxAttempts": 50}}),
            )
            .await;
        }
        let until = tokio::time::Instant::now() + std::time::Duration::from_millis(30 + 97 * round % 400);
        while tokio::time::Instant::now() < until {
            let posts = (0..8).map(|offset| {
                let (daemon, number) = (&daemon, number + offset);
                async move {
                    (number, daemon.post("/events", &format!(r#"{{"type":"a","data":{number}}}"#)).await)
                }
            });
            for (number, answer) in futures_util::future::join_all(posts).await {
                acknowledged.insert(id(&answer).to_owned(), number);
            }
            number += 8;
        }
        daemon.kill();
    }
    let daemon = Daemon::start(data.path()).await;
    daemon.until("/events?status=pending", |list| list["data"].as_array().unwrap().is_empty()).await;
    let mut delivered: HashMap<String, String> = HashMap::new();
    for got in receiver.got() {
        let data = got.body.rsplit_once(':').unwrap().1.trim_end_matches('}').to_owned();
        let before = delivered.insert(got.headers["webhook-id"].clone(), data.clone());
        assert!(before.is_none_or(|before| before == data), "two events have the same id");
    }
    for (id, number) in &acknowledged {
        assert_eq!(delivered.get(id), Some(&number.to_string()), "{id} of {} was lost", acknowledged.len());
    }
    assert!(acknowledged.len() > 50, "only {} events under load", acknowledged.len());
}

#[tokio::test]
async fn largest_endpoint_survives_a_checkpoint_and_a_crash() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let headers: serde_json::Map<_, _> =
        (0..40).map(|number| (format!("X-Long-{number}"), json!("v".repeat(4_000)))).collect();
    const CHECKPOINTS: &str = "balto_checkpoint_duration_seconds_count";
    let before = daemon.metric(CHECKPOINTS, "").await;
    let made = endpoint(
        &daemon,
        &receiver.url,
        json!({"headers": headers, "rateLimit": {"limit": 9, "per": "1s", "burst": 3}}),
    )
    .await;
    daemon.until_metric(CHECKPOINTS, "", |count| count > before).await;
    daemon.post("/events", r#"{"type":"a","data":1}"#).await;
    daemon.kill();
    drop(daemon);
    let daemon = Daemon::start(data.path()).await;
    let again = daemon.get(&format!("/endpoints/{}", id(&made))).await;
    assert_eq!(again["rateLimit"], made["rateLimit"]);
    daemon.post("/events", r#"{"type":"a","data":2}"#).await;
    let got = receiver.until(2).await;
    assert!(got.iter().all(|got| got.headers["x-long-39"].len() == 4_000));
}

//! The exchange of an attempt: request, response, address, connection, timing and rule.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::support::{Daemon, ReceivedRequest, Receiver, answer};
use super::{endpoint, publish, settled, text};

/// Names of the headers whose values are masked.
const MASKED: [&str; 2] = ["webhook-signature", "x-api-token"];

/// Asserts that the request of an attempt is the request that the receiver read.
fn is_as_sent(attempt: &Value, sent: &ReceivedRequest, url: &str) {
    let shown = &attempt["request"];
    assert_eq!((&shown["method"], &shown["url"]), (&json!(sent.method), &json!(url)), "{attempt}");
    let shown: BTreeMap<_, _> = shown["headers"].as_object().unwrap().iter().collect();
    let names: Vec<&str> = shown.keys().map(|name| name.as_str()).collect();
    let mut sent_names: Vec<&str> = sent.headers.keys().map(String::as_str).collect();
    sent_names.sort_unstable();
    assert_eq!(names, sent_names, "{attempt}");
    for (name, value) in shown {
        let expected = if MASKED.contains(&name.as_str()) { "***" } else { &sent.headers[name] };
        assert_eq!(value, expected, "{name}");
    }
}

#[tokio::test]
async fn attempt_shows_the_exchange_as_the_receiver_saw_it() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let long = "x".repeat(3_000);
    let headers = format!("retry-after: 1\r\nx-long: {long}\r\nx-longer: {long}\r\nx-a: 1\r\nx-a: 2");
    let reply =
        format!("HTTP/1.1 503 x\r\n{headers}\r\nset-cookie: id=secret\r\ncontent-length: 4\r\n\r\nbusy");
    let receiver =
        Receiver::start(move |number, _| if number == 0 { reply.clone() } else { answer(204) }).await;
    let more =
        json!({"headers": {"X-Env": "prod"}, "sensitiveHeaders": {"X-Api-Token": "secret"}, "trace": true});
    let hook = endpoint(&daemon, &receiver, more).await;
    let event = publish(&daemon, json!({"type": "a", "data": {"n": 1}, "version": "2.0"})).await;
    settled(&daemon, &event).await;
    // A later change of the endpoint does not change what was sent.
    let patch = json!({"headers": {"X-Env": "test", "X-New": "1"}, "sensitiveHeaders": null}).to_string();
    let changed = daemon.call("PATCH", &format!("/endpoints/{}", text(&hook, "id")), &[], &patch).await;
    assert_eq!(changed.0, 200, "{}", changed.1);
    let delivery = settled(&daemon, &event).await;
    assert!(!delivery.to_string().contains("secret"), "{delivery}");
    let [first, second] = &delivery["attempts"].as_array().unwrap()[..] else { panic!("{delivery}") };
    let got = receiver.got();
    for (attempt, sent) in [(first, &got[0]), (second, &got[1])] {
        is_as_sent(attempt, sent, &receiver.url);
        let address = receiver.url.split('/').nth(2).unwrap();
        assert_eq!(attempt["remoteAddress"], address, "{attempt}");
        assert!(attempt["timing"]["firstByte"].is_string(), "{attempt}");
        assert_eq!(attempt["timing"]["total"], attempt["duration"]);
        // The host is an address, and the scheme is http.
        assert!(attempt["timing"].get("dns").is_none() && attempt["timing"].get("tls").is_none());
    }
    assert_eq!((&first["reused"], &second["reused"]), (&json!(false), &json!(true)), "{delivery}");
    assert!(first["timing"]["connect"].is_string() && second["timing"].get("connect").is_none());
    assert_eq!((&first["rule"], &second["rule"]), (&json!("retryAfter"), &Value::Null), "{delivery}");
    let kept = json!({
        "retry-after": "1", "x-long": long, "x-a": "1, 2", "set-cookie": "***", "content-length": "4",
    });
    assert_eq!(first["response"], json!({"statusCode": 503, "headers": kept, "body": "busy"}));
    assert_eq!(second["response"], json!({"statusCode": 204, "headers": null, "body": ""}));
}

#[tokio::test]
async fn attempt_without_a_connection_shows_the_request_and_the_rule() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{closed}/hook");
    let receiver = Receiver::status(200).await;
    endpoint(&daemon, &receiver, json!({"url": url})).await;
    let delivery = settled(&daemon, &publish(&daemon, json!({"type": "a", "data": 1})).await).await;
    let [first, last] = &delivery["attempts"].as_array().unwrap()[..] else { panic!("{delivery}") };
    for attempt in [first, last] {
        assert_eq!(
            (&attempt["request"]["url"], &attempt["request"]["method"]),
            (&json!(url), &json!("POST"))
        );
        for absent in ["response", "remoteAddress", "reused"] {
            assert_eq!(attempt.get(absent), Some(&Value::Null), "{absent}: {attempt}");
        }
        assert_eq!(attempt["timing"], json!({"total": attempt["duration"]}), "{attempt}");
    }
    assert_eq!((&first["rule"], &last["rule"]), (&json!("retryPolicy"), &json!("attemptsExhausted")));
    let letter = daemon.get(&format!("/dead-letters/{}", text(&delivery, "id"))).await;
    assert_eq!(letter["attempts"], delivery["attempts"]);
}

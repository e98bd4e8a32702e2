//! The exchange of an attempt: request, response, address, connection, timing and rule.

use std::collections::BTreeMap;
use std::io::Write as _;

use serde_json::{Value, json};

use super::support::{Daemon, ReceivedRequest, Receiver, answer};
use super::{ADMIN, call_as, endpoint, is_problem, key, keyed, list, publish, settled, text};

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

/// Runs a command with `sh`, which reads it from a file.
fn run(command: &str) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(command.as_bytes()).unwrap();
    let shell = std::process::Command::new("sh").arg("-e").arg(file.path()).output().unwrap();
    let errors = String::from_utf8_lossy(&shell.stderr);
    assert!(shell.status.success(), "{command:.500}\n{errors}");
}

/// The curl command of a delivery.
async fn curl_of(daemon: &Daemon, delivery: &str, query: &str) -> String {
    let (media, text) = daemon.text(&format!("/deliveries/{delivery}/curl{query}")).await;
    assert_eq!(media, "text/plain; charset=utf-8", "{text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_command_sends_the_request_of_the_attempt() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let more = json!({
        "url": format!("{}/it's/$(id)?a=[1-3]&b={{c}}", receiver.url),
        "headers": {"X-Env": "a'b `id` \"$HOME\" \\"}, "sensitiveHeaders": {"X-Api-Token": "secret"},
    });
    let hook = endpoint(&daemon, &receiver, more).await;
    let long = "x".repeat(200_000);
    let big = json!({"type": "a", "data": {"text": format!("it's `id` $HOME %s \\ \n\u{e9} {long}")}});
    let delivery = settled(&daemon, &publish(&daemon, big).await).await;
    let id = text(&delivery, "id");
    let sent = receiver.got().remove(0);
    for (number, query) in ["", "?signed=false", "?signed=true"].into_iter().enumerate() {
        let command = curl_of(&daemon, &id, query).await;
        assert!(!command.contains("secret") && command.contains("# Left out: x-api-token"), "{command:.500}");
        run(&command);
        let repeated = receiver.until(number + 2).await.pop().unwrap();
        assert_eq!((&repeated.line, &repeated.body), (&sent.line, &sent.body));
        let is_signed = query == "?signed=true";
        for (name, value) in &sent.headers {
            let found = repeated.headers.get(name);
            match name.as_str() {
                "x-api-token" => assert_eq!(found, None),
                "webhook-signature" => assert_eq!(found.is_some(), is_signed, "{command:.500}"),
                "webhook-timestamp" => assert!(found.is_some()),
                _ => assert_eq!(found, Some(value), "{name}"),
            }
        }
        if is_signed {
            let secret = daemon.get(&format!("/endpoints/{}/secret", text(&hook, "id"))).await;
            is_signed_by(&repeated, &text(&secret, "secret"));
        }
    }
}

/// Asserts a valid Standard Webhooks signature.
fn is_signed_by(request: &ReceivedRequest, secret: &str) {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use hmac::{Hmac, KeyInit as _, Mac as _};
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let header = |name: &str| request.headers[name].clone();
    let content = format!("{}.{}.{}", header("webhook-id"), header("webhook-timestamp"), request.body);
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&key).unwrap();
    mac.update(content.as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    assert_eq!(header("webhook-signature"), format!("v1,{signature}"));
}

#[tokio::test]
async fn curl_command_is_refused_without_a_request_or_the_role() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let receiver = Receiver::status(200).await;
    let publish = async |tenant: &str, id: &str| {
        let event = json!({"type": "a", "id": id, "tenant": tenant, "data": 1}).to_string();
        assert_eq!(call_as(&daemon, ADMIN, "POST", "/events", &event).await.0, 202);
        let deadline = std::time::Instant::now() + super::support::WAIT_MAX;
        loop {
            let path = format!("/deliveries?tenant={tenant}&eventId={id}");
            let found = call_as(&daemon, ADMIN, "GET", &path, "").await.1;
            if let Some(one) = list(&found).first() {
                return text(one, "id");
            }
            assert!(std::time::Instant::now() < deadline, "{found}");
        }
    };
    let hook = json!({"url": receiver.url, "tenant": "acme"}).to_string();
    let (status, hook) = call_as(&daemon, ADMIN, "POST", "/endpoints", &hook).await;
    assert_eq!(status, 201, "{hook}");
    let queue = json!({"name": "q", "tenant": "other"}).to_string();
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/queues", &queue).await.0, 201);
    let (delivery, message) = (publish("acme", "one").await, publish("other", "two").await);
    let path = format!("/deliveries/{delivery}/curl");
    let (viewer, admin) =
        (key(&daemon, "viewer", Some("acme")).await, key(&daemon, "admin", Some("acme")).await);
    let foreign = key(&daemon, "admin", Some("other")).await;
    let ask = async |key: &str, path: &str| call_as(&daemon, key, "GET", path, "").await;
    for (key, query, status) in [(&viewer, "", 200), (&admin, "?signed=true", 200)] {
        assert_eq!(ask(key, &format!("{path}{query}")).await.0, status);
    }
    is_problem(&ask(&viewer, &format!("{path}?signed=true")).await, 403, "forbidden", "viewer");
    is_problem(&ask(&foreign, &path).await, 404, "not_found", "another tenant");
    is_problem(&ask(ADMIN, "/deliveries/dlv_1/curl").await, 404, "not_found", "malformed id");
    is_problem(&ask(ADMIN, &format!("{path}?signed=yes")).await, 422, "validation_failed", "malformed");
    let message = format!("/deliveries/{message}/curl");
    is_problem(&ask(ADMIN, &message).await, 409, "conflict", "a message");
    let erased = call_as(&daemon, ADMIN, "POST", "/events/one/erase?tenant=acme", r#"{"reason": "r"}"#).await;
    assert_eq!(erased.0, 202, "{}", erased.1);
    is_problem(&ask(ADMIN, &path).await, 409, "event_erased", "an erased event");
    let delivery = publish("acme", "three").await;
    let hook = format!("/endpoints/{}", text(&hook, "id"));
    assert_eq!(call_as(&daemon, ADMIN, "DELETE", &hook, "").await.0, 204);
    let path = format!("/deliveries/{delivery}/curl");
    is_problem(&ask(ADMIN, &path).await, 409, "conflict", "a deleted endpoint");
}

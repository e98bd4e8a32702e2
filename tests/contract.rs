//! The outside contract, put to the real daemon: what a client that errs is told, and what a repeated request gets.

mod support;

use support::Daemon;

/// Name, method, path, content type, body; then the status and the code that the contract names.
type Refusal = (&'static str, &'static str, &'static str, &'static str, &'static str, u16, &'static str);

const JSON: &str = "application/json";

const REFUSALS: &[Refusal] = &[
    ("malformed JSON", "POST", "/events", JSON, r#"{"type":"#, 400, "malformed"),
    ("unknown member", "POST", "/events", JSON, r#"{"type":"a.b","data":1,"x":1}"#, 422, "validation_failed"),
    ("wrong type", "POST", "/events", JSON, r#"{"type":5,"data":1}"#, 422, "validation_failed"),
    ("bad event type", "POST", "/events", JSON, r#"{"type":"a..b","data":1}"#, 422, "validation_failed"),
    ("missing member", "POST", "/events", JSON, r#"{"data":1}"#, 422, "validation_failed"),
    ("wrong content type", "POST", "/events", "text/plain", "{}", 415, "unsupported_media_type"),
    ("wrong method", "DELETE", "/events", JSON, "", 405, "method_not_allowed"),
    ("bad URL", "POST", "/endpoints", JSON, r#"{"url":"nope"}"#, 422, "forbidden_url"),
    (
        "metadata address",
        "POST",
        "/endpoints",
        JSON,
        r#"{"url":"http://169.254.169.254/"}"#,
        422,
        "forbidden_url",
    ),
    (
        "bad pattern",
        "POST",
        "/endpoints",
        JSON,
        r#"{"url":"https://example.com/","eventTypes":["a..b"]}"#,
        422,
        "validation_failed",
    ),
    (
        "bad duration",
        "POST",
        "/endpoints",
        JSON,
        r#"{"url":"https://example.com/","timeout":"15 miles"}"#,
        422,
        "validation_failed",
    ),
    ("unknown event", "GET", "/events/evt_nope", JSON, "", 404, "not_found"),
    ("unknown endpoint", "GET", "/endpoints/ep_nope", JSON, "", 404, "not_found"),
    ("unknown delivery", "GET", "/deliveries/dlv_nope", JSON, "", 404, "not_found"),
    ("unknown dead letter", "GET", "/dead-letters/dlv_nope", JSON, "", 404, "not_found"),
    ("unknown path", "GET", "/nope", JSON, "", 404, "not_found"),
    ("limit below", "GET", "/events?limit=0", JSON, "", 422, "validation_failed"),
    ("limit above", "GET", "/events?limit=251", JSON, "", 422, "validation_failed"),
    ("bad cursor", "GET", "/events?cursor=zz", JSON, "", 422, "validation_failed"),
    ("bad status", "GET", "/events?status=zz", JSON, "", 422, "validation_failed"),
    ("bad reason", "GET", "/dead-letters?reason=zz", JSON, "", 422, "validation_failed"),
    ("bad time", "GET", "/events?since=yesterday", JSON, "", 422, "validation_failed"),
    ("unknown parameter", "GET", "/events?x=1", JSON, "", 422, "validation_failed"),
];

#[tokio::test]
async fn each_bad_input_gets_its_status_and_code() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    for (name, method, path, content_type, body, status, code) in REFUSALS {
        let (got, problem, headers) =
            daemon.call(method, path, &[("content-type", content_type)], body).await;
        assert_eq!((got, problem["code"].as_str()), (*status, Some(*code)), "{name}: {problem}");
        assert_eq!(problem["status"], *status, "{name}: {problem}");
        assert_eq!(headers["content-type"], "application/problem+json", "{name}");
        assert_eq!(headers.contains_key("allow"), *status == 405, "{name}: {headers:?}");
    }
    let events = daemon.get("/events").await;
    assert_eq!(events["data"].as_array().unwrap().len(), 0, "a refused event was kept: {events}");
}

#[tokio::test]
async fn a_body_over_the_bound_is_413_and_names_the_bound() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let body = format!(r#"{{"type":"a.b","data":"{}"}}"#, "a".repeat(400_000));
    let (status, problem, _) = daemon.call("POST", "/events", &[], &body).await;
    assert_eq!(
        (status, &problem["code"], &problem["limit"]),
        (413, &"payload_too_large".into(), &262_144.into())
    );
}

#[tokio::test]
async fn without_a_key_or_with_another_nothing_is_answered() {
    let data = tempfile::tempdir().unwrap();
    let key = ("BALTO__AUTH__ADMIN_KEY", "an-admin-key-that-is-long-enough-for-any-bound");
    let daemon = Daemon::start_in(data.path(), &[], &[key]).await;
    let good = format!("Bearer {}", key.1);
    for path in ["/events", "/endpoints", "/deliveries", "/dead-letters", "/keys"] {
        let (status, problem, _) = daemon.call("GET", path, &[], "").await;
        assert_eq!(status, 401, "{path} without a key: {problem}");
        let (status, problem, _) = daemon.call("GET", path, &[("authorization", "Bearer wrong")], "").await;
        assert_eq!(status, 401, "{path} with a wrong key: {problem}");
        let (status, answer, _) = daemon.call("GET", path, &[("authorization", &good)], "").await;
        assert_eq!(status, 200, "{path} with the key: {answer}");
    }
}

#[tokio::test]
async fn an_idempotency_key_gives_the_first_answer_also_after_a_crash() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let key = [("idempotency-key", "k1")];
    let body = r#"{"type":"a.b","data":1}"#;
    let (status, first, headers) = daemon.call("POST", "/events", &key, body).await;
    assert_eq!((status, headers.contains_key("idempotent-replayed")), (202, false), "{first}");

    daemon.kill();
    let daemon = Daemon::start(data.path()).await;
    let (status, again, headers) = daemon.call("POST", "/events", &key, body).await;
    assert_eq!((status, &again["id"]), (202, &first["id"]), "{again}");
    assert_eq!(headers["idempotent-replayed"], "true");

    let (status, problem, _) = daemon.call("POST", "/events", &key, r#"{"type":"a.b","data":2}"#).await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("idempotency_mismatch")), "{problem}");

    let elsewhere = r#"{"type":"a.b","data":2,"tenant":"other"}"#;
    let (status, other, _) = daemon.call("POST", "/events", &key, elsewhere).await;
    assert_eq!(status, 202, "another tenant has keys of its own: {other}");
    assert_ne!(other["id"], first["id"]);
}

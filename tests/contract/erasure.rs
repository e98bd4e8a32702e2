//! Erasure of events: reads, deliveries, duplicates and wrong requests.

use serde_json::{Value, json};

use super::support::{Daemon, Receiver, answer};
use super::{ADMIN, call_as, is_problem, key, keyed, text};

const REASON: &str = r#"{"reason": "request 7"}"#;

async fn erase(daemon: &Daemon, id: &str) -> Value {
    let (status, erased) = call_as(daemon, ADMIN, "POST", &format!("/events/{id}/erase"), REASON).await;
    assert_eq!(status, 202, "{erased}");
    erased
}

/// Waits until the content of an erased event has left the disk. The answer is otherwise the same.
async fn until_done(daemon: &Daemon, id: &str) -> Value {
    let first = erase(daemon, id).await;
    let deadline = std::time::Instant::now() + super::support::WAIT_MAX;
    loop {
        let again = erase(daemon, id).await;
        assert_eq!((&again["count"], &again["erasedAt"]), (&first["count"], &first["erasedAt"]));
        if again["onDisk"] == "done" {
            return again;
        }
        assert!(std::time::Instant::now() < deadline, "the content stays on the disk: {again}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// Checks every read of an erased event.
async fn check_reads(daemon: &Daemon, id: &str, delivery: &str) {
    for path in [format!("/events/{id}"), "/events?type=order.paid".to_owned(), "/feed".to_owned()] {
        let (_, found) = call_as(daemon, ADMIN, "GET", &path, "").await;
        let event = found["data"].get(0).unwrap_or(&found);
        assert_eq!(event["data"], Value::Null, "{path}: {found}");
        assert!(event["erasedAt"].is_string() && event.get("metadata").is_none(), "{path}: {found}");
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(event["attributes"], json!({"traceparent": trace}), "{path}: {found}");
        assert_eq!(event["id"], id, "{path}");
    }
    let found = call_as(daemon, ADMIN, "GET", &format!("/deliveries/{delivery}"), "").await.1;
    assert_eq!(found["status"], "cancelled", "{found}");
    let attempts = found["attempts"].as_array().unwrap();
    assert!(!attempts.is_empty() && attempts.iter().all(|one| one["responseBody"] == ""), "{found}");
    assert!(!found.to_string().contains("canary"), "{found}");
    for attempt in attempts {
        assert_eq!((&attempt["request"], &attempt["response"]["headers"]), (&Value::Null, &Value::Null));
    }
    let letters = call_as(daemon, ADMIN, "GET", "/dead-letters", "").await.1;
    assert_eq!(letters["data"], json!([]));
    for path in [
        format!("/events/{id}/replay"),
        format!("/deliveries/{delivery}/retry"),
        format!("/dead-letters/{delivery}/redrive"),
    ] {
        let refused = call_as(daemon, ADMIN, "POST", &path, "").await;
        is_problem(&refused, 409, "event_erased", &path);
    }
}

#[tokio::test]
async fn erased_event_has_no_content_and_no_deliveries() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let receiver = Receiver::start(|_, _| {
        let head = "HTTP/1.1 302 x\r\nlocation: http://a.example/canary\r\ncontent-length: 6";
        format!("{head}\r\n\r\ncanary")
    })
    .await;
    let hook = json!({"url": receiver.url, "retry": {"maxAttempts": 1}}).to_string();
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/endpoints", &hook).await.0, 201);
    let event = json!({"type": "order.paid", "id": "chosen", "data": {"name": "canary"}, "metadata": {"name": "canary"}});
    let bearer = format!("Bearer {ADMIN}");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", "key-1"), ("traceparent", trace)];
    let publish = async || daemon.call("POST", "/events", &headers, &event.to_string()).await;
    assert_eq!(publish().await.0, 202);
    let letters = "/dead-letters";
    let deadline = std::time::Instant::now() + super::support::WAIT_MAX;
    let delivery = loop {
        let found = call_as(&daemon, ADMIN, "GET", letters, "").await.1;
        if let Some(letter) = found["data"].get(0) {
            break text(letter, "deliveryId");
        }
        assert!(std::time::Instant::now() < deadline, "{found}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };

    let erased = erase(&daemon, "chosen").await;
    assert_eq!((&erased["count"], &erased["onDisk"]), (&json!(1), &json!("pending")), "{erased}");
    let purged = call_as(&daemon, ADMIN, "GET", &format!("/deliveries/{delivery}"), "").await.1;
    assert_eq!(purged["status"], "cancelled", "a purged dead letter: {purged}");
    check_reads(&daemon, "chosen", &delivery).await;
    until_done(&daemon, "chosen").await;
    check_reads(&daemon, "chosen", &delivery).await;

    // The duplicate is recognized by its key, by its id, and not with another body.
    let (status, again, headers) = publish().await;
    assert_eq!((status, &again["id"], &again["duplicate"]), (202, &json!("chosen"), &json!(true)), "{again}");
    assert!(headers.contains_key("idempotent-replayed"));
    let by_id = call_as(&daemon, ADMIN, "POST", "/events", &event.to_string()).await;
    assert_eq!((by_id.0, &by_id.1["duplicate"]), (202, &json!(true)), "{}", by_id.1);
    let other = json!({"type": "order.paid", "id": "chosen", "data": 2}).to_string();
    let taken = call_as(&daemon, ADMIN, "POST", "/events", &other).await;
    is_problem(&taken, 422, "idempotency_mismatch", "another body");
    assert_eq!(receiver.count(), 1, "an erased event was sent again");
}

#[tokio::test]
async fn pending_deliveries_of_an_erased_event_are_cancelled() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let receiver = Receiver::status(200).await;
    let hook = json!({"url": receiver.url}).to_string();
    let hook = call_as(&daemon, ADMIN, "POST", "/endpoints", &hook).await.1;
    let endpoint = text(&hook, "id");
    call_as(&daemon, ADMIN, "POST", &format!("/endpoints/{endpoint}/pause"), "").await;
    let publish = async |data: u32| {
        let event = json!({"type": "a", "data": data}).to_string();
        text(&call_as(&daemon, ADMIN, "POST", "/events", &event).await.1, "id")
    };
    let (erased, kept) = (publish(1).await, publish(2).await);
    erase(&daemon, &erased).await;
    let path = format!("/deliveries?eventId={erased}");
    let found = call_as(&daemon, ADMIN, "GET", &path, "").await.1;
    assert_eq!(found["data"][0]["status"], "cancelled", "{found}");
    call_as(&daemon, ADMIN, "POST", &format!("/endpoints/{endpoint}/resume"), "").await;
    let got = receiver.until(1).await;
    assert_eq!(got[0].headers["webhook-id"], kept);
    let deadline = std::time::Instant::now() + super::support::WAIT_MAX;
    while call_as(&daemon, ADMIN, "GET", &format!("/events/{kept}"), "").await.1["status"] != "delivered" {
        assert!(std::time::Instant::now() < deadline, "the other event is not delivered");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // A replay of all events leaves it out.
    let replay = json!({"since": "2020-01-01T00:00:00Z"}).to_string();
    let path = format!("/endpoints/{endpoint}/replay");
    let (_, replayed) = call_as(&daemon, ADMIN, "POST", &path, &replay).await;
    assert_eq!(replayed["count"], 1, "{replayed}");
    let got = receiver.until(2).await;
    assert!(got.iter().all(|one| one.headers["webhook-id"] == kept), "{got:?}");
    // A generated id that is posted again by its publisher is a duplicate, although its content is
    // unknown.
    let again = json!({"type": "a", "data": 1, "id": erased}).to_string();
    let (status, answer) = call_as(&daemon, ADMIN, "POST", "/events", &again).await;
    assert_eq!((status, &answer["duplicate"]), (202, &json!(true)), "{answer}");
}

#[tokio::test]
async fn wrong_erasures_are_rejected_and_change_nothing() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let event = json!({"type": "a", "data": 7, "tenant": "acme"}).to_string();
    let id = text(&call_as(&daemon, ADMIN, "POST", "/events", &event).await.1, "id");
    let path = format!("/events/{id}/erase");
    let long = json!({"reason": "x".repeat(501)}).to_string();
    for (body, status, code, pointer) in [
        ("{}", 422, "validation_failed", "/reason"),
        (r#"{"reason": ""}"#, 422, "validation_failed", "/reason"),
        (r#"{"reason": "  "}"#, 422, "validation_failed", "/reason"),
        (r#"{"reason": null}"#, 422, "validation_failed", "/reason"),
        (r#"{"reason": 7}"#, 422, "validation_failed", "/reason"),
        (&long, 422, "validation_failed", "/reason"),
        (r#"{"reason": "a", "all": true}"#, 422, "validation_failed", "/all"),
        ("{", 400, "malformed", ""),
    ] {
        let refused = call_as(&daemon, ADMIN, "POST", &path, body).await;
        is_problem(&refused, status, code, body);
        if !pointer.is_empty() {
            assert_eq!(refused.1["errors"][0]["pointer"], pointer, "{}", refused.1);
        }
    }
    for id in ["evt_01AAAAAAAAAAAAAAAAAAAAAAAA", "unknown"] {
        let refused = call_as(&daemon, ADMIN, "POST", &format!("/events/{id}/erase"), REASON).await;
        is_problem(&refused, 404, "not_found", id);
    }
    for role in ["publisher", "viewer", "worker"] {
        let own = key(&daemon, role, Some("acme")).await;
        is_problem(&call_as(&daemon, &own, "POST", &path, REASON).await, 403, "forbidden", role);
    }
    let other = key(&daemon, "admin", Some("other")).await;
    is_problem(&call_as(&daemon, &other, "POST", &path, REASON).await, 404, "not_found", "foreign");
    let found = call_as(&daemon, ADMIN, "GET", &format!("/events/{id}"), "").await.1;
    assert_eq!((&found["data"], found.get("erasedAt")), (&json!(7), None), "{found}");
    let own = key(&daemon, "admin", Some("acme")).await;
    assert_eq!(call_as(&daemon, &own, "POST", &path, REASON).await.0, 202);
}

#[tokio::test]
async fn erased_stream_keeps_its_versions() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let append = async |stream: &str, count: usize| {
        let event = json!({"type": "a", "data": "canary"});
        let body = json!({"events": vec![event; count]}).to_string();
        let path = format!("/streams/{stream}/events");
        let (status, answer) = call_as(&daemon, ADMIN, "POST", &path, &body).await;
        assert_eq!(status, 202, "{answer}");
    };
    append("customer-9", 90).await;
    append("customer-8", 2).await;
    let erase = async || call_as(&daemon, ADMIN, "POST", "/streams/customer-9/erase", REASON).await;
    let (status, first) = erase().await;
    assert_eq!((status, &first["count"]), (202, &json!(90)), "{first}");
    let again = erase().await.1;
    assert_eq!((&again["count"], &again["erasedAt"]), (&first["count"], &first["erasedAt"]), "{again}");
    append("customer-9", 1).await;
    for (stream, erased) in [("customer-9", 90), ("customer-8", 0)] {
        let path = format!("/streams/{stream}/events?limit=1000");
        let (_, page) = call_as(&daemon, ADMIN, "GET", &path, "").await;
        for (number, event) in page["data"].as_array().unwrap().iter().enumerate() {
            let is_erased = number < erased;
            assert_eq!(event["data"].is_null(), is_erased, "{stream} {event}");
            assert_eq!(event.get("erasedAt").is_some(), is_erased, "{stream} {event}");
            assert_eq!(event["streamVersion"], number + 1);
        }
    }
    let (_, third) = erase().await;
    assert_eq!(third["count"], 91, "the new event is erased too: {third}");
    let unknown = call_as(&daemon, ADMIN, "POST", "/streams/nothing/erase", REASON).await;
    is_problem(&unknown, 404, "not_found", "unknown stream");
    let other = key(&daemon, "admin", Some("other")).await;
    let foreign = call_as(&daemon, &other, "POST", "/streams/customer-9/erase", REASON).await;
    is_problem(&foreign, 404, "not_found", "foreign stream");
    let viewer = key(&daemon, "viewer", None).await;
    let refused = call_as(&daemon, &viewer, "POST", "/streams/customer-9/erase", REASON).await;
    is_problem(&refused, 403, "forbidden", "viewer");
}

#[tokio::test]
async fn rebuild_after_an_erasure_keeps_the_history() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    daemon.key = Some(ADMIN.to_owned());
    let receiver = Receiver::start(|number, _| answer(if number == 0 { 200 } else { 500 })).await;
    let hook = json!({"url": receiver.url, "retry": {"maxAttempts": 1}}).to_string();
    daemon.post("/endpoints", &hook).await;
    daemon.post("/events", r#"{"type": "a", "id": "chosen", "data": "canary"}"#).await;
    let event = daemon.until("/events/chosen", |event| event["status"] == "delivered").await;
    let path = format!("/deliveries/{}", text(&event["deliveries"][0], "id"));
    daemon.post(&format!("{path}/retry"), "").await;
    daemon.until(&path, |delivery| delivery["status"] == "dead").await;
    until_done(&daemon, "chosen").await;
    let before = daemon.get(&path).await;
    assert_eq!((&before["status"], &before["attemptCount"]), (&json!("cancelled"), &json!(2)), "{before}");
    daemon.post("/projections/state/rebuild", "").await;
    daemon.until("/projections", |page| page["data"][0]["rebuild"]["status"] == "completed").await;
    assert_eq!(daemon.get(&path).await, before);
    until_done(&daemon, "chosen").await;
}

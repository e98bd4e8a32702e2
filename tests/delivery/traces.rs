//! Trace context of real deliveries.

use crate::support::{Daemon, ReceivedRequest, Receiver, answer};
use serde_json::{Value, json};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const STRUCTURED: (&str, &str) = ("content-type", "application/cloudevents+json");

async fn subscribe(daemon: &Daemon, receiver: &Receiver, more: Value) {
    let mut body = json!({"url": receiver.url, "retry": {"schedule": ["10ms", "10ms"]}});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    daemon.post("/endpoints", &body.to_string()).await;
}

async fn post(daemon: &Daemon, path: &str, headers: &[(&str, &str)], body: &Value) -> Value {
    let (status, answer, _) = daemon.call("POST", path, headers, &body.to_string()).await;
    assert_eq!(status, 202, "{body}: {answer}");
    answer
}

/// The span of a delivery.
fn span(got: &ReceivedRequest) -> String {
    let parent = &got.headers["traceparent"];
    assert!(parent.starts_with(&format!("00-{TRACE}-")) && parent.ends_with("-01"), "{parent}");
    assert_ne!(parent, PARENT);
    parent[36..52].to_owned()
}

/// Asserts that the request has no trace header except the one of another feature.
fn assert_no_trace_headers(got: &ReceivedRequest) {
    for name in ["tracestate", "baggage"] {
        assert!(!got.headers.contains_key(name), "{got:?}");
        assert!(!got.body.contains(name), "{got:?}");
    }
}

#[tokio::test]
async fn each_attempt_is_a_new_span_unless_tracing_is_off() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let traced = Receiver::start(|number, _| answer(if number < 2 { 500 } else { 200 })).await;
    let (other, silent) = (Receiver::status(200).await, Receiver::status(200).await);
    subscribe(&daemon, &traced, json!({"trace": true})).await;
    subscribe(&daemon, &other, json!({"trace": true})).await;
    subscribe(&daemon, &silent, json!({})).await;
    let headers = [("traceparent", PARENT), ("tracestate", "vendor=1"), ("baggage", "user=7")];
    let event = post(&daemon, "/events", &headers, &json!({"type": "a", "data": 1})).await;
    let path = format!("/events/{}", event["id"].as_str().unwrap());
    let done = daemon.until(&path, |event| event["status"] == "delivered").await;
    assert_eq!(done["attributes"], json!({"traceparent": PARENT}), "the attributes are unchanged");
    let mut spans: Vec<_> = [traced.got(), other.got()].concat().iter().map(span).collect();
    assert_eq!(spans.len(), 4);
    spans.sort();
    spans.dedup();
    assert_eq!(spans.len(), 4, "two attempts have the same span");
    for got in [traced.got(), other.got(), silent.got()].concat() {
        assert_no_trace_headers(&got);
    }
    assert!(!silent.got()[0].headers.contains_key("traceparent"));
}

#[tokio::test]
async fn header_applies_to_batches_and_cloudevents_in_every_mode() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    subscribe(&daemon, &receiver, json!({"trace": true})).await;
    let header = ("traceparent", PARENT);
    let batch = json!({"events": [{"type": "a", "data": 1}, {"type": "a", "data": 2}]});
    post(&daemon, "/events/batch", &[header], &batch).await;
    let cloud = |id: &str| json!({"specversion": "1.0", "id": id, "source": "/x", "type": "a"});
    post(&daemon, "/events", &[header, STRUCTURED], &cloud("1")).await;
    let batched = ("content-type", "application/cloudevents-batch+json");
    post(&daemon, "/events", &[header, batched], &json!([cloud("2"), cloud("3")])).await;
    let binary = [("ce-specversion", "1.0"), ("ce-id", "4"), ("ce-source", "/x"), ("ce-type", "a")];
    let json = ("content-type", "application/json");
    post(&daemon, "/events", &[&binary[..], &[header, json]].concat(), &json!(1)).await;
    let mut spans: Vec<_> = receiver.until(6).await.iter().map(span).collect();
    spans.sort();
    spans.dedup();
    assert_eq!(spans.len(), 6);
}

#[tokio::test]
async fn cloudevent_extension_takes_precedence_and_is_unchanged() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (traced, silent) = (Receiver::status(200).await, Receiver::status(200).await);
    subscribe(&daemon, &traced, json!({"trace": true, "format": "cloudevents"})).await;
    subscribe(&daemon, &silent, json!({"format": "cloudevents"})).await;
    let other = "00-11111111111111111111111111111111-2222222222222222-00";
    let event = json!({"specversion": "1.0", "id": "1", "source": "/x", "type": "a", "traceparent": PARENT,
        "tracestate": "vendor=1", "baggage": "user=7", "kept": "x"});
    let accepted = post(&daemon, "/events", &[STRUCTURED, ("traceparent", other)], &event).await;
    let got = traced.until(1).await.remove(0);
    span(&got);
    let body: Value = serde_json::from_str(&got.body).unwrap();
    // The extension names the trace in which the event began (distributed tracing extension).
    assert_eq!((&body["traceparent"], &body["kept"]), (&json!(PARENT), &json!("x")));
    assert_no_trace_headers(&got);
    let got = silent.until(1).await.remove(0);
    assert_no_trace_headers(&got);
    assert!(!got.body.contains("traceparent") && !got.headers.contains_key("traceparent"), "{got:?}");
    let kept = daemon.get(&format!("/events/{}", accepted["id"].as_str().unwrap())).await;
    assert_eq!(kept["attributes"]["tracestate"], "vendor=1", "kept, and given back to its publisher");
}

#[tokio::test]
async fn invalid_traceparent_is_ignored() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (plain, cloud) = (Receiver::status(200).await, Receiver::status(200).await);
    subscribe(&daemon, &plain, json!({"trace": true})).await;
    subscribe(&daemon, &cloud, json!({"trace": true, "format": "cloudevents"})).await;
    let long = format!("cc-{TRACE}-b7ad6b7169203331-01-{}", "x".repeat(2_000));
    let header = |value| vec![("traceparent", value)];
    let rows = [
        header("00-nonsense"),
        header(""),
        header(long.as_str()),
        // A repeated header is invalid (the suite of the specification,
        // `test_traceparent_duplicated`).
        vec![("traceparent", PARENT), ("traceparent", PARENT)],
        vec![("trace-parent", PARENT)],
        vec![("tracestate", "vendor=1")],
    ];
    let count = rows.len();
    for headers in rows {
        let event = post(&daemon, "/events", &headers, &json!({"type": "a", "data": 1})).await;
        let kept = daemon.get(&format!("/events/{}", event["id"].as_str().unwrap())).await;
        assert_eq!(kept["attributes"], Value::Null, "{headers:?}");
    }
    // The extension is publisher data, so it is kept; with an invalid value of any type it is not a
    // trace.
    for (number, value) in [json!("00-nonsense"), json!(7), json!(true)].into_iter().enumerate() {
        let event = json!({"specversion": "1.0", "id": number.to_string(), "source": "/x", "type": "a",
            "traceparent": value, "tracestate": value, "baggage": value});
        let accepted = post(&daemon, "/events", &[STRUCTURED], &event).await;
        let kept = daemon.get(&format!("/events/{}", accepted["id"].as_str().unwrap())).await;
        assert_eq!(kept["attributes"]["traceparent"], value);
    }
    for receiver in [plain, cloud] {
        for got in receiver.until(count + 3).await {
            assert!(!got.headers.contains_key("traceparent"), "{got:?}");
            assert!(!got.body.contains("traceparent"), "{got:?}");
            assert_no_trace_headers(&got);
        }
    }
}

#[tokio::test]
async fn whitespace_and_case_of_the_header_are_ignored() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    subscribe(&daemon, &receiver, json!({"trace": true})).await;
    let rows = [
        ("TraceParent", PARENT.to_owned()),
        ("TRACEPARENT", format!(" {PARENT}")),
        ("traceparent", format!("\t {PARENT} \t")),
    ];
    for (number, (name, value)) in rows.into_iter().enumerate() {
        post(&daemon, "/events", &[(name, &value)], &json!({"type": "a", "data": 1})).await;
        span(&receiver.until(number + 1).await[number]);
    }
}

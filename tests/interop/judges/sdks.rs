//! CloudEvents and traces, written and read by the SDKs of publishers and receivers.

use std::collections::HashMap;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Case, delivered, judge, judge_all, judge_in_rust};
use crate::support::judges::{install, root};
use crate::support::{Daemon, ReceivedRequest, Receiver};

/// A request that a publisher's SDK produced.
struct SdkRequest {
    story: String,
    headers: Vec<(String, String)>,
    body: String,
    /// The event that an SDK must read from the delivery.
    read: Value,
}

/// Each CloudEvent as Python and JavaScript post it, in both modes, with a different source each.
fn sdk_requests(events: &[(Value, Value)]) -> Vec<SdkRequest> {
    let mut cases = Vec::new();
    for (asked, _) in events {
        for mode in ["structured", "binary"] {
            let got = ReceivedRequest { body: asked.to_string(), ..ReceivedRequest::default() };
            cases.push(Case::good(mode, "make-cloudevent", mode, &got));
        }
    }
    let (python, node) = judge_all(&cases);
    let mut all = Vec::new();
    for (judge, answers) in [("Python", python), ("JavaScript", node)] {
        for (number, (case, answer)) in cases.iter().zip(answers).enumerate() {
            let (asked, data) = &events[number / 2];
            let source = format!("https://a.example/{judge}/{number}");
            let own = |text: &str| text.replace("https://a.example/source", &source);
            let headers = answer["read"]["headers"].as_object().unwrap().iter();
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), own);
            let headers = headers.map(|(name, value)| (name.clone(), text(value)));
            let body = STANDARD.decode(answer["read"]["body"].as_str().unwrap()).unwrap();
            let mut attributes = asked["attributes"].clone();
            attributes["source"] = json!(source);
            attributes.as_object_mut().unwrap().remove("time");
            all.push(SdkRequest {
                story: format!("{judge}, {}", case.key),
                headers: headers.collect(),
                body: own(&String::from_utf8(body).unwrap()),
                read: json!({"attributes": attributes, "data": data}),
            });
        }
    }
    all
}

#[tokio::test]
async fn cloudevents_posted_by_sdks_are_read_back_unchanged() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let endpoint = json!({"url": receiver.url, "format": "cloudevents"});
    let secret =
        daemon.post("/endpoints", &endpoint.to_string()).await["secret"].as_str().unwrap().to_owned();
    let event = |media: &str, data: Value| {
        let attributes = json!({"specversion": "1.0", "id": "a.1/2", "source": "https://a.example/source",
            "type": "com.example.order.paid", "subject": "orders/42", "time": "2026-03-13T10:35:00.123+00:00",
            "datacontenttype": media, "dataschema": "https://a.example/schema", "traceid": "abc", "sequence": "0007"});
        (json!({"attributes": attributes, "data": data}), data)
    };
    let events = [
        event("application/json", json!({"order": 42, "note": "é 😀"})),
        event("text/xml", json!("<order/>")),
    ];
    let made = sdk_requests(&events);
    let mut cases = Vec::new();
    for made in &made {
        let headers: Vec<_> =
            made.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let (status, answer, _) = daemon.call("POST", "/events", &headers, &made.body).await;
        assert_eq!(status, 202, "{}: {headers:?} {} {answer}", made.story, made.body);
        let got = receiver.until(cases.len() + 1).await.pop().unwrap();
        let sent: Value = serde_json::from_str(&got.body).unwrap();
        assert!(sent["time"].as_str().unwrap().starts_with("2026-03-13T10:35:00.123"), "{sent}");
        cases.push(Case::good(&made.story, "cloudevent", "", &got));
    }
    // The signature covers the CloudEvent as it is sent.
    let signed: Vec<_> =
        cases.iter().map(|case| Case { scheme: "standard", key: secret.clone(), ..case.clone() }).collect();
    judge_in_rust(&signed);
    cases.extend(signed);
    let (python, node) = judge_all(&cases);
    for (made, answers) in made.iter().zip(python.iter().zip(&node)) {
        assert_eq!((&answers.0["read"], &answers.1["read"]), (&made.read, &made.read), "{}", made.story);
    }
}

/// The attributes for an SDK to make a CloudEvent of, and its data.
fn event_to_make(changes: Value, data: Value) -> (Value, Value) {
    let mut attributes = json!({"specversion": "1.0", "id": "a.1/2", "source": "https://a.example/source",
        "type": "com.example.order.paid", "datacontenttype": "application/json"});
    for (name, value) in changes.as_object().unwrap() {
        attributes[name] = value.clone();
    }
    (json!({"attributes": attributes, "data": data}), data)
}

/// Posts the SDKs' requests, and passes the deliveries to the SDKs.
async fn check_round_trip(daemon: &Daemon, receiver: &Receiver, made: &[SdkRequest]) {
    let mut cases = Vec::new();
    for made in made {
        let headers: Vec<_> =
            made.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let (status, answer, _) = daemon.call("POST", "/events", &headers, &made.body).await;
        assert_eq!(status, 202, "{}: {headers:?} {} {answer}", made.story, made.body);
        let got = receiver.until(cases.len() + 1).await.pop().unwrap();
        cases.push(Case::good(&made.story, "cloudevent", "", &got));
    }
    let (python, node) = judge_all(&cases);
    for (made, (python, node)) in made.iter().zip(python.iter().zip(&node)) {
        assert_eq!((&python["read"], &node["read"]), (&made.read, &made.read), "{}", made.story);
    }
}

#[tokio::test]
async fn cloudevents_with_special_values_are_read_back_unchanged() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    daemon.post("/endpoints", &json!({"url": receiver.url, "format": "cloudevents"}).to_string()).await;
    // Percent-encoded by Python in binary mode; JavaScript writes such headers raw, which no HTTP
    // client sends.
    let foreign = event_to_make(json!({"subject": "Euro € 😀", "note": "100% \"x\""}), json!({"order": "é"}));
    let typed = event_to_make(json!({"id": "typed", "count": -7, "flag": true, "text": "7"}), json!([1, 2]));
    let mut made = sdk_requests(&[foreign, typed]);
    // Headers lose the types of values, in Balto and in the SDKs.
    made.retain(|made| made.story.ends_with("structured") || made.read["attributes"]["flag"].is_null());
    made.retain(|made| made.story != "JavaScript, binary");
    assert_eq!(made.len(), 5);
    let encoded = made
        .iter()
        .flat_map(|made| &made.headers)
        .any(|(name, value)| name == "ce-subject" && value == "Euro%20%E2%82%AC%20%F0%9F%98%80");
    assert!(encoded, "no header is percent-encoded");
    check_round_trip(&daemon, &receiver, &made).await;
}

#[tokio::test]
async fn batch_that_the_sdks_read_is_accepted_and_delivered() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    let endpoint = json!({"url": receiver.url, "format": "cloudevents", "ordering": "endpoint"});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    let events = [
        event_to_make(json!({"subject": "Euro € 😀", "count": 7}), json!({"order": 42})),
        event_to_make(json!({"id": "2", "traceid": "abc"}), json!("text")),
    ];
    let mut made = sdk_requests(&events);
    made.retain(|made| made.story.ends_with("structured"));
    let bodies: Vec<_> = made.iter().map(|made| made.body.as_str()).collect();
    let body = format!("[{}]", bodies.join(","));
    let media = ("content-type", "application/cloudevents-batch+json");
    let headers = HashMap::from([(media.0.to_owned(), media.1.to_owned())]);
    let batch = Case::good(
        "a batch",
        "cloudevents-batch",
        "",
        &ReceivedRequest { headers, body: body.clone(), ..ReceivedRequest::default() },
    );
    let (python, node) = judge_all(&[batch]);
    let read: Vec<_> = made.iter().map(|made| made.read.clone()).collect();
    assert_eq!((&python[0]["read"], &node[0]["read"]), (&json!(read), &json!(read)));
    let (status, answer, _) = daemon.call("POST", "/events", &[media], &body).await;
    let results = answer["results"].as_array().unwrap();
    assert!(status == 202 && results.iter().all(|result| result["status"] == 202), "{answer}");
    let cases: Vec<_> = receiver
        .until(4)
        .await
        .iter()
        .map(|got| Case::good("an event of a batch", "cloudevent", "", got))
        .collect();
    let (python, node) = judge_all(&cases);
    for answers in [python, node] {
        let delivered: Vec<_> = answers.iter().map(|answer| answer["read"].clone()).collect();
        assert_eq!(delivered, read);
    }
}

/// Every event that the specification's JSON Schema refuses is refused.
#[tokio::test]
async fn events_that_the_cloudevents_schema_refuses_are_refused() {
    install();
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let event = json!({"specversion": "1.0", "id": "1", "source": "/x", "type": "a", "subject": "s", "time": "2026-03-13T10:35:00Z",
        "dataschema": "https://a.example/s", "datacontenttype": "text/xml", "data": {"a": 1}, "extension": "x"});
    let mut rows: Vec<(Value, bool)> = vec![(event.clone(), true)];
    for name in [
        "specversion",
        "id",
        "source",
        "type",
        "subject",
        "time",
        "dataschema",
        "datacontenttype",
        "data",
        "extension",
    ] {
        let mut without = event.clone();
        without.as_object_mut().unwrap().remove(name);
        rows.push((without, !["specversion", "id", "source", "type"].contains(&name)));
        if name != "data" && name != "extension" {
            for value in [json!(""), json!(7), json!({}), json!([]), json!(true)] {
                let mut wrong = event.clone();
                wrong[name] = value;
                rows.push((wrong, false));
            }
        }
    }
    for (name, value) in
        [("time", "yesterday"), ("time", "2026-13-13T10:35:00Z"), ("dataschema", "a b"), ("source", "a b")]
    {
        let mut wrong = event.clone();
        wrong[name] = json!(value);
        rows.push((wrong, false));
    }
    let case = |(event, good): &(Value, bool)| {
        let got = ReceivedRequest { body: event.to_string(), ..ReceivedRequest::default() };
        Case { good: *good, ..Case::good(&event.to_string(), "cloudevent-schema", "", &got) }
    };
    let cases: Vec<_> = rows.iter().map(case).collect();
    let mut python = Command::new(root().join("target/judges/venv/bin/python"));
    judge(python.current_dir(root()).arg("tests/judges/judge.py"), &cases);
    for (event, good) in rows {
        let headers = [("content-type", "application/cloudevents+json")];
        let (status, answer, _) = daemon.call("POST", "/events?tenant=t", &headers, &event.to_string()).await;
        // The same id and source with other data is a conflict, not a schema error.
        let known = answer["code"] == "idempotency_mismatch";
        assert_eq!(status == 202 || known, good, "{event}: {answer}");
    }
}

#[tokio::test]
async fn native_events_are_delivered_as_cloudevents_on_request() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let event = r#"{"type":"order.paid","tenant":"acme","stream":"order-42","timestamp":"2026-03-13T10:35:00.000Z","data":{"order":1.5}}"#;
    let options = json!({"format": "cloudevents", "tenant": "acme"});
    let (_, got) = delivered(&daemon, options, event).await;
    assert_eq!(got.headers["content-type"], "application/cloudevents+json; charset=utf-8");
    let good = Case::good("a native event", "cloudevent", "", &got);
    let broken = |from: &str, to: &str| {
        let mut case = Case { good: false, story: format!("{from} changed"), ..good.clone() };
        case.got.body = case.got.body.replacen(from, to, 1);
        assert_ne!(case.got.body, good.got.body);
        case
    };
    let cases = [
        good.clone(),
        broken(r#""source":"/acme""#, r#""source":"""#),
        broken(r#""type":"order.paid""#, r#""type":7"#),
    ];
    let (python, node) = judge_all(&cases);
    let expected = json!({"attributes": {"specversion": "1.0", "id": got.headers["webhook-id"], "source": "/acme",
        "type": "order.paid", "subject": "order-42", "datacontenttype": "application/json"}, "data": {"order": 1.5}});
    assert_eq!((&python[0]["read"], &node[0]["read"]), (&expected, &expected));
}

/// Trace headers of a publisher, and those of Balto's deliveries, read by the OpenTelemetry SDKs.
#[tokio::test]
async fn traces_continue_as_the_opentelemetry_sdks_read_them() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    daemon.post("/endpoints", &json!({"url": receiver.url, "trace": true}).to_string()).await;
    const TRACE: &str = "12345678901234567890123456789012";
    const SPAN: &str = "1234567890123456";
    let vectors = [
        (format!("00-{TRACE}-{SPAN}-00"), true),
        (format!("00-{TRACE}-{SPAN}-01"), true),
        (format!("00-{TRACE}-{SPAN}-02"), true),
        (format!("00-{TRACE}-{SPAN}-03"), true),
        (format!("cc-{TRACE}-{SPAN}-01"), true),
        (format!("cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like"), true),
        (format!("cc-{TRACE}-{SPAN}-01.what-the-future-will-be-like"), false),
        (format!("00-{TRACE}-{SPAN}-01-what-the-future-will-be-like"), false),
        (format!("00-{TRACE}-{SPAN}-01."), false),
        (format!("ff-{TRACE}-{SPAN}-01"), false),
        (format!("0-{TRACE}-{SPAN}-01"), false),
        (format!("00-{}-{SPAN}-01", "0".repeat(32)), false),
        (format!("00-{TRACE}-{}-01", "0".repeat(16)), false),
        (format!("00-{TRACE}3-{SPAN}-01"), false),
        (format!("00-{TRACE}-{SPAN}7-01"), false),
        (format!("00-{TRACE}-{SPAN}-1"), false),
        (format!("00-.{}-{SPAN}-01", &TRACE[1..]), false),
    ];
    let case = |story: String, good: bool, got: ReceivedRequest| Case {
        good,
        ..Case::good(&story, "trace", "", &got)
    };
    let mut asked = Vec::new();
    let mut sent = Vec::new();
    for (number, (vector, good)) in vectors.iter().enumerate() {
        let headers = HashMap::from([("traceparent".to_owned(), vector.clone())]);
        asked.push(case(
            format!("{vector} unchanged"),
            *good,
            ReceivedRequest { headers, ..ReceivedRequest::default() },
        ));
        let body = r#"{"type":"a","data":1}"#;
        let (status, ..) = daemon.call("POST", "/events", &[("traceparent", vector)], body).await;
        assert_eq!(status, 202, "{vector}");
        let got = receiver.until(number + 1).await.pop().unwrap();
        sent.push(case(format!("{vector} as delivered"), *good, got));
    }
    let (python, node) = judge_all(&[asked, sent].concat());
    let count = vectors.len();
    for answers in [&python, &node] {
        let mut spans = vec![json!(SPAN)];
        for (before, after) in
            answers[..count].iter().zip(&answers[count..]).filter(|(one, _)| one["accepted"] == true)
        {
            let (before, after) = (&before["read"], &after["read"]);
            assert_eq!((&before["trace"], &before["flags"]), (&after["trace"], &after["flags"]));
            assert!(!spans.contains(&after["span"]), "{after}");
            spans.push(after["span"].clone());
        }
        assert_eq!(spans.len(), 7);
    }
}

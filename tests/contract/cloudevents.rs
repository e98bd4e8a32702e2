//! CloudEvents 1.0 at the API: the three modes of the HTTP binding, the attributes that are kept,
//! and the errors.

use crate::support::{Daemon, Receiver};
use serde_json::{Value, json};

const STRUCTURED: (&str, &str) = ("content-type", "application/cloudevents+json; charset=utf-8");
const BATCHED: (&str, &str) = ("content-type", "application/cloudevents-batch+json");

fn event() -> Value {
    json!({"specversion": "1.0", "id": "A234-1234/1.2", "source": "/mycontext#1", "type": "com.example.someevent"})
}

/// The sample event with changed members; null removes a member.
fn with(changes: &Value) -> Value {
    let mut event = event();
    for (name, value) in changes.as_object().unwrap() {
        event[name] = value.clone();
    }
    event.as_object_mut().unwrap().retain(|name, value| name == "data" || !value.is_null());
    event
}

async fn accepted(daemon: &Daemon, headers: &[(&str, &str)], body: &str) -> Value {
    let (status, answer, headers) = daemon.call("POST", "/events", headers, body).await;
    assert_eq!(status, 202, "{body}: {answer}");
    assert_eq!(headers["location"], answer["statusUrl"].as_str().unwrap());
    daemon.get(&format!("/events/{}", answer["id"].as_str().unwrap())).await
}

#[tokio::test]
async fn structured_event_keeps_attributes_extensions_and_data() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    daemon.post("/endpoints", &json!({"url": receiver.url, "format": "cloudevents"}).to_string()).await;
    // No serialiser writes JSON like this: the test shows that the data passes through byte for
    // byte.
    let posted = r#"{ "specversion" : "1.0", "id":"1.2 é", "source":"urn:x", "type":"a.b", "subject":"s/1",
        "time":"2026-03-13T10:35:00.123456+01:00", "dataschema":"https://a.example/s", "datacontenttype":"application/x+json",
        "flag":true, "count":-2147483648, "text":"7", "absent":null, "partitionkey":"p", "data": {"z":1.0,"a":"\u00e9"} }"#;
    let kept = accepted(&daemon, &[STRUCTURED], posted).await;
    assert_eq!(
        (&kept["type"], &kept["timestamp"], &kept["orderingKey"], &kept["tenant"]),
        (&json!("a.b"), &json!("2026-03-13T09:35:00.123Z"), &json!("p"), &json!("default"))
    );
    let attributes = json!({"id": "1.2 é", "source": "urn:x", "subject": "s/1", "dataschema": "https://a.example/s",
        "time": "2026-03-13T10:35:00.123456+01:00", "datacontenttype": "application/x+json", "flag": true,
        "count": -2_147_483_648_i64, "text": "7", "partitionkey": "p"});
    assert_eq!(kept["attributes"], attributes);
    let got = receiver.until(1).await.remove(0);
    assert_eq!(got.headers["content-type"], "application/cloudevents+json; charset=utf-8");
    assert_eq!(got.headers["webhook-id"], kept["id"].as_str().unwrap(), "a CloudEvents id may contain a dot");
    assert!(got.body.contains(r#""data":{"z":1.0,"a":"\u00e9"}"#), "{}", got.body);
    let mut sent: Value = serde_json::from_str(&got.body).unwrap();
    sent.as_object_mut().unwrap().remove("data");
    let mut expected = attributes;
    expected["specversion"] = json!("1.0");
    expected["type"] = json!("a.b");
    assert_eq!(sent, expected);
}

/// Null would be a value. The standard format always has its member `data`.
#[tokio::test]
async fn cloudevent_without_data_is_delivered_without_data() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (receiver, standard) = (Receiver::status(204).await, Receiver::status(204).await);
    daemon.post("/endpoints", &json!({"url": receiver.url, "format": "cloudevents"}).to_string()).await;
    daemon.post("/endpoints", &json!({"url": standard.url}).to_string()).await;
    let bare = r#"{"specversion":"1.0","id":"1","source":"/s","type":"a"}"#;
    let typed = r#"{"specversion":"1.0","id":"2","source":"/s","type":"a","datacontenttype":"text/plain"}"#;
    let null = r#"{"specversion":"1.0","id":"3","source":"/s","type":"a","data":null}"#;
    let head =
        |id: &'static str| [("ce-specversion", "1.0"), ("ce-id", id), ("ce-source", "/s"), ("ce-type", "a")];
    let (in_headers, typed_headers) = (head("4"), [&head("5")[..], &[("content-type", "text/xml")]].concat());
    let structured = [("content-type", "application/cloudevents+json")];
    type Row<'a> = (&'a [(&'a str, &'a str)], &'a str, Option<&'a str>, bool);
    let rows: [Row<'_>; 5] = [
        (&structured, bare, None, false),
        (&structured, typed, Some("text/plain"), false),
        (&structured, null, Some("application/json"), true),
        (&in_headers, "", None, false),
        (&typed_headers, "", Some("text/xml"), false),
    ];
    for (number, (headers, body, media, has_data)) in rows.into_iter().enumerate() {
        let kept = accepted(&daemon, headers, body).await;
        assert_eq!(kept.get("data"), Some(&json!(null)), "{kept}");
        let got = receiver.until(number + 1).await.remove(number);
        let sent: Value = serde_json::from_str(&got.body).unwrap();
        assert_eq!(sent.get("data"), has_data.then_some(&json!(null)), "{sent}");
        assert_eq!(sent.get("datacontenttype").and_then(Value::as_str), media, "{sent}");
        assert_eq!(sent.get("data_base64"), None, "{sent}");
        let got = standard.until(number + 1).await.remove(number);
        let sent: Value = serde_json::from_str(&got.body).unwrap();
        assert_eq!(sent.get("data"), Some(&json!(null)), "{sent}");
    }
}

#[tokio::test]
async fn binary_event_has_attributes_in_headers_and_any_data() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(204).await;
    daemon.post("/endpoints", &json!({"url": receiver.url, "format": "cloudevents"}).to_string()).await;
    let rows = [
        (Some("application/json"), "{\"a\": 1.0}", "\"data\":{\"a\": 1.0}"),
        (Some("application/x+JSON"), "[1]", "\"data\":[1]"),
        (Some("text/xml; charset=utf-8"), "<a b=\"c\"/>", r#""data":"<a b=\"c\"/>""#),
        (Some("application/octet-stream"), "abc", "\"data_base64\":\"YWJj\""),
        (Some("application/json"), "null", "\"data\":null"),
    ];
    for (number, (media, body, sent)) in rows.into_iter().enumerate() {
        let id = format!("id-{number}");
        let mut headers = vec![
            ("ce-specversion", "1.0"),
            ("ce-id", id.as_str()),
            ("ce-source", "//a.example/%2520"),
            ("CE-Type", "a.b"),
            ("ce-subject", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
            ("ce-other", "\"quoted \\\" %22\""),
            ("ce-count", "7"),
        ];
        headers.extend(media.map(|media| ("content-type", media)));
        let kept = accepted(&daemon, &headers, body).await;
        let attributes = &kept["attributes"];
        assert_eq!((&attributes["source"], &attributes["id"]), (&json!("//a.example/%20"), &json!(id)));
        assert_eq!(
            (&attributes["subject"], &attributes["other"]),
            (&json!("Euro € 😀"), &json!("quoted \" \""))
        );
        assert_eq!(attributes["count"], "7", "a header has no types");
        let got = receiver.until(number + 1).await.remove(number);
        assert!(got.body.ends_with(&format!("{sent}}}")), "{}", got.body);
    }
}

#[tokio::test]
async fn invalid_cloudevent_error_points_to_the_member() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let long = "x".repeat(2_049);
    let rows = [
        (json!({"specversion": null}), "/specversion"),
        (json!({"specversion": "0.3"}), "/specversion"),
        (json!({"specversion": 1.0}), "/specversion"),
        (json!({"id": null}), "/id"),
        (json!({"id": ""}), "/id"),
        (json!({"id": 7}), "/id"),
        (json!({"id": "a\u{1}b"}), "/id"),
        (json!({"id": long}), "/id"),
        (json!({"source": null}), "/source"),
        (json!({"source": ""}), "/source"),
        (json!({"source": "a b"}), "/source"),
        (json!({"type": null}), "/type"),
        (json!({"type": "a b"}), "/type"),
        (json!({"type": "x".repeat(256)}), "/type"),
        (json!({"subject": ""}), "/subject"),
        (json!({"subject": true}), "/subject"),
        (json!({"time": "yesterday"}), "/time"),
        (json!({"dataschema": "relative"}), "/dataschema"),
        (json!({"datacontenttype": "json"}), "/datacontenttype"),
        (json!({"data": 1, "data_base64": "AA=="}), "/data_base64"),
        (json!({"data_base64": "!"}), "/data_base64"),
        (json!({"data_base64": 7}), "/data_base64"),
        (json!({"Extension": "x"}), "/Extension"),
        (json!({"ex-tension": "x"}), "/ex-tension"),
        (json!({"e/x": "x"}), "/e~1x"),
        (json!({"": "x"}), "/"),
        (json!({"x".repeat(65): "x"}), &*format!("/{}", "x".repeat(65))),
        (json!({"extension": {}}), "/extension"),
        (json!({"extension": [1]}), "/extension"),
        (json!({"extension": 1.5}), "/extension"),
        (json!({"extension": 2_147_483_648_i64}), "/extension"),
        (json!({"extension": "a\u{fffe}b"}), "/extension"),
        (json!({"extension": "a\u{9f}b"}), "/extension"),
        (json!({"extension": long}), "/extension"),
        (json!({"partitionkey": "x".repeat(256)}), "/partitionkey"),
        (json!({"partitionkey": 7}), "/partitionkey"),
    ];
    for (changes, place) in rows {
        let body = with(&changes).to_string();
        let (status, problem, _) = daemon.call("POST", "/events", &[STRUCTURED], &body).await;
        assert_eq!((status, &problem["code"]), (422, &json!("validation_failed")), "{body}: {problem}");
        let errors = problem["errors"].as_array().unwrap();
        assert_eq!((errors.len(), &errors[0]["pointer"]), (1, &json!(place)), "{body}: {problem}");
    }
    let many: serde_json::Map<String, Value> = (0..65).map(|n| (format!("x{n}"), json!("y"))).collect();
    let twice = event().to_string().replacen('{', "{\"id\":\"other\",", 1);
    for (body, status) in [
        (with(&Value::Object(many)).to_string(), 422),
        (twice, 422),
        ("[]".to_owned(), 422),
        ("{".to_owned(), 400),
        (String::new(), 400),
        (
            format!(
                "{{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/\",\"type\":\"a\",\"data\":\"{}\"}}",
                "x".repeat(262_144)
            ),
            413,
        ),
    ] {
        let (got, problem, _) = daemon.call("POST", "/events", &[STRUCTURED], &body).await;
        assert_eq!(got, status, "{:.100}: {problem}", body);
    }
    assert_eq!(daemon.get("/events").await["data"], json!([]), "nothing of these was kept");
}

#[tokio::test]
async fn invalid_binary_headers_are_refused_by_name() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    const JSON: (&str, &str) = ("content-type", "application/json");
    let base = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/"), ("ce-type", "a"), JSON];
    for missing in 0..4 {
        let mut headers = base.to_vec();
        let (name, _) = headers.remove(missing);
        let (status, problem, _) = daemon.call("POST", "/events", &headers, "1").await;
        assert_eq!((status, &problem["errors"][0]["header"]), (422, &json!(name)), "{problem}");
    }
    for (name, value) in [
        ("ce-datacontenttype", "application/json"),
        ("ce-ex-tension", "x"),
        ("ce-data", "x"),
        ("ce-subject", "%C0%A0"),
        ("ce-subject", "%4"),
        ("ce-subject", ""),
        ("ce-subject", "a%07b"),
        ("ce-time", "now"),
        ("ce-id", "2"),
    ] {
        let headers = [&base[..], &[(name, value)]].concat();
        let (status, problem, _) = daemon.call("POST", "/events", &headers, "1").await;
        assert_eq!((status, &problem["errors"][0]["header"]), (422, &json!(name)), "{value}: {problem}");
    }
    for (media, body, status) in [
        ("application/json", "{", 400),
        ("nonsense", "x", 422),
        ("text/plain", &*"\u{1}".repeat(50_000), 413),
        ("application/cloudevents+avro", "1", 415),
        ("application/cloudeventsfoo", "1", 415),
    ] {
        let headers = [&base[..4], &[("content-type", media)]].concat();
        let (got, problem, _) = daemon.call("POST", "/events", &headers, body).await;
        assert_eq!(got, status, "{media}: {problem}");
    }
    // Without any of the four required headers, the body is read as a Balto event.
    let (status, ..) =
        daemon.call("POST", "/events", &[JSON, ("ce-other", "x")], r#"{"type":"a","data":1}"#).await;
    assert_eq!(status, 202);
}

#[tokio::test]
async fn id_and_source_identify_an_event_while_it_is_kept() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let first = accepted(&daemon, &[STRUCTURED], &with(&json!({"data": {"n": 1}})).to_string()).await;
    assert_eq!(daemon.terminate(), Some(0));
    let daemon = Daemon::start(data.path()).await;
    let post = async |changes: Value, path: &str, headers: &[(&str, &str)]| {
        let headers = [headers, &[STRUCTURED]].concat();
        let (status, answer, _) = daemon.call("POST", path, &headers, &with(&changes).to_string()).await;
        (status, answer["duplicate"].clone(), answer["id"].clone())
    };
    let again = (202, json!(true), first["id"].clone());
    assert_eq!(post(json!({"data": {"n": 1}}), "/events", &[]).await, again);
    assert_eq!(
        post(json!({"data": {"n": 1}, "traceid": "2"}), "/events", &[]).await,
        again,
        "repeated in another mode"
    );
    assert_eq!(post(json!({"data": {"n": 1}}), "/events", &[("idempotency-key", "k")]).await, again);
    for (changes, path) in [
        (json!({"data": {"n": 1}, "source": "/other"}), "/events"),
        (json!({"data": {"n": 1}, "id": "other"}), "/events"),
        (json!({"data": {"n": 1}}), "/events?tenant=acme"),
    ] {
        let (status, duplicate, id) = post(changes.clone(), path, &[]).await;
        assert_eq!((status, duplicate), (202, json!(false)), "{changes} {path}");
        assert_ne!(id, first["id"]);
    }
    let other = post(json!({"data": {"n": 2}}), "/events", &[]).await;
    assert_eq!(other.0, 422, "another event under the same id and source");
    for (path, media, status) in [
        ("/events?tenant=balto", STRUCTURED, 422),
        ("/events?tenant=a%20b", STRUCTURED, 422),
        ("/events?tenant=acme", ("content-type", "application/json"), 422),
    ] {
        let (got, problem, _) = daemon.call("POST", path, &[media], &event().to_string()).await;
        assert_eq!(got, status, "{path}: {problem}");
    }
    // The error is that of the native format, at the pointer of the CloudEvent.
    let reserved = "the tenant `balto` is reserved";
    let wrong = json!([{"pointer": "/tenant", "parameter": "tenant", "detail": reserved}]);
    let (_, problem, _) =
        daemon.call("POST", "/events?tenant=balto", &[STRUCTURED], &event().to_string()).await;
    assert_eq!(problem["errors"], wrong, "{problem}");
    let batch = json!([event()]).to_string();
    let (status, answer, _) = daemon.call("POST", "/events?tenant=balto", &[BATCHED], &batch).await;
    assert_eq!((status, &answer["results"][0]["errors"]), (202, &wrong), "{answer}");
    let ours = json!({"type": "a", "data": 1, "tenant": "balto"}).to_string();
    let (status, problem, _) = daemon.call("POST", "/events", &[], &ours).await;
    assert_eq!((status, &problem["detail"]), (422, &json!(reserved)), "{problem}");
}

#[tokio::test]
async fn batch_accepts_or_refuses_each_event_separately() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let batch =
        json!([event(), with(&json!({"id": null})), 7, with(&json!({"id": "2", "data": {"n": 2}})), event()]);
    let (status, answer, _) = daemon.call("POST", "/events", &[BATCHED], &batch.to_string()).await;
    let statuses: Vec<_> =
        answer["results"].as_array().unwrap().iter().map(|one| one["status"].clone()).collect();
    assert_eq!((status, statuses), (202, [202, 422, 422, 202, 202].map(Value::from).to_vec()), "{answer}");
    assert_eq!(
        (&answer["results"][4]["duplicate"], &answer["results"][4]["id"]),
        (&json!(true), &answer["results"][0]["id"])
    );
    assert_eq!(daemon.get("/events").await["data"].as_array().unwrap().len(), 2);
    let (status, answer, headers) = daemon.call("POST", "/events", &[BATCHED], "[]").await;
    assert_eq!((status, &answer, headers.get("idempotent-replayed")), (202, &json!({"results": []}), None));
    let many = format!("[{}]", vec!["1"; 1_001].join(","));
    for (body, status) in [(many.as_str(), 422), ("{}", 422), ("[", 400), ("", 400)] {
        let (got, problem, _) = daemon.call("POST", "/events", &[BATCHED], body).await;
        assert_eq!(got, status, "{body:.20}: {problem}");
    }
    // The limit of a batch is larger than that of one event.
    let large = |id: &str| with(&json!({"id": id, "data": "x".repeat(200_000)}));
    let (status, answer, _) =
        daemon.call("POST", "/events", &[BATCHED], &json!([large("3"), large("4")]).to_string()).await;
    assert_eq!((status, &answer["results"][1]["status"]), (202, &json!(202)), "{answer}");
    let too_large = json!([with(&json!({"id": "5", "data": "x".repeat(270_000)}))]).to_string();
    let (_, answer, _) = daemon.call("POST", "/events", &[BATCHED], &too_large).await;
    assert_eq!(answer["results"][0]["status"], 413);
}

/// In binary mode the headers are part of the event, so other headers make another request.
#[tokio::test]
async fn key_is_bound_to_the_attributes_of_a_binary_event() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let post = async |id: &str, more: (&str, &str)| {
        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-id", id),
            ("ce-source", "/s"),
            ("ce-type", "a"),
            ("idempotency-key", "k"),
            ("content-type", "application/json"),
            more,
        ];
        let (status, answer, headers) = daemon.call("POST", "/events", &headers, r#"{"v":1}"#).await;
        (status, answer["code"].as_str().map(str::to_owned), headers.contains_key("idempotent-replayed"))
    };
    let mismatch = (422, Some("idempotency_mismatch".to_owned()), false);
    assert_eq!(post("1", ("ce-subject", "x")).await, (202, None, false));
    assert_eq!(post("2", ("ce-subject", "x")).await, mismatch);
    assert_eq!(post("1", ("ce-subject", "y")).await, mismatch);
    // Headers that are not event attributes are ignored.
    assert_eq!(post("1", ("ce-subject", "x")).await, (202, None, true));
}

/// Members of Balto replace those of the publisher, and their names are valid.
#[tokio::test]
async fn message_in_cloudevents_has_valid_and_unique_members() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    daemon.post("/queues", r#"{"name":"cloud","format":"cloudevents"}"#).await;
    let cloud = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "a", "partitionkey": "k",
        "position": "5", "storedversion": 9, "data": 1});
    let headers = [("content-type", "application/cloudevents+json")];
    let (status, answer, _) = daemon.call("POST", "/events", &headers, &cloud.to_string()).await;
    assert_eq!(status, 202, "{answer}");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.post(format!("{}/queues/cloud/receive", daemon.api));
    let request = request.header("content-type", "application/json").body(r#"{"wait":"5s"}"#);
    let raw = request.send().await.unwrap().text().await.unwrap();
    for name in ["position", "partitionkey"] {
        assert_eq!(raw.matches(&format!("\"{name}\":")).count(), 1, "{raw}");
    }
    let event = &serde_json::from_str::<Value>(&raw).unwrap()["messages"][0]["event"];
    assert_eq!((&event["position"], &event["partitionkey"]), (&answer["position"], &json!("k")), "{raw}");
    let is_valid = |name: &String| name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    assert!(event.as_object().unwrap().keys().all(is_valid), "{raw}");
    assert!(event.get("storedversion").is_none(), "{raw}");
}

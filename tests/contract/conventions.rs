//! Conventions of every resource: lists, times, ids, idempotency, the two listeners.

use serde_json::{Value, json};

use super::support::{Daemon, Receiver};
use super::{endpoint, is_problem, list, publish, settled, text};

async fn refused(daemon: &Daemon, path: &str, parameter: &str) {
    let (status, problem, _) = daemon.call("GET", path, &[], "").await;
    is_problem(&(status, problem.clone()), 422, "validation_failed", path);
    assert_eq!(problem["errors"][0]["parameter"], parameter, "{path}: {problem}");
    assert_eq!(problem["errors"][0]["pointer"], format!("/{parameter}"), "{path}: {problem}");
}

#[tokio::test]
async fn bad_parameter_values_are_named_in_the_error() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    for resource in ["/events", "/endpoints", "/deliveries", "/dead-letters", "/keys"] {
        for limit in ["0", "251", "-1", "x", "1.5", ""] {
            refused(&daemon, &format!("{resource}?limit={limit}"), "limit").await;
        }
        for cursor in ["", "zz", "AQE", "!"] {
            refused(&daemon, &format!("{resource}?cursor={cursor}"), "cursor").await;
        }
        let (status, ..) = daemon.call("GET", &format!("{resource}?limit=250"), &[], "").await;
        assert_eq!(status, 200, "{resource}");
    }
    for resource in ["/events", "/deliveries", "/dead-letters"] {
        for (query, parameter) in [
            ("since=yesterday", "since"),
            ("until=2026-02-30T00:00:00Z", "until"),
            ("since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "until"),
            ("type=a..b", "type"),
            ("tenant=a%20b", "tenant"),
        ] {
            refused(&daemon, &format!("{resource}?{query}"), parameter).await;
        }
        let empty = "since=2026-01-01T00:00:00Z&until=2026-01-01T00:00:00Z";
        assert_eq!(list(&daemon.get(&format!("{resource}?{empty}")).await).len(), 0);
        // The zero time of clients whose calendar starts at year 1.
        assert_eq!(list(&daemon.get(&format!("{resource}?since=0001-01-01T00:00:00Z")).await).len(), 0);
    }
    for path in ["/events?status=x", "/endpoints?status=x", "/deliveries?status=x", "/dead-letters?reason=x"]
    {
        refused(&daemon, path, if path.contains("reason") { "reason" } else { "status" }).await;
    }
}

#[tokio::test]
async fn responses_forbid_caching() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let once = [("idempotency-key", "once")];
    let url = r#"{"url":"https://no-such-host.invalid/"}"#;
    let made = daemon.post("/endpoints", url).await;
    let secret = format!("/endpoints/{}/secret", text(&made, "id"));
    let rotate = format!("{secret}/rotate");
    for (method, path, headers, body) in [
        ("POST", "/endpoints", &once[..], url),
        ("POST", "/endpoints", &once, url),
        ("POST", &rotate, &once, ""),
        ("POST", &rotate, &once, ""),
        ("GET", &secret, &[], ""),
        ("POST", "/keys", &once, r#"{"role":"viewer"}"#),
        ("POST", "/keys", &once, r#"{"role":"viewer"}"#),
        ("POST", "/events", &[], r#"{"type":"a","data":1}"#),
        ("GET", "/events", &[], ""),
        ("GET", "/backup", &[], ""),
        ("GET", "/openapi.json", &[], ""),
        ("GET", "/events/evt_none", &[], ""),
        ("PUT", "/events", &[], ""),
    ] {
        let (status, _, headers) = daemon.call(method, path, headers, body).await;
        let control = headers.get("cache-control").map(String::as_str);
        assert_eq!(control, Some("no-store"), "{method} {path}: {status}");
    }
}

#[tokio::test]
async fn lists_are_newest_first_and_links_reach_all_items() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let empty = daemon.get("/events").await;
    assert_eq!(empty, json!({"data": [], "next": null}));
    let events: Vec<_> = (0..60).map(|number| json!({"type": "a", "data": number})).collect();
    daemon.post("/events/batch", &json!({"events": events}).to_string()).await;
    assert_eq!(list(&daemon.get("/events").await).len(), 50, "the default");

    let (mut path, mut seen) = ("/events?limit=7&type=a".to_owned(), Vec::new());
    loop {
        let (status, page, headers) = daemon.call("GET", &path, &[], "").await;
        assert_eq!(status, 200, "{page}");
        seen.extend(list(&page).iter().map(|event| event["data"].as_u64().unwrap()));
        // Items that are added during the walk are on none of the remaining pages.
        publish(&daemon, json!({"type": "a", "data": 1_000})).await;
        match (page["next"].as_str(), headers.get("link")) {
            (Some(next), Some(link)) => {
                let target = link.strip_prefix("</v1").and_then(|link| link.strip_suffix(">; rel=\"next\""));
                path = target.unwrap_or_else(|| panic!("{link}")).to_owned();
                assert!(path.contains(next) && path.contains("type=a") && path.contains("limit=7"), "{path}");
            }
            (None, None) => break,
            other => panic!("`next` and Link do not agree: {other:?}"),
        }
    }
    assert_eq!(seen, (0..60).rev().collect::<Vec<_>>());

    let cursor = text(&daemon.get("/events?limit=1").await, "next");
    refused(&daemon, &format!("/deliveries?cursor={cursor}"), "cursor").await;
}

#[tokio::test]
async fn list_ends_without_an_empty_page() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(410).await;
    for _ in 0..3 {
        endpoint(&daemon, &receiver, json!({})).await;
        daemon.post("/keys", r#"{"role":"viewer"}"#).await;
    }
    let event = publish(&daemon, json!({"type": "a", "data": 1})).await;
    daemon.until("/dead-letters", |letters| list(letters).len() == 3).await;
    for resource in ["/endpoints?", "/deliveries?", "/dead-letters?", "/keys?"] {
        let (mut pages, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = daemon.get(&format!("{resource}limit=1{cursor}")).await;
            pages.push(list(&page).len());
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(pages, [1, 1, 1], "{resource}");
    }
    let id = text(&event, "id");
    assert_eq!(list(&daemon.get(&format!("/deliveries?eventId={id}&limit=250")).await).len(), 3);
}

/// The search continues over several steps until it fills the page.
#[tokio::test]
async fn rare_matches_are_found_behind_many_other_items() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let rare = publish(&daemon, json!({"type": "rare", "data": 1})).await;
    let batch = json!({"events": vec![json!({"type": "common", "data": 1}); 1_000]}).to_string();
    // More than one step reads.
    for _ in 0..24 {
        daemon.post("/events/batch", &batch).await;
    }
    let page = daemon.get("/events?type=rare&limit=1").await;
    assert_eq!((list(&page).len(), &page["data"][0]["id"]), (1, &rare["id"]), "{page}");
    let none = daemon.get("/events?status=pending&limit=1").await;
    assert_eq!(none, json!({"data": [], "next": null}));
}

#[tokio::test]
async fn times_ids_and_durations_have_the_documented_form() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let made = endpoint(&daemon, &receiver, json!({"timeout": "1500ms"})).await;
    let event =
        publish(&daemon, json!({"type": "a", "data": 1, "timestamp": "2026-03-13T11:35:00.1239+01:00"}))
            .await;
    assert_eq!(event["timestamp"], "2026-03-13T10:35:00.123Z");
    let delivery = settled(&daemon, &event).await;
    let key = daemon.post("/keys", r#"{"role":"viewer"}"#).await;
    for (value, prefix) in [(&event, "evt_"), (&made, "ep_"), (&delivery, "dlv_"), (&key, "key_")] {
        assert!(text(value, "id").starts_with(prefix), "{value}");
    }
    let utc = |text: &str| text.len() == 24 && text.as_bytes()[19] == b'.' && text.ends_with('Z');
    for (value, name) in [(&made, "createdAt"), (&delivery, "createdAt"), (&key, "createdAt")] {
        assert!(utc(&text(value, name)), "{value}");
    }
    assert_eq!(made["timeout"], "1500ms");
    let duration = text(&delivery["attempts"][0], "duration");
    assert!(duration.ends_with("ms") || duration.ends_with('s'), "{delivery}");
    // Ids are ULIDs in commit order.
    let second = publish(&daemon, json!({"type": "a", "data": 2})).await;
    assert!(text(&second, "id") > text(&event, "id") && text(&event, "id").len() == 30, "{event} {second}");
}

/// A repetition returns the first response, another body is refused; a key is scoped to one tenant
/// and one route.
#[tokio::test]
async fn every_creating_post_takes_an_idempotency_key() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let made = endpoint(&daemon, &receiver, json!({})).await;
    let event = publish(&daemon, json!({"type": "a", "data": 1})).await;
    let delivery = settled(&daemon, &event).await;
    let endpoint_path = format!("/endpoints/{}", text(&made, "id"));
    let hook = json!({"url": receiver.url}).to_string();
    let posts = [
        ("/events".to_owned(), r#"{"type":"b","data":1}"#.to_owned(), 202),
        (
            "/events/batch".to_owned(),
            r#"{"events":[{"type":"b","data":1},{"type":"c","data":2}]}"#.to_owned(),
            202,
        ),
        ("/endpoints".to_owned(), hook, 201),
        ("/keys".to_owned(), r#"{"role":"viewer"}"#.to_owned(), 201),
        (format!("{endpoint_path}/test"), "{}".to_owned(), 202),
        (format!("{endpoint_path}/secret/rotate"), r#"{"overlap":"1h"}"#.to_owned(), 200),
        (format!("{endpoint_path}/replay"), r#"{"since":"2026-01-01T00:00:00Z"}"#.to_owned(), 202),
        (format!("/events/{}/replay", text(&event, "id")), "{}".to_owned(), 202),
        (format!("/deliveries/{}/retry", text(&delivery, "id")), "{}".to_owned(), 202),
        ("/dead-letters/redrive".to_owned(), "{}".to_owned(), 202),
        ("/dead-letters/purge".to_owned(), "{}".to_owned(), 202),
    ];
    let key = [("idempotency-key", "one-key")];
    let mut firsts = Vec::new();
    for (path, body, status) in &posts {
        let (got, first, headers) = daemon.call("POST", path, &key, body).await;
        assert_eq!((got, headers.get("idempotent-replayed")), (*status, None), "{path}: {first}");
        firsts.push((first, headers.get("location").cloned()));
    }
    daemon.kill();
    let daemon = Daemon::start(data.path()).await;
    // The second repetition returns the same response as the first one.
    let twice = || posts.iter().zip(firsts.clone());
    for ((path, body, status), (first, location)) in twice().chain(twice()) {
        let (got, again, headers) = daemon.call("POST", path, &key, body).await;
        let replayed = headers.get("idempotent-replayed").map(String::as_str);
        assert_eq!((got, replayed), (*status, Some("true")), "{path}: {again}");
        assert_eq!(headers.get("location"), location.as_ref(), "{path}");
        assert_eq!(again, expected_repetition(path, first), "{path}");
        let other = body.replacen('{', "{ ", 1);
        let (got, problem, _) = daemon.call("POST", path, &key, &other).await;
        assert!(text(&problem, "detail").contains("byte for byte"), "{problem}");
        is_problem(&(got, problem), 422, "idempotency_mismatch", path);
    }
}

/// Permitted differences of a repeated response: `duplicate` is set, and the secret of a key is
/// shown only once.
fn expected_repetition(path: &str, mut first: Value) -> Value {
    match path {
        "/events/batch" => {
            for result in first["results"].as_array_mut().unwrap() {
                result["duplicate"] = json!(true);
            }
        }
        "/keys" => drop(first.as_object_mut().unwrap().remove("secret").expect("the secret is shown once")),
        _ if first.get("duplicate").is_some() => first["duplicate"] = json!(true),
        _ => {}
    }
    first
}

/// A refusal is stored with its key: the repetition gets the same error, even when the request
/// would succeed now.
#[tokio::test]
async fn refused_request_is_refused_again_under_its_key() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    publish(&daemon, json!({"type": "a", "data": 0, "id": "taken"})).await;
    let conflict = |version: u32| json!({"type": "a", "data": 1, "stream": "s", "expectedVersion": version});
    let batch = json!({"events": [
        conflict(1), {"type": "a", "data": 2, "stream": "s"}, {"type": "a", "data": 3, "id": "taken"}, {"type": "."},
    ]});
    // Each of the two conflicts would be accepted a moment later.
    let posts = [("/events/batch", batch.to_string(), 202), ("/events", conflict(2).to_string(), 409)];
    let key = [("idempotency-key", "k")];
    let mut firsts = Vec::new();
    for (path, body, status) in &posts {
        let (got, first, headers) = daemon.call("POST", path, &key, body).await;
        assert_eq!((got, headers.get("idempotent-replayed")), (*status, None), "{path}: {first}");
        firsts.push(first);
    }
    let of = |results: &Value, member: &str| -> Vec<Value> {
        results["results"].as_array().unwrap().iter().map(|result| result[member].clone()).collect()
    };
    assert_eq!(of(&firsts[0], "status"), [409, 202, 422, 422]);
    let codes =
        [json!("version_conflict"), Value::Null, json!("idempotency_mismatch"), json!("validation_failed")];
    assert_eq!(of(&firsts[0], "code"), codes);
    publish(&daemon, json!({"type": "a", "data": 4, "stream": "s"})).await;
    daemon.kill();
    let daemon = Daemon::start(data.path()).await;
    for ((path, body, status), mut first) in posts.iter().zip(firsts) {
        let (got, again, headers) = daemon.call("POST", path, &key, body).await;
        assert_eq!((got, headers["idempotent-replayed"].as_str()), (*status, "true"), "{path}: {again}");
        if let Some(accepted) = first.pointer_mut("/results/1/duplicate") {
            *accepted = json!(true);
        }
        assert_eq!(again, first, "{path}");
        let answer = daemon.call("POST", path, &key, &body.replacen('{', "{ ", 1)).await;
        is_problem(&(answer.0, answer.1), 422, "idempotency_mismatch", path);
    }
    assert_eq!(list(&daemon.get("/events?stream=s").await).len(), 2, "a refused event was accepted");
}

#[tokio::test]
async fn idempotency_key_is_per_tenant_and_bounded() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let key = [("idempotency-key", "k")];
    let (_, first, _) = daemon.call("POST", "/events", &key, r#"{"type":"a","data":1}"#).await;
    let elsewhere = r#"{"type":"a","data":2,"tenant":"other"}"#;
    let (status, other, _) = daemon.call("POST", "/events", &key, elsewhere).await;
    assert_eq!(status, 202, "the keys of another tenant are separate: {other}");
    assert_ne!(other["id"], first["id"]);
    let long = "k".repeat(256);
    for bad in ["", "\"", long.as_str()] {
        let answer =
            daemon.call("POST", "/events", &[("idempotency-key", bad)], r#"{"type":"a","data":1}"#).await;
        is_problem(&(answer.0, answer.1), 400, "malformed", bad);
    }
}

/// Any number of concurrent requests with one key produces one event.
#[tokio::test]
async fn concurrent_request_with_same_key_gets_409_or_the_response() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let key = [("idempotency-key", "k")];
    let posts = (0..40).map(|_| daemon.call("POST", "/events", &key, r#"{"type":"a","data":1}"#));
    let mut ids = std::collections::HashSet::new();
    for (status, answer, headers) in futures_util::future::join_all(posts).await {
        match status {
            202 => drop(ids.insert(text(&answer, "id"))),
            _ => {
                is_problem(&(status, answer), 409, "request_in_flight", "a second request");
                assert_eq!(headers.get("retry-after").map(String::as_str), Some("1"));
            }
        }
    }
    assert_eq!((ids.len(), list(&daemon.get("/events").await).len()), (1, 1));
}

#[tokio::test]
async fn head_returns_no_body_and_ids_may_be_percent_encoded() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let event = publish(&daemon, json!({"type": "a", "data": 1})).await;
    let id = text(&event, "id");
    let (status, body, headers) = daemon.call("HEAD", &format!("/events/{id}"), &[], "").await;
    assert_eq!((status, body, headers["content-type"].as_str()), (200, Value::Null, "application/json"));
    let encoded = id.replacen('_', "%5F", 1);
    assert_eq!(daemon.get(&format!("/events/{encoded}")).await["id"], id.as_str());
}

#[tokio::test]
async fn ops_listener_alone_serves_metrics_and_health() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    for path in ["/healthz", "/readyz"] {
        let (status, body) = daemon.ops(path).await;
        assert_eq!((status, body.as_str()), (200, r#"{"status":"ok"}"#), "{path}");
    }
    assert!(daemon.metrics().await.contains("balto_build_info"));
    for path in ["/v1/events", "/", "/metrics/"] {
        assert_eq!(daemon.ops(path).await.0, 404, "{path}");
    }
    for path in ["/metrics", "/healthz", "/readyz"] {
        let (status, ..) = daemon.call("GET", &format!("/..{path}"), &[], "").await;
        assert_eq!(status, 404, "{path} on the API");
    }
}

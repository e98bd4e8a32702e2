//! Filters and labels: which events reach an endpoint or a queue, and trials of a filter.

use serde_json::{Value, json};

use super::support::{Daemon, Receiver};
use super::{ADMIN, call_as, endpoint, is_problem, key, keyed, list, publish, settled, text};

async fn patched(daemon: &Daemon, path: &str, patch: Value) -> Value {
    let (status, answer, _) = daemon.call("PATCH", path, &[], &patch.to_string()).await;
    assert_eq!(status, 200, "{patch}: {answer}");
    answer
}

async fn order(daemon: &Daemon, total: u64) -> Value {
    publish(daemon, json!({"type": "order.paid", "data": {"total": total}})).await
}

/// Number of deliveries of an order.
async fn deliveries(daemon: &Daemon, total: u64) -> Value {
    order(daemon, total).await["deliveries"].clone()
}

#[tokio::test]
async fn filter_decides_at_acceptance_and_survives_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let filter = json!({"data": {"total": {"$gte": 100}}, "type": {"$startsWith": "order."}});
    let made = endpoint(&daemon, &receiver, json!({"uid": "a", "filter": filter})).await;
    assert_eq!(made["filter"], filter, "{made}");
    let queue = json!({"name": "q", "filter": {"data.total": {"$lt": 50}}});
    assert_eq!(daemon.post("/queues", &queue.to_string()).await["filter"], queue["filter"]);
    assert_eq!(deliveries(&daemon, 99).await, 0);
    assert_eq!(deliveries(&daemon, 100).await, 1);
    assert_eq!(deliveries(&daemon, 5).await, 1);
    daemon.terminate();
    let daemon = Daemon::start(data.path()).await;
    assert_eq!(daemon.get("/endpoints/a").await["filter"], filter);
    assert_eq!(daemon.get("/queues/q").await["filter"], queue["filter"]);
    assert_eq!(deliveries(&daemon, 99).await, 0);
    let unmatched = order(&daemon, 98).await;
    assert_eq!(daemon.get(&format!("/events/{}", text(&unmatched, "id"))).await["status"], "unmatched");
    // A change of another member keeps the filter; a new one replaces it as a whole.
    let kept = patched(&daemon, "/endpoints/a", json!({"description": "x"})).await;
    assert_eq!(kept["filter"], filter);
    let other = json!({"data": {"total": {"$in": [1, null]}, "note": null}});
    let changed = patched(&daemon, "/endpoints/a", json!({"filter": other})).await;
    assert_eq!(changed["filter"], other, "null is a value in a filter");
    assert_eq!(patched(&daemon, "/queues/q", json!({"filter": other})).await["filter"], other);
    assert_eq!(deliveries(&daemon, 1).await, 2);
    assert_eq!(deliveries(&daemon, 100).await, 0);
    for path in ["/endpoints/a", "/queues/q"] {
        assert_eq!(patched(&daemon, path, json!({"filter": null})).await["filter"], Value::Null);
    }
    assert_eq!(deliveries(&daemon, 98).await, 2);
    // The events of a batch are independent.
    patched(&daemon, "/endpoints/a", json!({"filter": filter})).await;
    let events: Vec<_> = [7, 700, 8, 800]
        .iter()
        .map(|total| json!({"type": "order.paid", "data": {"total": total}}))
        .collect();
    let batch = daemon.post("/events/batch", &json!({"events": events}).to_string()).await;
    let counts: Vec<_> =
        batch["results"].as_array().unwrap().iter().map(|result| result["deliveries"].clone()).collect();
    assert_eq!(counts, [1, 2, 1, 2], "{batch}");
    receiver.until(5).await;
}

#[tokio::test]
async fn data_of_any_form_has_a_meaning_for_filters() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    endpoint(&daemon, &receiver, json!({"uid": "a"})).await;
    let count = async |filter: Value, event: &str, headers: &[(&str, &str)]| {
        patched(&daemon, "/endpoints/a", json!({ "filter": filter })).await;
        let (status, answer, _) = daemon.call("POST", "/events", headers, event).await;
        assert_eq!(status, 202, "{answer}");
        answer["deliveries"] == 1
    };
    // A scalar, a number beyond a double, half of a surrogate pair, a duplicate member.
    assert!(count(json!({"data": 5}), r#"{"type":"a","data":5}"#, &[]).await);
    assert!(count(json!({"data": {"$gt": 1e300}}), r#"{"type":"a","data":2e400}"#, &[]).await);
    let half = r#"{"type":"a","data":{"x":"\ud83d","n":1}}"#;
    assert!(count(json!({"data": {"n": 1, "x": "\u{fffd}"}}), half, &[]).await);
    assert!(count(json!({"data.n": 2}), r#"{"type":"a","data":{"n":1,"n":2}}"#, &[]).await);
    let event = r#"{"type":"a","data":{"a.b":[{"c":1},{"c":2}]},"metadata":{"k":[1]},"orderingKey":"o"}"#;
    let filter = json!({r"data.a\.b.c": 2, "metadata.k": 1, "orderingKey": "o", "version": "1.0"});
    assert!(count(filter, event, &[]).await);
    // CloudEvents: attributes, data other than JSON, binary data, no data.
    let ce = |kind| [("ce-specversion", "1.0"), ("ce-id", kind), ("ce-source", "/s"), ("ce-type", "a")];
    let plain = [&ce("1")[..], &[("content-type", "text/plain"), ("ce-tier", "gold")]].concat();
    let filter = json!({"data": {"$endsWith": "lo"}, "attributes": {"source": "/s", "tier": "gold"}});
    assert!(count(filter, "hello", &plain).await);
    let binary = r#"{"specversion":"1.0","id":"2","source":"/s","type":"a","data_base64":"/w=="}"#;
    let structured = [("content-type", "application/cloudevents+json")];
    let filter = json!({"data": "/w==", "attributes": {"data_base64": true}});
    assert!(count(filter, binary, &structured).await);
    let empty = r#"{"specversion":"1.0","id":"3","source":"/s","type":"a"}"#;
    assert!(count(json!({"data": {"$exists": false}, "labels": null}), empty, &structured).await);
}

#[tokio::test]
async fn replay_applies_the_filter_and_tests_and_redrives_do_not() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(500).await;
    let mut events = Vec::new();
    for total in [1, 200, 2, 300] {
        events.push(order(&daemon, total).await);
    }
    let filter = json!({"data": {"total": {"$gte": 100}}});
    let more = json!({"uid": "a", "filter": filter, "retry": {"maxAttempts": 1}});
    let made = endpoint(&daemon, &receiver, more).await;
    daemon.post("/queues", &json!({"name": "q", "filter": filter}).to_string()).await;
    let since = r#"{"since": "2026-01-01T00:00:00Z"}"#;
    for path in ["/endpoints/a/replay", "/queues/q/replay"] {
        assert_eq!(daemon.post(path, since).await["count"], 2, "{path}");
    }
    let replay = async |event: &Value, body: Value| {
        let path = format!("/events/{}/replay", text(event, "id"));
        daemon.post(&path, &body.to_string()).await["count"].clone()
    };
    assert_eq!(replay(&events[0], json!({})).await, 0, "neither wants the event");
    assert_eq!(replay(&events[1], json!({})).await, 2);
    let named = json!({"endpointIds": [made["id"]]});
    assert_eq!(replay(&events[0], named).await, 1, "a named endpoint gets the event");
    let test = daemon.post("/endpoints/a/test", "").await;
    assert_eq!(test["deliveries"], 1, "{test}");
    settled(&daemon, &test).await;
    let letters = format!("/dead-letters?endpointId={}", text(&made, "id"));
    daemon.until(&letters, |found| list(found).len() == 4).await;
    patched(&daemon, "/endpoints/a", json!({"filter": {"type": "never"}})).await;
    let redriven = json!({"endpointId": made["id"]}).to_string();
    assert_eq!(daemon.post("/dead-letters/redrive", &redriven).await["count"], 4);
}

#[tokio::test]
async fn labels_select_endpoints_and_queues() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let made = endpoint(&daemon, &receiver, json!({"uid": "eu", "labels": ["eu", "asia", "eu"]})).await;
    assert_eq!(made["labels"], json!(["asia", "eu"]), "sorted, each once: {made}");
    let all = endpoint(&daemon, &receiver, json!({"uid": "all"})).await;
    assert_eq!(all["labels"], json!([]));
    daemon.post("/queues", r#"{"name": "us", "labels": ["us"], "filter": {"data.n": 1}}"#).await;
    daemon.terminate();
    let daemon = Daemon::start(data.path()).await;
    let count = async |labels: Value| {
        let event = json!({"type": "a", "data": {"n": 1}, "labels": labels});
        publish(&daemon, event).await["deliveries"].clone()
    };
    assert_eq!(count(json!(["eu"])).await, 2);
    assert_eq!(count(json!(["us", "eu"])).await, 3);
    assert_eq!(count(json!(["gold"])).await, 1);
    assert_eq!(count(json!([])).await, 1, "no labels: endpoints without labels alone");
    assert_eq!(count(Value::Null).await, 1);
    let event = json!({"type": "a", "data": 1, "labels": ["us", "b:1", "us"], "stream": "s"});
    let accepted = publish(&daemon, event).await;
    let path = format!("/events/{}", text(&accepted, "id"));
    assert_eq!(daemon.get(&path).await["labels"], json!(["b:1", "us"]));
    assert_eq!(list(&daemon.get("/streams/s/events").await)[0]["labels"], json!(["b:1", "us"]));
    let unlabelled = publish(&daemon, json!({"type": "a", "data": 1})).await;
    let shown = daemon.get(&format!("/events/{}", text(&unlabelled, "id"))).await;
    assert!(shown.get("labels").is_none(), "{shown}");
    daemon.post("/streams/s/events", r#"{"events":[{"type":"a","data":1,"labels":["x"]}]}"#).await;
    assert_eq!(list(&daemon.get("/streams/s/events").await)[1]["labels"], json!(["x"]));
    // An erased event has none.
    daemon.post(&format!("{path}/erase"), r#"{"reason": "test"}"#).await;
    assert!(daemon.get(&path).await.get("labels").is_none());
    let found = daemon.get("/endpoints?label=eu").await;
    assert_eq!((list(&found).len(), &list(&found)[0]["uid"]), (1, &json!("eu")));
    assert_eq!(list(&daemon.get("/endpoints?label=none").await).len(), 0);
    assert_eq!(patched(&daemon, "/endpoints/eu", json!({"labels": null})).await["labels"], json!([]));
    assert_eq!(patched(&daemon, "/queues/us", json!({"labels": ["x"]})).await["labels"], json!(["x"]));
    for labels in [json!(["a b"]), json!([""]), json!(["x".repeat(129)]), json!(vec!["x"; 11]), json!(["é"])]
    {
        let body = json!({"type": "a", "data": 1, "url": receiver.url, "name": "z", "labels": labels});
        for (path, members) in
            [("/events", ["type", "data"]), ("/endpoints", ["url", "url"]), ("/queues", ["name", "name"])]
        {
            let mut one = json!({"labels": labels});
            for member in members {
                one[member] = body[member].clone();
            }
            let (status, problem, _) = daemon.call("POST", path, &[], &one.to_string()).await;
            is_problem(&(status, problem.clone()), 422, "validation_failed", path);
            assert!(text(&problem["errors"][0], "pointer").starts_with("/labels"), "{problem}");
        }
    }
}

#[tokio::test]
async fn invalid_filter_is_a_422_with_a_pointer() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    endpoint(&daemon, &receiver, json!({"uid": "a"})).await;
    daemon.post("/queues", r#"{"name": "q"}"#).await;
    let nested = (0..40).fold(json!({"type": "a"}), |inner, _| json!({ "$not": inner }));
    let many: Vec<u64> = (0..300).collect();
    for (filter, pointer) in [
        (json!({}), "/filter"),
        (json!([]), "/filter"),
        (json!("type"), "/filter"),
        (json!({"total": 1}), "/filter/total"),
        (json!({"data": {"a": {"$regex": "(a+)+$"}}}), "/filter/data/a/$regex"),
        (json!({"data": {"a": {"$gt": [1]}}}), "/filter/data/a/$gt"),
        (json!({"data": {"a": {"$in": many}}}), "/filter"),
        (json!({"data": {"a": "x".repeat(9_000)}}), "/filter"),
        (nested, ""),
    ] {
        let body = json!({"url": receiver.url, "filter": filter}).to_string();
        let queue = json!({"name": "z", "filter": filter}).to_string();
        let alone = json!({ "filter": filter }).to_string();
        for (method, path, body) in [
            ("POST", "/endpoints", &body),
            ("POST", "/queues", &queue),
            ("PATCH", "/endpoints/a", &alone),
            ("PATCH", "/queues/q", &alone),
            ("POST", "/endpoints/a/filter/test", &alone),
            ("POST", "/queues/q/filter/test", &alone),
        ] {
            let (status, problem, _) = daemon.call(method, path, &[], body).await;
            is_problem(&(status, problem.clone()), 422, "validation_failed", path);
            let found = text(&problem["errors"][0], "pointer");
            assert!(
                if pointer.is_empty() { found.starts_with("/filter/$not") } else { found == pointer },
                "{problem}"
            );
        }
    }
    let twice = r#"{"filter": {"type": "a", "type": "b"}}"#;
    let (status, problem, _) = daemon.call("PATCH", "/endpoints/a", &[], twice).await;
    is_problem(&(status, problem), 422, "validation_failed", "a duplicate member");
    // The filters of a tenant together are bounded; equal ones count once.
    let filter = |first: u64| json!({"data": {"a": {"$in": (first..first + 250).collect::<Vec<_>>()}}});
    let mut refused = None;
    for number in 0..45 {
        for uid in ["x", "y"] {
            let uid = format!("{uid}{number}");
            let body = json!({"url": receiver.url, "uid": uid, "filter": filter(number * 250)}).to_string();
            let (status, answer, _) = daemon.call("POST", "/endpoints", &[], &body).await;
            if status != 201 {
                refused.get_or_insert((uid, status, answer));
            }
        }
    }
    let (uid, status, problem) = refused.unwrap();
    assert_eq!(uid, "x40");
    assert_eq!(problem["errors"][0]["pointer"], "/filter", "{problem}");
    is_problem(&(status, problem), 422, "validation_failed", "too many comparisons");
    patched(&daemon, "/endpoints/x0", json!({"description": "unchanged filters stay legal"})).await;
    // The largest data for the largest filters is answered soon.
    let large: Vec<u64> = vec![7; 100_000];
    let body = json!({"type": "a", "data": {"a": large}}).to_string();
    let started = std::time::Instant::now();
    assert_eq!(daemon.post("/events", &body).await["deliveries"], 2 + 2, "the first filter has 7");
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

#[tokio::test]
async fn filter_can_be_tried_on_events_and_stored_events() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let more = json!({"uid": "a", "eventTypes": ["order.*"], "labels": ["eu"], "filter": {"data.total": 1}});
    endpoint(&daemon, &receiver, more).await;
    daemon.post("/queues", r#"{"name": "q", "eventTypes": ["order.*"]}"#).await;
    let mut ids = Vec::new();
    for total in [1, 50, 200, 300] {
        ids.push(text(&order(&daemon, total).await, "id"));
    }
    publish(&daemon, json!({"type": "user.new", "data": {"total": 500}})).await;
    let attempt =
        async |path: &str, body: Value| daemon.post(&format!("{path}/filter/test"), &body.to_string()).await;
    let event = json!({"type": "order.paid", "data": {"total": 1}, "metadata": {"m": 1}, "labels": ["eu"]});
    let expected = json!({"matched": true, "eventTypes": true, "labels": true, "delivered": true});
    assert_eq!(attempt("/endpoints/a", json!({ "event": event })).await, expected, "the saved filter");
    let other = json!({"metadata.m": 2});
    let expected = json!({"matched": false, "eventTypes": true, "labels": true, "delivered": false});
    assert_eq!(attempt("/endpoints/a", json!({"event": event, "filter": other})).await, expected);
    let foreign = json!({"type": "user.new", "data": {"total": 1}});
    let expected = json!({"matched": true, "eventTypes": false, "labels": false, "delivered": false});
    assert_eq!(attempt("/endpoints/a", json!({ "event": foreign })).await, expected);
    let stored = json!({"eventId": ids[1], "filter": {"data.total": 50}, "labels": []});
    assert_eq!(attempt("/endpoints/a", stored).await["delivered"], true);
    // Stored events.
    let large = json!({"data": {"total": {"$gte": 200}}});
    let found = attempt("/queues/q", json!({ "filter": large })).await;
    assert_eq!((&found["scanned"], &found["count"]), (&json!(5), &json!(2)), "{found}");
    assert_eq!(found["eventIds"], json!([ids[3], ids[2]]), "newest first");
    assert!(found["oldestAt"].is_string(), "{found}");
    let found = attempt("/queues/q", json!({"filter": large, "limit": 2})).await;
    assert_eq!((&found["scanned"], &found["count"]), (&json!(2), &json!(1)), "{found}");
    let found = attempt("/queues/q", json!({"since": "2999-01-01T00:00:00Z"})).await;
    assert_eq!(found, json!({"scanned": 0, "count": 0, "eventIds": [], "oldestAt": null}));
    assert_eq!(attempt("/endpoints/a", json!({})).await["count"], 0, "no event has the label");
    for (body, pointer) in [
        (json!({"limit": 0}), "/limit"),
        (json!({"limit": 1_001}), "/limit"),
        (json!({"since": "yesterday"}), "/since"),
        (json!({"event": event, "eventId": ids[0]}), ""),
        (json!({"event": event, "limit": 5}), ""),
        (json!({"event": {"type": "a", "data": 1, "metadata": []}}), "/event/metadata"),
        (json!({"event": {"type": "a", "data": 1, "labels": ["a b"]}}), "/event/labels/0"),
    ] {
        let (status, problem, _) =
            daemon.call("POST", "/endpoints/a/filter/test", &[], &body.to_string()).await;
        is_problem(&(status, problem.clone()), 422, "validation_failed", pointer);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    let unknown = json!({"eventId": "evt_unknown"}).to_string();
    let (status, problem, _) = daemon.call("POST", "/endpoints/a/filter/test", &[], &unknown).await;
    is_problem(&(status, problem), 404, "not_found", "an unknown event");
}

#[tokio::test]
async fn trials_respect_roles_and_tenants() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let hook = r#"{"url": "http://127.0.0.1:9000/", "uid": "a", "tenant": "acme"}"#;
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/endpoints", hook).await.0, 201);
    for tenant in ["acme", "other"] {
        let event = json!({"type": "a", "data": 1, "tenant": tenant}).to_string();
        assert_eq!(call_as(&daemon, ADMIN, "POST", "/events", &event).await.0, 202);
    }
    let path = "/endpoints/a/filter/test";
    for (role, expected) in [("admin", 200), ("viewer", 200), ("publisher", 403), ("worker", 403)] {
        let own = key(&daemon, role, Some("acme")).await;
        let (status, answer) = call_as(&daemon, &own, "POST", path, "{}").await;
        assert_eq!(status, expected, "{role}: {answer}");
        if status == 200 {
            assert_eq!((&answer["scanned"], &answer["count"]), (&json!(1), &json!(1)), "its own event alone");
        }
    }
    let foreign = key(&daemon, "admin", Some("other")).await;
    is_problem(&call_as(&daemon, &foreign, "POST", path, "{}").await, 404, "not_found", "foreign");
}

//! Events: publish, read, replay.

use serde_json::{Value, json};

use super::support::{Daemon, Receiver};
use super::{endpoint, is_problem, list, publish, settled, text};

#[tokio::test]
async fn accepted_event_response_has_all_documented_members() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    endpoint(&daemon, &receiver, json!({"tenant": "acme"})).await;
    let event = json!({"type": "order.paid", "data": {"orderId": 42}, "tenant": "acme",
        "timestamp": "2026-03-13T10:35:00.000Z", "version": "1.0", "stream": "order-42", "expectedVersion": "none",
        "orderingKey": "order-42", "deliverAt": null, "metadata": {"trace": "x"}});
    let (status, answer, headers) = daemon.call("POST", "/events", &[], &event.to_string()).await;
    assert_eq!(status, 202, "{answer}");
    let id = text(&answer, "id");
    let url = format!("/v1/events/{id}");
    assert_eq!(headers["location"], url);
    let expected = json!({"id": id, "type": "order.paid", "tenant": "acme", "timestamp": "2026-03-13T10:35:00.000Z",
        "version": "1.0", "stream": "order-42", "streamVersion": 1, "position": answer["position"], "deliveries": 1,
        "duplicate": false, "statusUrl": url});
    assert_eq!(answer, expected);
    // The event can be read immediately after the 202.
    let shown = daemon.get(&format!("/events/{id}")).await;
    assert!(["pending", "delivered"].contains(&shown["status"].as_str().unwrap()), "{shown}");
    assert_eq!((&shown["data"], &shown["metadata"]), (&json!({"orderId": 42}), &json!({"trace": "x"})));
    settled(&daemon, &answer).await;
    let delivery = daemon.get(&format!("/events/{id}")).await["deliveries"][0].clone();
    for member in ["id", "endpointId", "status", "nextAttemptAt", "lastStatusCode", "lastError"] {
        assert!(delivery.get(member).is_some(), "no `{member}` in {delivery}");
    }
    assert_eq!((&delivery["attemptCount"], &delivery["lastStatusCode"]), (&json!(1), &json!(200)));
}

#[tokio::test]
async fn event_needs_only_type_and_data_and_has_defaults() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let answer = publish(&daemon, json!({"type": "a", "data": null})).await;
    assert_eq!((&answer["tenant"], &answer["version"]), (&json!("default"), &json!("1.0")), "{answer}");
    assert_eq!((&answer["deliveries"], answer.get("stream")), (&json!(0), None), "{answer}");
    let shown = daemon.get(&format!("/events/{}", text(&answer, "id"))).await;
    assert_eq!(
        (&shown["status"], &shown["timestamp"]),
        (&json!("unmatched"), &shown["acceptedAt"]),
        "{shown}"
    );
    let keyed = publish(&daemon, json!({"type": "a", "data": 1, "stream": "s"})).await;
    assert_eq!(keyed["streamVersion"], 1, "{keyed}");
    // A null member counts as absent.
    let nulls = json!({"type": "a", "data": 1, "id": null, "tenant": null, "timestamp": null, "version": null,
        "stream": null, "expectedVersion": null, "orderingKey": null, "deliverAt": null, "metadata": null});
    publish(&daemon, nulls).await;
}

/// Such an id may come from another engine or from this one.
#[tokio::test]
async fn generated_id_cannot_be_chosen_for_another_event() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let first = publish(&daemon, json!({"type": "a.b", "data": {"n": 1}, "tenant": "acme"})).await;
    let id = text(&first, "id");
    let id = id.as_str();
    let again = json!({"type": "a.b", "data": {"n": 1}, "tenant": "acme", "id": id});
    let repeated = publish(&daemon, again).await;
    assert_eq!((&repeated["duplicate"], &repeated["position"]), (&json!(true), &first["position"]));
    for other in [json!({"type": "a.b", "data": {"n": 2}}), json!({"type": "a.c", "data": {"n": 1}})] {
        let mut body = other;
        body["tenant"] = "acme".into();
        body["id"] = id.into();
        let (status, answer, _) = daemon.call("POST", "/events", &[], &body.to_string()).await;
        is_problem(&(status, answer), 422, "idempotency_mismatch", "another event has it");
        let batch = json!({"events": [body, {"type": "x", "data": 0}]}).to_string();
        let (status, answer, _) = daemon.call("POST", "/events/batch", &[], &batch).await;
        let statuses: Vec<_> = (0..2).map(|n| answer["results"][n]["status"].as_u64().unwrap()).collect();
        assert_eq!((status, statuses), (202, vec![422, 202]), "{answer}");
    }
    // Ids are unique within a tenant: another tenant may choose the same id, and each tenant finds
    // its own event.
    let theirs =
        publish(&daemon, json!({"type": "a.b", "data": "theirs", "tenant": "other", "id": id})).await;
    assert_eq!((&theirs["duplicate"], &theirs["id"]), (&json!(false), &json!(id)), "{theirs}");
    assert_eq!(text(&theirs, "statusUrl"), format!("/v1/events/{id}?tenant=other"));
    for (query, tenant, data) in [
        ("", "acme", json!({"n": 1})),
        ("?tenant=acme", "acme", json!({"n": 1})),
        ("?tenant=other", "other", json!("theirs")),
    ] {
        let shown = daemon.get(&format!("/events/{id}{query}")).await;
        assert_eq!((&shown["tenant"], &shown["data"]), (&json!(tenant), &data), "{query}: {shown}");
    }
    let (status, answer, _) = daemon.call("GET", &format!("/events/{id}?tenant=third"), &[], "").await;
    is_problem(&(status, answer), 404, "not_found", "it is of another tenant");
    // An id of another engine, present or future, is accepted like any other id.
    for foreign in ["evt_01JP7CZ1X0AAAAAAAAAAAAAAAA", "evt_7ZZZZZZZZZZZZZZZZZZZZZZZZZ"] {
        let event = json!({"type": "a", "data": 1, "tenant": "acme", "id": foreign});
        let posted = publish(&daemon, event.clone()).await;
        assert_eq!((&posted["duplicate"], &posted["id"]), (&json!(false), &json!(foreign)), "{posted}");
        assert_eq!(publish(&daemon, event).await["duplicate"], true);
        let url = text(&posted, "statusUrl");
        assert_eq!(
            daemon.get(url.strip_prefix("/v1").unwrap()).await["position"],
            posted["position"],
            "{url}"
        );
    }
}

#[tokio::test]
async fn invalid_event_error_points_to_the_member() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let long = "a".repeat(256);
    let rows = [
        (json!({"data": 1}), "/type"),
        (json!({"type": "a"}), "/data"),
        (json!({"type": "", "data": 1}), "/type"),
        (json!({"type": "a..b", "data": 1}), "/type"),
        (json!({"type": "a b", "data": 1}), "/type"),
        (json!({"type": "a.*", "data": 1}), "/type"),
        (json!({"type": "é", "data": 1}), "/type"),
        (json!({"type": long, "data": 1}), "/type"),
        (json!({"type": "a", "data": 1, "id": "a".repeat(65)}), "/id"),
        (json!({"type": "a", "data": 1, "id": "a.b"}), "/id"),
        (json!({"type": "a", "data": 1, "id": ""}), "/id"),
        (json!({"type": "a", "data": 1, "tenant": "balto"}), "/tenant"),
        (json!({"type": "a", "data": 1, "tenant": "a b"}), "/tenant"),
        (json!({"type": "a", "data": 1, "version": "a b"}), "/version"),
        (json!({"type": "a", "data": 1, "timestamp": "today"}), "/timestamp"),
        (json!({"type": "a", "data": 1, "deliverAt": "soon"}), "/deliverAt"),
        (json!({"type": "a", "data": 1, "stream": ""}), "/stream"),
        (json!({"type": "a", "data": 1, "stream": "s", "expectedVersion": 0}), "/expectedVersion"),
        (json!({"type": "a", "data": 1, "stream": "s", "expectedVersion": -1}), "/expectedVersion"),
        (json!({"type": "a", "data": 1, "stream": "s", "expectedVersion": "some"}), "/expectedVersion"),
        (json!({"type": "a", "data": 1, "expectedVersion": 1}), "/expectedVersion"),
        (json!({"type": "a", "data": 1, "orderingKey": ""}), "/orderingKey"),
        (json!({"type": "a", "data": 1, "metadata": []}), "/metadata"),
        (json!({"type": "a", "data": 1, "metadata": {"x": "y".repeat(17_000)}}), "/metadata"),
    ];
    for (event, pointer) in rows {
        let (status, problem, _) = daemon.call("POST", "/events", &[], &event.to_string()).await;
        is_problem(&(status, problem.clone()), 422, "validation_failed", &event.to_string());
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{event}: {problem}");
        // A batch refuses only the invalid event, at its index, and accepts the others.
        let batch = json!({"events": [event, {"type": "good", "data": 1}]}).to_string();
        let results = daemon.post("/events/batch", &batch).await["results"].clone();
        assert_eq!(
            (&results[0]["status"], &results[0]["errors"][0]["pointer"]),
            (&json!(422), &json!(pointer))
        );
        assert_eq!(results[1]["status"], 202, "{results}");
    }
    assert_eq!(list(&daemon.get("/events?type=a").await).len(), 0, "a refused event was kept");
}

#[tokio::test]
async fn chosen_id_is_unique_per_tenant_and_makes_posts_idempotent() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let event = json!({"type": "a", "data": 1, "id": "chosen-by_me", "tenant": "acme"});
    let first = publish(&daemon, event.clone()).await;
    assert_eq!((&first["id"], &first["duplicate"]), (&json!("chosen-by_me"), &json!(false)));
    let (status, again, headers) = daemon.call("POST", "/events", &[], &event.to_string()).await;
    assert_eq!(
        (status, &again["duplicate"], headers["idempotent-replayed"].as_str()),
        (202, &json!(true), "true")
    );
    assert_eq!(again["position"], first["position"]);
    let changed = json!({"type": "a", "data": 2, "id": "chosen-by_me", "tenant": "acme"}).to_string();
    let answer = daemon.call("POST", "/events", &[], &changed).await;
    is_problem(&(answer.0, answer.1), 422, "idempotency_mismatch", "another body");
    let elsewhere = publish(&daemon, json!({"type": "a", "data": 2, "id": "chosen-by_me"})).await;
    assert_eq!(elsewhere["duplicate"], false, "the ids of another tenant are separate");
    // `statusUrl` leads to the event; without `tenant` it would name the default tenant's event.
    let path = text(&first, "statusUrl").replacen("/v1", "", 1);
    assert_eq!(daemon.get(&path).await["data"], 1);
    assert_eq!(daemon.get("/events/chosen-by_me").await["data"], 2);
    let (status, problem, _) = daemon.call("GET", "/events/chosen-by_you", &[], "").await;
    is_problem(&(status, problem.clone()), 404, "not_found", "unknown");
    assert!(text(&problem, "detail").contains("?tenant="), "{problem}");
}

#[tokio::test]
async fn stream_accepts_only_the_expected_version() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let post = |expected: Value| {
        let event =
            json!({"type": "a", "data": 1, "stream": "order-42", "expectedVersion": expected}).to_string();
        let daemon = &daemon;
        async move {
            let (status, answer, _) = daemon.call("POST", "/events", &[], &event).await;
            (status, answer)
        }
    };
    let early = post(json!(6)).await;
    is_problem(&early, 409, "version_conflict", "there is no stream yet");
    assert_eq!((&early.1["expected"], &early.1["actual"]), (&json!(6), &Value::Null));
    assert_eq!(post(json!("none")).await.1["streamVersion"], 1);
    let second = post(json!("none")).await;
    is_problem(&second, 409, "version_conflict", "there is one by now");
    assert_eq!((&second.1["expected"], &second.1["actual"]), (&json!("none"), &json!(1)));
    assert_eq!(post(json!(1)).await.1["streamVersion"], 2);
    assert_eq!(post(json!("any")).await.1["streamVersion"], 3);
    let late = post(json!(1)).await;
    assert_eq!((late.0, &late.1["expected"], &late.1["actual"]), (409, &json!(1), &json!(3)));
    assert_eq!(list(&daemon.get("/events?stream=order-42").await).len(), 3);
}

#[tokio::test]
async fn batch_is_answered_in_order_and_accepts_json_lines() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let conflict = json!({"type": "b", "data": 1, "stream": "s", "expectedVersion": 9});
    let batch = json!({"events": [{"type": "a", "data": 1}, conflict, 7, {"type": "c", "data": 3}]});
    let (status, answer, _) = daemon.call("POST", "/events/batch", &[], &batch.to_string()).await;
    let results = answer["results"].as_array().unwrap();
    let statuses: Vec<_> = results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!((status, statuses), (202, vec![202, 409, 422, 202]), "{answer}");
    assert_eq!((&results[0]["type"], &results[3]["type"]), (&json!("a"), &json!("c")));
    let lines = "{\"type\":\"d\",\"data\":1}\r\n\n{oops\n{\"type\":\"e\",\"data\":2}";
    let headers = [("content-type", "application/x-ndjson")];
    let (status, answer, _) = daemon.call("POST", "/events/batch", &headers, lines).await;
    let statuses: Vec<_> = answer["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["status"].as_u64().unwrap())
        .collect();
    assert_eq!((status, statuses), (202, vec![202, 400, 202]), "{answer}");
    for (count, expected) in [(0, 422), (1_000, 202), (1_001, 422)] {
        let batch = json!({"events": vec![json!({"type": "a", "data": 1}); count]}).to_string();
        assert_eq!(daemon.call("POST", "/events/batch", &[], &batch).await.0, expected, "{count} events");
    }
}

/// The deliveries of this batch exceed one commit: events that fit are accepted, the rest get an
/// error with a remedy.
#[tokio::test]
async fn event_with_too_many_deliveries_in_its_batch_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    // 1,000 events for 1,001 endpoints are more than a million deliveries. The daemon sends none of
    // them.
    for _ in 0..1_001 {
        let wide = json!({"url": "http://127.0.0.1:9999/", "eventTypes": ["wide"]});
        daemon.post("/endpoints", &wide.to_string()).await;
    }
    let wide = json!({"type": "wide", "data": 1, "deliverAt": "2999-01-01T00:00:00Z"});
    let batch = json!({"events": vec![wide.clone(); 1_000]}).to_string();
    let answer = daemon.post("/events/batch", &batch).await;
    let mut results = answer["results"].as_array().unwrap().clone();
    let last = results.pop().unwrap();
    assert!(results.iter().all(|result| result["status"] == 202 && result["deliveries"] == 1_001));
    is_problem(&(429, last.clone()), 429, "too_many_deliveries", "the event that does not fit");
    assert_eq!(last["limit"], 1_000_000, "{last}");
    // The tenant's share of deliveries that the state has not applied is full for a while.
    let alone = loop {
        let (status, answer, _) = daemon.call("POST", "/events", &[], &wide.to_string()).await;
        if status != 429 {
            break answer;
        }
        is_problem(&(status, answer), 429, "overloaded", "while the batch is applied");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    assert_eq!(alone["deliveries"], 1_001, "alone it is taken");
    assert!(daemon.metric("balto_events_refused_total", "too_many_deliveries").await >= 1.0);
}

#[tokio::test]
async fn events_are_found_by_every_filter() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (good, bad) = (Receiver::status(200).await, Receiver::status(500).await);
    endpoint(&daemon, &good, json!({"eventTypes": ["good", "both"]})).await;
    endpoint(&daemon, &bad, json!({"eventTypes": ["bad", "both"]})).await;
    for kind in ["good", "bad", "both", "none"] {
        publish(&daemon, json!({"type": kind, "data": 1})).await;
    }
    publish(&daemon, json!({"type": "good", "data": 1, "deliverAt": "2100-01-01T00:00:00Z"})).await;
    publish(&daemon, json!({"type": "good", "data": 1, "tenant": "acme", "stream": "s"})).await;
    daemon.until("/events?status=pending", |events| list(events).len() == 1).await;
    let rows = [
        ("status=delivered", 1),
        ("status=failed", 1),
        ("status=partial", 1),
        ("status=unmatched", 2),
        ("status=pending", 1),
        ("type=good", 3),
        ("type=go", 0),
        ("tenant=acme", 1),
        ("stream=s", 1),
        ("tenant=default&type=good&status=pending", 1),
        ("since=2026-01-01T00:00:00Z", 6),
        ("until=2026-01-01T00:00:00Z", 0),
        ("since=2100-01-01T00:00:00Z", 0),
    ];
    for (query, expected) in rows {
        let found = daemon.get(&format!("/events?{query}")).await;
        assert_eq!(list(&found).len(), expected, "{query}: {found}");
    }
}

#[tokio::test]
async fn replay_goes_to_named_or_currently_matching_endpoints() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let event = publish(&daemon, json!({"type": "order.paid", "data": 1})).await;
    let path = format!("/events/{}/replay", text(&event, "id"));
    assert_eq!(daemon.post(&path, "").await["count"], 0);
    let (late, other) = (Receiver::status(200).await, Receiver::status(200).await);
    endpoint(&daemon, &late, json!({"eventTypes": ["order.#"]})).await;
    let unmatched = endpoint(&daemon, &other, json!({"eventTypes": ["pet.*"]})).await;
    let foreign = endpoint(&daemon, &other, json!({"tenant": "acme"})).await;
    let (status, answer, _) = daemon.call("POST", &path, &[], "{}").await;
    assert_eq!((status, &answer["count"]), (202, &json!(1)));
    assert_eq!(late.until(1).await[0].headers["webhook-id"], text(&event, "id"));
    let named = json!({"endpointIds": [unmatched["id"], unmatched["id"]]}).to_string();
    assert_eq!(daemon.post(&path, &named).await["count"], 1, "named twice is named once");
    other.until(1).await;
    for (ids, pointer) in [
        (json!([]), "/endpointIds"),
        (json!([unmatched["id"], "ep_nope"]), "/endpointIds/1"),
        (json!([foreign["id"]]), "/endpointIds"),
    ] {
        let (status, problem, _) =
            daemon.call("POST", &path, &[], &json!({"endpointIds": ids}).to_string()).await;
        is_problem(&(status, problem.clone()), 422, "validation_failed", &ids.to_string());
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{ids}: {problem}");
    }
    assert_eq!((late.got().len(), other.got().len()), (1, 1));
}

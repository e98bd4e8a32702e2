//! Deliveries, their attempts, and the dead-letter queue.

use serde_json::{Value, json};

use super::support::{Daemon, Receiver, answer};
use super::{endpoint, is_problem, list, publish, settled, text};

#[tokio::test]
async fn delivery_shows_each_attempt_with_all_its_members() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let reply = "HTTP/1.1 503 x\r\ncontent-length: 4\r\n\r\nbusy";
    let receiver =
        Receiver::start(move |number, _| if number == 0 { reply.to_owned() } else { answer(204) }).await;
    endpoint(&daemon, &receiver, json!({})).await;
    let event = publish(&daemon, json!({"type": "a", "data": 1})).await;
    let delivery = settled(&daemon, &event).await;
    let attempts = delivery["attempts"].as_array().unwrap();
    assert_eq!((&delivery["status"], attempts.len()), (&json!("delivered"), 2), "{delivery}");
    let members = [
        "number",
        "startedAt",
        "duration",
        "statusCode",
        "errorClass",
        "error",
        "responseBody",
        "nextAttemptAt",
        "trigger",
    ];
    for attempt in attempts {
        for member in members {
            assert!(attempt.get(member).is_some(), "no `{member}` in {attempt}");
        }
    }
    let shown = |index: usize| {
        ["number", "statusCode", "errorClass", "responseBody", "trigger"]
            .map(|name| attempts[index][name].clone())
    };
    assert_eq!(shown(0), [json!(1), json!(503), json!("status"), json!("busy"), json!("publish")]);
    assert_eq!(shown(1), [json!(2), json!(204), Value::Null, json!(""), json!("retry")]);
    assert!(attempts[0]["nextAttemptAt"].is_string() && attempts[1]["nextAttemptAt"].is_null(), "{delivery}");
}

/// Asserts the number of items that each query finds.
async fn are_found(daemon: &Daemon, path: &str, rows: &[(String, usize)]) {
    for (query, expected) in rows {
        let found = daemon.get(&format!("/{path}?{query}")).await;
        assert_eq!(list(&found).len(), *expected, "{query}: {found}");
    }
}

#[tokio::test]
async fn deliveries_are_found_by_every_filter() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (good, bad) = (Receiver::status(200).await, Receiver::status(500).await);
    let first = endpoint(&daemon, &good, json!({"eventTypes": ["a"]})).await;
    endpoint(&daemon, &bad, json!({"eventTypes": ["a", "b"]})).await;
    endpoint(&daemon, &good, json!({"tenant": "acme"})).await;
    let event = publish(&daemon, json!({"type": "a", "data": 1})).await;
    publish(&daemon, json!({"type": "b", "data": 1})).await;
    publish(&daemon, json!({"type": "a", "data": 1, "tenant": "acme", "deliverAt": "2100-01-01T00:00:00Z"}))
        .await;
    daemon.until("/deliveries?status=pending", |found| list(found).len() == 1).await;
    let (event, first) = (text(&event, "id"), text(&first, "id"));
    let rows = [
        (String::new(), 4),
        (format!("eventId={event}"), 2),
        (format!("endpointId={first}"), 1),
        (format!("endpointId={first}&status=dead"), 0),
        ("status=dead".to_owned(), 2),
        ("status=delivered".to_owned(), 1),
        ("status=cancelled".to_owned(), 0),
        ("tenant=acme".to_owned(), 1),
        ("type=b".to_owned(), 1),
        ("since=2026-01-01T00:00:00Z&until=2100-01-01T00:00:00Z".to_owned(), 4),
        ("until=2026-01-01T00:00:00Z".to_owned(), 0),
        ("eventId=evt_nope".to_owned(), 0),
        ("type=*".to_owned(), 4),
        ("type=%23".to_owned(), 4),
        ("type=b.*".to_owned(), 0),
        ("type=b.%23".to_owned(), 1),
        ("statusCode=500".to_owned(), 2),
        ("statusCode=200".to_owned(), 1),
        ("statusCode=404".to_owned(), 0),
        ("statusCode=500&type=b".to_owned(), 1),
        ("errorClass=status".to_owned(), 2),
        ("errorClass=status&limit=1".to_owned(), 1),
        ("errorClass=connect".to_owned(), 0),
        ("errorClass=noReply".to_owned(), 0),
        (format!("q={event}"), 2),
        (format!("q={event}&status=dead"), 1),
        (format!("q={event}&tenant=acme"), 0),
        (format!("q={}", &event[..8]), 4),
        (format!("q={first}"), 1),
        ("q=evt_".to_owned(), 4),
        ("q=evt_0".to_owned(), 4),
        ("q=evt_00".to_owned(), 0),
        ("q=evt_U".to_owned(), 0),
        ("q=ep_".to_owned(), 4),
        ("q=ep_nope".to_owned(), 0),
        ("q=dlv_0000".to_owned(), 4),
        ("q=dlv_f".to_owned(), 0),
        ("q=dlv_x".to_owned(), 0),
        ("q=nope".to_owned(), 0),
    ];
    are_found(&daemon, "deliveries", &rows).await;
    for listed in list(&daemon.get("/deliveries").await) {
        let id = text(listed, "id");
        let found = daemon.get(&format!("/deliveries?q={id}")).await;
        assert_eq!(list(&found), &vec![listed.clone()], "{found}");
        let page = daemon.get(&format!("/deliveries?q={}&limit=1", &id[..id.len() - 9])).await;
        assert_eq!(list(&page).len(), 1, "{page}");
    }
    let rows = [
        (String::new(), 2),
        ("statusCode=500".to_owned(), 2),
        ("statusCode=503".to_owned(), 0),
        ("errorClass=status".to_owned(), 2),
        ("errorClass=tls".to_owned(), 0),
        ("type=*".to_owned(), 2),
        ("type=b.%23".to_owned(), 1),
        (format!("q={event}"), 1),
        ("q=evt_0".to_owned(), 2),
        ("q=dlv_0&statusCode=500".to_owned(), 2),
        (format!("q={first}"), 0),
    ];
    are_found(&daemon, "dead-letters", &rows).await;
}

#[tokio::test]
async fn malformed_filters_of_deliveries_are_rejected() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let wildcards = format!("type=a{}", ".*".repeat(9));
    for query in [
        "statusCode=99",
        "statusCode=600",
        "statusCode=0200",
        "statusCode=2xx",
        "statusCode=",
        "statusCode=+20",
        "errorClass=none",
        "errorClass=",
        "type=",
        "type=a..b",
        "type=a*",
        "q=",
        "q=a%20b",
        "q=a.b",
        &format!("q={}", "x".repeat(65)),
        &wildcards,
    ] {
        for path in ["deliveries", "dead-letters"] {
            let (status, problem, _) = daemon.call("GET", &format!("/{path}?{query}"), &[], "").await;
            is_problem(&(status, problem.clone()), 422, "validation_failed", query);
            let name = query.split('=').next().unwrap();
            assert_eq!(problem["errors"][0]["parameter"], name, "{problem}");
        }
    }
}

#[tokio::test]
async fn pending_delivery_can_be_retried_or_cancelled() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    endpoint(&daemon, &receiver, json!({})).await;
    let later = json!({"type": "a", "data": 1, "deliverAt": "2100-01-01T00:00:00Z"});
    let mut deliveries = Vec::new();
    for _ in 0..2 {
        let event = publish(&daemon, later.clone()).await;
        let shown = daemon.get(&format!("/events/{}", text(&event, "id"))).await;
        deliveries.push(format!("/deliveries/{}", text(&shown["deliveries"][0], "id")));
    }
    let (status, retried, _) = daemon.call("POST", &format!("{}/retry", deliveries[0]), &[], "").await;
    assert_eq!((status, &retried["status"]), (202, &json!("pending")), "{retried}");
    let done = daemon.until(&deliveries[0], |delivery| delivery["status"] == "delivered").await;
    assert_eq!(done["attempts"][0]["trigger"], "manual", "{done}");
    let (status, cancelled, _) = daemon.call("POST", &format!("{}/cancel", deliveries[1]), &[], "").await;
    assert_eq!((status, &cancelled["status"]), (200, &json!("cancelled")), "{cancelled}");
    for delivery in &deliveries {
        let (status, problem, _) = daemon.call("POST", &format!("{delivery}/cancel"), &[], "").await;
        is_problem(&(status, problem), 409, "conflict", delivery);
    }
    assert_eq!(receiver.got().len(), 1);
}

/// An action returns the delivery as it is after the action. A repetition with the same key returns
/// the same response, also after later changes of the delivery.
#[tokio::test]
async fn action_returns_the_delivery_as_it_is_after_the_action() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(500).await;
    let made = endpoint(&daemon, &receiver, json!({})).await;
    let dead = settled(&daemon, &publish(&daemon, json!({"type": "a", "data": 1})).await).await;
    daemon.post(&format!("/endpoints/{}/pause", text(&made, "id")), "").await;
    let (delivery, letter) =
        (format!("/deliveries/{}", text(&dead, "id")), format!("/dead-letters/{}", text(&dead, "id")));
    let steps = [
        (format!("{letter}/redrive"), 202, "pending"),
        (format!("{delivery}/retry"), 202, "pending"),
        (format!("{delivery}/cancel"), 200, "cancelled"),
    ];
    let key = [("idempotency-key", "k")];
    let mut answers = Vec::new();
    for (path, status, word) in &steps {
        let (got, answer, _) = daemon.call("POST", path, &key, "").await;
        assert_eq!((got, &answer["status"]), (*status, &json!(word)), "{path}: {answer}");
        let mut shown = daemon.get(&delivery).await;
        shown.as_object_mut().unwrap().remove("attempts");
        assert_eq!(answer, shown, "{path}");
        answers.push(answer);
    }
    for ((path, status, _), first) in steps.iter().zip(answers) {
        let (got, again, headers) = daemon.call("POST", path, &key, "").await;
        assert_eq!(
            (got, &again, headers["idempotent-replayed"].as_str()),
            (*status, &first, "true"),
            "{path}"
        );
    }
    assert_eq!(daemon.get(&delivery).await["status"], "cancelled", "a repetition did it again");
}

#[tokio::test]
async fn dead_letter_shows_its_event_and_is_redriven_under_its_id() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::start(|number, _| answer(if number < 2 { 500 } else { 200 })).await;
    endpoint(&daemon, &receiver, json!({})).await;
    let event = publish(&daemon, json!({"type": "a.b", "data": {"x": 1}, "metadata": {"m": 1}})).await;
    let delivery = settled(&daemon, &event).await;
    let letter = daemon.get("/dead-letters").await["data"][0].clone();
    assert_eq!((&letter["deliveryId"], &letter["reason"]), (&delivery["id"], &json!("attemptsExhausted")));
    let path = format!("/dead-letters/{}", text(&letter, "deliveryId"));
    let shown = daemon.get(&path).await;
    assert_eq!((&shown["event"]["data"], &shown["event"]["id"]), (&json!({"x": 1}), &event["id"]), "{shown}");
    assert_eq!(
        (shown["attempts"].as_array().unwrap().len(), &shown["reason"]),
        (2, &letter["reason"]),
        "{shown}"
    );
    let (status, redriven, _) = daemon.call("POST", &format!("{path}/redrive"), &[], "").await;
    assert_eq!((status, &redriven["status"]), (202, &json!("pending")), "{redriven}");
    let done = settled(&daemon, &event).await;
    let numbers: Vec<_> =
        done["attempts"].as_array().unwrap().iter().map(|attempt| attempt["number"].clone()).collect();
    assert_eq!(
        (numbers, &done["attempts"][2]["trigger"]),
        (vec![json!(1), json!(2), json!(3)], &json!("redrive"))
    );
    assert_eq!(receiver.got()[2].headers["webhook-id"], text(&event, "id"));
    for (method, path) in [("GET", path.clone()), ("POST", format!("{path}/redrive")), ("DELETE", path)] {
        let (status, problem, _) = daemon.call(method, &path, &[], "").await;
        is_problem(&(status, problem), 404, "not_found", method);
    }
}

/// An empty body redrives all dead letters, because that can be undone. A purge needs an explicit
/// filter.
#[tokio::test]
async fn redrive_takes_no_body_and_purge_needs_a_filter() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(500).await;
    let made = endpoint(&daemon, &receiver, json!({})).await;
    settled(&daemon, &publish(&daemon, json!({"type": "a", "data": 1})).await).await;
    let (status, problem, _) = daemon.call("POST", "/dead-letters/purge", &[], "").await;
    is_problem(&(status, problem), 400, "malformed", "a purge without a body");
    let typed = [("content-type", "application/json")];
    let (status, problem, _) = daemon.call("POST", "/dead-letters/purge", &typed, "").await;
    is_problem(&(status, problem), 400, "malformed", "a purge with an empty JSON body");
    assert_eq!(list(&daemon.get("/dead-letters").await).len(), 1);
    for headers in [&[][..], &[("content-type", "application/json")]] {
        let (status, answer, _) = daemon.call("POST", "/dead-letters/redrive", headers, "").await;
        assert_eq!((status, &answer["count"]), (202, &json!(1)), "{answer}");
        assert_eq!((&answer["done"], &answer["status"]), (&json!(1), &json!("completed")), "{answer}");
        daemon.until("/dead-letters", |letters| !list(letters).is_empty()).await;
    }
    assert_eq!(daemon.post("/dead-letters/purge", "{}").await["count"], 1);
    let id = text(&made, "id");
    for act in ["pause", "resume", "test", "secret/rotate"] {
        for headers in [&[][..], &[("content-type", "application/json")]] {
            let (status, answer, _) =
                daemon.call("POST", &format!("/endpoints/{id}/{act}"), headers, "").await;
            assert!((200..300).contains(&status), "{act}: {answer}");
        }
    }
}

async fn bad_filters_are_pointed_to(daemon: &Daemon) {
    for (filter, pointer) in [
        (json!({"endpointId": "ep_mistyped"}), "/endpointId"),
        (json!({"endpointId": "a b"}), "/endpointId"),
        (json!({"endpointId": "crm.main"}), "/endpointId"),
        (json!({"reason": "boredom"}), "/reason"),
        (json!({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}), "/until"),
        (json!({"type": "a.##"}), "/type"),
        (json!({"statusCode": 600}), "/statusCode"),
        (json!({"statusCode": "500"}), "/statusCode"),
        (json!({"errorClass": "none"}), "/errorClass"),
        (json!({"q": "a.b"}), "/q"),
        (json!({"queue": "none"}), "/queue"),
        (json!({"limit": 1}), "/limit"),
    ] {
        for path in ["/dead-letters/redrive", "/dead-letters/purge"] {
            let (status, problem, _) = daemon.call("POST", path, &[], &filter.to_string()).await;
            is_problem(&(status, problem.clone()), 422, "validation_failed", &filter.to_string());
            assert_eq!(problem["errors"][0]["pointer"], pointer, "{filter}: {problem}");
        }
    }
}

#[tokio::test]
async fn dead_letters_are_found_redriven_and_purged_by_every_filter() {
    let data = tempfile::tempdir().unwrap();
    let refused =
        [("BALTO__DELIVERY__REFUSED_STATUSES", "418"), ("BALTO__DELIVERY__BREAKER_FAILURES", "1000")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &refused).await;
    let (tired, teapot) = (Receiver::status(500).await, Receiver::status(418).await);
    let first = endpoint(&daemon, &tired, json!({"eventTypes": ["a"], "uid": "crm.main"})).await;
    endpoint(&daemon, &teapot, json!({"eventTypes": ["b"]})).await;
    endpoint(&daemon, &teapot, json!({"tenant": "acme", "uid": "crm.main"})).await;
    publish(&daemon, json!({"type": "a", "data": 1})).await;
    publish(&daemon, json!({"type": "b", "data": 1})).await;
    let event = publish(&daemon, json!({"type": "a", "data": 1})).await;
    let chosen = json!({"id": "order-7", "type": "b", "data": 1, "tenant": "acme"});
    let chosen = publish(&daemon, chosen).await;
    daemon.until("/dead-letters", |letters| list(letters).len() == 4).await;
    let filters = [
        (json!({"endpointId": first["id"]}), 2),
        (json!({"endpointId": "crm.main", "tenant": "default"}), 2),
        (json!({"endpointId": "crm.main", "tenant": "acme"}), 1),
        (json!({"tenant": "acme"}), 1),
        (json!({"type": "b"}), 2),
        (json!({"type": "*"}), 4),
        (json!({"reason": "refused"}), 2),
        (json!({"reason": "attemptsExhausted", "tenant": "acme"}), 0),
        (json!({"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"}), 0),
        (json!({"since": "2026-01-02T00:00:00Z"}), 4),
        (json!({"statusCode": 418}), 2),
        (json!({"statusCode": 500, "errorClass": "status", "type": "a"}), 2),
        (json!({"errorClass": "connect"}), 0),
        (json!({"errorClass": "noReply"}), 0),
        (json!({"q": event["id"]}), 1),
        (json!({"q": "evt_0", "statusCode": 500}), 2),
        (json!({"q": "evt_U"}), 0),
        (json!({"q": first["id"]}), 2),
        (json!({"q": chosen["id"]}), 0),
        (json!({"q": chosen["id"], "tenant": "acme"}), 1),
        (json!({}), 4),
    ];
    for (filter, expected) in &filters {
        let query: Vec<_> = filter
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| format!("{name}={}", value.to_string().trim_matches('"')))
            .collect();
        let found = daemon.get(&format!("/dead-letters?{}", query.join("&"))).await;
        assert_eq!(list(&found).len(), *expected, "{filter}: {found}");
        let mut counted = filter.clone();
        counted["dryRun"] = json!(true);
        let counted = daemon.post("/dead-letters/purge", &counted.to_string()).await;
        assert_eq!((&counted["count"], &counted["id"]), (&json!(expected), &Value::Null), "{filter}");
        let (status, redriven, _) =
            daemon.call("POST", "/dead-letters/redrive", &[], &filter.to_string()).await;
        assert_eq!((status, &redriven["count"]), (202, &json!(expected)), "{filter}");
        let job = daemon.get(&format!("/jobs/{}", text(&redriven, "id"))).await;
        for name in ["statusCode", "errorClass", "q", "reason"] {
            assert_eq!(job["filter"][name], filter[name], "{job}");
        }
        daemon.until("/dead-letters", |letters| list(letters).len() == 4).await;
    }
    bad_filters_are_pointed_to(&daemon).await;
    let letter = text(&daemon.get("/dead-letters?type=b&tenant=default").await["data"][0], "deliveryId");
    assert_eq!(daemon.call("DELETE", &format!("/dead-letters/{letter}"), &[], "").await.0, 204);
    assert_eq!(daemon.get(&format!("/deliveries/{letter}")).await["status"], "cancelled");
    assert_eq!(daemon.post("/dead-letters/purge", r#"{"tenant":"default"}"#).await["count"], 2);
    assert_eq!(list(&daemon.get("/dead-letters").await).len(), 1, "acme's is left");
}

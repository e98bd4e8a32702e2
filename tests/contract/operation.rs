//! Keys, operator events, readiness and shutdown.

use serde_json::{Value, json};

use super::support::{Daemon, Receiver, answer};
use super::{ADMIN, call_as, endpoint, is_problem, key, keyed, list, publish, text};

#[tokio::test]
async fn key_secret_is_shown_once_and_revocation_ends_access() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let body = r#"{"role":"publisher","tenant":"acme","description":"ci"}"#;
    let (status, made) = call_as(&daemon, ADMIN, "POST", "/keys", body).await;
    let secret = text(&made, "secret");
    assert_eq!(
        (status, &made["role"], &made["tenant"]),
        (201, &json!("publisher"), &json!("acme")),
        "{made}"
    );
    let (_, listed) = call_as(&daemon, ADMIN, "GET", "/keys", "").await;
    assert!(!listed.to_string().contains(&secret) && listed["data"][0]["id"] == made["id"], "{listed}");
    let (status, event) = call_as(&daemon, &secret, "POST", "/events", r#"{"type":"a","data":1}"#).await;
    assert_eq!((status, &event["tenant"]), (202, &json!("acme")), "a bound key's own tenant is its default");
    let path = format!("/keys/{}", text(&made, "id"));
    assert_eq!(call_as(&daemon, ADMIN, "DELETE", &path, "").await.0, 204);
    is_problem(&call_as(&daemon, ADMIN, "DELETE", &path, "").await, 404, "not_found", "twice");
    is_problem(&call_as(&daemon, &secret, "GET", "/events", "").await, 401, "unauthorized", "a deleted key");
    let bound = key(&daemon, "admin", Some("acme")).await;
    for method in ["GET", "POST"] {
        let answer = call_as(&daemon, &bound, method, "/keys", r#"{"role":"admin"}"#).await;
        is_problem(&answer, 403, "forbidden", "a bound key makes no keys");
    }
    let on_disk =
        std::process::Command::new("grep").arg("-rlF").arg(&secret).arg(data.path()).output().unwrap();
    assert!(on_disk.stdout.is_empty(), "the secret is on disk: {on_disk:?}");
}

/// The events that the operator's receiver got: type and data.
async fn operator_events(operator: &Receiver, count: usize) -> Vec<(String, Value)> {
    let read = |got: super::support::ReceivedRequest| {
        let body: Value = serde_json::from_str(&got.body).unwrap();
        assert_eq!(body["tenant"], "balto", "{body}");
        (text(&body, "type"), body["data"].clone())
    };
    operator.until(count).await.into_iter().map(read).collect()
}

#[tokio::test]
async fn operator_gets_an_event_for_each_endpoint_change_and_death() {
    let data = tempfile::tempdir().unwrap();
    let breaker =
        [("BALTO__DELIVERY__BREAKER_FAILURES", "2"), ("BALTO__DELIVERY__BREAKER_PROBE_INITIAL", "100ms")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &breaker).await;
    let operator = Receiver::status(204).await;
    endpoint(&daemon, &operator, json!({"tenant": "balto", "ordering": "endpoint"})).await;
    // Fails twice, which kills the first delivery and opens the circuit; accepts the second; is
    // gone at the third; recovers.
    let receiver = Receiver::start(|number, _| answer([500, 500, 200, 410, 200][number.min(4)])).await;
    let made = endpoint(&daemon, &receiver, json!({"maxInFlight": 1, "uid": "crm"})).await;
    let id = text(&made, "id");
    let about = json!({"endpointId": id, "tenant": "default"});
    let first = publish(&daemon, json!({"type": "a.b", "data": 1})).await;
    let mut events = operator_events(&operator, 2).await;
    events.sort_by(|one, other| one.0.cmp(&other.0));
    let dead = &events[0].1;
    assert_eq!(events[0].0, "balto.delivery.dead");
    assert_eq!(
        (&dead["eventId"], &dead["eventType"], &dead["endpointId"], &dead["reason"], &dead["tenant"]),
        (&first["id"], &json!("a.b"), &made["id"], &json!("attemptsExhausted"), &json!("default"))
    );
    let (event_type, failing) = &events[1];
    assert_eq!(event_type, "balto.endpoint.failing");
    let host = receiver.url.split('/').nth(2).unwrap();
    let mut expected = about.clone();
    for (name, value) in [
        ("uid", json!("crm")),
        ("host", json!(host)),
        ("lastStatusCode", json!(500)),
        ("lastError", json!("status 500")),
    ] {
        expected[name] = value;
    }
    for (name, value) in failing.as_object().unwrap() {
        match name.as_str() {
            "since" => assert!(value.is_string(), "{failing}"),
            "pending" => assert!(value.is_u64(), "{failing}"),
            _ => assert_eq!(Some(value), expected.get(name), "{name}: {failing}"),
        }
    }
    assert_eq!(failing.as_object().unwrap().len(), 8, "{failing}");

    publish(&daemon, json!({"type": "a.b", "data": 2})).await;
    assert_eq!(
        operator_events(&operator, 3).await[2],
        ("balto.endpoint.recovered".to_owned(), about.clone())
    );

    publish(&daemon, json!({"type": "a.b", "data": 3})).await;
    let mut events = operator_events(&operator, 5).await.split_off(3);
    events.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!((events[0].0.as_str(), &events[0].1["reason"]), ("balto.delivery.dead", &json!("gone")));
    let disabled = json!({"endpointId": id, "tenant": "default", "reason": "gone"});
    assert_eq!(events[1], ("balto.endpoint.disabled".to_owned(), disabled));

    daemon.post(&format!("/endpoints/{id}/resume"), "").await;
    publish(&daemon, json!({"type": "a.b", "data": 4})).await;
    assert_eq!(operator_events(&operator, 6).await[5], ("balto.endpoint.recovered".to_owned(), about));
}

#[tokio::test]
async fn expired_delivery_of_disabled_endpoint_is_reported() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let operator = Receiver::status(204).await;
    endpoint(&daemon, &operator, json!({"tenant": "balto", "eventTypes": ["balto.delivery.*"]})).await;
    let gone = Receiver::status(410).await;
    let policy = json!({"retry": {"initial": "10ms", "maxInterval": "20ms", "maxAge": "1s"}});
    let made = endpoint(&daemon, &gone, policy).await;
    publish(&daemon, json!({"type": "a", "data": 1})).await;
    daemon.until(&format!("/endpoints/{}", text(&made, "id")), |shown| shown["status"] == "disabled").await;
    let kept = publish(&daemon, json!({"type": "a", "data": 2})).await;
    let events = operator_events(&operator, 2).await;
    assert_eq!(
        (&events[0].1["reason"], &events[1].1["reason"]),
        (&json!("gone"), &json!("endpointDisabled"))
    );
    assert_eq!(events[1].1["eventId"], kept["id"], "{events:?}");
    assert_eq!(list(&daemon.get("/dead-letters?reason=endpointDisabled").await).len(), 1);
}

/// A new key is found at its `Location`, without its secret, by an admin only.
#[tokio::test]
async fn key_is_found_at_its_location() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let admin = format!("Bearer {ADMIN}");
    let body = r#"{"role":"viewer","tenant":"acme","description":"d"}"#;
    let (status, mut made, headers) = daemon.call("POST", "/keys", &[("authorization", &admin)], body).await;
    assert_eq!(status, 201, "{made}");
    let path = headers["location"].strip_prefix("/v1").unwrap();
    let secret = made.as_object_mut().unwrap().remove("secret").unwrap();
    assert_eq!(call_as(&daemon, ADMIN, "GET", path, "").await, (200, made));
    let answer = call_as(&daemon, secret.as_str().unwrap(), "GET", path, "").await;
    is_problem(&answer, 403, "forbidden", "a key of a tenant");
    assert_eq!(call_as(&daemon, ADMIN, "DELETE", path, "").await.0, 204);
    is_problem(&call_as(&daemon, ADMIN, "GET", path, "").await, 404, "not_found", "a deleted key");
}

/// A new resource with a name is found at its `Location`, also at that of a repeated response.
#[tokio::test]
async fn named_resource_is_found_at_its_location() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let acme = key(&daemon, "admin", Some("acme")).await;
    let source =
        r#"{"name":"shop","url":"amqp://127.0.0.1:5672/%2F","username":"u","password":"p","queue":"q"}"#;
    for (key, method, path, body) in [
        (ADMIN, "POST", "/queues", r#"{"name":"jobs","tenant":"other"}"#),
        (ADMIN, "POST", "/queues", r#"{"name":"jobs"}"#),
        (ADMIN, "POST", "/queues", r#"{"name":"jobs","tenant":"*"}"#),
        (&acme, "POST", "/queues", r#"{"name":"jobs"}"#),
        (ADMIN, "PUT", "/consumers/c", r#"{"tenant":"other"}"#),
        (ADMIN, "PUT", "/consumers/c", r#"{"tenant":"default"}"#),
        (ADMIN, "PUT", "/consumers/c", "{}"),
        (&acme, "PUT", "/consumers/c", "{}"),
        (ADMIN, "PUT", "/tenants/other", "{}"),
        (ADMIN, "PUT", "/event-types/a.b", r#"{"versions":{"1.0":{"schema":{}}}}"#),
        (ADMIN, "POST", "/sources", source),
    ] {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str()), ("idempotency-key", body)];
        for time in 0..if method == "POST" { 2 } else { 1 } {
            let (status, made, answered) = daemon.call(method, path, &headers, body).await;
            assert_eq!(status, 201, "{path} {body}: {made}");
            let location = answered.get("location").unwrap_or_else(|| panic!("{path} {body}, {time}"));
            let found = call_as(&daemon, key, "GET", location.strip_prefix("/v1").unwrap(), "").await;
            let same = ["name", "tenant"].map(|name| found.1[name] == made[name]);
            assert_eq!((found.0, same), (200, [true; 2]), "{location}: {}", found.1);
        }
    }
}

/// A publisher reads the events of the tenants that it may publish to: one tenant or all.
#[tokio::test]
async fn publisher_reads_events_it_may_publish() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    for tenant in ["acme", "other"] {
        let event = json!({"type": "a", "data": 1, "tenant": tenant}).to_string();
        assert_eq!(call_as(&daemon, ADMIN, "POST", "/events", &event).await.0, 202);
    }
    for (tenant, seen) in [(Some("acme"), 1), (None, 2)] {
        let publisher = key(&daemon, "publisher", tenant).await;
        let (status, events) = call_as(&daemon, &publisher, "GET", "/events", "").await;
        assert_eq!((status, list(&events).len()), (200, seen), "{tenant:?}");
    }
    let bound = key(&daemon, "publisher", Some("acme")).await;
    for tenant in ["other", "balto"] {
        let event = json!({"type": "a", "data": 1, "tenant": tenant}).to_string();
        is_problem(&call_as(&daemon, &bound, "POST", "/events", &event).await, 403, "forbidden", tenant);
    }
}

#[tokio::test]
async fn operator_gets_one_event_for_a_deleted_endpoint() {
    // More deliveries than one step kills.
    const PENDING: usize = 1_003;
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let operator = Receiver::status(204).await;
    endpoint(&daemon, &operator, json!({"tenant": "balto", "maxInFlight": 64})).await;
    let receiver = Receiver::status(200).await;
    let mut expected = Vec::new();
    for (tenant, pending) in [("acme", PENDING), ("single", 1)] {
        let made = text(&endpoint(&daemon, &receiver, json!({"tenant": tenant})).await, "id");
        daemon.post(&format!("/endpoints/{made}/pause"), "").await;
        let events: Vec<_> =
            (0..pending).map(|number| json!({"type": "a", "data": number, "tenant": tenant})).collect();
        let mut posted = Value::Null;
        for some in events.chunks(1_000) {
            posted = daemon.post("/events/batch", &json!({"events": some}).to_string()).await;
        }
        assert_eq!(daemon.call("DELETE", &format!("/endpoints/{made}"), &[], "").await.0, 204);
        let (id, kind) = if pending == 1 {
            (posted["results"][0]["id"].clone(), json!("a"))
        } else {
            (Value::Null, Value::Null)
        };
        expected.push([json!(made), json!(tenant), json!("endpointDeleted"), json!(pending), id, kind]);
        let (event_type, dead) = operator_events(&operator, expected.len()).await.pop().unwrap();
        assert_eq!(event_type, "balto.delivery.dead");
        let members = ["endpointId", "tenant", "reason", "count", "eventId", "eventType"];
        assert_eq!(Some(&members.map(|name| dead[name].clone())), expected.last(), "{dead}");
        assert_eq!(dead["deliveryId"].is_null(), pending > 1);
    }
    daemon.until("/deliveries?status=pending", |all| list(all).is_empty()).await;
    assert_eq!(operator.count(), 2);
}

#[tokio::test]
async fn reserved_tenant_belongs_to_the_operator() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let receiver = Receiver::status(200).await;
    let hook = json!({"url": receiver.url, "tenant": "balto"}).to_string();
    let made = call_as(&daemon, ADMIN, "POST", "/endpoints", &hook).await;
    assert_eq!(made.0, 201, "{made:?}");
    let event = r#"{"type":"a","data":1,"tenant":"balto"}"#;
    is_problem(
        &call_as(&daemon, ADMIN, "POST", "/events", event).await,
        422,
        "validation_failed",
        "publishing to the reserved tenant is refused",
    );
    let other = key(&daemon, "admin", Some("acme")).await;
    is_problem(
        &call_as(&daemon, &other, "POST", "/events", event).await,
        403,
        "forbidden",
        "a foreign publisher key",
    );
    is_problem(
        &call_as(&daemon, &other, "POST", "/endpoints", &hook).await,
        403,
        "forbidden",
        "another's key",
    );
    let bound = json!({"role": "admin", "tenant": "balto"}).to_string();
    is_problem(
        &call_as(&daemon, ADMIN, "POST", "/keys", &bound).await,
        422,
        "validation_failed",
        "an admin of the reserved tenant",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_waits_for_running_attempts_and_exits_with_zero() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let (entered, inside) = std::sync::mpsc::channel();
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let (entered, gate) = (std::sync::Mutex::new(entered), std::sync::Mutex::new(gate));
    let receiver = Receiver::start(move |_, _| {
        entered.lock().unwrap().send(()).unwrap();
        tokio::task::block_in_place(|| gate.lock().unwrap().recv()).ok();
        answer(200)
    });
    let receiver = receiver.await;
    endpoint(&daemon, &receiver, json!({})).await;
    let event = publish(&daemon, json!({"type": "a", "data": 1})).await;
    tokio::task::spawn_blocking(move || inside.recv().unwrap()).await.unwrap();
    daemon.signal("TERM");
    let deadline = std::time::Instant::now() + super::support::WAIT_MAX;
    loop {
        let (status, words) = daemon.ops("/readyz").await;
        if status == 503 {
            assert_eq!(words, r#"{"status":"unavailable","reason":"draining"}"#);
            break;
        }
        assert!(std::time::Instant::now() < deadline, "readiness stays {status} {words}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    release.send(()).unwrap();
    assert_eq!(daemon.ended_within(super::support::WAIT_MAX).await, Some(0));
    let daemon = Daemon::start(data.path()).await;
    let shown = daemon.get(&format!("/events/{}", text(&event, "id"))).await;
    assert_eq!((&shown["status"], receiver.got().len()), (&json!("delivered"), 1), "{shown}");
}

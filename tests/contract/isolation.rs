//! Tenant isolation: a key that is scoped to one tenant learns nothing of the others, not even that
//! an id exists.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::refusals::operations;
use super::support::{Daemon, Receiver, WAIT_MAX};
use super::{ADMIN, call_as, is_problem, key, keyed, list, text};

/// A ULID that the daemon never generated.
const UNKNOWN: &str = "01AAAAAAAAAAAAAAAAAAAAAAAA";
/// A delivery of an event that does not exist.
const UNKNOWN_DELIVERY: &str = "dlv_00000000ffffffff000000ff";

/// The ids of one endpoint, its event and its delivery.
#[derive(Debug)]
struct TenantIds {
    endpoint: String,
    event: String,
    /// A dead letter.
    delivery: String,
}

impl TenantIds {
    /// Creates one of each for a tenant. A receiver that refuses everything produces the dead
    /// letter.
    async fn make(daemon: &Daemon, receiver: &Receiver, key: &str, kind: &str) -> Self {
        let hook =
            json!({"url": receiver.url, "eventTypes": [kind], "retry": {"maxAttempts": 1}}).to_string();
        let endpoint = text(&call_as(daemon, key, "POST", "/endpoints", &hook).await.1, "id");
        let queue = json!({"name": format!("queue-{}", &endpoint["ep_".len()..]), "eventTypes": ["none"]});
        assert_eq!(call_as(daemon, key, "POST", "/queues", &queue.to_string()).await.0, 201);
        let event = json!({"type": kind, "data": 1}).to_string();
        let event = text(&call_as(daemon, key, "POST", "/events", &event).await.1, "id");
        let deadline = std::time::Instant::now() + WAIT_MAX;
        let path = format!("/dead-letters?endpointId={endpoint}");
        loop {
            let letters = call_as(daemon, key, "GET", &path, "").await.1;
            if let Some(letter) = letters["data"].get(0) {
                return Self { endpoint, event, delivery: text(letter, "deliveryId") };
            }
            assert!(std::time::Instant::now() < deadline, "no dead letter: {letters}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    fn unknown() -> Self {
        let (endpoint, event) = (format!("ep_{UNKNOWN}"), format!("evt_{UNKNOWN}"));
        Self { endpoint, event, delivery: UNKNOWN_DELIVERY.to_owned() }
    }

    /// The id for a path below this segment, or for a member of this name.
    fn id(&self, kind: &str) -> String {
        match kind {
            "events" | "eventId" | "lastEventId" => self.event.clone(),
            "endpoints" | "endpointId" | "endpointIds" => self.endpoint.clone(),
            "deliveries" | "dead-letters" => self.delivery.clone(),
            "queues" => format!("queue-{}", &self.endpoint["ep_".len()..]),
            "keys" => format!("key_{}", &self.endpoint["ep_".len()..]),
            "jobs" => format!("job_{}", &self.endpoint["ep_".len()..]),
            // Event types belong to all tenants.
            "event-types" => "no.such.type".to_owned(),
            "handshakes" => format!("{}.{}", self.endpoint, "0".repeat(64)),
            kind => panic!("the test has no id of the kind {kind:?}"),
        }
    }
}

/// Method, path and body with an id in them, and the id.
type RequestWithId = (String, String, String, String);

/// Every operation and member of the API document that takes an id, filled with these ids.
fn requests_with_ids(ids: &TenantIds, own_event: &str) -> BTreeMap<String, RequestWithId> {
    let mut cells = BTreeMap::new();
    let mut names = BTreeSet::new();
    for operation in operations() {
        let kind = operation.path.split('/').nth(1).unwrap();
        if operation.has_id() {
            let id = ids.id(kind);
            let cell = (operation.method.clone(), operation.at(&id), operation.body(), id);
            cells.insert(operation.id.clone(), cell);
        }
        for name in operation.parameters.iter().filter(|name| name.ends_with("Id")) {
            let id = ids.id(name);
            let path = format!("{}?{name}={id}", operation.path);
            cells.insert(
                format!("{} {name}", operation.id),
                (operation.method.clone(), path, String::new(), id),
            );
            names.insert(name.clone());
        }
        for name in operation.members.keys().filter(|name| name.ends_with("Id") || name.ends_with("Ids")) {
            let id = ids.id(name);
            let value = if name.ends_with("Ids") { json!([id]) } else { json!(id) };
            let body = json!({ name: value }).to_string();
            // A replay to a foreign endpoint names an event of the caller.
            let cell = (operation.method.clone(), operation.at(own_event), body, id);
            cells.insert(format!("{} {name}", operation.id), cell);
            names.insert(name.clone());
        }
    }
    assert_eq!(
        Vec::from_iter(names),
        ["endpointId", "endpointIds", "eventId", "lastEventId"],
        "the test covers all id members"
    );
    assert!(cells.len() >= 28, "only {} cells", cells.len());
    cells
}

/// Status, headers and body, with the id replaced, so that responses for different ids can be
/// compared.
async fn response_for(
    daemon: &Daemon,
    key: &str,
    (method, path, body, id): &RequestWithId,
) -> (u16, BTreeMap<String, String>, String) {
    let bearer = format!("Bearer {key}");
    // Only a batch of CloudEvents is read by the id of an event.
    let accepted = if path.contains("lastEventId") { "application/cloudevents-batch+json" } else { "*/*" };
    let sent = [("authorization", bearer.as_str()), ("accept", accepted)];
    let (status, answer, headers) = daemon.call(method, path, &sent, body).await;
    let headers = headers.into_iter().filter(|(name, _)| name != "date");
    let headers = headers.map(|(name, value)| (name, value.replace(id, "ID"))).collect();
    (status, headers, answer.to_string().replace(id, "ID"))
}

#[tokio::test]
async fn foreign_deleted_and_unknown_ids_get_the_same_response() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let receiver = Receiver::status(500).await;
    let (acme, other) =
        (key(&daemon, "admin", Some("acme")).await, key(&daemon, "admin", Some("other")).await);
    let live = TenantIds::make(&daemon, &receiver, &acme, "live").await;
    let deleted = TenantIds::make(&daemon, &receiver, &acme, "deleted").await;
    let purged = TenantIds::make(&daemon, &receiver, &acme, "purged").await;
    let own = TenantIds::make(&daemon, &receiver, &other, "own").await;
    let own_deleted = TenantIds::make(&daemon, &receiver, &other, "gone").await;
    for (key, path) in [
        (&acme, format!("/endpoints/{}", deleted.endpoint)),
        (&acme, format!("/dead-letters/{}", purged.delivery)),
        (&other, format!("/endpoints/{}", own_deleted.endpoint)),
    ] {
        assert_eq!(call_as(&daemon, key, "DELETE", &path, "").await.0, 204, "{path}");
    }
    for role in ["admin", "publisher", "viewer", "worker"] {
        let other = key(&daemon, role, Some("other")).await;
        let unknown = requests_with_ids(&TenantIds::unknown(), &own.event);
        for (story, ids) in [("live", &live), ("deleted", &deleted), ("purged", &purged)] {
            for (operation, cell) in requests_with_ids(ids, &own.event) {
                let expected = response_for(&daemon, &other, &unknown[&operation]).await;
                let answer = response_for(&daemon, &other, &cell).await;
                assert_eq!(answer, expected, "{operation} of a foreign {story} id as {role}");
            }
        }
    }
    // The same requests succeed with the caller's own ids, also after deletion.
    for (operation, cell) in requests_with_ids(&own_deleted, &own.event) {
        let (status, headers, _) = response_for(&daemon, &other, &cell).await;
        match operation.as_str() {
            "listDeliveries endpointId" | "listDeadLetters endpointId" | "listDeliveries eventId" => {
                assert!(status == 200 && headers.contains_key("balto-position"), "{operation}: {headers:?}");
            }
            "purgeDeadLetters endpointId" | "redriveDeadLetters endpointId" => {
                assert_eq!(status, 202, "{operation}")
            }
            "getEvent" | "getDelivery" | "readFeed lastEventId" => assert_eq!(status, 200, "{operation}"),
            _ => {}
        }
    }
    let letters = call_as(&daemon, &acme, "GET", "/dead-letters", "").await.1;
    assert_eq!(list(&letters).len(), 2, "a foreign dead letter was changed: {letters}");
}

/// An endpoint of all tenants takes the tenant's own events, and is the operator's all the same.
#[tokio::test]
async fn endpoint_of_all_tenants_is_unknown_to_a_tenant() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let receiver = Receiver::status(500).await;
    let acme = key(&daemon, "admin", Some("acme")).await;
    let hook = json!({"url": receiver.url, "tenant": "*", "uid": "all", "retry": {"maxAttempts": 1}});
    let (status, made) = call_as(&daemon, ADMIN, "POST", "/endpoints", &hook.to_string()).await;
    assert_eq!(status, 201, "{made}");
    let event = text(&call_as(&daemon, &acme, "POST", "/events", r#"{"type":"a","data":1}"#).await.1, "id");
    receiver.until(1).await;
    let deadline = std::time::Instant::now() + WAIT_MAX;
    let delivery = loop {
        let letters = call_as(&daemon, ADMIN, "GET", "/dead-letters?tenant=*", "").await.1;
        if let Some(letter) = letters["data"].get(0) {
            break text(letter, "deliveryId");
        }
        assert!(std::time::Instant::now() < deadline, "no dead letter: {letters}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let shared = TenantIds { endpoint: text(&made, "id"), event: event.clone(), delivery };
    let unknown = TenantIds { event: event.clone(), ..TenantIds::unknown() };
    for role in ["admin", "publisher", "viewer", "worker"] {
        let acme = key(&daemon, role, Some("acme")).await;
        let expected = requests_with_ids(&unknown, &event);
        for (operation, cell) in requests_with_ids(&shared, &event) {
            // The event is the tenant's.
            if cell.3 != event {
                let expected = response_for(&daemon, &acme, &expected[&operation]).await;
                let answer = response_for(&daemon, &acme, &cell).await;
                assert_eq!(answer, expected, "{operation} of the operator's endpoint as {role}");
            }
        }
        for path in ["", "/lane", "/stats", "/secret", "/public-keys"] {
            let path = format!("/endpoints/all{path}");
            let status = call_as(&daemon, &acme, "GET", &path, "").await.0;
            assert!(matches!(status, 403 | 404), "{path} as {role}: {status}");
        }
    }
    let letters = call_as(&daemon, ADMIN, "GET", "/dead-letters?tenant=*", "").await.1;
    assert_eq!(list(&letters).len(), 1, "the operator's dead letter was changed: {letters}");
    let shown = call_as(&daemon, ADMIN, "GET", "/endpoints/all", "").await.1;
    assert_eq!(shown["updatedAt"], made["updatedAt"], "{shown}");
}

/// A publisher that knows another tenant's event id can choose it for its own event.
#[tokio::test]
async fn chosen_id_does_not_shadow_a_generated_one() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let receiver = Receiver::status(200).await;
    for tenant in ["acme", "default"] {
        let hook = json!({"url": receiver.url, "tenant": tenant}).to_string();
        assert_eq!(call_as(&daemon, ADMIN, "POST", "/endpoints", &hook).await.0, 201);
    }
    let event = r#"{"type":"victim","data":1,"tenant":"acme"}"#;
    let id = text(&call_as(&daemon, ADMIN, "POST", "/events", event).await.1, "id");
    let publisher = key(&daemon, "publisher", Some("default")).await;
    let forged = json!({"type": "forged", "data": 2, "id": id}).to_string();
    let (status, accepted) = call_as(&daemon, &publisher, "POST", "/events", &forged).await;
    assert_eq!(status, 202, "ids of another engine are accepted: {accepted}");

    let types = async |key: &str, path: String| {
        let (status, shown) = call_as(&daemon, key, "GET", &path, "").await;
        assert_eq!(status, 200, "{path}: {shown}");
        let all = shown["data"].as_array().filter(|_| shown["type"].is_null()).cloned();
        all.unwrap_or_else(|| vec![shown]).iter().map(|one| text(one, "type")).collect::<BTreeSet<_>>()
    };
    let only = |name: &str| BTreeSet::from([name.to_owned()]);
    assert_eq!(types(ADMIN, format!("/events/{id}")).await, only("victim"));
    assert_eq!(types(ADMIN, format!("/deliveries?eventId={id}")).await, only("victim"));
    assert_eq!(types(ADMIN, format!("/events/{id}?tenant=default")).await, only("forged"));
    assert_eq!(types(ADMIN, format!("/deliveries?eventId={id}&tenant=default")).await, only("forged"));
    assert_eq!(types(&publisher, format!("/events/{id}")).await, only("forged"));
    let before = receiver.count();
    assert_eq!(call_as(&daemon, ADMIN, "POST", &format!("/events/{id}/replay"), "").await.0, 202);
    let got = receiver.until(before.max(2) + 1).await;
    assert!(got.last().unwrap().body.contains("victim"), "{got:?}");
    // An event with a unique chosen id is found without its tenant; its `statusUrl` still names the
    // tenant.
    let alone = json!({"type": "alone", "data": 3, "id": format!("evt_{UNKNOWN}")}).to_string();
    let accepted = call_as(&daemon, ADMIN, "POST", "/events", &alone).await.1;
    assert_eq!(types(ADMIN, format!("/events/evt_{UNKNOWN}")).await, only("alone"));
    let address = text(&accepted, "statusUrl");
    assert_eq!(address, format!("/v1/events/evt_{UNKNOWN}?tenant=default"));
    assert_eq!(types(ADMIN, address["/v1".len()..].to_owned()).await, only("alone"));
}

#[tokio::test]
async fn batch_keys_of_operators_are_separate() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let publisher = key(&daemon, "publisher", Some("default")).await;
    let batch = async |key: &str, event: Value| {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str()), ("idempotency-key", "nightly-1")];
        let body = json!({"events": [event]}).to_string();
        let (status, answer, headers) = daemon.call("POST", "/events/batch", &headers, &body).await;
        assert_eq!(status, 202, "{answer}");
        let result = answer["results"][0].clone();
        (result["status"].clone(), result["id"].clone(), headers.contains_key("idempotent-replayed"))
    };
    let theirs = batch(&publisher, json!({"type": "x", "data": 1})).await;
    let event = json!({"type": "x", "data": 2, "tenant": "default"});
    let ours = batch(ADMIN, event.clone()).await;
    assert_eq!((&theirs.0, &ours.0), (&json!(202), &json!(202)));
    assert_ne!(theirs.1, ours.1);
    // Each repetition returns the original response of that caller.
    assert_eq!(batch(ADMIN, event).await, (ours.0, ours.1, true));
    assert_eq!(batch(&publisher, json!({"type": "x", "data": 1})).await, (theirs.0, theirs.1, true));
}

#[tokio::test]
async fn types_of_operator_events_are_reserved() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let tenant = key(&daemon, "publisher", Some("acme")).await;
    for key in [ADMIN, &tenant] {
        for name in ["balto.endpoint.disabled", "balto.delivery.dead", "balto.x"] {
            let event = json!({"type": name, "data": 1}).to_string();
            let answer = call_as(&daemon, key, "POST", "/events", &event).await;
            is_problem(&answer, 422, "validation_failed", name);
            assert_eq!(answer.1["errors"][0]["pointer"], "/type");
            let batch = format!("{{\"events\":[{event}]}}");
            let answer = call_as(&daemon, key, "POST", "/events/batch", &batch).await.1;
            assert_eq!(answer["results"][0]["status"], 422, "{answer}");
            let bearer = format!("Bearer {key}");
            let cloud =
                json!({"specversion": "1.0", "id": "1", "source": "/s", "type": name, "data": 1}).to_string();
            let headers =
                [("authorization", bearer.as_str()), ("content-type", "application/cloudevents+json")];
            let (status, answer, _) = daemon.call("POST", "/events", &headers, &cloud).await;
            is_problem(&(status, answer), 422, "validation_failed", name);
        }
        for name in ["balto.test", "balto", "baltos.x", "x.balto.endpoint"] {
            let event = json!({"type": name, "data": 1}).to_string();
            assert_eq!(call_as(&daemon, key, "POST", "/events", &event).await.0, 202, "{name}");
        }
    }
}

/// Endpoints and events of one tenant: together 50,000 deliveries.
const CROWD: (usize, usize) = (500, 100);

/// While the state applies one tenant's deliveries, others are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_fan_out_delays_no_other_tenant() {
    let data = tempfile::tempdir().unwrap();
    let daemon = std::sync::Arc::new(keyed(data.path()).await);
    let (evil, good) = (key(&daemon, "admin", Some("evil")).await, key(&daemon, "admin", Some("good")).await);
    let endpoint = json!({"url": "http://127.0.0.1:9999/", "eventTypes": ["big"]}).to_string();
    for _ in 0..CROWD.0 {
        let (status, answer) = call_as(&daemon, &evil, "POST", "/endpoints", &endpoint).await;
        assert_eq!(status, 201, "{answer}");
    }
    let event = json!({"type": "big", "data": 1, "deliverAt": "9999-01-01T00:00:00Z"});
    let batch = json!({"events": vec![event; CROWD.1]}).to_string();
    // The tenant's own list waits for its deliveries.
    let own = tokio::spawn({
        let (daemon, evil) = (daemon.clone(), evil.clone());
        async move {
            assert_eq!(call_as(&daemon, &evil, "POST", "/events/batch", &batch).await.0, 202);
            call_as(&daemon, &evil, "GET", "/deliveries?limit=1", "").await
        }
    });
    while call_as(&daemon, ADMIN, "GET", "/tenants/evil", "").await.1["usage"]["pendingDeliveries"] == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let (status, listed) = call_as(&daemon, &good, "GET", "/events", "").await;
    assert_eq!((status, list(&listed).len()), (200, 0));
    let bearer = format!("Bearer {good}");
    for number in 0..3 {
        let idempotency_key = format!("key-{number}");
        let headers = [("authorization", bearer.as_str()), ("idempotency-key", &idempotency_key)];
        let (status, answer, _) = daemon.call("POST", "/events", &headers, r#"{"type":"a","data":1}"#).await;
        assert_eq!(status, 202, "{answer}");
    }
    assert!(!own.is_finished(), "the other tenant waited for all deliveries");
    let (status, deliveries) = own.await.unwrap();
    assert_eq!((status, list(&deliveries).len()), (200, 1));
    let (_, listed) = call_as(&daemon, &good, "GET", "/events", "").await;
    assert_eq!(list(&listed).len(), 3, "{listed}");
}

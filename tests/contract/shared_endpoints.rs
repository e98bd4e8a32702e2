//! Endpoints of all tenants: one receiver of the operator for the events of every tenant.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::command_line::balto;
use crate::support::{Daemon, ReceivedRequest, Receiver, WAIT_MAX, answer};
use crate::{ADMIN, call_as, is_problem, key, keyed, list, text};

/// Creates an endpoint of all tenants as the operator.
async fn create(daemon: &Daemon, url: &str, more: Value) -> Value {
    let mut body = json!({"url": url, "tenant": "*"});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let (status, made) = call_as(daemon, ADMIN, "POST", "/endpoints", &body.to_string()).await;
    assert_eq!((status, &made["tenant"]), (201, &json!("*")), "{made}");
    made
}

/// Publishes an event of a tenant that has no endpoint itself. Returns the id.
async fn publish(daemon: &Daemon, key: &str, event: Value) -> String {
    let (status, accepted) = call_as(daemon, key, "POST", "/events", &event.to_string()).await;
    assert_eq!((status, &accepted["deliveries"]), (202, &json!(0)), "a tenant counts its own: {accepted}");
    text(&accepted, "id")
}

/// As the operator.
async fn get(daemon: &Daemon, path: &str) -> Value {
    let (status, found) = call_as(daemon, ADMIN, "GET", path, "").await;
    assert_eq!(status, 200, "{path}: {found}");
    found
}

/// As the operator, until the answer is the wanted one.
async fn until(daemon: &Daemon, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let found = get(daemon, path).await;
        if wanted(&found) {
            return found;
        }
        assert!(Instant::now() < deadline, "GET {path} stays {found}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn body(request: &ReceivedRequest) -> Value {
    serde_json::from_str(&request.body).unwrap()
}

/// Tenant and number of each event, as the receiver saw it.
fn seen(requests: &[ReceivedRequest]) -> Vec<(String, u64)> {
    let of = |request| {
        let event = body(request);
        (text(&event, "tenant"), event["data"]["n"].as_u64().unwrap())
    };
    requests.iter().map(of).collect()
}

#[tokio::test]
async fn receiver_gets_the_events_of_all_tenants_and_sees_whose() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    let accepts = Arc::new(AtomicBool::new(false));
    let rule = accepts.clone();
    let receiver = Receiver::start(move |_, got| {
        let is_refused = got.body.contains(r#""tenant":"acme""#) && !rule.load(Ordering::SeqCst);
        answer(if is_refused { 503 } else { 204 })
    })
    .await;
    let more = json!({"uid": "all", "eventTypes": ["job"], "ordering": "key", "retry": {"schedule": ["1h"]},
        "filter": {"data.skip": {"$exists": false}}});
    create(&daemon, &receiver.url, more).await;
    let (acme, other) =
        (key(&daemon, "publisher", Some("acme")).await, key(&daemon, "publisher", Some("other")).await);
    // One ordering key in two tenants: two orders.
    for (key, number) in [(&acme, 1), (&acme, 2), (&other, 3)] {
        publish(&daemon, key, json!({"type": "job", "data": {"n": number}, "orderingKey": "k"})).await;
    }
    publish(&daemon, &acme, json!({"type": "job", "data": {"n": 4, "skip": true}})).await;
    let mut got = seen(&receiver.until(2).await);
    got.sort();
    assert_eq!(got, [("acme".to_owned(), 1), ("other".to_owned(), 3)], "one per key and tenant");
    let stats = until(&daemon, "/stats?tenant=*", |stats| stats["attempts"] == 2).await;
    let counts = [&stats["tenant"], &stats["delivered"], &stats["backlog"], &stats["events"]];
    assert_eq!(counts, [&json!("*"), &json!(1), &json!(2), &json!(4)], "{stats}");
    for (path, count) in [("/lanes?tenant=*", 1), ("/lanes", 1), ("/lanes?tenant=acme", 0)] {
        assert_eq!(list(&get(&daemon, path).await).len(), count, "{path}");
    }
    // The deletion of a tenant ends no work of the operator.
    let deletion = call_as(&daemon, ADMIN, "DELETE", "/tenants/acme", r#"{"confirm":"acme"}"#).await;
    assert!(matches!(deletion.0, 202 | 204), "{deletion:?}");
    until(&daemon, "/jobs?kind=deleteTenant", |jobs| jobs["data"][0]["status"] != "running").await;
    let lane = get(&daemon, "/endpoints/all/lane").await;
    assert_eq!((&lane["pending"], &lane["waitingForOrder"]), (&json!(2), &json!(1)), "{lane}");
    daemon.kill();
    daemon = keyed(data.path()).await;
    accepts.store(true, Ordering::SeqCst);
    let waiting = get(&daemon, "/deliveries?endpointId=all&tenant=*&status=pending").await;
    let first = text(list(&waiting).last().unwrap(), "id");
    let retried = call_as(&daemon, ADMIN, "POST", &format!("/deliveries/{first}/retry"), "").await;
    assert!(matches!(retried.0, 200 | 202), "{retried:?}");
    let got = seen(&receiver.until(4).await);
    assert_eq!(got[2..], [("acme".to_owned(), 1), ("acme".to_owned(), 2)], "in order");
    until(&daemon, "/endpoints/all/lane", |lane| lane["pending"] == 0).await;
    // A replay reaches back to the events of all tenants, and to no event of the operator.
    let replay = r#"{"since":"2000-01-01T00:00:00Z"}"#;
    let (status, job) = call_as(&daemon, ADMIN, "POST", "/endpoints/all/replay", replay).await;
    assert_eq!(status, 202, "{job}");
    let mut again = seen(&receiver.until(7).await[4..]);
    again.sort_by_key(|(_, number)| *number);
    assert_eq!(again, [("acme".to_owned(), 1), ("acme".to_owned(), 2), ("other".to_owned(), 3)]);
    until(&daemon, "/endpoints/all/lane", |lane| lane["pending"] == 0).await;
    assert_eq!(list(&get(&daemon, "/deliveries?tenant=*&status=delivered").await).len(), 3);
}

/// Every list and call by which a tenant could see or touch the operator's deliveries. The ids are
/// in `isolation`.
#[tokio::test]
async fn tenants_neither_see_nor_count_deliveries_of_the_operator() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let (refusing, operator) = (Receiver::status(500).await, Receiver::status(204).await);
    let acme = key(&daemon, "admin", Some("acme")).await;
    let more = json!({"uid": "all", "eventTypes": ["job", "balto.#"], "retry": {"maxAttempts": 1}});
    let made = create(&daemon, &refusing.url, more).await;
    let hook = json!({"url": operator.url, "tenant": "balto", "eventTypes": ["balto.#"]}).to_string();
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/endpoints", &hook).await.0, 201);
    let quota = json!({"quotas": {"pendingDeliveries": 1, "endpoints": 0}}).to_string();
    let set = call_as(&daemon, ADMIN, "PUT", "/tenants/acme", &quota).await;
    assert!(matches!(set.0, 200 | 201), "{set:?}");
    let mut events = Vec::new();
    for number in 0..3 {
        // No quota of the tenant counts them.
        events.push(publish(&daemon, &acme, json!({"type": "job", "data": {"n": number}})).await);
    }
    until(&daemon, "/dead-letters?tenant=*", |letters| list(letters).len() == 3).await;
    for path in ["/endpoints", "/endpoints?uid=all", "/deliveries", "/dead-letters", "/lanes"] {
        let (status, page) = call_as(&daemon, &acme, "GET", path, "").await;
        assert_eq!((status, list(&page).len()), (200, 0), "{path}: {page}");
    }
    for path in ["/endpoints", "/deliveries", "/dead-letters", "/lanes", "/stats", "/jobs", "/audit"] {
        let answer = call_as(&daemon, &acme, "GET", &format!("{path}?tenant=*"), "").await;
        is_problem(&answer, 403, "forbidden", path);
        get(&daemon, &format!("{path}?tenant=*")).await;
    }
    assert_eq!(call_as(&daemon, &acme, "GET", "/endpoints/all", "").await.0, 404);
    let event = call_as(&daemon, &acme, "GET", &format!("/events/{}", events[0]), "").await.1;
    assert_eq!((&event["status"], &event["deliveries"]), (&json!("unmatched"), &json!([])), "{event}");
    assert_eq!(list(&call_as(&daemon, &acme, "GET", "/events?status=failed", "").await.1).len(), 0);
    let stats = call_as(&daemon, &acme, "GET", "/stats", "").await.1;
    let counts = [&stats["events"], &stats["attempts"], &stats["dead"], &stats["deadLetters"]];
    assert_eq!(counts, [&json!(3), &json!(0), &json!(0), &json!(0)], "{stats}");
    for path in ["/dead-letters/redrive", "/dead-letters/purge"] {
        let (status, job) = call_as(&daemon, &acme, "POST", path, "{}").await;
        assert_eq!((status, &job["count"]), (202, &json!(0)), "{path}: {job}");
    }
    let replay = format!("/events/{}/replay", events[0]);
    let (status, replayed) = call_as(&daemon, &acme, "POST", &replay, "{}").await;
    assert_eq!((status, &replayed["count"]), (202, &json!(0)), "{replayed}");
    // The operator sees, redrives and replays them, and gets an event about each death.
    let death = body(&operator.until(1).await[0]);
    assert_eq!((&death["type"], &death["tenant"]), (&json!("balto.delivery.dead"), &json!("balto")));
    let named = [&death["data"]["tenant"], &death["data"]["endpointId"]];
    assert_eq!(named, [&json!("*"), &made["id"]], "{death}");
    let death = get(&daemon, &format!("/events/{}", text(&death, "id"))).await;
    assert_eq!(death["deliveries"].as_array().unwrap().len(), 1, "not for all tenants: {death}");
    assert_eq!(list(&get(&daemon, "/dead-letters?tenant=acme").await).len(), 0);
    let redriven = call_as(&daemon, ADMIN, "POST", "/dead-letters/redrive", r#"{"tenant":"*"}"#).await.1;
    assert_eq!(redriven["count"], 3, "{redriven}");
    refusing.until(6).await;
    let to = json!({"endpointIds": [made["id"]]}).to_string();
    let (status, replayed) = call_as(&daemon, ADMIN, "POST", &replay, &to).await;
    assert_eq!((status, &replayed["count"]), (202, &json!(1)), "{replayed}");
    let own = format!("/events/{}/replay", text(&death, "id"));
    let refused = call_as(&daemon, ADMIN, "POST", &own, &to).await;
    is_problem(&refused, 422, "validation_failed", "an event of the reserved tenant");
    assert_eq!(get(&daemon, "/tenants/acme").await["usage"]["pendingDeliveries"], 0);
    assert!(list(&get(&daemon, "/tenants").await).iter().all(|tenant| tenant["tenant"] != "*"));
}

#[tokio::test]
async fn only_the_operator_makes_and_tries_an_endpoint_of_all_tenants() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let receiver = Receiver::status(204).await;
    let acme = key(&daemon, "admin", Some("acme")).await;
    let own = key(&daemon, "admin", Some("default")).await;
    let input = |tenant: &str| json!({"url": receiver.url, "tenant": tenant, "uid": "all"}).to_string();
    for tenant in ["**", "*.acme", "acme.*", "", " *"] {
        let answer = call_as(&daemon, ADMIN, "POST", "/endpoints", &input(tenant)).await;
        is_problem(&answer, 422, "validation_failed", tenant);
        assert_eq!(answer.1["errors"][0]["pointer"], "/tenant", "{tenant}");
    }
    is_problem(&call_as(&daemon, &acme, "POST", "/endpoints", &input("*")).await, 403, "forbidden", "bound");
    let viewer = key(&daemon, "viewer", None).await;
    is_problem(&call_as(&daemon, &viewer, "POST", "/endpoints", &input("*")).await, 403, "forbidden", "role");
    let answer = call_as(&daemon, ADMIN, "GET", "/endpoints?tenant=**", "").await;
    is_problem(&answer, 422, "validation_failed", "list");
    let made = create(&daemon, &receiver.url, json!({"uid": "all", "eventTypes": ["job"]})).await;
    let path = format!("/endpoints/{}", text(&made, "id"));
    is_problem(&call_as(&daemon, ADMIN, "POST", "/endpoints", &input("*")).await, 409, "uid_taken", "again");
    for patch in [r#"{"tenant":"acme"}"#, r#"{"tenant":null}"#] {
        let answer = call_as(&daemon, ADMIN, "PATCH", &path, patch).await;
        is_problem(&answer, 422, "validation_failed", patch);
    }
    let patch = r#"{"tenant":"*","description":"ours"}"#;
    assert_eq!(call_as(&daemon, ADMIN, "PATCH", &path, patch).await.0, 200);
    assert_eq!(list(&get(&daemon, "/endpoints?tenant=*").await).len(), 1);
    // A tenant's endpoint may have the same uid: two names.
    assert_eq!(call_as(&daemon, &acme, "POST", "/endpoints", &input("acme")).await.0, 201);
    let found = call_as(&daemon, &acme, "GET", "/endpoints/all", "").await.1;
    assert_eq!(found["tenant"], "acme");
    is_problem(&call_as(&daemon, ADMIN, "GET", "/endpoints/all", "").await, 409, "conflict", "two");
    tries_show_whose(&daemon, &receiver, &acme, &path).await;
    // The test belongs to the operator.
    let before = receiver.count();
    assert_eq!(call_as(&daemon, ADMIN, "POST", &format!("{path}/test"), "").await.0, 202);
    let test = body(&receiver.until(before + 1).await[before]);
    assert_eq!((&test["type"], &test["tenant"]), (&json!("balto.test"), &json!("balto")));
    assert_eq!(list(&call_as(&daemon, &own, "GET", "/events", "").await.1).len(), 0);
    for action in ["", "/test", "/pause", "/secret/rotate"] {
        let method = if action.is_empty() { "DELETE" } else { "POST" };
        assert_eq!(call_as(&daemon, &acme, method, &format!("{path}{action}"), "").await.0, 404, "{action}");
    }
    let acts = get(&daemon, "/audit?tenant=*").await;
    assert!(list(&acts).iter().any(|act| act["action"] == "createEndpoint"), "{acts}");
    assert_eq!(call_as(&daemon, ADMIN, "DELETE", &path, "").await.0, 204);
    assert_eq!(call_as(&daemon, &acme, "GET", "/endpoints/all", "").await.0, 200, "the other one stays");
}

/// Previews and trials of filters show the tenant of the event.
async fn tries_show_whose(daemon: &Daemon, receiver: &Receiver, acme: &str, path: &str) {
    let event = r#"{"type":"job","data":{},"orderingKey":"k"}"#;
    let accepted = call_as(daemon, acme, "POST", "/events", event).await.1;
    assert_eq!(accepted["deliveries"], 1, "its own endpoint: {accepted}");
    receiver.until(2).await;
    let stored = json!({"eventId": accepted["id"]}).to_string();
    let new = json!({"event": {"type": "job", "data": {}}}).to_string();
    for (input, tenant) in [(&stored, "acme"), (&new, "default")] {
        let (status, shown) = call_as(daemon, ADMIN, "POST", &format!("{path}/preview"), input).await;
        assert_eq!(status, 200, "{shown}");
        assert!(text(&shown, "body").contains(&format!(r#""tenant":"{tenant}""#)), "{shown}");
    }
    let trial = format!("{path}/filter/test");
    for input in [&stored, &new] {
        let tried = call_as(daemon, ADMIN, "POST", &trial, input).await.1;
        assert_eq!(tried["delivered"], true, "{tried}");
    }
    let tried = call_as(daemon, ADMIN, "POST", &trial, "{}").await.1;
    assert_eq!((&tried["scanned"], &tried["count"]), (&json!(1), &json!(1)), "{tried}");
    // The other formats, and a message for a broker.
    let amqp = json!({"url": "amqp://127.0.0.1:5672/v", "amqp": {"exchange": "x"}, "status": "paused"});
    for (more, wanted) in [
        (json!({"format": "cloudevents", "status": "paused"}), r#""source":"/acme""#),
        (amqp, r#"{"name":"balto-tenant","value":"acme"}"#),
    ] {
        let url = more["url"].as_str().unwrap_or(&receiver.url).to_owned();
        let made = create(daemon, &url, more).await;
        let path = format!("/endpoints/{}/preview", text(&made, "id"));
        let (status, shown) = call_as(daemon, ADMIN, "POST", &path, &stored).await;
        assert_eq!(status, 200, "{shown}");
        let all = format!("{} {}", shown["body"].as_str().unwrap_or_default(), shown["headers"]);
        assert!(all.contains(wanted), "{wanted}: {shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn file_may_have_an_endpoint_of_all_tenants() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&data.path().join("d")).await;
    let file = data.path().join("all.toml");
    let path = file.display().to_string();
    let text = r#"
        tenant = "*"
        [[endpoints]]
        uid = "all"
        url = "http://127.0.0.1:19999"
        [[endpoints]]
        uid = "all"
        tenant = "acme"
        url = "http://127.0.0.1:19999/acme""#;
    std::fs::write(&file, text).unwrap();
    let applied = balto(&daemon, &["apply", "-f", &path]);
    assert!(applied.out.ends_with("2 created, 0 changed, 0 deleted, 0 unchanged.\n"), "{applied:?}");
    let export = balto(&daemon, &["export", "--tenant", "*"]);
    assert!(export.out.contains(r#"tenant = "*""#) && !export.out.contains("acme"), "{export:?}");
    std::fs::write(&file, &export.out).unwrap();
    let again = balto(&daemon, &["apply", "-f", &path, "--prune", "--yes"]);
    assert!(again.out.ends_with("0 created, 0 changed, 0 deleted, 1 unchanged.\n"), "{again:?}");
    let add = ["endpoints", "add", "http://127.0.0.1:19999/b", "--tenant", "*"];
    let added = balto(&daemon, &add);
    assert_eq!(added.code, 0, "{added:?}");
    let shown = balto(&daemon, &["endpoints", "list", "--tenant", "*"]);
    assert!(shown.out.contains("19999/b") && !shown.out.contains("/acme"), "{shown:?}");
}

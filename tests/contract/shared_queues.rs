//! Queues of all tenants: one worker of the operator for the events of every tenant.

use serde_json::{Value, json};

use crate::support::Daemon;
use crate::{ADMIN, call_as, is_problem, key, keyed, list, text};

const QUEUE: &str = "/queues/all";

async fn post_event(daemon: &Daemon, key: &str, event: Value) -> String {
    let (status, accepted) = call_as(daemon, key, "POST", "/events", &event.to_string()).await;
    assert_eq!((status, &accepted["deliveries"]), (202, &json!(0)), "a tenant counts its own: {accepted}");
    text(&accepted, "id")
}

/// Receives as the operator.
async fn receive(daemon: &Daemon, more: Value) -> Vec<Value> {
    let path = format!("{QUEUE}/receive?tenant=*");
    let (status, answer) = call_as(daemon, ADMIN, "POST", &path, &more.to_string()).await;
    assert_eq!(status, 200, "{answer}");
    answer["messages"].as_array().unwrap().clone()
}

async fn end(daemon: &Daemon, action: &str, messages: &[Value], more: Value) -> Vec<String> {
    let receipts: Vec<_> = messages.iter().map(|message| text(message, "receipt")).collect();
    let mut body = json!({"receipts": receipts});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let path = format!("{QUEUE}/{action}?tenant=*");
    let (status, answer) = call_as(daemon, ADMIN, "POST", &path, &body.to_string()).await;
    assert_eq!(status, 200, "{answer}");
    answer["results"].as_array().unwrap().iter().map(|result| text(result, "status")).collect()
}

fn tenants(messages: &[Value]) -> Vec<String> {
    messages.iter().map(|message| text(&message["event"], "tenant")).collect()
}

#[tokio::test]
async fn worker_gets_the_events_of_all_tenants_and_sees_whose() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    let all = json!({"name": "all", "tenant": "*", "eventTypes": ["job"], "ordering": "key"}).to_string();
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/queues", &all).await.0, 201);
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/queues", &all).await.0, 200, "the same again");
    let own = json!({"name": "all", "eventTypes": ["job"]}).to_string();
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/queues", &own).await.0, 201, "of the tenant `default`");
    let (acme, other) =
        (key(&daemon, "admin", Some("acme")).await, key(&daemon, "admin", Some("other")).await);
    // One ordering key in two tenants: two orders.
    for (key, number) in [(&acme, 1), (&acme, 2), (&other, 3)] {
        let event = json!({"type": "job", "data": number, "orderingKey": "k"});
        post_event(&daemon, key, event).await;
    }
    let first = receive(&daemon, json!({})).await;
    assert_eq!(tenants(&first), ["acme", "other"], "one per key and tenant");
    assert_eq!(end(&daemon, "ack", &first[..1], json!({})).await, ["acked"]);
    // The queue, its lease and the order survive a kill.
    daemon.kill();
    daemon = keyed(data.path()).await;
    let second = receive(&daemon, json!({})).await;
    assert_eq!((tenants(&second), &second[0]["event"]["data"]), (vec!["acme".to_owned()], &json!(2)));
    assert_eq!(end(&daemon, "ack", &first[1..], json!({})).await, ["acked"]);
    assert_eq!(end(&daemon, "nack", &second, json!({"requeue": false})).await, ["dead"]);
    let stats = call_as(&daemon, ADMIN, "GET", &format!("{QUEUE}/stats?tenant=*"), "").await.1;
    assert_eq!((&stats["tenant"], &stats["acked"], &stats["dead"]), (&json!("*"), &json!(2), &json!(1)));
    let queues = call_as(&daemon, ADMIN, "GET", "/queues", "").await.1;
    assert_eq!(list(&queues).len(), 2);
    let queues = call_as(&daemon, ADMIN, "GET", "/queues?tenant=*", "").await.1;
    assert_eq!((list(&queues).len(), &queues["data"][0]["tenant"]), (1, &json!("*")));
    assert_eq!(call_as(&daemon, ADMIN, "DELETE", &format!("{QUEUE}?tenant=*"), "").await.0, 204);
    assert_eq!(call_as(&daemon, ADMIN, "GET", QUEUE, "").await.0, 200, "the other queue stays");
    assert_eq!(call_as(&daemon, ADMIN, "GET", &format!("{QUEUE}?tenant=*"), "").await.0, 404);
}

/// Every list and call by which a tenant could see or touch the operator's messages.
#[tokio::test]
async fn tenants_neither_see_nor_change_messages_of_the_operator() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let (acme, worker) =
        (key(&daemon, "admin", Some("acme")).await, key(&daemon, "worker", Some("acme")).await);
    let all = json!({"name": "all", "tenant": "*"}).to_string();
    let (status, problem) = call_as(&daemon, &acme, "POST", "/queues", &all).await;
    is_problem(&(status, problem), 403, "forbidden", "a tenant's key creates no queue of all tenants");
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/queues", &all).await.0, 201);
    let quota = json!({"quotas": {"pendingDeliveries": 1}}).to_string();
    let set = call_as(&daemon, ADMIN, "PUT", "/tenants/acme", &quota).await;
    assert!(matches!(set.0, 200 | 201), "{set:?}");
    let mut events = Vec::new();
    for number in 0..3 {
        // No quota of the tenant counts the operator's messages.
        events.push(post_event(&daemon, &acme, json!({"type": "job", "data": number})).await);
    }
    let held = receive(&daemon, json!({"max": 2})).await;
    assert_eq!(end(&daemon, "nack", &held[..1], json!({"requeue": false})).await, ["dead"]);
    let (dead, leased) = (text(&held[0], "deliveryId"), text(&held[1], "deliveryId"));
    for (key, method, path) in [
        (&acme, "GET", QUEUE.to_owned()),
        (&acme, "DELETE", QUEUE.to_owned()),
        (&worker, "POST", format!("{QUEUE}/receive")),
        (&acme, "GET", format!("/deliveries/{leased}")),
        (&acme, "POST", format!("/deliveries/{leased}/cancel")),
        (&acme, "POST", format!("/deliveries/{leased}/retry")),
        (&acme, "GET", format!("/dead-letters/{dead}")),
        (&acme, "POST", format!("/dead-letters/{dead}/redrive")),
        (&acme, "DELETE", format!("/dead-letters/{dead}")),
    ] {
        let (status, answer) = call_as(&daemon, key, method, &path, "").await;
        assert_eq!(status, 404, "{method} {path}: {answer}");
    }
    for path in [format!("{QUEUE}?tenant=*"), "/queues?tenant=*".into(), "/dead-letters?tenant=*".into()] {
        assert_eq!(call_as(&daemon, &acme, "GET", &path, "").await.0, 403, "{path}");
    }
    for path in ["/queues", "/deliveries", "/dead-letters", "/lanes", "/deliveries?q=dlv_"] {
        let (status, page) = call_as(&daemon, &acme, "GET", path, "").await;
        assert_eq!((status, list(&page).len()), (200, 0), "{path}: {page}");
    }
    let event = call_as(&daemon, &acme, "GET", &format!("/events/{}", events[0]), "").await.1;
    assert_eq!(
        (&event["status"], list(&json!({"data": event["deliveries"]})).len()),
        (&json!("unmatched"), 0)
    );
    let pending = call_as(&daemon, &acme, "GET", "/events?status=pending", "").await.1;
    assert_eq!(list(&pending).len(), 0, "{pending}");
    for path in ["/dead-letters/redrive", "/dead-letters/purge"] {
        let (status, job) = call_as(&daemon, &acme, "POST", path, "{}").await;
        assert_eq!((status, &job["count"]), (202, &json!(0)), "{path}: {job}");
    }
    let path = format!("/events/{}/replay", events[0]);
    let (status, replayed) = call_as(&daemon, &acme, "POST", &path, "{}").await;
    assert_eq!((status, &replayed["count"]), (202, &json!(0)), "{replayed}");
    let usage = call_as(&daemon, ADMIN, "GET", "/tenants/acme", "").await.1;
    assert_eq!(usage["usage"]["pendingDeliveries"], 0, "{usage}");
    the_operator_finds_them(&daemon, &events[0], &held).await;
}

/// By the tenant `*`, or without a tenant.
async fn the_operator_finds_them(daemon: &Daemon, event: &str, held: &[Value]) {
    for (path, count) in [
        ("/deliveries?tenant=*", 3),
        ("/deliveries?queue=all&tenant=*", 3),
        ("/deliveries?tenant=acme", 0),
        ("/deliveries", 3),
        ("/dead-letters?tenant=*", 1),
        ("/dead-letters?tenant=acme", 0),
        ("/dead-letters", 1),
    ] {
        let page = call_as(daemon, ADMIN, "GET", path, "").await.1;
        assert_eq!(list(&page).len(), count, "{path}: {page}");
    }
    let shown = call_as(daemon, ADMIN, "GET", &format!("/events/{event}"), "").await.1;
    assert_eq!(shown["deliveries"][0]["destination"]["name"], "all", "{shown}");
    for path in ["/jobs?tenant=*", "/audit?tenant=*"] {
        assert_eq!(call_as(daemon, ADMIN, "GET", path, "").await.0, 200, "{path}");
    }
    let redriven = call_as(daemon, ADMIN, "POST", "/dead-letters/redrive", r#"{"tenant":"*"}"#).await.1;
    assert_eq!(redriven["count"], 1, "{redriven}");
    let deleted = call_as(daemon, ADMIN, "DELETE", "/tenants/acme", r#"{"confirm":"acme"}"#).await;
    assert!(matches!(deleted.0, 202 | 204), "{deleted:?}");
    let left = receive(daemon, json!({})).await;
    assert_eq!(left.len(), 2, "a tenant's deletion ends no work of the operator");
    assert_eq!(end(daemon, "ack", &held[1..], json!({})).await, ["acked"]);
    let purged = call_as(daemon, ADMIN, "POST", &format!("{QUEUE}/purge?tenant=*"), "").await.1;
    assert_eq!(purged["count"], 2, "{purged}");
    let event = r#"{"type":"job","data":1,"tenant":"*"}"#;
    let answer = call_as(daemon, ADMIN, "POST", "/events", event).await;
    is_problem(&answer, 422, "validation_failed", "an event has a tenant");
}

//! The audit log: each act of an operator has one entry, without content, for its own tenant.

use serde_json::{Value, json};

use super::support::Daemon;
use super::{ADMIN, call_as, is_problem, key, keyed, list, text};

const SECRET: &str = "whsec_wxRESeK8Anx6dxdg2gY7mrQuXLZPoCuy";

async fn entries(daemon: &Daemon, key: &str, query: &str) -> Vec<Value> {
    let (status, page) = call_as(daemon, key, "GET", &format!("/audit?limit=250&{query}"), "").await;
    assert_eq!(status, 200, "{page}");
    list(&page).clone()
}

fn actions(entries: &[Value]) -> Vec<String> {
    entries.iter().map(|entry| text(entry, "action")).collect()
}

/// Acts with the admin key: operation, method, path, body. `{ep}` is an endpoint, and so on.
const ACTS: &[(&str, &str, &str, &str)] = &[
    ("updateEndpoint", "PATCH", "/endpoints/{ep}", r#"{"description":"confidential words"}"#),
    ("pauseEndpoint", "POST", "/endpoints/{ep}/pause", ""),
    ("resumeEndpoint", "POST", "/endpoints/{ep}/resume", ""),
    ("getEndpointSecret", "GET", "/endpoints/{ep}/secret", ""),
    ("rotateEndpointSecret", "POST", "/endpoints/{ep}/secret/rotate", ""),
    ("testEndpoint", "POST", "/endpoints/{ep}/test", ""),
    ("replayEndpoint", "POST", "/endpoints/{ep}/replay", r#"{"since":"2020-01-01T00:00:00Z"}"#),
    ("replayEvent", "POST", "/events/{evt}/replay", ""),
    ("createQueue", "POST", "/queues", r#"{"name":"jobs","tenant":"acme","eventTypes":["none"]}"#),
    ("updateQueue", "PATCH", "/queues/jobs?tenant=acme", r#"{"description":"more"}"#),
    ("pauseQueue", "POST", "/queues/jobs/pause?tenant=acme", ""),
    ("resumeQueue", "POST", "/queues/jobs/resume?tenant=acme", ""),
    ("purgeQueue", "POST", "/queues/jobs/purge?tenant=acme", ""),
    ("replayQueue", "POST", "/queues/jobs/replay?tenant=acme", r#"{"since":"2020-01-01T00:00:00Z"}"#),
    ("deleteQueue", "DELETE", "/queues/jobs?tenant=acme", ""),
    ("putConsumer", "PUT", "/consumers/reader", r#"{"tenant":"acme"}"#),
    ("resetConsumer", "POST", "/consumers/reader/reset?tenant=acme", r#"{"to":"now"}"#),
    ("deleteConsumer", "DELETE", "/consumers/reader?tenant=acme", ""),
    ("redriveDeadLetters", "POST", "/dead-letters/redrive", r#"{"tenant":"acme"}"#),
    ("purgeDeadLetters", "POST", "/dead-letters/purge", r#"{"tenant":"acme"}"#),
    ("eraseEvent", "POST", "/events/{evt}/erase", r#"{"reason":"asked for"}"#),
    ("putTenant", "PUT", "/tenants/acme", r#"{"name":"Acme"}"#),
    ("updateTenant", "PATCH", "/tenants/acme", r#"{"name":"Acme Inc."}"#),
    ("putEventType", "PUT", "/event-types/order.paid", r#"{"versions":{"1.0":{"schema":true}}}"#),
    ("deleteEventType", "DELETE", "/event-types/order.paid", ""),
    ("rebuildState", "POST", "/projections/state/rebuild", ""),
    ("deleteEndpoint", "DELETE", "/endpoints/{ep}", ""),
    ("deleteTenant", "DELETE", "/tenants/acme", r#"{"confirm":"acme"}"#),
];

#[tokio::test]
async fn each_act_has_one_entry_that_survives_a_kill() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    let hook = json!({"url": "http://127.0.0.1:19999/", "tenant": "acme", "secret": SECRET}).to_string();
    let (_, endpoint) = call_as(&daemon, ADMIN, "POST", "/endpoints", &hook).await;
    let event = json!({"type": "order.paid", "data": "confidential words", "tenant": "acme"}).to_string();
    let (_, event) = call_as(&daemon, ADMIN, "POST", "/events", &event).await;
    let fill =
        |path: &str| path.replace("{ep}", &text(&endpoint, "id")).replace("{evt}", &text(&event, "id"));
    let mut expected = vec!["createEndpoint".to_owned()];
    for (action, method, path, body) in ACTS {
        let (status, answer) = call_as(&daemon, ADMIN, method, &fill(path), body).await;
        assert!((200..300).contains(&status), "{action}: {status} {answer}");
        expected.insert(0, (*action).to_owned());
    }
    let all = entries(&daemon, ADMIN, "").await;
    assert_eq!(actions(&all), expected);
    let found = serde_json::to_string(&all).unwrap();
    assert!(!found.contains("confidential") && !found.contains(&SECRET["whsec_".len()..]), "{found}");
    for entry in &all {
        assert_eq!(entry["actor"], json!({"keyId": null, "role": "admin", "tenant": null}), "{entry}");
        assert_eq!((&entry["address"], entry["at"].is_string()), (&json!("127.0.0.1"), true), "{entry}");
        let is_commit = !["getEndpointSecret", "rebuildState"].contains(&entry["action"].as_str().unwrap());
        assert_eq!(entry["outcome"], if is_commit { "done" } else { "accepted" }, "{entry}");
    }
    let of = |action: &str| all.iter().find(|entry| entry["action"] == action).unwrap();
    assert_eq!(
        (&of("createEndpoint")["target"], &of("createEndpoint")["tenant"]),
        (&endpoint["id"], &json!("acme"))
    );
    assert_eq!(
        (&of("deleteEndpoint")["target"], &of("deleteEndpoint")["tenant"]),
        (&endpoint["id"], &json!("acme"))
    );
    assert_eq!(
        (&of("createQueue")["target"], &of("createQueue")["tenant"]),
        (&json!("jobs"), &json!("acme"))
    );
    assert_eq!(of("getEndpointSecret")["tenant"], "acme");
    assert!(text(of("purgeDeadLetters"), "target").starts_with("job_"));

    // Requests without an effect have none: refused, repeated, a dry run, a read.
    let (status, _) = call_as(&daemon, ADMIN, "POST", "/endpoints", r#"{"url":"nonsense"}"#).await;
    assert_eq!(status, 422);
    let bearer = format!("Bearer {ADMIN}");
    for _ in 0..2 {
        let headers = [("authorization", bearer.as_str()), ("idempotency-key", "once")];
        assert_eq!(daemon.call("POST", "/keys", &headers, r#"{"role":"viewer"}"#).await.0, 201);
    }
    let dry = call_as(&daemon, ADMIN, "POST", "/dead-letters/purge", r#"{"dryRun":true}"#).await;
    assert_eq!(dry.0, 202, "{}", dry.1);
    assert_eq!(call_as(&daemon, ADMIN, "DELETE", "/keys/key_unknown", "").await.0, 404);
    expected.insert(0, "createKey".to_owned());
    let all = entries(&daemon, ADMIN, "").await;
    assert_eq!(actions(&all), expected);
    daemon.kill();
    let daemon = keyed(data.path()).await;
    assert_eq!(entries(&daemon, ADMIN, "").await, all);
}

#[tokio::test]
async fn audit_is_filtered_paged_and_limited_to_a_tenant() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let acme = key(&daemon, "admin", Some("acme")).await;
    let (other, viewer) = (key(&daemon, "admin", Some("other")).await, key(&daemon, "viewer", None).await);
    let hook = json!({"url": "http://127.0.0.1:19999/"}).to_string();
    let (_, own) = call_as(&daemon, &acme, "POST", "/endpoints", &hook).await;
    call_as(&daemon, &other, "POST", "/endpoints", &hook).await;
    let by_operator = json!({"url": "http://127.0.0.1:19999/", "tenant": "acme"}).to_string();
    assert_eq!(call_as(&daemon, ADMIN, "POST", "/endpoints", &by_operator).await.0, 201);
    assert_eq!(
        call_as(&daemon, ADMIN, "DELETE", &format!("/endpoints/{}", text(&own, "id")), "").await.0,
        204
    );

    // A tenant sees the acts that concern it, and not the operator's key and address.
    let seen = entries(&daemon, &acme, "").await;
    assert_eq!(actions(&seen), ["deleteEndpoint", "createEndpoint", "createEndpoint", "createKey"]);
    assert!(seen.iter().all(|entry| entry["tenant"] == "acme"), "{seen:?}");
    let shown: Vec<_> = seen.iter().map(|entry| entry["address"].is_string()).collect();
    assert_eq!(shown, [false, false, true, false]);
    let own_key = text(&seen[2]["actor"], "keyId");
    assert_eq!(actions(&entries(&daemon, &acme, &format!("actor={own_key}")).await), ["createEndpoint"]);
    assert_eq!(entries(&daemon, &acme, "actor=admin").await, Vec::<Value>::new());
    is_problem(&call_as(&daemon, &acme, "GET", "/audit?tenant=other", "").await, 403, "forbidden", "foreign");
    is_problem(&call_as(&daemon, &viewer, "GET", "/audit", "").await, 403, "forbidden", "a viewer");

    for (query, count) in [
        ("action=createEndpoint".to_owned(), 3),
        (format!("target={}", text(&own, "id")), 2),
        ("tenant=other".to_owned(), 2),
        ("actor=admin&action=createKey".to_owned(), 3),
        ("since=2020-01-01T00:00:00Z".to_owned(), 7),
        ("until=2020-01-01T00:00:00Z".to_owned(), 0),
    ] {
        assert_eq!(entries(&daemon, ADMIN, &query).await.len(), count, "{query}");
    }
    let (mut paged, mut path) = (Vec::new(), "/audit?limit=2".to_owned());
    loop {
        let (_, page) = call_as(&daemon, ADMIN, "GET", &path, "").await;
        paged.extend(list(&page).clone());
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/audit?limit=2&cursor={next}");
    }
    assert_eq!(paged, entries(&daemon, ADMIN, "").await);
    for (query, parameter) in [
        ("since=now", "since"),
        ("since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "until"),
        ("tenant=%20", "tenant"),
        ("limit=0", "limit"),
        ("cursor=x", "cursor"),
        ("who=me", "who"),
    ] {
        let refused = call_as(&daemon, ADMIN, "GET", &format!("/audit?{query}"), "").await;
        is_problem(&refused, 422, "validation_failed", query);
        assert_eq!(refused.1["errors"][0]["parameter"], parameter, "{}", refused.1);
    }
}

//! Tenants as a resource: settings, usage, quotas, deletion.

use serde_json::{Value, json};

use super::support::{Daemon, Receiver};
use super::{ADMIN, call_as, is_problem, key, keyed, list, text};

async fn put(daemon: &Daemon, tenant: &str, settings: Value) -> Value {
    let path = format!("/tenants/{tenant}");
    let (status, answer) = call_as(daemon, ADMIN, "PUT", &path, &settings.to_string()).await;
    assert!(status == 200 || status == 201, "PUT {path}: {status} {answer}");
    answer
}

async fn shown(daemon: &Daemon, tenant: &str) -> Value {
    let (status, answer) = call_as(daemon, ADMIN, "GET", &format!("/tenants/{tenant}"), "").await;
    assert_eq!(status, 200, "{answer}");
    answer
}

/// Registers an endpoint of a tenant at a URL that needs no receiver.
async fn register(daemon: &Daemon, tenant: &str, more: Value) -> (u16, Value) {
    let mut body = json!({"url": "http://127.0.0.1:19999/hook", "tenant": tenant});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    call_as(daemon, ADMIN, "POST", "/endpoints", &body.to_string()).await
}

async fn paused(daemon: &Daemon, tenant: &str) -> String {
    let (status, made) = register(daemon, tenant, json!({})).await;
    assert_eq!(status, 201, "{made}");
    let id = text(&made, "id");
    let pause = format!("/endpoints/{id}/pause");
    assert_eq!(call_as(daemon, ADMIN, "POST", &pause, "").await.0, 200);
    id
}

async fn publish(daemon: &Daemon, tenant: &str) -> (u16, Value) {
    let event = json!({"type": "order.paid", "data": 1, "tenant": tenant}).to_string();
    call_as(daemon, ADMIN, "POST", "/events", &event).await
}

async fn batch(daemon: &Daemon, tenant: &str, count: usize) -> Vec<Value> {
    let event = json!({"type": "order.paid", "data": 1, "tenant": tenant});
    let body = json!({"events": vec![event; count]}).to_string();
    let (status, answer) = call_as(daemon, ADMIN, "POST", "/events/batch", &body).await;
    assert_eq!(status, 202, "{answer}");
    answer["results"].as_array().unwrap().clone()
}

fn is_refused(answer: &(u16, Value), status: u16, quota: &str, limit: u64, value: u64) {
    is_problem(answer, status, "quota_exceeded", quota);
    let problem = &answer.1;
    assert_eq!((&problem["quota"], &problem["limit"]), (&json!(quota), &json!(limit)), "{problem}");
    assert_eq!(problem["value"], value, "{problem}");
}

#[tokio::test]
async fn tenant_has_settings_and_usage() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    is_problem(&call_as(&daemon, ADMIN, "GET", "/tenants/acme", "").await, 404, "not_found", "before use");
    let settings = json!({"name": "Acme Inc.", "metadata": {"plan": "gold"}, "quotas": {"endpoints": 5},
        "delivery": {"timeout": "3s", "maxInFlight": 2, "retry": {"schedule": ["1s"]}}});
    let (status, made) = call_as(&daemon, ADMIN, "PUT", "/tenants/acme", &settings.to_string()).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!((&made["name"], &made["metadata"]["plan"]), (&json!("Acme Inc."), &json!("gold")));
    assert_eq!((&made["quotas"]["endpoints"], &made["quotas"]["keys"]), (&json!(5), &Value::Null));
    assert_eq!((&made["limits"]["endpoints"], &made["limits"]["keys"]), (&json!(5), &json!(1000)));
    assert_eq!(made["limits"]["storedBytes"], Value::Null);
    assert!(made["createdAt"].is_string() && made["updatedAt"].is_string(), "{made}");

    // New endpoints get the delivery settings of their tenant; their own come first.
    let (_, plain) = register(&daemon, "acme", json!({"eventTypes": ["order.*"]})).await;
    assert_eq!((&plain["timeout"], &plain["maxInFlight"]), (&json!("3s"), &json!(2)), "{plain}");
    assert_eq!(plain["retry"], json!({"schedule": ["1s"]}));
    let (_, own) = register(&daemon, "acme", json!({"timeout": "9s", "headers": {"X-A": "bc"}})).await;
    assert_eq!((&own["timeout"], &own["maxInFlight"]), (&json!("9s"), &json!(2)), "{own}");
    for endpoint in [&plain, &own] {
        let pause = format!("/endpoints/{}/pause", text(endpoint, "id"));
        assert_eq!(call_as(&daemon, ADMIN, "POST", &pause, "").await.0, 200);
    }
    key(&daemon, "viewer", Some("acme")).await;
    assert_eq!(publish(&daemon, "acme").await.0, 202);
    assert_eq!(publish(&daemon, "acme").await.0, 202);
    let before = shown(&daemon, "acme").await;
    let usage = &before["usage"];
    let counts = [
        "endpoints",
        "keys",
        "patternBytes",
        "headerBytes",
        "pendingDeliveries",
        "deadLetters",
        "storedEvents",
    ];
    assert_eq!(counts.map(|name| usage[name].as_u64().unwrap()), [2, 1, 7, 5, 4, 0, 2], "{usage}");
    assert!(usage["storedBytes"].as_u64().unwrap() > 100, "{usage}");

    // A patch keeps the rest; null restores a default.
    let patch = json!({"name": "Acme", "quotas": {"endpoints": null, "keys": "off"}, "delivery": {"retry": {"maxAttempts": 4}}});
    let (status, changed) = call_as(&daemon, ADMIN, "PATCH", "/tenants/acme", &patch.to_string()).await;
    assert_eq!(status, 200, "{changed}");
    assert_eq!((&changed["name"], &changed["metadata"]["plan"]), (&json!("Acme"), &json!("gold")));
    assert_eq!((&changed["quotas"]["endpoints"], &changed["quotas"]["keys"]), (&Value::Null, &json!("off")));
    assert_eq!((&changed["limits"]["endpoints"], &changed["limits"]["keys"]), (&json!(10_000), &Value::Null));
    assert_eq!(changed["delivery"]["retry"]["maxAttempts"], 4, "{changed}");
    assert_eq!(changed["createdAt"], before["createdAt"]);

    // Tenants exist by use, too. The list is ordered by name, and its pages join.
    assert_eq!(publish(&daemon, "used.only").await.0, 202);
    put(&daemon, "balto", json!({"name": "Operator"})).await;
    let mut names = Vec::new();
    let mut path = "/tenants?limit=1".to_owned();
    loop {
        let (_, page) = call_as(&daemon, ADMIN, "GET", &path, "").await;
        names.extend(list(&page).iter().map(|tenant| text(tenant, "tenant")));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/tenants?limit=1&cursor={next}");
    }
    assert_eq!(names, ["acme", "balto", "used.only"]);
    assert_eq!(shown(&daemon, "used.only").await["createdAt"], Value::Null);

    // Everything survives a crash.
    let (tenant, all) = (shown(&daemon, "acme").await, call_as(&daemon, ADMIN, "GET", "/tenants", "").await);
    daemon.kill();
    let daemon = keyed(data.path()).await;
    assert_eq!(shown(&daemon, "acme").await, tenant);
    assert_eq!(call_as(&daemon, ADMIN, "GET", "/tenants", "").await, all);
}

#[tokio::test]
async fn invalid_tenant_requests_are_rejected() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    for (body, pointer) in [
        (json!({"quota": {}}), "/quota"),
        (json!({"name": 5}), "/name"),
        (json!({"name": "a\nb"}), "/name"),
        (json!({"name": "x".repeat(256)}), "/name"),
        (json!({"metadata": [1]}), "/metadata"),
        (json!({"metadata": {"a": "x".repeat(17_000)}}), "/metadata"),
        (json!({"quotas": {"endpoint": 1}}), "/quotas/endpoint"),
        (json!({"quotas": {"endpoints": -1}}), "/quotas/endpoints"),
        (json!({"quotas": {"endpoints": 1.5}}), "/quotas/endpoints"),
        (json!({"quotas": {"endpoints": "none"}}), "/quotas/endpoints"),
        (json!({"quotas": {"storedBytes": 1_u64 << 60}}), "/quotas/storedBytes"),
        (json!({"quotas": {"eventsPerSecond": 0}}), "/quotas/eventsPerSecond"),
        (json!({"quotas": {"bytesPerSecond": 1000}}), "/quotas/bytesPerSecond"),
        (json!({"delivery": {"timeout": "1h"}}), "/delivery/timeout"),
        (json!({"delivery": {"maxInFlight": 0}}), "/delivery/maxInFlight"),
        (json!({"delivery": {"retry": {"schedule": []}}}), "/delivery/retry/schedule"),
        (json!({"delivery": {"rate": 1}}), "/delivery/rate"),
    ] {
        for method in ["PUT", "PATCH"] {
            put(&daemon, "acme", json!({})).await;
            let answer = call_as(&daemon, ADMIN, method, "/tenants/acme", &body.to_string()).await;
            is_problem(&answer, 422, "validation_failed", &format!("{method} {body}"));
            assert_eq!(answer.1["errors"][0]["pointer"], pointer, "{}", answer.1);
        }
    }
    let reserved = json!({"quotas": {"keys": 1}}).to_string();
    let answer = call_as(&daemon, ADMIN, "PUT", "/tenants/balto", &reserved).await;
    is_problem(&answer, 422, "validation_failed", "quotas of the reserved tenant");
    for path in ["/tenants/a%20b", "/tenants/a..b", "/tenants/%C3%A4"] {
        let answer = call_as(&daemon, ADMIN, "PUT", path, "{}").await;
        is_problem(&answer, 422, "validation_failed", path);
        assert_eq!(answer.1["errors"][0]["parameter"], "tenant", "{path}: {}", answer.1);
        for method in ["GET", "PATCH"] {
            let body = if method == "GET" { "" } else { "{}" };
            is_problem(&call_as(&daemon, ADMIN, method, path, body).await, 404, "not_found", path);
        }
    }
    is_problem(&call_as(&daemon, ADMIN, "PATCH", "/tenants/none", "{}").await, 404, "not_found", "patch");
    is_problem(
        &call_as(&daemon, ADMIN, "PATCH", "/tenants/acme", "[]").await,
        422,
        "validation_failed",
        "[]",
    );
    let confirm = json!({"confirm": "none"}).to_string();
    is_problem(
        &call_as(&daemon, ADMIN, "DELETE", "/tenants/none", &confirm).await,
        404,
        "not_found",
        "delete",
    );
    let answer = call_as(&daemon, ADMIN, "GET", "/tenants?cursor=AQIDBA", "").await;
    is_problem(&answer, 422, "validation_failed", "a foreign cursor");
}

#[tokio::test]
async fn bound_admin_reads_only_its_own_tenant() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    put(&daemon, "acme", json!({"quotas": {"endpoints": 3}})).await;
    put(&daemon, "other", json!({})).await;
    let admin = key(&daemon, "admin", Some("acme")).await;
    let (status, own) = call_as(&daemon, &admin, "GET", "/tenants/acme", "").await;
    assert_eq!((status, &own["limits"]["endpoints"]), (200, &json!(3)), "{own}");
    for name in ["other", "unknown"] {
        let answer = call_as(&daemon, &admin, "GET", &format!("/tenants/{name}"), "").await;
        is_problem(&answer, 403, "forbidden", name);
    }
    for role in ["admin", "publisher", "viewer"] {
        for tenant in [Some("acme"), None] {
            if (role, tenant) == ("admin", None) {
                continue;
            }
            let key = key(&daemon, role, tenant).await;
            for (method, path, body) in [
                ("GET", "/tenants", ""),
                ("PUT", "/tenants/acme", "{}"),
                ("PATCH", "/tenants/acme", "{}"),
                ("DELETE", "/tenants/acme", r#"{"confirm":"acme"}"#),
            ] {
                let answer = call_as(&daemon, &key, method, path, body).await;
                is_problem(&answer, 403, "forbidden", &format!("{role} {tenant:?}: {method} {path}"));
            }
        }
    }
    assert_eq!(shown(&daemon, "acme").await["limits"]["endpoints"], 3);
}

#[tokio::test]
async fn concurrent_creations_never_exceed_a_quota() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    put(&daemon, "acme", json!({"quotas": {"endpoints": 5, "keys": 2}})).await;
    let creations = (0..24).map(|_| register(&daemon, "acme", json!({})));
    let answers = futures_util::future::join_all(creations).await;
    assert_eq!(answers.iter().filter(|(status, _)| *status == 201).count(), 5);
    for answer in answers.iter().filter(|(status, _)| *status != 201) {
        is_refused(answer, 403, "endpoints", 5, 6);
    }
    let body = json!({"role": "viewer", "tenant": "acme"}).to_string();
    let keys = (0..8).map(|_| call_as(&daemon, ADMIN, "POST", "/keys", &body));
    let answers = futures_util::future::join_all(keys).await;
    assert_eq!(answers.iter().filter(|(status, _)| *status == 201).count(), 2);
    for answer in answers.iter().filter(|(status, _)| *status != 201) {
        is_refused(answer, 403, "keys", 2, 3);
    }
    let usage = &shown(&daemon, "acme").await["usage"];
    assert_eq!((&usage["endpoints"], &usage["keys"]), (&json!(5), &json!(2)));
    let counted = daemon.metric("balto_quota_refusals_total", "endpoints").await;
    assert!((counted - 19.0).abs() < 0.5, "{counted}");
    // Other tenants have room, and a refused request can be repeated with its key.
    assert_eq!(register(&daemon, "other", json!({})).await.0, 201);
    let bearer = format!("Bearer {ADMIN}");
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", "again")];
    let hook = json!({"url": "http://127.0.0.1:19999/", "tenant": "acme"}).to_string();
    assert_eq!(daemon.call("POST", "/endpoints", &headers, &hook).await.0, 403);
    put(&daemon, "acme", json!({"quotas": {"endpoints": 6}})).await;
    assert_eq!(daemon.call("POST", "/endpoints", &headers, &hook).await.0, 201);
}

#[tokio::test]
async fn patterns_and_headers_are_limited_in_sum() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    put(&daemon, "acme", json!({"quotas": {"patternBytes": 10, "headerBytes": 12}})).await;
    let (status, made) =
        register(&daemon, "acme", json!({"eventTypes": ["order.#"], "sensitiveHeaders": {"X-A": "secret"}}))
            .await;
    assert_eq!(status, 201, "{made}");
    is_refused(
        &register(&daemon, "acme", json!({"eventTypes": ["a.b.c"]})).await,
        403,
        "patternBytes",
        10,
        12,
    );
    put(&daemon, "acme", json!({"quotas": {"wildcardParts": 2}})).await;
    let two_more = json!({"eventTypes": ["*.b", "c.#"]});
    is_refused(&register(&daemon, "acme", two_more).await, 403, "wildcardParts", 2, 3);
    put(&daemon, "acme", json!({"quotas": {"patternBytes": 10, "headerBytes": 12}})).await;
    is_refused(
        &register(&daemon, "acme", json!({"headers": {"X-B": "c"}})).await,
        403,
        "headerBytes",
        12,
        13,
    );
    let path = format!("/endpoints/{}", text(&made, "id"));
    let patch = json!({"eventTypes": ["order.#", "user"]}).to_string();
    is_refused(&call_as(&daemon, ADMIN, "PATCH", &path, &patch).await, 403, "patternBytes", 10, 11);
    // A quota below the usage blocks no change that does not add to it.
    put(&daemon, "acme", json!({"quotas": {"patternBytes": 1, "headerBytes": 0, "endpoints": 0}})).await;
    for (method, path, body) in [
        ("PATCH", path.clone(), r#"{"eventTypes":["user.#"],"description":"same size"}"#),
        ("POST", format!("{path}/pause"), ""),
        ("POST", format!("{path}/resume"), ""),
        ("PATCH", path.clone(), r#"{"sensitiveHeaders":{"X-A":"longer"}}"#),
        ("PATCH", path.clone(), r#"{"eventTypes":null,"sensitiveHeaders":null}"#),
    ] {
        let answer = call_as(&daemon, ADMIN, method, &path, body).await;
        assert_eq!(answer.0, 200, "{method} {path} {body}: {}", answer.1);
    }
    let usage = &shown(&daemon, "acme").await["usage"];
    let counts = ["patternBytes", "wildcardParts", "headerBytes"].map(|name| usage[name].as_u64().unwrap());
    assert_eq!(counts, [0, 0, 0], "{usage}");
}

#[tokio::test]
async fn pending_quota_refuses_events_until_deliveries_end() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    paused(&daemon, "acme").await;
    put(&daemon, "acme", json!({"quotas": {"pendingDeliveries": 3}})).await;
    let results = batch(&daemon, "acme", 5).await;
    let statuses: Vec<_> = results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [202, 202, 202, 403, 403]);
    assert_eq!((&results[3]["quota"], &results[3]["value"]), (&json!("pendingDeliveries"), &json!(4)));
    let posts = (0..16).map(|_| publish(&daemon, "acme"));
    for answer in futures_util::future::join_all(posts).await {
        is_refused(&answer, 403, "pendingDeliveries", 3, 4);
    }
    assert_eq!(publish(&daemon, "other").await.0, 202);
    // The count also holds after a restart.
    daemon.kill();
    let daemon = keyed(data.path()).await;
    is_refused(&publish(&daemon, "acme").await, 403, "pendingDeliveries", 3, 4);
    let (_, pending) = call_as(&daemon, ADMIN, "GET", "/deliveries?tenant=acme&status=pending", "").await;
    assert_eq!(list(&pending).len(), 3);
    let cancel = format!("/deliveries/{}/cancel", text(&list(&pending)[0], "id"));
    assert_eq!(call_as(&daemon, ADMIN, "POST", &cancel, "").await.0, 200);
    assert_eq!(publish(&daemon, "acme").await.0, 202);
    // A replay creates deliveries, too.
    let event = text(&list(&pending)[0], "eventId");
    let replay = format!("/events/{event}/replay");
    is_refused(&call_as(&daemon, ADMIN, "POST", &replay, "").await, 403, "pendingDeliveries", 3, 4);
    put(&daemon, "acme", json!({"quotas": {"pendingDeliveries": "off"}})).await;
    assert_eq!(call_as(&daemon, ADMIN, "POST", &replay, "").await.0, 202);
    assert_eq!(shown(&daemon, "acme").await["usage"]["pendingDeliveries"], 4);
}

#[tokio::test]
async fn stored_bytes_and_rates_are_limited_per_tenant() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    put(&daemon, "full", json!({"quotas": {"storedBytes": 300}})).await;
    let statuses = batch(&daemon, "full", 4).await;
    let statuses: Vec<_> = statuses.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 202).count(), 2, "{statuses:?}");
    assert!(statuses[2..].iter().all(|status| *status == 507), "{statuses:?}");
    let bearer = format!("Bearer {ADMIN}");
    let event = |tenant: &str| json!({"type": "a", "data": "x".repeat(100), "tenant": tenant}).to_string();
    let post = async |tenant: &str| {
        daemon.call("POST", "/events", &[("authorization", &bearer)], &event(tenant)).await
    };
    let (status, problem, headers) = post("full").await;
    assert_eq!((status, &problem["quota"]), (507, &json!("storedBytes")), "{problem}");
    assert_eq!(headers["retry-after"], "60");
    assert_eq!(post("other").await.0, 202);

    put(&daemon, "fast", json!({"quotas": {"eventsPerSecond": 2}})).await;
    let results = batch(&daemon, "fast", 50).await;
    let accepted = results.iter().filter(|result| result["status"] == 202).count();
    assert!((2..=4).contains(&accepted), "{accepted}");
    let refused = results.iter().find(|result| result["status"] != 202).unwrap();
    assert_eq!((&refused["status"], &refused["quota"]), (&json!(429), &json!("eventsPerSecond")));
    assert!(refused["value"].as_u64() > refused["limit"].as_u64(), "{refused}");
    batch(&daemon, "fast", 50).await;
    let (status, problem, headers) = post("fast").await;
    assert_eq!((status, &problem["code"]), (429, &json!("quota_exceeded")), "{problem}");
    assert_eq!(headers["retry-after"], "1");
    put(&daemon, "fast", json!({})).await;
    assert_eq!(post("fast").await.0, 202);
    assert!(daemon.metric("balto_quota_refusals_total", "eventsPerSecond").await > 90.0);

    put(&daemon, "silent", json!({"quotas": {"consumers": 0}})).await;
    let (status, problem) = call_as(&daemon, ADMIN, "PUT", "/consumers/c", r#"{"tenant":"silent"}"#).await;
    assert_eq!((status, &problem["quota"]), (403, &json!("consumers")), "{problem}");
    assert!(daemon.metric("balto_quota_refusals_total", "consumers").await >= 1.0);
}

#[tokio::test]
async fn deleted_tenant_keeps_only_its_events() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    put(&daemon, "acme", json!({"name": "Acme", "quotas": {"endpoints": 9}})).await;
    paused(&daemon, "acme").await;
    paused(&daemon, "acme").await;
    let bystander = paused(&daemon, "other").await;
    let publisher = key(&daemon, "publisher", Some("acme")).await;
    for tenant in ["acme", "other", "idle"] {
        let url = "amqp://guest:guest@127.0.0.1:5672";
        let source = json!({"name": tenant, "url": url, "queue": "q", "tenant": tenant});
        let made = call_as(&daemon, ADMIN, "POST", "/sources", &source.to_string()).await;
        assert_eq!(made.0, 201, "{made:?}");
    }
    daemon.until_metric("balto_sources", "", |all| all == 3.0).await;
    let event = json!({"type": "a", "data": 1}).to_string();
    assert_eq!(call_as(&daemon, &publisher, "POST", "/events", &event).await.0, 202);
    let delete = async |daemon: &Daemon, tenant: &str, confirm: Value| {
        let body = json!({"confirm": confirm}).to_string();
        call_as(daemon, ADMIN, "DELETE", &format!("/tenants/{tenant}"), &body).await
    };
    is_problem(&delete(&daemon, "acme", json!("Acme")).await, 422, "validation_failed", "another name");
    is_problem(&delete(&daemon, "acme", json!(null)).await, 422, "validation_failed", "no name");
    is_problem(&call_as(&daemon, ADMIN, "DELETE", "/tenants/acme", "").await, 400, "malformed", "no body");
    is_problem(&delete(&daemon, "balto", json!("balto")).await, 403, "forbidden", "the reserved tenant");
    assert_eq!(shown(&daemon, "acme").await["usage"]["endpoints"], 2);

    let (status, deleted) = delete(&daemon, "acme", json!("acme")).await;
    assert_eq!((status, &deleted["status"]), (202, &json!("completed")), "{deleted}");
    let counts = [("endpoints", 2), ("keys", 1), ("consumers", 0), ("sources", 1), ("pendingDeliveries", 2)];
    for (name, count) in counts {
        assert_eq!(deleted[name], count, "{deleted}");
    }
    // A tenant may have nothing but a source.
    let (status, deleted) = delete(&daemon, "idle", json!("idle")).await;
    assert_eq!((status, &deleted["sources"]), (202, &json!(1)), "{deleted}");
    is_problem(&delete(&daemon, "nobody", json!("nobody")).await, 404, "not_found", "no such tenant");
    // The connections of their sources end.
    daemon.until_metric("balto_sources", "", |all| all == 1.0).await;
    let (_, sources) = call_as(&daemon, ADMIN, "GET", "/sources", "").await;
    assert_eq!(list(&sources).iter().map(|one| text(one, "name")).collect::<Vec<_>>(), ["other"]);
    is_problem(
        &call_as(&daemon, &publisher, "POST", "/events", &event).await,
        401,
        "unauthorized",
        "its key",
    );
    let (_, endpoints) = call_as(&daemon, ADMIN, "GET", "/endpoints", "").await;
    assert_eq!(list(&endpoints).iter().map(|one| text(one, "id")).collect::<Vec<_>>(), [bystander]);
    daemon.key = Some(ADMIN.to_owned());
    let letters = daemon.until("/dead-letters?tenant=acme", |page| list(page).len() == 2).await;
    assert!(list(&letters).iter().all(|letter| letter["reason"] == "endpointDeleted"), "{letters}");
    let left = daemon.until("/tenants/acme", |tenant| tenant["usage"]["pendingDeliveries"] == 0).await;
    let usage = &left["usage"];
    assert_eq!(
        (&usage["endpoints"], &usage["keys"], &usage["storedEvents"]),
        (&json!(0), &json!(0), &json!(1))
    );
    assert_eq!((&left["name"], &left["createdAt"]), (&json!(""), &Value::Null));
    assert_eq!(left["limits"]["endpoints"], 10_000);
    // A second deletion finds nothing more, and the directory is intact.
    assert_eq!(delete(&daemon, "acme", json!("acme")).await.0, 202);
    assert_eq!(daemon.terminate(), Some(0));
    let verify = std::process::Command::new(env!("CARGO_BIN_EXE_balto"))
        .args(["verify", "--data-dir"])
        .arg(data.path())
        .output()
        .unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
    let daemon = keyed(data.path()).await;
    assert_eq!(shown(&daemon, "acme").await, left);
}

#[tokio::test]
async fn overview_sums_the_endpoints_of_a_tenant() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    daemon.key = Some(ADMIN.to_owned());
    let (good, bad) = (Receiver::status(200).await, Receiver::status(410).await);
    for (tenant, receiver) in [("acme", &good), ("acme", &good), ("other", &bad)] {
        let hook = json!({"url": receiver.url, "tenant": tenant}).to_string();
        daemon.post("/endpoints", &hook).await;
    }
    let held = paused(&daemon, "acme").await;
    for tenant in ["acme", "other"] {
        assert_eq!(publish(&daemon, tenant).await.0, 202);
    }
    let acme = daemon.until("/stats?tenant=acme&bucket=1h", |stats| stats["delivered"] == 2).await;
    let counts = ["attempts", "failedAttempts", "dead", "cancelled", "backlog", "deadLetters"];
    assert_eq!(counts.map(|name| acme[name].as_u64().unwrap()), [2, 0, 0, 0, 1, 0], "{acme}");
    assert_eq!((&acme["tenant"], &acme["successRate"]), (&json!("acme"), &json!(1.0)));
    assert_eq!(acme["events"], 1, "{acme}");
    let buckets = acme["buckets"].as_array().unwrap();
    assert_eq!(buckets.iter().map(|hour| hour["events"].as_u64().unwrap()).sum::<u64>(), 1, "{acme}");
    assert_eq!(buckets.iter().map(|hour| hour["delivered"].as_u64().unwrap()).sum::<u64>(), 2, "{acme}");
    assert!(buckets.iter().all(|hour| text(hour, "start").ends_with(":00:00.000Z")), "{acme}");
    let all = daemon.until("/stats", |stats| stats["deadLetters"] == 1).await;
    assert_eq!(counts.map(|name| all[name].as_u64().unwrap()), [3, 1, 1, 0, 1, 1], "{all}");
    assert_eq!((&all["buckets"], &all["events"]), (&Value::Null, &json!(2)), "{all}");
    for (tenant, events, attempts) in [("acme", 1, 2), ("other", 1, 1)] {
        let last_hour = &daemon.get(&format!("/tenants/{tenant}")).await["usage"]["lastHour"];
        assert_eq!(*last_hour, json!({"events": events, "attempts": attempts}), "{tenant}");
    }

    let lanes = daemon.get("/lanes?reason=paused&tenant=acme&sort=oldestDue&limit=1").await;
    assert_eq!((text(&list(&lanes)[0], "endpointId"), &lanes["next"]), (held.clone(), &Value::Null));
    assert_eq!((&list(&lanes)[0]["tenant"], &list(&lanes)[0]["pending"]), (&json!("acme"), &json!(1)));
    assert_eq!(list(&daemon.get("/lanes?reason=rate").await).len(), 0);
    assert_eq!(list(&daemon.get("/lanes?tenant=other").await).len(), 0);
    assert_eq!(publish(&daemon, "other").await.0, 202);
    let second = paused(&daemon, "acme").await;
    assert_eq!(publish(&daemon, "acme").await.0, 202);
    let first = |lanes: &Value| text(&list(lanes)[0], "endpointId");
    assert_eq!(first(&daemon.get("/lanes?tenant=acme&sort=oldestDue").await), held);
    assert_eq!(first(&daemon.get("/lanes?tenant=acme").await), second);
    for (order, all) in [("", [&second, &held]), ("&sort=oldestDue", [&held, &second])] {
        // The lane of the endpoint that delivers may still have its delivery.
        let path = format!("/lanes?tenant=acme&reason=paused&limit=1{order}");
        let (_, page, headers) = daemon.call("GET", &path, &[], "").await;
        let next = text(&page, "next");
        assert!(headers["link"].contains(&next), "{headers:?}");
        let last = daemon.get(&format!("{path}&cursor={next}")).await;
        assert_eq!([first(&page), first(&last)], all.map(String::clone), "{path}");
        assert_eq!((list(&last).len(), &last["next"]), (1, &Value::Null), "{path}");
        // A cursor belongs to its order.
        let other = if order.is_empty() { "&sort=oldestDue" } else { "" };
        let refused = daemon.call("GET", &format!("/lanes?cursor={next}{other}"), &[], "").await;
        assert_eq!((refused.0, &refused.1["errors"][0]["parameter"]), (422, &json!("cursor")));
    }

    // A bound key sees its tenant only.
    let viewer = key(&daemon, "viewer", Some("other")).await;
    let own = call_as(&daemon, &viewer, "GET", "/stats", "").await.1;
    assert_eq!((&own["tenant"], &own["delivered"]), (&json!("other"), &json!(0)), "{own}");
    for path in ["/stats?tenant=acme", "/lanes?tenant=acme"] {
        is_problem(&call_as(&daemon, &viewer, "GET", path, "").await, 403, "forbidden", path);
    }
    for (path, parameter) in [
        ("/stats?bucket=1d", "bucket"),
        ("/stats?since=2020-01-01T00:00:00Z", "since"),
        ("/lanes?reason=lazy", "reason"),
        ("/lanes?sort=name", "sort"),
        ("/lanes?limit=0", "limit"),
    ] {
        let answer = call_as(&daemon, ADMIN, "GET", path, "").await;
        is_problem(&answer, 422, "validation_failed", path);
        assert_eq!(answer.1["errors"][0]["parameter"], parameter, "{}", answer.1);
    }
}

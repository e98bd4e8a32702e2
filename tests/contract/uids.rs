//! The uid of an endpoint, and its status at creation and in a change.

use serde_json::{Value, json};

use super::support::{Daemon, Receiver};
use super::{ADMIN, call_as, endpoint, is_problem, key, keyed, list, publish, text};

#[tokio::test]
async fn uid_names_the_endpoint_in_every_path() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let made = endpoint(&daemon, &receiver, json!({"uid": "crm.main-1_a"})).await;
    endpoint(&daemon, &receiver, json!({})).await;
    assert_eq!(made["uid"], "crm.main-1_a", "{made}");
    daemon.terminate();
    let daemon = Daemon::start(data.path()).await;
    let path = "/endpoints/crm.main-1_a";
    for below in ["", "/secret", "/public-keys", "/lane"] {
        let (by_uid, by_id) = (format!("{path}{below}"), format!("/endpoints/{}{below}", text(&made, "id")));
        assert_eq!(daemon.get(&by_uid).await, daemon.get(&by_id).await, "{below}");
    }
    assert_eq!(daemon.get(&format!("{path}/stats")).await["endpointId"], made["id"]);
    for (below, body) in [("test", ""), ("pause", ""), ("resume", ""), ("secret/rotate", "{}")] {
        daemon.post(&format!("{path}/{below}"), body).await;
    }
    daemon.post(&format!("{path}/replay"), r#"{"since": "2026-01-01T00:00:00Z"}"#).await;
    let found = daemon.get("/endpoints?uid=crm.main-1_a").await;
    assert_eq!((list(&found).len(), &found["data"][0]["id"]), (1, &made["id"]), "{found}");
    assert_eq!(list(&daemon.get("/endpoints?uid=other").await).len(), 0);
    // A change keeps the uid, renames it, or removes it.
    for (patch, uid) in [
        (json!({"description": "x"}), json!("crm.main-1_a")),
        (json!({"uid": "crm"}), json!("crm")),
        (json!({"uid": null}), Value::Null),
    ] {
        let path = format!("/endpoints/{}", text(&made, "id"));
        let (status, changed, _) = daemon.call("PATCH", &path, &[], &patch.to_string()).await;
        assert_eq!((status, &changed["uid"]), (200, &uid), "{patch}: {changed}");
    }
    assert_eq!(daemon.call("GET", "/endpoints/crm", &[], "").await.0, 404);
}

#[tokio::test]
async fn uid_is_unique_among_the_live_endpoints_of_a_tenant() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let receiver = Receiver::status(200).await;
    let (acme, other) =
        (key(&daemon, "admin", Some("acme")).await, key(&daemon, "admin", Some("other")).await);
    let create = async |key: &str, uid: &str| {
        let body = json!({"url": receiver.url, "uid": uid}).to_string();
        call_as(&daemon, key, "POST", "/endpoints", &body).await
    };
    let (status, first) = create(&acme, "crm").await;
    assert_eq!(status, 201, "{first}");
    is_problem(&create(&acme, "crm").await, 409, "uid_taken", "second");
    let (status, second) = create(&acme, "crm-2").await;
    assert_eq!(status, 201, "{second}");
    let rename = json!({"uid": "crm"}).to_string();
    let taken = call_as(&daemon, &acme, "PATCH", "/endpoints/crm-2", &rename).await;
    is_problem(&taken, 409, "uid_taken", "a change");
    // Another tenant has its own names, and does not see those of others.
    is_problem(&call_as(&daemon, &other, "GET", "/endpoints/crm", "").await, 404, "not_found", "foreign");
    let (status, foreign) = create(&other, "crm").await;
    assert_eq!(status, 201, "{foreign}");
    assert_eq!(call_as(&daemon, &other, "GET", "/endpoints/crm", "").await.1["id"], foreign["id"]);
    let ambiguous = call_as(&daemon, ADMIN, "GET", "/endpoints/crm", "").await;
    is_problem(&ambiguous, 409, "conflict", "a key without a tenant");
    assert_eq!(call_as(&daemon, ADMIN, "GET", "/endpoints/crm-2", "").await.1["id"], second["id"]);
    // A deleted endpoint frees its uid.
    assert_eq!(call_as(&daemon, &acme, "DELETE", "/endpoints/crm", "").await.0, 204);
    is_problem(&call_as(&daemon, &acme, "GET", "/endpoints/crm", "").await, 404, "not_found", "deleted");
    let (status, again) = create(&acme, "crm").await;
    assert_eq!(status, 201, "{again}");
    assert_ne!(again["id"], first["id"]);
    for bad in ["", ".", "..", "a b", "a/b", "é", "ep_1", &"x".repeat(65)] {
        let refused = create(&acme, bad).await;
        is_problem(&refused, 422, "validation_failed", bad);
        assert_eq!(refused.1["errors"][0]["pointer"], "/uid", "{}", refused.1);
    }
    let listed = call_as(&daemon, &acme, "GET", "/endpoints?uid=a%20b", "").await;
    is_problem(&listed, 422, "validation_failed", "malformed filter");
}

#[tokio::test]
async fn endpoint_can_be_created_paused_and_resumed_by_a_change() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let made = endpoint(&daemon, &receiver, json!({"status": "paused", "uid": "a"})).await;
    assert_eq!(made["status"], "paused", "{made}");
    publish(&daemon, json!({"type": "a", "data": 1})).await;
    daemon.until("/endpoints/a/lane", |lane| lane["pending"] == 1 && lane["reason"] == "paused").await;
    let change = async |patch: Value| daemon.call("PATCH", "/endpoints/a", &[], &patch.to_string()).await;
    assert_eq!(change(json!({"description": "x"})).await.1["status"], "paused");
    assert_eq!(receiver.count(), 0, "a paused endpoint got a delivery");
    assert_eq!(change(json!({"status": "active"})).await.1["status"], "active");
    receiver.until(1).await;
    assert_eq!(change(json!({"status": "paused"})).await.1["status"], "paused");
    assert_eq!(change(json!({"status": null})).await.1["status"], "active");
    for status in ["disabled", "", "PAUSED"] {
        let (got, problem, _) = change(json!({"status": status})).await;
        is_problem(&(got, problem), 422, "validation_failed", status);
    }
    // A disabled endpoint cannot be paused, only resumed.
    let gone = Receiver::status(410).await;
    endpoint(&daemon, &gone, json!({"uid": "gone"})).await;
    publish(&daemon, json!({"type": "a", "data": 1})).await;
    daemon.until("/endpoints/gone", |found| found["status"] == "disabled").await;
    let change = async |patch: Value| daemon.call("PATCH", "/endpoints/gone", &[], &patch.to_string()).await;
    assert_eq!(change(json!({"description": "x"})).await.1["status"], "disabled");
    let (got, problem, _) = change(json!({"status": "paused"})).await;
    is_problem(&(got, problem), 409, "conflict", "disabled");
    assert_eq!(change(json!({"status": "active"})).await.1["status"], "active");
}

#[tokio::test]
async fn dead_letters_of_deleted_endpoints_keep_their_uid() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_in(data.path(), &["--dev"], &[]).await;
    let receiver = Receiver::status(410).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let made = endpoint(&daemon, &receiver, json!({"uid": "crm"})).await;
        publish(&daemon, json!({"type": "a", "data": 1})).await;
        daemon.until("/dead-letters?endpointId=crm", |letters| list(letters).len() == ids.len() + 1).await;
        assert_eq!(daemon.call("DELETE", "/endpoints/crm", &[], "").await.0, 204);
        ids.push(text(&made, "id"));
    }
    let by_uid = json!({"endpointId": "crm"}).to_string();
    for operation in ["redrive", "purge"] {
        let refused = daemon.call("POST", &format!("/dead-letters/{operation}"), &[], &by_uid).await;
        is_problem(&(refused.0, refused.1), 422, "validation_failed", operation);
    }
    for (id, left) in [(&ids[0], 1), (&ids[1], 0)] {
        let by_id = json!({"endpointId": id}).to_string();
        assert_eq!(daemon.post("/dead-letters/purge", &by_id).await["count"], 1);
        assert_eq!(list(&daemon.get("/dead-letters?endpointId=crm").await).len(), left);
    }
}

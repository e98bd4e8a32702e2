//! API keys: expiry, last use and description.

use serde_json::{Value, json};

use super::{ADMIN, call_as, is_problem, keyed, list, text};

async fn create(daemon: &super::Daemon, key: &Value) -> (u16, Value) {
    call_as(daemon, ADMIN, "POST", "/keys", &key.to_string()).await
}

/// A time in this many seconds, in RFC 3339.
pub(super) fn in_seconds(seconds: i64) -> String {
    let at = time::OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
    at.format(&time::format_description::well_known::Rfc3339).unwrap()
}

#[tokio::test]
async fn expired_key_is_rejected_with_the_time() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let (status, made) = create(&daemon, &json!({"role": "viewer", "expiresAt": in_seconds(2)})).await;
    assert_eq!(status, 201, "{made}");
    assert!(made["expiresAt"].is_string(), "{made}");
    let (secret, path) = (text(&made, "secret"), format!("/keys/{}", text(&made, "id")));
    let deadline = std::time::Instant::now() + super::support::WAIT_MAX;
    let refused = loop {
        let (status, answer) = call_as(&daemon, &secret, "GET", "/endpoints", "").await;
        if status != 200 {
            break (status, answer);
        }
        assert!(std::time::Instant::now() < deadline, "the key does not expire");
    };
    is_problem(&refused, 401, "key_expired", "an expired key");
    let at = text(&made, "expiresAt");
    assert!(refused.1["detail"].as_str().unwrap().contains(&at), "{}", refused.1);
    // It stays listed until it is deleted.
    assert_eq!(call_as(&daemon, ADMIN, "GET", &path, "").await.1["expiresAt"], made["expiresAt"]);
    assert_eq!(call_as(&daemon, ADMIN, "DELETE", &path, "").await.0, 204);
    is_problem(&call_as(&daemon, &secret, "GET", "/endpoints", "").await, 401, "unauthorized", "deleted");
}

#[tokio::test]
async fn expiry_must_be_a_time_in_the_future() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    for bad in [json!(in_seconds(-1)), json!("1970-01-01T00:00:00Z"), json!("tomorrow"), json!("")] {
        let refused = create(&daemon, &json!({"role": "viewer", "expiresAt": bad})).await;
        is_problem(&refused, 422, "validation_failed", &bad.to_string());
        assert_eq!(refused.1["errors"][0]["pointer"], "/expiresAt", "{}", refused.1);
    }
    let refused = create(&daemon, &json!({"role": "viewer", "expiresAt": 5})).await;
    assert!((400..500).contains(&refused.0), "{}", refused.1);
    let (status, forever) = create(&daemon, &json!({"role": "viewer", "expiresAt": null})).await;
    assert_eq!((status, &forever["expiresAt"]), (201, &Value::Null), "{forever}");
}

#[tokio::test]
async fn last_use_of_a_key_is_shown_to_the_hour() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    let (_, made) = create(&daemon, &json!({"role": "viewer", "description": "dashboard"})).await;
    assert_eq!((&made["lastUsedAt"], &made["description"]), (&Value::Null, &json!("dashboard")), "{made}");
    let path = format!("/keys/{}", text(&made, "id"));
    assert_eq!(call_as(&daemon, ADMIN, "GET", &path, "").await.1["lastUsedAt"], Value::Null);
    // A refused request is a use, too.
    for (method, path, status) in [("GET", "/endpoints", 200), ("POST", "/endpoints", 403)] {
        assert_eq!(call_as(&daemon, &text(&made, "secret"), method, path, "{}").await.0, status);
    }
    let shown = call_as(&daemon, ADMIN, "GET", &path, "").await.1;
    assert!(text(&shown, "lastUsedAt").ends_with(":00:00.000Z"), "{shown}");
    let listed = call_as(&daemon, ADMIN, "GET", "/keys", "").await.1;
    assert_eq!(list(&listed)[0]["lastUsedAt"], shown["lastUsedAt"], "{listed}");

    // It is recorded once, and a restart keeps it.
    assert_eq!(daemon.terminate(), Some(0));
    for _ in 0..2 {
        let mut daemon = keyed(data.path()).await;
        assert_eq!(call_as(&daemon, ADMIN, "GET", &path, "").await.1, shown, "after a restart");
        daemon.kill();
    }
}

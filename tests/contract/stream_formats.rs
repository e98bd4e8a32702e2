//! Appends of CloudEvents to streams, and streams whose first events retention has removed.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::streams::{append, events, versions};
use super::support::{Daemon, WAIT_MAX};
use super::{ADMIN, call_as, is_problem, key, keyed};

fn cloudevent(id: &str, data: u64) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/shop", "type": "order.paid", "data": data, "color": "red"})
}

/// Appends CloudEvents with a media type; also returns whether the answer is a repetition.
async fn append_cloudevents(
    daemon: &Daemon,
    path: &str,
    media: &str,
    more: &[(&str, &str)],
    body: &Value,
) -> (u16, Value, bool) {
    let headers = [&[("content-type", media)], more].concat();
    let (status, answer, headers) = daemon.call("POST", path, &headers, &body.to_string()).await;
    (status, answer, headers.contains_key("idempotent-replayed"))
}

const STRUCTURED: &str = "application/cloudevents+json";
const BATCHED: &str = "application/cloudevents-batch+json";

#[tokio::test]
async fn cloudevents_are_appended_atomically() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (path, all) = ("/streams/order-1/events", &[][..]);
    let batch = json!([cloudevent("a", 1), cloudevent("b", 2)]);
    let first =
        append_cloudevents(&daemon, "/streams/order-1/events?expectedVersion=none", BATCHED, all, &batch)
            .await;
    assert_eq!((first.0, &first.1["version"], first.2), (202, &json!(2), false), "{first:?}");
    let single = cloudevent("c", 3);
    let path_at = |version: &str| format!("{path}?expectedVersion={version}");
    let stale = append_cloudevents(&daemon, &path_at("1"), STRUCTURED, all, &single).await;
    assert_eq!((stale.0, &stale.1["code"], &stale.1["actual"]), (409, &json!("version_conflict"), &json!(2)));
    let second = append_cloudevents(&daemon, &path_at("2"), STRUCTURED, all, &single).await;
    assert_eq!((second.0, &second.1["version"]), (202, &json!(3)), "{second:?}");
    let binary =
        [("ce-specversion", "1.0"), ("ce-id", "d"), ("ce-source", "/shop"), ("ce-type", "order.sent")];
    let third = append_cloudevents(&daemon, path, "application/json", &binary, &json!(4)).await;
    assert_eq!((third.0, &third.1["version"]), (202, &json!(4)), "{third:?}");
    let page = daemon.get(path).await;
    assert_eq!(versions(&page), [1, 2, 3, 4]);
    let shown: Vec<_> = page["data"].as_array().unwrap().iter().map(|event| &event["data"]).collect();
    assert_eq!(shown, [&json!(1), &json!(2), &json!(3), &json!(4)]);
    assert_eq!(page["data"][0]["attributes"]["color"], "red");
    assert_eq!(page["data"][3]["attributes"]["source"], "/shop");

    // The same ids and sources are a repetition at any later version.
    let again = append_cloudevents(&daemon, &path_at("none"), BATCHED, all, &batch).await;
    assert_eq!((again.0, &again.1["duplicate"], again.2), (202, &json!(true), true), "{again:?}");
    assert_eq!(again.1["events"], first.1["events"]);
    let partial = json!([cloudevent("b", 2), cloudevent("e", 5)]);
    let partial = append_cloudevents(&daemon, path, BATCHED, all, &partial).await;
    assert_eq!((partial.0, &partial.1["code"]), (409, &json!("partial_duplicate")), "{partial:?}");
    let elsewhere = append_cloudevents(&daemon, "/streams/order-2/events", STRUCTURED, all, &single).await;
    assert_eq!((elsewhere.0, &elsewhere.1["code"]), (422, &json!("idempotency_mismatch")), "{elsewhere:?}");
    assert_eq!(versions(&daemon.get(path).await), [1, 2, 3, 4]);

    let keyed = [("idempotency-key", "k")];
    let body = json!([cloudevent("k1", 1)]);
    let first = append_cloudevents(&daemon, &path_at("4"), BATCHED, &keyed, &body).await;
    let again = append_cloudevents(&daemon, &path_at("4"), BATCHED, &keyed, &body).await;
    assert_eq!((first.0, again.0, again.2), (202, 202, true), "{first:?} {again:?}");
    let other = append_cloudevents(&daemon, &path_at("5"), BATCHED, &keyed, &body).await;
    assert_eq!((other.0, &other.1["code"]), (422, &json!("idempotency_mismatch")), "{other:?}");
}

#[tokio::test]
async fn invalid_append_of_cloudevents_changes_nothing() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let path = "/streams/order-1/events";
    let mut broken = cloudevent("b", 2);
    broken["type"] = json!("a b");
    let valid = cloudevent("a", 1);
    for (query, media, body, pointer) in [
        ("", BATCHED, json!([valid, broken]), json!({"pointer": "/1/type"})),
        ("", BATCHED, json!([valid, valid]), json!({"pointer": "/1/id"})),
        ("", BATCHED, json!([valid, 7]), json!({"pointer": "/1"})),
        ("", BATCHED, json!([]), json!({"pointer": ""})),
        ("", BATCHED, json!(vec![valid.clone(); 1_001]), json!({"pointer": ""})),
        ("", BATCHED, valid.clone(), json!({"pointer": ""})),
        ("", STRUCTURED, broken.clone(), json!({"pointer": "/type"})),
        ("", STRUCTURED, json!({"id": "a"}), json!({"pointer": "/specversion"})),
        ("?expectedVersion=0", STRUCTURED, valid.clone(), json!({"parameter": "expectedVersion"})),
        ("?expectedVersion=x", BATCHED, json!([valid]), json!({"parameter": "expectedVersion"})),
        ("?expectedVersion=1", "application/json", events(&["a"]), json!({"parameter": "expectedVersion"})),
    ] {
        let at = format!("{path}{query}");
        let (status, answer, _) = append_cloudevents(&daemon, &at, media, &[], &body).await;
        is_problem(&(status, answer.clone()), 422, "validation_failed", &pointer.to_string());
        let found = answer["errors"].as_array().unwrap().iter();
        let wanted = pointer.as_object().unwrap().iter().next().unwrap();
        assert!(found.clone().any(|error| error[wanted.0] == *wanted.1), "{pointer}: {answer}");
    }
    let half = append_cloudevents(&daemon, path, BATCHED, &[], &json!("[")).await;
    assert_eq!(half.0, 422, "{half:?}");
    let large = json!([cloudevent("a", 1), {"specversion": "1.0", "id": "b", "source": "/s", "type": "t",
        "data": "x".repeat(300_000)}]);
    let large = append_cloudevents(&daemon, path, BATCHED, &[], &large).await;
    is_problem(&(large.0, large.1), 413, "payload_too_large", "one large event");
    let other = append_cloudevents(&daemon, path, "application/xml", &[], &valid).await;
    is_problem(&(other.0, other.1), 415, "unsupported_media_type", "another media type");
    assert_eq!(daemon.call("GET", path, &[], "").await.0, 404, "a rejected append made a stream");
}

#[tokio::test]
async fn cloudevents_belong_to_the_tenant_of_the_key() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let bound = format!("Bearer {}", key(&daemon, "publisher", Some("acme")).await);
    let (path, body) = ("/streams/s/events", json!([cloudevent("a", 1)]));
    let own = [("authorization", bound.as_str())];
    assert_eq!(append_cloudevents(&daemon, path, BATCHED, &own, &body).await.0, 202);
    let foreign = append_cloudevents(&daemon, &format!("{path}?tenant=other"), BATCHED, &own, &body).await;
    is_problem(&(foreign.0, foreign.1), 403, "forbidden", "another tenant");
    let viewer = format!("Bearer {}", key(&daemon, "viewer", Some("acme")).await);
    let viewer = append_cloudevents(&daemon, path, BATCHED, &[("authorization", &viewer)], &body).await;
    is_problem(&(viewer.0, viewer.1), 403, "forbidden", "a viewer");
    let (status, page) = call_as(&daemon, ADMIN, "GET", &format!("{path}?tenant=acme"), "").await;
    assert_eq!((status, versions(&page)), (200, vec![1]), "{page}");
    assert_eq!(call_as(&daemon, ADMIN, "GET", path, "").await.0, 404, "a stream of the tenant `default`");
}

/// Retention removes old versions of a stream. A read never skips them silently.
#[tokio::test]
async fn removed_versions_are_gone_and_not_skipped() {
    let data = tempfile::tempdir().unwrap();
    let environment = [
        ("BALTO__RETENTION__EVENTS", "1m"),
        ("BALTO__RETENTION__STREAM_EVENTS", "1m"),
        ("BALTO__INGEST__IDEMPOTENCY_TTL", "1m"),
    ];
    let mut daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    let path = "/streams/order-1/events";
    append(&daemon, "order-1", events(&["a", "a", "a"])).await;
    let deadline = Instant::now() + 3 * WAIT_MAX;
    loop {
        let (status, answer, _) = daemon.call("GET", &format!("{path}?fromVersion=1"), &[], "").await;
        if status == 410 {
            is_problem(&(status, answer.clone()), 410, "version_gone", "a removed version");
            assert_eq!(answer["firstVersion"], 4, "{answer}");
            break;
        }
        assert_eq!(status, 200, "{answer}");
        assert!(Instant::now() < deadline, "nothing was removed: {answer}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (status, answer) =
        append(&daemon, "order-1", json!({"events": [{"type": "b", "data": 1}], "expectedVersion": 3})).await;
    assert_eq!((status, &answer["version"]), (202, &json!(4)), "the version survives its events: {answer}");
    for restart in [false, true] {
        if restart {
            assert_eq!(daemon.terminate(), Some(0));
            daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
        }
        for from in ["", "?fromVersion=1", "?fromVersion=3", "?fromVersion=2&types=b"] {
            let (status, answer, _) = daemon.call("GET", &format!("{path}{from}"), &[], "").await;
            is_problem(&(status, answer), 410, "version_gone", from);
        }
        let (status, answer, _) = daemon.call("GET", "/streams/order-1/state", &[], "").await;
        assert_eq!(answer["firstVersion"], 4, "{answer}");
        is_problem(&(status, answer), 410, "version_gone", "a state without its first events");
        assert_eq!(versions(&daemon.get(&format!("{path}?fromVersion=oldest")).await), [4]);
        assert_eq!(versions(&daemon.get(&format!("{path}?fromVersion=4")).await), [4]);
        let backwards = daemon.get(&format!("{path}?direction=backwards")).await;
        assert_eq!((versions(&backwards), &backwards["firstVersion"]), (vec![4], &json!(4)), "{backwards}");
    }
}

//! Files of earlier versions that every later version must read: data directories and backups, with
//! the API responses of the daemon that wrote them.
//!
//! Each directory in `tests/golden` has `data` (a data directory), `backup` (a backup of it) and
//! `answers.json`; the secrets key is [`KEY`]. In `format-1` secrets are bound to the endpoint's
//! id; in `format-1-bound` they are bound to its URL and revision, and the backup is authenticated.
//! `format-1-types` has event types, and pins of a queue and a consumer; `format-1-states` has
//! event types with state rules, too. `format-1-jobs` has jobs with their filters, and a client of
//! a token server that authenticates in the body. `format-1-leases` has lost answers of a queue.
//! `cargo test --test faults golden -- --ignored` writes another such directory below
//! `target/golden`, for a future format; existing ones are never rewritten.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::raw::lose_answer;
use crate::support::{Daemon, Receiver, answer};
use serde_json::{Map, Value, json};

const KEY: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I=";
const HMAC: &str = "whsec_wxRESeK8Anx6dxdg2gY7mrQuXLZPoCuy";

/// An event whose publisher chose the id. A repetition has the same bytes.
const CHOSEN: &str = r#"{"data":{"n":"chosen"},"id":"chosen-once","type":"order.paid"}"#;

/// Retention is off: the data is years old.
const ENVIRONMENT: [(&str, &str); 2] =
    [("BALTO__SECRETS__KEY", KEY), ("BALTO__RETENTION__EVENTS", "forever")];

fn golden() -> Vec<PathBuf> {
    let below = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let all: Vec<_> = fs::read_dir(below).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!all.is_empty());
    all
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

async fn balto(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balto"));
    command.args(arguments).envs(ENVIRONMENT);
    let done = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let message =
        format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{arguments:?}: {message}");
    message
}

/// Every response that shows stored data, by path.
async fn stored_responses(daemon: &Daemon) -> Map<String, Value> {
    let mut all = Map::new();
    for list in ["endpoints", "keys", "events", "deliveries", "dead-letters", "jobs"] {
        let mut page = daemon.get(&format!("/{list}?limit=250")).await;
        for item in page["data"].as_array().unwrap() {
            let path = format!("/{list}/{}", item["id"].as_str().unwrap());
            if list == "endpoints" {
                let path = format!("{path}/secret");
                all.insert(path.clone(), daemon.get(&path).await);
            }
            if list != "keys" {
                all.insert(path.clone(), daemon.get(&path).await);
            }
        }
        all.insert(format!("/{list}"), page["data"].take());
    }
    for list in ["event-types", "queues", "consumers"] {
        for item in daemon.get(&format!("/{list}?limit=250")).await["data"].as_array().unwrap() {
            let path = format!("/{list}/{}", item["name"].as_str().unwrap());
            all.insert(path.clone(), without_times(daemon.get(&path).await));
        }
    }
    for (path, member) in [
        ("/feed?types=pet.%23&versions=latest", "data"),
        ("/streams/pet-1/events?versions=pet.adopted:1.0", "data"),
        ("/streams/pet-1/state", "state"),
    ] {
        // A directory of before has neither the type nor the stream.
        let (status, page, _) = daemon.call("GET", path, &[], "").await;
        if status == 200 {
            all.insert(path.to_owned(), page[member].clone());
        }
    }
    all
}

/// A view without the members that depend on the time of the read.
fn without_times(mut view: Value) -> Value {
    let members = view.as_object_mut().unwrap();
    for name in ["lag", "connections"] {
        members.remove(name);
    }
    let versions = members.get_mut("versions").and_then(Value::as_object_mut);
    for version in versions.into_iter().flat_map(|versions| versions.values_mut()) {
        if let Some(version) = version.as_object_mut() {
            version.remove("eventsLastDay");
        }
    }
    view
}

/// Whether `actual` contains all of `golden`; later versions may add members.
fn contains_all(actual: &Value, golden: &Value) -> bool {
    match (actual, golden) {
        (Value::Object(actual), Value::Object(golden)) => golden
            .iter()
            .all(|(name, golden)| actual.get(name).is_some_and(|actual| contains_all(actual, golden))),
        (Value::Array(actual), Value::Array(golden)) => {
            actual.len() == golden.len()
                && actual.iter().zip(golden).all(|(actual, golden)| contains_all(actual, golden))
        }
        _ => actual == golden,
    }
}

/// Removes the number `attempts` of deliveries in lists: earlier versions repeated `attemptCount`
/// in it.
fn remove_attempt_numbers(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if members.contains_key("attemptCount") && members.get("attempts").is_some_and(Value::is_number) {
                members.remove("attempts");
            }
            members.values_mut().for_each(remove_attempt_numbers);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_attempt_numbers),
        _ => {}
    }
}

async fn check_answers(data: &Path, golden: &Path, story: &str) {
    let answers: Map<String, Value> =
        serde_json::from_str(&fs::read_to_string(golden.join("answers.json")).unwrap()).unwrap();
    assert!(answers.len() > 40, "{}", answers.len());
    let mut daemon = Daemon::start_in(data, &["--dev"], &ENVIRONMENT).await;
    let actual = stored_responses(&daemon).await;
    for (path, mut golden) in answers {
        remove_attempt_numbers(&mut golden);
        let actual = actual.get(&path).unwrap_or(&Value::Null);
        assert!(contains_all(actual, &golden), "{story}: {path} is {actual}, and was {golden}");
    }
    // A chosen id from then counts as a duplicate now, and a stream continues at its version.
    let (status, known, _) = daemon.call("POST", "/events", &[], CHOSEN).await;
    assert_eq!((status, &known["duplicate"]), (202, &json!(true)), "{story}: {known}");
    let next = json!({"type": "stream.next", "stream": "order-42", "expectedVersion": 3, "data": 4});
    let (status, accepted, _) = daemon.call("POST", "/events", &[], &next.to_string()).await;
    assert_eq!((status, &accepted["streamVersion"]), (202, &json!(4)), "{story}: {accepted}");
    assert_eq!(daemon.terminate(), Some(0));
    let message = balto(&["verify", "--data-dir", data.to_str().unwrap()]).await;
    assert!(message.contains("(opened)") && message.ends_with("good\n"), "{message}");
}

#[tokio::test]
async fn data_directories_of_every_format_give_the_same_answers() {
    for golden in golden() {
        let below = tempfile::tempdir().unwrap();
        for keep_state in [true, false] {
            let data = below.path().join(keep_state.to_string());
            copy(&golden.join("data"), &data);
            if !keep_state {
                fs::remove_dir_all(data.join("state")).unwrap();
            }
            let message = balto(&["verify", "--data-dir", data.to_str().unwrap()]).await;
            assert!(message.ends_with("good\n"), "{message}");
            let story = format!("{} (with its state: {keep_state})", golden.display());
            check_answers(&data, &golden, &story).await;
        }
    }
}

#[tokio::test]
async fn backups_of_every_format_restore_to_the_same_answers() {
    for golden in golden() {
        let below = tempfile::tempdir().unwrap();
        let data = below.path().join("data");
        let from = golden.join("backup");
        // The earliest backups are not authenticated.
        let is_early = fs::read_to_string(&from).unwrap().starts_with("balto-backup 1\n");
        let flags = if is_early { &["--unauthenticated"][..] } else { &[] };
        let arguments = ["restore", "--from", from.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
        balto(&[&arguments[..], flags].concat()).await;
        check_answers(&data, &golden, &format!("restored from {}", from.display())).await;
    }
}

/// Writes a directory for a future format, with every kind of record.
#[tokio::test]
#[ignore = "writes the files that the other tests read"]
async fn write_another() {
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/golden");
    if out.exists() {
        fs::remove_dir_all(&out).unwrap();
    }
    let data = out.join("data");
    fs::create_dir_all(&out).unwrap();
    let receiver = Receiver::start(|_, got| match got.body.as_str() {
        body if body.contains("refused") => answer(422),
        body if body.contains("fails") => answer(500),
        body if body.contains("throttled") => {
            "HTTP/1.1 429 x\r\nretry-after: 86400\r\ncontent-length: 0\r\n\r\n".to_owned()
        }
        _ => answer(204),
    })
    .await;
    let mut daemon = Daemon::start_in(&data, &["--dev"], &ENVIRONMENT).await;
    fill(&daemon, &receiver).await;
    let answers = stored_responses(&daemon).await;
    fs::write(out.join("answers.json"), serde_json::to_string_pretty(&answers).unwrap()).unwrap();
    let to = out.join("backup");
    let mut command = Command::new(env!("CARGO_BIN_EXE_balto"));
    command.args(["backup", "--to"]).arg(&to).env("BALTO_URL", daemon.api.trim_end_matches("/v1"));
    assert!(tokio::task::spawn_blocking(move || command.status().unwrap()).await.unwrap().success());
    assert_eq!(daemon.terminate(), Some(0));
    // The room after the last frame is zeros: a little of it is enough.
    for entry in fs::read_dir(data.join("journal")).unwrap().map(Result::unwrap) {
        let bytes = fs::read(entry.path()).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        fs::write(entry.path(), &bytes[..bytes.len().min(end + 100)]).unwrap();
    }
    fs::remove_file(data.join("LOCK")).unwrap();
}

async fn fill(daemon: &Daemon, receiver: &Receiver) {
    let retry = json!({"schedule": ["10ms"]});
    let first = json!({"url": receiver.url, "secret": HMAC, "retry": retry, "description": "all kinds of results",
        "headers": {"X-Env": "golden"}, "sensitiveHeaders": {"X-Token": "hush"}, "metadata": {"a": 1},
        "rateLimit": {"limit": 1000, "per": "1s", "burst": 1000}, "ordering": "key", "maxInFlight": 4});
    let first = daemon.post("/endpoints", &first.to_string()).await;
    let id = first["id"].as_str().unwrap().to_owned();
    let second = json!({"url": receiver.url, "secretType": "ed25519", "eventTypes": ["order.*", "#.cancelled"],
        "tenant": "acme", "ordering": "endpoint"});
    daemon.post("/endpoints", &second.to_string()).await;
    let gone = json!({"url": receiver.url, "tenant": "gone"}).to_string();
    let (_, gone, _) = daemon.call("POST", "/endpoints", &[("idempotency-key", "golden")], &gone).await;
    let post = async |event: Value| daemon.post("/events", &event.to_string()).await;
    for number in 0..4 {
        post(json!({"type": "order.paid", "data": {"n": number}, "orderingKey": "k", "metadata": {"m": number}})).await;
    }
    daemon.post("/events", CHOSEN).await;
    for version in 0..3 {
        post(json!({"type": "stream.event", "stream": "order-42", "expectedVersion": if version == 0 { json!("none") } else { json!(version) }, "data": version})).await;
    }
    for (kind, tenant) in [
        ("order.fails", "default"),
        ("order.refused", "default"),
        ("user.cancelled", "acme"),
        ("nobody.wants", "acme"),
        ("lost.with", "gone"),
    ] {
        post(json!({"type": kind, "tenant": tenant, "data": kind})).await;
    }
    let keyed =
        json!({"type": "with.key", "data": null, "timestamp": "2020-02-02T02:02:02.020Z", "version": "2.1"})
            .to_string();
    daemon.call("POST", "/events", &[("idempotency-key", "golden")], &keyed).await;
    let cloud = r#"{"specversion":"1.0","id":"1","source":"/golden","type":"cloud.event","subject":"s","ext":7,"datacontenttype":"text/plain","data":"text"}"#;
    daemon.call("POST", "/events", &[("content-type", "application/cloudevents+json")], cloud).await;
    post(json!({"type": "much.later", "data": 1, "deliverAt": "2999-01-01T00:00:00Z"})).await;
    for name in ["kept", "deleted"] {
        let key = daemon.post("/keys", &json!({"role": "viewer", "description": name}).to_string()).await;
        if name == "deleted" {
            daemon.call("DELETE", &format!("/keys/{}", key["id"].as_str().unwrap()), &[], "").await;
        }
    }
    let settled = |page: &Value| page["data"].as_array().unwrap().len() == 1;
    daemon.until("/deliveries?status=pending&limit=250", settled).await;
    let delivery = async |query: &str| {
        let page = daemon.get(&format!("/deliveries?limit=250&{query}")).await;
        page["data"][0]["id"].as_str().unwrap().to_owned()
    };
    // One of each: redriven and dead again, purged, cancelled, replayed, retried manually, an
    // endpoint that is gone.
    let dead = delivery("status=dead&type=order.fails").await;
    daemon.post(&format!("/dead-letters/{dead}/redrive"), "").await;
    daemon
        .until(&format!("/deliveries/{dead}"), |dead| {
            dead["status"] == "dead" && dead["attempts"].as_array().unwrap().len() > 2
        })
        .await;
    let refused = delivery("status=dead&type=order.refused").await;
    daemon.call("DELETE", &format!("/dead-letters/{refused}"), &[], "").await;
    let later = delivery("type=much.later").await;
    daemon.post(&format!("/deliveries/{later}/cancel"), "").await;
    post(json!({"type": "much.later", "data": 2, "deliverAt": "2999-01-01T00:00:00Z"})).await;
    daemon.post("/events/chosen-once/replay", "{}").await;
    let stream = delivery("type=stream.event").await;
    daemon.post(&format!("/deliveries/{stream}/retry"), "").await;
    daemon.until("/deliveries?status=pending&limit=250", settled).await;
    post(json!({"type": "lost.with", "tenant": "gone", "data": 2, "deliverAt": "2999-01-01T00:00:00Z"}))
        .await;
    daemon.call("DELETE", &format!("/endpoints/{}", gone["id"].as_str().unwrap()), &[], "").await;
    daemon.until("/dead-letters?reason=endpointDeleted", settled).await;
    daemon.post(&format!("/endpoints/{id}/secret/rotate"), r#"{"overlap":"0s"}"#).await;
    daemon.post(&format!("/endpoints/{id}/pause"), "").await;
    post(json!({"type": "while.paused", "data": "pending for ever"})).await;
    fill_lanes(daemon, receiver).await;
    fill_types(daemon).await;
    fill_jobs(daemon, receiver).await;
    fill_lost_answers(daemon).await;
}

/// Messages whose answers were lost: one that is back at the front, one that is due in a day, and a
/// dead letter. Each queue is paused, so that no message moves when the directory is opened.
async fn fill_lost_answers(daemon: &Daemon) {
    let retry = json!({"initial": "24h", "maxInterval": "24h"});
    for (name, deliveries_max, losses) in [("cut.once", 9, 1), ("cut.twice", 9, 2), ("cut.dead", 1, 2)] {
        let queue = json!({"name": name, "eventTypes": [name], "visibility": "1h", "retry": retry,
            "maxDeliveries": deliveries_max});
        daemon.post("/queues", &queue.to_string()).await;
        let event = json!({"type": name, "data": "x".repeat(150_000)});
        daemon.post("/events", &event.to_string()).await;
        for _ in 0..losses {
            lose_answer(daemon, name, 1).await;
            daemon.until(&format!("/queues/{name}/lane"), |lane| lane["leased"] == 0).await;
        }
        if name == "cut.dead" {
            let is_there = |page: &Value| page["data"][0].is_object();
            daemon.until("/dead-letters?queue=cut.dead", is_there).await;
        }
        daemon.post(&format!("/queues/{name}/pause"), "").await;
    }
}

/// Jobs with and without a search, and a token request with all members.
async fn fill_jobs(daemon: &Daemon, receiver: &Receiver) {
    for filter in [
        json!({"type": "order.#", "reason": "gone", "since": "2020-02-02T02:02:02Z", "rate": 7}),
        json!({"statusCode": 599, "errorClass": "status", "q": "evt_0"}),
        json!({"errorClass": "noReply", "tenant": "acme"}),
    ] {
        daemon.post("/dead-letters/redrive", &filter.to_string()).await;
    }
    let client = json!({"tokenUrl": receiver.url, "clientId": "golden", "clientSecret": "hush", "scope": "a b",
        "audience": "https://hooks.example/", "resource": "urn:hooks", "clientAuthentication": "post"});
    let posting = json!({"url": receiver.url, "eventTypes": ["none"], "auth": {"oauth2": client}});
    daemon.post("/endpoints", &posting.to_string()).await;
}

/// Event types, one of them deleted, events of two versions, and pins of all kinds.
async fn fill_types(daemon: &Daemon) {
    let text = json!({"type": "string"});
    let rules = json!([{"op": "copy", "from": "/data/name", "path": "/state"}]);
    let definition = json!({
        "description": "A pet was adopted",
        "state": rules,
        "versions": {
            "1.0": {"schema": {"type": "object", "properties": {"adopter": text}}, "deprecated": true,
                "sunset": "2999-01-01T00:00:00Z", "examples": [{"adopter": "Ann"}]},
            "2.0": {"schema": {"type": "object", "properties": {"name": text}}},
        },
        "transitive": true,
        "migrations": [
            {"from": "1.0", "to": "2.0", "patch": [{"op": "move", "from": "/adopter", "path": "/name"}]},
            {"from": "2.0", "to": "1.0", "patch":
                [{"op": "move", "from": "/name", "path": "/adopter", "optional": true}]},
        ],
    })
    .to_string();
    for name in ["pet.adopted", "pet.lost"] {
        assert_eq!(daemon.call("PUT", &format!("/event-types/{name}"), &[], &definition).await.0, 201);
    }
    assert_eq!(daemon.call("DELETE", "/event-types/pet.lost", &[], "").await.0, 204);
    let (one, latest) = (json!({"pet.adopted": "1.0"}), json!({"pet.adopted": "latest"}));
    let queue = json!({"name": "golden", "eventTypes": ["pet.#"], "versions": one, "format": "cloudevents"});
    daemon.post("/queues", &queue.to_string()).await;
    daemon.post("/queues/golden/pause", "").await;
    for (name, versions) in [("pinned", latest), ("plain", json!({}))] {
        let consumer = json!({"types": ["pet.#"], "versions": versions}).to_string();
        assert_eq!(daemon.call("PUT", &format!("/consumers/{name}"), &[], &consumer).await.0, 201);
    }
    for (version, data) in [("1.0", json!({"adopter": "Ann"})), ("2.0", json!({"name": "Bob"}))] {
        let event = json!({"type": "pet.adopted", "version": version, "stream": "pet-1", "data": data});
        daemon.post("/events", &event.to_string()).await;
    }
    daemon.post("/consumers/pinned/commit", r#"{"position":"1"}"#).await;
}

/// Endpoints with a hold by `Retry-After`, with an exhausted rate, and with failures. They are
/// paused, so that no delivery is due when the directory is opened years later.
async fn fill_lanes(daemon: &Daemon, receiver: &Receiver) {
    for (kind, policy) in [
        ("throttled", json!({})),
        ("rated", json!({"rateLimit": {"limit": 1, "per": "24h", "burst": 1}})),
        ("fails", json!({"retry": {"schedule": ["1h", "1h"]}})),
    ] {
        let mut endpoint = json!({"url": receiver.url, "tenant": "lanes", "eventTypes": [kind]});
        endpoint.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
        let endpoint = daemon.post("/endpoints", &endpoint.to_string()).await;
        let path = format!("/endpoints/{}", endpoint["id"].as_str().unwrap());
        for _ in 0..2 {
            let event = json!({"type": kind, "tenant": "lanes", "data": kind});
            daemon.post("/events", &event.to_string()).await;
        }
        let tried =
            |lane: &Value| ["retryAfter", "rate", "notDue"].iter().any(|reason| lane["reason"] == *reason);
        daemon.until(&format!("{path}/lane"), tried).await;
        daemon.post(&format!("{path}/pause"), "").await;
    }
}

//! Version pins of queues, consumers, the feed and streams; test events with examples.

use serde_json::{Value, json};

use super::event_types::{pet, put};
use super::feed_stream::Stream;
use super::support::{Daemon, Receiver};
use super::{endpoint, is_problem, list, publish, text};

const OLD: &str = r#"{"id":1,"adopter":"Ann"}"#;
const OLD_AS_NEW: &str = r#"{"id":1,"adopter":{"name":"Ann"}}"#;
const NEW: &str = r#"{"id":2,"adopter":{"name":"Bob"}}"#;
const NEW_AS_OLD: &str = r#"{"id":2,"adopter":"Bob"}"#;

/// A publisher of version 1.0 and one of version 2.0, in one stream, and an event of another type.
async fn publish_both(daemon: &Daemon) {
    for body in [
        format!(r#"{{"type":"pet.adopted","stream":"pet-1","data":{OLD}}}"#),
        format!(r#"{{"type":"pet.adopted","stream":"pet-1","version":"2.0","data":{NEW}}}"#),
        r#"{"type":"pet.fed","stream":"pet-1","version":"7","data":[1.50]}"#.to_owned(),
    ] {
        let (status, answer, _) = daemon.call("POST", "/events", &[], &body).await;
        assert_eq!(status, 202, "{answer}");
    }
}

/// Version, data and published version of each event.
fn facts(events: &[Value]) -> Vec<(String, String, Option<&str>)> {
    let fact = |event: &Value| {
        (text(event, "version"), event["data"].to_string(), event["storedVersion"].as_str().map(|_| ""))
    };
    events.iter().map(fact).collect()
}

/// The events as a reader of version 1.0 gets them, and as one of 2.0 does.
fn expected() -> [Vec<(String, String, Option<&'static str>)>; 2] {
    let fact = |version: &str, data: &str, stored| (version.to_owned(), data.to_owned(), stored);
    let other = fact("7", "[1.5]", None);
    [
        vec![fact("1.0", OLD, None), fact("1.0", NEW_AS_OLD, Some("")), other.clone()],
        vec![fact("2.0", OLD_AS_NEW, Some("")), fact("2.0", NEW, None), other],
    ]
}

async fn receive(daemon: &Daemon, queue: &str) -> Vec<Value> {
    let (status, answer, _) =
        daemon.call("POST", &format!("/queues/{queue}/receive"), &[], r#"{"max":10,"wait":"5s"}"#).await;
    assert_eq!(status, 200, "{answer}");
    answer["messages"].as_array().unwrap().clone()
}

#[tokio::test]
async fn readers_of_both_versions_read_side_by_side() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    put(&daemon, "pet.adopted", &pet()).await;
    for (name, versions, format) in [
        ("old", json!({"pet.adopted": "1.0"}), "standard"),
        ("new", json!({"pet.adopted": "latest"}), "standard"),
        ("cloud", json!({"pet.adopted": "2.0"}), "cloudevents"),
    ] {
        let queue = json!({"name": name, "versions": versions, "format": format}).to_string();
        let made = daemon.post("/queues", &queue).await;
        assert_eq!(made["versions"], versions, "{made}");
        let (status, again, _) = daemon.call("POST", "/queues", &[], &queue).await;
        assert_eq!(status, 200, "the same queue again: {again}");
        let consumer = json!({"versions": versions}).to_string();
        let (status, made, _) = daemon.call("PUT", &format!("/consumers/{name}"), &[], &consumer).await;
        assert_eq!((status, &made["versions"]), (201, &versions), "{made}");
    }
    publish_both(&daemon).await;
    let [old, new] = expected();
    for (reader, version, expected) in [("old", "1.0", &old), ("new", "latest", &new)] {
        let messages = receive(&daemon, reader).await;
        let events: Vec<_> = messages.iter().map(|message| message["event"].clone()).collect();
        assert_eq!(facts(&events), *expected, "queue {reader}");
        let pages = [
            format!("/feed?versions=pet.adopted:{version}"),
            format!("/consumers/{reader}/events"),
            format!("/streams/pet-1/events?versions=pet.adopted:{version}"),
        ];
        for path in pages {
            let page = daemon.get(&path).await;
            assert_eq!(facts(list(&page)), *expected, "{path}: {page}");
        }
        let mut stream = Stream::begin_at(&daemon, &format!("/consumers/{reader}/events"), &[]).await;
        for (_, data, _) in expected {
            let shown: Value = serde_json::from_str(&stream.next().await.unwrap().data.unwrap()).unwrap();
            assert_eq!(shown["data"].to_string(), *data, "{shown}");
        }
    }
    // `latest` alone is for each type, and unregistered types stay as they are.
    for path in ["/feed?versions=latest", "/streams/pet-1/events?versions=latest"] {
        assert_eq!(facts(list(&daemon.get(path).await)), new, "{path}");
    }
    let backwards = daemon.get("/streams/pet-1/events?versions=latest&direction=backwards&limit=2").await;
    assert_eq!(facts(list(&backwards)), [new[2].clone(), new[1].clone()]);
    assert_eq!(backwards["nextVersion"], 1);
    // Without a choice, the published version, byte for byte.
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let feed = client.get(format!("{}/feed", daemon.api)).send().await.unwrap();
    let raw = feed.text().await.unwrap();
    assert!(raw.contains(OLD) && raw.contains(NEW) && raw.contains("[1.50]"), "{raw}");
    assert!(!raw.contains("storedVersion"), "{raw}");
    let clouds = receive(&daemon, "cloud").await;
    let cloud = &clouds[0]["event"];
    assert_eq!((&cloud["specversion"], &cloud["storedversion"]), (&json!("1.0"), &json!("1.0")), "{cloud}");
    assert_eq!(cloud["data"].to_string(), OLD_AS_NEW);
    let versions: Vec<_> = clouds.iter().map(|cloud| cloud["event"]["version"].clone()).collect();
    assert_eq!(versions, ["2.0", "2.0", "7"], "the version of the data, also of an event posted as JSON");
    assert!(clouds[1]["event"].get("storedversion").is_none(), "{}", clouds[1]);
}

#[tokio::test]
async fn unknown_pins_are_rejected_everywhere() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    put(&daemon, "pet.adopted", &pet()).await;
    publish_both(&daemon).await;
    for (versions, pointer) in [
        (json!({"pet.lost": "latest"}), "/versions/pet.lost"),
        (json!({"pet.adopted": "3.0"}), "/versions/pet.adopted"),
        (json!({"pet.adopted": "a b"}), "/versions/pet.adopted"),
        (json!({"a..b": "1.0"}), "/versions/a..b"),
    ] {
        for (method, path) in [("POST", "/queues"), ("PUT", "/consumers/c")] {
            let mut body = json!({"versions": versions});
            if method == "POST" {
                body["name"] = json!("q");
            }
            let (status, answer, _) = daemon.call(method, path, &[], &body.to_string()).await;
            is_problem(&(status, answer.clone()), 422, "validation_failed", &body.to_string());
            assert_eq!(answer["errors"][0]["pointer"], pointer, "{path} {body}: {answer}");
        }
    }
    for versions in ["pet.lost:1.0", "pet.adopted:3.0", "pet.adopted", "", "pet.adopted:1.0,pet.adopted:2.0"]
    {
        for path in ["/feed", "/streams/pet-1/events"] {
            let path = format!("{path}?versions={versions}");
            let (status, answer, _) = daemon.call("GET", &path, &[], "").await;
            is_problem(&(status, answer.clone()), 422, "validation_failed", &path);
            assert_eq!(answer["errors"][0]["parameter"], "versions", "{path}: {answer}");
        }
    }
    // A consumer has its own versions.
    assert_eq!(daemon.call("PUT", "/consumers/c", &[], "{}").await.0, 201);
    assert_eq!(daemon.call("GET", "/consumers/c/events?versions=latest", &[], "").await.0, 422);
}

#[tokio::test]
async fn pins_hold_their_version_and_survive_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    put(&daemon, "pet.adopted", &pet()).await;
    let pinned = json!({"pet.adopted": "1.0"});
    daemon.post("/queues", &json!({"name": "q", "versions": pinned}).to_string()).await;
    let consumer = json!({"versions": pinned, "types": ["pet.#"]}).to_string();
    assert_eq!(daemon.call("PUT", "/consumers/c", &[], &consumer).await.0, 201);
    daemon.terminate();
    let daemon = Daemon::start(data.path()).await;
    for path in ["/queues/q", "/consumers/c"] {
        assert_eq!(daemon.get(path).await["versions"], pinned, "{path}");
    }
    let holders = daemon.get("/event-types/pet.adopted").await["versions"]["1.0"]["pinnedBy"].clone();
    assert_eq!(holders[1], "consumer c", "{holders}");
    assert!(text(&json!({"id": holders[0]}), "id").starts_with("que_"), "{holders}");
    let without = json!({"versions": {"2.0": pet()["versions"]["2.0"]}});
    let refused = || async { put(&daemon, "pet.adopted?force=true", &without).await };
    is_problem(&refused().await, 409, "version_in_use", "a queue and a consumer");
    let (status, changed, _) = daemon.call("PATCH", "/queues/q", &[], r#"{"versions":null}"#).await;
    assert_eq!((status, &changed["versions"]), (200, &json!({})), "{changed}");
    let problem = refused().await;
    is_problem(&problem, 409, "version_in_use", "a consumer");
    assert!(text(&problem.1, "detail").contains("consumer c"), "{}", problem.1);
    // A pin that is there may stay although its type has gone.
    assert_eq!(daemon.call("DELETE", "/event-types/pet.adopted?force=true", &[], "").await.0, 204);
    assert_eq!(daemon.call("PUT", "/consumers/c", &[], &consumer).await.0, 200);
    let (status, changed, _) = daemon.call("PUT", "/consumers/c", &[], r#"{"types":["pet.#"]}"#).await;
    assert_eq!((status, &changed["versions"]), (200, &json!({})), "{changed}");
}

#[tokio::test]
async fn unconvertible_message_is_dead_and_others_arrive() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let mut broken = pet();
    broken["migrations"][0]["patch"][0] = json!({"op": "test", "path": "/adopter", "value": "Zoe"});
    put(&daemon, "pet.adopted", &broken).await;
    daemon.post("/queues", r#"{"name":"q","versions":{"pet.adopted":"2.0"}}"#).await;
    for number in 0..3 {
        publish(&daemon, json!({"type": "pet.adopted", "data": {"id": number, "adopter": "Ann"}})).await;
    }
    publish(
        &daemon,
        json!({"type": "pet.adopted", "version": "2.0", "data": {"id": 9, "adopter": {"name": "Bob"}}}),
    )
    .await;
    // One message at a time: the request goes on to the first that can be converted.
    let (_, answer, _) = daemon.call("POST", "/queues/q/receive", &[], r#"{"max":1,"wait":"5s"}"#).await;
    assert_eq!(answer["messages"][0]["event"]["data"]["id"], 9, "{answer}");
    let letters = daemon.until("/dead-letters?queue=q", |letters| list(letters).len() == 3).await;
    for letter in list(&letters) {
        assert_eq!(letter["reason"], "unconvertible", "{letter}");
    }
    let path = format!("/dead-letters/{}", text(&list(&letters)[2], "deliveryId"));
    assert!(text(&daemon.get(&path).await, "conversionError").contains("operation 0"));
    assert_eq!(daemon.get("/queues/q/lane").await["leased"], 1);
    // The feed and the stream give the stored event, with the reason.
    let page = daemon.get("/feed?versions=latest&limit=1").await;
    let shown = &list(&page)[0];
    assert_eq!((&shown["version"], &shown["data"]["adopter"]), (&json!("1.0"), &json!("Ann")), "{shown}");
    assert!(text(shown, "conversionError").contains("migration from 1.0 to 2.0"), "{shown}");

    put(&daemon, "pet.adopted", &pet()).await;
    assert_eq!(daemon.call("POST", &format!("{path}/redrive"), &[], "").await.0, 202);
    let messages = receive(&daemon, "q").await;
    assert_eq!(messages[0]["event"]["data"].to_string(), r#"{"id":0,"adopter":{"name":"Ann"}}"#);
    let page = daemon.get("/feed?versions=latest&limit=1").await;
    assert_eq!(
        (&list(&page)[0]["version"], &list(&page)[0]["storedVersion"]),
        (&json!("2.0"), &json!("1.0"))
    );
}

#[tokio::test]
async fn test_event_carries_the_example_of_a_type() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    put(&daemon, "pet.adopted", &pet()).await;
    put(&daemon, "pet.lost", &json!({"versions": {"1.0": {"schema": true}}})).await;
    let (receiver, other) = (Receiver::status(200).await, Receiver::status(200).await);
    let made = endpoint(&daemon, &receiver, json!({"versions": {"pet.adopted": "2.0"}})).await;
    endpoint(&daemon, &other, json!({"eventTypes": ["pet.#"]})).await;
    let path = format!("/endpoints/{}/test", text(&made, "id"));
    let (status, accepted, _) = daemon.call("POST", &path, &[], r#"{"type":"pet.adopted"}"#).await;
    assert_eq!((status, &accepted["deliveries"]), (202, &json!(1)), "{accepted}");
    // The endpoint gets the type, in the version that it pins.
    let got = &receiver.until(1).await[0];
    assert!(got.body.contains(r#""type":"pet.adopted""#), "{}", got.body);
    assert!(got.body.ends_with(&format!(r#""data":{OLD_AS_NEW}}}"#)), "{}", got.body);
    assert_eq!(got.headers["balto-version"], "1.0");
    // The log has it as a test event, so no reader takes it for an adoption.
    assert_eq!(list(&daemon.get("/feed?types=pet.%23").await).len(), 0);
    let shown = daemon.get(&format!("/events/{}", text(&accepted, "id"))).await;
    assert_eq!(
        (&shown["type"], &shown["attributes"]["balto-test-type"]),
        (&json!("balto.test"), &json!("pet.adopted"))
    );
    let usage = daemon.get("/event-types/pet.adopted").await;
    assert_eq!(usage["versions"]["1.0"]["eventsLastDay"], 0, "{usage}");
    for (body, pointer) in [
        (json!({"type": "pet.unknown"}), "/type"),
        (json!({"type": "pet.lost"}), "/type"),
        (json!({"type": "pet.lost", "version": "1.0"}), "/version"),
        (json!({"type": "pet.adopted", "version": "9"}), "/version"),
        (json!({"type": "pet.adopted", "version": "2.0"}), "/version"),
        (json!({"version": "1.0"}), "/version"),
        (json!({"type": "a..b"}), "/type"),
        (json!({"typ": "pet.adopted"}), "/typ"),
    ] {
        let (status, answer, _) = daemon.call("POST", &path, &[], &body.to_string()).await;
        is_problem(&(status, answer.clone()), 422, "validation_failed", &body.to_string());
        assert_eq!(answer["errors"][0]["pointer"], pointer, "{body}: {answer}");
    }
    let (status, plain, _) = daemon.call("POST", &path, &[], "").await;
    assert_eq!((status, &plain["type"]), (202, &json!("balto.test")), "{plain}");
    assert!(receiver.until(2).await[1].body.contains("This is a test event."));
    assert_eq!(other.count(), 0);
}

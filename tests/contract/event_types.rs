//! Event types: registration, the check of events, compatibility, and conversion for subscribers.

use serde_json::{Value, json};

use super::support::{Daemon, Receiver};
use super::{ADMIN, call_as, endpoint, is_problem, key, keyed, list, publish, text};

pub(super) async fn put(daemon: &Daemon, path: &str, body: &Value) -> (u16, Value) {
    let (status, answer, _) =
        daemon.call("PUT", &format!("/event-types/{path}"), &[], &body.to_string()).await;
    (status, answer)
}

async fn post(daemon: &Daemon, event: &Value) -> (u16, Value) {
    let (status, answer, _) = daemon.call("POST", "/events", &[], &event.to_string()).await;
    (status, answer)
}

pub(super) fn object(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required})
}

/// The pet that moves its adopter from a name to an object.
pub(super) fn pet() -> Value {
    json!({
        "description": "A pet was adopted",
        "versions": {
            "1.0": {"schema": object(json!({"id": {"type": "integer"}, "adopter": {"type": "string"}}), &["id", "adopter"]),
                "examples": [{"id": 1, "adopter": "Ann"}]},
            "2.0": {"schema": object(json!({"id": {"type": "integer"},
                "adopter": object(json!({"name": {"type": "string"}}), &["name"])}), &["id", "adopter"])},
        },
        "migrations": [
            {"from": "1.0", "to": "2.0", "patch": [
                {"op": "move", "from": "/adopter", "path": "/name"},
                {"op": "add", "path": "/adopter", "value": {}},
                {"op": "move", "from": "/name", "path": "/adopter/name"},
            ]},
            {"from": "2.0", "to": "1.0", "patch": [
                {"op": "move", "from": "/adopter/name", "path": "/name"},
                {"op": "remove", "path": "/adopter"},
                {"op": "move", "from": "/name", "path": "/adopter"},
                {"op": "remove", "path": "/note", "optional": true},
            ]},
        ],
    })
}

/// Requests at the same time: an event of a version with another schema is never stored.
#[tokio::test]
async fn stored_events_match_the_schema_of_their_version() {
    let data = tempfile::tempdir().unwrap();
    let daemon = std::sync::Arc::new(Daemon::start(data.path()).await);
    let of = |kind: &str| json!({"compatibility": "none", "versions": {"1.0": {"schema": {"type": kind}}}});
    for round in 0..12 {
        let name = format!("round{round}");
        assert_eq!(put(&daemon, &name, &of("object")).await.0, 201);
        let mut requests = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (changing, publishing) = (daemon.clone(), daemon.clone());
            let (changed, published, definition) = (name.clone(), name.clone(), of("string"));
            requests.spawn(async move { put(&changing, &changed, &definition).await });
            requests.spawn(async move { post(&publishing, &json!({"type": published, "data": {}})).await });
        }
        for (status, answer) in requests.join_all().await {
            let is_used = answer["code"] == "version_in_use";
            assert!(matches!(status, 200 | 202 | 422) || is_used, "{status} {answer}");
        }
        let stored = daemon.get(&format!("/events?type={name}")).await;
        let schema = daemon.get(&format!("/event-types/{name}")).await["versions"]["1.0"]["schema"].clone();
        let is_object = schema == json!({"type": "object"});
        assert!(list(&stored).is_empty() || is_object, "{stored} of {schema}");
    }
}

#[tokio::test]
async fn type_is_registered_changed_and_deleted() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    daemon.key = Some(ADMIN.to_owned());
    is_problem(
        &call_as(&daemon, ADMIN, "GET", "/event-types/pet.adopted", "").await,
        404,
        "not_found",
        "none",
    );
    let (status, made) = put(&daemon, "pet.adopted", &pet()).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!((&made["name"], &made["latest"]), (&json!("pet.adopted"), &json!("2.0")));
    assert_eq!((&made["compatibility"], &made["transitive"]), (&json!("forward"), &json!(false)));
    assert_eq!(made["versions"]["1.0"]["examples"], json!([{"id": 1, "adopter": "Ann"}]));
    assert_eq!(made["sample"], json!({"checked": 0, "failed": 0, "examples": []}));
    let mut changed = pet();
    changed["versions"]["1.0"]["deprecated"] = json!(true);
    changed["versions"]["1.0"]["sunset"] = json!("2030-01-01T00:00:00Z");
    assert_eq!(put(&daemon, "pet.adopted", &changed).await.0, 200);
    put(&daemon, "other", &json!({"versions": {"1.0": {"schema": true}}})).await;

    // Keys of tenants read the types, and only the operator changes them.
    let viewer = key(&daemon, "publisher", Some("acme")).await;
    let shown = call_as(&daemon, &viewer, "GET", "/event-types/pet.adopted", "").await.1;
    assert_eq!(shown["versions"]["1.0"]["sunset"], "2030-01-01T00:00:00.000Z", "{shown}");
    assert_eq!(shown["migrations"].as_array().unwrap().len(), 2);
    let page = call_as(&daemon, &viewer, "GET", "/event-types?limit=1", "").await.1;
    assert_eq!(list(&page)[0]["name"], "other", "{page}");
    let next = format!("/event-types?cursor={}", text(&page, "next"));
    let rest = call_as(&daemon, &viewer, "GET", &next, "").await.1;
    assert_eq!((&list(&rest)[0]["name"], &rest["next"]), (&json!("pet.adopted"), &Value::Null));
    assert_eq!(list(&rest)[0]["versions"]["1.0"]["deprecated"], true, "{rest}");
    assert!(list(&rest)[0]["versions"]["1.0"]["schema"].is_null(), "lists have no schemas: {rest}");
    let admin = key(&daemon, "admin", Some("acme")).await;
    for key in [&viewer, &admin] {
        let answer = call_as(&daemon, key, "PUT", "/event-types/x", &pet().to_string()).await;
        is_problem(&answer, 403, "forbidden", "put");
        let answer = call_as(&daemon, key, "DELETE", "/event-types/other", "").await;
        is_problem(&answer, 403, "forbidden", "delete");
    }

    // Registrations survive a restart.
    daemon.terminate();
    let mut daemon = keyed(data.path()).await;
    daemon.key = Some(ADMIN.to_owned());
    assert_eq!(daemon.get("/event-types/pet.adopted").await["latest"], "2.0");
    assert_eq!(daemon.call("DELETE", "/event-types/pet.adopted", &[], "").await.0, 204);
    assert_eq!(daemon.call("DELETE", "/event-types/pet.adopted", &[], "").await.0, 404);
    assert_eq!(list(&daemon.get("/event-types").await).len(), 1);
}

#[tokio::test]
async fn invalid_definitions_have_pointers() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let of = |version: Value| json!({"versions": {"1.0": version}});
    let migrations = |migrations: Value| {
        json!({"versions": {"1": {"schema": true}, "2": {"schema": true}, "3": {"schema": true}, "4": {"schema": true}},
            "migrations": migrations})
    };
    let step = |from: &str, to: &str| json!({"from": from, "to": to, "patch": []});
    let mut doubled = json!({"$ref": "#/$defs/d0", "$defs": {"d16": {"type": "string"}}});
    for level in 0..16 {
        let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
        doubled["$defs"][format!("d{level}")] = json!({"allOf": [next, next]});
    }
    for (body, pointer) in [
        (json!({}), "/versions"),
        (json!({"versions": {}}), "/versions"),
        (json!({"versions": {"1.0": {}}}), "/versions/1.0/schema"),
        (json!({"versions": {"a b": {"schema": true}}}), "/versions/a b"),
        (json!({"versions": {"latest": {"schema": true}}}), "/versions/latest"),
        (of(json!({"schema": true, "extra": 1})), "/versions/1.0/extra"),
        (of(json!({"schema": 7})), "/versions/1.0/schema"),
        (of(json!({"schema": {"type": "objct"}})), "/versions/1.0/schema/type"),
        (of(json!({"schema": {"$ref": "https://example.com/s"}})), "/versions/1.0/schema"),
        (of(json!({"schema": {"pattern": "(?=a)b"}})), "/versions/1.0/schema/pattern"),
        (of(json!({"schema": doubled})), "/versions/1.0/schema"),
        (of(json!({"schema": {"description": "x".repeat(70_000)}})), "/versions/1.0/schema"),
        (of(json!({"schema": {"type": "string"}, "examples": ["a", 1]})), "/versions/1.0/examples/1"),
        (of(json!({"schema": true, "examples": vec![0; 21]})), "/versions/1.0/examples"),
        (of(json!({"schema": true, "sunset": "tomorrow"})), "/versions/1.0/sunset"),
        (json!({"versions": {"1.0": {"schema": true}}, "compatibility": "always"}), "/compatibility"),
        (migrations(json!([step("1", "9")])), "/migrations/0/to"),
        (migrations(json!([step("1", "1")])), "/migrations/0/to"),
        (migrations(json!([step("1", "2"), step("1", "2")])), "/migrations/1"),
        (migrations(json!([{"from": "1", "to": "2", "patch": [{"op": "jump"}]}])), "/migrations/0/patch/0"),
        (migrations(json!([step("1", "2"), step("1", "3"), step("2", "4"), step("3", "4")])), "/migrations"),
    ] {
        let answer = put(&daemon, "pet.adopted", &body).await;
        is_problem(&answer, 422, "validation_failed", &body.to_string());
        assert_eq!(answer.1["errors"][0]["pointer"], pointer, "{body}: {}", answer.1);
    }
    for name in ["balto.delivery.dead", "a..b"] {
        let answer = put(&daemon, name, &pet()).await;
        is_problem(&answer, 422, "validation_failed", name);
        assert_eq!(answer.1["errors"][0]["parameter"], "name", "{name}: {}", answer.1);
    }
    assert_eq!(list(&daemon.get("/event-types").await).len(), 0);
}

#[tokio::test]
async fn events_must_match_their_type() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let early = json!({"type": "pet.adopted", "data": "anything", "id": "early"});
    assert_eq!(post(&daemon, &early).await.0, 202);
    let (status, made) = put(&daemon, "pet.adopted", &pet()).await;
    assert_eq!((status, &made["sample"]["checked"]), (201, &json!(1)), "{made}");
    assert_eq!(made["sample"]["failed"], 1, "{made}");
    assert_eq!(made["sample"]["examples"][0]["eventId"], "early", "{made}");

    let good = json!({"type": "pet.adopted", "data": {"id": 1, "adopter": "Ann"}});
    let bad = json!({"type": "pet.adopted", "data": {"id": "one", "adopter": "Ann"}});
    assert_eq!(post(&daemon, &good).await.0, 202);
    let answer = post(&daemon, &bad).await;
    is_problem(&answer, 422, "schema_violation", "a wrong member");
    assert_eq!(answer.1["errors"][0]["pointer"], "/data/id", "{}", answer.1);
    let answer = post(&daemon, &json!({"type": "pet.adopted", "version": "9", "data": {}})).await;
    is_problem(&answer, 422, "unknown_version", "a version");
    assert_eq!(answer.1["known"], json!(["1.0", "2.0"]));
    let twice = r#"{"type":"pet.adopted","data":{"id":1,"adopter":"Ann","id":2}}"#;
    let (status, answer, _) = daemon.call("POST", "/events", &[], twice).await;
    is_problem(&(status, answer), 422, "schema_violation", "a duplicate member");

    // Each event of a batch is judged by itself, and so is a CloudEvent.
    let batch = json!({"events": [bad, good, bad, {"type": "free", "data": 1}]});
    let (_, answer, _) = daemon.call("POST", "/events/batch", &[], &batch.to_string()).await;
    let results: Vec<_> =
        answer["results"].as_array().unwrap().iter().map(|one| one["status"].clone()).collect();
    assert_eq!(results, [422, 202, 422, 202], "{answer}");
    let cloud =
        json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "pet.adopted", "data": {"id": 1}});
    let headers = [("content-type", "application/cloudevents+json")];
    let (status, answer, _) = daemon.call("POST", "/events", &headers, &cloud.to_string()).await;
    is_problem(&(status, answer.clone()), 422, "schema_violation", "a CloudEvent");
    assert_eq!(answer["errors"][0]["pointer"], "/data", "{answer}");

    // An append and an atomic batch are refused as a whole.
    let append = json!({"events": [good, bad]});
    let (status, answer, _) = daemon.call("POST", "/streams/pet-1/events", &[], &append.to_string()).await;
    is_problem(&(status, answer.clone()), 422, "schema_violation", "an append");
    assert_eq!(answer["errors"][0]["pointer"], "/events/1/data/id", "{answer}");
    let atomic = json!({"atomic": true, "events": [good, bad]}).to_string();
    let (status, answer, _) = daemon.call("POST", "/events/batch", &[], &atomic).await;
    is_problem(&(status, answer.clone()), 422, "schema_violation", "an atomic batch");
    assert_eq!((&answer["index"], &answer["errors"][0]["pointer"]), (&json!(1), &json!("/events/1/data/id")));

    // An event that was accepted before the registration is answered again.
    let (status, again) = post(&daemon, &early).await;
    assert_eq!((status, &again["duplicate"]), (202, &json!(true)), "{again}");
    // A refusal is not stored: the corrected event uses the same key.
    let keyed = [("idempotency-key", "adopt-1")];
    assert_eq!(daemon.call("POST", "/events", &keyed, &bad.to_string()).await.0, 422);
    assert_eq!(daemon.call("POST", "/events", &keyed, &good.to_string()).await.0, 202);
    let shown = daemon.get("/event-types/pet.adopted").await;
    assert_eq!(shown["versions"]["1.0"]["eventsLastDay"], 3, "{shown}");
}

#[tokio::test]
async fn unregistered_types_can_be_rejected() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_in(data.path(), &["--dev"], &[("BALTO__TYPES__REQUIRED", "true")]).await;
    put(&daemon, "known", &json!({"versions": {"1.0": {"schema": true}}})).await;
    assert_eq!(post(&daemon, &json!({"type": "known", "data": 1})).await.0, 202);
    let answer = post(&daemon, &json!({"type": "unknown", "data": 1})).await;
    is_problem(&answer, 422, "unknown_type", "an unregistered type");
}

#[tokio::test]
async fn incompatible_versions_are_rejected() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (id, note) = (json!({"type": "integer"}), json!({"type": "string"}));
    let first = object(json!({"id": id}), &["id"]);
    let with = |second: Value| json!({"versions": {"1.0": {"schema": first}, "1.1": {"schema": second}}});
    let (status, _) = put(&daemon, "t", &json!({"versions": {"1.0": {"schema": first}}})).await;
    assert_eq!(status, 201);
    let removed = with(object(json!({"note": note}), &[]));
    let answer = put(&daemon, "t", &removed).await;
    is_problem(&answer, 409, "incompatible_schema", "a required member is gone");
    let difference = &answer.1["incompatibilities"][0];
    assert_eq!((&difference["direction"], &difference["answer"]), (&json!("forward"), &json!("no")));
    assert_eq!((&difference["version"], &difference["with"]), (&json!("1.1"), &json!("1.0")), "{difference}");
    assert!(difference["lost"].is_object(), "{difference}");
    let optional = with(object(json!({"id": id, "note": note}), &["id"]));
    assert_eq!(put(&daemon, "t?dryRun=true", &optional).await.0, 200);
    assert_eq!(daemon.get("/event-types/t").await["latest"], "1.0", "a dry run stores nothing");
    assert_eq!(put(&daemon, "t?dryRun=true", &removed).await.0, 409);
    let (status, forced) = put(&daemon, "t?force=true", &removed).await;
    assert_eq!((status, forced["incompatibilities"][0]["answer"].as_str()), (200, Some("no")), "{forced}");
    let mut migrated = removed.clone();
    migrated["versions"]["1.2"] = json!({"schema": first});
    migrated["migrations"] = json!([
        {"from": "1.1", "to": "1.2", "patch": [{"op": "add", "path": "/id", "value": 0}]},
        {"from": "1.2", "to": "1.1", "patch": [{"op": "remove", "path": "/id"}]},
    ]);
    assert_eq!(put(&daemon, "t", &migrated).await.0, 200, "migrations both ways replace compatibility");
    // Each of these changes makes a pair of versions incompatible, as a new version would.
    let mut lost = removed.clone();
    lost["migrations"] = json!([
        {"from": "1.0", "to": "1.1", "patch": [{"op": "remove", "path": "/id"}]},
        {"from": "1.1", "to": "1.0", "patch": [{"op": "add", "path": "/id", "value": 0}]},
    ]);
    assert_eq!(put(&daemon, "lost", &lost).await.0, 201);
    let answer = put(&daemon, "lost", &removed).await;
    is_problem(&answer, 409, "incompatible_schema", "the migrations are gone");
    let pair = |first: &Value, second: &Value| json!({"versions": {"1": {"schema": first}, "2": {"schema": second}}});
    let (number, word) = (object(json!({"id": id}), &["id"]), object(json!({"id": note}), &["id"]));
    assert_eq!(put(&daemon, "pair", &pair(&number, &number)).await.0, 201);
    let answer = put(&daemon, "pair", &pair(&word, &number)).await;
    is_problem(&answer, 409, "incompatible_schema", "the earlier version has changed");
    let between =
        json!({"versions": {"1": {"schema": number}, "1.5": {"schema": word}, "2": {"schema": number}}});
    let (_, answer) = put(&daemon, "pair", &between).await;
    let compared: Vec<_> = answer["incompatibilities"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (text(one, "version"), text(one, "with")))
        .collect();
    assert!(
        compared.contains(&("1.5".into(), "1".into())) && compared.contains(&("2".into(), "1.5".into())),
        "{answer}"
    );
    for query in ["t?force=yes", "t?dryRun=1", "t?dry=true"] {
        is_problem(&put(&daemon, query, &optional).await, 422, "validation_failed", query);
    }
}

#[tokio::test]
async fn sample_checks_events_against_the_newest_version() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let with = |member: &str| object(json!({member: {"type": "integer"}}), &[member]);
    let mut definition = json!({"compatibility": "none", "versions": {"1.0": {"schema": with("a")}}});
    assert_eq!(put(&daemon, "t", &definition).await.0, 201);
    publish(&daemon, json!({"type": "t", "data": {"a": 1}})).await;
    definition["versions"]["2.0"] = json!({"schema": with("b")});
    let (_, answer) = put(&daemon, "t", &definition).await;
    assert_eq!(
        (&answer["sample"]["checked"], &answer["sample"]["failed"]),
        (&json!(1), &json!(1)),
        "{answer}"
    );
}

#[tokio::test]
async fn parts_of_a_definition_are_exact_and_not_too_deep() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let number = "12345678901234567890123";
    // Readers of documents have limits.
    let deep = "[".repeat(101) + &"]".repeat(101);
    let versions = r#""versions":{"1.0":{"schema":true},"2.0":{"schema":true}}"#;
    let patch = format!(r#"[{{"op":"add","path":"/k","value":{number}}}]"#);
    for (body, pointer) in [
        (
            format!(r#"{{"versions":{{"1.0":{{"schema":true,"examples":[{number}]}}}}}}"#),
            "/versions/1.0/examples/0",
        ),
        (
            format!(r#"{{{versions},"migrations":[{{"from":"1.0","to":"2.0","patch":{patch}}}]}}"#),
            "/migrations/0/patch",
        ),
        (format!(r#"{{{versions},"state":{patch}}}"#), "/state"),
        (
            format!(r#"{{"versions":{{"1.0":{{"schema":true,"examples":[{deep}]}}}}}}"#),
            "/versions/1.0/examples/0",
        ),
        (format!(r#"{{"versions":{{"1.0":{{"schema":{{"const":{deep}}}}}}}}}"#), "/versions/1.0/schema"),
    ] {
        let (status, answer, _) = daemon.call("PUT", "/event-types/t", &[], &body).await;
        is_problem(&(status, answer.clone()), 422, "validation_failed", pointer);
        assert_eq!(answer["errors"][0]["pointer"], pointer, "{answer}");
    }
}

#[tokio::test]
async fn cloudevents_name_the_version_of_their_type() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    put(&daemon, "pet.adopted", &pet()).await;
    let pinned = json!({"format": "cloudevents", "versions": {"pet.adopted": "1.0"}});
    endpoint(&daemon, &receiver, pinned).await;
    let cloud = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "pet.adopted",
        "version": "2.0", "data": {"id": 1, "adopter": {"name": "Ann"}}});
    let headers = [("content-type", "application/cloudevents+json")];
    let (status, answer, _) = daemon.call("POST", "/events", &headers, &cloud.to_string()).await;
    assert_eq!(status, 202, "{answer}");
    let shown = daemon.get(&format!("/events/{}", text(&answer, "id"))).await;
    assert_eq!(shown["version"], "2.0", "{shown}");
    let got: Value = serde_json::from_str(&receiver.until(1).await[0].body).unwrap();
    assert_eq!((&got["version"], &got["data"]["adopter"]), (&json!("1.0"), &json!("Ann")), "{got}");
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-id", "2"),
        ("ce-source", "/s"),
        ("ce-type", "pet.adopted"),
        ("ce-version", "2.0"),
        ("content-type", "application/json"),
    ];
    let (status, answer, _) = daemon.call("POST", "/events", &binary, r#"{"id":1,"adopter":"Ann"}"#).await;
    is_problem(&(status, answer), 422, "schema_violation", "data of version 1.0");
    // Another use of the name.
    let other = json!({"specversion": "1.0", "id": "3", "source": "/s", "type": "free", "version": 7});
    assert_eq!(daemon.call("POST", "/events", &headers, &other.to_string()).await.0, 202);
}

#[tokio::test]
async fn version_in_use_keeps_its_schema() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    put(&daemon, "pet.adopted", &pet()).await;
    publish(&daemon, json!({"type": "pet.adopted", "data": {"id": 1, "adopter": "Ann"}})).await;
    endpoint(&daemon, &receiver, json!({"versions": {"pet.adopted": "2.0"}})).await;
    let mut other = pet();
    other["versions"]["1.0"]["schema"] = json!(true);
    is_problem(&put(&daemon, "pet.adopted?force=true", &other).await, 409, "version_in_use", "changed");
    let gone = json!({"versions": {"2.0": pet()["versions"]["2.0"]}});
    is_problem(&put(&daemon, "pet.adopted", &gone).await, 409, "version_in_use", "removed");
    let mut unpinned = pet();
    unpinned["versions"]["3.0"] = unpinned["versions"]["2.0"].take();
    unpinned["versions"].as_object_mut().unwrap().remove("2.0");
    unpinned["migrations"] = json!([]);
    is_problem(&put(&daemon, "pet.adopted?force=true", &unpinned).await, 409, "version_in_use", "pinned");
    let mut described = pet();
    described["versions"]["1.0"] =
        json!({"schema": pet()["versions"]["1.0"]["schema"], "deprecated": true, "examples": []});
    assert_eq!(put(&daemon, "pet.adopted", &described).await.0, 200);
    let shown = daemon.get("/event-types/pet.adopted").await;
    assert_eq!(shown["versions"]["2.0"]["pinnedBy"].as_array().unwrap().len(), 1, "{shown}");
    let (status, answer, _) = daemon.call("DELETE", "/event-types/pet.adopted", &[], "").await;
    is_problem(&(status, answer), 409, "version_in_use", "deleted");
    assert_eq!(daemon.call("DELETE", "/event-types/pet.adopted?force=true", &[], "").await.0, 204);
}

#[tokio::test]
async fn subscribers_get_the_version_that_they_pin() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    put(&daemon, "pet.adopted", &pet()).await;
    let (plain, old, new) =
        (Receiver::status(200).await, Receiver::status(200).await, Receiver::status(200).await);
    endpoint(&daemon, &plain, json!({})).await;
    endpoint(&daemon, &old, json!({"versions": {"pet.adopted": "1.0"}})).await;
    endpoint(&daemon, &new, json!({"versions": {"pet.adopted": "latest"}})).await;
    let raw = r#"{"type":"pet.adopted","data":{"z": 1.50, "id" :1,"adopter":"Ann"}}"#;
    assert_eq!(daemon.call("POST", "/events", &[], raw).await.0, 202);
    for receiver in [&plain, &old] {
        let got = &receiver.until(1).await[0];
        assert!(got.body.ends_with(r#""data":{"z": 1.50, "id" :1,"adopter":"Ann"}}"#), "{}", got.body);
        assert!(!got.headers.contains_key("balto-version"), "{:?}", got.headers);
    }
    let got = &new.until(1).await[0];
    assert!(got.body.contains(r#""version":"2.0""#), "{}", got.body);
    assert!(got.body.ends_with(r#""data":{"z":1.5,"id":1,"adopter":{"name":"Ann"}}}"#), "{}", got.body);
    assert_eq!(got.headers["balto-version"], "1.0");
    let second = json!({"type": "pet.adopted", "version": "2.0", "data": {"note": "x", "id": 2, "adopter": {"name": "Bob"}}});
    publish(&daemon, second).await;
    let got = &old.until(2).await[1];
    assert!(got.body.ends_with(r#""data":{"id":2,"adopter":"Bob"}}"#), "{}", got.body);
    assert_eq!(got.headers["balto-version"], "2.0");
    assert!(!new.until(2).await[1].headers.contains_key("balto-version"));
}

#[tokio::test]
async fn failed_conversion_is_a_dead_letter_until_mended() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let mut broken = pet();
    broken["migrations"][0]["patch"] = json!([{"op": "test", "path": "/adopter", "value": "nobody"}]);
    put(&daemon, "pet.adopted", &broken).await;
    endpoint(&daemon, &receiver, json!({"versions": {"pet.adopted": "2.0"}})).await;
    let event = publish(&daemon, json!({"type": "pet.adopted", "data": {"id": 1, "adopter": "Ann"}})).await;
    let big = r#"{"type":"pet.adopted","data":{"id":1,"adopter":"Ann","n":0.12345678901234567890}}"#;
    let (_, big, _) = daemon.call("POST", "/events", &[], big).await;
    let letters = daemon.until("/dead-letters", |letters| list(letters).len() == 2).await;
    for letter in list(&letters) {
        assert_eq!(
            (&letter["reason"], &letter["attemptCount"]),
            (&json!("unconvertible"), &json!(0)),
            "{letter}"
        );
    }
    let mine = list(&letters).iter().find(|letter| letter["eventId"] == event["id"]).unwrap();
    let path = format!("/dead-letters/{}", text(mine, "deliveryId"));
    let detail = daemon.get(&path).await;
    assert!(text(&detail, "conversionError").contains("operation 0"), "{detail}");
    assert_eq!(put(&daemon, "pet.adopted", &pet()).await.0, 200);
    assert!(daemon.get(&path).await["conversionError"].is_null());
    assert_eq!(daemon.call("POST", &format!("{path}/redrive"), &[], "").await.0, 202);
    assert!(receiver.until(1).await[0].body.contains(r#""adopter":{"name":"Ann"}"#));
    let other = list(&letters).iter().find(|letter| letter["eventId"] == big["id"]).unwrap();
    let detail = daemon.get(&format!("/dead-letters/{}", text(other, "deliveryId"))).await;
    assert!(text(&detail, "conversionError").contains("0.12345678901234567890"), "{detail}");
}

#[tokio::test]
async fn pins_name_registered_versions() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    put(&daemon, "pet.adopted", &pet()).await;
    for (versions, pointer) in [
        (json!({"pet.lost": "latest"}), "/versions/pet.lost"),
        (json!({"pet.adopted": "3.0"}), "/versions/pet.adopted"),
        (json!({"pet.adopted": "a b"}), "/versions/pet.adopted"),
        (json!({"a..b": "1.0"}), "/versions/a..b"),
        (json!({"pet.adopted": 1}), "/versions"),
    ] {
        let body = json!({"url": "http://127.0.0.1:19999/", "versions": versions}).to_string();
        let (status, answer, _) = daemon.call("POST", "/endpoints", &[], &body).await;
        is_problem(&(status, answer.clone()), 422, "validation_failed", &body);
        assert!(text(&answer["errors"][0], "pointer").starts_with(pointer), "{body}: {answer}");
    }
    let body = json!({"url": "http://127.0.0.1:19999/", "versions": {"pet.adopted": "1.0"}}).to_string();
    let made = daemon.post("/endpoints", &body).await;
    assert_eq!(made["versions"], json!({"pet.adopted": "1.0"}));
    let path = format!("/endpoints/{}", text(&made, "id"));
    let (status, changed, _) =
        daemon.call("PATCH", &path, &[], r#"{"versions":{"pet.adopted":"latest"}}"#).await;
    assert_eq!((status, &changed["versions"]), (200, &json!({"pet.adopted": "latest"})), "{changed}");
    let (_, changed, _) = daemon.call("PATCH", &path, &[], r#"{"versions":null}"#).await;
    assert_eq!(changed["versions"], json!({}), "{changed}");
}

//! States of streams: the fold of events by the rules of their types.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::event_types::{pet, put};
use super::streams::append;
use super::support::{Daemon, seed};
use super::{ADMIN, call_as, is_problem, key, keyed, publish, text};

/// Registers a type with these rules, whose data may be anything.
async fn register(daemon: &Daemon, name: &str, rules: Value) {
    let body = json!({"versions": {"1.0": {"schema": true}}, "state": rules});
    let (status, answer) = put(daemon, name, &body).await;
    assert!(status == 201 || status == 200, "{answer}");
}

/// The pet of the documentation.
async fn register_pet(daemon: &Daemon) {
    let status = |status: &str| json!({"op": "add", "path": "/state/status", "value": status});
    for (name, rules) in [
        (
            "PetCreated",
            json!([{"op": "copy", "from": "/data", "path": "/state"}, status("AVAILABLE"),
                {"op": "add", "path": "/state/vaccinations", "value": []}]),
        ),
        ("PetVaccinated", json!([{"op": "copy", "from": "/data", "path": "/state/vaccinations/-"}])),
        (
            "PetAdopted",
            json!([{"op": "replace", "path": "/state/status", "value": "ADOPTED"},
                {"op": "copy", "from": "/data/adopterId", "path": "/state/adopterId"}]),
        ),
        (
            "PetReturned",
            json!([{"op": "test", "path": "/state/status", "value": "ADOPTED"}, status("AVAILABLE"),
                {"op": "remove", "path": "/state/adopterId"}]),
        ),
    ] {
        register(daemon, name, rules).await;
    }
}

fn event(kind: &str, data: Value) -> Value {
    json!({"type": kind, "data": data})
}

async fn append_all(daemon: &Daemon, stream: &str, events: &[Value]) -> Value {
    let (status, answer) = append(daemon, stream, json!({"events": events})).await;
    assert_eq!(status, 202, "{answer}");
    answer
}

async fn state(daemon: &Daemon, path: &str) -> (u16, Value) {
    let (status, answer, _) = daemon.call("GET", &format!("/streams/{path}"), &[], "").await;
    (status, answer)
}

/// The state and the versions of its problems.
async fn folded(daemon: &Daemon, path: &str) -> (Value, Vec<u64>) {
    let (status, answer) = state(daemon, path).await;
    assert_eq!(status, 200, "{path}: {answer}");
    let problems = answer["problems"].as_array().unwrap();
    (answer["state"].clone(), problems.iter().map(|problem| problem["version"].as_u64().unwrap()).collect())
}

#[tokio::test]
async fn pet_is_the_fold_of_its_events() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    register_pet(&daemon).await;
    let created = event("PetCreated", json!({"name": "Rex", "species": "dog"}));
    append_all(&daemon, "pet-1", &[created, event("PetVaccinated", json!({"vaccine": "rabies"}))]).await;
    let early = json!({"name": "Rex", "species": "dog", "status": "AVAILABLE", "vaccinations": [{"vaccine": "rabies"}]});
    assert_eq!(folded(&daemon, "pet-1/state").await, (early.clone(), vec![]));

    tokio::time::sleep(Duration::from_millis(2)).await;
    // Types without rules, and unregistered ones, change nothing.
    put(&daemon, "PetSeen", &json!({"versions": {"1.0": {"schema": true}}})).await;
    let later =
        [event("PetSeen", json!(1)), event("Other", json!(2)), event("PetAdopted", json!({"adopterId": 7}))];
    let last = append_all(&daemon, "pet-1", &later).await;
    let (status, answer) = state(&daemon, "pet-1/state").await;
    assert_eq!(status, 200, "{answer}");
    let members: BTreeSet<_> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, BTreeSet::from(["stream", "version", "position", "state", "problems"]));
    assert_eq!((&answer["stream"], &answer["version"]), (&json!("pet-1"), &json!(5)));
    assert_eq!(answer["position"], last["position"]);
    let adopted = json!({"name": "Rex", "species": "dog", "status": "ADOPTED", "vaccinations": [{"vaccine": "rabies"}], "adopterId": 7});
    assert_eq!((&answer["state"], &answer["problems"]), (&adopted, &json!([])));

    // The past, by version and by time.
    for (query, version, expected) in [
        ("untilVersion=0".to_owned(), 0, &Value::Null),
        ("untilVersion=4".to_owned(), 4, &early),
        ("untilVersion=99".to_owned(), 5, &adopted),
        (format!("until={}", text(&daemon.get("/streams/pet-1").await, "lastAt")), 2, &early),
        (format!("until={}", text(&daemon.get("/streams/pet-1").await, "firstAt")), 0, &Value::Null),
        ("until=2999-01-01T00:00:00Z&untilVersion=2".to_owned(), 2, &early),
    ] {
        let (status, answer) = state(&daemon, &format!("pet-1/state?{query}")).await;
        assert_eq!(
            (status, &answer["version"], &answer["state"]),
            (200, &json!(version), expected),
            "{query}: {answer}"
        );
    }
    let waits = [("balto-wait-position", &*last["position"].to_string())];
    let (status, answer, headers) = daemon.call("GET", "/streams/pet-1/state", &waits, "").await;
    assert_eq!((status, &answer["version"]), (200, &json!(5)));
    assert!(headers.contains_key("balto-position"), "{headers:?}");

    is_problem(&state(&daemon, "pet-2/state").await, 404, "not_found", "unknown stream");
    is_problem(&state(&daemon, "pet-1/state?tenant=acme").await, 404, "not_found", "another tenant");
    for query in ["untilVersion=-1", "untilVersion=x", "until=yesterday", "fromVersion=1"] {
        is_problem(&state(&daemon, &format!("pet-1/state?{query}")).await, 422, "validation_failed", query);
    }
}

#[tokio::test]
async fn rules_are_checked_when_the_type_is_saved() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let remove = json!({"op": "remove", "path": "/state/a"});
    let large = json!([{"op": "add", "path": "/state", "value": "x".repeat(70_000)}]);
    for (rules, pointer) in [
        (json!(7), "/state"),
        (json!([remove, 7]), "/state/1"),
        (json!([{"op": "add", "path": "/state"}]), "/state/0"),
        (json!([{"op": "remove", "path": "state"}]), "/state/0"),
        (json!([{"op": "remove", "path": "/data"}]), "/state/0/path"),
        (json!([remove, {"op": "add", "path": "/states", "value": 1}]), "/state/1/path"),
        (json!([{"op": "move", "from": "/data", "path": "/state"}]), "/state/0/from"),
        (json!(vec![remove; 201]), "/state"),
        (large, "/state"),
    ] {
        let body = json!({"versions": {"1.0": {"schema": true}}, "state": rules});
        let answer = put(&daemon, "pet?dryRun=true", &body).await;
        is_problem(&answer, 422, "validation_failed", &rules.to_string());
        assert_eq!(answer.1["errors"][0]["pointer"], pointer, "{rules}: {}", answer.1);
        assert_eq!(put(&daemon, "pet", &body).await.0, 422);
    }
    let rules = json!([{"op": "copy", "from": "/data", "path": "/state"}]);
    register(&daemon, "pet", rules.clone()).await;
    assert_eq!(daemon.get("/event-types/pet").await["state"], rules);
    assert!(daemon.get("/event-types").await["data"][0].get("state").is_none());
    // Null means the same as a missing member.
    register(&daemon, "pet", Value::Null).await;
    assert!(daemon.get("/event-types/pet").await.get("state").is_none());
}

#[tokio::test]
async fn events_are_converted_before_they_are_folded() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let mut body = pet();
    body["state"] = json!([
        {"op": "copy", "from": "/data/adopter/name", "path": "/state"},
        {"op": "test", "path": "/event/version", "value": "2.0"},
    ]);
    let (status, answer) = put(&daemon, "pet.adopted", &body).await;
    assert_eq!(status, 201, "{answer}");
    let ann = json!({"type": "pet.adopted", "version": "1.0", "data": {"id": 1, "adopter": "Ann"}});
    let bob = json!({"type": "pet.adopted", "version": "2.0", "data": {"id": 1, "adopter": {"name": "Bob"}}});
    append_all(&daemon, "pet-1", &[ann, bob]).await;
    assert_eq!(folded(&daemon, "pet-1/state?untilVersion=1").await, (json!("Ann"), vec![]));
    assert_eq!(folded(&daemon, "pet-1/state").await, (json!("Bob"), vec![]));

    // Without a migration, data of an earlier version counts if the newest schema accepts it.
    let rules = json!([{"op": "copy", "from": "/data", "path": "/state"}]);
    let number = json!({"type": "number"});
    let body = json!({"versions": {"1": {"schema": true}, "2": {"schema": number}}, "state": rules});
    assert_eq!(put(&daemon, "weighed", &body).await.0, 201);
    let weighed = |version: &str, data: Value| json!({"type": "weighed", "version": version, "data": data});
    append_all(
        &daemon,
        "scale",
        &[weighed("1", json!(5)), weighed("1", json!("heavy")), weighed("2", json!(7))],
    )
    .await;
    let (_, answer) = state(&daemon, "scale/state?untilVersion=2").await;
    assert_eq!(answer["state"], 5);
    let detail = "no migration leads from version 1 to 2";
    assert_eq!(answer["problems"], json!([{"version": 2, "type": "weighed", "detail": detail}]));
    assert_eq!(folded(&daemon, "scale/state").await, (json!(7), vec![2]));

    // A number that would lose digits is a problem, as in a conversion.
    daemon
        .post(
            "/events",
            r#"{"type":"weighed","version":"2","stream":"scale","data":123456789012345678901234567890}"#,
        )
        .await;
    assert_eq!(folded(&daemon, "scale/state").await, (json!(7), vec![2, 4]));
}

#[tokio::test]
async fn failing_rules_are_problems() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    register_pet(&daemon).await;
    let returned = event("PetReturned", json!(null));
    let mut events =
        vec![event("PetVaccinated", json!(1)), event("PetCreated", json!({"name": "Rex"})), returned.clone()];
    append_all(&daemon, "pet-1", &events).await;
    let (_, answer) = state(&daemon, "pet-1/state").await;
    assert_eq!(answer["state"], json!({"name": "Rex", "status": "AVAILABLE", "vaccinations": []}));
    let problems = answer["problems"].as_array().unwrap();
    let types: Vec<_> = problems.iter().map(|problem| (&problem["version"], &problem["type"])).collect();
    assert_eq!(types, [(&json!(1), &json!("PetVaccinated")), (&json!(3), &json!("PetReturned"))]);
    assert_eq!(text(&problems[1], "detail"), "operation 0: the value at `/state/status` is another one");
    // A bounded number of them.
    events = vec![returned; 150];
    append_all(&daemon, "pet-1", &events).await;
    let (_, problems) = folded(&daemon, "pet-1/state").await;
    assert_eq!((problems.len(), problems[99]), (100, 101));

    // A state that grows without end stops growing.
    register(
        &daemon,
        "Doubled",
        json!([{"op": "copy", "from": "/state/vaccinations", "path": "/state/vaccinations/-"}]),
    )
    .await;
    append_all(
        &daemon,
        "pet-2",
        &[&[event("PetCreated", json!({}))][..], &vec![event("Doubled", json!(1)); 30]].concat(),
    )
    .await;
    let (large, problems) = folded(&daemon, "pet-2/state").await;
    assert!((100_000..1_048_576).contains(&large.to_string().len()) && problems.len() > 5, "{problems:?}");
}

#[tokio::test]
async fn erasure_and_other_rules_are_seen_at_once() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    register_pet(&daemon).await;
    let created = event("PetCreated", json!({"name": "Rex"}));
    let canary = event("PetVaccinated", json!("canary"));
    let answer =
        append_all(&daemon, "pet-1", &[created, canary, event("PetVaccinated", json!("other"))]).await;
    append_all(&daemon, "pet-2", &[event("PetCreated", json!({"name": "Ada"}))]).await;
    for _ in 0..2 {
        let (whole, problems) = folded(&daemon, "pet-1/state").await;
        assert_eq!((&whole["vaccinations"], problems.len()), (&json!(["canary", "other"]), 0));
    }
    let id = text(&answer["events"][1], "id");
    daemon.post(&format!("/events/{id}/erase"), r#"{"reason": "asked for"}"#).await;
    let (_, answer) = state(&daemon, "pet-1/state").await;
    assert_eq!(answer["state"]["vaccinations"], json!(["other"]));
    let detail = "the content of the event was erased";
    assert_eq!(answer["problems"], json!([{"version": 2, "type": "PetVaccinated", "detail": detail}]));

    // Other rules make another state, and no rules make none.
    register(&daemon, "PetVaccinated", json!([{"op": "add", "path": "/state/safe", "value": true}])).await;
    assert_eq!(folded(&daemon, "pet-1/state").await.0["safe"], true);
    daemon.call("DELETE", "/event-types/PetVaccinated", &[], "").await;
    let (last, problems) = folded(&daemon, "pet-1/state").await;
    assert_eq!(
        (last, problems.len()),
        (json!({"name": "Rex", "status": "AVAILABLE", "vaccinations": []}), 0)
    );

    daemon.post("/streams/pet-1/erase", r#"{"reason": "asked for"}"#).await;
    assert_eq!(folded(&daemon, "pet-1/state").await, (Value::Null, vec![1]));
    assert_eq!(folded(&daemon, "pet-2/state").await.0["name"], "Ada");
}

#[tokio::test]
async fn long_streams_are_folded_step_by_step() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    register(&daemon, "tick", json!([{"op": "copy", "from": "/event/streamVersion", "path": "/state"}]))
        .await;
    let ticks = vec![event("tick", json!(null)); 1_000];
    for _ in 0..10 {
        append_all(&daemon, "clock", &ticks).await;
    }
    publish(&daemon, json!({"type": "tick", "data": 1, "stream": "clock"})).await;
    is_problem(&state(&daemon, "clock/state").await, 422, "stream_too_long", "10,001 events");
    assert_eq!(folded(&daemon, "clock/state?untilVersion=10000").await, (json!(10_000), vec![]));
    // The next fold begins there.
    assert_eq!(folded(&daemon, "clock/state").await, (json!(10_001), vec![]));
    assert_eq!(folded(&daemon, "clock/state?untilVersion=123").await, (json!(123), vec![]));
    assert_eq!(folded(&daemon, "clock/state").await, (json!(10_001), vec![]));
}

#[tokio::test]
async fn states_stay_within_their_tenant() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = keyed(data.path()).await;
    daemon.key = Some(ADMIN.to_owned());
    register_pet(&daemon).await;
    for (tenant, name) in [("acme", "Rex"), ("other", "Ada")] {
        let created = json!({"events": [event("PetCreated", json!({"name": name}))]}).to_string();
        daemon.post(&format!("/streams/pet-1/events?tenant={tenant}"), &created).await;
    }
    for (tenant, name) in [("acme", "Rex"), ("other", "Ada"), ("acme", "Rex")] {
        for role in ["viewer", "admin"] {
            let key = key(&daemon, role, Some(tenant)).await;
            let (status, answer) = call_as(&daemon, &key, "GET", "/streams/pet-1/state", "").await;
            assert_eq!((status, &answer["state"]["name"]), (200, &json!(name)), "{answer}");
            let foreign = if tenant == "acme" { "other" } else { "acme" };
            let path = format!("/streams/pet-1/state?tenant={foreign}");
            is_problem(&call_as(&daemon, &key, "GET", &path, "").await, 403, "forbidden", role);
        }
        let path = format!("/streams/pet-1/state?tenant={tenant}");
        assert_eq!(daemon.get(&path).await["state"]["name"], name);
    }
}

/// The state after an event, by plain code; whether the event was fine.
fn reference(state: &mut Value, kind: &str, data: &Value) -> bool {
    match kind {
        "PetCreated" => {
            *state = data.clone();
            state["status"] = json!("AVAILABLE");
            state["vaccinations"] = json!([]);
            true
        }
        "PetVaccinated" => {
            let list = state.get_mut("vaccinations").and_then(Value::as_array_mut);
            list.map(|list| list.push(data.clone())).is_some()
        }
        "PetAdopted" if !state.is_null() => {
            state["status"] = json!("ADOPTED");
            state["adopterId"] = data["adopterId"].clone();
            true
        }
        "PetReturned" if state["status"] == "ADOPTED" => {
            state["status"] = json!("AVAILABLE");
            state.as_object_mut().unwrap().remove("adopterId").is_some()
        }
        _ => false,
    }
}

#[tokio::test]
async fn random_streams_fold_as_plain_code_does() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    register_pet(&daemon).await;
    let mut random = fastrand::Rng::with_seed(seed());
    let kinds = ["PetCreated", "PetVaccinated", "PetVaccinated", "PetAdopted", "PetReturned"];
    for stream in 0..4 {
        let path = format!("pet-{stream}");
        let (mut pet, mut problems, mut version) = (Value::Null, Vec::new(), 0);
        let mut history = vec![(pet.clone(), problems.clone())];
        for _ in 0..5 {
            let mut events = Vec::new();
            for number in 0..random.usize(1..20) {
                let kind = kinds[random.usize(0..kinds.len())];
                let body = json!({"name": format!("pet {number}"), "adopterId": random.u32(..)});
                version += 1;
                if !reference(&mut pet, kind, &body) {
                    problems.push(version);
                }
                history.push((pet.clone(), problems.clone()));
                events.push(event(kind, body));
            }
            append_all(&daemon, &path, &events).await;
            assert_eq!(folded(&daemon, &format!("{path}/state")).await, (pet.clone(), problems.clone()));
            let past = random.usize(0..history.len());
            let at = format!("{path}/state?untilVersion={past}");
            assert_eq!(folded(&daemon, &at).await, history[past], "{at}");
        }
    }
}

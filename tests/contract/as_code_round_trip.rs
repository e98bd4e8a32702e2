//! `balto export` and `balto apply` of definitions that are hard to write down, and repeated
//! applications of a file.

use serde_json::{Value, json};

use super::command_line::{answer_of, balto};
use super::support::Daemon;

/// Texts and values that a file could change.
fn hostile() -> Value {
    json!({
        "null": null, "nulls": [null, {"a": null, "b": [null]}], "pinnedBy": 1, "eventsLastDay": {"a": 2},
        "": "empty", "a.b": 1, "new\nline": "\"", "large": u64::MAX, "small": i64::MIN, "float": 1.0e300,
        "whole": 5.0, "texts": ["${HOME}", "$${HOME}", "$$${HOME}", "${null}", "$${null}", "${5}", "${}", "$", "${",
            "${a} and ${b}", "a ${HOME}", "true", "1979-05-27T07:32:00Z", "'''", "\"\"\"", "\\", "\r\n\t\u{1}\u{7f}",
            "\u{2028}\u{feff}\u{202e}", " \n"],
    })
}

fn event_types() -> Vec<(&'static str, Value)> {
    let patch =
        json!([{"op": "add", "path": "/q", "value": null}, {"op": "add", "path": "/h", "value": hostile()}]);
    let state = json!([{"op": "add", "path": "/state/q", "value": null},
        {"op": "add", "path": "/state/h", "value": hostile()}]);
    let schema = json!({"type": ["object", "null"], "default": null, "properties": {
        "pinnedBy": {"enum": [null, "x"]}, "eventsLastDay": {"const": null}, "home": {"const": "${HOME}"},
        "n": {"maximum": u64::MAX}, "h": {"default": hostile()}}});
    vec![
        (
            "pet.nulls",
            json!({"versions": {"1.0": {"schema": schema, "examples": [null, {"home": "${HOME}"}]}}}),
        ),
        (
            "pet.data",
            json!({"description": "${HOME}", "compatibility": "none", "versions": {
                "1.0": {"schema": {}, "examples": [hostile(), null, [null]], "deprecated": true,
                    "sunset": "2027-01-01T00:00:00Z"},
                "2.0": {"schema": {"default": {"pinnedBy": null}}}},
            "migrations": [{"from": "1.0", "to": "2.0", "patch": patch}], "state": state}),
        ),
    ]
}

fn subscription() -> Value {
    json!({
        "description": "${HOME}", "metadata": hostile(), "eventTypes": ["pet.*", "pet.*", "q.#.*"],
        "filter": {"data.deletedAt": null, "data.n": {"$in": [null, "${HOME}", u64::MAX, [null]]},
            "$or": [{"data.a": null}, {"data.pinnedBy": {"$ne": null}}]},
        "versions": {"pet.nulls": "1.0"},
    })
}

async fn put_type(daemon: &Daemon, name: &str, definition: &Value) {
    let path = format!("/event-types/{name}");
    let (status, answer, _) = daemon.call("PUT", &path, &[], &definition.to_string()).await;
    assert_eq!(status, 201, "{answer}");
}

/// A daemon with all hostile definitions.
async fn hostile_daemon(data: &std::path::Path) -> Daemon {
    let daemon = Daemon::start(data).await;
    for (name, definition) in event_types() {
        put_type(&daemon, name, &definition).await;
    }
    let mut endpoint = subscription();
    let body = json!({"uid": "crm", "url": "http://127.0.0.1:19999/", "headers": {"X-Home": "${HOME}"},
        "request": {"body": "${{ data.a }}"}, "rateLimit": {"limit": 5}, "handshake": {"origin": "a.example"},
        "signature": ["standard", {"header": "X-Sign", "value": "${signature}"}]});
    endpoint.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    daemon.post("/endpoints", &endpoint.to_string()).await;
    let mut queue = subscription();
    queue["name"] = json!("mail");
    daemon.post("/queues", &queue.to_string()).await;
    daemon
}

/// The members that a file has.
async fn definitions(daemon: &Daemon) -> Value {
    let mut all = vec![daemon.get("/endpoints/crm").await, daemon.get("/queues/mail").await];
    for (name, _) in event_types() {
        let mut found = daemon.get(&format!("/event-types/{name}")).await;
        for version in found["versions"].as_object_mut().unwrap().values_mut() {
            version["pinnedBy"] = Value::Null;
        }
        all.push(found);
    }
    for one in &mut all {
        for name in ["id", "createdAt", "updatedAt"] {
            one[name] = Value::Null;
        }
        if let Some(handshake) = one.get_mut("handshake").filter(|handshake| !handshake.is_null()) {
            *handshake = handshake["origin"].clone();
        }
    }
    Value::Array(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn export_applies_without_a_change_in_each_format() {
    let data = tempfile::tempdir().unwrap();
    let daemon = hostile_daemon(&data.path().join("d")).await;
    let formats: [&[&str]; 3] = [&["--format", "toml"], &["--format", "json"], &["--json"]];
    for (number, format) in formats.into_iter().enumerate() {
        let export = balto(&daemon, &[&["export", "--event-types"], format].concat());
        assert_eq!(export.code, 0, "{}", export.err);
        let file = data.path().join("export");
        std::fs::write(&file, &export.out).unwrap();
        let file = file.display().to_string();
        let dry = answer_of(&daemon, &["apply", "-f", &file, "--dry-run"]);
        assert_eq!((&dry["steps"], &dry["unchanged"]), (&json!([]), &json!(4)), "{format:?}: {dry}");

        let copy = Daemon::start(&data.path().join(number.to_string())).await;
        let applied = balto(&copy, &["apply", "-f", &file]);
        assert_eq!(applied.code, 0, "{format:?}: {}", applied.err);
        assert_eq!(definitions(&copy).await, definitions(&daemon).await, "{format:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn definition_too_deep_for_toml_is_refused_and_kept_in_json() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&data.path().join("d")).await;
    let deep = (0..100).fold(json!("end"), |inner, _| json!({"a": inner}));
    daemon.post("/queues", &json!({"name": "deep", "metadata": deep}).to_string()).await;
    let refused = balto(&daemon, &["export"]);
    assert_eq!((refused.code, refused.out.as_str()), (1, ""), "{}", refused.err);
    assert!(refused.err.contains("use --format json"), "{}", refused.err);
    let export = balto(&daemon, &["export", "--format", "json"]);
    assert_eq!(export.code, 0, "{}", export.err);
    let file = data.path().join("export");
    std::fs::write(&file, &export.out).unwrap();
    let dry = answer_of(&daemon, &["apply", "-f", &file.display().to_string(), "--dry-run"]);
    assert_eq!((&dry["steps"], &dry["unchanged"]), (&json!([]), &json!(1)), "{dry}");
}

const UNTIDY: &str = r##"
    [[eventTypes]]
    name = "pet.adopted"
    versions = { "1.0" = { schema = {}, sunset = 2027-01-01T00:00:00Z } }
    [[queues]]
    name = "mail"
    eventTypes = ["#", "a.b"]
    visibility = "60s"
    [[endpoints]]
    uid = "crm"
    url = "https://EXAMPLE.com"
    description = "1m"
    eventTypes = ["apx.*", "apx.*", "q.#.*"]
    handshake = { origin = "Example.COM" }
    request = { method = "POST" }
    headers = { X-Env = "prod" }
    timeout = "2000ms"
    retry = { schedule = ["60s"] }
"##;

#[tokio::test(flavor = "multi_thread")]
async fn repeated_application_changes_nothing() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&data.path().join("d")).await;
    let file = data.path().join("file").display().to_string();
    let apply = |text: &str| {
        std::fs::write(&file, text).unwrap();
        balto(&daemon, &["apply", "-f", &file])
    };
    let created = apply(UNTIDY);
    assert!(created.out.ends_with("3 created, 0 changed, 0 deleted, 0 unchanged.\n"), "{}", created.err);
    assert_eq!(apply(UNTIDY).out, "0 created, 0 changed, 0 deleted, 3 unchanged.\n");

    // The case of a header's name changes with its value, and a description with a unit changes.
    let changed = UNTIDY.replace(r#"X-Env = "prod""#, r#"x-env = "test""#).replace("\"1m\"", "\"60s\"");
    let outcome = apply(&changed);
    assert!(outcome.out.ends_with("0 created, 1 changed, 0 deleted, 2 unchanged.\n"), "{}", outcome.err);
    let crm = daemon.get("/endpoints/crm").await;
    assert_eq!((&crm["headers"], &crm["description"]), (&json!({"x-env": "test"}), &json!("60s")));
    balto(&daemon, &["endpoints", "update", "crm", "--header", "X-ENV: c"]);
    assert_eq!(daemon.get("/endpoints/crm").await["headers"], json!({"X-ENV": "c"}));

    // A null restores each default once.
    let nulls = json!({
        "endpoints": [{"uid": "crm", "description": null, "eventTypes": null, "retry": null, "metadata": null,
            "versions": null, "headers": null, "labels": null, "ordering": null, "format": null,
            "signature": null, "request": null, "trace": null, "rateLimit": null, "timeout": null,
            "maxInFlight": null, "handshake": null, "filter": null}],
        "queues": [{"name": "mail", "description": null, "eventTypes": null, "retry": null, "metadata": null,
            "versions": null, "visibility": null, "maxDeliveries": null, "maxLeased": null, "maxLease": null,
            "maxAge": null, "ordering": null, "format": null, "labels": null, "filter": null}],
        "eventTypes": [{"name": "pet.adopted", "description": null, "compatibility": null, "transitive": null,
            "migrations": null, "state": null,
            "versions": {"1.0": {"deprecated": null, "sunset": null, "examples": null}}}],
    });
    let restored = apply(&nulls.to_string());
    assert!(restored.out.ends_with("0 created, 3 changed, 0 deleted, 0 unchanged.\n"), "{}", restored.err);
    let again = apply(&nulls.to_string());
    assert!(again.out.ends_with("0 created, 0 changed, 0 deleted, 3 unchanged.\n"), "{}", again.out);
    // The daemon alone knows the configured defaults of these.
    let steps = answer_of(&daemon, &["apply", "-f", &file, "--dry-run"])["steps"].clone();
    let changes = steps[0]["changes"].as_object().unwrap();
    assert_eq!(changes.keys().collect::<Vec<_>>(), ["retry", "timeout", "maxInFlight"], "{steps}");
    assert_eq!(steps.as_array().unwrap().len(), 1, "{steps}");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_the_file_lacks_stay_in_a_version() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&data.path().join("d")).await;
    let version = json!({"schema": {"title": "a"}, "deprecated": true, "sunset": "2027-01-01T00:00:00.000Z",
        "examples": [{"a": null}]});
    let definition = json!({"versions": {"1.0": version, "2.0": {"schema": {}}}});
    put_type(&daemon, "pet.adopted", &definition).await;
    let file = data.path().join("file");
    for (versions, schema) in [
        (r#""1.0" = { schema = { title = "b" } }"#, json!({"title": "b"})),
        (r#""1.0" = { deprecated = true }, "2.0" = { deprecated = true }"#, json!({"title": "b"})),
    ] {
        let text = format!("[[eventTypes]]\nname = 'pet.adopted'\nversions = {{ {versions} }}");
        std::fs::write(&file, text).unwrap();
        let applied = balto(&daemon, &["apply", "-f", &file.display().to_string()]);
        assert!(applied.out.ends_with("1 changed, 0 deleted, 0 unchanged.\n"), "{}", applied.err);
        let found = daemon.get("/event-types/pet.adopted").await["versions"]["1.0"].clone();
        for name in ["deprecated", "sunset", "examples"] {
            assert_eq!(found[name], version[name], "{name}");
        }
        assert_eq!(found["schema"], schema);
    }
}

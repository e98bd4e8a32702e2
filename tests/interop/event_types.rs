//! Event types, judged by the official test suites of JSON Schema and JSON Patch, and by validators
//! of the documents that describe them.

use std::fs;
use std::process::Command;

use balto::schemas::StreamState;
use balto::schemas::migration::MigrationPatch;
use balto::schemas::state_rules::{StateEvent, StateRules};
use serde_json::{Value, json};

use crate::support::Daemon;
use crate::support::judges::{install, python, root, run};

/// A group of the JSON Schema test suite: a schema, and values with a verdict each.
struct SchemaGroup {
    name: String,
    schema: Value,
    tests: Vec<(String, Value, bool)>,
}

fn schema_groups() -> Vec<SchemaGroup> {
    install();
    let directory = root().join("target/judges/json-schema/json/tests/draft2020-12");
    let mut groups = Vec::new();
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.is_file()) {
        let all: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        for group in all.as_array().unwrap() {
            let tests = group["tests"].as_array().unwrap().iter().map(|test| {
                let description = test["description"].as_str().unwrap().to_owned();
                (description, test["data"].clone(), test["valid"].as_bool().unwrap())
            });
            groups.push(SchemaGroup {
                name: format!("{}: {}", file.file_stem().unwrap().display(), group["description"]),
                schema: group["schema"].clone(),
                tests: tests.collect(),
            });
        }
    }
    assert!(groups.len() > 300, "only {} groups", groups.len());
    groups
}

/// Whether a schema needs another document, which Balto never reads.
fn is_remote(schema: &Value) -> bool {
    let text = schema.to_string();
    text.contains("http://localhost:1234") || text.contains("http://bar.com") || text.contains("/draft/next")
}

#[tokio::test]
async fn json_schema_test_suite_passes() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (mut checked, mut refused, mut wrong) = (0, Vec::new(), Vec::new());
    for (number, group) in schema_groups().iter().enumerate() {
        let name = format!("suite.g{number}");
        let body = json!({"versions": {"1.0": {"schema": group.schema}}}).to_string();
        let path = format!("/event-types/{name}");
        let (status, answer, _) = daemon.call("PUT", &path, &[], &body).await;
        if status != 201 {
            assert_eq!(status, 422, "{}: {answer}", group.name);
            if !is_remote(&group.schema) {
                refused.push(format!("{}: {}", group.name, answer["errors"][0]["detail"]));
            }
            continue;
        }
        let events = group.tests.iter().map(|(_, data, _)| json!({"type": name, "data": data}));
        let batch = json!({"events": events.collect::<Vec<_>>()}).to_string();
        let answer = daemon.post("/events/batch", &batch).await;
        for (result, (test, _, valid)) in answer["results"].as_array().unwrap().iter().zip(&group.tests) {
            checked += 1;
            let expected =
                if *valid { (json!(202), Value::Null) } else { (json!(422), json!("schema_violation")) };
            if (result["status"].clone(), result["code"].clone()) != expected {
                wrong.push(format!("{}: {test}: {result}", group.name));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new(), "{} of {checked}", wrong.len());
    assert!(checked > 1_000, "only {checked} checks");
    assert_eq!(refused, Vec::<String>::new());
}

/// The patch as rules of a state.
fn below_state(patch: &Value) -> Value {
    let mut rules = patch.clone();
    for operation in rules.as_array_mut().unwrap().iter_mut().filter_map(Value::as_object_mut) {
        for (_, place) in operation.iter_mut().filter(|(name, _)| ["path", "from"].contains(&name.as_str())) {
            if let Some(text) = place.as_str() {
                *place = json!(format!("/state{text}"));
            }
        }
    }
    rules
}

#[test]
fn json_patch_test_suite_passes() {
    install();
    let mut checked = 0;
    for file in ["tests.json", "spec_tests.json"] {
        let path = root().join("target/judges/node_modules/json-patch-test-suite").join(file);
        let tests: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        for test in tests.as_array().unwrap() {
            if test["disabled"] == true || !test["patch"].is_array() {
                continue;
            }
            let mut document = test["doc"].clone();
            let patched = match MigrationPatch::parse(&test["patch"].to_string()) {
                Ok(patch) => patch.apply(&mut document).map(|()| document),
                Err(violation) => Err(violation.detail),
            };
            match (patched, test.get("expected")) {
                (Ok(found), Some(expected)) => assert_eq!(found, *expected, "{test}"),
                (Ok(_), None) if test.get("error").is_none() => {}
                (Ok(found), None) => panic!("{test} gave {found}"),
                (Err(_), None) => assert!(test.get("error").is_some(), "{test}"),
                (Err(error), Some(_)) => panic!("{test}: {error}"),
            }
            let mut state = StreamState::new(test["doc"].clone());
            let event = StateEvent { event_type: "a", version: "1.0", timestamp: "", stream_version: 1 };
            let folded = StateRules::parse(&below_state(&test["patch"]).to_string())
                .map_err(|violations| violations[0].detail.clone())
                .and_then(|rules| rules.apply(&mut state, Value::Null, &event));
            match test.get("expected") {
                Some(expected) => assert_eq!((folded, state.value()), (Ok(()), expected), "{test}"),
                None if folded.is_ok() => assert!(test.get("error").is_none(), "{test}"),
                None => assert_eq!(*state.value(), test["doc"], "{test}: {folded:?}"),
            }
            checked += 1;
        }
    }
    assert!(checked > 80, "only {checked} tests");
}

#[tokio::test]
async fn documents_with_event_types_are_valid() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&data.path().join("d")).await;
    let tag = async |path: &str| daemon.call("GET", path, &[], "").await.2["etag"].clone();
    let before = tag("/asyncapi.json").await;
    let schema = json!({
        "type": "object", "required": ["pet"], "properties": {"pet": {"$ref": "#/$defs/pet"}},
        "$defs": {"pet": {"type": "object", "properties": {"parent": {"$ref": "#/$defs/pet"}, "age": {"type": ["integer", "null"]}}}},
    });
    let definition = json!({"description": "A pet", "versions": {
        "1.0": {"schema": schema, "deprecated": true, "examples": [{"pet": {"age": 1}}]}}});
    for name in ["pet.adopted", "order"] {
        let path = format!("/event-types/{name}");
        assert_eq!(daemon.call("PUT", &path, &[], &definition.to_string()).await.0, 201);
    }
    let openapi = daemon.get("/openapi.json").await;
    let webhook = &openapi["webhooks"]["pet.adopted"]["post"];
    assert_eq!(webhook["deprecated"], true, "{webhook}");
    let file = data.path().join("openapi.json");
    fs::write(&file, openapi.to_string()).unwrap();
    let (good, words) = run(python("openapi-spec-validator").arg(&file), "");
    assert!(good, "{words}");

    let asyncapi = daemon.get("/asyncapi.json").await;
    let judge = |document: &Value| {
        let mut node = Command::new(root().join("target/judges/node"));
        run(node.arg(root().join("tests/judges/asyncapi.mjs")), &document.to_string())
    };
    let (good, words) = judge(&asyncapi);
    assert!(good && words.contains("2 operations"), "{words}");
    let mut broken = asyncapi.clone();
    broken["operations"]["send.order"]["action"] = json!("shout");
    assert!(!judge(&broken).0, "the judge accepted an invalid document");

    let after = tag("/asyncapi.json").await;
    assert_ne!(before, after);
    let (status, _, _) = daemon.call("GET", "/asyncapi.json", &[("if-none-match", &after)], "").await;
    assert_eq!(status, 304);
    assert_eq!(daemon.call("DELETE", "/event-types/order", &[], "").await.0, 204);
    let (status, body, _) = daemon.call("GET", "/asyncapi.json", &[("if-none-match", &after)], "").await;
    assert_eq!((status, body["channels"].as_object().unwrap().len()), (200, 1), "{body}");
}

//! The OpenAPI document and the running daemon agree: third-party programs check both.

use std::path::Path;
use std::process::Command;

use crate::support::judges::{python, run};
use crate::support::{Daemon, Receiver, number};
use serde_json::{Value, json};

const KEY: &str = "an-admin-key-that-is-long-enough-for-any-bound";

/// The document as the command line prints it.
fn document() -> Value {
    let printed = Command::new(env!("CARGO_BIN_EXE_balto")).arg("openapi").output().unwrap();
    assert!(printed.status.success());
    serde_json::from_slice(&printed.stdout).unwrap()
}

#[tokio::test]
async fn document_is_valid_openapi_and_the_daemon_serves_it() {
    let data = tempfile::tempdir().unwrap();
    let printed = document();
    let validate = |document: &Value| {
        let file = data.path().join("openapi.json");
        std::fs::write(&file, document.to_string()).unwrap();
        run(python("openapi-spec-validator").arg(file), "")
    };
    let (good, words) = validate(&printed);
    assert!(good, "{words}");
    let mut broken = printed.clone();
    broken["paths"]["/v1/events"]["post"]["responses"] = json!([]);
    assert!(!validate(&broken).0, "the judge accepted an invalid document");

    let daemon = Daemon::start_in(&data.path().join("d"), &[], &[("BALTO__AUTH__ADMIN_KEY", KEY)]).await;
    let (status, served, _) = daemon.call("GET", "/openapi.json", &[], "").await;
    assert_eq!((status, served), (200, printed), "the document needs no key");
}

/// Endpoints, events, deliveries in each state and dead letters, so that no list is empty.
async fn populated(data: &Path) -> Daemon {
    let mut daemon = Daemon::start(data).await;
    let (good, bad) = (Receiver::status(204).await, Receiver::status(500).await);
    for (url, kind) in [(&good.url, "good.*"), (&bad.url, "bad.*")] {
        let endpoint = json!({"url": url, "eventTypes": [kind, "both"], "headers": {"X-Env": "test"},
            "rateLimit": {"limit": 1000}, "metadata": {"a": 1}, "retry": {"schedule": ["10ms"]}});
        daemon.post("/endpoints", &endpoint.to_string()).await;
    }
    daemon.post("/endpoints", r#"{"url": "http://127.0.0.1:9/"}"#.replace('9', "9999").as_str()).await;
    for kind in ["good.a", "bad.b", "both", "none"] {
        let event = json!({"type": kind, "data": {"n": 1}, "stream": "s", "metadata": {"trace": "x"}});
        daemon.post("/events", &event.to_string()).await;
    }
    daemon.until("/dead-letters", |list| list["data"].as_array().unwrap().len() == 2).await;
    daemon.post("/events", r#"{"type": "good.later", "data": 1, "deliverAt": "2100-01-01T00:00:00Z"}"#).await;
    daemon.post("/keys", r#"{"role": "viewer", "tenant": "acme"}"#).await;
    daemon.post("/queues", r#"{"name": "work", "eventTypes": ["good.*"]}"#).await;
    daemon.post("/events", r#"{"type": "good.work", "data": 1}"#).await;
    let event_type = r#"{"versions": {"1.0": {"schema": {"type": "object"}}}}"#;
    for (path, body) in [("/event-types/good.typed", event_type), ("/consumers/reader", "{}")] {
        assert_eq!(daemon.call("PUT", path, &[], body).await.0, 201);
    }
    let quotas = r#"{"quotas": {"endpoints": 100}}"#;
    assert_eq!(daemon.call("PUT", "/tenants/default", &[], quotas).await.0, 201);
    assert_eq!(daemon.terminate(), Some(0));
    Daemon::start_in(data, &[], &[("BALTO__AUTH__ADMIN_KEY", KEY)]).await
}

/// Removes parameters for which no generated value is valid: cursors, which come from a page, and
/// idempotency keys, which tie requests together. Removes `wait`, because each such request could
/// take a minute, and long lists of patterns, whose generation takes minutes. Also removes batches
/// from `publishEvent`, because their responses do not fit the operation's links.
fn for_schemathesis(mut document: Value) -> Value {
    for item in document["paths"].as_object_mut().unwrap().values_mut() {
        for operation in item.as_object_mut().unwrap().values_mut() {
            let parameters = operation["parameters"].as_array_mut().unwrap();
            let removed = ["cursor", "Idempotency-Key", "wait"];
            let is_long = |one: &Value| one["schema"]["maxLength"].as_u64().is_some_and(|most| most > 1_000);
            parameters.retain(|one| !removed.iter().any(|name| one["name"] == *name) && !is_long(one));
        }
    }
    let receive = &mut document["components"]["schemas"]["ReceiveInput"]["properties"];
    receive.as_object_mut().unwrap().remove("wait").unwrap();
    let publish = &mut document["paths"]["/v1/events"]["post"]["requestBody"]["content"];
    publish.as_object_mut().unwrap().remove("application/cloudevents-batch+json").unwrap();
    document
}

/// Runs schemathesis against the daemon. Returns whether it passed, and its report.
fn schemathesis(
    daemon: &Daemon,
    document: &Value,
    seed: u64,
    examples: u64,
    more: &[&str],
) -> (bool, String) {
    let file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    std::fs::write(file.path(), document.to_string()).unwrap();
    let mut command = python("schemathesis");
    command
        .args(["--config-file", "tests/judges/schemathesis.toml", "--no-color", "run"])
        .arg(file.path())
        .args(["--url", daemon.api.strip_suffix("/v1").unwrap()])
        .args(["--header", &format!("Authorization: Bearer {KEY}")])
        .args(["--phases", "coverage,fuzzing,stateful", "--continue-on-failure"])
        .args(["--seed", &(seed % u64::from(u32::MAX)).to_string(), "--request-timeout", "300"])
        .args(["--max-examples", &examples.to_string()])
        .args(more);
    run(&mut command, "")
}

/// Several thousand valid and invalid requests, derived from the document alone.
/// `BALTO_TEST_ROUNDS` sets the examples per operation. The seed is constant unless
/// `BALTO_TEST_SEED` is set, so that a rare new finding does not fail unrelated changes.
#[tokio::test]
async fn daemon_answers_generated_requests_as_documented() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = populated(data.path()).await;
    let (seed, examples) =
        (number("BALTO_TEST_SEED").unwrap_or(1), number("BALTO_TEST_ROUNDS").unwrap_or(15));
    let (good, words) = schemathesis(&daemon, &for_schemathesis(document()), seed, examples, &[]);
    assert!(good, "BALTO_TEST_SEED={seed}:\n{words}");
    assert!(daemon.is_running(), "BALTO_TEST_SEED={seed}: the daemon has ended");
    daemon.until_ready().await;
}

/// Negative control: a wrong document is detected.
#[tokio::test]
async fn wrong_document_is_detected() {
    let data = tempfile::tempdir().unwrap();
    let daemon = populated(data.path()).await;
    let only = |operation: &str| ["--include-operation-id", operation].map(str::to_owned);
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 3] = [
        ("listEvents", |document| {
            document["paths"]["/v1/events"]["get"]["responses"].as_object_mut().unwrap().remove("422");
        }),
        ("listKeys", |document| {
            document["components"]["schemas"]["KeyBody"]["properties"]["role"] = json!({"type": "integer"});
        }),
        ("getEndpoint", |document| {
            let missing = &mut document["paths"]["/v1/endpoints/{id}"]["get"]["responses"]["404"]["content"];
            *missing = json!({"text/html": {}});
        }),
    ];
    for (operation, change) in changes {
        let mut document = for_schemathesis(document());
        change(&mut document);
        let only = only(operation);
        let (good, words) = schemathesis(&daemon, &document, 1, 10, &[&only[0], &only[1]]);
        assert!(!good, "the wrong document of {operation} was not detected:\n{words}");
        assert!(
            words.contains(&operation.to_owned()) || words.contains("FAILURES"),
            "schemathesis failed for another reason:\n{words}"
        );
    }
}

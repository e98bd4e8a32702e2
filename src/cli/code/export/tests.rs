//! Exports of endpoints, queues and event types.

use super::*;

#[test]
fn entry_has_members_of_a_file_and_no_secrets() {
    let endpoint = json!({
        "id": "ep_1", "uid": "crm", "url": "https://h/", "secret": "whsec_x", "status": "paused",
        "rateLimit": null, "sensitiveHeaderNames": ["authorization"], "auth": {"basic": {"username": "u"}},
        "handshake": {"origin": "a.example", "rate": null, "callback": false, "status": "pending"},
        "metadata": {"a": null, "b": [1, null]}, "filter": {"data.a": null}, "createdAt": "t",
    });
    let expected = json!({"uid": "crm", "url": "https://h/", "auth": {"basic": {"username": "u"}},
        "handshake": {"origin": "a.example", "callback": false}, "metadata": {"a": null, "b": [1, null]}, "filter": {"data.a": null},
        "status": "paused"});
    assert_eq!(endpoint_entry(&endpoint), expected);
    assert_eq!(told(&endpoint).len(), 2);
    let broker = json!({"uid": "shop", "url": "amqps://h/", "amqp": {"exchange": "e", "username": "u"}});
    assert_eq!(endpoint_entry(&broker), broker);
    assert_eq!(told(&broker), ["shop: the password of its broker is left out"]);
}

#[test]
fn type_entry_lacks_read_only_members_alone() {
    let schema = json!({"properties": {"pinnedBy": {"enum": [null]}, "eventsLastDay": {"const": null}}});
    let entry = type_entry(&json!({"name": "a.b", "latest": "1.0", "versions": {"1.0": {"schema": schema,
        "sunset": null, "deprecated": false, "examples": [null], "pinnedBy": ["ep_1"], "eventsLastDay": 3}}}));
    let version = json!({"schema": schema, "deprecated": false, "examples": [null]});
    assert_eq!(entry, json!({"name": "a.b", "versions": {"1.0": version}}));
}

#[test]
fn text_that_reads_as_another_value_is_no_export() {
    let document = json!({"queues": [{"name": "a", "metadata": {"$__toml_private_datetime": "1979-05-27"}}]});
    let error = text_of(&document, FileLanguage::Toml).unwrap_err().to_string();
    assert!(error.starts_with("TOML cannot hold this export; use --format json"), "{error}");
    assert!(text_of(&document, FileLanguage::Json).is_ok());
}

#[test]
fn export_has_the_members_that_the_api_accepts() {
    let api = crate::api::openapi::document();
    for (schema, exported, others) in [
        // Write-only members, and `status`, which is exported for a paused endpoint alone.
        (
            "EndpointInput",
            ENDPOINT,
            &["status", "secret", "secretType", "sensitiveHeaders", "clientCertificate"][..],
        ),
        ("QueueInput", QUEUE, &[]),
        ("TypeInput", &TYPE[1..], &[]),
    ] {
        let known = api["components"]["schemas"][schema]["properties"].as_object().unwrap();
        let mut known: Vec<_> = known.keys().map(String::as_str).collect();
        let mut listed = [exported, others].concat();
        known.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, known, "{schema}");
    }
}

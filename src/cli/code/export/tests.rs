//! Exports of endpoints, queues and event types.

use super::*;

#[test]
fn entry_has_members_of_a_file_and_no_secrets() {
    let endpoint = json!({
        "id": "ep_1", "uid": "crm", "url": "https://h/", "secret": "whsec_x", "status": "paused",
        "rateLimit": null, "sensitiveHeaderNames": ["authorization"], "auth": {"basic": {"username": "u"}},
        "handshake": {"origin": "a.example", "rate": null, "callback": false, "status": "pending"},
        "metadata": {"a": null, "b": [1]}, "createdAt": "t",
    });
    let expected = json!({"uid": "crm", "url": "https://h/", "auth": {"basic": {"username": "u"}},
        "handshake": {"origin": "a.example", "callback": false}, "metadata": {"b": [1]}, "status": "paused"});
    assert_eq!(endpoint_entry(&endpoint), expected);
    assert_eq!(told(&endpoint).len(), 2);
    let broker = json!({"uid": "shop", "url": "amqps://h/", "amqp": {"exchange": "e", "username": "u"}});
    assert_eq!(endpoint_entry(&broker), broker);
    assert_eq!(told(&broker), ["shop: the password of its broker is left out"]);
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

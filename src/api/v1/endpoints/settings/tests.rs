//! Validation of an endpoint's members, and merge patches.

use serde_json::json;

use super::*;
use crate::api::http::body::{parse, parse_value};
use crate::api::http::problem::ErrorLocation;
use crate::domain::PolicyDefaults;

pub(crate) fn defaults() -> EndpointDefaults {
    EndpointDefaults {
        handshake_required: false,
        policy: PolicyDefaults {
            timeout: Duration::from_secs(15),
            retry: RetryPolicy::Exponential {
                initial: Duration::from_secs(5),
                multiplier: 3.0,
                max_interval: 6 * HOUR,
                max_attempts: 12,
                max_age: 72 * HOUR,
                jitter: 0.2,
            },
            max_in_flight: 16,
        },
        origin: None,
        callbacks: false,
    }
}

fn error_pointers(input: Value) -> Vec<String> {
    let input: EndpointInput = match parse(input.to_string().as_bytes()) {
        Ok(input) => input,
        Err(problem) => panic!("{problem:?}"),
    };
    let mut errors = Errors::default();
    input.settings(&defaults(), |_, _| Ok(()), &mut errors);
    let pointers = errors.0.into_iter().map(|error| match error.location {
        ErrorLocation::Pointer(pointer) => pointer,
        other => panic!("{other:?}"),
    });
    pointers.collect()
}

#[test]
fn every_invalid_member_has_a_pointer() {
    for (input, pointer) in [
        (json!({"eventTypes": []}), "/eventTypes"),
        (json!({"eventTypes": ["a.*", "a b"]}), "/eventTypes/1"),
        (json!({"eventTypes": ["a..b"]}), "/eventTypes/0"),
        (json!({"timeout": "99ms"}), "/timeout"),
        (json!({"timeout": "61s"}), "/timeout"),
        (json!({"timeout": "soon"}), "/timeout"),
        (json!({"maxInFlight": 0}), "/maxInFlight"),
        (json!({"maxInFlight": 1001}), "/maxInFlight"),
        (json!({"ordering": "strict"}), "/ordering"),
        (json!({"format": "xml"}), "/format"),
        (json!({"signature": "hmac"}), "/signature"),
        (json!({"handshake": {}}), "/handshake/origin"),
        (json!({"handshake": {"origin": ""}}), "/handshake/origin"),
        (json!({"handshake": {"origin": "a_b.example"}}), "/handshake/origin"),
        (json!({"handshake": {"origin": "https://a.example"}}), "/handshake/origin"),
        (json!({"handshake": {"origin": "a.example."}}), "/handshake/origin"),
        (json!({"handshake": {"origin": "-a.example"}}), "/handshake/origin"),
        (json!({"handshake": {"origin": "é.example"}}), "/handshake/origin"),
        (json!({"handshake": {"origin": "*"}}), "/handshake/origin"),
        (json!({"handshake": {"origin": format!("{}.example", "x".repeat(64))}}), "/handshake/origin"),
        (json!({"handshake": {"origin": "a.".repeat(126) + "ab"}}), "/handshake/origin"),
        (json!({"handshake": {"origin": "a.example", "rate": 0}}), "/handshake/rate"),
        (json!({"handshake": {"origin": "a.example", "rate": 1_000_001}}), "/handshake/rate"),
        (json!({"handshake": {"origin": "a.example", "callback": true}}), "/handshake/callback"),
        (json!({"sensitiveHeaders": {"A": "1", "a": "2"}}), "/sensitiveHeaders/a"),
        (json!({"headers": {"A": "1"}, "sensitiveHeaders": {"a": "2"}}), "/sensitiveHeaders/A"),
        (json!({"rateLimit": {"limit": 0}}), "/rateLimit/limit"),
        (json!({"rateLimit": {"limit": 1, "per": "0s"}}), "/rateLimit/per"),
        (json!({"rateLimit": {"limit": 1, "burst": 0}}), "/rateLimit/burst"),
        (json!({"retry": {"multiplier": 0.5}}), "/retry/multiplier"),
        (json!({"retry": {"jitter": 1.5}}), "/retry/jitter"),
        (json!({"retry": {"maxAttempts": 101}}), "/retry/maxAttempts"),
        (json!({"retry": {"maxAge": "0s"}}), "/retry/maxAge"),
        (json!({"retry": {"initial": "10s", "maxInterval": "5s"}}), "/retry/maxInterval"),
        (json!({"retry": {"schedule": []}}), "/retry/schedule"),
        (json!({"retry": {"schedule": ["5s", "x"]}}), "/retry/schedule/1"),
        (json!({"retry": {"schedule": ["5s"], "jitter": 0.1}}), "/retry"),
        (json!({"headers": {"A": "1", "a": "2"}}), "/headers/a"),
        (json!({"metadata": {"x": "y".repeat(17_000)}}), "/metadata"),
        (json!({"description": "y".repeat(1_025)}), "/description"),
    ] {
        assert_eq!(error_pointers(input.clone()), [pointer], "{input}");
    }
}

#[test]
fn all_errors_are_reported_at_once() {
    assert_eq!(error_pointers(json!({"timeout": "x", "maxInFlight": 0, "eventTypes": ["?"]})).len(), 3);
}

#[test]
fn omitted_members_have_their_defaults() {
    let input: EndpointInput = parse_value(json!({"url": "x", "retry": {"maxAttempts": 3}})).unwrap();
    let mut errors = Errors::default();
    let settings = input.settings(&defaults(), |_, _| Ok(()), &mut errors);
    assert!(errors.0.is_empty());
    assert_eq!((settings.timeout, settings.max_in_flight), (None, None));
    assert!(
        matches!(settings.retry, Some(RetryPolicy::Exponential { max_attempts: 3, max_interval, .. }) if max_interval == 6 * HOUR)
    );
}

#[test]
fn merge_patch_replaces_a_header_in_another_case() {
    let mut target = json!({"headers": {"X-A": "a", "X-B": "b"}});
    merge(&mut target, &json!({"headers": {"x-a": "c", "x-b": null}}));
    assert_eq!(target, json!({"headers": {"x-a": "c"}}));
}

#[test]
fn merge_patch_sets_named_members_and_resets_null_members() {
    let mut target =
        json!({"timeout": "3s", "headers": {"a": "1", "b": "2"}, "retry": {"initial": "5s", "jitter": 0.5}});
    merge(
        &mut target,
        &json!({"timeout": null, "headers": {"a": null, "c": "3"}, "retry": {"initial": "6s"}}),
    );
    assert_eq!(target, json!({"headers": {"b": "2", "c": "3"}, "retry": {"initial": "6s", "jitter": 0.5}}));
    merge(&mut target, &json!({"retry": {"schedule": ["1s"]}}));
    assert_eq!(target["retry"], json!({"schedule": ["1s"]}));
    merge(&mut target, &json!({"retry": {"maxAttempts": 2}}));
    assert_eq!(target["retry"], json!({"maxAttempts": 2}));
}

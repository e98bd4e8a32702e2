//! Members in the form in which the API shows them.
//!
//! Owns: which texts are durations, times or URLs, the canonical form of patterns, and the defaults
//! that a null restores. The defaults of the daemon's configuration are not among them.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use url::Url;

use super::plan::ResourceKind;
use crate::config::units::parse_duration;
use crate::courier::{BrokerUrl, is_broker_url};
use crate::domain::Pattern;
use crate::limits;
use crate::rules::patterns::{ANY_WORDS, canonical_list};

/// How two texts of a member are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TextForm {
    Exact,
    /// `60s` is `1m`.
    Duration,
    /// The API shows milliseconds, and UTC.
    Time,
    /// `https://example.com` is `https://example.com/`, and `amqps://host` is
    /// `amqps://host:5671/%2F`.
    Url,
    /// A DNS name.
    IgnoreCase,
}

/// The form of the text at a path of members. Items of a list have the path of the list.
fn text_form(path: &[&str]) -> TextForm {
    match path {
        ["timeout" | "visibility" | "maxLease" | "maxAge"] | ["retry", _] | ["rateLimit", "per"] => {
            TextForm::Duration
        }
        ["versions", _, "sunset"] => TextForm::Time,
        ["url"] | ["auth", "oauth2", "tokenUrl"] => TextForm::Url,
        ["handshake", "origin"] => TextForm::IgnoreCase,
        _ => TextForm::Exact,
    }
}

/// Whether two texts at a path of members mean the same.
pub(super) fn is_equal_text(path: &[&str], wanted: &str, found: &str) -> bool {
    fn same<T: PartialEq>(read: impl Fn(&str) -> Option<T>, wanted: &str, found: &str) -> bool {
        read(wanted).is_some_and(|wanted| read(found) == Some(wanted))
    }
    wanted == found
        || match text_form(path) {
            TextForm::Exact => false,
            TextForm::Duration => same(parse_duration, wanted, found),
            TextForm::Time => same(milliseconds, wanted, found),
            TextForm::Url => same(|text| Url::parse(text).ok(), wanted, found) || same(broker, wanted, found),
            TextForm::IgnoreCase => wanted.eq_ignore_ascii_case(found),
        }
}

fn milliseconds(text: &str) -> Option<i128> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some(time.unix_timestamp_nanos().div_euclid(1_000_000))
}

fn broker(text: &str) -> Option<String> {
    let (url, _) = is_broker_url(text).then(|| BrokerUrl::parse(text).ok()).flatten()?;
    Some(url.to_string())
}

/// Topic patterns in canonical form, sorted. No patterns mean all types.
pub(super) fn patterns(value: &Value) -> Vec<String> {
    let texts: Vec<_> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut patterns: Vec<String> = match texts.iter().map(|text| text.parse()).collect() {
        Ok(parsed) => {
            let parsed: Vec<Pattern> = parsed;
            canonical_list(&parsed).iter().map(ToString::to_string).collect()
        }
        // The daemon names the wrong one.
        Err(_) => return texts.into_iter().map(str::to_owned).collect(),
    };
    if patterns.is_empty() {
        patterns.push(ANY_WORDS.to_owned());
    }
    patterns.sort_unstable();
    patterns
}

/// The value, or the default at this path for null.
pub(super) fn or_default(kind: ResourceKind, path: &[&str], value: &Value) -> Value {
    if value.is_null() { default_of(kind, path) } else { value.clone() }
}

/// The default at a path of members. Null if there is none, or if it is configured.
fn default_of(kind: ResourceKind, path: &[&str]) -> Value {
    match (kind, path) {
        (_, ["description"]) => json!(""),
        (ResourceKind::Endpoint | ResourceKind::Queue, ["metadata" | "versions"]) => json!({}),
        (ResourceKind::Endpoint | ResourceKind::Queue, ["ordering"]) => json!("none"),
        (ResourceKind::Endpoint | ResourceKind::Queue, ["format"]) => json!("standard"),
        (ResourceKind::Endpoint, _) => endpoint_default(path),
        (ResourceKind::Queue, _) => queue_default(path),
        (ResourceKind::EventType, ["compatibility"]) => json!("forward"),
        (ResourceKind::EventType, ["transitive"] | ["versions", _, "deprecated"]) => json!(false),
        (ResourceKind::EventType, ["migrations"] | ["versions", _, "examples"]) => json!([]),
        (ResourceKind::EventType | ResourceKind::Tenant, _) => Value::Null,
    }
}

fn endpoint_default(path: &[&str]) -> Value {
    match path {
        ["signature"] => json!("standard"),
        ["trace"] | ["handshake", "callback"] | ["amqp", "declare"] => json!(false),
        ["status"] => json!("active"),
        ["request"] => json!({"method": "POST"}),
        ["request", "method"] => json!("POST"),
        ["rateLimit", "per"] => json!("1s"),
        ["amqp", "routingKey"] => json!("type"),
        ["auth", "oauth2", "clientAuthentication"] => json!("basic"),
        ["auth", "oauth2", "parameters"] => json!({}),
        _ => Value::Null,
    }
}

fn queue_default(path: &[&str]) -> Value {
    let retry = || json!({"initial": "1s", "multiplier": 2, "maxInterval": "5m", "jitter": 0.2});
    match path {
        ["visibility"] => json!("30s"),
        ["maxDeliveries"] => json!(limits::DELIVERIES_DEFAULT),
        ["maxLeased"] => json!(limits::LEASED_DEFAULT),
        ["maxLease"] => json!("12h"),
        ["retry"] => retry(),
        ["retry", member] => retry()[*member].clone(),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_compared_by_the_meaning_of_their_member() {
        let is_equal = |path: &[&str], wanted, found| is_equal_text(path, wanted, found);
        assert!(is_equal(&["timeout"], "60s", "1m") && !is_equal(&["description"], "60s", "1m"));
        assert!(is_equal(&["retry", "schedule"], "60s", "1m"));
        assert!(is_equal(&["url"], "https://EXAMPLE.com", "https://example.com/"));
        assert!(!is_equal(&["description"], "https://a.example", "https://a.example/"));
        let sunset = ["versions", "1.0", "sunset"];
        assert!(is_equal(&sunset, "2027-01-01T01:00:00+01:00", "2027-01-01T00:00:00.000Z"));
        assert!(!is_equal(&sunset, "2027-01-01T00:00:01Z", "2027-01-01T00:00:00.000Z"));
        assert!(is_equal(&["handshake", "origin"], "Example.COM", "example.com"));
        assert!(!is_equal(&["name"], "Acme", "acme"));
    }

    #[test]
    fn patterns_are_compared_in_canonical_form() {
        for (one, other) in [
            (json!(["apx.*", "apx.*", "q.#.*"]), json!(["q.*.#", "apx.*"])),
            (json!(["#", "a.b"]), json!(["#"])),
            (Value::Null, json!(["*.#"])),
        ] {
            assert_eq!(patterns(&one), patterns(&other), "{one} {other}");
        }
        assert_ne!(patterns(&json!(["a.*"])), patterns(&json!(["a.#"])));
        assert_eq!(patterns(&json!(["a..b"])), ["a..b"]);
    }
}

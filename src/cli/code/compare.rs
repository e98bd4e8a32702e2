//! Compares the wanted members of a resource with those that it has.
//!
//! A wanted member that is an object names the members that matter, except `headers`, `metadata`,
//! `filter`, schemas and pins, which are wanted as a whole. Write-only members are compared by
//! their names.

use serde_json::{Map, Number, Value};
use url::Url;

use super::canonical::{is_equal_text, or_default, patterns};
use super::plan::ResourceKind;

/// Text in place of a secret.
pub(in crate::cli) const MASK: &str = "***";
/// Secrets within `auth`, `amqp` and `clientCertificate`.
const SECRET_MEMBERS: [&str; 4] = ["password", "clientSecret", "key", "sensitiveHeaders"];

/// A member that differs.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) struct MemberChange {
    pub(in crate::cli) name: String,
    pub(in crate::cli) old: Value,
    pub(in crate::cli) new: Value,
    /// The value of a merge patch that makes the change.
    pub(in crate::cli) patch: Value,
}

/// The members of `wanted` that differ from `existing`. `resend` takes write-only members for
/// different.
pub(super) fn difference(
    kind: ResourceKind,
    wanted: &Map<String, Value>,
    existing: &Value,
    resend: bool,
) -> Vec<MemberChange> {
    // Another host does not get the credentials of the old one, unless they are sent again.
    let moves = wanted.get("url").is_some_and(|url| !is_equal(kind, &["url"], url, &existing["url"]));
    let resend = resend || moves;
    let mut changes = Vec::new();
    for (name, new) in wanted {
        let old = existing.get(name).unwrap_or(&Value::Null);
        let path = [name.as_str()];
        let default = |value| or_default(kind, &path, value);
        let patch = match (kind, name.as_str()) {
            (ResourceKind::Endpoint, "sensitiveHeaders") => sensitive_headers(new, existing, resend),
            (ResourceKind::Endpoint, "headers") => headers(new, existing),
            (ResourceKind::Endpoint, "clientCertificate") => {
                (old.is_null() != new.is_null() || (resend && !new.is_null())).then(|| new.clone())
            }
            (ResourceKind::Endpoint, "auth" | "amqp") => {
                let differs =
                    !is_equal(kind, &path, &without_secrets(new), old) || (resend && has_secrets(new));
                differs.then(|| new.clone())
            }
            // A disabled endpoint is not resumed: someone has to look at it first.
            (ResourceKind::Endpoint, "status") => {
                (default(new) != *old && old != "disabled").then(|| new.clone())
            }
            (ResourceKind::Endpoint, "retry") => retry(new, old),
            (ResourceKind::Endpoint | ResourceKind::Queue, "versions")
            | (ResourceKind::Endpoint | ResourceKind::Queue | ResourceKind::Tenant, "metadata") => {
                whole(&default(new), old)
            }
            (ResourceKind::Endpoint | ResourceKind::Queue, "eventTypes") => {
                (patterns(new) != patterns(old)).then(|| new.clone())
            }
            (ResourceKind::Endpoint | ResourceKind::Queue, "filter") => {
                (!is_same(new, old)).then(|| new.clone())
            }
            (ResourceKind::Endpoint | ResourceKind::Queue, "labels") => {
                (texts(new) != texts(old)).then(|| new.clone())
            }
            (ResourceKind::EventType, "migrations" | "state") => {
                (!is_same(&default(new), &default(old))).then(|| new.clone())
            }
            (ResourceKind::EventType, "versions") => (!has_versions(new, old)).then(|| new.clone()),
            _ => (!is_equal(kind, &path, new, old)).then(|| new.clone()),
        };
        let Some(patch) = patch else { continue };
        let old = if name == "sensitiveHeaders" { &existing["sensitiveHeaderNames"] } else { old };
        changes.push(MemberChange { name: name.clone(), old: old.clone(), new: new.clone(), patch });
    }
    changes
}

/// Whether `found` has everything that `wanted` names, at a path of members.
fn is_equal(kind: ResourceKind, path: &[&str], wanted: &Value, found: &Value) -> bool {
    match (&or_default(kind, path, wanted), &or_default(kind, path, found)) {
        (Value::Object(wanted), Value::Object(found)) => wanted.iter().all(|(name, value)| {
            let path = [path, &[name.as_str()]].concat();
            is_equal(kind, &path, value, found.get(name).unwrap_or(&Value::Null))
        }),
        (Value::Number(wanted), Value::Number(found)) => is_same_number(wanted, found),
        (Value::String(wanted), Value::String(found)) => is_equal_text(path, wanted, found),
        // The API writes a single signature scheme as a word.
        (Value::Array(items), found @ Value::String(_)) if path == ["signature"] => {
            items.len() == 1 && is_equal(kind, path, &items[0], found)
        }
        (Value::Array(wanted), Value::Array(found)) => {
            let is_equal_item = |(one, other)| is_equal(kind, path, one, other);
            wanted.len() == found.len() && wanted.iter().zip(found).all(is_equal_item)
        }
        (wanted, found) => wanted == found,
    }
}

/// Whether two values are equal as JSON: also members that are not wanted count.
pub(super) fn is_same(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            let has = |name, value| found.get(name).is_some_and(|found| is_same(value, found));
            wanted.len() == found.len() && wanted.iter().all(|(name, value)| has(name, value))
        }
        (Value::Array(wanted), Value::Array(found)) => {
            wanted.len() == found.len() && wanted.iter().zip(found).all(|(one, other)| is_same(one, other))
        }
        (Value::Number(wanted), Value::Number(found)) => is_same_number(wanted, found),
        _ => wanted == found,
    }
}

/// Whether two numbers are equal: `5` and `5.0` are, two integers beyond 2^53 are not.
fn is_same_number(wanted: &Number, found: &Number) -> bool {
    let has_fraction = wanted.is_f64() || found.is_f64();
    wanted == found || (has_fraction && wanted.as_f64() == found.as_f64())
}

/// Whether an event type has the wanted versions, with exactly their schemas and examples.
fn has_versions(wanted: &Value, found: &Value) -> bool {
    const KIND: ResourceKind = ResourceKind::EventType;
    wanted.as_object().into_iter().flatten().all(|(version, wanted)| {
        let found = &found[version];
        let is_same_member = |name: &&str| {
            let default = |value| or_default(KIND, &["versions", version, name], value);
            wanted.get(*name).is_none_or(|wanted| is_same(&default(wanted), &default(&found[*name])))
        };
        is_equal(KIND, &["versions", version], wanted, found)
            && ["schema", "examples"].iter().all(is_same_member)
    })
}

/// The texts of a list in any order.
fn texts(value: &Value) -> Vec<&str> {
    let mut texts: Vec<_> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    texts.sort_unstable();
    texts.dedup();
    texts
}

/// A patch that leaves exactly the wanted members.
fn whole(new: &Value, old: &Value) -> Option<Value> {
    let (Value::Object(wanted), Value::Object(found)) = (new, old) else {
        return (new != old).then(|| new.clone());
    };
    let patch = replacing(wanted, found);
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// A merge patch from `found` to `wanted`, at every depth. A patch cannot store a null: to want one
/// is to want no member.
fn replacing(wanted: &Map<String, Value>, found: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for (name, value) in wanted {
        let value = match (value, found.get(name)) {
            (value, Some(old)) if value == old => continue,
            (Value::Null, None) => continue,
            (Value::Object(inner), Some(Value::Object(old))) => {
                let inner = replacing(inner, old);
                if inner.is_empty() {
                    continue;
                }
                Value::Object(inner)
            }
            _ => value.clone(),
        };
        patch.insert(name.clone(), value);
    }
    let gone = found.keys().filter(|name| !wanted.contains_key(*name));
    patch.extend(gone.map(|name| (name.clone(), Value::Null)));
    patch
}

/// A schedule and the parameters of a backoff exclude each other.
fn retry(new: &Value, old: &Value) -> Option<Value> {
    if is_equal(ResourceKind::Endpoint, &["retry"], new, old) {
        return None;
    }
    let (Value::Object(wanted), Value::Object(found)) = (new, old) else { return Some(new.clone()) };
    let has_schedule = |policy: &Map<String, Value>| policy.get("schedule").is_some_and(|it| !it.is_null());
    let mut patch = wanted.clone();
    if !has_schedule(found) && !has_schedule(wanted) {
        // To the API, any `schedule` in a patch replaces the policy.
        patch.shift_remove("schedule");
    }
    if has_schedule(wanted) != has_schedule(found) {
        let gone = found.keys().filter(|name| !wanted.contains_key(*name));
        patch.extend(gone.map(|name| (name.clone(), Value::Null)));
    }
    Some(Value::Object(patch))
}

fn lower(name: &str) -> String {
    name.to_ascii_lowercase()
}

fn sensitive_names(existing: &Value) -> Vec<String> {
    let names = existing["sensitiveHeaderNames"].as_array().into_iter().flatten();
    names.filter_map(Value::as_str).map(lower).collect()
}

/// A null removes a header.
fn wanted_headers(new: &Value) -> Map<String, Value> {
    let wanted = new.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    wanted.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The case of a name does not count. A credential among them is stored as a sensitive header.
fn headers(new: &Value, existing: &Value) -> Option<Value> {
    let empty = Map::new();
    let wanted = &wanted_headers(new);
    let found = existing["headers"].as_object().unwrap_or(&empty);
    let sensitive = sensitive_names(existing);
    let has = |name: &String, value: &Value| {
        found.iter().any(|(other, old)| lower(other) == lower(name) && old == value)
            || sensitive.contains(&lower(name))
    };
    let is_wanted = |name: &String| wanted.keys().any(|other| lower(other) == lower(name));
    let gone: Vec<_> = found.keys().filter(|name| !is_wanted(name)).collect();
    if gone.is_empty() && wanted.iter().all(|(name, value)| has(name, value)) {
        return None;
    }
    let mut patch = wanted.clone();
    patch.extend(gone.into_iter().map(|name| (name.clone(), Value::Null)));
    Some(Value::Object(patch))
}

fn sensitive_headers(new: &Value, existing: &Value, resend: bool) -> Option<Value> {
    let wanted = &wanted_headers(new);
    let found = sensitive_names(existing);
    let is_wanted = |name: &String| wanted.keys().any(|other| lower(other) == *name);
    let gone: Vec<_> = found.iter().filter(|name| !is_wanted(name)).collect();
    let has_all = wanted.keys().all(|name| found.contains(&lower(name)));
    let sends_again = resend && !wanted.is_empty();
    if gone.is_empty() && has_all && !sends_again {
        return None;
    }
    let mut patch = wanted.clone();
    patch.extend(gone.into_iter().map(|name| (name.clone(), Value::Null)));
    Some(Value::Object(patch))
}

fn without_secrets(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.iter().filter(|(name, _)| !SECRET_MEMBERS.contains(&name.as_str()));
            Value::Object(kept.map(|(name, value)| (name.clone(), without_secrets(value))).collect())
        }
        other => other.clone(),
    }
}

fn has_secrets(value: &Value) -> bool {
    without_secrets(value) != *value
}

/// The URL with a mask for its user name and password, if it has one of them.
pub(super) fn without_login(url: &str) -> Option<String> {
    let start = url.find("://")? + 3;
    let authority = url[start..].find(['/', '?', '#']).map_or(url.len(), |length| start + length);
    // A password with such a character makes the URL invalid.
    let end = if Url::parse(url).is_ok() { authority } else { url.len() };
    let at = start + url[start..end].rfind('@')?;
    Some(format!("{}{MASK}{}", &url[..start], &url[at..]))
}

/// The value for people: secrets are masked.
pub(in crate::cli) fn masked(name: &str, value: &Value) -> Value {
    let mask = |value: &Value| if value.is_null() { Value::Null } else { Value::from(MASK) };
    match (name, value) {
        ("secret", value) => mask(value),
        ("sensitiveHeaders", Value::Object(headers)) => {
            Value::Object(headers.iter().map(|(name, value)| (name.clone(), mask(value))).collect())
        }
        ("url", Value::String(url)) => Value::from(without_login(url).unwrap_or_else(|| url.clone())),
        ("auth" | "amqp" | "clientCertificate", Value::Object(members)) => {
            let shown = members.iter().map(|(inner, value)| {
                let is_secret = SECRET_MEMBERS.contains(&inner.as_str());
                (inner.clone(), if is_secret { mask(value) } else { masked(name, value) })
            });
            Value::Object(shown.collect())
        }
        (_, other) => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patch(wanted: Value, existing: &Value, resend: bool) -> Value {
        patch_of(ResourceKind::Endpoint, wanted, existing, resend)
    }

    fn patch_of(kind: ResourceKind, wanted: Value, existing: &Value, resend: bool) -> Value {
        let Value::Object(wanted) = wanted else { panic!("not an object") };
        let changes = difference(kind, &wanted, existing, resend);
        Value::Object(changes.into_iter().map(|change| (change.name, change.patch)).collect())
    }

    fn existing() -> Value {
        json!({
            "url": "https://example.com/", "eventTypes": ["#"], "headers": {"X-Env": "prod", "X-Old": "1"},
            "sensitiveHeaderNames": ["authorization"], "timeout": "1m", "status": "disabled",
            "retry": {"initial": "5s", "multiplier": 3.0, "maxAttempts": 12, "maxAge": "3d"},
            "signature": "svix", "auth": {"basic": {"username": "u"}}, "clientCertificate": {"subject": "s"},
            "rateLimit": {"limit": 100, "per": "1s", "burst": 100}, "metadata": {"a": 1, "b": {"c": 2}},
            "versions": {"pet.adopted": "1.0"},
        })
    }

    #[test]
    fn equal_members_are_no_change() {
        let wanted = json!({
            "url": "https://example.com", "eventTypes": [], "headers": {"x-env": "prod", "X-OLD": "1"},
            "sensitiveHeaders": {"Authorization": "Bearer x"}, "timeout": "60s", "status": "active",
            "retry": {"multiplier": 3, "maxAge": "72h"}, "signature": ["svix"],
            "auth": {"basic": {"username": "u", "password": "p"}},
            "clientCertificate": {"certificate": "c", "key": "k"}, "rateLimit": {"limit": 100},
            "metadata": {"b": {"c": 2}, "a": 1}, "versions": {"pet.adopted": "1.0"},
        });
        assert_eq!(patch(wanted.clone(), &existing(), false), json!({}));
        let resent = patch(wanted, &existing(), true);
        let names: Vec<_> = resent.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ["sensitiveHeaders", "auth", "clientCertificate"]);
    }

    #[test]
    fn whole_members_lose_what_is_not_wanted() {
        let wanted = json!({"headers": {"X-Env": "test"}, "metadata": {"b": {}}, "versions": {},
            "sensitiveHeaders": {}});
        let expected = json!({"headers": {"X-Env": "test", "X-Old": null},
            "metadata": {"b": {"c": null}, "a": null}, "versions": {"pet.adopted": null},
            "sensitiveHeaders": {"authorization": null}});
        assert_eq!(patch(wanted, &existing(), false), expected);
    }

    #[test]
    fn other_differences_become_a_patch() {
        let active = json!({"status": "active"});
        assert_eq!(patch(json!({"status": "paused"}), &active, false), json!({"status": "paused"}));
        for (wanted, expected) in [
            (json!({"status": "paused"}), json!({})),
            (json!({"rateLimit": null}), json!({"rateLimit": null})),
            (json!({"eventTypes": ["a.b"]}), json!({"eventTypes": ["a.b"]})),
            (json!({"auth": {"basic": {"username": "v"}}}), json!({"auth": {"basic": {"username": "v"}}})),
            (json!({"clientCertificate": null}), json!({"clientCertificate": null})),
            (
                json!({"retry": {"schedule": ["5s"]}}),
                json!({"retry": {"schedule": ["5s"], "initial": null, "multiplier": null, "maxAttempts": null, "maxAge": null}}),
            ),
            (json!({"retry": {"maxAttempts": 3}}), json!({"retry": {"maxAttempts": 3}})),
        ] {
            assert_eq!(patch(wanted.clone(), &existing(), false), expected, "{wanted}");
        }
    }

    #[test]
    fn null_is_the_default_of_its_member() {
        let existing = json!({"description": "", "eventTypes": ["#"], "ordering": "none", "signature": "standard",
            "trace": false, "metadata": {}, "versions": {}, "headers": {}, "labels": [], "request": null,
            "rateLimit": {"limit": 5, "per": "1s", "burst": 5}, "handshake": {"origin": "a.example", "rate": null,
            "callback": false}, "retry": {"initial": "5s", "maxAttempts": 5}, "status": "active"});
        let wanted = json!({"description": null, "eventTypes": null, "ordering": null, "signature": null,
            "trace": null, "metadata": null, "versions": null, "headers": null, "labels": null,
            "request": {"method": "POST", "body": null}, "rateLimit": {"per": null},
            "handshake": {"origin": "A.Example", "callback": null}, "status": null,
            "retry": {"schedule": null}, "filter": null});
        assert_eq!(patch(wanted, &existing, false), json!({}));
        let retry = json!({"retry": {"schedule": null, "maxAttempts": 6}});
        assert_eq!(patch(retry, &existing, false), json!({"retry": {"maxAttempts": 6}}));
        // The configuration has the default.
        assert_eq!(patch(json!({"retry": null}), &existing, false), json!({"retry": null}));
    }

    #[test]
    fn null_in_metadata_is_kept_or_removes_a_member() {
        let existing = json!({"metadata": {"a": null, "b": {"c": null, "d": 1}}});
        let patch_to = |metadata: Value| patch(json!({"metadata": metadata}), &existing, false);
        for equal in [
            json!({"a": null, "b": {"c": null, "d": 1}}),
            json!({"a": null, "b": {"c": null, "d": 1}, "e": null}),
        ] {
            assert_eq!(patch_to(equal), json!({}));
        }
        assert_eq!(
            patch_to(json!({"a": null, "b": {"d": null}})),
            json!({"metadata": {"b": {"d": null, "c": null}}})
        );
    }

    #[test]
    fn texts_and_large_numbers_are_compared_exactly() {
        let existing = json!({"description": "1m", "filter": {"data.n": u64::MAX}});
        for wanted in [json!({"description": "60s"}), json!({"filter": {"data.n": u64::MAX - 1}})] {
            assert_eq!(patch(wanted.clone(), &existing, false), wanted);
        }
    }

    #[test]
    fn another_url_gets_the_credentials_again() {
        let wanted = json!({"url": "https://other.example/", "sensitiveHeaders": {"Authorization": "x"}});
        assert_eq!(patch(wanted.clone(), &existing(), false), wanted);
    }

    #[test]
    fn broker_password_is_no_change() {
        let existing = json!({"url": "amqps://h:5671/%2F", "amqp": {"exchange": "shop", "routingKey": "type",
            "declare": false, "username": "balto"}});
        let amqp = json!({"exchange": "shop", "username": "balto", "password": "p"});
        let wanted = json!({"url": "amqps://h", "amqp": amqp});
        assert_eq!(patch(wanted.clone(), &existing, false), json!({}));
        assert_eq!(patch(wanted, &existing, true), json!({"amqp": amqp}));
        let other = json!({"amqp": {"exchange": "pets", "username": "balto", "password": "p"}});
        assert_eq!(patch(other.clone(), &existing, false), other);
        assert_eq!(patch(json!({"amqp": null}), &existing, false), json!({"amqp": null}));
    }

    #[test]
    fn removed_condition_is_a_change_of_the_filter() {
        let existing =
            json!({"filter": {"data.total": {"$gt": 5}, "data.wait": "60s"}, "labels": ["a", "b"]});
        for kind in [ResourceKind::Endpoint, ResourceKind::Queue] {
            let equal = json!({"filter": {"data.wait": "60s", "data.total": {"$gt": 5.0}}, "labels": ["b", "a", "b"]});
            assert_eq!(patch_of(kind, equal, &existing, false), json!({}));
            for wanted in [
                json!({"filter": {"data.wait": "60s"}}),
                json!({"filter": {"data.total": {"$gt": 5}, "data.wait": "1m"}}),
                json!({"filter": null}),
                json!({"labels": ["a"]}),
            ] {
                assert_eq!(patch_of(kind, wanted.clone(), &existing, false), wanted);
            }
        }
    }

    #[test]
    fn schemas_and_examples_are_compared_exactly() {
        let schema = json!({"type": "object", "required": ["id"]});
        let existing = json!({"versions": {"1.0": {"schema": schema, "deprecated": false, "sunset": null,
            "examples": [{"id": 1, "name": "a"}], "eventsLastDay": 3}, "2.0": {"schema": {}}}});
        let kind = ResourceKind::EventType;
        for equal in
            [json!({"schema": schema}), json!({"schema": schema, "examples": [{"name": "a", "id": 1}]})]
        {
            assert_eq!(patch_of(kind, json!({"versions": {"1.0": equal}}), &existing, false), json!({}));
        }
        for version in [
            json!({"schema": {"type": "object"}}),
            json!({"schema": schema, "examples": [{"id": 1}]}),
            json!({"schema": schema, "deprecated": true}),
        ] {
            let wanted = json!({"versions": {"1.0": version}});
            assert_eq!(patch_of(kind, wanted.clone(), &existing, false), wanted);
        }
    }

    #[test]
    fn state_rules_are_compared_exactly() {
        let rules = json!([{"op": "remove", "path": "/state/a", "optional": true}]);
        let (kind, existing) = (ResourceKind::EventType, json!({"state": rules}));
        assert_eq!(patch_of(kind, json!({"state": rules}), &existing, false), json!({}));
        let wanted = json!({"state": [{"op": "remove", "path": "/state/a"}]});
        assert_eq!(patch_of(kind, wanted.clone(), &existing, false), wanted);
    }

    #[test]
    fn secrets_are_masked_at_every_depth() {
        let amqp = json!({"exchange": "e", "username": "u", "password": "p"});
        assert_eq!(masked("amqp", &amqp), json!({"exchange": "e", "username": "u", "password": MASK}));
        for (url, expected) in [
            ("amqps://u:p@h/%2F", "amqps://***@h/%2F"),
            ("amqps://u:p/w#@h/", "amqps://***@h/"),
            ("https://h/a?mail=b@c", "https://h/a?mail=b@c"),
        ] {
            assert_eq!(masked("url", &json!(url)), expected);
        }
        let auth = json!({"oauth2": {"clientId": "c", "clientSecret": "s"}});
        assert_eq!(masked("auth", &auth)["oauth2"], json!({"clientId": "c", "clientSecret": MASK}));
        assert_eq!(masked("sensitiveHeaders", &json!({"A": "x", "B": null})), json!({"A": MASK, "B": null}));
        let certificate = json!({"certificate": "c", "key": "k"});
        assert_eq!(masked("clientCertificate", &certificate)["key"], MASK);
        assert_eq!(masked("secret", &json!("whsec_x")), MASK);
        assert_eq!(masked("url", &json!("u")), "u");
    }
}

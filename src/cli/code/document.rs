//! The file of `balto apply`: endpoints, queues and event types as TOML or JSON.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::compare::without_login;
use super::placeholders;
use super::plan::{ResourceKind, Wanted};
use crate::cli::usage;
use crate::nearest::nearest;

/// Members of the file. Lists come in the order in which resources are created.
const TENANT: &str = "tenant";
const LISTS: [(&str, ResourceKind, &str); 3] = [
    ("eventTypes", ResourceKind::EventType, "name"),
    ("queues", ResourceKind::Queue, "name"),
    ("endpoints", ResourceKind::Endpoint, "uid"),
];

/// The wanted resources of a file.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Document {
    pub(super) wanted: Vec<(ResourceKind, Wanted)>,
    /// The tenant of resources that name none.
    pub(super) tenant: Option<String>,
}

/// Reads and checks a file; `-` is TOML or JSON on standard input.
///
/// # Errors
/// Wrong usage, with the place in the file.
pub(super) fn read(file: &Path, variable: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Document> {
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.map_err(|error| usage(format!("cannot read {}: {error}", file.display())))?;
    parse(&text, variable).map_err(|reason| usage(format!("{}: {reason}", file.display())))
}

/// The value of a file in TOML or JSON, with its placeholders.
///
/// # Errors
/// Why it is neither.
pub(super) fn value_of(text: &str) -> Result<Value, String> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"));
    }
    let table: toml::Table = toml::from_str(text).map_err(|error| format!("not TOML: {error}"))?;
    json_of(toml::Value::Table(table), "")
}

fn parse(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Document, String> {
    let Value::Object(mut members) = value_of(text)? else { return Err("must be an object".to_owned()) };
    let tenant = take_text(&mut members, TENANT)?;
    let mut document = Document { tenant, ..Document::default() };
    let mut seen = HashSet::new();
    for (list, kind, key) in LISTS {
        let entries = match members.remove(list) {
            None => continue,
            Some(Value::Array(entries)) => entries,
            Some(_) => return Err(format!("{list}: must be a list; write [[{list}]]")),
        };
        for (index, entry) in entries.into_iter().enumerate() {
            let place = format!("{list}[{index}]");
            let wanted = wanted(kind, key, entry, document.tenant.as_ref(), variable);
            let wanted = wanted.map_err(|reason| format!("{place}: {reason}"))?;
            if !seen.insert((list, wanted.tenant.clone(), wanted.name.clone())) {
                return Err(format!("{place}: {key} `{}` is there twice", wanted.name));
            }
            document.wanted.push((kind, wanted));
        }
    }
    match members.keys().next() {
        None => Ok(document),
        Some(name) => {
            let known = LISTS.iter().map(|(list, ..)| *list).chain([TENANT]);
            Err(format!("{name}: is not a known member{}", suggestion(name, known)))
        }
    }
}

/// `; did you mean ...?`, or nothing.
pub(super) fn suggestion<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, known).map(|known| format!("; did you mean {known}?")).unwrap_or_default()
}

fn wanted(
    kind: ResourceKind,
    key: &str,
    entry: Value,
    tenant: Option<&String>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Wanted, String> {
    let Value::Object(mut members) = entry else { return Err("must be a table".to_owned()) };
    for value in members.values_mut() {
        placeholders::resolve(value, variable)?;
    }
    let name = take_text(&mut members, key)?.ok_or_else(|| format!("{key} is missing"))?;
    let tenant = match kind {
        ResourceKind::Queue | ResourceKind::Endpoint => {
            take_text(&mut members, TENANT)?.or_else(|| tenant.cloned())
        }
        ResourceKind::Tenant | ResourceKind::EventType => None,
    };
    let has_login = |url: &Value| url.as_str().is_some_and(|url| without_login(url).is_some());
    if kind == ResourceKind::Endpoint && members.get("url").is_some_and(has_login) {
        return Err("url: has a user name or password; put them into amqp.username and amqp.password, or \
            into auth.basic"
            .to_owned());
    }
    let secret = take_text(&mut members, "secret")?;
    // The type of a generated secret counts for a new endpoint alone.
    let mut initial = Map::new();
    initial.extend(members.remove_entry("secretType"));
    Ok(Wanted { tenant, name, members, initial, secret })
}

fn take_text(members: &mut Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match members.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("{name}: must be text, is {other}")),
    }
}

/// # Errors
/// For a number that JSON does not have, with its place.
fn json_of(value: toml::Value, place: &str) -> Result<Value, String> {
    Ok(match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) if !number.is_finite() => {
            return Err(format!("{place}: `{number}` is not a finite number"));
        }
        toml::Value::Float(number) => Value::from(number),
        toml::Value::Boolean(is_true) => Value::Bool(is_true),
        toml::Value::Datetime(time) => Value::String(time.to_string()),
        toml::Value::Array(items) => {
            let items = items.into_iter().enumerate();
            items
                .map(|(index, item)| json_of(item, &format!("{place}[{index}]")))
                .collect::<Result<_, _>>()?
        }
        toml::Value::Table(table) => {
            let member = |(name, value): (String, toml::Value)| {
                let separator = if place.is_empty() { "" } else { "." };
                let value = json_of(value, &format!("{place}{separator}{name}"))?;
                Ok((name, value))
            };
            Value::Object(table.into_iter().map(member).collect::<Result<_, String>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn variable(name: &str) -> Option<String> {
        (name == "CRM_SECRET").then(|| "whsec_x".to_owned())
    }

    #[test]
    fn number_that_json_lacks_is_refused_with_its_place() {
        let refused = parse("[[queues]]\nname = \"q\"\nretry = { multiplier = nan }", &variable);
        assert_eq!(refused.err().unwrap(), "queues[0].retry.multiplier: `NaN` is not a finite number");
    }

    #[test]
    fn file_becomes_wanted_resources() {
        let text = r#"
            tenant = "acme"
            [[endpoints]]
            uid = "crm"
            url = "https://example.com/"
            secret = "${CRM_SECRET}"
            secretType = "hmac"
            rateLimit = { limit = 100 }
            [[endpoints]]
            uid = "crm"
            tenant = "other"
            [[queues]]
            name = "mail"
            [[eventTypes]]
            name = "order.paid"
            versions = { "1.0" = { schema = {}, sunset = 2026-03-13T00:00:00Z } }
        "#;
        let Document { wanted, .. } = parse(text, &variable).unwrap();
        let kinds: Vec<_> = wanted.iter().map(|(kind, one)| (*kind, one.tenant.as_deref())).collect();
        assert_eq!(
            kinds,
            [
                (ResourceKind::EventType, None),
                (ResourceKind::Queue, Some("acme")),
                (ResourceKind::Endpoint, Some("acme")),
                (ResourceKind::Endpoint, Some("other")),
            ]
        );
        let crm = &wanted[2].1;
        assert_eq!(crm.secret.as_deref(), Some("whsec_x"));
        assert_eq!(
            Value::Object(crm.members.clone()),
            json!({"url": "https://example.com/", "rateLimit": {"limit": 100}})
        );
        assert_eq!(Value::Object(crm.initial.clone()), json!({"secretType": "hmac"}));
        assert_eq!(wanted[0].1.members["versions"]["1.0"]["sunset"], "2026-03-13T00:00:00Z");
        let json = parse(r#"{"endpoints": [{"uid": "a", "rateLimit": null}]}"#, &variable).unwrap();
        assert_eq!(json.wanted[0].1.members["rateLimit"], Value::Null);
    }

    #[test]
    fn wrong_file_names_the_place() {
        for (text, expected) in [
            ("endpoint = []", "endpoint: is not a known member; did you mean endpoints?"),
            ("[endpoints]\nuid = 'a'", "endpoints: must be a list; write [[endpoints]]"),
            ("[[endpoints]]\nurl = 'a'", "endpoints[0]: uid is missing"),
            ("[[endpoints]]\nuid = 5", "endpoints[0]: uid: must be text, is 5"),
            ("[[endpoints]]\nuid = 'a'\n[[endpoints]]\nuid = 'a'", "endpoints[1]: uid `a` is there twice"),
            ("[[queues]]\nname = 'a'\ndescription = '${NO}'", "queues[0]: the variable NO is not set"),
            (
                "[[endpoints]]\nuid = 'a'\nurl = 'amqps://u:p@h/'",
                "endpoints[0]: url: has a user name or password; put them into amqp.username and amqp.password",
            ),
            ("{", "not JSON: "),
            ("a = ", "not TOML: "),
        ] {
            let error = parse(text, &variable).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}

//! The view of an event that filters see: one JSON object.
//!
//! The data of an event is any JSON. Its text may have parts that no tree can hold: a number beyond
//! a double, half of a surrogate pair. Filters see the largest double, and U+FFFD.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::domain::{Event, Label, attribute};

/// The parts of an event that filters see. Not the id, the position and the times: they are unknown
/// when the event is matched.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventFacts<'a> {
    pub event_type: &'a str,
    pub version: &'a str,
    pub stream: Option<&'a str>,
    /// As given. The default is the stream.
    pub ordering_key: Option<&'a str>,
    pub labels: &'a [Label],
    /// See [`Event::attributes`].
    pub attributes: &'a [(Box<str>, Box<str>)],
    /// A JSON object.
    pub metadata: Option<&'a [u8]>,
    /// A JSON value; empty if absent.
    pub data: &'a [u8],
}

impl<'a> From<&'a Event> for EventFacts<'a> {
    fn from(event: &'a Event) -> Self {
        Self {
            event_type: event.event_type.as_str(),
            version: event.version.as_str(),
            stream: event.stream.as_ref().map(|(name, _)| name.as_str()),
            ordering_key: event.ordering_key.as_ref().map(|key| key.as_str()),
            labels: &event.labels,
            attributes: &event.attributes,
            metadata: event.metadata.as_deref(),
            data: &event.data,
        }
    }
}

/// First words of paths.
pub const ROOTS: [&str; 8] =
    ["data", "metadata", "type", "version", "stream", "orderingKey", "labels", "attributes"];

/// The parsed content of one event.
#[derive(Clone, Debug)]
pub struct EventContent(Value);

impl EventContent {
    /// Without data and metadata unless `reads_json`; see `CompiledFilter::reads_json`.
    #[must_use]
    pub fn new(facts: &EventFacts<'_>, reads_json: bool) -> Self {
        let mut members = Map::new();
        let mut add = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                members.insert(name.to_owned(), value);
            }
        };
        if reads_json {
            add("data", read_json(facts.data));
            add("metadata", facts.metadata.and_then(read_json));
        }
        add("type", Some(facts.event_type.into()));
        add("version", Some(facts.version.into()));
        add("stream", facts.stream.map(Value::from));
        add("orderingKey", facts.ordering_key.or(facts.stream).map(Value::from));
        let labels: Vec<_> = facts.labels.iter().map(Label::as_str).collect();
        add("labels", Some(labels.into()).filter(|_| !facts.labels.is_empty()));
        let attributes: Map<_, _> = facts.attributes.iter().map(attribute_member).collect();
        add("attributes", Some(attributes.into()).filter(|_| !facts.attributes.is_empty()));
        Self(Value::Object(members))
    }

    pub(super) fn members(&self) -> &Value {
        &self.0
    }
}

/// The attribute as the API shows it.
fn attribute_member((name, value): &(Box<str>, Box<str>)) -> (String, Value) {
    match name.strip_suffix(attribute::NOT_TEXT) {
        Some(name) => (name.to_owned(), serde_json::from_str(value).unwrap_or_default()),
        None if **name == *attribute::BINARY => (name.to_string(), Value::Bool(true)),
        None => (name.to_string(), Value::from(&**value)),
    }
}

/// The last of several members with the same name counts.
fn read_json(json: &[u8]) -> Option<Value> {
    if json.is_empty() {
        return None;
    }
    serde_json::from_slice(json).ok().or_else(|| {
        let text = std::str::from_utf8(json).ok()?;
        serde_json::from_str(&replace_unreadable(text)).ok()
    })
}

/// Replaces the parts of a JSON text that no tree can hold.
fn replace_unreadable(json: &str) -> String {
    let (mut out, mut rest, mut in_text) = (String::with_capacity(json.len()), json, false);
    while let Some(first) = rest.chars().next() {
        let is_number = !in_text && matches!(first, '-' | '0'..='9');
        let length = match first {
            '\\' => escape_length(rest),
            _ if is_number => rest.find([',', ']', '}', ' ', '\n', '\r', '\t']).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (token, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        in_text ^= first == '"';
        rest = after;
        match token.parse::<f64>() {
            Ok(number) if is_number && number.is_infinite() => {
                write!(out, "{:e}", f64::MAX.copysign(number)).expect("a string takes it");
            }
            _ if is_lone_surrogate(token) => out.push('\u{fffd}'),
            _ => out.push_str(token),
        }
    }
    out
}

/// The UTF-16 unit of an escape at the start of a text.
fn escaped_unit(text: &str) -> Option<u16> {
    u16::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok()
}

/// Two, six for `\u`, and twelve for a surrogate pair.
fn escape_length(text: &str) -> usize {
    match escaped_unit(text) {
        None => 1 + text.chars().nth(1).map_or(0, char::len_utf8),
        Some(0xd800..=0xdbff) => {
            let low = text.get(6..).and_then(escaped_unit);
            if matches!(low, Some(0xdc00..=0xdfff)) { 12 } else { 6 }
        }
        Some(_) => 6,
    }
}

fn is_lone_surrogate(token: &str) -> bool {
    token.len() == 6 && matches!(escaped_unit(token), Some(0xd800..=0xdfff))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_are_those_of_the_event() {
        let labels: Vec<Label> = ["eu", "gold"].iter().map(|label| label.parse().unwrap()).collect();
        let attributes = [
            ("balto-hops".into(), "2".into()),
            ("priority#".into(), "7".into()),
            ("source".into(), "s".into()),
        ];
        let facts = EventFacts {
            event_type: "order.paid",
            version: "1.0",
            stream: Some("order-42"),
            ordering_key: None,
            labels: &labels,
            attributes: &attributes,
            metadata: Some(br#"{"trace":"x"}"#),
            data: br#"{"a":1,"a":2}"#,
        };
        let expected = json!({"data": {"a": 2}, "metadata": {"trace": "x"}, "type": "order.paid",
            "version": "1.0", "stream": "order-42", "orderingKey": "order-42", "labels": ["eu", "gold"],
            "attributes": {"balto-hops": "2", "priority": 7, "source": "s"}});
        assert_eq!(*EventContent::new(&facts, true).members(), expected);
        let unread = EventContent::new(&facts, false);
        assert_eq!((unread.members().get("data"), unread.members().get("metadata")), (None, None));
        let bare = EventFacts { event_type: "a", version: "1.0", ..EventFacts::default() };
        assert_eq!(*EventContent::new(&bare, true).members(), json!({"type": "a", "version": "1.0"}));
    }

    #[test]
    fn data_that_no_tree_can_hold_is_readable() {
        let read = |text: &str| read_json(text.as_bytes()).unwrap();
        assert_eq!(read(r#"{"a":[2e400, -1e999,1],"b":"2e400"}"#)["a"], json!([f64::MAX, f64::MIN, 1]));
        assert_eq!(read(r#"{"a":-2e400}"#)["a"], json!(f64::MIN));
        assert_eq!(read("2e400"), json!(f64::MAX));
        let texts = [
            (r#""\ud83d""#, "\u{fffd}"),
            (r#""a\ude00\"b""#, "a\u{fffd}\"b"),
            (r#""\ud83d\ude00 \ud83d é\\ud83d""#, "\u{1f600} \u{fffd} é\\ud83d"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}\u{1f600}"),
        ];
        for (text, expected) in texts {
            assert_eq!(read(text), json!(expected), "{text}");
        }
        assert_eq!(read(r#"{"\ud800":1}"#), json!({"\u{fffd}": 1}));
        assert_eq!(read_json(b""), None);
    }
}

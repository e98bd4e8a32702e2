//! Compatibility of two schemas, by proof: whether one accepts everything that the other does.
//!
//! The only user of the library's experimental module `canonical`. Writers are closed, readers are
//! open: an object that lists `properties` and says nothing about others is closed for the side
//! that writes, so that a new optional member is compatible.

use jsonschema::canonical::{self, CanonicalSchema, Containment};
use jsonschema::{Draft, PatternOptions};
use serde_json::Value;

use crate::domain::Compatibility;
use crate::limits;

/// Which side must understand the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReaderDirection {
    /// Readers of the earlier version get data of the new one.
    Forward,
    /// Readers of the new version get data of the earlier one.
    Backward,
}

impl ReaderDirection {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
        }
    }

    /// The directions that a mode requires.
    #[must_use]
    pub fn required_by(mode: Compatibility) -> &'static [Self] {
        match mode {
            Compatibility::Forward => &[Self::Forward],
            Compatibility::Backward => &[Self::Backward],
            Compatibility::Full => &[Self::Forward, Self::Backward],
            Compatibility::None => &[],
        }
    }
}

/// Why two schemas are not known to be compatible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// The writer's schema accepts values that the reader's rejects.
    No,
    /// Not decided, for example because a keyword cannot be compared.
    Unknown,
}

impl Undecided {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Incompatibility {
    pub direction: ReaderDirection,
    pub answer: Undecided,
    /// A schema of the values that the writer's schema accepts and the reader's rejects, if it can
    /// be computed.
    pub lost: Option<Value>,
}

/// Compares an earlier and a new schema. Both must be legal.
#[must_use]
pub fn compare(direction: ReaderDirection, earlier: &Value, new: &Value) -> Option<Incompatibility> {
    let (reader, writer) = match direction {
        ReaderDirection::Forward => (earlier, new),
        ReaderDirection::Backward => (new, earlier),
    };
    let unknown = Incompatibility { direction, answer: Undecided::Unknown, lost: None };
    let (Some(reader), Some(writer)) = (canonical(reader), canonical(&close(writer))) else {
        return Some(unknown);
    };
    let answer = match reader.covers(&writer) {
        Ok(Containment::Yes) => return None,
        Ok(Containment::No) => Undecided::No,
        Ok(Containment::Unknown) | Err(_) => Undecided::Unknown,
    };
    let lost = writer.subtract(&reader).ok().map(|lost| lost.to_json_schema());
    let lost = lost.filter(|lost| lost.to_string().len() <= limits::LOST_SCHEMA_BYTES_MAX);
    Some(Incompatibility { answer, lost, ..unknown })
}

fn canonical(schema: &Value) -> Option<CanonicalSchema> {
    let patterns = PatternOptions::regex().size_limit(limits::PATTERN_BYTES_MAX);
    let options = canonical::options().offline().with_draft(Draft::Draft202012);
    options.with_pattern_options(patterns).canonicalize(schema).ok()
}

/// The schema as its writers use it: no members beside the listed ones. Unchanged if an object is
/// described in several places, because each place sees only a part of its members.
fn close(schema: &Value) -> Value {
    let mut closed = schema.clone();
    if is_separable(schema) {
        close_in_place(&mut closed);
    }
    closed
}

/// Keywords with a map of schemas, a list of schemas, and one schema.
const MAPS: [&str; 3] = ["properties", "patternProperties", "$defs"];
const LISTS: [&str; 3] = ["anyOf", "oneOf", "prefixItems"];
const ONE: [&str; 3] = ["items", "contains", "additionalProperties"];
/// Keywords that describe the same object a second time.
const COMBINING: [&str; 8] = [
    "allOf",
    "if",
    "then",
    "else",
    "dependentSchemas",
    "$dynamicRef",
    "unevaluatedProperties",
    "unevaluatedItems",
];
/// Keywords that do so if the schema lists `properties` too.
const ALTERNATIVES: [&str; 3] = ["$ref", "anyOf", "oneOf"];

/// Whether each object is described in one place.
fn is_separable(schema: &Value) -> bool {
    match schema {
        Value::Object(members) => {
            let alternatives = ALTERNATIVES.iter().filter(|name| members.contains_key(**name)).count();
            let is_mixed = alternatives + usize::from(members.contains_key("properties")) > 1;
            !is_mixed
                && !COMBINING.iter().any(|name| members.contains_key(*name))
                && members.values().all(is_separable)
        }
        Value::Array(items) => items.iter().all(is_separable),
        _ => true,
    }
}

fn close_in_place(schema: &mut Value) {
    let Value::Object(members) = schema else { return };
    for name in MAPS {
        if let Some(Value::Object(schemas)) = members.get_mut(name) {
            schemas.values_mut().for_each(close_in_place);
        }
    }
    for name in LISTS {
        if let Some(Value::Array(schemas)) = members.get_mut(name) {
            schemas.iter_mut().for_each(close_in_place);
        }
    }
    for name in ONE {
        if let Some(schema) = members.get_mut(name) {
            close_in_place(schema);
        }
    }
    if members.contains_key("properties") && !members.contains_key("additionalProperties") {
        members.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(properties: Value, required: &[&str]) -> Value {
        json!({"type": "object", "properties": properties, "required": required})
    }

    /// The changes that registries of schemas are compared by, from an object with an `id`. Each
    /// has the expected answers in both directions: `y`es or `n`o.
    #[test]
    fn common_changes_have_the_expected_answers() {
        let (int, text) = (json!({"type": "integer"}), json!({"type": "string"}));
        let id = || object(json!({"id": int}), &["id"]);
        let with = |name: &str, schema: Value, required: &[&str]| {
            let mut changed = object(json!({"id": int}), required);
            changed["properties"][name] = schema;
            changed
        };
        let closed = |mut schema: Value| {
            schema["additionalProperties"] = json!(false);
            schema
        };
        let note = || with("note", text.clone(), &["id"]);
        let of = |schema: Value| object(json!({"id": schema}), &["id"]);
        let array = |items: Value| of(json!({"type": "array", "items": items}));
        for (change, earlier, new, forward, backward) in [
            ("nothing", id(), id(), 'y', 'y'),
            (
                "description",
                id(),
                json!({"description": "x", "type": "object", "properties": {"id": int}, "required": ["id"]}),
                'y',
                'y',
            ),
            ("optional member added", id(), note(), 'y', 'y'),
            ("optional member removed", note(), id(), 'y', 'y'),
            ("required member added", id(), with("note", text.clone(), &["id", "note"]), 'y', 'n'),
            ("required member removed", with("note", text.clone(), &["id", "note"]), id(), 'n', 'y'),
            ("member becomes required", note(), with("note", text.clone(), &["id", "note"]), 'y', 'n'),
            ("member becomes optional", with("note", text.clone(), &["id", "note"]), note(), 'n', 'y'),
            ("type changed", of(int.clone()), of(text.clone()), 'n', 'n'),
            ("type narrowed", of(json!({"type": "number"})), of(int.clone()), 'y', 'n'),
            ("type widened", of(int.clone()), of(json!({"type": "number"})), 'n', 'y'),
            ("null allowed", of(text.clone()), of(json!({"type": ["string", "null"]})), 'n', 'y'),
            ("null forbidden", of(json!({"type": ["string", "null"]})), of(text.clone()), 'y', 'n'),
            ("enum widened", of(json!({"enum": ["a"]})), of(json!({"enum": ["a", "b"]})), 'n', 'y'),
            ("enum narrowed", of(json!({"enum": ["a", "b"]})), of(json!({"enum": ["a"]})), 'y', 'n'),
            (
                "minimum raised",
                of(json!({"type": "integer", "minimum": 1})),
                of(json!({"type": "integer", "minimum": 5})),
                'y',
                'n',
            ),
            (
                "maximum length raised",
                of(json!({"type": "string", "maxLength": 5})),
                of(json!({"type": "string", "maxLength": 9})),
                'n',
                'y',
            ),
            ("items narrowed", array(json!({"type": "number"})), array(int.clone()), 'y', 'n'),
            ("items changed", array(int.clone()), array(text.clone()), 'n', 'n'),
            ("object closed", id(), closed(id()), 'y', 'y'),
            ("optional member added to a closed object", closed(id()), closed(note()), 'n', 'y'),
            ("optional member removed from a closed object", closed(note()), closed(id()), 'y', 'n'),
            ("alternative added", of(json!({"anyOf": [int]})), of(json!({"anyOf": [int, text]})), 'n', 'y'),
            ("nested optional member added", of(id()), of(note()), 'y', 'y'),
            (
                "definition moved",
                of(id()),
                json!({"$ref": "#/$defs/all", "$defs": {"all": of(id())}}),
                'y',
                'y',
            ),
        ] {
            for (direction, expected) in
                [(ReaderDirection::Forward, forward), (ReaderDirection::Backward, backward)]
            {
                // An undecided answer counts as no.
                let answer = if compare(direction, &earlier, &new).is_none() { 'y' } else { 'n' };
                assert_eq!(answer, expected, "{change}, {}", direction.as_str());
            }
        }
    }

    /// Closing each part of a combined object would make it empty, and everything compatible.
    #[test]
    fn combined_objects_are_not_closed() {
        let part = |name: &str| json!({"properties": {name: {"type": "string"}}, "required": [name]});
        for combined in [
            json!({"allOf": [part("a"), part("b")]}),
            json!({"properties": {"a": {"type": "string"}}, "anyOf": [part("b"), part("c")]}),
            json!({"properties": {"a": {"type": "string"}}, "$ref": "#/$defs/b", "$defs": {"b": part("b")}}),
            json!({"if": part("a"), "then": part("b"), "properties": {"a": true}}),
        ] {
            assert_eq!(close(&combined), combined);
        }
        let choice = json!({"oneOf": [part("a"), part("b")]});
        assert_eq!(close(&choice)["oneOf"][0]["additionalProperties"], false);
    }
}

//! Bounds of the cost of a schema: how many subschemas apply to one value.
//!
//! A schema can refer to itself, or refer twice to a schema that refers twice to another. Such a
//! schema of a few hundred bytes takes hours. The count is an upper bound: a branch that a value
//! would skip counts too.

use std::collections::HashMap;

use serde_json::Value;

/// Levels of nesting that the count looks at. Growth that is exponential shows well before.
const LEVELS: usize = 24;

/// Keywords whose subschemas apply to the same value.
const SAME_LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
const SAME: [&str; 4] = ["not", "if", "then", "else"];
const SAME_MAPS: [&str; 1] = ["dependentSchemas"];
/// Keywords whose subschemas apply to a member or an item.
const CHILD: [&str; 6] = [
    "additionalProperties",
    "unevaluatedProperties",
    "items",
    "contains",
    "unevaluatedItems",
    "propertyNames",
];

/// The counts of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemaCost {
    /// The most subschemas that apply to one value beside each other.
    pub beside: u64,
    /// The same, including those that reach the value over several ways from above.
    pub nested: u64,
}

/// Counts the subschemas.
#[must_use]
pub fn cost(root: &Value) -> SchemaCost {
    let mut all = Vec::new();
    collect(root, &mut all);
    let mut counter = Counter { root, below: HashMap::new(), now: HashMap::new() };
    let mut cost = SchemaCost { beside: 0, nested: 0 };
    for level in 0..LEVELS {
        let most = all.iter().filter_map(|schema| counter.count(schema)).max().unwrap_or(0);
        if level == 0 {
            cost.beside = most;
        }
        cost.nested = cost.nested.max(most);
        let counted = std::mem::take(&mut counter.now);
        counter.below = counted.into_iter().filter_map(|(at, count)| Some((at, count?))).collect();
    }
    cost
}

/// All objects, which include all schemas that contain others.
fn collect<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(members) => {
            found.push(value);
            members.values().for_each(|member| collect(member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

struct Counter<'a> {
    root: &'a Value,
    /// Counts of the level below, by the address of the schema. Empty at the lowest level.
    below: HashMap<*const Value, u64>,
    /// Counts of this level; `None` while a count is under way.
    now: HashMap<*const Value, Option<u64>>,
}

impl<'a> Counter<'a> {
    /// How often the schema applies something to one value at this level. `None` within a cycle of
    /// references, which the validator ends.
    fn count(&mut self, schema: &'a Value) -> Option<u64> {
        let at = std::ptr::from_ref(schema);
        if let Some(known) = self.now.get(&at) {
            return *known;
        }
        let Value::Object(members) = schema else { return Some(1) };
        self.now.insert(at, None);
        let mut same: Vec<&'a Value> = Vec::new();
        same.extend(SAME_LISTS.iter().filter_map(|name| members.get(*name)?.as_array()).flatten());
        same.extend(SAME.iter().filter_map(|name| members.get(*name)));
        let maps = SAME_MAPS.iter().filter_map(|name| members.get(*name)?.as_object());
        same.extend(maps.flat_map(|map| map.values()));
        let references = ["$ref", "$dynamicRef"].iter().filter_map(|name| members.get(*name)?.as_str());
        same.extend(references.filter_map(|reference| self.target(reference)));
        let mut total = u64::from(self.below.is_empty());
        for schema in same {
            total = total.saturating_add(self.count(schema).unwrap_or(0));
        }
        let patterns = members.get("patternProperties").and_then(Value::as_object);
        let patterns = patterns.into_iter().flat_map(|map| map.values());
        for schema in CHILD.iter().filter_map(|name| members.get(*name)).chain(patterns) {
            total = total.saturating_add(self.below(schema));
        }
        // A member or item meets one of these.
        let named = members.get("properties").and_then(Value::as_object);
        let named = named.into_iter().flat_map(|map| map.values()).map(|schema| self.below(schema)).max();
        let placed = members.get("prefixItems").and_then(Value::as_array).into_iter().flatten();
        let placed = placed.map(|schema| self.below(schema)).max();
        total = total.saturating_add(named.unwrap_or(0)).saturating_add(placed.unwrap_or(0));
        self.now.insert(at, Some(total));
        Some(total)
    }

    /// The count of a child's schema at the level below.
    fn below(&self, schema: &Value) -> u64 {
        self.below.get(&std::ptr::from_ref(schema)).copied().unwrap_or(0)
    }

    /// The schema that a reference names, if it is a pointer or an anchor of this document.
    fn target(&self, reference: &str) -> Option<&'a Value> {
        let fragment = reference.split_once('#').map_or("", |(_, fragment)| fragment);
        if fragment.is_empty() {
            return Some(self.root);
        }
        if fragment.starts_with('/') {
            let pointer = percent_encoding::percent_decode_str(fragment).decode_utf8().ok()?;
            return self.root.pointer(&pointer);
        }
        anchored(self.root, fragment)
    }
}

fn anchored<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    match schema {
        Value::Object(members) => {
            let is_it = ["$anchor", "$dynamicAnchor"]
                .iter()
                .any(|key| members.get(*key).and_then(Value::as_str) == Some(name));
            if is_it { Some(schema) } else { members.values().find_map(|member| anchored(member, name)) }
        }
        Value::Array(items) => items.iter().find_map(|item| anchored(item, name)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    #[test]
    fn plain_schemas_count_little() {
        let address = json!({"type": "object", "properties": {"street": {"type": "string"}}});
        let schema = json!({
            "type": "object", "additionalProperties": false,
            "properties": {"home": {"$ref": "#/$defs/address"}, "work": {"$ref": "#/$defs/address"}},
            "$defs": {"address": address},
        });
        let cost = cost(&schema);
        assert!(cost.beside <= 3 && cost.nested <= 4, "{cost:?}");
    }

    #[test]
    fn tree_counts_the_same_at_each_depth() {
        let tree =
            json!({"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}});
        assert!(cost(&tree).nested <= 4, "{:?}", cost(&tree));
    }

    #[test]
    fn doubled_references_count_exponentially() {
        let mut definitions = Map::new();
        for level in 0..30 {
            let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
            definitions.insert(format!("d{level}"), json!({"allOf": [next, next]}));
        }
        definitions.insert("d30".to_owned(), json!({"type": "string"}));
        let laughs = json!({"$defs": definitions, "$ref": "#/$defs/d0"});
        assert!(cost(&laughs).beside > 1_000_000_000, "{:?}", cost(&laughs));
    }

    #[test]
    fn branching_recursion_counts_exponentially() {
        let branch = json!({"properties": {"x": {"$ref": "#/$defs/a"}}});
        let schema = json!({"$defs": {"a": {"anyOf": [branch, branch]}}, "$ref": "#/$defs/a"});
        let cost = cost(&schema);
        assert!(cost.beside < 10 && cost.nested > 1_000_000, "{cost:?}");
    }

    #[test]
    fn cycles_and_foreign_references_end() {
        for schema in [
            json!({"$ref": "#"}),
            json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}),
            json!({"$ref": "https://example.com/x#y"}),
            json!({"$anchor": "a", "items": {"$ref": "#a"}}),
            json!(true),
            json!(7),
        ] {
            assert!(cost(&schema).beside < 10, "{schema}");
        }
    }
}

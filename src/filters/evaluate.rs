//! The meaning of a filter: which values a path finds, and which of them an operator accepts.
//!
//! A path finds one value, the value "missing", or, behind an array, one for each element. An
//! operator accepts a path if it accepts one of its values; `$ne`, `$nin` and `$not` are negations.
//! Both are those of MongoDB.

use std::cmp::Ordering;

use serde_json::{Number, Value};

use super::content::EventContent;
use super::value_set::ValueSet;
use crate::limits;

/// A filter, ready to be applied.
#[derive(Clone, Debug, PartialEq)]
pub struct CompiledFilter {
    pub(super) condition: Condition,
    /// Number of comparisons: operators, and the values of lists.
    pub(super) comparisons: usize,
    /// Whether a path begins with `data` or `metadata`, which have to be parsed.
    pub(super) reads_json: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
    Test { path: Vec<PathSegment>, test: ValueTest },
}

/// The name of a member. Digits are also the index of an array.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PathSegment {
    pub(super) name: Box<str>,
    pub(super) index: Option<usize>,
}

/// A condition on one value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ValueTest {
    Exists,
    Equal(Value),
    OneOf(Box<ValueSet>),
    Compare(Comparison, Value),
    StartsWith(Box<str>),
    EndsWith(Box<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

impl CompiledFilter {
    /// Number of comparisons. [`Self::matches`] takes at most [`limits::FILTER_VALUES_MAX`] steps
    /// for each, and for all texts and numbers of a list together.
    #[must_use]
    pub fn comparisons(&self) -> usize {
        self.comparisons
    }

    /// Whether [`Self::matches`] needs the parsed data or metadata.
    #[must_use]
    pub fn reads_json(&self) -> bool {
        self.reads_json
    }

    /// Whether the filter accepts the event. Adds its work to `steps`.
    #[must_use]
    pub fn matches(&self, content: &EventContent, steps: &mut usize) -> bool {
        holds(&self.condition, content.members(), steps)
    }
}

/// See [`CompiledFilter::reads_json`].
pub(super) fn reads_json(condition: &Condition) -> bool {
    match condition {
        Condition::All(all) | Condition::Any(all) => all.iter().any(reads_json),
        Condition::Not(one) => reads_json(one),
        Condition::Test { path, .. } => {
            path.first().is_none_or(|root| matches!(&*root.name, "data" | "metadata"))
        }
    }
}

fn holds(condition: &Condition, members: &Value, steps: &mut usize) -> bool {
    match condition {
        Condition::All(all) => all.iter().all(|one| holds(one, members, steps)),
        Condition::Any(any) => any.iter().any(|one| holds(one, members, steps)),
        Condition::Not(one) => !holds(one, members, steps),
        Condition::Test { path, test } => {
            let mut search = Search { test, values_left: limits::FILTER_VALUES_MAX };
            let found = search.visit(Some(members), path);
            let visited = limits::FILTER_VALUES_MAX - search.values_left;
            *steps += visited * test.comparisons();
            found
        }
    }
}

/// The values of one path, until one of them passes the test.
struct Search<'a> {
    test: &'a ValueTest,
    values_left: usize,
}

impl Search<'_> {
    /// Whether a value at the path passes. `None`: the member is missing.
    fn visit(&mut self, value: Option<&Value>, path: &[PathSegment]) -> bool {
        if !self.take_value() {
            return false;
        }
        let Some((first, rest)) = path.split_first() else { return self.judge(value) };
        match (value, first.index) {
            (Some(Value::Object(members)), _) => self.visit(members.get(&*first.name), rest),
            (Some(Value::Array(items)), Some(index)) => self.visit(items.get(index), rest),
            (Some(Value::Array(items)), None) => items.iter().any(|item| match item {
                Value::Object(members) => self.visit(members.get(&*first.name), rest),
                // Only an object has members.
                _ => self.take_value() && self.test.accepts(None),
            }),
            (_, _) => self.test.accepts(None),
        }
    }

    /// An array passes as a whole, or with one of its elements.
    fn judge(&mut self, value: Option<&Value>) -> bool {
        self.test.accepts(value)
            || matches!(value, Some(Value::Array(items))
                if items.iter().any(|item| self.take_value() && self.test.accepts(Some(item))))
    }

    fn take_value(&mut self) -> bool {
        let is_left = self.values_left > 0;
        self.values_left -= usize::from(is_left);
        is_left
    }
}

impl ValueTest {
    fn comparisons(&self) -> usize {
        if let Self::OneOf(values) = self { values.comparisons() } else { 1 }
    }

    fn accepts(&self, value: Option<&Value>) -> bool {
        match self {
            Self::Exists => value.is_some(),
            Self::Equal(wanted) => is_equal(value, wanted),
            Self::OneOf(wanted) => wanted.contains(value),
            Self::Compare(comparison, wanted) => {
                let ordering = value.and_then(|value| compare(value, wanted));
                ordering.is_some_and(|ordering| comparison.accepts(ordering))
            }
            Self::StartsWith(start) => text(value).is_some_and(|text| text.starts_with(&**start)),
            Self::EndsWith(end) => text(value).is_some_and(|text| text.ends_with(&**end)),
        }
    }
}

impl Comparison {
    fn accepts(self, ordering: Ordering) -> bool {
        match self {
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
        }
    }
}

fn text(value: Option<&Value>) -> Option<&str> {
    value.and_then(Value::as_str)
}

/// A missing member equals null. The order of members does not matter.
pub(super) fn is_equal(value: Option<&Value>, wanted: &Value) -> bool {
    match (value, wanted) {
        (None, wanted) => wanted.is_null(),
        (Some(Value::Number(value)), Value::Number(wanted)) => {
            compare_numbers(value, wanted) == Some(Ordering::Equal)
        }
        (Some(Value::Array(values)), Value::Array(wanted)) => {
            values.len() == wanted.len()
                && values.iter().zip(wanted).all(|(value, wanted)| is_equal(Some(value), wanted))
        }
        (Some(Value::Object(members)), Value::Object(wanted)) => {
            let has = |(name, wanted)| members.get(name).is_some_and(|value| is_equal(Some(value), wanted));
            members.len() == wanted.len() && wanted.iter().all(has)
        }
        (Some(value), wanted) => value == wanted,
    }
}

/// Numbers compare with numbers, and texts with texts, by code points.
fn compare(value: &Value, wanted: &Value) -> Option<Ordering> {
    match (value, wanted) {
        (Value::Number(value), Value::Number(wanted)) => compare_numbers(value, wanted),
        (Value::String(value), Value::String(wanted)) => Some(value.cmp(wanted)),
        _ => None,
    }
}

pub(super) fn integer(number: &Number) -> Option<i128> {
    number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))
}

/// Integers of 64 bits compare exactly, other numbers as doubles.
fn compare_numbers(value: &Number, wanted: &Number) -> Option<Ordering> {
    match (integer(value), integer(wanted)) {
        (Some(value), Some(wanted)) => Some(value.cmp(&wanted)),
        _ => value.as_f64()?.partial_cmp(&wanted.as_f64()?),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::filters::{EventFacts, parse};

    fn matches(filter: &Value, data: &Value) -> bool {
        let data = data.to_string();
        let facts = EventFacts { data: data.as_bytes(), ..EventFacts::default() };
        parse(filter).unwrap().matches(&EventContent::new(&facts, true), &mut 0)
    }

    /// Filters below `data`, data, and whether they match.
    #[test]
    fn operators_follow_their_definition() {
        let table = [
            (json!({"a": 1}), json!({"a": 1.0}), true),
            (json!({"a": 9_007_199_254_740_993_u64}), json!({"a": 9_007_199_254_740_992_u64}), false),
            (json!({"a": "1"}), json!({"a": 1}), false),
            (json!({"a": {"b": {"c": true}}}), json!({"a": {"b": {"c": true, "d": 1}}}), true),
            (json!({"a.b.c": true}), json!({"a": {"b": {"c": true}}}), true),
            (json!({"a": {"$eq": {"b": 1, "c": 2}}}), json!({"a": {"c": 2, "b": 1}}), true),
            (json!({"a": {"$eq": {"b": 1}}}), json!({"a": {"c": 2, "b": 1}}), false),
            (json!({"a": null}), json!({"a": null}), true),
            (json!({"a": null}), json!({}), true),
            (json!({"a": {"$exists": true}}), json!({"a": null}), true),
            (json!({"a": {"$exists": true}}), json!({}), false),
            (json!({"a": {"$exists": false}}), json!({}), true),
            (json!({"a.b": {"$exists": false}}), json!({"a": 5}), true),
            (json!({"a": {"$ne": 1}}), json!({}), true),
            (json!({"a": {"$ne": 1}}), json!({"a": [1, 2]}), false),
            (json!({"a": {"$nin": [1, 2]}}), json!({"a": 3}), true),
            (json!({"a": {"$in": ["x", null]}}), json!({}), true),
            (json!({"a": {"$gt": 1}}), json!({"a": "2"}), false),
            (json!({"a": {"$not": {"$gt": 1}}}), json!({"a": "2"}), true),
            (json!({"a": {"$gt": 1, "$lte": 2.5}}), json!({"a": 2.5}), true),
            (json!({"a": {"$gte": "2026-01-01"}}), json!({"a": "2026-03-13T10:35:00Z"}), true),
            (json!({"a": {"$lt": 3}}), json!({"a": true}), false),
            (json!({"a": {"$startsWith": "ab"}}), json!({"a": "abc"}), true),
            (json!({"a": {"$endsWith": "bc"}}), json!({"a": ["x", "abc"]}), true),
            (json!({"a": {"$startsWith": "1"}}), json!({"a": 12}), false),
            // Arrays: an element, or the whole.
            (json!({"a": 2}), json!({"a": [1, 2]}), true),
            (json!({"a": [1, 2]}), json!({"a": [1, 2]}), true),
            (json!({"a": [2, 1]}), json!({"a": [1, 2]}), false),
            (json!({"a": [1]}), json!({"a": [[1], 2]}), true),
            (json!({"a": 1}), json!({"a": [[1]]}), false),
            (json!({"a.b": 2}), json!({"a": [{"b": 1}, {"b": 2}]}), true),
            (json!({"a.1.b": 1}), json!({"a": [{"b": 1}, {"b": 2}]}), false),
            (json!({"a.1.b": 2}), json!({"a": [{"b": 1}, {"b": 2}]}), true),
            (json!({"a.1": 7}), json!({"a": {"1": 7}}), true),
            // Each condition may hold for another element.
            (json!({"a": {"b": 1, "c": 2}}), json!({"a": [{"b": 1}, {"c": 2}]}), true),
            (json!({"a.b": null}), json!({"a": []}), false),
            (json!({"a.b": null}), json!({"a": [{"c": 1}]}), true),
            (json!({"$or": [{"a": 1}, {"b": 2}]}), json!({"b": 2}), true),
            (json!({"a": {"$or": [{"$lt": 1}, {"$gt": 5}, 3]}}), json!({"a": 3}), true),
            (json!({"$and": [{"a": 1}, {"b": 2}]}), json!({"b": 2}), false),
            (json!({"$not": {"a": 1, "b": 2}}), json!({"a": 1, "b": 3}), true),
            (json!({r"a\.b": 1}), json!({"a.b": 1}), true),
            (json!({r"\$a": 1}), json!({"$a": 1}), true),
        ];
        for (filter, data, expected) in table {
            let filter = json!({"data": filter});
            assert_eq!(matches(&filter, &data), expected, "{filter} {data}");
        }
    }

    #[test]
    fn work_of_a_condition_is_bounded() {
        let items: Vec<Value> = (0..200_000).map(|number| json!({"b": number})).collect();
        let data = json!({"a": items}).to_string();
        let facts = EventFacts { data: data.as_bytes(), ..EventFacts::default() };
        let content = EventContent::new(&facts, true);
        let wanted: Vec<Value> = (1..=100).map(|number| json!(-number)).collect();
        let objects: Vec<Value> = wanted.iter().map(|number| json!({"c": number})).collect();
        for (filter, count, comparisons) in [
            (json!({"data": {"a": {"b": -1}}}), 1, 1),
            (json!({"data": {"a": "x"}}), 1, 1),
            // The scalars of a list are one comparison.
            (json!({"data": {"a": {"b": {"$nin": wanted}}}}), 100, 1),
            (json!({"data": {"a": {"b": {"$in": objects}}}}), 100, 101),
        ] {
            let filter = parse(&filter).unwrap();
            assert_eq!(filter.comparisons(), count);
            let mut steps = 0;
            let _is_wanted = filter.matches(&content, &mut steps);
            assert_eq!(
                steps,
                limits::FILTER_VALUES_MAX * comparisons,
                "values behind the bound are not seen"
            );
        }
        let mut steps = 0;
        assert!(parse(&json!({"data": {"a": {"b": 3}}})).unwrap().matches(&content, &mut steps));
        assert!(steps < 12, "{steps}");
    }
}

//! Parses filters, and checks their bounds.

use serde_json::{Map, Value};

use super::content::ROOTS;
use super::evaluate::{Comparison, CompiledFilter, Condition, PathSegment, ValueTest, reads_json};
use super::value_set::ValueSet;
use crate::limits;

/// Why a filter is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct FilterError {
    /// JSON pointer inside the filter (RFC 6901).
    pub pointer: String,
    pub detail: String,
}

const OPERATORS: &str =
    "$eq, $ne, $in, $nin, $gt, $gte, $lt, $lte, $exists, $startsWith, $endsWith, $or, $and, $not";

/// Parses a filter, and checks its bounds.
///
/// # Errors
/// The first mistake.
pub fn parse(filter: &Value) -> Result<CompiledFilter, FilterError> {
    let bytes = filter.to_string().len();
    if bytes > limits::FILTER_BYTES_MAX {
        return Err(fail("", format!("{bytes} bytes; at most {}", limits::FILTER_BYTES_MAX)));
    }
    let compiled = parse_without_bounds(filter)?;
    if compiled.comparisons > limits::FILTER_COMPARISONS_MAX {
        let (found, most) = (compiled.comparisons, limits::FILTER_COMPARISONS_MAX);
        return Err(fail("", format!("{found} conditions and list values; at most {most}")));
    }
    Ok(compiled)
}

/// Parses the text of a saved filter. Its bounds may have been others.
#[must_use]
pub fn parse_stored(text: &str) -> Option<CompiledFilter> {
    parse_without_bounds(&serde_json::from_str(text).ok()?).ok()
}

fn parse_without_bounds(filter: &Value) -> Result<CompiledFilter, FilterError> {
    let mut parser = Parser { comparisons: 0 };
    let Value::Object(members) = filter else { return Err(fail("", "must be an object")) };
    let condition = parser.object(&[], members, "", 1)?;
    let reads_json = reads_json(&condition);
    Ok(CompiledFilter { condition, comparisons: parser.comparisons, reads_json })
}

fn fail(pointer: &str, detail: impl Into<String>) -> FilterError {
    FilterError { pointer: pointer.to_owned(), detail: detail.into() }
}

/// The pointer of a member.
fn below(pointer: &str, name: &str) -> String {
    format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
}

struct Parser {
    comparisons: usize,
}

impl Parser {
    /// All members of an object hold for the values of the path.
    fn object(
        &mut self,
        path: &[PathSegment],
        members: &Map<String, Value>,
        at: &str,
        depth: usize,
    ) -> Result<Condition, FilterError> {
        if depth > limits::FILTER_DEPTH_MAX {
            return Err(fail(at, format!("nested too deeply; at most {} levels", limits::FILTER_DEPTH_MAX)));
        }
        if members.is_empty() {
            return Err(fail(at, "has no condition; `$eq` compares with an object"));
        }
        let parse = |(name, value): (&String, &Value)| {
            let at = below(at, name);
            if name.starts_with('$') {
                return self.operator(path, name, value, &at, depth);
            }
            let mut path = path.to_vec();
            path.extend(segments(name).map_err(|detail| fail(&at, detail))?);
            match path.first() {
                Some(root) if ROOTS.contains(&&*root.name) => self.condition(&path, value, &at, depth),
                _ => {
                    let roots = ROOTS.join(", ");
                    Err(fail(&at, format!("unknown member `{name}`; a path begins with one of {roots}")))
                }
            }
        };
        let mut all = members.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        Ok(if all.len() == 1 { all.remove(0) } else { Condition::All(all) })
    }

    /// An object with conditions, or a value to be equal to.
    fn condition(
        &mut self,
        path: &[PathSegment],
        value: &Value,
        at: &str,
        depth: usize,
    ) -> Result<Condition, FilterError> {
        match value {
            Value::Object(members) => self.object(path, members, at, depth + 1),
            _ if path.is_empty() => Err(fail(at, "must be an object")),
            other => self.test(path, ValueTest::Equal(literal(other, at)?)),
        }
    }

    fn test(&mut self, path: &[PathSegment], test: ValueTest) -> Result<Condition, FilterError> {
        self.comparisons += if let ValueTest::OneOf(values) = &test { values.len() } else { 1 };
        Ok(Condition::Test { path: path.to_vec(), test })
    }

    fn operator(
        &mut self,
        path: &[PathSegment],
        name: &str,
        value: &Value,
        at: &str,
        depth: usize,
    ) -> Result<Condition, FilterError> {
        match name {
            "$and" => return Ok(Condition::All(self.list(path, value, at, depth)?)),
            "$or" => return Ok(Condition::Any(self.list(path, value, at, depth)?)),
            "$not" => return Ok(Condition::Not(Box::new(self.condition(path, value, at, depth)?))),
            _ => {}
        }
        let (test, is_negated) = match name {
            "$eq" => (ValueTest::Equal(literal(value, at)?), false),
            "$ne" => (ValueTest::Equal(literal(value, at)?), true),
            "$in" => (ValueTest::OneOf(literals(value, at)?), false),
            "$nin" => (ValueTest::OneOf(literals(value, at)?), true),
            "$gt" => (compared(Comparison::Greater, value, at)?, false),
            "$gte" => (compared(Comparison::GreaterOrEqual, value, at)?, false),
            "$lt" => (compared(Comparison::Less, value, at)?, false),
            "$lte" => (compared(Comparison::LessOrEqual, value, at)?, false),
            "$exists" => {
                let exists = value.as_bool().ok_or_else(|| fail(at, "must be true or false"))?;
                (ValueTest::Exists, !exists)
            }
            "$startsWith" => (ValueTest::StartsWith(text(value, at)?), false),
            "$endsWith" => (ValueTest::EndsWith(text(value, at)?), false),
            _ => return Err(fail(at, format!("unknown operator `{name}`; it is one of {OPERATORS}"))),
        };
        if path.is_empty() {
            return Err(fail(at, format!("`{name}` needs a member, as in {{\"type\": {{\"{name}\": ..}}}}")));
        }
        let test = self.test(path, test)?;
        Ok(if is_negated { Condition::Not(Box::new(test)) } else { test })
    }

    /// The conditions of `$and` and `$or`.
    fn list(
        &mut self,
        path: &[PathSegment],
        value: &Value,
        at: &str,
        depth: usize,
    ) -> Result<Vec<Condition>, FilterError> {
        let items = value.as_array().filter(|items| !items.is_empty());
        let items = items.ok_or_else(|| fail(at, "must be a list of one or more conditions"))?;
        let condition = |(index, item)| self.condition(path, item, &format!("{at}/{index}"), depth + 1);
        items.iter().enumerate().map(condition).collect()
    }
}

/// A value to compare with, of bounded depth.
fn literal(value: &Value, at: &str) -> Result<Value, FilterError> {
    if depth_of(value) > limits::FILTER_DEPTH_MAX {
        return Err(fail(at, format!("nested too deeply; at most {} levels", limits::FILTER_DEPTH_MAX)));
    }
    Ok(value.clone())
}

fn depth_of(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth_of).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth_of).max().unwrap_or(0),
        _ => 0,
    }
}

fn literals(value: &Value, at: &str) -> Result<Box<ValueSet>, FilterError> {
    let items = value.as_array().filter(|items| !items.is_empty());
    let items = items.ok_or_else(|| fail(at, "must be a list of one or more values"))?;
    let value = |(index, item)| literal(item, &format!("{at}/{index}"));
    items.iter().enumerate().map(value).collect::<Result<ValueSet, _>>().map(Box::new)
}

fn compared(comparison: Comparison, value: &Value, at: &str) -> Result<ValueTest, FilterError> {
    if value.is_number() || value.is_string() {
        return Ok(ValueTest::Compare(comparison, value.clone()));
    }
    Err(fail(at, "must be a number or a text"))
}

fn text(value: &Value, at: &str) -> Result<Box<str>, FilterError> {
    value.as_str().map(Box::from).ok_or_else(|| fail(at, "must be a text"))
}

/// Splits a path at its dots. A backslash makes the next character a part of the name.
fn segments(path: &str) -> Result<Vec<PathSegment>, String> {
    let (mut names, mut name) = (Vec::new(), String::new());
    let mut characters = path.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => name.push(characters.next().ok_or("a backslash needs a character behind it")?),
            '.' => names.push(std::mem::take(&mut name)),
            other => name.push(other),
        }
    }
    names.push(name);
    if names.iter().any(String::is_empty) {
        return Err("a path consists of names with dots between them".to_owned());
    }
    let segment = |name: String| {
        let is_index = name.bytes().all(|byte| byte.is_ascii_digit());
        PathSegment { index: name.parse().ok().filter(|_| is_index), name: name.into() }
    };
    Ok(names.into_iter().map(segment).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn invalid_filters_have_a_pointer() {
        let deep = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!({ "a": inner }));
        let nots =
            |levels: usize| (0..levels).fold(json!({"type": "a"}), |inner, _| json!({ "$not": inner }));
        let many: Vec<usize> = (0..=limits::FILTER_COMPARISONS_MAX).collect();
        let most = &many[1..];
        let table = [
            (json!({}), ""),
            (json!([]), ""),
            (json!("type"), ""),
            (json!({"amount": 1}), "/amount"),
            (json!({"id": "evt_1"}), "/id"),
            (json!({"data": {}}), "/data"),
            (json!({"data": {"a": {"$gt": true}}}), "/data/a/$gt"),
            (json!({"data": {"a": {"$regex": "x"}}}), "/data/a/$regex"),
            (json!({"data": {"a/b~c": {"$where": "x"}}}), "/data/a~1b~0c/$where"),
            (json!({"data": {"a": {"$in": []}}}), "/data/a/$in"),
            (json!({"data": {"a": {"$in": 1}}}), "/data/a/$in"),
            (json!({"data": {"a": {"$exists": 1}}}), "/data/a/$exists"),
            (json!({"data": {"a": {"$startsWith": 1}}}), "/data/a/$startsWith"),
            (json!({"$or": []}), "/$or"),
            (json!({"$or": {"type": "a"}}), "/$or"),
            (json!({"$or": [{"type": "a"}, 5]}), "/$or/1"),
            (json!({"$not": 5}), "/$not"),
            (json!({"$eq": 5}), "/$eq"),
            (json!({"$and": [{"$gt": 5}]}), "/$and/0/$gt"),
            (json!({"data..a": 5}), "/data..a"),
            (json!({"": 5}), "/"),
            (json!({"data\\": 5}), "/data\\"),
            (json!({"data": {"a": {"$eq": deep(20)}}}), "/data/a/$eq"),
            (json!({"data": {"a": {"$in": many}}}), ""),
            (json!({"data": {"a": "x".repeat(limits::FILTER_BYTES_MAX)}}), ""),
        ];
        for (filter, pointer) in table {
            let error = parse(&filter).unwrap_err();
            assert_eq!(error.pointer, pointer, "{filter}: {error}");
        }
        let most = parse(&json!({"data": {"a": {"$in": most}}})).unwrap();
        assert_eq!(most.comparisons(), limits::FILTER_COMPARISONS_MAX);
        assert!(parse(&json!({"data": deep(limits::FILTER_DEPTH_MAX - 1)})).is_ok());
        assert!(parse(&json!({"data": deep(limits::FILTER_DEPTH_MAX)})).is_err());
        assert!(parse(&nots(limits::FILTER_DEPTH_MAX - 1)).is_ok());
        assert!(parse(&nots(100)).unwrap_err().detail.contains("nested too deeply"));
    }

    proptest::proptest! {
        /// Any JSON is parsed or rejected, and a parsed filter keeps its meaning as text.
        #[test]
        fn hostile_filters_are_parsed_or_rejected(seed: u64) {
            let mut random = fastrand::Rng::with_seed(seed);
            let filter = super::super::samples::random_filter(&mut random, 4);
            if let Ok(parsed) = parse(&filter) {
                proptest::prop_assert_eq!(parse_stored(&filter.to_string()), Some(parsed));
            }
        }

        #[test]
        fn arbitrary_paths_never_panic(path: String) {
            if let Ok(segments) = segments(&path) {
                proptest::prop_assert!(!segments.is_empty());
            }
        }
    }
}

//! A compiled JSON Schema (2020-12).

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

use super::{cost, json};
use crate::domain::text::truncated;
use crate::limits;

/// A difference between data and its schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// JSON pointer within the data.
    pub pointer: String,
    pub detail: String,
}

impl Violation {
    fn at_root(detail: impl Into<String>) -> Self {
        Self { pointer: String::new(), detail: detail.into() }
    }
}

/// The dialect of all schemas.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

fn is_supported(dialect: &Value) -> bool {
    dialect.as_str().is_some_and(|dialect| dialect.trim_end_matches('#') == DIALECT)
}

#[derive(Debug)]
pub struct Schema {
    validator: Validator,
    /// Whether the cost of a list of violations is bounded. A verdict alone is cheaper: the
    /// validator remembers what it knows about each value.
    lists_violations: bool,
}

impl Schema {
    /// Compiles a schema.
    ///
    /// # Errors
    /// A description: no legal schema, a reference that leaves the document, a pattern that does
    /// not match in linear time, or too many subschemas for one value.
    pub fn new(text: &str) -> Result<Self, Violation> {
        let schema = json::read(text.as_bytes()).map_err(Violation::at_root)?;
        Self::compile(&schema)
    }

    /// # Errors
    /// As [`Self::new`].
    pub fn compile(schema: &Value) -> Result<Self, Violation> {
        if !matches!(schema, Value::Object(_) | Value::Bool(_)) {
            return Err(Violation::at_root("a schema is an object or a boolean"));
        }
        if let Some(dialect) = schema.get("$schema").filter(|dialect| !is_supported(dialect)) {
            let detail = format!("{dialect} is not supported; use {DIALECT}");
            return Err(Violation { pointer: "/$schema".to_owned(), detail: shorten(&detail) });
        }
        let cost = cost::cost(schema);
        if cost.beside > limits::SUBSCHEMAS_MAX {
            return Err(Violation::at_root(format!(
                "applies more than {} subschemas to one value; remove repeated references",
                limits::SUBSCHEMAS_MAX
            )));
        }
        let patterns = PatternOptions::regex().size_limit(limits::PATTERN_BYTES_MAX);
        let options = jsonschema::options().with_draft(Draft::Draft202012).offline();
        let validator = options.with_pattern_options(patterns).build(schema);
        let validator = validator.map_err(|error| Violation {
            pointer: error.instance_path().to_string(),
            detail: shorten(&error.to_string()),
        })?;
        Ok(Self { validator, lists_violations: cost.nested <= limits::SUBSCHEMAS_MAX })
    }

    /// # Errors
    /// The first violations, at most [`limits::VIOLATIONS_MAX`].
    pub fn check(&self, data: &Value) -> Result<(), Vec<Violation>> {
        if self.validator.is_valid(data) {
            return Ok(());
        }
        if !self.lists_violations {
            return Err(vec![Violation::at_root("does not match the schema")]);
        }
        let violations = self.validator.iter_errors(data).take(limits::VIOLATIONS_MAX).map(|error| {
            Violation { pointer: error.instance_path().to_string(), detail: shorten(&error.to_string()) }
        });
        Err(violations.collect())
    }

    /// As [`Self::check`], for a text. Empty text, as in a CloudEvent without data, is checked
    /// as null.
    ///
    /// # Errors
    /// As [`Self::check`], and for text that cannot be read exactly.
    pub fn check_text(&self, data: &[u8]) -> Result<(), Vec<Violation>> {
        let data = if data.is_empty() { Ok(Value::Null) } else { json::read(data) };
        let data = data.map_err(|error| vec![Violation::at_root(format!("cannot be checked: {error}"))])?;
        self.check(&data)
    }
}

/// Messages quote the data, which may be long.
pub(super) fn shorten(text: &str) -> String {
    let start = truncated(text, limits::ERROR_BYTES_MAX);
    if start.len() < text.len() { format!("{start}…") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;

    #[test]
    fn violations_have_pointers() {
        let schema =
            Schema::new(r#"{"properties":{"a":{"items":{"type":"integer"}}},"required":["b"]}"#).unwrap();
        assert_eq!(schema.check_text(br#"{"a":[1,2],"b":null}"#), Ok(()));
        let mut pointers: Vec<_> =
            schema.check_text(br#"{"a":[1,"x"]}"#).unwrap_err().into_iter().map(|v| v.pointer).collect();
        pointers.sort();
        assert_eq!(pointers, ["", "/a/1"]);
        let twice = schema.check_text(br#"{"b":1,"b":2}"#).unwrap_err();
        assert!(twice[0].detail.contains("duplicate"), "{twice:?}");
    }

    #[test]
    fn violations_are_few_and_short() {
        let schema = Schema::new(r#"{"items":{"type":"integer"}}"#).unwrap();
        let text = "x".repeat(5_000);
        let found = schema.check(&json!(vec![text; 100])).unwrap_err();
        assert_eq!(found.len(), limits::VIOLATIONS_MAX);
        assert!(found.iter().all(|violation| violation.detail.len() <= limits::ERROR_BYTES_MAX + 4));
    }

    #[test]
    fn hostile_schemas_are_rejected() {
        for (schema, pointer) in [
            (json!({"$ref": "https://example.com/schema"}), ""),
            (json!({"$ref": "file:///etc/passwd"}), ""),
            (json!({"$ref": "#/$defs/missing"}), ""),
            (json!({"type": "objct"}), "/type"),
            (json!({"properties": {"a": {"pattern": "(?=a)a"}}}), "/properties/a/pattern"),
            (json!({"pattern": "(((a{100}){100}){100}){100}"}), "/pattern"),
            (json!("text"), ""),
            (json!({"$schema": "http://json-schema.org/draft-07/schema#"}), "/$schema"),
            (json!({"allOf": vec![json!({"type": "string"}); 1_000]}), ""),
        ] {
            match Schema::compile(&schema) {
                Err(violation) => assert_eq!(violation.pointer, pointer, "{schema} {violation:?}"),
                Ok(_) => panic!("{schema}"),
            }
        }
    }

    #[test]
    fn recursive_branches_are_checked_in_bounded_time() {
        let branch = |name: &str| json!({"properties": {"x": {"$ref": "#/$defs/a"}}, "required": [name]});
        let schema = json!({"$defs": {"a": {"anyOf": [branch("y"), branch("z")]}}, "$ref": "#/$defs/a"});
        let schema = Schema::compile(&schema).unwrap();
        let mut data = json!({});
        for _ in 0..90 {
            data = json!({"x": data});
        }
        let started = Instant::now();
        assert_eq!(schema.check(&data).unwrap_err().len(), 1);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
}

//! Migrations: JSON Patch (RFC 6902) over event data, with optional operations.
//!
//! An operation with `"optional": true` is skipped when its place does not exist. Other unknown
//! members are ignored, as RFC 6902, section 4, requires. Operations are applied one by one, so
//! that the size of the result is bounded: a few `copy` operations could double it without end.

use json_patch::jsonptr::{Pointer, PointerBuf};
use json_patch::{AddOperation, Patch, PatchOperation, patch};
use serde::Deserialize as _;
use serde_json::Value;

use super::schema::{Violation, shorten};
use crate::limits;

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) operation: PatchOperation,
    is_optional: bool,
}

impl Step {
    /// Whether the step is optional and its place does not exist.
    pub(super) fn is_skipped(&self, document: &Value) -> bool {
        self.is_optional && !has_place(&self.operation, document)
    }
}

/// A compiled migration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MigrationPatch(pub(super) Vec<Step>);

impl MigrationPatch {
    /// Parses a patch.
    ///
    /// # Errors
    /// The first malformed operation, with its pointer.
    pub fn parse(text: &str) -> Result<Self, Violation> {
        let at = |pointer: String, detail: String| Violation { pointer, detail };
        let value = super::json::read(text.as_bytes()).map_err(|error| at(String::new(), error))?;
        let Value::Array(operations) = value else {
            return Err(at(String::new(), "a JSON Patch is a list of operations".to_owned()));
        };
        if operations.len() > limits::PATCH_OPERATIONS_MAX {
            let detail = format!("at most {} operations", limits::PATCH_OPERATIONS_MAX);
            return Err(at(String::new(), detail));
        }
        let parse = |(index, operation): (usize, Value)| {
            parse_step(operation).map_err(|(member, detail)| at(format!("/{index}{member}"), detail))
        };
        operations.into_iter().enumerate().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Applies the operations in order.
    ///
    /// # Errors
    /// The first operation that fails. The document is then changed in part.
    pub fn apply(&self, document: &mut Value) -> Result<(), String> {
        for (index, step) in self.0.iter().enumerate() {
            if step.is_skipped(document) {
                continue;
            }
            apply_one(&step.operation, document)
                .map_err(|error| shorten(&format!("operation {index}: {error}")))?;
            let grows = !matches!(step.operation, PatchOperation::Remove(_) | PatchOperation::Test(_));
            let mut left = limits::CONVERTED_VALUES_MAX;
            if grows && !fits(document, &mut left, limits::CONVERTED_DEPTH_MAX) {
                return Err(format!("operation {index}: the result has too many values or levels"));
            }
        }
        Ok(())
    }
}

/// # Errors
/// The pointer of the malformed member within the operation, and a description.
fn parse_step(operation: Value) -> Result<Step, (String, String)> {
    let whole = |detail: String| (String::new(), detail);
    let members = operation.as_object().ok_or_else(|| whole("an operation is an object".to_owned()))?;
    let is_optional = match members.get("optional") {
        None => false,
        Some(Value::Bool(is_optional)) => *is_optional,
        Some(_) => return Err(("/optional".to_owned(), "must be true or false".to_owned())),
    };
    let operation = PatchOperation::deserialize(operation).map_err(|error| whole(error.to_string()))?;
    Ok(Step { operation, is_optional })
}

/// Whether the place that the operation changes, and the place that it reads, exist.
fn has_place(operation: &PatchOperation, document: &Value) -> bool {
    let has = |pointer: &Pointer| document.pointer(pointer.as_str()).is_some();
    let has_parent = |pointer: &Pointer| pointer.parent().is_none_or(has);
    match operation {
        PatchOperation::Add(add) => has_parent(&add.path),
        PatchOperation::Remove(remove) => has(&remove.path),
        PatchOperation::Replace(replace) => has(&replace.path),
        PatchOperation::Test(test) => has(&test.path),
        PatchOperation::Move(step) => has(&step.from) && has_parent(&step.path),
        PatchOperation::Copy(step) => has(&step.from) && has_parent(&step.path),
    }
}

fn apply_one(operation: &PatchOperation, document: &mut Value) -> Result<(), String> {
    let run = |operation: PatchOperation, document: &mut Value| {
        patch(document, &Patch(vec![operation])).map_err(|error| error.kind.to_string())
    };
    match operation {
        PatchOperation::Remove(remove) if take_member(&remove.path, document).is_some() => Ok(()),
        PatchOperation::Move(step) if !step.path.starts_with(&step.from) => {
            match take_member(&step.from, document) {
                Some(value) => {
                    run(PatchOperation::Add(AddOperation { path: step.path.clone(), value }), document)
                }
                None => run(operation.clone(), document),
            }
        }
        other => run(other.clone(), document),
    }
}

/// Removes a member of an object and keeps the order of the others, which the library does not.
fn take_member(pointer: &PointerBuf, document: &mut Value) -> Option<Value> {
    let (parent, name) = pointer.split_back()?;
    let members = document.pointer_mut(parent.as_str())?.as_object_mut()?;
    members.shift_remove(name.decoded().as_ref())
}

/// Whether the value consists of at most `left` values in at most `depth` levels.
fn fits(value: &Value, left: &mut usize, depth: usize) -> bool {
    let (Some(rest), Some(below)) = (left.checked_sub(1), depth.checked_sub(1)) else { return false };
    *left = rest;
    match value {
        Value::Array(items) => items.iter().all(|item| fits(item, left, below)),
        Value::Object(members) => members.values().all(|member| fits(member, left, below)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn apply(operations: Value, mut document: Value) -> Result<String, String> {
        let patch = MigrationPatch::parse(&operations.to_string()).map_err(|violation| violation.detail)?;
        patch.apply(&mut document).map(|()| document.to_string())
    }

    #[test]
    fn members_keep_their_order() {
        let document = json!({"z": 1, "a": 2, "m": 3, "b": 4});
        let removed = apply(json!([{"op": "remove", "path": "/a"}]), document.clone());
        assert_eq!(removed.unwrap(), r#"{"z":1,"m":3,"b":4}"#);
        let moved = apply(json!([{"op": "move", "from": "/z", "path": "/y"}]), document);
        assert_eq!(moved.unwrap(), r#"{"a":2,"m":3,"b":4,"y":1}"#);
    }

    #[test]
    fn optional_operations_are_skipped_without_their_place() {
        let optional = |operation: Value| {
            let mut operation = operation;
            operation["optional"] = json!(true);
            operation
        };
        for operation in [
            json!({"op": "remove", "path": "/x"}),
            json!({"op": "replace", "path": "/x", "value": 1}),
            json!({"op": "test", "path": "/x", "value": 1}),
            json!({"op": "move", "from": "/x", "path": "/y"}),
            json!({"op": "copy", "from": "/a", "path": "/x/y"}),
            json!({"op": "add", "path": "/x/y", "value": 1}),
        ] {
            assert!(apply(json!([operation]), json!({"a": 1})).is_err(), "{operation}");
            let skipped = apply(json!([optional(operation.clone())]), json!({"a": 1}));
            assert_eq!(skipped.as_deref(), Ok(r#"{"a":1}"#), "{operation}");
        }
        // The place exists, so the operation is not skipped.
        let other = optional(json!({"op": "test", "path": "/a", "value": 2}));
        assert!(apply(json!([other]), json!({"a": 1})).is_err());
    }

    #[test]
    fn malformed_patches_have_pointers() {
        for (patch, pointer) in [
            (json!({}), ""),
            (json!([7]), "/0"),
            (json!([{"op": "remove"}]), "/0"),
            (json!([{"op": "jump", "path": "/a"}]), "/0"),
            (json!([{"op": "remove", "path": "a"}]), "/0"),
            (json!([{"op": "remove", "path": "/a", "optional": "yes"}]), "/0/optional"),
            (json!(vec![json!({"op": "remove", "path": "/a"}); limits::PATCH_OPERATIONS_MAX + 1]), ""),
        ] {
            let found = MigrationPatch::parse(&patch.to_string()).unwrap_err();
            assert_eq!(found.pointer, pointer, "{patch} {found:?}");
        }
    }

    #[test]
    fn copies_that_double_the_depth_are_stopped() {
        let copy = |number: u32| json!({"op": "copy", "from": "", "path": "/a/x".repeat(1 << number)});
        let copies: Vec<_> = (0..16).map(copy).collect();
        assert!(apply(json!(copies[..5]), json!({"a": {}})).is_ok());
        assert!(apply(json!(copies), json!({"a": {}})).unwrap_err().contains("levels"));
    }

    #[test]
    fn doubling_copies_are_stopped() {
        let copy = |number: usize| json!({"op": "copy", "from": "", "path": format!("/{number}")});
        let copies: Vec<_> = (0..limits::PATCH_OPERATIONS_MAX).map(copy).collect();
        assert!(apply(json!(copies), json!({"a": 1})).unwrap_err().contains("too many values"));
    }
}

//! State rules: JSON Patch (RFC 6902) over the state of a stream and one event.
//!
//! The document is `{"state": .., "data": .., "event": ..}`. Rules read all of it and write at or
//! below `/state`. The rules of one event are applied as a whole or not at all. The size of the
//! state is known after each operation: a write changes it by the size of the value, which takes no
//! longer than the write.

use json_patch::PatchOperation;
use json_patch::jsonptr::{Pointer, PointerBuf, Token};
use serde_json::{Map, Number, Value};

use super::migration::{MigrationPatch, Step};
use super::schema::{Violation, shorten};
use crate::limits;

/// The member that rules may write.
const STATE: &str = "state";

/// Compiled rules of one type.
#[derive(Clone, Debug, PartialEq)]
pub struct StateRules(Vec<Step>);

/// The event that rules see, beside its data.
#[derive(Clone, Copy, Debug)]
pub struct StateEvent<'a> {
    pub event_type: &'a str,
    /// The version of the data.
    pub version: &'a str,
    pub timestamp: &'a str,
    pub stream_version: u64,
}

/// The state of a stream. `null` before the first event.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamState {
    value: Value,
    size: Size,
}

impl Default for StreamState {
    fn default() -> Self {
        Self::new(Value::Null)
    }
}

impl StreamState {
    #[must_use]
    pub fn new(value: Value) -> Self {
        let size = measure(&value).size;
        Self { value, size }
    }

    #[must_use]
    pub fn value(&self) -> &Value {
        &self.value
    }
}

impl StateRules {
    /// Parses the rules of a type.
    ///
    /// # Errors
    /// The first malformed operation, or all operations that write elsewhere than below `/state`.
    pub fn parse(text: &str) -> Result<Self, Vec<Violation>> {
        if text.len() > limits::STATE_RULES_BYTES_MAX {
            let detail = format!("at most {} bytes", limits::STATE_RULES_BYTES_MAX);
            return Err(vec![Violation { pointer: String::new(), detail }]);
        }
        let MigrationPatch(steps) = MigrationPatch::parse(text).map_err(|violation| vec![violation])?;
        let mut violations = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            violations.extend(foreign_writes(&step.operation).map(|member| Violation {
                pointer: format!("/{index}/{member}"),
                detail: "only places at or below `/state` may be written".to_owned(),
            }));
        }
        if violations.is_empty() { Ok(Self(steps)) } else { Err(violations) }
    }

    /// Applies the rules to a state.
    ///
    /// # Errors
    /// The first operation that fails. The state is then unchanged.
    pub fn apply(&self, state: &mut StreamState, data: Value, event: &StateEvent<'_>) -> Result<(), String> {
        let document = Map::from_iter([
            (STATE.to_owned(), std::mem::take(&mut state.value)),
            ("data".to_owned(), data),
            ("event".to_owned(), event.value()),
        ]);
        let mut run = Run { document: Value::Object(document), size: state.size, ..Run::default() };
        let result = run.steps(&self.0);
        if result.is_err() {
            run.take_back();
            run.size = state.size;
        }
        *state = match run.document.get_mut(STATE).map(Value::take) {
            Some(value) => StreamState { value, size: run.size },
            // The rules removed it.
            None => StreamState::default(),
        };
        result
    }
}

impl StateEvent<'_> {
    fn value(&self) -> Value {
        serde_json::json!({
            "type": self.event_type,
            "version": self.version,
            "timestamp": self.timestamp,
            "streamVersion": self.stream_version,
        })
    }
}

/// Members of an operation that name a place outside `/state` which it writes.
fn foreign_writes(operation: &PatchOperation) -> impl Iterator<Item = &'static str> {
    let (path, from) = match operation {
        PatchOperation::Add(add) => (Some(&add.path), None),
        PatchOperation::Remove(remove) => (Some(&remove.path), None),
        PatchOperation::Replace(replace) => (Some(&replace.path), None),
        // A move removes what it reads.
        PatchOperation::Move(step) => (Some(&step.path), Some(&step.from)),
        PatchOperation::Copy(step) => (Some(&step.path), None),
        PatchOperation::Test(_) => (None, None),
    };
    let is_foreign = |place: &&PointerBuf| !is_below_state(place);
    let path = path.filter(is_foreign).map(|_| "path");
    path.into_iter().chain(from.filter(is_foreign).map(|_| "from"))
}

fn is_below_state(place: &Pointer) -> bool {
    place.first().is_some_and(|token| token.decoded() == STATE)
}

/// The size of a value within a state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    /// At least those of its JSON.
    bytes: usize,
    values: usize,
}

#[derive(Clone, Copy, Debug)]
struct Measure {
    size: Size,
    /// Nested arrays and objects.
    depth: usize,
}

fn measure(value: &Value) -> Measure {
    let mut whole = Measure { size: Size { bytes: 2, values: 1 }, depth: 1 };
    let mut add = |within: usize, inner: Measure| {
        whole.size.bytes += within + inner.size.bytes;
        whole.size.values += inner.size.values;
        whole.depth = whole.depth.max(1 + inner.depth);
    };
    match value {
        Value::Array(items) => items.iter().for_each(|item| add(ITEM_BYTES, measure(item))),
        Value::Object(members) => {
            members.iter().for_each(|(name, member)| add(member_bytes(name), measure(member)));
        }
        Value::String(text) => {
            return Measure { size: Size { bytes: text_bytes(text), values: 1 }, depth: 0 };
        }
        Value::Number(number) => {
            return Measure { size: Size { bytes: number_bytes(number), values: 1 }, depth: 0 };
        }
        Value::Null | Value::Bool(_) => {
            return Measure { size: Size { bytes: "false".len(), values: 1 }, depth: 0 };
        }
    }
    whole
}

/// The longest text of a double, such as `-1.2345678901234567e-308`.
const DOUBLE_BYTES_MAX: usize = 24;

/// The comma after an item.
const ITEM_BYTES: usize = 1;

/// A name, the colon after it, and the comma after its value.
fn member_bytes(name: &str) -> usize {
    text_bytes(name) + 2
}

/// At least the length of the number.
fn number_bytes(number: &Number) -> usize {
    let digits = |value: u64| value.checked_ilog10().map_or(1, |log| log as usize + 1);
    match (number.as_u64(), number.as_i64()) {
        (Some(value), _) => digits(value),
        (None, Some(value)) => 1 + digits(value.unsigned_abs()),
        (None, None) => DOUBLE_BYTES_MAX,
    }
}

fn text_bytes(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        0..=0x1f => 6,
        _ => 1,
    };
    2 + text.bytes().map(escaped).sum::<usize>()
}

/// The rules of one event while they are applied.
#[derive(Debug, Default)]
struct Run<'a> {
    document: Value,
    /// Of the state.
    size: Size,
    /// Bytes of all values that were written.
    written: usize,
    /// How to take the writes back, oldest first.
    undo: Vec<Undo<'a>>,
}

/// Takes a write back.
#[derive(Debug)]
enum Undo<'a> {
    /// Removes a member, or the item at an index.
    Remove(&'a Pointer, Place<'a>),
    /// Puts the value back that another one replaced.
    Replace(&'a Pointer, Value),
    /// Inserts a value where it was: a member at its index.
    Insert(&'a Pointer, usize, Option<Token<'a>>, Value),
}

#[derive(Debug)]
enum Place<'a> {
    Member(Token<'a>),
    Item(usize),
}

impl<'a> Run<'a> {
    fn steps(&mut self, steps: &'a [Step]) -> Result<(), String> {
        for (index, step) in steps.iter().enumerate() {
            if !step.is_skipped(&self.document) {
                self.step(&step.operation)
                    .map_err(|error| shorten(&format!("operation {index}: {error}")))?;
            }
        }
        Ok(())
    }

    fn step(&mut self, operation: &'a PatchOperation) -> Result<(), String> {
        match operation {
            PatchOperation::Add(add) => self.insert(&add.path, add.value.clone(), measure(&add.value)),
            PatchOperation::Remove(remove) => self.remove(&remove.path),
            PatchOperation::Replace(replace) => self.replace(&replace.path, &replace.value),
            PatchOperation::Copy(step) => {
                let (value, measure) = self.copied(&step.from)?;
                self.insert(&step.path, value, measure)
            }
            PatchOperation::Move(step) => self.move_value(&step.from, &step.path),
            PatchOperation::Test(test) => match self.document.pointer(test.path.as_str()) {
                Some(value) if *value == test.value => Ok(()),
                Some(_) => Err(format!("the value at `{}` is another one", test.path)),
                None => Err(missing(&test.path)),
            },
        }
    }

    /// A copy of a value, unless it would be too large for the state.
    fn copied(&self, from: &Pointer) -> Result<(Value, Measure), String> {
        let value = self.document.pointer(from.as_str()).ok_or_else(|| missing(from))?;
        let measure = measure(value);
        if measure.size.bytes > limits::STATE_BYTES_MAX {
            return Err(too_large());
        }
        self.check_written(measure.size.bytes)?;
        Ok((value.clone(), measure))
    }

    fn check_written(&self, more: usize) -> Result<(), String> {
        if self.written + more > limits::STATE_WRITES_MAX {
            return Err(format!(
                "the rules write more than {} bytes for one event",
                limits::STATE_WRITES_MAX
            ));
        }
        Ok(())
    }

    /// Counts a value that comes to a place of the state.
    fn grow(&mut self, place: &Pointer, measure: Measure, around: usize) -> Result<(), String> {
        self.check_written(measure.size.bytes)?;
        self.written += measure.size.bytes;
        self.size.bytes += measure.size.bytes + around;
        self.size.values += measure.size.values;
        if place.count() - 1 + measure.depth > limits::STATE_DEPTH_MAX {
            return Err(format!("the state would be deeper than {} levels", limits::STATE_DEPTH_MAX));
        }
        Ok(())
    }

    fn shrink(&mut self, value: &Value, around: usize) {
        let size = measure(value).size;
        self.size.bytes -= size.bytes + around;
        self.size.values -= size.values;
    }

    fn check_size(&self) -> Result<(), String> {
        let Size { bytes, values } = self.size;
        if bytes > limits::STATE_BYTES_MAX || values > limits::STATE_VALUES_MAX {
            return Err(too_large());
        }
        Ok(())
    }

    fn insert(&mut self, path: &'a Pointer, value: Value, measure: Measure) -> Result<(), String> {
        let (parent, token) = path.split_back().ok_or_else(|| missing(path))?;
        let name = token.decoded();
        match self.document.pointer_mut(parent.as_str()) {
            Some(Value::Object(members)) => match members.insert(name.clone().into_owned(), value) {
                Some(old) => {
                    self.shrink(&old, 0);
                    self.undo.push(Undo::Replace(path, old));
                    self.grow(path, measure, 0)?;
                }
                None => {
                    let around = if parent.is_root() { 0 } else { member_bytes(&name) };
                    self.undo.push(Undo::Remove(parent, Place::Member(token)));
                    self.grow(path, measure, around)?;
                }
            },
            Some(Value::Array(items)) => {
                let index = token.to_index().map_err(|error| error.to_string())?;
                let index = index.for_len_incl(items.len()).map_err(|error| error.to_string())?;
                items.insert(index, value);
                self.undo.push(Undo::Remove(parent, Place::Item(index)));
                self.grow(path, measure, ITEM_BYTES)?;
            }
            _ => return Err(format!("`{parent}` is not an array or object")),
        }
        self.check_size()
    }

    fn replace(&mut self, path: &'a Pointer, value: &Value) -> Result<(), String> {
        let place = self.document.pointer_mut(path.as_str()).ok_or_else(|| missing(path))?;
        let old = std::mem::replace(place, value.clone());
        self.shrink(&old, 0);
        self.undo.push(Undo::Replace(path, old));
        self.grow(path, measure(value), 0)?;
        self.check_size()
    }

    fn remove(&mut self, path: &'a Pointer) -> Result<(), String> {
        let (parent, token) = path.split_back().ok_or_else(|| missing(path))?;
        let name = token.decoded();
        let (index, around, old, member) = match self.document.pointer_mut(parent.as_str()) {
            Some(Value::Object(members)) => {
                let index = members.keys().position(|known| *known == *name).ok_or_else(|| missing(path))?;
                let old = members.shift_remove(name.as_ref()).ok_or_else(|| missing(path))?;
                let around = if parent.is_root() { 0 } else { member_bytes(&name) };
                (index, around, old, Some(token))
            }
            Some(Value::Array(items)) => {
                let index = token.to_index().ok().and_then(|index| index.for_len(items.len()).ok());
                let index = index.ok_or_else(|| missing(path))?;
                (index, ITEM_BYTES, items.remove(index), None)
            }
            _ => return Err(missing(path)),
        };
        self.shrink(&old, around);
        self.undo.push(Undo::Insert(parent, index, member, old));
        Ok(())
    }

    fn move_value(&mut self, from: &'a Pointer, path: &'a Pointer) -> Result<(), String> {
        if from == path {
            return self.document.pointer(from.as_str()).map(|_| ()).ok_or_else(|| missing(from));
        }
        if path.starts_with(from) {
            return Err("a value cannot be moved into itself".to_owned());
        }
        let (value, measure) = self.copied(from)?;
        self.remove(from)?;
        self.insert(path, value, measure)
    }

    /// Takes all writes back, the last one first.
    fn take_back(&mut self) {
        while let Some(undo) = self.undo.pop() {
            let (Undo::Remove(place, _) | Undo::Replace(place, _) | Undo::Insert(place, ..)) = &undo;
            let Some(found) = self.document.pointer_mut(place.as_str()) else { continue };
            match (undo, found) {
                (Undo::Replace(_, old), found) => *found = old,
                (Undo::Remove(_, Place::Member(name)), Value::Object(members)) => {
                    members.shift_remove(name.decoded().as_ref());
                }
                (Undo::Remove(_, Place::Item(index)), Value::Array(items)) => {
                    items.remove(index);
                }
                (Undo::Insert(_, index, Some(name), old), Value::Object(members)) => {
                    members.shift_insert(index, name.decoded().into_owned(), old);
                }
                (Undo::Insert(_, index, None, old), Value::Array(items)) => items.insert(index, old),
                _ => {}
            }
        }
    }
}

fn missing(place: &Pointer) -> String {
    format!("`{place}` does not exist")
}

fn too_large() -> String {
    format!(
        "the state would have more than {} bytes or {} values",
        limits::STATE_BYTES_MAX,
        limits::STATE_VALUES_MAX
    )
}

#[cfg(test)]
mod tests;

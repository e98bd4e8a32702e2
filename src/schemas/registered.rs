//! A registered event type with its compiled schemas and migrations.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::migration::MigrationPatch;
use super::schema::{Schema, Violation};
use super::state_rules::{StateEvent, StateRules, StreamState};
use super::{compatibility, json};
use crate::domain::{EventVersion, TypeDefinition, TypeVersion, VersionPin};
use crate::limits;

/// Why a definition cannot be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefinitionError {
    /// JSON pointer into the definition.
    pub pointer: String,
    pub detail: String,
}

/// Why a type refuses an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TypeRefusal {
    /// Types must be registered, and this one is not.
    UnknownType,
    /// The registered versions are these.
    UnknownVersion { known: Vec<EventVersion> },
    /// The data does not match the schema.
    Violations(Vec<Violation>),
}

/// Why data cannot be converted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConversionError {
    #[error("the type is not registered")]
    UnknownType,
    #[error("no migration leads from version {from} to {to}")]
    NoPath { from: EventVersion, to: EventVersion },
    #[error("the data cannot be read: {0}")]
    Unreadable(String),
    #[error("the number {0} would lose digits")]
    InexactNumber(String),
    #[error("migration from {from} to {to}: {detail}")]
    Migration { from: EventVersion, to: EventVersion, detail: String },
    #[error("the converted data does not match version {version}: {pointer}: {detail}")]
    Mismatch { version: EventVersion, pointer: String, detail: String },
    #[error("the converted data has more than {} bytes", limits::EVENT_BYTES_MAX)]
    TooLarge,
}

/// Converted data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    pub version: EventVersion,
    pub data: Vec<u8>,
}

/// A type with its schemas and migrations, which are compiled at their first use.
#[derive(Debug)]
pub struct RegisteredType {
    definition: Arc<TypeDefinition>,
    schemas: Vec<OnceLock<Result<Schema, Violation>>>,
    patches: Vec<OnceLock<Result<MigrationPatch, Violation>>>,
    rules: OnceLock<Option<Result<StateRules, Vec<Violation>>>>,
}

impl RegisteredType {
    #[must_use]
    pub fn new(definition: Arc<TypeDefinition>) -> Self {
        let schemas = definition.versions.iter().map(|_| OnceLock::new()).collect();
        let patches = definition.migrations.iter().map(|_| OnceLock::new()).collect();
        Self { definition, schemas, patches, rules: OnceLock::new() }
    }

    #[must_use]
    pub fn definition(&self) -> &Arc<TypeDefinition> {
        &self.definition
    }

    fn schema(&self, version: &EventVersion) -> Option<&Result<Schema, Violation>> {
        let index = self.definition.versions.iter().position(|known| known.version == *version)?;
        Some(self.schemas[index].get_or_init(|| Schema::new(&self.definition.versions[index].schema)))
    }

    fn patch(&self, index: usize) -> &Result<MigrationPatch, Violation> {
        self.patches[index].get_or_init(|| MigrationPatch::parse(&self.definition.migrations[index].patch))
    }

    fn rules(&self) -> Option<&Result<StateRules, Vec<Violation>>> {
        let parse = || self.definition.state.as_deref().map(StateRules::parse);
        self.rules.get_or_init(parse).as_ref()
    }

    /// Checks the schemas, examples, migrations and state rules of a new definition.
    ///
    /// # Errors
    /// All errors.
    pub fn check_definition(&self) -> Result<(), Vec<DefinitionError>> {
        let mut errors = Vec::new();
        for TypeVersion { version, examples, .. } in &self.definition.versions {
            let location = format!("/versions/{}", escape(version.as_str()));
            match self.schema(version) {
                Some(Err(violation)) => errors.push(DefinitionError {
                    pointer: format!("{location}/schema{}", violation.pointer),
                    detail: violation.detail.clone(),
                }),
                Some(Ok(schema)) => {
                    for (index, example) in examples.iter().enumerate() {
                        let found = schema.check_text(example.as_bytes()).err().unwrap_or_default();
                        errors.extend(found.into_iter().map(|violation| DefinitionError {
                            pointer: format!("{location}/examples/{index}{}", violation.pointer),
                            detail: violation.detail,
                        }));
                    }
                }
                None => {}
            }
        }
        for index in 0..self.definition.migrations.len() {
            if let Err(violation) = self.patch(index) {
                let pointer = format!("/migrations/{index}/patch{}", violation.pointer);
                errors.push(DefinitionError { pointer, detail: violation.detail.clone() });
            }
        }
        let found = self.rules().and_then(|rules| rules.as_ref().err()).into_iter().flatten();
        errors.extend(found.map(|violation| DefinitionError {
            pointer: format!("/state{}", violation.pointer),
            detail: violation.detail.clone(),
        }));
        errors.extend(self.ambiguous_paths());
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Pairs of versions with two shortest ways between them.
    fn ambiguous_paths(&self) -> Vec<DefinitionError> {
        let mut errors = Vec::new();
        for from in &self.definition.versions {
            for (to, way) in self.ways_from(&from.version) {
                if way.count > 1 {
                    errors.push(DefinitionError {
                        pointer: "/migrations".to_owned(),
                        detail: format!(
                            "two shortest ways lead from version {} to {to}; add a direct migration or remove one",
                            from.version
                        ),
                    });
                }
            }
        }
        errors.sort_by(|one, other| one.detail.cmp(&other.detail));
        errors
    }

    /// The shortest ways from a version, by their ends.
    fn ways_from(&self, from: &EventVersion) -> HashMap<&EventVersion, Way> {
        let mut ways: HashMap<&EventVersion, Way> = HashMap::new();
        let Some(from) = self.definition.version(from).map(|known| &known.version) else { return ways };
        ways.insert(from, Way { count: 1, length: 0, last: usize::MAX });
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            let Way { count, length, .. } = ways[at];
            for (last, migration) in self.definition.migrations.iter().enumerate() {
                if migration.from != *at {
                    continue;
                }
                match ways.get_mut(&migration.to) {
                    None => {
                        ways.insert(&migration.to, Way { count, length: length + 1, last });
                        queue.push_back(&migration.to);
                    }
                    Some(way) if way.length == length + 1 => way.count = way.count.saturating_add(count),
                    Some(_) => {}
                }
            }
        }
        ways
    }

    /// Checks the data of an event.
    ///
    /// # Errors
    /// When the version is not registered or the data does not match its schema.
    pub fn check(&self, version: &EventVersion, data: &[u8]) -> Result<(), TypeRefusal> {
        match self.schema(version) {
            None => {
                let known = self.definition.versions.iter().map(|known| known.version.clone()).collect();
                Err(TypeRefusal::UnknownVersion { known })
            }
            Some(Ok(schema)) => schema.check_text(data).map_err(TypeRefusal::Violations),
            // Not reached: a registered schema was compiled before.
            Some(Err(violation)) => Err(TypeRefusal::Violations(vec![violation.clone()])),
        }
    }

    /// The version that a pin means; `None` without versions.
    #[must_use]
    pub fn pinned<'a>(&'a self, pin: &'a VersionPin) -> Option<&'a EventVersion> {
        match pin {
            VersionPin::Latest => self.definition.latest().map(|latest| &latest.version),
            VersionPin::Version(version) => Some(version),
        }
    }

    /// Whether migrations lead from one version to another.
    #[must_use]
    pub fn can_convert(&self, from: &EventVersion, to: &EventVersion) -> bool {
        self.ways_from(from).contains_key(to)
    }

    fn converts_both_ways(&self, [one, other]: [&EventVersion; 2]) -> bool {
        self.can_convert(one, other) && self.can_convert(other, one)
    }

    /// Converts data to another version. The order of members is kept.
    ///
    /// # Errors
    /// When no way leads there, a migration fails, a number would lose digits, or the result does
    /// not match the schema of the version.
    pub fn convert(
        &self,
        from: &EventVersion,
        to: &EventVersion,
        data: &[u8],
    ) -> Result<Converted, ConversionError> {
        let value = self.convert_value(from, to, data)?;
        let data =
            serde_json::to_vec(&value).map_err(|error| ConversionError::Unreadable(error.to_string()))?;
        if data.len() > limits::EVENT_BYTES_MAX {
            return Err(ConversionError::TooLarge);
        }
        Ok(Converted { version: to.clone(), data })
    }

    /// As [`Self::convert`], for a value of any size.
    fn convert_value(
        &self,
        from: &EventVersion,
        to: &EventVersion,
        data: &[u8],
    ) -> Result<Value, ConversionError> {
        let ways = self.ways_from(from);
        let (mut path, mut at) = (Vec::new(), to);
        while at != from {
            let no_path = || ConversionError::NoPath { from: from.clone(), to: to.clone() };
            let way = ways.get(at).ok_or_else(no_path)?;
            path.push(way.last);
            at = &self.definition.migrations[way.last].from;
        }
        let mut value = read_exact(data)?;
        for index in path.into_iter().rev() {
            let migration = &self.definition.migrations[index];
            let applied = match self.patch(index) {
                Ok(patch) => patch.apply(&mut value),
                Err(violation) => Err(violation.detail.clone()),
            };
            applied.map_err(|detail| ConversionError::Migration {
                from: migration.from.clone(),
                to: migration.to.clone(),
                detail,
            })?;
        }
        if let Some(Ok(schema)) = self.schema(to) {
            schema.check(&value).map_err(|violations| mismatch(to, violations))?;
        }
        Ok(value)
    }

    /// Changes the state of a stream by an event, as the rules of the type say. The event is
    /// converted to the newest version before. If no migration leads there, it is taken as
    /// published, if it matches the schema of the newest version.
    ///
    /// # Errors
    /// When the event cannot be converted or its rules fail. The state is then unchanged.
    pub fn fold(
        &self,
        state: &mut StreamState,
        version: &EventVersion,
        data: &[u8],
        (timestamp, stream_version): (&str, u64),
    ) -> Result<(), String> {
        let (Some(rules), Some(latest)) = (self.rules(), self.definition.latest()) else { return Ok(()) };
        // Registered rules were parsed before.
        let rules = rules.as_ref().map_err(|_| "the rules of the type cannot be read".to_owned())?;
        let (version, data) = self
            .newest_data(version, &latest.version, data)
            .map_err(|error| super::schema::shorten(&error.to_string()))?;
        let event = StateEvent {
            event_type: self.definition.name.as_str(),
            version: version.as_str(),
            timestamp,
            stream_version,
        };
        rules.apply(state, data, &event)
    }

    fn newest_data<'a>(
        &self,
        version: &'a EventVersion,
        latest: &'a EventVersion,
        data: &[u8],
    ) -> Result<(&'a EventVersion, Value), ConversionError> {
        match self.convert_value(version, latest, data) {
            Ok(value) => Ok((latest, value)),
            Err(error @ ConversionError::NoPath { .. }) => {
                let value = read_exact(data)?;
                match self.schema(latest) {
                    Some(Ok(schema)) if schema.check(&value).is_ok() => Ok((version, value)),
                    _ => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// The differences that make this definition incompatible with an earlier one. Each version is
    /// compared with the version before it, or all before it, if one of the two is new or has
    /// changed, or if they have lost their migrations. Migrations both ways replace compatibility.
    #[must_use]
    pub fn incompatibilities(&self, earlier: Option<&TypeDefinition>) -> Vec<VersionIncompatibility> {
        let mut found = Vec::new();
        let directions = compatibility::ReaderDirection::required_by(self.definition.compatibility);
        let earlier = earlier.map(|earlier| Self::new(Arc::new(earlier.clone())));
        let is_known = |version: &TypeVersion| {
            let known = earlier.as_ref().and_then(|earlier| earlier.definition.version(&version.version));
            known.is_some_and(|known| known.schema == version.schema)
        };
        for (index, new) in self.definition.versions.iter().enumerate() {
            let first = if self.definition.transitive { 0 } else { index.saturating_sub(1) };
            for before in &self.definition.versions[first..index] {
                let pair = [&before.version, &new.version];
                let had_migrations = earlier.as_ref().is_some_and(|earlier| earlier.converts_both_ways(pair));
                if self.converts_both_ways(pair) || (is_known(before) && is_known(new) && !had_migrations) {
                    continue;
                }
                let (Ok(old_schema), Ok(new_schema)) =
                    (json::read(before.schema.as_bytes()), json::read(new.schema.as_bytes()))
                else {
                    continue;
                };
                found.extend(directions.iter().filter_map(|direction| {
                    let difference = compatibility::compare(*direction, &old_schema, &new_schema)?;
                    Some(VersionIncompatibility {
                        version: new.version.clone(),
                        with: before.version.clone(),
                        difference,
                    })
                }));
            }
        }
        found
    }

    /// The differences of unknown answer, for a comparison that took too long.
    #[must_use]
    pub fn undecided(&self) -> Vec<VersionIncompatibility> {
        let directions = compatibility::ReaderDirection::required_by(self.definition.compatibility);
        let Some([.., before, new]) = self.definition.versions.get(..) else { return Vec::new() };
        let unknown = |direction: &compatibility::ReaderDirection| VersionIncompatibility {
            version: new.version.clone(),
            with: before.version.clone(),
            difference: compatibility::Incompatibility {
                direction: *direction,
                answer: compatibility::Undecided::Unknown,
                lost: None,
            },
        };
        directions.iter().map(unknown).collect()
    }

    /// The first example of a version.
    #[must_use]
    pub fn example(&self, version: &EventVersion) -> Option<&str> {
        self.definition.version(version)?.examples.first().map(|example| &**example)
    }
}

/// A difference between two versions of a type.
#[derive(Clone, Debug, PartialEq)]
pub struct VersionIncompatibility {
    pub version: EventVersion,
    /// The earlier version.
    pub with: EventVersion,
    pub difference: compatibility::Incompatibility,
}

/// Shortest ways from one version to another.
#[derive(Clone, Copy, Debug)]
struct Way {
    count: u32,
    length: usize,
    /// The last migration of one of them.
    last: usize,
}

/// Data whose numbers keep their value.
fn read_exact(data: &[u8]) -> Result<Value, ConversionError> {
    let text = std::str::from_utf8(data).map_err(|error| ConversionError::Unreadable(error.to_string()))?;
    let text = if text.is_empty() { "null" } else { text };
    if let Some(number) = json::first_inexact_number(text) {
        return Err(ConversionError::InexactNumber(super::schema::shorten(number)));
    }
    json::read(text.as_bytes()).map_err(ConversionError::Unreadable)
}

fn mismatch(version: &EventVersion, violations: Vec<Violation>) -> ConversionError {
    let Violation { pointer, detail } = violations
        .into_iter()
        .next()
        .unwrap_or_else(|| Violation { pointer: String::new(), detail: "does not match".to_owned() });
    let pointer = if pointer.is_empty() { "/".to_owned() } else { pointer };
    ConversionError::Mismatch { version: version.clone(), pointer, detail }
}

/// A segment of a JSON pointer.
fn escape(segment: &str) -> String {
    segment.replace('~', "~0").replace('/', "~1")
}

/// A definition's JSON value, for documents. `None` if it cannot be read, which registration
/// prevents.
#[must_use]
pub fn value_of(text: &str) -> Option<Value> {
    json::read(text.as_bytes()).ok()
}

//! Requests and responses of event types.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::api::http::body::check_depth;
use crate::api::http::problem::{Errors, FieldError, pointer};
use crate::api::http::unique::members;
use crate::api::text::{self, Time, Word};
use crate::domain::{
    ClosedList as _, Compatibility, EventType, EventVersion, Position, Timestamp, TypeDefinition,
    TypeMigration, TypeVersion,
};
use crate::limits;
use crate::service::event_types::{PinView, Sample, TypeChange, TypeView};
use crate::service::types::{VersionIncompatibility, compact, compact_exact, value_of};

/// The definition of an event type.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TypeInput {
    /// At most 4,096 bytes.
    #[schemars(length(max = 4096))]
    pub description: Option<String>,
    /// The versions by name. They sort by their numbers: `1.9` precedes `1.10`.
    #[serde(deserialize_with = "versions")]
    #[schemars(with = "BTreeMap<String, VersionInput>", extend("minProperties" = 1, "maxProperties" = limits::TYPE_VERSIONS_MAX))]
    pub versions: BTreeMap<String, VersionInput>,
    /// The promise of a new version: `forward` (default; subscribers of the earlier version
    /// understand new data), `backward`, `full` or `none`.
    #[schemars(extend("enum" = ["forward", "backward", "full", "none", null]))]
    pub compatibility: Option<String>,
    /// Whether a new version is compared with all earlier ones, not only with the last. Default:
    /// false.
    pub transitive: Option<bool>,
    /// Conversions of `data` between versions.
    #[schemars(length(max = 200))]
    pub migrations: Option<Vec<MigrationInput>>,
    /// How an event changes the state of its stream: a JSON Patch (RFC 6902) over
    /// `{"state": .., "data": .., "event": ..}` with at most 200 operations, which writes below
    /// `/state`. An operation with `"optional": true` is skipped when its place does not exist.
    #[schemars(with = "Option<Vec<Map<String, Value>>>")]
    pub state: Option<Box<RawValue>>,
}

fn versions<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, VersionInput>, D::Error> {
    members(deserializer).map(Option::unwrap_or_default)
}

/// One version of an event type.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VersionInput {
    /// A JSON Schema (2020-12) of `data`, at most 64 KiB. References stay within the schema.
    #[schemars(with = "Value")]
    pub schema: Box<RawValue>,
    /// Default: false.
    pub deprecated: Option<bool>,
    /// When the version will no longer be published.
    #[schemars(extend("format" = "date-time"))]
    pub sunset: Option<String>,
    /// Values of `data`. Test events use the first one.
    #[schemars(length(max = 20), with = "Option<Vec<Value>>")]
    pub examples: Option<Vec<Box<RawValue>>>,
}

/// A conversion of `data` from one version to another.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MigrationInput {
    pub from: String,
    pub to: String,
    /// A JSON Patch (RFC 6902). An operation with `"optional": true` is skipped when its place does
    /// not exist.
    #[schemars(with = "Vec<Map<String, Value>>")]
    pub patch: Box<RawValue>,
}

impl TypeInput {
    /// Validates the members. Records problems in `errors`; the result is then meaningless.
    pub fn definition(self, name: EventType, errors: &mut Errors) -> TypeDefinition {
        let description = self.description.unwrap_or_default();
        if description.len() > limits::TYPE_DESCRIPTION_BYTES_MAX {
            errors.push("/description", format!("at most {} bytes", limits::TYPE_DESCRIPTION_BYTES_MAX));
        }
        if self.versions.is_empty() || self.versions.len() > limits::TYPE_VERSIONS_MAX {
            errors.push("/versions", format!("1 to {} versions", limits::TYPE_VERSIONS_MAX));
        }
        let versions = self.versions.into_iter();
        let mut versions: Vec<_> =
            versions.filter_map(|(version, input)| input.check(&version, errors)).collect();
        versions.sort_by(|one, other| one.version.natural_order(&other.version));
        let compatibility = self.compatibility.as_deref().map(|word| {
            Compatibility::from_word(word)
                .ok_or_else(|| format!("must be one of {}", Compatibility::WORDS.join(", ")))
        });
        let compatibility = compatibility.and_then(|word| errors.check("/compatibility", word));
        let migrations = check_migrations(self.migrations.unwrap_or_default(), &versions, errors);
        let state = self.state.and_then(|state| errors.check("/state", exact_part(&state)));
        let definition = TypeDefinition {
            name,
            description: description.into(),
            compatibility: compatibility.unwrap_or_default(),
            transitive: self.transitive.unwrap_or(false),
            versions,
            migrations,
            state,
            created_at: Timestamp::ZERO,
            updated_at: Timestamp::ZERO,
            revision: Position(0),
        };
        if definition.weight() > limits::TYPE_BYTES_MAX {
            errors.push("", format!("the type has more than {} bytes", limits::TYPE_BYTES_MAX));
        }
        definition
    }
}

impl VersionInput {
    fn check(self, version: &str, errors: &mut Errors) -> Option<TypeVersion> {
        let location = pointer("/versions", version);
        let name = errors.check(&location, version.parse::<EventVersion>());
        if version == crate::domain::VersionPin::LATEST {
            errors.push(location.as_str(), "the name `latest` is reserved for pins");
        }
        let schema = errors.check(&format!("{location}/schema"), part(&self.schema));
        if schema.as_ref().is_some_and(|schema| schema.len() > limits::SCHEMA_BYTES_MAX) {
            errors.push(format!("{location}/schema"), format!("at most {} bytes", limits::SCHEMA_BYTES_MAX));
        }
        let sunset =
            self.sunset.and_then(|time| errors.check(&format!("{location}/sunset"), text::parse_time(&time)));
        let given = self.examples.unwrap_or_default();
        if given.len() > limits::TYPE_EXAMPLES_MAX {
            errors.push(
                format!("{location}/examples"),
                format!("at most {} examples", limits::TYPE_EXAMPLES_MAX),
            );
        }
        let examples = given.iter().enumerate().filter_map(|(index, example)| {
            errors.check(&format!("{location}/examples/{index}"), exact_part(example))
        });
        Some(TypeVersion {
            examples: examples.collect(),
            version: name?,
            schema: schema?,
            deprecated: self.deprecated.unwrap_or(false),
            sunset,
        })
    }
}

/// The compact text of a part of a definition. Documents nest it further, and their readers have
/// limits.
///
/// # Errors
/// A description.
fn part(json: &RawValue) -> Result<Box<str>, String> {
    check_depth(json.get()).and_then(|()| compact(json.get()))
}

/// As [`part`], for a part that becomes data of events.
///
/// # Errors
/// A description.
fn exact_part(json: &RawValue) -> Result<Box<str>, String> {
    check_depth(json.get()).and_then(|()| compact_exact(json.get()))
}

fn check_migrations(
    given: Vec<MigrationInput>,
    versions: &[TypeVersion],
    errors: &mut Errors,
) -> Vec<TypeMigration> {
    if given.len() > limits::TYPE_MIGRATIONS_MAX {
        errors.push("/migrations", format!("at most {} migrations", limits::TYPE_MIGRATIONS_MAX));
    }
    let mut migrations: Vec<TypeMigration> = Vec::new();
    for (index, MigrationInput { from, to, patch }) in given.into_iter().enumerate() {
        let location = format!("/migrations/{index}");
        let mut version = |member: &str, text: &str| {
            let known = versions.iter().find(|known| known.version.as_str() == text);
            let known = known.map(|known| known.version.clone());
            errors.check(
                &format!("{location}/{member}"),
                known.ok_or_else(|| format!("version `{text}` is not one of `versions`")),
            )
        };
        let (from, to) = (version("from", &from), version("to", &to));
        let patch = errors.check(&format!("{location}/patch"), exact_part(&patch));
        let (Some(from), Some(to), Some(patch)) = (from, to, patch) else { continue };
        if from == to {
            errors.push(format!("{location}/to"), "must differ from `from`");
        } else if migrations.iter().any(|known| (&known.from, &known.to) == (&from, &to)) {
            errors.push(location, format!("a second migration from {from} to {to}"));
        }
        migrations.push(TypeMigration { from, to, patch });
    }
    migrations
}

/// An event type.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TypeBody {
    pub name: String,
    pub description: String,
    #[schemars(with = "Word<Compatibility>")]
    pub compatibility: &'static str,
    pub transitive: bool,
    /// The newest version.
    pub latest: String,
    /// The versions by name, oldest first.
    #[schemars(with = "BTreeMap<String, VersionBody>")]
    pub versions: Map<String, Value>,
    /// Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migrations: Option<Vec<MigrationBody>>,
    /// How an event changes the state of its stream, if it does. Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Map<String, Value>>>")]
    pub state: Option<Value>,
    pub created_at: Time,
    pub updated_at: Time,
    /// The stored events that the definition was tried on. Only in the response to a change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<SampleBody>,
    /// Differences that were accepted by force. Only in the response to a change.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub incompatibilities: Vec<IncompatibilityBody>,
}

/// One version of an event type.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionBody {
    /// A JSON Schema. Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    pub deprecated: bool,
    pub sunset: Option<Time>,
    /// Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples: Option<Vec<Value>>,
    /// Events of the last day, of all tenants.
    pub events_last_day: u64,
    /// Ids of the endpoints and queues that pin the version, or the latest if this is it, and
    /// `consumer NAME` for consumers.
    pub pinned_by: Vec<String>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationBody {
    pub from: String,
    pub to: String,
    pub patch: Value,
}

/// How much of a type a response shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    Summary,
    Whole,
}

impl TypeBody {
    #[must_use]
    pub fn new(view: &TypeView, extent: Extent, now: Timestamp) -> Self {
        let definition = view.registered.definition();
        let whole = extent == Extent::Whole;
        let versions = definition.versions.iter().map(|version| {
            let is_pinned = |pinned: &&PinView| view.registered.pinned(&pinned.pin) == Some(&version.version);
            let usage = view.usage.iter().find(|(used, _)| *used == version.version);
            let examples = || version.examples.iter().filter_map(|example| value_of(example)).collect();
            let body = VersionBody {
                schema: if whole { value_of(&version.schema) } else { None },
                deprecated: version.deprecated,
                sunset: version.sunset.map(Time),
                examples: whole.then(examples),
                events_last_day: usage.map_or(0, |(_, usage)| usage.last_day(now)),
                pinned_by: view
                    .pins
                    .iter()
                    .filter(is_pinned)
                    .map(|pinned| pinned.holder.to_string())
                    .collect(),
            };
            (version.version.to_string(), serde_json::to_value(body).unwrap_or_default())
        });
        let migrations = definition.migrations.iter().map(|migration| MigrationBody {
            from: migration.from.to_string(),
            to: migration.to.to_string(),
            patch: value_of(&migration.patch).unwrap_or_default(),
        });
        Self {
            name: definition.name.to_string(),
            description: definition.description.to_string(),
            compatibility: definition.compatibility.as_str(),
            transitive: definition.transitive,
            latest: definition.latest().map(|latest| latest.version.to_string()).unwrap_or_default(),
            versions: versions.collect(),
            migrations: whole.then(|| migrations.collect()),
            state: definition.state.as_deref().filter(|_| whole).and_then(value_of),
            created_at: Time(definition.created_at),
            updated_at: Time(definition.updated_at),
            sample: None,
            incompatibilities: Vec::new(),
        }
    }

    /// Adds the results of a change.
    #[must_use]
    pub fn with_change(self, change: &TypeChange) -> Self {
        let incompatibilities = change.incompatibilities.iter().map(IncompatibilityBody::new).collect();
        Self { sample: Some(SampleBody::new(&change.sample)), incompatibilities, ..self }
    }
}

/// Stored events that a definition was tried on.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SampleBody {
    /// The newest events of the type, at most 1,000.
    pub checked: usize,
    /// Events that do not match their version's schema, or the newest one after a conversion.
    pub failed: usize,
    pub examples: Vec<SampleFailureBody>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SampleFailureBody {
    pub event_id: String,
    pub tenant: String,
    pub version: String,
    pub detail: String,
}

impl SampleBody {
    fn new(sample: &Sample) -> Self {
        let examples = sample.examples.iter().map(|failure| SampleFailureBody {
            event_id: failure.event_id.clone(),
            tenant: failure.tenant.clone(),
            version: failure.version.to_string(),
            detail: failure.detail.clone(),
        });
        Self { checked: sample.checked, failed: sample.failed, examples: examples.collect() }
    }
}

/// Why a version is not known to be compatible with an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IncompatibilityBody {
    pub version: String,
    /// The earlier version.
    pub with: String,
    /// `forward` or `backward`.
    pub direction: &'static str,
    /// `no`, or `unknown` if it was not decided.
    pub answer: &'static str,
    /// A schema of the values that the other side would not understand, if it is known.
    pub lost: Option<Value>,
}

impl IncompatibilityBody {
    /// The difference as an error of the definition.
    #[must_use]
    pub fn error(&self) -> FieldError {
        let location = format!("{}/schema", pointer("/versions", &self.version));
        let Self { direction, answer, with, .. } = self;
        FieldError::at(location, format!("{direction} compatible with version {with}: {answer}"))
    }

    #[must_use]
    pub fn new(found: &VersionIncompatibility) -> Self {
        Self {
            version: found.version.to_string(),
            with: found.with.to_string(),
            direction: found.difference.direction.as_str(),
            answer: found.difference.answer.as_str(),
            lost: found.difference.lost.clone(),
        }
    }
}

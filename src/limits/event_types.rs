//! Bounds of event types: definitions, migrations, conversions, states of streams.

use std::time::Duration;

use super::REQUEST_BYTES_MAX;

/// Registered event types.
pub const TYPES_MAX: usize = 2_000;
/// Versions of one type.
pub const TYPE_VERSIONS_MAX: usize = 50;
/// Migrations of one type: both ways between neighbours, and as many direct ones.
pub const TYPE_MIGRATIONS_MAX: usize = 4 * TYPE_VERSIONS_MAX;
/// Bytes of one schema.
pub const SCHEMA_BYTES_MAX: usize = 64 * 1024;
/// Bytes of one type: schemas, examples and migrations.
pub const TYPE_BYTES_MAX: usize = 256 * 1024;
/// Examples of one version.
pub const TYPE_EXAMPLES_MAX: usize = 20;
/// Bytes of a type's description.
pub const TYPE_DESCRIPTION_BYTES_MAX: usize = 4_096;
/// Subschemas that apply to one value.
pub const SUBSCHEMAS_MAX: u64 = 512;
/// Memory of a compiled pattern, in bytes.
pub const PATTERN_BYTES_MAX: usize = 1024 * 1024;
/// Violations that a response lists.
pub const VIOLATIONS_MAX: usize = 20;
/// Operations of one migration.
pub const PATCH_OPERATIONS_MAX: usize = 200;
/// JSON values of converted data.
pub const CONVERTED_VALUES_MAX: usize = 200_000;
/// Levels of converted data: one more than JSON that can be read.
pub const CONVERTED_DEPTH_MAX: usize = 128;
/// Bytes of the schema that shows what a version lost.
pub const LOST_SCHEMA_BYTES_MAX: usize = 16 * 1024;
/// Time limit of a comparison of schemas. Afterwards the answer is unknown.
pub const COMPARISON_TIME_MAX: Duration = Duration::from_secs(2);
/// Stored events that a new definition is tried on.
pub const TYPE_SAMPLE_EVENTS: usize = 1_000;
/// Bytes of the events of a sample.
pub const TYPE_SAMPLE_BYTES: usize = 16 * 1024 * 1024;
/// Failed events that a sample shows.
pub const TYPE_SAMPLE_EXAMPLES: usize = 5;
/// Bytes of the schemas in a document of all event types.
pub const TYPE_DOCUMENT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Version pins of one subscription.
pub const PINS_MAX: usize = 100;
/// Maximum length of the version of an event.
pub const VERSION_BYTES_MAX: usize = 32;
/// Bytes of cached conversions.
pub const CONVERSION_CACHE_BYTES_MAX: usize = 8 * 1024 * 1024;

const _: () = assert!(TYPE_BYTES_MAX >= 2 * SCHEMA_BYTES_MAX);
const _: () = assert!(TYPE_BYTES_MAX <= REQUEST_BYTES_MAX);

// ---- states of streams ----

/// Bytes of the rules of one type.
pub const STATE_RULES_BYTES_MAX: usize = SCHEMA_BYTES_MAX;
/// Bytes of the state of a stream, as JSON.
pub const STATE_BYTES_MAX: usize = 1024 * 1024;
/// JSON values of the state of a stream.
pub const STATE_VALUES_MAX: usize = 100_000;
/// Arrays and objects around a value of a state.
pub const STATE_DEPTH_MAX: usize = 100;
/// Bytes that the rules write for one event, also those that they write over.
pub const STATE_WRITES_MAX: usize = 4 * STATE_BYTES_MAX;
/// Events that are folded for one request.
pub const STATE_EVENTS_MAX: u64 = 10_000;
/// Time for which one request folds events.
pub const STATE_TIME_MAX: Duration = Duration::from_secs(10);
/// Problems of a state that are kept.
pub const STATE_PROBLEMS_MAX: usize = 100;
/// Folds with a state in memory at the same time.
pub const STATE_FOLDS_MAX: usize = 8;
/// Bytes of cached states.
pub const STATE_CACHE_BYTES_MAX: usize = 16 * 1024 * 1024;

// JSON of this depth can be read again.
const _: () = assert!(STATE_DEPTH_MAX < 127);
const _: () = assert!(STATE_CACHE_BYTES_MAX >= 8 * STATE_BYTES_MAX);

//! Event types as JSON: validation of data, conversion between versions, compatibility, and the
//! rules by which events make the state of a stream.
//!
//! Owns everything that reads a schema, an example or a patch. Pure: no I/O, clocks or randomness.
//! A schema never leads to a request or a file, its patterns match in linear time, and the number
//! of subschemas that apply to one value is bounded ([`cost`]).

pub mod compatibility;
pub mod cost;
pub mod json;
pub mod migration;
pub mod registered;
pub mod schema;
pub mod state_rules;

pub use compatibility::{Incompatibility, ReaderDirection, Undecided};
pub use registered::{ConversionError, Converted, DefinitionError, RegisteredType, TypeRefusal};
pub use schema::{Schema, Violation};
pub use state_rules::StreamState;

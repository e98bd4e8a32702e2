//! Content filters: the conditions of endpoints and queues on the content of events.
//!
//! Owns the language: paths and operators ([`parse`]), their meaning ([`evaluate`]), and the view
//! of an event that they see ([`content`]). The size of a filter is bounded when it is saved, and
//! the work of one condition by [`limits::FILTER_VALUES_MAX`](crate::limits::FILTER_VALUES_MAX).
//! Pure: no I/O, clocks or randomness.
//!
//! A filter is text in the endpoint's record. Equal texts are one filter.

pub mod content;
pub mod evaluate;
pub mod parse;
#[cfg(test)]
pub(crate) mod samples;
mod value_set;

pub use content::{EventContent, EventFacts};
pub use evaluate::CompiledFilter;
pub use parse::{FilterError, parse, parse_stored};

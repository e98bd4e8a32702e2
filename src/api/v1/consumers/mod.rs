//! Consumers: named positions in the log of events.

pub mod handlers;
pub mod model;

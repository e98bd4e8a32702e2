//! Erasure of events.

pub mod handlers;
pub mod model;

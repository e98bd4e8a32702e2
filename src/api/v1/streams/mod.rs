//! Streams: append, read, head, list.

pub mod append;
pub mod handlers;
pub mod model;
pub mod query;

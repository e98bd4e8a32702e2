//! The feed: all events in order, by pages or as a stream of events.

pub mod handlers;
pub mod model;
pub mod query;
pub mod reader;
pub mod stream;

//! Queues: their resource, their messages, their reports.

pub mod handlers;
pub mod messages;
pub mod model;
pub mod reports;
mod settings;

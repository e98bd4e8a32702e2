//! API keys.

pub mod handlers;
pub mod model;

//! Projections: how far the state and the consumers have come.

pub mod handlers;
pub mod model;

//! Deliveries and their attempts.

pub mod handlers;
pub mod model;

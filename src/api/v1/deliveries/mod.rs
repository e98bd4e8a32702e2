//! Deliveries and their attempts.

pub mod exchange;
pub mod handlers;
pub mod model;

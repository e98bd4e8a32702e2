//! Deliveries and their attempts.

pub mod curl;
pub mod exchange;
pub mod handlers;
pub mod model;

//! The audit log: acts of operators.

pub mod handlers;
pub mod model;

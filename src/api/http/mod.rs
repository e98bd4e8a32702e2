//! HTTP without resources: connections, bodies, errors, authentication, idempotency keys.
//!
//! Owns everything that is the same for every operation. Must never know a resource.

pub mod auth;
pub(super) mod auth_throttle;
pub mod body;
pub mod browser;
pub mod connection_limit;
mod early_errors;
pub mod idempotency;
pub mod problem;
pub mod reply;
pub mod server;
mod socket;
pub mod unique;

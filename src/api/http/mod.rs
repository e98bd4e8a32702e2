//! HTTP for all operations: connections, bodies, errors, authentication, idempotency keys.
//!
//! Must never know a resource.

pub mod auth;
pub(super) mod auth_throttle;
pub mod body;
pub mod browser;
pub mod connection_limit;
mod early_errors;
pub mod idempotency;
pub mod problem;
pub mod reply;
pub mod request;
pub mod response;
pub mod server;
mod socket;
pub(in crate::api) mod test_limit;
pub mod unique;

//! HTTP for all operations: connections, bodies, errors, authentication, idempotency keys.
//!
//! Must never know a resource.

pub mod arriving_body;
pub mod auth;
pub(super) mod auth_throttle;
pub mod body;
pub mod browser;
pub mod client_watch;
pub mod connection_limit;
mod early_errors;
pub mod heavy_work;
pub mod idempotency;
pub(super) mod key_places;
pub mod problem;
pub mod public_document;
pub mod reply;
pub mod request;
pub(in crate::api) mod request_log;
pub mod response;
pub mod server;
pub mod shared_room;
mod socket;
pub(in crate::api) mod test_limit;
pub mod unique;
pub mod unread;
pub mod watched_write;

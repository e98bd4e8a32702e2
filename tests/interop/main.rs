//! Other people's programs judge deliveries, the API's document, metrics and alerts.
//! `tests/judges/install` fetches these programs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod judges;
mod metrics;
mod openapi;

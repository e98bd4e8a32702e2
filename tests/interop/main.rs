//! Third-party programs check Balto's requests, responses and metrics. `tests/judges/install`
//! installs them.

#![expect(clippy::unwrap_used, reason = "a test fails on an error")]

#[path = "../support/mod.rs"]
mod support;

mod event_types;
mod feed;
mod filters;
mod judges;
mod metrics;
mod openapi;
mod packaging;
mod rabbitmq;
mod token_server;

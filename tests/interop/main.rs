//! Programs that others wrote judge what Balto sends, answers and shows. `tests/judges/install` fetches them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod judges;
mod metrics;
mod openapi;

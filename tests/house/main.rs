//! The repository itself: layers, names, documentation.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod docs;
mod tidy;

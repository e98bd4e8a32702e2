//! What holds for the repository itself: layers, documentation, names.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod docs;
mod tidy;

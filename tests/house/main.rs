//! Rules of the repository: layers, documentation, names.

#![expect(clippy::unwrap_used, reason = "a test fails on an error")]

#[path = "../support/mod.rs"]
mod support;

mod docs;
mod prose;
mod tidy;

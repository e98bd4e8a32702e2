//! Balto: a webhook delivery engine in one binary.

pub mod api;
pub mod domain;
pub mod engine;
pub mod limits;

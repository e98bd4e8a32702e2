//! Balto: a webhook delivery engine in one binary.

pub mod api;
pub mod cli;
pub mod codec;
pub mod courier;
pub mod domain;
pub mod engine;
pub mod limits;
pub mod projections;
pub mod rules;
pub mod store;

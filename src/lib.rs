//! Balto: a webhook delivery engine in one binary.

pub mod api;
pub mod cli;
pub mod codec;
pub mod config;
pub mod courier;
pub mod daemon;
pub mod domain;
pub mod engine;
pub mod lanes;
pub mod limits;
pub mod metrics;
pub mod projections;
pub mod rules;
pub mod store;

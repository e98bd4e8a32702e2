//! Balto: a webhook delivery engine in one binary.

pub mod codec;
pub mod courier;
pub mod domain;
pub mod lanes;
pub mod limits;
pub mod projections;
pub mod rules;
pub mod store;

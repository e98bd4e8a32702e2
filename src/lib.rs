//! Balto: a webhook delivery engine in one binary.

pub mod cli;
pub mod domain;
pub mod limits;

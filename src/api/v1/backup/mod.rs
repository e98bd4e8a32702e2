//! Backups, read in parts.

pub mod handlers;
pub mod model;

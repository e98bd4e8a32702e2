//! Backups, part by part.

pub mod handlers;
pub mod model;

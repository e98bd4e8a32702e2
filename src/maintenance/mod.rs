//! Maintenance of a whole data directory: retention, erasure, backup, restore and verification.

pub mod backup;
pub mod erasure;
pub mod retention;
pub mod verify;

//! Maintenance of a whole data directory: retention, backup, restore and verification.

pub mod backup;
pub mod retention;
pub mod verify;

//! Maintenance of a whole data directory: retention, erasure, rebuild, backup,
//! restore and verification.

pub mod backup;
pub mod erasure;
pub mod rebuild;
pub mod retention;
pub mod verify;

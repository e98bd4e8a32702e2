//! What an operator and the daemon do with a whole data directory: retention, backup, restore and verification.

pub mod backup;
pub mod retention;
pub mod verify;

//! Bytes on disk: the journal, which is the source of truth, and the rows of the state.
//!
//! Owns every file of a data directory and every on-disk layout ([`format`] lists them). Makes no
//! decisions: [`outbox`](crate::outbox) decides what is written.

pub(crate) mod data_directory;
pub mod disk;
pub mod format;
pub mod journal;
pub(crate) mod permissions;
pub mod progress;
pub mod state;

pub use data_directory::ClaimError;
pub use permissions::PermissionError;
pub use progress::WorkProgress;

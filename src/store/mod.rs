//! What survives a crash: the journal, which is the truth, and the state that is derived from it.
//!
//! Owns bytes on disk and the two threads that write them. Must never know HTTP. Reading order: [`codec`] (the layout
//! of a record), [`journal`] (frames, segments, durability), [`writer`] (what is appended and why not), [`state`] (the
//! rows in sled), [`outbox`] (both behind one handle).

pub mod backup;
pub mod codec;
#[cfg(test)]
pub(crate) mod conformance;
pub mod directory;
pub mod disk;
pub mod journal;
pub mod outbox;
pub mod progress;
mod queue;
pub mod read_model;
pub mod recent;
pub mod retention;
pub mod state;
pub mod types;
pub mod verify;
pub mod writer;

pub use outbox::{Health, Notice, OpenError, Opened, Outbox, Written};
pub use progress::Progress;
pub use queue::Admission;
pub use read_model::ReadModel;

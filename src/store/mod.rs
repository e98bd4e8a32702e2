//! What survives a crash: the journal, which is the truth, and the state that is derived from it.
//!
//! Owns bytes on disk and the two threads that write them. Must never know HTTP. Reading order: [`codec`] (the layout
//! of a record), [`journal`] (frames, segments, durability), [`writer`] (what is appended and why not), [`state`] (the
//! rows in sled), [`read_model`] (what it can be asked), [`outbox`] (both behind one handle).
//!
//! # Where another engine would stand
//!
//! An [`Outbox`] is one partition: positions of its own, one writer, one state, owned for as long as the lock on its
//! directory is held. The embedded engine has one. An engine for several nodes (Postgres) has an outbox for each partition
//! that a node has leased:
//!
//! * [`writer::Committer`] judges as it does now; where it calls [`journal::Journal::append`], one transaction inserts the
//!   records and checks the lease's fencing token. A lease that is lost is [`Health::Failed`].
//! * [`journal::JournalReader`] becomes a query by position, the state's thread a fold in the same transaction, or
//!   queries: [`ReadModel`] lists what they have to answer, by operations and not by rows.
//! * [`Outbox`] chooses between both, as the state's base does between sled and memory; the engine holds several of them,
//!   and the ids of deliveries, which are positions, name their partition, too.
//! * The suite in `conformance` has to pass over it.
//!
//! There is no trait for the whole and no partition as an argument yet: with one engine nobody would give or read it.

pub mod backup;
pub mod codec;
#[cfg(test)]
pub(crate) mod conformance;
pub mod directory;
pub mod disk;
pub mod journal;
pub mod outbox;
mod permissions;
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
pub use permissions::PermissionError;
pub use progress::Progress;
pub use queue::Admission;
pub use read_model::ReadModel;

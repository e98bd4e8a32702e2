//! Every on-disk layout. This module holds the bytes of records; the table lists where the other
//! layouts are described.
//!
//! Layouts are a public promise. Tags are never reused, and a released layout never changes. A
//! changed record gets a new layout version, and the old version stays readable.
//!
//! | layout | described in |
//! |---|---|
//! | names, format stamp and lock of the data directory | [`data_directory`](crate::storage::data_directory) |
//! | a record of the journal | [`record`] |
//! | the fields of an event | [`event`] |
//! | the fields of an attempt | [`attempt`] |
//! | the fields of an endpoint, and its options | [`endpoint`], [`outgoing`] |
//! | the fields of a tenant's settings | [`tenant`] |
//! | leases, consumers, event types and sources in records | [`lease`], [`consumer`], [`event_type`], [`source`] |
//! | jobs and audit entries in records | [`job`] |
//! | a journal file: file header, frames, checksums | [`journal::frame`](crate::storage::journal) |
//! | rows of the state: keys and values | [`projections`](crate::projections) |
//! | rows of the state: cursor and layout version | [`state`](crate::storage::state) |
//! | a backup file | [`maintenance::backup`](crate::maintenance::backup) |
//! | a sealed value | [`vault`](crate::vault) |
//!
//! `docs/internals/storage-format.md` lists the same places, with the rules of a change.

mod attempt;
mod consumer;
mod endpoint;
mod event;
mod event_type;
mod exchange;
mod fields;
mod job;
mod lease;
mod outgoing;
mod record;
#[cfg(test)]
mod selection_tests;
mod source;
mod tenant;

pub use fields::CodecError;
pub use record::{decode, encode, size_hint};

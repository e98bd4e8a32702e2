//! Erased events whose content is still in the files of the journal (`H`), by position.
//!
//! A row begins with the erasure and ends when no file has the content. The fold of a journal
//! without the content makes no row.

use std::ops::ControlFlow;

use super::pages;
use super::rows::{Key, Rows, u64_at};
use crate::codec::{Malformed, Reader, put_varint};
use crate::domain::{OnDisk, Position, Timestamp};

/// An erased event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErasureFacts {
    pub at: Timestamp,
    pub on_disk: OnDisk,
}

fn key(event: Position) -> Vec<u8> {
    Key::new(b'H').position(event).0
}

pub fn put(rows: &mut dyn Rows, event: Position, at: Timestamp) {
    let mut value = Vec::with_capacity(8);
    put_varint(&mut value, at.millis());
    rows.put(&key(event), value);
}

/// Removes the rows of these events: no file has their content.
pub fn complete(rows: &mut dyn Rows, events: &[Position]) {
    for event in events {
        rows.remove(&key(*event));
    }
}

/// Whether the content of an erased event is still in the files.
pub fn is_pending(rows: &dyn Rows, event: Position) -> bool {
    rows.get(&key(event)).is_some()
}

/// The erasure of an event; `None` if the event was not erased, or retention removed it.
pub fn erasure(rows: &dyn Rows, event: Position) -> Option<ErasureFacts> {
    let at = pages::event(rows, event)?.erased_at?;
    let on_disk = if is_pending(rows, event) { OnDisk::Pending } else { OnDisk::Done };
    Some(ErasureFacts { at, on_disk })
}

/// Pending erasures in order of their events, of events after a position, up to a number of them.
pub fn pending(rows: &dyn Rows, after: Position, limit: usize) -> Vec<(Position, Timestamp)> {
    let mut found = Vec::new();
    rows.scan(&key(after.next()), &[b'H' + 1], &mut |key, value| {
        if found.len() == limit {
            return ControlFlow::Break(());
        }
        found.extend(decode(value).ok().map(|at| (Position(u64_at(key, 1)), at)));
        ControlFlow::Continue(())
    });
    found
}

fn decode(value: &[u8]) -> Result<Timestamp, Malformed> {
    Reader::new(value).get_varint().map(Timestamp::from_millis)
}

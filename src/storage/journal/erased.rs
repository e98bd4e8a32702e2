//! Erased events whose content may still be in the journal's files.
//!
//! Owns the set of these events, and removes their content from every record that is read. An event
//! enters the set before its erasure becomes visible, and leaves it after the files have lost its
//! content. So no reader ever gets the content of an erased event, except the fold of a rebuild,
//! which keeps none of it. Must never change a file.

use std::sync::RwLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::reader::{read, write};
use crate::domain::{IdMap, Position, Record, Timestamp};
use crate::failpoints::{self, Mutation};

#[derive(Default)]
pub(super) struct ErasedEvents {
    /// When each event was erased, by its position.
    at: RwLock<IdMap<Position, Timestamp>>,
    /// Number of events. Usually zero, so that reads need no lock.
    count: AtomicUsize,
}

impl ErasedEvents {
    /// Adds an event. The first erasure counts.
    pub(super) fn insert(&self, event: Position, at: Timestamp) {
        let mut erased = write(&self.at);
        erased.entry(event).or_insert(at);
        self.count.store(erased.len(), Ordering::Release);
    }

    pub(super) fn remove(&self, events: &[Position]) {
        let mut erased = write(&self.at);
        for event in events {
            erased.remove(event);
        }
        let left = erased.len();
        erased.shrink_to(2 * left);
        self.count.store(left, Ordering::Release);
    }

    pub(super) fn contains(&self, event: Position) -> bool {
        !self.is_empty() && read(&self.at).contains_key(&event)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// The record without the content of an erased event. `None` if it has no such content.
    pub(super) fn without_content(&self, position: Position, record: &Record) -> Option<Record> {
        if self.is_empty() || failpoints::is_active(Mutation::EraseForgets) {
            return None;
        }
        let at = *read(&self.at).get(&record.content_of(position)?)?;
        Some(record.erased(at))
    }
}

//! Erasure of an event's content.

use super::Step;
use crate::domain::{Event, Position, Timestamp};
use crate::projections::erasures;
use crate::projections::pages::{self, EventEntry};

impl Step<'_> {
    /// Marks an event as erased. Its deliveries end by records of the same commit. An event whose
    /// record has lost the content already has the mark.
    pub(super) fn erase(&mut self, event: Position, at: Timestamp) {
        let entry = pages::event(self.rows, event);
        if entry.as_ref().is_some_and(|entry| entry.erased_at.is_some()) {
            return;
        }
        // Also without an entry: the journal may still have the replies to the event's attempts.
        erasures::put(self.rows, event, at);
        let Some(entry) = entry else { return };
        let bytes = Event::erased_bytes(pages::targets(self.rows, &entry).len());
        if let Ok(tenant) = entry.tenant.parse() {
            let usage = self.usage(&tenant);
            usage.bytes = usage.bytes.saturating_sub(entry.bytes.saturating_sub(bytes));
        }
        let entry = EventEntry { bytes, erased_at: Some(at), ..entry };
        self.fold.blocks.add_event(self.rows, self.fold.checkpoint, &entry);
    }
}

//! Erasure of an event's content.

use super::Step;
#[cfg(doc)]
use crate::domain::Attempt;
use crate::domain::{DeliveryKey, DeliveryState, Event, Position, Timestamp};
use crate::projections::erasures;
use crate::projections::pages::{self, EventEntry, page_of};
use crate::projections::pending::{self, Detail};
use crate::projections::states::{PageStates, StateEntry, StatePlace};

impl Step<'_> {
    /// Marks an event as erased. Its deliveries end by records of the same commit. The erasure is
    /// not pending if the record of the event has lost the content already.
    pub(super) fn erase(&mut self, event: Position, at: Timestamp) {
        let entry = pages::event(self.rows, event);
        if entry.as_ref().is_some_and(|entry| entry.erased_at.is_some()) {
            return;
        }
        // The journal may still have the replies to the event's attempts.
        let Some(entry) = entry else { return erasures::put(self.rows, event, at) };
        self.erase_errors(&entry);
        let bytes = Event::erased_bytes(pages::targets(self.rows, &entry).len());
        if entry.bytes > bytes {
            erasures::put(self.rows, event, at);
        }
        if let Ok(tenant) = entry.tenant.parse() {
            let usage = self.usage(&tenant);
            usage.bytes = usage.bytes.saturating_sub(entry.bytes.saturating_sub(bytes));
        }
        let entry = EventEntry { bytes, erased_at: Some(at), ..entry };
        self.fold.blocks.put_entry(self.rows, self.fold.checkpoint, &entry);
    }

    /// Erases the error texts in the rows of an event's deliveries, as [`Attempt::erased`] does in
    /// the records: a rebuild from the erased records gives the same rows.
    fn erase_errors(&mut self, event: &EventEntry) {
        let deliveries = PageStates::new(self.rows, page_of(event.position)).deliveries(event);
        for (endpoint, state) in deliveries {
            let delivery = DeliveryKey { event: event.position, endpoint };
            match state.filter(|entry| entry.state != DeliveryState::Pending) {
                Some(entry) if entry.last != entry.last.erased() => {
                    let (place, _) = StatePlace::find(self.rows, event, endpoint);
                    self.put_state(place, &StateEntry { last: entry.last.erased(), ..entry });
                }
                Some(_) => {}
                None => {
                    let detail = pending::detail(self.rows, delivery);
                    if let Some(detail) = detail.filter(|detail| detail.last != detail.last.erased()) {
                        let detail = Detail { last: detail.last.erased(), ..detail };
                        pending::put_detail(self.rows, delivery, &detail);
                    }
                }
            }
        }
    }
}

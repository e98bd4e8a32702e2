//! Retention: deletes expired events from the rows.
//!
//! Owns the rule. An event expires with its deliveries, when all of them ended before the cutoff.
//! Pending deliveries and dead letters never expire. [`overdue`] finds deliveries to end that have
//! been due for longer than the retention period, so no delivery stays pending forever.

use std::collections::{BTreeMap, HashMap};

use super::pages::{self, Blocks, EventEntry, StateEntry};
use super::{Rows, pending, reads, streams};
use crate::domain::{DeliveryKey, DeliveryState, Position, Timestamp};
use crate::failpoints::{self, Bound};
use crate::limits;

/// Pages per step of [`overdue`].
const OVERDUE_PAGES_MAX: usize = 16;

/// Retention cutoffs: events that ended earlier expire. `None` keeps them forever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cutoffs {
    pub events: Option<Timestamp>,
    /// The cutoff of events of a stream.
    pub stream_events: Option<Timestamp>,
}

/// Result of a step of [`forget`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Positions of the events and of their attempts.
    pub positions: Vec<Position>,
    pub events: u64,
    /// Number and bytes of the events, by tenant.
    pub by_tenant: BTreeMap<Box<str>, (u64, u64)>,
    /// First page of the next step; `None` if later events are too young, or there are none.
    pub next: Option<u64>,
}

/// Result of a step of [`overdue`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overdue {
    pub deliveries: Vec<DeliveryKey>,
    /// As [`Forgotten::next`].
    pub next: Option<u64>,
}

impl Cutoffs {
    /// The cutoff of an event that was accepted before it.
    fn expiry_cutoff(self, event: &EventEntry) -> Option<Timestamp> {
        let cutoff = if event.stream.is_some() { self.stream_events } else { self.events };
        cutoff.filter(|cutoff| event.accepted_at < *cutoff)
    }

    /// Whether these and all later events are too young. Acceptance times follow positions.
    fn are_before(self, events: &[EventEntry]) -> bool {
        let latest = self.events.max(self.stream_events);
        events.first().is_none_or(|first| latest.is_none_or(|latest| first.accepted_at >= latest))
    }
}

/// Whether all deliveries of an event ended before its cutoff.
pub(super) fn is_expired(
    event: &EventEntry,
    states: &HashMap<DeliveryKey, StateEntry>,
    cutoffs: Cutoffs,
) -> bool {
    let Some(cutoff) = cutoffs.expiry_cutoff(event) else { return false };
    reads::event_endpoints(event, states).into_iter().all(|endpoint| {
        states.get(&DeliveryKey { event: event.position, endpoint }).is_some_and(|entry| match entry.state {
            DeliveryState::Delivered | DeliveryState::Cancelled | DeliveryState::Purged => entry.at < cutoff,
            DeliveryState::Pending | DeliveryState::Dead(_) => false,
        })
    })
}

/// Deletes expired events on up to `pages_max` pages from `page` on.
pub fn forget(
    rows: &mut dyn Rows,
    blocks: &mut Blocks,
    checkpoint: u64,
    cutoffs: Cutoffs,
    page: u64,
    pages_max: usize,
) -> Forgotten {
    let mut forgotten = Forgotten::default();
    let mut next = pages::page_at_or_above(rows, page);
    for _ in 0..pages_max {
        let Some(page) = next else { return forgotten };
        let events = pages::events(rows, page);
        if cutoffs.are_before(&events) {
            return forgotten;
        }
        forget_page(rows, blocks, checkpoint, cutoffs, page, events, &mut forgotten);
        next = pages::page_at_or_above(rows, page + 1);
    }
    forgotten.next = next;
    forgotten
}

fn forget_page(
    rows: &mut dyn Rows,
    blocks: &mut Blocks,
    checkpoint: u64,
    cutoffs: Cutoffs,
    page: u64,
    events: Vec<EventEntry>,
    forgotten: &mut Forgotten,
) {
    let states = pages::states(rows, page);
    let (expired, kept): (Vec<_>, Vec<_>) =
        events.into_iter().partition(|event| is_expired(event, &states, cutoffs));
    if expired.is_empty() {
        return;
    }
    pages::remove_page(rows, page);
    for event in &kept {
        blocks.add_event(rows, checkpoint, event);
    }
    let mut states: Vec<_> = states.into_values().collect();
    states.sort_unstable_by_key(|entry| (entry.delivery.event, entry.delivery.endpoint));
    for entry in states {
        if kept.binary_search_by_key(&entry.delivery.event, |event| event.position).is_ok() {
            blocks.add_state(rows, checkpoint, &entry);
        } else {
            forgotten.positions.extend(&entry.attempts);
        }
    }
    forgotten.events += expired.len() as u64;
    for event in &expired {
        let (events, bytes) = forgotten.by_tenant.entry(event.tenant.clone()).or_default();
        *events += 1;
        *bytes += event.bytes;
        if let Some((stream, version)) = &event.stream {
            streams::forget(rows, &event.tenant, stream, *version);
        }
    }
    forgotten.positions.extend(expired.iter().map(|event| event.position));
}

/// Pending deliveries that were due before their event's cutoff, on some pages from `page` on.
pub fn overdue(rows: &dyn Rows, cutoffs: Cutoffs, page: u64) -> Overdue {
    let mut overdue = Overdue::default();
    let mut next = pages::page_at_or_above(rows, page);
    for _ in 0..failpoints::bound(Bound::RetentionPages, OVERDUE_PAGES_MAX) {
        let Some(page) = next.filter(|_| overdue.deliveries.len() < limits::BULK_DELIVERIES_MAX) else {
            break;
        };
        let events = pages::events(rows, page);
        if cutoffs.are_before(&events) {
            return overdue;
        }
        let states = pages::states(rows, page);
        for event in &events {
            let Some(cutoff) = cutoffs.expiry_cutoff(event) else { continue };
            let keys = reads::event_endpoints(event, &states).into_iter();
            overdue.deliveries.extend(
                keys.map(|endpoint| DeliveryKey { event: event.position, endpoint })
                    .filter(|key| states.get(key).is_none_or(|entry| entry.state == DeliveryState::Pending))
                    .filter(|key| {
                        pending::detail(rows, *key).map_or(event.first_due, |detail| detail.due) < cutoff
                    }),
            );
        }
        next = pages::page_at_or_above(rows, page + 1);
    }
    overdue.next = next;
    overdue
}

/// Positions of a page's events.
#[must_use]
pub fn positions(rows: &dyn Rows, page: u64) -> Vec<Position> {
    pages::events(rows, page).into_iter().map(|event| event.position).collect()
}

#[cfg(test)]
mod tests;

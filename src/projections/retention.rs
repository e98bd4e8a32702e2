//! Forgetting events whose time is over.
//!
//! Owns: when an event may go. It goes whole, with the states of its deliveries, and only when all of them have ended
//! and none is a dead letter; what is pending or dead is kept for as long as it is that. So that nothing is pending for
//! ever, what has been due for longer than its event is kept is found here, too ([`overdue`]).

use std::collections::HashMap;

use super::pages::{self, Blocks, EventEntry, StateEntry};
use super::{Rows, pending, reads};
use crate::domain::{DeliveryKey, DeliveryState, Position, Timestamp};
use crate::failpoints::{self, Bound};
use crate::limits;

/// Pages in one step of looking for what is overdue.
const OVERDUE_PAGES_MAX: usize = 16;

/// What ended before these may go; `None` keeps it for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cutoffs {
    pub events: Option<Timestamp>,
    /// The same for events of a stream.
    pub stream_events: Option<Timestamp>,
}

/// A step through the pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Positions of the events and of their attempts.
    pub positions: Vec<Position>,
    pub events: u64,
    /// Where the next step begins; `None` when what follows is too young, or nothing follows.
    pub next: Option<u64>,
}

/// A step through the pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overdue {
    pub deliveries: Vec<DeliveryKey>,
    /// As [`Forgotten::next`].
    pub next: Option<u64>,
}

impl Cutoffs {
    /// That of an event that is older than it.
    fn of(self, event: &EventEntry) -> Option<Timestamp> {
        let cutoff = if event.stream.is_some() { self.stream_events } else { self.events };
        cutoff.filter(|cutoff| event.accepted_at < *cutoff)
    }

    /// Whether these events, and with them all that follow, are too young for any. Acceptance times follow positions.
    fn are_before(self, events: &[EventEntry]) -> bool {
        let latest = self.events.max(self.stream_events);
        events.first().is_none_or(|first| latest.is_none_or(|latest| first.accepted_at >= latest))
    }
}

/// Whether all that became of an event is older than its cutoff.
pub(super) fn is_over(
    event: &EventEntry,
    states: &HashMap<DeliveryKey, StateEntry>,
    cutoffs: Cutoffs,
) -> bool {
    let Some(cutoff) = cutoffs.of(event) else { return false };
    reads::endpoints(event, states).into_iter().all(|endpoint| {
        states.get(&DeliveryKey { event: event.position, endpoint }).is_some_and(|entry| match entry.state {
            DeliveryState::Delivered | DeliveryState::Cancelled | DeliveryState::Purged => entry.at < cutoff,
            DeliveryState::Pending | DeliveryState::Dead(_) => false,
        })
    })
}

/// Forgets what is over on up to `pages_max` pages from `page` on.
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
    let (over, kept): (Vec<_>, Vec<_>) =
        events.into_iter().partition(|event| is_over(event, &states, cutoffs));
    if over.is_empty() {
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
    forgotten.events += over.len() as u64;
    forgotten.positions.extend(over.iter().map(|event| event.position));
}

/// Deliveries that are pending although they were due before the cutoff of their event, on some pages from `page` on. What
/// will be tried again later is not due.
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
            let Some(cutoff) = cutoffs.of(event) else { continue };
            let keys = reads::endpoints(event, &states).into_iter();
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

/// The positions of a page's events.
#[must_use]
pub fn positions(rows: &dyn Rows, page: u64) -> Vec<Position> {
    pages::events(rows, page).into_iter().map(|event| event.position).collect()
}

#[cfg(test)]
mod tests;

//! Retention: deletes expired events from the rows.
//!
//! Owns the rule. An event expires with its deliveries, when all of them ended before the cutoff.
//! Pending deliveries and dead letters never expire. [`overdue`] finds deliveries to end that have
//! been due for longer than the retention period, so no delivery stays pending forever.

use std::collections::{BTreeMap, BTreeSet};

use super::pages::{self, Blocks, EventEntry};
use super::states::{self, PageStates, StateEntry, StatePlace};
use super::{Rows, leases, pending, streams, tenant_pages};
use crate::domain::{DeliveryKey, DeliveryState, EndpointNumber, Horizon, Position, Timestamp};
use crate::failpoints::{self, Bound, Mutation};
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

/// Which events expire: by the cutoffs, and none beyond the horizon that is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expiry {
    pub cutoffs: Cutoffs,
    pub horizon: Horizon,
}

impl Expiry {
    /// The last states of an expired event's deliveries; `None` if the event stays.
    fn states(self, event: &EventEntry, states: &PageStates<'_>) -> Option<States> {
        let last = if event.stream.is_some() { self.horizon.stream_events } else { self.horizon.events };
        let is_within = event.position <= last || failpoints::is_active(Mutation::SkipHorizon);
        is_within.then(|| expired_states(event, states, self.cutoffs)).flatten()
    }

    pub(super) fn includes(self, event: &EventEntry, states: &PageStates<'_>) -> bool {
        self.states(event, states).is_some()
    }
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

/// Last states of an event's deliveries.
type States = BTreeMap<EndpointNumber, Option<StateEntry>>;

/// Whether all deliveries of an event ended before its cutoff.
pub(super) fn is_expired(event: &EventEntry, states: &PageStates<'_>, cutoffs: Cutoffs) -> bool {
    expired_states(event, states, cutoffs).is_some()
}

fn expired_states(event: &EventEntry, states: &PageStates<'_>, cutoffs: Cutoffs) -> Option<States> {
    let cutoff = cutoffs.expiry_cutoff(event)?;
    let has_ended = |entry: &StateEntry| match entry.state {
        DeliveryState::Delivered | DeliveryState::Cancelled | DeliveryState::Purged => entry.at < cutoff,
        DeliveryState::Pending | DeliveryState::Dead(_) => false,
    };
    Some(states.deliveries(event))
        .filter(|all| all.values().all(|state| state.as_ref().is_some_and(has_ended)))
}

/// The horizon that precedes a step of [`forget`] with the same cutoffs and pages.
#[must_use]
pub fn horizon(rows: &dyn Rows, cutoffs: Cutoffs, page: u64, pages_max: usize) -> Horizon {
    let mut horizon = Horizon::default();
    let mut next = pages::page_at_or_above(rows, page);
    let mut examined = 0;
    for _ in 0..pages_max {
        let Some(page) = next.filter(|_| examined < limits::SCAN_ENTRIES_MAX) else { break };
        let events = pages::events(rows, page);
        if cutoffs.are_before(&events) {
            break;
        }
        let states = PageStates::new(rows, page);
        for event in events.iter().filter(|event| is_expired(event, &states, cutoffs)) {
            let last = if event.stream.is_some() { &mut horizon.stream_events } else { &mut horizon.events };
            *last = event.position;
        }
        examined += states.examined();
        next = pages::page_at_or_above(rows, page + 1);
    }
    horizon
}

/// Deletes expired events on up to `pages_max` pages from `page` on. Adds the events that stay to
/// these blocks of the checkpoint with this number. A step ends after a page with which it has
/// examined [`limits::SCAN_ENTRIES_MAX`] deliveries.
pub fn forget(
    rows: &mut dyn Rows,
    (blocks, checkpoint): (&mut Blocks, u64),
    expiry: Expiry,
    page: u64,
    pages_max: usize,
) -> Forgotten {
    let mut forgotten = Forgotten::default();
    let mut next = pages::page_at_or_above(rows, page);
    let mut examined = 0;
    for _ in 0..pages_max {
        let Some(page) = next.filter(|_| examined < limits::SCAN_ENTRIES_MAX) else { break };
        let events = pages::events(rows, page);
        if expiry.cutoffs.are_before(&events) {
            return forgotten;
        }
        examined += forget_page(rows, (&mut *blocks, checkpoint), expiry, page, events, &mut forgotten);
        next = pages::page_at_or_above(rows, page + 1);
    }
    forgotten.next = next;
    forgotten
}

/// Returns the number of examined deliveries.
fn forget_page(
    rows: &mut dyn Rows,
    (blocks, checkpoint): (&mut Blocks, u64),
    expiry: Expiry,
    page: u64,
    events: Vec<EventEntry>,
    forgotten: &mut Forgotten,
) -> usize {
    let states = PageStates::new(rows, page);
    let (mut expired, mut kept) = (Vec::new(), Vec::new());
    for event in events {
        match expiry.states(&event, &states) {
            Some(deliveries) => {
                let attempts = deliveries.into_values().flatten().flat_map(|entry| entry.attempts);
                forgotten.positions.extend(attempts);
                expired.push(event);
            }
            None => kept.push(event),
        }
    }
    let examined = states.examined();
    if expired.is_empty() {
        return examined;
    }
    let listed = states.into_listed();
    pages::remove_page(rows, page);
    for event in &expired {
        pages::remove_event_rows(rows, event);
    }
    for event in &kept {
        blocks.put_entry(rows, checkpoint, event);
    }
    unlist_page(rows, blocks, page, (&expired, &kept));
    for entry in listed.values() {
        if kept.binary_search_by_key(&entry.delivery.event, |event| event.position).is_ok() {
            states::put(rows, blocks, checkpoint, StatePlace::Page, entry);
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
    examined
}

/// Removes a page from the index of the tenants that had expired events on it, and have none that
/// stays.
fn unlist_page(
    rows: &mut dyn Rows,
    blocks: &mut Blocks,
    page: u64,
    (expired, kept): (&[EventEntry], &[EventEntry]),
) {
    let tenants = |events: &'_ [EventEntry]| -> BTreeSet<Box<str>> {
        events.iter().map(|event| event.tenant.clone()).collect()
    };
    for tenant in tenants(expired).difference(&tenants(kept)) {
        tenant_pages::remove(rows, tenant, page);
    }
    blocks.on_deletion(page);
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
        let states = PageStates::new(rows, page);
        for event in &events {
            let Some(cutoff) = cutoffs.expiry_cutoff(event) else { continue };
            let is_pending = |entry: &Option<StateEntry>| {
                entry.as_ref().is_none_or(|entry| entry.state == DeliveryState::Pending)
            };
            let pending = states.deliveries(event).into_iter().filter(|(_, entry)| is_pending(entry));
            overdue.deliveries.extend(
                pending.map(|(endpoint, _)| DeliveryKey { event: event.position, endpoint }).filter(|key| {
                    let lease = leases::get(rows, *key).map(|lease| lease.until);
                    let due = || pending::detail(rows, *key).map(|detail| detail.due);
                    lease.or_else(due).unwrap_or(event.first_due) < cutoff
                }),
            );
        }
        next = pages::page_at_or_above(rows, page + 1);
    }
    overdue.next = next;
    overdue
}

#[cfg(test)]
mod tests;

//! Read models of lists and single views, from the rows alone.
//!
//! A list step examines a bounded number of entries, so that no reader occupies the state for long.

use std::ops::ControlFlow;

use super::dead::{Letter, LettersOf};
pub use super::filter::{EndpointChoice, Filter};
use super::page_index::PageIndex;
use super::pages::{EventEntry, first_position, page_of};
use super::states::{PageStates, StateEntry, StatePlace, state_of};
use super::{Rows, dead, leases, pages, pending};
use crate::domain::{
    DeadReason, DeliveryKey, DeliveryState, EndpointNumber, HeldLease, LastAttempt, Position, Progress,
    StreamName, Timestamp,
};
use crate::failpoints::{self, Bound};
use crate::limits;

/// Start of a page: all listed items are strictly older. Opaque to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub position: Position,
    /// For lists of deliveries: endpoints below this one follow, of the event at `position`.
    pub endpoint: EndpointNumber,
    /// For dead letters: the event; `position` is the death.
    pub event: Position,
}

impl Cursor {
    /// A cursor for lists that use only the position.
    #[must_use]
    pub fn at(position: Position) -> Self {
        Self { position, endpoint: EndpointNumber(0), event: Position(0) }
    }
}

/// One step of a list: its items, and the start of the next step if there may be more.
#[derive(Clone, Debug)]
pub struct Found<T> {
    pub items: Vec<T>,
    pub next: Option<Cursor>,
}

/// Current facts about a delivery.
#[derive(Clone, Debug, PartialEq)]
pub struct DeliveryFacts {
    pub key: DeliveryKey,
    pub state: DeliveryState,
    pub accepted_at: Timestamp,
    pub tenant: Box<str>,
    pub event_type: Box<str>,
    pub attempts_made: u32,
    /// Oldest first.
    pub attempts: Vec<Position>,
    /// Set if pending.
    pub due: Option<Timestamp>,
    /// Set unless pending.
    pub settled_at: Option<Timestamp>,
    pub last: LastAttempt,
    /// The last lease of a pending message. `due` is then its end.
    pub lease: Option<HeldLease>,
}

fn delivery_facts(
    rows: &dyn Rows,
    event: &EventEntry,
    key: DeliveryKey,
    state: Option<&StateEntry>,
) -> DeliveryFacts {
    let mut facts = DeliveryFacts {
        key,
        state: DeliveryState::Pending,
        accepted_at: event.accepted_at,
        tenant: event.tenant.clone(),
        event_type: event.event_type.clone(),
        attempts_made: 0,
        attempts: Vec::new(),
        due: Some(event.first_due),
        settled_at: None,
        last: LastAttempt::default(),
        lease: None,
    };
    match state.filter(|entry| entry.state != DeliveryState::Pending) {
        Some(entry) => {
            facts.state = entry.state;
            facts.attempts_made = entry.attempts_made;
            facts.attempts.clone_from(&entry.attempts);
            facts.due = None;
            facts.settled_at = Some(entry.at);
            facts.last.clone_from(&entry.last);
        }
        None => {
            if let Some(detail) = pending::detail(rows, key) {
                facts.attempts_made = detail.progress.attempts;
                facts.attempts = detail.attempts;
                facts.due = Some(detail.due);
                facts.last = detail.last;
            }
            if let Some(lease) = leases::get(rows, key) {
                facts.attempts_made = lease.row.progress.attempts;
                facts.attempts.extend(lease.history());
                facts.due = Some(lease.until);
                facts.lease = Some(lease.held());
            }
        }
    }
    facts
}

/// The delivery with this key, if it exists.
pub fn delivery(rows: &dyn Rows, key: DeliveryKey) -> Option<DeliveryFacts> {
    let event = pages::event(rows, key.event)?;
    let (place, is_target) = StatePlace::find(rows, &event, key.endpoint);
    let state = state_of(rows, key, place);
    if state.is_none() && !is_target {
        return None;
    }
    Some(delivery_facts(rows, &event, key, state.as_ref()))
}

/// Whether there is an event at this position.
pub fn has_event(rows: &dyn Rows, position: Position) -> bool {
    pages::event(rows, position).is_some()
}

/// All deliveries of one event, by endpoint.
pub fn deliveries_of(rows: &dyn Rows, position: Position) -> Vec<DeliveryFacts> {
    let Some(event) = pages::event(rows, position) else { return Vec::new() };
    PageStates::new(rows, page_of(position))
        .deliveries(&event)
        .into_iter()
        .map(|(endpoint, state)| {
            delivery_facts(rows, &event, DeliveryKey { event: position, endpoint }, state.as_ref())
        })
        .collect()
}

fn scan_entries() -> usize {
    failpoints::bound(Bound::ScanEntries, limits::SCAN_ENTRIES_MAX)
}

/// Visits the events below `below` that the filter wants, newest first, until `visit` breaks or the
/// entry budget is spent. Only visits the pages that have events of the filter's tenant or stream.
/// All entries of a page and the deliveries that `visit` examines use the budget. Returns the last
/// visited position, or the first one of its page; `None` at the end.
fn walk_events(
    rows: &dyn Rows,
    filter: &Filter,
    below: u64,
    mut visit: impl FnMut(&EventEntry, &PageStates<'_>) -> ControlFlow<()>,
) -> Option<u64> {
    let (mut examined, mut passed) = (0, false);
    let index = PageIndex::new(rows, filter.only_tenant(), filter.stream.as_ref().map(StreamName::as_str));
    let page_below = |below: u64| index.at_or_below(rows, page_of(Position(below.checked_sub(1)?)));
    let mut page = page_below(below);
    while let Some(current) = page.filter(|_| !passed) {
        let states = PageStates::new(rows, current);
        let events = pages::events_where(rows, current, &mut |event| {
            examined += 1;
            passed |= filter.has_passed(event);
            event.position.0 < below && filter.wants_event(event)
        });
        for event in events.iter().rev() {
            let is_done = visit(event, &states).is_break();
            let spent = examined + states.examined() >= scan_entries() && states.examined() > 0;
            if is_done || spent {
                return Some(event.position.0);
            }
        }
        examined += states.examined();
        if examined >= scan_entries() && !passed {
            return Some(first_position(current));
        }
        page = page_below(first_position(current));
    }
    None
}

/// Lowers `below` to skip events accepted from `until` on. Acceptance times follow positions.
fn start_below(rows: &dyn Rows, below: u64, until: Option<Timestamp>) -> u64 {
    let Some(until) = until else { return below };
    // Pages below `low` begin before `until`, those from `high` on do not.
    let (mut low, mut high) = (0, page_of(Position(below)).saturating_add(1));
    while low < high {
        let middle = low + (high - low) / 2;
        let page = pages::page_at_or_above(rows, middle).filter(|page| *page < high);
        let first = page.and_then(|page| pages::first_accepted_at(rows, page));
        match (page, first) {
            (Some(page), Some(first)) if first < until => low = page + 1,
            _ => high = middle,
        }
    }
    below.min(first_position(low))
}

/// Maps the wanted events with `take`, newest first. Filters: tenant, events_of, event_type,
/// stream, since, until.
fn list_events<T>(
    rows: &dyn Rows,
    filter: &Filter,
    after: Option<Cursor>,
    limit: usize,
    mut take: impl FnMut(&EventEntry, &PageStates<'_>) -> Option<T>,
) -> Found<T> {
    let mut items = Vec::new();
    let below = start_below(rows, after.map_or(u64::MAX, |cursor| cursor.position.0), filter.until);
    let stopped = walk_events(rows, filter, below, |event, states| {
        items.extend(take(event, states).map(|item| (event.position, item)));
        if items.len() > limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let full = items.len() > limit;
    items.truncate(limit);
    let next = if full { items.last().map(|(position, _)| *position) } else { stopped.map(Position) };
    Found { items: items.into_iter().map(|(_, item)| item).collect(), next: next.map(Cursor::at) }
}

/// Positions of events, newest first. `status` computes the status word from the delivery states.
/// Filters: tenant, events_of, event_type, stream, event_status, since, until.
pub fn events(
    rows: &dyn Rows,
    filter: &Filter,
    after: Option<Cursor>,
    limit: usize,
    status: fn(&mut dyn Iterator<Item = DeliveryState>) -> &'static str,
) -> Found<Position> {
    list_events(rows, filter, after, limit, |event, states| {
        let word = || {
            let deliveries = states.deliveries(event);
            let state = |entry: &Option<StateEntry>| {
                entry.as_ref().map_or(DeliveryState::Pending, |entry| entry.state)
            };
            let own = deliveries.iter().filter(|(endpoint, _)| !filter.shared.contains(*endpoint));
            status(&mut own.map(|(_, entry)| entry).map(state))
        };
        filter.event_status.is_none_or(|wanted| wanted == word()).then_some(event.position)
    })
}

/// A past event, with its delivery state at one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    pub position: Position,
    pub event_type: Box<str>,
    /// `None` if the event has no delivery for the endpoint.
    pub state: Option<DeliveryState>,
    /// Its content was erased.
    pub is_erased: bool,
}

/// Events with their state at one endpoint, newest first. Filters: tenant, events_of, event_type,
/// stream, since, until.
pub fn past(
    rows: &dyn Rows,
    filter: &Filter,
    endpoint: EndpointNumber,
    after: Option<Cursor>,
    limit: usize,
) -> Found<Past> {
    list_events(rows, filter, after, limit, |event, states| Some(past_event(event, states, endpoint)))
}

/// These events with their state at one endpoint, in the same order. `events`: newest first.
/// Removed events are left out.
pub fn past_of(rows: &dyn Rows, endpoint: EndpointNumber, events: &[Position]) -> Vec<Past> {
    let mut found = Vec::with_capacity(events.len());
    for of_page in events.chunk_by(|one, next| page_of(*one) == page_of(*next)) {
        let page = page_of(of_page[0]);
        let states = PageStates::new(rows, page);
        let is_wanted = |position: Position| of_page.binary_search_by(|one| position.cmp(one)).is_ok();
        let entries = pages::events_where(rows, page, &mut |event| is_wanted(event.position));
        found.extend(entries.iter().rev().map(|event| past_event(event, &states, endpoint)));
    }
    found
}

fn past_event(event: &EventEntry, states: &PageStates<'_>, endpoint: EndpointNumber) -> Past {
    let state = states.delivery(event, endpoint);
    Past {
        position: event.position,
        event_type: event.event_type.clone(),
        state: state.map(|entry| entry.map_or(DeliveryState::Pending, |entry| entry.state)),
        is_erased: event.erased_at.is_some(),
    }
}

/// Deliveries by descending event and endpoint. Filters: tenant, events_of, endpoint, endpoints,
/// event, positions, event_type, types, stream, delivery_state, last_attempt, since, until.
pub fn deliveries(
    rows: &dyn Rows,
    filter: &Filter,
    after: Option<Cursor>,
    limit: usize,
) -> Found<DeliveryFacts> {
    let mut items: Vec<DeliveryFacts> = Vec::new();
    let mut below = after.map_or(u64::MAX, |cursor| cursor.position.0.saturating_add(1));
    if let Some(event) = filter.event {
        below = below.min(event.0 + 1);
    }
    if let Some((_, last)) = filter.positions {
        below = below.min(last.0.saturating_add(1));
    }
    let below = start_below(rows, below, filter.until);
    let stopped = walk_events(rows, filter, below, |event, states| {
        let deliveries = match filter.endpoint {
            Some(wanted) => states.delivery(event, wanted).map(|state| (wanted, state)).into_iter().collect(),
            None => states.deliveries(event),
        };
        for (endpoint, state) in deliveries.into_iter().rev() {
            if after.is_some_and(|at| at.position == event.position && endpoint >= at.endpoint) {
                continue;
            }
            let key = DeliveryKey { event: event.position, endpoint };
            let word = state.as_ref().map_or(DeliveryState::Pending, |entry| entry.state).as_str();
            if filter.wants_endpoint(endpoint) && filter.delivery_state.is_none_or(|wanted| wanted == word) {
                let facts = delivery_facts(rows, event, key, state.as_ref());
                let is_wanted = filter.last_attempt.as_ref().is_none_or(|wanted| wanted.wants(&facts.last));
                items.extend(is_wanted.then_some(facts));
            }
            if items.len() > limit {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    });
    let full = items.len() > limit;
    items.truncate(limit);
    let next = if full {
        items.last().map(|facts| Cursor { endpoint: facts.key.endpoint, ..Cursor::at(facts.key.event) })
    } else {
        let first = filter.event.or_else(|| filter.positions.map(|(first, _)| first));
        let rest = stopped.filter(|at| first.is_none_or(|first| *at > first.0));
        // All deliveries of the event at the cursor follow: no endpoint has this number.
        rest.and_then(|at| at.checked_sub(1))
            .map(|at| Cursor { endpoint: EndpointNumber(u32::MAX), ..Cursor::at(Position(at)) })
    };
    Found { items, next }
}

/// Entries of the budget that the result of a dead letter's last attempt uses: it is on the page of
/// the event.
const RESULT_ENTRIES: usize = 16;

/// Entries that a look at a dead letter by endpoint or owner uses: its index, and the letter.
const INDEXED_ENTRIES: usize = 2;

/// The fewest letters that have all wanted ones.
fn letters_of(filter: &Filter) -> LettersOf<'_> {
    match (filter.only_endpoint(), &filter.tenant) {
        (Some(endpoint), _) => LettersOf::Endpoint(endpoint),
        (None, Some(owner)) => LettersOf::Owner(owner.as_str()),
        (None, None) => LettersOf::All,
    }
}

/// Dead letters, newest death first. Filters: tenant, endpoint, endpoints, positions, event_type,
/// types, reason, last_attempt, since, until.
pub fn dead_letters(rows: &dyn Rows, filter: &Filter, after: Option<Cursor>, limit: usize) -> Found<Letter> {
    let mut items = Vec::new();
    let mut examined = 0;
    let mut next = None;
    let before =
        after.map(|cursor| (cursor.position, DeliveryKey { event: cursor.event, endpoint: cursor.endpoint }));
    let mut complete = true;
    let of = letters_of(filter);
    dead::newest_first(rows, of, before, &mut |letter| {
        if items.len() == limit || examined >= scan_entries() {
            complete = false;
            return ControlFlow::Break(());
        }
        examined += if of == LettersOf::All { 1 } else { INDEXED_ENTRIES };
        let DeliveryKey { event, endpoint } = letter.delivery;
        next = Some(Cursor { position: letter.death, endpoint, event });
        if !filter.wants_letter(&letter) {
            return ControlFlow::Continue(());
        }
        if let Some(wanted) = &filter.last_attempt {
            examined += RESULT_ENTRIES;
            if !delivery(rows, letter.delivery).is_some_and(|facts| wanted.wants(&facts.last)) {
                return ControlFlow::Continue(());
            }
        }
        items.push(letter);
        ControlFlow::Continue(())
    });
    Found { items, next: next.filter(|_| !complete) }
}

/// The dead letter of a delivery.
pub fn dead_letter(rows: &dyn Rows, key: DeliveryKey) -> Option<(DeliveryFacts, DeadReason, Timestamp)> {
    let facts = delivery(rows, key)?;
    match facts.state {
        DeliveryState::Dead(reason) => {
            let at = facts.settled_at?;
            Some((facts, reason, at))
        }
        DeliveryState::Pending
        | DeliveryState::Delivered
        | DeliveryState::Cancelled
        | DeliveryState::Purged => None,
    }
}

/// Acceptance time of the endpoint's first sendable delivery in lane order, or of its first leased
/// message if that is earlier.
pub fn oldest_pending(rows: &dyn Rows, endpoint: EndpointNumber) -> Option<Timestamp> {
    let (first, _) = pending::refill(rows, endpoint, None, 1);
    let accepted = |event, progress: &Progress| {
        pages::event(rows, event).map_or(progress.series_started, |event| event.accepted_at)
    };
    let sendable = first.first().map(|(key, progress)| accepted(key.event, progress));
    let leased = leases::of_queue(rows, endpoint, Position(0), 1);
    let leased = leased.first().map(|(event, lease)| accepted(*event, &lease.progress));
    sendable.into_iter().chain(leased).min()
}

#[cfg(test)]
mod tests;

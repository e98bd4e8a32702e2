//! What the journal means, told a second time and as simply as possible.
//!
//! Owns a plain map of everything that was ever committed. It shares no code with the fold, the rows or the lanes, and is
//! what all of them are compared with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::domain::{
    DeliveryKey, DeliveryState, Endpoint, EndpointNumber, EndpointStatus, Event, EventId, Next, Ordering,
    Position, Record, Tenant, Timestamp,
};
use crate::projections::{counters, pending, reads};
use crate::rules::matching::pattern_matches;
use crate::store::state::State;

#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) state: DeliveryState,
    pub(super) due: Timestamp,
    pub(super) attempts: u32,
    /// An operator or a deletion has had a hand in it: lanes may lag behind that.
    pub(super) touched: bool,
    /// The queue that it stands in.
    pub(super) order: Option<String>,
    /// A lane may send it.
    pub(super) sendable: bool,
}

#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) endpoint: Arc<Endpoint>,
    /// What it was before its last changes, when one came right after the other.
    pub(super) before: Vec<Arc<Endpoint>>,
    pub(super) changed_at: Timestamp,
    pub(super) deleted: bool,
}

/// How long a lane may lag behind a change of its endpoint.
pub(super) const LAG_MAX: Duration = Duration::from_secs(3);

type Queue = (EndpointNumber, String);

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) records: Vec<(Position, Record)>,
    pub(super) events: BTreeMap<Position, Arc<Event>>,
    pub(super) deliveries: BTreeMap<DeliveryKey, Delivery>,
    pub(super) endpoints: BTreeMap<EndpointNumber, Subscriber>,
    ids: BTreeMap<(Tenant, EventId), Position>,
    scopes: BTreeMap<[u8; 16], (Position, Option<Timestamp>)>,
    pub(super) streams: BTreeMap<(String, String), u64>,
    queues: BTreeMap<Queue, BTreeSet<Position>>,
    /// How long events are kept; the latest time that retention may have seen.
    pub(super) keep: Option<Duration>,
    pub(super) latest: Timestamp,
}

impl Model {
    /// Whether retention may have taken an event by now.
    pub(super) fn may_be_gone(&self, position: Position) -> bool {
        let (Some(keep), Some(event)) = (self.keep, self.events.get(&position)) else { return false };
        let from = DeliveryKey { event: position, endpoint: EndpointNumber(0) };
        let to = DeliveryKey { event: position.next(), endpoint: EndpointNumber(0) };
        let over = |state| matches!(state, DeliveryState::Delivered | DeliveryState::Cancelled);
        event.accepted_at.plus(keep) <= self.latest
            && self.deliveries.range(from..to).all(|(_, known)| over(known.state))
    }

    /// Whether a record may have left the journal.
    pub(super) fn may_have_left(&self, position: Position, record: &Record) -> bool {
        let all = |deliveries: &[DeliveryKey]| deliveries.iter().all(|key| self.may_be_gone(key.event));
        match record {
            Record::EventAccepted(_) => self.may_be_gone(position),
            Record::AttemptFinished { delivery, .. } => self.may_be_gone(delivery.event),
            Record::DeliveriesRevived { deliveries, .. }
            | Record::DeliveriesCancelled { deliveries, .. }
            | Record::DeliveriesDied { deliveries, .. }
            | Record::DeadLettersPurged { deliveries, .. } => all(deliveries),
            Record::RequestAnswered { .. } => self.keep.is_some(),
            Record::EndpointPut(_)
            | Record::EndpointDeleted { .. }
            | Record::KeyPut(_)
            | Record::KeyDeleted { .. } => false,
        }
    }

    pub(super) fn last(&self) -> Position {
        self.records.last().map_or(Position(0), |(position, _)| *position)
    }

    /// # Errors
    /// When the record breaks a promise.
    pub(super) fn apply(
        &mut self,
        position: Position,
        record: &Record,
        now: Timestamp,
    ) -> Result<(), String> {
        if position != self.last().next() {
            return Err(format!("position {position} was committed after {}", self.last()));
        }
        self.latest = self.latest.max(now);
        self.records.push((position, record.clone()));
        match record {
            Record::EventAccepted(event) => self.accept(position, event)?,
            Record::AttemptFinished { delivery, due, attempt } => {
                let pending = |known: &&mut Delivery| {
                    known.state == DeliveryState::Pending && known.due == *due && known.sendable
                };
                if let Some(known) = self.deliveries.get_mut(delivery).filter(pending) {
                    known.attempts += 1;
                    match attempt.next {
                        Next::RetryAt(at) => known.due = at,
                        Next::Delivered => self.settle(*delivery, DeliveryState::Delivered),
                        Next::Dead(reason) => self.settle(*delivery, DeliveryState::Dead(reason)),
                    }
                }
            }
            Record::EndpointPut(endpoint) => self.put_endpoint(endpoint, now)?,
            Record::EndpointDeleted { endpoint, .. } => {
                let known = self.endpoints.get_mut(endpoint).filter(|known| !known.deleted);
                let known = known.ok_or_else(|| format!("{endpoint:?} was deleted and is not there"))?;
                known.deleted = true;
                known.changed_at = now;
            }
            Record::DeliveriesRevived { deliveries, at, .. } => {
                for delivery in deliveries {
                    self.revive(*delivery, *at);
                }
            }
            Record::DeliveriesCancelled { deliveries, .. } => {
                for delivery in deliveries {
                    self.give_up(*delivery, DeliveryState::Cancelled);
                }
            }
            Record::DeliveriesDied { deliveries, reason, .. } => {
                for delivery in deliveries {
                    self.give_up(*delivery, DeliveryState::Dead(*reason));
                }
            }
            Record::DeadLettersPurged { deliveries, .. } => {
                for delivery in deliveries {
                    if let Some(known) = self.deliveries.get_mut(delivery)
                        && matches!(known.state, DeliveryState::Dead(_))
                    {
                        known.state = DeliveryState::Cancelled;
                        known.touched = true;
                    }
                }
            }
            Record::KeyPut(_) | Record::KeyDeleted { .. } | Record::RequestAnswered { .. } => {}
        }
        Ok(())
    }

    fn accept(&mut self, position: Position, event: &Arc<Event>) -> Result<(), String> {
        let name = (event.tenant.clone(), event.id.clone());
        if let Some(before) = self.ids.insert(name, position)
            && !self.may_be_gone(before)
        {
            return Err(format!("{} is at {before} and at {position}", event.id));
        }
        if self.events.last_key_value().is_some_and(|(_, last)| last.accepted_at > event.accepted_at) {
            return Err(format!("{} was accepted before the event before it", event.id));
        }
        for remembered in &event.idempotency {
            let known = self.scopes.insert(remembered.scope, (position, remembered.expires_at));
            if let Some((before, expires_at)) = known
                && expires_at.is_none_or(|at| at > event.accepted_at)
                && !(expires_at.is_none() && self.may_be_gone(before))
            {
                return Err(format!("one idempotency key made the events at {before} and {position}"));
            }
        }
        if let Some((stream, version)) = &event.stream {
            let head = self.streams.entry((event.tenant.to_string(), stream.to_string())).or_insert(0);
            if *version != *head + 1 {
                return Err(format!("stream {stream} goes from version {head} to {version}"));
            }
            *head = *version;
        }
        let wants = |known: &&Subscriber| {
            let types = &known.endpoint.event_types;
            !known.deleted
                && known.endpoint.tenant == event.tenant
                && (types.is_empty()
                    || types.iter().any(|pattern| pattern_matches(pattern, &event.event_type)))
        };
        let wanted: Vec<_> =
            self.endpoints.values().filter(wants).map(|known| known.endpoint.number).collect();
        if wanted != event.targets {
            return Err(format!("{} goes to {:?}, not to {wanted:?}", event.id, event.targets));
        }
        self.events.insert(position, event.clone());
        for endpoint in wanted {
            let key = DeliveryKey { event: position, endpoint };
            self.add(key, event.first_due(), 0, false);
        }
        Ok(())
    }

    fn put_endpoint(&mut self, endpoint: &Arc<Endpoint>, now: Timestamp) -> Result<(), String> {
        match self.endpoints.get_mut(&endpoint.number) {
            Some(known) if known.deleted => return Err(format!("{} came back", endpoint.id)),
            Some(known) => {
                if now.since(known.changed_at) > LAG_MAX {
                    known.before.clear();
                }
                known.before.push(std::mem::replace(&mut known.endpoint, endpoint.clone()));
                known.changed_at = now;
            }
            None => {
                let (endpoint, before) = (endpoint.clone(), Vec::new());
                let known = Subscriber { endpoint, before, changed_at: now, deleted: false };
                self.endpoints.insert(known.endpoint.number, known);
            }
        }
        Ok(())
    }

    /// A delivery becomes pending.
    fn add(&mut self, key: DeliveryKey, due: Timestamp, attempts: u32, touched: bool) {
        let event = &self.events[&key.event];
        let order = match self.endpoints.get(&key.endpoint).map(|known| known.endpoint.ordering) {
            Some(Ordering::Endpoint) => Some(String::new()),
            Some(Ordering::Key) => Some(match (&event.ordering_key, &event.stream) {
                (Some(key), _) => key.to_string(),
                (None, Some((stream, _))) => stream.to_string(),
                (None, None) => event.id.to_string(),
            }),
            Some(Ordering::None) | None => None,
        };
        let sendable = order.as_ref().is_none_or(|order| {
            let queue = self.queues.entry((key.endpoint, order.clone())).or_default();
            queue.insert(key.event);
            queue.len() == 1
        });
        let state = DeliveryState::Pending;
        self.deliveries.insert(key, Delivery { state, due, attempts, touched, order, sendable });
    }

    /// A pending delivery ends; the next of its queue is let through.
    fn settle(&mut self, key: DeliveryKey, state: DeliveryState) {
        let Some(known) = self.deliveries.get_mut(&key) else { return };
        let (order, sendable) = (known.order.take(), known.sendable);
        (known.state, known.sendable) = (state, false);
        let Some(order) = order else { return };
        let queue = self.queues.entry((key.endpoint, order)).or_default();
        queue.remove(&key.event);
        if let Some(event) = queue.first().copied().filter(|_| sendable)
            && let Some(head) = self.deliveries.get_mut(&DeliveryKey { event, ..key })
        {
            head.sendable = true;
        }
    }

    fn give_up(&mut self, key: DeliveryKey, state: DeliveryState) {
        if let Some(known) = self.deliveries.get_mut(&key)
            && known.state == DeliveryState::Pending
        {
            known.touched = true;
            self.settle(key, state);
        }
    }

    fn revive(&mut self, key: DeliveryKey, at: Timestamp) {
        match self.deliveries.get_mut(&key) {
            Some(known) if known.state == DeliveryState::Pending => {
                known.touched = true;
                if known.sendable {
                    known.due = at;
                }
            }
            Some(known) => {
                let attempts = known.attempts;
                self.add(key, at, attempts, true);
            }
            None if self.events.contains_key(&key.event) => self.add(key, at, 0, true),
            None => {}
        }
    }

    pub(super) fn pending(&self) -> impl Iterator<Item = (&DeliveryKey, &Delivery)> {
        self.deliveries.iter().filter(|(_, known)| known.state == DeliveryState::Pending)
    }

    pub(super) fn subscriber(&self, endpoint: EndpointNumber) -> Option<&Subscriber> {
        self.endpoints.get(&endpoint)
    }

    pub(super) fn number_of(&self, id: &str) -> Option<EndpointNumber> {
        self.endpoints
            .values()
            .map(|known| &known.endpoint)
            .find(|known| known.id.as_str() == id)
            .map(|known| known.number)
    }

    pub(super) fn event_by_id(&self, tenant: &Tenant, id: &EventId) -> Option<Position> {
        self.ids.get(&(tenant.clone(), id.clone())).copied()
    }

    /// Every row that a state shows, against this.
    ///
    /// # Errors
    /// What differs.
    pub(super) fn compare(&self, state: &State) -> Result<(), String> {
        if state.applied() != self.last() {
            return Err(format!("the state stands at {}, the journal at {}", state.applied(), self.last()));
        }
        let rows = state.rows();
        for (key, known) in &self.deliveries {
            let Some(facts) = reads::delivery(rows, *key) else {
                if self.may_be_gone(key.event) {
                    continue;
                }
                return Err(format!("{key:?} is in no state"));
            };
            if facts.state != known.state || facts.attempts_made != known.attempts {
                return Err(format!(
                    "{key:?} is {:?} after {} attempts, not {known:?}",
                    facts.state, facts.attempts_made
                ));
            }
        }
        let dead = |known: &&Delivery| matches!(known.state, DeliveryState::Dead(_));
        let counted = state.totals();
        let events = if self.keep.is_some() { counted.events as usize } else { self.events.len() };
        let totals = (self.pending().count(), self.deliveries.values().filter(dead).count(), events);
        if totals != (counted.pending as usize, counted.dead as usize, counted.events as usize) {
            return Err(format!("totals are {counted:?}, not {totals:?}"));
        }
        for endpoint in self.endpoints.keys() {
            self.compare_lane(state, *endpoint)?;
        }
        Ok(())
    }

    fn compare_lane(&self, state: &State, endpoint: EndpointNumber) -> Result<(), String> {
        let rows = state.rows();
        let own: Vec<_> = self.pending().filter(|(key, _)| key.endpoint == endpoint).collect();
        let mut sendable: Vec<_> = own
            .iter()
            .filter(|(_, known)| known.sendable)
            .map(|(key, known)| (known.due, key.event, known.attempts))
            .collect();
        sendable.sort_unstable();
        let (entries, _) = pending::refill(rows, endpoint, None, usize::MAX);
        let found: Vec<_> =
            entries.iter().map(|(key, progress)| (key.due, key.event, progress.attempts)).collect();
        if found != sendable {
            return Err(format!("the lane of {endpoint:?} holds {found:?}, not {sendable:?}"));
        }
        let counted = counters::lane(rows, endpoint);
        let waiting = own.len() - sendable.len();
        if (counted.pending as usize, counted.waiting as usize) != (own.len(), waiting) {
            return Err(format!("{endpoint:?} counts {counted:?}, not {} and {waiting}", own.len()));
        }
        Ok(())
    }

    /// What an endpoint that nobody has touched for a while must be doing.
    pub(super) fn is_closed_since(&self, endpoint: EndpointNumber) -> Option<Timestamp> {
        let known = self.endpoints.get(&endpoint)?;
        let closed = known.deleted || known.endpoint.status != EndpointStatus::Active;
        closed.then_some(known.changed_at)
    }
}

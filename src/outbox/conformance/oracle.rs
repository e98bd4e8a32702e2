//! The oracle: a second and simpler interpretation of the journal.
//!
//! Owns plain maps of everything that was ever committed. It shares no code with the fold, the rows
//! or the lists. It computes each answer from all its data at each call. An implementation is
//! correct when its answers equal the oracle's.

mod answers;
mod erased;
mod filters;
pub(crate) mod leases;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use erased::{erase, erase_attempt};

use crate::domain::{
    Attempt, Consumer, ConsumerKey, ConsumerPlace, DeliveryKey, DeliveryState, DueKey, Endpoint,
    EndpointNumber, EndpointStatus, Event, EventType, EventVersion, Horizon, KeyId, LastAttempt, Next,
    Ordering, Position, Progress, Record, Reservation, StreamName, Tenant, Timestamp, Trigger,
};
use crate::limits;
use crate::outbox::conformance::consumers::{self, ConsumerModel};
use crate::outbox::conformance::jobs::JobModel;
use crate::outbox::read_model::{ConsumerReads, DeadLetter, ReadModel};
use crate::projections::counters::Lane;
use crate::projections::dead::Letter;
use crate::projections::failing::Failing;
use crate::projections::feed::FeedStep;
use crate::projections::fold::{RecordedHorizon, Totals};
use crate::projections::idempotency::Known;
use crate::projections::lag::Lag;
use crate::projections::pending::{DueBehind, Misplaced, OrderId, Spot};
use crate::projections::reads::{Cursor, DeliveryFacts, Filter, Found, Past};
use crate::projections::retention::{Cutoffs, Overdue};
use crate::projections::stats::{Hour, LATENCY_CLASSES};
use crate::projections::streams::Head;
use crate::projections::type_usage::TypeUsage;
use crate::projections::usage::Usage;
use crate::rules::event_status::event_status;
use crate::rules::feed::{FeedFilter, FeedStreams};
use crate::rules::matching::want;

/// The first of the longest holds.
fn longest(holds: &[(Timestamp, Position)]) -> Option<(Timestamp, Position)> {
    let until = holds.iter().map(|(until, _)| *until).max()?;
    holds.iter().find(|hold| hold.0 == until).copied()
}

/// The host of a URL as tests write them, without a port.
fn host_of(url: &str) -> String {
    url.split('/').nth(2).unwrap_or_default().to_owned()
}

const HOUR: Duration = Duration::from_secs(3_600);

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Delivery {
    pub(crate) state: DeliveryState,
    /// Time at which it is or was last due.
    pub(crate) due: Timestamp,
    pub(crate) progress: Progress,
    pub(crate) attempts: Vec<Position>,
    /// The last attempt.
    pub(crate) last: Option<Arc<Attempt>>,
    /// Time of its end, and the record that ended it.
    pub(crate) settled: Option<(Timestamp, Position)>,
    /// Its ordering queue.
    pub(crate) queue: Option<String>,
    /// Pending, and a lane may send it.
    pub(crate) sendable: bool,
    /// Pending, and a worker has taken it.
    pub(crate) lease: Option<leases::Lease>,
}

/// Results of the attempts at an endpoint.
#[derive(Clone, Debug, Default)]
struct Health {
    /// Failed attempts since the last success or the last change of the endpoint, in record order.
    failures: Vec<Arc<Attempt>>,
    last_success: Position,
    is_open: bool,
    /// Position of the record that last activated the endpoint, or moved it to another host
    /// while it was active.
    opened: Position,
    /// Host of the receiver.
    host: Option<String>,
    /// Requested holds since then, each with its record.
    holds: Vec<(Timestamp, Position)>,
    /// The endpoint's last change: when, and to what status.
    changed: Option<(Timestamp, EndpointStatus)>,
}

/// The oracle. See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) last: Position,
    pub(crate) events: BTreeMap<Position, Arc<Event>>,
    pub(crate) deliveries: BTreeMap<DeliveryKey, Delivery>,
    /// Numbers of queues, also of deleted ones.
    pub(crate) queues: BTreeSet<EndpointNumber>,
    /// Of live endpoints.
    orderings: BTreeMap<EndpointNumber, Ordering>,
    health: BTreeMap<EndpointNumber, Health>,
    tries: Vec<leases::Try>,
    /// Endpoint and time of each success.
    successes: Vec<(EndpointNumber, Timestamp)>,
    /// End times of the attempts that requested a hold, by position.
    finished_at: BTreeMap<Position, Timestamp>,
    /// Deliveries that ended without success.
    ends: Vec<(EndpointNumber, Timestamp, DeliveryState)>,
    reservations: BTreeMap<EndpointNumber, Vec<(Reservation, Position)>>,
    /// Of all endpoints, also of deleted ones.
    tenants: BTreeMap<EndpointNumber, Tenant>,
    /// Live keys.
    keys: BTreeMap<KeyId, Option<Tenant>>,
    pub(crate) consumers: ConsumerModel,
    pub(crate) jobs: JobModel,
    /// Registered event types, with the record that registered them.
    pub(crate) types: BTreeMap<EventType, Position>,
    /// The last use of each key, with its record.
    pub(crate) key_uses: BTreeMap<KeyId, (Timestamp, Position)>,
    pub(crate) requests: BTreeMap<[u8; 16], Known>,
    pub(crate) streams: BTreeMap<(Tenant, StreamName), Head>,
    /// Deleted events.
    pub(crate) forgotten: BTreeSet<Position>,
    pub(crate) horizon: RecordedHorizon,
    /// Erased events whose content has left the files.
    pub(crate) left_disk: BTreeSet<Position>,
    /// Start of the retained statistics.
    pub(crate) hours_from: Timestamp,
}

impl Oracle {
    /// Applies the smaller records. The events of a type count from its first registration on.
    fn apply_small(&mut self, position: Position, record: &Record) {
        match record {
            Record::HorizonMoved { horizon, .. } => {
                self.horizon = RecordedHorizon { horizon: *horizon, record: position };
            }
            Record::KeyPut(key) => drop(self.keys.insert(key.id.clone(), key.tenant.clone())),
            Record::KeyDeleted { id, .. } => {
                self.keys.remove(id);
                self.key_uses.remove(id);
            }
            Record::KeyUsed { id, at } => drop(self.key_uses.insert(id.clone(), (*at, position))),
            Record::EventErased { event, at, .. } => {
                if let Some(known) = self.events.get_mut(event).filter(|known| known.erased_at.is_none()) {
                    *known = Arc::new(erase(known, *at));
                }
            }
            Record::TypePut(definition) => {
                self.types.entry(definition.name.clone()).or_insert(position);
            }
            Record::TypeDeleted { name, .. } => drop(self.types.remove(name)),
            _ => self.apply_leases(position, record),
        }
    }

    fn put_endpoint(&mut self, position: Position, endpoint: &Endpoint) {
        self.queues.extend(endpoint.queue().map(|_| endpoint.number));
        self.orderings.insert(endpoint.number, endpoint.ordering);
        self.tenants.insert(endpoint.number, endpoint.tenant.clone());
        let health = self.health.entry(endpoint.number).or_default();
        let agreed = endpoint.handshake.as_ref().is_none_or(|known| known.consent.is_some());
        let host = host_of(&endpoint.url);
        let is_active = endpoint.status == EndpointStatus::Active;
        // Sealing secrets again is not a change.
        let changed = Some((endpoint.updated_at, endpoint.status));
        if std::mem::replace(&mut health.changed, changed) != changed && is_active {
            health.failures.clear();
        }
        let moved = health.host.replace(host.clone()).is_some_and(|before| before != host);
        if is_active && agreed && (moved || !health.is_open) {
            (health.opened, health.holds) = (position, Vec::new());
        }
        health.is_open = is_active && agreed;
    }

    /// Applies the next record.
    pub(crate) fn apply(&mut self, position: Position, record: &Record) {
        self.last = position;
        match record {
            Record::EventAccepted(event) => self.accept(position, event),
            Record::AttemptFinished { delivery, due, attempt } => {
                self.finish(position, *delivery, *due, attempt)
            }
            Record::EndpointPut(endpoint) => self.put_endpoint(position, endpoint),
            Record::EndpointDeleted { endpoint, .. } => {
                self.orderings.remove(endpoint);
                self.reservations.remove(endpoint);
            }
            Record::ConsumerPut(_) | Record::ConsumerMoved { .. } | Record::ConsumerDeleted { .. } => {
                self.consumers.apply(position, record);
            }
            Record::MessagesLeased { .. }
            | Record::LeasesEnded { .. }
            | Record::LeasesExtended { .. }
            | Record::HorizonMoved { .. }
            | Record::TenantPut(_)
            | Record::TenantDeleted { .. }
            | Record::EventErased { .. }
            | Record::KeyPut(_)
            | Record::KeyDeleted { .. }
            | Record::KeyUsed { .. }
            | Record::SourcePut(_)
            | Record::SourceDeleted { .. }
            | Record::TypePut(_)
            | Record::TypeDeleted { .. } => self.apply_small(position, record),
            Record::JobPut(_) | Record::JobMoved { .. } | Record::Audited(_) => {
                self.jobs.apply(position, record)
            }
            Record::DeliveriesRevived { deliveries, trigger, at } => {
                deliveries.iter().for_each(|key| self.revive(*key, *trigger, *at));
            }
            Record::DeliveriesCancelled { deliveries, at } => {
                deliveries.iter().for_each(|key| {
                    self.settle_pending(*key, DeliveryState::Cancelled, *at, position);
                });
            }
            Record::DeliveriesDied { deliveries, reason, at } => {
                deliveries.iter().for_each(|key| {
                    self.settle_pending(*key, DeliveryState::Dead(*reason), *at, position);
                });
            }
            Record::DeadLettersPurged { deliveries, at } => {
                for key in deliveries {
                    if let Some(known) = self.deliveries.get_mut(key)
                        && matches!(known.state, DeliveryState::Dead(_))
                    {
                        known.state = DeliveryState::Purged;
                        known.settled = Some((*at, position));
                    }
                }
            }
            Record::DeliveriesReordered { deliveries, .. } => {
                deliveries.iter().for_each(|key| self.reorder(*key));
            }
            Record::RequestAnswered { idempotency, .. } | Record::EventRejected { idempotency, .. } => {
                self.remember(position, idempotency);
            }
            Record::RateReserved { endpoint, reservation } => {
                if self.orderings.contains_key(endpoint) {
                    self.reservations.entry(*endpoint).or_default().push((*reservation, position));
                }
            }
        }
    }

    /// The record as reads show it.
    pub(crate) fn without_content(&self, position: Position, record: &Record) -> Record {
        let erased = |event: &Position| self.events.get(event).filter(|known| known.erased_at.is_some());
        match record {
            Record::EventAccepted(event) => Record::EventAccepted(erased(&position).unwrap_or(event).clone()),
            Record::AttemptFinished { delivery, due, attempt } if erased(&delivery.event).is_some() => {
                let (delivery, due, attempt) = (*delivery, *due, Arc::new(erase_attempt(attempt)));
                Record::AttemptFinished { delivery, due, attempt }
            }
            Record::LeasesEnded { queue, ends, at, reason: Some(_) }
                if ends.first().is_some_and(|ended| erased(&ended.key.event).is_some()) =>
            {
                Record::LeasesEnded { queue: *queue, ends: ends.clone(), at: *at, reason: None }
            }
            other => other.clone(),
        }
    }

    fn accept(&mut self, position: Position, event: &Arc<Event>) {
        for idempotency in &event.idempotency {
            self.remember(position, idempotency);
        }
        if let Some((stream, version)) = &event.stream {
            let at = event.accepted_at;
            let first =
                Head { version: *version, first_version: 1, first_at: at, last_at: at, last: position };
            let head = self.streams.entry((event.tenant.clone(), stream.clone())).or_insert(first);
            (head.version, head.last_at, head.last) = (*version, at, position);
        }
        self.events.insert(position, event.clone());
        let due = event.first_due();
        let progress = Progress {
            attempts: 0,
            attempts_in_series: 0,
            series_started: due,
            first_attempt: None,
            trigger: Trigger::Publish,
            lost_answers: 0,
        };
        for endpoint in &event.targets {
            let key = DeliveryKey { event: position, endpoint: *endpoint };
            self.add(key, due, progress, Vec::new(), None);
        }
    }

    fn remember(&mut self, position: Position, idempotency: &crate::domain::Idempotency) {
        let crate::domain::Idempotency { scope, fingerprint, expires_at } = *idempotency;
        self.requests.insert(scope, Known { position, fingerprint, expires_at });
    }

    /// Queue of a delivery under the current ordering.
    fn queue(&self, key: DeliveryKey) -> Option<String> {
        self.queue_by(self.orderings.get(&key.endpoint).copied().unwrap_or_default(), key)
    }

    fn queue_by(&self, ordering: Ordering, key: DeliveryKey) -> Option<String> {
        let event = &self.events[&key.event];
        match ordering {
            Ordering::None => None,
            Ordering::Endpoint => Some("the whole endpoint".to_owned()),
            Ordering::Key => {
                let stream = event.stream.as_ref().map(|(name, _)| name.as_str());
                let own = event.ordering_key.as_ref().map(crate::domain::OrderingKey::as_str);
                Some(format!("{} key {}", event.tenant, own.or(stream).unwrap_or(event.id.as_str())))
            }
        }
    }

    /// Pending deliveries of a queue.
    fn queued(&self, endpoint: EndpointNumber, queue: &str) -> impl Iterator<Item = DeliveryKey> {
        let is_pending_in_queue = move |(key, known): &(&DeliveryKey, &Delivery)| {
            key.endpoint == endpoint && known.queue.as_deref() == Some(queue)
        };
        self.deliveries.iter().filter(is_pending_in_queue).map(|(key, _)| *key)
    }

    /// Makes a delivery pending.
    fn add(
        &mut self,
        key: DeliveryKey,
        due: Timestamp,
        progress: Progress,
        attempts: Vec<Position>,
        last: Option<Arc<Attempt>>,
    ) {
        let queue = self.queue(key);
        let sendable = queue.as_ref().is_none_or(|queue| self.queued(key.endpoint, queue).next().is_none());
        let state = DeliveryState::Pending;
        let settled = None;
        let lease = None;
        let delivery = Delivery { state, due, progress, attempts, last, settled, queue, sendable, lease };
        self.deliveries.insert(key, delivery);
    }

    fn finish(&mut self, position: Position, key: DeliveryKey, due: Timestamp, attempt: &Arc<Attempt>) {
        let Attempt { started_at: at, duration, .. } = **attempt;
        self.tries.push(leases::Try { endpoint: key.endpoint, at, duration });
        self.successes.extend((attempt.next == Next::Delivered).then_some((key.endpoint, at)));
        let health = self.health.entry(key.endpoint).or_default();
        if attempt.error.is_none() {
            (health.failures, health.last_success) = (Vec::new(), position);
        } else {
            health.failures.push(attempt.clone());
        }
        if let Some(hold) = attempt.hold.filter(|hold| hold.revision >= health.opened) {
            health.holds.push((hold.until, position));
            self.finished_at.insert(position, attempt.started_at.plus(attempt.duration));
        }
        let Some(known) = self.deliveries.get_mut(&key) else { return };
        known.progress.attempts += 1;
        known.last = Some(attempt.clone());
        known.attempts.push(position);
        let surplus = known.attempts.len().saturating_sub(limits::ATTEMPTS_KEPT_MAX);
        known.attempts.drain(..surplus);
        let ended = attempt.started_at.plus(attempt.duration);
        let is_moved = known.due != due;
        match (known.state, attempt.next) {
            (DeliveryState::Pending, Next::Delivered) => {
                self.settle_pending(key, DeliveryState::Delivered, ended, position);
            }
            (DeliveryState::Pending, Next::RetryAt(_) | Next::Dead(_)) if is_moved => {}
            (DeliveryState::Pending, Next::RetryAt(at)) => {
                known.progress.first_attempt = Some(match known.progress.first_attempt {
                    Some(first) => first.plus(attempt.delay),
                    None => attempt.started_at,
                });
                known.progress.attempts_in_series += 1;
                (known.due, known.progress.trigger) = (at, Trigger::Retry);
            }
            (DeliveryState::Pending, Next::Dead(reason)) => {
                self.settle_pending(key, DeliveryState::Dead(reason), ended, position);
            }
            (DeliveryState::Delivered, _) => {}
            // The receiver has the event, regardless of later decisions.
            (_, Next::Delivered) => {
                (known.state, known.settled) = (DeliveryState::Delivered, Some((ended, position)));
            }
            (
                DeliveryState::Dead(_) | DeliveryState::Cancelled | DeliveryState::Purged,
                Next::RetryAt(_) | Next::Dead(_),
            ) => {}
        }
    }

    /// Ends a pending delivery. If it was first in its queue, the next delivery becomes sendable.
    fn settle_pending(&mut self, key: DeliveryKey, state: DeliveryState, at: Timestamp, position: Position) {
        let Some(known) = self.deliveries.get_mut(&key) else { return };
        if known.state != DeliveryState::Pending {
            return;
        }
        (known.state, known.settled) = (state, Some((at, position)));
        let uncounted = known.lease.filter(|lease| !known.attempts.contains(&lease.position));
        if let Some(lease) = uncounted {
            known.attempts = known.attempts_with_lease();
            let ran_out = lease.ran_out_before(state, at);
            if !lease.is_released && !ran_out {
                known.note_end(position);
            }
            if !lease.is_released {
                self.count_lease(key.endpoint, lease, at, if ran_out { lease.until() } else { at });
            }
        }
        if state != DeliveryState::Delivered {
            self.ends.push((key.endpoint, at, state));
        }
        self.leave_queue(key);
    }

    fn leave_queue(&mut self, key: DeliveryKey) {
        let Some(known) = self.deliveries.get_mut(&key) else { return };
        let was_its_turn = known.is_first();
        (known.sendable, known.lease) = (false, None);
        if let Some(queue) = known.queue.take().filter(|_| was_its_turn) {
            let next = self.queued(key.endpoint, &queue).min();
            let next = next.and_then(|next| self.deliveries.get_mut(&next));
            if let Some(next) = next.filter(|next| !next.is_first()) {
                next.sendable = true;
            }
        }
    }

    /// Moves a pending delivery to its current queue. It becomes the last there, or sendable if the
    /// queue is empty.
    fn reorder(&mut self, key: DeliveryKey) {
        let is_placed = |known: &&Delivery| known.state == DeliveryState::Pending && known.lease.is_none();
        let known = self.deliveries.get(&key).filter(is_placed).cloned();
        if let Some(known) = known.filter(|known| known.queue != self.queue(key)) {
            self.leave_queue(key);
            self.add(key, known.due, known.progress, known.attempts, known.last);
        }
    }

    fn revive(&mut self, key: DeliveryKey, trigger: Trigger, at: Timestamp) {
        if self.events.get(&key.event).is_none_or(|event| event.erased_at.is_some()) {
            return;
        }
        let known = self.deliveries.get(&key).cloned();
        let state = known.as_ref().map(|known| known.state);
        if trigger == Trigger::Redrive && !matches!(state, Some(DeliveryState::Dead(_)))
            || trigger == Trigger::Manual && state == Some(DeliveryState::Purged)
        {
            return;
        }
        let attempts = known.as_ref().map_or(0, |known| known.progress.attempts);
        let (attempts_in_series, lost_answers, first_attempt) = (0, 0, None);
        let series_started = at;
        let progress =
            Progress { attempts, attempts_in_series, series_started, first_attempt, trigger, lost_answers };
        match known {
            Some(known) if known.state == DeliveryState::Pending => {
                if let Some(known) = self.deliveries.get_mut(&key) {
                    known.progress = progress;
                    // A lease stays.
                    known.due = if known.lease.is_some() { known.due } else { at };
                }
            }
            Some(known) => self.add(key, at, progress, known.attempts, known.last),
            None => self.add(key, at, progress, Vec::new(), None),
        }
    }

    /// Whether retention may delete an event at these cutoffs. `None` keeps it forever.
    pub(crate) fn is_over(
        &self,
        position: Position,
        events: Option<Timestamp>,
        stream_events: Option<Timestamp>,
    ) -> bool {
        let event = &self.events[&position];
        let cutoff = if event.stream.is_some() { stream_events } else { events };
        let ended = |known: &Delivery, cutoff| match known.state {
            DeliveryState::Delivered | DeliveryState::Cancelled | DeliveryState::Purged => {
                known.settled.is_some_and(|(at, _)| at < cutoff)
            }
            DeliveryState::Pending | DeliveryState::Dead(_) => false,
        };
        cutoff.is_some_and(|cutoff| {
            event.accepted_at < cutoff && self.of_event(position).all(|(_, known)| ended(known, cutoff))
        })
    }

    pub(crate) fn of_event(&self, event: Position) -> impl Iterator<Item = (&DeliveryKey, &Delivery)> {
        let first = |event| DeliveryKey { event, endpoint: EndpointNumber(0) };
        self.deliveries.range(first(event)..first(event.next()))
    }

    fn latest_reservation(&self, endpoint: EndpointNumber) -> Option<(Reservation, Position)> {
        let all = self.reservations.get(&endpoint)?;
        let place = |made: &(Reservation, Position)| (made.0.revision, made.0.full_at);
        let latest = all.iter().map(place).max()?;
        all.iter().find(|made| place(made) == latest).copied()
    }

    /// End of the receiver's requested hold, and the time of the request.
    pub(crate) fn held_since(&self, endpoint: EndpointNumber) -> Option<(Timestamp, Timestamp)> {
        let (until, position) = longest(&self.health.get(&endpoint)?.holds)?;
        Some((until, *self.finished_at.get(&position)?))
    }

    /// Whether the endpoint's hold, last success or reservation depends on a record, which must
    /// then stay.
    pub(crate) fn is_rested_on(&self, endpoint: EndpointNumber, position: Position) -> bool {
        let health = self.health.get(&endpoint).cloned().unwrap_or_default();
        health.last_success == position
            || longest(&health.holds).is_some_and(|(_, held_by)| held_by == position)
            || self.latest_reservation(endpoint).is_some_and(|(_, made_by)| made_by == position)
    }

    fn shown(&self) -> impl DoubleEndedIterator<Item = (Position, &Arc<Event>)> {
        let shown = |(position, _): &(&Position, &Arc<Event>)| !self.forgotten.contains(position);
        self.events.iter().filter(shown).map(|(position, event)| (*position, event))
    }

    fn facts(&self, key: DeliveryKey, known: &Delivery) -> DeliveryFacts {
        let event = &self.events[&key.event];
        let is_pending = known.state == DeliveryState::Pending;
        DeliveryFacts {
            key,
            state: known.state,
            accepted_at: event.accepted_at,
            tenant: event.tenant.as_str().into(),
            event_type: event.event_type.as_str().into(),
            attempts_made: known.progress.attempts,
            attempts: known.attempts_with_lease(),
            due: is_pending.then(|| known.due_or_lease_end()),
            settled_at: known.settled.map(|(at, _)| at).filter(|_| !is_pending),
            last: self.last_attempt(key, known),
            lease: known.held(),
        }
    }

    /// The last attempt as a read of its record shows it, without the target of a redirect.
    fn last_attempt(&self, key: DeliveryKey, known: &Delivery) -> LastAttempt {
        let Some(attempt) = &known.last else { return LastAttempt::default() };
        if self.events[&key.event].erased_at.is_some() {
            return LastAttempt::of(&erase_attempt(attempt));
        }
        LastAttempt::of(attempt)
    }

    fn letters(&self) -> Vec<Letter> {
        let letter = |(key, known): (&DeliveryKey, &Delivery)| {
            let DeliveryState::Dead(reason) = known.state else { return None };
            let ((died_at, death), event) = (known.settled?, &self.events[&key.event]);
            Some(Letter {
                delivery: *key,
                death,
                died_at,
                reason,
                tenant: event.tenant.as_str().into(),
                event_type: event.event_type.as_str().into(),
            })
        };
        let mut letters: Vec<_> = self.deliveries.iter().filter_map(letter).collect();
        letters.sort_by_key(|letter| std::cmp::Reverse((letter.death, letter.delivery)));
        letters
    }

    /// Readable events of a stream by version, and its first version: the one behind the last
    /// deleted event.
    fn readable(
        &self,
        tenant: &Tenant,
        stream: &StreamName,
    ) -> (u64, BTreeMap<u64, (Position, &Arc<Event>)>) {
        let version = |event: &Event| match &event.stream {
            Some((name, version)) if event.tenant == *tenant && name == stream => Some(*version),
            _ => None,
        };
        let deleted = self.forgotten.iter().filter_map(|position| version(&self.events[position])).max();
        let first = deleted.unwrap_or(0) + 1;
        let all = self.events.iter().filter_map(|(at, event)| Some((version(event)?, (*at, event))));
        (first, all.filter(|(version, _)| *version >= first).collect())
    }
}

/// Returns the page of a full list after a cursor.
fn page<T: Clone>(all: Vec<T>, after: Option<Cursor>, limit: usize, cursor: fn(&T) -> Cursor) -> Found<T> {
    let is_older = |item: &T| {
        after.is_none_or(|after| {
            let order = |cursor: Cursor| (cursor.position, cursor.event, cursor.endpoint);
            order(cursor(item)) < order(after)
        })
    };
    let rest: Vec<_> = all.into_iter().filter(is_older).collect();
    let items: Vec<_> = rest.iter().take(limit).cloned().collect();
    let next = items.last().map(cursor).filter(|_| rest.len() > limit);
    Found { items, next }
}

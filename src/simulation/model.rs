//! What an onlooker makes of every commit: whether it could have been, and what lanes may do after it.
//!
//! Owns the promises about single records (positions, ids, keys, versions, targets) and what is known of subscribers. What
//! deliveries have come to is the oracle's, with which each state is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::world::RETRY_AFTER_SECONDS;
use crate::domain::{
    Attempt, DeadReason, DeliveryKey, DeliveryState, Endpoint, EndpointNumber, EndpointStatus, Event,
    EventId, Idempotency, Next, Position, Record, RetryPolicy, Tenant, Timestamp,
};
use crate::outbox::conformance::compare::{Moment, compare};
use crate::outbox::conformance::oracle::{Delivery, Oracle};
use crate::rules::matching::want;
use crate::storage::state::State;

#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) endpoint: Arc<Endpoint>,
    /// What it was before its last changes, when one came right after the other.
    pub(super) before: Vec<Arc<Endpoint>>,
    pub(super) changed_at: Timestamp,
    /// When something could be sent to it again after it could not.
    opened_at: Timestamp,
    /// The shortest that its retry policy ever had.
    max_age: Option<Duration>,
    pub(super) deleted: bool,
}

fn max_age(endpoint: &Endpoint) -> Option<Duration> {
    match endpoint.retry {
        Some(RetryPolicy::Exponential { max_age, .. }) => Some(max_age),
        Some(RetryPolicy::Schedule(_)) | None => None,
    }
}

/// How long a lane may lag behind a change of its endpoint.
pub(super) const LAG_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) records: Vec<(Position, Record)>,
    pub(super) oracle: Oracle,
    /// When an operator or a deletion last had a hand in these: lanes may lag behind that.
    touched: BTreeMap<DeliveryKey, Timestamp>,
    /// When they were last put elsewhere because of their endpoint's ordering: maybe beside others, while they were under way.
    reordered: BTreeMap<DeliveryKey, Timestamp>,
    pub(super) endpoints: BTreeMap<EndpointNumber, Subscriber>,
    /// Receivers that were ready to agree, and the URLs at which they were asked.
    pub(super) agreed: BTreeSet<(EndpointNumber, Box<str>)>,
    ids: BTreeMap<(Tenant, EventId), Position>,
    scopes: BTreeMap<[u8; 16], (Position, Option<Timestamp>)>,
    pub(super) streams: BTreeMap<(String, String), u64>,
    /// How long events are kept; the latest time that retention may have seen.
    pub(super) keep: Option<Duration>,
    /// The wall clock is set now and then.
    pub(super) clock_jumps: bool,
    pub(super) latest: Timestamp,
}

impl Model {
    /// Whether retention may have taken an event by now.
    pub(super) fn may_be_gone(&self, position: Position) -> bool {
        let (Some(keep), Some(event)) = (self.keep, self.oracle.events.get(&position)) else { return false };
        let over = |state| !matches!(state, DeliveryState::Pending | DeliveryState::Dead(_));
        event.accepted_at.plus(keep) <= self.latest
            && self.oracle.of_event(position).all(|(_, known)| over(known.state))
    }

    /// Whether a record may have left the journal.
    pub(super) fn may_have_left(&self, position: Position, record: &Record) -> bool {
        let all = |deliveries: &[DeliveryKey]| deliveries.iter().all(|key| self.may_be_gone(key.event));
        match record {
            Record::EventAccepted(_) => self.may_be_gone(position),
            Record::AttemptFinished { delivery, .. } => {
                self.may_be_gone(delivery.event) && !self.oracle.is_rested_on(delivery.endpoint, position)
            }
            Record::DeliveriesRevived { deliveries, .. }
            | Record::DeliveriesCancelled { deliveries, .. }
            | Record::DeliveriesDied { deliveries, .. }
            | Record::DeadLettersPurged { deliveries, .. }
            | Record::DeliveriesReordered { deliveries, .. } => all(deliveries),
            Record::RequestAnswered { .. } | Record::EventRejected { .. } => self.keep.is_some(),
            Record::RateReserved { endpoint, .. } => {
                self.keep.is_some() && !self.oracle.is_rested_on(*endpoint, position)
            }
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
            Record::EndpointPut(endpoint) => self.put_endpoint(endpoint, now)?,
            Record::EndpointDeleted { endpoint, .. } => {
                let known = self.endpoints.get_mut(endpoint).filter(|known| !known.deleted);
                let known = known.ok_or_else(|| format!("{endpoint:?} was deleted and is not there"))?;
                known.deleted = true;
                known.changed_at = now;
            }
            Record::DeliveriesRevived { deliveries, .. } => self.touch(deliveries, now, |_| true),
            Record::DeliveriesCancelled { deliveries, .. } | Record::DeliveriesDied { deliveries, .. } => {
                self.touch(deliveries, now, |state| state == DeliveryState::Pending);
            }
            Record::DeadLettersPurged { deliveries, .. } => {
                self.touch(deliveries, now, |state| matches!(state, DeliveryState::Dead(_)));
            }
            Record::DeliveriesReordered { deliveries, .. } => {
                self.reordered.extend(deliveries.iter().map(|key| (*key, now)));
            }
            Record::AttemptFinished { delivery, due, attempt } => self.finish(*delivery, *due, attempt)?,
            Record::RateReserved { .. }
            | Record::KeyPut(_)
            | Record::KeyDeleted { .. }
            | Record::RequestAnswered { .. } => {}
            // The writer's clock does not go back.
            Record::EventRejected { idempotency, .. } => self.answer(position, idempotency, self.latest)?,
        }
        self.oracle.apply(position, record);
        Ok(())
    }

    /// Those that there are (or, when there are none yet, will be) and that the record changes.
    fn touch(&mut self, deliveries: &[DeliveryKey], now: Timestamp, changes: fn(DeliveryState) -> bool) {
        let changed = deliveries
            .iter()
            .filter(|key| self.oracle.deliveries.get(key).is_none_or(|known| changes(known.state)));
        self.touched.extend(changed.map(|key| (*key, now)));
    }

    fn accept(&mut self, position: Position, event: &Arc<Event>) -> Result<(), String> {
        if tells_of_itself(event) {
            return Err(format!("{} tells the operator what came of telling the operator", event.id));
        }
        let name = (event.tenant.clone(), event.id.clone());
        if let Some(before) = self.ids.insert(name, position)
            && !self.may_be_gone(before)
        {
            return Err(format!("{} is at {before} and at {position}", event.id));
        }
        let last = self.oracle.events.last_key_value();
        if last.is_some_and(|(_, last)| last.accepted_at > event.accepted_at) {
            return Err(format!("{} was accepted before the event before it", event.id));
        }
        for remembered in &event.idempotency {
            self.answer(position, remembered, event.accepted_at)?;
        }
        if let Some((stream, version)) = &event.stream {
            let head = self.streams.entry((event.tenant.to_string(), stream.to_string())).or_insert(0);
            if *version != *head + 1 {
                return Err(format!("stream {stream} goes from version {head} to {version}"));
            }
            *head = *version;
        }
        let wants = |known: &&Subscriber| {
            !known.deleted
                && known.endpoint.tenant == event.tenant
                && want(&known.endpoint.event_types, &event.event_type)
        };
        let wanted: Vec<_> =
            self.endpoints.values().filter(wants).map(|known| known.endpoint.number).collect();
        if wanted != event.targets {
            return Err(format!("{} goes to {:?}, not to {wanted:?}", event.id, event.targets));
        }
        Ok(())
    }

    /// A key is answered by one record until it expires.
    fn answer(&mut self, position: Position, key: &Idempotency, now: Timestamp) -> Result<(), String> {
        match self.scopes.insert(key.scope, (position, key.expires_at)) {
            Some((before, expires_at))
                if expires_at.is_none_or(|at| at > now)
                    && !(expires_at.is_none() && self.may_be_gone(before)) =>
            {
                Err(format!("one idempotency key was answered by the records {before} and {position}"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Time in which nothing was tried because of us does not count as age.
    fn finish(&self, key: DeliveryKey, due: Timestamp, attempt: &Attempt) -> Result<(), String> {
        let Some(known) = self.endpoints.get(&key.endpoint).filter(|_| !self.clock_jumps) else {
            return Ok(());
        };
        let (started_at, delay) = (attempt.started_at, attempt.delay);
        if delay > started_at.since(due) {
            return Err(format!("{key:?} was due at {due:?} and began at {started_at:?}, {delay:?} late"));
        }
        let life_began = started_at.minus(attempt.uptime.unwrap_or_default());
        // By then its lane has heard that it is open.
        let opened_at = Some(known.opened_at).filter(|at| at.plus(LAG_MAX) <= started_at);
        let not_before = life_began.max(opened_at.unwrap_or_default());
        if not_before.since(due) > delay + LAG_MAX {
            return Err(format!(
                "{key:?} was due at {due:?}, could go at {not_before:?}: not {delay:?} late"
            ));
        }
        let delivery = self.oracle.deliveries.get(&key).filter(|delivery| delivery.due == due);
        let first = delivery.and_then(|delivery| delivery.progress.after(delay).first_attempt);
        let (Some(first), Some(max_age)) = (first, known.max_age) else { return Ok(()) };
        let ended_at = started_at.plus(attempt.duration);
        // Its next attempt would not have been later than this.
        let next_at = ended_at.plus(Duration::from_secs(RETRY_AFTER_SECONDS));
        if attempt.next == Next::Dead(DeadReason::MaxAge) && next_at <= first.plus(max_age) {
            return Err(format!("{key:?} failed from {first:?} to {ended_at:?}, and died of its age"));
        }
        Ok(())
    }

    fn put_endpoint(&mut self, endpoint: &Arc<Endpoint>, now: Timestamp) -> Result<(), String> {
        let consents = endpoint.handshake.as_ref().is_some_and(|handshake| handshake.consent.is_some());
        if consents && !self.agreed.contains(&(endpoint.number, endpoint.url.clone())) {
            return Err(format!(
                "{} counts as having agreed, and nobody at {} has",
                endpoint.id, endpoint.url
            ));
        }
        match self.endpoints.get_mut(&endpoint.number) {
            Some(known) if known.deleted => return Err(format!("{} came back", endpoint.id)),
            Some(known) => {
                if now.since(known.changed_at) > LAG_MAX {
                    known.before.clear();
                }
                if endpoint.is_open() && !known.endpoint.is_open() {
                    known.opened_at = now;
                }
                known.max_age = known.max_age.into_iter().chain(max_age(endpoint)).min();
                known.before.push(std::mem::replace(&mut known.endpoint, endpoint.clone()));
                known.changed_at = now;
            }
            None => {
                let (endpoint, before) = (endpoint.clone(), Vec::new());
                let (opened_at, max_age) = (now, max_age(&endpoint));
                let known =
                    Subscriber { endpoint, before, changed_at: now, opened_at, max_age, deleted: false };
                self.endpoints.insert(known.endpoint.number, known);
            }
        }
        Ok(())
    }

    pub(super) fn pending(&self) -> impl Iterator<Item = (&DeliveryKey, &Delivery)> {
        self.oracle.deliveries.iter().filter(|(_, known)| known.state == DeliveryState::Pending)
    }

    /// When an operator last had a hand in it.
    pub(super) fn touched(&self, key: DeliveryKey) -> Option<Timestamp> {
        self.touched.get(&key).copied()
    }

    pub(super) fn reordered(&self, key: DeliveryKey) -> Option<Timestamp> {
        self.reordered.get(&key).copied()
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

    /// Everything that a state can be asked.
    ///
    /// # Errors
    /// What differs.
    pub(super) fn compare(&self, state: &State, now: Timestamp) -> Result<(), String> {
        let mut oracle = self.oracle.clone();
        let all = self.oracle.events.keys().copied();
        oracle.forgotten = all.filter(|position| self.may_be_gone(*position)).collect();
        // A clock that was set back has made nothing unexpired.
        let now = now.max(self.latest);
        compare(&oracle, state, Moment { now, rebuilt: self.keep.is_some(), limit: 7 })
    }

    /// Whether nothing may be sent to the endpoint.
    pub(super) fn is_closed(&self, endpoint: EndpointNumber) -> bool {
        let known = self.endpoints.get(&endpoint);
        known.is_none_or(|known| known.deleted || known.endpoint.status != EndpointStatus::Active)
    }

    /// Deliveries that a record after this position names.
    pub(super) fn changed_since(&self, position: Position) -> BTreeSet<DeliveryKey> {
        let after = self.records.partition_point(|(at, _)| *at <= position);
        let deliveries = self.records[after..].iter().flat_map(|(at, record)| match record {
            Record::EventAccepted(event) => {
                let key = |endpoint: &EndpointNumber| DeliveryKey { event: *at, endpoint: *endpoint };
                event.targets.iter().map(key).collect()
            }
            Record::AttemptFinished { delivery, .. } => vec![*delivery],
            Record::DeliveriesRevived { deliveries, .. }
            | Record::DeliveriesCancelled { deliveries, .. }
            | Record::DeliveriesDied { deliveries, .. }
            | Record::DeadLettersPurged { deliveries, .. } => deliveries.clone(),
            Record::DeliveriesReordered { .. }
            | Record::EndpointPut(_)
            | Record::EndpointDeleted { .. }
            | Record::KeyPut(_)
            | Record::KeyDeleted { .. }
            | Record::RateReserved { .. }
            | Record::RequestAnswered { .. }
            | Record::EventRejected { .. } => Vec::new(),
        });
        deliveries.collect()
    }
}

/// Whether an event for the operator is about the operator's own deliveries: it would be the next to fail. That one of the
/// operator's endpoints is disabled is said, once.
fn tells_of_itself(event: &Event) -> bool {
    let own = format!("\"tenant\":\"{}\"", Tenant::OPERATOR);
    event.tenant.as_str() == Tenant::OPERATOR
        && event.event_type.as_str() != "balto.endpoint.disabled"
        && event.data.windows(own.len()).any(|part| part == own.as_bytes())
}

//! The observer's model: checks every commit, and knows what lanes may do after it.
//!
//! Owns the invariants of single records (positions, ids, keys, versions, targets) and the
//! knowledge of endpoints. The oracle owns the delivery states; each state is compared with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::leases::LeaseModel;
use super::operations::part_of;
use super::world::RETRY_AFTER_SECONDS;
use crate::domain::{
    Attempt, ConsumerKey, DeadReason, DeliveryKey, DeliveryState, Endpoint, EndpointNumber, EndpointStatus,
    Event, EventId, Horizon, Idempotency, Next, Position, Quota, QuotaOverride, Record, RetryPolicy, Tenant,
    Timestamp,
};
use crate::filters::samples;
use crate::outbox::ReadModel as _;
use crate::outbox::conformance::compare::{Moment, compare};
use crate::outbox::conformance::oracle::{Delivery, Oracle};
use crate::rules::matching::want;
use crate::storage::state::State;

#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) endpoint: Arc<Endpoint>,
    /// Earlier versions, if the changes followed each other within [`LAG_MAX`].
    pub(super) before: Vec<Arc<Endpoint>>,
    pub(super) changed_at: Timestamp,
    /// When the endpoint last became open.
    opened_at: Timestamp,
    /// The shortest maximum age of its retry policies so far.
    max_age: Option<Duration>,
    pub(super) deleted: bool,
}

fn max_age(endpoint: &Endpoint) -> Option<Duration> {
    match endpoint.retry {
        Some(RetryPolicy::Exponential { max_age, .. }) => Some(max_age),
        Some(RetryPolicy::Schedule(_)) | None => None,
    }
}

/// Maximum lag of a lane behind a change of its endpoint.
pub(super) const LAG_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, Default)]
pub(super) struct Model {
    /// Without the content of erased events.
    pub(super) records: Vec<(Position, Record)>,
    /// Records whose content was erased, but may still be in the files.
    contents: BTreeMap<Position, Record>,
    pub(super) oracle: Oracle,
    pub(super) leases: LeaseModel,
    /// Durable moves of consumers: from and to.
    pub(super) consumer_moves: BTreeSet<(ConsumerKey, Position, Position)>,
    /// Last change of a delivery by an operator or a deletion. Lanes may lag behind it.
    touched: BTreeMap<DeliveryKey, Timestamp>,
    /// Last change of a delivery's queue. It may have been in flight, and now run beside others.
    reordered: BTreeMap<DeliveryKey, Timestamp>,
    pub(super) endpoints: BTreeMap<EndpointNumber, Subscriber>,
    /// Receivers that have decided to consent, with the URL of the request.
    pub(super) agreed: BTreeSet<(EndpointNumber, Box<str>)>,
    ids: BTreeMap<(Tenant, EventId), Position>,
    scopes: BTreeMap<[u8; 16], (Position, Option<Timestamp>)>,
    /// Quotas of pending deliveries.
    pending_limits: BTreeMap<Tenant, QuotaOverride>,
    pub(super) streams: BTreeMap<(String, String), u64>,
    /// The events of an atomic request that must follow: its number, the next index, the count.
    unfinished: Option<(u64, u64, u64)>,
    /// The deliveries of a job's step that must follow.
    pub(super) unfinished_step: Option<u64>,
    /// Retention period of events.
    pub(super) keep: Option<Duration>,
    pub(super) clock_jumps: bool,
    /// Latest time that retention may have used.
    pub(super) latest: Timestamp,
}

impl Model {
    /// Whether retention may have removed an event.
    pub(super) fn may_be_removed(&self, position: Position) -> bool {
        let (Some(keep), Some(event)) = (self.keep, self.oracle.events.get(&position)) else { return false };
        let has_ended = |state| !matches!(state, DeliveryState::Pending | DeliveryState::Dead(_));
        event.accepted_at.plus(keep) <= self.latest
            && self.oracle.of_event(position).all(|(_, known)| has_ended(known.state))
    }

    /// Whether a record may have left the journal.
    pub(super) fn may_have_left_journal(&self, position: Position, record: &Record) -> bool {
        match record {
            Record::EventAccepted(_) => self.may_be_removed(position),
            Record::AttemptFinished { delivery, .. } => {
                self.may_be_removed(delivery.event) && !self.oracle.is_rested_on(delivery.endpoint, position)
            }
            Record::DeliveriesRevived { .. }
            | Record::DeliveriesCancelled { .. }
            | Record::DeliveriesDied { .. }
            | Record::DeadLettersPurged { .. }
            | Record::DeliveriesReordered { .. }
            | Record::MessagesLeased { .. }
            | Record::LeasesEnded { .. }
            | Record::LeasesExtended { .. } => {
                record.deliveries(position).iter().all(|key| self.may_be_removed(key.event))
            }
            Record::EventErased { event, .. } => self.may_be_removed(*event),
            Record::RequestAnswered { .. } | Record::EventRejected { .. } => self.keep.is_some(),
            Record::RateReserved { endpoint, .. } => {
                self.keep.is_some() && !self.oracle.is_rested_on(*endpoint, position)
            }
            Record::EndpointPut(_)
            | Record::EndpointDeleted { .. }
            | Record::KeyPut(_)
            | Record::KeyDeleted { .. }
            | Record::TenantPut(_)
            | Record::TenantDeleted { .. }
            | Record::TypePut(_)
            | Record::TypeDeleted { .. }
            | Record::SourcePut(_)
            | Record::SourceDeleted { .. }
            | Record::ConsumerPut(_)
            | Record::ConsumerDeleted { .. } => false,
            Record::KeyUsed { id, .. } => {
                self.oracle.key_uses.get(id).is_none_or(|(_, last)| *last != position)
            }
            Record::ConsumerMoved { key, .. } => !self.oracle.consumers.is_last_move(key, position),
            Record::HorizonMoved { .. } => self.oracle.horizon.record != position,
            Record::JobPut(_) | Record::JobMoved { .. } => !self.oracle.jobs.needs(position),
            Record::Audited(_) => false,
        }
    }

    pub(super) fn last(&self) -> Position {
        self.records.last().map_or(Position(0), |(position, _)| *position)
    }

    /// # Errors
    /// When the record violates an invariant.
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
        self.check_atomicity(record)?;
        self.check_job_step(record)?;
        self.remember(position, record);
        match record {
            Record::EventAccepted(event) => self.accept(position, event)?,
            Record::EndpointPut(endpoint) => self.put_endpoint(endpoint, now)?,
            Record::EndpointDeleted { endpoint, .. } => {
                let known = self.endpoints.get_mut(endpoint).filter(|known| !known.deleted);
                let known = known.ok_or_else(|| format!("unknown endpoint {endpoint:?} was deleted"))?;
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
            Record::AttemptFinished { delivery, due, attempt } => {
                self.check_delay(*delivery, *due, attempt)?;
            }
            Record::TenantPut(settings) => {
                let limit = settings.quotas.get(Quota::PendingDeliveries);
                self.pending_limits.insert(settings.tenant.clone(), limit);
            }
            Record::TenantDeleted { tenant, .. } => drop(self.pending_limits.remove(tenant)),
            Record::ConsumerMoved { key, position: to, .. } => {
                let from =
                    self.oracle.consumers.all.get(key).map_or(Position(0), |(_, place)| place.position);
                self.consumer_moves.insert((key.clone(), from, *to));
            }
            Record::HorizonMoved { horizon, .. } => self.check_horizon(*horizon)?,
            Record::RateReserved { .. }
            | Record::ConsumerPut(_)
            | Record::ConsumerDeleted { .. }
            | Record::TypePut(_)
            | Record::TypeDeleted { .. }
            | Record::JobPut(_)
            | Record::JobMoved { .. }
            | Record::Audited(_)
            | Record::SourcePut(_)
            | Record::SourceDeleted { .. }
            | Record::KeyPut(_)
            | Record::KeyDeleted { .. }
            | Record::KeyUsed { .. }
            | Record::RequestAnswered { .. }
            | Record::EventErased { .. }
            | Record::MessagesLeased { .. }
            | Record::LeasesEnded { .. }
            | Record::LeasesExtended { .. } => {}
            // The writer's clock never goes back.
            Record::EventRejected { idempotency, .. } => {
                self.check_key(position, idempotency, self.latest)?;
            }
        }
        self.leases.check(record, &self.oracle, self.clock_jumps)?;
        self.oracle.apply(position, record);
        self.leases.apply(position, record, &self.oracle);
        if let Record::EventErased { event, .. } = record {
            self.erase(*event);
        }
        self.check_quota(record)
    }

    /// Checks that the events of an atomic request follow each other and are complete.
    fn check_atomicity(&mut self, record: &Record) -> Result<(), String> {
        let part = match record {
            Record::EventAccepted(event) => part_of(&event.data),
            _ => None,
        };
        let wanted = self.unfinished.take();
        match (wanted, part) {
            (Some(wanted), part) if part != Some(wanted) => {
                return Err(format!("event {} of {} of append {} is missing", wanted.1, wanted.2, wanted.0));
            }
            (None, Some((number, index, _))) if index > 0 => {
                return Err(format!("append {number} begins at event {index}"));
            }
            _ => {}
        }
        self.unfinished = part.map(|(number, index, count)| (number, index + 1, count));
        self.unfinished = self.unfinished.filter(|(_, next, count)| next < count);
        Ok(())
    }

    /// Keeps a record as reads show it. The files may have the content of an erased event.
    fn remember(&mut self, position: Position, record: &Record) {
        let shown = self.oracle.without_content(position, record);
        if shown != *record {
            self.contents.insert(position, record.clone());
        }
        self.records.push((position, shown));
    }

    /// Removes the content of an erased event from the records as reads show them.
    fn erase(&mut self, event: Position) {
        let first = self.records.partition_point(|(at, _)| *at < event);
        for (position, record) in &mut self.records[first..] {
            let shown = self.oracle.without_content(*position, record);
            if shown != *record {
                self.contents.insert(*position, std::mem::replace(record, shown));
            }
        }
    }

    pub(super) fn is_erased(&self, event: Position) -> bool {
        self.oracle.events.get(&event).is_some_and(|event| event.erased_at.is_some())
    }

    /// Records of erased events whose content may still be in the files.
    pub(super) fn contents(&self) -> Vec<Position> {
        self.contents.keys().copied().collect()
    }

    /// The files have lost the content of these records.
    pub(super) fn lose_contents(&mut self, records: &[Position]) {
        self.contents.retain(|position, _| !records.contains(position));
    }

    /// Whether a record of the files is this record of the model.
    pub(super) fn is_same(&self, position: Position, known: &Record, found: &Record) -> bool {
        found == known || self.contents.get(&position) == Some(found)
    }

    /// Whether it belongs to all tenants, so that its deliveries count for no tenant.
    pub(super) fn is_shared(&self, endpoint: EndpointNumber) -> bool {
        self.endpoints.get(&endpoint).is_some_and(|known| known.endpoint.tenant.is_every())
    }

    /// Checks that an accepted event leaves its tenant within its quota.
    fn check_quota(&self, record: &Record) -> Result<(), String> {
        let Record::EventAccepted(event) = record else { return Ok(()) };
        match self.pending_limits.get(&event.tenant) {
            Some(QuotaOverride::Limit(limit))
                if event.targets.iter().any(|target| !self.is_shared(*target)) =>
            {
                let pending = self.oracle.usage(&event.tenant).pending;
                if pending <= *limit {
                    return Ok(());
                }
                Err(format!("{} makes {pending} pending deliveries, the quota is {limit}", event.id))
            }
            _ => Ok(()),
        }
    }

    /// Marks the deliveries that the record changes or creates.
    fn touch(&mut self, deliveries: &[DeliveryKey], now: Timestamp, changes: fn(DeliveryState) -> bool) {
        let changed = deliveries
            .iter()
            .filter(|key| self.oracle.deliveries.get(key).is_none_or(|known| changes(known.state)));
        self.touched.extend(changed.map(|key| (*key, now)));
    }

    fn accept(&mut self, position: Position, event: &Arc<Event>) -> Result<(), String> {
        if reports_own_failure(event) {
            return Err(format!("operator event {} is about an operator event's delivery", event.id));
        }
        let name = (event.tenant.clone(), event.id.clone());
        if let Some(before) = self.ids.insert(name, position)
            && !self.may_be_removed(before)
        {
            return Err(format!("two events have the id {}: {before} and {position}", event.id));
        }
        let last = self.oracle.events.last_key_value();
        if last.is_some_and(|(_, last)| last.accepted_at > event.accepted_at) {
            return Err(format!("{} has an earlier time than the previous event", event.id));
        }
        for key in &event.idempotency {
            self.check_key(position, key, event.accepted_at)?;
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
                && known.endpoint.tenant.takes_from(&event.tenant)
                && want(&known.endpoint.event_types, &event.event_type)
                && samples::wants(&known.endpoint.selection, &event.event_type, &event.labels, &event.data)
        };
        let wanted: Vec<_> =
            self.endpoints.values().filter(wants).map(|known| known.endpoint.number).collect();
        if wanted != event.targets {
            return Err(format!("{} has the targets {:?}, expected {wanted:?}", event.id, event.targets));
        }
        Ok(())
    }

    /// Checks a new horizon: each kind stays, or moves on to an event of its kind that expires. The
    /// event may live again later: a rebuild or a crash brings it back until the next pass, and a
    /// retry keeps it. The horizon then stays where it is.
    pub(super) fn check_horizon(&self, new: Horizon) -> Result<(), String> {
        let known = self.oracle.horizon.horizon;
        let kinds = [(known.events, new.events, false), (known.stream_events, new.stream_events, true)];
        for (from, to, has_stream) in kinds {
            let event = self.oracle.events.get(&to).filter(|event| event.stream.is_some() == has_stream);
            let moves_on = to > from && event.is_some() && self.may_be_removed(to);
            if to != from && !moves_on {
                return Err(format!("the horizon moves from {known:?} to {new:?}, where no event expires"));
            }
        }
        Ok(())
    }

    /// Checks that a key belongs to one record until it expires.
    fn check_key(&mut self, position: Position, key: &Idempotency, now: Timestamp) -> Result<(), String> {
        match self.scopes.insert(key.scope, (position, key.expires_at)) {
            Some((before, expires_at))
                if expires_at.is_none_or(|at| at > now)
                    && !(expires_at.is_none() && self.may_be_removed(before)) =>
            {
                Err(format!("two records have the same idempotency key: {before} and {position}"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Checks that Balto's own delays do not count as age.
    fn check_delay(&self, key: DeliveryKey, due: Timestamp, attempt: &Attempt) -> Result<(), String> {
        let Some(known) = self.endpoints.get(&key.endpoint).filter(|_| !self.clock_jumps) else {
            return Ok(());
        };
        let (started_at, delay) = (attempt.started_at, attempt.delay);
        if delay > started_at.since(due) {
            return Err(format!("{key:?}: due {due:?}, started {started_at:?}, but delay {delay:?}"));
        }
        let life_began = started_at.minus(attempt.uptime.unwrap_or_default());
        // The lane knows by then that the endpoint is open.
        let opened_at = Some(known.opened_at).filter(|at| at.plus(LAG_MAX) <= started_at);
        let sendable_at = life_began.max(opened_at.unwrap_or_default());
        if sendable_at.since(due) > delay + LAG_MAX {
            return Err(format!("{key:?}: due {due:?}, sendable {sendable_at:?}, but delay {delay:?}"));
        }
        let delivery = self.oracle.deliveries.get(&key).filter(|delivery| delivery.due == due);
        let first = delivery.and_then(|delivery| delivery.progress.after(delay).first_attempt);
        let (Some(first), Some(max_age)) = (first, known.max_age) else { return Ok(()) };
        let ended_at = started_at.plus(attempt.duration);
        // Latest time of the next attempt.
        let next_at = ended_at.plus(Duration::from_secs(RETRY_AFTER_SECONDS));
        if attempt.next == Next::Dead(DeadReason::MaxAge) && next_at <= first.plus(max_age) {
            return Err(format!("{key:?} died of its age too early: failed {first:?} to {ended_at:?}"));
        }
        Ok(())
    }

    fn put_endpoint(&mut self, endpoint: &Arc<Endpoint>, now: Timestamp) -> Result<(), String> {
        let consents = endpoint.handshake.as_ref().is_some_and(|handshake| handshake.consent.is_some());
        if consents && !self.agreed.contains(&(endpoint.number, endpoint.url.clone())) {
            return Err(format!(
                "{} has a recorded consent, but no receiver at {} consented",
                endpoint.id, endpoint.url
            ));
        }
        match self.endpoints.get_mut(&endpoint.number) {
            Some(known) if known.deleted => return Err(format!("{} was changed when deleted", endpoint.id)),
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

    /// Last change by an operator or a deletion.
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

    /// Compares the queries of a state with the oracle: all, or one of `share`.
    ///
    /// # Errors
    /// The difference.
    pub(super) fn compare(&self, state: &State, now: Timestamp, share: u64) -> Result<(), String> {
        let mut oracle = self.oracle.clone();
        let all = self.oracle.events.keys().copied();
        oracle.forgotten = all.filter(|position| self.may_be_removed(*position)).collect();
        // A clock that was set back does not revive expired keys.
        let now = now.max(self.latest);
        compare(&oracle, state, Moment { now, rebuilt: self.keep.is_some(), limit: 7, share })
    }

    /// Whether the endpoint is deleted, paused or disabled.
    pub(super) fn is_closed(&self, endpoint: EndpointNumber) -> bool {
        let known = self.endpoints.get(&endpoint);
        known.is_none_or(|known| known.deleted || known.endpoint.status != EndpointStatus::Active)
    }

    /// Deliveries that the records after this position change.
    pub(super) fn changed_since(&self, position: Position) -> BTreeSet<DeliveryKey> {
        let after = self.records.partition_point(|(at, _)| *at <= position);
        let deliveries = self.records[after..].iter().flat_map(|(at, record)| match record {
            // The delivery keeps its state.
            Record::DeliveriesReordered { .. } => Vec::new(),
            _ => record.deliveries(*at).iter().collect(),
        });
        deliveries.collect()
    }
}

/// Whether an operator event is about the operator's own deliveries, so that it would be the next
/// to fail. The one event for a disabled operator endpoint is allowed.
fn reports_own_failure(event: &Event) -> bool {
    let own = format!("\"tenant\":\"{}\"", Tenant::OPERATOR);
    event.tenant.as_str() == Tenant::OPERATOR
        && event.event_type.as_str() != "balto.endpoint.disabled"
        && event.data.windows(own.len()).any(|part| part == own.as_bytes())
}

//! The fold: applies journal records to the rows and reports the changes of lanes.

use std::collections::HashSet;
use std::time::Duration;

use super::counters::Lane;
use super::dead::Letter;
use super::failing::{Failing, OperatorChange};
use super::pages::Blocks;
use super::pending::{Detail, Row};
use super::reserved::Reserved;
use super::states::{self, StateEntry, StatePlace};
use super::stats::Hour;
use super::tallies::Tallies;
use super::usage::Usage;
use super::{Rows, acts, consumers, dead, idempotency, jobs, pages, pending, reserved, retention};
use crate::domain::delivery::transition;
use crate::domain::{
    ApiKey, ConsumerPlace, DeadReason, DeliveryChange, DeliveryKey, DeliveryState, DueKey, Endpoint,
    EndpointNumber, Event, EventType, HeldLease, Horizon, IdMap, KeyId, LastAttempt, LeaseOutcome, Ordering,
    Position, Progress, Record, Reservation, TakenMessage, Tenant, Timestamp,
};

mod accept;
mod attempts;
mod leases;
mod places;
mod types;

pub use accept::key_order;
use places::{Place, PlaceKind};

/// A change of a lane. `at` is the position of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneChange {
    /// The delivery may be sent from `key.due` on.
    Due { endpoint: EndpointNumber, key: DueKey, progress: Progress, at: Position },
    /// The lane no longer has this key: the delivery ended, moved or was cancelled.
    Settled { endpoint: EndpointNumber, key: DueKey, at: Position },
    /// The outcome of the attempt with this key is recorded. Its other changes precede this one.
    Recorded { endpoint: EndpointNumber, key: DueKey },
    /// A worker took the message, unless it had left its place.
    Taken { endpoint: EndpointNumber, taken: TakenMessage, lease: Option<HeldLease> },
    /// The lease of a message was released or extended, or its counts have changed.
    LeaseChanged { endpoint: EndpointNumber, event: Position, lease: HeldLease },
    /// The message has no lease any more.
    LeaseEnded { endpoint: EndpointNumber, event: Position },
    /// A lease ended; for the metrics.
    LeaseCounted { outcome: LeaseOutcome, duration: Duration },
}

/// Deliveries by state, over all endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub pending: u64,
    pub dead: u64,
    /// Events accepted since the journal began.
    pub events: u64,
}

/// The horizon, and the record that says so. Retention records it before it removes anything, so a
/// gap without such a record is damage, or of an earlier version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordedHorizon {
    pub horizon: Horizon,
    /// 0 if there is none.
    pub record: Position,
}

/// Memory of the fold, derived from records like the rows. The number of endpoints bounds it.
#[derive(Debug, Default)]
pub struct Fold {
    endpoints: IdMap<EndpointNumber, LiveEndpoint>,
    /// Tenants of all endpoints, also of deleted ones, whose deliveries may be pending.
    tenants: IdMap<EndpointNumber, Tenant>,
    /// Tenants of the live keys that are bound to one.
    keys: IdMap<KeyId, Tenant>,
    /// Registered event types.
    types: HashSet<EventType>,
    blocks: Blocks,
    tallies: Tallies,
    /// Number of checkpoints so far: part of the keys of new blocks.
    checkpoint: u64,
    pub totals: Totals,
    pub horizon: RecordedHorizon,
}

/// Properties of a live endpoint.
#[derive(Debug)]
struct LiveEndpoint {
    ordering: Ordering,
    is_open: bool,
    /// See [`Endpoint::destination`].
    destination: String,
    change: OperatorChange,
}

impl From<&Endpoint> for LiveEndpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            ordering: endpoint.ordering,
            is_open: endpoint.is_open(),
            destination: endpoint.destination(),
            change: endpoint.into(),
        }
    }
}

impl Fold {
    /// A fold that continues after this number of checkpoints.
    #[must_use]
    pub fn resume(checkpoints: u64, totals: Totals, horizon: RecordedHorizon) -> Self {
        Self { checkpoint: checkpoints, totals, horizon, ..Self::default() }
    }

    /// Records up to this position are missing. A later record of the horizon knows better.
    pub fn on_gap(&mut self, last: Position) {
        if self.horizon.record == Position(0) {
            self.horizon.horizon = self.horizon.horizon.max(Horizon::up_to(last));
        }
    }

    /// Restores an endpoint that was recorded before the checkpoint.
    pub fn restore_endpoint(&mut self, endpoint: &Endpoint) {
        self.endpoints.insert(endpoint.number, endpoint.into());
        self.restore_deleted_endpoint(endpoint);
    }

    /// Restores an endpoint that was deleted before the checkpoint.
    pub fn restore_deleted_endpoint(&mut self, endpoint: &Endpoint) {
        self.tenants.insert(endpoint.number, endpoint.tenant.clone());
    }

    /// Restores a key that was recorded before the checkpoint.
    pub fn restore_key(&mut self, key: &ApiKey) {
        self.keys.extend(key.tenant.clone().map(|tenant| (key.id.clone(), tenant)));
    }

    /// Whether a live endpoint takes its deliveries in an order.
    #[must_use]
    pub fn is_ordered(&self, endpoint: EndpointNumber) -> bool {
        self.endpoints.get(&endpoint).is_some_and(|endpoint| endpoint.ordering != Ordering::None)
    }

    /// The tenant of an endpoint, live or deleted.
    #[must_use]
    pub fn tenant_of(&self, endpoint: EndpointNumber) -> Option<&Tenant> {
        self.tenants.get(&endpoint)
    }

    /// Collects changed usage for [`Self::take_changed_usage`].
    pub fn watch_usage(&mut self) {
        self.tallies.watch_usage();
    }

    /// Usage that was written since the last call.
    pub fn take_changed_usage(&mut self) -> IdMap<Tenant, Usage> {
        self.tallies.take_changed_usage()
    }

    /// Call this after a checkpoint of all rows.
    pub fn on_checkpoint(&mut self) {
        self.checkpoint += 1;
        self.blocks.close();
    }

    /// Writes the counters. Call this after a group of records, before counters are read.
    pub fn write_tallies(&mut self, rows: &mut dyn Rows) {
        self.tallies.write(rows);
    }

    #[must_use]
    pub fn has_written_tallies(&self) -> bool {
        self.tallies.are_written()
    }

    #[must_use]
    pub fn checkpoints(&self) -> u64 {
        self.checkpoint
    }

    /// Deletes expired events; see [`retention::forget`].
    pub fn forget(
        &mut self,
        rows: &mut dyn Rows,
        cutoffs: retention::Cutoffs,
        page: u64,
        pages_max: usize,
    ) -> retention::Forgotten {
        let forgotten = retention::forget(
            rows,
            (&mut self.blocks, self.checkpoint),
            retention::Expiry { cutoffs, horizon: self.horizon.horizon },
            page,
            pages_max,
        );
        for (tenant, (events, bytes)) in &forgotten.by_tenant {
            if let Ok(tenant) = tenant.parse() {
                let usage = self.tallies.usage(rows, &tenant);
                usage.events = usage.events.saturating_sub(*events);
                usage.bytes = usage.bytes.saturating_sub(*bytes);
            }
        }
        self.tallies.write(rows);
        forgotten
    }

    /// Applies a part of one record: of an event's targets those of this range, of which the first
    /// part begins at 0. See [`Self::apply`].
    pub fn apply_part(
        &mut self,
        rows: &mut dyn Rows,
        position: Position,
        event: &Event,
        targets: std::ops::Range<usize>,
        announced: bool,
        changes: &mut Vec<LaneChange>,
    ) {
        Step { fold: self, rows, position, changes }.accept(event, targets, announced);
    }

    /// Applies one record and appends its lane changes. Call [`Self::write_tallies`] after a group
    /// of records. `announced` omits unordered deliveries of a new event, which the lanes have.
    pub fn apply(
        &mut self,
        rows: &mut dyn Rows,
        position: Position,
        record: &Record,
        announced: bool,
        changes: &mut Vec<LaneChange>,
    ) {
        let mut step = Step { fold: self, rows, position, changes };
        match record {
            Record::EventAccepted(event) => step.accept(event, 0..event.targets.len(), announced),
            Record::AttemptFinished { delivery, due, attempt } => step.finish(*delivery, *due, attempt),
            Record::EndpointPut(endpoint) => step.put_endpoint(endpoint),
            Record::RateReserved { endpoint, reservation } => step.reserve(*endpoint, reservation),
            Record::EndpointDeleted { endpoint, .. } => step.delete_endpoint(*endpoint),
            Record::KeyPut(key) => step.put_key(key),
            Record::KeyDeleted { id, .. } => step.delete_key(id),
            Record::KeyUsed { .. } | Record::TenantPut(_) | Record::TenantDeleted { .. } => {}
            Record::HorizonMoved { horizon, .. } => {
                step.fold.horizon = RecordedHorizon { horizon: *horizon, record: position };
            }
            Record::ConsumerPut(consumer) => consumers::define(step.rows, position, consumer),
            Record::ConsumerMoved { key, position: to, at } => {
                let place = ConsumerPlace { position: *to, moved_at: Some(*at) };
                consumers::advance(step.rows, position, key, place);
            }
            Record::ConsumerDeleted { key, .. } => consumers::remove(step.rows, key),
            Record::MessagesLeased { queue, messages, until, at, .. } => {
                for taken in messages {
                    step.take(*queue, *taken, *until, *at);
                }
            }
            Record::LeasesEnded { queue, ends, at, .. } => {
                for ended in ends {
                    step.end_lease(*queue, *ended, *at);
                }
            }
            Record::LeasesExtended { queue, leases, until, .. } => {
                for lease in leases {
                    step.extend_lease(*queue, *lease, *until);
                }
            }
            Record::TypePut(definition) => step.put_type(definition),
            Record::TypeDeleted { name, .. } => step.delete_type(name),
            Record::JobPut(job) => jobs::begin(step.rows, position, &job.progress),
            Record::JobMoved { job, progress } => jobs::advance(step.rows, position, *job, progress),
            Record::Audited(entry) => acts::put(step.rows, position, entry),
            // The rows of the state point at them.
            Record::SourcePut(_) | Record::SourceDeleted { .. } => {}
            Record::DeliveriesRevived { deliveries, trigger, at } => {
                for delivery in deliveries {
                    step.revive(*delivery, *trigger, *at);
                }
            }
            Record::DeliveriesCancelled { deliveries, at } => {
                for delivery in deliveries {
                    step.give_up(*delivery, DeliveryChange::Cancelled, *at);
                }
            }
            Record::DeliveriesDied { deliveries, reason, at } => {
                for delivery in deliveries {
                    step.give_up(*delivery, DeliveryChange::Died(*reason), *at);
                }
            }
            Record::DeadLettersPurged { deliveries, at } => {
                for delivery in deliveries {
                    step.purge(*delivery, *at);
                }
            }
            Record::DeliveriesReordered { deliveries, .. } => {
                for delivery in deliveries {
                    step.reorder(*delivery);
                }
            }
            Record::RequestAnswered { idempotency, .. } | Record::EventRejected { idempotency, .. } => {
                idempotency::remember(step.rows, step.fold.checkpoint, idempotency, position);
            }
            Record::EventErased { event, at, .. } => step.erase(*event, *at),
        }
    }
}

/// State of a delivery that has a place in its lane.
const PENDING: Option<DeliveryState> = Some(DeliveryState::Pending);

/// Application of one record.
struct Step<'a> {
    fold: &'a mut Fold,
    rows: &'a mut dyn Rows,
    position: Position,
    changes: &'a mut Vec<LaneChange>,
}

impl Step<'_> {
    fn lane(&mut self, endpoint: EndpointNumber) -> &mut Lane {
        self.fold.tallies.lane(self.rows, endpoint)
    }

    fn hour(&mut self, endpoint: EndpointNumber, at: Timestamp) -> &mut Hour {
        self.fold.tallies.hour(self.rows, endpoint, at)
    }

    fn put_endpoint(&mut self, endpoint: &Endpoint) {
        let before = self.fold.endpoints.insert(endpoint.number, endpoint.into());
        if before.is_none() {
            self.fold.tenants.insert(endpoint.number, endpoint.tenant.clone());
            self.usage(&endpoint.tenant).endpoints += 1;
        }
        let position = self.position;
        if Failing::is_ended_by(endpoint, before.as_ref().map(|before| before.change)) {
            self.lane(endpoint.number).failing = None;
        }
        let is_moved = |before: LiveEndpoint| before.destination != endpoint.destination();
        if endpoint.is_open() && before.is_none_or(|before| !before.is_open || is_moved(before)) {
            let lane = self.lane(endpoint.number);
            (lane.opened, lane.hold) = (position, None);
        }
    }

    fn delete_endpoint(&mut self, endpoint: EndpointNumber) {
        if self.fold.endpoints.remove(&endpoint).is_some()
            && let Some(usage) = self.usage_of(endpoint)
        {
            usage.endpoints = usage.endpoints.saturating_sub(1);
        }
        reserved::forget(self.rows, endpoint);
    }

    /// Ignores reservations of a deleted endpoint: their row would never be removed.
    fn reserve(&mut self, endpoint: EndpointNumber, reservation: &Reservation) {
        if self.fold.endpoints.contains_key(&endpoint) {
            let reserved = Reserved { reservation: *reservation, position: self.position };
            reserved::keep_latest(self.rows, &reserved, endpoint);
        }
    }

    /// The last state of a delivery, and where its next one belongs. `None` without an event.
    fn last_state(&self, delivery: DeliveryKey) -> Option<(StatePlace, Option<StateEntry>)> {
        let event = pages::event(self.rows, delivery.event)?;
        let (place, _) = StatePlace::find(self.rows, &event, delivery.endpoint);
        Some((place, states::state_of(self.rows, delivery, place)))
    }

    fn put_state(&mut self, place: StatePlace, entry: &StateEntry) {
        let Fold { blocks, checkpoint, .. } = &mut *self.fold;
        states::put(self.rows, blocks, *checkpoint, place, entry);
    }

    fn detail(&self, delivery: DeliveryKey, row: &Row, due: Timestamp) -> Detail {
        let known = if row.is_fresh() { None } else { pending::detail(self.rows, delivery) };
        known.unwrap_or_else(|| Detail {
            due,
            last: LastAttempt::default(),
            progress: row.progress,
            attempts: Vec::new(),
        })
    }

    /// The detail of a delivery in its place.
    fn detail_in(&self, delivery: DeliveryKey, place: &Place) -> Detail {
        match &place.kind {
            PlaceKind::Leased(lease) => self.leased_detail(delivery, lease),
            PlaceKind::Sendable | PlaceKind::Waiting => self.detail(delivery, &place.row, place.due),
        }
    }

    fn reschedule(&mut self, delivery: DeliveryKey, place: &Place, due: Timestamp, detail: &mut Detail) {
        detail.due = due;
        pending::put_detail(self.rows, delivery, detail);
        let row = Row { progress: detail.progress, ..place.row };
        match place.kind {
            PlaceKind::Sendable => {
                self.remove_due_key(delivery.endpoint, DueKey { due: place.due, event: delivery.event });
                self.add_due_key(delivery.endpoint, DueKey { due, event: delivery.event }, &row, false);
            }
            PlaceKind::Leased(_) => {
                self.remove_lease(delivery);
                self.add_due_key(delivery.endpoint, DueKey { due, event: delivery.event }, &row, false);
            }
            PlaceKind::Waiting => {
                if let Some(order) = row.order {
                    pending::requeue(self.rows, delivery, order, due, &row);
                }
            }
        }
    }

    fn settle(
        &mut self,
        delivery: DeliveryKey,
        place: StatePlace,
        from: Option<DeliveryState>,
        change: DeliveryChange,
        at: Timestamp,
        detail: &Detail,
    ) {
        let state = transition(from, change).expect("the caller checked the transition");
        let death = if matches!(state, DeliveryState::Dead(_)) { self.position } else { Position(0) };
        let entry = StateEntry {
            delivery,
            state,
            at,
            death,
            last: detail.last.clone(),
            attempts_made: detail.progress.attempts,
            attempts: detail.attempts.clone(),
        };
        self.put_state(place, &entry);
    }

    fn add_dead_letter(
        &mut self,
        delivery: DeliveryKey,
        place: StatePlace,
        reason: DeadReason,
        change: DeliveryChange,
        at: Timestamp,
        detail: &Detail,
    ) {
        self.settle(delivery, place, PENDING, change, at, detail);
        self.fold.totals.dead += 1;
        self.lane(delivery.endpoint).dead += 1;
        if let Some(usage) = self.usage_of(delivery.endpoint) {
            usage.dead += 1;
        }
        self.hour(delivery.endpoint, at).dead += 1;
        if let Some(event) = pages::event(self.rows, delivery.event) {
            let letter = Letter {
                delivery,
                death: self.position,
                died_at: at,
                reason,
                tenant: event.tenant,
                event_type: event.event_type,
            };
            let is_shared = self.is_shared(delivery.endpoint);
            dead::put(self.rows, &letter, is_shared);
        }
    }

    /// Whether the endpoint, live or deleted, takes the events of all tenants.
    fn is_shared(&self, endpoint: EndpointNumber) -> bool {
        self.fold.tenants.get(&endpoint).is_some_and(Tenant::is_every)
    }

    /// Ends a pending delivery without an attempt.
    fn give_up(&mut self, delivery: DeliveryKey, change: DeliveryChange, at: Timestamp) {
        let Some(place) = self.find_place(delivery) else { return };
        let mut detail = self.detail_in(delivery, &place);
        if let PlaceKind::Leased(lease) = &place.kind {
            self.end_with_message(delivery, lease, change, &mut detail, at);
        }
        self.remove_pending(delivery, &place);
        if let DeliveryChange::Died(reason) = change {
            self.add_dead_letter(delivery, place.row.place, reason, change, at, &detail);
        } else {
            self.settle(delivery, place.row.place, PENDING, change, at, &detail);
            self.hour(delivery.endpoint, at).cancelled += 1;
        }
    }
}

mod changes;
#[cfg(test)]
mod cost_tests;
mod erase;
#[cfg(test)]
mod tests;
mod usage;

//! The read interface of the state: every query, by name.
//!
//! Owns the list of queries. Another storage engine, such as a clustered database, implements this
//! trait. The queries concern deliveries, lanes and requests, never rows. The state answers them
//! from its rows, and the oracle of the tests from plain maps. One test suite compares both
//! (`conformance`).

mod consumers;

pub use consumers::ConsumerReads;

use std::ops::RangeInclusive;

use crate::domain::{
    DeadReason, DeliveryKey, DueKey, EndpointNumber, EventType, EventVersion, HeldLease, Horizon, Ordering,
    Position, Progress, Reservation, StreamName, Tenant, Timestamp,
};
use crate::projections::acts::{self, AuditFilter};
use crate::projections::counters::{self, Lane};
use crate::projections::dead::Letter;
use crate::projections::erasures::{self, ErasureFacts};
use crate::projections::feed::{self, FeedStep};
use crate::projections::fold::Totals;
use crate::projections::idempotency::{self, Known};
use crate::projections::leases;
use crate::projections::pending::{self, DueBehind, Misplaced, OrderId, Spot};
use crate::projections::reads::{self, Cursor, DeliveryFacts, Filter, Found, Past};
use crate::projections::reserved;
use crate::projections::retention::{self, Cutoffs, Overdue};
use crate::projections::stats::{self, Hour};
use crate::projections::streams::{self, Head};
use crate::projections::tenant_hours::{self, TenantHour};
use crate::projections::type_usage::{self, TypeUsage};
use crate::projections::usage::{self, Usage};
use crate::rules::event_status::event_status;
use crate::rules::feed::FeedFilter;

use crate::storage::state::State;

/// A dead letter: the delivery, the reason and the time of death.
pub type DeadLetter = (DeliveryFacts, DeadReason, Timestamp);

/// A consistent view at one position.
pub trait ReadModel: ConsumerReads {
    /// Position that all answers reflect.
    fn applied(&self) -> Position;
    /// Totals over all endpoints.
    fn totals(&self) -> Totals;
    /// How far retention has forgotten events.
    fn horizon(&self) -> Horizon;
    /// Bytes on disk.
    fn size_bytes(&self) -> u64;

    fn lane(&self, endpoint: EndpointNumber) -> Lane;
    /// Lanes of all endpoints that ever had a delivery, by number.
    fn lanes(&self) -> Vec<(EndpointNumber, Lane)>;
    /// The endpoint's latest rate reservation.
    fn reservation(&self, endpoint: EndpointNumber) -> Option<Reservation>;
    /// Sendable deliveries of a lane after a key, in lane order, and whether the list is complete.
    fn sendable(
        &self,
        endpoint: EndpointNumber,
        after: Option<DueKey>,
        limit: usize,
    ) -> (Vec<(DueKey, Progress)>, bool);
    /// Some pending deliveries of an endpoint, sendable or not.
    fn pending(&self, endpoint: EndpointNumber, limit: usize) -> Vec<DeliveryKey>;
    /// See [`pending::misplaced`].
    fn misplaced(
        &self,
        endpoint: EndpointNumber,
        ordering: Ordering,
        after: Option<Spot>,
        limit: usize,
    ) -> Misplaced;
    /// See [`pending::due_behind`].
    fn due_behind(&self, endpoint: EndpointNumber, from: OrderId, now: Timestamp, limit: usize) -> DueBehind;
    /// Leases of a queue after an event, by event.
    fn leases(&self, queue: EndpointNumber, after: Position, limit: usize) -> Vec<(Position, HeldLease)>;
    /// Acceptance time of the event that the lane sends next.
    fn oldest_pending(&self, endpoint: EndpointNumber) -> Option<Timestamp>;
    /// Sum over all hours that the window overlaps.
    fn statistics(&self, endpoint: EndpointNumber, since: Timestamp, until: Timestamp) -> Hour;
    /// Each hour of the window with any statistics, by its number since the Unix epoch.
    fn hours(&self, endpoint: EndpointNumber, since: Timestamp, until: Timestamp) -> Vec<(u64, Hour)>;
    /// See [`tenant_hours::hours`].
    fn tenant_hours(
        &self,
        tenant: Option<&Tenant>,
        since: Timestamp,
        until: Timestamp,
    ) -> Vec<(u64, TenantHour)>;
    fn usage(&self, tenant: &Tenant) -> Usage;
    /// Tenants with usage after a name, by name.
    fn tenants(&self, after: Option<&Tenant>, limit: usize) -> Vec<(Tenant, Usage)>;

    /// Versions of a registered event type that have had events, by version.
    fn type_usage(&self, name: &EventType) -> Vec<(EventVersion, TypeUsage)>;

    /// See [`retention::overdue`].
    fn overdue(&self, cutoffs: Cutoffs, page: u64) -> Overdue;

    /// Whether the state has an event at this position.
    fn knows(&self, event: Position) -> bool;
    /// See [`erasures::erasure`].
    fn erasure(&self, event: Position) -> Option<ErasureFacts>;
    fn delivery(&self, key: DeliveryKey) -> Option<DeliveryFacts>;
    /// Deliveries of an event, by endpoint.
    fn deliveries_of(&self, event: Position) -> Vec<DeliveryFacts>;
    fn dead_letter(&self, key: DeliveryKey) -> Option<DeadLetter>;
    /// See [`reads::events`].
    fn events(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Found<Position>;
    /// See [`feed::look`].
    fn feed(&self, filter: &FeedFilter, after: Position, until: Position, limit: usize) -> FeedStep;
    /// See [`reads::past`].
    fn past(
        &self,
        filter: &Filter,
        endpoint: EndpointNumber,
        after: Option<Cursor>,
        limit: usize,
    ) -> Found<Past>;
    /// See [`reads::past_of`].
    fn past_of(&self, endpoint: EndpointNumber, events: &[Position]) -> Vec<Past>;
    /// See [`reads::deliveries`].
    fn deliveries(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Found<DeliveryFacts>;
    /// See [`reads::dead_letters`].
    fn dead_letters(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Found<Letter>;

    /// See [`acts::list`].
    fn audit_entries(&self, filter: &AuditFilter, after: Option<Cursor>, limit: usize) -> Found<Position>;

    /// The stored request with this scope. It may have expired.
    fn request(&self, scope: &[u8; 16]) -> Option<Known>;
    fn stream(&self, tenant: &Tenant, stream: &StreamName) -> Option<Head>;
    /// See [`streams::positions`].
    fn stream_positions(
        &self,
        tenant: &Tenant,
        stream: &StreamName,
        versions: RangeInclusive<u64>,
    ) -> Vec<(u64, Position)>;
    /// See [`streams::version_before`].
    fn stream_version_before(&self, tenant: &Tenant, stream: &StreamName, until: Timestamp) -> u64;
    /// See [`streams::list`].
    fn streams(
        &self,
        tenant: &Tenant,
        prefix: &str,
        after: Option<&StreamName>,
        limit: usize,
    ) -> Vec<(StreamName, Head)>;
}

impl ReadModel for State {
    fn applied(&self) -> Position {
        self.applied()
    }

    fn totals(&self) -> Totals {
        self.cursor().totals
    }

    fn horizon(&self) -> Horizon {
        self.horizon().horizon
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes()
    }

    fn lane(&self, endpoint: EndpointNumber) -> Lane {
        counters::lane(self.rows(), endpoint)
    }

    fn lanes(&self) -> Vec<(EndpointNumber, Lane)> {
        counters::all(self.rows())
    }

    fn reservation(&self, endpoint: EndpointNumber) -> Option<Reservation> {
        reserved::latest(self.rows(), endpoint).map(|latest| latest.reservation)
    }

    fn sendable(
        &self,
        endpoint: EndpointNumber,
        after: Option<DueKey>,
        limit: usize,
    ) -> (Vec<(DueKey, Progress)>, bool) {
        pending::refill(self.rows(), endpoint, after, limit)
    }

    fn pending(&self, endpoint: EndpointNumber, limit: usize) -> Vec<DeliveryKey> {
        pending::endpoint_deliveries(self.rows(), endpoint, limit)
    }

    fn misplaced(
        &self,
        endpoint: EndpointNumber,
        ordering: Ordering,
        after: Option<Spot>,
        limit: usize,
    ) -> Misplaced {
        pending::misplaced(self.rows(), endpoint, ordering, after, limit)
    }

    fn due_behind(&self, endpoint: EndpointNumber, from: OrderId, now: Timestamp, limit: usize) -> DueBehind {
        pending::due_behind(self.rows(), endpoint, from, now, limit)
    }

    fn leases(&self, queue: EndpointNumber, after: Position, limit: usize) -> Vec<(Position, HeldLease)> {
        leases::of_queue(self.rows(), queue, after, limit)
    }

    fn oldest_pending(&self, endpoint: EndpointNumber) -> Option<Timestamp> {
        reads::oldest_pending(self.rows(), endpoint)
    }

    fn statistics(&self, endpoint: EndpointNumber, since: Timestamp, until: Timestamp) -> Hour {
        stats::window(self.rows(), endpoint, since, until)
    }

    fn hours(&self, endpoint: EndpointNumber, since: Timestamp, until: Timestamp) -> Vec<(u64, Hour)> {
        stats::hours(self.rows(), endpoint, since, until)
    }

    fn tenant_hours(
        &self,
        tenant: Option<&Tenant>,
        since: Timestamp,
        until: Timestamp,
    ) -> Vec<(u64, TenantHour)> {
        tenant_hours::hours(self.rows(), tenant, since, until)
    }

    fn usage(&self, tenant: &Tenant) -> Usage {
        usage::usage(self.rows(), tenant)
    }

    fn type_usage(&self, name: &EventType) -> Vec<(EventVersion, TypeUsage)> {
        type_usage::of_type(self.rows(), name)
    }

    fn tenants(&self, after: Option<&Tenant>, limit: usize) -> Vec<(Tenant, Usage)> {
        usage::after(self.rows(), after.map(Tenant::as_str), limit)
    }

    fn overdue(&self, cutoffs: Cutoffs, page: u64) -> Overdue {
        retention::overdue(self.rows(), cutoffs, page)
    }

    fn knows(&self, event: Position) -> bool {
        reads::has_event(self.rows(), event)
    }

    fn erasure(&self, event: Position) -> Option<ErasureFacts> {
        erasures::erasure(self.rows(), event)
    }

    fn delivery(&self, key: DeliveryKey) -> Option<DeliveryFacts> {
        reads::delivery(self.rows(), key)
    }

    fn deliveries_of(&self, event: Position) -> Vec<DeliveryFacts> {
        reads::deliveries_of(self.rows(), event)
    }

    fn dead_letter(&self, key: DeliveryKey) -> Option<DeadLetter> {
        reads::dead_letter(self.rows(), key)
    }

    fn events(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Found<Position> {
        reads::events(self.rows(), filter, after, limit, |states| event_status(states).as_str())
    }

    fn feed(&self, filter: &FeedFilter, after: Position, until: Position, limit: usize) -> FeedStep {
        let mut sieve = filter.sieve();
        let of = (filter.tenant.as_ref().map(Tenant::as_str), filter.only_stream());
        feed::look(self.rows(), of, (after, until.min(self.applied())), limit, |event| {
            let is_wanted = sieve.wants_named(event.tenant, event.event_type, event.stream);
            (is_wanted, sieve.work)
        })
    }

    fn past(
        &self,
        filter: &Filter,
        endpoint: EndpointNumber,
        after: Option<Cursor>,
        limit: usize,
    ) -> Found<Past> {
        reads::past(self.rows(), filter, endpoint, after, limit)
    }

    fn past_of(&self, endpoint: EndpointNumber, events: &[Position]) -> Vec<Past> {
        reads::past_of(self.rows(), endpoint, events)
    }

    fn deliveries(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Found<DeliveryFacts> {
        reads::deliveries(self.rows(), filter, after, limit)
    }

    fn dead_letters(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Found<Letter> {
        reads::dead_letters(self.rows(), filter, after, limit)
    }

    fn audit_entries(&self, filter: &AuditFilter, after: Option<Cursor>, limit: usize) -> Found<Position> {
        acts::list(self.rows(), filter, after, limit)
    }

    fn request(&self, scope: &[u8; 16]) -> Option<Known> {
        idempotency::known(self.rows(), scope)
    }

    fn stream(&self, tenant: &Tenant, stream: &StreamName) -> Option<Head> {
        streams::head(self.rows(), tenant, stream)
    }

    fn stream_positions(
        &self,
        tenant: &Tenant,
        stream: &StreamName,
        versions: RangeInclusive<u64>,
    ) -> Vec<(u64, Position)> {
        streams::positions(self.rows(), tenant, stream, versions)
    }

    fn stream_version_before(&self, tenant: &Tenant, stream: &StreamName, until: Timestamp) -> u64 {
        streams::version_before(self.rows(), tenant, stream, until)
    }

    fn streams(
        &self,
        tenant: &Tenant,
        prefix: &str,
        after: Option<&StreamName>,
        limit: usize,
    ) -> Vec<(StreamName, Head)> {
        streams::list(self.rows(), tenant, prefix, after, limit)
    }
}

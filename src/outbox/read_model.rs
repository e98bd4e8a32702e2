//! Every question that is asked of the state, by name.
//!
//! Owns the list: whoever keeps events in another way (a database with several nodes) answers these, and nothing else has
//! to know how. They are about deliveries, lanes and requests, never about rows. The state answers them from its rows; the
//! oracle of the tests from plain maps; one suite asks both (`conformance`).

use crate::domain::{
    DeadReason, DeliveryKey, DueKey, EndpointNumber, Ordering, Position, Progress, Reservation, StreamName,
    Tenant, Timestamp,
};
use crate::projections::counters::{self, Lane};
use crate::projections::dead::Letter;
use crate::projections::fold::Totals;
use crate::projections::idempotency::{self, Known};
use crate::projections::pending::{self, DueBehind, Misplaced, OrderHash, Spot};
use crate::projections::reads::{self, Cursor, DeliveryFacts, Filter, Found, Past};
use crate::projections::reserved;
use crate::projections::retention::{self, Cutoffs, Overdue};
use crate::projections::stats::{self, Hour};
use crate::projections::streams::{self, Head};
use crate::rules::event_status::event_status;

use crate::storage::state::State;

/// A dead letter: what is known of the delivery, why it died and when.
pub type DeadLetter = (DeliveryFacts, DeadReason, Timestamp);

/// Answers of one moment.
pub trait ReadModel {
    /// The position that all answers reflect.
    fn applied(&self) -> Position;
    /// Over all endpoints.
    fn totals(&self) -> Totals;
    /// Bytes on disk.
    fn size_bytes(&self) -> u64;

    fn lane(&self, endpoint: EndpointNumber) -> Lane;
    /// Of every endpoint that ever had a delivery, by number.
    fn lanes(&self) -> Vec<(EndpointNumber, Lane)>;
    /// The endpoint's latest reservation of its rate.
    fn reservation(&self, endpoint: EndpointNumber) -> Option<Reservation>;
    /// What a lane may send, in its order, after a key; and whether that is all.
    fn sendable(
        &self,
        endpoint: EndpointNumber,
        after: Option<DueKey>,
        limit: usize,
    ) -> (Vec<(DueKey, Progress)>, bool);
    /// Some of what is pending for an endpoint, sendable or not.
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
    fn due_behind(
        &self,
        endpoint: EndpointNumber,
        from: OrderHash,
        now: Timestamp,
        limit: usize,
    ) -> DueBehind;
    /// Acceptance of the event that a lane would send first.
    fn oldest_pending(&self, endpoint: EndpointNumber) -> Option<Timestamp>;
    /// The sum over the hours that the window touches.
    fn statistics(&self, endpoint: EndpointNumber, since: Timestamp, until: Timestamp) -> Hour;

    /// See [`retention::overdue`].
    fn overdue(&self, cutoffs: Cutoffs, page: u64) -> Overdue;

    /// Whether there is an event at this position.
    fn knows(&self, event: Position) -> bool;
    fn delivery(&self, key: DeliveryKey) -> Option<DeliveryFacts>;
    /// By endpoint.
    fn deliveries_of(&self, event: Position) -> Vec<DeliveryFacts>;
    fn dead_letter(&self, key: DeliveryKey) -> Option<DeadLetter>;
    /// See [`reads::events`].
    fn events(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Found<Position>;
    /// See [`reads::past`].
    fn past(
        &self,
        filter: &Filter,
        endpoint: EndpointNumber,
        after: Option<Cursor>,
        limit: usize,
    ) -> Found<Past>;
    /// See [`reads::deliveries`].
    fn deliveries(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Found<DeliveryFacts>;
    /// See [`reads::dead_letters`].
    fn dead_letters(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Found<Letter>;

    /// An earlier request with this scope, maybe expired.
    fn request(&self, scope: &[u8; 16]) -> Option<Known>;
    fn stream(&self, tenant: &Tenant, stream: &StreamName) -> Option<Head>;
}

impl ReadModel for State {
    fn applied(&self) -> Position {
        self.applied()
    }

    fn totals(&self) -> Totals {
        self.cursor().totals
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
        pending::of_endpoint(self.rows(), endpoint, limit)
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

    fn due_behind(
        &self,
        endpoint: EndpointNumber,
        from: OrderHash,
        now: Timestamp,
        limit: usize,
    ) -> DueBehind {
        pending::due_behind(self.rows(), endpoint, from, now, limit)
    }

    fn oldest_pending(&self, endpoint: EndpointNumber) -> Option<Timestamp> {
        reads::oldest_pending(self.rows(), endpoint)
    }

    fn statistics(&self, endpoint: EndpointNumber, since: Timestamp, until: Timestamp) -> Hour {
        stats::window(self.rows(), endpoint, since, until)
    }

    fn overdue(&self, cutoffs: Cutoffs, page: u64) -> Overdue {
        retention::overdue(self.rows(), cutoffs, page)
    }

    fn knows(&self, event: Position) -> bool {
        reads::knows(self.rows(), event)
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

    fn past(
        &self,
        filter: &Filter,
        endpoint: EndpointNumber,
        after: Option<Cursor>,
        limit: usize,
    ) -> Found<Past> {
        reads::past(self.rows(), filter, endpoint, after, limit)
    }

    fn deliveries(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Found<DeliveryFacts> {
        reads::deliveries(self.rows(), filter, after, limit)
    }

    fn dead_letters(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Found<Letter> {
        reads::dead_letters(self.rows(), filter, after, limit)
    }

    fn request(&self, scope: &[u8; 16]) -> Option<Known> {
        idempotency::known(self.rows(), scope)
    }

    fn stream(&self, tenant: &Tenant, stream: &StreamName) -> Option<Head> {
        streams::head(self.rows(), tenant, stream)
    }
}

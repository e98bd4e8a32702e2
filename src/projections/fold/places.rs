//! Places of pending deliveries: sendable in their lane, leased, or queued behind others.

use super::Step;
use crate::domain::{DeliveryKey, DueKey, EndpointNumber, Ordering, Timestamp};
use crate::failpoints::{self, Mutation};
use crate::projections::fold::LaneChange;
use crate::projections::leases::LeaseRow;
use crate::projections::pending::{OrderId, Row, WHOLE_ENDPOINT};
use crate::projections::{leases, pages, pending};

/// Place of a pending delivery.
pub(super) struct Place {
    pub(super) due: Timestamp,
    pub(super) kind: PlaceKind,
    pub(super) row: Row,
    /// The delivery may have a row of details.
    pub(super) has_detail: bool,
}

/// Kind of a pending delivery's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PlaceKind {
    /// A lane may send it: it has a `D` row.
    Sendable,
    /// A worker has taken it: it has a `G` row.
    Leased(LeaseRow),
    /// It is behind others of its order: it has only a `W` row.
    Waiting,
}

impl Step<'_> {
    pub(super) fn queue_for(&self, endpoint: EndpointNumber, order: OrderId) -> Option<OrderId> {
        match self.fold.endpoints.get(&endpoint)?.ordering {
            Ordering::None => None,
            Ordering::Key => Some(order),
            Ordering::Endpoint => Some(WHOLE_ENDPOINT),
        }
    }

    pub(super) fn add_pending(&mut self, delivery: DeliveryKey, due: Timestamp, row: Row, announced: bool) {
        self.fold.totals.pending += 1;
        self.lane(delivery.endpoint).pending += 1;
        if let Some(usage) = self.usage_of(delivery.endpoint) {
            usage.pending += 1;
        }
        self.enter_place(delivery, due, &row, announced);
    }

    /// Puts a pending delivery into its lane, or into its queue behind other deliveries.
    pub(super) fn enter_place(&mut self, delivery: DeliveryKey, due: Timestamp, row: &Row, announced: bool) {
        let sendable = match row.order {
            None => true,
            Some(order) => {
                let alone = pending::enqueue(self.rows, delivery, order, due, row);
                alone || failpoints::is_active(Mutation::LetTwoThrough)
            }
        };
        if sendable {
            self.add_due_key(delivery.endpoint, DueKey { due, event: delivery.event }, row, announced);
        } else {
            self.lane(delivery.endpoint).waiting += 1;
        }
    }

    pub(super) fn add_due_key(&mut self, endpoint: EndpointNumber, key: DueKey, row: &Row, announced: bool) {
        pending::put_due(self.rows, endpoint, key, row);
        if !announced {
            self.changes.push(LaneChange::Due { endpoint, key, progress: row.progress, at: self.position });
        }
    }

    pub(super) fn remove_pending(&mut self, delivery: DeliveryKey, place: &Place) {
        self.fold.totals.pending = self.fold.totals.pending.saturating_sub(1);
        let lane = self.lane(delivery.endpoint);
        lane.pending = lane.pending.saturating_sub(1);
        if let Some(usage) =
            self.usage_of(delivery.endpoint).filter(|_| !failpoints::is_active(Mutation::ForgetUsage))
        {
            usage.pending = usage.pending.saturating_sub(1);
        }
        debug_assert!(place.has_detail || pending::detail(self.rows, delivery).is_none());
        if place.has_detail {
            pending::remove_detail(self.rows, delivery);
        }
        self.leave_place(delivery, place);
        self.release_next(delivery.endpoint, place);
    }

    /// Removes a pending delivery from its lane and its queue.
    pub(super) fn leave_place(&mut self, delivery: DeliveryKey, place: &Place) {
        let key = DueKey { due: place.due, event: delivery.event };
        match place.kind {
            PlaceKind::Sendable if failpoints::is_active(Mutation::SettleTwice) => {}
            PlaceKind::Sendable => self.remove_due_key(delivery.endpoint, key),
            PlaceKind::Leased(_) => self.remove_lease(delivery),
            PlaceKind::Waiting => {
                let lane = self.lane(delivery.endpoint);
                lane.waiting = lane.waiting.saturating_sub(1);
            }
        }
        if let Some(order) = place.row.order {
            pending::dequeue(self.rows, delivery, order);
        }
    }

    pub(super) fn remove_due_key(&mut self, endpoint: EndpointNumber, key: DueKey) {
        pending::remove_due(self.rows, endpoint, key);
        self.changes.push(LaneChange::Settled { endpoint, key, at: self.position });
    }

    /// Makes the next delivery of a queue sendable after a sendable or leased one has left.
    pub(super) fn release_next(&mut self, endpoint: EndpointNumber, left: &Place) {
        let Some(order) = left.row.order.filter(|_| left.kind != PlaceKind::Waiting) else { return };
        let head = pending::queue_head(self.rows, endpoint, order);
        let is_first = |event| {
            let delivery = DeliveryKey { event, endpoint };
            self.find_place(delivery).is_some_and(|place| place.kind != PlaceKind::Waiting)
        };
        if let Some((key, mut row)) = head.filter(|(key, _)| !is_first(key.event)) {
            row.order = Some(order);
            let lane = self.lane(endpoint);
            lane.waiting = lane.waiting.saturating_sub(1);
            self.add_due_key(endpoint, key, &row, false);
        }
    }

    /// The place of a delivery; `None` if it is not pending. A pending delivery has a `D` or a `W`
    /// row, so this reads neither the targets of its event nor any state.
    pub(super) fn find_place(&self, delivery: DeliveryKey) -> Option<Place> {
        let event = pages::event(self.rows, delivery.event)?;
        let detail = pending::detail(self.rows, delivery);
        let due = detail.as_ref().map_or(event.first_due, |detail| detail.due);
        let has_detail = detail.is_some();
        if let Some(row) =
            pending::due_row(self.rows, delivery.endpoint, DueKey { due, event: delivery.event })
        {
            return Some(Place { due, kind: PlaceKind::Sendable, row, has_detail });
        }
        if let Some(lease) = leases::get(self.rows, delivery) {
            let (due, kind) = (lease.until, PlaceKind::Leased(lease));
            return Some(Place { due, kind, row: lease.row, has_detail });
        }
        let waiting = [event.order, WHOLE_ENDPOINT].into_iter().find_map(|order| {
            pending::queued(self.rows, delivery, order).map(|(due, row)| (due, row, order))
        });
        let (due, row, order) = waiting?;
        let row = Row { order: Some(order), ..row };
        Some(Place { due, kind: PlaceKind::Waiting, row, has_detail })
    }
}

//! Application of leases: taken messages, ends and extensions.
//!
//! Each record names the lease, or the place, that it rests on. A message that has left it stays
//! unchanged: another record was first.

use super::attempts::push_attempt;
use super::places::{Place, PlaceKind};
use super::{LaneChange, PENDING, Step};
use crate::domain::delivery::transition;
use crate::domain::{
    DeliveryChange, DeliveryKey, DeliveryState, DueKey, EndedLease, EndpointNumber, LastAttempt, LeaseEnd,
    LeaseKey, LeaseOutcome, Next, Position, TakenFrom, TakenMessage, Timestamp, Trigger,
};
use crate::failpoints::{self, Mutation};
use crate::projections::leases::LeaseRow;
use crate::projections::pending::{Detail, OrderId, Row};
use crate::projections::{leases, pages, pending};

impl Step<'_> {
    /// A worker takes a message.
    pub(super) fn take(
        &mut self,
        queue: EndpointNumber,
        taken: TakenMessage,
        until: Timestamp,
        at: Timestamp,
    ) {
        let key = DeliveryKey { event: taken.event, endpoint: queue };
        let left = match taken.from {
            TakenFrom::Due(due) => self.take_due(key, due),
            TakenFrom::Lease(position) => self.take_again(key, position, at),
        };
        let lease = left.map(|mut row| {
            row.progress.attempts += 1;
            row.progress.attempts_in_series += 1;
            row.progress.first_attempt.get_or_insert(at);
            let lease = LeaseRow {
                position: self.position,
                since: at,
                until,
                extension: Position(0),
                is_released: false,
                row,
            };
            match taken.from {
                TakenFrom::Due(_) => leases::put_new(self.rows, key, &lease),
                TakenFrom::Lease(_) => leases::put(self.rows, key, &lease),
            }
            lease.held()
        });
        self.changes.push(LaneChange::Taken { endpoint: queue, taken, lease });
    }

    /// Takes a message from its lane. The queue order is not checked: retention may have removed
    /// earlier messages of the queue from the journal, so that a rebuilt state has another order.
    fn take_due(&mut self, key: DeliveryKey, due: Timestamp) -> Option<Row> {
        let due_key = DueKey { due, event: key.event };
        if let Some(row) = pending::due_row(self.rows, key.endpoint, due_key) {
            self.remove_due_key(key.endpoint, due_key);
            return Some(row);
        }
        let place = self.find_place(key).filter(|place| place.kind == PlaceKind::Waiting && place.due == due);
        let row = place?.row;
        // None may be sent under a lease.
        let order = row.order?;
        let first = pending::sendable_of(self.rows, key.endpoint, order)?;
        self.displace(key.endpoint, first, order);
        Some(row)
    }

    /// The message that may be sent waits from now on. Its row in the queue is from when it last
    /// waited: since then it may have been tried or revived.
    fn displace(&mut self, queue: EndpointNumber, first: DueKey, order: OrderId) {
        if let Some(row) = pending::due_row(self.rows, queue, first) {
            let delivery = DeliveryKey { event: first.event, endpoint: queue };
            pending::requeue(self.rows, delivery, order, first.due, &row);
        }
        self.remove_due_key(queue, first);
    }

    /// Takes over from a lease that has run out or was released.
    fn take_again(&mut self, key: DeliveryKey, position: Position, at: Timestamp) -> Option<Row> {
        let lease = leases::get(self.rows, key)?;
        if lease.position != position && !failpoints::is_active(Mutation::LeaseTwice) {
            return None;
        }
        let mut row = lease.row;
        if !lease.is_released {
            self.count_lease(key, &lease, LeaseOutcome::Expired, at);
            let detail = self.leased_detail(key, &lease);
            pending::put_detail(self.rows, key, &detail);
            row.progress.trigger = Trigger::Retry;
        }
        Some(row)
    }

    /// The history of a leased message, with its lease.
    pub(super) fn leased_detail(&self, key: DeliveryKey, lease: &LeaseRow) -> Detail {
        Self::with_lease(pending::detail(self.rows, key), lease)
    }

    fn with_lease(known: Option<Detail>, lease: &LeaseRow) -> Detail {
        let mut attempts = known.map(|detail| detail.attempts).unwrap_or_default();
        lease.history().for_each(|position| push_attempt(&mut attempts, position));
        Detail { due: lease.until, last: LastAttempt::default(), progress: lease.row.progress, attempts }
    }

    /// Counts a lease that ends as an attempt. A message that ends under its lease ends the lease,
    /// and a release ends it before a late receipt, so each lease counts once.
    fn count_lease(&mut self, key: DeliveryKey, lease: &LeaseRow, outcome: LeaseOutcome, at: Timestamp) {
        // The time after it is that of the next worker's arrival.
        let ended_at = if outcome == LeaseOutcome::Expired { lease.until } else { at };
        let duration = ended_at.since(lease.since);
        self.count_attempt(key.endpoint, at, duration);
        if !lease.is_released {
            self.changes.push(LaneChange::LeaseCounted { outcome, duration });
        }
    }

    /// The lease ends, because its message ends without its worker.
    pub(super) fn end_with_message(
        &mut self,
        key: DeliveryKey,
        lease: &LeaseRow,
        change: DeliveryChange,
        detail: &mut Detail,
        at: Timestamp,
    ) {
        if lease.is_released {
            return;
        }
        let died = match change {
            DeliveryChange::Died(reason) => Some(reason),
            _ => None,
        };
        let outcome = LeaseOutcome::of_ended_message(died, lease.until, at);
        self.count_lease(key, lease, outcome, at);
        if outcome != LeaseOutcome::Expired {
            let last = detail.attempts.pop();
            push_attempt(&mut detail.attempts, self.position);
            last.into_iter().for_each(|last| push_attempt(&mut detail.attempts, last));
        }
    }

    /// A worker ends a lease.
    pub(super) fn end_lease(&mut self, queue: EndpointNumber, ended: EndedLease, at: Timestamp) {
        let EndedLease { key: LeaseKey { event, lease: position }, end } = ended;
        let key = DeliveryKey { event, endpoint: queue };
        let held = leases::get(self.rows, key);
        let is_its =
            |lease: &LeaseRow| lease.position == position || failpoints::is_active(Mutation::AckStale);
        match held.filter(is_its) {
            Some(lease) => self.end_held(key, &lease, end, at),
            None if end == LeaseEnd::Acked => self.ack_ended(key, position, at),
            None => {}
        }
    }

    fn end_held(&mut self, key: DeliveryKey, lease: &LeaseRow, end: LeaseEnd, at: Timestamp) {
        // The message has returned already.
        if matches!(end, LeaseEnd::Released | LeaseEnd::Lost(_)) && lease.is_released {
            return;
        }
        let known = pending::detail(self.rows, key);
        let has_detail = known.is_some();
        let mut detail = Self::with_lease(known, lease);
        push_attempt(&mut detail.attempts, self.position);
        if matches!(end, LeaseEnd::Lost(_)) && !failpoints::is_active(Mutation::ForgetLostAnswers) {
            detail.progress.lost_answers += 1;
        }
        let kind = PlaceKind::Leased(*lease);
        let place = Place { due: lease.until, kind, row: lease.row, has_detail };
        match end {
            LeaseEnd::Acked => {
                self.count_lease(key, lease, end.into(), at);
                self.hour(key.endpoint, at).delivered += 1;
                self.remove_pending(key, &place);
                let change = DeliveryChange::Attempted(Next::Delivered);
                self.settle(key, lease.row.place, PENDING, change, at, &detail);
            }
            LeaseEnd::Released | LeaseEnd::Lost(None) => self.release_lease(key, lease, detail, at),
            LeaseEnd::Requeued(due) | LeaseEnd::Lost(Some(due)) => {
                self.count_lease(key, lease, end.into(), at);
                detail.progress.trigger = Trigger::Retry;
                self.requeue_leased(key, &place, due, &mut detail);
            }
            LeaseEnd::Dead(reason) => {
                self.count_lease(key, lease, end.into(), at);
                self.remove_pending(key, &place);
                let change = DeliveryChange::Attempted(Next::Dead(reason));
                self.add_dead_letter(key, lease.row.place, reason, change, at, &detail);
            }
        }
    }

    /// The message stays under the released lease until another worker takes it, in front of
    /// fresh messages.
    fn release_lease(&mut self, key: DeliveryKey, lease: &LeaseRow, mut detail: Detail, at: Timestamp) {
        let progress = &mut detail.progress;
        if !failpoints::is_active(Mutation::CountRelease) {
            progress.attempts = progress.attempts.saturating_sub(1);
            progress.attempts_in_series = progress.attempts_in_series.saturating_sub(1);
        }
        let row = Row { progress: *progress, ..lease.row };
        pending::put_detail(self.rows, key, &detail);
        let (outcome, duration) = (LeaseOutcome::Released, at.since(lease.since));
        self.changes.push(LaneChange::LeaseCounted { outcome, duration });
        self.put_lease(key, &LeaseRow { until: at, is_released: true, row, ..*lease });
    }

    /// Moves a leased message to its place in the queue's current ordering.
    fn requeue_leased(&mut self, key: DeliveryKey, place: &Place, due: Timestamp, detail: &mut Detail) {
        let order = self.current_order(key).unwrap_or(place.row.order);
        if order != place.row.order {
            self.leave_place(key, place);
            self.release_next(key.endpoint, place);
            detail.due = due;
            pending::put_detail(self.rows, key, detail);
            return self.enter_place(key, due, &Row { progress: detail.progress, order, ..place.row }, false);
        }
        self.reschedule(key, place, due, detail);
    }

    /// The order of a message in the queue's current ordering; `None` if queue or event is gone.
    fn current_order(&self, key: DeliveryKey) -> Option<Option<OrderId>> {
        let is_live = self.fold.endpoints.contains_key(&key.endpoint);
        let event = pages::event(self.rows, key.event).filter(|_| is_live)?;
        Some(self.queue_for(key.endpoint, event.order))
    }

    /// The message ended before its lease did. A success still counts.
    fn ack_ended(&mut self, key: DeliveryKey, lease: Position, at: Timestamp) {
        let Some((place, Some(mut entry))) = self.last_state(key) else { return };
        if entry.state == DeliveryState::Pending || entry.attempts.last() != Some(&lease) {
            return;
        }
        let change = DeliveryChange::Attempted(Next::Delivered);
        let Some(state) = transition(Some(entry.state), change) else { return };
        self.remove_dead_letter(&entry);
        self.hour(key.endpoint, at).delivered += 1;
        push_attempt(&mut entry.attempts, self.position);
        (entry.state, entry.at, entry.death) = (state, at, Position(0));
        self.put_state(place, &entry);
    }

    /// A worker keeps a lease for longer.
    pub(super) fn extend_lease(&mut self, queue: EndpointNumber, key: LeaseKey, until: Timestamp) {
        let delivery = DeliveryKey { event: key.event, endpoint: queue };
        let held = leases::get(self.rows, delivery);
        if let Some(lease) = held.filter(|lease| lease.position == key.lease && !lease.is_released) {
            let extension = self.position;
            self.put_lease(delivery, &LeaseRow { until, extension, ..lease });
        }
    }

    /// Replaces the row of a lease.
    pub(super) fn put_lease(&mut self, key: DeliveryKey, lease: &LeaseRow) {
        leases::put(self.rows, key, lease);
        let DeliveryKey { event, endpoint } = key;
        self.changes.push(LaneChange::LeaseChanged { endpoint, event, lease: lease.held() });
    }

    /// Removes the row of a lease.
    pub(super) fn remove_lease(&mut self, key: DeliveryKey) {
        leases::remove(self.rows, key);
        self.changes.push(LaneChange::LeaseEnded { endpoint: key.endpoint, event: key.event });
    }
}

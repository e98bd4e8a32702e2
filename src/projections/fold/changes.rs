//! Changes by operators: reordered and revived deliveries, purged dead letters.

use super::places::PlaceKind;
use super::{PENDING, Step};
use crate::domain::delivery::transition;
use crate::domain::{
    DeliveryChange, DeliveryKey, DeliveryState, LastAttempt, Position, Progress, Timestamp, Trigger,
};
use crate::failpoints::{self, Mutation};
use crate::projections::leases::LeaseRow;
use crate::projections::pending::{self, Detail, Row};
use crate::projections::states::StateEntry;
use crate::projections::{dead, pages};

impl Step<'_> {
    /// Moves a pending delivery to its place in the current ordering. Keeps due time and attempts.
    pub(super) fn reorder(&mut self, delivery: DeliveryKey) {
        let Some(place) = self.find_place(delivery) else { return };
        // A leased message moves when its lease ends.
        if matches!(place.kind, PlaceKind::Leased(_)) {
            return;
        }
        let Some(event) = pages::event(self.rows, delivery.event) else { return };
        let order = self.queue_for(delivery.endpoint, event.order);
        if order != place.row.order {
            self.leave_place(delivery, &place);
            if !failpoints::is_active(Mutation::StrandQueue) {
                self.release_next(delivery.endpoint, &place);
            }
            self.enter_place(delivery, place.due, &Row { order, ..place.row }, false);
        }
    }

    pub(super) fn revive(&mut self, delivery: DeliveryKey, trigger: Trigger, at: Timestamp) {
        if let Some(place) = self.find_place(delivery) {
            if transition(PENDING, DeliveryChange::Revived(trigger)).is_none() {
                return;
            }
            let mut detail = self.detail_in(delivery, &place);
            detail.progress = Progress::begin(detail.progress.attempts, at, trigger);
            if let PlaceKind::Leased(lease) = place.kind {
                // The lease stays; the message begins a new series.
                let row = Row { progress: detail.progress, ..lease.row };
                return self.put_lease(delivery, &LeaseRow { row, ..lease });
            }
            return self.reschedule(delivery, &place, at, &mut detail);
        }
        // An erased event cannot be delivered.
        let event = pages::event(self.rows, delivery.event).filter(|event| event.erased_at.is_none());
        let Some(event) = event else { return };
        let Some((place, before)) = self.last_state(delivery) else { return };
        // The state may have changed since the request was checked.
        let (from, change) = (before.as_ref().map(|entry| entry.state), DeliveryChange::Revived(trigger));
        if transition(from, change).is_none() {
            return;
        }
        if let Some(entry) = &before {
            self.remove_dead_letter(entry);
        }
        let kept = before.as_ref().filter(|_| !failpoints::is_active(Mutation::ForgetAttempts));
        let attempts_made = kept.map_or(0, |entry| entry.attempts_made);
        let progress = Progress::begin(attempts_made, at, trigger);
        let detail = Detail {
            due: at,
            last: before.as_ref().map(|entry| entry.last.clone()).unwrap_or_default(),
            progress,
            attempts: before.map(|entry| entry.attempts).unwrap_or_default(),
        };
        let empty = Detail { last: LastAttempt::default(), attempts: Vec::new(), ..detail };
        self.settle(delivery, place, from, change, at, &empty);
        pending::put_detail(self.rows, delivery, &detail);
        let order = self.queue_for(delivery.endpoint, event.order);
        self.add_pending(delivery, at, Row { progress, order, place }, false);
    }

    pub(super) fn remove_dead_letter(&mut self, entry: &StateEntry) {
        if matches!(entry.state, DeliveryState::Dead(_)) {
            let is_shared = self.is_shared(entry.delivery.endpoint);
            dead::remove(self.rows, entry.death, entry.delivery, is_shared);
            self.fold.totals.dead = self.fold.totals.dead.saturating_sub(1);
            let lane = self.lane(entry.delivery.endpoint);
            lane.dead = lane.dead.saturating_sub(1);
            if let Some(usage) = self.usage_of(entry.delivery.endpoint) {
                usage.dead = usage.dead.saturating_sub(1);
            }
        }
    }

    pub(super) fn purge(&mut self, delivery: DeliveryKey, at: Timestamp) {
        let Some((place, Some(entry))) = self.last_state(delivery) else { return };
        let Some(state) = transition(Some(entry.state), DeliveryChange::Purged) else { return };
        self.remove_dead_letter(&entry);
        let purged = StateEntry { state, at, death: Position(0), ..entry };
        self.put_state(place, &purged);
    }
}

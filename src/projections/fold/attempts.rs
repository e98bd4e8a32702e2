//! Application of finished attempts.

use super::places::{Place, PlaceKind};
use super::{LaneChange, PENDING, Step};
use crate::domain::delivery::transition;
use crate::domain::{
    Attempt, DeliveryChange, DeliveryKey, DeliveryState, DueKey, EndpointNumber, LastAttempt, Next, Position,
    Timestamp, Trigger,
};
use crate::limits;
use crate::projections::failing::Failing;
use crate::projections::{pages, pending};

impl Step<'_> {
    /// Adds an attempt to its delivery. If the delivery moved or ended during the attempt, only a
    /// success changes it, because the receiver has the event. The queue order is not checked:
    /// retention may have removed earlier deliveries of the queue from the journal.
    pub(super) fn finish(&mut self, delivery: DeliveryKey, due: Timestamp, attempt: &Attempt) {
        let key = DueKey { due, event: delivery.event };
        let hour = self.count_attempt(delivery.endpoint, attempt.started_at, attempt.duration);
        hour.delivered += u64::from(attempt.next == Next::Delivered);
        self.update_health(delivery.endpoint, attempt);
        let place = match pending::due_row(self.rows, delivery.endpoint, key) {
            Some(row) => Some(Place { due, kind: PlaceKind::Sendable, row, has_detail: !row.is_fresh() }),
            None => self.find_place(delivery),
        };
        match place {
            Some(place) => self.finish_pending(delivery, due, attempt, &place),
            None => self.finish_ended(delivery, attempt),
        }
        self.changes.push(LaneChange::Recorded { endpoint: delivery.endpoint, key });
    }

    fn finish_pending(&mut self, delivery: DeliveryKey, due: Timestamp, attempt: &Attempt, place: &Place) {
        let mut detail = self.detail(delivery, &place.row, place.due);
        detail.last = LastAttempt::of(attempt);
        detail.progress.attempts += 1;
        push_attempt(&mut detail.attempts, self.position);
        let finished_at = attempt.started_at.plus(attempt.duration);
        let is_moved = place.due != due;
        let change = DeliveryChange::Attempted(attempt.next);
        match attempt.next {
            Next::Delivered => {
                self.remove_pending(delivery, place);
                self.settle(delivery, place.row.place, PENDING, change, finished_at, &detail);
            }
            // The attempt counts in no series, because its series has ended.
            Next::RetryAt(_) | Next::Dead(_) if is_moved => {
                self.reschedule(delivery, place, place.due, &mut detail);
            }
            Next::RetryAt(at) => {
                detail.progress = detail.progress.after(attempt.delay);
                detail.progress.attempts_in_series += 1;
                detail.progress.first_attempt.get_or_insert(attempt.started_at);
                detail.progress.trigger = Trigger::Retry;
                self.reschedule(delivery, place, at, &mut detail);
            }
            Next::Dead(reason) => {
                self.remove_pending(delivery, place);
                self.add_dead_letter(delivery, place.row.place, reason, change, finished_at, &detail);
            }
        }
    }

    /// The delivery ended during the attempt.
    fn finish_ended(&mut self, delivery: DeliveryKey, attempt: &Attempt) {
        let Some((place, Some(mut entry))) = self.last_state(delivery) else { return };
        if entry.state == DeliveryState::Pending {
            return;
        }
        let event = pages::event(self.rows, delivery.event);
        let is_erased = event.is_some_and(|event| event.erased_at.is_some());
        let last = LastAttempt::of(attempt);
        entry.last = if is_erased { last.erased() } else { last };
        entry.attempts_made += 1;
        push_attempt(&mut entry.attempts, self.position);
        if let Some(state) = transition(Some(entry.state), DeliveryChange::Attempted(attempt.next)) {
            self.remove_dead_letter(&entry);
            entry.state = state;
            entry.at = attempt.started_at.plus(attempt.duration);
            entry.death = Position(0);
        }
        self.put_state(place, &entry);
    }

    fn update_health(&mut self, endpoint: EndpointNumber, attempt: &Attempt) {
        let position = self.position;
        let lane = self.lane(endpoint);
        if attempt.error.is_none() {
            (lane.failing, lane.last_success) = (None, position);
        } else {
            lane.failing = Some(Failing::after(lane.failing, attempt));
        }
        if let Some(hold) = attempt.hold.filter(|hold| hold.revision >= lane.opened)
            && lane.hold.is_none_or(|(until, _)| until < hold.until)
        {
            lane.hold = Some((hold.until, position));
        }
    }
}

/// Adds the position of an attempt. At the limit, drops the oldest.
pub(super) fn push_attempt(attempts: &mut Vec<Position>, position: Position) {
    if attempts.len() == limits::ATTEMPTS_KEPT_MAX {
        attempts.remove(0);
    }
    attempts.push(position);
}

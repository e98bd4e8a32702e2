//! Leases of messages, by the oracle.

use super::*;
use crate::domain::{DeadReason, EndedLease, HeldLease, LeaseEnd, LeaseKey, TakenFrom, TakenMessage};

/// The last lease of a pending message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Lease {
    pub(crate) position: Position,
    since: Timestamp,
    until: Timestamp,
    /// The record of the last extension.
    extension: Option<Position>,
    pub(crate) is_released: bool,
}

/// An attempt, or a lease that ended without a release.
#[derive(Clone, Copy, Debug)]
pub(super) struct Try {
    pub(super) endpoint: EndpointNumber,
    pub(super) at: Timestamp,
    pub(super) duration: Duration,
}

impl Lease {
    /// Whether it had run out when its message ended so.
    pub(super) fn ran_out_before(&self, state: DeliveryState, at: Timestamp) -> bool {
        let gives_up = [DeadReason::AttemptsExhausted, DeadReason::MaxAge].map(DeliveryState::Dead);
        self.until <= at || gives_up.contains(&state)
    }

    /// The end of its time.
    pub(super) fn until(&self) -> Timestamp {
        self.until
    }

    /// Whether the message may not be taken then.
    pub(crate) fn runs_at(&self, at: Timestamp) -> bool {
        !self.is_released && self.until > at
    }
}

impl Delivery {
    /// End of the lease, or the due time.
    pub(super) fn due_or_lease_end(&self) -> Timestamp {
        self.lease.map_or(self.due, |lease| lease.until)
    }

    /// Whether it is the first of its ordering queue, or has none.
    pub(super) fn is_first(&self) -> bool {
        self.sendable || self.lease.is_some()
    }

    pub(super) fn held(&self) -> Option<HeldLease> {
        let Lease { position, since, until, is_released, .. } = self.lease?;
        Some(HeldLease { position, since, until, is_released, progress: self.progress })
    }

    /// Positions of its attempts. A lease counts until it is released.
    pub(super) fn attempts_with_lease(&self) -> Vec<Position> {
        let mut all = self.attempts.clone();
        if let Some(lease) = self.lease.filter(|lease| !lease.is_released) {
            lease.extension.into_iter().chain([lease.position]).for_each(|record| push(&mut all, record));
        }
        all
    }

    /// Notes that the message ended before its lease did. The lease stays the last entry.
    pub(super) fn note_end(&mut self, record: Position) {
        let lease = self.attempts.pop().expect("the lease is in the history");
        push(&mut self.attempts, record);
        push(&mut self.attempts, lease);
    }
}

/// Adds an attempt. Only the last ones are kept.
fn push(attempts: &mut Vec<Position>, position: Position) {
    attempts.push(position);
    let surplus = attempts.len().saturating_sub(limits::ATTEMPTS_KEPT_MAX);
    attempts.drain(..surplus);
}

impl Oracle {
    pub(super) fn apply_leases(&mut self, position: Position, record: &Record) {
        match record {
            Record::MessagesLeased { queue, messages, until, at, .. } => {
                let (since, until) = (*at, *until);
                let lease = Lease { position, since, until, extension: None, is_released: false };
                messages.iter().for_each(|taken| self.take(*queue, *taken, lease));
            }
            Record::LeasesEnded { queue, ends, at, .. } => {
                ends.iter().for_each(|ended| self.end_lease(position, *queue, *ended, *at));
            }
            Record::LeasesExtended { queue, leases, until, .. } => {
                for LeaseKey { event, lease } in leases {
                    let key = DeliveryKey { event: *event, endpoint: *queue };
                    let held = self.deliveries.get_mut(&key).and_then(|known| known.lease.as_mut());
                    if let Some(held) = held.filter(|held| held.position == *lease && !held.is_released) {
                        (held.until, held.extension) = (*until, Some(position));
                    }
                }
            }
            _ => {}
        }
    }

    fn take(&mut self, queue: EndpointNumber, taken: TakenMessage, lease: Lease) {
        let key = DeliveryKey { event: taken.event, endpoint: queue };
        let Some(known) = self.deliveries.get(&key) else { return };
        // The first of its queue, which waits behind this message then.
        let first = known.queue.as_deref().and_then(|queue| self.sendable_of(queue, key.endpoint));
        let is_leased_out = known.queue.is_some() && first.is_none();
        let Some(known) = self.deliveries.get_mut(&key) else { return };
        let is_pending = known.state == DeliveryState::Pending;
        let run_out = match (taken.from, known.lease) {
            (TakenFrom::Due(due), None) if is_pending && known.due == due && !is_leased_out => None,
            (TakenFrom::Lease(position), Some(before)) if before.position == position => {
                Some(before).filter(|before| !before.is_released)
            }
            (TakenFrom::Due(_) | TakenFrom::Lease(_), _) => return,
        };
        if run_out.is_some() {
            known.attempts = known.attempts_with_lease();
            known.progress.trigger = Trigger::Retry;
        }
        known.progress.attempts += 1;
        known.progress.attempts_in_series += 1;
        known.progress.first_attempt.get_or_insert(lease.since);
        (known.lease, known.sendable) = (Some(lease), false);
        if let Some(first) = first.and_then(|key| self.deliveries.get_mut(&key)) {
            first.sendable = false;
        }
        if let Some(before) = run_out {
            self.count_lease(queue, before, lease.since, before.until);
        }
    }

    fn sendable_of(&self, queue: &str, endpoint: EndpointNumber) -> Option<DeliveryKey> {
        self.queued(endpoint, queue).find(|key| self.deliveries[key].sendable)
    }

    /// Counts a lease at a time. It ended then, or ran out before.
    pub(super) fn count_lease(
        &mut self,
        queue: EndpointNumber,
        lease: Lease,
        at: Timestamp,
        ended_at: Timestamp,
    ) {
        self.tries.push(Try { endpoint: queue, at, duration: ended_at.since(lease.since) });
    }

    fn end_lease(&mut self, position: Position, queue: EndpointNumber, ended: EndedLease, at: Timestamp) {
        let EndedLease { key: LeaseKey { event, lease }, end } = ended;
        let key = DeliveryKey { event, endpoint: queue };
        let Some(known) = self.deliveries.get_mut(&key) else { return };
        match known.lease {
            Some(held) if held.position == lease => self.end_held(position, key, held, end, at),
            Some(_) => {}
            // The work was done, although the message had ended.
            None if end == LeaseEnd::Acked
                && matches!(
                    known.state,
                    DeliveryState::Dead(_) | DeliveryState::Cancelled | DeliveryState::Purged
                )
                && known.attempts.last() == Some(&lease) =>
            {
                (known.state, known.settled) = (DeliveryState::Delivered, Some((at, position)));
                push(&mut known.attempts, position);
                self.successes.push((queue, at));
            }
            None => {}
        }
    }

    fn end_held(&mut self, position: Position, key: DeliveryKey, held: Lease, end: LeaseEnd, at: Timestamp) {
        if matches!(end, LeaseEnd::Released | LeaseEnd::Lost(_)) && held.is_released {
            return;
        }
        let is_free = matches!(end, LeaseEnd::Released | LeaseEnd::Lost(None));
        let queue = match self.orderings.contains_key(&key.endpoint) {
            true => self.queue(key),
            false => self.deliveries[&key].queue.clone(),
        };
        let known = self.deliveries.get_mut(&key).expect("it has a lease");
        known.attempts = known.attempts_with_lease();
        push(&mut known.attempts, position);
        if !is_free {
            self.count_lease(key.endpoint, held, at, at);
        }
        let known = self.deliveries.get_mut(&key).expect("it has a lease");
        known.progress.lost_answers += u32::from(matches!(end, LeaseEnd::Lost(_)));
        match end {
            LeaseEnd::Acked => {
                self.successes.push((key.endpoint, at));
                self.settle_pending(key, DeliveryState::Delivered, at, position);
            }
            LeaseEnd::Dead(reason) => self.settle_pending(key, DeliveryState::Dead(reason), at, position),
            LeaseEnd::Released | LeaseEnd::Lost(None) => {
                known.progress.attempts = known.progress.attempts.saturating_sub(1);
                known.progress.attempts_in_series = known.progress.attempts_in_series.saturating_sub(1);
                known.lease = Some(Lease { until: at, is_released: true, ..held });
            }
            LeaseEnd::Requeued(due) | LeaseEnd::Lost(Some(due)) => {
                (known.due, known.progress.trigger) = (due, Trigger::Retry);
                if known.queue == queue {
                    (known.lease, known.sendable) = (None, true);
                    return;
                }
                let known = known.clone();
                self.leave_queue(key);
                self.add(key, due, known.progress, known.attempts, known.last);
            }
        }
    }
}

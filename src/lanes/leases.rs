//! The leases of one queue in memory: who may take which message again, and when.
//!
//! A lease ends by monotonic time: a step of the wall clock shortens none. Invariant: a message
//! whose lease is busy is neither run out nor returned, so nothing takes it twice.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::domain::{HeldLease, IdMap, LeaseKey, Now, Position};
use crate::failpoints::{self, Mutation};

/// A lease, as far as the lane knows.
#[derive(Debug)]
struct BookedLease {
    lease: HeldLease,
    /// Monotonic time.
    ends_at: Duration,
    busy: Busy,
}

/// Which record about a lease is not applied yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Busy {
    No,
    /// The record about a receipt that was judged.
    Judged,
    /// The record of a receive that takes the message.
    Taken,
}

/// Judgement of a receipt by the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JudgedLease {
    /// The last lease of its message. It is busy from now on.
    Held(HeldLease),
    /// The last lease of its message, and a record about it is on its way.
    Busy,
    /// The message was taken again.
    Stale,
    /// The lane knows no lease of the message.
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct LeaseBook {
    leases: IdMap<Position, BookedLease>,
    /// Running leases by their end.
    running: BTreeSet<(Duration, Position)>,
    /// Messages whose lease has run out or was released, by acceptance.
    returned: BTreeSet<Position>,
}

impl LeaseBook {
    /// Number of messages, returned ones included.
    pub(super) fn len(&self) -> usize {
        self.leases.len()
    }

    /// Number of messages that wait for the next worker.
    pub(super) fn returned(&self) -> usize {
        self.returned.len()
    }

    /// Adds or replaces the lease of a message.
    pub(super) fn put(&mut self, event: Position, lease: HeldLease, now: Now) {
        self.remove(event);
        let left = lease.until.since(now.wall);
        let left = if failpoints::is_active(Mutation::ExpireEarly) { left / 2 } else { left };
        let ends_at = now.monotonic + left;
        let booked = BookedLease { lease, ends_at, busy: Busy::No };
        self.enqueue(event, &booked, now);
        self.leases.insert(event, booked);
    }

    /// Notes a change of a lease. A message that a receive is taking stays taken: its lease may run
    /// out before the record of its return is applied.
    pub(super) fn change(&mut self, event: Position, lease: HeldLease, now: Now) {
        match self.leases.get_mut(&event) {
            Some(booked) if booked.lease.position == lease.position && booked.busy == Busy::Taken => {
                booked.lease = lease;
            }
            Some(_) | None => self.put(event, lease, now),
        }
    }

    pub(super) fn remove(&mut self, event: Position) {
        if let Some(booked) = self.leases.remove(&event) {
            self.running.remove(&(booked.ends_at, event));
            self.returned.remove(&event);
        }
    }

    fn enqueue(&mut self, event: Position, booked: &BookedLease, now: Now) {
        if booked.lease.is_released || booked.ends_at <= now.monotonic {
            self.returned.insert(event);
        } else {
            self.running.insert((booked.ends_at, event));
        }
    }

    /// Returns the messages whose lease has run out to the front.
    pub(super) fn run_out(&mut self, now: Now) {
        while let Some((ends_at, event)) = self.running.first().copied()
            && ends_at <= now.monotonic
        {
            self.running.remove(&(ends_at, event));
            self.returned.insert(event);
        }
    }

    /// End of the lease that runs out next, as monotonic time.
    pub(super) fn next_end(&self) -> Option<Duration> {
        self.running.first().map(|(ends_at, _)| *ends_at)
    }

    /// The first returned message.
    pub(super) fn first_returned(&self) -> Option<(Position, HeldLease)> {
        let event = *self.returned.first()?;
        Some((event, self.leases.get(&event)?.lease))
    }

    /// Takes the first returned message. Its lease is busy.
    pub(super) fn take_returned(&mut self) {
        let event = self.returned.pop_first();
        if let Some(booked) = event.and_then(|event| self.leases.get_mut(&event)) {
            booked.busy = Busy::Taken;
        }
    }

    /// Judges a receipt. A held lease is busy from now on.
    pub(super) fn judge(&mut self, key: LeaseKey) -> JudgedLease {
        let Some(booked) = self.leases.get_mut(&key.event) else { return JudgedLease::Unknown };
        if booked.lease.position != key.lease {
            return JudgedLease::Stale;
        }
        if booked.busy != Busy::No {
            return JudgedLease::Busy;
        }
        booked.busy = Busy::Judged;
        self.running.remove(&(booked.ends_at, key.event));
        self.returned.remove(&key.event);
        JudgedLease::Held(booked.lease)
    }

    /// No record about the lease will come.
    pub(super) fn free(&mut self, key: LeaseKey, now: Now) {
        if let Some(booked) = self.leases.get_mut(&key.event)
            && booked.lease.position == key.lease
            && booked.busy != Busy::No
        {
            booked.busy = Busy::No;
            let freed = BookedLease { lease: booked.lease, ends_at: booked.ends_at, busy: Busy::No };
            self.enqueue(key.event, &freed, now);
        }
    }
}

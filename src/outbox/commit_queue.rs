//! The commit queue: pending units of the commit thread.
//!
//! Owns the moment at which a group is closed. The first publisher gets a group at once. Under load
//! a group waits briefly, so that several publishers share one `fdatasync`. It closes before all
//! publishers are there, so that the others prepare their units while the disk works. A group that
//! only has outcomes waits for more units. The queue wakes the commit thread when its group is
//! complete, not once per unit.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::failpoints::{self, Bound};
use crate::limits;
use crate::outbox::draft::Unavailable;
use crate::outbox::unit::Unit;

/// Group-commit delay of a group that only has outcomes.
const OUTCOME_COMMIT_DELAY: Duration = Duration::from_millis(3);
/// Group-commit delay after a busy group.
const BUSY_COMMIT_DELAY: Duration = Duration::from_micros(100);
/// Number of publishers that ends this delay early. More of them would save each other little of
/// the `fdatasync`.
const GROUP_PUBLISHERS_ENOUGH: usize = 16;
/// Minimum number of publishers in a busy group.
const BUSY_PUBLISHERS_MIN: usize = 8;

/// Retry hint for a rejected publisher.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Limits of the pending commands of publishers.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionLimits {
    pub bytes: usize,
    pub commands: usize,
}

/// The pending units. Admission limits bound the publishers' units. Outcomes are bounded because no
/// attempt begins while too many of them are pending.
#[derive(Debug)]
pub(super) struct CommitQueue {
    admission: AdmissionLimits,
    busy_commit_delay: Duration,
    waiting: Mutex<PendingUnits>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct PendingUnits {
    units: VecDeque<Unit>,
    /// Number of units with a waiting caller.
    awaited: usize,
    commands: usize,
    bytes: usize,
    /// Number and bytes of units without a waiting caller.
    outcomes: (usize, usize),
    /// Number of awaited units that wakes the commit thread; 0: any unit.
    wanted: Option<usize>,
    /// Number of awaited units in the previous group.
    previous_publishers: usize,
    closed: bool,
}

fn commit_records() -> usize {
    failpoints::bound(Bound::CommitRecords, limits::COMMIT_RECORDS_MAX)
}

impl PendingUnits {
    fn add(&mut self, unit: &Unit) {
        let (commands, bytes) = unit.weight();
        self.commands += commands;
        self.bytes += bytes;
        if unit.reply.is_some() {
            self.awaited += 1;
        } else {
            self.outcomes.0 += 1;
            self.outcomes.1 += bytes;
        }
    }

    fn is_full(&self) -> bool {
        self.commands >= commit_records() || self.bytes >= limits::COMMIT_BYTES_MAX
    }

    /// Takes units until a limit is reached or the queue is empty. A unit that changes the registry
    /// is alone in its group.
    fn take(&mut self) -> Vec<Unit> {
        let mut group = Vec::with_capacity(self.units.len());
        let (mut commands, mut bytes, mut awaited, mut outcomes) = (0, 0, 0, (0, 0));
        while let Some(unit) = self.units.front() {
            let alone = unit.is_barrier();
            let (more_commands, more_bytes) = unit.weight();
            let full =
                commands + more_commands > commit_records() || bytes + more_bytes > limits::COMMIT_BYTES_MAX;
            if !group.is_empty() && (alone || full) {
                break;
            }
            commands += more_commands;
            bytes += more_bytes;
            if unit.reply.is_some() {
                awaited += 1;
            } else {
                outcomes = (outcomes.0 + 1, outcomes.1 + more_bytes);
            }
            group.extend(self.units.pop_front());
            if alone {
                break;
            }
        }
        self.commands -= commands;
        self.bytes -= bytes;
        self.awaited -= awaited;
        self.outcomes = (self.outcomes.0 - outcomes.0, self.outcomes.1 - outcomes.1);
        self.previous_publishers = awaited;
        group
    }
}

impl CommitQueue {
    pub(super) fn new(admission: AdmissionLimits) -> Self {
        Self {
            admission,
            busy_commit_delay: BUSY_COMMIT_DELAY,
            waiting: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    /// Adds a unit.
    ///
    /// # Errors
    /// When the commit thread has ended, or a caller waits for the unit and the limits are reached.
    pub(super) fn push(&self, unit: Unit) -> Result<(), Unavailable> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(Unavailable::Stopping);
        }
        let (commands, bytes) = unit.weight();
        let full = waiting.commands + commands > self.admission.commands
            || waiting.bytes + bytes > self.admission.bytes;
        if full && unit.reply.is_some() {
            return Err(Unavailable::Overloaded { retry_after: RETRY_AFTER });
        }
        waiting.add(&unit);
        waiting.units.push_back(unit);
        let enough = waiting.wanted.is_some_and(|wanted| waiting.awaited >= wanted || waiting.is_full());
        if enough {
            waiting.wanted = None;
            drop(waiting);
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Returns unwritten units to the front of the queue.
    pub(super) fn put_back(&self, units: Vec<Unit>) {
        let mut waiting = self.lock();
        for unit in units.into_iter().rev() {
            waiting.add(&unit);
            waiting.units.push_front(unit);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().units.is_empty()
    }

    /// Number of pending commands, and their bytes.
    pub(super) fn pending_weight(&self) -> (usize, usize) {
        let waiting = self.lock();
        (waiting.commands, waiting.bytes)
    }

    /// Whether too many outcomes are pending, so that no new attempt should begin.
    pub(super) fn is_outcome_queue_full(&self) -> bool {
        let (count, bytes) = self.lock().outcomes;
        count > failpoints::bound(Bound::Outcomes, limits::OUTCOMES_MAX) || bytes > limits::OUTCOME_BYTES_MAX
    }

    /// Closes the queue: rejects new units. The commit thread still gets the pending ones.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Drops the pending units after the commit thread has ended. Their callers get an error.
    pub(super) fn abandon(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        let units = std::mem::take(&mut waiting.units);
        drop(waiting);
        drop(units);
    }

    /// Returns the next group in order of arrival, or `None` when the queue is closed and empty.
    pub(super) fn next_group(&self) -> Option<Vec<Unit>> {
        let mut waiting = self.lock();
        while waiting.units.is_empty() {
            if waiting.closed {
                return None;
            }
            waiting.wanted = Some(0);
            waiting = self.wake.wait(waiting).expect("no holder of this lock panics");
        }
        if waiting.awaited == 0 {
            waiting = self.wait_for_publishers(waiting, 1, OUTCOME_COMMIT_DELAY);
        }
        if waiting.previous_publishers >= BUSY_PUBLISHERS_MIN {
            waiting = self.wait_for_publishers(waiting, GROUP_PUBLISHERS_ENOUGH, self.busy_commit_delay);
        }
        Some(waiting.take())
    }

    /// Returns the pending units without a delay.
    #[cfg(test)]
    pub(super) fn take(&self) -> Vec<Unit> {
        self.lock().take()
    }

    /// Waits until `wanted` awaited units are pending, the group is full, or `limit` has passed.
    /// Returns at once if the condition already holds.
    fn wait_for_publishers<'a>(
        &'a self,
        mut waiting: MutexGuard<'a, PendingUnits>,
        wanted: usize,
        limit: Duration,
    ) -> MutexGuard<'a, PendingUnits> {
        let deadline = Instant::now() + limit;
        waiting.wanted = Some(wanted).filter(|wanted| waiting.awaited < *wanted && !waiting.is_full());
        while !waiting.closed && waiting.wanted.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            waiting = self.wake.wait_timeout(waiting, left).expect("no holder of this lock panics").0;
        }
        waiting.wanted = None;
        waiting
    }

    fn lock(&self) -> MutexGuard<'_, PendingUnits> {
        self.waiting.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests;

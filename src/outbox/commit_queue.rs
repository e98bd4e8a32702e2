//! What waits for the writer.
//!
//! Owns when a group is closed: at once for the first publisher, and a little later when many publish at the same time,
//! so that they share one `fdatasync`. It is closed before all of them can be there: what the others still have to do is
//! done while the disk works, which would else find nobody with anything to do. Units that nobody waits for give a group
//! time to find company. The writer is woken when its group is complete, not once per unit.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::failpoints::{self, Bound};
use crate::limits;
use crate::outbox::draft::Unavailable;
use crate::outbox::unit::Unit;

/// An outcome that nobody waits for waits this long for company.
const OUTCOME_COMMIT_DELAY: Duration = Duration::from_millis(3);
/// A group that follows a previous_publishers waits this long for company,
const BUSY_COMMIT_DELAY: Duration = Duration::from_micros(100);
/// or until so many publishers are there. With more of them each would pay little less of the `fdatasync`.
const GROUP_PUBLISHERS_ENOUGH: usize = 16;
/// So many publishers in one group are a previous_publishers.
const BUSY_PUBLISHERS_MIN: usize = 8;

/// A publisher that is refused may try again after this long.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Bounds of what may wait for its commit.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionLimits {
    pub bytes: usize,
    pub commands: usize,
}

/// Units that somebody waits for are bounded by admission; outcomes because no attempt begins while too many of them wait.
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
    /// Units that somebody waits for.
    awaited: usize,
    commands: usize,
    bytes: usize,
    /// Units that nobody waits for, and their bytes.
    outcomes: (usize, usize),
    /// The writer sleeps until this many awaited units are here; with 0, until there is any unit.
    wanted: Option<usize>,
    /// Awaited units of the group before.
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

    /// Units until a bound is reached or nothing more waits. A unit that changes the directory stands alone.
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

    /// Takes the unit, unless the writer has ended, or somebody waits for it and too much waits already.
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

    /// Puts units that could not be written back to where they were.
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

    /// Commands and bytes that wait.
    pub(super) fn pending_weight(&self) -> (usize, usize) {
        let waiting = self.lock();
        (waiting.commands, waiting.bytes)
    }

    /// Whether so many outcomes wait that no further attempt should begin.
    pub(super) fn is_outcome_queue_full(&self) -> bool {
        let (count, bytes) = self.lock().outcomes;
        count > failpoints::bound(Bound::Outcomes, limits::OUTCOMES_MAX) || bytes > limits::OUTCOME_BYTES_MAX
    }

    /// No further unit is taken; the writer gets what is here, and then nothing.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// The writer has ended: who waits for a unit that is still here hears that it was not committed.
    pub(super) fn abandon(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        let units = std::mem::take(&mut waiting.units);
        drop(waiting);
        drop(units);
    }

    /// The next group, in the order of arrival. `None` when the queue is closed and empty.
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

    /// What waits, without waiting for more.
    #[cfg(test)]
    pub(super) fn take(&self) -> Vec<Unit> {
        self.lock().take()
    }

    /// Sleeps until so many awaited units are here, the group is full, or the time has passed. When they are, it does not.
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

//! The commit queue: pending units of the commit thread.
//!
//! Owns the moment at which a group is closed. The first publisher gets a group at once. Under load
//! a group waits briefly, so that several publishers share one `fdatasync`. It closes before all
//! publishers are there, so that the others prepare their units while the disk works. A group that
//! only has outcomes waits for more units. The queue wakes the commit thread when its group is
//! complete, not once per unit.
//!
//! Parties take turns ([`FairQueue`]): the units of one tenant keep their order, and a tenant with
//! many units does not delay a tenant with one. While parties compete, groups are small, so that a
//! unit waits for one short commit at most.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::domain::{IdMap, Party};
use crate::failpoints::{self, Bound};
use crate::limits;
use crate::outbox::draft::Unavailable;
use crate::outbox::fair_queue::FairQueue;
#[cfg(test)]
use crate::outbox::unit::Command;
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

/// Number of small groups after the last group in which parties competed. It bridges the pauses
/// of a party that waits for each answer.
const SMALL_GROUPS_AFTER_CONTENTION: u32 = 256;
/// Cost of a record, or of a KiB, in the turns of the parties.
const RECORD_COST: u64 = 8;
/// The same for the records of deliveries, which must keep up with all tenants together.
const OUTCOME_RECORD_COST: u64 = 1;

/// Retry hint for a rejected publisher.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Limits of the pending commands of one party of publishers. Parties that compete get equal parts
/// of half as much again ([`has_share`]).
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
    units: FairQueue<Party, Unit>,
    /// Commands and bytes of each party with a waiting caller.
    shares: IdMap<Party, (usize, usize)>,
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
    /// Number of further groups that are small, because parties compete.
    small_groups: u32,
    closed: bool,
}

/// Whether a party with `own` pending of `pending` may add `more`. `limit` is that of one party
/// alone; all together may hold half as much again. A party may hold up to twice what it leaves
/// free. So `n` busy parties get `3 / (2n + 1)` of the limit each, and there is always room for the
/// next.
fn has_share(limit: usize, pending: usize, own: usize, more: usize) -> bool {
    let free = (limit + limit / 2).saturating_sub(pending);
    own + more <= limit && more <= free && own + more <= 2 * free
}

/// Cost of a unit in the turns of the parties.
fn cost(unit: &Unit) -> u64 {
    let (commands, bytes) = unit.weight();
    let records = commands.max(bytes / 1_024).max(1) as u64;
    let is_outcome = unit.reply.is_none() || unit.is_about_leases();
    records * if is_outcome { OUTCOME_RECORD_COST } else { RECORD_COST }
}

fn commit_records() -> usize {
    failpoints::bound(Bound::CommitRecords, limits::COMMIT_RECORDS_MAX)
}

impl PendingUnits {
    fn add(&mut self, unit: &Unit, party: &Party) {
        let (commands, bytes) = unit.weight();
        self.commands += commands;
        self.bytes += bytes;
        if unit.reply.is_some() {
            self.awaited += 1;
            if !unit.is_about_leases() {
                let own = self.share_mut(party);
                *own = (own.0 + commands, own.1 + bytes);
            }
        } else {
            self.outcomes.0 += 1;
            self.outcomes.1 += bytes;
        }
    }

    fn share_mut(&mut self, party: &Party) -> &mut (usize, usize) {
        if !self.shares.contains_key(party) {
            self.shares.insert(party.clone(), (0, 0));
        }
        self.shares.get_mut(party).expect("it was inserted")
    }

    fn remove_from_share(&mut self, party: &Party, commands: usize, bytes: usize) {
        if let Some(own) = self.shares.get_mut(party) {
            *own = (own.0 - commands, own.1 - bytes);
            if *own == (0, 0) {
                self.shares.remove(party);
            }
        }
    }

    /// Records and bytes of the next group. A unit that exceeds them is alone in its group.
    fn group_bounds(&mut self) -> (usize, usize) {
        let competing = self.shares.len();
        if competing > 1 {
            self.small_groups = SMALL_GROUPS_AFTER_CONTENTION;
        } else if self.small_groups == 0 {
            return (commit_records(), limits::COMMIT_BYTES_MAX);
        } else {
            self.small_groups -= 1;
        }
        (commit_records().min(limits::SHARED_COMMIT_RECORDS), limits::SHARED_COMMIT_BYTES)
    }

    fn is_full(&self) -> bool {
        self.commands >= commit_records() || self.bytes >= limits::COMMIT_BYTES_MAX
    }

    /// Takes units until a limit is reached or the queue is empty. A unit that changes the registry
    /// is alone in its group.
    fn take(&mut self) -> Vec<Unit> {
        let mut group = Vec::with_capacity(self.units.len());
        let (records_max, bytes_max) = self.group_bounds();
        let (mut commands, mut bytes, mut awaited, mut outcomes) = (0, 0, 0, (0, 0));
        while let Some(unit) = self.units.first() {
            let alone = unit.is_barrier();
            let (more_commands, more_bytes) = unit.weight();
            let full = commands + more_commands > records_max || bytes + more_bytes > bytes_max;
            if !group.is_empty() && (alone || full) {
                break;
            }
            commands += more_commands;
            bytes += more_bytes;
            if unit.reply.is_some() {
                awaited += 1;
                if !unit.is_about_leases() {
                    let party = unit.party();
                    self.remove_from_share(&party, more_commands, more_bytes);
                }
            } else {
                outcomes = (outcomes.0 + 1, outcomes.1 + more_bytes);
            }
            group.extend(self.units.take_first());
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
        let party = unit.party();
        if unit.reply.is_some() && !unit.is_about_leases() {
            let own = waiting.shares.get(&party).copied().unwrap_or_default();
            let AdmissionLimits { commands: commands_max, bytes: bytes_max } = self.admission;
            if !has_share(commands_max, waiting.commands, own.0, commands)
                || !has_share(bytes_max, waiting.bytes, own.1, bytes)
            {
                return Err(Unavailable::Overloaded { retry_after: RETRY_AFTER });
            }
        }
        waiting.add(&unit, &party);
        let cost = cost(&unit);
        waiting.units.push(&party, unit, cost);
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
            let (party, cost) = (unit.party(), cost(&unit));
            waiting.add(&unit, &party);
            waiting.units.put_back(&party, unit, cost);
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

    /// Returns the next group, or `None` when the queue is closed and empty.
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

/// The units in the order in which a queue that has all of them commits them.
#[cfg(test)]
pub(crate) fn in_turn_order(units: Vec<Vec<Command>>) -> Vec<Vec<Command>> {
    let mut queue = FairQueue::default();
    for commands in units {
        let (reply, _) = tokio::sync::oneshot::channel();
        let unit = Unit { commands, prepared: Default::default(), reply: Some(reply) };
        let (party, cost) = (unit.party(), cost(&unit));
        queue.push(&party, unit, cost);
    }
    std::iter::from_fn(|| queue.take_first()).map(|unit: Unit| unit.commands).collect()
}

#[cfg(test)]
mod tests;

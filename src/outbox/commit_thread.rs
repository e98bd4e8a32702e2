//! The commit thread: takes groups from the commit queue, commits them, announces them and answers
//! the callers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc as async_mpsc;

use super::commit_queue::CommitQueue;
use super::decide::{CommittedGroup, Committer, GroupResult};
use super::disk_reserve::{DiskReserve, DiskShortage, ReserveUse};
use super::freshness::Freshness;
use super::health::{Activity, DiskThread, DiskWaits, HealthCell};
use super::tail::Tail;
use super::unit::{Unit, UnitAnswer, UnitReply};
use super::{DiskWrite, Notice, StateMessage, WriteObserver};
use crate::domain::Record;
use crate::storage::journal::AppendError;
use crate::{limits, panics};

/// Maximum number of records that the state may lag behind the journal.
pub(super) const STATE_LAG_MAX: u64 = 20_000;
/// Pause between two attempts to write to a full disk.
pub(super) const FULL_DISK_PAUSE: Duration = Duration::from_millis(500);

/// Handles that the commit thread and the apply thread share.
#[derive(Clone)]
pub(super) struct ThreadLinks {
    pub(super) notices: async_mpsc::Sender<Notice>,
    pub(super) applied: Arc<AtomicU64>,
    /// Last position that the apply thread got.
    pub(super) readable: Arc<AtomicU64>,
    pub(super) health: Arc<HealthCell>,
    pub(super) observer: WriteObserver,
    pub(super) disk_waits: DiskWaits,
}

impl ThreadLinks {
    /// Blocks only while the channel is full. Returns whether there is a receiver.
    pub(super) fn tell(&self, notice: Notice) -> bool {
        match self.notices.try_send(notice) {
            Ok(()) => true,
            Err(async_mpsc::error::TrySendError::Closed(_)) => false,
            Err(async_mpsc::error::TrySendError::Full(notice)) => self.notices.blocking_send(notice).is_ok(),
        }
    }
}

pub(crate) struct CommitThread {
    committer: Committer,
    pub(super) queue: Arc<CommitQueue>,
    state: mpsc::Sender<StateMessage>,
    pub(super) links: ThreadLinks,
    freshness: Arc<Freshness>,
    tail: Arc<Tail>,
    /// Runtime of the callers; `None` in a simulation.
    runtime: Option<Handle>,
    /// Pause between two attempts to write to a full disk.
    full_disk_pause: Duration,
    reserve: DiskReserve,
    reserve_use: ReserveUse,
    /// The last group had units that did not fit beside the disk reserve.
    is_disk_low: bool,
}

impl CommitThread {
    pub(super) fn new(
        mut committer: Committer,
        queue: Arc<CommitQueue>,
        state: mpsc::Sender<StateMessage>,
        links: ThreadLinks,
        freshness: Arc<Freshness>,
        tail: Arc<Tail>,
    ) -> Self {
        committer.report_waits(links.disk_waits.clone());
        let reserve = DiskReserve::new(committer.journal().disk());
        Self {
            committer,
            queue,
            state,
            links,
            freshness,
            tail,
            runtime: None,
            full_disk_pause: FULL_DISK_PAUSE,
            reserve,
            reserve_use: ReserveUse::default(),
            is_disk_low: false,
        }
    }

    pub(super) fn reserve(&self) -> DiskReserve {
        self.reserve.clone()
    }

    pub(super) fn reply_on(&mut self, runtime: Option<Handle>) {
        self.runtime = runtime;
    }

    /// Runs until the queue is closed. Every caller gets an answer, even after a panic. (A panic
    /// ends the daemon first; other users of the outbox have no such hook.)
    pub(super) fn run(mut self) {
        if catch_unwind(AssertUnwindSafe(|| self.take_turns())).is_err() {
            self.links.health.fail("the commit thread panicked");
        }
        self.queue.abandon();
    }

    fn take_turns(&mut self) {
        loop {
            panics::test_point("writer");
            self.links.disk_waits.begin(DiskThread::Journal, Activity::WaitingForState);
            self.wait_for_apply();
            self.links.disk_waits.end(DiskThread::Journal);
            if !self.turn() {
                return;
            }
        }
    }

    /// Returns whether to continue.
    fn turn(&mut self) -> bool {
        if self.is_disk_full() && self.queue.is_empty() {
            return self.check_disk_space();
        }
        self.queue.next_group().is_some_and(|group| self.commit(group))
    }

    /// Returns whether to continue.
    fn commit(&mut self, mut group: Vec<Unit>) -> bool {
        self.reject_excess(&mut group);
        if group.is_empty() {
            return true;
        }
        let started = Instant::now();
        self.links.disk_waits.begin(DiskThread::Journal, Activity::Judging);
        let result = self.committer.commit(group);
        self.links.disk_waits.end(DiskThread::Journal);
        if let Some(committed) = &result.committed {
            (self.links.observer)(DiskWrite::Commit { records: committed.records.len() }, started.elapsed());
        }
        self.publish(result)
    }

    /// Rejects new data that does not fit beside the disk reserve, and changes of tenants that have
    /// used their part of it.
    fn reject_excess(&mut self, group: &mut Vec<Unit>) {
        let rejected = self.reserve.reject_excess(&mut self.reserve_use, group);
        if self.is_disk_low == rejected.is_empty() {
            match self.reserve.lasting_shortage() {
                Some(DiskShortage { free, reserve }) if !self.is_disk_low => {
                    tracing::warn!(free, reserve, "disk reserve reached, new events rejected");
                    self.is_disk_low = true;
                }
                None if self.is_disk_low => {
                    tracing::warn!("disk has space beside the reserve, new events accepted");
                    self.is_disk_low = false;
                }
                _ => {}
            }
        }
        self.answer(rejected);
    }

    fn is_disk_full(&self) -> bool {
        self.links.health.is_full_for(DiskThread::Journal)
    }

    /// Checks whether a full disk has space again. New commands are rejected while the disk is
    /// full, so an idle queue would otherwise never notice. Returns whether to continue.
    fn check_disk_space(&self) -> bool {
        if self.committer.journal().has_space() {
            self.links.health.set_full(DiskThread::Journal, false);
        } else {
            // This thread has no other work while the disk is full.
            std::thread::sleep(self.full_disk_pause);
        }
        !self.queue.is_closed()
    }

    /// Announces a commit: first to the apply thread, then to the lanes, then to the callers.
    /// Returns whether to continue.
    fn publish(&self, result: GroupResult) -> bool {
        if let Some(committed) = result.committed {
            self.links.health.set_full(DiskThread::Journal, false);
            log_events(&committed);
            self.freshness.on_commit(&committed.records);
            self.tail.on_commit(&committed.records);
            if self.state.send(StateMessage::Committed(committed.clone())).is_err() {
                self.links.health.fail("the apply thread has ended");
            }
            let last = self.committer.journal().next_position().0 - 1;
            self.links.readable.store(last, Ordering::Release);
            if !self.links.tell(Notice::Committed(committed)) {
                tracing::debug!("commit notice dropped: no receiver");
            }
        }
        // Before the answers: a refused caller that reads the health finds the reason.
        match &result.failure {
            None => {}
            Some(AppendError::DiskFull) => self.links.health.set_full(DiskThread::Journal, true),
            Some(error) => {
                tracing::error!(%error, "journal failed, acknowledging nothing more");
                self.links.health.fail(&error.to_string());
            }
        }
        self.answer(result.replies);
        self.queue.put_back(result.unwritten);
        match result.failure {
            None => true,
            Some(AppendError::DiskFull) => {
                // No event announces free space, so the thread polls.
                std::thread::sleep(self.full_disk_pause);
                !self.queue.is_closed()
            }
            Some(_) => false,
        }
    }

    /// Wakes the readers of the feed and answers the callers, from a task of their runtime: this
    /// costs one wake-up of the runtime instead of one per caller. Events always have a caller.
    fn answer(&self, replies: Vec<(UnitReply, UnitAnswer)>) {
        if replies.is_empty() {
            return;
        }
        let tail = Arc::clone(&self.tail);
        let answer = move || {
            tail.wake();
            for (reply, outcome) in replies {
                // The caller may have gone away.
                let _gone = reply.send(outcome).is_err();
            }
        };
        match &self.runtime {
            Some(runtime) => drop(runtime.spawn(async { answer() })),
            None => answer(),
        }
    }

    /// Blocks while too many committed records await the apply thread. Bounds their memory.
    pub(super) fn wait_for_apply(&self) {
        let last = self.committer.journal().next_position().0 - 1;
        while last.saturating_sub(self.links.applied.load(Ordering::Relaxed)) > STATE_LAG_MAX
            || self.committer.unapplied().bytes() > limits::UNAPPLIED_BYTES_MAX
        {
            // During a shutdown the apply thread may be waiting for disk space.
            if self.links.health.has_failed() || self.queue.is_closed() {
                return;
            }
            // Rare and short: a condition variable would cost a lock for each applied group.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Logs the events of a commit, so that a trace can be followed through it.
fn log_events(committed: &CommittedGroup) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    for (position, record) in &committed.records {
        if let Record::EventAccepted(event) = record {
            tracing::debug!(
                event = %event.id,
                position = position.0,
                trace_id = event.trace_id().map(tracing::field::display),
                "event committed"
            );
        }
    }
}

/// Single steps, for the simulation.
#[cfg(test)]
impl CommitThread {
    pub(crate) fn without_pauses(mut self) -> Self {
        self.full_disk_pause = Duration::ZERO;
        self
    }

    /// Commits the pending units, if any, without waiting. Returns whether to continue.
    pub(crate) fn turn_by_hand(&mut self) -> bool {
        if self.is_disk_full() && self.queue.is_empty() {
            return self.check_disk_space();
        }
        let group = self.queue.take();
        group.is_empty() || self.commit(group)
    }
}

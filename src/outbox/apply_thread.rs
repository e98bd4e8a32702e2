//! The apply thread: applies committed records to the state, writes checkpoints and answers
//! questions.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use super::commit_thread::{FULL_DISK_PAUSE, ThreadLinks};
use super::decide::CommittedGroup;
use super::freshness::apply_step_targets;
use super::health::{Activity, DiskThread};
use super::overtaking::Overtaking;
use super::usage_board::UsageBoard;
use super::{DiskWrite, Notice, StateMessage};
use crate::domain::{Position, Record, Timestamp};
use crate::projections::LaneChange;
use crate::storage::state::{State, StateError};
use crate::{limits, panics};

pub(crate) struct ApplyThread {
    pub(super) state: State,
    pub(super) messages: mpsc::Receiver<StateMessage>,
    pub(super) links: ThreadLinks,
    pub(super) board: Arc<UsageBoard>,
    /// Messages that arrived while the disk was full or groups were applied, in order.
    held: VecDeque<StateMessage>,
    /// Deliveries that were applied since the last look for questions.
    work: usize,
    last_checkpoint: Instant,
    /// Time of the last applied commit. Rows expire by it, not by the clock: a clock that ran ahead
    /// and was set back must not have expired anything.
    time: Timestamp,
}

impl ApplyThread {
    pub(super) fn new(
        state: State,
        messages: mpsc::Receiver<StateMessage>,
        links: ThreadLinks,
        board: Arc<UsageBoard>,
    ) -> Self {
        Self {
            state,
            messages,
            links,
            board,
            held: VecDeque::new(),
            work: 0,
            last_checkpoint: Instant::now(),
            time: Timestamp::default(),
        }
    }

    /// Runs until it is stopped. sled panics over some kinds of damage; a rebuild from the journal
    /// repairs the state.
    pub(super) fn run(mut self) {
        if panics::contain(|| self.take_turns()).is_err() {
            self.fail("the apply thread panicked");
        }
    }

    fn take_turns(&mut self) {
        loop {
            panics::test_point("state");
            let wait = limits::CHECKPOINT_INTERVAL.saturating_sub(self.last_checkpoint.elapsed());
            let message = match self.held.pop_front() {
                Some(message) => Ok(message),
                None => self.messages.recv_timeout(wait),
            };
            self.links.disk_waits.begin(DiskThread::State, activity_of(&message));
            let goes_on = match message {
                Ok(message) => self.turn(message),
                Err(mpsc::RecvTimeoutError::Disconnected) => self.turn(StateMessage::Stop),
                Err(mpsc::RecvTimeoutError::Timeout) => true,
            };
            let is_time = self.last_checkpoint.elapsed() >= limits::CHECKPOINT_INTERVAL;
            if !goes_on || (is_time && !self.checkpoint()) {
                return;
            }
            self.links.disk_waits.end(DiskThread::State);
        }
    }

    /// Returns whether to continue.
    fn turn(&mut self, message: StateMessage) -> bool {
        let goes_on = match message {
            StateMessage::Committed(committed) => self.apply(&committed),
            StateMessage::Read { question, .. } => {
                question(&self.state);
                true
            }
            StateMessage::Maintain(task) => {
                task(&mut self.state);
                self.publish_usage();
                true
            }
            StateMessage::Replace(replacement) => self.replace(replacement),
            StateMessage::Stop => {
                if let Err(error) = self.state.checkpoint(self.time) {
                    tracing::warn!(%error, "last checkpoint failed, the next start replays the journal");
                }
                false
            }
        };
        match self.state.failure().map(ToOwned::to_owned) {
            Some(reason) => self.fail(&reason),
            None => goes_on,
        }
    }

    /// The state is unreliable: ends the process, and the next start rebuilds the state. Returns
    /// `false`.
    fn fail(&self, reason: &str) -> bool {
        tracing::error!(reason, "state failed, the next start rebuilds it from the journal");
        // First: a disk that hangs must not delay the end of the process.
        self.links.health.fail(reason);
        self.state.mark_unreadable();
        false
    }

    /// Applies a group in steps. Returns whether to continue.
    fn apply(&mut self, committed: &CommittedGroup) -> bool {
        let mut changes = Vec::new();
        self.time = committed.at;
        for (index, (position, record)) in committed.records.iter().enumerate() {
            let mut overtaking = Overtaking::of(*position, record);
            let later = &committed.records[index + 1..];
            loop {
                // The lanes have the deliveries of small events since the commit.
                let announced = overtaking.is_none();
                let step = self.state.apply_step(*position, record, announced, &mut changes);
                // Within a large group too: bounds the size of one checkpoint.
                if self.state.needs_checkpoint() && !self.checkpoint() {
                    return false;
                }
                self.work += step.deliveries.max(1);
                if self.work >= apply_step_targets() {
                    self.work = 0;
                    let overtaking = overtaking.as_mut().filter(|_| !step.is_complete);
                    if !self.after_step(overtaking, later, &mut changes) {
                        return false;
                    }
                }
                if step.is_complete {
                    break;
                }
            }
        }
        self.state.end_group();
        self.publish_usage();
        self.links.applied.store(self.state.applied().0, Ordering::Relaxed);
        self.links.disk_waits.end(DiskThread::State);
        self.send_changes(&mut changes);
        true
    }

    /// Between two steps of a group: lets records `overtake` the rest of the event, publishes what
    /// was applied, and answers the questions that do not need the rest. A stop does not wait for
    /// the rest either: the next start applies it. `later` follows the event in its group. Returns
    /// whether to continue.
    fn after_step(
        &mut self,
        mut overtaking: Option<&mut Overtaking>,
        later: &[(Position, Record)],
        changes: &mut Vec<LaneChange>,
    ) -> bool {
        self.held.extend(self.messages.try_iter());
        if let Some(overtaking) = &mut overtaking {
            self.let_overtake(overtaking, later, changes);
        }
        self.links.applied.store(self.state.applied().0, Ordering::Relaxed);
        self.send_changes(changes);
        let applied = self.state.applied();
        let can_answer = |needs| {
            needs <= applied || overtaking.as_ref().is_some_and(|overtaking| overtaking.can_answer(needs))
        };
        let is_ready = |message: &StateMessage| match message {
            StateMessage::Read { needs, .. } => can_answer(*needs),
            _ => false,
        };
        if self.held.iter().any(is_ready) {
            self.state.end_group();
            for message in std::mem::take(&mut self.held) {
                match message {
                    StateMessage::Read { needs, question } if can_answer(needs) => {
                        self.links.disk_waits.begin(DiskThread::State, Activity::Answering);
                        question(&self.state);
                    }
                    later => self.held.push_back(later),
                }
            }
        }
        self.links.disk_waits.begin(DiskThread::State, Activity::Applying);
        let is_stopping = self.held.iter().any(|message| matches!(message, StateMessage::Stop));
        !is_stopping || self.turn(StateMessage::Stop)
    }

    /// Applies later records before the rest of an event: those of the event's group, then those of
    /// the next ones. Other messages than questions need all records before them.
    fn let_overtake(
        &mut self,
        overtaking: &mut Overtaking,
        later: &[(Position, Record)],
        changes: &mut Vec<LaneChange>,
    ) {
        let mut room = apply_step_targets();
        if !overtaking.apply_some(&mut self.state, later, &mut room, changes) {
            return;
        }
        for message in &self.held {
            let goes_on = match message {
                StateMessage::Committed(group) => {
                    overtaking.apply_some(&mut self.state, &group.records, &mut room, changes)
                }
                StateMessage::Read { .. } => true,
                StateMessage::Maintain(_) | StateMessage::Replace(_) | StateMessage::Stop => false,
            };
            if !goes_on {
                return;
            }
        }
    }

    fn send_changes(&self, changes: &mut Vec<LaneChange>) {
        if !changes.is_empty() && !self.links.tell(Notice::Lanes(std::mem::take(changes))) {
            tracing::debug!("lane changes dropped: no receiver");
        }
    }

    fn publish_usage(&mut self) {
        let changed = self.state.take_changed_usage();
        self.board.update(self.state.applied(), changed);
    }

    /// Returns whether to continue.
    fn checkpoint(&mut self) -> bool {
        let started = Instant::now();
        self.links.disk_waits.begin(DiskThread::State, Activity::Disk);
        let written = self.state.begin_checkpoint(self.time);
        self.links.disk_waits.begin(DiskThread::State, Activity::Applying);
        self.last_checkpoint = started;
        match written {
            Ok(()) => {
                (self.links.observer)(DiskWrite::Checkpoint, started.elapsed());
                true
            }
            Err(error) if error.is_disk_full() => self.wait_for_disk_space(),
            Err(error) => self.give_up(&error),
        }
    }

    /// Ends the process; the next start replays the missing records. Returns `false`.
    pub(super) fn give_up(&self, error: &StateError) -> bool {
        tracing::error!(%error, "checkpoint failed");
        self.links.health.fail(&error.to_string());
        false
    }

    /// Waits until the disk has space for a checkpoint. Until then queries get no answer, and
    /// commits stay in memory, which the commit thread bounds. Nothing is lost, because the journal
    /// has every record. Returns whether to continue.
    pub(super) fn wait_for_disk_space(&mut self) -> bool {
        tracing::warn!("disk full, state checkpoint delayed");
        self.links.health.set_full(DiskThread::State, true);
        let mut tried = Instant::now();
        loop {
            self.links.disk_waits.end(DiskThread::State);
            match self.messages.recv_timeout(FULL_DISK_PAUSE.saturating_sub(tried.elapsed())) {
                Ok(message @ StateMessage::Committed(_)) => self.held.push_back(message),
                // Dropping the question tells the caller.
                Ok(StateMessage::Read { .. } | StateMessage::Maintain(_) | StateMessage::Replace(_))
                | Err(mpsc::RecvTimeoutError::Timeout) => {}
                Ok(StateMessage::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return false,
            }
            if tried.elapsed() < FULL_DISK_PAUSE {
                continue;
            }
            tried = Instant::now();
            self.links.disk_waits.begin(DiskThread::State, Activity::Disk);
            match self.state.reopen().and_then(|()| self.state.checkpoint(self.time)) {
                Ok(()) => break,
                Err(error) if error.is_disk_full() => {}
                Err(error) => return self.give_up(&error),
            }
        }
        tracing::warn!("disk has space again, state checkpoints resumed");
        self.links.health.set_full(DiskThread::State, false);
        true
    }
}

fn activity_of(message: &Result<StateMessage, mpsc::RecvTimeoutError>) -> Activity {
    match message {
        Ok(StateMessage::Read { .. }) => Activity::Answering,
        Ok(StateMessage::Committed(_) | StateMessage::Maintain(_)) => Activity::Applying,
        // All of them write.
        Ok(StateMessage::Stop | StateMessage::Replace(_)) | Err(_) => Activity::Disk,
    }
}

/// Single steps, for the simulation.
#[cfg(test)]
impl ApplyThread {
    /// Handles the next message, if there is one. Returns whether there was one. A thread that has
    /// failed handles none.
    pub(crate) fn turn_by_hand(&mut self) -> bool {
        if self.links.health.has_failed() {
            return false;
        }
        match self.held.pop_front().or_else(|| self.messages.try_recv().ok()) {
            Some(message) => self.turn(message),
            None => false,
        }
    }

    pub(crate) fn checkpoint_by_hand(&mut self) {
        // The simulation notices a power failure by itself.
        let _goes_on = self.checkpoint();
    }

    pub(crate) fn has_early_records(&self) -> bool {
        !self.state.early().is_empty()
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }
}

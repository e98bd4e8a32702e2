//! The two threads: the writer's, which commits, and the state's, which applies and answers.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc as async_mpsc;

use super::health::{Busy, HealthCell, Part};
use super::{Notice, Observer, StateMessage, Written};
use crate::domain::Timestamp;
use crate::store::journal::AppendError;
use crate::store::queue::UnitQueue;
use crate::store::state::{State, StateError};
use crate::store::writer::{Answer, Committed, Committer, GroupResult, Unit, UnitReply};
use crate::{limits, panics};

/// Records that the state may be behind the journal before the writer waits for it.
const STATE_LAG_MAX: u64 = 20_000;
/// Pause between two tries to write what has to be written on a full disk.
const FULL_DISK_PAUSE: Duration = Duration::from_millis(500);

/// What both threads have.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) notices: async_mpsc::Sender<Notice>,
    pub(super) applied: Arc<AtomicU64>,
    pub(super) health: Arc<HealthCell>,
    pub(super) observer: Observer,
    pub(super) busy: Busy,
}

impl Shared {
    /// Waits only when the channel is full. Gives whether anybody listens.
    fn tell(&self, notice: Notice) -> bool {
        match self.notices.try_send(notice) {
            Ok(()) => true,
            Err(async_mpsc::error::TrySendError::Closed(_)) => false,
            Err(async_mpsc::error::TrySendError::Full(notice)) => self.notices.blocking_send(notice).is_ok(),
        }
    }
}

pub(crate) struct WriterThread {
    committer: Committer,
    queue: Arc<UnitQueue>,
    state: mpsc::Sender<StateMessage>,
    shared: Shared,
    /// Where those who wait for answers live; in a simulation nowhere.
    runtime: Option<Handle>,
    /// How long it waits between two tries on a full disk.
    full_disk_pause: Duration,
}

impl WriterThread {
    pub(super) fn new(
        committer: Committer,
        queue: Arc<UnitQueue>,
        state: mpsc::Sender<StateMessage>,
        shared: Shared,
    ) -> Self {
        Self { committer, queue, state, shared, runtime: None, full_disk_pause: FULL_DISK_PAUSE }
    }

    pub(super) fn answer_within(&mut self, runtime: Option<Handle>) {
        self.runtime = runtime;
    }

    /// However it ends, nobody waits for it any longer. (A panic ends the daemon before that; other users of the store have
    /// no such hook.)
    pub(super) fn run(mut self) {
        if catch_unwind(AssertUnwindSafe(|| self.take_turns())).is_err() {
            self.shared.health.fail("the writer panicked");
        }
        self.queue.abandon();
    }

    fn take_turns(&mut self) {
        loop {
            panics::test_point("writer");
            self.shared.busy.begin(Part::Journal);
            self.wait_for_the_state();
            self.shared.busy.end(Part::Journal);
            if !self.turn() {
                return;
            }
        }
    }

    /// Gives whether to go on.
    fn turn(&mut self) -> bool {
        if self.is_disk_full() && self.queue.is_empty() {
            return self.look_for_room();
        }
        self.queue.next_group().is_some_and(|group| self.commit(group))
    }

    /// Gives whether to go on.
    fn commit(&mut self, group: Vec<Unit>) -> bool {
        let started = Instant::now();
        self.shared.busy.begin(Part::Journal);
        let result = self.committer.commit(group);
        self.shared.busy.end(Part::Journal);
        if let Some(committed) = &result.committed {
            (self.shared.observer)(Written::Commit { records: committed.records.len() }, started.elapsed());
        }
        self.publish(result)
    }

    fn is_disk_full(&self) -> bool {
        self.shared.health.is_full_for(Part::Journal)
    }

    /// Nothing waits to be written, and nothing more is let in while the disk counts as full: without a look at it that
    /// would stay so for ever. Gives whether to go on.
    fn look_for_room(&self) -> bool {
        if self.committer.journal().has_room() {
            self.shared.health.set_full(Part::Journal, false);
        } else {
            std::thread::sleep(self.full_disk_pause);
        }
        !self.queue.is_closed()
    }

    /// Tells what was committed, in order. Gives whether to go on.
    fn publish(&self, result: GroupResult) -> bool {
        if let Some(committed) = result.committed {
            self.shared.health.set_full(Part::Journal, false);
            if self.state.send(StateMessage::Committed(committed.clone())).is_err() {
                self.shared.health.fail("the state's thread has ended");
            }
            if !self.shared.tell(Notice::Committed(committed)) {
                tracing::debug!("nobody listens to commits any more");
            }
        }
        // Who is refused and looks at the health then sees why.
        match &result.failure {
            None => {}
            Some(AppendError::DiskFull) => self.shared.health.set_full(Part::Journal, true),
            Some(error) => {
                tracing::error!(%error, "the journal failed; nothing is acknowledged any more");
                self.shared.health.fail(&error.to_string());
            }
        }
        self.answer(result.replies);
        self.queue.put_back(result.unwritten);
        match result.failure {
            None => true,
            Some(AppendError::DiskFull) => {
                std::thread::sleep(self.full_disk_pause);
                !self.queue.is_closed()
            }
            Some(_) => false,
        }
    }

    /// Whoever waits is woken from within the runtime, where that costs less: the runtime itself is woken once.
    fn answer(&self, replies: Vec<(UnitReply, Answer)>) {
        if replies.is_empty() {
            return;
        }
        let answer = move || {
            for (reply, outcome) in replies {
                // A client that went away does not wait for its answer.
                let _gone = reply.send(outcome).is_err();
            }
        };
        match &self.runtime {
            Some(runtime) => drop(runtime.spawn(async { answer() })),
            None => answer(),
        }
    }

    /// Bounds the memory that committed, not yet applied records hold.
    fn wait_for_the_state(&self) {
        let last = self.committer.journal().next_position().0 - 1;
        while last.saturating_sub(self.shared.applied.load(Ordering::Relaxed)) > STATE_LAG_MAX
            || self.committer.unapplied().bytes() > limits::UNAPPLIED_BYTES_MAX
        {
            // A state that waits for room is not waited for at the end.
            if self.shared.health.has_failed() || self.queue.is_closed() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

pub(crate) struct StateThread {
    state: State,
    messages: mpsc::Receiver<StateMessage>,
    shared: Shared,
    /// What came while the disk was full.
    held: VecDeque<StateMessage>,
    last_checkpoint: Instant,
    /// Of the last commit that was applied. What expires, expires by it: a clock that was ahead for a while and was set
    /// back must not have made anything forgotten.
    time: Timestamp,
}

impl StateThread {
    pub(super) fn new(state: State, messages: mpsc::Receiver<StateMessage>, shared: Shared) -> Self {
        Self {
            state,
            messages,
            shared,
            held: VecDeque::new(),
            last_checkpoint: Instant::now(),
            time: Timestamp::default(),
        }
    }

    /// sled panics over some damage. The journal has everything, so whatever panics here is mended by a rebuild.
    pub(super) fn run(mut self) {
        if panics::contain(|| self.take_turns()).is_err() {
            self.fail("the state's thread panicked");
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
            self.shared.busy.begin(Part::State);
            let goes_on = match message {
                Ok(message) => self.turn(message),
                Err(mpsc::RecvTimeoutError::Disconnected) => self.turn(StateMessage::Stop),
                Err(mpsc::RecvTimeoutError::Timeout) => true,
            };
            let is_time = self.last_checkpoint.elapsed() >= limits::CHECKPOINT_INTERVAL;
            if !goes_on || (is_time && !self.checkpoint()) {
                return;
            }
            self.shared.busy.end(Part::State);
        }
    }

    /// Gives whether to go on.
    fn turn(&mut self, message: StateMessage) -> bool {
        let goes_on = match message {
            StateMessage::Committed(committed) => self.apply(&committed),
            StateMessage::Read(question) => {
                question(&self.state);
                true
            }
            StateMessage::Tend(task) => {
                task(&mut self.state);
                true
            }
            StateMessage::Stop => {
                if let Err(error) = self.state.checkpoint(self.time) {
                    tracing::warn!(%error, "the last checkpoint failed; the next start replays what it misses");
                }
                false
            }
        };
        match self.state.failure().map(ToOwned::to_owned) {
            Some(reason) => self.fail(&reason),
            None => goes_on,
        }
    }

    /// The state cannot be trusted any more: the process ends, and the next start rebuilds it. Never goes on.
    fn fail(&self, reason: &str) -> bool {
        tracing::error!(reason, "the state failed; it will be rebuilt from the journal at the next start");
        // First, because a disk that hangs must not keep the process from its end.
        self.shared.health.fail(reason);
        self.state.mark_unreadable();
        false
    }

    /// Gives whether to go on.
    fn apply(&mut self, committed: &Committed) -> bool {
        let mut changes = Vec::new();
        self.time = committed.at;
        for (position, record) in &committed.records {
            self.state.apply(*position, record, true, &mut changes);
            // Within a large group as well: what one checkpoint writes is bounded.
            if self.state.is_full() && !self.checkpoint() {
                return false;
            }
        }
        self.state.end_group();
        self.shared.applied.store(self.state.applied().0, Ordering::Relaxed);
        self.shared.busy.end(Part::State);
        if !changes.is_empty() && !self.shared.tell(Notice::Lanes(changes)) {
            tracing::debug!("nobody listens to lane changes any more");
        }
        true
    }

    /// Gives whether to go on.
    fn checkpoint(&mut self) -> bool {
        let started = Instant::now();
        self.shared.busy.begin(Part::State);
        let written = self.state.checkpoint(self.time);
        self.last_checkpoint = started;
        match written {
            Ok(()) => {
                (self.shared.observer)(Written::Checkpoint, started.elapsed());
                true
            }
            Err(error) if error.is_disk_full() => self.wait_for_room(),
            Err(error) => self.give_up(&error),
        }
    }

    /// The process ends; the next start replays what is missing. Never goes on.
    fn give_up(&self, error: &StateError) -> bool {
        tracing::error!(%error, "a checkpoint failed");
        self.shared.health.fail(&error.to_string());
        false
    }

    /// Until the disk has room again nothing is answered, and what is committed meanwhile is kept for later; the writer
    /// bounds how much that is. Nothing can be lost by it: the journal has everything. Gives whether to go on.
    fn wait_for_room(&mut self) -> bool {
        tracing::warn!("the disk is too full for a checkpoint of the state");
        self.shared.health.set_full(Part::State, true);
        let mut tried = Instant::now();
        loop {
            self.shared.busy.end(Part::State);
            match self.messages.recv_timeout(FULL_DISK_PAUSE.saturating_sub(tried.elapsed())) {
                Ok(message @ StateMessage::Committed(_)) => self.held.push_back(message),
                // Who asked hears that there is no answer.
                Ok(StateMessage::Read(_) | StateMessage::Tend(_)) | Err(mpsc::RecvTimeoutError::Timeout) => {}
                Ok(StateMessage::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return false,
            }
            if tried.elapsed() < FULL_DISK_PAUSE {
                continue;
            }
            tried = Instant::now();
            self.shared.busy.begin(Part::State);
            match self.state.reopen().and_then(|()| self.state.checkpoint(self.time)) {
                Ok(()) => break,
                Err(error) if error.is_disk_full() => {}
                Err(error) => return self.give_up(&error),
            }
        }
        tracing::warn!("the disk has room for the state again");
        self.shared.health.set_full(Part::State, false);
        true
    }
}

/// The turns of both threads, taken by hand: what a simulation does instead of running them.
#[cfg(test)]
impl WriterThread {
    pub(crate) fn without_pauses(mut self) -> Self {
        self.full_disk_pause = Duration::ZERO;
        self
    }

    /// Commits what waits, when anything does. Gives whether the writer goes on.
    pub(crate) fn turn_by_hand(&mut self) -> bool {
        if self.is_disk_full() && self.queue.is_empty() {
            return self.look_for_room();
        }
        let group = self.queue.take();
        group.is_empty() || self.commit(group)
    }
}

#[cfg(test)]
impl StateThread {
    /// Takes the next message, when there is one. Gives whether there was.
    pub(crate) fn turn_by_hand(&mut self) -> bool {
        match self.messages.try_recv() {
            Ok(message) => self.turn(message),
            Err(_) => false,
        }
    }

    pub(crate) fn checkpoint_by_hand(&mut self) {
        // The world sees by itself that the power has failed.
        let _goes_on = self.checkpoint();
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }
}

#[cfg(test)]
mod tests;

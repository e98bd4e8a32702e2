//! The lane of a queue: which message goes to which worker, and why none does. Performs no I/O.
//!
//! Owns the due messages, the leases and the waiting workers of a queue. Messages that were leased
//! before go out first, by acceptance; then fresh ones by their due time. Workers are served in the
//! order of their arrival. The lane is a possibly stale hint: the fold decides whether a message is
//! taken, and tells the lane.

use std::collections::VecDeque;
use std::time::Duration;

use super::leases::{JudgedLease, LeaseBook};
use super::report::WaitReason;
use super::window::Window;
use super::{Backlog, Gate};
use crate::domain::{
    DeadReason, DueKey, HeldLease, LeaseKey, Now, Position, Progress, TakenFrom, TakenMessage, Timestamp,
};
use crate::failpoints::{self, Mutation};

/// The part of a queue's policy that its lane needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePolicy {
    pub gate: Gate,
    /// Limit of messages under lease, returned ones included.
    pub leased_max: usize,
    /// Deliveries of a message before it is given up.
    pub deliveries_max: u32,
    /// Age of a message at which it is given up.
    pub age_max: Option<Duration>,
}

impl QueuePolicy {
    /// Why a message is given up instead of being delivered.
    fn doom(&self, progress: &Progress, now: Now) -> Option<DeadReason> {
        if progress.attempts_in_series >= self.deliveries_max {
            return Some(DeadReason::AttemptsExhausted);
        }
        let is_old = |age: Duration| now.wall.since(progress.series_started) > age;
        self.age_max.is_some_and(is_old).then_some(DeadReason::MaxAge)
    }
}

/// A receive that waits, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterNumber(pub u64);

/// Whether a receive waits for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    Waits,
    /// It takes those that are there.
    AtOnce,
}

#[derive(Clone, Copy, Debug)]
struct QueueWaiter {
    number: WaiterNumber,
    /// Number of messages that it takes.
    most: usize,
    patience: Patience,
}

/// A request of the lane to its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueAction {
    /// Record that the worker takes these messages.
    Take { waiter: WaiterNumber, messages: Vec<TakenMessage> },
    /// Give up this message. Then call [`QueueLane::on_given_up`].
    GiveUp { message: TakenMessage, reason: DeadReason },
    /// Answer without messages.
    Empty { waiter: WaiterNumber },
    /// Read the backlog after this key, in order, then call [`QueueLane::on_refilled`].
    Refill { after: Option<DueKey>, limit: usize },
}

/// State of a queue, for reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueReport {
    pub reason: Option<WaitReason>,
    /// Messages under a running lease.
    pub leased: usize,
    /// Messages whose lease has run out or was released.
    pub returned: usize,
    /// Due messages in memory.
    pub window: usize,
    pub waiters: usize,
    /// Due time of the first message without a lease.
    pub next_due: Option<Timestamp>,
    /// End of the lease of the first returned message.
    pub returned_at: Option<Timestamp>,
    /// When the last worker asked for messages, since the start of the process.
    pub last_receive: Option<Timestamp>,
}

impl QueueReport {
    /// Since when the oldest of the messages that go out next waits, or will.
    #[must_use]
    pub fn oldest_due(&self) -> Option<Timestamp> {
        self.returned_at.into_iter().chain(self.next_due).min()
    }
}

#[derive(Debug)]
pub struct QueueLane {
    policy: QueuePolicy,
    window: Window,
    book: LeaseBook,
    waiters: VecDeque<QueueWaiter>,
    last_receive: Option<Timestamp>,
}

impl QueueLane {
    #[must_use]
    pub fn new(policy: QueuePolicy, backlog: Backlog) -> Self {
        let (window, book) = (Window::new(backlog), LeaseBook::default());
        Self { policy, window, book, waiters: VecDeque::new(), last_receive: None }
    }

    /// Restores the leases from before the start.
    pub fn restore(&mut self, leases: Vec<(Position, HeldLease)>, now: Now) {
        if !failpoints::is_active(Mutation::ForgetLease) {
            leases.into_iter().for_each(|(event, lease)| self.book.put(event, lease, now));
        }
    }

    pub fn set_policy(&mut self, policy: QueuePolicy) {
        self.policy = policy;
    }

    /// Messages that count against the limits of leases.
    #[must_use]
    pub fn claimed(&self) -> usize {
        self.book.len() + self.window.in_flight()
    }

    /// A worker asks for messages.
    pub fn on_receive(&mut self, number: WaiterNumber, most: usize, now: Now) {
        self.last_receive = Some(now.wall);
        self.waiters.push_back(QueueWaiter { number, most, patience: Patience::Waits });
    }

    /// The records of a receive leased nothing: it is the next in turn again.
    pub fn on_receive_again(&mut self, number: WaiterNumber, most: usize) {
        self.waiters.push_front(QueueWaiter { number, most, patience: Patience::Waits });
    }

    /// The receive waits no longer. It still gets the messages that the lane is searching.
    pub fn on_time_up(&mut self, number: WaiterNumber) {
        if let Some(waiter) = self.waiters.iter_mut().find(|waiter| waiter.number == number) {
            waiter.patience = Patience::AtOnce;
        }
    }

    /// Removes a receive. Returns whether it waited.
    pub fn on_waiter_gone(&mut self, number: WaiterNumber) -> bool {
        let before = self.waiters.len();
        self.waiters.retain(|waiter| waiter.number != number);
        self.waiters.len() < before
    }

    /// Ends all waits, because the queue was deleted or the daemon stops.
    pub fn take_waiters(&mut self) -> Vec<WaiterNumber> {
        self.waiters.drain(..).map(|waiter| waiter.number).collect()
    }

    pub fn on_due(&mut self, key: DueKey, progress: Progress, at: Position) {
        self.window.on_due(key, progress, at);
    }

    pub fn on_settled(&mut self, key: DueKey, at: Position) {
        self.window.on_settled(key, at);
    }

    /// The record of a taken message is applied. `lease`: whether it took the message.
    pub fn on_taken(&mut self, taken: TakenMessage, lease: Option<HeldLease>, now: Now) {
        match (taken.from, lease) {
            (_, Some(lease)) => self.book.put(taken.event, lease, now),
            (TakenFrom::Lease(lease), None) => self.book.free(LeaseKey { event: taken.event, lease }, now),
            (TakenFrom::Due(_), None) => {}
        }
        self.finish_flight(taken);
    }

    fn finish_flight(&mut self, taken: TakenMessage) {
        if let TakenFrom::Due(due) = taken.from {
            let key = DueKey { due, event: taken.event };
            self.window.on_finished(key);
            self.window.on_recorded(key);
        }
    }

    /// The record of taken messages could not be written.
    pub fn on_take_failed(&mut self, messages: &[TakenMessage], now: Now) {
        for taken in messages {
            match taken.from {
                TakenFrom::Lease(lease) => self.book.free(LeaseKey { event: taken.event, lease }, now),
                TakenFrom::Due(due) => self.window.give_back(DueKey { due, event: taken.event }),
            }
        }
    }

    /// A message was given up, or could not be.
    pub fn on_given_up(&mut self, message: TakenMessage, now: Now) {
        self.on_take_failed(&[message], now);
    }

    /// A lease was restored, released or extended.
    pub fn on_lease(&mut self, event: Position, lease: HeldLease, now: Now) {
        self.book.change(event, lease, now);
    }

    /// The message has no lease any more.
    pub fn on_lease_ended(&mut self, event: Position) {
        self.book.remove(event);
    }

    /// See [`JudgedLease`].
    pub fn judge(&mut self, key: LeaseKey) -> JudgedLease {
        self.book.judge(key)
    }

    /// A judged lease keeps its state: no record about it will come.
    pub fn free(&mut self, key: LeaseKey, now: Now) {
        self.book.free(key, now);
    }

    pub fn on_refilled(&mut self, entries: Vec<(DueKey, Progress)>, exhausted: bool, as_of: Position) {
        self.window.on_refilled(entries, exhausted, as_of);
    }

    /// The next action; `None` until the next call or [`Self::next_wakeup`]. `leases_left` is the
    /// number of further messages that all queues together may lease; `None` while nothing may be
    /// leased.
    pub fn next_action(&mut self, leases_left: Option<usize>, now: Now) -> Option<QueueAction> {
        self.book.run_out(now);
        let leases_left = leases_left.filter(|_| self.policy.gate == Gate::Open);
        if let Some(leases_left) = leases_left {
            if let Some((message, reason)) = self.take_doomed(now) {
                return Some(QueueAction::GiveUp { message, reason });
            }
            if let Some(taken) = self.serve(leases_left, now) {
                return Some(taken);
            }
        }
        if let Some((after, limit)) = self.window.begin_refill() {
            return Some(QueueAction::Refill { after, limit });
        }
        let is_searching = leases_left.is_some() && self.window.len() == 0 && !self.window.is_complete();
        if is_searching { None } else { self.dismiss() }
    }

    /// The first message that goes out next and must be given up instead.
    fn take_doomed(&mut self, now: Now) -> Option<(TakenMessage, DeadReason)> {
        if let Some((event, lease)) = self.book.first_returned() {
            let reason = self.policy.doom(&lease.progress, now)?;
            self.book.take_returned();
            return Some((TakenMessage { event, from: TakenFrom::Lease(lease.position) }, reason));
        }
        let (key, progress) = self.window.first().filter(|(key, _)| key.due <= now.wall)?;
        let reason = self.policy.doom(&progress, now)?;
        self.window.take_first();
        Some((TakenMessage { event: key.event, from: TakenFrom::Due(key.due) }, reason))
    }

    /// Messages for the first worker in turn.
    fn serve(&mut self, leases_left: usize, now: Now) -> Option<QueueAction> {
        let QueueWaiter { number, most, .. } = *self.waiters.front()?;
        let room = self.policy.leased_max.saturating_sub(self.claimed()).min(leases_left);
        let (mut messages, mut fresh) = (Vec::new(), 0);
        while messages.len() < most {
            let returned = self
                .book
                .first_returned()
                .filter(|_| !failpoints::is_active(Mutation::FreshFirst) || self.window.first().is_none());
            let due = || self.window.first().filter(|(key, _)| key.due <= now.wall && fresh < room);
            let (taken, progress) = if let Some((event, lease)) = returned {
                (TakenMessage { event, from: TakenFrom::Lease(lease.position) }, lease.progress)
            } else if let Some((key, progress)) = due() {
                (TakenMessage { event: key.event, from: TakenFrom::Due(key.due) }, progress)
            } else {
                break;
            };
            let goes_alone = progress.goes_alone();
            if self.policy.doom(&progress, now).is_some() || (goes_alone && !messages.is_empty()) {
                break;
            }
            match taken.from {
                TakenFrom::Lease(_) => self.book.take_returned(),
                TakenFrom::Due(_) => {
                    self.window.take_first();
                    fresh += 1;
                }
            }
            messages.push(taken);
            if goes_alone {
                break;
            }
        }
        if messages.is_empty() {
            return None;
        }
        self.waiters.pop_front();
        Some(QueueAction::Take { waiter: number, messages })
    }

    /// Answers a receive that does not wait, once the lane has looked everywhere.
    fn dismiss(&mut self) -> Option<QueueAction> {
        let hurried = self.waiters.iter().position(|waiter| waiter.patience == Patience::AtOnce)?;
        let waiter = self.waiters.remove(hurried)?;
        Some(QueueAction::Empty { waiter: waiter.number })
    }

    /// Time at which [`Self::next_action`] may return an action without a further call, as
    /// monotonic time.
    #[must_use]
    pub fn next_wakeup(&self, now: Now) -> Option<Duration> {
        let due = self.window.first().filter(|_| !self.waiters.is_empty());
        let due = due.map(|(key, _)| now.monotonic + key.due.since(now.wall));
        // A due message that no worker gets needs a further call, not a time.
        let due = due.filter(|due| *due > now.monotonic);
        let old = self.policy.age_max.and_then(|age| {
            let first = self.window.first();
            let returned = self.book.first_returned().map(|(_, lease)| (Timestamp::ZERO, lease.progress));
            let (due, progress) = returned.or_else(|| first.map(|(key, progress)| (key.due, progress)))?;
            let at = progress.series_started.plus(age).plus(Duration::from_millis(1)).max(due);
            Some(now.monotonic + at.since(now.wall)).filter(|at| *at > now.monotonic)
        });
        due.into_iter().chain(old).chain(self.book.next_end()).min()
    }

    #[must_use]
    pub fn report(&self, now: Now) -> QueueReport {
        let leased = self.book.len() - self.book.returned();
        QueueReport {
            reason: self.wait_reason(now),
            leased,
            returned: self.book.returned(),
            window: self.window.len(),
            waiters: self.waiters.len(),
            next_due: self.window.first().map(|(key, _)| key.due),
            returned_at: self.book.first_returned().map(|(_, lease)| lease.until),
            last_receive: self.last_receive,
        }
    }

    fn wait_reason(&self, now: Now) -> Option<WaitReason> {
        let first = self.window.first();
        if self.book.returned() == 0 && first.is_none() && self.window.is_complete() {
            return None;
        }
        match self.policy.gate {
            Gate::Open => {}
            Gate::Paused => return Some(WaitReason::Paused),
            Gate::Disabled => return Some(WaitReason::Disabled),
            Gate::Handshake => return Some(WaitReason::Handshake),
        }
        let is_due = first.is_none_or(|(key, _)| key.due <= now.wall);
        if self.book.returned() == 0 && !is_due {
            return Some(WaitReason::NotDue);
        }
        if self.book.returned() == 0 && self.claimed() >= self.policy.leased_max {
            return Some(WaitReason::LeaseLimit);
        }
        self.waiters.is_empty().then_some(WaitReason::NoWorker)
    }
}

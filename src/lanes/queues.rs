//! The lanes of all queues. A lane is polled only after a change or at its wake-up time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::queue::{QueueAction, QueueLane, QueuePolicy, QueueReport};
use super::{Backlog, CLOCK_STEP, LanesSummary, SendHold, WaitReason, with_order};
use crate::domain::{EndpointNumber, IdMap, Now, Timestamp};
use crate::limits;

#[derive(Debug)]
struct QueueEntry {
    lane: QueueLane,
    is_ready: bool,
    asleep_until: Option<Duration>,
}

/// All queues of this process.
#[derive(Debug, Default)]
pub struct QueueLanes {
    queues: BTreeMap<EndpointNumber, QueueEntry>,
    /// Queues to poll. They take turns.
    ready: VecDeque<EndpointNumber>,
    asleep: BTreeSet<(Duration, EndpointNumber)>,
    /// Messages of all queues that count against [`limits::LEASES_MAX`].
    claimed: usize,
    /// Wall-clock time at monotonic zero, at the last check.
    origin: Timestamp,
    hold: SendHold,
}

impl QueueLanes {
    /// Stops or resumes leasing.
    pub fn hold(&mut self, hold: SendHold) {
        if self.hold != hold {
            self.hold = hold;
            self.wake_all();
        }
    }

    /// Creates the lane of a queue or changes its policy.
    pub fn on_queue(&mut self, queue: EndpointNumber, policy: QueuePolicy, backlog: Backlog) {
        match self.queues.get_mut(&queue) {
            Some(entry) => entry.lane.set_policy(policy),
            None => {
                let lane = QueueLane::new(policy, backlog);
                self.queues.insert(queue, QueueEntry { lane, is_ready: false, asleep_until: None });
            }
        }
        self.wake(queue);
    }

    /// Removes the lane of a deleted queue.
    pub fn on_queue_removed(&mut self, queue: EndpointNumber) -> Option<QueueLane> {
        let entry = self.queues.remove(&queue)?;
        self.claimed -= entry.lane.claimed();
        if let Some(until) = entry.asleep_until {
            self.asleep.remove(&(until, queue));
        }
        Some(entry.lane)
    }

    #[must_use]
    pub fn has(&self, queue: EndpointNumber) -> bool {
        self.queues.contains_key(&queue)
    }

    /// Changes a lane, which is polled next. `None`: no such queue.
    pub fn with<R>(&mut self, queue: EndpointNumber, change: impl FnOnce(&mut QueueLane) -> R) -> Option<R> {
        let entry = self.queues.get_mut(&queue)?;
        let before = entry.lane.claimed();
        let result = change(&mut entry.lane);
        self.claimed = self.claimed - before + entry.lane.claimed();
        self.wake(queue);
        Some(result)
    }

    fn wake_all(&mut self) {
        let all: Vec<_> = self.queues.keys().copied().collect();
        all.into_iter().for_each(|queue| self.wake(queue));
    }

    fn wake(&mut self, queue: EndpointNumber) {
        let Some(entry) = self.queues.get_mut(&queue) else { return };
        if let Some(until) = entry.asleep_until.take() {
            self.asleep.remove(&(until, queue));
        }
        if !std::mem::replace(&mut entry.is_ready, true) {
            self.ready.push_back(queue);
        }
    }

    /// The next action of any queue.
    pub fn next_action(&mut self, now: Now) -> Option<(EndpointNumber, QueueAction)> {
        let origin = now.wall.minus(now.monotonic);
        // A step of the wall clock changes the time until a due time.
        if origin.since(self.origin).max(self.origin.since(origin)) > CLOCK_STEP {
            self.origin = origin;
            self.wake_all();
        }
        while let Some((until, queue)) =
            self.asleep.first().copied().filter(|(until, _)| *until <= now.monotonic)
        {
            self.asleep.remove(&(until, queue));
            self.wake(queue);
        }
        while let Some(queue) = self.ready.pop_front() {
            let Some(entry) = self.queues.get_mut(&queue).filter(|entry| entry.is_ready) else { continue };
            entry.is_ready = false;
            let left = (self.hold == SendHold::None).then(|| limits::LEASES_MAX.saturating_sub(self.claimed));
            let before = entry.lane.claimed();
            let action = entry.lane.next_action(left, now);
            self.claimed = self.claimed - before + entry.lane.claimed();
            if let Some(action) = action {
                self.wake(queue);
                return Some((queue, action));
            }
            if let Some(until) = entry.lane.next_wakeup(now) {
                entry.asleep_until = Some(until);
                self.asleep.insert((until, queue));
            }
        }
        None
    }

    /// Time until [`Self::next_action`] may return an action without a further call.
    #[must_use]
    pub fn next_wakeup(&self, now: Now) -> Option<Duration> {
        self.asleep.first().map(|(until, _)| until.saturating_sub(now.monotonic))
    }

    fn report_of(&self, lane: &QueueLane, now: Now) -> QueueReport {
        let report = lane.report(now);
        let has_due = report.returned > 0 || report.next_due.is_some_and(|due| due <= now.wall);
        if self.hold == SendHold::StoreFull && report.reason.is_none() && has_due {
            return QueueReport { reason: Some(WaitReason::StoreFull), ..report };
        }
        report
    }

    /// `None`: no such queue.
    #[must_use]
    pub fn report(&self, queue: EndpointNumber, now: Now) -> Option<QueueReport> {
        self.queues.get(&queue).map(|entry| self.report_of(&entry.lane, now))
    }

    /// Reports of all queues.
    pub fn reports(&self, now: Now) -> impl Iterator<Item = QueueReport> + '_ {
        self.queues.values().map(move |entry| self.report_of(&entry.lane, now))
    }

    /// Adds the queues that wait to the lanes of endpoints. `behind` has those with messages that
    /// their ordering blocks.
    pub fn count_waiting(
        &self,
        summary: &mut LanesSummary,
        behind: &IdMap<EndpointNumber, Option<Timestamp>>,
        now: Now,
    ) {
        for (queue, entry) in &self.queues {
            let report = self.report_of(&entry.lane, now);
            if let Some(reason) = with_order(report.reason, behind.contains_key(queue)) {
                summary.waiting[reason.index()] += 1;
            }
        }
    }

    /// The queues by number.
    #[must_use]
    pub fn numbers(&self) -> Vec<EndpointNumber> {
        self.queues.keys().copied().collect()
    }
}

//! Who sends next, and why not: the scheduler, without input or output.
//!
//! Owns one lane per endpoint: what is due, what is in flight, why it waits. Must never know async, I/O, serde, clocks or
//! randomness: every call is told the time. Invariants: a lane is a hint, possibly stale, never ahead of the journal; a delivery
//! is in flight at most once; no lane is looked at unless something happened to it or its time has come, so that ten
//! thousand of them cost nothing while they wait. Turns are fair: ready lanes stand in a ring, one send per turn; those whose
//! host has no room stand in its line, and nobody overtakes them; those that have to leave the last slots to others stand in
//! a line, too. A rate is reserved on disk before it is used; the lane waits for that without a slot, and goes on in front.

mod circuit;
mod host;
mod lane;
mod rate;
mod report;
mod reserving;
mod slots;
mod window;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::domain::{
    DueKey, EndpointNumber, Hold, Now, Position, Progress, RateLimit, Reservation, Timestamp,
};
pub use circuit::{BreakerConfig, CircuitState};
use host::{Hosts, Place};
use lane::{Lane, Move, Readiness};
pub use report::{LaneReport, LanesSummary, WaitReason, with_order};
use slots::Slots;

/// What an endpoint's policy says to its lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanePolicy {
    pub rate: Option<RateLimit>,
    /// Requests at once.
    pub max_in_flight: u32,
    pub gate: Gate,
    /// Host and port, by which lanes share [`LanesConfig::host_max_in_flight`].
    pub host: Arc<str>,
    /// Of the endpoint that says all this.
    pub revision: Position,
}

/// Whether the endpoint wants anything now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Open,
    Paused,
    Disabled,
    /// The receiver has not agreed to be sent to.
    Handshake,
}

/// What is known of a lane's backlog when the lane is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backlog {
    None,
    /// Something is pending on disk: the lane begins by asking for it.
    OnDisk,
}

/// What an earlier life of the daemon has promised to a receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promises {
    /// It asked to be left alone until then.
    pub held_until: Option<Timestamp>,
    pub reservation: Option<Reservation>,
}

/// What an attempt says about the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Healthy,
    /// It is down or broken: counts for the circuit.
    Failing,
    /// It asked to be left alone.
    Throttled(Hold),
    /// Nothing: our own trouble, or a reply that is about the delivery alone.
    Neutral,
}

/// What an outcome changed about a receiver: worth telling somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Its circuit opened.
    Failing,
    /// It took a delivery, after its circuit had opened or its endpoint had been disabled.
    Recovered,
}

/// What the lanes want done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Send {
        endpoint: EndpointNumber,
        key: DueKey,
        progress: Progress,
        /// Since when the receiver keeps its lane shut, by an open circuit or a `Retry-After`: this is the
        /// first request after that, or a probe.
        shut_since: Option<Timestamp>,
    },
    /// Make this durable and say so with [`Lanes::on_reserved`]: the lane sends nothing until then.
    Reserve { endpoint: EndpointNumber, reservation: Reservation },
    /// Read the backlog after this key, in order.
    Refill { endpoint: EndpointNumber, after: Option<DueKey>, limit: usize },
}

/// What came of a look at a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Act(Action),
    Nothing,
    /// Another lane of its host was woken.
    Promised,
}

#[derive(Clone, Copy, Debug)]
pub struct LanesConfig {
    /// Requests at once over all lanes.
    pub max_in_flight: usize,
    /// Requests at once to one host over all lanes; 0 is no limit.
    pub host_max_in_flight: usize,
    pub breaker: BreakerConfig,
}

/// All lanes of this process.
#[derive(Debug)]
pub struct Lanes {
    config: LanesConfig,
    lanes: HashMap<EndpointNumber, Lane>,
    hosts: Hosts,
    slots: Slots,
    /// Lanes that may have something to do now, in turn.
    ring: VecDeque<EndpointNumber>,
    in_ring: BTreeSet<EndpointNumber>,
    /// Lanes that wait for a time, by monotonic time.
    asleep: BTreeSet<(Duration, EndpointNumber)>,
    /// The time of day at the start of monotonic time, when it was last looked at.
    origin: Timestamp,
    held: bool,
    /// For how long lanes were held by their rate, since it was last asked.
    rate_waited: Duration,
}

/// A clock that has been set by more than this is noticed.
const CLOCK_STEP: Duration = Duration::from_secs(1);

impl Lanes {
    #[must_use]
    pub fn new(config: LanesConfig) -> Self {
        Self {
            config,
            lanes: HashMap::new(),
            hosts: Hosts::new(config.host_max_in_flight),
            slots: Slots::new(config.max_in_flight),
            ring: VecDeque::new(),
            in_ring: BTreeSet::new(),
            asleep: BTreeSet::new(),
            origin: Timestamp::ZERO,
            held: false,
            rate_waited: Duration::ZERO,
        }
    }

    pub fn reconfigure(&mut self, config: LanesConfig) {
        self.config = config;
        self.hosts.set_limit(config.host_max_in_flight);
        self.slots.set_max(config.max_in_flight);
        for host in self.hosts.waited_for() {
            self.promise(&host);
        }
    }

    /// While held nothing is sent: the store is sick, or the daemon drains.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// Makes a lane, or changes its policy. Opening a closed gate, or a move to another host, also closes the circuit and
    /// ends the holds from before.
    pub fn on_endpoint(&mut self, endpoint: EndpointNumber, policy: LanePolicy, backlog: Backlog, now: Now) {
        match self.lanes.get_mut(&endpoint) {
            Some(lane) if lane.host() != &policy.host => {
                // Its requests under way count for the new host now: it is the same receiver that takes its time.
                let (old, requests, place) = (lane.host().clone(), lane.in_flight(), lane.place);
                self.hosts.leave(&old, endpoint, requests, place);
                self.hosts.add(&policy.host, requests);
                lane.place = Place::None;
                lane.change(policy, now);
                self.promise(&old);
            }
            Some(lane) => lane.change(policy, now),
            None => {
                self.lanes.insert(endpoint, Lane::new(policy, backlog));
            }
        }
        self.wake(endpoint);
    }

    /// What was promised to a lane's receiver before the daemon was started.
    pub fn restore(&mut self, endpoint: EndpointNumber, promises: Promises, now: Now) {
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.restore(promises, now);
            self.wake(endpoint);
        }
    }

    /// A reservation is durable: what it covers needs no other.
    pub fn on_reserved(&mut self, endpoint: EndpointNumber, reservation: &Reservation, now: Now) {
        if let Some(lane) = self.lanes.get_mut(&endpoint)
            && lane.on_reserved(reservation, now)
            && self.in_ring.insert(endpoint)
        {
            self.ring.push_front(endpoint);
        }
    }

    /// The revision of the endpoint that its lane goes by; `None` when there is no lane.
    #[must_use]
    pub fn revision(&self, endpoint: EndpointNumber) -> Option<Position> {
        self.lanes.get(&endpoint).map(Lane::revision)
    }

    pub fn on_endpoint_removed(&mut self, endpoint: EndpointNumber) {
        if let Some(lane) = self.lanes.remove(&endpoint) {
            self.slots.give_back(lane.in_flight());
            self.slots.leave(endpoint, &lane);
            self.forget_sleep(endpoint, lane.asleep_until);
            self.hosts.leave(lane.host(), endpoint, lane.in_flight(), lane.place);
            self.promise(lane.host());
        }
    }

    /// A delivery may be sent from `key.due` on: accepted, to be retried, let through or revived. `at` is the position of
    /// the record that says so.
    pub fn on_due(
        &mut self,
        endpoint: EndpointNumber,
        key: DueKey,
        progress: Progress,
        at: Position,
        _now: Now,
    ) {
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.window.on_due(key, progress, at);
            self.wake(endpoint);
        }
    }

    /// This place is empty: the delivery ended, or was moved.
    pub fn on_settled(&mut self, endpoint: EndpointNumber, key: DueKey, at: Position, _now: Now) {
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.window.on_settled(key, at);
            self.wake(endpoint);
        }
    }

    /// The outcome of the attempt that was sent under this key is recorded, and what came of it was told before.
    pub fn on_recorded(&mut self, endpoint: EndpointNumber, key: DueKey, _now: Now) {
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.window.on_recorded(key);
            self.wake(endpoint);
        }
    }

    /// An attempt ended: its slot is free. Its delivery is not sent again until the outcome is recorded.
    pub fn on_finished(
        &mut self,
        endpoint: EndpointNumber,
        key: DueKey,
        outcome: Outcome,
        now: Now,
    ) -> Option<Turn> {
        let breaker = self.config.breaker;
        let lane = self.lanes.get_mut(&endpoint)?;
        if !lane.window.on_finished(key) {
            return None;
        }
        let turn = lane.on_outcome(key, outcome, &breaker, now);
        let host = lane.host().clone();
        self.free_slot(endpoint, &host);
        turn
    }

    /// A request of the lane to this host is over.
    fn free_slot(&mut self, endpoint: EndpointNumber, host: &Arc<str>) {
        self.slots.give_back(1);
        self.hosts.remove(host, 1);
        self.promise(host);
        self.wake(endpoint);
    }

    /// What was to be sent was not, through nobody's fault: the key is due as it was before.
    pub fn on_returned(&mut self, endpoint: EndpointNumber, key: DueKey, progress: Progress, _now: Now) {
        if let Some(lane) = self.lanes.get_mut(&endpoint)
            && lane.on_returned(key, progress)
        {
            let host = lane.host().clone();
            self.free_slot(endpoint, &host);
        }
    }

    /// The answer to [`Action::Refill`]. `as_of` is the position that it reflects.
    pub fn on_refilled(
        &mut self,
        endpoint: EndpointNumber,
        entries: Vec<(DueKey, Progress)>,
        exhausted: bool,
        as_of: Position,
        _now: Now,
    ) {
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.window.on_refilled(entries, exhausted, as_of);
            self.wake(endpoint);
        }
    }

    /// What to do now; to be asked until there is nothing.
    #[must_use]
    pub fn next_action(&mut self, now: Now) -> Option<Action> {
        self.wake_sleepers(now);
        if self.held {
            return None;
        }
        // Those in line for a slot are called one by one, in turn with the others, for as long as there are slots for them.
        loop {
            let called = self.slots.call();
            if let Some(endpoint) = called {
                self.leave_line(endpoint);
            }
            if self.slots.is_full() {
                return None;
            }
            let action = self.take_turns(now);
            if action.is_some() || called.is_none() {
                return action;
            }
        }
    }

    fn take_turns(&mut self, now: Now) -> Option<Action> {
        // Each lane gets one look per round; one that has sent goes to the back.
        let mut looks = self.ring.len();
        while looks > 0 {
            looks -= 1;
            let endpoint = self.ring.pop_front()?;
            match self.take_turn(endpoint, now) {
                Look::Act(action) => return Some(action),
                Look::Nothing => {}
                // Whoever has the turn now stands at the end.
                Look::Promised => looks = self.ring.len(),
            }
        }
        None
    }

    /// A look at a lane that has left the ring.
    fn take_turn(&mut self, endpoint: EndpointNumber, now: Now) -> Look {
        let Some(lane) = self.lanes.get_mut(&endpoint) else {
            self.in_ring.remove(&endpoint);
            return Look::Nothing;
        };
        if let Some((after, limit)) = lane.window.wants_refill() {
            self.ring.push_back(endpoint);
            return Look::Act(Action::Refill { endpoint, after, limit });
        }
        let until = match lane.readiness(now) {
            Readiness::Waits { until, .. } => until,
            Readiness::Ready if !self.slots.admit(lane) => {
                if self.slots.line_up(endpoint, lane) {
                    self.in_ring.remove(&endpoint);
                } else {
                    self.ring.push_back(endpoint);
                }
                return self.pass_on_promise(endpoint);
            }
            Readiness::Ready => {
                let host = lane.host().clone();
                let end = lane.line_end();
                if !self.hosts.admits(&host, endpoint, &mut lane.place, end) {
                    self.in_ring.remove(&endpoint);
                    return Look::Nothing;
                }
                let shut_since = lane.shut_since;
                match lane.take_turn(now) {
                    Move::Send(key, progress) => {
                        self.hosts.on_sent(&host, &mut lane.place);
                        self.slots.take();
                        self.ring.push_back(endpoint);
                        return Look::Act(Action::Send { endpoint, key, progress, shut_since });
                    }
                    Move::Reserve(reservation) => {
                        self.in_ring.remove(&endpoint);
                        // Those that it wakes get their turn when the lanes are asked again.
                        self.pass_on_promise(endpoint);
                        return Look::Act(Action::Reserve { endpoint, reservation });
                    }
                    Move::Wait => match lane.readiness(now) {
                        Readiness::Waits { reason, until } => {
                            if let (Some(WaitReason::Rate), Some(until)) = (reason, until) {
                                self.rate_waited += until.saturating_sub(now.monotonic);
                            }
                            until
                        }
                        Readiness::Ready => {
                            self.ring.push_back(endpoint);
                            return Look::Nothing;
                        }
                    },
                }
            }
        };
        lane.lose_turn();
        self.in_ring.remove(&endpoint);
        self.sleep(endpoint, until);
        self.pass_on_promise(endpoint)
    }

    /// A lane that cannot use the slot that its host keeps for it gives it to the next in line.
    fn pass_on_promise(&mut self, endpoint: EndpointNumber) -> Look {
        let Some(lane) = self.lanes.get_mut(&endpoint) else { return Look::Nothing };
        let host = lane.host().clone();
        if !self.hosts.give_up(&host, &mut lane.place) {
            return Look::Nothing;
        }
        self.promise(&host);
        Look::Promised
    }

    /// How long until [`Self::next_action`] may have something that it does not have now; `None` when only a call can
    /// change that.
    #[must_use]
    pub fn next_wakeup(&self, now: Now) -> Option<Duration> {
        self.asleep.first().map(|(until, _)| until.saturating_sub(now.monotonic))
    }

    /// Why a lane is not sending; `None` when there is no such lane.
    #[must_use]
    pub fn explain(&self, endpoint: EndpointNumber, now: Now) -> Option<LaneReport> {
        let lane = self.lanes.get(&endpoint)?;
        let mut report = lane.explain(now);
        let full = !self.slots.admit(lane) || self.hosts.is_full(lane.host());
        if report.reason.is_none() && lane.has_due(now) && full {
            report.reason = Some(WaitReason::GlobalLimit);
        }
        Some(report)
    }

    /// For how long lanes were held by their rate, since this was last asked.
    pub fn take_rate_waited(&mut self) -> Duration {
        std::mem::take(&mut self.rate_waited)
    }

    /// All lanes at a glance. Looks at every lane: for gauges, not for turns. `behind` are the endpoints of which some
    /// deliveries stand behind others, with the due time of the oldest of those that is due.
    #[must_use]
    pub fn summary(&self, behind: &HashMap<EndpointNumber, Option<Timestamp>>, now: Now) -> LanesSummary {
        let mut summary = LanesSummary { in_flight: self.slots.taken(), ..LanesSummary::default() };
        for endpoint in self.lanes.keys() {
            let Some(report) = self.explain(*endpoint, now) else { continue };
            if let Some(reason) = with_order(report.reason, behind.contains_key(endpoint)) {
                summary.waiting[reason.index()] += 1;
            }
            let due = report.next_due.filter(|due| *due <= now.wall);
            let due_behind = behind.get(endpoint).copied().flatten();
            summary.oldest_due = summary.oldest_due.into_iter().chain(due).chain(due_behind).min();
        }
        summary
    }

    fn wake(&mut self, endpoint: EndpointNumber) {
        // One that waits for its reservation keeps its turn until then.
        let awaits = self.lanes.get(&endpoint).is_some_and(Lane::awaits_reservation);
        if !awaits && self.in_ring.insert(endpoint) {
            self.ring.push_back(endpoint);
        }
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            let until = lane.asleep_until.take();
            self.forget_sleep(endpoint, until);
        }
    }

    /// There may be a slot for it again.
    fn leave_line(&mut self, endpoint: EndpointNumber) {
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.in_line = false;
            self.wake(endpoint);
        }
    }

    /// Keeps what is free at a host for those in line, and wakes them.
    fn promise(&mut self, host: &Arc<str>) {
        while let Some(next) = self.hosts.next_promise(host) {
            if let Some(lane) = self.lanes.get_mut(&next) {
                lane.place = Place::Promised;
            }
            self.wake(next);
        }
    }

    fn forget_sleep(&mut self, endpoint: EndpointNumber, until: Option<Duration>) {
        if let Some(until) = until {
            self.asleep.remove(&(until, endpoint));
        }
    }

    fn sleep(&mut self, endpoint: EndpointNumber, until: Option<Duration>) {
        if let (Some(until), Some(lane)) = (until, self.lanes.get_mut(&endpoint)) {
            lane.asleep_until = Some(until);
            self.asleep.insert((until, endpoint));
        }
    }

    /// What waits for a time of day sleeps for as long as it is until then. When the clock is set, or the machine slept, it
    /// is another length.
    fn notice_clock(&mut self, now: Now) {
        let origin = now.wall.minus(now.monotonic);
        if origin.since(self.origin).max(self.origin.since(origin)) > CLOCK_STEP {
            self.origin = origin;
            self.lanes.values_mut().for_each(Lane::on_clock_set);
            while let Some((_, endpoint)) = self.asleep.first().copied() {
                self.wake(endpoint);
            }
        }
    }

    fn wake_sleepers(&mut self, now: Now) {
        self.notice_clock(now);
        while let Some((until, endpoint)) = self.asleep.first().copied() {
            if until > now.monotonic {
                return;
            }
            self.wake(endpoint);
        }
    }
}

#[cfg(test)]
mod tests;

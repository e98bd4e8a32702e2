//! The scheduler: selects the next delivery and reports why a lane waits. Performs no I/O.
//!
//! Owns one lane per endpoint: due deliveries, attempts in flight and the wait reason. Must never
//! know async, I/O, serde, clocks or randomness: each call passes the time.
//!
//! Invariants: A lane is a possibly stale hint, never ahead of the journal. A delivery has at most
//! one attempt in flight. A lane is polled only after a change or at its wake-up time, so idle
//! lanes cost nothing.
//!
//! Fairness: tenants take turns for slots (module `tenants`), and the ready lanes of a tenant take
//! turns in its ring, one send per turn. A lane waits in its host's queue while the host's limit is
//! reached, and in a slot queue while the last slots are kept for other lanes. A rate is reserved
//! on disk before it is used. The lane holds no slot during that wait and then joins the front of
//! its queues.

#[cfg(test)]
mod audit;
mod circuit;
mod handshakes;
mod host;
mod lane;
pub mod leases;
mod line;
pub mod queue;
pub mod queues;
mod rate;
mod report;
mod reserving;
mod tenants;
mod turns;
mod window;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::{
    DueKey, EndpointNumber, Hold, IdMap, Now, Position, Progress, RateLimit, Reservation, Timestamp,
};
pub use circuit::{BreakerConfig, CircuitState};
use host::{HostQueueState, Hosts, QueueEnd};
use lane::Lane;
use line::TenantLine;
pub use report::{LaneReport, LanesSummary, PostponeCause, SendHold, WaitReason, with_order};
use tenants::{TenantNumber, Tenants};

/// The part of an endpoint's policy that its lane needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanePolicy {
    pub rate: Option<RateLimit>,
    pub max_in_flight: u32,
    pub gate: Gate,
    /// The tenant whose slots the lane uses. Only the first policy of a lane counts.
    pub tenant: Arc<str>,
    /// Host and port; its lanes share [`LanesConfig::host_max_in_flight`].
    pub host: Arc<str>,
    /// Revision of the endpoint with this policy.
    pub revision: Position,
}

/// Whether the endpoint accepts deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Open,
    Paused,
    Disabled,
    /// The receiver has not given consent.
    Handshake,
}

/// Backlog of a new lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backlog {
    None,
    /// Deliveries are pending on disk; the lane begins with a refill.
    OnDisk,
}

/// Durable promises to a receiver from before the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promises {
    /// End of the receiver's `Retry-After`.
    pub held_until: Option<Timestamp>,
    pub reservation: Option<Reservation>,
}

/// Result of an attempt, as evidence about the receiver's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    Healthy,
    /// The receiver is down or broken; counts towards opening the circuit.
    Failing,
    /// The receiver sent `Retry-After`.
    Throttled(Hold),
    /// No evidence: a local problem, or a reply about this delivery alone.
    Neutral,
}

/// A change of a receiver's health, published as a system event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The circuit opened.
    Failing,
    /// The first success after the circuit opened or the endpoint was disabled.
    Recovered,
}

/// A request of the lanes to their caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Send {
        endpoint: EndpointNumber,
        key: DueKey,
        progress: Progress,
        /// When the receiver shut the lane by an open circuit or a `Retry-After`. `Some` for a
        /// probe, and for the first request after the lane was shut.
        shut_since: Option<Timestamp>,
    },
    /// Make this durable, then call [`Lanes::on_reserved`]. The lane sends nothing until then.
    Reserve { endpoint: EndpointNumber, reservation: Reservation },
    /// Read the backlog after this key, in order, then call [`Lanes::on_refilled`].
    Refill { endpoint: EndpointNumber, after: Option<DueKey>, limit: usize },
}

/// Result of polling a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Polled {
    Act(Action),
    Nothing,
    /// Another lane of the host was offered a slot and joined the ring.
    SlotOffered,
}

#[derive(Clone, Copy, Debug)]
pub struct LanesConfig {
    /// Limit of concurrent requests over all lanes.
    pub max_in_flight: usize,
    /// Limit of concurrent requests to one host over all lanes; 0: no limit.
    pub host_max_in_flight: usize,
    pub breaker: BreakerConfig,
}

/// All lanes of this process.
#[derive(Debug)]
pub struct Lanes {
    config: LanesConfig,
    lanes: IdMap<EndpointNumber, Lane>,
    hosts: Hosts,
    handshakes: handshakes::HandshakeSlots,
    tenants: Tenants,
    /// Lanes that wait, by [`TenantNumber`].
    lines: Vec<TenantLine>,
    /// Lanes in the rings of all lines.
    in_ring: BTreeSet<EndpointNumber>,
    /// Lanes that may have a host's offer, while there are several tenants.
    offered: Vec<EndpointNumber>,
    /// Lanes with a wake-up time, by monotonic time.
    asleep: BTreeSet<(Duration, EndpointNumber)>,
    /// Wall-clock time at monotonic zero, at the last check.
    origin: Timestamp,
    hold: SendHold,
    #[cfg(test)]
    audit: audit::TurnAudit,
    /// Total time that lanes waited for their rate, since [`Lanes::take_rate_waited`].
    rate_waited: Duration,
}

/// Minimum change of the wall clock that reschedules sleeping lanes.
const CLOCK_STEP: Duration = Duration::from_secs(1);

impl Lanes {
    #[must_use]
    pub fn new(config: LanesConfig) -> Self {
        Self {
            config,
            lanes: IdMap::default(),
            hosts: Hosts::new(config.host_max_in_flight),
            handshakes: handshakes::HandshakeSlots::default(),
            tenants: Tenants::new(config.max_in_flight),
            lines: Vec::new(),
            in_ring: BTreeSet::new(),
            offered: Vec::new(),
            asleep: BTreeSet::new(),
            origin: Timestamp::ZERO,
            hold: SendHold::None,
            #[cfg(test)]
            audit: audit::TurnAudit::default(),
            rate_waited: Duration::ZERO,
        }
    }

    pub fn reconfigure(&mut self, config: LanesConfig) {
        self.config = config;
        self.hosts.set_limit(config.host_max_in_flight);
        self.tenants.set_limit(config.max_in_flight);
        for host in self.hosts.with_waiting_lanes() {
            self.offer_slots(&host);
        }
    }

    /// Stops or resumes sending.
    pub fn hold(&mut self, hold: SendHold) {
        self.hold = hold;
    }

    /// Creates a lane or changes its policy. Opening the gate or changing the host of an open lane
    /// also closes the circuit and ends earlier holds.
    pub fn on_endpoint(&mut self, endpoint: EndpointNumber, policy: LanePolicy, backlog: Backlog, now: Now) {
        match self.lanes.get_mut(&endpoint) {
            Some(lane) if lane.host() != &policy.host => {
                // Its requests in flight count for the new host now: the receiver is the same.
                let (old, requests, state) = (lane.host().clone(), lane.in_flight(), lane.host_queue);
                self.hosts.remove_lane(&old, endpoint, requests, state);
                self.hosts.add_requests(&policy.host, requests);
                lane.host_queue = HostQueueState::None;
                lane.set_policy(policy, now);
                self.offer_slots(&old);
            }
            Some(lane) => lane.set_policy(policy, now),
            None => {
                #[cfg(test)]
                self.audit.on_lane(&policy.tenant);
                let tenant = self.tenants.add_lane(&policy.tenant);
                self.lines.resize_with(self.tenants.numbers_end(), TenantLine::default);
                self.lanes.insert(endpoint, Lane::new(policy, tenant, backlog));
            }
        }
        self.wake(endpoint);
    }

    /// Restores the durable promises after a start.
    pub fn restore(&mut self, endpoint: EndpointNumber, promises: Promises, now: Now) {
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.restore(promises, now);
            self.wake(endpoint);
        }
    }

    /// The reservation is durable. A lane that waited for it is polled next.
    pub fn on_reserved(&mut self, endpoint: EndpointNumber, reservation: &Reservation, now: Now) {
        if let Some(lane) = self.lanes.get_mut(&endpoint)
            && lane.on_reserved(reservation, now)
        {
            let tenant = lane.tenant;
            self.join_ring(endpoint, tenant, QueueEnd::Front);
        }
    }

    /// Revision of the endpoint that the lane's policy is from; `None`: no such lane.
    #[must_use]
    pub fn revision(&self, endpoint: EndpointNumber) -> Option<Position> {
        self.lanes.get(&endpoint).map(Lane::revision)
    }

    pub fn on_endpoint_removed(&mut self, endpoint: EndpointNumber) {
        if let Some(mut lane) = self.lanes.remove(&endpoint) {
            let line = &mut self.lines[lane.tenant.0];
            line.on_finished(&mut lane);
            line.remove(endpoint, &lane);
            self.tenants.release(lane.tenant, lane.in_flight());
            if self.tenants.remove_lane(lane.tenant) {
                let line = std::mem::take(&mut self.lines[lane.tenant.0]);
                for endpoint in &line.ring {
                    self.in_ring.remove(endpoint);
                }
            }
            self.cancel_sleep(endpoint, lane.asleep_until);
            self.hosts.remove_lane(lane.host(), endpoint, lane.in_flight(), lane.host_queue);
            self.offer_slots(lane.host());
        }
    }

    /// Schedules a delivery for `key.due`: a new, retried, unblocked or redriven one. `at` is the
    /// position of its record.
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

    /// Removes a key: the delivery ended, or moved to another key.
    pub fn on_settled(&mut self, endpoint: EndpointNumber, key: DueKey, at: Position, _now: Now) {
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.window.on_settled(key, at);
            self.wake(endpoint);
        }
    }

    /// The outcome of the attempt under this key is recorded. Calls for its effects came before.
    pub fn on_recorded(&mut self, endpoint: EndpointNumber, key: DueKey, _now: Now) {
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.window.on_recorded(key);
            self.wake(endpoint);
        }
    }

    /// An attempt ended. The delivery is not sent again until the outcome is recorded.
    pub fn on_finished(
        &mut self,
        endpoint: EndpointNumber,
        key: DueKey,
        outcome: AttemptOutcome,
        now: Now,
    ) -> Option<Turn> {
        let breaker = self.config.breaker;
        let lane = self.lanes.get_mut(&endpoint)?;
        if !lane.window.on_finished(key) {
            return None;
        }
        let turn = lane.on_outcome(key, outcome, &breaker, now);
        self.free_slot(endpoint);
        turn
    }

    fn free_slot(&mut self, endpoint: EndpointNumber) {
        let Some(lane) = self.lanes.get_mut(&endpoint) else { return };
        let host = lane.host().clone();
        self.lines[lane.tenant.0].on_finished(lane);
        self.tenants.release(lane.tenant, 1);
        self.hosts.remove_requests(&host, 1);
        self.offer_slots(&host);
        self.wake(endpoint);
    }

    /// The attempt was not made, for example without a file descriptor. Restores the key.
    pub fn on_returned(&mut self, endpoint: EndpointNumber, key: DueKey, progress: Progress, _now: Now) {
        if let Some(lane) = self.lanes.get_mut(&endpoint)
            && lane.on_returned(key, progress)
        {
            self.free_slot(endpoint);
        }
    }

    /// The attempt was not made, because of a limit outside the lane. Restores the key, and pauses
    /// the lane.
    pub fn on_postponed(
        &mut self,
        endpoint: EndpointNumber,
        key: DueKey,
        progress: Progress,
        cause: PostponeCause,
        now: Now,
    ) {
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.on_postponed(cause, now);
        }
        self.on_returned(endpoint, key, progress, now);
    }

    /// Result of [`Action::Refill`]. `as_of` is the position that it reflects.
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

    /// Time until [`Self::next_action`] may return an action without a further call. `None`: never.
    #[must_use]
    pub fn next_wakeup(&self, now: Now) -> Option<Duration> {
        self.asleep.first().map(|(until, _)| until.saturating_sub(now.monotonic))
    }

    /// Reports why a lane waits. `None`: no such lane.
    #[must_use]
    pub fn explain(&self, endpoint: EndpointNumber, now: Now) -> Option<LaneReport> {
        let lane = self.lanes.get(&endpoint)?;
        let mut report = lane.explain(now);
        let is_admitted = self.lines[lane.tenant.0].admit(lane, self.room(lane.tenant));
        let full = !is_admitted || self.hosts.is_full(lane.host());
        // A full store answers no refill, and takes no reservation.
        let waits_for_store = report.reason.is_none() && (lane.has_due(now) || report.more_on_disk)
            || report.reason == Some(WaitReason::Rate) && lane.awaits_reservation();
        if self.hold == SendHold::StoreFull && waits_for_store {
            report.reason = Some(WaitReason::StoreFull);
        }
        if report.reason.is_none() && lane.has_due(now) && full {
            report.reason = Some(WaitReason::GlobalLimit);
        }
        Some(report)
    }

    /// Returns the total time that lanes waited for their rate, and resets it.
    pub fn take_rate_waited(&mut self) -> Duration {
        std::mem::take(&mut self.rate_waited)
    }

    /// Summary for gauges; visits every lane. `behind` maps endpoints with deliveries blocked by
    /// their ordering to the due time of the oldest overdue one.
    #[must_use]
    pub fn summary(&self, behind: &IdMap<EndpointNumber, Option<Timestamp>>, now: Now) -> LanesSummary {
        let mut summary = LanesSummary { in_flight: self.tenants.taken(), ..LanesSummary::default() };
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
        self.wake_at(endpoint, QueueEnd::Back);
    }

    fn wake_at(&mut self, endpoint: EndpointNumber, end: QueueEnd) {
        // A lane that waits for its reservation joins the ring when that is durable.
        let Some(lane) = self.lanes.get_mut(&endpoint) else { return };
        let (tenant, until) = (lane.tenant, lane.asleep_until.take());
        if !lane.awaits_reservation() {
            self.join_ring(endpoint, tenant, end);
        }
        self.cancel_sleep(endpoint, until);
    }

    fn join_ring(&mut self, endpoint: EndpointNumber, tenant: TenantNumber, end: QueueEnd) {
        if self.in_ring.insert(endpoint) {
            end.push(&mut self.lines[tenant.0].ring, endpoint);
            self.tenants.on_waiting(tenant, end);
        }
    }

    /// Offers the free slots of a host to the lanes in its queue, and wakes those.
    fn offer_slots(&mut self, host: &Arc<str>) {
        while let Some(next) = self.hosts.offer_slot(host) {
            if let Some(lane) = self.lanes.get_mut(&next) {
                lane.host_queue = HostQueueState::Offered;
                if self.tenants.are_several() {
                    self.offered.push(next);
                }
            }
            self.wake(next);
        }
    }

    fn cancel_sleep(&mut self, endpoint: EndpointNumber, until: Option<Duration>) {
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

    /// Wakes all sleeping lanes after a step of the wall clock, which changes the time until a due
    /// time. The clock was set, or the machine was suspended.
    fn detect_clock_step(&mut self, now: Now) {
        let origin = now.wall.minus(now.monotonic);
        if origin.since(self.origin).max(self.origin.since(origin)) > CLOCK_STEP {
            self.origin = origin;
            self.lanes.values_mut().for_each(Lane::on_clock_set);
            while let Some((_, endpoint)) = self.asleep.first().copied() {
                self.wake(endpoint);
            }
        }
    }

    fn wake_due_lanes(&mut self, now: Now) {
        self.detect_clock_step(now);
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

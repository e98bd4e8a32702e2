//! One lane: its window, its slots, its rate, its circuit.

use std::sync::Arc;
use std::time::Duration;

use super::circuit::{BreakerConfig, Circuit, CircuitState};
use super::host::{HostQueueState, QueueEnd};
use super::rate::{Rate, RateDecision};
use super::report::{LaneReport, PostponeCause, WaitReason};
use super::reserving::Reserving;
use super::tenants::TenantNumber;
use super::window::Window;
use super::{AttemptOutcome, Backlog, Gate, LanePolicy, Promises, Turn};
use crate::domain::{DueKey, Hold, Now, Position, Progress, Reservation, Timestamp};
use crate::failpoints::{self, Mutation};

/// Whether a lane is ready to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    Waits {
        /// `None`: the lane has no delivery to send.
        reason: Option<WaitReason>,
        /// Monotonic time; `None`: until the next call.
        until: Option<Duration>,
    },
}

/// Decision of a ready lane in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SendDecision {
    Send(DueKey, Progress),
    /// The lane needs this durable reservation first. No delivery was taken.
    Reserve(Reservation),
    /// The rate denied the request; [`Lane::readiness`] reports it from now on.
    Wait,
}

/// Receiver health, from the last conclusive attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReceiverHealth {
    /// No attempt has ended since the process started.
    Unknown,
    Answering,
    Failing,
}

/// Holds by `Retry-After`, as wall-clock times. A hold belongs to the endpoint's revision at its
/// attempt. A later revision that opens the gate or changes the host ends it.
#[derive(Clone, Copy, Debug, Default)]
struct Holds {
    /// Hold at a revision that the lane has; any new revision is later.
    current: Option<Timestamp>,
    /// Hold at a later revision. That revision may end `current`, but not this hold.
    future: Option<(Timestamp, Position)>,
}

impl Holds {
    fn add(&mut self, Hold { until, revision }: Hold, known: Position) {
        if revision <= known {
            self.current = self.current.max(Some(until));
        } else {
            let (other, at) = self.future.unwrap_or((until, revision));
            self.future = Some((until.max(other), revision.max(at)));
        }
    }

    /// Applies a new revision. `opens`: it ends earlier holds.
    fn on_revision(&mut self, revision: Position, opens: bool) {
        if opens {
            self.current = None;
            self.future = self.future.filter(|(_, at)| *at >= revision);
        }
        if let Some((until, _)) = self.future.take_if(|(_, at)| *at <= revision) {
            self.current = self.current.max(Some(until));
        }
    }

    fn until(&self) -> Option<Timestamp> {
        self.current.max(self.future.map(|(until, _)| until))
    }
}

#[derive(Debug)]
pub(super) struct Lane {
    policy: LanePolicy,
    pub(super) tenant: TenantNumber,
    pub(super) window: Window,
    /// Kept while the policy has no rate, so that a restored rate still counts earlier requests.
    rate: Option<Rate>,
    reserving: Reserving,
    circuit: Circuit,
    pub(super) receiver: ReceiverHealth,
    pub(super) in_slot_queue: bool,
    /// Its request uses the headroom in turn; see [`super::line`].
    pub(super) in_turn: bool,
    holds: Holds,
    /// When the circuit opened or a hold began. An outcome resets it once both are over.
    pub(super) shut_since: Option<Timestamp>,
    /// The circuit opened or the endpoint was disabled, without a success since then.
    recovery_pending: bool,
    /// End of the pause after a limit outside the lane, with its cause. Monotonic time.
    postponed: Option<(Duration, PostponeCause)>,
    pub(super) asleep_until: Option<Duration>,
    pub(super) host_queue: HostQueueState,
}

impl Lane {
    pub(super) fn new(policy: LanePolicy, tenant: TenantNumber, backlog: Backlog) -> Self {
        let rate = policy.rate.map(Rate::new);
        let recovery_pending = policy.gate == Gate::Disabled;
        Self {
            policy,
            tenant,
            window: Window::new(backlog),
            rate,
            reserving: Reserving::default(),
            circuit: Circuit::default(),
            receiver: ReceiverHealth::Unknown,
            in_slot_queue: false,
            in_turn: false,
            holds: Holds::default(),
            shut_since: None,
            recovery_pending,
            postponed: None,
            asleep_until: None,
            host_queue: HostQueueState::None,
        }
    }

    pub(super) fn set_policy(&mut self, policy: LanePolicy, now: Now) {
        if let Some(limit) = policy.rate {
            self.rate = Some(match self.rate.take() {
                Some(rate) => rate.with_limit(limit, now),
                None => Rate::new(limit),
            });
        }
        let changes_host = policy.host != self.policy.host;
        let opens = policy.gate == Gate::Open && (changes_host || self.policy.gate != Gate::Open);
        if opens {
            self.circuit = Circuit::default();
        }
        self.holds.on_revision(policy.revision, opens);
        if opens || !self.is_shut(now) {
            self.shut_since = self.is_shut(now).then_some(now.wall);
        }
        self.recovery_pending |= policy.gate == Gate::Disabled;
        self.policy = policy;
    }

    pub(super) fn restore(&mut self, promises: Promises, now: Now) {
        if !failpoints::is_active(Mutation::ForgetHolds) {
            self.holds.current = promises.held_until;
            self.shut_since = self.is_shut(now).then_some(now.wall);
        }
        if let Some(Reservation { rate, full_at, .. }) = promises.reservation
            && !failpoints::is_active(Mutation::ForgetRates)
        {
            let before = Rate::restore(rate, full_at, now);
            self.rate = Some(before.with_limit(self.policy.rate.unwrap_or(rate), now));
        }
    }

    /// Returns whether the lane waited for this reservation.
    pub(super) fn on_reserved(&mut self, reservation: &Reservation, now: Now) -> bool {
        if let Some(rate) = self.rate.as_mut().filter(|rate| rate.limit() == reservation.rate) {
            rate.on_reserved(reservation.full_at, now);
        }
        self.reserving.on_durable(reservation)
    }

    /// Whether the lane waits for its reservation. A policy without a rate ends the wait.
    pub(super) fn awaits_reservation(&self) -> bool {
        self.policy.rate.is_some() && self.reserving.is_requested()
    }

    /// Queue end for the lane: the front if it spent its turn on a reservation.
    pub(super) fn queue_end(&self) -> QueueEnd {
        if self.reserving.is_durable() { QueueEnd::Front } else { QueueEnd::Back }
    }

    pub(super) fn forfeit_turn(&mut self) {
        self.reserving.forfeit_turn();
    }

    fn is_held(&self, now: Now) -> bool {
        self.holds.until().is_some_and(|until| until > now.wall)
    }

    fn is_shut(&self, now: Now) -> bool {
        self.is_held(now) || self.circuit.state() != CircuitState::Closed
    }

    pub(super) fn revision(&self) -> Position {
        self.policy.revision
    }

    /// Invalidates the known reservation, a wall-clock time, after a clock step.
    pub(super) fn on_clock_set(&mut self) {
        if let Some(rate) = &mut self.rate {
            rate.clear_reserved();
        }
    }

    fn rate(&self) -> Option<&Rate> {
        self.rate.as_ref().filter(|_| self.policy.rate.is_some())
    }

    pub(super) fn tenant_name(&self) -> &Arc<str> {
        &self.policy.tenant
    }

    pub(super) fn host(&self) -> &Arc<str> {
        &self.policy.host
    }

    pub(super) fn in_flight(&self) -> usize {
        self.window.in_flight()
    }

    pub(super) fn has_due(&self, now: Now) -> bool {
        self.window.first().is_some_and(|(key, _)| key.due <= now.wall)
    }

    /// Checks reasons from the widest to the narrowest: an operator can act on the first that
    /// holds.
    pub(super) fn readiness(&self, now: Now) -> Readiness {
        let waits = |reason, until| Readiness::Waits { reason: Some(reason), until };
        let at = |wall: Timestamp| Some(now.monotonic + wall.since(now.wall));
        let first = self.window.first().map(|(key, _)| key.due);
        match self.policy.gate {
            Gate::Open => {}
            Gate::Paused | Gate::Disabled | Gate::Handshake if self.window.is_idle() => {
                return Readiness::Waits { reason: None, until: None };
            }
            Gate::Paused => return waits(WaitReason::Paused, None),
            Gate::Disabled => return waits(WaitReason::Disabled, None),
            Gate::Handshake => return waits(WaitReason::Handshake, None),
        }
        let Some(due) = first else { return Readiness::Waits { reason: None, until: None } };
        // `>= due`: the hold is also the reason if it postponed the delivery to its end.
        if let Some(until) = self.holds.until().filter(|until| *until > now.wall && *until >= due) {
            return waits(WaitReason::RetryAfter, at(until));
        }
        if due > now.wall {
            return waits(WaitReason::NotDue, at(due));
        }
        if let Some(until) = self.circuit.blocked_until(now.monotonic) {
            return waits(WaitReason::CircuitOpen, until);
        }
        if let Some((until, cause)) = self.postponed.filter(|(until, _)| *until > now.monotonic) {
            return waits(cause.reason(), Some(until));
        }
        if self.in_flight() >= self.policy.max_in_flight as usize {
            return waits(WaitReason::InFlightLimit, None);
        }
        if self.awaits_reservation() {
            return waits(WaitReason::Rate, None);
        }
        match self.rate().and_then(|rate| rate.denied_until(now.monotonic)) {
            Some(until) => waits(WaitReason::Rate, Some(until)),
            None => Readiness::Ready,
        }
    }

    /// Takes the first key of a ready lane if the rate permits it.
    pub(super) fn decide_send(&mut self, now: Now) -> SendDecision {
        if let (Some(limit), Some(rate)) = (self.policy.rate, &mut self.rate) {
            self.reserving.on_turn(now);
            match rate.try_take(self.reserving.lead(), now) {
                RateDecision::Granted => {}
                RateDecision::Unreserved(full_at) => {
                    let revision = self.policy.revision;
                    let reservation = Reservation { revision, rate: limit, full_at };
                    self.reserving.request(reservation, now);
                    return SendDecision::Reserve(reservation);
                }
                RateDecision::Denied => return SendDecision::Wait,
            }
        }
        let Some((key, progress)) = self.window.take_first() else { return SendDecision::Wait };
        self.circuit.on_sent(key);
        SendDecision::Send(key, progress)
    }

    /// Updates health, circuit and holds after an attempt.
    pub(super) fn on_outcome(
        &mut self,
        key: DueKey,
        outcome: AttemptOutcome,
        breaker: &BreakerConfig,
        now: Now,
    ) -> Option<Turn> {
        let turn = self.apply_outcome(key, outcome, breaker, now);
        self.shut_since = if self.is_shut(now) { self.shut_since.or(Some(now.wall)) } else { None };
        turn
    }

    fn apply_outcome(
        &mut self,
        key: DueKey,
        outcome: AttemptOutcome,
        breaker: &BreakerConfig,
        now: Now,
    ) -> Option<Turn> {
        self.receiver = match outcome {
            AttemptOutcome::Healthy | AttemptOutcome::Throttled(_) => ReceiverHealth::Answering,
            AttemptOutcome::Failing => ReceiverHealth::Failing,
            AttemptOutcome::Neutral if self.receiver == ReceiverHealth::Failing => ReceiverHealth::Failing,
            AttemptOutcome::Neutral => ReceiverHealth::Answering,
        };
        match outcome {
            AttemptOutcome::Healthy => {
                self.circuit.on_success();
                return std::mem::take(&mut self.recovery_pending).then_some(Turn::Recovered);
            }
            AttemptOutcome::Failing => {
                self.circuit.on_failure(key, breaker, now.monotonic);
                if self.circuit.state() != CircuitState::Closed && !self.recovery_pending {
                    self.recovery_pending = true;
                    return Some(Turn::Failing);
                }
            }
            AttemptOutcome::Throttled(hold) => {
                self.circuit.on_success();
                if !failpoints::is_active(Mutation::IgnoreRetryAfter) {
                    self.holds.add(hold, self.policy.revision);
                }
            }
            AttemptOutcome::Neutral => self.circuit.on_neutral(key),
        }
        None
    }

    /// Returns whether the key was in flight.
    pub(super) fn on_returned(&mut self, key: DueKey, progress: Progress) -> bool {
        let returned = self.window.on_returned(key, progress);
        if returned {
            self.circuit.on_neutral(key);
        }
        returned
    }

    pub(super) fn on_postponed(&mut self, cause: PostponeCause, now: Now) {
        self.postponed = Some((now.monotonic + cause.pause(), cause));
    }

    pub(super) fn explain(&self, now: Now) -> LaneReport {
        let (reason, until) = match self.readiness(now) {
            Readiness::Ready => (None, None),
            Readiness::Waits { reason, until } => (reason, until),
        };
        LaneReport {
            reason,
            window: self.window.len(),
            in_flight: self.in_flight(),
            next_due: self.window.first().map(|(key, _)| key.due),
            retry_at: until.map(|until| now.wall.plus(until.saturating_sub(now.monotonic))),
            circuit: self.circuit.state(),
            consecutive_failures: self.circuit.failures(),
            more_on_disk: !self.window.is_complete(),
        }
    }
}

//! One lane: its window, its slots, its rate, its circuit.

use std::sync::Arc;
use std::time::Duration;

use super::circuit::{BreakerConfig, Circuit, CircuitState};
use super::host::{LineEnd, Place};
use super::rate::{Leave, Rate};
use super::report::{LaneReport, WaitReason};
use super::reserving::Reserving;
use super::window::Window;
use super::{Backlog, Gate, LanePolicy, Outcome, Promises, Turn};
use crate::domain::{DueKey, Hold, Now, Position, Progress, Reservation, Timestamp};
use crate::failpoints::{self, Mutation};

/// Whether a lane can send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    Waits {
        /// `None`: there is nothing to send, or it is about to be sent.
        reason: Option<WaitReason>,
        /// Monotonic; `None`: until something happens.
        until: Option<Duration>,
    },
}

/// What a lane does with its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    Send(DueKey, Progress),
    /// This has to be durable first. No delivery was taken.
    Reserve(Reservation),
    /// The rate says no after all, which the lane then knows.
    Wait,
}

/// What was last heard of a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing, in this life of the process.
    Nothing,
    Answer,
    Failure,
}

/// The receiver asked to be left alone, by wall clock, as it said it. Only a later revision of the endpoint than the one
/// of then ends that: one that opens the gate, or names another host.
#[derive(Clone, Copy, Debug, Default)]
struct Holds {
    /// Asked for by what the lane knows of: whatever it hears next is later.
    known: Option<Timestamp>,
    /// Asked for by a revision that the lane has yet to hear of, which does not end it and may end the other.
    ahead: Option<(Timestamp, Position)>,
}

impl Holds {
    fn add(&mut self, Hold { until, revision }: Hold, known: Position) {
        if revision <= known {
            self.known = self.known.max(Some(until));
        } else {
            let (other, at) = self.ahead.unwrap_or((until, revision));
            self.ahead = Some((until.max(other), revision.max(at)));
        }
    }

    /// The lane hears of this revision, which begins anew with the receiver or does not.
    fn hear(&mut self, revision: Position, opens: bool) {
        if opens {
            self.known = None;
            self.ahead = self.ahead.filter(|(_, at)| *at >= revision);
        }
        if let Some((until, _)) = self.ahead.take_if(|(_, at)| *at <= revision) {
            self.known = self.known.max(Some(until));
        }
    }

    fn until(&self) -> Option<Timestamp> {
        self.known.max(self.ahead.map(|(until, _)| until))
    }
}

#[derive(Debug)]
pub(super) struct Lane {
    policy: LanePolicy,
    pub(super) window: Window,
    /// Also while the policy has no rate: one that comes back goes on with what was spent.
    rate: Option<Rate>,
    reserving: Reserving,
    circuit: Circuit,
    pub(super) heard: Heard,
    /// It stands in line for a slot.
    pub(super) in_line: bool,
    holds: Holds,
    /// Since when its circuit is open or its receiver asks to be left alone, until an outcome says that
    /// neither is so.
    pub(super) shut_since: Option<Timestamp>,
    /// Its circuit opened, or its endpoint was disabled, and it has taken no delivery since.
    troubled: bool,
    pub(super) asleep_until: Option<Duration>,
    pub(super) place: Place,
}

impl Lane {
    pub(super) fn new(policy: LanePolicy, backlog: Backlog) -> Self {
        let rate = policy.rate.map(Rate::new);
        let troubled = policy.gate == Gate::Disabled;
        Self {
            policy,
            window: Window::new(backlog),
            rate,
            reserving: Reserving::default(),
            circuit: Circuit::default(),
            heard: Heard::Nothing,
            in_line: false,
            holds: Holds::default(),
            shut_since: None,
            troubled,
            asleep_until: None,
            place: Place::None,
        }
    }

    pub(super) fn change(&mut self, policy: LanePolicy, now: Now) {
        if let Some(limit) = policy.rate {
            self.rate = Some(match self.rate.take() {
                Some(rate) => rate.changed(limit, now),
                None => Rate::new(limit),
            });
        }
        let moves = policy.host != self.policy.host;
        let opens = policy.gate == Gate::Open && (moves || self.policy.gate != Gate::Open);
        if opens {
            self.circuit = Circuit::default();
        }
        self.holds.hear(policy.revision, opens);
        if opens || !self.is_shut(now) {
            self.shut_since = self.is_shut(now).then_some(now.wall);
        }
        self.troubled |= policy.gate == Gate::Disabled;
        self.policy = policy;
    }

    pub(super) fn restore(&mut self, promises: Promises, now: Now) {
        if !failpoints::is_active(Mutation::ForgetHolds) {
            self.holds.known = promises.held_until;
            self.shut_since = self.is_shut(now).then_some(now.wall);
        }
        if let Some(Reservation { rate, full_at, .. }) = promises.reservation
            && !failpoints::is_active(Mutation::ForgetRates)
        {
            let before = Rate::restored(rate, full_at, now);
            self.rate = Some(before.changed(self.policy.rate.unwrap_or(rate), now));
        }
    }

    /// Gives whether the lane waited for it.
    pub(super) fn on_reserved(&mut self, reservation: &Reservation, now: Now) -> bool {
        if let Some(rate) = self.rate.as_mut().filter(|rate| rate.limit() == reservation.rate) {
            rate.on_reserved(reservation.full_at, now);
        }
        self.reserving.on_durable(reservation)
    }

    /// Whether nothing but a durable reservation, or another policy, lets the lane go on.
    pub(super) fn awaits_reservation(&self) -> bool {
        self.policy.rate.is_some() && self.reserving.is_asked()
    }

    /// Where the lane joins a line: in front when it has had its turn and used it for a reservation.
    pub(super) fn line_end(&self) -> LineEnd {
        if self.reserving.is_durable() { LineEnd::Front } else { LineEnd::Back }
    }

    pub(super) fn lose_turn(&mut self) {
        self.reserving.lose_turn();
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

    /// The wall clock was set, by which reservations are stored.
    pub(super) fn on_clock_set(&mut self) {
        if let Some(rate) = &mut self.rate {
            rate.forget_reserved();
        }
    }

    /// The rate that holds now.
    fn rate(&self) -> Option<&Rate> {
        self.rate.as_ref().filter(|_| self.policy.rate.is_some())
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

    /// Reasons from the widest to the narrowest: the first that holds is the one that an operator can act on.
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
        // Also of what is due later because the receiver asked for it.
        if let Some(until) = self.holds.until().filter(|until| *until > now.wall && *until >= due) {
            return waits(WaitReason::RetryAfter, at(until));
        }
        if due > now.wall {
            return waits(WaitReason::NotDue, at(due));
        }
        if let Some(until) = self.circuit.blocks(now.monotonic) {
            return waits(WaitReason::CircuitOpen, until);
        }
        if self.in_flight() >= self.policy.max_in_flight as usize {
            return waits(WaitReason::InFlightLimit, None);
        }
        if self.awaits_reservation() {
            return waits(WaitReason::Rate, None);
        }
        match self.rate().and_then(|rate| rate.denied(now.monotonic)) {
            Some(until) => waits(WaitReason::Rate, Some(until)),
            None => Readiness::Ready,
        }
    }

    /// Takes the first key of a ready lane, when its rate lets it.
    pub(super) fn take_turn(&mut self, now: Now) -> Move {
        if let (Some(limit), Some(rate)) = (self.policy.rate, &mut self.rate) {
            self.reserving.on_turn(now);
            match rate.try_take(self.reserving.lead(), now) {
                Leave::Granted => {}
                Leave::Unreserved(full_at) => {
                    let revision = self.policy.revision;
                    let reservation = Reservation { revision, rate: limit, full_at };
                    self.reserving.ask(reservation, now);
                    return Move::Reserve(reservation);
                }
                Leave::Denied => return Move::Wait,
            }
        }
        let Some((key, progress)) = self.window.take_first() else { return Move::Wait };
        self.circuit.on_sent(key);
        Move::Send(key, progress)
    }

    /// What an attempt says about the receiver.
    pub(super) fn on_outcome(
        &mut self,
        key: DueKey,
        outcome: Outcome,
        breaker: &BreakerConfig,
        now: Now,
    ) -> Option<Turn> {
        let turn = self.judge(key, outcome, breaker, now);
        self.shut_since = if self.is_shut(now) { self.shut_since.or(Some(now.wall)) } else { None };
        turn
    }

    fn judge(&mut self, key: DueKey, outcome: Outcome, breaker: &BreakerConfig, now: Now) -> Option<Turn> {
        self.heard = match outcome {
            Outcome::Healthy | Outcome::Throttled(_) => Heard::Answer,
            Outcome::Failing => Heard::Failure,
            // It says no to this delivery, or it was our own trouble.
            Outcome::Neutral if self.heard == Heard::Failure => Heard::Failure,
            Outcome::Neutral => Heard::Answer,
        };
        match outcome {
            Outcome::Healthy => {
                self.circuit.on_success();
                return std::mem::take(&mut self.troubled).then_some(Turn::Recovered);
            }
            Outcome::Failing => {
                self.circuit.on_failure(key, breaker, now.monotonic);
                if self.circuit.state() != CircuitState::Closed && !self.troubled {
                    self.troubled = true;
                    return Some(Turn::Failing);
                }
            }
            Outcome::Throttled(hold) => {
                self.circuit.on_success();
                if !failpoints::is_active(Mutation::IgnoreRetryAfter) {
                    self.holds.add(hold, self.policy.revision);
                }
            }
            Outcome::Neutral => self.circuit.on_neutral(key),
        }
        None
    }

    /// Gives whether the key was in flight.
    pub(super) fn on_returned(&mut self, key: DueKey, progress: Progress) -> bool {
        let returned = self.window.on_returned(key, progress);
        if returned {
            self.circuit.on_neutral(key);
        }
        returned
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

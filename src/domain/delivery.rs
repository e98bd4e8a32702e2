//! One event for one endpoint: its keys, its states, its attempts.

use std::time::Duration;

use bytes::Bytes;

use super::closed_list::closed_list;
use super::{DisabledReason, EndpointNumber, Position, Timestamp};

/// Names a delivery: an event goes to an endpoint at most once at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryKey {
    pub event: Position,
    pub endpoint: EndpointNumber,
}

/// A pending delivery's place in its lane: by due time, then by acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DueKey {
    pub due: Timestamp,
    pub event: Position,
}

/// What a pending delivery has behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Attempts ever made.
    pub attempts: u32,
    /// Attempts made in this retry series: since acceptance or the last redrive.
    pub attempts_in_series: u32,
    pub series_started: Timestamp,
    /// The age of the series counts from it: the start of the first attempt of this series that failed,
    /// later by the [`Attempt::delay`] of each attempt since.
    pub first_attempt: Option<Timestamp>,
    /// What brought about the next attempt.
    pub trigger: Trigger,
}

impl Progress {
    /// Of a delivery whose series begins, after so many attempts of earlier ones.
    #[must_use]
    pub fn begin(attempts: u32, at: Timestamp, trigger: Trigger) -> Self {
        Self { attempts, attempts_in_series: 0, series_started: at, first_attempt: None, trigger }
    }

    /// As an attempt finds it that begins with this [`Attempt::delay`].
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self { first_attempt: self.first_attempt.map(|first| first.plus(delay)), ..self }
    }
}

closed_list! {
    /// What brought about an attempt.
    #[derive(Default)]
    pub enum Trigger {
        /// The event was accepted.
        #[default]
        Publish = 1 => "publish",
        /// The retry policy.
        Retry = 2 => "retry",
        /// `POST /v1/deliveries/{id}/retry`.
        Manual = 3 => "manual",
        /// A dead letter was redriven.
        Redrive = 4 => "redrive",
        /// The event was replayed.
        Replay = 5 => "replay",
    }
}

/// A delivery is in exactly one state; [`transition`] says what follows which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    Pending,
    Delivered,
    Dead(DeadReason),
    Cancelled,
    /// It was dead, and an operator has purged its dead letter: only a replay of the event sends it again.
    Purged,
}

impl DeliveryState {
    /// As the API shows it.
    #[must_use]
    pub fn status(self) -> DeliveryStatus {
        match self {
            Self::Pending => DeliveryStatus::Pending,
            Self::Delivered => DeliveryStatus::Delivered,
            Self::Dead(_) => DeliveryStatus::Dead,
            Self::Cancelled | Self::Purged => DeliveryStatus::Cancelled,
        }
    }

    /// The API's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.status().as_str()
    }
}

/// What a journal record does to a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryChange {
    /// Its event was accepted, for its endpoint.
    Accepted,
    /// An attempt is over.
    Attempted(Next),
    /// It is tried anew, because of this.
    Revived(Trigger),
    Cancelled,
    Died(DeadReason),
    /// Its dead letter was purged.
    Purged,
}

/// The state of a delivery after a change; `None` when the change does not touch it. `from` is `None` where the event
/// has not been meant for the endpoint so far.
#[must_use]
pub fn transition(from: Option<DeliveryState>, change: DeliveryChange) -> Option<DeliveryState> {
    use DeliveryChange::{Accepted, Attempted, Cancelled, Died, Purged, Revived};
    use DeliveryState as State;
    match (from, change) {
        (None, Accepted) => Some(State::Pending),
        // A success always wins: the receiver has it.
        (
            Some(State::Pending | State::Dead(_) | State::Cancelled | State::Purged),
            Attempted(Next::Delivered),
        ) => Some(State::Delivered),
        (Some(State::Pending), Attempted(Next::RetryAt(_))) => Some(State::Pending),
        (Some(State::Pending), Attempted(Next::Dead(reason)) | Died(reason)) => Some(State::Dead(reason)),
        (Some(State::Pending), Cancelled) => Some(State::Cancelled),
        (Some(State::Dead(_)), Purged) => Some(State::Purged),
        (Some(State::Dead(_)), Revived(Trigger::Redrive)) => Some(State::Pending),
        (_, Revived(Trigger::Redrive)) => None,
        (Some(State::Purged), Revived(Trigger::Publish | Trigger::Retry | Trigger::Manual)) => None,
        (_, Revived(_)) => Some(State::Pending),
        // It has ended, or never was, or was there before.
        (Some(_), Accepted | Attempted(_) | Died(_) | Cancelled | Purged)
        | (None, Attempted(_) | Died(_) | Cancelled | Purged) => None,
    }
}

closed_list! {
    /// A delivery's state without its details.
    pub enum DeliveryStatus {
        Pending => "pending",
        Delivered => "delivered",
        Dead => "dead",
        Cancelled => "cancelled",
    }
}

closed_list! {
    /// Why a delivery was given up.
    pub enum DeadReason {
        AttemptsExhausted = 1 => "attemptsExhausted",
        MaxAge = 2 => "maxAge",
        Gone = 3 => "gone",
        Refused = 4 => "refused",
        EndpointDeleted = 5 => "endpointDeleted",
        EndpointDisabled = 6 => "endpointDisabled",
        BlockedAddress = 7 => "blockedAddress",
        Expired = 8 => "expired",
    }
}

closed_list! {
    /// What went wrong with an attempt, in few words that are safe as a metric label.
    pub enum ErrorClass {
        Dns = 1 => "dns",
        Connect = 2 => "connect",
        Tls = 3 => "tls",
        Timeout = 4 => "timeout",
        Reset = 5 => "reset",
        /// A status that is not 2xx.
        Status = 6 => "status",
        BlockedAddress = 7 => "blockedAddress",
        /// Reply headers above their bound.
        ResponseTooLarge = 8 => "responseTooLarge",
        /// Not HTTP.
        Protocol = 9 => "protocol",
        /// Our own request could not be built (for instance a URL that no longer parses).
        Request = 10 => "request",
    }
}

closed_list! {
    /// Where the receiver's address lies.
    #[derive(Default)]
    pub enum Network {
        #[default]
        Public = 1 => "public",
        /// Not in the public Internet: it can be reached because the operator has opened its range.
        Internal = 2 => "internal",
    }
}

/// What an attempt's result means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Delivered,
    /// Try again as the policy says.
    Retry,
    /// Try again, not before this long; and hold the whole lane for it.
    RetryAfter(Duration),
    /// Never try this delivery again.
    Refused(DeadReason),
    /// Never try this delivery again, and disable the endpoint.
    Gone(DisabledReason),
}

/// What happens to a delivery after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Delivered,
    RetryAt(Timestamp),
    Dead(DeadReason),
}

/// A receiver's `Retry-After`: nothing is sent to its endpoint until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    pub until: Timestamp,
    /// The endpoint's revision at the time of the reply. An operator who opened the endpoint, or moved
    /// it to another host, later has ended the hold; one who did so before has not.
    pub revision: Position,
}

/// One HTTP try of a delivery, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// From 1, over all series.
    pub number: u32,
    pub trigger: Trigger,
    pub started_at: Timestamp,
    pub duration: Duration,
    pub status: Option<u16>,
    /// Class and words; `None` for a success.
    pub error: Option<(ErrorClass, Box<str>)>,
    /// The reply's body, capped.
    pub reply: Bytes,
    /// Where the reply came from: a tenant must not read the operator's network through its webhooks.
    pub network: Network,
    pub next: Next,
    pub hold: Option<Hold>,
    /// How long the daemon had been running when the attempt began; `None` in records of versions
    /// that did not say it.
    pub uptime: Option<Duration>,
    /// The part of the time from its due time to its start in which nothing was tried because of us: the
    /// endpoint was closed, its rate or a limit was reached, the daemon was down. It does not count as
    /// age. In milliseconds; zero in records of versions that did not say it.
    pub delay: Duration,
}

#[cfg(test)]
impl Attempt {
    /// A first attempt that failed.
    pub(crate) fn for_tests() -> Self {
        Self {
            number: 1,
            trigger: Trigger::Publish,
            started_at: Timestamp::ZERO,
            duration: Duration::ZERO,
            status: Some(500),
            error: Some((ErrorClass::Status, "status 500".into())),
            reply: Bytes::new(),
            network: Network::Public,
            next: Next::RetryAt(Timestamp::ZERO),
            hold: None,
            uptime: None,
            delay: Duration::ZERO,
        }
    }
}

/// Where an attempt is recorded.
pub type AttemptRef = Position;

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [Option<DeliveryState>; 6] = [
        None,
        Some(DeliveryState::Pending),
        Some(DeliveryState::Delivered),
        Some(DeliveryState::Dead(DeadReason::Gone)),
        Some(DeliveryState::Cancelled),
        Some(DeliveryState::Purged),
    ];

    #[test]
    fn transitions_are_these_and_no_others() {
        use DeliveryChange::{Accepted, Attempted, Cancelled, Died, Purged, Revived};
        use DeliveryState::{Delivered, Pending};
        let (pending, delivered) = (Some(Pending), Some(Delivered));
        let dead = Some(DeliveryState::Dead(DeadReason::MaxAge));
        let (cancelled, purged) = (Some(DeliveryState::Cancelled), Some(DeliveryState::Purged));
        let retry = Next::RetryAt(Timestamp::ZERO);
        // From none, pending, delivered, dead, cancelled and purged.
        for (change, expected) in [
            (Accepted, [pending, None, None, None, None, None]),
            (Attempted(Next::Delivered), [None, delivered, None, delivered, delivered, delivered]),
            (Attempted(retry), [None, pending, None, None, None, None]),
            (Attempted(Next::Dead(DeadReason::MaxAge)), [None, dead, None, None, None, None]),
            (Died(DeadReason::MaxAge), [None, dead, None, None, None, None]),
            (Cancelled, [None, cancelled, None, None, None, None]),
            (Purged, [None, None, None, purged, None, None]),
            (Revived(Trigger::Manual), [pending, pending, pending, pending, pending, None]),
            (Revived(Trigger::Redrive), [None, None, None, pending, None, None]),
            (Revived(Trigger::Replay), [pending, pending, pending, pending, pending, pending]),
        ] {
            assert_eq!(STATES.map(|from| transition(from, change)), expected, "{change:?}");
        }
    }
}

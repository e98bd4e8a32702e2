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

/// A delivery is in exactly one state. Legal moves: pending to any other; any other back to pending, by an operator; any other
/// to delivered, when the attempt that was under way as it ended succeeds.
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

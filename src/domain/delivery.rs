//! Deliveries: keys, states, attempts and verdicts.

use std::time::Duration;

use bytes::Bytes;

use super::closed_list::closed_list;
use super::last_attempt::erased_text;
use super::{DisabledReason, EndpointNumber, Exchange, Position, Timestamp};

/// Identifies a delivery. An event has at most one delivery per endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryKey {
    pub event: Position,
    pub endpoint: EndpointNumber,
}

/// Sort key of a pending delivery in its lane: due time, then acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DueKey {
    pub due: Timestamp,
    pub event: Position,
}

/// Attempt history of a pending delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Attempts in all series.
    pub attempts: u32,
    /// Attempts in this retry series, since the acceptance or the last revival.
    pub attempts_in_series: u32,
    pub series_started: Timestamp,
    /// The age of the series counts from here: the start of its first failed attempt, plus the
    /// [`Attempt::delay`] of each later attempt.
    pub first_attempt: Option<Timestamp>,
    /// Cause of the next attempt.
    pub trigger: Trigger,
    /// Leases of this series whose answer did not reach the worker.
    pub lost_answers: u32,
}

impl Progress {
    /// Progress at the start of a series, after `attempts` attempts in earlier series.
    #[must_use]
    pub fn begin(attempts: u32, at: Timestamp, trigger: Trigger) -> Self {
        Self {
            attempts,
            attempts_in_series: 0,
            series_started: at,
            first_attempt: None,
            trigger,
            lost_answers: 0,
        }
    }

    /// Progress at the start of an attempt with this [`Attempt::delay`].
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self { first_attempt: self.first_attempt.map(|first| first.plus(delay)), ..self }
    }

    /// Whether the next lost answer is not charged. The message may be why answers are lost, so
    /// only the first one is free.
    #[must_use]
    pub fn is_lost_answer_free(&self) -> bool {
        self.lost_answers == 0
    }

    /// Whether no other message may be in an answer with this one, so that a message whose answers
    /// are always lost takes no others with it.
    #[must_use]
    pub fn goes_alone(&self) -> bool {
        self.lost_answers > 1
    }
}

closed_list! {
    /// Cause of an attempt.
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

/// State of a delivery. [`transition`] defines the legal changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    Pending,
    Delivered,
    Dead(DeadReason),
    Cancelled,
    /// An operator purged the dead letter. Only a replay of the event sends it again.
    Purged,
}

impl DeliveryState {
    /// The status that the API shows.
    #[must_use]
    pub fn status(self) -> DeliveryStatus {
        match self {
            Self::Pending => DeliveryStatus::Pending,
            Self::Delivered => DeliveryStatus::Delivered,
            Self::Dead(_) => DeliveryStatus::Dead,
            Self::Cancelled | Self::Purged => DeliveryStatus::Cancelled,
        }
    }

    /// The word in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.status().as_str()
    }
}

/// Effect of a journal record on a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryChange {
    /// The event was accepted for the endpoint.
    Accepted,
    /// An attempt ended.
    Attempted(Next),
    /// A new retry series begins for this reason.
    Revived(Trigger),
    Cancelled,
    Died(DeadReason),
    /// The dead letter was purged.
    Purged,
}

/// Returns the state of a delivery after a change, or `None` if the change has no effect. `from`
/// is `None` if the delivery does not exist yet.
#[must_use]
pub fn transition(from: Option<DeliveryState>, change: DeliveryChange) -> Option<DeliveryState> {
    use DeliveryChange::{Accepted, Attempted, Cancelled, Died, Purged, Revived};
    use DeliveryState as State;
    match (from, change) {
        (None, Accepted) => Some(State::Pending),
        // A success always wins: the receiver has the event.
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
        // The delivery has ended, does not exist, or exists already.
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
        /// The event cannot be converted to the version that the endpoint pins, or the endpoint's
        /// body template fails for it.
        Unconvertible = 10 => "unconvertible",
    }
}

closed_list! {
    /// Error class of a failed attempt, safe as a metric label.
    pub enum ErrorClass {
        Dns = 1 => "dns",
        Connect = 2 => "connect",
        Tls = 3 => "tls",
        Timeout = 4 => "timeout",
        Reset = 5 => "reset",
        /// A status that is not 2xx.
        Status = 6 => "status",
        BlockedAddress = 7 => "blockedAddress",
        /// The reply headers exceed their size bound.
        ResponseTooLarge = 8 => "responseTooLarge",
        /// The reply is not HTTP.
        Protocol = 9 => "protocol",
        /// The request could not be built, for example because the URL no longer parses.
        Request = 10 => "request",
        /// The endpoint's template fails for the event.
        Template = 11 => "template",
        /// The token server gave no access token.
        Token = 12 => "token",
        /// The broker has no queue for the message.
        Unroutable = 13 => "unroutable",
        /// The broker refused the login, the exchange or the message.
        Broker = 14 => "broker",
    }
}

/// How a receiver took a delivery, or an HTTP receiver refused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiverAnswer {
    /// The status of an HTTP reply.
    Status(u16),
    /// A broker confirmed the message.
    Confirmed,
}

impl From<u16> for ReceiverAnswer {
    fn from(status: u16) -> Self {
        Self::Status(status)
    }
}

impl ReceiverAnswer {
    #[must_use]
    pub fn status(self) -> Option<u16> {
        match self {
            Self::Status(status) => Some(status),
            Self::Confirmed => None,
        }
    }
}

closed_list! {
    /// Network of the receiver's address.
    #[derive(Default)]
    pub enum Network {
        #[default]
        Public = 1 => "public",
        /// Outside the public Internet, in a range that the operator allowed.
        Internal = 2 => "internal",
    }
}

/// Classification of an attempt's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Delivered,
    /// Retry according to the policy.
    Retry,
    /// Retry after this time at the earliest, and hold the whole lane until then.
    RetryAfter(Duration),
    /// Give up this delivery.
    Refused(DeadReason),
    /// Give up this delivery and disable the endpoint.
    Gone(DisabledReason),
}

/// Next step of a delivery after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Delivered,
    RetryAt(Timestamp),
    Dead(DeadReason),
}

/// A receiver's `Retry-After`: its endpoint gets no requests before `until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    pub until: Timestamp,
    /// The endpoint's revision at the time of the reply. A later revision that opens the endpoint
    /// or moves it to another host ends the hold.
    pub revision: Position,
}

/// A recorded HTTP attempt of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// From 1, over all series.
    pub number: u32,
    pub trigger: Trigger,
    pub started_at: Timestamp,
    pub duration: Duration,
    /// `None` without a reply, and for a message that the broker confirmed.
    pub status: Option<u16>,
    /// Class and description; `None` for a success.
    pub error: Option<(ErrorClass, Box<str>)>,
    /// The reply's body, truncated.
    pub reply: Bytes,
    /// Network of the receiver. Tenants must not read replies from the operator's network.
    pub network: Network,
    pub next: Next,
    pub hold: Option<Hold>,
    /// Uptime of the daemon at the start of the attempt; `None` in records of older versions.
    pub uptime: Option<Duration>,
    /// Part of the time from due to start that Balto caused: closed endpoint, reached rate or
    /// limit, downtime. It does not count as age. Whole milliseconds; zero in records of older
    /// versions.
    pub delay: Duration,
    pub exchange: Exchange,
}

impl Attempt {
    /// The attempt without text from the receiver, which may repeat the event's content. Keeps the
    /// class of a failure.
    #[must_use]
    pub fn erased(&self) -> Self {
        let class = self.error.as_ref().map(|(class, _)| *class);
        let text = erased_text(self.status);
        Self {
            error: class.map(|class| (class, text.into())),
            reply: Bytes::new(),
            exchange: Exchange { headers: Vec::new(), ..self.exchange.clone() },
            ..self.clone()
        }
    }
}

#[cfg(test)]
impl Attempt {
    /// A failed first attempt.
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
            exchange: Exchange::default(),
        }
    }
}

/// Position of an attempt's record.
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
    fn transition_table_is_exact() {
        use DeliveryChange::{Accepted, Attempted, Cancelled, Died, Purged, Revived};
        use DeliveryState::{Delivered, Pending};
        let (pending, delivered) = (Some(Pending), Some(Delivered));
        let dead = Some(DeliveryState::Dead(DeadReason::MaxAge));
        let (cancelled, purged) = (Some(DeliveryState::Cancelled), Some(DeliveryState::Purged));
        let retry = Next::RetryAt(Timestamp::ZERO);
        // Columns: no delivery, pending, delivered, dead, cancelled, purged.
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

//! What callers hand to the engine and what they get back. Plain values; the HTTP shape is the API's business.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use crate::projections::reads::{Cursor, Filter};

use crate::domain::{
    Attempt, DeadReason, DeliveryKey, DeliveryState, EndpointId, EndpointNumber, Event, EventId, EventType,
    EventVersion, Expected, Idempotency, OrderingKey, Position, StreamName, Tenant, Timestamp, Trigger,
};

/// Which tenants a caller may see: `None` is all of them. Everything outside a scope does not exist for its caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope(pub Option<Tenant>);

impl Scope {
    #[must_use]
    pub fn covers(&self, tenant: &Tenant) -> bool {
        self.0.as_ref().is_none_or(|own| own == tenant)
    }
}

/// An event as its publisher posted it, checked at the door.
#[derive(Clone, Debug)]
pub struct EventDraft {
    pub id: Option<EventId>,
    pub tenant: Tenant,
    pub event_type: EventType,
    pub version: EventVersion,
    /// `None`: the time of acceptance.
    pub timestamp: Option<Timestamp>,
    pub stream: Option<StreamName>,
    pub expected: Expected,
    /// `None`: the stream's name.
    pub ordering_key: Option<OrderingKey>,
    pub deliver_at: Option<Timestamp>,
    pub metadata: Option<Bytes>,
    /// Sorted by name.
    pub attributes: Vec<(Box<str>, Box<str>)>,
    pub data: Bytes,
    /// From the request's `Idempotency-Key`.
    pub idempotency: Option<Idempotency>,
    /// Hash of the event as posted; it is what a chosen id is compared by.
    pub fingerprint: [u8; 16],
    /// This endpoint alone, whatever its patterns (test events).
    pub only: Option<EndpointNumber>,
}

/// An event that is on disk.
#[derive(Clone, Debug)]
pub struct Accepted {
    pub event: Arc<Event>,
    pub position: Position,
    /// An earlier request with the same key or id was answered with this event.
    pub duplicate: bool,
}

/// Why nothing was accepted. Nothing of a refused request is stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    #[error("the stream's version is {}, not what was expected", actual.map_or_else(|| "none".to_owned(), |v| v.to_string()))]
    VersionConflict { expected: Expected, actual: Option<u64> },
    #[error("the same idempotency key or event id was used with another body")]
    IdempotencyMismatch,
    #[error(transparent)]
    Store(#[from] Unavailable),
}

/// The outbox cannot take or answer anything now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Too much waits for its commit already.
    #[error("too many events wait for their commit; try again in {} s", retry_after.as_secs().max(1))]
    Overloaded { retry_after: Duration },
    #[error("the disk is full")]
    DiskFull,
    #[error("the daemon is shutting down")]
    Stopping,
    #[error("the store failed: {0}")]
    Failed(Arc<str>),
}

/// Why a change to something that exists was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("not found")]
    NotFound,
    /// Someone else changed it in between: read again and repeat.
    #[error("it was changed by someone else meanwhile")]
    Conflict,
    #[error("{0}")]
    NotAllowed(&'static str),
    #[error(transparent)]
    Store(#[from] Unavailable),
}

/// An answer to be remembered for its idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: Arc<[u8]>,
}

/// What a repeated request finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remembered {
    Nothing,
    Same(Answer),
    /// The key was used with another body.
    Mismatch,
}

/// A delivery as the API shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct DeliveryView {
    pub key: DeliveryKey,
    pub event_id: EventId,
    pub event_type: EventType,
    pub tenant: Tenant,
    /// `None` when the endpoint was deleted so long ago that nothing is known of it.
    pub endpoint_id: Option<EndpointId>,
    pub state: DeliveryState,
    pub created_at: Timestamp,
    pub attempts: u32,
    /// For pending ones: when the next attempt is due. It may wait longer; the lane says why.
    pub next_attempt_at: Option<Timestamp>,
    /// For the others: since when.
    pub settled_at: Option<Timestamp>,
    pub last_status: Option<u16>,
    /// Class and words.
    pub last_error: Option<Box<str>>,
}

#[derive(Clone, Debug)]
pub struct DeliveryDetail {
    pub delivery: DeliveryView,
    /// Oldest first; at most [`crate::limits::ATTEMPTS_KEPT_MAX`].
    pub attempts: Vec<Arc<Attempt>>,
}

#[derive(Clone, Debug)]
pub struct EventView {
    pub event: Arc<Event>,
    pub position: Position,
    /// `pending`, `delivered`, `partial`, `failed` or `unmatched`.
    pub status: &'static str,
    pub deliveries: Vec<DeliveryView>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetterView {
    pub delivery: DeliveryView,
    pub reason: DeadReason,
    pub died_at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct DeadLetterDetail {
    pub letter: DeadLetterView,
    pub event: Arc<Event>,
    pub attempts: Vec<Arc<Attempt>>,
}

/// One page, newest first. A page may hold fewer than asked for although `next` says that there is more.
#[derive(Clone, Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next: Option<Cursor>,
    /// The journal position that this answer reflects.
    pub as_of: Position,
}

/// Statistics of one endpoint over a window of whole hours.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointStats {
    pub since: Timestamp,
    pub until: Timestamp,
    pub attempts: u64,
    pub delivered: u64,
    pub failed_attempts: u64,
    pub dead: u64,
    /// Milliseconds; `None` without an attempt.
    pub latency_p50: Option<u64>,
    pub latency_p95: Option<u64>,
    pub latency_p99: Option<u64>,
    /// Pending deliveries now.
    pub backlog: u64,
    pub oldest_pending: Option<Timestamp>,
}

/// Why an endpoint's backlog is not moving, and what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct LaneView {
    /// `None`: nothing waits.
    pub reason: Option<&'static str>,
    pub pending: u64,
    /// Of `pending`: behind another delivery of the same ordering key.
    pub waiting_for_order: u64,
    pub in_flight: u64,
    pub next_due: Option<Timestamp>,
    /// When the reason ends by itself.
    pub until: Option<Timestamp>,
    pub circuit: &'static str,
    pub consecutive_failures: u32,
}

/// What one-by-one commands on deliveries did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revival {
    Retry,
    Redrive,
}

impl Revival {
    #[must_use]
    pub fn trigger(self) -> Trigger {
        match self {
            Self::Retry => Trigger::Manual,
            Self::Redrive => Trigger::Redrive,
        }
    }
}

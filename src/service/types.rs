//! Parameter and return types of services. Plain values; the API owns the HTTP representation.

use std::sync::Arc;

pub use crate::courier::guard::RefusedUrl;
pub use crate::courier::tls::IdentityError;
pub use crate::courier::{BrokerCredentials, BrokerUrl, is_broker_url, is_same_origin};
pub use crate::domain::LeaseOutcome;
pub use crate::lanes::{CircuitState, WaitReason};
pub use crate::maintenance::backup::BackupId;
pub use crate::outbox::draft::{
    AcceptedEvent, ChangeError, EventDraft, PublishError, Unavailable, generated_at, has_publisher_id,
};
pub use crate::outbox::registry::{ConsumerStatus, KnownJob};
pub use crate::outbox::tail::FeedEvent;
pub use crate::projections::acts::AuditFilter;
pub use crate::projections::lag::Lag;
pub use crate::projections::reads::{Cursor, EndpointChoice, Filter};
pub use crate::projections::streams::Head;
pub use crate::schemas::json::{compact, compact_exact};
pub use crate::schemas::registered::{VersionIncompatibility, value_of};
pub use crate::schemas::{DefinitionError, RegisteredType, TypeRefusal, Violation};
pub use crate::service::requests::{MASK, RequestError, RequestSecrets, RequestView};

use crate::domain::closed_list::closed_list;
use crate::domain::{
    Attempt, DeadReason, DeliveryKey, DeliveryState, EndpointId, Event, EventId, EventType, LastAttempt,
    OnDisk, Party, Position, QueueName, Tenant, Timestamp, WorkerName,
};

/// The tenant that a caller may see; `None` is all tenants. Hides other tenants' items.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope(pub Option<Tenant>);

impl Scope {
    /// The party of the caller's key.
    #[must_use]
    pub fn party(&self) -> Party {
        Party::of(self.0.as_ref())
    }

    #[must_use]
    pub fn covers(&self, tenant: &Tenant) -> bool {
        self.covers_name(tenant.as_str())
    }

    /// Like [`Self::covers`], for a tenant's name.
    #[must_use]
    pub fn covers_name(&self, tenant: &str) -> bool {
        self.0.as_ref().is_none_or(|own| own.as_str() == tenant)
    }
}

/// Results for the events of one request, in order.
#[derive(Debug, Default)]
pub struct Published {
    /// The request's idempotency key was already used for the same request.
    pub repeated: bool,
    pub results: Vec<Result<AcceptedEvent, PublishError>>,
}

impl Published {
    /// Whether all results repeat an earlier request's results.
    #[must_use]
    pub fn is_all_repeated(&self) -> bool {
        self.results.iter().all(|result| match result {
            Ok(accepted) => accepted.duplicate,
            Err(PublishError::Rejected { repeated, .. }) => *repeated,
            Err(_) => false,
        })
    }
}

closed_list! {
    /// Kind of a delivery's destination.
    #[derive(Default)]
    pub enum DestinationKind {
        #[default]
        Endpoint => "endpoint",
        Queue => "queue",
    }
}

/// Where a delivery goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    pub kind: DestinationKind,
    /// `None` if the record of the endpoint is lost.
    pub id: Option<EndpointId>,
    /// Of a queue.
    pub name: Option<QueueName>,
    pub is_deleted: bool,
}

/// An attempt, and its request with masked secrets, if it can be built again.
#[derive(Clone, Debug)]
pub struct PastAttempt {
    pub attempt: Arc<Attempt>,
    pub request: Option<RequestView>,
}

/// One part of a delivery's history.
#[derive(Clone, Debug)]
pub enum HistoryEntry {
    Attempt(Box<PastAttempt>),
    Lease(PastLease),
}

/// A lease in the history of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastLease {
    /// From 1, among the leases in the history.
    pub number: u32,
    pub received_at: Timestamp,
    pub until: Timestamp,
    pub worker: Option<WorkerName>,
    pub outcome: LeaseOutcome,
    pub ended_at: Option<Timestamp>,
    /// Why the work failed.
    pub reason: Option<Box<str>>,
    /// When the message is due again.
    pub next_at: Option<Timestamp>,
}

/// A delivery as the API shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct DeliveryView {
    pub key: DeliveryKey,
    pub event_id: EventId,
    pub event_type: EventType,
    pub tenant: Tenant,
    pub destination: Destination,
    pub state: DeliveryState,
    pub created_at: Timestamp,
    pub attempts: u32,
    /// Due time of a pending delivery's next attempt. It may wait longer; the lane report says why.
    pub next_attempt_at: Option<Timestamp>,
    /// When a delivery that is not pending ended.
    pub settled_at: Option<Timestamp>,
    /// The API decides how much of it to show.
    pub last: LastAttempt,
    /// The event's content was erased: the delivery cannot be retried.
    pub is_erased: bool,
}

#[derive(Clone, Debug)]
pub struct DeliveryDetail {
    pub delivery: DeliveryView,
    /// Oldest first; at most [`crate::limits::ATTEMPTS_KEPT_MAX`].
    pub attempts: Vec<HistoryEntry>,
}

/// The erased events of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErasureView {
    pub count: u64,
    /// The last erasure.
    pub erased_at: Option<Timestamp>,
    /// `Done` if it is for all events.
    pub on_disk: OnDisk,
}

impl Default for ErasureView {
    fn default() -> Self {
        Self { count: 0, erased_at: None, on_disk: OnDisk::Done }
    }
}

impl ErasureView {
    pub(crate) fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.erased_at = self.erased_at.max(other.erased_at);
        if other.on_disk == OnDisk::Pending {
            self.on_disk = OnDisk::Pending;
        }
    }
}

/// Why a caller cannot wait.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// More than [`crate::limits::WAITERS_MAX`] callers, or too many of the caller's party.
    #[error("too many callers wait")]
    TooManyWaiters,
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
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
    pub attempts: Vec<HistoryEntry>,
    /// Why the event cannot be converted for its endpoint now.
    pub conversion_error: Option<String>,
}

/// One page, newest first. May have fewer items than the limit even if `next` is set.
#[derive(Clone, Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next: Option<Cursor>,
    /// The journal position that this page reflects.
    pub as_of: Position,
}

/// Where a reader of the feed begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedStart {
    /// With the oldest event after which none is forgotten.
    Oldest,
    /// With the next event.
    Now,
    After(Position),
}

/// A page of the feed, oldest first.
#[derive(Clone, Debug)]
pub struct FeedPage {
    pub events: Vec<Arc<FeedEvent>>,
    /// Every event up to here is on this page or an earlier one, or was not wanted.
    pub next: Position,
    /// The last position at that time.
    pub head: Position,
}

impl FeedPage {
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        self.next >= self.head
    }
}

/// Why a reader cannot go on at its position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    #[error("events after the position are forgotten; {oldest} is the oldest one")]
    Gone { oldest: Position },
    /// The position is of another log.
    #[error("the log ends at {head}")]
    Ahead { head: Position },
    #[error(transparent)]
    Wait(#[from] WaitError),
}

impl From<Unavailable> for FeedError {
    fn from(error: Unavailable) -> Self {
        Self::Wait(error.into())
    }
}

/// Statistics of one endpoint over a window of whole hours.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointStats {
    pub since: Timestamp,
    pub until: Timestamp,
    pub attempts: u64,
    pub delivered: u64,
    pub failed_attempts: u64,
    /// 0 to 1; `None` without an attempt.
    pub success_rate: Option<f64>,
    pub dead: u64,
    pub cancelled: u64,
    /// Percentiles in milliseconds; `None` without an attempt.
    pub latency_p50: Option<u64>,
    pub latency_p95: Option<u64>,
    pub latency_p99: Option<u64>,
    /// Current number of pending deliveries.
    pub backlog: u64,
    pub oldest_pending: Option<Timestamp>,
}

/// The backlog of an endpoint, and why it waits.
#[derive(Clone, Debug, PartialEq)]
pub struct LaneView {
    /// `None` if no delivery waits.
    pub reason: Option<&'static str>,
    pub pending: u64,
    /// Pending deliveries behind another one of the same ordering key.
    pub waiting_for_order: u64,
    pub in_flight: u64,
    pub next_due: Option<Timestamp>,
    /// When the reason ends without intervention.
    pub until: Option<Timestamp>,
    pub circuit: &'static str,
    pub consecutive_failures: u32,
}

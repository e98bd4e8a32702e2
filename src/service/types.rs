//! What services take and return. Plain values; the HTTP shape is the business of the API.

use std::sync::Arc;

pub use crate::courier::guard::RefusedUrl;
pub use crate::courier::is_same_origin;
pub use crate::courier::tls::IdentityError;
pub use crate::lanes::{CircuitState, WaitReason};
pub use crate::maintenance::backup::BackupId;
pub use crate::outbox::draft::{
    Accepted, ChangeError, EventDraft, PublishError, Unavailable, generated_at, has_publisher_id,
};
pub use crate::projections::reads::{Cursor, Filter};

use crate::domain::{
    Attempt, DeadReason, DeliveryKey, DeliveryState, EndpointId, Event, EventId, EventType, Position, Tenant,
    Timestamp,
};

/// Which tenants a caller may see: `None` is all of them. Everything outside a scope does not exist for its caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope(pub Option<Tenant>);

impl Scope {
    #[must_use]
    pub fn covers(&self, tenant: &Tenant) -> bool {
        self.covers_name(tenant.as_str())
    }

    /// As [`Self::covers`], for a tenant's name.
    #[must_use]
    pub fn covers_name(&self, tenant: &str) -> bool {
        self.0.as_ref().is_none_or(|own| own.as_str() == tenant)
    }
}

/// What became of the events of one request, in order.
#[derive(Debug, Default)]
pub struct Published {
    /// The key that they came with was bound to this request before.
    pub repeated: bool,
    pub results: Vec<Result<Accepted, PublishError>>,
}

impl Published {
    /// Whether everything in it was said before.
    #[must_use]
    pub fn is_old(&self) -> bool {
        self.results.iter().all(|result| match result {
            Ok(accepted) => accepted.duplicate,
            Err(PublishError::Rejected { repeated, .. }) => *repeated,
            Err(_) => false,
        })
    }
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
    /// The last attempt, unless the delivery is delivered. How much of it a caller sees is the API's decision.
    pub last_attempt: Option<Arc<Attempt>>,
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
    pub cancelled: u64,
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

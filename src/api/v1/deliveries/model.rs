//! Responses of deliveries and attempts.

use schemars::JsonSchema;
use serde::Serialize;

use super::exchange::ExchangeBody;
use crate::api::http::response::Success;
use crate::api::text::{Span, Time, Word};
use crate::api::v1::disclosure;
use crate::context::responses::{Answer, Keyed};
use crate::domain::{
    Audience, DeadReason, DeliveryId, DeliveryState, DeliveryStatus, Idempotency, Next, ShownClass, Trigger,
};
use crate::service::types::{
    DeliveryDetail, DeliveryView, Destination, DestinationKind, HistoryEntry, LeaseOutcome, PastAttempt,
    PastLease,
};

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryBody {
    pub id: String,
    pub event_id: String,
    #[serde(rename = "type")]
    pub event_type: String,
    pub tenant: String,
    /// Null for a queue.
    pub endpoint_id: Option<String>,
    pub destination: DestinationBody,
    /// `pending`, `delivered`, `dead` or `cancelled` (also of a purged dead letter). If an attempt
    /// in flight succeeds after a cancellation or death, the delivery becomes `delivered`.
    #[schemars(with = "Word<DeliveryStatus>")]
    pub status: &'static str,
    /// The reason for the status `dead`.
    #[schemars(with = "Option<Word<DeadReason>>")]
    pub reason: Option<&'static str>,
    pub created_at: Time,
    /// Number of attempts so far.
    pub attempt_count: u32,
    pub next_attempt_at: Option<Time>,
    /// When the delivery left the status `pending`.
    pub settled_at: Option<Time>,
    pub last_status_code: Option<u16>,
    /// `errorClass` and `error` of the last attempt: the first 200 bytes, without the target of a
    /// redirect. Null once delivered.
    pub last_error: Option<String>,
}

impl DeliveryBody {
    #[must_use]
    pub fn new(view: &DeliveryView, audience: Audience) -> Self {
        let is_shown = view.state != DeliveryState::Delivered;
        let failure = disclosure::last_failure(&view.last, audience).filter(|_| is_shown);
        let reason = match view.state {
            DeliveryState::Dead(reason) => Some(reason.as_str()),
            DeliveryState::Pending
            | DeliveryState::Delivered
            | DeliveryState::Cancelled
            | DeliveryState::Purged => None,
        };
        Self {
            id: DeliveryId(view.key).to_string(),
            event_id: view.event_id.to_string(),
            event_type: view.event_type.to_string(),
            tenant: view.tenant.to_string(),
            endpoint_id: Some(&view.destination)
                .filter(|destination| destination.kind == DestinationKind::Endpoint)
                .and_then(|destination| destination.id.as_ref())
                .map(ToString::to_string),
            destination: DestinationBody::new(&view.destination),
            status: view.state.as_str(),
            reason,
            created_at: Time(view.created_at),
            attempt_count: view.attempts,
            next_attempt_at: view.next_attempt_at.map(Time),
            settled_at: view.settled_at.map(Time),
            last_status_code: view.last.status,
            last_error: failure.map(|failure| failure.line()),
        }
    }

    /// The response to a change.
    #[must_use]
    pub fn response<const STATUS: u16>(view: &DeliveryView, audience: Audience) -> Success<STATUS, Self> {
        Success::new(&Self::new(view, audience))
    }

    /// The key of a request whose response is a delivery; `None` without a key.
    #[must_use]
    pub fn keyed<const STATUS: u16>(
        idempotency: Option<Idempotency>,
        audience: Audience,
    ) -> Option<Keyed<DeliveryView>> {
        let answer: fn(&DeliveryView) -> Answer = match audience {
            Audience::Operator => |view| Self::response::<STATUS>(view, Audience::Operator).answer(),
            Audience::Tenant => |view| Self::response::<STATUS>(view, Audience::Tenant).answer(),
        };
        Some(Keyed { idempotency: idempotency?, answer })
    }
}

/// Where a delivery goes.
#[derive(Serialize, JsonSchema)]
pub struct DestinationBody {
    #[schemars(with = "Word<DestinationKind>")]
    pub kind: &'static str,
    /// Null if the record of the endpoint is lost.
    pub id: Option<String>,
    /// The name of a queue, also of a deleted one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The endpoint or queue was deleted: the delivery cannot be retried or redriven. Only present
    /// if true.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    pub deleted: bool,
}

impl DestinationBody {
    fn new(destination: &Destination) -> Self {
        Self {
            kind: destination.kind.as_str(),
            id: destination.id.as_ref().map(ToString::to_string),
            name: destination.name.as_ref().map(ToString::to_string),
            deleted: destination.is_deleted,
        }
    }
}

/// An attempt of a delivery, or a lease of a queue's message.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub enum HistoryBody {
    Attempt(Box<AttemptBody>),
    Lease(PastLeaseBody),
}

/// A lease of a message.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PastLeaseBody {
    /// From 1, among the leases that are kept.
    pub number: u32,
    pub received_at: Time,
    /// End of the time of the lease, after its last extension.
    pub until: Time,
    pub worker: Option<String>,
    /// `cancelled`: the message was cancelled, purged or erased during the lease. `dead`: it became
    /// a dead letter, also because its queue was deleted. A message that is acknowledged later
    /// shows `acked`.
    #[schemars(with = "Word<LeaseOutcome>")]
    pub outcome: &'static str,
    /// Null if the lease has not ended, or ended because its time ran out.
    pub ended_at: Option<Time>,
    /// Why the work failed: the `reason` of the `nack`.
    pub reason: Option<String>,
    pub next_attempt_at: Option<Time>,
}

impl PastLeaseBody {
    fn new(lease: &PastLease) -> Self {
        Self {
            number: lease.number,
            received_at: Time(lease.received_at),
            until: Time(lease.until),
            worker: lease.worker.as_ref().map(ToString::to_string),
            outcome: lease.outcome.as_str(),
            ended_at: lease.ended_at.map(Time),
            reason: lease.reason.as_deref().map(str::to_owned),
            next_attempt_at: lease.next_at.map(Time),
        }
    }
}

/// One HTTP request of a delivery. An internal receiver is in the operator's network.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptBody {
    /// From 1.
    pub number: u32,
    /// `publish`, `retry`, `manual`, `redrive` or `replay`.
    #[schemars(with = "Word<Trigger>")]
    pub trigger: &'static str,
    pub started_at: Time,
    pub duration: Span,
    pub status_code: Option<u16>,
    /// Keys bound to a tenant only see `noReply` if an internal receiver did not reply.
    #[schemars(with = "Option<Word<ShownClass>>")]
    pub error_class: Option<&'static str>,
    /// The error text. For an internal receiver, keys bound to a tenant only see the status.
    pub error: Option<String>,
    /// The first bytes of the reply, as text. For an internal receiver, keys bound to a tenant see
    /// null.
    pub response_body: Option<String>,
    pub next_attempt_at: Option<Time>,
    #[serde(flatten)]
    pub exchange: ExchangeBody,
}

impl AttemptBody {
    fn new(past: &PastAttempt, audience: Audience) -> Self {
        let PastAttempt { attempt, request } = past;
        let failure = disclosure::failure(attempt, audience);
        Self {
            number: attempt.number,
            trigger: attempt.trigger.as_str(),
            started_at: Time(attempt.started_at),
            duration: Span(attempt.duration),
            status_code: attempt.status,
            error_class: failure.as_ref().map(|failure| failure.class),
            error: failure.map(|failure| failure.text.into_owned()),
            response_body: disclosure::body(attempt, audience),
            next_attempt_at: match attempt.next {
                Next::RetryAt(at) => Some(Time(at)),
                Next::Delivered | Next::Dead(_) => None,
            },
            exchange: ExchangeBody::new(attempt, request.as_ref(), audience),
        }
    }
}

pub(in crate::api) fn attempts(list: &[HistoryEntry], audience: Audience) -> Vec<HistoryBody> {
    let body = |entry: &HistoryEntry| match entry {
        HistoryEntry::Attempt(past) => HistoryBody::Attempt(AttemptBody::new(past, audience).into()),
        HistoryEntry::Lease(lease) => HistoryBody::Lease(PastLeaseBody::new(lease)),
    };
    list.iter().map(body).collect()
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryDetailBody {
    #[serde(flatten)]
    pub delivery: DeliveryBody,
    /// The last 128 attempts, oldest first.
    pub attempts: Vec<HistoryBody>,
}

impl DeliveryDetailBody {
    #[must_use]
    pub fn new(detail: &DeliveryDetail, audience: Audience) -> Self {
        let delivery = DeliveryBody::new(&detail.delivery, audience);
        Self { delivery, attempts: attempts(&detail.attempts, audience) }
    }
}

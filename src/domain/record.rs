//! Records of the journal. All other state is derived from them.

use std::sync::Arc;

use super::{
    ApiKey, Attempt, AuditEntry, Consumer, ConsumerKey, DeadReason, DeliveryKey, EndedLease, Endpoint,
    EndpointNumber, Event, EventType, Horizon, Job, JobProgress, KeyId, LeaseKey, Position, Rejection,
    Reservation, Source, SourceName, TakenMessage, Tenant, TenantSettings, Timestamp, Trigger,
    TypeDefinition, WorkerName,
};

/// Identity of an answered request: hashes of its scope and of its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// Hash of tenant, route and key.
    pub scope: [u8; 16],
    /// Hash of the request's body.
    pub fingerprint: [u8; 16],
    /// `None`: kept as long as the event (chosen ids).
    pub expires_at: Option<Timestamp>,
}

/// One record of the journal. `storage::format` describes its encoding.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// An event was accepted, with its fan-out.
    EventAccepted(Arc<Event>),
    /// An attempt ended. Its due time `due` and its key identify the pending row.
    AttemptFinished {
        delivery: DeliveryKey,
        due: Timestamp,
        attempt: Arc<Attempt>,
    },
    /// An endpoint was created or changed.
    EndpointPut(Arc<Endpoint>),
    EndpointDeleted {
        endpoint: EndpointNumber,
        at: Timestamp,
    },
    KeyPut(Arc<ApiKey>),
    KeyDeleted {
        id: KeyId,
        at: Timestamp,
    },
    /// A key was used in the hour that begins at this time.
    KeyUsed {
        id: KeyId,
        at: Timestamp,
    },
    /// These deliveries are pending and due now, in a new retry series; missing ones are created.
    /// A redrive revives only dead ones. Only a replay revives purged ones.
    DeliveriesRevived {
        deliveries: Vec<DeliveryKey>,
        trigger: Trigger,
        at: Timestamp,
    },
    /// An operator cancelled these pending deliveries.
    DeliveriesCancelled {
        deliveries: Vec<DeliveryKey>,
        at: Timestamp,
    },
    /// These pending deliveries were given up without an attempt.
    DeliveriesDied {
        deliveries: Vec<DeliveryKey>,
        reason: DeadReason,
        at: Timestamp,
    },
    /// These dead letters were purged.
    DeadLettersPurged {
        deliveries: Vec<DeliveryKey>,
        at: Timestamp,
    },
    /// The pending ones of these deliveries move to their place in the endpoint's current ordering.
    DeliveriesReordered {
        deliveries: Vec<DeliveryKey>,
        at: Timestamp,
    },
    /// A request other than an event was answered. Repeating it returns the same answer.
    RequestAnswered {
        idempotency: Idempotency,
        status: u16,
        body: Arc<[u8]>,
    },
    /// Part of an endpoint's rate was reserved.
    RateReserved {
        endpoint: EndpointNumber,
        reservation: Reservation,
    },
    /// An event or an atomic request with a key was rejected. Repeating it returns the same
    /// rejection.
    EventRejected {
        idempotency: Idempotency,
        rejection: Rejection,
        /// Index of the rejected command of an atomic request.
        command: Option<u32>,
    },
    /// Settings of a tenant were created or changed.
    TenantPut(Arc<TenantSettings>),
    /// A tenant was deleted, after its endpoints and keys.
    TenantDeleted {
        tenant: Tenant,
        at: Timestamp,
    },
    /// The content of an event was erased, with the replies to its attempts.
    EventErased {
        event: Position,
        tenant: Tenant,
        at: Timestamp,
        reason: Box<str>,
    },
    /// Retention may forget events up to this horizon. Precedes their removal.
    HorizonMoved {
        horizon: Horizon,
        at: Timestamp,
    },
    /// A consumer was created or changed.
    ConsumerPut(Arc<Consumer>),
    /// A consumer was committed or reset to this position.
    ConsumerMoved {
        key: ConsumerKey,
        position: Position,
        at: Timestamp,
    },
    ConsumerDeleted {
        key: ConsumerKey,
        at: Timestamp,
    },
    /// A worker took these messages of a queue, those that are still in their place. The position
    /// of this record fences the leases.
    MessagesLeased {
        queue: EndpointNumber,
        messages: Vec<TakenMessage>,
        until: Timestamp,
        at: Timestamp,
        worker: Option<WorkerName>,
    },
    /// A worker ended these leases, those that are still the last of their message. With a reason,
    /// which may have content of the event, it is one lease.
    LeasesEnded {
        queue: EndpointNumber,
        ends: Vec<EndedLease>,
        at: Timestamp,
        /// Why the work failed.
        reason: Option<Box<str>>,
    },
    /// A worker keeps these leases until another time.
    LeasesExtended {
        queue: EndpointNumber,
        leases: Vec<LeaseKey>,
        until: Timestamp,
        at: Timestamp,
    },
    /// An event type was registered or changed.
    TypePut(Arc<TypeDefinition>),
    TypeDeleted {
        name: EventType,
        at: Timestamp,
    },
    /// A job began, with its first step.
    JobPut(Arc<Job>),
    /// A job made a step, or ended. Its changes are in the same commit.
    JobMoved {
        /// Its number.
        job: Position,
        progress: Box<JobProgress>,
    },
    /// An operator's act. It is in the commit of the act.
    Audited(Arc<AuditEntry>),
    /// A source was created or changed.
    SourcePut(Arc<Source>),
    SourceDeleted {
        name: SourceName,
        at: Timestamp,
    },
}

impl Record {
    /// The event whose content the record at `position` has, or had before the event was erased.
    #[must_use]
    pub fn content_of(&self, position: Position) -> Option<Position> {
        match self {
            Self::EventAccepted(_) => Some(position),
            Self::AttemptFinished { delivery, .. } => Some(delivery.event),
            Self::LeasesEnded { ends, reason: Some(_), .. } => ends.first().map(|ended| ended.key.event),
            Self::EndpointPut(_)
            | Self::EndpointDeleted { .. }
            | Self::KeyPut(_)
            | Self::KeyDeleted { .. }
            | Self::KeyUsed { .. }
            | Self::DeliveriesRevived { .. }
            | Self::DeliveriesCancelled { .. }
            | Self::DeliveriesDied { .. }
            | Self::DeadLettersPurged { .. }
            | Self::DeliveriesReordered { .. }
            | Self::RequestAnswered { .. }
            | Self::RateReserved { .. }
            | Self::EventRejected { .. }
            | Self::TenantPut(_)
            | Self::TenantDeleted { .. }
            | Self::EventErased { .. }
            | Self::HorizonMoved { .. }
            | Self::ConsumerPut(_)
            | Self::ConsumerMoved { .. }
            | Self::ConsumerDeleted { .. }
            | Self::MessagesLeased { .. }
            | Self::LeasesEnded { .. }
            | Self::LeasesExtended { .. }
            | Self::TypePut(_)
            | Self::TypeDeleted { .. }
            | Self::JobPut(_)
            | Self::JobMoved { .. }
            | Self::Audited(_)
            | Self::SourcePut(_)
            | Self::SourceDeleted { .. } => None,
        }
    }

    /// The record without the content of its event, which was erased at this time.
    #[must_use]
    pub fn erased(&self, at: Timestamp) -> Self {
        match self {
            Self::EventAccepted(event) => Self::EventAccepted(Arc::new(event.erased(at))),
            Self::AttemptFinished { delivery, due, attempt } => {
                Self::AttemptFinished { delivery: *delivery, due: *due, attempt: Arc::new(attempt.erased()) }
            }
            Self::LeasesEnded { queue, ends, at, .. } => {
                Self::LeasesEnded { queue: *queue, ends: ends.clone(), at: *at, reason: None }
            }
            other => other.clone(),
        }
    }
}

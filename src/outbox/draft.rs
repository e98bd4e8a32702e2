//! Input and result types of the outbox.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::domain::{
    EndpointNumber, Event, EventId, EventType, EventVersion, Expected, Idempotency, Label, OrderingKey,
    Position, QuotaExceeded, Rejection, StreamName, Tenant, Timestamp, attribute, weigh,
};
use crate::filters::EventFacts;
use crate::limits;
use crate::outbox::subscriptions::{Selected, Verdicts};
use crate::rules::append::Judged;
use crate::schemas::TypeRefusal;

/// The endpoints of an event, as of a revision of the endpoints. The writer matches again
/// if an endpoint has changed since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    pub revision: u64,
    pub targets: Arc<[EndpointNumber]>,
    /// Results of the filters. `None`: the targets depend on the type alone.
    pub verdicts: Option<Arc<Verdicts>>,
}

impl From<Selected> for Matched {
    fn from(selected: Selected) -> Self {
        Self {
            revision: selected.revision,
            targets: selected.targets.into(),
            verdicts: selected.verdicts.map(Arc::new),
        }
    }
}

/// A validated event as posted by its publisher.
#[derive(Clone, Debug)]
pub struct EventDraft {
    pub id: Option<EventId>,
    pub tenant: Tenant,
    pub event_type: EventType,
    pub version: EventVersion,
    /// Defaults to the time of acceptance.
    pub timestamp: Option<Timestamp>,
    pub stream: Option<StreamName>,
    pub expected: Expected,
    /// Defaults to the stream's name.
    pub ordering_key: Option<OrderingKey>,
    pub deliver_at: Option<Timestamp>,
    /// Sorted, without duplicates.
    pub labels: Vec<Label>,
    pub metadata: Option<Bytes>,
    /// Sorted by name.
    pub attributes: Vec<(Box<str>, Box<str>)>,
    pub data: Bytes,
    /// From the request's `Idempotency-Key`.
    pub idempotency: Option<Idempotency>,
    /// Hash of the posted event. It decides whether two events with the same publisher-chosen id
    /// are equal.
    pub fingerprint: [u8; 16],
    /// Deliver to this endpoint only, regardless of its patterns (test events).
    pub only: Option<EndpointNumber>,
    /// The endpoints that match it, if that was determined before the unit was queued.
    pub matched: Option<Matched>,
    /// Conflict with an earlier event whose id the daemon generated. `Fresh` until the journal is
    /// read.
    pub id_conflict: Judged,
    /// Revision of the type that the data was checked against, 0 for an unregistered type. `None`:
    /// not checked. The writer checks again if the type was registered or changed since.
    pub type_revision: Option<Position>,
    /// Why the event's type refuses it. A repetition of an accepted event is answered all the same.
    pub refusal: Option<Box<TypeRefusal>>,
}

impl EventDraft {
    /// Creates a draft with the required fields only.
    #[must_use]
    pub fn new(tenant: Tenant, event_type: EventType, data: Bytes) -> Self {
        Self {
            id: None,
            tenant,
            event_type,
            version: EventVersion::default(),
            timestamp: None,
            stream: None,
            expected: Expected::Any,
            ordering_key: None,
            deliver_at: None,
            labels: Vec::new(),
            metadata: None,
            attributes: Vec::new(),
            data,
            idempotency: None,
            fingerprint: [0; 16],
            only: None,
            matched: None,
            id_conflict: Judged::Fresh,
            type_revision: None,
            refusal: None,
        }
    }

    /// The publisher-chosen id, or the source and id of a CloudEvent, as an idempotency key. It is
    /// stored as long as the event.
    #[must_use]
    pub fn publisher_id_key(&self) -> Option<Idempotency> {
        let attribute = |name| attribute::find(&self.attributes, name);
        let scope = match (&self.id, attribute(attribute::SOURCE), attribute(attribute::ID)) {
            (Some(id), _, _) => publisher_id_scope(&self.tenant, id),
            (None, Some(source), Some(id)) => scope(&["cloudevent", self.tenant.as_str(), source, id]),
            (None, _, _) => return None,
        };
        Some(Idempotency { scope, fingerprint: self.fingerprint, expires_at: None })
    }

    /// The parts that filters see.
    #[must_use]
    pub fn facts(&self) -> EventFacts<'_> {
        EventFacts {
            event_type: self.event_type.as_str(),
            version: self.version.as_str(),
            stream: self.stream.as_ref().map(StreamName::as_str),
            ordering_key: self.ordering_key.as_ref().map(OrderingKey::as_str),
            labels: &self.labels,
            attributes: &self.attributes,
            metadata: self.metadata.as_deref(),
            data: &self.data,
        }
    }

    /// Whether the draft can be a duplicate of another one.
    #[must_use]
    pub fn may_be_duplicate(&self) -> bool {
        self.idempotency.is_some() || self.id.is_some() || !self.attributes.is_empty()
    }

    /// Compares the draft with an earlier event of the same tenant that has this id. The daemon
    /// generated that id, so the fingerprints differ and the content is compared.
    #[must_use]
    pub fn judge_id_conflict(&self, position: Position, event: &Event) -> Judged {
        let is_the_same = self.event_type == event.event_type
            && self.version == event.version
            // The content of an erased event is unknown.
            && (event.erased_at.is_some() || self.data == event.data)
            && self.stream.as_ref() == event.stream.as_ref().map(|(stream, _)| stream);
        if is_the_same { Judged::Duplicate(position) } else { Judged::Mismatch(position) }
    }

    /// Approximate bytes in memory; see [`weigh`].
    #[must_use]
    pub fn weight(&self) -> usize {
        let id = self.id.as_ref().map_or("", EventId::as_str);
        let stream = self.stream.as_ref().map_or("", StreamName::as_str);
        let ordering_key = self.ordering_key.as_ref().map_or("", OrderingKey::as_str);
        let (tenant, event_type) = (self.tenant.as_str(), self.event_type.as_str());
        let names = [id, tenant, event_type, self.version.as_str(), stream, ordering_key];
        weigh(&names, &self.labels, self.metadata.as_ref(), &self.attributes, &self.data)
    }

    /// Whether the decision depends on the state.
    #[must_use]
    pub fn needs_preparation(&self) -> bool {
        self.stream.is_some() || self.idempotency.is_some() || self.publisher_id_key().is_some()
    }
}

/// Creation time of a generated id (`evt_` and a ULID), or `None` for another form.
#[must_use]
pub fn generated_at(id: &EventId) -> Option<Timestamp> {
    let ulid = ulid::Ulid::from_string(id.as_str().strip_prefix("evt_")?).ok()?;
    Some(Timestamp::from_millis(ulid.timestamp_ms()))
}

/// Whether the publisher chose the event's id. Such an id is unique within its tenant only.
#[must_use]
pub fn has_publisher_id(event: &Event) -> bool {
    !event.idempotency.is_empty() && {
        let scope = publisher_id_scope(&event.tenant, &event.id);
        event.idempotency.iter().any(|known| known.scope == scope)
    }
}

/// Idempotency scope of a publisher-chosen id.
#[must_use]
pub fn publisher_id_scope(tenant: &Tenant, id: &EventId) -> [u8; 16] {
    scope(&["chosen-id", tenant.as_str(), id.as_str()])
}

fn scope(parts: &[&str]) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    let digest: [u8; 32] = hasher.finalize().into();
    let mut scope = [0; 16];
    scope.copy_from_slice(&digest[..16]);
    scope
}

/// A durable event.
#[derive(Clone, Debug)]
pub struct AcceptedEvent {
    pub event: Arc<Event>,
    pub position: Position,
    /// An earlier request with the same key or id created this event.
    pub duplicate: bool,
}

/// Why no event was accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// `repeated`: an earlier request with the same key got the same rejection.
    #[error("{rejection}")]
    Rejected { rejection: Rejection, repeated: bool },
    #[error("the idempotency key was already used with another body")]
    IdempotencyMismatch,
    #[error("the event, or all events of the request together, match too many endpoints")]
    TooManyTargets,
    #[error("the event does not match its registered type")]
    Refused(Box<TypeRefusal>),
    #[error(transparent)]
    QuotaExceeded(#[from] QuotaExceeded),
    #[error(transparent)]
    Store(#[from] Unavailable),
}

/// Why the outbox cannot accept commands or answer queries now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The commit queue is full.
    #[error("too many pending events; try again in {} s", retry_after.as_secs().max(1))]
    Overloaded { retry_after: Duration },
    #[error("the disk is full")]
    DiskFull,
    #[error("the daemon is shutting down")]
    Stopping,
    #[error("the outbox failed: {0}")]
    Failed(Arc<str>),
}

/// Why a change was rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("not found")]
    NotFound,
    /// The object changed since it was read: read it again and repeat.
    #[error("it was changed in between; read it again and repeat")]
    Conflict,
    #[error("{0}")]
    NotAllowed(&'static str),
    #[error("another endpoint of the tenant has this uid")]
    UidTaken,
    /// The event has no content that could be delivered.
    #[error("the event was erased")]
    Erased,
    #[error("{} jobs run; try again when one has ended", limits::JOBS_RUNNING_MAX)]
    TooManyJobs,
    #[error(transparent)]
    QuotaExceeded(#[from] QuotaExceeded),
    /// A request with the same key was committed in between, and its response is stored now.
    #[error("a request with the same key was answered in between")]
    Repeated,
    #[error(transparent)]
    Store(#[from] Unavailable),
}

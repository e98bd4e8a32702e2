//! What goes into the outbox and what it answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::domain::{
    EndpointNumber, Event, EventId, EventType, EventVersion, Expected, Idempotency, OrderingKey, Position,
    Rejection, StreamName, Tenant, Timestamp, attribute, weigh,
};
use crate::rules::append::Judged;

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
    /// What an earlier event to which the daemon gave the chosen id says about this one; nothing, until the journal is
    /// asked.
    pub id_conflict: Judged,
}

impl EventDraft {
    /// What says only what every event says.
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
            metadata: None,
            attributes: Vec::new(),
            data,
            idempotency: None,
            fingerprint: [0; 16],
            only: None,
            id_conflict: Judged::Fresh,
        }
    }

    /// A chosen id is remembered like an idempotency key, for as long as the event is kept; so are source and id of
    /// a CloudEvent.
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

    /// Whether it has anything by which it can be another's duplicate_outcome.
    #[must_use]
    pub fn may_be_duplicate(&self) -> bool {
        self.idempotency.is_some() || self.id.is_some() || !self.attributes.is_empty()
    }

    /// What follows from an event of the same tenant to which the daemon gave the chosen id. It was posted without an id,
    /// so its fingerprint is that of other bytes: what it says is compared.
    #[must_use]
    pub fn judge_id_conflict(&self, position: Position, event: &Event) -> Judged {
        let is_the_same = self.event_type == event.event_type
            && self.version == event.version
            && self.data == event.data
            && self.stream.as_ref() == event.stream.as_ref().map(|(stream, _)| stream);
        if is_the_same { Judged::Duplicate(position) } else { Judged::Mismatch(position) }
    }

    /// Bytes that it holds in memory, about; see [`weigh`].
    #[must_use]
    pub fn weight(&self) -> usize {
        let id = self.id.as_ref().map_or("", EventId::as_str);
        let stream = self.stream.as_ref().map_or("", StreamName::as_str);
        let ordering_key = self.ordering_key.as_ref().map_or("", OrderingKey::as_str);
        let (tenant, event_type) = (self.tenant.as_str(), self.event_type.as_str());
        let names = [id, tenant, event_type, self.version.as_str(), stream, ordering_key];
        weigh(&names, self.metadata.as_ref(), &self.attributes, &self.data)
    }

    /// Whether it can only be judged with what the state knows.
    #[must_use]
    pub fn needs_preparation(&self) -> bool {
        self.stream.is_some() || self.idempotency.is_some() || self.publisher_id_key().is_some()
    }
}

/// When an id was made, when it is of the shape of those that the daemon makes: `evt_` and a ULID.
#[must_use]
pub fn generated_at(id: &EventId) -> Option<Timestamp> {
    let ulid = ulid::Ulid::from_string(id.as_str().strip_prefix("evt_")?).ok()?;
    Some(Timestamp::from_millis(ulid.timestamp_ms()))
}

/// Whether the publisher chose the event's id, which is then unique in its tenant only.
#[must_use]
pub fn has_publisher_id(event: &Event) -> bool {
    !event.idempotency.is_empty() && {
        let scope = publisher_id_scope(&event.tenant, &event.id);
        event.idempotency.iter().any(|known| known.scope == scope)
    }
}

/// Under which a chosen id is remembered.
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

/// An event that is on disk.
#[derive(Clone, Debug)]
pub struct Accepted {
    pub event: Arc<Event>,
    pub position: Position,
    /// An earlier request with the same key or id was answered with this event.
    pub duplicate: bool,
}

/// Why nothing was accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// `repeated`: an earlier request with the same key was told so.
    #[error("{rejection}")]
    Rejected { rejection: Rejection, repeated: bool },
    #[error("the same idempotency key was used with another body")]
    IdempotencyMismatch,
    #[error("the request's events match too many endpoints together")]
    TooManyTargets,
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
    /// An earlier request with the same key was committed in between: what it was answered is remembered now.
    #[error("a request with the same key was answered meanwhile")]
    Repeated,
    #[error(transparent)]
    Store(#[from] Unavailable),
}

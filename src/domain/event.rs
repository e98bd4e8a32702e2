//! An event: an immutable fact.

use bytes::Bytes;

use super::{
    EndpointNumber, EventId, EventType, EventVersion, Idempotency, OrderingKey, StreamName, Tenant, Timestamp,
};

/// What the publisher says that the stream's version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// No check.
    Any,
    /// The stream must not exist.
    NoStream,
    /// The stream's last event must have this version (from 1).
    Version(u64),
}

/// An accepted event with the endpoints that it goes to. Its position is that of its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub id: EventId,
    pub tenant: Tenant,
    pub event_type: EventType,
    pub version: EventVersion,
    /// The event's own time, as its publisher gave it, or its acceptance.
    pub timestamp: Timestamp,
    pub accepted_at: Timestamp,
    /// Stream and the event's version in it, dense from 1.
    pub stream: Option<(StreamName, u64)>,
    pub ordering_key: Option<OrderingKey>,
    pub deliver_at: Option<Timestamp>,
    /// A JSON object, as text.
    pub metadata: Option<Bytes>,
    /// Attributes beside the body's own: `traceparent`, CloudEvents `source` and extensions. Sorted by name.
    pub attributes: Vec<(Box<str>, Box<str>)>,
    /// A JSON value, byte for byte as it was posted.
    pub data: Bytes,
    /// The endpoints that it was fanned out to when it was accepted.
    pub targets: Vec<EndpointNumber>,
    /// The idempotency records that this event answers for: the request's key, the chosen id.
    pub idempotency: Vec<Idempotency>,
}

impl Event {
    /// When its deliveries are first due.
    #[must_use]
    pub fn first_due(&self) -> Timestamp {
        self.deliver_at.map_or(self.accepted_at, |at| at.max(self.accepted_at))
    }
}

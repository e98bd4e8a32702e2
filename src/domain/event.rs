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
    /// Attributes beside the body's own, see [`attribute`]. Sorted by name.
    pub attributes: Vec<(Box<str>, Box<str>)>,
    /// A JSON value, byte for byte as it was posted.
    pub data: Bytes,
    /// The endpoints that it was fanned out to when it was accepted.
    pub targets: Vec<EndpointNumber>,
    /// The idempotency records that this event answers for: the request's key, the chosen id.
    pub idempotency: Vec<Idempotency>,
}

/// Names of an event's attributes. Those without a name here are extensions of a CloudEvent, in lower-case letters and
/// digits; one whose value is a JSON number or boolean ends with [`NOT_TEXT`](attribute::NOT_TEXT).
pub mod attribute {
    /// The id that a CloudEvent had; ours is another, since theirs may be anything.
    pub const ID: &str = "id";
    pub const SOURCE: &str = "source";
    pub const SUBJECT: &str = "subject";
    pub const DATA_SCHEMA: &str = "dataschema";
    pub const CONTENT_TYPE: &str = "datacontenttype";
    /// The time as it was written, when that says more than the event's timestamp.
    pub const TIME: &str = "time";
    /// There when the data is a JSON string that holds base64 of bytes.
    pub const BINARY: &str = "data_base64";
    pub const TRACE_PARENT: &str = "traceparent";
    /// How many engines it came through; there from the first on. No extension has a hyphen in its name.
    pub const HOPS: &str = "balto-hops";
    pub const NOT_TEXT: &str = "#";
    /// Those that are no extensions.
    pub const OWN: [&str; 8] = [ID, SOURCE, SUBJECT, TIME, DATA_SCHEMA, CONTENT_TYPE, BINARY, HOPS];

    #[must_use]
    pub fn find<'a>(attributes: &'a [(Box<str>, Box<str>)], name: &str) -> Option<&'a str> {
        attributes.iter().find(|(other, _)| **other == *name).map(|(_, value)| &**value)
    }
}

impl Event {
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&str> {
        attribute::find(&self.attributes, name)
    }

    /// How many engines it came through before this one.
    #[must_use]
    pub fn hops(&self) -> u32 {
        self.attribute(attribute::HOPS).and_then(|hops| hops.parse().ok()).unwrap_or(0)
    }

    /// When its deliveries are first due.
    #[must_use]
    pub fn first_due(&self) -> Timestamp {
        self.deliver_at.map_or(self.accepted_at, |at| at.max(self.accepted_at))
    }
}

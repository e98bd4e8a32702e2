//! An event: an immutable fact.

use bytes::Bytes;

use super::closed_list::closed_list;
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

/// Why an event is not accepted, for good: who repeats the request with its key hears the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The stream is not at the version that the publisher expected; `actual` is `None` when it does not exist.
    #[error("the stream's version is {}, not what was expected", actual.map_or_else(|| "none".to_owned(), |v| v.to_string()))]
    VersionConflict { expected: Expected, actual: Option<u64> },
    #[error("another event of the tenant has the id that it chose")]
    IdTaken,
}

closed_list! {
    /// What an event's deliveries amount to.
    pub enum EventStatus {
        /// One or more are pending.
        Pending => "pending",
        /// All are delivered.
        Delivered => "delivered",
        /// Some are delivered, none is pending.
        Partial => "partial",
        /// None is delivered or pending.
        Failed => "failed",
        /// There are none.
        Unmatched => "unmatched",
    }
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
    /// A JSON value, byte for byte as it was posted; empty when there was none, as in a CloudEvent without data.
    pub data: Bytes,
    /// The endpoints that it was fanned out to when it was accepted.
    pub targets: Vec<EndpointNumber>,
    /// The idempotency records that this event answers for: the request's key, the chosen id.
    pub idempotency: Vec<Idempotency>,
}

/// Bytes of an event beside what has a length of its own: its members, and what it takes to keep it somewhere.
const OVERHEAD_BYTES: usize = 512;

const _: () = assert!(OVERHEAD_BYTES >= size_of::<Event>() + 2 * size_of::<Idempotency>());

/// Bytes that an event made of these holds in memory, about, without its targets. Every bound of what waits, is kept or
/// goes to a page weighs by this.
#[must_use]
pub fn weigh(
    names: &[&str],
    metadata: Option<&Bytes>,
    attributes: &[(Box<str>, Box<str>)],
    data: &Bytes,
) -> usize {
    let names: usize = names.iter().map(|name| name.len()).sum();
    let pair = size_of::<(Box<str>, Box<str>)>();
    let attributes: usize = attributes.iter().map(|(name, value)| pair + name.len() + value.len()).sum();
    OVERHEAD_BYTES + names + metadata.map_or(0, Bytes::len) + attributes + data.len()
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

    /// Bytes that it holds in memory, about; see [`weigh`].
    #[must_use]
    pub fn weight(&self) -> usize {
        let stream = self.stream.as_ref().map_or("", |(stream, _)| stream.as_str());
        let ordering_key = self.ordering_key.as_ref().map_or("", OrderingKey::as_str);
        let (id, tenant, event_type) = (self.id.as_str(), self.tenant.as_str(), self.event_type.as_str());
        let names = [id, tenant, event_type, self.version.as_str(), stream, ordering_key];
        weigh(&names, self.metadata.as_ref(), &self.attributes, &self.data)
            + size_of_val(self.targets.as_slice())
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

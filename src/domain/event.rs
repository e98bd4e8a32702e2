//! An event: an immutable fact.

use bytes::Bytes;

use super::closed_list::closed_list;
use super::{
    EndpointNumber, EventId, EventType, EventVersion, Idempotency, Label, OrderingKey, StreamName, Tenant,
    Timestamp, TraceId, TraceParent,
};

/// Stream version that the publisher expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// No check.
    Any,
    /// The stream must not exist.
    NoStream,
    /// The stream must exist, at any version.
    Exists,
    /// The stream's last event must have this version (from 1).
    Version(u64),
}

/// Permanent rejection of an event. Repeating the request with its key returns it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The stream has another version; `actual` is `None` if the stream does not exist.
    #[error("stream version conflict: expected {expected:?}, actual {}", actual.map_or_else(|| "none".to_owned(), |v| v.to_string()))]
    VersionConflict { expected: Expected, actual: Option<u64> },
    #[error("another event of the tenant has this id")]
    IdTaken,
    /// Of the events of an atomic request, some exist already.
    #[error("some events of the request exist, others do not")]
    PartialDuplicate,
}

closed_list! {
    /// Summary of the states of an event's deliveries.
    pub enum EventStatus {
        /// One or more are pending.
        Pending => "pending",
        /// All are delivered.
        Delivered => "delivered",
        /// Some are delivered, none is pending.
        Partial => "partial",
        /// None is delivered or pending.
        Failed => "failed",
        /// The event has no deliveries.
        Unmatched => "unmatched",
    }
}

closed_list! {
    /// Whether the content of an erased event has left the files of the journal.
    pub enum OnDisk {
        /// A background task removes it.
        Pending => "pending",
        Done => "done",
    }
}

/// An accepted event with its target endpoints. Its position is that of its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub id: EventId,
    pub tenant: Tenant,
    pub event_type: EventType,
    pub version: EventVersion,
    /// The publisher's time of the event, or the time of acceptance.
    pub timestamp: Timestamp,
    pub accepted_at: Timestamp,
    /// Stream and the event's version in it, dense from 1.
    pub stream: Option<(StreamName, u64)>,
    pub ordering_key: Option<OrderingKey>,
    pub deliver_at: Option<Timestamp>,
    /// Sorted, without duplicates.
    pub labels: Vec<Label>,
    /// A JSON object, as text.
    pub metadata: Option<Bytes>,
    /// Further attributes, sorted by name; see [`attribute`].
    pub attributes: Vec<(Box<str>, Box<str>)>,
    /// A JSON value, byte for byte as posted. Empty if absent, as in a CloudEvent without data.
    pub data: Bytes,
    /// Endpoints of the fan-out at acceptance.
    pub targets: Vec<EndpointNumber>,
    /// Idempotency records of the request's key and of the chosen id.
    pub idempotency: Vec<Idempotency>,
    /// When the content was erased: data, metadata, labels, and attributes except the trace.
    pub erased_at: Option<Timestamp>,
}

/// Bytes of an event besides its variable-length fields: the struct and its bookkeeping.
const OVERHEAD_BYTES: usize = 512;

/// Bytes of an event's record besides its variable-length fields, and of each target.
const STORED_OVERHEAD_BYTES: usize = 64;
const STORED_TARGET_BYTES: usize = 4;

const _: () = assert!(OVERHEAD_BYTES >= size_of::<Event>() + 2 * size_of::<Idempotency>());

/// Approximate bytes in memory of an event with these parts, without its targets. The size bounds
/// of queues, caches and pages use it.
#[must_use]
pub fn weigh(
    names: &[&str],
    labels: &[Label],
    metadata: Option<&Bytes>,
    attributes: &[(Box<str>, Box<str>)],
    data: &Bytes,
) -> usize {
    let names: usize = names.iter().map(|name| name.len()).sum();
    let pair = size_of::<(Box<str>, Box<str>)>();
    let attributes: usize = attributes.iter().map(|(name, value)| pair + name.len() + value.len()).sum();
    let labels: usize = labels.iter().map(|label| size_of::<Label>() + label.as_str().len()).sum();
    OVERHEAD_BYTES + names + labels + metadata.map_or(0, Bytes::len) + attributes + data.len()
}

/// Names of an event's attributes. All others are CloudEvents extensions, in lower-case letters and
/// digits, plus [`NOT_TEXT`](attribute::NOT_TEXT) if the value is a JSON number or boolean.
pub mod attribute {
    /// The id of a CloudEvent. It may be any text, so the event gets another id.
    pub const ID: &str = "id";
    pub const SOURCE: &str = "source";
    pub const SUBJECT: &str = "subject";
    pub const DATA_SCHEMA: &str = "dataschema";
    pub const CONTENT_TYPE: &str = "datacontenttype";
    /// The time as posted, if it says more than the event's timestamp.
    pub const TIME: &str = "time";
    /// Present if the data is a JSON string with base64 of binary data.
    pub const BINARY: &str = "data_base64";
    pub const TRACE_PARENT: &str = "traceparent";
    /// The ordering key.
    pub const PARTITION_KEY: &str = "partitionkey";
    /// The version of the type's schema.
    pub const VERSION: &str = "version";
    /// Number of engines that the event came through, if any. Extension names have no hyphen.
    pub const HOPS: &str = "balto-hops";
    /// The type whose example a test event carries.
    pub const TEST_TYPE: &str = "balto-test-type";
    pub const NOT_TEXT: &str = "#";
    /// Names that are not extensions.
    pub const OWN: [&str; 9] =
        [ID, SOURCE, SUBJECT, TIME, DATA_SCHEMA, CONTENT_TYPE, BINARY, HOPS, TEST_TYPE];

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

    /// The trace of its publisher.
    #[must_use]
    pub fn trace_id(&self) -> Option<TraceId> {
        TraceParent::parse(self.attribute(attribute::TRACE_PARENT)?).map(TraceParent::trace_id)
    }

    /// Approximate bytes in memory; see [`weigh`].
    #[must_use]
    pub fn weight(&self) -> usize {
        let stream = self.stream.as_ref().map_or("", |(stream, _)| stream.as_str());
        let ordering_key = self.ordering_key.as_ref().map_or("", OrderingKey::as_str);
        let (id, tenant, event_type) = (self.id.as_str(), self.tenant.as_str(), self.event_type.as_str());
        let names = [id, tenant, event_type, self.version.as_str(), stream, ordering_key];
        weigh(&names, &self.labels, self.metadata.as_ref(), &self.attributes, &self.data)
            + size_of_val(self.targets.as_slice())
    }

    /// Approximate bytes on disk: the record, without its frame. Never changes, because state rows
    /// contain it.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        if self.erased_at.is_some() {
            return Self::erased_bytes(self.targets.len());
        }
        let stream = self.stream.as_ref().map_or("", |(stream, _)| stream.as_str());
        let ordering_key = self.ordering_key.as_ref().map_or("", OrderingKey::as_str);
        let (id, tenant, event_type) = (self.id.as_str(), self.tenant.as_str(), self.event_type.as_str());
        let names = [id, tenant, event_type, self.version.as_str(), stream, ordering_key];
        let names: usize = names.iter().map(|name| name.len()).sum();
        let attributes: usize = self.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        let metadata = self.metadata.as_ref().map_or(0, Bytes::len);
        let targets = self.targets.len() * STORED_TARGET_BYTES;
        let labels: usize = self.labels.iter().map(|label| label.as_str().len() + 1).sum();
        (STORED_OVERHEAD_BYTES + names + labels + metadata + attributes + self.data.len() + targets) as u64
    }

    /// [`Self::stored_bytes`] of an erased event with this many targets.
    #[must_use]
    pub fn erased_bytes(targets: usize) -> u64 {
        (STORED_OVERHEAD_BYTES + targets * STORED_TARGET_BYTES) as u64
    }

    /// The event without its content. Keeps its names, times and targets, its trace, and its
    /// idempotency records, so that a repeated publish is still a duplicate.
    #[must_use]
    pub fn erased(&self, at: Timestamp) -> Self {
        let is_kept = |(name, _): &&(Box<str>, Box<str>)| **name == *attribute::TRACE_PARENT;
        Self {
            id: self.id.clone(),
            tenant: self.tenant.clone(),
            event_type: self.event_type.clone(),
            version: self.version.clone(),
            timestamp: self.timestamp,
            accepted_at: self.accepted_at,
            stream: self.stream.clone(),
            ordering_key: self.ordering_key.clone(),
            deliver_at: self.deliver_at,
            labels: Vec::new(),
            metadata: None,
            attributes: self.attributes.iter().filter(is_kept).cloned().collect(),
            data: Bytes::new(),
            targets: self.targets.clone(),
            idempotency: self.idempotency.clone(),
            erased_at: Some(self.erased_at.unwrap_or(at)),
        }
    }

    /// Number of engines that the event came through before this one.
    #[must_use]
    pub fn hops(&self) -> u32 {
        self.attribute(attribute::HOPS).and_then(|hops| hops.parse().ok()).unwrap_or(0)
    }

    /// First due time of the deliveries.
    #[must_use]
    pub fn first_due(&self) -> Timestamp {
        self.deliver_at.map_or(self.accepted_at, |at| at.max(self.accepted_at))
    }
}

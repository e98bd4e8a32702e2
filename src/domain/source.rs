//! A source: a broker's queue whose messages become events.

use super::closed_list::closed_list;
use super::{Position, Sealed, SourceName, Tenant, Timestamp};

closed_list! {
    /// Kind of queue that a source declares.
    #[derive(Default)]
    pub enum SourceQueueType {
        #[default]
        Quorum = 1 => "quorum",
        Classic = 2 => "classic",
    }
}

closed_list! {
    /// How the body of a message is read.
    #[derive(Default)]
    pub enum SourceFormat {
        /// A CloudEvent by its media type or headers, an `Envelope` with an id, or otherwise `Raw`.
        #[default]
        Auto = 1 => "auto",
        /// An object with `type`, `data`, and more members of a posted event.
        Envelope = 2 => "envelope",
        /// The body is the data, and the routing key the type.
        Raw = 3 => "raw",
    }
}

closed_list! {
    /// Fate of a message that cannot become an event.
    #[derive(Default)]
    pub enum OnInvalid {
        /// It becomes an operator event with the message in it.
        #[default]
        Park = 1 => "park",
        /// The broker drops it, or moves it to the queue's dead-letter exchange.
        Reject = 2 => "reject",
    }
}

closed_list! {
    /// How a source recognises repeated messages.
    #[derive(Default)]
    pub enum Dedup {
        /// By the property `message-id`.
        #[default]
        MessageId = 1 => "messageId",
        None = 2 => "none",
    }
}

closed_list! {
    /// Status of a source, set by operators.
    #[derive(Default)]
    pub enum SourceStatus {
        #[default]
        Active = 1 => "active",
        Paused = 2 => "paused",
    }
}

closed_list! {
    /// Fate of a message of a source.
    pub enum SourceOutcome {
        Accepted => "accepted",
        /// It repeats an event.
        Duplicate => "duplicate",
        /// It became an operator event.
        Parked => "parked",
        /// It was rejected without requeueing.
        Rejected => "rejected",
    }
}

closed_list! {
    /// Connection of a source.
    pub enum SourceState {
        Connecting => "connecting",
        Connected => "connected",
        /// The store refuses events; messages stay unacknowledged at the broker.
        Holding => "holding",
        /// Between two connections, after a failure.
        Failed => "failed",
        /// An operator paused it.
        Paused => "paused",
    }
}

/// The tenant of a source's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceTenant {
    Fixed(Tenant),
    /// The value of this header.
    Header(Box<str>),
}

/// A queue of a broker, whose messages become events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub name: SourceName,
    /// Canonical URL of the broker and virtual host.
    pub url: Box<str>,
    pub username: Box<str>,
    pub password: Sealed,
    pub queue: Box<str>,
    pub queue_type: SourceQueueType,
    /// The exchange that the queue is bound to.
    pub exchange: Option<Box<str>>,
    /// Topic patterns of the bindings.
    pub bindings: Vec<Box<str>>,
    /// Whether exchange, queue and bindings are declared at each connection.
    pub declares: bool,
    /// Most messages that the broker sends before their acknowledgement.
    pub prefetch: u16,
    pub tenant: SourceTenant,
    pub format: SourceFormat,
    /// The header with the stream of the event.
    pub stream_header: Option<Box<str>>,
    /// The header with the ordering key of the event.
    pub ordering_key_header: Option<Box<str>>,
    pub on_invalid: OnInvalid,
    pub dedup: Dedup,
    pub status: SourceStatus,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Position of its latest record. An update names the revision that it read.
    pub revision: Position,
}

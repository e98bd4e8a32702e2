//! Consumers: named positions in the log of events, kept by the server.

use super::{
    ConsumerName, EventType, Pattern, Position, StreamName, Tenant, Timestamp, VersionChoice, VersionPin,
};

/// Identity of a consumer. Names are unique within their tenant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerKey {
    /// `None`: it belongs to the operator and reads the events of all tenants.
    pub tenant: Option<Tenant>,
    pub name: ConsumerName,
}

impl ConsumerKey {
    /// The tenant's name; empty for the operator's consumers, which no tenant is called.
    #[must_use]
    pub fn tenant_text(&self) -> &str {
        self.tenant.as_ref().map_or("", Tenant::as_str)
    }
}

/// The streams whose events a consumer reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StreamChoice {
    /// All events, also those without a stream.
    #[default]
    Any,
    One(StreamName),
    /// Streams whose name begins with this text, which may be empty.
    Prefix(Box<str>),
}

/// The events that a consumer reads, besides those of its tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsumerFilter {
    /// Empty: every type.
    pub types: Vec<Pattern>,
    pub streams: StreamChoice,
}

/// A consumer, as its record holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    pub key: ConsumerKey,
    pub filter: ConsumerFilter,
    /// Versions that its events are converted to, by event type.
    pub versions: Vec<(EventType, VersionPin)>,
    /// Text for people; may be empty.
    pub description: Box<str>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Its place when this record was written, so that the record needs no earlier one.
    pub place: ConsumerPlace,
}

impl Consumer {
    /// The versions in which it reads events.
    #[must_use]
    pub fn version_choice(&self) -> VersionChoice {
        if self.versions.is_empty() {
            VersionChoice::AsPublished
        } else {
            VersionChoice::Pinned(self.versions.clone())
        }
    }
}

/// The progress of a consumer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsumerPlace {
    /// Everything up to this position is processed.
    pub position: Position,
    /// When it was last committed or reset. `None`: never.
    pub moved_at: Option<Timestamp>,
}

/// A request to move a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerMove {
    pub key: ConsumerKey,
    pub to: Position,
    pub kind: MoveKind,
    pub at: Timestamp,
}

/// The condition of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveKind {
    /// Progress: forward only.
    Commit,
    /// Progress from exactly this position. It fences out a second instance.
    CommitFrom(Position),
    /// An operator's choice: forward or back.
    Reset,
}

impl MoveKind {
    /// Whether a consumer at this position can move.
    #[must_use]
    pub fn allows(self, actual: Position, to: Position) -> bool {
        match self {
            Self::Commit => to >= actual,
            Self::CommitFrom(from) => from == actual && to >= actual,
            Self::Reset => true,
        }
    }
}

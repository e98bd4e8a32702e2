//! Requests and responses of consumers.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::http::problem::Errors;
use crate::api::text::{self, Time, parse_time};
use crate::api::v1::endpoints::settings::{check_versions, parse_patterns};
use crate::api::v1::event_types::pins;
use crate::api::v1::feed::query::{parse_cursor, parse_streams};
use crate::domain::{
    Consumer, ConsumerFilter, ConsumerKey, ConsumerPlace, Position, StreamChoice, Timestamp,
};
use crate::limits;
use crate::rules::feed::FeedStreams;
use crate::rules::patterns::canonical_list;
use crate::service::consumers::{ConsumerView, Start};
use crate::service::types::{ConsumerStatus, Lag};

/// A cursor of the feed, as text or as a number.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct CursorInput(Value);

impl JsonSchema for CursorInput {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Cursor".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "string", "pattern": "^[0-9]{1,19}$"},
            {"type": "integer", "minimum": 0},
        ]})
    }
}

impl CursorInput {
    /// The position of the cursor. Records what is wrong with it.
    pub(super) fn check(&self, pointer: &str, errors: &mut Errors) -> Position {
        let position = match &self.0 {
            Value::String(text) => parse_cursor(text).ok(),
            other => other.as_u64().map(Position).filter(|position| position.0 < 1 << 63),
        };
        position.unwrap_or_else(|| {
            errors.push(pointer, "must be a cursor of the feed, such as \"1240\"");
            Position(0)
        })
    }
}

/// A place to begin at.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct StartInput(Value);

impl JsonSchema for StartInput {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Start".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "string", "enum": ["oldest", "now"]},
            {"type": "string", "pattern": "^[0-9]{1,19}$"},
            {"type": "string", "format": "date-time"},
            {"type": "integer", "minimum": 0},
        ]})
    }
}

impl StartInput {
    pub(super) fn check(&self, pointer: &str, errors: &mut Errors) -> Start {
        let start = match &self.0 {
            Value::String(word) if word == "oldest" => Some(Start::Oldest),
            Value::String(word) if word == "now" => Some(Start::Now),
            Value::String(text) => {
                let cursor = parse_cursor(text).map(Start::After);
                cursor.ok().or_else(|| parse_time(text).ok().map(Start::At))
            }
            other => {
                other.as_u64().filter(|number| *number < 1 << 63).map(|number| Start::After(Position(number)))
            }
        };
        start.unwrap_or_else(|| {
            errors.push(pointer, "must be `oldest`, `now`, a cursor of the feed, or an RFC 3339 time");
            Start::Oldest
        })
    }
}

/// The definition of a consumer. Absent members have their defaults.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsumerInput {
    /// The tenant whose events it reads. Default: the key's; with a key of all tenants: all but the
    /// reserved one.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"))]
    pub(super) tenant: Option<String>,
    /// Topic patterns as in endpoints; default: every type.
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 255)))]
    pub(super) types: Option<Vec<String>>,
    /// Only this stream.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[^\x00-\x1f\x7f-\x9f]+$"))]
    pub(super) stream: Option<String>,
    /// Only streams whose name begins with this text; empty: all streams.
    #[schemars(length(max = 255), regex(pattern = r"^[^\x00-\x1f\x7f-\x9f]*$"))]
    pub(super) stream_prefix: Option<String>,
    /// Versions of event types that its events are converted to: a registered version, or `latest`.
    /// At most 100. Other types are read as published.
    pub(super) versions: Option<BTreeMap<String, String>>,
    /// Where a new consumer begins: `oldest` (the default), `now`, a cursor, or a time. An existing
    /// consumer keeps its position.
    pub(super) start: Option<StartInput>,
    /// At most 1,024 bytes.
    #[schemars(length(max = 1024))]
    pub(super) description: Option<String>,
}

impl ConsumerInput {
    /// Records problems in `errors`; the result is then meaningless.
    pub(super) fn check(self, key: ConsumerKey, now: Timestamp, errors: &mut Errors) -> (Consumer, Start) {
        let streams = parse_streams(self.stream.as_deref(), self.stream_prefix.as_deref());
        let streams = streams.unwrap_or_else(|(member, detail)| {
            errors.push(format!("/{member}"), detail);
            FeedStreams::All
        });
        let streams = match streams {
            FeedStreams::All => StreamChoice::Any,
            FeedStreams::One(stream) => StreamChoice::One(stream),
            FeedStreams::Prefix(prefix) => StreamChoice::Prefix(prefix),
        };
        let description = self.description.unwrap_or_default();
        if description.len() > limits::CONSUMER_DESCRIPTION_BYTES_MAX {
            let most = limits::CONSUMER_DESCRIPTION_BYTES_MAX;
            errors.push("/description", format!("at most {most} bytes"));
        }
        let types = canonical_list(&parse_patterns(self.types.as_deref(), "/types", errors));
        let start = self.start.map_or(Start::Oldest, |start| start.check("/start", errors));
        let consumer = Consumer {
            key,
            filter: ConsumerFilter { types, streams },
            versions: check_versions(self.versions.as_ref(), errors),
            description: description.into(),
            created_at: now,
            updated_at: now,
            place: ConsumerPlace::default(),
        };
        (consumer, start)
    }
}

/// A commit.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommitInput {
    /// Everything up to this cursor is processed.
    pub(super) position: CursorInput,
    /// The position that the consumer must have. A second instance that has committed in between
    /// makes this commit fail.
    pub(super) from: Option<CursorInput>,
}

/// A reset.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetInput {
    /// `oldest`, `now`, a cursor, or a time.
    pub(super) to: StartInput,
}

/// The events that a consumer has not committed yet.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LagBody {
    pub events: u64,
    /// Whether there may be more: only a part of the log was counted.
    pub at_least: bool,
    /// Age of the oldest of them; 0 without any. If the counted part has none and there may be
    /// more: age of the last event of that part.
    pub seconds: f64,
}

impl LagBody {
    pub(in crate::api::v1) fn new(lag: &Lag, now: Timestamp) -> Self {
        let age = lag.since.map(|since| now.since(since)).unwrap_or_default();
        Self { events: lag.events, at_least: lag.is_cut, seconds: text::seconds(age) }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerBody {
    pub name: String,
    /// Null: it reads the events of all tenants but the reserved one.
    pub tenant: Option<String>,
    /// Absent: every type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_prefix: Option<String>,
    /// Versions that its events are converted to, by event type.
    pub versions: BTreeMap<String, String>,
    pub description: String,
    /// Everything up to this cursor is processed.
    pub position: String,
    /// Only if retention has removed events after `position`: the first cursor to reset it to. The
    /// lag does not count the removed ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest: Option<String>,
    pub lag: LagBody,
    /// Time of the last commit or reset.
    pub committed_at: Option<Time>,
    /// Open requests for its events.
    pub connections: usize,
    pub created_at: Time,
    pub updated_at: Time,
}

impl ConsumerBody {
    pub(super) fn new(view: &ConsumerView, now: Timestamp) -> Self {
        let ConsumerView { status: ConsumerStatus { consumer, place }, lag, oldest, connections } = view;
        let (stream, stream_prefix) = match &consumer.filter.streams {
            StreamChoice::Any => (None, None),
            StreamChoice::One(stream) => (Some(stream.to_string()), None),
            StreamChoice::Prefix(prefix) => (None, Some(prefix.to_string())),
        };
        Self {
            name: consumer.key.name.to_string(),
            tenant: consumer.key.tenant.as_ref().map(ToString::to_string),
            types: consumer.filter.types.iter().map(ToString::to_string).collect(),
            stream,
            stream_prefix,
            versions: pins::body(&consumer.versions),
            description: consumer.description.to_string(),
            position: place.position.to_string(),
            oldest: oldest.map(|oldest| oldest.to_string()),
            lag: LagBody::new(lag, now),
            committed_at: place.moved_at.map(Time),
            connections: *connections,
            created_at: Time(consumer.created_at),
            updated_at: Time(consumer.updated_at),
        }
    }
}

/// The place of a consumer after a commit.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlaceBody {
    pub name: String,
    pub position: String,
    pub committed_at: Option<Time>,
}

impl PlaceBody {
    pub(super) fn new(status: &ConsumerStatus) -> Self {
        Self {
            name: status.consumer.key.name.to_string(),
            position: status.place.position.to_string(),
            committed_at: status.place.moved_at.map(Time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_is_a_word_a_cursor_or_a_time() {
        let check = |value: Value| {
            let mut errors = Errors::default();
            let start = StartInput(value).check("/start", &mut errors);
            errors.finish().map(|()| start)
        };
        assert_eq!(check("oldest".into()), Ok(Start::Oldest));
        assert_eq!(check("now".into()), Ok(Start::Now));
        assert_eq!(check("7".into()), Ok(Start::After(Position(7))));
        assert_eq!(check(7.into()), Ok(Start::After(Position(7))));
        let time = Timestamp::from_millis(1_773_398_100_000);
        assert_eq!(check("2026-03-13T10:35:00Z".into()), Ok(Start::At(time)));
        for bad in [Value::Null, (-1).into(), 1.5.into(), "Oldest".into(), "".into(), "later".into()] {
            assert!(check(bad.clone()).is_err(), "{bad}");
        }
    }
}

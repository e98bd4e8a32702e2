//! Requests and responses of events.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::api::text::{Time, Word};
use crate::api::v1::deliveries::model::DeliveryBody;
use crate::domain::{Audience, Event, EventStatus, EventVersion, Expected, Label, Position, attribute};
use crate::service::types::{AcceptedEvent, EventView, FeedEvent, generated_at, has_publisher_id};

/// An event to publish.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EventInput<'a> {
    /// Dot-separated words, at most 255 bytes.
    #[serde(rename = "type", borrow)]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"))]
    pub(in crate::api::v1) event_type: Cow<'a, str>,
    /// Any JSON value; delivered byte for byte.
    #[serde(borrow)]
    #[schemars(with = "serde_json::Value")]
    pub(in crate::api::v1) data: &'a RawValue,
    /// Unique per tenant. Repeating an id returns the original event. Default: generated.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9_-]+$"))]
    pub(in crate::api::v1) id: Option<String>,
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"))]
    pub(in crate::api::v1) tenant: Option<String>,
    /// When the event happened; default: the time of acceptance.
    #[schemars(extend("format" = "date-time"))]
    pub(in crate::api::v1) timestamp: Option<String>,
    /// Version of the data's schema; default: `1.0`.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"))]
    pub(in crate::api::v1) version: Option<String>,
    /// The stream to append to. Its events have dense versions from 1.
    #[schemars(length(min = 1, max = 255))]
    pub(in crate::api::v1) stream: Option<String>,
    /// The expected version of the stream; requires `stream`.
    pub(in crate::api::v1) expected_version: Option<ExpectedVersion>,
    /// Default: the stream.
    #[schemars(length(min = 1, max = 255))]
    pub(in crate::api::v1) ordering_key: Option<String>,
    /// The earliest time of delivery.
    #[schemars(extend("format" = "date-time"))]
    pub(in crate::api::v1) deliver_at: Option<String>,
    /// Stored with the event, but not delivered.
    #[serde(borrow)]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub(in crate::api::v1) metadata: Option<&'a RawValue>,
    /// By which endpoints with `labels` select events. At most 10, not delivered.
    #[schemars(length(max = 10), inner(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_.:-]+$")))]
    pub(in crate::api::v1) labels: Option<Vec<String>>,
}

/// A number, `"none"`, `"exists"` or `"any"`.
#[derive(Clone, Copy, Debug)]
pub struct ExpectedVersion(pub(in crate::api::v1) Expected);

impl<'de> Deserialize<'de> for ExpectedVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl Visitor<'_> for Words {
            type Value = Expected;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a positive version, \"none\", \"exists\" or \"any\"")
            }

            fn visit_u64<E: de::Error>(self, version: u64) -> Result<Expected, E> {
                if version == 0 {
                    return Err(E::custom(
                        "versions count from 1; \"none\" means that the stream must not exist",
                    ));
                }
                Ok(Expected::Version(version))
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Expected, E> {
                match word {
                    "none" => Ok(Expected::NoStream),
                    "exists" => Ok(Expected::Exists),
                    "any" => Ok(Expected::Any),
                    _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
                }
            }
        }
        deserializer.deserialize_any(Words).map(Self)
    }
}

impl JsonSchema for ExpectedVersion {
    fn schema_name() -> Cow<'static, str> {
        "ExpectedVersion".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"oneOf": [{"type": "integer", "minimum": 1}, {"type": "string", "enum": ["none", "exists", "any"]}]})
    }
}

/// For the OpenAPI document.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "its schema is read, never its value")]
pub struct BatchSchema<'a> {
    /// 1 to 1,000 events.
    #[schemars(length(min = 1, max = 1000))]
    events: Vec<EventInput<'a>>,
    /// Accept all events, or none. Default: each event is independent.
    atomic: Option<bool>,
    /// Conditions on streams; require `atomic`.
    #[schemars(length(max = 1000))]
    checks: Option<Vec<BatchCheckInput>>,
}

/// A condition on a stream.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BatchCheckInput {
    #[schemars(length(min = 1, max = 255))]
    pub(super) stream: String,
    pub(super) expected_version: ExpectedVersion,
    /// Default: the tenant of events without one.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"))]
    pub(super) tenant: Option<String>,
}

/// For the OpenAPI document.
#[derive(Serialize, JsonSchema)]
pub struct BatchAnswer {
    /// One per event, in order: as of `POST /v1/events` with `status` 202, or a problem.
    pub results: Vec<serde_json::Map<String, serde_json::Value>>,
}

/// The response to an event, or to a batch of CloudEvents.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum PublishBody {
    Event(AcceptedBody<'static>),
    Batch(BatchAnswer),
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EventReplayInput {
    /// Default: the endpoints that the event matches now.
    #[schemars(
        length(min = 1, max = 1000),
        inner(length(min = 1, max = 64), regex(pattern = "^[A-Za-z0-9_-]+$"))
    )]
    pub(super) endpoint_ids: Option<Vec<String>>,
}

/// The response for a published event.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcceptedBody<'a> {
    /// 202; only in the results of a batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    pub id: &'a str,
    #[serde(rename = "type")]
    pub event_type: &'a str,
    pub tenant: &'a str,
    pub timestamp: Time,
    pub version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<&'a str>,
    /// The event's version in its stream, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_version: Option<u64>,
    /// The event's position in the journal.
    pub position: u64,
    /// The number of deliveries.
    pub deliveries: usize,
    /// Whether an earlier request with the same key or id published this event.
    pub duplicate: bool,
    pub status_url: String,
}

impl<'a> AcceptedBody<'a> {
    /// `default_tenant`: the tenant for id lookups without `?tenant=`.
    pub fn new(accepted: &'a AcceptedEvent, deliveries: usize, default_tenant: &str) -> Self {
        let event = &*accepted.event;
        Self {
            status: None,
            id: event.id.as_str(),
            event_type: event.event_type.as_str(),
            tenant: event.tenant.as_str(),
            timestamp: Time(event.timestamp),
            version: event.version.as_str(),
            stream: event.stream.as_ref().map(|(name, _)| name.as_str()),
            stream_version: event.stream.as_ref().map(|(_, version)| *version),
            position: accepted.position.0,
            deliveries,
            duplicate: accepted.duplicate,
            status_url: event_url(event, default_tenant),
        }
    }
}

/// The URL of the event. It names the tenant of a publisher id if that is not the default, or if
/// the id has the form of a generated one, which is looked up first.
#[must_use]
pub fn event_url(event: &Event, default_tenant: &str) -> String {
    let is_ambiguous = event.tenant.as_str() != default_tenant || generated_at(&event.id).is_some();
    if is_ambiguous && has_publisher_id(event) {
        format!("/v1/events/{}?tenant={}", event.id, event.tenant)
    } else {
        format!("/v1/events/{}", event.id)
    }
}

/// An event as it is in the log: without its deliveries.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogEventBody<'a> {
    pub id: &'a str,
    #[serde(rename = "type")]
    pub event_type: &'a str,
    pub tenant: &'a str,
    pub timestamp: Time,
    pub accepted_at: Time,
    pub version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ordering_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deliver_at: Option<Time>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub metadata: Option<&'a RawValue>,
    /// `traceparent`, `balto-hops` (the number of Balto instances that the event has passed),
    /// `balto-test-type` (the type whose example a test event has), and attributes of a CloudEvent
    /// without a member here. `data_base64` is true if `data` is base64.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<&'a str, Value>,
    /// As published, or converted to `version`; null if the event was erased.
    #[schemars(with = "serde_json::Value")]
    pub data: Option<&'a RawValue>,
    /// When the event was erased: `data` is null; `metadata`, `labels` and most `attributes` are
    /// absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub erased_at: Option<Time>,
    /// The version as published, if `versions` asks for another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_version: Option<&'a str>,
    /// Why the event is not in the version that `versions` asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversion_error: Option<&'a str>,
    /// The event's position in the log.
    pub position: u64,
}

impl<'a> LogEventBody<'a> {
    #[must_use]
    pub fn new(position: Position, event: &'a Event) -> Self {
        Self {
            id: event.id.as_str(),
            event_type: event.event_type.as_str(),
            tenant: event.tenant.as_str(),
            timestamp: Time(event.timestamp),
            accepted_at: Time(event.accepted_at),
            version: event.version.as_str(),
            stream: event.stream.as_ref().map(|(name, _)| name.as_str()),
            stream_version: event.stream.as_ref().map(|(_, version)| *version),
            ordering_key: event.ordering_key.as_ref().map(|key| key.as_str()),
            deliver_at: event.deliver_at.map(Time),
            labels: event.labels.iter().map(Label::as_str).collect(),
            metadata: event.metadata.as_deref().and_then(raw),
            attributes: attributes(event),
            data: raw(&event.data),
            erased_at: event.erased_at.map(Time),
            stored_version: None,
            conversion_error: None,
            position: position.0,
        }
    }

    /// The event in the version that a reader wants.
    #[must_use]
    pub fn of_feed(entry: &'a FeedEvent) -> Self {
        Self {
            stored_version: entry.stored_version.as_ref().map(EventVersion::as_str),
            conversion_error: entry.conversion_error.as_deref(),
            ..Self::new(entry.position, &entry.event)
        }
    }
}

/// An event with its deliveries.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventBody<'a> {
    #[serde(flatten)]
    pub event: LogEventBody<'a>,
    /// `pending` while any delivery is pending. Then `delivered` if all deliveries succeeded,
    /// `partial` if some did, `failed` if none did, or `unmatched` if there are none. Dead and
    /// cancelled deliveries did not succeed.
    #[schemars(with = "Word<EventStatus>")]
    pub status: &'static str,
    pub deliveries: Vec<DeliveryBody>,
}

impl<'a> EventBody<'a> {
    #[must_use]
    pub fn new(view: &'a EventView, audience: Audience) -> Self {
        Self {
            event: LogEventBody::new(view.position, &view.event),
            status: view.status,
            deliveries: view.deliveries.iter().map(|view| DeliveryBody::new(view, audience)).collect(),
        }
    }
}

/// The event of a dead letter.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LetterEventBody<'a> {
    pub id: &'a str,
    #[serde(rename = "type")]
    pub event_type: &'a str,
    pub tenant: &'a str,
    pub timestamp: Time,
    pub version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub metadata: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<&'a str, Value>,
    #[schemars(with = "serde_json::Value")]
    pub data: Option<&'a RawValue>,
}

/// The event's attributes with their original JSON types.
pub(in crate::api) fn attributes(event: &Event) -> BTreeMap<&str, Value> {
    let json = |(name, value): &'_ (Box<str>, Box<str>)| match name.strip_suffix(attribute::NOT_TEXT) {
        Some(_) => serde_json::from_str(value).unwrap_or_default(),
        None if **name == *attribute::BINARY => Value::Bool(true),
        None => Value::from(&**value),
    };
    let names = event.attributes.iter().map(|(name, _)| name.trim_end_matches(attribute::NOT_TEXT));
    names.zip(event.attributes.iter().map(json)).collect()
}

/// Stored JSON, as it is.
pub(in crate::api) fn raw(bytes: &[u8]) -> Option<&RawValue> {
    serde_json::from_slice(bytes).ok()
}

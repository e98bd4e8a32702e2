//! Responses of the feed.

use std::collections::BTreeMap;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::api::text::Time;
use crate::api::v1::events::model::{attributes, raw};
use crate::domain::{Event, Position};
use crate::service::types::{FeedEvent, FeedPage};

/// An event of the feed, or of a stream: without its deliveries.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FeedEventBody<'a> {
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
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub metadata: Option<&'a RawValue>,
    /// As those of `GET /v1/events/{id}`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<&'a str, Value>,
    /// As published; null if the event was erased.
    #[schemars(with = "serde_json::Value")]
    pub data: Option<&'a RawValue>,
    /// When the event was erased: `data` is null, and `metadata` and most `attributes` are absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub erased_at: Option<Time>,
    /// The event's position in the log.
    pub position: u64,
}

impl<'a> FeedEventBody<'a> {
    #[must_use]
    pub fn new(entry: &'a FeedEvent) -> Self {
        Self::of(entry.position, &entry.event)
    }

    #[must_use]
    pub fn of(position: Position, event: &'a Event) -> Self {
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
            metadata: event.metadata.as_deref().and_then(raw),
            attributes: attributes(event),
            data: raw(&event.data),
            erased_at: event.erased_at.map(Time),
            position: position.0,
        }
    }
}

/// The JSON of an event. All readers share it.
#[must_use]
pub fn json(entry: &FeedEvent) -> &Bytes {
    entry.json.get_or_init(|| {
        let body = serde_json::to_vec(&FeedEventBody::new(entry));
        // Strings, numbers and JSON that was checked before: this cannot fail.
        body.unwrap_or_else(|_| b"null".to_vec()).into()
    })
}

/// A page of the feed.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FeedBody<'a> {
    /// Oldest first.
    pub data: Vec<FeedEventBody<'a>>,
    /// The cursor after this page. It moves on even if no event matched.
    pub next: String,
    /// The cursor of the log's end.
    pub head: String,
    /// Whether this page ends at `head`.
    pub caught_up: bool,
}

/// The JSON of a page: that of [`FeedBody`], from the shared encodings of its events.
#[must_use]
pub fn page_json(page: &FeedPage) -> Vec<u8> {
    let bytes: usize = page.events.iter().map(|event| json(event).len() + 1).sum();
    let mut body = Vec::with_capacity(bytes + 96);
    body.extend_from_slice(b"{\"data\":[");
    for (number, event) in page.events.iter().enumerate() {
        if number > 0 {
            body.push(b',');
        }
        body.extend_from_slice(json(event));
    }
    let (next, head, caught_up) = (page.next, page.head, page.is_caught_up());
    let rest = format!("],\"next\":\"{next}\",\"head\":\"{head}\",\"caughtUp\":{caught_up}}}");
    body.extend_from_slice(rest.as_bytes());
    body
}

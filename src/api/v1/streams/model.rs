//! Requests and responses of streams.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::api::text::Time;
use crate::api::v1::events::model::LogEventBody;
use crate::api::v1::events::model::{EventInput, ExpectedVersion, event_url};
use crate::domain::{Position, StreamName, Tenant};
use crate::service::atomic::{StreamCheck, last_version};
use crate::service::stream_states::{FoldedState, StateProblem};
use crate::service::streams::StreamPage;
use crate::service::types::{AcceptedEvent, Head};

/// An event to append.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StreamEventInput<'a> {
    /// Dot-separated words, at most 255 bytes.
    #[serde(rename = "type", borrow)]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"))]
    event_type: Cow<'a, str>,
    /// Any JSON value; delivered byte for byte.
    #[serde(borrow)]
    #[schemars(with = "serde_json::Value")]
    data: &'a RawValue,
    /// Unique per tenant. Repeating an append whose events all have ids returns the original one.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9_-]+$"))]
    id: Option<String>,
    /// Version of the data's schema; default: `1.0`.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"))]
    version: Option<String>,
    /// When the event happened; default: the time of acceptance.
    #[schemars(extend("format" = "date-time"))]
    timestamp: Option<String>,
    /// Stored with the event, but not delivered.
    #[serde(borrow)]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    metadata: Option<&'a RawValue>,
    /// Default: the stream.
    #[schemars(length(min = 1, max = 255))]
    ordering_key: Option<String>,
    /// The earliest time of delivery.
    #[schemars(extend("format" = "date-time"))]
    deliver_at: Option<String>,
    /// By which endpoints with `labels` select events. At most 10, not delivered.
    #[schemars(length(max = 10), inner(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_.:-]+$")))]
    labels: Option<Vec<String>>,
}

impl<'a> StreamEventInput<'a> {
    pub(super) fn into_event(self, tenant: &Tenant, stream: &StreamName) -> EventInput<'a> {
        EventInput {
            event_type: self.event_type,
            data: self.data,
            id: self.id,
            tenant: Some(tenant.to_string()),
            timestamp: self.timestamp,
            version: self.version,
            stream: Some(stream.to_string()),
            expected_version: None,
            ordering_key: self.ordering_key,
            deliver_at: self.deliver_at,
            metadata: self.metadata,
            labels: self.labels,
        }
    }
}

/// A condition on another stream of the tenant.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CheckInput {
    #[schemars(length(min = 1, max = 255))]
    pub(super) stream: String,
    pub(super) expected_version: ExpectedVersion,
}

impl CheckInput {
    pub(super) fn check(&self, tenant: &Tenant, stream: StreamName) -> StreamCheck {
        StreamCheck { tenant: tenant.clone(), stream, expected: self.expected_version.0 }
    }
}

/// For the OpenAPI document.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "its schema is read, never its value")]
pub struct AppendSchema<'a> {
    /// 1 to 1,000 events. All are accepted, or none.
    #[schemars(length(min = 1, max = 1000))]
    events: Vec<StreamEventInput<'a>>,
    /// The version that the stream must have before the append; default: `any`.
    expected_version: Option<ExpectedVersion>,
    /// Conditions on other streams, which the append leaves unchanged.
    #[schemars(length(max = 1000))]
    checks: Option<Vec<CheckInput>>,
}

/// An appended event.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppendedEventBody<'a> {
    pub id: &'a str,
    pub stream_version: u64,
    pub position: u64,
    pub status_url: String,
}

/// The response to an append.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppendBody<'a> {
    pub stream: &'a str,
    /// The version of the last appended event.
    pub version: u64,
    /// The position of the last appended event.
    pub position: u64,
    /// Whether an earlier request with the same key or ids appended the events.
    pub duplicate: bool,
    pub events: Vec<AppendedEventBody<'a>>,
}

impl<'a> AppendBody<'a> {
    /// `default_tenant`: the tenant for id lookups without `?tenant=`.
    pub fn new(stream: &'a StreamName, events: &'a [AcceptedEvent], default_tenant: &str) -> Self {
        let (version, position) = last_version(events).unwrap_or((0, Position(0)));
        let body = |accepted: &'a AcceptedEvent| AppendedEventBody {
            id: accepted.event.id.as_str(),
            stream_version: accepted.event.stream.as_ref().map_or(0, |(_, version)| *version),
            position: accepted.position.0,
            status_url: event_url(&accepted.event, default_tenant),
        };
        Self {
            stream: stream.as_str(),
            version,
            position: position.0,
            duplicate: events.iter().all(|accepted| accepted.duplicate),
            events: events.iter().map(body).collect(),
        }
    }
}

/// The head of a stream.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamBody<'a> {
    pub stream: &'a str,
    pub tenant: &'a str,
    /// The version of the last event, from 1.
    pub version: u64,
    /// The first version that can be read. Above `version` if retention has removed all events.
    pub first_version: u64,
    /// When the first event was accepted.
    pub first_at: Time,
    /// When the last event was accepted.
    pub last_at: Time,
    /// The position of the last event.
    pub position: u64,
}

impl<'a> StreamBody<'a> {
    #[must_use]
    pub fn new(tenant: &'a Tenant, stream: &'a StreamName, head: &Head) -> Self {
        Self {
            stream: stream.as_str(),
            tenant: tenant.as_str(),
            version: head.version,
            first_version: head.first_version,
            first_at: Time(head.first_at),
            last_at: Time(head.last_at),
            position: head.last.0,
        }
    }
}

/// A page of a stream's events.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamPageBody<'a> {
    pub stream: &'a str,
    /// The version of the stream's last event.
    pub version: u64,
    /// The first version that can be read.
    pub first_version: u64,
    /// In the order of the direction.
    pub data: Vec<LogEventBody<'a>>,
    /// `fromVersion` of the next page; null if there is none.
    pub next_version: Option<u64>,
}

impl<'a> StreamPageBody<'a> {
    #[must_use]
    pub fn new(stream: &'a StreamName, page: &'a StreamPage) -> Self {
        Self {
            stream: stream.as_str(),
            version: page.head.version,
            first_version: page.head.first_version,
            data: page.events.iter().map(|entry| LogEventBody::of_feed(entry)).collect(),
            next_version: page.next_version,
        }
    }
}

/// The state of a stream at a version.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamStateBody<'a> {
    pub stream: &'a str,
    /// The version of the last event that the state has; 0 before the first one.
    pub version: u64,
    /// The position of that event; 0 before the first one.
    pub position: u64,
    /// The events, folded by the rules of their types; null without rules.
    #[schemars(with = "serde_json::Value")]
    pub state: Option<&'a RawValue>,
    /// Events that did not change the state as the rules of their type say. The first 100.
    pub problems: Vec<StateProblemBody<'a>>,
}

/// An event that did not change the state as the rules of its type say.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StateProblemBody<'a> {
    /// The version of the event in the stream.
    pub version: u64,
    #[serde(rename = "type")]
    pub event_type: &'a str,
    pub detail: &'a str,
}

impl<'a> StreamStateBody<'a> {
    #[must_use]
    pub fn new(stream: &'a StreamName, folded: &'a FoldedState) -> Self {
        let problem = |problem: &'a StateProblem| StateProblemBody {
            version: problem.version,
            event_type: problem.event_type.as_str(),
            detail: &problem.detail,
        };
        Self {
            stream: stream.as_str(),
            version: folded.version,
            position: folded.position.0,
            state: serde_json::from_str(&folded.state).ok(),
            problems: folded.problems.iter().map(problem).collect(),
        }
    }
}

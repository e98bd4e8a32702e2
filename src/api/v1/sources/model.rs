//! Requests and responses of sources.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::http::body::object;
use crate::api::text::{Time, Word};
use crate::domain::{
    Dedup, OnInvalid, Source, SourceFormat, SourceOutcome, SourceQueueType, SourceState, SourceStatus,
    SourceTenant,
};
use crate::service::sources::SourceView;

/// The input of a creation. Unlike a change, it requires `name`, `url` and `queue`.
#[derive(Deserialize)]
#[serde(transparent)]
pub struct NewSourceInput(pub SourceInput);

impl JsonSchema for NewSourceInput {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "NewSourceInput".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let text = json_schema!({"type": "string"});
        let required = json_schema!({"type": "object", "required": ["name", "url", "queue"],
            "properties": {"name": text, "url": text, "queue": text}});
        json_schema!({"allOf": [generator.subschema_for::<SourceInput>(), required]})
    }
}

/// The members of a new or patched source. Absent and null members have their defaults.
#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceInput {
    /// Cannot be changed.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9_.-]+$"))]
    pub(super) name: Option<String>,
    /// Default: `amqp`, the only one.
    #[schemars(extend("enum" = ["amqp", null]))]
    pub(super) kind: Option<String>,
    /// `amqps://host:port/vhost`. User name and password in it are moved to their members.
    #[schemars(length(min = 1, max = 2048))]
    pub(super) url: Option<String>,
    /// Default: `guest`, with the password `guest`.
    #[schemars(length(min = 1, max = 1024))]
    pub(super) username: Option<String>,
    /// Write-only. Required with `username`, except in a change that keeps the broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), extend("writeOnly" = true))]
    pub(super) password: Option<String>,
    /// The queue to consume.
    #[schemars(length(min = 1, max = 255))]
    pub(super) queue: Option<String>,
    /// Kind of queue to declare: `quorum` (default) or `classic`.
    #[schemars(extend("enum" = ["quorum", "classic", null]))]
    pub(super) queue_type: Option<String>,
    /// The topic exchange that the queue is bound to. Default: the queue is not bound.
    #[schemars(length(min = 1, max = 255))]
    pub(super) exchange: Option<String>,
    /// Topic patterns of the bindings; default: `#`. Removing one does not unbind it.
    #[schemars(length(min = 1, max = 64), inner(length(max = 255)))]
    pub(super) bindings: Option<Vec<String>>,
    /// Whether exchange, queue and bindings are declared, durable. Default: true.
    pub(super) declare: Option<bool>,
    /// Most unacknowledged messages; default 500.
    #[schemars(range(min = 1, max = 10_000))]
    pub(super) prefetch: Option<u64>,
    /// The tenant of the events, or the header that names it. Default: `default`.
    #[schemars(with = "Option<TenantMember>")]
    pub(super) tenant: Option<Value>,
    /// `auto` (default): a CloudEvent, an envelope with `id`, `type` and `data`, or the data alone;
    /// `envelope`; or `raw`: the data, with the routing key as the type.
    #[schemars(extend("enum" = ["auto", "envelope", "raw", null]))]
    pub(super) format: Option<String>,
    /// The header with the event's stream.
    #[serde(default, deserialize_with = "object")]
    pub(super) stream: Option<HeaderMember>,
    /// The header with the event's ordering key.
    #[serde(default, deserialize_with = "object")]
    pub(super) ordering_key: Option<HeaderMember>,
    /// `park` (default): an invalid message becomes the operator event `balto.source.rejected`;
    /// or `reject`: the broker drops it, or moves it to the queue's dead-letter exchange.
    #[schemars(extend("enum" = ["park", "reject", null]))]
    pub(super) on_invalid: Option<String>,
    /// `messageId` (default): the property `message-id` identifies an event; or `none`.
    #[schemars(extend("enum" = ["messageId", "none", null]))]
    pub(super) dedup: Option<String>,
}

impl fmt::Debug for SourceInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SourceInput({:?})", self.name)
    }
}

/// Names a header of messages.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeaderMember {
    #[schemars(length(min = 1, max = 255))]
    pub(super) header: String,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes a member")]
enum TenantMember {
    Name(String),
    Header(HeaderMember),
}

/// A source.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceBody {
    pub name: String,
    pub kind: &'static str,
    pub url: String,
    pub username: String,
    pub queue: String,
    #[schemars(with = "Word<SourceQueueType>")]
    pub queue_type: &'static str,
    pub exchange: Option<String>,
    pub bindings: Vec<String>,
    pub declare: bool,
    pub prefetch: u16,
    #[schemars(with = "TenantMember")]
    pub tenant: Value,
    #[schemars(with = "Word<SourceFormat>")]
    pub format: &'static str,
    pub stream: Option<HeaderMember>,
    pub ordering_key: Option<HeaderMember>,
    #[schemars(with = "Word<OnInvalid>")]
    pub on_invalid: &'static str,
    #[schemars(with = "Word<Dedup>")]
    pub dedup: &'static str,
    #[schemars(with = "Word<SourceStatus>")]
    pub status: &'static str,
    /// Its connection now.
    #[schemars(with = "Word<SourceState>")]
    pub state: &'static str,
    /// Start of the state.
    pub since: Time,
    pub last_error: Option<String>,
    pub last_error_at: Option<Time>,
    /// Connections since the start of the daemon.
    pub connections: u64,
    pub messages: SourceMessagesBody,
    pub created_at: Time,
    pub updated_at: Time,
}

/// Messages since the start of the daemon.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceMessagesBody {
    pub accepted: u64,
    /// Messages that repeat an event.
    pub duplicates: u64,
    /// Invalid messages that became operator events.
    pub parked: u64,
    /// Invalid messages that were rejected.
    pub rejected: u64,
    /// Messages of the current batch: received, and not yet durable.
    pub unacknowledged: u64,
    pub last_at: Option<Time>,
}

fn header_member(header: Option<&str>) -> Option<HeaderMember> {
    header.map(|header| HeaderMember { header: header.to_owned() })
}

impl SourceBody {
    #[must_use]
    pub fn new(view: &SourceView) -> Self {
        let SourceView { source, report } = view;
        let report = report.as_ref();
        let is_paused = source.status == SourceStatus::Paused;
        let fallback = if is_paused { SourceState::Paused } else { SourceState::Connecting };
        let state = report.map_or(fallback, |report| report.state);
        let count = |outcome| report.map_or(0, |report| report.count(outcome));
        let error = report.and_then(|report| report.last_error.as_ref());
        Self {
            name: source.name.to_string(),
            kind: "amqp",
            url: source.url.to_string(),
            username: source.username.to_string(),
            queue: source.queue.to_string(),
            queue_type: source.queue_type.as_str(),
            exchange: source.exchange.as_ref().map(ToString::to_string),
            bindings: source.bindings.iter().map(ToString::to_string).collect(),
            declare: source.declares,
            prefetch: source.prefetch,
            tenant: match &source.tenant {
                SourceTenant::Fixed(tenant) => Value::from(tenant.as_str()),
                SourceTenant::Header(header) => serde_json::json!({ "header": header }),
            },
            format: source.format.as_str(),
            stream: header_member(source.stream_header.as_deref()),
            ordering_key: header_member(source.ordering_key_header.as_deref()),
            on_invalid: source.on_invalid.as_str(),
            dedup: source.dedup.as_str(),
            status: source.status.as_str(),
            state: state.as_str(),
            since: Time(report.map_or(source.updated_at, |report| report.since)),
            last_error: error.map(|(_, text)| text.to_string()),
            last_error_at: error.map(|(at, _)| Time(*at)),
            connections: report.map_or(0, |report| report.connections),
            messages: SourceMessagesBody {
                accepted: count(SourceOutcome::Accepted),
                duplicates: count(SourceOutcome::Duplicate),
                parked: count(SourceOutcome::Parked),
                rejected: count(SourceOutcome::Rejected),
                unacknowledged: report.map_or(0, |report| report.unacknowledged),
                last_at: report.and_then(|report| report.last_message_at).map(Time),
            },
            created_at: Time(source.created_at),
            updated_at: Time(source.updated_at),
        }
    }

    /// The members to which a merge patch is applied.
    pub(super) fn into_input(self, source: &Source) -> SourceInput {
        SourceInput {
            name: Some(self.name),
            kind: Some(self.kind.to_owned()),
            url: Some(self.url),
            username: Some(self.username),
            password: None,
            queue: Some(self.queue),
            queue_type: Some(self.queue_type.to_owned()),
            exchange: self.exchange,
            bindings: Some(self.bindings).filter(|bindings| !bindings.is_empty()),
            declare: Some(self.declare),
            prefetch: Some(u64::from(source.prefetch)),
            tenant: Some(self.tenant),
            format: Some(self.format.to_owned()),
            stream: self.stream,
            ordering_key: self.ordering_key,
            on_invalid: Some(self.on_invalid.to_owned()),
            dedup: Some(self.dedup.to_owned()),
        }
    }
}

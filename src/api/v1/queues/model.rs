//! Requests and responses of queues.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::api::http::body::object;
use crate::api::text::{Time, Word, format_duration};
use crate::api::v1::PercentilesBody;
use crate::api::v1::endpoints::selection::{filter_body, filter_member, labels_body};
use crate::api::v1::endpoints::settings::word_of;
use crate::api::v1::event_types::pins;
use crate::api::v1::lists::OWNER_WORDS;
use crate::api::v1::queues::settings::{NO_AGE, ORDERINGS, QUEUE_FORMATS};
use crate::domain::{Endpoint, EndpointStatus, PolicyDefaults, RetryPolicy};
use crate::service::leases::{ReceiptResult, ReceiptStatus};
use crate::service::receipts::Receipt;
use crate::service::types::WaitReason;

/// The input of a creation. Unlike a change, it requires `name`.
#[derive(Deserialize)]
#[serde(transparent)]
pub struct NewQueueInput(pub QueueInput);

impl JsonSchema for NewQueueInput {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "NewQueueInput".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let name = json_schema!({"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}});
        json_schema!({"allOf": [generator.subschema_for::<QueueInput>(), name]})
    }
}

/// The members of a new or patched queue. Absent and null members have their defaults.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueueInput {
    /// Unique per tenant. Cannot be changed.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9_.-]+$"))]
    pub name: Option<String>,
    /// Default: `default`. `*`: the queue takes the events of all tenants but `balto`; only for
    /// keys without a tenant. Cannot be changed.
    #[schemars(length(min = 1, max = 255), regex(pattern = OWNER_WORDS))]
    pub tenant: Option<String>,
    /// At most 1,024 bytes.
    #[schemars(length(max = 1024))]
    pub description: Option<String>,
    /// Topic patterns: `*` is one word, `#` is any number of words. Default: all types.
    #[schemars(
        length(min = 1, max = 256),
        inner(regex(pattern = r"^([A-Za-z0-9_-]+|[*#])(\.([A-Za-z0-9_-]+|[*#]))*$"))
    )]
    pub event_types: Option<Vec<String>>,
    /// Conditions on the content of events: an object with paths that begin with `data`,
    /// `metadata`, `type`, `version`, `stream`, `orderingKey`, `labels` or `attributes`, and the
    /// operators `$eq $ne $in $nin $gt $gte $lt $lte $exists $startsWith $endsWith $or $and $not`;
    /// at most 8 KiB. Decided when an event is accepted. A change replaces it as a whole.
    #[serde(default, deserialize_with = "filter_member")]
    pub filter: Option<Map<String, Value>>,
    /// Only events with one of these labels. Default: all events.
    #[schemars(length(max = 10), inner(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_.:-]+$")))]
    pub labels: Option<Vec<String>>,
    /// Time of a new lease, 100ms to `maxLease`; default 30s. A message that is not acknowledged in
    /// this time may go to another worker.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub visibility: Option<String>,
    /// Deliveries of a message before it becomes a dead letter; default 20.
    #[schemars(range(min = 1, max = 1000))]
    pub max_deliveries: Option<u64>,
    /// `none`, `key` (one message at a time per ordering key, in order) or `queue` (one message at
    /// a time). A change reaches leased messages when their lease ends.
    #[schemars(extend("enum" = ["none", "key", "queue", null]))]
    pub ordering: Option<String>,
    /// When a message is due again after a `nack` without a delay.
    #[serde(default, deserialize_with = "object")]
    pub retry: Option<QueueRetryInput>,
    /// Maximum number of messages under lease; default 10,000.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_leased: Option<u64>,
    /// Longest time from the start of a lease to its end, extensions included: 100ms to 24h;
    /// default 12h.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub max_lease: Option<String>,
    /// A message older than this becomes a dead letter instead of being delivered, 1s to 365d.
    /// Default: no limit.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub max_age: Option<String>,
    /// Format of the events: `standard`, or `cloudevents` (1.0, structured mode).
    #[schemars(extend("enum" = ["standard", "cloudevents", null]))]
    pub format: Option<String>,
    /// Versions of event types that messages are converted to: a registered version, or `latest`.
    /// At most 100. Other types are received as published.
    pub versions: Option<BTreeMap<String, String>>,
    /// Any object, at most 16 KiB.
    pub metadata: Option<Map<String, Value>>,
}

/// The delays after failed deliveries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueueRetryInput {
    /// Delay after the first failure, 1ms to 30d; default 1s.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub(super) initial: Option<String>,
    /// Default 2.
    #[schemars(range(min = 1, max = 100))]
    pub(super) multiplier: Option<f64>,
    /// Maximum delay, `initial` to 30d; default 5m.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub(super) max_interval: Option<String>,
    /// Random variation of a delay, as a fraction of it; default 0.2.
    #[schemars(range(min = 0, max = 1))]
    pub(super) jitter: Option<f64>,
}

/// A queue. Every member has its value in effect.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueBody {
    pub name: String,
    pub id: String,
    pub tenant: String,
    pub description: String,
    pub event_types: Vec<String>,
    /// Null: any content.
    pub filter: Option<Map<String, Value>>,
    /// Empty: all events.
    pub labels: Vec<String>,
    pub visibility: String,
    pub max_deliveries: u32,
    #[schemars(extend("enum" = ["none", "key", "queue"]))]
    pub ordering: &'static str,
    pub retry: QueueRetryInput,
    pub max_leased: u32,
    pub max_lease: String,
    /// Null without a limit.
    pub max_age: Option<String>,
    #[schemars(extend("enum" = ["standard", "cloudevents"]))]
    pub format: &'static str,
    /// Versions that messages are converted to, by event type.
    pub versions: BTreeMap<String, String>,
    pub metadata: Map<String, Value>,
    #[schemars(extend("enum" = ["active", "paused"]))]
    pub status: &'static str,
    pub created_at: Time,
    pub updated_at: Time,
}

impl QueueBody {
    #[must_use]
    pub fn new(queue: &Endpoint, defaults: &PolicyDefaults) -> Self {
        let target = queue.queue();
        let (retry, max_deliveries, max_age) = retry_members(queue.retry(defaults));
        Self {
            name: target.map(|target| target.name.to_string()).unwrap_or_default(),
            id: queue.id.to_string(),
            tenant: queue.tenant.to_string(),
            description: queue.description.to_string(),
            event_types: if queue.event_types.is_empty() {
                vec!["#".to_owned()]
            } else {
                queue.event_types.iter().map(ToString::to_string).collect()
            },
            filter: filter_body(queue),
            labels: labels_body(queue),
            visibility: format_duration(queue.timeout(defaults)),
            max_deliveries,
            ordering: word_of(queue.ordering, ORDERINGS),
            retry,
            max_leased: queue.max_in_flight(defaults),
            max_lease: target.map(|target| format_duration(target.lease_max)).unwrap_or_default(),
            max_age,
            format: word_of(queue.format, QUEUE_FORMATS),
            versions: pins::body(&queue.versions),
            metadata: queue
                .metadata
                .as_deref()
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default(),
            status: if queue.status == EndpointStatus::Paused { "paused" } else { "active" },
            created_at: Time(queue.created_at),
            updated_at: Time(queue.updated_at),
        }
    }

    /// The members to which a merge patch is applied.
    #[must_use]
    pub fn into_input(self) -> QueueInput {
        QueueInput {
            name: Some(self.name),
            tenant: Some(self.tenant),
            description: Some(self.description),
            event_types: Some(self.event_types),
            filter: self.filter,
            labels: Some(self.labels),
            visibility: Some(self.visibility),
            max_deliveries: Some(self.max_deliveries.into()),
            ordering: Some(self.ordering.to_owned()),
            retry: Some(self.retry),
            max_leased: Some(self.max_leased.into()),
            max_lease: Some(self.max_lease),
            max_age: self.max_age,
            format: Some(self.format.to_owned()),
            versions: Some(self.versions),
            metadata: Some(self.metadata),
        }
    }
}

fn retry_members(policy: &RetryPolicy) -> (QueueRetryInput, u32, Option<String>) {
    match policy {
        RetryPolicy::Exponential { initial, multiplier, max_interval, max_attempts, max_age, jitter } => {
            let retry = QueueRetryInput {
                initial: Some(format_duration(*initial)),
                multiplier: Some(*multiplier),
                max_interval: Some(format_duration(*max_interval)),
                jitter: Some(*jitter),
            };
            (retry, *max_attempts, Some(*max_age).filter(|age| *age < NO_AGE).map(format_duration))
        }
        // Not reached: queues have no schedule.
        RetryPolicy::Schedule(delays) => (QueueRetryInput::default(), delays.len() as u32, None),
    }
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReceiveInput {
    /// Number of messages, default 10. The response does not wait for more than one.
    #[schemars(range(min = 1, max = 100))]
    pub(super) max: Option<u64>,
    /// How long to wait for the first message, 0s to 60s; default 0s.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub(super) wait: Option<String>,
    /// Time of the leases, 100ms to the queue's `maxLease`; default: the queue's `visibility`.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub(super) visibility: Option<String>,
    /// Name of the worker, for the history of the message.
    #[schemars(length(min = 1, max = 128))]
    pub(super) worker: Option<String>,
    /// Bound of the events' bytes together, default 2097152. The first message may exceed it.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub(super) max_bytes: Option<u64>,
}

#[derive(Serialize, JsonSchema)]
pub struct ReceivedBody<'a> {
    pub messages: Vec<MessageBody<'a>>,
}

/// A message under lease.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MessageBody<'a> {
    /// Ends the lease: `ack`, `nack`, `release`, `extend`.
    pub receipt: String,
    pub delivery_id: String,
    /// Deliveries of the message in this series, this one included. Released ones do not count.
    pub delivery_count: u32,
    pub leased_until: Time,
    /// The event in the queue's format, with `position`; `orderingKey` and
    /// `attributes.traceparent` if there are any; and the published version of a converted event:
    /// `storedVersion`, as a CloudEvent `storedversion`.
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    pub event: &'a RawValue,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReceiptsInput {
    /// 1 to 1,000 receipts of this queue.
    #[schemars(length(min = 1, max = 1000))]
    pub(super) receipts: Vec<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NackInput {
    /// 1 to 1,000 receipts of this queue.
    #[schemars(length(min = 1, max = 1000))]
    pub(super) receipts: Vec<String>,
    /// Default true. False makes the messages dead letters (`refused`).
    pub(super) requeue: Option<bool>,
    /// Time until the messages are due again, 0s to 12h. Default: the queue's `retry`.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub(super) delay: Option<String>,
    /// Why the work failed, at most 512 bytes, for the history of the messages.
    #[schemars(length(max = 512))]
    pub(super) reason: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExtendInput {
    /// 1 to 1,000 receipts of this queue.
    #[schemars(length(min = 1, max = 1000))]
    pub(super) receipts: Vec<String>,
    /// Time of the leases from now on, 100ms to the queue's `maxLease`. No lease lasts longer than
    /// `maxLease` from its start.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h|d)$"))]
    pub(super) visibility: String,
}

#[derive(Serialize, JsonSchema)]
pub struct ReceiptResultsBody {
    /// One per receipt, in order.
    pub results: Vec<ReceiptResultBody>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptResultBody {
    pub receipt: String,
    #[schemars(with = "Word<ReceiptStatus>")]
    pub status: &'static str,
    /// Of an extended lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leased_until: Option<Time>,
}

impl ReceiptResultBody {
    #[must_use]
    pub fn new(receipt: &Receipt, result: ReceiptResult) -> Self {
        Self {
            receipt: receipt.to_string(),
            status: result.status.as_str(),
            leased_until: result.leased_until.map(Time),
        }
    }
}

/// A message under lease, for operators. It has no receipt.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeaseBody {
    pub delivery_id: String,
    /// Null if the event is unreadable.
    pub event_id: Option<String>,
    #[serde(rename = "type")]
    pub event_type: Option<String>,
    pub worker: Option<String>,
    pub delivery_count: u32,
    pub received_at: Time,
    pub leased_until: Time,
    /// `leased`, `expired` (the lease has run out and no worker has taken the message since) or
    /// `released`.
    #[schemars(extend("enum" = ["leased", "expired", "released"]))]
    pub state: &'static str,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueStatsBody {
    pub queue: String,
    pub tenant: String,
    pub since: Time,
    pub until: Time,
    /// Leases that ended in the window, released ones excluded.
    pub deliveries: u64,
    pub acked: u64,
    /// Leases that ran out, ended by a `nack`, or whose message was cancelled.
    pub failed: u64,
    /// Messages that became dead letters. Includes those that were redriven since.
    pub dead: u64,
    pub cancelled: u64,
    /// Share of acknowledged deliveries, 0 to 1; null without deliveries.
    pub success_rate: Option<f64>,
    /// Percentiles of the time from lease to end; null without deliveries.
    pub lease_time: PercentilesBody,
    /// Messages that have not ended, leased ones included, now.
    pub backlog: u64,
    /// Messages under a running lease now.
    pub leased: u64,
    pub oldest_pending_at: Option<Time>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueLaneBody {
    pub queue: String,
    pub tenant: String,
    /// Why messages wait; null if none does.
    #[schemars(with = "Option<Word<WaitReason>>")]
    pub reason: Option<&'static str>,
    /// Messages that have not ended, leased ones included.
    pub pending: u64,
    /// Messages behind another one of the same ordering key.
    pub waiting_for_order: u64,
    /// Messages under a running lease.
    pub leased: u64,
    /// Messages whose lease ran out or was released. They go out first.
    pub returned: u64,
    /// Workers that wait for messages.
    pub waiters: u64,
    /// When a worker asked last, since the daemon started.
    pub last_receive_at: Option<Time>,
    /// Due time of the next message without a lease.
    pub next_due_at: Option<Time>,
}

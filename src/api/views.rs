//! What the API shows of events, deliveries, attempts and dead letters.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::auth::Audience;
use super::disclosure;
use super::reply::Reply;
use super::text::{Span, Time};
use crate::domain::{Attempt, DeliveryId, DeliveryState, Event, Idempotency, Next, attribute};
use crate::engine::types::{
    Accepted, Answer, DeadLetterDetail, DeadLetterView, DeliveryDetail, DeliveryView, EventView, Keyed,
    generated_at, is_chosen,
};

/// The answer to a posted event.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcceptedBody<'a> {
    /// Only in a batch's results: 202.
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
    /// The event's place in the log.
    pub position: u64,
    /// How many endpoints it goes to.
    pub deliveries: usize,
    /// An earlier request with the same key or id was answered with this event.
    pub duplicate: bool,
    pub status_url: String,
}

impl<'a> AcceptedBody<'a> {
    /// `default_tenant` is where an id is looked up when the request does not say.
    pub fn new(accepted: &'a Accepted, default_tenant: &str) -> Self {
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
            deliveries: event.targets.len(),
            duplicate: accepted.duplicate,
            status_url: event_url(event, default_tenant),
        }
    }
}

/// Where the event can be read. A chosen id is unique in its tenant only, so the address may have to name it; one that
/// looks like a generated id is looked up as such first, so that its address always does.
#[must_use]
pub fn event_url(event: &Event, default_tenant: &str) -> String {
    let is_elsewhere = event.tenant.as_str() != default_tenant || generated_at(&event.id).is_some();
    if is_elsewhere && is_chosen(event) {
        format!("/v1/events/{}?tenant={}", event.id, event.tenant)
    } else {
        format!("/v1/events/{}", event.id)
    }
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventBody<'a> {
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
    /// `traceparent`, `balto-hops` (how many engines it came through), and what a CloudEvent has beside the members here.
    /// `data_base64` is true when `data` is base64.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<&'a str, Value>,
    /// As it was posted.
    #[schemars(with = "serde_json::Value")]
    pub data: Option<&'a RawValue>,
    pub position: u64,
    /// `pending` while any delivery is; then `delivered` when every endpoint that it was meant for has it, `partial` when
    /// some have, `failed` when none has, whether its delivery was given up or cancelled; `unmatched` when it was meant for
    /// none.
    pub status: &'static str,
    pub deliveries: Vec<DeliveryBody>,
}

impl<'a> EventBody<'a> {
    #[must_use]
    pub fn new(view: &'a EventView, audience: Audience) -> Self {
        let event = &*view.event;
        Self {
            position: view.position.0,
            status: view.status,
            deliveries: view.deliveries.iter().map(|view| DeliveryBody::new(view, audience)).collect(),
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
        }
    }
}

/// An event as a dead letter shows it.
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

/// Each as the JSON value that it was.
fn attributes(event: &Event) -> BTreeMap<&str, Value> {
    let shown = |(name, value): &'_ (Box<str>, Box<str>)| match name.strip_suffix(attribute::NOT_TEXT) {
        Some(_) => serde_json::from_str(value).unwrap_or_default(),
        None if **name == *attribute::BINARY => Value::Bool(true),
        None => Value::from(&**value),
    };
    let names = event.attributes.iter().map(|(name, _)| name.trim_end_matches(attribute::NOT_TEXT));
    names.zip(event.attributes.iter().map(shown)).collect()
}

/// Stored JSON, shown without being read.
fn raw(bytes: &[u8]) -> Option<&RawValue> {
    serde_json::from_slice(bytes).ok()
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryBody {
    #[serde(flatten)]
    pub common: DeliveryCommon,
    /// Attempts ever made.
    pub attempts: u32,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryCommon {
    pub id: String,
    pub event_id: String,
    #[serde(rename = "type")]
    pub event_type: String,
    pub tenant: String,
    /// Null when the endpoint was deleted long ago.
    pub endpoint_id: Option<String>,
    /// `pending`, `delivered`, `dead` or `cancelled`, which a purged dead letter is, too. An attempt that is under way when a delivery is cancelled or given up
    /// goes on; when it succeeds, the delivery is `delivered` after all.
    pub status: &'static str,
    /// Why it is dead.
    pub reason: Option<&'static str>,
    pub created_at: Time,
    /// Attempts ever made.
    pub attempt_count: u32,
    pub next_attempt_at: Option<Time>,
    /// Since when it has not been pending.
    pub settled_at: Option<Time>,
    pub last_status_code: Option<u16>,
    /// Class and text of the last attempt's failure, as in the attempt's `errorClass` and `error`.
    pub last_error: Option<String>,
}

impl DeliveryCommon {
    fn new(view: &DeliveryView, audience: Audience) -> Self {
        let failure = view.last_attempt.as_deref().and_then(|last| disclosure::failure(last, audience));
        let reason = match view.state {
            DeliveryState::Dead(reason) => Some(reason.as_str()),
            DeliveryState::Pending
            | DeliveryState::Delivered
            | DeliveryState::Cancelled
            | DeliveryState::Purged => None,
        };
        Self {
            id: DeliveryId(view.key).to_string(),
            event_id: view.event_id.to_string(),
            event_type: view.event_type.to_string(),
            tenant: view.tenant.to_string(),
            endpoint_id: view.endpoint_id.as_ref().map(ToString::to_string),
            status: view.state.as_str(),
            reason,
            created_at: Time(view.created_at),
            attempt_count: view.attempts,
            next_attempt_at: view.next_attempt_at.map(Time),
            settled_at: view.settled_at.map(Time),
            last_status_code: view.last_status,
            last_error: failure.map(|failure| failure.line()),
        }
    }
}

impl DeliveryBody {
    #[must_use]
    pub fn new(view: &DeliveryView, audience: Audience) -> Self {
        Self { common: DeliveryCommon::new(view, audience), attempts: view.attempts }
    }

    /// 202 for what is pending again, 200 for what has ended.
    #[must_use]
    pub fn reply(view: &DeliveryView, audience: Audience) -> Reply {
        let status = if view.state == DeliveryState::Pending { 202 } else { 200 };
        Reply::json(status, &Self::new(view, audience))
    }

    /// As [`CountBody::keyed`].
    #[must_use]
    pub fn keyed(idempotency: Option<Idempotency>, audience: Audience) -> Option<Keyed<DeliveryView>> {
        let answer: fn(&DeliveryView) -> Answer = match audience {
            Audience::Operator => |view| Self::reply(view, Audience::Operator).answer(),
            Audience::Tenant => |view| Self::reply(view, Audience::Tenant).answer(),
        };
        Some(Keyed { idempotency: idempotency?, answer })
    }
}

/// One HTTP try.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptBody {
    /// From 1.
    pub number: u32,
    /// `publish`, `retry`, `manual`, `redrive` or `replay`.
    pub trigger: &'static str,
    pub started_at: Time,
    pub duration: Span,
    pub status_code: Option<u16>,
    /// Without a reply from inside the operator's network, a key that is bound to a tenant sees `noReply` alone.
    pub error_class: Option<&'static str>,
    /// What went wrong. Of a receiver inside the operator's network a key that is bound to a tenant sees no more than the
    /// status.
    pub error: Option<String>,
    /// The first bytes of the receiver's reply, as text. Null where they came from inside the operator's network and the
    /// key is bound to a tenant.
    pub response_body: Option<String>,
    pub next_attempt_at: Option<Time>,
}

impl AttemptBody {
    fn new(attempt: &Attempt, audience: Audience) -> Self {
        let failure = disclosure::failure(attempt, audience);
        Self {
            number: attempt.number,
            trigger: attempt.trigger.as_str(),
            started_at: Time(attempt.started_at),
            duration: Span(attempt.duration),
            status_code: attempt.status,
            error_class: failure.as_ref().map(|failure| failure.class),
            error: failure.map(|failure| failure.text.into_owned()),
            response_body: disclosure::body(attempt, audience),
            next_attempt_at: match attempt.next {
                Next::RetryAt(at) => Some(Time(at)),
                Next::Delivered | Next::Dead(_) => None,
            },
        }
    }
}

fn attempts(list: &[Arc<Attempt>], audience: Audience) -> Vec<AttemptBody> {
    list.iter().map(|attempt| AttemptBody::new(attempt, audience)).collect()
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryDetailBody {
    #[serde(flatten)]
    pub common: DeliveryCommon,
    /// Oldest first; the last 128 of them.
    pub attempts: Vec<AttemptBody>,
}

impl DeliveryDetailBody {
    #[must_use]
    pub fn new(detail: &DeliveryDetail, audience: Audience) -> Self {
        let common = DeliveryCommon::new(&detail.delivery, audience);
        Self { common, attempts: attempts(&detail.attempts, audience) }
    }
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterBody {
    pub delivery_id: String,
    pub died_at: Time,
    #[serde(flatten)]
    pub delivery: DeliveryBody,
}

impl DeadLetterBody {
    #[must_use]
    pub fn new(view: &DeadLetterView, audience: Audience) -> Self {
        let mut delivery = DeliveryBody::new(&view.delivery, audience);
        delivery.common.reason = Some(view.reason.as_str());
        Self { delivery_id: delivery.common.id.clone(), died_at: Time(view.died_at), delivery }
    }
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterDetailBody<'a> {
    pub delivery_id: String,
    pub died_at: Time,
    #[serde(flatten)]
    pub common: DeliveryCommon,
    pub event: LetterEventBody<'a>,
    pub attempts: Vec<AttemptBody>,
}

impl<'a> DeadLetterDetailBody<'a> {
    #[must_use]
    pub fn new(detail: &'a DeadLetterDetail, audience: Audience) -> Self {
        let letter = DeadLetterBody::new(&detail.letter, audience);
        let event = &*detail.event;
        Self {
            delivery_id: letter.delivery_id,
            died_at: letter.died_at,
            common: letter.delivery.common,
            attempts: attempts(&detail.attempts, audience),
            event: LetterEventBody {
                id: event.id.as_str(),
                event_type: event.event_type.as_str(),
                tenant: event.tenant.as_str(),
                timestamp: Time(event.timestamp),
                version: event.version.as_str(),
                stream: event.stream.as_ref().map(|(name, _)| name.as_str()),
                stream_version: event.stream.as_ref().map(|(_, version)| *version),
                metadata: event.metadata.as_deref().and_then(raw),
                attributes: attributes(event),
                data: raw(&event.data),
            },
        }
    }
}

/// How many deliveries an operation set going or removed.
#[derive(Serialize, JsonSchema)]
pub struct CountBody {
    pub count: u64,
}

impl CountBody {
    /// 202.
    #[must_use]
    pub fn reply(count: u64) -> Reply {
        Reply::json(202, &Self { count })
    }

    /// What is to be answered so, again for whoever comes with the same key.
    #[must_use]
    pub fn keyed(idempotency: Option<Idempotency>) -> Option<Keyed<u64>> {
        Some(Keyed { idempotency: idempotency?, answer: |count| Self::reply(*count).answer() })
    }
}

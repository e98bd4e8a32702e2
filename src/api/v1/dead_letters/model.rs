//! Requests and responses of dead letters.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::text::{Time, Word};
use crate::api::v1::deliveries::model::{DeliveryBody, HistoryBody, attempts};
use crate::api::v1::events::model::{LetterEventBody, attributes, raw};
use crate::api::v1::lists::OWNER_WORDS;
use crate::domain::{Audience, ShownClass};
use crate::service::types::{DeadLetterDetail, DeadLetterView};

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
        delivery.reason = Some(view.reason.as_str());
        Self { delivery_id: delivery.id.clone(), died_at: Time(view.died_at), delivery }
    }
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterDetailBody<'a> {
    pub delivery_id: String,
    pub died_at: Time,
    #[serde(flatten)]
    pub delivery: DeliveryBody,
    /// Why the event cannot be converted to the version that the endpoint pins now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversion_error: Option<&'a str>,
    pub event: LetterEventBody<'a>,
    pub attempts: Vec<HistoryBody>,
}

impl<'a> DeadLetterDetailBody<'a> {
    #[must_use]
    pub fn new(detail: &'a DeadLetterDetail, audience: Audience) -> Self {
        let letter = DeadLetterBody::new(&detail.letter, audience);
        let event = &*detail.event;
        Self {
            delivery_id: letter.delivery_id,
            died_at: letter.died_at,
            delivery: letter.delivery,
            attempts: attempts(&detail.attempts, audience),
            conversion_error: detail.conversion_error.as_deref(),
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

/// The filters of the list. Without any, all dead letters that the key can see match.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LettersInput {
    /// Only this endpoint, by its id, also if it is deleted, or by its uid.
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[A-Za-z0-9_.-]+$"))]
    pub(super) endpoint_id: Option<String>,
    /// Name of a queue, of `tenant`, or of the tenant of the key, or `default`.
    pub(super) queue: Option<String>,
    /// A tenant; `*`: only endpoints and queues of all tenants.
    #[schemars(length(min = 1, max = 255), regex(pattern = OWNER_WORDS))]
    pub(super) tenant: Option<String>,
    /// A topic pattern.
    #[serde(rename = "type")]
    #[schemars(
        length(min = 1, max = 255),
        regex(pattern = r"^([A-Za-z0-9_-]+|[*#])(\.([A-Za-z0-9_-]+|[*#]))*$")
    )]
    pub(super) event_type: Option<String>,
    #[schemars(extend("enum" = [
        "attemptsExhausted", "maxAge", "gone", "refused", "endpointDeleted", "endpointDisabled", "blockedAddress", "expired", "unconvertible", null
    ]))]
    pub(super) reason: Option<String>,
    /// Only deliveries whose last attempt got this HTTP status.
    #[schemars(range(min = 100, max = 599))]
    pub(super) status_code: Option<u64>,
    /// Only deliveries whose last attempt failed with this error class.
    #[schemars(with = "Option<Word<ShownClass>>")]
    pub(super) error_class: Option<String>,
    /// Only deliveries with this id of a delivery, an event or an endpoint, or with a generated id
    /// that starts so.
    #[serde(rename = "q")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[A-Za-z0-9_-]+$"))]
    pub(super) id_start: Option<String>,
    /// Only deliveries that died at or after this time.
    #[schemars(extend("format" = "date-time"))]
    pub(super) since: Option<String>,
    /// Only deliveries that died before this time.
    #[schemars(extend("format" = "date-time"))]
    pub(super) until: Option<String>,
    /// `true`: count only, and change nothing.
    pub(super) dry_run: Option<bool>,
    /// Most dead letters per second, 1 to 100,000; default: unlimited.
    #[schemars(range(min = 1, max = 100_000))]
    pub(super) rate: Option<u32>,
}

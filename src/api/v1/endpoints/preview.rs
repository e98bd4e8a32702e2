//! The dry run of an endpoint's request.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::handlers::find;
use super::selection::check_labels;
use crate::api::http::body::{check_depth, object};
use crate::api::http::problem::{Errors, Problem};
use crate::api::http::request::Required;
use crate::api::http::response::Json;
use crate::api::v1::events::handlers::parse_event_type;
use crate::api::{Call, not_found, text};
use crate::domain::{DeliveryKey, Endpoint, Event, EventId, Position};
use crate::limits;
use crate::service::requests::BuildError;
use crate::service::{Conversions, Events, Requests};

/// A stored event, or an event that is not published.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PreviewInput {
    /// The id of an event of the endpoint's tenant; for all tenants, an id that Balto made, or one
    /// of the tenant `default`.
    #[schemars(length(min = 1, max = 64))]
    event_id: Option<String>,
    #[serde(default, deserialize_with = "object")]
    event: Option<PreviewEventInput>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PreviewEventInput {
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"))]
    event_type: String,
    #[schemars(with = "serde_json::Value")]
    data: Box<RawValue>,
    /// Default: `evt_preview`.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9_-]+$"))]
    id: Option<String>,
    /// Default: now.
    #[schemars(extend("format" = "date-time"))]
    timestamp: Option<String>,
    /// Default: `1.0`.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"))]
    version: Option<String>,
    /// The event has version 1 in it.
    #[schemars(length(min = 1, max = 255))]
    stream: Option<String>,
    /// Default: the stream.
    #[schemars(length(min = 1, max = 255))]
    ordering_key: Option<String>,
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    metadata: Option<Box<RawValue>>,
    #[schemars(length(max = 10), inner(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_.:-]+$")))]
    labels: Option<Vec<String>>,
}

/// The request that a first attempt would send now.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreviewBody {
    pub method: String,
    pub url: String,
    /// In the order of sending. Values of `sensitiveHeaders` and `auth` are `***`.
    pub headers: Vec<PreviewHeader>,
    /// Null for a body that is not UTF-8.
    pub body: Option<String>,
    /// The bytes of a body that is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub struct PreviewHeader {
    pub name: String,
    pub value: String,
}

/// `POST /v1/endpoints/{id}/preview`
pub async fn preview(
    call: &Call,
    Required(input): Required<PreviewInput>,
) -> Result<Json<PreviewBody>, Problem> {
    let endpoint = find(call)?;
    let (position, event) = match (input.event_id, input.event) {
        (Some(id), None) => stored_event(call, &endpoint, &id).await?,
        (None, Some(event)) => (Position(0), unpublished_event(call, &endpoint, event)?),
        (Some(_), Some(_)) | (None, None) => {
            return Err(Problem::invalid("", "needs either `eventId` or `event`"));
        }
    };
    let context = &call.api.context;
    let refused = |detail: String| Problem::invalid("/event", detail);
    let outgoing = Conversions(context)
        .convert(&endpoint.versions, position, &event)
        .map_err(|error| refused(format!("the event cannot be converted: {error}")))?;
    let delivery = DeliveryKey { event: position, endpoint: endpoint.number };
    let shown = Requests(context).preview(&endpoint, &outgoing, delivery).map_err(|error| match error {
        BuildError::Template(error) => refused(format!("the template fails for this event: {error}")),
        BuildError::Other(reason) => Problem::Unavailable(format!("the request cannot be built: {reason}")),
    })?;
    let body = String::from_utf8(shown.body.to_vec()).ok();
    Ok(Json::new(&PreviewBody {
        method: shown.method,
        url: shown.url.into(),
        headers: shown.headers.into_iter().map(|(name, value)| PreviewHeader { name, value }).collect(),
        body_base64: body.is_none().then(|| STANDARD.encode(&shown.body)),
        body,
    }))
}

pub(super) async fn stored_event(
    call: &Call,
    endpoint: &Endpoint,
    id: &str,
) -> Result<(Position, Arc<Event>), Problem> {
    let unknown = || not_found("event", id);
    let parsed: EventId = id.parse().map_err(|_| unknown())?;
    let found =
        Events(&call.api.context).get(&call.principal.scope, &endpoint.tenant.or_default(), &parsed).await?;
    let view = found.ok_or_else(unknown)?;
    if view.event.erased_at.is_some() {
        return Err(Problem::EventErased);
    }
    Ok((view.position, view.event))
}

pub(super) fn unpublished_event(
    call: &Call,
    endpoint: &Endpoint,
    input: PreviewEventInput,
) -> Result<Arc<Event>, Problem> {
    let mut errors = Errors::default();
    let event_type = errors.check("/event/type", parse_event_type(&input.event_type));
    let id = errors.check("/event/id", input.id.as_deref().unwrap_or("evt_preview").parse());
    let version = input
        .version
        .as_deref()
        .map_or_else(|| Some(Default::default()), |version| errors.check("/event/version", version.parse()));
    let now = call.api.context.now().wall;
    let timestamp = input
        .timestamp
        .as_deref()
        .map_or(Some(now), |time| errors.check("/event/timestamp", text::parse_time(time)));
    let stream = input.stream.as_deref().and_then(|name| errors.check("/event/stream", name.parse()));
    let ordering_key = input.ordering_key.and_then(|key| errors.check("/event/orderingKey", key.parse()));
    let labels = check_labels(input.labels.as_deref(), "/event/labels", &mut errors);
    if let Some(metadata) = &input.metadata {
        errors.check("/event/metadata", check_depth(metadata.get()));
        if !metadata.get().starts_with('{') {
            errors.push("/event/metadata", "must be an object");
        }
    }
    errors.check("/event/data", check_depth(input.data.get()));
    if input.data.get().len() > limits::EVENT_BYTES_MAX {
        errors.push("/event/data", format!("at most {} bytes", limits::EVENT_BYTES_MAX));
    }
    errors.finish()?;
    let (Some(event_type), Some(id), Some(version), Some(timestamp)) = (event_type, id, version, timestamp)
    else {
        return Err(Problem::Validation(Vec::new())); // not reached: `finish` has returned the error
    };
    Ok(Arc::new(Event {
        id,
        tenant: endpoint.tenant.or_default(),
        event_type,
        version,
        timestamp,
        accepted_at: now,
        stream: stream.map(|name| (name, 1)),
        ordering_key,
        deliver_at: None,
        labels,
        metadata: input.metadata.map(|metadata| Bytes::copy_from_slice(metadata.get().as_bytes())),
        attributes: Vec::new(),
        data: Bytes::copy_from_slice(input.data.get().as_bytes()),
        targets: Vec::new(),
        idempotency: Vec::new(),
        erased_at: None,
    }))
}

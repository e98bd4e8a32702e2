//! Events: publish, list, get and replay.
//!
//! `data` and `metadata` are any JSON, passed on byte for byte: duplicate members, numbers of any
//! size, lone surrogates. They are never parsed into a tree; only their depth is limited.

use axum::http::HeaderMap;
use bytes::Bytes;

use super::batch::{BatchRequest, post_batch};
use super::model::{AcceptedBody, EventBody, EventInput, EventReplayInput, PublishBody};
use crate::api::http::problem::{Errors, FieldError, Problem};
use crate::api::http::request::{Optional, RequestBody};
use crate::api::http::request_log::trace_parent;
use crate::api::http::response::{Accepted, Json};
use crate::api::http::{body, idempotency};
use crate::api::routes::{BodySpec, Limit, Need, schema};
use crate::api::v1::endpoints::selection::check_labels;
use crate::api::v1::lists::{self, List, ListBody};
use crate::api::v1::{CountBody, cloudevents, event_types};
use crate::api::{Call, routes, text};
use crate::domain::{
    EndpointId, EventId, EventType, EventVersion, Expected, InvalidName, Tenant, TraceParent, attribute,
};
use crate::limits;
use crate::service::types::{AcceptedEvent, ChangeError, EventDraft, Filter};
use crate::service::{Endpoints, Events, Replays};

const JSON_OR_CLOUDEVENTS: &[&str] = &["application/json", cloudevents::STRUCTURED, cloudevents::BATCHED];

/// The body of a posted event, which [`post`] parses by its media type.
pub struct EventRequest;

impl RequestBody for EventRequest {
    const SPEC: BodySpec = BodySpec {
        need: Need::Required,
        limit: Limit::Event,
        media: JSON_OR_CLOUDEVENTS,
        schema: schema::<EventInput<'static>>,
    };

    fn read(_: &Call) -> Result<Self, Problem> {
        Ok(Self)
    }
}

pub const NDJSON: &str = "application/x-ndjson";

/// Parses the type of a published event.
///
/// # Errors
/// For a malformed type, and for the types of operator events.
pub(in crate::api) fn parse_event_type(text: &str) -> Result<EventType, String> {
    let event_type: EventType = text.parse().map_err(|error: InvalidName| error.to_string())?;
    if event_type.is_reserved() {
        return Err("types with the prefix `balto.` are reserved for operator events".to_owned());
    }
    Ok(event_type)
}

/// Validates an event. `raw` is its text, for the fingerprint.
pub(in crate::api::v1) fn build_draft(
    call: &Call,
    input: EventInput<'_>,
    raw: &[u8],
) -> Result<EventDraft, Problem> {
    let mut errors = Errors::default();
    let event_type = errors.check("/type", parse_event_type(&input.event_type));
    let id: Option<EventId> = input.id.and_then(|id| errors.check("/id", id.parse()));
    if let Some(id) = id.as_ref().map(EventId::as_str).filter(|id| routes::is_reserved_event_id(id)) {
        errors.push("/id", format!("`{id}` is reserved: /v1/events/{id} is another operation"));
    }
    let tenant: Option<Tenant> = input.tenant.and_then(|tenant| errors.check("/tenant", tenant.parse()));
    let version = match input.version {
        Some(version) => errors.check("/version", version.parse()),
        None => Some(EventVersion::default()),
    };
    let timestamp = input.timestamp.and_then(|time| errors.check("/timestamp", text::parse_time(&time)));
    let deliver_at = input.deliver_at.and_then(|time| errors.check("/deliverAt", text::parse_time(&time)));
    let has_stream = input.stream.is_some();
    let stream = input.stream.and_then(|stream| errors.check("/stream", stream.parse()));
    let ordering_key = input.ordering_key.and_then(|key| errors.check("/orderingKey", key.parse()));
    if input.expected_version.is_some() && !has_stream {
        errors.push("/expectedVersion", "requires `stream`");
    }
    let labels = check_labels(input.labels.as_deref(), "/labels", &mut errors);
    errors.check("/data", body::check_depth(input.data.get()));
    if let Some(metadata) = input.metadata {
        errors.check("/metadata", body::check_depth(metadata.get()));
        if !metadata.get().starts_with('{') {
            errors.push("/metadata", "must be an object");
        } else if metadata.get().len() > limits::METADATA_BYTES_MAX {
            errors.push("/metadata", format!("at most {} bytes", limits::METADATA_BYTES_MAX));
        }
    }
    // A key bound to a tenant gets the 403 of any other tenant.
    let is_unbound = call.principal.scope.0.is_none();
    if is_unbound && tenant.as_ref().is_some_and(|tenant| tenant.as_str() == Tenant::OPERATOR) {
        errors.push("/tenant", "the tenant `balto` is reserved");
    }
    errors.finish()?;
    let (Some(event_type), Some(version)) = (event_type, version) else {
        return Err(Problem::Validation(Vec::new())); // not reached: `finish` has returned the error
    };
    let tenant = call.principal.tenant(tenant)?;
    if tenant.as_str() == Tenant::OPERATOR {
        return Err(Problem::Forbidden("the tenant `balto` is reserved".to_owned()));
    }
    let fingerprint = if id.is_some() { idempotency::fingerprint(raw) } else { [0; 16] };
    // Copied: a slice would keep the whole request in memory.
    let data = Bytes::copy_from_slice(input.data.get().as_bytes());
    Ok(EventDraft {
        id,
        version,
        timestamp,
        stream,
        expected: input.expected_version.map_or(Expected::Any, |expected| expected.0),
        ordering_key,
        deliver_at,
        labels,
        metadata: input.metadata.map(|metadata| Bytes::copy_from_slice(metadata.get().as_bytes())),
        attributes: trace_attribute(&call.headers),
        fingerprint,
        ..EventDraft::new(tenant, event_type, data)
    })
}

/// Parses `balto-hops`: the number of Balto instances that the request's events have passed.
///
/// # Errors
/// 422 for a malformed number, or one above [`limits::HOPS_MAX`].
pub(in crate::api::v1) fn parse_hops(headers: &HeaderMap) -> Result<u32, Problem> {
    let mut values = headers.get_all(attribute::HOPS).iter();
    let (first, second) = (values.next(), values.next());
    let Some(value) = first else { return Ok(0) };
    let digits = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let count = value.to_str().ok().filter(digits).filter(|_| second.is_none());
    let Some(count) = count else {
        let error = FieldError::header(attribute::HOPS, "must be one whole number");
        return Err(Problem::Validation(vec![error]));
    };
    match count.parse() {
        Ok(hops) if hops <= limits::HOPS_MAX => Ok(hops),
        _ => Err(Problem::LoopDetected { limit: limits::HOPS_MAX }),
    }
}

/// Stores the number of hops with the event, for its deliveries.
pub(in crate::api::v1) fn set_hops(draft: &mut EventDraft, hops: u32) {
    if hops > 0 {
        draft.attributes.push((attribute::HOPS.into(), hops.to_string().into()));
        draft.attributes.sort();
    }
}

/// The request's `traceparent`, if it is valid.
pub(in crate::api) fn trace_attribute(headers: &HeaderMap) -> Vec<(Box<str>, Box<str>)> {
    let known = trace_parent(headers).filter(|value| TraceParent::parse(value).is_some());
    known.map(|value| (attribute::TRACE_PARENT.into(), value.into())).into_iter().collect()
}

/// The tenant for id lookups of requests that do not name one.
pub(in crate::api::v1) fn default_tenant(call: &Call) -> &str {
    call.principal.scope.0.as_ref().map_or(Tenant::DEFAULT, Tenant::as_str)
}

/// The response for one accepted event.
pub fn accepted_response(call: &Call, accepted: &AcceptedEvent) -> Accepted<AcceptedBody<'static>> {
    let deliveries = Events(&call.api.context).delivery_count(&call.principal.scope, &accepted.event);
    let body = AcceptedBody::new(accepted, deliveries, default_tenant(call));
    let response = Accepted::new(&body).with_header("location", &body.status_url).without_lifetime();
    if accepted.duplicate { response.with_header("idempotent-replayed", "true") } else { response }
}

/// `POST /v1/events`
pub async fn post(call: &Call, _: EventRequest) -> Result<Accepted<PublishBody>, Problem> {
    let hops = parse_hops(&call.headers)?;
    let mut draft = match call.media {
        cloudevents::BATCHED => {
            return Ok(post_batch(call, BatchRequest).await?.without_lifetime());
        }
        cloudevents::STRUCTURED => cloudevents::parse_structured(call, &call.body)?,
        cloudevents::BINARY => cloudevents::parse_binary(call)?,
        _ if call.query.text("tenant").is_some() => {
            return Err(Problem::parameter("tenant", "is for CloudEvents; name the tenant in the body"));
        }
        _ => build_draft(call, body::parse(&call.body)?, &call.body)?,
    };
    set_hops(&mut draft, hops);
    call.heavy_work(draft.data.len(), || event_types::handlers::check_event(call, &mut draft)).await;
    let (idempotency, _guard) = call.idempotency(draft.tenant.as_str())?;
    draft.idempotency = idempotency;
    let accepted = Events(&call.api.context).publish(draft).await?;
    Ok(accepted_response(call, &accepted).without_lifetime())
}

/// `GET /v1/events/{id}`
pub async fn get(call: &Call) -> Result<Json<EventBody<'static>>, Problem> {
    let id: EventId = call.parse_id("event")?;
    let (scope, tenant) = call.event_scope()?;
    let wait = call.query.wait()?;
    match Events(&call.api.context).get_final(&scope, &tenant, &id, wait, call.gone()).await? {
        Some(view) => {
            let body = EventBody::new(&view, call.principal.audience());
            Ok(Json::new(&body).without_lifetime())
        }
        None => Err(call.event_not_found(&tenant)),
    }
}

/// `GET /v1/events`
pub async fn list(call: &Call) -> Result<Json<ListBody<EventBody<'static>>>, Problem> {
    let common = call.query.common_filters()?;
    let filter = Filter {
        tenant: call.principal.tenant_filter(common.tenant)?,
        event_type: common.event_type,
        stream: call.query.get("stream")?,
        event_status: call.query.word("status", lists::EVENT_STATUSES)?,
        since: common.since,
        until: common.until,
        ..Filter::default()
    };
    let (after, limit) = (call.query.cursor(List::Events)?, call.query.limit()?);
    let page = Events(&call.api.context).list(&call.principal.scope, filter, after, limit).await?;
    let audience = call.principal.audience();
    let data = page.items.iter().map(|view| EventBody::new(view, audience)).collect();
    Ok(lists::page_reply(&call.path, &call.query, List::Events, &page, data).without_lifetime())
}

/// `POST /v1/events/{id}/replay`
pub async fn replay(
    call: &Call,
    Optional(input): Optional<EventReplayInput>,
) -> Result<Accepted<CountBody>, Problem> {
    let id: EventId = call.parse_id("event")?;
    let (scope, tenant) = call.event_scope()?;
    let endpoints = input.endpoint_ids.map(|ids| replay_targets(call, &ids)).transpose()?;
    call.run_once(tenant.as_str(), async |key| {
        let keyed = CountBody::keyed(key);
        match Replays(&call.api.context).of_event(&scope, &tenant, &id, endpoints, keyed).await {
            Ok(count) => Ok(CountBody::accepted(count)),
            Err(ChangeError::NotFound) => Err(call.event_not_found(&tenant)),
            // Checked above: they take no events of the event's tenant, or were just deleted.
            Err(ChangeError::NotAllowed(why)) => Err(Problem::invalid("/endpointIds", why)),
            Err(error) => Err(error.into()),
        }
    })
    .await
}

fn replay_targets(call: &Call, ids: &[String]) -> Result<Vec<EndpointId>, Problem> {
    let mut errors = Errors::default();
    if ids.is_empty() || ids.len() > limits::BULK_DELIVERIES_MAX {
        errors.push("/endpointIds", "1 to 1000 ids; omit it for the endpoints that the event matches now");
    }
    let mut targets = Vec::new();
    for (index, text) in ids.iter().take(limits::BULK_DELIVERIES_MAX).enumerate() {
        match text.parse::<EndpointId>() {
            Ok(id) if Endpoints(&call.api.context).get(&call.principal.scope, &id).is_some() => {
                targets.push(id)
            }
            _ => errors.push(format!("/endpointIds/{index}"), format!("endpoint `{text}` not found")),
        }
    }
    errors.finish()?;
    targets.sort();
    targets.dedup();
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_well_formed_traceparent_is_kept() {
        const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for (values, kept) in
            [(&[GOOD][..], Some(GOOD)), (&["00-nonsense"], None), (&[GOOD, GOOD], None), (&[], None)]
        {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("traceparent", value.parse().unwrap());
            }
            let attributes = trace_attribute(&headers);
            assert_eq!(attribute::find(&attributes, attribute::TRACE_PARENT), kept, "{values:?}");
            assert_eq!(attributes.len(), usize::from(kept.is_some()));
        }
    }

    #[test]
    fn hops_above_the_limit_are_a_loop() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(attribute::HOPS, value.parse().unwrap());
            }
            parse_hops(&headers).map_err(|problem| problem.code())
        };
        assert_eq!(read(&[]), Ok(0));
        assert_eq!(read(&["1"]), Ok(1));
        assert_eq!(read(&["8"]), Ok(limits::HOPS_MAX));
        for many in ["9", "4294967296", "99999999999999999999999999"] {
            assert_eq!(read(&[many]), Err("loop_detected"), "{many}");
        }
        for junk in ["", "-1", "+1", "1.0", "one", "1,2", "0x1", "1 1"] {
            assert_eq!(read(&[junk]), Err("validation_failed"), "{junk:?}");
        }
        assert_eq!(read(&["1", "1"]), Err("validation_failed"));
    }

    #[test]
    fn data_is_kept_byte_for_byte() {
        let body = br#"{"type":"a.b","data": {"z" :1.0,"a": "\u00e9", "z":2e400} ,"expectedVersion":"none","stream":"s"}"#;
        let input: EventInput<'_> = body::parse(body).unwrap();
        assert_eq!(input.data.get(), r#"{"z" :1.0,"a": "\u00e9", "z":2e400}"#);
        assert_eq!(input.expected_version.unwrap().0, Expected::NoStream);
        let null: EventInput<'_> = body::parse(br#"{"type":"a","data":null,"deliverAt":null}"#).unwrap();
        assert_eq!(null.data.get(), "null");
    }

    #[test]
    fn invalid_event_members_have_a_pointer() {
        for (body, pointer) in [
            (r#"{"data":1}"#, "/type"),
            (r#"{"type":"a"}"#, "/data"),
            (r#"{"type":1,"data":1}"#, "/type"),
            (r#"{"type":"a","data":1,"extra":1}"#, "/extra"),
            (r#"{"type":"a","data":1,"data":2}"#, "/data"),
            (r#"{"type":"a","data":1,"stream":"s","expectedVersion":"some"}"#, "/expectedVersion"),
            (r#"{"type":"a","data":1,"stream":"s","expectedVersion":0}"#, "/expectedVersion"),
            (r#"{"type":"a","data":1,"stream":"s","expectedVersion":-1}"#, "/expectedVersion"),
        ] {
            let Err(Problem::Validation(errors)) = body::parse::<EventInput<'_>>(body.as_bytes()) else {
                panic!("{body} was not invalid")
            };
            assert_eq!(
                errors[0].location,
                crate::api::http::problem::ErrorLocation::Pointer(pointer.to_owned()),
                "{body} {errors:?}"
            );
        }
    }
}

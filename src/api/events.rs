//! Posting and reading events.
//!
//! `data` and `metadata` are passed on byte for byte, whatever JSON they hold: members that are there twice, numbers that
//! no machine has, halves of surrogate pairs. They are never parsed into a tree; only their depth is bounded. The path of
//! an accepted event is kept short: one parse, one answer written into one buffer.

use std::borrow::Cow;
use std::fmt;

use axum::http::HeaderMap;
use bytes::Bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::idempotency;
use super::lists::{self, List};
use super::problem::{Errors, FieldError, Problem};
use super::reply::Reply;
use super::views::{AcceptedBody, CountBody, EventBody};
use super::{Call, body, cloudevents, routes, text};
use crate::domain::{
    EndpointId, EventId, EventType, EventVersion, Expected, Idempotency, InvalidName, Tenant, TraceParent,
    attribute,
};
use crate::engine::types::{Accepted, ChangeError, EventDraft, Filter, Published};
use crate::limits;

pub const NDJSON: &str = "application/x-ndjson";

/// An event to be published.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EventInput<'a> {
    /// Dot-separated words, at most 255 bytes.
    #[serde(rename = "type", borrow)]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"))]
    event_type: Cow<'a, str>,
    /// Any JSON value; subscribers get it byte for byte.
    #[serde(borrow)]
    #[schemars(with = "serde_json::Value")]
    data: &'a RawValue,
    /// Unique per tenant; a repetition is answered with the first event.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9_-]+$"))]
    id: Option<String>,
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"))]
    tenant: Option<String>,
    /// When it happened; without it, when it was accepted.
    #[schemars(extend("format" = "date-time"))]
    timestamp: Option<String>,
    /// Version of the data's schema; `1.0` without it.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"))]
    version: Option<String>,
    /// The subject whose events are numbered from 1.
    #[schemars(length(min = 1, max = 255))]
    stream: Option<String>,
    /// The version that the stream must have; needs `stream`.
    expected_version: Option<ExpectedVersion>,
    /// The stream without it.
    #[schemars(length(min = 1, max = 255))]
    ordering_key: Option<String>,
    /// Not before this time.
    #[schemars(extend("format" = "date-time"))]
    deliver_at: Option<String>,
    /// Kept with the event, and not sent.
    #[serde(borrow)]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    metadata: Option<&'a RawValue>,
}

/// A number, `"none"` or `"any"`.
#[derive(Clone, Copy, Debug)]
struct ExpectedVersion(Expected);

impl<'de> Deserialize<'de> for ExpectedVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl Visitor<'_> for Words {
            type Value = Expected;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a version from 1 on, \"none\" or \"any\"")
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
        json_schema!({"oneOf": [{"type": "integer", "minimum": 1}, {"type": "string", "enum": ["none", "any"]}]})
    }
}

/// The type of a posted event.
///
/// # Errors
/// For what is no type, and for those of operator events.
pub(super) fn posted_type(text: &str) -> Result<EventType, String> {
    let event_type: EventType = text.parse().map_err(|error: InvalidName| error.to_string())?;
    if event_type.is_reserved() {
        return Err("types that begin with `balto.` are reserved for operator events".to_owned());
    }
    Ok(event_type)
}

/// Checks an event and makes it ready for the engine. `raw` is the event as it was posted.
fn draft(call: &Call, input: EventInput<'_>, raw: &[u8]) -> Result<EventDraft, Problem> {
    let mut errors = Errors::default();
    let event_type = errors.check("/type", posted_type(&input.event_type));
    let id: Option<EventId> = input.id.and_then(|id| errors.check("/id", id.parse()));
    if let Some(id) = id.as_ref().map(EventId::as_str).filter(|id| routes::hides_event(id)) {
        errors.push("/id", format!("`{id}` is not possible, since /v1/events/{id} is another operation"));
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
        errors.push("/expectedVersion", "needs `stream`");
    }
    errors.check("/data", body::check_depth(input.data.get()));
    if let Some(metadata) = input.metadata {
        errors.check("/metadata", body::check_depth(metadata.get()));
        if !metadata.get().starts_with('{') {
            errors.push("/metadata", "must be an object");
        } else if metadata.get().len() > limits::METADATA_BYTES_MAX {
            errors.push("/metadata", format!("at most {} bytes", limits::METADATA_BYTES_MAX));
        }
    }
    // For a key of one tenant it is another's, like any that is not its own.
    let is_free = call.principal.scope.0.is_none();
    if is_free && tenant.as_ref().is_some_and(|tenant| tenant.as_str() == Tenant::OPERATOR) {
        errors.push("/tenant", "the tenant `balto` is reserved");
    }
    errors.finish()?;
    let (Some(event_type), Some(version)) = (event_type, version) else {
        return Err(Problem::Validation(Vec::new())); // not reached: what is missing was an error above
    };
    let tenant = call.principal.tenant(tenant)?;
    if tenant.as_str() == Tenant::OPERATOR {
        return Err(Problem::Forbidden("the tenant `balto` is reserved".to_owned()));
    }
    let fingerprint = if id.is_some() { idempotency::fingerprint(raw) } else { [0; 16] };
    // Copied: a slice would keep the whole request in memory for as long as the event waits.
    let data = Bytes::copy_from_slice(input.data.get().as_bytes());
    Ok(EventDraft {
        id,
        version,
        timestamp,
        stream,
        expected: input.expected_version.map_or(Expected::Any, |expected| expected.0),
        ordering_key,
        deliver_at,
        metadata: input.metadata.map(|metadata| Bytes::copy_from_slice(metadata.get().as_bytes())),
        attributes: trace_attribute(&call.headers),
        fingerprint,
        ..EventDraft::new(tenant, event_type, data)
    })
}

/// How many engines the request's events came through (`balto-hops`, which deliveries carry).
///
/// # Errors
/// 422 for what is no count, and for a count that only a loop explains.
fn hops(headers: &HeaderMap) -> Result<u32, Problem> {
    let mut values = headers.get_all(attribute::HOPS).iter();
    let (first, second) = (values.next(), values.next());
    let Some(value) = first else { return Ok(0) };
    let digits = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let count = value.to_str().ok().filter(digits).filter(|_| second.is_none());
    let Some(count) = count else {
        let wrong = FieldError::header(attribute::HOPS, "must be one whole number");
        return Err(Problem::Validation(vec![wrong]));
    };
    match count.parse() {
        Ok(hops) if hops <= limits::HOPS_MAX => Ok(hops),
        _ => Err(Problem::LoopDetected { limit: limits::HOPS_MAX }),
    }
}

/// Keeps the count with the event, so that its deliveries carry it on.
fn mark(draft: &mut EventDraft, hops: u32) {
    if hops > 0 {
        draft.attributes.push((attribute::HOPS.into(), hops.to_string().into()));
        draft.attributes.sort();
    }
}

/// The request's `traceparent`, when there is one and it can be read.
pub(super) fn trace_attribute(headers: &HeaderMap) -> Vec<(Box<str>, Box<str>)> {
    let mut values = headers.get_all(attribute::TRACE_PARENT).iter();
    let (Some(value), None) = (values.next().and_then(|value| value.to_str().ok()), values.next()) else {
        return Vec::new();
    };
    let known = TraceParent::parse(value).is_some();
    known.then(|| (attribute::TRACE_PARENT.into(), value.into())).into_iter().collect()
}

/// The tenant in which the caller's ids are looked up when a request does not name one.
fn default_tenant(call: &Call) -> &str {
    call.principal.scope.0.as_ref().map_or(Tenant::DEFAULT, Tenant::as_str)
}

/// Answers one accepted event.
pub fn accepted_reply(call: &Call, accepted: &Accepted) -> Reply {
    let body = AcceptedBody::new(accepted, default_tenant(call));
    let reply = Reply::json(202, &body).with_header("location", &body.status_url);
    if accepted.duplicate { reply.with_header("idempotent-replayed", "true") } else { reply }
}

/// `POST /v1/events`
pub async fn post(call: &Call) -> Result<Reply, Problem> {
    let hops = hops(&call.headers)?;
    let mut draft = match call.media {
        cloudevents::BATCHED => return post_batch(call).await,
        cloudevents::STRUCTURED => cloudevents::structured(call, &call.body)?,
        cloudevents::BINARY => cloudevents::binary(call)?,
        _ if call.query.text("tenant").is_some() => {
            return Err(Problem::parameter("tenant", "is for CloudEvents; others name it in the body"));
        }
        _ => draft(call, body::parse(&call.body)?, &call.body)?,
    };
    mark(&mut draft, hops);
    let (idempotency, _guard) = call.idempotency(draft.tenant.as_str())?;
    draft.idempotency = idempotency;
    let accepted = call.api.engine.publish(draft).await?;
    Ok(accepted_reply(call, &accepted))
}

/// `POST /v1/events/batch`, and a batch of CloudEvents at `POST /v1/events`.
pub async fn post_batch(call: &Call) -> Result<Reply, Problem> {
    let hops = hops(&call.headers)?;
    let key = idempotency::key(&call.headers)?;
    let caller = call.principal.scope_text();
    let (base, _guard) = call.idempotency(caller)?;
    let items = match call.media {
        NDJSON => ndjson_items(&call.body)?,
        cloudevents::BATCHED => cloudevents::batch_items(&call.body)?,
        _ => json_items(&call.body)?,
    };
    let route = format!("POST {}", call.path);
    let mut drafts = Vec::with_capacity(items.len());
    let mut places = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let mut place = batch_draft(call, item);
        if let Ok(draft) = &mut place {
            mark(draft, hops);
        }
        if let (Ok(draft), Some(key), Some(base)) = (&mut place, &key, &base) {
            let scope = idempotency::scope(caller, &route, key, Some(index));
            draft.idempotency = Some(Idempotency { scope, ..base.clone() });
        }
        places.push(place.map(|draft| drafts.push(draft)));
    }
    let published = call.api.engine.publish_batch(drafts, base).await?;
    Ok(batch_reply(call, places, published))
}

fn batch_draft(call: &Call, raw: &[u8]) -> Result<EventDraft, Problem> {
    let limit = call.config.max_event_bytes;
    if raw.len() > limit {
        return Err(Problem::PayloadTooLarge { limit });
    }
    if call.media == cloudevents::BATCHED {
        return cloudevents::structured(call, raw);
    }
    draft(call, body::parse(raw)?, raw)
}

fn batch_reply(call: &Call, places: Vec<Result<(), Problem>>, published: Published) -> Reply {
    // What is wrong with an item in itself is said again to every repetition.
    let are_good = !places.is_empty() && places.iter().all(Result::is_ok);
    let replayed = published.is_old() && (published.repeated || are_good);
    let mut results = published.results.into_iter();
    let mut out = Vec::with_capacity(64 + places.len() * 320);
    out.extend_from_slice(b"{\"results\":[");
    for (index, place) in places.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let result = match place {
            Err(problem) => Err(problem),
            Ok(()) => match results.next() {
                Some(result) => result.map_err(Problem::from),
                None => Err(Problem::Unavailable("the event was not answered".to_owned())),
            },
        };
        match result {
            Ok(accepted) => {
                let body =
                    AcceptedBody { status: Some(202), ..AcceptedBody::new(&accepted, default_tenant(call)) };
                write_item(&mut out, &body);
            }
            Err(problem) => {
                call.api.refused(&problem);
                write_item(&mut out, &problem);
            }
        }
    }
    out.extend_from_slice(b"]}");
    let reply = Reply::bytes(202, out.into());
    if replayed { reply.with_header("idempotent-replayed", "true") } else { reply }
}

/// Our own types always serialise into memory; should one not, its place is null and the log says why.
fn write_item(out: &mut Vec<u8>, item: &impl Serialize) {
    let start = out.len();
    if let Err(error) = serde_json::to_writer(&mut *out, item) {
        tracing::error!(%error, "a batch result could not be serialised");
        out.truncate(start);
        out.extend_from_slice(b"null");
    }
}

type Items<'a> = Vec<&'a [u8]>;

fn json_items(raw: &[u8]) -> Result<Items<'_>, Problem> {
    let input: BatchInput<'_> = body::parse(raw)?;
    check_count(input.events.count)?;
    Ok(input.events.items.into_iter().map(|item| item.get().as_bytes()).collect())
}

fn ndjson_items(raw: &[u8]) -> Result<Items<'_>, Problem> {
    let lines = || raw.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    check_count(lines().take(limits::BATCH_EVENTS_MAX + 1).count())?;
    Ok(lines().collect())
}

fn check_count(count: usize) -> Result<(), Problem> {
    if count == 0 {
        return Err(Problem::invalid("/events", "at least one event is needed"));
    }
    if count > limits::BATCH_EVENTS_MAX {
        return Err(Problem::invalid("/events", format!("at most {} events", limits::BATCH_EVENTS_MAX)));
    }
    Ok(())
}

/// Each event stands alone, so none is looked into while the batch is taken apart.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchInput<'a> {
    #[serde(borrow)]
    events: Bounded<'a>,
}

/// Counts all, and keeps no more than the limit: a body of millions of tiny items costs no memory.
pub(super) struct Bounded<'a> {
    pub(super) items: Vec<&'a RawValue>,
    pub(super) count: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for Bounded<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items;
        impl<'de> Visitor<'de> for Items {
            type Value = Bounded<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of events")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Bounded<'de>, A::Error> {
                let mut bounded = Bounded { items: Vec::new(), count: 0 };
                while let Some(item) = list.next_element::<&'de RawValue>()? {
                    bounded.count += 1;
                    if bounded.count <= limits::BATCH_EVENTS_MAX {
                        bounded.items.push(item);
                    }
                }
                Ok(bounded)
            }
        }
        deserializer.deserialize_seq(Items)
    }
}

/// For the API document.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "its schema is read, never its value")]
pub struct BatchSchema<'a> {
    /// 1 to 1,000; each stands alone.
    #[schemars(length(min = 1, max = 1000))]
    events: Vec<EventInput<'a>>,
}

/// For the API document.
#[derive(Serialize, JsonSchema)]
pub struct BatchAnswer {
    /// In the order of the request: what `POST /v1/events` answers, with `status` 202, or a problem.
    pub results: Vec<serde_json::Map<String, serde_json::Value>>,
}

/// `GET /v1/events/{id}`
pub async fn get(call: &Call) -> Result<Reply, Problem> {
    let id: EventId = call.named("event")?;
    let (scope, tenant) = call.event_scope()?;
    match call.api.engine.event(&scope, &tenant, &id).await? {
        Some(view) => Ok(Reply::json(200, &EventBody::new(&view, call.principal.audience()))),
        None => Err(call.no_such_event(&tenant)),
    }
}

/// `GET /v1/events`
pub async fn list(call: &Call) -> Result<Reply, Problem> {
    let common = call.query.common()?;
    let filter = Filter {
        tenant: call.principal.filter(common.tenant)?,
        event_type: common.event_type,
        stream: call.query.get("stream")?,
        event_status: call.query.word("status", lists::EVENT_STATUSES)?,
        since: common.since,
        until: common.until,
        ..Filter::default()
    };
    let (after, limit) = (call.query.cursor(List::Events)?, call.query.limit()?);
    let page = call.api.engine.events(&call.principal.scope, filter, after, limit).await?;
    let audience = call.principal.audience();
    let data = page.items.iter().map(|view| EventBody::new(view, audience)).collect();
    Ok(lists::answer(&call.path, &call.query, List::Events, &page, data))
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReplayInput {
    /// Without it: the endpoints that the event matches now.
    #[schemars(
        length(min = 1, max = 1000),
        inner(length(min = 1, max = 64), regex(pattern = "^[A-Za-z0-9_-]+$"))
    )]
    endpoint_ids: Option<Vec<String>>,
}

/// `POST /v1/events/{id}/replay`
pub async fn replay(call: &Call) -> Result<Reply, Problem> {
    let id: EventId = call.named("event")?;
    let (scope, tenant) = call.event_scope()?;
    let input: ReplayInput = body::parse_or_default(&call.body)?;
    let endpoints = input.endpoint_ids.map(|ids| replay_targets(call, &ids)).transpose()?;
    call.once(tenant.as_str(), async |key| {
        let keyed = CountBody::keyed(key);
        match call.api.engine.replay_event(&scope, &tenant, &id, endpoints, keyed).await {
            Ok(count) => Ok(CountBody::reply(count)),
            Err(ChangeError::NotFound) => Err(call.no_such_event(&tenant)),
            // Known before, so they are of another tenant than the event, or were deleted just now.
            Err(ChangeError::NotAllowed(why)) => Err(Problem::invalid("/endpointIds", why)),
            Err(error) => Err(error.into()),
        }
    })
    .await
}

fn replay_targets(call: &Call, ids: &[String]) -> Result<Vec<EndpointId>, Problem> {
    let mut errors = Errors::default();
    if ids.is_empty() || ids.len() > limits::BULK_DELIVERIES_MAX {
        errors.push("/endpointIds", "1 to 1000 ids, or leave it out for those that the event matches now");
    }
    let mut targets = Vec::new();
    for (index, text) in ids.iter().take(limits::BULK_DELIVERIES_MAX).enumerate() {
        match text.parse::<EndpointId>() {
            Ok(id) if call.api.engine.endpoint(&call.principal.scope, &id).is_some() => targets.push(id),
            _ => errors.push(format!("/endpointIds/{index}"), format!("there is no endpoint `{text}`")),
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
    fn hops_are_one_number_and_more_than_the_limit_is_a_loop() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(attribute::HOPS, value.parse().unwrap());
            }
            hops(&headers).map_err(|problem| problem.code())
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
    fn data_is_taken_byte_for_byte() {
        let body = br#"{"type":"a.b","data": {"z" :1.0,"a": "\u00e9", "z":2e400} ,"expectedVersion":"none","stream":"s"}"#;
        let input: EventInput<'_> = body::parse(body).unwrap();
        assert_eq!(input.data.get(), r#"{"z" :1.0,"a": "\u00e9", "z":2e400}"#);
        assert_eq!(input.expected_version.unwrap().0, Expected::NoStream);
        let null: EventInput<'_> = body::parse(br#"{"type":"a","data":null,"deliverAt":null}"#).unwrap();
        assert_eq!(null.data.get(), "null");
    }

    #[test]
    fn wrong_members_of_an_event_are_pointed_at() {
        for (body, place) in [
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
                errors[0].place,
                super::super::problem::Place::Pointer(place.to_owned()),
                "{body} {errors:?}"
            );
        }
    }

    #[test]
    fn a_batch_is_taken_apart_without_looking_into_its_events() {
        let items = json_items(br#"{"events": [{"type": 1}, 7, "x"]}"#).unwrap();
        assert_eq!(items, vec![&br#"{"type": 1}"#[..], &b"7"[..], &br#""x""#[..]]);
        let lines = ndjson_items(b"{\"a\":1}\r\n\n  \nnot json\n").unwrap();
        assert_eq!(lines, vec![&br#"{"a":1}"#[..], &b"not json"[..]]);
    }

    #[test]
    fn a_batch_without_events_or_with_too_many_is_refused_whole() {
        let many = |count: usize| format!("{{\"events\":[{}]}}", vec!["1"; count].join(","));
        assert_eq!(json_items(many(0).as_bytes()).unwrap_err().status(), 422);
        assert_eq!(json_items(many(1001).as_bytes()).unwrap_err().status(), 422);
        assert_eq!(json_items(many(1000).as_bytes()).unwrap().len(), 1000);
        assert_eq!(ndjson_items(b"\n\n").unwrap_err().status(), 422);
        assert_eq!(ndjson_items("1\n".repeat(1001).as_bytes()).unwrap_err().status(), 422);
        assert_eq!(json_items(b"{\"events\":[1,]}").unwrap_err().status(), 400);
        assert_eq!(json_items(b"{\"events\":7}").unwrap_err().status(), 422);
    }
}

//! Batches of events: JSON arrays, NDJSON lines and batches of CloudEvents.

use std::collections::HashSet;
use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::handlers::{NDJSON, build_draft, default_tenant, parse_hops, set_hops};
use super::model::{AcceptedBody, BatchAnswer, BatchCheckInput, BatchSchema};
use crate::api::Call;
use crate::api::http::problem::{Errors, Problem, ProblemPart};
use crate::api::http::reply::Reply;
use crate::api::http::request::RequestBody;
use crate::api::http::response::Accepted;
use crate::api::http::{body, idempotency};
use crate::api::routes::{BodySpec, Limit, Need, schema};
use crate::api::v1::streams::append::set_keys;
use crate::api::v1::{cloudevents, event_types};
use crate::domain::Idempotency;
use crate::limits;
use crate::service::Events;
use crate::service::atomic::{AtomicError, AtomicRequest, FailedPart, StreamCheck};
use crate::service::types::{EventDraft, Published};

/// Typical size of an event's result, in bytes of JSON.
const RESULT_BYTES: usize = 320;

const JSON_OR_LINES: &[&str] = &["application/json", NDJSON];

/// The body of a batch, which [`post_batch`] parses by its media type.
pub struct BatchRequest;

impl RequestBody for BatchRequest {
    const SPEC: BodySpec = BodySpec {
        need: Need::Required,
        limit: Limit::Batch,
        media: JSON_OR_LINES,
        schema: schema::<BatchSchema<'static>>,
    };

    fn read(_: &Call) -> Result<Self, Problem> {
        Ok(Self)
    }
}

/// `POST /v1/events/batch`, and a batch of CloudEvents at `POST /v1/events`.
pub async fn post_batch(call: &Call, _: BatchRequest) -> Result<Accepted<BatchAnswer>, Problem> {
    let (base, _guard) = call.idempotency(call.principal.scope_text())?;
    let (published, checks) = match call.heavy_work(call.body.len(), || parse(call, base.as_ref())).await? {
        Parsed::Independent(ParsedBatch { drafts, checks }) => {
            (Events(&call.api.context).publish_batch(drafts, base).await?, checks)
        }
        Parsed::Atomic(request) => {
            let published = publish_atomic(call, request).await?;
            let checks = published.results.iter().map(|_| Ok(())).collect();
            (published, checks)
        }
    };
    let reply_bytes = checks.len() * RESULT_BYTES;
    Ok(call.heavy_work(reply_bytes, || batch_response(call, checks, published)).await)
}

/// The events of a request.
enum Parsed {
    Independent(ParsedBatch),
    Atomic(AtomicRequest),
}

/// The valid events of a batch, and a result for each event.
struct ParsedBatch {
    drafts: Vec<EventDraft>,
    checks: Vec<Result<(), Problem>>,
}

fn parse(call: &Call, base: Option<&Idempotency>) -> Result<Parsed, Problem> {
    let items = match call.media {
        NDJSON => ndjson_items(&call.body)?,
        cloudevents::BATCHED => cloudevents::batch_items(&call.body)?,
        _ => {
            let input: BatchInput<'_> = body::parse(&call.body)?;
            if input.atomic == Some(true) {
                return atomic_request(call, input, base).map(Parsed::Atomic);
            }
            if input.checks.is_some() {
                return Err(Problem::invalid("/checks", "requires `atomic`"));
            }
            json_items(input)?
        }
    };
    parse_drafts(call, items, base).map(Parsed::Independent)
}

fn parse_drafts(call: &Call, items: Items<'_>, base: Option<&Idempotency>) -> Result<ParsedBatch, Problem> {
    let hops = parse_hops(&call.headers)?;
    let key = idempotency::parse_key(&call.headers)?;
    let caller = call.principal.scope_text();
    let route = format!("POST {}", call.path);
    let mut drafts = Vec::with_capacity(items.len());
    let mut checks = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let mut draft = batch_draft(call, item);
        if let Ok(draft) = &mut draft {
            set_hops(draft, hops);
            event_types::handlers::check_event(call, draft);
        }
        if let (Ok(draft), Some(key), Some(base)) = (&mut draft, &key, base) {
            let scope = idempotency::scope(caller, &route, key, Some(index));
            draft.idempotency = Some(Idempotency { scope, ..base.clone() });
        }
        checks.push(draft.map(|draft| drafts.push(draft)));
    }
    Ok(ParsedBatch { drafts, checks })
}

fn batch_draft(call: &Call, raw: &[u8]) -> Result<EventDraft, Problem> {
    let limit = call.config.max_event_bytes;
    if raw.len() > limit {
        return Err(Problem::PayloadTooLarge { limit });
    }
    if call.media == cloudevents::BATCHED {
        return cloudevents::parse_structured(call, raw);
    }
    build_draft(call, body::parse(raw)?, raw)
}

/// `checks` has one entry per item; `published` has the results of the valid ones, in order.
fn batch_response(
    call: &Call,
    checks: Vec<Result<(), Problem>>,
    published: Published,
) -> Accepted<BatchAnswer> {
    // An invalid item is checked again on every repetition.
    let are_valid = !checks.is_empty() && checks.iter().all(Result::is_ok);
    let replayed = published.is_all_repeated() && (published.repeated || are_valid);
    let mut results = published.results.into_iter();
    let mut out = Vec::with_capacity(64 + checks.len() * RESULT_BYTES);
    out.extend_from_slice(b"{\"results\":[");
    for (index, check) in checks.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let result = match check {
            Err(problem) => Err(problem),
            Ok(()) => match results.next() {
                Some(result) => result.map_err(Problem::from),
                None => Err(Problem::Unavailable("the event has no result".to_owned())),
            },
        };
        match result {
            Ok(accepted) => {
                let deliveries =
                    Events(&call.api.context).delivery_count(&call.principal.scope, &accepted.event);
                let body = AcceptedBody::new(&accepted, deliveries, default_tenant(call));
                let body = AcceptedBody { status: Some(202), ..body };
                write_item(&mut out, &body);
            }
            Err(problem) => {
                call.api.on_rejected(&problem);
                write_item(&mut out, &problem);
            }
        }
    }
    out.extend_from_slice(b"]}");
    let response = Accepted::from_reply(Reply::bytes(202, out.into()));
    if replayed { response.with_header("idempotent-replayed", "true") } else { response }
}

/// A failed serialisation, which is a bug, is logged and writes `null`.
fn write_item(out: &mut Vec<u8>, item: &impl Serialize) {
    let start = out.len();
    if let Err(error) = serde_json::to_writer(&mut *out, item) {
        tracing::error!(%error, "batch result serialisation failed");
        out.truncate(start);
        out.extend_from_slice(b"null");
    }
}

type Items<'a> = Vec<&'a [u8]>;

/// Parses an atomic batch. The first invalid event fails it.
fn atomic_request(
    call: &Call,
    input: BatchInput<'_>,
    base: Option<&Idempotency>,
) -> Result<AtomicRequest, Problem> {
    let hops = parse_hops(&call.headers)?;
    let checks = atomic_checks(call, input.checks.as_deref().unwrap_or_default())?;
    let (mut drafts, mut ids) = (Vec::new(), HashSet::new());
    for (index, item) in json_items(input)?.into_iter().enumerate() {
        let part = ProblemPart { index: Some(index), stream: None };
        let mut draft = batch_draft(call, item).map_err(|problem| match problem {
            Problem::Validation(found) => {
                let mut errors = Errors::default();
                errors.extend_below(&format!("/events/{index}"), found);
                Problem::Validation(errors.0).of_part(part.clone())
            }
            other => other.of_part(part.clone()),
        })?;
        if draft.id.as_ref().is_some_and(|id| !ids.insert((draft.tenant.clone(), id.clone()))) {
            let pointer = format!("/events/{index}/id");
            return Err(
                Problem::invalid(pointer, "an earlier event of the request has this id").of_part(part)
            );
        }
        set_hops(&mut draft, hops);
        event_types::handlers::check_event(call, &mut draft);
        drafts.push(draft);
    }
    set_keys(call, call.principal.scope_text(), base, &mut drafts)?;
    Ok(AtomicRequest { key: base.cloned(), checks, drafts })
}

fn atomic_checks(call: &Call, inputs: &[BatchCheckInput]) -> Result<Vec<StreamCheck>, Problem> {
    if inputs.len() > limits::CHECKS_MAX {
        return Err(Problem::invalid("/checks", format!("at most {} checks", limits::CHECKS_MAX)));
    }
    let mut errors = Errors::default();
    let mut checks = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.iter().enumerate() {
        let stream = errors.check(&format!("/checks/{index}/stream"), input.stream.parse());
        let named = input.tenant.as_ref();
        let named = named.and_then(|name| errors.check(&format!("/checks/{index}/tenant"), name.parse()));
        let tenant = call.principal.tenant(named)?;
        let expected = input.expected_version.0;
        checks.extend(stream.map(|stream| StreamCheck { tenant, stream, expected }));
    }
    errors.finish()?;
    Ok(checks)
}

async fn publish_atomic(call: &Call, request: AtomicRequest) -> Result<Published, Problem> {
    let streams: Vec<_> = request.drafts.iter().map(|draft| draft.stream.clone()).collect();
    let checked: Vec<_> = request.checks.iter().map(|check| check.stream.clone()).collect();
    let accepted = Events(&call.api.context).publish_atomic(request).await;
    let events = accepted.map_err(|AtomicError { part, error }| {
        let (index, stream) = match part {
            Some(FailedPart::Check(index)) => (None, checked.get(index)),
            Some(FailedPart::Event(index)) => (Some(index), streams.get(index).and_then(Option::as_ref)),
            None => (None, None),
        };
        Problem::from(error).of_part(ProblemPart { index, stream: stream.map(ToString::to_string) })
    })?;
    let repeated = events.iter().all(|accepted| accepted.duplicate);
    Ok(Published { repeated, results: events.into_iter().map(Ok).collect() })
}

fn json_items(input: BatchInput<'_>) -> Result<Items<'_>, Problem> {
    check_count(input.events.count)?;
    Ok(input.events.items.into_iter().map(|item| item.get().as_bytes()).collect())
}

fn ndjson_items(raw: &[u8]) -> Result<Items<'_>, Problem> {
    let lines = || raw.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    check_count(lines().take(limits::BATCH_EVENTS_MAX + 1).count())?;
    Ok(lines().collect())
}

pub(in crate::api::v1) fn check_count(count: usize) -> Result<(), Problem> {
    if count == 0 {
        return Err(Problem::invalid("/events", "at least one event is required"));
    }
    if count > limits::BATCH_EVENTS_MAX {
        return Err(Problem::invalid("/events", format!("at most {} events", limits::BATCH_EVENTS_MAX)));
    }
    Ok(())
}

/// The events are parsed later, so that an invalid one does not fail the batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchInput<'a> {
    #[serde(borrow)]
    events: Bounded<'a>,
    atomic: Option<bool>,
    checks: Option<Vec<BatchCheckInput>>,
}

/// Counts all items, but keeps at most the limit: millions of tiny items must not use memory.
pub(in crate::api) struct Bounded<'a> {
    pub(in crate::api) items: Vec<&'a RawValue>,
    pub(in crate::api) count: usize,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(raw: &[u8]) -> Result<Items<'_>, Problem> {
        json_items(body::parse(raw)?)
    }

    #[test]
    fn batch_is_split_without_parsing_its_events() {
        let items = parsed(br#"{"events": [{"type": 1}, 7, "x"]}"#).unwrap();
        assert_eq!(items, vec![&br#"{"type": 1}"#[..], &b"7"[..], &br#""x""#[..]]);
        let lines = ndjson_items(b"{\"a\":1}\r\n\n  \nnot json\n").unwrap();
        assert_eq!(lines, vec![&br#"{"a":1}"#[..], &b"not json"[..]]);
    }

    #[test]
    fn empty_or_oversized_batch_is_rejected() {
        let many = |count: usize| format!("{{\"events\":[{}]}}", vec!["1"; count].join(","));
        assert_eq!(parsed(many(0).as_bytes()).unwrap_err().status(), 422);
        assert_eq!(parsed(many(1001).as_bytes()).unwrap_err().status(), 422);
        assert_eq!(parsed(many(1000).as_bytes()).unwrap().len(), 1000);
        assert_eq!(ndjson_items(b"\n\n").unwrap_err().status(), 422);
        assert_eq!(ndjson_items("1\n".repeat(1001).as_bytes()).unwrap_err().status(), 422);
        assert_eq!(parsed(b"{\"events\":[1,]}").unwrap_err().status(), 400);
        assert_eq!(parsed(b"{\"events\":7}").unwrap_err().status(), 422);
    }
}

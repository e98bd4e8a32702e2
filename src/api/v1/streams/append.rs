//! `POST /v1/streams/{stream}/events`: an atomic append, of Balto's own events or of CloudEvents.

use std::collections::HashSet;

use serde::Deserialize;

use super::model::{AppendBody, AppendSchema, CheckInput, StreamEventInput};
use super::query;
use crate::api::Call;
use crate::api::http::problem::{Errors, Problem, ProblemPart};
use crate::api::http::request::RequestBody;
use crate::api::http::response::Accepted;
use crate::api::http::{body, idempotency};
use crate::api::routes::{BodySpec, Limit, Need, schema};
use crate::api::v1::events::batch::{Bounded, check_count};
use crate::api::v1::events::handlers::{build_draft, default_tenant, parse_hops, set_hops};
use crate::api::v1::events::model::ExpectedVersion;
use crate::api::v1::{cloudevents, event_types};
use crate::domain::{Expected, Idempotency, StreamName, Tenant};
use crate::limits;
use crate::service::Events;
use crate::service::atomic::{AtomicError, AtomicRequest, FailedPart, StreamCheck};
use crate::service::types::EventDraft;

/// Typical size of an event's result, in bytes of JSON.
const RESULT_BYTES: usize = 160;
/// Most errors of one request that are reported.
const ERRORS_MAX: usize = 100;

const JSON_OR_CLOUDEVENTS: &[&str] = &["application/json", cloudevents::STRUCTURED, cloudevents::BATCHED];

/// The body of an append, which [`append`] parses beside other requests.
pub struct AppendRequest;

impl RequestBody for AppendRequest {
    const SPEC: BodySpec = BodySpec {
        need: Need::Required,
        limit: Limit::Batch,
        media: JSON_OR_CLOUDEVENTS,
        schema: schema::<AppendSchema<'static>>,
    };

    fn read(_: &Call) -> Result<Self, Problem> {
        Ok(Self)
    }
}

/// The events are parsed later: each one is fingerprinted as it was posted.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AppendInput<'a> {
    #[serde(borrow)]
    events: Bounded<'a>,
    expected_version: Option<ExpectedVersion>,
    checks: Option<Vec<CheckInput>>,
}

/// The unparsed events of a request, and its conditions.
struct AppendParts<'a> {
    events: Vec<&'a [u8]>,
    expected: Expected,
    checks: Vec<StreamCheck>,
}

impl<'a> AppendParts<'a> {
    /// CloudEvents have no member for a condition, so `expectedVersion` is a parameter.
    fn parse(call: &'a Call, tenant: &Tenant) -> Result<Self, Problem> {
        let named = query::expected_version(&call.query)?;
        let of_cloudevents =
            |events| Ok(Self { events, expected: named.unwrap_or(Expected::Any), checks: Vec::new() });
        match call.media {
            cloudevents::STRUCTURED | cloudevents::BINARY => of_cloudevents(vec![&call.body[..]]),
            cloudevents::BATCHED => {
                let events = cloudevents::batch_items(&call.body)?;
                if events.is_empty() {
                    return Err(Problem::invalid("", "at least one event is required"));
                }
                of_cloudevents(events)
            }
            _ => {
                if named.is_some() {
                    let detail = "is for CloudEvents; name the version in the body";
                    return Err(Problem::parameter("expectedVersion", detail));
                }
                let input: AppendInput<'a> = body::parse(&call.body)?;
                check_count(input.events.count)?;
                let checks = parse_checks(tenant, &input.checks.unwrap_or_default())?;
                let events = input.events.items.into_iter().map(|item| item.get().as_bytes()).collect();
                let expected = input.expected_version.map_or(Expected::Any, |expected| expected.0);
                Ok(Self { events, expected, checks })
            }
        }
    }
}

/// JSON pointer of an event.
fn event_pointer(media: &str, index: usize) -> String {
    match media {
        cloudevents::STRUCTURED | cloudevents::BINARY => String::new(),
        cloudevents::BATCHED => format!("/{index}"),
        _ => format!("/events/{index}"),
    }
}

/// `POST /v1/streams/{stream}/events`
pub async fn append(call: &Call, _: AppendRequest) -> Result<Accepted<AppendBody<'static>>, Problem> {
    let stream: StreamName = call.parse_new_name()?;
    let tenant = call.stream_tenant()?;
    if tenant.as_str() == Tenant::OPERATOR {
        return Err(Problem::Forbidden("the tenant `balto` is reserved".to_owned()));
    }
    let (mut key, _guard) = call.idempotency(tenant.as_str())?;
    if let (Some(key), Some(expected)) = (&mut key, call.query.text("expectedVersion")) {
        // With another condition it is another request.
        key.fingerprint = idempotency::fingerprint(&[expected.as_bytes(), &[0], &key.fingerprint].concat());
    }
    let parse = || parse_request(call, &tenant, &stream, key);
    let request = call.heavy_work(call.body.len(), parse).await?;
    let checked: Vec<_> = request.checks.iter().map(|check| check.stream.clone()).collect();
    let count = request.drafts.len();
    let events = match Events(&call.api.context).publish_atomic(request).await {
        Ok(events) => events,
        Err(error) => return Err(append_problem(error, &stream, &checked)),
    };
    let respond = || {
        let body = AppendBody::new(&stream, &events, default_tenant(call));
        let response = Accepted::new(&body).without_lifetime();
        if body.duplicate { response.with_header("idempotent-replayed", "true") } else { response }
    };
    Ok(call.heavy_work(count * RESULT_BYTES, respond).await)
}

fn append_problem(
    AtomicError { part, error }: AtomicError,
    stream: &StreamName,
    checked: &[StreamName],
) -> Problem {
    let (index, name) = match part {
        Some(FailedPart::Check(index)) => (None, checked.get(index)),
        Some(FailedPart::Event(index)) => (Some(index), Some(stream)),
        None => (None, None),
    };
    Problem::from(error).of_part(ProblemPart { index, stream: name.map(ToString::to_string) })
}

fn parse_request(
    call: &Call,
    tenant: &Tenant,
    stream: &StreamName,
    key: Option<Idempotency>,
) -> Result<AtomicRequest, Problem> {
    let hops = parse_hops(&call.headers)?;
    let AppendParts { events, expected, checks } = AppendParts::parse(call, tenant)?;
    let mut drafts = Vec::with_capacity(events.len());
    let (mut errors, mut ids) = (Errors::default(), HashSet::new());
    for (index, raw) in events.into_iter().enumerate() {
        let at = event_pointer(call.media, index);
        match parse_event(call, tenant, stream, raw) {
            Ok(mut draft) => {
                if draft.publisher_id_key().is_some_and(|id| !ids.insert(id.scope)) {
                    errors.push(format!("{at}/id"), "an earlier event of the request has this id");
                }
                set_hops(&mut draft, hops);
                event_types::handlers::check_event(call, &mut draft);
                drafts.push(draft);
            }
            Err(Problem::Validation(found)) => errors.extend_below(&at, found),
            Err(other) => {
                let part = ProblemPart { index: Some(index), stream: Some(stream.to_string()) };
                return Err(other.of_part(part));
            }
        }
        if errors.0.len() >= ERRORS_MAX {
            break;
        }
    }
    errors.finish()?;
    if let Some(first) = drafts.first_mut() {
        first.expected = expected;
    }
    set_keys(call, tenant.as_str(), key.as_ref(), &mut drafts)?;
    Ok(AtomicRequest { key, checks, drafts })
}

fn parse_event(call: &Call, tenant: &Tenant, stream: &StreamName, raw: &[u8]) -> Result<EventDraft, Problem> {
    let limit = call.config.max_event_bytes;
    if raw.len() > limit {
        return Err(Problem::PayloadTooLarge { limit });
    }
    // The same event in another stream is another event.
    let in_stream =
        |bytes: &[u8]| idempotency::fingerprint(&[stream.as_str().as_bytes(), &[0], bytes].concat());
    let mut draft = match call.media {
        cloudevents::BINARY => cloudevents::parse_binary(call)?,
        cloudevents::STRUCTURED | cloudevents::BATCHED => cloudevents::parse_structured(call, raw)?,
        _ => {
            let input: StreamEventInput<'_> = body::parse(raw)?;
            let draft = build_draft(call, input.into_event(tenant, stream), raw)?;
            let fingerprint = if draft.id.is_some() { in_stream(raw) } else { draft.fingerprint };
            return Ok(EventDraft { fingerprint, ..draft });
        }
    };
    draft.fingerprint = in_stream(&draft.fingerprint);
    draft.stream = Some(stream.clone());
    Ok(draft)
}

fn parse_checks(tenant: &Tenant, inputs: &[CheckInput]) -> Result<Vec<StreamCheck>, Problem> {
    if inputs.len() > limits::CHECKS_MAX {
        return Err(Problem::invalid("/checks", format!("at most {} checks", limits::CHECKS_MAX)));
    }
    let mut errors = Errors::default();
    let mut checks = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.iter().enumerate() {
        let stream = errors.check(&format!("/checks/{index}/stream"), input.stream.parse());
        checks.extend(stream.map(|stream| input.check(tenant, stream)));
    }
    errors.finish()?;
    Ok(checks)
}

/// Gives the first event the key of the request, and the others derived keys. The journal keeps an
/// event while its key is valid.
pub(in crate::api::v1) fn set_keys(
    call: &Call,
    caller: &str,
    key: Option<&Idempotency>,
    drafts: &mut [EventDraft],
) -> Result<(), Problem> {
    let Some((key, text)) = key.zip(idempotency::parse_key(&call.headers)?) else { return Ok(()) };
    let route = format!("POST {}", call.path);
    for (index, draft) in drafts.iter_mut().enumerate() {
        let own = idempotency::scope(caller, &route, &text, Some(index));
        let scope = if index == 0 { key.scope } else { own };
        draft.idempotency = Some(Idempotency { scope, ..key.clone() });
    }
    Ok(())
}

//! Consumers: put, get, list, delete, commit, reset.

use std::time::Duration;

use super::model::{CommitInput, ConsumerBody, ConsumerInput, PlaceBody, ResetInput};
use crate::api::http::problem::{Errors, Problem};
use crate::api::http::request::{Optional, Required};
use crate::api::http::response::{CreatedOrReplaced, Json, NoContent, Success};
use crate::api::v1::event_types::pins;
use crate::api::v1::feed;
use crate::api::v1::feed::handlers::{FeedRequest, FeedResponse};
use crate::api::v1::feed::query::parse_cursor;
use crate::api::v1::lists::{self, List, ListBody};
use crate::api::v1::named_url;
use crate::api::{Call, not_found};
use crate::domain::{ConsumerKey, ConsumerName, Tenant};
use crate::limits;
use crate::rules::feed::FeedFilter;
use crate::service::Consumers;
use crate::service::consumers::{ConsumerError, ConsumerView, Creation, FoundConsumer};
use crate::service::types::{ConsumerStatus, FeedStart};

const CONSUMER: &str = "consumer";

fn named(call: &Call) -> Result<ConsumerName, Problem> {
    call.parse_id(CONSUMER)
}

/// The consumer in the path.
///
/// # Errors
/// 404 for an unknown one.
fn find(call: &Call) -> Result<ConsumerStatus, Problem> {
    find_by_name(call, &named(call)?)
}

fn find_by_name(call: &Call, name: &ConsumerName) -> Result<ConsumerStatus, Problem> {
    let tenant = call.principal.tenant_filter(call.query.get("tenant")?)?;
    match Consumers(&call.api.context).find(tenant, name) {
        FoundConsumer::One(status) => Ok(status),
        FoundConsumer::None => Err(not_found(CONSUMER, name.as_str())),
        FoundConsumer::Several => Err(Problem::NotFound(format!(
            "several tenants have a consumer `{name}`; name the tenant with `?tenant=`"
        ))),
    }
}

/// The problem for a failed change. `pointer` is the member with the position.
fn problem(call: &Call, error: ConsumerError, pointer: &str) -> Problem {
    match error {
        ConsumerError::NotFound => not_found(CONSUMER, &call.id),
        ConsumerError::Moved { actual } => Problem::ConsumerMoved { actual },
        ConsumerError::BeyondHead { head } => {
            Problem::invalid(pointer, format!("is beyond the end of the log, {head}"))
        }
        ConsumerError::Gone { oldest } => Problem::PositionGone { oldest },
        ConsumerError::TooMany => Problem::Conflict(error.to_string()),
        ConsumerError::QuotaExceeded(exceeded) => Problem::QuotaExceeded(exceeded),
        ConsumerError::Store(unavailable) => unavailable.into(),
    }
}

async fn body<const STATUS: u16>(
    call: &Call,
    status: ConsumerStatus,
) -> Result<Success<STATUS, ConsumerBody>, Problem> {
    let view = Consumers(&call.api.context).view(status).await?;
    Ok(Success::new(&shown(call, &view)))
}

fn shown(call: &Call, view: &ConsumerView) -> ConsumerBody {
    ConsumerBody::new(view, call.api.context.now().wall)
}

/// `PUT /v1/consumers/{name}`
pub async fn put(
    call: &Call,
    Optional(mut input): Optional<ConsumerInput>,
) -> Result<CreatedOrReplaced<ConsumerBody>, Problem> {
    let name: ConsumerName = call.parse_new_name()?;
    let mut errors = Errors::default();
    let tenant = input.tenant.take().and_then(|tenant| errors.check("/tenant", tenant.parse::<Tenant>()));
    let tenant = call.principal.tenant_filter(tenant)?;
    if let Some(tenant) = &tenant {
        call.principal.check_reserved(tenant)?;
    }
    let now = call.api.context.now().wall;
    let (consumer, start) = input.check(ConsumerKey { tenant, name }, now, &mut errors);
    let present = Consumers(&call.api.context).status(&consumer.key);
    let present = present.map(|present| present.consumer.versions.clone()).unwrap_or_default();
    pins::check(call, &consumer.versions, &present, &mut errors);
    errors.finish()?;
    let put = Consumers(&call.api.context).put(consumer, start).await;
    let (status, creation) = put.map_err(|error| problem(call, error, "/start"))?;
    Ok(match creation {
        Creation::Created => {
            let key = &status.consumer.key;
            let named = key.tenant.as_ref().filter(|_| call.principal.scope.0.is_none());
            let location = named_url("consumers", key.name.as_str(), named);
            CreatedOrReplaced::Created(body(call, status).await?.with_header("location", &location))
        }
        Creation::Existed => CreatedOrReplaced::Replaced(body(call, status).await?),
    })
}

/// `GET /v1/consumers/{name}`. Waits until the consumer has reached a position.
pub async fn get(call: &Call) -> Result<Json<ConsumerBody>, Problem> {
    let mut status = find(call)?;
    if let Some(wanted) = call.query.text("waitPosition") {
        let position = parse_cursor(wanted)
            .map_err(|_| Problem::parameter("waitPosition", "must be a position, such as 1240"))?;
        let wait = match call.query.text("wait") {
            Some(_) => call.query.wait()?,
            None => limits::POSITION_WAIT_DEFAULT,
        };
        let key = status.consumer.key.clone();
        let gone = call.gone();
        let found = Consumers(&call.api.context).wait(call.party.clone(), &key, position, wait, gone).await?;
        status = found.ok_or_else(|| not_found(CONSUMER, key.name.as_str()))?;
    } else if call.query.wait()? > Duration::ZERO {
        return Err(Problem::parameter("wait", "needs `waitPosition`"));
    }
    body(call, status).await
}

/// `GET /v1/consumers`
pub async fn list(call: &Call) -> Result<Json<ListBody<ConsumerBody>>, Problem> {
    let limit = call.query.limit()?;
    let tenant = call.principal.tenant_filter(call.query.get("tenant")?)?;
    let after = call.query.text("cursor").map(decode_cursor).transpose()?;
    let found = Consumers(&call.api.context).list(tenant.as_ref(), after.as_ref(), limit).await?;
    let (views, more) = found;
    let last = views.last().filter(|_| more);
    let next = last.map(|view| lists::encode(List::Consumers, &encode_key(&view.status.consumer.key)));
    let data = views.iter().map(|view| shown(call, view)).collect();
    Ok(lists::list_reply(&call.path, &call.query, data, next))
}

fn decode_cursor(cursor: &str) -> Result<ConsumerKey, Problem> {
    decode_key(&lists::decode_text(List::Consumers, cursor)?)
}

/// The place of a consumer in a list, for a cursor.
pub(in crate::api::v1) fn encode_key(key: &ConsumerKey) -> Vec<u8> {
    format!("{}\0{}", key.tenant_text(), key.name).into_bytes()
}

/// # Errors
/// 422 for another text than that of [`encode_key`].
pub(in crate::api::v1) fn decode_key(text: &str) -> Result<ConsumerKey, Problem> {
    let key = text.split_once('\0').and_then(|(tenant, name)| {
        let tenant = if tenant.is_empty() { None } else { Some(tenant.parse().ok()?) };
        Some(ConsumerKey { tenant, name: name.parse().ok()? })
    });
    key.ok_or_else(lists::bad_cursor)
}

/// `GET /v1/consumers/{name}/events`: the feed from the consumer's position on.
pub async fn events(call: &Call) -> Result<FeedResponse, Problem> {
    events_of(call, find(call)?).await
}

/// As [`events`], of the consumer that `GET /v1/feed` names.
///
/// # Errors
/// 404 for an unknown consumer, 422 for parameters that the consumer defines.
pub async fn events_of_named(call: &Call, name: &ConsumerName) -> Result<FeedResponse, Problem> {
    let defined = ["after", "lastEventId", "types", "stream", "streamPrefix", "versions"];
    if let Some(given) = defined.into_iter().find(|name| call.query.text(name).is_some()) {
        return Err(Problem::parameter(given, "cannot be combined with `consumer`, which defines it"));
    }
    events_of(call, find_by_name(call, name)?).await
}

async fn events_of(call: &Call, found: ConsumerStatus) -> Result<FeedResponse, Problem> {
    let consumers = Consumers(&call.api.context);
    let key = &found.consumer.key;
    let not_found = || not_found(CONSUMER, key.name.as_str());
    let connection = Some(consumers.connect(key));
    // Read after `connect`, which notices the resets from then on.
    let status = consumers.status(key).ok_or_else(not_found)?;
    let (filter, start) = (FeedFilter::from(&*status.consumer), FeedStart::After(status.place.position));
    let wanted = FeedRequest { filter, versions: status.consumer.version_choice(), start };
    let answered = feed::handlers::answer(call, wanted, connection).await;
    if let Err(Problem::PositionGone { oldest }) = &answered {
        consumers.on_gone(&status, *oldest).await;
    }
    if consumers.status(key).is_none() {
        return Err(not_found());
    }
    answered
}

/// `DELETE /v1/consumers/{name}`
pub async fn delete(call: &Call) -> Result<NoContent, Problem> {
    let key = find(call)?.consumer.key.clone();
    Consumers(&call.api.context).delete(key).await.map_err(|error| problem(call, error, ""))?;
    Ok(NoContent::empty())
}

/// `POST /v1/consumers/{name}/commit`
pub async fn commit(call: &Call, Required(input): Required<CommitInput>) -> Result<Json<PlaceBody>, Problem> {
    let mut errors = Errors::default();
    let to = input.position.check("/position", &mut errors);
    let from = input.from.map(|from| from.check("/from", &mut errors));
    errors.finish()?;
    let key = find(call)?.consumer.key.clone();
    let committed = Consumers(&call.api.context).commit(key, to, from).await;
    let status = committed.map_err(|error| problem(call, error, "/position"))?;
    Ok(Json::new(&PlaceBody::new(&status)))
}

/// `POST /v1/consumers/{name}/reset`
pub async fn reset(
    call: &Call,
    Required(input): Required<ResetInput>,
) -> Result<Json<ConsumerBody>, Problem> {
    let mut errors = Errors::default();
    let to = input.to.check("/to", &mut errors);
    errors.finish()?;
    let key = find(call)?.consumer.key.clone();
    let reset = Consumers(&call.api.context).reset(key, to).await;
    let status = reset.map_err(|error| problem(call, error, "/to"))?;
    body(call, status).await
}

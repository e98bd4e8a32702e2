//! Event types: list, get, put, delete, and the check of posted events.

use super::model::{Extent, TypeBody, TypeInput};
use crate::api::http::problem::{Errors, Problem};
use crate::api::http::request::Required;
use crate::api::http::response::{CreatedOrReplaced, Json, NoContent, Success};
use crate::api::v1::lists::{self, List, ListBody};
use crate::api::{Call, not_found};
use crate::domain::EventType;
use crate::service::EventTypes;
use crate::service::event_types::{Effect, Strictness, TypeChange, TypeChangeError, Unregistered};
use crate::service::types::{ChangeError, EventDraft};

/// Checks a posted event against its registered type. A refusal goes with the draft, because a
/// repetition of an accepted event is answered all the same.
pub fn check_event(call: &Call, draft: &mut EventDraft) {
    let unregistered =
        if call.config.types_required { Unregistered::Refused } else { Unregistered::Accepted };
    EventTypes(&call.api.context).check(draft, unregistered);
}

/// `GET /v1/event-types`
pub async fn list(call: &Call) -> Result<Json<ListBody<TypeBody>>, Problem> {
    let limit = call.query.limit()?;
    let after = call.query.text("cursor").map(|cursor| lists::decode_name(List::EventTypes, cursor));
    let after: Option<EventType> = after.transpose()?;
    let types = EventTypes(&call.api.context);
    let (views, more) = types.list(&call.principal.scope, after.as_ref(), limit).await?;
    let last = views.last().filter(|_| more);
    let next = last
        .map(|view| lists::encode(List::EventTypes, view.registered.definition().name.as_str().as_bytes()));
    let now = call.api.context.now().wall;
    let data = views.iter().map(|view| TypeBody::new(view, Extent::Summary, now)).collect();
    Ok(lists::list_reply(&call.path, &call.query, data, next))
}

/// `GET /v1/event-types/{name}`
pub async fn get(call: &Call) -> Result<Json<TypeBody>, Problem> {
    let name: EventType = call.parse_id("event type")?;
    Ok(Json::new(&body(call, &name).await?))
}

async fn body(call: &Call, name: &EventType) -> Result<TypeBody, Problem> {
    let view = EventTypes(&call.api.context).get(&call.principal.scope, name).await?;
    let view = view.ok_or_else(|| not_found("event type", name.as_str()))?;
    Ok(TypeBody::new(&view, Extent::Whole, call.api.context.now().wall))
}

/// `PUT /v1/event-types/{name}`
pub async fn put(
    call: &Call,
    Required(input): Required<TypeInput>,
) -> Result<CreatedOrReplaced<TypeBody>, Problem> {
    let name: EventType = call.parse_new_name()?;
    if name.as_str().starts_with("balto.") {
        return Err(Problem::parameter("name", "types with the prefix `balto.` are reserved"));
    }
    let (strictness, effect) = (strictness(call)?, effect(call)?);
    let mut errors = Errors::default();
    let definition = input.definition(name.clone(), &mut errors);
    errors.finish()?;
    let types = EventTypes(&call.api.context);
    let change = types.put(definition, strictness, effect).await?;
    if effect == Effect::DryRun {
        return Ok(CreatedOrReplaced::Replaced(dry_run(call, &change).await?));
    }
    let body = body(call, &name).await?.with_change(&change);
    Ok(if change.is_new {
        CreatedOrReplaced::Created(Success::new(&body).with_header("location", &call.path))
    } else {
        CreatedOrReplaced::Replaced(Success::new(&body))
    })
}

/// The response to a dry run: the definition as it would be.
async fn dry_run(call: &Call, change: &TypeChange) -> Result<Json<TypeBody>, Problem> {
    let view = EventTypes(&call.api.context).preview(&call.principal.scope, change).await?;
    let body = TypeBody::new(&view, Extent::Whole, call.api.context.now().wall);
    Ok(Json::new(&body.with_change(change)))
}

fn is_set(call: &Call, name: &str) -> Result<bool, Problem> {
    Ok(call.query.word(name, lists::BOOLEANS)? == Some("true"))
}

fn strictness(call: &Call) -> Result<Strictness, Problem> {
    Ok(if is_set(call, "force")? { Strictness::Force } else { Strictness::Compatible })
}

fn effect(call: &Call) -> Result<Effect, Problem> {
    Ok(if is_set(call, "dryRun")? { Effect::DryRun } else { Effect::Store })
}

/// `DELETE /v1/event-types/{name}`
pub async fn delete(call: &Call) -> Result<NoContent, Problem> {
    let name: EventType = call.parse_id("event type")?;
    match EventTypes(&call.api.context).delete(&name, strictness(call)?).await {
        Ok(()) => Ok(NoContent::empty()),
        Err(TypeChangeError::Change(ChangeError::NotFound)) => Err(not_found("event type", name.as_str())),
        Err(error) => Err(error.into()),
    }
}

//! Sources: create, list, get, change, delete, pause, resume.

use serde_json::Value;

use super::model::{NewSourceInput, SourceBody, SourceInput};
use crate::api::http::problem::{Errors, Problem};
use crate::api::http::request::{MergePatch, Nothing, Required};
use crate::api::http::response::{Created, Json, NoContent};
use crate::api::v1::changes::{patched, unless_interrupted, until_written};
use crate::api::v1::endpoints::handlers::refused_url;
use crate::api::v1::lists::{self, List, ListBody};
use crate::api::{Call, not_found};
use crate::domain::{Source, SourceName, SourceStatus};
use crate::service::sources::SourceView;
use crate::service::types::{ChangeError, is_broker_url};
use crate::service::{Endpoints, Sources};

const SOURCE: &str = "source";

fn find(call: &Call) -> Result<SourceView, Problem> {
    let name: SourceName = call.parse_id(SOURCE)?;
    Sources(&call.api.context).get(&name).ok_or_else(|| not_found(SOURCE, name.as_str()))
}

/// The source with the canonical form of its URL.
async fn with_checked_url(call: &Call, source: Source) -> Result<Source, Problem> {
    if !is_broker_url(&source.url) {
        return Err(Problem::invalid("/url", "must be the URL of a broker, such as amqps://host/vhost"));
    }
    let checked = Endpoints(&call.api.context).check_broker_url(&source.url).await;
    let url = checked.map_err(|refused| refused_url(call, refused))?;
    Ok(Source { url, ..source })
}

/// `POST /v1/sources`
pub async fn create(
    call: &Call,
    Required(NewSourceInput(mut input)): Required<NewSourceInput>,
) -> Result<Created<SourceBody>, Problem> {
    let mut errors = Errors::default();
    input.lift_credentials(&mut errors);
    let source = input.source(None, call.api.context.now().wall, &mut errors);
    errors.finish()?;
    let Some(source) = source else {
        return Err(Problem::Validation(Vec::new())); // not reached: `finish` has returned the error
    };
    let location = format!("/v1/sources/{}", source.name);
    let created = call.run_once("sources", async |key| {
        let source = with_checked_url(call, source).await?;
        let sources = Sources(&call.api.context);
        let body = SourceBody::new(&SourceView { source: source.clone().into(), report: None });
        let response = Created::new(&body);
        match sources.put(source, response.to_stored(key)).await {
            Ok(_) => Ok(response),
            Err(ChangeError::Conflict) => {
                Err(Problem::Conflict("a source with this name exists already".to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    });
    Ok(created.await?.created_at(&location))
}

/// `GET /v1/sources`
pub async fn list(call: &Call) -> Result<Json<ListBody<SourceBody>>, Problem> {
    let limit = call.query.limit()?;
    let after = call.query.text("cursor").map(|cursor| lists::decode_name(List::Sources, cursor));
    let after: Option<SourceName> = after.transpose()?;
    let (views, more) = Sources(&call.api.context).list(after.as_ref(), limit);
    let last = views.last().filter(|_| more);
    let next = last.map(|view| lists::encode(List::Sources, view.source.name.as_str().as_bytes()));
    let data = views.iter().map(SourceBody::new).collect();
    Ok(lists::list_reply(&call.path, &call.query, data, next))
}

/// `GET /v1/sources/{name}`
pub async fn get(call: &Call) -> Result<Json<SourceBody>, Problem> {
    Ok(Json::new(&SourceBody::new(&find(call)?)))
}

/// Writes a change; `None` if the source was changed concurrently.
async fn write(call: &Call, view: SourceView, changed: Source) -> Result<Option<SourceView>, Problem> {
    if changed == *view.source {
        return Ok(Some(view));
    }
    unless_interrupted(Sources(&call.api.context).put(changed, None).await)
}

/// `PATCH /v1/sources/{name}`
pub async fn patch(
    call: &Call,
    MergePatch { patch, .. }: MergePatch<SourceInput>,
) -> Result<Json<SourceBody>, Problem> {
    let written = until_written(call, || async {
        let view = find(call)?;
        let changed = apply_patch(call, &view, &patch).await?;
        write(call, view, changed).await
    });
    Ok(Json::new(&SourceBody::new(&written.await?)))
}

async fn apply_patch(call: &Call, view: &SourceView, patch: &Value) -> Result<Source, Problem> {
    let current = &*view.source;
    let mut input: SourceInput = patched(SourceBody::new(view).into_input(current), patch)?;
    let mut errors = Errors::default();
    input.lift_credentials(&mut errors);
    let changed = input.source(Some(current), call.api.context.now().wall, &mut errors);
    errors.finish()?;
    let Some(changed) = changed else {
        return Err(Problem::Validation(Vec::new())); // not reached: `finish` has returned the error
    };
    let mut changed =
        if changed.url == current.url { changed } else { with_checked_url(call, changed).await? };
    let is_bound_elsewhere = (&changed.url, &changed.username) != (&current.url, &current.username);
    if changed.password == current.password && is_bound_elsewhere {
        // The seal is bound to both.
        let plain = Sources(&call.api.context).plain_password(current);
        changed.password = plain.map_err(|error| Problem::Unavailable(error.to_string()))?;
    }
    Ok(changed)
}

/// `DELETE /v1/sources/{name}`
pub async fn delete(call: &Call) -> Result<NoContent, Problem> {
    let name = find(call)?.source.name.clone();
    match Sources(&call.api.context).delete(&name).await {
        Ok(()) => Ok(NoContent::empty()),
        Err(ChangeError::NotFound) => Err(not_found(SOURCE, name.as_str())),
        Err(error) => Err(error.into()),
    }
}

async fn set_status(call: &Call, status: SourceStatus) -> Result<Json<SourceBody>, Problem> {
    let written = until_written(call, || async {
        let view = find(call)?;
        let changed = Source { status, ..Source::clone(&view.source) };
        write(call, view, changed).await
    });
    Ok(Json::new(&SourceBody::new(&written.await?)))
}

/// `POST /v1/sources/{name}/pause`
pub async fn pause(call: &Call, _: Nothing) -> Result<Json<SourceBody>, Problem> {
    set_status(call, SourceStatus::Paused).await
}

/// `POST /v1/sources/{name}/resume`
pub async fn resume(call: &Call, _: Nothing) -> Result<Json<SourceBody>, Problem> {
    set_status(call, SourceStatus::Active).await
}

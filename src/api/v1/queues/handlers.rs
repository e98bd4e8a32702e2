//! Queues: create, list, get, change, delete, pause and resume.

use std::sync::Arc;

use super::model::{NewQueueInput, QueueBody, QueueInput};
use super::settings::QueueSettings;
use crate::api::http::problem::{Errors, Problem};
use crate::api::http::request::{MergePatch, Nothing, Required};
use crate::api::http::response::{Created, Json, NoContent};
use crate::api::v1::changes::{patched, unless_interrupted, until_written};
use crate::api::v1::endpoints::handlers::write;
use crate::api::v1::endpoints::selection::check_filter_room;
use crate::api::v1::event_types::pins;
use crate::api::v1::events::handlers::default_tenant;
use crate::api::v1::lists::{self, List, ListBody};
use crate::api::v1::named_url;
use crate::api::{Call, not_found};
use crate::domain::{Endpoint, EndpointStatus, Idempotency, QueueName, Tenant};
use crate::service::types::ChangeError;
use crate::service::{Endpoints, Queues};

pub(super) fn queue_body(call: &Call, queue: &Endpoint) -> QueueBody {
    QueueBody::new(queue, &call.config.defaults.policy)
}

/// The queue in the path, in the tenant of `?tenant=` or of the key.
pub(super) fn find(call: &Call) -> Result<Arc<Endpoint>, Problem> {
    let name: QueueName = call.parse_id("queue")?;
    let tenant = call.principal.tenant(call.query.owner()?)?;
    let found = Queues(&call.api.context).get(&call.principal.scope, &tenant, &name);
    found.ok_or_else(|| Problem::NotFound(format!("queue `{name}` not found in tenant `{tenant}`")))
}

/// Finds a queue to change: not one of the reserved tenant, except for the operator.
pub(super) fn find_writable(call: &Call) -> Result<Arc<Endpoint>, Problem> {
    let queue = find(call)?;
    call.principal.check_reserved(&queue.tenant)?;
    Ok(queue)
}

/// `POST /v1/queues`
pub async fn create(
    call: &Call,
    Required(NewQueueInput(input)): Required<NewQueueInput>,
) -> Result<Created<QueueBody>, Problem> {
    let mut errors = Errors::default();
    let name = match input.name.as_deref() {
        Some(name) => errors.check("/name", name.parse::<QueueName>()),
        None => {
            errors.push("/name", "missing field `name`");
            None
        }
    };
    let tenant = lists::check_owner(input.tenant.as_deref(), &mut errors);
    let settings = input.settings(&mut errors);
    errors.finish()?;
    let tenant = call.principal.tenant(tenant)?;
    call.principal.check_reserved(&tenant)?;
    let Some(name) = name else { return Err(Problem::invalid("/name", "missing field `name`")) };
    let scope = tenant.to_string();
    let named = Some(&tenant).filter(|tenant| tenant.as_str() != default_tenant(call));
    let location = named_url("queues", name.as_str(), named);
    let created = call.run_once(&scope, async |key| register(call, tenant, name, settings, key).await);
    Ok(created.await?.created_at(&location))
}

async fn register(
    call: &Call,
    tenant: Tenant,
    name: QueueName,
    settings: QueueSettings,
    idempotency: Option<Idempotency>,
) -> Result<Created<QueueBody>, Problem> {
    let queues = Queues(&call.api.context);
    let present = queues.get(&call.principal.scope, &tenant, &name);
    check_context(call, &tenant, &settings, present.as_deref())?;
    until_written(call, || async {
        if let Some(present) = queues.get(&call.principal.scope, &tenant, &name) {
            return repeated(call, &present, settings.clone()).map(Some);
        }
        let now = call.api.context.now().wall;
        let queue = settings.clone().into_queue(queues.new_id(), tenant.clone(), name.clone(), now);
        let response = Created::new(&queue_body(call, &queue));
        let remember = response.to_stored(idempotency.clone());
        let created = Endpoints(&call.api.context).create(queue, remember).await;
        Ok(unless_interrupted(created)?.map(|_| response))
    })
    .await
}

/// The same queue again is 200; another one with its name is a conflict.
fn repeated(call: &Call, present: &Endpoint, settings: QueueSettings) -> Result<Created<QueueBody>, Problem> {
    let Some(target) = present.queue() else { return Err(ChangeError::Conflict.into()) };
    let wanted = settings.into_queue(
        present.id.clone(),
        present.tenant.clone(),
        target.name.clone(),
        present.created_at,
    );
    if keep_identity(wanted, present) != *present {
        return Err(Problem::QueueExists(format!(
            "queue `{}` exists with other members; change it with PATCH, or choose another name",
            target.name
        )));
    }
    Ok(Created::new(&queue_body(call, present)).with_status(200))
}

/// A changed queue with number, status and times of the present one.
fn keep_identity(changed: Endpoint, present: &Endpoint) -> Endpoint {
    Endpoint {
        number: present.number,
        status: present.status,
        created_at: present.created_at,
        updated_at: present.updated_at,
        revision: present.revision,
        ..changed
    }
}

/// Checks pinned versions, and that the tenant's patterns together stay within their bound.
fn check_context(
    call: &Call,
    tenant: &Tenant,
    settings: &QueueSettings,
    replaced: Option<&Endpoint>,
) -> Result<(), Problem> {
    let mut errors = Errors::default();
    check_filter_room(call, tenant, settings.selection(), replaced, &mut errors);
    let present = replaced.map(|queue| &*queue.versions).unwrap_or_default();
    pins::check(call, settings.versions(), present, &mut errors);
    let replaced = replaced.map(|queue| queue.number);
    let room = Endpoints(&call.api.context).check_patterns(tenant, settings.event_types(), replaced);
    errors.check("/eventTypes", room);
    errors.finish()
}

/// `GET /v1/queues`
pub async fn list(call: &Call) -> Result<Json<ListBody<QueueBody>>, Problem> {
    let tenant = call.principal.tenant_filter(call.query.owner()?)?;
    let (after, limit) = (call.query.cursor(List::Queues)?, call.query.limit()?);
    let page = Queues(&call.api.context).list(&call.principal.scope, tenant.as_ref(), after, limit);
    let data = page.items.iter().map(|queue| queue_body(call, queue)).collect();
    Ok(lists::page_reply(&call.path, &call.query, List::Queues, &page, data))
}

/// `GET /v1/queues/{name}`
pub async fn get(call: &Call) -> Result<Json<QueueBody>, Problem> {
    Ok(Json::new(&queue_body(call, &*find(call)?)))
}

/// `PATCH /v1/queues/{name}`
pub async fn patch(
    call: &Call,
    MergePatch { patch, .. }: MergePatch<QueueInput>,
) -> Result<Json<QueueBody>, Problem> {
    change(call, |queue| {
        let input: QueueInput = patched(queue_body(call, queue).into_input(), &patch)?;
        let mut errors = Errors::default();
        let target = queue.queue().map(|target| target.name.clone());
        if input.name.as_deref() != target.as_ref().map(QueueName::as_str) {
            errors.push("/name", "cannot be changed");
        }
        if input.tenant.as_deref() != Some(queue.tenant.as_str()) {
            errors.push("/tenant", "cannot be changed");
        }
        let settings = input.settings(&mut errors);
        errors.finish()?;
        check_context(call, &queue.tenant, &settings, Some(queue))?;
        let name = target.ok_or_else(|| not_found("queue", &call.id))?;
        let changed = settings.into_queue(queue.id.clone(), queue.tenant.clone(), name, queue.created_at);
        Ok(keep_identity(changed, queue))
    })
    .await
}

/// Reads the queue, decides and writes. Retries after concurrent changes.
async fn change(
    call: &Call,
    decide: impl Fn(&Endpoint) -> Result<Endpoint, Problem> + Send + Sync,
) -> Result<Json<QueueBody>, Problem> {
    let written = until_written(call, || async {
        let queue = find_writable(call)?;
        let changed = decide(&queue)?;
        write(call, queue, changed, None).await
    });
    Ok(Json::new(&queue_body(call, &*written.await?)))
}

/// `DELETE /v1/queues/{name}`
pub async fn delete(call: &Call) -> Result<NoContent, Problem> {
    let queue = find_writable(call)?;
    let deleted = Queues(&call.api.context).delete(&call.principal.scope, &queue).await;
    deleted.map_err(|error| call.change_problem(error, "queue"))?;
    Ok(NoContent::empty())
}

/// `POST /v1/queues/{name}/pause`
pub async fn pause(call: &Call, _: Nothing) -> Result<Json<QueueBody>, Problem> {
    change(call, |queue| Ok(Endpoint { status: EndpointStatus::Paused, ..queue.clone() })).await
}

/// `POST /v1/queues/{name}/resume`
pub async fn resume(call: &Call, _: Nothing) -> Result<Json<QueueBody>, Problem> {
    change(call, |queue| Ok(Endpoint { status: EndpointStatus::Active, ..queue.clone() })).await
}

//! Tenants: list, get, put, patch, delete.

use serde_json::Value;

use super::model::{DeletionBody, DeletionInput, TenantBody, TenantInput};
use crate::api::http::body;
use crate::api::http::problem::{Errors, Problem};
use crate::api::http::request::{MergePatch, Required};
use crate::api::http::response::{Accepted, CreatedOrReplaced, Json, Success};
use crate::api::v1::changes::{unless_interrupted, until_written};
use crate::api::v1::endpoints::settings;
use crate::api::v1::jobs::model::StartedBody;
use crate::api::v1::lists::{self, List, ListBody};
use crate::api::{Call, not_found};
use crate::domain::{Tenant, TenantSettings};
use crate::service::{Jobs, Tenants};

/// # Errors
/// 404 for a malformed name.
fn named(call: &Call) -> Result<Tenant, Problem> {
    call.parse_id("tenant")
}

/// The response with the current tenant.
async fn reply<const STATUS: u16>(
    call: &Call,
    tenant: &Tenant,
) -> Result<Success<STATUS, TenantBody>, Problem> {
    let view = Tenants(&call.api.context).get(tenant).await?;
    let view = view.ok_or_else(|| not_found("tenant", tenant.as_str()))?;
    Ok(Success::new(&TenantBody::new(&view)))
}

/// `GET /v1/tenants`
pub async fn list(call: &Call) -> Result<Json<ListBody<TenantBody>>, Problem> {
    let limit = call.query.limit()?;
    let after = call.query.text("cursor").map(|cursor| lists::decode_name(List::Tenants, cursor));
    let (views, more) = Tenants(&call.api.context).list(after.transpose()?, limit).await?;
    let last = views.last().filter(|_| more);
    let next = last.map(|view| lists::encode(List::Tenants, view.tenant.as_str().as_bytes()));
    let data = views.iter().map(TenantBody::new).collect();
    Ok(lists::list_reply(&call.path, &call.query, data, next))
}

/// `GET /v1/tenants/{tenant}`. A key that is bound to a tenant reads its own.
pub async fn get(call: &Call) -> Result<Json<TenantBody>, Problem> {
    let tenant = named(call)?;
    call.principal.tenant_filter(Some(tenant.clone()))?;
    reply(call, &tenant).await
}

/// `PUT /v1/tenants/{tenant}`
pub async fn put(
    call: &Call,
    Required(input): Required<TenantInput>,
) -> Result<CreatedOrReplaced<TenantBody>, Problem> {
    let tenant: Tenant = call.parse_new_name()?;
    let tenants = Tenants(&call.api.context);
    let now = call.api.context.now().wall;
    let mut errors = Errors::default();
    let wanted = input.settings(tenant.clone(), &call.config.defaults, now, &mut errors);
    errors.finish()?;
    let was_there = until_written(call, || async {
        let current = tenants.settings(&tenant);
        let written = tenants.put(based_on(wanted.clone(), current.as_deref())).await;
        Ok(unless_interrupted(written)?.map(|_| current.is_some()))
    });
    Ok(if was_there.await? {
        CreatedOrReplaced::Replaced(reply(call, &tenant).await?)
    } else {
        CreatedOrReplaced::Created(reply(call, &tenant).await?.with_header("location", &call.path))
    })
}

/// The settings as a change of the current ones.
fn based_on(wanted: TenantSettings, current: Option<&TenantSettings>) -> TenantSettings {
    match current {
        Some(current) => {
            TenantSettings { created_at: current.created_at, revision: current.revision, ..wanted }
        }
        None => wanted,
    }
}

/// `PATCH /v1/tenants/{tenant}`. Creates the settings of a tenant that exists by use.
pub async fn patch(
    call: &Call,
    MergePatch { patch, .. }: MergePatch<TenantInput>,
) -> Result<Json<TenantBody>, Problem> {
    let tenant = named(call)?;
    let tenants = Tenants(&call.api.context);
    let written = until_written(call, || async {
        let view = tenants.get(&tenant).await?.ok_or_else(|| not_found("tenant", tenant.as_str()))?;
        let current = view.settings.as_deref();
        let wanted = apply_patch(call, &tenant, current, &patch)?;
        unless_interrupted(tenants.put(based_on(wanted, current)).await)
    });
    written.await?;
    reply(call, &tenant).await
}

fn apply_patch(
    call: &Call,
    tenant: &Tenant,
    current: Option<&TenantSettings>,
    patch: &Value,
) -> Result<TenantSettings, Problem> {
    let input = current.map(TenantInput::new).unwrap_or_default();
    let mut value = serde_json::to_value(input)
        .map_err(|_| Problem::Unavailable("the tenant could not be serialised".to_owned()))?;
    if let (Some(delivery), Some(change)) = (value.get_mut("delivery"), patch.get("delivery")) {
        settings::reset_retry(delivery, change);
    }
    settings::merge(&mut value, patch);
    let input: TenantInput = body::parse_value(value)?;
    let mut errors = Errors::default();
    let now = call.api.context.now().wall;
    let wanted = input.settings(tenant.clone(), &call.config.defaults, now, &mut errors);
    errors.finish()?;
    Ok(wanted)
}

/// `DELETE /v1/tenants/{tenant}`
pub async fn delete(
    call: &Call,
    Required(DeletionInput { confirm, dry_run }): Required<DeletionInput>,
) -> Result<Accepted<DeletionBody>, Problem> {
    let tenant = named(call)?;
    if tenant.as_str() == Tenant::OPERATOR {
        return Err(Problem::Forbidden(
            "the tenant `balto` is reserved for the operator; it cannot be deleted".to_owned(),
        ));
    }
    if confirm != tenant.as_str() {
        return Err(Problem::invalid("/confirm", format!("must be the tenant in the path, `{tenant}`")));
    }
    let tenants = Tenants(&call.api.context);
    if dry_run == Some(true) {
        let covered = tenants.deletion(&tenant).await;
        let (deletion, new) = covered.map_err(|error| call.change_problem(error, "tenant"))?;
        let count = Jobs(&call.api.context).count(&new).await?;
        return Ok(Accepted::new(&DeletionBody::new(StartedBody::dry_run(count), deletion)));
    }
    let deleted = tenants.delete(&tenant).await;
    let (deletion, known) = deleted.map_err(|error| call.change_problem(error, "tenant"))?;
    let started = StartedBody::new(&known.job, &known.progress);
    Ok(Accepted::new(&DeletionBody::new(started, deletion)))
}

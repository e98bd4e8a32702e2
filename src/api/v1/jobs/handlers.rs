//! Jobs: list, get, cancel, and their start for the operations of other resources.

use super::model::{JobBody, StartedBody};
use crate::api::http::problem::Problem;
use crate::api::http::request::Nothing;
use crate::api::http::response::{Accepted, Json};
use crate::api::v1::lists::{self, List, ListBody};
use crate::api::{Call, not_found};
use crate::domain::{JobId, JobKind, JobStatus, Tenant};
use crate::service::jobs::{JobFilter, NewJob};
use crate::service::types::{Cursor, KnownJob};
use crate::service::{Endpoints, Jobs};

/// Starts a job, or counts what it would cover.
pub(in crate::api::v1) async fn start(
    call: &Call,
    new: NewJob,
    dry_run: Option<bool>,
) -> Result<Accepted<StartedBody>, Problem> {
    let jobs = Jobs(&call.api.context);
    if dry_run == Some(true) {
        return Ok(Accepted::new(&StartedBody::dry_run(jobs.count(&new).await?)));
    }
    call.run_once(call.principal.scope_text(), async |key| {
        Ok(StartedBody::accepted(&*jobs.start(&new, StartedBody::keyed(key)).await?))
    })
    .await
}

fn body(call: &Call, known: &KnownJob) -> JobBody {
    let job = &known.job;
    let target = match job.selection.endpoint {
        Some(number) => Endpoints(&call.api.context).name(number),
        None => job.tenant.as_ref().filter(|_| job.kind == JobKind::DeleteTenant).map(Tenant::to_string),
    };
    JobBody::new(known, target, &call.principal.scope)
}

/// `GET /v1/jobs`
pub async fn list(call: &Call) -> Result<Json<ListBody<JobBody>>, Problem> {
    let filter = JobFilter {
        tenant: call.principal.tenant_filter(call.query.owner()?)?,
        kind: call.query.word("kind", lists::JOB_KINDS)?.and_then(JobKind::from_word),
        status: call.query.word("status", lists::JOB_STATUSES)?.and_then(JobStatus::from_word),
    };
    let (after, limit) = (call.query.cursor(List::Jobs)?, call.query.limit()?);
    let before = after.map(|cursor| cursor.position);
    let (jobs, more) = Jobs(&call.api.context).list(&call.principal.scope, &filter, before, limit);
    let last = jobs.last().filter(|_| more);
    let next = last.map(|known| lists::cursor_text(List::Jobs, Cursor::at(known.job.number)));
    let data = jobs.iter().map(|known| body(call, known)).collect();
    Ok(lists::list_reply(&call.path, &call.query, data, next))
}

/// `GET /v1/jobs/{id}`
pub async fn get(call: &Call) -> Result<Json<JobBody>, Problem> {
    let id: JobId = call.parse_id("job")?;
    let known = Jobs(&call.api.context).get(&call.principal.scope, &id);
    let known = known.ok_or_else(|| not_found("job", &call.id))?;
    Ok(Json::new(&body(call, &known)))
}

/// `POST /v1/jobs/{id}/cancel`
pub async fn cancel(call: &Call, _: Nothing) -> Result<Accepted<JobBody>, Problem> {
    let id: JobId = call.parse_id("job")?;
    let cancelled = Jobs(&call.api.context).cancel(&call.principal.scope, &id).await;
    let known = cancelled.map_err(|error| call.change_problem(error, "job"))?;
    Ok(Accepted::new(&body(call, &known)))
}

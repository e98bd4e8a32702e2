//! Responses of jobs, and of the requests that start one.

use schemars::JsonSchema;
use serde::Serialize;

use crate::api::http::problem::Errors;
use crate::api::http::response::Accepted;
use crate::api::text::{Time, Word};
use crate::context::responses::Keyed;
use crate::domain::{Actor, Audience, Idempotency, Job, JobKind, JobProgress, JobStatus, ShownClass, Tenant};
use crate::limits;
use crate::service::types::{KnownJob, Scope};

/// The caller of an operation.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActorBody {
    /// Null: the configured admin key, no key with `--dev`, or a key that the caller may not see.
    pub key_id: Option<String>,
    #[schemars(with = "Word<crate::domain::Role>")]
    pub role: &'static str,
    /// The tenant of the key.
    pub tenant: Option<String>,
}

impl ActorBody {
    /// A tenant does not see the keys of others.
    #[must_use]
    pub fn new(actor: &Actor, scope: &Scope) -> Self {
        let is_shown = is_visible(actor, scope);
        Self {
            key_id: actor.key.as_ref().filter(|_| is_shown).map(ToString::to_string),
            role: actor.role.as_str(),
            tenant: actor.tenant.as_ref().map(ToString::to_string),
        }
    }
}

/// Whether a caller sees the key and the address of an actor.
#[must_use]
pub fn is_visible(actor: &Actor, scope: &Scope) -> bool {
    scope.0.as_ref().is_none_or(|own| actor.tenant.as_ref() == Some(own))
}

/// The part of the deliveries or events that a job covers. Absent members select everything.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SelectionBody {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub event_types: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Word<crate::domain::DeadReason>>")]
    pub reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Word<ShownClass>>")]
    pub error_class: Option<&'static str>,
    #[serde(rename = "q", skip_serializing_if = "Option::is_none")]
    pub id_start: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    pub only_undelivered: bool,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobBody {
    pub id: String,
    /// The operation that started it.
    #[schemars(with = "Word<JobKind>")]
    pub kind: &'static str,
    #[schemars(with = "Word<JobStatus>")]
    pub status: &'static str,
    /// The id of an endpoint, the name of a queue, or a tenant; null: selected by the filter only.
    pub target: Option<String>,
    pub tenant: Option<String>,
    pub filter: SelectionBody,
    /// The number of deliveries, or of resources of a tenant, when the job started.
    pub count: u64,
    pub done: u64,
    /// Most deliveries per second; null: unlimited.
    pub rate: Option<u32>,
    /// Why it failed.
    pub error: Option<String>,
    pub started_by: ActorBody,
    pub started_at: Time,
    /// The last step, or the end.
    pub updated_at: Time,
    pub ended_at: Option<Time>,
}

impl JobBody {
    #[must_use]
    pub fn new(known: &KnownJob, target: Option<String>, scope: &Scope) -> Self {
        let KnownJob { job, progress } = known;
        let JobProgress { status, done, at, error, .. } = progress;
        let selection = &job.selection;
        let last_attempt = selection.search.last_attempt.as_ref();
        Self {
            id: job.id.to_string(),
            kind: job.kind.as_str(),
            status: status.as_str(),
            target,
            tenant: job.tenant.as_ref().map(Tenant::to_string),
            filter: SelectionBody {
                event_types: selection.types.iter().map(ToString::to_string).collect(),
                reason: selection.reason.map(|reason| reason.as_str()),
                status_code: last_attempt.and_then(|last| last.status),
                error_class: last_attempt
                    .filter(|last| scope.0.is_none() || last.audience == Audience::Tenant)
                    .and_then(|last| last.class)
                    .map(ShownClass::as_str),
                id_start: selection.search.id_start.as_ref().map(ToString::to_string),
                since: selection.since.map(Time),
                until: selection.until.map(Time),
                only_undelivered: selection.only_undelivered,
            },
            count: job.count,
            done: *done,
            rate: job.rate,
            error: error.as_ref().map(ToString::to_string),
            started_by: ActorBody::new(&job.started_by, scope),
            started_at: Time(job.started_at),
            updated_at: Time(*at),
            ended_at: progress.ended_at().map(Time),
        }
    }
}

/// The response to a request for bulk work.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StartedBody {
    /// The job; null for a dry run.
    pub id: Option<String>,
    /// The number of deliveries, or of resources of a tenant, that the work covers.
    pub count: u64,
    /// Work of the first step. A repeated request gets the same answer.
    pub done: u64,
    /// `completed`: small work has ended with its first step. Null for a dry run.
    #[schemars(with = "Option<Word<JobStatus>>")]
    pub status: Option<&'static str>,
    pub dry_run: bool,
    /// The path of the job.
    pub status_url: Option<String>,
}

impl StartedBody {
    #[must_use]
    pub fn dry_run(count: u64) -> Self {
        Self { id: None, count, done: 0, status: None, dry_run: true, status_url: None }
    }

    #[must_use]
    pub fn new(job: &Job, progress: &JobProgress) -> Self {
        Self {
            id: Some(job.id.to_string()),
            count: job.count,
            done: progress.done,
            status: Some(progress.status.as_str()),
            dry_run: false,
            status_url: Some(format!("/v1/jobs/{}", job.id)),
        }
    }

    #[must_use]
    pub fn accepted(job: &Job) -> Accepted<Self> {
        Accepted::new(&Self::new(job, &job.progress))
    }

    /// The key of a request that starts a job; `None` without a key.
    #[must_use]
    pub fn keyed(idempotency: Option<Idempotency>) -> Option<Keyed<Job>> {
        Some(Keyed { idempotency: idempotency?, answer: |job| Self::accepted(job).answer() })
    }
}

/// Checks the rate of a paced job.
pub fn check_rate(rate: Option<u32>, errors: &mut Errors) -> Option<u32> {
    let is_legal = rate.is_none_or(|rate| (1..=limits::JOB_RATE_MAX).contains(&rate));
    if !is_legal {
        errors.push("/rate", format!("must be from 1 to {}", limits::JOB_RATE_MAX));
    }
    rate.filter(|_| is_legal)
}

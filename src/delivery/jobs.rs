//! Runs the steps of jobs: bulk work of operators that survives a restart.
//!
//! Jobs that run take turns, one step each. The registry has the jobs and their progress, so the
//! first turn after a start continues the jobs of the previous process. A paced job rests after
//! each step.

use std::time::Duration;

use tokio::time::Instant;

use crate::context::Context;
use crate::delivery::background::run_task;
use crate::domain::{IdMap, JobId};
use crate::metrics::BackgroundTask;
use crate::outbox::Health;
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::outbox::registry::KnownJob;
use crate::panics;
use crate::service::Jobs;
use crate::service::jobs::is_temporary;

/// Pause of a job whose step failed for a reason that may end.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Pause of a paced job before its first background step.
const FIRST_REST: Duration = Duration::from_secs(1);

/// Runs jobs until the outbox has stopped.
pub async fn run(context: Context) {
    run_task(&context, BackgroundTask::Jobs, run_steps).await;
}

pub(crate) async fn run_steps(context: Context) {
    panics::test_point("jobs");
    let mut rests: IdMap<JobId, Instant> = IdMap::default();
    loop {
        let running = Jobs(&context).running();
        context.metrics().jobs_running(running.len());
        rests.retain(|id, _| running.iter().any(|known| known.job.id == *id));
        let mut is_idle = true;
        for known in running {
            let now = Instant::now();
            // A paced job has just made its first step, or the process has started.
            let first_rest = if known.job.rate.is_some() { FIRST_REST } else { Duration::ZERO };
            if *rests.entry(known.job.id.clone()).or_insert(now + first_rest) > now {
                continue;
            }
            is_idle = false;
            let rest = match step(&context, &known).await {
                Ok(rest) => rest,
                Err(error) if has_ended(&context, &error) => {
                    tracing::warn!(%error, "jobs stopped, continuing at the next start");
                    return;
                }
                Err(error) => {
                    tracing::warn!(job = %known.job.id, %error, "job step failed, retrying");
                    RETRY_PAUSE
                }
            };
            rests.insert(known.job.id.clone(), Instant::now() + rest);
        }
        if is_idle {
            let next = rests.values().min().copied();
            tokio::select! {
                () = context.job_started() => {}
                () = sleep_until(next) => {}
            }
        }
    }
}

/// Whether the outbox has stopped or failed. Otherwise a read of one record may have failed.
fn has_ended(context: &Context, error: &Unavailable) -> bool {
    *error == Unavailable::Stopping
        || context.waits().have_ended()
        || matches!(&*context.health().borrow(), Health::Failed(_))
}

async fn sleep_until(next: Option<Instant>) {
    match next {
        Some(next) => tokio::time::sleep_until(next).await,
        None => std::future::pending().await,
    }
}

/// Makes a step. Returns how long the job rests.
async fn step(context: &Context, known: &KnownJob) -> Result<Duration, Unavailable> {
    let jobs = Jobs(context);
    let error = match jobs.step(known).await {
        Ok(deliveries) => return Ok(rest(known, deliveries)),
        // It was cancelled, or another request changed the tenant that it deletes.
        Err(ChangeError::Conflict) => return Ok(Duration::ZERO),
        Err(error) if is_temporary(&error) => {
            tracing::debug!(job = %known.job.id, %error, "job step failed, retrying");
            return Ok(RETRY_PAUSE);
        }
        Err(ChangeError::Store(error)) => return Err(error),
        Err(error) => error,
    };
    match jobs.fail(known, &error).await {
        Ok(()) | Err(ChangeError::Conflict) => Ok(Duration::ZERO),
        Err(ChangeError::Store(error)) if !is_temporary(&error.clone().into()) => Err(error),
        Err(_) => Ok(RETRY_PAUSE),
    }
}

/// The time in which a paced job may make this many deliveries.
fn rest(known: &KnownJob, deliveries: u64) -> Duration {
    match known.job.rate {
        Some(rate) => Duration::from_secs_f64(deliveries as f64 / f64::from(rate.max(1))),
        None => Duration::ZERO,
    }
}

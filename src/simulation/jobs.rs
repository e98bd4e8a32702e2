//! Jobs: random bulk work, and the invariants of its records.
//!
//! A step and its progress are one commit. No life forgets what an earlier one has done.

use std::time::Duration;

use super::model::Model;
use super::operations::{ALL_TENANTS, check_change};
use super::world::World;
use crate::context::Context;
use crate::context::home::Home;
use crate::domain::{JobKind, JobStatus, Record};
use crate::service::Jobs;
use crate::service::jobs::NewJob;

/// Occurrences that some seed must have.
pub(super) const OCCURRENCES: [&str; 3] = ["jobsWithSteps", "jobsCancelled", "jobsContinued"];

/// Simulated time in which a job must end, unless the life ends first.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Starts a job and waits for its end. Sometimes cancels it. Returns whether it is complete.
pub(super) async fn run(context: &Context, world: &World, what: &str, new: &NewJob) -> bool {
    let result = Jobs(context).start(new, None).await;
    check_change(world, what, &result);
    let Ok(job) = result else { return false };
    if !job.progress.is_running() {
        return job.progress.status == JobStatus::Completed;
    }
    world.count("jobsWithSteps");
    if world.chance(|chance| chance.percent(15)) {
        let cancelled = Jobs(context).cancel(&ALL_TENANTS, &job.id).await;
        check_change(world, "cancel job", &cancelled);
        if cancelled.is_ok() {
            world.count("jobsCancelled");
        }
    }
    let known = Jobs(context).wait(job, WAIT_MAX).await;
    world.note(format_args!("{what}: job {} is {:?}", known.job.number, known.progress));
    known.progress.status == JobStatus::Completed
}

/// Compares the jobs of a new life with the model.
pub(super) fn check_known(context: &Context, world: &World) -> Result<(), String> {
    let found: Vec<_> =
        context.outbox_of(Home::All).registry(|registry| registry.jobs().iter().cloned().collect());
    let expected = world.with(|inner| inner.model.oracle.jobs.known());
    if found.iter().any(|known| known.progress.is_running()) {
        world.count("jobsContinued");
    }
    if found == expected { Ok(()) } else { Err(format!("the jobs are {found:?}, not {expected:?}")) }
}

impl Model {
    /// Checks that the deliveries of a job's step follow its progress, and that no step is
    /// repeated.
    pub(super) fn check_job_step(&mut self, record: &Record) -> Result<(), String> {
        if let Some(most) = self.unfinished_step.take() {
            let count = match record {
                Record::DeliveriesRevived { deliveries, .. }
                | Record::DeliveriesCancelled { deliveries, .. }
                | Record::DeadLettersPurged { deliveries, .. } => deliveries.len() as u64,
                other => return Err(format!("a job's step of {most} is followed by {other:?}")),
            };
            // The writer leaves out deliveries of endpoints that were deleted in between.
            let may_shrink = matches!(record, Record::DeliveriesRevived { .. })
                && self.endpoints.values().any(|known| known.deleted);
            if count > most || (count < most && !may_shrink) {
                return Err(format!("a job's step has {count} deliveries, and counts {most}"));
            }
        }
        let (kind, before, after) = match record {
            Record::JobPut(job) => (job.kind, 0, job.progress.done),
            Record::JobMoved { job, progress } => {
                let known = self.oracle.jobs.known().into_iter().find(|known| known.job.number == *job);
                let known = known.ok_or_else(|| format!("an unknown job {job} moved"))?;
                if !known.progress.is_running() {
                    return Err(format!("the job {job} made a step after its end"));
                }
                (known.job.kind, known.progress.done, progress.done)
            }
            _ => return Ok(()),
        };
        if after < before {
            return Err(format!("a job has done {after}, after {before}"));
        }
        self.unfinished_step = Some(after - before).filter(|step| *step > 0 && kind != JobKind::DeleteTenant);
        Ok(())
    }
}

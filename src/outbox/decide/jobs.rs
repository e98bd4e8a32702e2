//! Decisions about jobs and audit entries.

use std::sync::Arc;

use super::{Committer, StagedGroup, read};
use crate::domain::{AuditEntry, Job, JobProgress, Position, Record};
use crate::limits;
use crate::outbox::unit::Outcome;

impl Committer {
    /// Begins a job. Its number is the position of its record.
    pub(super) fn put_job(&self, job: &Job, staged: &mut StagedGroup) -> Outcome {
        let running = read(&self.registry).jobs().running().count();
        if job.progress.is_running() && running >= limits::JOBS_RUNNING_MAX {
            return Outcome::TooManyJobs;
        }
        let job = Arc::new(Job { number: staged.next, ..job.clone() });
        staged.push(Record::JobPut(job.clone()));
        Outcome::Job(job)
    }

    /// Moves a job that runs. A job that has ended makes no step.
    pub(super) fn move_job(
        &self,
        number: Position,
        progress: &JobProgress,
        staged: &mut StagedGroup,
    ) -> Outcome {
        let is_running =
            read(&self.registry).jobs().by_number(number).is_some_and(|known| known.progress.is_running());
        if !is_running {
            return Outcome::Conflict;
        }
        let progress = Box::new(progress.clone());
        Outcome::Written(staged.push(Record::JobMoved { job: number, progress }))
    }

    /// Writes the audit entry of a unit that has changed something.
    pub(super) fn audit(entry: &Arc<AuditEntry>, staged: &mut StagedGroup) -> Outcome {
        if staged.unit_has_changes() {
            Outcome::Written(staged.push(Record::Audited(entry.clone())))
        } else {
            Outcome::Passed
        }
    }
}

//! The jobs of the registry, with their progress.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::domain::{IdMap, Job, JobId, JobProgress, JobStatus, Position, Record};
use crate::projections::jobs::ended_max;

/// A job and its progress after the last commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownJob {
    pub job: Arc<Job>,
    pub progress: JobProgress,
}

/// The jobs that run, and a bounded number of ended ones.
#[derive(Debug, Default)]
pub struct JobDirectory {
    all: BTreeMap<Position, KnownJob>,
    by_id: IdMap<JobId, Position>,
}

impl JobDirectory {
    pub(super) fn apply(&mut self, record: &Record) {
        match record {
            Record::JobPut(job) => {
                self.by_id.insert(job.id.clone(), job.number);
                let known = KnownJob { job: job.clone(), progress: job.progress.clone() };
                self.all.insert(job.number, known);
                self.forget_oldest(&job.progress);
            }
            Record::JobMoved { job, progress } => {
                self.set_progress(*job, (**progress).clone());
                self.forget_oldest(progress);
            }
            _ => {}
        }
    }

    /// Sets the progress of a job, as its last move says.
    pub fn set_progress(&mut self, number: Position, progress: JobProgress) {
        if let Some(known) = self.all.get_mut(&number) {
            known.progress = progress;
        }
    }

    /// Forgets the same job as the rows; see [`jobs`](crate::projections::jobs).
    fn forget_oldest(&mut self, latest: &JobProgress) {
        if latest.is_running() {
            return;
        }
        let ended = self.all.iter().filter_map(|(number, known)| Some((known.progress.ended_at()?, *number)));
        let ended: Vec<_> = ended.collect();
        if ended.len() > ended_max()
            && let Some((_, number)) = ended.into_iter().min()
            && let Some(gone) = self.all.remove(&number)
        {
            self.by_id.remove(&gone.job.id);
        }
    }

    #[must_use]
    pub fn get(&self, id: &JobId) -> Option<&KnownJob> {
        self.by_number(*self.by_id.get(id)?)
    }

    #[must_use]
    pub fn by_number(&self, number: Position) -> Option<&KnownJob> {
        self.all.get(&number)
    }

    /// All jobs in the order of their start.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &KnownJob> {
        self.all.values()
    }

    pub fn running(&self) -> impl Iterator<Item = &KnownJob> {
        self.iter().filter(|known| known.progress.status == JobStatus::Running)
    }
}

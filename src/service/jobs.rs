//! Jobs: bulk work in steps of one commit each.
//!
//! A step and its job's progress are in the same commit, so a job continues after a crash where it
//! was, and no step is done twice. The first step is in the commit that begins the job; small work
//! ends with it. A step of a job that has ended is rejected by the writer.

use std::sync::Arc;
use std::time::Duration;

use crate::context::Context;
use crate::context::home::Home;
use crate::context::records::UNEXPECTED_OUTCOME;
use crate::context::responses::Keyed;
use crate::domain::{
    Actor, EndpointNumber, Job, JobCursor, JobId, JobKind, JobProgress, JobSelection, JobStatus, Party,
    Position, Role, Tenant,
};
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::outbox::registry::KnownJob;
use crate::outbox::unit::{Command, Outcome};
use crate::projections::reads::Cursor;
use crate::service::bulk::deliveries_per_step;
use crate::service::pages::{Pages, cut};
use crate::service::search::Searches;
use crate::service::types::Scope;

mod steps;

pub(crate) use steps::JobStep;

/// Work that an operator asks for.
#[derive(Clone, Debug)]
pub struct NewJob {
    pub kind: JobKind,
    /// `None`: data of all tenants.
    pub tenant: Option<Tenant>,
    pub selection: JobSelection,
    /// Most deliveries per second.
    pub rate: Option<u32>,
}

/// The jobs of a list.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    pub tenant: Option<Tenant>,
    pub kind: Option<JobKind>,
    pub status: Option<JobStatus>,
}

/// The place of a step in its job.
pub(crate) enum StepNumber {
    /// Its commit begins the job, and stores the response.
    First(Option<Keyed<Job>>),
    Later,
}

/// Operations on jobs.
#[derive(Clone, Copy)]
pub struct Jobs<'a>(pub &'a Context);

impl From<Cursor> for JobCursor {
    fn from(Cursor { position, endpoint, event }: Cursor) -> Self {
        Self { position, endpoint, event }
    }
}

impl From<JobCursor> for Cursor {
    fn from(JobCursor { position, endpoint, event }: JobCursor) -> Self {
        Self { position, endpoint, event }
    }
}

/// Whether a caller sees a job. The deletion of a tenant is the operator's.
fn is_visible(scope: &Scope, known: &KnownJob) -> bool {
    let is_own =
        |own: &Tenant| known.job.tenant.as_ref() == Some(own) && known.job.kind != JobKind::DeleteTenant;
    scope.0.as_ref().is_none_or(is_own)
}

impl Jobs<'_> {
    #[must_use]
    pub fn get(self, scope: &Scope, id: &JobId) -> Option<KnownJob> {
        let found = self.0.outbox_of(Home::All).registry(|registry| registry.jobs().get(id).cloned());
        found.filter(|known| is_visible(scope, known))
    }

    /// Jobs that began before the one with this number, newest first, and whether there are more.
    #[must_use]
    pub fn list(
        self,
        scope: &Scope,
        filter: &JobFilter,
        before: Option<Position>,
        limit: usize,
    ) -> (Vec<KnownJob>, bool) {
        let is_wanted = |known: &&KnownJob| {
            is_visible(scope, known)
                && before.is_none_or(|before| known.job.number < before)
                && filter.tenant.as_ref().is_none_or(|tenant| known.job.tenant.as_ref() == Some(tenant))
                && filter.kind.is_none_or(|kind| known.job.kind == kind)
                && filter.status.is_none_or(|status| known.progress.status == status)
        };
        let mut found: Vec<_> = self.0.outbox_of(Home::All).registry(|registry| {
            registry.jobs().iter().rev().filter(is_wanted).take(limit + 1).cloned().collect()
        });
        let more = cut(&mut found, limit);
        (found, more)
    }

    /// Jobs that have further steps.
    #[must_use]
    pub(crate) fn running(self) -> Vec<KnownJob> {
        self.0.outbox_of(Home::All).registry(|registry| registry.jobs().running().cloned().collect())
    }

    /// The number of deliveries or resources that a job would cover. Changes nothing.
    ///
    /// # Errors
    /// When a read failed.
    pub async fn count(self, new: &NewJob) -> Result<u64, ChangeError> {
        self.count_all(&self.draft(new).await?).await
    }

    /// Begins a job with its first step. The commit stores the response.
    ///
    /// # Errors
    /// When too many jobs run, the first step would exceed a quota, or a read or the commit failed.
    /// Nothing is changed then.
    pub async fn start(self, new: &NewJob, keyed: Option<Keyed<Job>>) -> Result<Arc<Job>, ChangeError> {
        let mut job = self.draft(new).await?;
        job.count = self.count_all(&job).await?;
        let job = self.advance(&job, &job.progress, StepNumber::First(keyed)).await?;
        self.0.metrics().job_step(job.kind);
        tracing::info!(
            job = %job.id, kind = job.kind.as_str(), count = job.count, status = job.progress.status.as_str(),
            "job started"
        );
        Ok(job)
    }

    async fn draft(self, new: &NewJob) -> Result<Job, Unavailable> {
        let last = self.0.outbox_of(Home::All).journal().last_position();
        let cursor = match new.kind {
            // Later events are not past ones.
            JobKind::ReplayEndpoint | JobKind::ReplayQueue => Some(Cursor::at(last.next())),
            // Later messages stay.
            JobKind::PurgeQueue => Some(Cursor { endpoint: EndpointNumber(u32::MAX), ..Cursor::at(last) }),
            JobKind::RedriveDeadLetters | JobKind::PurgeDeadLetters | JobKind::DeleteTenant => None,
        };
        let of_endpoint = |number| Pages(self.0).owner_of(number);
        let tenant = new.tenant.clone().or_else(|| new.selection.endpoint.and_then(of_endpoint));
        let at = self.0.now().wall;
        let mut job = Job {
            id: self.0.new_id("job_").parse().expect("a ULID contains only letters and digits"),
            number: Position(0),
            kind: new.kind,
            tenant,
            started_by: self.0.actor().unwrap_or(Actor { key: None, role: Role::Admin, tenant: None }),
            started_at: at,
            count: 0,
            rate: new.rate,
            selection: new.selection.clone(),
            progress: JobProgress::begin(cursor.map(Into::into), at),
        };
        let filter = Pages(self.0).with_owners(steps::filter(&job));
        let meaning = Searches(self.0).meaning(&job.selection.search, &filter).await?;
        job.selection.id_meaning = meaning;
        Ok(job)
    }

    /// Makes the next step of a job that runs. Returns the number of deliveries of the step.
    ///
    /// # Errors
    /// [`ChangeError::Conflict`] when the job has ended. [`ChangeError::Store`] when the step may
    /// succeed later. For any other reason the job cannot continue.
    pub(crate) async fn step(self, known: &KnownJob) -> Result<u64, ChangeError> {
        let job = self.advance(&known.job, &known.progress, StepNumber::Later).await?;
        self.0.metrics().job_step(job.kind);
        self.report_end(&job.id, &job.progress);
        Ok(job.progress.done.saturating_sub(known.progress.done))
    }

    /// Ends a job that cannot continue.
    ///
    /// # Errors
    /// When the job has ended, or the commit failed.
    pub(crate) async fn fail(self, known: &KnownJob, error: &ChangeError) -> Result<(), ChangeError> {
        let _alone = self.0.exclusive(&party(&known.job)).await;
        let error = Some(error.to_string().into());
        self.end(known, JobStatus::Failed, error).await.map(drop)
    }

    /// Ends a job that runs. Completed steps stay.
    ///
    /// # Errors
    /// When the scope lacks the job, it has ended, or the commit failed.
    pub async fn cancel(self, scope: &Scope, id: &JobId) -> Result<KnownJob, ChangeError> {
        const ENDED: ChangeError = ChangeError::NotAllowed("the job has ended");
        let known = self.get(scope, id).ok_or(ChangeError::NotFound)?;
        // No step is in progress then.
        let _alone = self.0.exclusive(&party(&known.job)).await;
        let known = self.get(scope, id).ok_or(ChangeError::NotFound)?;
        if !known.progress.is_running() {
            return Err(ENDED);
        }
        match self.end(&known, JobStatus::Cancelled, None).await {
            Err(ChangeError::Conflict) => Err(ENDED),
            ended => Ok(KnownJob { progress: ended?, ..known }),
        }
    }

    async fn end(
        self,
        known: &KnownJob,
        status: JobStatus,
        error: Option<Box<str>>,
    ) -> Result<JobProgress, ChangeError> {
        let progress = JobProgress { status, at: self.0.now().wall, error, ..known.progress.clone() };
        let (job, moved) = (known.job.number, Box::new(progress.clone()));
        self.0.commit(vec![Command::MoveJob { job, progress: moved }], None).await?;
        self.report_end(&known.job.id, &progress);
        Ok(progress)
    }

    fn report_end(self, id: &JobId, progress: &JobProgress) {
        if progress.is_running() {
            return;
        }
        self.0.note_job_ended();
        let (status, error) = (progress.status.as_str(), progress.error.as_deref());
        tracing::info!(job = %id, status, done = progress.done, error, "job ended");
    }

    /// Waits until a job has ended, for at most this time. Returns the job.
    pub async fn wait(self, job: Arc<Job>, most: Duration) -> KnownJob {
        let current = || {
            let number = job.number;
            let known =
                self.0.outbox_of(Home::All).registry(|registry| registry.jobs().by_number(number).cloned());
            known.unwrap_or_else(|| KnownJob { job: job.clone(), progress: job.progress.clone() })
        };
        let ended = async {
            loop {
                let ended = self.0.job_ended();
                let known = current();
                if !known.progress.is_running() || self.0.waits().have_ended() {
                    return known;
                }
                ended.await;
            }
        };
        tokio::time::timeout(most, ended).await.unwrap_or_else(|_| current())
    }

    /// Commits a step with the progress of its job.
    async fn commit_step(
        self,
        job: &Job,
        before: &JobProgress,
        step: JobStep,
        number: StepNumber,
    ) -> Result<Arc<Job>, ChangeError> {
        let progress = JobProgress {
            status: if step.is_last { JobStatus::Completed } else { JobStatus::Running },
            done: step.done,
            cursor: step.next.map(Into::into).or(before.cursor),
            at: self.0.now().wall,
            error: None,
        };
        let StepNumber::First(keyed) = number else {
            let is_fenced = step.fence;
            let moved = Command::MoveJob { job: job.number, progress: Box::new(progress.clone()) };
            let fenced =
                step.fence.then(|| Command::MoveJob { job: job.number, progress: Box::new(before.clone()) });
            // The first command is rejected if the job has ended, and the others with it.
            let commands = match fenced {
                Some(fence) => [fence].into_iter().chain(step.commands).chain([moved]).collect(),
                None => [moved].into_iter().chain(step.commands).collect(),
            };
            let outcomes = self.0.commit(commands, None).await?;
            // The progress is last in a fenced step: it is rejected with the commands.
            if is_fenced && matches!(outcomes.last(), Some(Outcome::Conflict)) {
                return Err(ChangeError::Conflict);
            }
            return Ok(Arc::new(Job { progress, ..job.clone() }));
        };
        let count = if step.is_last { progress.done } else { job.count.max(progress.done) };
        let job = Job { count, progress, ..job.clone() };
        let remember = keyed.map(|keyed| keyed.response_for(&job));
        let put = Command::PutJob(Box::new(job));
        let commands = if step.fence {
            step.commands.into_iter().chain([put]).collect()
        } else {
            [put].into_iter().chain(step.commands).collect::<Vec<_>>()
        };
        let outcomes = self.0.commit(commands, remember).await?;
        let begun = outcomes.into_iter().find_map(|outcome| match outcome {
            Outcome::Job(job) => Some(job),
            _ => None,
        });
        begun.map_or_else(|| unreachable!("{UNEXPECTED_OUTCOME}"), Ok)
    }
}

/// Party of the job, for its turn at the exclusive lock.
fn party(job: &Job) -> Party {
    Party::of(job.tenant.as_ref())
}

/// Most deliveries of a step. A paced job makes about one step per second.
fn step_limit(job: &Job) -> usize {
    let rate = job.rate.map_or(usize::MAX, |rate| rate as usize);
    deliveries_per_step().min(rate.max(1))
}

/// Whether a step may succeed later.
#[must_use]
pub(crate) fn is_temporary(error: &ChangeError) -> bool {
    matches!(error, ChangeError::Store(Unavailable::DiskFull | Unavailable::Overloaded { .. }))
}

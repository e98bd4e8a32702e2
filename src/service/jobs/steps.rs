//! The steps of each kind of job: which deliveries or resources are next, and their records.

use std::sync::Arc;

use super::{Jobs, StepNumber, party, step_limit};
use crate::context::home::Home;
use crate::domain::{
    DeliveryKey, EndpointNumber, Job, JobKind, JobProgress, JobSelection, Record, Tenant, Timestamp, Trigger,
};
use crate::outbox::ReadModel;
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::outbox::unit::Command;
use crate::projections::reads::{Cursor, Filter};
use crate::service::bulk::{deliveries_per_step, revive_command};
use crate::service::filters::StoredSelection;
use crate::service::pages::Pages;
use crate::service::replays::{PastRange, Replays};
use crate::service::search::Searches;
use crate::service::tenants::Tenants;

/// The error of a job whose endpoint or queue was deleted.
fn deleted(kind: JobKind) -> ChangeError {
    ChangeError::NotAllowed(match kind {
        JobKind::PurgeQueue | JobKind::ReplayQueue => "the queue was deleted",
        JobKind::RedriveDeadLetters
        | JobKind::PurgeDeadLetters
        | JobKind::ReplayEndpoint
        | JobKind::DeleteTenant => "the endpoint was deleted",
    })
}

/// A step of a job.
#[derive(Debug)]
pub(crate) struct JobStep {
    pub(super) commands: Vec<Command>,
    /// Work of the whole job, this step included.
    pub(super) done: u64,
    /// The start of the next step; `None`: as this one.
    pub(super) next: Option<Cursor>,
    pub(super) is_last: bool,
    /// The commands may be rejected, and the progress then with them.
    pub(super) fence: bool,
}

impl JobStep {
    /// A step on these deliveries, found newest first.
    fn of_deliveries(
        mut deliveries: Vec<DeliveryKey>,
        before: u64,
        next: Option<Cursor>,
        command: impl FnOnce(Vec<DeliveryKey>) -> Command,
    ) -> Self {
        // In order of acceptance within the step. Steps go from new to old.
        deliveries.sort_unstable();
        let done = before + deliveries.len() as u64;
        let commands = if deliveries.is_empty() { Vec::new() } else { vec![command(deliveries)] };
        Self { commands, done, next, is_last: next.is_none(), fence: false }
    }
}

fn cursor(progress: &JobProgress) -> Option<Cursor> {
    progress.cursor.map(Into::into)
}

/// The filter of a job's deliveries or events.
pub(super) fn filter(job: &Job) -> Filter {
    let selection = &job.selection;
    let filter = Filter {
        tenant: job.tenant.clone(),
        since: selection.since,
        until: selection.until,
        ..Filter::default()
    };
    match job.kind {
        JobKind::RedriveDeadLetters | JobKind::PurgeDeadLetters => Filter {
            endpoint: selection.endpoint,
            types: selection.types.first().cloned(),
            reason: selection.reason,
            ..filter
        },
        JobKind::PurgeQueue => {
            Filter { endpoint: selection.endpoint, delivery_state: Some("pending"), ..filter }
        }
        JobKind::ReplayEndpoint | JobKind::ReplayQueue | JobKind::DeleteTenant => filter,
    }
}

fn bulk_command(kind: JobKind, deliveries: Vec<DeliveryKey>, at: Timestamp) -> Command {
    match kind {
        JobKind::RedriveDeadLetters => revive_command(deliveries, Trigger::Redrive, at),
        JobKind::PurgeQueue => Command::Record(Record::DeliveriesCancelled { deliveries, at }),
        _ => Command::Record(Record::DeadLettersPurged { deliveries, at }),
    }
}

impl Jobs<'_> {
    /// Makes a step: finds what is next under the locks that exclude changes, and commits.
    pub(super) async fn advance(
        self,
        job: &Job,
        before: &JobProgress,
        number: StepNumber,
    ) -> Result<Arc<Job>, ChangeError> {
        match job.kind {
            JobKind::RedriveDeadLetters | JobKind::PurgeDeadLetters | JobKind::PurgeQueue => {
                let _alone = self.0.exclusive(&party(job)).await;
                let (deliveries, next) = self.deliveries(job, cursor(before), step_limit(job)).await?;
                let command = |deliveries| bulk_command(job.kind, deliveries, self.0.now().wall);
                let step = JobStep::of_deliveries(deliveries, before.done, next, command);
                let moved = self.commit_step(job, before, step, number).await?;
                if job.kind == JobKind::PurgeQueue {
                    self.0.metrics().cancelled(moved.progress.done.saturating_sub(before.done));
                    // The lane forgets the messages, so that later receipts are `gone`. The purge
                    // is durable: it has not failed when the state cannot answer.
                    self.0.outbox_of(job.tenant.as_ref()).read(|state| state.applied()).await.ok();
                }
                Ok(moved)
            }
            JobKind::ReplayEndpoint | JobKind::ReplayQueue => {
                let range = self.past(job, cursor(before), deliveries_per_step())?;
                let range = PastRange { most: step_limit(job), ..range };
                let (wanted, next) = Replays(self.0).find(&range).await?;
                // The scan and the selection take long; the lock covers the decision only.
                let _alone = self.0.exclusive(&party(job)).await;
                let _held = self.0.outbox_of(range.endpoint).hold_events().await;
                if self.0.outbox_of(range.endpoint).endpoint(range.endpoint).is_none() {
                    return Err(deleted(job.kind));
                }
                let deliveries = Replays(self.0).confirm(&range, wanted).await?;
                let command = |deliveries| revive_command(deliveries, Trigger::Replay, self.0.now().wall);
                let step = JobStep::of_deliveries(deliveries, before.done, next, command);
                self.commit_step(job, before, step, number).await
            }
            JobKind::DeleteTenant => {
                let _alone = self.0.exclusive(&party(job)).await;
                let tenant = job.tenant.as_ref().ok_or(ChangeError::NotFound)?;
                let step = self.deletion(tenant, job, before);
                self.commit_step(job, before, step, number).await
            }
        }
    }

    /// The dead letters or pending messages after a cursor, and the next cursor. A redrive skips
    /// those of deleted endpoints.
    async fn deliveries(
        self,
        job: &Job,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<(Vec<DeliveryKey>, Option<Cursor>), Unavailable> {
        let is_queue = job.kind == JobKind::PurgeQueue;
        let filter = Pages(self.0).with_owners(filter(job));
        let JobSelection { search, id_meaning, .. } = &job.selection;
        let filter = match id_meaning {
            // Of an earlier version.
            None => Searches(self.0).narrow(search, filter).await?,
            meaning => Searches(self.0).with_meaning(search, *meaning, filter),
        };
        let Some(filter) = filter else { return Ok((Vec::new(), None)) };
        let wanted = filter.clone();
        let read = move |state: &dyn ReadModel| {
            if is_queue {
                let found = state.deliveries(&wanted, after, limit);
                return (found.items.iter().map(|facts| facts.key).collect::<Vec<_>>(), found.next);
            }
            let found = state.dead_letters(&wanted, after, limit);
            (found.items.iter().map(|letter| letter.delivery).collect(), found.next)
        };
        let (mut deliveries, next) = self.0.outbox_of(job.tenant.as_ref()).read(read).await?;
        deliveries = Searches(self.0).with_id_start(deliveries, &filter).await?;
        if job.kind == JobKind::RedriveDeadLetters {
            self.0.outbox_of(Home::All).registry(|registry| {
                deliveries.retain(|key| registry.endpoint(key.endpoint).is_some());
            });
        }
        Ok((deliveries, next))
    }

    /// The past events of a replay after a cursor.
    fn past(self, job: &Job, after: Option<Cursor>, limit: usize) -> Result<PastRange, ChangeError> {
        let number = job.selection.endpoint.unwrap_or(EndpointNumber(0));
        let endpoint = self.0.outbox_of(number).endpoint(number).ok_or_else(|| deleted(job.kind))?;
        let types = &job.selection.types;
        let patterns = if types.is_empty() { &endpoint.event_types } else { types };
        Ok(PastRange {
            filter: filter(job),
            endpoint: number,
            after,
            limit,
            most: usize::MAX,
            only_undelivered: job.selection.only_undelivered,
            selection: Arc::new(StoredSelection::new(self.0, &endpoint, patterns)),
        })
    }

    /// The next resources of a tenant to delete, and at last its settings.
    fn deletion(self, tenant: &Tenant, job: &Job, before: &JobProgress) -> JobStep {
        let commands = Tenants(self.0).deletion_step(tenant);
        let left = Tenants(self.0).resources(tenant).saturating_sub(commands.len() as u64);
        let done = job.count.saturating_sub(left).max(before.done);
        if !commands.is_empty() {
            return JobStep { commands, done, next: None, is_last: false, fence: false };
        }
        let has_settings = Tenants(self.0).settings(tenant).is_some();
        let last =
            has_settings.then(|| Command::DeleteTenant { tenant: tenant.clone(), at: self.0.now().wall });
        JobStep { commands: last.into_iter().collect(), done, next: None, is_last: true, fence: true }
    }

    /// Counts what a job covers from its first step on.
    pub(super) async fn count_all(self, job: &Job) -> Result<u64, ChangeError> {
        let (mut count, mut after, limit) = (0, cursor(&job.progress), deliveries_per_step());
        loop {
            let (found, next) = match job.kind {
                JobKind::RedriveDeadLetters | JobKind::PurgeDeadLetters | JobKind::PurgeQueue => {
                    let (deliveries, next) = self.deliveries(job, after, limit).await?;
                    (deliveries.len(), next)
                }
                JobKind::ReplayEndpoint | JobKind::ReplayQueue => {
                    let (wanted, next) = Replays(self.0).find(&self.past(job, after, limit)?).await?;
                    (wanted.len(), next)
                }
                JobKind::DeleteTenant => {
                    let tenant = job.tenant.as_ref().ok_or(ChangeError::NotFound)?;
                    return Ok(Tenants(self.0).resources(tenant));
                }
            };
            count += found as u64;
            after = next;
            if after.is_none() {
                return Ok(count);
            }
        }
    }
}

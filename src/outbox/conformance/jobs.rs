//! Random jobs and audit entries, and a simple model of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Store;
use super::compare::{Moment, same};
use super::oracle::Oracle;
use super::work::Work;
use crate::domain::{
    ActOutcome, Actor, Audience, AuditEntry, DeliverySearch, IdMeaning, Job, JobCursor, JobKind, JobProgress,
    JobSelection, JobStatus, LastAttemptFilter, Position, Record, Role, Timestamp,
};
use crate::outbox::ReadModel;
use crate::outbox::registry::KnownJob;
use crate::outbox::unit::{Command, Outcome};
use crate::projections::acts::AuditFilter;
use crate::projections::jobs::ended_max;

/// Every known job, the records that define its progress, and all audit entries.
#[derive(Clone, Debug, Default)]
pub(crate) struct JobModel {
    all: BTreeMap<Position, KnownJob>,
    last_moves: BTreeMap<Position, Position>,
    pub(crate) acts: BTreeMap<Position, Arc<AuditEntry>>,
    /// Entries that retention has removed.
    pub(crate) forgotten_acts: BTreeSet<Position>,
}

impl JobModel {
    pub(super) fn apply(&mut self, position: Position, record: &Record) {
        match record {
            Record::JobPut(job) => {
                let known = KnownJob { job: job.clone(), progress: job.progress.clone() };
                self.all.insert(position, known);
            }
            Record::JobMoved { job, progress } => {
                if let Some(known) = self.all.get_mut(job) {
                    known.progress = (**progress).clone();
                    self.last_moves.insert(*job, position);
                }
            }
            Record::Audited(entry) => drop(self.acts.insert(position, entry.clone())),
            _ => {}
        }
        let ended = |(job, known): (&Position, &KnownJob)| Some((known.progress.ended_at()?, *job));
        let mut ended: Vec<_> = self.all.iter().filter_map(ended).collect();
        ended.sort_unstable();
        for (_, job) in ended.iter().take(ended.len().saturating_sub(ended_max())) {
            self.all.remove(job);
            self.last_moves.remove(job);
        }
    }

    /// Whether a known job depends on this record.
    pub(crate) fn needs(&self, position: Position) -> bool {
        self.all.contains_key(&position) || self.last_moves.values().any(|last| *last == position)
    }

    /// In the order of their start.
    pub(crate) fn known(&self) -> Vec<KnownJob> {
        self.all.values().cloned().collect()
    }

    pub(super) fn forget_acts(&mut self, before: Timestamp) {
        let old = self.acts.iter().filter(|(_, entry)| entry.at < before);
        self.forgotten_acts.extend(old.map(|(position, _)| *position));
        self.acts.retain(|_, entry| entry.at >= before);
    }

    /// Judges a command that concerns a job. Returns the record to write, or the outcome.
    pub(super) fn judge(&self, command: &Command, position: Position) -> Result<Record, Outcome> {
        match command {
            Command::PutJob(job) => Ok(Record::JobPut(Arc::new(Job { number: position, ..Job::clone(job) }))),
            Command::MoveJob { job, progress } => match self.all.get(job) {
                Some(known) if known.progress.is_running() => {
                    Ok(Record::JobMoved { job: *job, progress: progress.clone() })
                }
                _ => Err(Outcome::Conflict),
            },
            _ => Err(Outcome::Conflict),
        }
    }
}

/// Compares the lists of audit entries. A rebuilt state has again what the journal still has.
pub(super) fn compare_acts(oracle: &Oracle, found: &dyn ReadModel, moment: Moment) -> Result<(), String> {
    let some = oracle.jobs.acts.values().next_back();
    let by_action = AuditFilter { action: some.map(|entry| entry.action.clone()), ..AuditFilter::default() };
    let by_actor = AuditFilter { actor: Some("key_1".into()), ..AuditFilter::default() };
    let since = AuditFilter { since: some.map(|entry| entry.at), ..AuditFilter::default() };
    for filter in [AuditFilter::default(), by_action, by_actor, since] {
        let expected = oracle.audit_entries(&filter, None, usize::MAX).items;
        let (mut items, mut after) = (Vec::new(), None);
        loop {
            let page = found.audit_entries(&filter, after, moment.limit);
            items.extend(page.items);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        if moment.rebuilt {
            items.retain(|position| !oracle.jobs.forgotten_acts.contains(position));
        }
        same(&format!("audit entries {filter:?}"), &expected, &items)?;
    }
    Ok(())
}

impl<S: Store> Work<S> {
    /// A new job, or a step of one that is known or not.
    pub(super) fn job(&mut self) -> Command {
        let known = self.oracle.oracle.jobs.known();
        let progress = self.job_progress();
        match self.random.choice(known).filter(|_| self.random.u32(0..10) < 6) {
            Some(known) => Command::MoveJob { job: known.job.number, progress: Box::new(progress) },
            None => Command::PutJob(Box::new(Job {
                id: format!("job_{}", self.random.u64(..)).parse().expect("a legal id"),
                number: Position(0),
                kind: self.random.choice(JobKind::ALL).expect("kinds"),
                tenant: self.percent(50).then(|| "default".parse().expect("a legal tenant")),
                started_by: self.actor(),
                started_at: self.now,
                count: self.random.u64(0..9),
                rate: None,
                selection: self.job_selection(),
                progress,
            })),
        }
    }

    fn job_selection(&mut self) -> JobSelection {
        let status = self.percent(20).then_some(500);
        let last_attempt = LastAttemptFilter::new(status, None, Audience::Operator);
        let id_start = self.percent(20).then(|| "evt_1".parse().expect("a legal id"));
        let meaning = id_start.is_some() && self.percent(50);
        let id_meaning = meaning.then(|| IdMeaning::Events(Position(1), Position(self.random.u64(1..9))));
        JobSelection {
            search: DeliverySearch { last_attempt, id_start },
            id_meaning,
            ..JobSelection::default()
        }
    }

    fn job_progress(&mut self) -> JobProgress {
        let statuses = [JobStatus::Running, JobStatus::Running, JobStatus::Completed, JobStatus::Failed];
        let status = self.random.choice(statuses).expect("four");
        let cursor = JobCursor { position: Position(self.random.u64(0..9)), ..JobCursor::default() };
        JobProgress {
            status,
            done: self.random.u64(0..9),
            cursor: self.percent(50).then_some(cursor),
            at: self.now,
            error: (status == JobStatus::Failed).then(|| "why".into()),
        }
    }

    fn actor(&mut self) -> Actor {
        let key = self.percent(50).then(|| "key_1".parse().expect("a legal id"));
        Actor { key, role: Role::Admin, tenant: None }
    }

    /// The entry of an act, for the end of its unit.
    pub(super) fn audit(&mut self) -> Command {
        Command::Audit(Arc::new(AuditEntry {
            at: self.now,
            actor: self.actor(),
            action: self.random.choice(["createKey", "updateEndpoint"]).expect("two").into(),
            target: self.percent(50).then(|| "ep_1".into()),
            tenant: self.percent(50).then(|| "default".parse().expect("a legal tenant")),
            address: None,
            outcome: ActOutcome::Done,
        }))
    }
}

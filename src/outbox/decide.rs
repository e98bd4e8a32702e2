//! The writer: judges every append and commits groups of them. There is exactly one writer, so it
//! needs no transactions.
//!
//! Owns the journal, the subscriptions and the recent keys. Invariants: no answer, state update or
//! lane notification precedes the `fdatasync` of the frame that it depends on; position order is
//! commit order.

use std::sync::{Arc, RwLock, RwLockReadGuard};
use std::time::Duration;

use ulid::Ulid;

pub use committed::CommittedGroup;
pub(crate) use committed::UnappliedBytes;
use staged::StagedGroup;
use types::LastEvents;

use crate::domain::{DeliveryKey, Endpoint, EndpointNumber, Idempotency, Position, Record, Timestamp};
use crate::outbox::health::{Activity, DiskThread, DiskWaits};
use crate::outbox::quotas::{self, UnappliedLoad};
use crate::outbox::recent_keys::{Prepared, RecentKeys};
use crate::outbox::registry::Registry;
use crate::outbox::subscriptions::Subscriptions;
use crate::outbox::unit::{Command, Outcome, Refusal, Unit, UnitAnswer, UnitReply};
use crate::outbox::usage_board::UsageBoard;
use crate::rules::append::{Judged, judge_idempotency, judge_version};
use crate::storage::format;
use crate::storage::journal::{AppendError, Journal};

/// Clock, randomness and encryption of the writer.
pub trait CommitEnvironment: Send {
    fn now(&mut self) -> Timestamp;
    fn random(&mut self) -> u128;
    /// Seals the plain values of an endpoint. Its URL and revision are final.
    fn seal(&mut self, _endpoint: &mut Endpoint) {}
}

/// Judges and commits groups, without a thread.
pub struct Committer {
    journal: Journal,
    registry: Arc<RwLock<Registry>>,
    subscriptions: Arc<RwLock<Subscriptions>>,
    disk_waits: DiskWaits,
    recent: Arc<RwLock<RecentKeys>>,
    last_events: LastEvents,
    environment: Box<dyn CommitEnvironment>,
    last_time: Timestamp,
    last_ulid: Ulid,
    unapplied: UnappliedBytes,
    unapplied_load: UnappliedLoad,
}

/// Result of a group.
pub struct GroupResult {
    /// `None` when there was nothing to write.
    pub committed: Option<Arc<CommittedGroup>>,
    pub replies: Vec<(UnitReply, UnitAnswer)>,
    /// Units for the next group: those that did not fit and, after a failed write, those without a
    /// waiting caller.
    pub unwritten: Vec<Unit>,
    pub failure: Option<AppendError>,
}

impl Committer {
    /// Expects a state and a registry that have applied the whole journal.
    pub(super) fn new(
        journal: Journal,
        registry: Arc<RwLock<Registry>>,
        board: Arc<UsageBoard>,
        environment: Box<dyn CommitEnvironment>,
    ) -> Self {
        let mut subscriptions = Subscriptions::default();
        for endpoint in read(&registry).endpoints() {
            subscriptions.insert(endpoint);
        }
        let recent = RecentKeys::new(Position(journal.next_position().0 - 1));
        // Later than the last commit before the restart, so that generated ids ascend although
        // their random parts restart.
        let last_time = journal.last_time().plus(Duration::from_millis(1));
        Self {
            journal,
            registry,
            subscriptions: Arc::new(RwLock::new(subscriptions)),
            disk_waits: DiskWaits::default(),
            recent: Arc::new(RwLock::new(recent)),
            last_events: LastEvents::default(),
            environment,
            last_time,
            last_ulid: Ulid::nil(),
            unapplied: UnappliedBytes::default(),
            unapplied_load: UnappliedLoad::new(board),
        }
    }

    /// Judges the units in order and commits them with one `fdatasync`. A group with many targets
    /// closes early.
    pub fn commit(&mut self, units: Vec<Unit>) -> GroupResult {
        self.last_time = self.last_time.max(self.environment.now()).max(self.journal.last_time());
        // A random step makes the next ids unpredictable, so that no publisher can claim one of
        // them first.
        self.last_ulid = Ulid(self.last_ulid.0 + (self.environment.random() >> 64));
        if units.iter().any(Unit::seals_segment)
            && let Err(error) = self.journal.seal()
        {
            return fail(error, units.into_iter());
        }
        let mut staged = StagedGroup { next: self.journal.next_position(), ..StagedGroup::default() };
        let mut judged = Vec::with_capacity(units.len());
        let mut bounds = Vec::with_capacity(units.len());
        let mut units = units.into_iter();
        while !staged.is_full()
            && let Some(mut unit) = units.next()
        {
            let start = staged.records.len();
            let verdict = self.judge_unit(&mut unit, &mut staged);
            if staged.records.len() > start {
                bounds.push(start..staged.records.len());
            }
            judged.push((unit, verdict));
        }
        if staged.records.is_empty() {
            let replies =
                judged.into_iter().filter_map(|(unit, verdict)| Some((unit.reply?, verdict))).collect();
            return GroupResult { committed: None, replies, unwritten: Vec::new(), failure: None };
        }
        let written: Vec<_> = bounds.into_iter().map(|bound| &staged.records[bound]).collect();
        self.disk_waits.begin(DiskThread::Journal, Activity::Disk);
        let appended = self.journal.append(self.last_time, &written);
        self.disk_waits.begin(DiskThread::Journal, Activity::Judging);
        match appended {
            Ok(_) => GroupResult { unwritten: units.collect(), ..self.finish(staged, judged) },
            Err(error) => fail(error, judged.into_iter().map(|(unit, _)| unit).chain(units)),
        }
    }

    fn judge_unit(&mut self, unit: &mut Unit, staged: &mut StagedGroup) -> Result<Vec<Outcome>, Refusal> {
        if !read(&self.recent).covers(unit.prepared.as_of) && unit.needs_preparation() {
            return Err(Refusal::Stale(std::mem::take(&mut unit.commands)));
        }
        staged.begin_unit();
        if let Some(key) = unit.atomic() {
            return Ok(self.judge_atomic(unit, key, staged));
        }
        if let Some(repeated) = self.judge_request(unit, staged) {
            return Ok(vec![repeated; unit.commands.len()]);
        }
        if let Err(exceeded) = self.check_revivals(unit, staged) {
            return Ok(vec![Outcome::QuotaExceeded(exceeded); unit.commands.len()]);
        }
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(unit.commands.len());
        for command in &unit.commands {
            // After a conflict, the rest of the unit is skipped. No response may be stored for a
            // rejected change. Each event is judged alone.
            let outcome = match outcomes.last() {
                // Commands before the rejected one have written records.
                _ if matches!(command, Command::Audit(_)) => self.judge(command, &unit.prepared, staged),
                Some(Outcome::TooManyJobs) => Outcome::TooManyJobs,
                Some(Outcome::Conflict) => Outcome::Conflict,
                Some(Outcome::UidTaken) => Outcome::UidTaken,
                Some(Outcome::QuotaExceeded(exceeded)) if command.draft().is_none() => {
                    Outcome::QuotaExceeded(*exceeded)
                }
                _ => self.judge(command, &unit.prepared, staged),
            };
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// A unit with a request's response executes the request once. Returns the outcome of an
    /// earlier execution, if there was one.
    ///
    /// A claimed request is different: each event is judged by its own key, because some events may
    /// not have been accepted the first time.
    fn judge_request(&self, unit: &Unit, staged: &StagedGroup) -> Option<Outcome> {
        let idempotency = unit.commands.iter().find_map(Command::request)?;
        let is_claim = matches!(unit.commands.first(), Some(Command::Claim(_)));
        let repeated = self.repeated(idempotency, &unit.prepared, staged);
        repeated.filter(|repeated| !is_claim || matches!(repeated, Outcome::Mismatch))
    }

    /// Outcome of an earlier request with the same key or id, if there was one.
    fn repeated(&self, wanted: &Idempotency, prepared: &Prepared, staged: &StagedGroup) -> Option<Outcome> {
        let recent = read(&self.recent);
        let found = staged
            .scopes
            .get(&wanted.scope)
            .or_else(|| recent.scope(&wanted.scope, prepared.as_of))
            .or_else(|| prepared.scopes.get(&wanted.scope));
        duplicate_outcome(judge_idempotency(found, &wanted.fingerprint, self.last_time))
    }

    fn judge(&mut self, command: &Command, prepared: &Prepared, staged: &mut StagedGroup) -> Outcome {
        match command {
            Command::Publish(draft) => self.publish(draft, prepared, staged),
            Command::PutEndpoint(endpoint) => self.put_endpoint(endpoint, staged),
            Command::PutTenant(settings) => self.put_tenant(settings, staged),
            Command::DeleteTenant { tenant, at } => self.delete_tenant(tenant, *at, staged),
            Command::PutConsumer(consumer) => self.put_consumer(consumer, staged),
            Command::MoveConsumer(wanted) => self.move_consumer(wanted, staged),
            Command::DeleteConsumer { key, at } => self.delete_consumer(key, *at, staged),
            Command::PutType(definition) => self.put_type(definition, staged),
            Command::PutJob(job) => self.put_job(job, staged),
            Command::MoveJob { job, progress } => self.move_job(*job, progress, staged),
            Command::Audit(entry) => Self::audit(entry, staged),
            Command::DeleteType { name, at } => self.delete_type(name, *at, staged),
            Command::PutSource(source) => self.put_source(source, staged),
            Command::DeleteSource { name, at } => self.delete_source(name, *at, staged),
            Command::Record(Record::KeyPut(key)) => self.put_key(key, staged),
            Command::Record(Record::KeyUsed { id, at }) => self.use_key(id, *at, staged),
            Command::DeleteEndpoint { endpoint, at } => {
                if read(&self.registry).endpoint(*endpoint).is_none() {
                    return Outcome::Conflict;
                }
                Outcome::Written(staged.push(Record::EndpointDeleted { endpoint: *endpoint, at: *at }))
            }
            // The endpoint may have been deleted since the request. Such a delivery would never
            // end.
            Command::Record(Record::DeliveriesRevived { deliveries, trigger, at }) => {
                let (deliveries, trigger, at) = (self.retain_existing_endpoints(deliveries), *trigger, *at);
                staged.loads.add_revived(&deliveries, &self.registry, &mut self.unapplied_load);
                Outcome::Written(staged.push(Record::DeliveriesRevived { deliveries, trigger, at }))
            }
            // As above: the ordering of a deleted endpoint is unknown.
            Command::Record(Record::DeliveriesReordered { deliveries, at }) => {
                let (deliveries, at) = (self.retain_existing_endpoints(deliveries), *at);
                Outcome::Written(staged.push(Record::DeliveriesReordered { deliveries, at }))
            }
            Command::Atomic(_) => Outcome::Passed,
            Command::Check { tenant, stream, expected } => {
                let actual = self.version(&(tenant.clone(), stream.clone()), prepared, staged);
                judge_version(*expected, actual).map_or_else(Outcome::Rejected, |_| Outcome::Passed)
            }
            Command::Claim(idempotency) => {
                self.repeated(idempotency, prepared, staged).unwrap_or_else(|| {
                    let body = Arc::from(&[][..]);
                    let claimed =
                        Record::RequestAnswered { idempotency: idempotency.clone(), status: 202, body };
                    Outcome::Written(staged.push_with_key(idempotency, claimed))
                })
            }
            // Sealed before the group was judged.
            Command::SealSegment => Outcome::Sealed,
            Command::Record(record) => Outcome::Written(match command.request() {
                Some(idempotency) => staged.push_with_key(idempotency, record.clone()),
                // An attempt of an erased event may end after the erasure.
                None => {
                    staged.push(self.journal.without_erased_content(record).unwrap_or_else(|| record.clone()))
                }
            }),
        }
    }

    /// Keeps the deliveries of existing endpoints.
    fn retain_existing_endpoints(&self, deliveries: &[DeliveryKey]) -> Vec<DeliveryKey> {
        let registry = read(&self.registry);
        let exists = |key: &&DeliveryKey| registry.endpoint(key.endpoint).is_some();
        deliveries.iter().filter(exists).copied().collect()
    }

    fn put_endpoint(&mut self, endpoint: &Endpoint, staged: &mut StagedGroup) -> Outcome {
        let registry = read(&self.registry);
        let mut endpoint = endpoint.clone();
        if endpoint.number == EndpointNumber(0) {
            endpoint.number = registry.next_number();
        } else if registry.endpoint(endpoint.number).map(|current| current.revision)
            != Some(endpoint.revision)
        {
            return Outcome::Conflict;
        }
        if registry.is_uid_taken(&endpoint) {
            return Outcome::UidTaken;
        }
        // Another request has created the queue since this one looked.
        if registry.is_queue_name_taken(&endpoint) {
            return Outcome::Conflict;
        }
        if let Err(exceeded) = quotas::check_endpoint(&registry, &endpoint) {
            return Outcome::QuotaExceeded(exceeded);
        }
        endpoint.revision = staged.next;
        drop(registry);
        self.environment.seal(&mut endpoint);
        let endpoint = Arc::new(endpoint);
        staged.push(Record::EndpointPut(endpoint.clone()));
        Outcome::Endpoint(endpoint)
    }

    fn finish(
        &mut self,
        staged: StagedGroup,
        mut judged: Vec<(Unit, Result<Vec<Outcome>, Refusal>)>,
    ) -> GroupResult {
        let ordered = read(&self.registry).ordered_endpoints();
        let permits = judged.iter_mut().filter_map(|(unit, _)| unit.prepared.permit.take()).collect();
        // Oldest first, which is the order of eviction.
        let mut scopes: Vec<_> = staged.scopes.into_iter().collect();
        scopes.sort_unstable_by_key(|(_, known)| known.position);
        let mut streams: Vec<_> = staged.streams.into_iter().collect();
        streams.sort_unstable_by_key(|(_, (_, position))| *position);
        let mut recent = self.recent.write().expect("no holder of this lock panics");
        for (scope, known) in scopes {
            recent.put_scope(scope, known);
        }
        for (name, (version, position)) in streams {
            recent.put_stream(name, version, position);
        }
        drop(recent);
        let last = Position(staged.next.0 - 1);
        self.unapplied_load.add(last, staged.loads);
        let first = staged.next.0 - staged.records.len() as u64;
        let records: Vec<_> = (first..).map(Position).zip(staged.records).collect();
        self.remember_versions(&records);
        for (_, record) in &records {
            self.update_registry(record);
        }
        let bytes = records.iter().map(|(_, record)| format::size_hint(record)).sum::<usize>();
        let committed = Arc::new(CommittedGroup {
            at: self.last_time,
            records,
            ordered,
            _permits: permits,
            _held: self.unapplied.hold(bytes),
        });
        let replies = judged.into_iter().filter_map(|(unit, verdict)| Some((unit.reply?, verdict))).collect();
        GroupResult { committed: Some(committed), replies, unwritten: Vec::new(), failure: None }
    }

    fn update_registry(&mut self, record: &Record) {
        let number = match record {
            Record::EndpointPut(endpoint) => endpoint.number,
            Record::EndpointDeleted { endpoint, .. } => *endpoint,
            Record::KeyPut(_)
            | Record::KeyDeleted { .. }
            | Record::KeyUsed { .. }
            | Record::TenantPut(_)
            | Record::TenantDeleted { .. }
            | Record::TypePut(_)
            | Record::TypeDeleted { .. }
            | Record::JobPut(_)
            | Record::JobMoved { .. }
            | Record::SourcePut(_)
            | Record::SourceDeleted { .. }
            | Record::ConsumerPut(_)
            | Record::ConsumerMoved { .. }
            | Record::ConsumerDeleted { .. } => EndpointNumber(0),
            _ => return,
        };
        let is_endpoint = number != EndpointNumber(0);
        if is_endpoint {
            let mut subscriptions = self.subscriptions.write().expect("no holder of this lock panics");
            if let Some(old) = read(&self.registry).endpoint(number) {
                subscriptions.remove(old);
            }
            if let Record::EndpointPut(endpoint) = record {
                subscriptions.insert(endpoint);
            }
        }
        self.registry.write().expect("no holder of this lock panics").apply(record);
    }

    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The index of endpoints by what they want. Only this writer changes it.
    pub(super) fn subscriptions(&self) -> &Arc<RwLock<Subscriptions>> {
        &self.subscriptions
    }

    /// Streams and keys of the recent commits. Only this writer changes them.
    pub(super) fn recent(&self) -> &Arc<RwLock<RecentKeys>> {
        &self.recent
    }

    /// Reports the waits for the disk there.
    pub(super) fn report_waits(&mut self, waits: DiskWaits) {
        self.disk_waits = waits;
    }

    pub(crate) fn unapplied(&self) -> &UnappliedBytes {
        &self.unapplied
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().expect("no holder of this lock panics")
}

fn duplicate_outcome(judged: Judged) -> Option<Outcome> {
    match judged {
        Judged::Fresh => None,
        Judged::Duplicate(position) => Some(Outcome::Duplicate(position)),
        Judged::Mismatch(_) => Some(Outcome::Mismatch),
    }
}

fn fail(error: AppendError, units: impl Iterator<Item = Unit>) -> GroupResult {
    let refusal = || match &error {
        AppendError::DiskFull => Refusal::DiskFull,
        other => Refusal::Failed(other.to_string().into()),
    };
    let mut replies = Vec::new();
    let mut unwritten = Vec::new();
    for mut unit in units {
        match unit.reply.take() {
            Some(reply) => replies.push((reply, Err(refusal()))),
            None => unwritten.push(unit),
        }
    }
    GroupResult { committed: None, replies, unwritten, failure: Some(error) }
}

mod atomic;
mod committed;
mod consumers;
mod jobs;
mod publish;
mod sources;
mod staged;
mod tenants;
#[cfg(test)]
mod tests;
mod types;

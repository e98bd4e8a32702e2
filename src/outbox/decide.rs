//! The writer: judges every append, commits groups of them, tells what was committed. There is exactly one.
//!
//! Owns the journal, the matcher and what the last commits said. Invariants: nothing is answered, told to the state or
//! told to the lanes before the `fdatasync` of the frame that it rests on; position order is commit order. Being alone
//! it needs no transactions.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering as AtomicOrdering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use ulid::Ulid;

use crate::domain::{
    DeliveryKey, DueKey, Endpoint, EndpointNumber, Event, EventId, Idempotency, Ordering, Position, Progress,
    Record, Rejection, StreamName, Tenant, Timestamp, Trigger,
};
use crate::failpoints::{self, Bound};
use crate::limits;
use crate::outbox::draft::{Accepted, EventDraft};
use crate::outbox::recent_keys::{Prepared, RecentKeys};
use crate::outbox::registry::Registry;
use crate::outbox::unit::{Answer, Command, Outcome, Refusal, Unit, UnitReply};
use crate::projections::LaneChange;
use crate::projections::idempotency::Known;
use crate::rules::append::{Judged, judge_idempotency, judge_version};
use crate::rules::matching::Matcher;
use crate::storage::format;
use crate::storage::journal::{AppendError, Journal};

/// A group that is on disk.
#[derive(Debug)]
pub struct CommittedGroup {
    /// When, by the clock that nothing in the journal goes behind.
    pub at: Timestamp,
    pub records: Vec<(Position, Record)>,
    /// What the lanes of endpoints without an order have to hear of freshly accepted events.
    pub announced: Vec<LaneChange>,
    /// Counts for as long as anybody holds the group.
    _held: UnappliedGuard,
}

/// Bytes of the groups that the state or the delivery loop has not taken in yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct UnappliedBytes(Arc<AtomicUsize>);

impl UnappliedBytes {
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(AtomicOrdering::Relaxed)
    }

    fn hold(&self, bytes: usize) -> UnappliedGuard {
        self.0.fetch_add(bytes, AtomicOrdering::Relaxed);
        UnappliedGuard { all: self.clone(), bytes }
    }
}

#[derive(Debug)]
struct UnappliedGuard {
    all: UnappliedBytes,
    bytes: usize,
}

impl Drop for UnappliedGuard {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.bytes, AtomicOrdering::Relaxed);
    }
}

/// Where the writer gets the time, chance and encryption from.
pub trait CommitEnvironment: Send {
    fn now(&mut self) -> Timestamp;
    fn random(&mut self) -> u128;
    /// Seals the plain values of an endpoint, which has its final URL and revision.
    fn seal(&mut self, _endpoint: &mut Endpoint) {}
}

/// The judging and committing, without its thread.
pub struct Committer {
    journal: Journal,
    registry: Arc<RwLock<Registry>>,
    matcher: Matcher,
    recent: RecentKeys,
    environment: Box<dyn CommitEnvironment>,
    last_time: Timestamp,
    last_ulid: Ulid,
    unapplied: UnappliedBytes,
}

/// What a group has decided and not yet committed.
#[derive(Default)]
struct StagedGroup {
    records: Vec<Record>,
    /// Where the next record will stand.
    next: Position,
    scopes: HashMap<[u8; 16], Known>,
    streams: HashMap<(Tenant, StreamName), (u64, Position)>,
    announced: Vec<LaneChange>,
    /// Deliveries that the group begins.
    targets: usize,
    /// Deliveries that the unit that is being judged begins.
    unit_targets: usize,
    /// That unit has had an event refused for its deliveries: what comes behind it must not overtake it.
    unit_is_full: bool,
}

impl StagedGroup {
    fn begin_unit(&mut self) {
        self.unit_targets = 0;
        self.unit_is_full = false;
    }

    /// Whether an event with so many targets still has room in its unit; counts it when it has.
    fn reserve_targets(&mut self, targets: usize) -> bool {
        self.unit_is_full |= self.unit_targets + targets > limits::REQUEST_TARGETS_MAX;
        if self.unit_is_full {
            return false;
        }
        self.unit_targets += targets;
        self.targets += targets;
        true
    }

    fn is_full(&self) -> bool {
        self.targets >= failpoints::bound(Bound::CommitTargets, limits::COMMIT_TARGETS)
    }

    fn push(&mut self, record: Record) -> Position {
        let position = self.next;
        self.records.push(record);
        self.next = position.next();
        position
    }

    /// As [`Self::push`]; the record is what the request came to.
    fn push_with_key(&mut self, idempotency: &Idempotency, record: Record) -> Position {
        let position = self.push(record);
        self.scopes.insert(idempotency.scope, known(idempotency, position));
        position
    }
}

/// What happened to a group.
pub struct GroupResult {
    /// `None` when nothing had to be written.
    pub committed: Option<Arc<CommittedGroup>>,
    pub replies: Vec<(UnitReply, Answer)>,
    /// Units to be taken again before all others: those for which the group had no room, and, when it could not be
    /// written, those that nobody waits for.
    pub unwritten: Vec<Unit>,
    pub failure: Option<AppendError>,
}

impl Committer {
    /// `applied` is what the state had applied when the registry was read from it; nothing newer is known.
    pub fn new(
        journal: Journal,
        registry: Arc<RwLock<Registry>>,
        environment: Box<dyn CommitEnvironment>,
    ) -> Self {
        let mut matcher = Matcher::default();
        for endpoint in read(&registry).endpoints() {
            matcher.insert(endpoint);
        }
        let recent = RecentKeys::new(Position(journal.next_position().0 - 1));
        // Later than the last commit of the life before, so that ids rise although their random parts begin anew.
        let last_time = journal.last_time().plus(Duration::from_millis(1));
        Self {
            journal,
            registry,
            matcher,
            recent,
            environment,
            last_time,
            last_ulid: Ulid::nil(),
            unapplied: UnappliedBytes::default(),
        }
    }

    /// Judges the units in order and commits them with one `fdatasync`. What many endpoints get fills a group early.
    pub fn commit(&mut self, units: Vec<Unit>) -> GroupResult {
        self.last_time = self.last_time.max(self.environment.now()).max(self.journal.last_time());
        // Whoever has seen an id of an earlier group cannot guess the next ones, and choose one of them before.
        self.last_ulid = Ulid(self.last_ulid.0 + (self.environment.random() >> 64));
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
        match self.journal.append(self.last_time, &written) {
            Ok(_) => GroupResult { unwritten: units.collect(), ..self.finish(staged, judged) },
            Err(error) => fail(error, judged.into_iter().map(|(unit, _)| unit).chain(units)),
        }
    }

    fn judge_unit(&mut self, unit: &mut Unit, staged: &mut StagedGroup) -> Result<Vec<Outcome>, Refusal> {
        if !self.recent.covers(unit.prepared.as_of) && unit.needs_preparation() {
            return Err(Refusal::Stale(std::mem::take(&mut unit.commands)));
        }
        staged.begin_unit();
        if let Some(repeated) = self.judge_request(unit, staged) {
            return Ok(vec![repeated; unit.commands.len()]);
        }
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(unit.commands.len());
        for command in &unit.commands {
            // What rests on a change that was refused is not done: above all, no answer is remembered for it.
            let outcome = match outcomes.last() {
                Some(Outcome::Conflict) => Outcome::Conflict,
                _ => self.judge(command, &unit.prepared, staged),
            };
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// A unit that remembers a request's answer does what the request asks. When the request was answered before, nothing
    /// of it is done again; this is what became of it then. Events whose request was claimed before are each judged by
    /// their own keys: some may have been left for another time.
    fn judge_request(&self, unit: &Unit, staged: &StagedGroup) -> Option<Outcome> {
        let idempotency = unit.commands.iter().find_map(Command::request)?;
        let is_claim = matches!(unit.commands.first(), Some(Command::Claim(_)));
        let repeated = self.repeated(idempotency, &unit.prepared, staged);
        repeated.filter(|repeated| !is_claim || matches!(repeated, Outcome::Mismatch))
    }

    /// What an earlier request with the same key or id makes of one; `None` when there was none.
    fn repeated(&self, wanted: &Idempotency, prepared: &Prepared, staged: &StagedGroup) -> Option<Outcome> {
        let found = staged
            .scopes
            .get(&wanted.scope)
            .or_else(|| self.recent.scope(&wanted.scope, prepared.as_of))
            .or_else(|| prepared.scopes.get(&wanted.scope));
        duplicate_outcome(judge_idempotency(found, &wanted.fingerprint, self.last_time))
    }

    fn judge(&mut self, command: &Command, prepared: &Prepared, staged: &mut StagedGroup) -> Outcome {
        match command {
            Command::Publish(draft) => self.publish(draft, prepared, staged),
            Command::PutEndpoint(endpoint) => self.put_endpoint(endpoint, staged),
            Command::DeleteEndpoint { endpoint, at } => {
                if read(&self.registry).endpoint(*endpoint).is_none() {
                    return Outcome::Conflict;
                }
                Outcome::Written(staged.push(Record::EndpointDeleted { endpoint: *endpoint, at: *at }))
            }
            // Whoever asked did not know yet that an endpoint was gone: nothing would ever end such a delivery.
            Command::Record(Record::DeliveriesRevived { deliveries, trigger, at }) => {
                let (deliveries, trigger, at) = (self.retain_existing_endpoints(deliveries), *trigger, *at);
                Outcome::Written(staged.push(Record::DeliveriesRevived { deliveries, trigger, at }))
            }
            // The same, and nobody would know its ordering any more.
            Command::Record(Record::DeliveriesReordered { deliveries, at }) => {
                let (deliveries, at) = (self.retain_existing_endpoints(deliveries), *at);
                Outcome::Written(staged.push(Record::DeliveriesReordered { deliveries, at }))
            }
            Command::Claim(idempotency) => {
                self.repeated(idempotency, prepared, staged).unwrap_or_else(|| {
                    let body = Arc::from(&[][..]);
                    let claimed =
                        Record::RequestAnswered { idempotency: idempotency.clone(), status: 202, body };
                    Outcome::Written(staged.push_with_key(idempotency, claimed))
                })
            }
            Command::Record(record) => Outcome::Written(match command.request() {
                Some(idempotency) => staged.push_with_key(idempotency, record.clone()),
                None => staged.push(record.clone()),
            }),
        }
    }

    /// Those whose endpoint is there.
    fn retain_existing_endpoints(&self, deliveries: &[DeliveryKey]) -> Vec<DeliveryKey> {
        let registry = read(&self.registry);
        let living = |key: &&DeliveryKey| registry.endpoint(key.endpoint).is_some();
        deliveries.iter().filter(living).copied().collect()
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
        endpoint.revision = staged.next;
        drop(registry);
        self.environment.seal(&mut endpoint);
        let endpoint = Arc::new(endpoint);
        staged.push(Record::EndpointPut(endpoint.clone()));
        Outcome::Endpoint(endpoint)
    }

    fn publish(&mut self, draft: &EventDraft, prepared: &Prepared, staged: &mut StagedGroup) -> Outcome {
        let key = draft.idempotency.as_ref();
        if let Some(repeated) = key.and_then(|key| self.repeated(key, prepared, staged)) {
            return repeated;
        }
        let outcome = self.publish_fresh(draft, prepared, staged);
        if let (Outcome::Rejected(rejection), Some(key)) = (&outcome, key) {
            let rejected = Record::EventRejected { idempotency: key.clone(), rejection: *rejection };
            staged.push_with_key(key, rejected);
        }
        outcome
    }

    /// An event whose key, when it has one, has not been seen.
    fn publish_fresh(
        &mut self,
        draft: &EventDraft,
        prepared: &Prepared,
        staged: &mut StagedGroup,
    ) -> Outcome {
        let chosen = draft.publisher_id_key();
        let by_id = chosen.as_ref().and_then(|chosen| self.repeated(chosen, prepared, staged));
        match by_id.or_else(|| duplicate_outcome(draft.id_conflict)) {
            None => {}
            Some(Outcome::Mismatch) => return Outcome::Rejected(Rejection::IdTaken),
            Some(duplicate) => return duplicate,
        }
        // Whether its version is right is open until what stands before it has been taken.
        if staged.unit_is_full {
            return Outcome::TooManyTargets;
        }
        let stream = match self.next_version(draft, prepared, staged) {
            Ok(stream) => stream,
            Err(rejection) => return Outcome::Rejected(rejection),
        };
        let idempotency = draft.idempotency.iter().cloned().chain(chosen).collect();
        let event = Arc::new(self.event(draft, stream, idempotency));
        if !staged.reserve_targets(event.targets.len()) {
            return Outcome::TooManyTargets;
        }
        let position = staged.push(Record::EventAccepted(event.clone()));
        for answered in &event.idempotency {
            staged.scopes.insert(answered.scope, known(answered, position));
        }
        if let Some((stream, version)) = &event.stream {
            staged.streams.insert((event.tenant.clone(), stream.clone()), (*version, position));
        }
        self.announce(&event, position, &mut staged.announced);
        Outcome::Accepted(Accepted { event, position, duplicate: false })
    }

    fn next_version(
        &self,
        draft: &EventDraft,
        prepared: &Prepared,
        staged: &StagedGroup,
    ) -> Result<Option<(StreamName, u64)>, Rejection> {
        let Some(stream) = &draft.stream else { return Ok(None) };
        let name = (draft.tenant.clone(), stream.clone());
        let actual = staged
            .streams
            .get(&name)
            .map(|(version, _)| *version)
            .or_else(|| self.recent.stream(&name, prepared.as_of))
            .or_else(|| prepared.streams.get(&name).copied());
        judge_version(draft.expected, actual).map(|version| Some((stream.clone(), version)))
    }

    fn event(
        &mut self,
        draft: &EventDraft,
        stream: Option<(StreamName, u64)>,
        idempotency: Vec<Idempotency>,
    ) -> Event {
        let targets = match draft.only {
            Some(endpoint) if read(&self.registry).endpoint(endpoint).is_some() => vec![endpoint],
            Some(_) => Vec::new(),
            None => self.matcher.targets(&draft.tenant, &draft.event_type),
        };
        Event {
            id: draft.id.clone().unwrap_or_else(|| self.next_id()),
            tenant: draft.tenant.clone(),
            event_type: draft.event_type.clone(),
            version: draft.version.clone(),
            timestamp: draft.timestamp.unwrap_or(self.last_time),
            accepted_at: self.last_time,
            stream,
            ordering_key: draft.ordering_key.clone(),
            deliver_at: draft.deliver_at,
            metadata: draft.metadata.clone(),
            attributes: draft.attributes.clone(),
            data: draft.data.clone(),
            targets,
            idempotency,
        }
    }

    /// ULIDs that follow commit order: a fresh random part each millisecond, counted up within it.
    fn next_id(&mut self) -> EventId {
        let millis = self.last_time.millis();
        self.last_ulid = match self.last_ulid.increment() {
            Some(next) if self.last_ulid.timestamp_ms() == millis => next,
            // Half of the range stays free, so that going up within the millisecond cannot run out.
            _ => Ulid::from_parts(millis, self.environment.random() >> 49),
        };
        format!("evt_{}", self.last_ulid).parse().expect("a ULID is made of letters and digits")
    }

    fn announce(&self, event: &Event, position: Position, announced: &mut Vec<LaneChange>) {
        let registry = read(&self.registry);
        let due = event.first_due();
        for target in &event.targets {
            let ordered =
                registry.endpoint(*target).is_some_and(|endpoint| endpoint.ordering != Ordering::None);
            if !ordered {
                let progress = Progress::begin(0, due, Trigger::Publish);
                let key = DueKey { due, event: position };
                announced.push(LaneChange::Due { endpoint: *target, key, progress, at: position });
            }
        }
    }

    fn finish(
        &mut self,
        staged: StagedGroup,
        judged: Vec<(Unit, Result<Vec<Outcome>, Refusal>)>,
    ) -> GroupResult {
        // Oldest first, as they will be forgotten.
        let mut scopes: Vec<_> = staged.scopes.into_iter().collect();
        scopes.sort_unstable_by_key(|(_, known)| known.position);
        for (scope, known) in scopes {
            self.recent.put_scope(scope, known);
        }
        let mut streams: Vec<_> = staged.streams.into_iter().collect();
        streams.sort_unstable_by_key(|(_, (_, position))| *position);
        for (name, (version, position)) in streams {
            self.recent.put_stream(name, version, position);
        }
        let first = staged.next.0 - staged.records.len() as u64;
        let records: Vec<_> = (first..).map(Position).zip(staged.records).collect();
        for (_, record) in &records {
            self.update_registry(record);
        }
        let bytes = records.iter().map(|(_, record)| format::size_hint(record)).sum::<usize>()
            + staged.targets * size_of::<LaneChange>();
        let committed = Arc::new(CommittedGroup {
            at: self.last_time,
            records,
            announced: staged.announced,
            _held: self.unapplied.hold(bytes),
        });
        let replies = judged.into_iter().filter_map(|(unit, verdict)| Some((unit.reply?, verdict))).collect();
        GroupResult { committed: Some(committed), replies, unwritten: Vec::new(), failure: None }
    }

    fn update_registry(&mut self, record: &Record) {
        let number = match record {
            Record::EndpointPut(endpoint) => endpoint.number,
            Record::EndpointDeleted { endpoint, .. } => *endpoint,
            Record::KeyPut(_) | Record::KeyDeleted { .. } => EndpointNumber(0),
            _ => return,
        };
        if let Some(old) = read(&self.registry).endpoint(number) {
            self.matcher.remove(old.number, &old.tenant);
        }
        if let Record::EndpointPut(endpoint) = record {
            self.matcher.insert(endpoint);
        }
        self.registry.write().expect("no holder of this lock panics").apply(record);
    }

    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    pub(crate) fn unapplied(&self) -> &UnappliedBytes {
        &self.unapplied
    }
}

fn read(registry: &RwLock<Registry>) -> std::sync::RwLockReadGuard<'_, Registry> {
    registry.read().expect("no holder of this lock panics")
}

fn known(idempotency: &Idempotency, position: Position) -> Known {
    Known { position, fingerprint: idempotency.fingerprint, expires_at: idempotency.expires_at }
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

#[cfg(test)]
mod tests;

//! An in-memory outbox: the oracle with an equally simple judge.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::oracle::Oracle;
use super::{End, Store};
use crate::domain::{
    ApiKey, AuditEntry, DeliveryKey, Endpoint, EndpointNumber, Event, EventId, EventType, Expected,
    Idempotency, KeyId, Position, Quota, QuotaExceeded, QuotaOverride, Record, Rejection, Source, SourceName,
    Tenant, TenantSettings, Timestamp, TypeDefinition,
};
use crate::filters::samples;
use crate::maintenance::retention::RetentionPolicy;
use crate::outbox::ReadModel;
use crate::outbox::draft::{AcceptedEvent, EventDraft};
use crate::outbox::registry::{ConsumerStatus, KnownJob};
use crate::outbox::unit::{Command, Outcome};
use crate::rules::matching::want;

/// Every commit is durable at once, and no fault affects it.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryStore {
    pub(super) oracle: Oracle,
    pub(super) records: BTreeMap<Position, (Timestamp, Record)>,
    endpoints: BTreeMap<EndpointNumber, Arc<Endpoint>>,
    endpoints_ever: u32,
    keys: BTreeMap<KeyId, Arc<ApiKey>>,
    pub(super) tenants: BTreeMap<Tenant, Arc<TenantSettings>>,
    pub(super) types: BTreeMap<EventType, Arc<TypeDefinition>>,
    sources: BTreeMap<SourceName, Arc<Source>>,
    pub(super) now: Timestamp,
    /// Publisher-chosen ids that were deleted with their events.
    pub(super) free_again: BTreeSet<[u8; 16]>,
    /// Ids for later events without a publisher-chosen id; generated when empty.
    pub(super) ids: Vec<EventId>,
}

impl MemoryStore {
    fn write(&mut self, record: Record) -> Position {
        let position = self.oracle.last.next();
        self.oracle.apply(position, &record);
        match &record {
            Record::EndpointPut(endpoint) => {
                self.endpoints.insert(endpoint.number, endpoint.clone());
            }
            Record::EndpointDeleted { endpoint, .. } => drop(self.endpoints.remove(endpoint)),
            Record::KeyPut(key) => drop(self.keys.insert(key.id.clone(), key.clone())),
            Record::KeyDeleted { id, .. } => drop(self.keys.remove(id)),
            Record::TenantPut(settings) => {
                drop(self.tenants.insert(settings.tenant.clone(), settings.clone()))
            }
            Record::TenantDeleted { tenant, .. } => drop(self.tenants.remove(tenant)),
            Record::TypePut(definition) => {
                drop(self.types.insert(definition.name.clone(), definition.clone()))
            }
            Record::TypeDeleted { name, .. } => drop(self.types.remove(name)),
            Record::SourcePut(source) => drop(self.sources.insert(source.name.clone(), source.clone())),
            Record::SourceDeleted { name, .. } => drop(self.sources.remove(name)),
            _ => {}
        }
        let record = self.oracle.without_content(position, &record);
        if let Record::EventErased { event, .. } = &record {
            for (position, (_, earlier)) in self.records.range_mut(*event..) {
                *earlier = self.oracle.without_content(*position, earlier);
            }
        }
        self.records.insert(position, (self.now, record));
        position
    }

    fn judge_source(&mut self, command: Command) -> Outcome {
        match command {
            Command::PutSource(source) => {
                let current = self.sources.get(&source.name).map(|known| known.revision);
                if current.unwrap_or_default() != source.revision {
                    return Outcome::Conflict;
                }
                let source = Arc::new(Source { revision: self.oracle.last.next(), ..*source });
                self.write(Record::SourcePut(source.clone()));
                Outcome::Source(source)
            }
            Command::DeleteSource { name, at } if self.sources.contains_key(&name) => {
                Outcome::Written(self.write(Record::SourceDeleted { name, at }))
            }
            _ => Outcome::Conflict,
        }
    }

    /// Skips a request that was answered before, and every command after a conflict.
    fn judge_unit(&mut self, unit: Vec<Command>) -> Vec<Outcome> {
        if let Some(Command::Atomic(key)) = unit.first() {
            let key = key.clone();
            return self.judge_atomic(unit, key);
        }
        let request = unit.iter().find_map(Command::request).cloned();
        let is_claim = matches!(unit[..], [Command::Claim(_), ..]);
        match request.and_then(|request| self.repeated(&request)) {
            Some(Outcome::Duplicate(_)) if is_claim => {}
            Some(repeated) => return vec![repeated; unit.len()],
            None => {}
        }
        let (mut refused, before) = (None, self.oracle.last);
        let judge = |command: Command| {
            if let Command::Audit(entry) = command {
                return self.audit(entry, before);
            }
            let outcome = refused.clone().unwrap_or_else(|| self.judge(command));
            if matches!(outcome, Outcome::Conflict | Outcome::QuotaExceeded(_)) {
                refused = Some(outcome.clone());
            }
            outcome
        };
        unit.into_iter().map(judge).collect()
    }

    /// An audit entry follows the changes of its unit. A stored response alone is not a change.
    fn audit(&mut self, entry: Arc<AuditEntry>, before: Position) -> Outcome {
        let is_change = |(_, record): &(Timestamp, Record)| {
            !matches!(record, Record::RequestAnswered { .. } | Record::EventRejected { .. })
        };
        if self.records.range(before.next()..).any(|(_, written)| is_change(written)) {
            Outcome::Written(self.write(Record::Audited(entry)))
        } else {
            Outcome::Passed
        }
    }

    /// Judges a copy, and keeps it when every command is accepted.
    fn judge_atomic(&mut self, unit: Vec<Command>, key: Option<Idempotency>) -> Vec<Outcome> {
        match key.as_ref().and_then(|key| self.repeated(key)) {
            Some(Outcome::Duplicate(at)) => {
                let before = |index: usize| unit[..index].iter().filter_map(Command::draft).count() as u64;
                let position = |(index, command): (usize, &Command)| {
                    let offset = if command.draft().is_some() { before(index) } else { 0 };
                    Outcome::Duplicate(Position(at.0 + offset))
                };
                return unit.iter().enumerate().map(position).collect();
            }
            Some(other) => return vec![other; unit.len()],
            None => {}
        }
        let ids: Vec<_> = unit
            .iter()
            .map(|command| command.draft()?.publisher_id_key().and_then(|id| self.repeated(&id)))
            .collect();
        let taken = ids.iter().position(|id| matches!(id, Some(Outcome::Mismatch)));
        let known = ids.iter().position(Option::is_some);
        let is_whole = unit.iter().zip(&ids).all(|(command, id)| command.draft().is_none() || id.is_some());
        let failure = match (taken, known) {
            (Some(index), _) => (index, Outcome::Rejected(Rejection::IdTaken)),
            (None, Some(_)) if is_whole => {
                return ids.into_iter().map(|id| id.unwrap_or(Outcome::Passed)).collect();
            }
            (None, Some(index)) => (index, Outcome::Rejected(Rejection::PartialDuplicate)),
            (None, None) => {
                let mut copy = self.clone();
                let outcomes: Vec<_> = unit.iter().map(|command| copy.judge_alone(command)).collect();
                let failed = outcomes
                    .iter()
                    .position(|outcome| !matches!(outcome, Outcome::Accepted(_) | Outcome::Passed));
                let Some(index) = failed else {
                    *self = copy;
                    return outcomes;
                };
                (index, outcomes[index].clone())
            }
        };
        let (index, outcome) = failure;
        if let (Some(idempotency), Outcome::Rejected(rejection)) = (key, &outcome) {
            let (rejection, command) = (*rejection, u32::try_from(index).ok());
            self.write(Record::EventRejected { idempotency, rejection, command });
        }
        let mut outcomes = vec![Outcome::Withdrawn; unit.len()];
        outcomes[index] = outcome;
        outcomes
    }

    /// Judges a command of an atomic unit, whose key and ids are new.
    fn judge_alone(&mut self, command: &Command) -> Outcome {
        match command {
            Command::Atomic(_) => Outcome::Passed,
            Command::Check { tenant, stream, expected } => {
                let head = self.oracle.streams.get(&(tenant.clone(), stream.clone()));
                let actual = head.map(|head| head.version);
                if agrees(*expected, actual) {
                    return Outcome::Passed;
                }
                Outcome::Rejected(Rejection::VersionConflict { expected: *expected, actual })
            }
            Command::Publish(draft) => match draft.publisher_id_key().and_then(|id| self.repeated(&id)) {
                Some(_) => Outcome::Rejected(Rejection::IdTaken),
                None => self.append(draft),
            },
            other => panic!("{other:?} is not of an atomic unit"),
        }
    }

    /// Records the horizon before these events are forgotten, and before the first removal.
    fn move_horizon(&mut self, over: &[Position]) {
        let known = self.oracle.horizon;
        let mut horizon = known.horizon;
        for position in over {
            let kind = match self.oracle.events[position].stream {
                Some(_) => &mut horizon.stream_events,
                None => &mut horizon.events,
            };
            *kind = (*kind).max(*position);
        }
        if known.record == Position(0) || horizon != known.horizon {
            self.write(Record::HorizonMoved { horizon, at: self.now });
        }
    }

    fn repeated(&self, request: &Idempotency) -> Option<Outcome> {
        let is_free = self.free_again.contains(&request.scope);
        let known = self.oracle.requests.get(&request.scope).filter(|_| !is_free);
        let known = known.filter(|known| known.expires_at.is_none_or(|at| at > self.now))?;
        let is_same = known.fingerprint == request.fingerprint;
        Some(if is_same { Outcome::Duplicate(known.position) } else { Outcome::Mismatch })
    }

    fn judge(&mut self, command: Command) -> Outcome {
        match command {
            Command::Publish(draft) => self.publish(&draft),
            Command::PutEndpoint(endpoint) => self.put_endpoint(*endpoint),
            Command::DeleteEndpoint { endpoint, .. } if !self.endpoints.contains_key(&endpoint) => {
                Outcome::Conflict
            }
            Command::DeleteEndpoint { endpoint, at } => {
                Outcome::Written(self.write(Record::EndpointDeleted { endpoint, at }))
            }
            Command::Record(Record::DeliveriesRevived { mut deliveries, trigger, at }) => {
                deliveries.retain(|key: &DeliveryKey| self.endpoints.contains_key(&key.endpoint));
                Outcome::Written(self.write(Record::DeliveriesRevived { deliveries, trigger, at }))
            }
            Command::Record(Record::DeliveriesReordered { mut deliveries, at }) => {
                deliveries.retain(|key: &DeliveryKey| self.endpoints.contains_key(&key.endpoint));
                Outcome::Written(self.write(Record::DeliveriesReordered { deliveries, at }))
            }
            Command::Atomic(_) | Command::Check { .. } => self.judge_alone(&command),
            Command::Claim(request) => self.repeated(&request).unwrap_or_else(|| {
                let body = Arc::from(&[][..]);
                Outcome::Written(self.write(Record::RequestAnswered {
                    idempotency: request,
                    status: 202,
                    body,
                }))
            }),
            Command::PutTenant(settings) => {
                let current = self.tenants.get(&settings.tenant).map(|known| known.revision);
                if current.unwrap_or_default() != settings.revision {
                    return Outcome::Conflict;
                }
                let revision = self.oracle.last.next();
                let settings = Arc::new(TenantSettings { revision, ..*settings });
                self.write(Record::TenantPut(settings.clone()));
                Outcome::Tenant(settings)
            }
            Command::DeleteTenant { tenant, at } => {
                let usage = self.oracle.usage(&tenant);
                let consumers = self.oracle.consumers.count_of(&tenant);
                if usage.endpoints + usage.keys > 0 || consumers > 0 {
                    return Outcome::Conflict;
                }
                Outcome::Written(self.write(Record::TenantDeleted { tenant, at }))
            }
            Command::PutType(definition) => {
                let current = self.types.get(&definition.name).map(|known| known.revision);
                if current.unwrap_or_default() != definition.revision {
                    return Outcome::Conflict;
                }
                let revision = self.oracle.last.next();
                let definition = Arc::new(TypeDefinition { revision, ..definition.definition });
                self.write(Record::TypePut(definition.clone()));
                Outcome::Type(definition)
            }
            Command::DeleteType { name, .. } if !self.types.contains_key(&name) => Outcome::Conflict,
            Command::DeleteType { name, at } => {
                Outcome::Written(self.write(Record::TypeDeleted { name, at }))
            }
            Command::PutSource(_) | Command::DeleteSource { .. } => self.judge_source(command),
            Command::Record(Record::KeyPut(key)) => match self.exceeded_by_key(&key) {
                Some(exceeded) => Outcome::QuotaExceeded(exceeded),
                None => Outcome::Written(self.write(Record::KeyPut(key))),
            },
            Command::Record(Record::KeyUsed { id, .. }) if !self.keys.contains_key(&id) => Outcome::Passed,
            Command::PutConsumer(_) | Command::MoveConsumer(_) | Command::DeleteConsumer { .. } => {
                self.judge_consumer(&command)
            }
            Command::PutJob(_) | Command::MoveJob { .. } => self.judge_job(&command),
            Command::Audit(entry) => panic!("{entry:?} is not judged alone"),
            Command::SealSegment => Outcome::Sealed,
            Command::Record(record) => Outcome::Written(self.write(record)),
        }
    }

    fn judge_job(&mut self, command: &Command) -> Outcome {
        match self.oracle.jobs.judge(command, self.oracle.last.next()) {
            Ok(record) => {
                let written = Outcome::Written(self.write(record.clone()));
                if let Record::JobPut(job) = record { Outcome::Job(job) } else { written }
            }
            Err(outcome) => outcome,
        }
    }

    fn judge_consumer(&mut self, command: &Command) -> Outcome {
        let record = match self.oracle.consumers.judge(command) {
            Ok(record) => record,
            Err(outcome) => return outcome,
        };
        let mut is_new = false;
        let key = match &record {
            Record::ConsumerPut(consumer) => {
                is_new = !self.oracle.consumers.all.contains_key(&consumer.key);
                if let Some(tenant) = consumer.key.tenant.as_ref().filter(|_| is_new) {
                    let count = self.oracle.consumers.count_of(tenant) as u64 + 1;
                    if let Some(exceeded) = self.exceeded(tenant, Quota::Consumers, count) {
                        return Outcome::QuotaExceeded(exceeded);
                    }
                }
                consumer.key.clone()
            }
            Record::ConsumerMoved { key, .. } => key.clone(),
            _ => return Outcome::Written(self.write(record)),
        };
        self.write(record);
        let statuses = self.oracle.consumers.statuses();
        let status = statuses.into_iter().find(|status| status.consumer.key == key);
        status.map_or(Outcome::Conflict, |status| match is_new {
            true => Outcome::ConsumerCreated(status),
            false => Outcome::Consumer(status),
        })
    }

    fn exceeded(&self, tenant: &Tenant, quota: Quota, value: u64) -> Option<QuotaExceeded> {
        match self.tenants.get(tenant)?.quotas.get(quota) {
            QuotaOverride::Limit(limit) if value > limit => {
                Some(QuotaExceeded { quota, limit, value, retry_after: None })
            }
            _ => None,
        }
    }

    fn exceeded_by_key(&self, key: &ApiKey) -> Option<QuotaExceeded> {
        let tenant = key.tenant.as_ref()?;
        if self.keys.get(&key.id).is_some_and(|known| known.tenant.as_ref() == Some(tenant)) {
            return None;
        }
        self.exceeded(tenant, Quota::Keys, self.oracle.usage(tenant).keys + 1)
    }

    fn exceeded_by_endpoint(&self, endpoint: &Endpoint) -> Option<QuotaExceeded> {
        let tenant = &endpoint.tenant;
        let own = self.endpoints.values().filter(|known| known.tenant == *tenant);
        let patterns = |endpoint: &Endpoint| {
            endpoint.event_types.iter().map(|pattern| pattern.as_str().to_owned()).collect::<Vec<_>>()
        };
        let bytes = |endpoint: &Endpoint| patterns(endpoint).concat().len() as u64;
        let wildcards = |endpoint: &Endpoint| {
            patterns(endpoint).join(".").split('.').filter(|part| ["*", "#"].contains(part)).count() as u64
        };
        let known = self.endpoints.get(&endpoint.number);
        let count = known.is_none().then(|| own.clone().count() as u64 + 1);
        let grown = |quota, amount: &dyn Fn(&Endpoint) -> u64| {
            let before = known.map_or(0, |known| amount(known));
            let (all, after) = (own.clone().map(|known| amount(known)).sum::<u64>(), amount(endpoint));
            (after > before).then(|| self.exceeded(tenant, quota, all - before + after)).flatten()
        };
        count
            .and_then(|count| self.exceeded(tenant, Quota::Endpoints, count))
            .or_else(|| grown(Quota::PatternBytes, &bytes))
            .or_else(|| grown(Quota::WildcardParts, &wildcards))
    }

    fn put_endpoint(&mut self, mut endpoint: Endpoint) -> Outcome {
        let before = endpoint.number;
        if before == EndpointNumber(0) {
            endpoint.number = EndpointNumber(self.endpoints_ever + 1);
        } else if self.endpoints.get(&endpoint.number).map(|known| known.revision) != Some(endpoint.revision)
        {
            return Outcome::Conflict;
        }
        let number = std::mem::replace(&mut endpoint.number, before);
        if let Some(exceeded) = self.exceeded_by_endpoint(&endpoint) {
            return Outcome::QuotaExceeded(exceeded);
        }
        if before == EndpointNumber(0) {
            self.endpoints_ever += 1;
        }
        endpoint.number = number;
        endpoint.revision = self.oracle.last.next();
        let endpoint = Arc::new(endpoint);
        self.write(Record::EndpointPut(endpoint.clone()));
        Outcome::Endpoint(endpoint)
    }

    fn publish(&mut self, draft: &EventDraft) -> Outcome {
        if let Some(repeated) = draft.idempotency.as_ref().and_then(|key| self.repeated(key)) {
            return repeated;
        }
        let outcome = self.publish_fresh(draft);
        if let (Outcome::Rejected(rejection), Some(key)) = (&outcome, &draft.idempotency) {
            self.write(Record::EventRejected {
                idempotency: key.clone(),
                rejection: *rejection,
                command: None,
            });
        }
        outcome
    }

    fn publish_fresh(&mut self, draft: &EventDraft) -> Outcome {
        match draft.publisher_id_key().and_then(|chosen| self.repeated(&chosen)) {
            Some(Outcome::Mismatch) => return Outcome::Rejected(Rejection::IdTaken),
            Some(duplicate) => return duplicate,
            None => {}
        }
        self.append(draft)
    }

    fn append(&mut self, draft: &EventDraft) -> Outcome {
        let requests: Vec<Idempotency> =
            draft.idempotency.iter().cloned().chain(draft.publisher_id_key()).collect();
        let stream = draft.stream.clone().map(|stream| {
            let head = self.oracle.streams.get(&(draft.tenant.clone(), stream.clone()));
            (stream, head.map(|head| head.version))
        });
        if let Some((_, actual)) = &stream
            && !agrees(draft.expected, *actual)
        {
            let (expected, actual) = (draft.expected, *actual);
            return Outcome::Rejected(Rejection::VersionConflict { expected, actual });
        }
        let position = self.oracle.last.next();
        for request in &requests {
            self.free_again.remove(&request.scope);
        }
        let event = Arc::new(Event {
            id: draft.id.clone().unwrap_or_else(|| self.next_id(position)),
            tenant: draft.tenant.clone(),
            event_type: draft.event_type.clone(),
            version: draft.version.clone(),
            timestamp: draft.timestamp.unwrap_or(self.now),
            accepted_at: self.now,
            stream: stream.map(|(stream, head)| (stream, head.unwrap_or(0) + 1)),
            ordering_key: draft.ordering_key.clone(),
            deliver_at: draft.deliver_at,
            labels: draft.labels.clone(),
            metadata: draft.metadata.clone(),
            attributes: draft.attributes.clone(),
            data: draft.data.clone(),
            targets: self.targets(draft),
            idempotency: requests,
            erased_at: None,
        });
        self.write(Record::EventAccepted(event.clone()));
        Outcome::Accepted(AcceptedEvent { event, position, duplicate: false })
    }

    fn next_id(&mut self, position: Position) -> EventId {
        if self.ids.is_empty() {
            let id = ulid::Ulid::from_parts(self.now.millis(), u128::from(position.0));
            return format!("evt_{id}").parse().expect("a legal id");
        }
        self.ids.remove(0)
    }

    fn targets(&self, draft: &EventDraft) -> Vec<EndpointNumber> {
        let wants = |endpoint: &&Arc<Endpoint>| match draft.only {
            Some(only) => endpoint.number == only,
            None => {
                endpoint.tenant.takes_from(&draft.tenant)
                    && want(&endpoint.event_types, &draft.event_type)
                    && samples::wants(&endpoint.selection, &draft.event_type, &draft.labels, &draft.data)
            }
        };
        self.endpoints.values().filter(wants).map(|endpoint| endpoint.number).collect()
    }
}

fn agrees(expected: Expected, actual: Option<u64>) -> bool {
    match expected {
        Expected::Any => true,
        Expected::NoStream => actual.is_none(),
        Expected::Exists => actual.is_some(),
        Expected::Version(version) => actual == Some(version),
    }
}

impl Store for MemoryStore {
    fn submit(&mut self, units: Vec<Vec<Command>>) -> Vec<Vec<Outcome>> {
        units.into_iter().map(|unit| self.judge_unit(unit)).collect()
    }

    fn ask(&mut self, question: &mut dyn FnMut(&dyn ReadModel) -> Result<(), String>) -> Result<(), String> {
        question(&self.oracle)
    }

    fn record(&mut self, position: Position) -> Option<Record> {
        self.records.get(&position).map(|(_, record)| record.clone())
    }

    fn records_at(&mut self, time: Timestamp) -> Vec<(Position, Record)> {
        let of_then = self.records.iter().filter(|(_, (at, _))| *at == time);
        of_then.map(|(position, (_, record))| (*position, record.clone())).collect()
    }

    fn endpoints(&mut self) -> Vec<Arc<Endpoint>> {
        self.endpoints.values().cloned().collect()
    }

    fn keys(&mut self) -> Vec<Arc<ApiKey>> {
        self.keys.values().cloned().collect()
    }

    fn tenants(&mut self) -> Vec<Arc<TenantSettings>> {
        self.tenants.values().cloned().collect()
    }

    fn jobs(&mut self) -> Vec<KnownJob> {
        self.oracle.jobs.known()
    }

    fn consumers(&mut self) -> Vec<ConsumerStatus> {
        self.oracle.consumers.statuses()
    }

    fn sources(&mut self) -> Vec<Arc<Source>> {
        self.sources.values().cloned().collect()
    }

    fn types(&mut self) -> Vec<Arc<TypeDefinition>> {
        self.types.values().cloned().collect()
    }

    fn tell_time(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
    }

    fn checkpoint(&mut self) {}

    fn retain(&mut self, policy: RetentionPolicy) {
        let before = |keep: Option<std::time::Duration>| keep.map(|keep| self.now.minus(keep));
        let (events, stream_events) = (before(policy.events), before(policy.stream_events));
        let acts = before(policy.audit);
        let all: Vec<_> = self.oracle.events.keys().copied().collect();
        let over = all.into_iter().filter(|event| self.oracle.is_over(*event, events, stream_events));
        let over: Vec<_> = over.collect();
        if (events, stream_events, acts) != (None, None, None) {
            self.move_horizon(&over);
        }
        self.oracle.forgotten.extend(over);
        let hours_from = self.oracle.hours_from;
        if let Some(before) = acts {
            self.oracle.jobs.forget_acts(before);
        }
        self.oracle.hours_from = events.map_or(hours_from, |cutoff| hours_from.max(cutoff));
    }

    fn erase_on_disk(&mut self) {
        let erased = self.oracle.events.iter().filter(|(_, event)| event.erased_at.is_some());
        let erased: Vec<_> = erased.map(|(position, _)| *position).collect();
        self.oracle.left_disk.extend(erased);
    }

    fn end(&mut self, _: End) {}
}

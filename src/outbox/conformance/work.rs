//! Random work on an outbox, and the checks after it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::compare::{Moment, compare};
use super::memory::MemoryStore;
use super::outcomes::{brief, chooses_no_id, is_same, kind};
use super::{End, Store};
use crate::domain::last_attempt::status_text;
use crate::domain::{
    Attempt, DeadReason, DeliveryKey, DeliveryState, DisabledReason, Endpoint, EndpointNumber,
    EndpointStatus, ErrorClass, EventId, Expected, Hold, Idempotency, Next, Ordering, Position, RateLimit,
    Record, Reservation, Tenant, Timestamp, Trigger,
};
use crate::filters::samples;
use crate::outbox::draft::EventDraft;
use crate::outbox::unit::{Command, Outcome};
use crate::rules;

/// Start time: 2033-05-18T03:33:20Z.
pub(super) const BEGINNING: u64 = 2_000_000_000_000;
/// Steps between two full comparisons.
const STEPS_PER_CHECK: u32 = 10;

pub(super) struct Work<S> {
    pub(super) random: fastrand::Rng,
    pub(super) store: S,
    /// Whether retention runs.
    pub(super) retains: bool,
    pub(super) oracle: MemoryStore,
    pub(super) now: Timestamp,
    /// Retention has removed records.
    pub(super) retained: bool,
    /// The state was rebuilt without the removed records.
    rebuilt: bool,
    last_id: Option<EventId>,
    /// Erased events, with their data.
    pub(super) erased: Vec<(Position, Bytes)>,
    /// Number of posts so far. It makes the data of each event unique.
    posts: u64,
    done: String,
    happened: BTreeMap<&'static str, u64>,
}

impl<S: Store> Work<S> {
    pub(super) fn new(seed: u64, store: S) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            store,
            retains: true,
            oracle: MemoryStore::default(),
            now: Timestamp::from_millis(BEGINNING),
            retained: false,
            rebuilt: false,
            last_id: None,
            erased: Vec::new(),
            posts: 0,
            done: String::new(),
            happened: BTreeMap::new(),
        }
    }

    /// The steps so far, one per line.
    pub(super) fn done(&self) -> &str {
        &self.done
    }

    pub(super) fn happened(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.happened.iter().map(|(what, count)| (*what, *count))
    }

    pub(super) fn note(&mut self, what: &str) {
        writeln!(self.done, "{:>10} {what}", self.now.millis() - BEGINNING).expect("a string takes it");
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.happened.entry(what).or_default() += 1;
    }

    pub(super) fn percent(&mut self, percent: u32) -> bool {
        self.random.u32(0..100) < percent
    }

    pub(super) fn run(&mut self) -> Result<(), String> {
        let steps = self.random.u32(30..140);
        for step in 0..steps {
            self.pass_time();
            self.step()?;
            if step % STEPS_PER_CHECK == 0 {
                self.check()?;
            }
        }
        self.check()
    }

    fn pass_time(&mut self) {
        // Often zero, so that several commits share a time; sometimes hours.
        let most = self.random.choice([1, 50, 2_000, 600_000, 4_000_000]).expect("five");
        let time = Duration::from_millis(self.random.u64(0..most));
        self.pass(time);
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.store.tell_time(self.now);
        self.oracle.tell_time(self.now);
    }

    fn step(&mut self) -> Result<(), String> {
        match self.random.u32(0..100) {
            0..34 => {
                let units = (0..self.random.u32(1..4)).map(|_| self.posts()).collect();
                self.submit(units)
            }
            34..42 => {
                let (put, audit) = (self.put_endpoint(), self.audit());
                let audit = self.percent(50).then_some(audit);
                let unit = [put].into_iter().chain(audit).collect();
                self.submit(vec![unit])
            }
            42..44 => {
                let endpoint = self.endpoint();
                let audit = self.audit();
                self.submit(vec![vec![Command::DeleteEndpoint { endpoint, at: self.now }, audit]])
            }
            44..47 => {
                let unit = vec![Command::Record(self.key())];
                self.submit(vec![unit])
            }
            47..50 => {
                let units = vec![vec![self.tenant()], vec![self.event_type()], vec![self.source()]];
                self.submit(units)
            }
            50..54 => {
                let units = (0..self.random.u32(1..3)).map(|_| self.request()).collect();
                self.submit(units)
            }
            54..60 => {
                let units = (0..self.random.u32(1..4)).map(|_| vec![self.consumer()]).collect();
                self.submit(units)?;
                let unit = vec![self.job(), self.audit()];
                self.submit(vec![unit])
            }
            60..71 => {
                let units = (0..self.random.u32(1..6)).filter_map(|_| self.attempt()).collect();
                self.submit(units)
            }
            71..76 => {
                let units = (0..self.random.u32(1..6)).filter_map(|_| self.lease()).collect();
                self.submit(units)
            }
            76..84 => {
                let unit = vec![Command::Record(self.in_bulk())];
                self.submit(vec![unit])
            }
            84 => self.erase(),
            85 => self.erase_on_disk(),
            86..90 => {
                self.note("checkpoint");
                self.count("checkpoints");
                self.store.checkpoint();
                Ok(())
            }
            90..94 => {
                if self.retains {
                    self.retain();
                }
                Ok(())
            }
            _ => self.end(),
        }
    }

    /// Asks the outbox which publisher-chosen ids are free again after their events were deleted.
    fn ask_for_free_ids(&mut self) {
        let oracle = &self.oracle.oracle;
        let gone = oracle
            .requests
            .iter()
            .filter(|(_, known)| known.expires_at.is_none() && oracle.forgotten.contains(&known.position));
        let gone: Vec<_> = gone.map(|(scope, _)| *scope).collect();
        let mut free = BTreeSet::new();
        let asked = self.store.ask(&mut |found| {
            free.extend(gone.iter().filter(|scope| found.request(scope).is_none()));
            Ok(())
        });
        asked.expect("it asks, and judges nothing");
        self.oracle.free_again = free;
    }

    /// Submits the units to the outbox and the oracle, and compares the outcomes.
    pub(super) fn submit(&mut self, units: Vec<Vec<Command>>) -> Result<(), String> {
        let units = crate::outbox::commit_queue::in_turn_order(units);
        for command in units.iter().flatten() {
            self.note(&brief(command));
        }
        self.ask_for_free_ids();
        let chooses: Vec<_> = units.iter().flatten().map(chooses_no_id).collect();
        let found: Vec<_> = self.store.submit(units.clone()).into_iter().flatten().collect();
        let fresh = found.iter().zip(chooses).filter_map(|(outcome, chooses)| match outcome {
            Outcome::Accepted(accepted) if chooses => Some(accepted.event.id.clone()),
            _ => None,
        });
        let fresh: Vec<_> = fresh.collect();
        for id in &fresh {
            self.check_id(id)?;
        }
        self.oracle.ids = fresh;
        let expected: Vec<_> = self.oracle.submit(units).into_iter().flatten().collect();
        self.oracle.ids.clear();
        if expected.len() != found.len() {
            return Err(format!("{} answers to {} commands", found.len(), expected.len()));
        }
        for (expected, found) in expected.iter().zip(&found) {
            self.count(kind(expected));
            if !is_same(expected, found) {
                return Err(format!("answered {found:?}, not {expected:?}"));
            }
        }
        Ok(())
    }

    /// Checks that a generated id is a ULID with the commit's time, and that ids ascend.
    fn check_id(&mut self, id: &EventId) -> Result<(), String> {
        let ulid = id.as_str().strip_prefix("evt_").and_then(|text| ulid::Ulid::from_string(text).ok());
        let of_now = ulid.is_some_and(|ulid| ulid.timestamp_ms() == self.now.millis());
        if !of_now || self.last_id.as_ref().is_some_and(|last| last >= id) {
            return Err(format!("{id} was given after {:?} at {}", self.last_id, self.now.millis()));
        }
        self.last_id = Some(id.clone());
        Ok(())
    }

    fn posts(&mut self) -> Vec<Command> {
        if self.percent(25) {
            return self.atomic();
        }
        let claim = self.percent(20).then(|| Command::Claim(self.request_key()));
        let count = self.random.u32(1..4);
        claim.into_iter().chain((0..count).map(|_| Command::Publish(Box::new(self.post())))).collect()
    }

    pub(super) fn request_key(&mut self) -> Idempotency {
        Idempotency {
            scope: [self.random.u8(20..26); 16],
            fingerprint: [u8::from(self.percent(20)); 16],
            expires_at: Some(self.now.plus(Duration::from_millis(self.random.u64(1..20_000_000)))),
        }
    }

    pub(super) fn post(&mut self) -> EventDraft {
        let chosen = self.percent(15).then(|| self.random.u32(0..6));
        let key = self.percent(25).then(|| self.random.u8(0..6));
        // Most repetitions have the same body.
        let body = if self.percent(80) { 0 } else { self.random.u8(..) };
        let stream = self.percent(35).then(|| self.random.u32(0..3));
        let expected = match self.random.u32(0..6) {
            0 => Expected::NoStream,
            1 | 2 => Expected::Version(self.random.u64(1..6)),
            _ => Expected::Any,
        };
        let lifetime = Duration::from_millis(self.random.u64(1..30_000_000));
        let later = Duration::from_millis(self.random.u64(0..8_000_000));
        let kind = self.random.choice(["order.paid", "order.sent", "user.new"]).expect("three");
        let kind = kind.parse().expect("a legal type");
        let tenant = self.random.choice(["default", "default", "other"]).expect("three");
        let tenant = tenant.parse().expect("a legal tenant");
        self.posts += 1;
        let more = "x".repeat(self.random.usize(0..120));
        let data = format!("{{\"body\":{body},\"post\":{},\"more\":\"{more}\"}}", self.posts);
        EventDraft {
            id: chosen.map(|number| format!("chosen-{number}").parse().expect("a legal id")),
            expected: if stream.is_some() { expected } else { Expected::Any },
            stream: stream.map(|number| format!("stream-{number}").parse().expect("a legal stream")),
            ordering_key: self.percent(30).then(|| "a".parse().expect("a legal key")),
            deliver_at: self.percent(20).then(|| self.now.plus(later)),
            labels: samples::labels(self.random.u64(..)),
            metadata: self.percent(10).then(|| Bytes::from_static(b"{}")),
            idempotency: key.map(|key| Idempotency {
                scope: [key; 16],
                fingerprint: [body; 16],
                expires_at: Some(self.now.plus(lifetime)),
            }),
            fingerprint: [body; 16],
            only: self.percent(5).then(|| EndpointNumber(self.random.u32(1..6))),
            ..EventDraft::new(tenant, kind, data.into())
        }
    }

    /// A random live or deleted endpoint, and sometimes an unknown one.
    fn endpoint(&mut self) -> EndpointNumber {
        EndpointNumber(self.random.u32(1..7))
    }

    fn put_endpoint(&mut self) -> Command {
        let known = self.oracle.endpoints();
        let old = if known.len() < 5 && self.percent(60) { None } else { self.random.choice(known) };
        let status = match self.random.u32(0..6) {
            0 => EndpointStatus::Paused,
            1 => EndpointStatus::Disabled { reason: DisabledReason::Gone, at: self.now },
            _ => EndpointStatus::Active,
        };
        let ordering = self.random.choice([Ordering::None, Ordering::Key, Ordering::Endpoint]);
        let urls = ["http://receiver.test/", "http://receiver.test/other", "http://moved.test/"];
        let url = self.random.choice(urls).expect("three");
        let types: &[&str] =
            self.random.choice([&[][..], &["order.*"], &["#.paid", "user.#"]]).expect("three");
        let tenant = self.random.choice(["default", "default", "other"]).expect("three");
        let mut revision = old.as_ref().map_or(Position(0), |old| old.revision);
        if self.percent(15) {
            revision = Position(revision.0.saturating_sub(1));
        }
        // Sealed again, maybe.
        let updated_at = old.as_ref().map(|old| old.updated_at).filter(|_| self.percent(30));
        let number = old.as_ref().map_or(EndpointNumber(0), |old| old.number);
        let id = old.as_ref().map(|old| old.id.clone());
        let transport = match &old {
            Some(old) => old.transport.clone(),
            None => self.transport(),
        };
        let owner = if self.percent(25) { Tenant::every() } else { tenant.parse().expect("a legal tenant") };
        Command::PutEndpoint(Box::new(Endpoint {
            number,
            transport,
            id: id.unwrap_or_else(|| format!("ep_{}", self.random.u64(..)).parse().expect("a legal id")),
            tenant: old.map_or(owner, |old| old.tenant.clone()),
            url: url.into(),
            event_types: types.iter().map(|pattern| pattern.parse().expect("a legal pattern")).collect(),
            selection: samples::selection(self.random.u64(..)),
            max_in_flight: Some(1),
            timeout: Some(Duration::from_secs(1)),
            ordering: ordering.expect("three"),
            status,
            created_at: self.now,
            updated_at: updated_at.unwrap_or(self.now),
            revision,
            ..rules::tests::endpoint(0, tenant, &[])
        }))
    }

    /// A request with an idempotency key, and its response. Most repetitions are of the same
    /// request.
    fn request(&mut self) -> Vec<Command> {
        let mut unit = match self.random.u32(0..4) {
            0 => vec![self.put_endpoint()],
            1 => vec![Command::Record(self.key())],
            2 => vec![Command::Record(self.in_bulk()), Command::Record(self.in_bulk())],
            _ => Vec::new(),
        };
        unit.push(Command::Record(Record::RequestAnswered {
            idempotency: self.request_key(),
            status: 201,
            body: Arc::from(&b"{}"[..]),
        }));
        unit
    }

    /// A random delivery whose event is not deleted. Only such deliveries get commands.
    fn delivery(&mut self, wanted: fn(DeliveryState) -> bool) -> Option<DeliveryKey> {
        let oracle = &self.oracle.oracle;
        let all = oracle
            .deliveries
            .iter()
            .filter(|(key, known)| wanted(known.state) && !oracle.forgotten.contains(&key.event));
        let all: Vec<_> = all.map(|(key, _)| *key).collect();
        self.random.choice(all)
    }

    fn attempt(&mut self) -> Option<Vec<Command>> {
        let late = self.percent(8);
        let wanted = if late { |_| true } else { |state| state == DeliveryState::Pending };
        let key = self.delivery(wanted).filter(|key| !self.oracle.oracle.queues.contains(&key.endpoint))?;
        let known = self.oracle.oracle.deliveries[&key].clone();
        let due = if self.percent(6) { known.due.plus(Duration::from_millis(1)) } else { known.due };
        let duration = Duration::from_millis(self.random.choice([0, 3, 700, 90_000]).expect("four"));
        let wait = Duration::from_millis(self.random.u64(1..3_000_000));
        let next = match self.random.u32(0..10) {
            0..5 => Next::Delivered,
            5..8 => Next::RetryAt(self.now.plus(duration).plus(wait)),
            8 => Next::Dead(DeadReason::AttemptsExhausted),
            _ => Next::Dead(DeadReason::Gone),
        };
        let failure = self.random.choice([None, Some(500), Some(302)]).expect("three");
        let text = match failure {
            None => (ErrorClass::Timeout, "no reply within 5 s".into()),
            Some(status) => (ErrorClass::Status, status_text(status, Some("http://a.example/")).into()),
        };
        let error = (next != Next::Delivered).then_some(text);
        let attempt = Attempt {
            number: known.progress.attempts + 1,
            trigger: known.progress.trigger,
            started_at: self.now,
            duration,
            status: if error.is_some() { failure } else { Some(200) },
            error,
            reply: Bytes::from_static(b"reply"),
            network: Default::default(),
            next,
            hold: self.hold(),
            uptime: self
                .random
                .choice([None, Some(Duration::from_secs(1)), Some(Duration::from_secs(90_000))])
                .flatten(),
            delay: Duration::from_millis(self.random.choice([0, 0, 40, 90_000]).expect("four")),
            exchange: Default::default(),
        };
        let record = Record::AttemptFinished { delivery: key, due, attempt: Arc::new(attempt) };
        Some(vec![Command::Record(record)])
    }

    /// A hold of a random past or future revision.
    fn hold(&mut self) -> Option<Hold> {
        let until = self.now.plus(Duration::from_secs(self.random.u64(0..7_200)));
        let revision = Position(self.random.u64(0..self.oracle.oracle.last.0 + 2));
        self.percent(20).then_some(Hold { until, revision })
    }

    fn in_bulk(&mut self) -> Record {
        let at = self.now;
        let mut deliveries = Vec::new();
        for _ in 0..self.random.u32(1..5) {
            let any = self.delivery(|_| true);
            let event = any.map_or(Position(1), |key| key.event);
            let stranger = DeliveryKey { event, endpoint: self.endpoint() };
            let key = if self.percent(80) { any } else { Some(stranger) };
            let oracle = &self.oracle.oracle;
            let is_known =
                |event: &Position| oracle.events.contains_key(event) && !oracle.forgotten.contains(event);
            deliveries.extend(key.filter(|key| is_known(&key.event)));
        }
        deliveries.dedup();
        let trigger = self.random.choice([Trigger::Manual, Trigger::Redrive, Trigger::Replay]);
        let trigger = trigger.expect("three");
        match self.random.u32(0..11) {
            9.. => {
                let revision = Position(self.random.u64(0..self.oracle.oracle.last.0 + 2));
                let burst = self.random.u32(1..4);
                let rate = RateLimit { limit: 3, per: Duration::from_secs(60), burst };
                let full_at = at.plus(Duration::from_secs(self.random.u64(0..90)));
                let reservation = Reservation { revision, rate, full_at };
                Record::RateReserved { endpoint: self.endpoint(), reservation }
            }
            0..3 => Record::DeliveriesRevived { deliveries, trigger, at },
            3..6 => Record::DeliveriesReordered { deliveries, at },
            6 => Record::DeliveriesCancelled { deliveries, at },
            7 => Record::DeliveriesDied { deliveries, reason: DeadReason::EndpointDeleted, at },
            _ => Record::DeadLettersPurged { deliveries, at },
        }
    }

    fn end(&mut self) -> Result<(), String> {
        let cut = End::PowerCut(self.random.u64(..));
        let end = self.random.choice([End::Stopped, End::Killed, cut, End::StateLost]).expect("four");
        self.note(&format!("{end:?}"));
        self.count(match end {
            End::Stopped => "Stopped",
            End::Killed => "Killed",
            End::PowerCut(_) => "PowerCut",
            End::StateLost => "StateLost",
        });
        self.rebuilt |= self.retained && end == End::StateLost;
        self.store.end(end);
        // The first commit after a restart is later than the last one before it.
        self.pass(Duration::from_millis(1));
        self.store.verify()?;
        self.check()
    }

    /// Compares the results of all queries.
    fn check(&mut self) -> Result<(), String> {
        let moment = Moment {
            now: self.now,
            rebuilt: self.rebuilt,
            limit: self.random.choice([2, 7, 250]).expect("three"),
            share: 1,
        };
        let oracle = &self.oracle.oracle;
        self.store.ask(&mut |found| compare(oracle, found, moment))?;
        if self.store.endpoints() != self.oracle.endpoints() {
            return Err("the endpoints differ".to_owned());
        }
        if self.store.keys() != self.oracle.keys() {
            return Err("the keys differ".to_owned());
        }
        if self.store.tenants() != self.oracle.tenants() {
            return Err("the tenants differ".to_owned());
        }
        if self.store.consumers() != self.oracle.consumers() {
            return Err("the consumers differ".to_owned());
        }
        let (found, expected) = (self.store.jobs(), self.oracle.jobs());
        if found != expected {
            return Err(format!("the jobs are {found:?}, not {expected:?}"));
        }
        if self.store.sources() != self.oracle.sources() {
            return Err("the sources differ".to_owned());
        }
        if self.store.types() != self.oracle.types() {
            return Err("the event types differ".to_owned());
        }
        self.check_records()
    }

    fn check_records(&mut self) -> Result<(), String> {
        let all: Vec<_> = self.oracle.records.clone().into_iter().collect();
        let mut left = BTreeMap::<Timestamp, Vec<(Position, Record)>>::new();
        for (position, (time, record)) in all {
            match self.store.record(position) {
                Some(found) if found == record => left.entry(time).or_default().push((position, record)),
                Some(found) => return Err(format!("record {position} is {found:?}, not {record:?}")),
                None if self.may_have_left(position, &record) => self.count("removed"),
                None => return Err(format!("record {position} is gone: {record:?}")),
            }
        }
        if self.store.record(self.oracle.oracle.last.next()).is_some() {
            return Err("there is a record that was never written".to_owned());
        }
        for (time, records) in left {
            let found = self.store.records_at(time);
            if found != records {
                return Err(format!("at {}: {found:?}, not {records:?}", time.millis()));
            }
        }
        Ok(())
    }

    /// Whether no visible row depends on a record.
    fn may_have_left(&self, position: Position, record: &Record) -> bool {
        let oracle = &self.oracle.oracle;
        let gone = |event: &Position| oracle.forgotten.contains(event);
        let remembered = |scope: &[u8; 16]| {
            oracle.requests.get(scope).is_some_and(|known| {
                known.position == position && known.expires_at.is_some_and(|at| at > self.now)
            })
        };
        match record {
            Record::EventAccepted(event) => {
                let is_head = oracle.streams.values().any(|head| head.last == position);
                let answers = event.idempotency.iter().any(|request| remembered(&request.scope));
                gone(&position) && !is_head && !answers
            }
            Record::AttemptFinished { delivery, .. } => {
                gone(&delivery.event) && !oracle.is_rested_on(delivery.endpoint, position)
            }
            Record::RateReserved { endpoint, .. } => !oracle.is_rested_on(*endpoint, position),
            Record::DeliveriesRevived { .. }
            | Record::DeliveriesCancelled { .. }
            | Record::DeliveriesDied { .. }
            | Record::DeadLettersPurged { .. }
            | Record::DeliveriesReordered { .. }
            | Record::MessagesLeased { .. }
            | Record::LeasesEnded { .. }
            | Record::LeasesExtended { .. } => record.deliveries(position).iter().all(|key| gone(&key.event)),
            Record::EventErased { event, .. } => gone(event),
            Record::RequestAnswered { idempotency, .. } | Record::EventRejected { idempotency, .. } => {
                !remembered(&idempotency.scope)
            }
            Record::EndpointPut(_)
            | Record::EndpointDeleted { .. }
            | Record::KeyPut(_)
            | Record::KeyDeleted { .. }
            | Record::TenantPut(_)
            | Record::TenantDeleted { .. }
            | Record::TypePut(_)
            | Record::TypeDeleted { .. }
            | Record::SourcePut(_)
            | Record::SourceDeleted { .. }
            | Record::ConsumerPut(_)
            | Record::ConsumerDeleted { .. } => false,
            Record::KeyUsed { id, .. } => oracle.key_uses.get(id).is_none_or(|(_, last)| *last != position),
            Record::ConsumerMoved { key, .. } => !oracle.consumers.is_last_move(key, position),
            Record::HorizonMoved { .. } => oracle.horizon.record != position,
            Record::JobPut(_) | Record::JobMoved { .. } => !oracle.jobs.needs(position),
            Record::Audited(_) => oracle.jobs.forgotten_acts.contains(&position),
        }
    }
}

//! One life of the daemon: from opening the data directory to a stop, a kill or a power failure.
//!
//! Owns the steps of writer and state, which the seed schedules in place of threads. Everything
//! else runs as in production, on a single-threaded runtime with paused time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::chance::Chance;
use super::drain::Drain;
use super::operations;
use super::receivers::{Behavior, CALLBACK_BASE, Receivers};
use super::world::{self, World, wall};
use crate::context::environment::Environment;
use crate::context::{Context, Settings};
use crate::delivery::{Run, assemble, jobs};
use crate::domain::{DeadReason, Position, Quotas, Record, Tenant, Timestamp};
use crate::metrics::Metrics;
use crate::outbox::decide::CommitEnvironment;
use crate::outbox::draft::Unavailable;
use crate::outbox::{AdmissionLimits, Notice, OpenedOutbox, Outbox};
use crate::outbox::{ApplyThread, CommitThread, UnstartedOutbox, catch_up};
use crate::rules::handshake::AskingPolicy;
use crate::rules::verdict::RefusedStatuses;
use crate::service::{Endpoints, Jobs};
use crate::storage::disk::{Fault, MemoryDisk, Operation};
use crate::storage::journal::{Journal, JournalOptions, JournalReader, verify};
use crate::storage::state::State;
use crate::storage::state::row_store::RowStore;
use crate::vault::Vault;

/// Simulated time in which writes must resume after a full disk.
const RECOVERY_MAX: Duration = Duration::from_secs(5);

/// A comparison of the state looks at one of this many events and lists. The last one looks at all.
const SAMPLE: u64 = 4;

/// How a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All deliveries ended, then the daemon stopped.
    Done,
    Stopped,
    /// The process ended at once; the disk keeps unsynced writes.
    Killed,
    /// The power or the disk failed.
    PowerCut,
}

struct SimulatedSource(Chance);

impl CommitEnvironment for SimulatedSource {
    fn now(&mut self) -> Timestamp {
        wall()
    }

    fn random(&mut self) -> u128 {
        (u128::from(self.0.next()) << 64) | u128::from(self.0.next())
    }
}

pub(super) struct Life {
    world: World,
    context: Context,
    writer: CommitThread,
    state: ApplyThread,
    reader: JournalReader,
    /// Notices of writer and state.
    outbox_notices: mpsc::Receiver<Notice>,
    /// Notices to the dispatcher.
    dispatcher_notices: mpsc::Sender<Notice>,
    /// Delayed notices of the writer.
    held: VecDeque<Notice>,
    /// Delayed notices of the state.
    held_by_state: VecDeque<Notice>,
    dispatcher: JoinHandle<Result<(), Unavailable>>,
    /// Runs the steps of jobs.
    _jobs: JoinHandle<()>,
    stop: watch::Sender<Run>,
    clients: JoinSet<()>,
    writer_ended: bool,
    /// A reorder record was committed since the last comparison of the state.
    reordered: bool,
}

impl Life {
    /// # Errors
    /// When the data cannot be opened, or differs from the model.
    pub(super) fn begin(world: &World) -> Result<Self, String> {
        world::begin_life();
        let (chance, plan) = world.with(|inner| {
            inner.life += 1;
            (inner.in_flight, inner.held) = (BTreeMap::new(), None);
            inner.asking.clear();
            (inner.stopping, inner.failing, inner.sick_until) = (false, false, Timestamp::ZERO);
            (inner.exhausted, inner.unreadable, inner.erasures_running) = (false, false, 0);
            (Chance::new(inner.chance.next()), inner.plan.clone())
        });
        let mut options = JournalOptions::new(7);
        (options.segment_bytes, options.preallocation_bytes) = (plan.segment_bytes, plan.preallocation_bytes);
        check_files(&world.disk())?;
        let (journal, report) =
            Journal::open(Arc::new(world.disk()), options).map_err(|error| error.to_string())?;
        if report.torn_bytes > 0 {
            world.count("tornTails");
        }
        if !report.damage.is_empty() {
            return Err(format!("the journal is damaged: {:?}", report.damage));
        }
        let (reader, last_time) = (journal.reader(), journal.last_time());
        check_journal(world, &reader)?;
        if world.chance(|chance| chance.percent(10)) {
            world.rows.clear();
            world.count("statesLost");
        }
        let end = reader.last_position();
        let mut state =
            State::with_rows(RowStore::Memory(world.rows.clone()), end).map_err(|error| error.to_string())?;
        let replayed = catch_up(&mut state, &journal, &mut |_| ()).map_err(|error| error.to_string())?;
        world.with(|inner| inner.model.compare(&state, wall(), SAMPLE))?;
        world.note(format_args!("life begins at {end}, {replayed} replayed, {} torn", report.torn_bytes));
        let admission = AdmissionLimits { bytes: 1 << 24, commands: 10_000 };
        let source = Box::new(SimulatedSource(chance));
        let assembled = Outbox::assemble(journal, state, admission, source, Arc::new(|_, _| ()), None);
        let life = Self::start(world, assembled, reader, last_time);
        super::jobs::check_known(&life.context, world)?;
        Ok(life)
    }

    fn start(world: &World, assembled: UnstartedOutbox, reader: JournalReader, last_time: Timestamp) -> Self {
        let UnstartedOutbox { outbox, notices: outbox_notices, writer, state } = assembled;
        let (dispatcher_notices, notices) = mpsc::channel(1_024);
        let journal = crate::storage::journal::OpenReport::default();
        let opened = OpenedOutbox { outbox, notices, journal, rebuilt: None, replayed: 0, last_time };
        let settings = Settings {
            max_in_flight: world.plan().max_in_flight,
            host_max_in_flight: world.plan().host_max_in_flight,
            disable_after: Duration::from_secs(40),
            refused_statuses: RefusedStatuses(vec![422]),
            breaker_failures: 3,
            breaker_probe_initial: Duration::from_secs(1),
            breaker_probe_max: Duration::from_secs(6),
            handshake_timeout: Duration::from_secs(2),
            asking: AskingPolicy { initial: Duration::from_secs(1), max_interval: Duration::from_secs(8) },
            defaults: operations::policy_defaults(),
            callback_base: Some(CALLBACK_BASE.into()),
            quotas: Quotas::default(),
        };
        let receivers = Arc::new(Receivers { world: world.clone() });
        let environment =
            Environment { transport: receivers.clone(), entropy: receivers.clone(), reads: receivers };
        let vault = Arc::new(Vault::new([]));
        let (context, dispatcher) = assemble(opened, environment, vault, world::clock(), metrics(), settings);
        let (stop, stopped) = watch::channel(Run::On);
        let drain = Duration::from_millis(world.chance(|chance| chance.within(0, 3_000)));
        let jobs = tokio::spawn(jobs::run_steps(context.clone()));
        Self {
            world: world.clone(),
            context,
            _jobs: jobs,
            writer: writer.without_pauses(),
            state,
            reader,
            outbox_notices,
            dispatcher_notices,
            held: VecDeque::new(),
            held_by_state: VecDeque::new(),
            dispatcher: tokio::spawn(dispatcher.run(stopped, drain)),
            stop,
            clients: JoinSet::new(),
            writer_ended: false,
            reordered: false,
        }
    }

    /// Runs random actions until the life ends.
    pub(super) async fn live(mut self) -> End {
        loop {
            if self.is_over() {
                return End::PowerCut;
            }
            if self.world.has_violation() {
                return End::Killed;
            }
            self.yield_to_tasks().await;
            let dice = self.world.chance(|chance| chance.within(0, 99));
            match dice {
                0..24 => self.step_writer(),
                24..48 if self.world.lets_state_wait() => {}
                24..48 => {
                    self.step_state();
                }
                48..50 => self.state.checkpoint_by_hand(),
                50..72 => {
                    if !self.world.next_operation() {
                        return self.drain().await;
                    }
                    self.operate();
                }
                72 | 73 => self.stall().await,
                74..86 => {
                    let millis = self.world.chance(|chance| chance.within(1, 40));
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                }
                86..91 => {
                    let millis = self.world.chance(|chance| chance.within(100, 6_000));
                    self.run_for(Duration::from_millis(millis)).await;
                }
                91..95 => self.change_behaviors(),
                95 | 96 => self.inject_fault(),
                _ => {
                    if let Some(end) = self.maybe_end().await {
                        return end;
                    }
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        self.writer_ended || !self.world.is_alive() || self.dispatcher.is_finished()
    }

    /// Yields to ready tasks a few times.
    async fn yield_to_tasks(&self) {
        for _ in 0..self.world.chance(|chance| chance.within(0, 3)) {
            tokio::task::yield_now().await;
        }
    }

    fn operate(&mut self) {
        let few = self.world.with(|inner| inner.model.endpoints.len() < inner.plan.endpoints as usize);
        let (context, world) = (self.context.clone(), self.world.clone());
        if few && world.chance(|chance| chance.percent(40)) {
            self.clients.spawn(async move { operations::create_endpoint(&context, &world).await });
        } else {
            self.clients.spawn(operations::operate(context, world));
        }
    }

    fn step_writer(&mut self) {
        // The writer sends the notices of a group before it begins the next.
        self.deliver_held_notices();
        if self.writer_ended {
            return;
        }
        self.writer_ended = !self.writer.turn_by_hand();
        let late = self.world.with(|inner| inner.plan.late_notices && inner.chance.percent(50));
        while let Ok(notice) = self.outbox_notices.try_recv() {
            if let Notice::Committed(committed) = &notice {
                self.note_committed(committed);
                let is_reorder =
                    |(_, record): &(_, Record)| matches!(record, Record::DeliveriesReordered { .. });
                self.reordered |= committed.records.iter().any(is_reorder);
            }
            if late { self.held.push_back(notice) } else { self.deliver_notice(notice) }
        }
    }

    fn note_committed(&self, committed: &crate::outbox::decide::CommittedGroup) {
        for (position, record) in &committed.records {
            self.world.note(format_args!("committed {position} {}", crate::simulation::summarize(record)));
            if let Err(violation) = self.world.with(|inner| inner.model.apply(*position, record, wall())) {
                self.world.record_violation(violation);
            }
            if let Record::EventAccepted(event) = record
                && event.tenant.as_str() == Tenant::OPERATOR
            {
                self.world.count("operatorEvents");
            }
            if let Record::DeliveriesDied { reason: DeadReason::Expired, .. } = record {
                self.world.count("expired");
            }
            if let Record::DeliveriesReordered { .. } = record {
                self.world.count("reordered");
            }
        }
    }

    /// Stops stepping the writer or the state for a while, as if its disk did not respond.
    async fn stall(&mut self) {
        let (writer, millis) = self.world.chance(|chance| (chance.percent(50), chance.within(100, 2_000)));
        self.world.note(format_args!("{} stalls", if writer { "the writer" } else { "the state" }));
        self.world.count("stalls");
        let end = tokio::time::Instant::now() + Duration::from_millis(millis);
        while tokio::time::Instant::now() < end && !self.is_over() && !self.world.has_violation() {
            if writer {
                self.step_state();
            } else {
                self.step_writer();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The state sends the notices of a step before it begins the next.
    fn deliver_held_state_notices(&mut self) {
        while let Some(notice) = self.held_by_state.pop_front() {
            self.deliver_notice(notice);
        }
    }

    fn step_state(&mut self) -> bool {
        let mut progressed = false;
        for _ in 0..self.world.state_turns() {
            self.deliver_held_state_notices();
            if !self.state.turn_by_hand() {
                break;
            }
            progressed = true;
            if self.state.has_early_records() && self.world.chance(|chance| chance.percent(30)) {
                self.state.checkpoint_by_hand();
            }
            let late = self.world.with(|inner| inner.plan.late_notices && inner.chance.percent(25));
            while let Ok(notice) = self.outbox_notices.try_recv() {
                if late { self.held_by_state.push_back(notice) } else { self.deliver_notice(notice) }
            }
            self.check_ordering();
        }
        progressed
    }

    /// Compares the state between two steps of a reordering, too.
    fn check_ordering(&mut self) {
        let state = self.state.state();
        if self.reordered && self.world.with(|inner| inner.model.last()) == state.applied() {
            self.reordered = false;
            if let Err(violation) = self.world.with(|inner| inner.model.compare(state, wall(), SAMPLE)) {
                self.world.record_violation(violation);
            }
        }
    }

    fn deliver_held_notices(&mut self) {
        while let Some(notice) = self.held.pop_front() {
            self.deliver_notice(notice);
        }
    }

    fn deliver_notice(&self, notice: Notice) {
        match self.dispatcher_notices.try_send(notice) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.world.record_violation("the dispatcher does not receive notices".to_owned());
            }
        }
    }

    /// Lets time pass, and steps writer and state as soon as they have work.
    async fn run_for(&mut self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        let mut pause = Duration::from_millis(1);
        while tokio::time::Instant::now() < end && !self.is_over() && !self.world.has_violation() {
            let busy = self.work().await;
            pause = if busy { Duration::from_millis(1) } else { (pause * 2).min(Duration::from_millis(400)) };
            tokio::time::sleep_until((tokio::time::Instant::now() + pause).min(end)).await;
        }
    }

    async fn work(&mut self) -> bool {
        let before = self.reader.last_position();
        self.step_writer();
        tokio::task::yield_now().await;
        self.deliver_held_notices();
        let busy = self.step_state();
        if self.world.chance(|chance| chance.percent(4)) {
            self.state.checkpoint_by_hand();
        }
        tokio::task::yield_now().await;
        busy || before != self.reader.last_position()
    }

    fn change_behaviors(&self) {
        self.world.with(|inner| {
            if inner.healed {
                return;
            }
            let numbers: Vec<_> = inner.model.endpoints.keys().copied().collect();
            for number in numbers {
                if inner.chance.percent(60) {
                    let tenant = &inner.model.endpoints[&number].endpoint.tenant;
                    let is_slow = inner.plan.crowded && tenant.as_str() == Tenant::DEFAULT;
                    let any = *inner.chance.pick(&Behavior::ALL);
                    let behavior = if is_slow { Behavior::Slow } else { any };
                    inner.receivers.entry(number).or_default().behavior = behavior;
                    inner.note(format_args!("receiver {} is now {behavior:?}", number.0));
                }
            }
        });
    }

    /// Injects a disk fault, a shortage of file descriptors or a clock jump.
    fn inject_fault(&self) {
        let plan = self.world.plan();
        let disk = self.world.disk();
        if plan.disk_faults {
            match self.world.chance(|chance| chance.within(0, 6)) {
                0..3 => {
                    let is_full = self.world.with(|inner| {
                        let is_full = inner.sick_until != Timestamp::MAX;
                        inner.sick_until = if is_full { Timestamp::MAX } else { wall().plus(RECOVERY_MAX) };
                        is_full
                    });
                    let bytes_left = self.world.chance(|chance| chance.within(0, 400));
                    disk.set_bytes_max(is_full.then(|| disk.bytes_used() + bytes_left));
                    self.world.note(format_args!("disk full: {is_full}"));
                    self.world.count("fullDisks");
                }
                3 => self.break_disk(&disk, Operation::SyncData),
                4 => self.break_disk(&disk, Operation::Write),
                _ => self.break_reads(&disk),
            }
        }
        if plan.shortages {
            let exhausted = self.world.with(|inner| {
                inner.exhausted = !inner.exhausted && !inner.healed;
                inner.exhausted
            });
            self.world.note(format_args!("file descriptors exhausted: {exhausted}"));
            self.world.count("shortages");
        }
        if plan.clock_jumps {
            let millis = self.world.chance(|chance| chance.within(0, 14_400_000)) as i64 - 7_200_000;
            let recovering = self.world.with(|inner| inner.sick_until > wall());
            world::jump(millis);
            if recovering {
                self.world.with(|inner| inner.sick_until = inner.sick_until.max(wall().plus(RECOVERY_MAX)));
            }
            self.world.note(format_args!("the clock jumps by {millis}"));
            self.world.count("clockJumps");
        }
    }

    /// Makes some journal reads fail. Deliveries that need them wait; clients get an error.
    fn break_reads(&self, disk: &MemoryDisk) {
        let count = self.world.chance(|chance| chance.within(1, 6));
        self.world.with(|inner| inner.unreadable = true);
        disk.inject(Fault { count, ..Fault::once(Operation::Read, Fault::EIO) });
        self.world.note(format_args!("the next {count} reads fail"));
        self.world.count("readErrors");
    }

    fn break_disk(&self, disk: &MemoryDisk, operation: Operation) {
        self.world.with(|inner| inner.failing = true);
        disk.inject(Fault::once(operation, Fault::EIO));
        self.world.note(format_args!("the next {operation:?} fails"));
        self.world.count("diskErrors");
    }

    async fn maybe_end(&mut self) -> Option<End> {
        let plan = self.world.plan();
        let dice = self.world.chance(|chance| chance.within(0, 11));
        match dice {
            0 if plan.crashes => {
                let (operations, seed) = self.world.chance(|chance| (chance.within(0, 6), chance.next()));
                self.world.note(format_args!("the power will fail after {operations} operations"));
                self.world.disk().cut_power_after(operations, seed);
                None
            }
            1 if plan.crashes => Some(End::PowerCut),
            2 if plan.crashes => Some(End::Killed),
            3 => Some(self.stop().await),
            _ => None,
        }
    }

    /// SIGTERM.
    async fn stop(&mut self) -> End {
        self.world.note(format_args!("stop requested"));
        self.world.with(|inner| inner.stopping = true);
        self.stop.send_replace(Run::Draining);
        while !self.dispatcher.is_finished() && !self.writer_ended && self.world.is_alive() {
            self.work().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Like the outbox: write pending units, then a checkpoint.
        for _ in 0..50 {
            self.step_writer();
        }
        self.deliver_held_notices();
        while self.step_state() {}
        self.deliver_held_state_notices();
        self.state.checkpoint_by_hand();
        if self.is_over() && (self.writer_ended || !self.world.is_alive()) {
            return End::PowerCut;
        }
        let compared = self.world.with(|inner| {
            let share = if inner.healed { 1 } else { SAMPLE };
            inner.model.compare(self.state.state(), wall(), share)
        });
        if let Err(violation) = compared {
            self.world.record_violation(violation);
        }
        self.world.count("stops");
        End::Stopped
    }

    /// Heals receivers and disk, then waits until all deliveries have ended.
    async fn drain(&mut self) -> End {
        self.world.with(|inner| {
            inner.healed = true;
            inner.exhausted = false;
            inner.sick_until = inner.sick_until.min(wall().plus(RECOVERY_MAX));
            inner.receivers.values_mut().for_each(|receiver| receiver.behavior = Behavior::Healthy);
            inner.note(format_args!("all receivers are healthy"));
        });
        self.world.disk().set_bytes_max(None);
        let mut drain = Drain::begin();
        loop {
            let (context, world) = (self.context.clone(), self.world.clone());
            self.clients.spawn(async move { operations::reopen(&context, &world).await });
            self.run_for(Duration::from_secs(5)).await;
            while self.clients.try_join_next().is_some() {}
            if self.is_over() {
                return End::PowerCut;
            }
            if self.world.has_violation() {
                return End::Killed;
            }
            let left = self.world.with(|inner| inner.model.pending().count());
            if left == 0 && self.clients.is_empty() && Jobs(&self.context).running().is_empty() {
                break;
            }
            if self.world.with(|inner| drain.takes_too_long(&inner.model)) {
                let backlog = self.describe_backlog().await;
                self.world.record_violation(backlog);
                return End::Killed;
            }
        }
        match self.stop().await {
            End::Stopped => End::Done,
            other => other,
        }
    }

    async fn describe_backlog(&self) -> String {
        let pending = self.world.with(|inner| {
            inner.model.pending().take(5).map(|(key, known)| format!("{key:?} {known:?}")).collect::<Vec<_>>()
        });
        let mut lanes = Vec::new();
        let endpoints: Vec<_> = self.world.with(|inner| inner.model.endpoints.keys().copied().collect());
        for endpoint in endpoints {
            let report =
                tokio::time::timeout(Duration::from_secs(1), Endpoints(&self.context).explain(endpoint))
                    .await;
            lanes.push((endpoint.0, report));
        }
        let requests = self.clients.len();
        format!("deliveries never ended: {requests} open requests, lanes {lanes:?}, pending {pending:?}")
    }
}

/// Checks that the journal's files are undamaged.
pub(super) fn check_files(disk: &MemoryDisk) -> Result<(), String> {
    let found = verify(disk, &mut |_| ()).map_err(|error| error.to_string())?;
    if found.damage.is_empty() { Ok(()) } else { Err(format!("the journal is damaged: {:?}", found.damage)) }
}

/// Checks that all durable records are present and equal. Unacknowledged records may be present.
fn check_journal(world: &World, reader: &JournalReader) -> Result<(), String> {
    let mut found = Vec::new();
    for frame in reader.frames_from(Position(1)) {
        found.extend(frame.map_err(|error| error.to_string())?);
    }
    world.with(|inner| {
        let last = inner.model.last();
        let mut known = found.iter().filter(|(position, _)| *position <= last).peekable();
        for (position, record) in &inner.model.records {
            match known.next_if(|(found, _)| found == position) {
                Some((_, found)) if inner.model.is_same(*position, record, found) => {}
                Some(_) => return Err(format!("the record at {position} has changed")),
                None if inner.model.may_have_left_journal(*position, record) => {
                    *inner.happened.entry("recordsRemoved").or_default() += 1;
                }
                None => return Err(format!("the durable record at {position} is missing")),
            }
        }
        if let Some((position, _)) = known.next() {
            return Err(format!("the record at {position} was never committed"));
        }
        for (position, record) in found.iter().filter(|(position, _)| *position > last) {
            inner.note(format_args!("unacknowledged {position} {}", super::summarize(record)));
            inner.model.apply(*position, record, wall())?;
            inner.count("unacknowledgedRecords");
        }
        Ok(())
    })
}

fn metrics() -> Arc<Metrics> {
    static METRICS: OnceLock<Arc<Metrics>> = OnceLock::new();
    METRICS.get_or_init(|| Arc::new(Metrics::new())).clone()
}

mod tests;

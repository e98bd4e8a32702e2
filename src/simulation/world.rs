//! The simulated world: everything that outlives a process, and the observer's knowledge.
//!
//! Owns the disk, the rows, the clock, the receivers' state, the model and the trace. Keeps the
//! first violation. Ignores everything after a power failure.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::chance::Chance;
use super::model::Model;
use super::operations::Append;
use super::read_models::ReadModel;
use super::receivers::Receiver;
use super::sources::Broker;
use crate::context::clock::Clock;
use crate::domain::{ConsumerKey, DeliveryKey, EndpointId, EndpointNumber, Now, Position, Timestamp};
use crate::service::receipts::Receipt;
use crate::storage::disk::MemoryDisk;
use crate::storage::state::row_store::memory::{MemoryRows, PowerState};

/// Maximum wait that `Retry-After` can cause.
pub(super) const RETRY_AFTER_SECONDS: u64 = 20;
/// Maximum duration of an attempt.
pub(super) const ATTEMPT_SECONDS_MAX: u64 = 6;
/// Start time of every simulation: 2033-05-18T03:33:20Z.
const BEGINNING: u64 = 2_000_000_000_000;

thread_local! {
    static LIFE_BEGAN: Cell<Option<tokio::time::Instant>> = const { Cell::new(None) };
    static WALL: Cell<u64> = const { Cell::new(BEGINNING) };
    /// The clock of this life.
    static CLOCK: RefCell<Clock> = RefCell::new(Clock::new(read));
}

/// The raw clocks of this thread's simulation.
fn read() -> Now {
    let began = LIFE_BEGAN.get();
    let monotonic = began.map_or(Duration::ZERO, |began| tokio::time::Instant::now() - began);
    Now { wall: Timestamp::from_millis(WALL.get()).plus(monotonic), monotonic }
}

pub(super) fn clock() -> Clock {
    CLOCK.with_borrow(Clock::clone)
}

/// The engine's clocks.
pub(super) fn now() -> Now {
    CLOCK.with_borrow(Clock::now)
}

/// The raw wall clock.
pub(super) fn civil() -> Timestamp {
    read().wall
}

pub(super) fn wall() -> Timestamp {
    now().wall
}

pub(super) fn reset_time() {
    WALL.set(BEGINNING);
    LIFE_BEGAN.set(None);
    CLOCK.set(Clock::new(read));
}

pub(super) fn begin_life() {
    LIFE_BEGAN.set(Some(tokio::time::Instant::now()));
    CLOCK.set(Clock::new(read));
}

/// Must be called before the life's runtime is dropped.
pub(super) fn end_life() {
    WALL.set(read().wall.millis());
    CLOCK.set(Clock::new(read));
    LIFE_BEGAN.set(None);
}

/// Moves the wall clock, like an operator or a time server.
pub(super) fn jump(millis: i64) {
    WALL.set(WALL.get().saturating_add_signed(millis));
}

/// Parameters of a seed.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) operations: u64,
    pub(super) endpoints: u64,
    /// Three tenants with very different loads share few slots. The receivers of the busiest are
    /// slow.
    pub(super) crowded: bool,
    /// Some endpoints are queues.
    pub(super) queues: bool,
    /// A source takes messages from a broker.
    pub(super) source: bool,
    pub(super) crashes: bool,
    pub(super) disk_faults: bool,
    pub(super) clock_jumps: bool,
    /// The writer's notices may arrive after those of the state.
    pub(super) late_notices: bool,
    /// The state often applies a group only after several others were committed.
    pub(super) slow_state: bool,
    pub(super) orders: bool,
    /// File descriptors are sometimes exhausted, so that no connection can be opened.
    pub(super) shortages: bool,
    /// Journal reads are sometimes slow.
    pub(super) slow_reads: bool,
    /// An endpoint subscribes to operator events.
    pub(super) operator: bool,
    pub(super) max_in_flight: usize,
    /// All endpoints share one host.
    pub(super) host_max_in_flight: usize,
    pub(super) segment_bytes: u64,
    pub(super) preallocation_bytes: usize,
    pub(super) keep: Option<Duration>,
    pub(super) bounds: Vec<(crate::failpoints::Bound, usize)>,
}

impl Plan {
    pub(super) fn draw(chance: &mut Chance) -> Self {
        use crate::failpoints::Bound;
        let window = chance.within(2, 6) as usize;
        let operations = chance.within(15, 60);
        let crowded = chance.percent(25);
        Self {
            operations,
            endpoints: if crowded { chance.within(6, 9) } else { chance.within(1, 4) },
            crowded,
            crashes: chance.percent(80),
            disk_faults: chance.percent(25),
            clock_jumps: chance.percent(15),
            late_notices: chance.percent(50),
            slow_state: operations % 5 == 4,
            orders: chance.percent(60),
            shortages: chance.percent(30),
            slow_reads: chance.percent(50),
            operator: operations.is_multiple_of(3),
            queues: !crowded && operations % 5 < 2,
            source: operations.is_multiple_of(4),
            max_in_flight: *chance.pick(if crowded { &[3, 8, 10] } else { &[1, 3, 20] }),
            host_max_in_flight: [0, 1, 2, 20][operations as usize % 4],
            segment_bytes: *chance.pick(&[600, 3_000, 1 << 20]),
            preallocation_bytes: *chance.pick(&[0, 500, 4_000]),
            keep: chance.percent(40).then(|| Duration::from_secs(chance.within(5, 30))),
            bounds: vec![
                (Bound::SpanPages, [1, 3, 1_024][operations as usize % 3]),
                (Bound::LaneWindowMax, window),
                (Bound::LaneWindowLow, chance.within(1, window as u64 - 1) as usize),
                (Bound::CheckpointRows, *chance.pick(&[1, 5, 40, 4_000])),
                (Bound::PartCheckpointRows, *chance.pick(&[1, 1, 1, 5, 2_000])),
                (Bound::ApplyStepTargets, *chance.pick(&[1, 2, 1_000])),
                (Bound::IntakeTargets, *chance.pick(&[1, 4_096])),
                (Bound::RecentEntries, *chance.pick(&[2, 12, 65_536])),
                (Bound::RetryAfterSeconds, RETRY_AFTER_SECONDS as usize),
                (Bound::AttemptSecondsMax, ATTEMPT_SECONDS_MAX as usize),
                (Bound::BulkDeliveries, *chance.pick(&[1, 2, 1_000])),
                (Bound::PagePositions, *chance.pick(&[2, 16, 256])),
                (Bound::StreamBlock, *chance.pick(&[1, 3, 64])),
                (Bound::TargetsListed, *chance.pick(&[0, 1, 16])),
                (Bound::PageBytes, *chance.pick(&[300, 1 << 21])),
                (Bound::ListSteps, *chance.pick(&[1, 20])),
                (Bound::ScanEntries, *chance.pick(&[2, 10_000])),
                (Bound::RetentionPages, *chance.pick(&[1, 16])),
                (Bound::RebuildRecords, *chance.pick(&[1, 4, 5_000])),
                (Bound::CommitRecords, *chance.pick(&[1, 3, 8_192])),
                (Bound::CommitTargets, *chance.pick(&[1, 250_000])),
                (Bound::Outcomes, *chance.pick(&[1, 50_000])),
                (Bound::PayloadBytes, *chance.pick(&[1_000, 1 << 25])),
                (Bound::Handshakes, *chance.pick(&[1, 256])),
                (Bound::ClosedEndpointsChecked, *chance.pick(&[1, 16])),
                (Bound::BackupBytes, *chance.pick(&[1, 1 << 22])),
                (Bound::TailBytes, *chance.pick(&[1, 5_000, 1 << 25])),
                (Bound::ComputeTurns, *chance.pick(&[1, 2])),
                (Bound::StateCacheBytes, *chance.pick(&[700, 1 << 24])),
            ],
        }
    }
}

/// A keyed request that a publisher may repeat.
#[derive(Clone, Debug)]
pub(super) struct Posted {
    /// The event's id, or the rejection.
    pub(super) answered: Option<String>,
    pub(super) expires_at: Option<Timestamp>,
}

/// A callback that a receiver got.
#[derive(Clone, Debug)]
pub(super) struct Callback {
    pub(super) endpoint: EndpointId,
    pub(super) token: String,
    /// The endpoint's URL at that time.
    pub(super) url: String,
    pub(super) used: bool,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) chance: Chance,
    pub(super) plan: Plan,
    pub(super) model: Model,
    pub(super) receivers: BTreeMap<EndpointNumber, Receiver>,
    /// Deliveries that a receiver took.
    pub(super) received: BTreeSet<DeliveryKey>,
    /// Running requests, and when they started.
    pub(super) in_flight: BTreeMap<DeliveryKey, Timestamp>,
    /// Endpoints with a running handshake request.
    pub(super) asking: BTreeSet<EndpointNumber>,
    /// A test holds journal reads.
    pub(super) reads_wait: bool,
    /// The task of the last journal read, and the read's duration.
    pub(super) held: Option<(tokio::task::Id, Duration)>,
    /// Attempts that receivers have seen: life, delivery, number.
    pub(super) attempts: BTreeSet<(u32, DeliveryKey, u32)>,
    pub(super) posted: BTreeMap<u64, Posted>,
    pub(super) appends: Vec<Append>,
    pub(super) callbacks: Vec<Callback>,
    /// The last receipts that workers got.
    pub(super) receipts: Vec<Receipt>,
    pub(super) broker: Broker,
    pub(super) life: u32,
    pub(super) stopping: bool,
    /// The outbox may refuse requests until then, because of a full disk.
    pub(super) sick_until: Timestamp,
    /// The disk has a permanent failure in this life.
    pub(super) failing: bool,
    pub(super) healed: bool,
    /// No file descriptor is free.
    pub(super) exhausted: bool,
    /// Some journal reads fail in this life.
    pub(super) unreadable: bool,
    /// Erasures of this life without an answer. One that failed may still be committed.
    pub(super) erasures_running: u32,
    /// The cursor of a reader of the feed.
    pub(super) feed_cursor: Position,
    /// Read models that instances of consumers keep, outside of the daemon.
    pub(super) read_models: BTreeMap<ConsumerKey, ReadModel>,
    /// Counters of events in the simulation.
    pub(super) happened: BTreeMap<&'static str, u64>,
    pub(super) trace: String,
    pub(super) violation: Option<String>,
    operations: u64,
}

/// The simulated world. Cheap to clone.
#[derive(Clone)]
pub(crate) struct World {
    inner: Arc<Mutex<Inner>>,
    disk: Arc<Mutex<MemoryDisk>>,
    pub(super) rows: MemoryRows,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let plan = Plan::draw(&mut chance);
        let mut model = Model::default();
        (model.keep, model.clock_jumps) = (plan.keep, plan.clock_jumps);
        let inner = Inner {
            chance,
            plan,
            model,
            receivers: BTreeMap::new(),
            received: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            asking: BTreeSet::new(),
            reads_wait: false,
            held: None,
            attempts: BTreeSet::new(),
            posted: BTreeMap::new(),
            appends: Vec::new(),
            feed_cursor: Position(0),
            read_models: BTreeMap::new(),
            callbacks: Vec::new(),
            receipts: Vec::new(),
            broker: Broker::default(),
            life: 0,
            stopping: false,
            sick_until: Timestamp::ZERO,
            failing: false,
            healed: false,
            exhausted: false,
            unreadable: false,
            erasures_running: 0,
            happened: BTreeMap::new(),
            trace: String::new(),
            violation: None,
            operations: 0,
        };
        let disk = Arc::new(Mutex::new(MemoryDisk::new()));
        let rows = MemoryRows::new(power_supply(disk.clone()));
        Self { inner: Arc::new(Mutex::new(inner)), disk, rows }
    }

    /// Whether a slow state does not take its turn.
    pub(super) fn lets_state_wait(&self) -> bool {
        self.with(|inner| inner.plan.slow_state && inner.chance.percent(60))
    }

    /// Messages that the state handles in a turn.
    pub(super) fn state_turns(&self) -> u64 {
        self.with(|inner| if inner.plan.slow_state { 1 } else { inner.chance.within(1, 8) })
    }

    pub(super) fn with<R>(&self, look: impl FnOnce(&mut Inner) -> R) -> R {
        look(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn chance<R>(&self, draw: impl FnOnce(&mut Chance) -> R) -> R {
        self.with(|inner| draw(&mut inner.chance))
    }

    pub(super) fn plan(&self) -> Plan {
        self.with(|inner| inner.plan.clone())
    }

    pub(super) fn disk(&self) -> MemoryDisk {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_disk(&self, disk: MemoryDisk) {
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = disk;
    }

    /// Whether the power is on. Without power, the world records nothing.
    pub(super) fn is_alive(&self) -> bool {
        self.disk().disk_after_power_cut().is_none()
    }

    pub(super) fn note(&self, what: std::fmt::Arguments<'_>) {
        if self.is_alive() {
            self.with(|inner| inner.note(what));
        }
    }

    pub(super) fn count(&self, what: &'static str) {
        self.with(|inner| *inner.happened.entry(what).or_default() += 1);
    }

    /// Records a violated invariant.
    pub(super) fn record_violation(&self, what: String) {
        if self.is_alive() {
            self.with(|inner| inner.record_violation(what));
        }
    }

    pub(super) fn has_violation(&self) -> bool {
        self.with(|inner| inner.violation.is_some())
    }

    /// Counts one more operation; `false` if the plan has no more.
    pub(super) fn next_operation(&self) -> bool {
        self.with(|inner| {
            inner.operations += 1;
            inner.operations <= inner.plan.operations
        })
    }
}

impl Inner {
    pub(super) fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let at = i128::from(read().wall.millis()) - i128::from(BEGINNING);
        writeln!(self.trace, "{at:>8} {what}").expect("writing to a string cannot fail");
    }

    pub(super) fn record_violation(&mut self, what: String) {
        if self.violation.is_none() {
            self.note(format_args!("VIOLATION: {what}"));
            self.violation = Some(what);
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.happened.entry(what).or_default() += 1;
    }
}

/// The rows share the disk's power supply.
fn power_supply(disk: Arc<Mutex<MemoryDisk>>) -> Arc<dyn Fn() -> PowerState + Send + Sync> {
    Arc::new(move || {
        let disk = disk.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let before = disk.disk_after_power_cut().is_some();
        match disk.external_operation() {
            Ok(()) => PowerState::On,
            Err(_) if before => PowerState::FailsBeforeWrite,
            // Both outcomes are possible. The parity of the disk's bytes decides.
            Err(_) if disk.bytes_used().is_multiple_of(2) => PowerState::FailsAfterWrite,
            Err(_) => PowerState::FailsBeforeWrite,
        }
    })
}

//! The outbox: journal and state behind one handle, each owned by its own thread.
//!
//! Owns the data directory (lock, format stamp), the two threads and their channels. After a commit
//! it notifies the state first, the lanes second and the callers last. A query that follows a
//! response therefore sees its effects.

mod apply_thread;
pub(crate) mod commit_queue;
mod commit_thread;
#[cfg(test)]
pub(crate) mod conformance;
pub mod decide;
mod disk_reserve;
pub mod draft;
mod event_matching;
mod fair_queue;
pub mod fan_out;
mod freshness;
mod health;
mod opening;
mod overtaking;
mod positions;
mod quotas;
pub mod read_model;
pub mod rebuild;
pub mod recent_keys;
pub mod registry;
pub mod subscriptions;
pub mod tail;
pub mod unit;
pub(crate) mod usage_board;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc as async_mpsc, oneshot, watch};

use crate::domain::{ApiKey, Endpoint, EndpointNumber, Position, Quotas, StreamName, Tenant, Timestamp};
use crate::limits;
use crate::outbox::decide::{CommitEnvironment, CommittedGroup, Committer};
use crate::outbox::draft::Unavailable;
use crate::outbox::recent_keys::{Prepared, RecentKeys};
use crate::outbox::registry::Registry;
use crate::outbox::unit::{Command, Outcome, Refusal, Unit};
use crate::projections::LaneChange;
use crate::projections::idempotency::Known;
use crate::storage::data_directory::{JOURNAL, claim, failed, log_id};
use crate::storage::disk::RealDisk;
use crate::storage::journal::{Journal, JournalOptions, JournalReader, OpenReport};
use crate::storage::progress::OnProgress;
use crate::storage::state::State;
use commit_queue::CommitQueue;
use commit_thread::ThreadLinks;
use disk_reserve::DiskReserve;
use fan_out::{FanOut, FanOutPermit};
use freshness::{AT_ONCE, Freshness, IN_ORDER};
use health::{DiskWaits, HealthCell};
use subscriptions::Subscriptions;
use tail::Tail;
use usage_board::UsageBoard;

pub(crate) use apply_thread::ApplyThread;
pub use commit_queue::AdmissionLimits;
pub(crate) use commit_thread::CommitThread;
pub use disk_reserve::DiskShortage;
pub use health::{Activity, Health, Stall};
pub use opening::OpenError;
#[cfg(test)]
pub(crate) use opening::catch_up;
pub(crate) use opening::{open_state, registry_of};
pub use read_model::{ConsumerReads, ReadModel};

/// Notification from the outbox to the delivery loop.
#[derive(Debug)]
pub enum Notice {
    /// A group is durable.
    Committed(Arc<CommittedGroup>),
    /// Lane changes from the state.
    Lanes(Vec<LaneChange>),
}

/// An open outbox, and what opening it found.
#[derive(Debug)]
pub struct OpenedOutbox {
    pub outbox: Outbox,
    pub notices: async_mpsc::Receiver<Notice>,
    pub journal: OpenReport,
    /// Why the state was rebuilt from the journal, if it was.
    pub rebuilt: Option<String>,
    pub replayed: u64,
    /// Time of the last commit.
    pub last_time: Timestamp,
}

/// A completed disk write, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskWrite {
    /// A commit of this many records.
    Commit { records: usize },
    /// A checkpoint of the state.
    Checkpoint,
}

/// Callback with each disk write and its duration.
pub type WriteObserver = Arc<dyn Fn(DiskWrite, Duration) + Send + Sync>;

enum StateMessage {
    Committed(Arc<CommittedGroup>),
    /// A question, and the position that the state must have applied. During a large group it is
    /// answered as soon as that is the case; else in order.
    Read {
        needs: Position,
        question: Box<dyn FnOnce(&State) + Send>,
    },
    /// A retention step. It changes nothing that a record defines.
    Maintain(Box<dyn FnOnce(&mut State) + Send>),
    Replace(rebuild::Replacement),
    Stop,
}

/// Handle of the outbox; cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    inner: Arc<OutboxInner>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Outbox")
    }
}

struct OutboxInner {
    queue: Arc<CommitQueue>,
    state: mpsc::Sender<StateMessage>,
    reader: JournalReader,
    registry: Arc<RwLock<Registry>>,
    subscriptions: Arc<RwLock<Subscriptions>>,
    recent: Arc<RwLock<RecentKeys>>,
    fan_out: Arc<FanOut>,
    freshness: Arc<Freshness>,
    tail: Arc<Tail>,
    /// Unset without a data directory.
    log_id: OnceLock<String>,
    applied: Arc<AtomicU64>,
    readable: Arc<AtomicU64>,
    health: watch::Receiver<Health>,
    disk_waits: DiskWaits,
    reserve: DiskReserve,
    threads: Mutex<Option<(JoinHandle<()>, JoinHandle<()>)>>,
    /// Held shared while deliveries become pending again, and exclusively while events are deleted.
    forgetting: tokio::sync::RwLock<()>,
    /// Held exclusively by a rebuild of the state.
    rebuilding: tokio::sync::RwLock<()>,
    /// `None` without a data directory on the file system.
    _lock: Option<File>,
}

impl Outbox {
    /// Opens the data directory, replays the records that the state has not applied, and starts the
    /// threads.
    ///
    /// # Errors
    /// When the directory is foreign, locked by another process, or its journal cannot be read. A
    /// damaged or missing state is rebuilt and is not an error.
    pub fn open(
        path: &Path,
        admission: AdmissionLimits,
        mut environment: Box<dyn CommitEnvironment>,
        observer: WriteObserver,
        progress: OnProgress<'_>,
    ) -> Result<OpenedOutbox, OpenError> {
        let lock = claim(path)?;
        let log_id = log_id(path, environment.random()).map_err(failed(path))?;
        let salt = u32::try_from(environment.random() & 0xffff_ffff).expect("32 bits");
        let disk = RealDisk::new(path.join(JOURNAL)).map_err(failed(path))?;
        let (mut journal, mut report) = Journal::open(Arc::new(disk), JournalOptions::new(salt))?;
        let (state, rebuilt, replayed) = open_state(path, &mut journal, &mut report, progress)?;
        let last_time = journal.last_time();
        let UnstartedOutbox { outbox, notices, mut writer, state } =
            Self::assemble(journal, state, admission, environment, observer, Some(lock));
        writer.reply_on(Handle::try_current().ok());
        let threads =
            (spawn("balto-commit", move || writer.run())?, spawn("balto-apply", move || state.run())?);
        *outbox.inner.threads.lock().expect("no holder panics") = Some(threads);
        outbox.inner.log_id.get_or_init(|| log_id);
        Ok(OpenedOutbox { outbox, notices, journal: report, rebuilt, replayed, last_time })
    }

    /// Builds the outbox without threads. A simulation then runs each thread step by step.
    pub(crate) fn assemble(
        journal: Journal,
        mut state: State,
        admission: AdmissionLimits,
        environment: Box<dyn CommitEnvironment>,
        observer: WriteObserver,
        lock: Option<File>,
    ) -> UnstartedOutbox {
        let registry = Arc::new(RwLock::new(registry_of(&state, &journal.reader())));
        let reader = journal.reader();
        reader.hide_erased(state.pending_erasures(Position(0), usize::MAX));
        let applied = Arc::new(AtomicU64::new(state.applied().0));
        let readable = Arc::new(AtomicU64::new(reader.last_position().0));
        let queue = Arc::new(CommitQueue::new(admission));
        let (health_sender, health) = watch::channel(Health::Good);
        let disk_waits = DiskWaits::default();
        let (state_sender, messages) = mpsc::channel();
        let (notice_sender, notices) = async_mpsc::channel(1_024);
        let links = ThreadLinks {
            notices: notice_sender,
            applied: applied.clone(),
            readable: readable.clone(),
            health: Arc::new(HealthCell::new(health_sender)),
            observer,
            disk_waits: disk_waits.clone(),
        };
        let board = Arc::new(UsageBoard::default());
        board.update(state.applied(), state.watch_usage());
        let freshness = Arc::new(Freshness::new(registry.clone(), applied.clone()));
        let tail = Arc::new(Tail::new(reader.last_position(), state.horizon().horizon));
        let committer = Committer::new(journal, registry.clone(), board.clone(), environment);
        let (subscriptions, recent) = (committer.subscriptions().clone(), committer.recent().clone());
        let writer = CommitThread::new(
            committer,
            queue.clone(),
            state_sender.clone(),
            links.clone(),
            freshness.clone(),
            tail.clone(),
        );
        let state = ApplyThread::new(state, messages, links, board);
        let inner = OutboxInner {
            queue,
            state: state_sender,
            reader,
            registry,
            subscriptions,
            recent,
            fan_out: Arc::default(),
            freshness,
            tail,
            log_id: OnceLock::new(),
            applied,
            readable,
            health,
            disk_waits,
            reserve: writer.reserve(),
            threads: Mutex::new(None),
            forgetting: tokio::sync::RwLock::new(()),
            rebuilding: tokio::sync::RwLock::new(()),
            _lock: lock,
        };
        UnstartedOutbox { outbox: Self { inner: Arc::new(inner) }, notices, writer, state }
    }

    /// Commits the commands in one unit. Returns their outcomes in order. Without commands it does
    /// nothing.
    ///
    /// # Errors
    /// When nothing was committed.
    pub async fn commit(&self, mut commands: Vec<Command>) -> Result<Vec<Outcome>, Unavailable> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let permit = self.match_and_admit(&mut commands).await?;
        let prepared = Prepared { permit, ..self.prepare(&commands).await? };
        self.submit(Unit { commands, prepared, reply: None }).await
    }

    /// Seals the active segment of the journal: every record so far is then in a sealed segment.
    pub(super) async fn seal_segment(&self) -> Result<(), Unavailable> {
        self.commit(vec![Command::SealSegment]).await.map(drop)
    }

    /// Commits independent commands in several units, one after another, if their events begin many
    /// deliveries. Returns the outcomes in order, and why the rest was not committed. A claim is
    /// first; if it is a mismatch, the rest has no outcome.
    ///
    /// # Errors
    /// When nothing was committed.
    pub async fn commit_independent(
        &self,
        mut commands: Vec<Command>,
    ) -> Result<(Vec<Outcome>, Option<Unavailable>), Unavailable> {
        self.match_events(&mut commands).await;
        let fan_out::Parts { units, rejected } = fan_out::split(commands);
        let mut outcomes = Vec::new();
        for unit in units {
            match self.commit(unit).await {
                Ok(more) => outcomes.extend(more),
                Err(error) if outcomes.is_empty() => return Err(error),
                Err(error) => return Ok((outcomes, Some(error))),
            }
            if matches!(outcomes.first(), Some(Outcome::Mismatch)) {
                return Ok((outcomes, None));
            }
        }
        outcomes.extend(rejected);
        Ok((outcomes, None))
    }

    /// Matches the events of a unit and admits their deliveries, in the turn of their tenant.
    async fn match_and_admit(
        &self,
        commands: &mut [Command],
    ) -> Result<Option<Arc<FanOutPermit>>, Unavailable> {
        let tenants = self.match_events(commands).await;
        if tenants.is_empty() {
            return Ok(None);
        }
        let permit = self.inner.fan_out.admit(tenants)?;
        Ok(Some(Arc::new(permit.in_turn().await?)))
    }

    /// Commits a prepared unit. Prepares it again if it became stale in the queue.
    async fn submit(&self, mut unit: Unit) -> Result<Vec<Outcome>, Unavailable> {
        match &*self.inner.health.borrow() {
            Health::Good => {}
            // A small change may fit in preallocated space.
            Health::DiskFull if !unit.is_growth() => {}
            Health::DiskFull => return Err(Unavailable::DiskFull),
            Health::Failed(reason) => return Err(Unavailable::Failed(reason.clone())),
        }
        let permit = unit.prepared.permit.clone();
        loop {
            let (reply, answer) = oneshot::channel();
            unit.reply = Some(reply);
            self.inner.queue.push(unit)?;
            match answer.await {
                Ok(Ok(outcomes)) => return Ok(outcomes),
                Ok(Err(Refusal::DiskFull)) => return Err(Unavailable::DiskFull),
                Ok(Err(Refusal::Failed(reason))) => return Err(Unavailable::Failed(reason)),
                Ok(Err(Refusal::Stale(commands))) => {
                    let prepared = Prepared { permit: permit.clone(), ..self.prepare(&commands).await? };
                    unit = Unit { commands, prepared, reply: None };
                }
                Err(_) => return Err(Unavailable::Stopping),
            }
        }
    }

    /// Commits an attempt's outcome as soon as possible. No caller waits for it.
    pub fn record(&self, unit: Unit) {
        if self.inner.queue.push(unit).is_err() {
            tracing::debug!("outcome dropped after shutdown, the attempt is repeated");
        }
    }

    /// Reads the streams and idempotency keys of the commands from the recent commits or the state.
    async fn prepare(&self, commands: &[Command]) -> Result<Prepared, Unavailable> {
        let mut scopes = Vec::new();
        let mut names: Vec<(Tenant, StreamName)> = Vec::new();
        for draft in commands.iter().filter_map(Command::draft) {
            scopes.extend(draft.idempotency.iter().map(|idempotency| idempotency.scope));
            scopes.extend(draft.publisher_id_key().map(|idempotency| idempotency.scope));
        }
        for (tenant, stream) in commands.iter().filter_map(Command::stream) {
            // The events of a batch often have one stream.
            if names.last().is_none_or(|(last_tenant, last)| (last_tenant, last) != (tenant, stream)) {
                names.push((tenant.clone(), stream.clone()));
            }
        }
        let requests = commands.iter().filter_map(Command::request);
        scopes.extend(requests.map(|idempotency| idempotency.scope));
        if scopes.is_empty() && names.is_empty() {
            return Ok(Prepared::default());
        }
        // An idempotency key that is not recent may be in the state.
        if scopes.is_empty() {
            let recent = self.inner.recent.read().expect("no holder of this lock panics");
            if let Some(prepared) = recent.prepare(&names) {
                return Ok(prepared);
            }
        }
        // The writer knows what was committed after the position of the answer.
        self.ask(AT_ONCE, move |state| {
            let scopes = scopes.into_iter().filter_map(|scope| Some((scope, state.request(&scope)?)));
            let scopes = scopes.collect();
            let streams = names
                .into_iter()
                .filter_map(|(tenant, name)| {
                    let head = state.stream(&tenant, &name)?;
                    Some(((tenant, name), head.version))
                })
                .collect();
            Prepared { as_of: state.applied(), scopes, streams, permit: None }
        })
        .await
    }

    /// Runs a query on the state. The state has applied every commit that was answered before.
    ///
    /// # Errors
    /// When the outbox has stopped.
    pub async fn read<R: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn ReadModel) -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        self.ask(IN_ORDER, question).await
    }

    /// As [`Self::read`], for a question that concerns one tenant (`None`: all). The state has
    /// applied every commit of that tenant that was answered before, and maybe not those of others.
    ///
    /// # Errors
    /// When the outbox has stopped.
    pub async fn read_of<R: Send + 'static>(
        &self,
        tenant: Option<&Tenant>,
        question: impl FnOnce(&dyn ReadModel) -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        let needs = tenant.map_or(IN_ORDER, |tenant| self.inner.freshness.needed(tenant));
        self.ask(needs, question).await
    }

    /// The stored request with this scope. It may have expired.
    ///
    /// # Errors
    /// When the outbox has stopped.
    pub async fn stored_request(&self, scope: [u8; 16]) -> Result<Option<Known>, Unavailable> {
        let needs = self.inner.freshness.needed_for_request(&scope);
        self.ask(needs, move |state| state.request(&scope)).await
    }

    async fn ask<R: Send + 'static>(
        &self,
        needs: Position,
        question: impl FnOnce(&dyn ReadModel) -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        let (sender, answer) = oneshot::channel();
        let question = Box::new(move |state: &State| {
            let answer = question(state);
            // A result that depends on unreadable rows is dropped. The caller may have gone away.
            if state.failure().is_none() {
                let _gone = sender.send(answer).is_err();
            }
        });
        self.inner.state.send(StateMessage::Read { needs, question }).map_err(|_| self.unavailable())?;
        answer.await.map_err(|_| self.unavailable())
    }

    /// Why the state does not answer.
    fn unavailable(&self) -> Unavailable {
        match &*self.inner.health.borrow() {
            Health::Good => Unavailable::Stopping,
            Health::DiskFull => Unavailable::DiskFull,
            Health::Failed(reason) => Unavailable::Failed(reason.clone()),
        }
    }

    /// Prevents the deletion of events while the guard lives. Hold it from the read of an event
    /// until the commit that depends on it.
    pub async fn hold_events(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.inner.forgetting.read().await
    }

    /// Prevents deliveries from becoming pending again while the guard lives.
    pub(super) async fn hold_forgetting(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.inner.forgetting.write().await
    }

    /// As [`Self::read`], with write access for retention.
    pub(super) async fn with_state_mut<R: Send + 'static>(
        &self,
        task: impl FnOnce(&mut State) -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        let (sender, answer) = oneshot::channel();
        let task = Box::new(move |state: &mut State| {
            // The caller may have gone away.
            let _gone = sender.send(task(state)).is_err();
        });
        self.inner.state.send(StateMessage::Maintain(task)).map_err(|_| self.unavailable())?;
        answer.await.map_err(|_| self.unavailable())
    }

    #[must_use]
    pub fn journal(&self) -> &JournalReader {
        &self.inner.reader
    }

    /// The durable name of the log: another one after a restore.
    #[must_use]
    pub fn log_id(&self) -> &str {
        self.inner.log_id.get().map_or("", String::as_str)
    }

    /// The last committed events.
    #[must_use]
    pub fn tail(&self) -> &Tail {
        &self.inner.tail
    }

    /// Reads the registry of endpoints and keys, under its read lock: the closure must not block.
    pub fn registry<R>(&self, look: impl FnOnce(&Registry) -> R) -> R {
        look(&self.inner.registry.read().expect("no holder of this lock panics"))
    }

    /// The endpoint with this number; `None` when it was deleted.
    #[must_use]
    pub fn endpoint(&self, number: EndpointNumber) -> Option<Arc<Endpoint>> {
        self.registry(|registry| registry.endpoint(number).cloned())
    }

    /// All endpoints.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.registry(|registry| registry.endpoints().cloned().collect())
    }

    /// Replaces the quotas of tenants without their own.
    pub fn set_default_quotas(&self, quotas: Quotas) {
        let mut registry = self.inner.registry.write().expect("no holder of this lock panics");
        registry.set_default_quotas(quotas);
    }

    /// All API keys.
    #[must_use]
    pub fn keys(&self) -> Vec<Arc<ApiKey>> {
        self.registry(|registry| registry.keys().cloned().collect())
    }

    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.inner.health.clone()
    }

    /// The longest current activity of the commit and the apply thread; `None` when both are idle.
    #[must_use]
    pub fn stall(&self) -> Option<Stall> {
        self.inner.disk_waits.longest(limits::DISK_SILENCE_MAX)
    }

    /// Whether too many outcomes are pending, so that no new attempt should begin.
    #[must_use]
    pub fn is_outcome_queue_full(&self) -> bool {
        self.inner.queue.is_outcome_queue_full()
    }

    /// Number of pending commands, and their bytes.
    #[must_use]
    pub fn pending_commits(&self) -> (usize, usize) {
        self.inner.queue.pending_weight()
    }

    /// Commits all pending units, writes a checkpoint and ends both threads. Blocks.
    pub fn stop(&self) {
        let Some((writer, state)) = self.inner.threads.lock().expect("no holder panics").take() else {
            return;
        };
        self.inner.queue.close();
        if writer.join().is_err() {
            tracing::error!("commit thread panicked");
        }
        if self.inner.state.send(StateMessage::Stop).is_err() || state.join().is_err() {
            tracing::error!("apply thread ended before shutdown");
        }
    }
}

fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| OpenError::Thread { name, error })
}

/// The outbox before its threads start.
pub(crate) struct UnstartedOutbox {
    pub(crate) outbox: Outbox,
    pub(crate) notices: async_mpsc::Receiver<Notice>,
    pub(crate) writer: CommitThread,
    pub(crate) state: ApplyThread,
}

#[cfg(test)]
mod commit_order_tests;
#[cfg(test)]
mod tests;

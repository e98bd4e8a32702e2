//! The outbox: journal and state behind one handle, each owned by its own thread.
//!
//! Owns the data directory (lock, format stamp), the two threads and their channels. Order of things after a commit:
//! the state's channel first, then the lanes', then the answers; so a question that follows an answer finds a state
//! that has it.

use std::collections::VecDeque;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc as async_mpsc, oneshot, watch};

use super::directory::Directory;
use super::disk::RealDisk;
use super::journal::{
    AppendError, Journal, JournalError, JournalOptions, JournalReader, OpenReport, ReadError,
};
use super::progress::{OnProgress, Progress};
use super::queue::{Admission, UnitQueue};
use super::read_model::ReadModel;
use super::recent::Prepared;
use super::state::{State, StateError};
use super::types::Unavailable;
use super::writer::{Answer, Committed, Committer, GroupResult, Outcome, Refusal, Source, Unit, UnitReply};
use crate::domain::{Position, Record, StreamName, Tenant, Timestamp};
use crate::limits;
use crate::projections::LaneChange;

/// Records that the state may be behind the journal before the writer waits for it.
const STATE_LAG_MAX: u64 = 20_000;
/// Pause between two tries to write what has to be written on a full disk.
const FULL_DISK_PAUSE: Duration = Duration::from_millis(500);
/// Format of the data directory, in the file of this name.
pub(super) const FORMAT_FILE: &str = "FORMAT";
pub(super) const FORMAT: &str = "balto data directory, format 1\n";

/// What the engine hears from the outbox.
#[derive(Debug)]
pub enum Notice {
    /// A group is on disk.
    Committed(Arc<Committed>),
    /// The state says what changed for lanes.
    Lanes(Vec<LaneChange>),
}

/// Why a data directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path}: {error}")]
    Io { path: String, error: std::io::Error },
    #[error("the data directory {0} is in use by another process")]
    Locked(String),
    #[error(
        "{path} is not a data directory of this program, or of another version: its FORMAT says {found:?}"
    )]
    Foreign { path: String, found: String },
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Read(ReadError),
    /// To go on without it would be to lose it.
    #[error("a newer version has written to this data directory: {0}")]
    Newer(ReadError),
    #[error(transparent)]
    State(#[from] StateError),
}

/// What opening found and did.
#[derive(Debug)]
pub struct Opened {
    pub outbox: Outbox,
    pub notices: async_mpsc::Receiver<Notice>,
    pub journal: OpenReport,
    /// Why the state had to be rebuilt from the journal.
    pub rebuilt: Option<String>,
    pub replayed: u64,
    /// Time of the last commit.
    pub last_time: Timestamp,
}

/// What was written, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// A group of so many records, made durable.
    Commit { records: usize },
    /// The state's changes.
    Checkpoint,
}

/// Is told what was written and how long it took.
pub type Observer = Arc<dyn Fn(Written, Duration) + Send + Sync>;

enum StateMessage {
    Committed(Arc<Committed>),
    Read(Box<dyn FnOnce(&State) + Send>),
    /// Retention's turn: it changes nothing that a record says.
    Tend(Box<dyn FnOnce(&mut State) + Send>),
    Stop,
}

/// Cheap handle.
#[derive(Clone)]
pub struct Outbox {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Outbox")
    }
}

struct Inner {
    queue: Arc<UnitQueue>,
    state: mpsc::Sender<StateMessage>,
    reader: JournalReader,
    directory: Arc<RwLock<Directory>>,
    applied: Arc<AtomicU64>,
    health: watch::Receiver<Health>,
    busy: Busy,
    threads: Mutex<Option<(JoinHandle<()>, JoinHandle<()>)>>,
    /// Shared by who makes deliveries pending again, taken by who forgets events.
    forgetting: tokio::sync::RwLock<()>,
    /// `None` when the directory is not one of the file system.
    _lock: Option<File>,
}

/// What the disk can be too full for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Journal,
    State,
}

/// The outbox's health, which both threads know a part of.
struct HealthCell {
    sender: watch::Sender<Health>,
    /// Whether the disk is full, for the journal and for the state.
    full: Mutex<[bool; 2]>,
}

impl HealthCell {
    fn is_full_for(&self, part: Part) -> bool {
        self.full.lock().expect("no holder panics")[part as usize]
    }

    fn set_full(&self, part: Part, is_full: bool) {
        let mut full = self.full.lock().expect("no holder panics");
        full[part as usize] = is_full;
        self.turn_to(if full.contains(&true) { Health::DiskFull } else { Health::Good });
    }

    fn has_failed(&self) -> bool {
        matches!(&*self.sender.borrow(), Health::Failed(_))
    }

    /// For good: the first reason is the one that counts.
    fn fail(&self, reason: &str) {
        self.turn_to(Health::Failed(reason.into()));
    }

    fn turn_to(&self, health: Health) {
        self.sender.send_if_modified(|current| {
            let changed = !matches!(current, Health::Failed(_)) && *current != health;
            if changed {
                tracing::warn!(?health, "the outbox's health changed");
                *current = health;
            }
            changed
        });
    }
}

/// Since when the writer has been at the disk, or has waited for the state.
type Busy = Arc<Mutex<Option<Instant>>>;

/// Whether the outbox can make anything durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    #[default]
    Good,
    /// It recovers by itself when space returns.
    DiskFull,
    /// The process has to end; the next start recovers.
    Failed(Arc<str>),
}

impl Outbox {
    /// Opens the data directory, replays what the state has not applied, and starts the threads.
    ///
    /// # Errors
    /// When the directory is foreign, locked by another process, or its journal cannot be read. A state that is damaged
    /// or missing is no error: it is rebuilt.
    pub fn open(
        path: &Path,
        admission: Admission,
        mut source: Box<dyn Source>,
        observer: Observer,
        progress: OnProgress<'_>,
    ) -> Result<Opened, OpenError> {
        let lock = claim(path)?;
        let salt = u32::try_from(source.random() & 0xffff_ffff).expect("32 bits");
        let disk = RealDisk::new(path.join("journal")).map_err(|error| io(path, error))?;
        let (mut journal, mut report) = Journal::open(Arc::new(disk), JournalOptions::new(salt))?;
        let (state, rebuilt, replayed) = open_state(path, &mut journal, &mut report, progress)?;
        let last_time = journal.last_time();
        let Assembled { outbox, notices, mut writer, state } =
            Self::assemble(journal, state, admission, source, observer, Some(lock));
        writer.runtime = Handle::try_current().ok();
        let threads =
            (spawn("balto-writer", move || writer.run())?, spawn("balto-state", move || state.run())?);
        *outbox.inner.threads.lock().expect("no holder panics") = Some(threads);
        Ok(Opened { outbox, notices, journal: report, rebuilt, replayed, last_time })
    }

    /// Puts the parts together, without threads: who has them takes their turns, as the threads do.
    pub(crate) fn assemble(
        journal: Journal,
        state: State,
        admission: Admission,
        source: Box<dyn Source>,
        observer: Observer,
        lock: Option<File>,
    ) -> Assembled {
        let directory = Arc::new(RwLock::new(directory(&state, &journal.reader())));
        let reader = journal.reader();
        let applied = Arc::new(AtomicU64::new(state.applied().0));
        let queue = Arc::new(UnitQueue::new(admission));
        let (health_sender, health) = watch::channel(Health::Good);
        let health_sender = Arc::new(HealthCell { sender: health_sender, full: Mutex::default() });
        let busy = Busy::default();
        let (state_sender, messages) = mpsc::channel();
        let (notice_sender, notices) = async_mpsc::channel(1_024);
        let writer_thread = WriterThread {
            committer: Committer::new(journal, directory.clone(), source),
            queue: queue.clone(),
            state: state_sender.clone(),
            notices: notice_sender.clone(),
            applied: applied.clone(),
            health: health_sender.clone(),
            observer: observer.clone(),
            busy: busy.clone(),
            runtime: None,
            full_disk_pause: FULL_DISK_PAUSE,
        };
        let state_thread = StateThread {
            state,
            messages,
            notices: notice_sender,
            applied: applied.clone(),
            health: health_sender,
            observer,
            held: VecDeque::new(),
            last_checkpoint: Instant::now(),
            time: Timestamp::default(),
        };
        let inner = Inner {
            queue,
            state: state_sender,
            reader,
            directory,
            applied,
            health,
            busy,
            threads: Mutex::new(None),
            forgetting: tokio::sync::RwLock::new(()),
            _lock: lock,
        };
        let outbox = Self { inner: Arc::new(inner) };
        Assembled { outbox, notices, writer: writer_thread, state: state_thread }
    }

    /// Commits a unit; the outcomes are in the order of its commands.
    ///
    /// # Errors
    /// When nothing of it was committed.
    pub async fn submit(&self, mut unit: Unit) -> Result<Vec<Outcome>, Unavailable> {
        match &*self.inner.health.borrow() {
            Health::Good => {}
            Health::DiskFull => return Err(Unavailable::DiskFull),
            Health::Failed(reason) => return Err(Unavailable::Failed(reason.clone())),
        }
        loop {
            let (reply, answer) = oneshot::channel();
            unit.reply = Some(reply);
            self.inner.queue.push(unit)?;
            match answer.await {
                Ok(Ok(outcomes)) => return Ok(outcomes),
                Ok(Err(Refusal::DiskFull)) => return Err(Unavailable::DiskFull),
                Ok(Err(Refusal::Failed(reason))) => return Err(Unavailable::Failed(reason)),
                Ok(Err(Refusal::Stale(commands))) => {
                    unit = Unit { commands, prepared: Prepared::default(), reply: None };
                    unit.prepared = self.prepare(&unit).await?;
                }
                Err(_) => return Err(Unavailable::Stopping),
            }
        }
    }

    /// Commits a unit that nobody waits for, as soon as it can be: an attempt's outcome.
    pub fn record(&self, unit: Unit) {
        if self.inner.queue.push(unit).is_err() {
            tracing::debug!("an outcome came after the writer had stopped; the attempt will be made again");
        }
    }

    /// What the state knows about the streams and keys of a unit.
    ///
    /// # Errors
    /// When the outbox has stopped.
    pub async fn prepare(&self, unit: &Unit) -> Result<Prepared, Unavailable> {
        let mut scopes = Vec::new();
        let mut names: Vec<(Tenant, StreamName)> = Vec::new();
        for draft in unit.commands.iter().filter_map(super::writer::Command::draft) {
            scopes.extend(draft.idempotency.iter().map(|idempotency| idempotency.scope));
            scopes.extend(draft.chosen().map(|idempotency| idempotency.scope));
            names.extend(draft.stream.iter().map(|stream| (draft.tenant.clone(), stream.clone())));
        }
        if scopes.is_empty() && names.is_empty() {
            return Ok(Prepared::default());
        }
        self.read(move |state| {
            let scopes = scopes.into_iter().filter_map(|scope| Some((scope, state.request(&scope)?)));
            let scopes = scopes.collect();
            let streams = names
                .into_iter()
                .filter_map(|(tenant, name)| {
                    let head = state.stream(&tenant, &name)?;
                    Some(((tenant, name), head.version))
                })
                .collect();
            Prepared { as_of: state.applied(), scopes, streams }
        })
        .await
    }

    /// Asks the state. It has applied everything that was answered before.
    ///
    /// # Errors
    /// When the outbox has stopped.
    pub async fn read<R: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn ReadModel) -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        let (sender, answer) = oneshot::channel();
        let ask = Box::new(move |state: &State| {
            let answer = question(state);
            // What rests on rows that could not be read is no answer. The asker may have gone; then nobody wants it.
            if state.failure().is_none() {
                let _gone = sender.send(answer).is_err();
            }
        });
        self.inner.state.send(StateMessage::Read(ask)).map_err(|_| self.why_not())?;
        answer.await.map_err(|_| self.why_not())
    }

    /// Why the state gives no answer.
    fn why_not(&self) -> Unavailable {
        match &*self.inner.health.borrow() {
            Health::Good => Unavailable::Stopping,
            Health::DiskFull => Unavailable::DiskFull,
            Health::Failed(reason) => Unavailable::Failed(reason.clone()),
        }
    }

    /// While it is held no event is forgotten: from looking at one until what is done with it is committed.
    pub async fn hold_events(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.inner.forgetting.read().await
    }

    /// While it is held nothing is made pending again.
    pub(super) async fn hold_forgetting(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.inner.forgetting.write().await
    }

    /// As [`Self::read`], for what retention changes.
    pub(super) async fn tend<R: Send + 'static>(
        &self,
        task: impl FnOnce(&mut State) -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        let (sender, answer) = oneshot::channel();
        let task = Box::new(move |state: &mut State| {
            // As for a question: the asker may have gone.
            let _gone = sender.send(task(state)).is_err();
        });
        self.inner.state.send(StateMessage::Tend(task)).map_err(|_| self.why_not())?;
        answer.await.map_err(|_| self.why_not())
    }

    #[must_use]
    pub fn journal(&self) -> &JournalReader {
        &self.inner.reader
    }

    /// Runs with the directory locked for reading: be quick, and do not wait for anything.
    pub fn directory<R>(&self, look: impl FnOnce(&Directory) -> R) -> R {
        look(&self.inner.directory.read().expect("no holder of this lock panics"))
    }

    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.inner.health.clone()
    }

    /// For how long the writer has been kept from its work by a disk that does not answer; zero when it is not.
    #[must_use]
    pub fn busy_for(&self) -> Duration {
        let since = *self.inner.busy.lock().expect("no holder of this lock panics");
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// A thread of those who submit has nothing to do.
    pub fn on_idle(&self) {
        self.inner.queue.on_idle();
    }

    /// Whether so many outcomes wait for their commit that no further attempt should begin.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.inner.queue.is_behind()
    }

    /// Commands and bytes that wait for their commit.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        self.inner.queue.weight()
    }

    /// Records that the state has not applied yet.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.inner.reader.last_position().0.saturating_sub(self.inner.applied.load(Ordering::Relaxed))
    }

    /// Writes what waits, checkpoints, and ends both threads. Blocks.
    pub fn stop(&self) {
        let Some((writer, state)) = self.inner.threads.lock().expect("no holder panics").take() else {
            return;
        };
        self.inner.queue.close();
        if writer.join().is_err() {
            tracing::error!("the writer panicked");
        }
        if self.inner.state.send(StateMessage::Stop).is_err() || state.join().is_err() {
            tracing::error!("the state's thread had ended before it was told to");
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| OpenError::Io { path: name.to_owned(), error })
}

fn io(path: &Path, error: std::io::Error) -> OpenError {
    OpenError::Io { path: path.display().to_string(), error }
}

/// Creates or checks the directory, its stamp and its lock.
fn claim(path: &Path) -> Result<File, OpenError> {
    std::fs::create_dir_all(path).map_err(|error| io(path, error))?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join("LOCK"))
        .map_err(|error| io(path, error))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Err(OpenError::Locked(path.display().to_string())),
        Err(std::fs::TryLockError::Error(error)) => return Err(io(path, error)),
    }
    let stamp = path.join(FORMAT_FILE);
    match std::fs::read_to_string(&stamp) {
        Ok(found) if found == FORMAT => {}
        Ok(found) => return Err(OpenError::Foreign { path: path.display().to_string(), found }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let foreign = path.join("journal").exists() || path.join("state").exists();
            if foreign {
                return Err(OpenError::Foreign {
                    path: path.display().to_string(),
                    found: "nothing".to_owned(),
                });
            }
            self::stamp(path).map_err(|error| io(path, error))?;
        }
        Err(error) => return Err(io(&stamp, error)),
    }
    Ok(lock)
}

/// Says durably that the directory is a data directory of this format.
pub(super) fn stamp(path: &Path) -> std::io::Result<()> {
    // Under another name first: half a stamp would be a foreign one.
    let fresh = path.join(FORMAT_FILE).with_extension("new");
    std::fs::write(&fresh, FORMAT)?;
    File::open(&fresh)?.sync_all()?;
    std::fs::rename(&fresh, path.join(FORMAT_FILE))?;
    File::open(path)?.sync_all()
}

/// Opens the state, or moves it aside and starts a new one; then replays.
pub(crate) fn open_state(
    path: &Path,
    journal: &mut Journal,
    report: &mut OpenReport,
    progress: OnProgress<'_>,
) -> Result<(State, Option<String>, u64), OpenError> {
    let directory = path.join("state");
    let end = journal.reader().last_position();
    let (mut state, rebuilt) = match State::open(&directory, end) {
        Ok(state) if state.applied() == Position(0) && end > Position(0) => {
            (state, Some("the state is missing".to_owned()))
        }
        Ok(state) => (state, None),
        Err(error) if error.is_of_the_system() => return Err(error.into()),
        Err(error) => {
            if let StateError::Ahead { applied, .. } = error {
                report.damage.push(journal.lose_until(applied)?);
                report.last = applied;
            }
            let aside = move_aside(&directory).map_err(|error| io(&directory, error))?;
            tracing::warn!(%error, moved_to = %aside.display(), "the state cannot be used; rebuilding it from the journal");
            (State::open(&directory, journal.reader().last_position())?, Some(error.to_string()))
        }
    };
    let replayed = catch_up(&mut state, journal, progress)?;
    Ok((state, rebuilt, replayed))
}

/// Applies what the journal has and the state has not; gives how many records that was.
pub(crate) fn catch_up(
    state: &mut State,
    journal: &Journal,
    progress: OnProgress<'_>,
) -> Result<u64, OpenError> {
    for record in records(&journal.reader(), state.directory()) {
        state.know(&record);
    }
    replay(state, &journal.reader(), journal.reader().last_position(), progress)
}

/// One is kept, for whoever wants to know what was wrong with it.
fn move_aside(directory: &Path) -> std::io::Result<PathBuf> {
    let aside = directory.with_extension("damaged");
    match std::fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::rename(directory, &aside)?;
    Ok(aside)
}

fn replay(
    state: &mut State,
    reader: &JournalReader,
    end: Position,
    progress: OnProgress<'_>,
) -> Result<u64, OpenError> {
    let mut replayed = 0;
    let mut changes = Vec::new();
    for frame in reader.frames_from(state.applied().next()) {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error @ ReadError::Undecodable { source, .. }) if source.is_newer() => {
                return Err(OpenError::Newer(error));
            }
            Err(error @ (ReadError::Damaged { .. } | ReadError::Undecodable { .. })) => {
                tracing::error!(%error, "records of the journal are lost; everything else goes on");
                continue;
            }
            Err(error @ ReadError::Io(_)) => return Err(OpenError::Read(error)),
        };
        for (position, record) in frame {
            state.apply(position, &record, false, &mut changes);
            changes.clear();
            replayed += 1;
            if state.is_full() {
                state.checkpoint(Timestamp::default())?;
            }
        }
        progress(Progress { at: state.applied().0, of: end.0 });
    }
    state.reach(end);
    state.checkpoint(Timestamp::default())?;
    Ok(replayed)
}

pub(super) fn directory(state: &State, reader: &JournalReader) -> Directory {
    let mut directory = Directory::default();
    for record in records(reader, state.deleted_endpoints()) {
        directory.apply_deleted(&record);
    }
    for record in records(reader, state.directory()) {
        directory.apply(&record);
    }
    directory
}

/// The records at these positions; those that damage has taken are reported and left out.
fn records(reader: &JournalReader, mut positions: Vec<Position>) -> impl Iterator<Item = Record> {
    // In the order of the journal each of its blocks is read once.
    positions.sort_unstable();
    positions.into_iter().filter_map(|position| match reader.read(position) {
        Ok(record) => record,
        Err(error) => {
            tracing::error!(%error, %position, "an endpoint or key is lost");
            None
        }
    })
}

/// The outbox before its threads run.
pub(crate) struct Assembled {
    pub(crate) outbox: Outbox,
    pub(crate) notices: async_mpsc::Receiver<Notice>,
    pub(crate) writer: WriterThread,
    pub(crate) state: StateThread,
}

pub(crate) struct WriterThread {
    committer: Committer,
    queue: Arc<UnitQueue>,
    state: mpsc::Sender<StateMessage>,
    notices: async_mpsc::Sender<Notice>,
    applied: Arc<AtomicU64>,
    health: Arc<HealthCell>,
    observer: Observer,
    busy: Busy,
    /// Where those who wait for answers live; in a simulation nowhere.
    runtime: Option<Handle>,
    /// How long it waits between two tries on a full disk.
    full_disk_pause: Duration,
}

impl WriterThread {
    /// However it ends, nobody waits for it any longer.
    fn run(mut self) {
        if catch_unwind(AssertUnwindSafe(|| self.take_turns())).is_err() {
            self.health.fail("the writer panicked");
        }
        self.queue.abandon();
    }

    fn take_turns(&mut self) {
        loop {
            self.set_busy(true);
            self.wait_for_the_state();
            self.set_busy(false);
            if !self.turn() {
                return;
            }
        }
    }

    /// Gives whether to go on.
    fn turn(&mut self) -> bool {
        if self.is_disk_full() && self.queue.is_empty() {
            return self.look_for_room();
        }
        self.queue.next_group().is_some_and(|group| self.commit(group))
    }

    /// Gives whether to go on.
    fn commit(&mut self, group: Vec<Unit>) -> bool {
        let started = Instant::now();
        self.set_busy(true);
        let result = self.committer.commit(group);
        self.set_busy(false);
        if let Some(committed) = &result.committed {
            (self.observer)(Written::Commit { records: committed.records.len() }, started.elapsed());
        }
        self.publish(result)
    }

    fn set_busy(&self, busy: bool) {
        *self.busy.lock().expect("no holder of this lock panics") = busy.then(Instant::now);
    }

    fn is_disk_full(&self) -> bool {
        self.health.is_full_for(Part::Journal)
    }

    /// Nothing waits to be written, and nothing more is let in while the disk counts as full: without a look at it that
    /// would stay so for ever. Gives whether to go on.
    fn look_for_room(&self) -> bool {
        if self.committer.journal().has_room() {
            self.health.set_full(Part::Journal, false);
        } else {
            std::thread::sleep(self.full_disk_pause);
        }
        !self.queue.is_closed()
    }

    /// Tells what was committed, in order. Gives whether to go on.
    fn publish(&self, result: GroupResult) -> bool {
        if let Some(committed) = result.committed {
            self.health.set_full(Part::Journal, false);
            if self.state.send(StateMessage::Committed(committed.clone())).is_err() {
                self.health.fail("the state's thread has ended");
            }
            if !tell(&self.notices, Notice::Committed(committed)) {
                tracing::debug!("nobody listens to commits any more");
            }
        }
        // Who is refused and looks at the health then sees why.
        match &result.failure {
            None => {}
            Some(AppendError::DiskFull) => self.health.set_full(Part::Journal, true),
            Some(error) => {
                tracing::error!(%error, "the journal failed; nothing is acknowledged any more");
                self.health.fail(&error.to_string());
            }
        }
        self.answer(result.replies);
        self.queue.put_back(result.unwritten);
        match result.failure {
            None => true,
            Some(AppendError::DiskFull) => {
                std::thread::sleep(self.full_disk_pause);
                !self.queue.is_closed()
            }
            Some(_) => false,
        }
    }

    /// Whoever waits is woken from within the runtime, where that costs less: the runtime itself is woken once.
    fn answer(&self, replies: Vec<(UnitReply, Answer)>) {
        if replies.is_empty() {
            return;
        }
        let answer = move || {
            for (reply, outcome) in replies {
                // A client that went away does not wait for its answer.
                let _gone = reply.send(outcome).is_err();
            }
        };
        match &self.runtime {
            Some(runtime) => drop(runtime.spawn(async { answer() })),
            None => answer(),
        }
    }

    /// Bounds the memory that committed, not yet applied records hold.
    fn wait_for_the_state(&self) {
        let last = self.committer.journal().next_position().0 - 1;
        while last.saturating_sub(self.applied.load(Ordering::Relaxed)) > STATE_LAG_MAX
            || self.committer.unapplied().bytes() > limits::UNAPPLIED_BYTES_MAX
        {
            // A state that waits for room is not waited for at the end.
            if self.health.has_failed() || self.queue.is_closed() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

pub(crate) struct StateThread {
    state: State,
    messages: mpsc::Receiver<StateMessage>,
    notices: async_mpsc::Sender<Notice>,
    applied: Arc<AtomicU64>,
    health: Arc<HealthCell>,
    observer: Observer,
    /// What came while the disk was full.
    held: VecDeque<StateMessage>,
    last_checkpoint: Instant,
    /// Of the last commit that was applied. What expires, expires by it: a clock that was ahead for a while and was set
    /// back must not have made anything forgotten.
    time: Timestamp,
}

impl StateThread {
    /// sled panics over some damage. The journal has everything, so whatever panics here is mended by a rebuild.
    fn run(mut self) {
        if catch_unwind(AssertUnwindSafe(|| self.take_turns())).is_err() {
            self.fail("the state's thread panicked");
        }
    }

    fn take_turns(&mut self) {
        loop {
            let wait = limits::CHECKPOINT_INTERVAL.saturating_sub(self.last_checkpoint.elapsed());
            let message = match self.held.pop_front() {
                Some(message) => Ok(message),
                None => self.messages.recv_timeout(wait),
            };
            let goes_on = match message {
                Ok(message) => self.turn(message),
                Err(mpsc::RecvTimeoutError::Disconnected) => self.turn(StateMessage::Stop),
                Err(mpsc::RecvTimeoutError::Timeout) => true,
            };
            let is_time = self.last_checkpoint.elapsed() >= limits::CHECKPOINT_INTERVAL;
            if !goes_on || (is_time && !self.checkpoint()) {
                return;
            }
        }
    }

    /// Gives whether to go on.
    fn turn(&mut self, message: StateMessage) -> bool {
        let goes_on = match message {
            StateMessage::Committed(committed) => self.apply(&committed),
            StateMessage::Read(question) => {
                question(&self.state);
                true
            }
            StateMessage::Tend(task) => {
                task(&mut self.state);
                true
            }
            StateMessage::Stop => {
                if let Err(error) = self.state.checkpoint(self.time) {
                    tracing::warn!(%error, "the last checkpoint failed; the next start replays what it misses");
                }
                false
            }
        };
        match self.state.failure().map(ToOwned::to_owned) {
            Some(reason) => self.fail(&reason),
            None => goes_on,
        }
    }

    /// The state cannot be trusted any more: the process ends, and the next start rebuilds it. Never goes on.
    fn fail(&self, reason: &str) -> bool {
        tracing::error!(reason, "the state failed; it will be rebuilt from the journal at the next start");
        self.state.mark_unreadable();
        self.health.fail(reason);
        false
    }

    /// Gives whether to go on.
    fn apply(&mut self, committed: &Committed) -> bool {
        let mut changes = Vec::new();
        self.time = committed.at;
        for (position, record) in &committed.records {
            self.state.apply(*position, record, true, &mut changes);
            // Within a large group as well: what one checkpoint writes is bounded.
            if self.state.is_full() && !self.checkpoint() {
                return false;
            }
        }
        self.state.end_group();
        self.applied.store(self.state.applied().0, Ordering::Relaxed);
        if !changes.is_empty() && !tell(&self.notices, Notice::Lanes(changes)) {
            tracing::debug!("nobody listens to lane changes any more");
        }
        true
    }

    /// Gives whether to go on.
    fn checkpoint(&mut self) -> bool {
        let started = Instant::now();
        let written = self.state.checkpoint(self.time);
        self.last_checkpoint = started;
        match written {
            Ok(()) => {
                (self.observer)(Written::Checkpoint, started.elapsed());
                true
            }
            Err(error) if error.is_disk_full() => self.wait_for_room(),
            Err(error) => self.give_up(&error),
        }
    }

    /// The process ends; the next start replays what is missing. Never goes on.
    fn give_up(&self, error: &StateError) -> bool {
        tracing::error!(%error, "a checkpoint failed");
        self.health.fail(&error.to_string());
        false
    }

    /// Until the disk has room again nothing is answered, and what is committed meanwhile is kept for later; the writer
    /// bounds how much that is. Nothing can be lost by it: the journal has everything. Gives whether to go on.
    fn wait_for_room(&mut self) -> bool {
        tracing::warn!("the disk is too full for a checkpoint of the state");
        self.health.set_full(Part::State, true);
        let mut tried = Instant::now();
        loop {
            match self.messages.recv_timeout(FULL_DISK_PAUSE.saturating_sub(tried.elapsed())) {
                Ok(message @ StateMessage::Committed(_)) => self.held.push_back(message),
                // Who asked hears that there is no answer.
                Ok(StateMessage::Read(_) | StateMessage::Tend(_)) | Err(mpsc::RecvTimeoutError::Timeout) => {}
                Ok(StateMessage::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return false,
            }
            if tried.elapsed() < FULL_DISK_PAUSE {
                continue;
            }
            tried = Instant::now();
            match self.state.reopen().and_then(|()| self.state.checkpoint(self.time)) {
                Ok(()) => break,
                Err(error) if error.is_disk_full() => {}
                Err(error) => return self.give_up(&error),
            }
        }
        tracing::warn!("the disk has room for the state again");
        self.health.set_full(Part::State, false);
        true
    }
}

/// Waits only when the channel is full. Gives whether anybody listens.
fn tell(notices: &async_mpsc::Sender<Notice>, notice: Notice) -> bool {
    match notices.try_send(notice) {
        Ok(()) => true,
        Err(async_mpsc::error::TrySendError::Closed(_)) => false,
        Err(async_mpsc::error::TrySendError::Full(notice)) => notices.blocking_send(notice).is_ok(),
    }
}

/// The turns of both threads, taken by hand: what a simulation does instead of running them.
#[cfg(test)]
impl WriterThread {
    pub(crate) fn without_pauses(mut self) -> Self {
        self.full_disk_pause = Duration::ZERO;
        self
    }

    /// Commits what waits, when anything does. Gives whether the writer goes on.
    pub(crate) fn turn_by_hand(&mut self) -> bool {
        if self.is_disk_full() && self.queue.is_empty() {
            return self.look_for_room();
        }
        let group = self.queue.take();
        group.is_empty() || self.commit(group)
    }
}

#[cfg(test)]
impl StateThread {
    /// Takes the next message, when there is one. Gives whether there was.
    pub(crate) fn turn_by_hand(&mut self) -> bool {
        match self.messages.try_recv() {
            Ok(message) => self.turn(message),
            Err(_) => false,
        }
    }

    pub(crate) fn checkpoint_by_hand(&mut self) {
        // The world sees by itself that the power has failed.
        let _goes_on = self.checkpoint();
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }
}

#[cfg(test)]
mod tests;

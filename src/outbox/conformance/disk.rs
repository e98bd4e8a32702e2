//! The real outbox under test: writer, journal, state and retention, with threads that run step by
//! step.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use tokio::sync::mpsc;

use super::{End, Store};
use crate::domain::{ApiKey, Endpoint, Position, Record, Source, TenantSettings, Timestamp, TypeDefinition};
use crate::maintenance::erasure::Erasures;
use crate::maintenance::retention::{Retention, RetentionPolicy};
use crate::maintenance::verify::verify;
use crate::outbox::decide::CommitEnvironment;
use crate::outbox::recent_keys::Prepared;
use crate::outbox::registry::{ConsumerStatus, KnownJob, Registry};
use crate::outbox::unit::{Command, Outcome, Unit};
use crate::outbox::{AdmissionLimits, Notice, Outbox, ReadModel};
use crate::outbox::{ApplyThread, CommitThread, UnstartedOutbox, catch_up, open_state};
use crate::storage::data_directory::stamp;
use crate::storage::disk::{Disk, MemoryDisk, RealDisk};
use crate::storage::journal::{Journal, JournalOptions};
use crate::storage::state::State;
use crate::storage::state::row_store::RowStore;
use crate::storage::state::row_store::memory::{MemoryRows, PowerState};

/// Storage medium.
enum Medium {
    Memory {
        disk: MemoryDisk,
        rows: MemoryRows,
    },
    /// A directory, and the number of earlier ones. A kill continues with a copy of the last.
    Files {
        below: tempfile::TempDir,
        number: u32,
    },
}

impl Medium {
    fn directory(&self) -> PathBuf {
        match self {
            Self::Files { below, number } => below.path().join(number.to_string()),
            Self::Memory { .. } => PathBuf::new(),
        }
    }
}

/// A fixed clock, and randomness from a seed.
#[derive(Clone)]
struct TestEnvironment {
    now: Arc<Mutex<Timestamp>>,
    random: fastrand::Rng,
}

impl CommitEnvironment for TestEnvironment {
    fn now(&mut self) -> Timestamp {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn random(&mut self) -> u128 {
        self.random.u128(..)
    }
}

struct Parts {
    outbox: Outbox,
    writer: CommitThread,
    state: ApplyThread,
    notices: mpsc::Receiver<Notice>,
}

impl Parts {
    fn take_turns(&mut self, random: &mut fastrand::Rng) {
        assert!(self.writer.turn_by_hand(), "the writer has ended");
        for _ in 0..random.u32(0..4) {
            self.state.turn_by_hand();
        }
        while self.notices.try_recv().is_ok() {}
    }

    fn catch_up(&mut self) {
        while self.state.turn_by_hand() {
            while self.notices.try_recv().is_ok() {}
        }
    }
}

pub(super) struct DiskStore {
    medium: Medium,
    parts: Option<Parts>,
    environment: TestEnvironment,
    segment_bytes: u64,
    runtime: tokio::runtime::Runtime,
}

impl DiskStore {
    pub(super) fn in_memory(seed: u64) -> Self {
        let rows = MemoryRows::new(Arc::new(|| PowerState::On));
        Self::over(Medium::Memory { disk: MemoryDisk::new(), rows }, seed)
    }

    pub(super) fn in_files(seed: u64) -> Self {
        let below = tempfile::tempdir().expect("a directory can be made");
        Self::over(Medium::Files { below, number: 0 }, seed)
    }

    /// Stops the outbox. Returns its data directory, inside a temporary directory.
    pub(super) fn into_directory(mut self) -> (tempfile::TempDir, PathBuf) {
        self.end(End::Stopped);
        let directory = self.medium.directory();
        match self.medium {
            Medium::Files { below, .. } => (below, directory),
            Medium::Memory { .. } => panic!("it lies in memory"),
        }
    }

    fn over(medium: Medium, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let segment_bytes = random.choice([700, 4_000, 1 << 20]).expect("three");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let environment = TestEnvironment { now: Arc::default(), random };
        let mut store = Self { medium, parts: None, environment, segment_bytes, runtime };
        store.open();
        store
    }

    fn open(&mut self) {
        let options = JournalOptions {
            segment_bytes: self.segment_bytes,
            preallocation_bytes: self.environment.random.choice([0, 500]).expect("two"),
            frame_bytes: 200,
            ..JournalOptions::new(self.environment.random.u32(..))
        };
        let directory = self.medium.directory();
        let disk: Arc<dyn Disk> = match &self.medium {
            Medium::Memory { disk, .. } => Arc::new(disk.clone()),
            Medium::Files { .. } => {
                std::fs::create_dir_all(&directory).expect("a directory can be made");
                stamp(&directory).expect("a directory can be stamped");
                Arc::new(RealDisk::new(directory.join("journal")).expect("a journal can be made"))
            }
        };
        let (mut journal, mut report) = Journal::open(disk, options).expect("the journal opens");
        assert_eq!(report.damage, [], "the journal is damaged");
        let state = match &self.medium {
            Medium::Memory { rows, .. } => {
                let rows = RowStore::Memory(rows.clone());
                let mut state =
                    State::with_rows(rows, journal.reader().last_position()).expect("the state opens");
                catch_up(&mut state, &journal, &mut |_| ()).expect("the state catches up");
                state
            }
            Medium::Files { .. } => {
                let opened = open_state(&directory, &mut journal, &mut report, &mut |_| ());
                let (state, rebuilt, _) = opened.expect("the state opens");
                let expected = rebuilt.as_deref().is_none_or(|why| why == "the state is missing");
                assert!(expected, "the state was rebuilt: {rebuilt:?}");
                state
            }
        };
        let admission = AdmissionLimits { bytes: 1 << 24, commands: 10_000 };
        let environment = Box::new(self.environment.clone());
        let UnstartedOutbox { outbox, notices, writer, state } =
            Outbox::assemble(journal, state, admission, environment, Arc::new(|_, _| ()), None);
        let writer = writer.without_pauses();
        self.parts = Some(Parts { outbox, writer, state, notices });
    }

    fn parts(&mut self) -> &mut Parts {
        self.parts.as_mut().expect("it is open")
    }

    /// Runs a task of the outbox to completion, while writer and state take turns.
    fn drive<R>(&mut self, task: impl AsyncFnOnce(Outbox) -> R) -> R {
        let parts = self.parts.as_mut().expect("it is open");
        let random = &mut self.environment.random;
        self.runtime.block_on(async {
            let mut task = pin!(task(parts.outbox.clone()));
            loop {
                tokio::select! {
                    biased;
                    done = &mut task => return done,
                    () = tokio::task::yield_now() => parts.take_turns(random),
                }
            }
        })
    }
}

/// Whether a file below the directory has these bytes.
fn has_bytes(directory: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(directory).expect("a directory can be read").any(|entry| {
        let path = entry.expect("a directory can be read").path();
        if path.is_dir() {
            return has_bytes(&path, bytes);
        }
        let content = std::fs::read(path).expect("a file can be read");
        content.windows(bytes.len()).any(|part| part == bytes)
    })
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory can be made");
    for entry in std::fs::read_dir(from).expect("a directory can be read") {
        let entry = entry.expect("a directory can be read");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a file can be copied");
        }
    }
}

impl Store for DiskStore {
    fn submit(&mut self, units: Vec<Vec<Command>>) -> Vec<Vec<Outcome>> {
        let answers = self.drive(async move |outbox| {
            let mut prepared = Vec::new();
            for commands in units {
                let mut unit = Unit { commands, prepared: Prepared::default(), reply: None };
                unit.prepared = outbox.prepare(&unit.commands).await.expect("the state answers");
                prepared.push(unit);
            }
            join_all(prepared.into_iter().map(|unit| outbox.submit(unit))).await
        });
        answers.into_iter().map(|answer| answer.expect("the store takes it")).collect()
    }

    fn ask(&mut self, question: &mut dyn FnMut(&dyn ReadModel) -> Result<(), String>) -> Result<(), String> {
        self.parts().catch_up();
        question(self.parts().state.state())
    }

    fn record(&mut self, position: Position) -> Option<Record> {
        self.parts().outbox.journal().read(position).expect("the journal can be read")
    }

    fn records_at(&mut self, time: Timestamp) -> Vec<(Position, Record)> {
        let found = self.parts().outbox.journal().positions_at(time);
        found.map(|record| record.expect("the journal can be read")).collect()
    }

    fn endpoints(&mut self) -> Vec<Arc<Endpoint>> {
        self.parts().outbox.endpoints()
    }

    fn keys(&mut self) -> Vec<Arc<ApiKey>> {
        self.parts().outbox.keys()
    }

    fn tenants(&mut self) -> Vec<Arc<TenantSettings>> {
        self.parts().outbox.registry(|registry| registry.tenants().cloned().collect())
    }

    fn jobs(&mut self) -> Vec<KnownJob> {
        self.parts().outbox.registry(|registry| registry.jobs().iter().cloned().collect())
    }

    fn consumers(&mut self) -> Vec<ConsumerStatus> {
        self.parts().outbox.registry(|registry| registry.consumers().after(None).cloned().collect())
    }

    fn sources(&mut self) -> Vec<Arc<Source>> {
        self.parts().outbox.registry(|registry| registry.sources().cloned().collect())
    }

    fn types(&mut self) -> Vec<Arc<TypeDefinition>> {
        let of = |registry: &Registry| {
            registry.event_types().map(|registered| registered.definition().clone()).collect()
        };
        self.parts().outbox.registry(of)
    }

    fn tell_time(&mut self, now: Timestamp) {
        *self.environment.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn checkpoint(&mut self) {
        self.parts().catch_up();
        self.parts().state.checkpoint_by_hand();
    }

    fn retain(&mut self, policy: RetentionPolicy) {
        let now = *self.environment.now.lock().unwrap_or_else(PoisonError::into_inner);
        let pass = self.drive(async move |outbox| Retention::new(outbox, policy).pass(now).await);
        pass.expect("retention takes its pass");
    }

    fn erase_on_disk(&mut self) {
        let now = *self.environment.now.lock().unwrap_or_else(PoisonError::into_inner);
        let pass = self.drive(async move |outbox| Erasures::new(outbox).pass(now).await);
        assert_eq!(pass.expect("the pass completes").left, 0);
    }

    fn is_in_files(&self, bytes: &[u8]) -> bool {
        match &self.medium {
            Medium::Memory { disk, .. } => disk.list().expect("the files are listed").iter().any(|name| {
                let content = disk.contents(name).unwrap_or_default();
                content.windows(bytes.len()).any(|part| part == bytes)
            }),
            Medium::Files { .. } => has_bytes(&self.medium.directory(), bytes),
        }
    }

    fn end(&mut self, end: End) {
        if end == End::Stopped {
            self.checkpoint();
        }
        match &mut self.medium {
            Medium::Memory { disk, rows } => {
                if let End::PowerCut(seed) = end {
                    *disk = disk.crash(seed);
                }
                if end == End::StateLost {
                    rows.clear();
                }
            }
            Medium::Files { below, number } => {
                // A kill leaves the current content of the files. Closing them would write more.
                let before = below.path().join(number.to_string());
                *number += 1;
                let after = below.path().join(number.to_string());
                copy(&before, &after);
                if end == End::StateLost {
                    std::fs::remove_dir_all(after.join("state")).expect("a directory can be removed");
                }
            }
        }
        self.parts = None;
        self.open();
    }

    fn verify(&mut self) -> Result<(), String> {
        let Medium::Files { below, .. } = &self.medium else { return Ok(()) };
        let (copied, scratch) = (below.path().join("copy"), below.path().join("scratch"));
        copy(&self.medium.directory(), &copied);
        std::fs::create_dir_all(&scratch).expect("a directory can be made");
        let report = verify(&copied, &scratch, &mut |_, _| ());
        for directory in [copied, scratch] {
            std::fs::remove_dir_all(directory).expect("a directory can be removed");
        }
        match report {
            Ok(report) if report.problems.count == 0 => Ok(()),
            Ok(report) => Err(format!("verify finds {:#?}", report.problems)),
            Err(error) => Err(error.to_string()),
        }
    }
}

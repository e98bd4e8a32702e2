//! Conformance suite for every outbox: random work, then every query, compared with the oracle.
//!
//! A new implementation passes when it implements [`Store`] and the tests at the end of this file
//! pass with it. The work is that of the engine (publish with keys and streams, change endpoints,
//! finish attempts, revive, cancel, purge) with faults in between: stops, kills, power cuts, a lost
//! state, retention. All randomness comes from the seed.

mod atomic;
pub(crate) mod compare;
pub(crate) mod consumers;
mod disk;
pub(crate) mod jobs;
mod leases;
mod memory;
pub(crate) mod oracle;
mod outcomes;
mod rare_rows;
mod sources;
mod tenants;
pub(crate) mod types;
mod upkeep;
mod work;

use std::sync::Arc;

use crate::domain::{ApiKey, Endpoint, Position, Record, Source, TenantSettings, Timestamp, TypeDefinition};
use crate::failpoints::{Bound, TestOverrides};
use crate::maintenance::retention::RetentionPolicy;
use crate::outbox::ReadModel;
use crate::outbox::registry::{ConsumerStatus, KnownJob};
use crate::outbox::unit::{Command, Outcome};

/// How a process ends before the outbox is reopened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Stopped,
    /// The process is killed.
    Killed,
    /// Power cut: a random part of the unsynced bytes survives.
    PowerCut(u64),
    /// The state is lost and the journal remains.
    StateLost,
}

/// An outbox under test.
pub(crate) trait Store {
    /// Commits units. The commands of a unit are judged in order, without other commands in
    /// between. Several units may share a commit.
    fn submit(&mut self, units: Vec<Vec<Command>>) -> Vec<Vec<Outcome>>;
    /// Runs a query on a state that reflects every answered commit.
    fn ask(&mut self, question: &mut dyn FnMut(&dyn ReadModel) -> Result<(), String>) -> Result<(), String>;
    /// Reads a record. Returns `None` when retention has removed it.
    fn record(&mut self, position: Position) -> Option<Record>;
    /// Reads the positions and records of all commits with this time.
    fn records_at(&mut self, time: Timestamp) -> Vec<(Position, Record)>;
    fn endpoints(&mut self) -> Vec<Arc<Endpoint>>;
    fn keys(&mut self) -> Vec<Arc<ApiKey>>;
    fn tenants(&mut self) -> Vec<Arc<TenantSettings>>;
    /// By tenant and name.
    fn consumers(&mut self) -> Vec<ConsumerStatus>;
    fn types(&mut self) -> Vec<Arc<TypeDefinition>>;
    /// In the order of their start.
    fn jobs(&mut self) -> Vec<KnownJob>;
    fn sources(&mut self) -> Vec<Arc<Source>>;
    /// Sets the clock.
    fn tell_time(&mut self, now: Timestamp);
    fn checkpoint(&mut self);
    /// Runs one retention pass.
    fn retain(&mut self, policy: RetentionPolicy);
    /// Runs one erasure pass. Succeeds at once for an outbox without files.
    fn erase_on_disk(&mut self) {}
    /// Whether a file has these bytes.
    fn is_in_files(&self, _: &[u8]) -> bool {
        false
    }
    /// Ends the process and reopens the outbox.
    fn end(&mut self, end: End);
    /// Verifies the data directory. Succeeds for an outbox without one.
    ///
    /// # Errors
    /// The problems that verification found.
    fn verify(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// Creates a data directory with a long random history. `retains`: retention has removed records.
pub(crate) fn data_directory(seed: u64, retains: bool) -> (tempfile::TempDir, std::path::PathBuf) {
    // Events with two targets are wide, and blocks of a stream's positions are full soon.
    let bounds = [(Bound::TargetsListed, 1), (Bound::StreamBlock, 4)].into();
    TestOverrides { bounds, ..TestOverrides::default() }.activate();
    let mut work = work::Work::new(seed, disk::DiskStore::in_files(seed));
    work.retains = retains;
    if let Err(broken) = work.run() {
        panic!("seed {seed}: {broken}");
    }
    rare_rows::add_rare_rows(&mut work.store);
    work.store.into_directory()
}

/// Runs the seeds of a test. A failure reports its seed and the steps.
fn passes<S: Store>(name: &str, seeds: u64, also: &[&str], make: fn(u64) -> S) {
    let first = crate::failpoints::number("BALTO_TEST_SEED");
    let seeds = first.map_or_else(|| 1..=crate::failpoints::rounds(seeds), |seed| seed..=seed);
    let mut happened = std::collections::BTreeMap::new();
    // Blocks of a stream's positions are full soon, and tenants have events in several spans.
    let bounds = [(Bound::StreamBlock, 4), (Bound::EndedJobs, 2), (Bound::PagePositions, 16)];
    let bounds = bounds.into_iter().chain([(Bound::SpanPages, 3)]).collect();
    TestOverrides { bounds, ..TestOverrides::default() }.activate();
    for seed in seeds {
        let mut work = work::Work::new(seed, make(seed));
        let broken = work.run().err();
        if let Some(broken) = broken {
            let done = work.done();
            panic!(
                "seed {seed}: {broken}\n{done}\nseed {seed}: {broken}\nreplay: BALTO_TEST_SEED={seed} cargo test --lib {name}"
            );
        }
        for (what, count) in work.happened() {
            *happened.entry(what).or_insert(0) += count;
        }
    }
    // A run without these outcomes proves nothing.
    let wanted = [
        "Accepted",
        "Duplicate",
        "Mismatch",
        "VersionConflict",
        "IdTaken",
        "PartialDuplicate",
        "Passed",
        "Withdrawn",
        "Endpoint",
        "Tenant",
        "Consumer",
        "Type",
        "Job",
        "QuotaExceeded",
        "Conflict",
        "Written",
        "Stopped",
        "Killed",
        "PowerCut",
        "StateLost",
        "checkpoints",
        "leased",
        "leases ended",
        "extended",
        "retained",
        "erased",
        "erasure passes",
    ];
    for what in wanted.iter().chain(also) {
        assert!(first.is_some() || happened.contains_key(what), "no seed met {what}: {happened:?}");
    }
}

#[test]
fn oracle_conforms() {
    passes("oracle_conforms", 20, &[], |_| memory::MemoryStore::default());
}

#[test]
fn in_memory_outbox_conforms() {
    passes("in_memory_outbox_conforms", 24, &["removed", "ConsumerMoved"], disk::DiskStore::in_memory);
}

#[test]
fn file_outbox_conforms() {
    passes("file_outbox_conforms", 8, &["removed"], disk::DiskStore::in_files);
}

//! One suite for every store: random work, and after it every question that can be asked, beside the oracle.
//!
//! A store of another kind passes when it implements [`Store`] and the tests at the end of this file run over it. Work is
//! what the engine does (publish with keys and streams, change endpoints, finish attempts, revive, cancel, purge) and what
//! befalls it: stops, kills, power cuts, a lost state, retention. Everything comes from the seed.

pub(crate) mod compare;
mod disk;
mod memory;
pub(crate) mod oracle;
mod work;

use std::sync::Arc;

use crate::domain::{ApiKey, Endpoint, Position, Record, Timestamp};
use crate::maintenance::retention::RetentionPolicy;
use crate::outbox::ReadModel;
use crate::outbox::unit::{Command, Outcome};

/// What befalls a store, before it is opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Stopped,
    /// The process ends at once.
    Killed,
    /// The process ends, and with it what was not synced; chance decides over the rest.
    PowerCut(u64),
    /// Its state is gone; the journal is there.
    StateLost,
}

/// A store under test.
pub(crate) trait Store {
    /// Each unit's commands are judged in order, with nothing between them; several units may share a commit.
    fn submit(&mut self, units: Vec<Vec<Command>>) -> Vec<Vec<Outcome>>;
    /// Asks what reflects everything that was answered.
    fn ask(&mut self, question: &mut dyn FnMut(&dyn ReadModel) -> Result<(), String>) -> Result<(), String>;
    /// A record, or `None` when retention has taken it.
    fn record(&mut self, position: Position) -> Option<Record>;
    /// Positions and records of the commits of a time.
    fn records_at(&mut self, time: Timestamp) -> Vec<(Position, Record)>;
    fn endpoints(&mut self) -> Vec<Arc<Endpoint>>;
    fn keys(&mut self) -> Vec<Arc<ApiKey>>;
    /// What its clock shows from now on.
    fn tell_time(&mut self, now: Timestamp);
    fn checkpoint(&mut self);
    /// One pass.
    fn retain(&mut self, policy: RetentionPolicy);
    /// Ends and is opened again.
    fn end(&mut self, end: End);
    /// Whether the check of a data directory finds nothing; of what is none, it never does.
    ///
    /// # Errors
    /// What it found.
    fn verify(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// A data directory that much has happened in, and its path; `retains` says whether records were taken from it.
pub(crate) fn data_directory(seed: u64, retains: bool) -> (tempfile::TempDir, std::path::PathBuf) {
    let mut work = work::Work::new(seed, disk::DiskStore::in_files(seed));
    work.retains = retains;
    if let Err(broken) = work.run() {
        panic!("seed {seed}: {broken}");
    }
    work.store.into_directory()
}

/// Runs the seeds of a test; a failure names its seed and what was done.
fn passes<S: Store>(name: &str, seeds: u64, also: &[&str], make: fn(u64) -> S) {
    let first = crate::failpoints::number("BALTO_TEST_SEED");
    let seeds = first.map_or_else(|| 1..=crate::failpoints::rounds(seeds), |seed| seed..=seed);
    let mut happened = std::collections::BTreeMap::new();
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
    // A run that never met these shows nothing.
    let wanted = [
        "Accepted",
        "Duplicate",
        "Mismatch",
        "VersionConflict",
        "IdTaken",
        "Endpoint",
        "Conflict",
        "Written",
        "Stopped",
        "Killed",
        "PowerCut",
        "StateLost",
        "checkpoints",
        "retained",
    ];
    for what in wanted.iter().chain(also) {
        assert!(first.is_some() || happened.contains_key(what), "no seed met {what}: {happened:?}");
    }
}

#[test]
fn the_oracle_conforms() {
    passes("the_oracle_conforms", 20, &[], |_| memory::MemoryStore::default());
}

#[test]
fn a_store_on_a_disk_in_memory_conforms() {
    passes("a_store_on_a_disk_in_memory_conforms", 24, &["removed"], disk::DiskStore::in_memory);
}

#[test]
fn the_store_of_files_and_sled_conforms() {
    passes("the_store_of_files_and_sled_conforms", 8, &["removed"], disk::DiskStore::in_files);
}

//! The row store: sled, and workarounds for its defects.
//!
//! Owns the sled directory. Only this file opens or writes sled, and only the apply thread calls
//! it. The table lists the known defects of sled 0.34, the workarounds, and the tests that fail
//! without them:
//!
//! | defect | workaround | test |
//! |---|---|---|
//! | `flush` never fsyncs | each checkpoint ends with `fdatasync` on our own handle of sled's file, before the next one begins | `syscalls`, `power` |
//! | `flush_async`, writers beside scans and a background flusher deadlock | the code uses none of them ([`clippy.toml`] forbids the calls); [`SledRows`] is not `Sync`, so only one thread can use it | the compiler, clippy |
//! | values above about 128 KB go to blob files that are never synced | values are bounded, asserted before each write; a blob file counts as damage | `largest_value_creates_no_blob_file` |
//! | `open` panics on most flipped bits | the panic is caught, and the caller rebuilds from the journal | `flipped_bit_is_rejected_or_yields_a_checkpoint`, `disk` |
//! | a flipped bit silently loses or changes a row (one in a hundred) | a row holds a checksum of all rows, verified at every start ([`RowChecksum`]) | `flipped_bit_is_rejected_or_yields_a_checkpoint` |
//! | an unreadable page ends a scan early | the failure is recorded, the state answers nothing more, and the next start rebuilds ([`RowStore::failure`]) | `unreadable_row_is_a_failure_not_a_missing_row` |
//! | a torn start-up snapshot makes `open` fail forever | removed before `open` | `torn_snapshot_is_removed_on_open` |
//! | after a full disk every call fails until sled is reopened | [`RowStore::reopen`]; the unwritten rows are still in memory | `disk` |
//! | its file does not shrink (observed: forty times the live data) | when the file is much larger than its rows, they are copied to a new one ([`SledRows::write_compacted_copy`]) | `oversized_store_is_compacted` |
//! | replaced pages are freed only when the thread pins the epoch often, so memory grows | the epoch collector is flushed after each batch | measured: 150 MB instead of 2.5 GB |
//! | closing continues after `drop`, so a reopen finds the lock taken | `open` waits for the lock, for a bounded time | `oversized_store_is_compacted` |
//! | a directory of another engine opens as an empty store | the data directory has a format stamp, and an empty state is rebuilt | `disk` |
//!
//! Rows of some kinds share a value of sled ([`bundles`]).
//!
//! [`clippy.toml`]: https://doc.rust-lang.org/clippy/lint_configuration.html
//!
//! Tests can use an in-memory map instead ([`memory::MemoryRows`]).

use std::cell::{OnceCell, RefCell};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::StateError;
use crate::failpoints::{self, Mutation};
use crate::storage::disk::create_private;
use crate::{limits, panics};

mod bundles;
mod change;
mod checksum;
#[cfg(test)]
pub(crate) mod memory;
mod range;
mod replacement;
mod sync;
#[cfg(test)]
mod tests;

use change::Change;
use checksum::{CHECKSUM, RowChecksum};
use range::SledRange;
pub(crate) use replacement::{RebuildSite, ReplaceError};
use sync::BackgroundSync;

/// Flushes of the epoch collector after a batch. Each flush frees a bounded number of pages.
const EPOCH_FLUSHES: usize = 64;
/// Maximum wait for a store that is closing in the background.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(2);
/// Segment size of sled's file, in bytes. The rows of a leaf must fit a quarter of it.
const SEGMENT_BYTES: usize = 8 * 1024 * 1024;
/// Maximum number of rows on a sled leaf: sled splits a leaf with more than 16.
const LEAF_ROWS_MAX: usize = 17;
const _: () = assert!(LEAF_ROWS_MAX * (limits::STATE_VALUE_BYTES_MAX + 1_000) < SEGMENT_BYTES / 4);
/// Batch size of a compaction, in bytes.
const COMPACTION_BATCH_BYTES: usize = 1024 * 1024;
/// Compaction threshold: the file size divided by the estimated size of a new file.
const FILE_GROWTH_MAX: u64 = 4;
/// Marker file: the rows cannot be read.
const UNREADABLE_FILE: &str = "unreadable";

/// A change of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RowChange<'a> {
    /// The row is new.
    New(&'a [u8]),
    Put(&'a [u8]),
    Remove,
}

/// The rows of one position. Outside of tests there is only the sled variant.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "outside of tests there is one variant")]
pub(crate) enum RowStore {
    Sled(SledRows),
    #[cfg(test)]
    Memory(memory::MemoryRows),
}

/// Iterator over rows in key order, from both ends.
#[allow(clippy::large_enum_variant, reason = "outside of tests there is one variant")]
pub(crate) enum RowRange<'a> {
    Sled(SledRange<'a>),
    #[cfg(test)]
    Memory(std::vec::IntoIter<Row>),
}

type Row = (sled::IVec, sled::IVec);

fn record_failure(failure: &OnceCell<String>, error: &dyn std::fmt::Display) {
    // Only the first failure is kept.
    let _known = failure.set(error.to_string()).is_err();
}

impl Iterator for RowRange<'_> {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        match self {
            Self::Sled(rows) => rows.next(),
            #[cfg(test)]
            Self::Memory(rows) => rows.next(),
        }
    }
}

impl DoubleEndedIterator for RowRange<'_> {
    fn next_back(&mut self) -> Option<Row> {
        match self {
            Self::Sled(rows) => rows.next_back(),
            #[cfg(test)]
            Self::Memory(rows) => rows.next_back(),
        }
    }
}

impl RowStore {
    /// Opens or creates the store; see [`SledRows::open`].
    pub(crate) fn open(directory: &Path) -> Result<Self, StateError> {
        SledRows::open(directory).map(Self::Sled)
    }

    /// Returns the row's value, or `None` if the row is missing or cannot be read.
    /// [`Self::failure`] tells the difference.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Sled(rows) => rows.get(key),
            #[cfg(test)]
            Self::Memory(rows) => rows.get(key),
        }
    }

    pub(crate) fn range(&self, from: &[u8], to: &[u8]) -> RowRange<'_> {
        match self {
            Self::Sled(rows) => rows.range(from, to),
            #[cfg(test)]
            Self::Memory(rows) => RowRange::Memory(rows.range(from, to)),
        }
    }

    /// Number of rows. A bundle counts as one.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Sled(rows) => rows.checksum.rows,
            #[cfg(test)]
            Self::Memory(rows) => rows.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Why a row could not be read. All answers are then unreliable.
    pub(crate) fn failure(&self) -> Option<&str> {
        match self {
            Self::Sled(rows) => rows.failure.get().map(String::as_str),
            #[cfg(test)]
            Self::Memory(_) => None,
        }
    }

    /// Marks the rows on disk as unusable, so that the next start rebuilds them.
    pub(crate) fn mark_unreadable(&self) {
        match self {
            Self::Sled(rows) => rows.mark_unreadable(),
            #[cfg(test)]
            Self::Memory(_) => {}
        }
    }

    /// Applies all changes, which are in key order, atomically. They are durable after
    /// [`Self::finish_write`], which the next write begins with.
    pub(crate) fn write<'a>(
        &mut self,
        changes: impl Iterator<Item = (&'a [u8], RowChange<'a>)>,
    ) -> Result<(), StateError> {
        match self {
            Self::Sled(rows) => rows.write(changes),
            #[cfg(test)]
            Self::Memory(rows) => rows.write(changes),
        }
    }

    /// Whether the last write is still becoming durable, so that the next one would wait.
    pub(crate) fn is_writing(&self) -> bool {
        match self {
            Self::Sled(rows) => rows.store().sync.is_running(),
            #[cfg(test)]
            Self::Memory(_) => false,
        }
    }

    /// Waits until the last write is durable.
    pub(crate) fn finish_write(&mut self) -> Result<(), StateError> {
        match self {
            Self::Sled(rows) => rows.store_mut().finish_write(),
            #[cfg(test)]
            Self::Memory(rows) => rows.finish_write(),
        }
    }

    /// Closes and opens the store. Repairs it after a full disk.
    pub(crate) fn reopen(&mut self) -> Result<(), StateError> {
        match self {
            Self::Sled(rows) => rows.reopen(),
            #[cfg(test)]
            Self::Memory(_) => Ok(()),
        }
    }

    /// Copies the rows to a new store if the file is much larger than its rows. Returns whether it
    /// did.
    pub(crate) fn compact_if_oversized(&mut self) -> Result<bool, StateError> {
        match self {
            Self::Sled(rows) => rows.compact_if_oversized(),
            #[cfg(test)]
            Self::Memory(_) => Ok(false),
        }
    }

    /// Bytes on disk.
    pub(crate) fn size_bytes(&self) -> u64 {
        match self {
            Self::Sled(rows) => rows.size_bytes(),
            #[cfg(test)]
            Self::Memory(_) => 0,
        }
    }
}

/// An open sled database.
#[derive(Debug)]
struct SledStore {
    db: sled::Db,
    sync: BackgroundSync,
}

impl SledStore {
    fn open(directory: &Path) -> Result<Self, StateError> {
        create_private(directory).map_err(StateError::Io)?;
        remove_torn_snapshots(directory).map_err(StateError::Io)?;
        let config = sled::Config::new()
            .path(directory)
            .flush_every_ms(None)
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(limits::STATE_CACHE_BYTES)
            .mode(sled::Mode::HighThroughput);
        let deadline = Instant::now() + CLOSE_WAIT_MAX;
        let db = loop {
            match panics::contain(|| config.open()) {
                Ok(Ok(db)) => break db,
                Ok(Err(error)) if is_still_closing(&error) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(Err(error)) => return Err(StateError::Sled(error)),
                Err(_) => return Err(StateError::Damaged("sled panicked on open")),
            }
        };
        let sync = File::open(directory.join("db")).and_then(BackgroundSync::start);
        let sync = sync.map_err(StateError::Io)?;
        let blobs = directory.join("blobs");
        if fs::read_dir(&blobs).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(StateError::Damaged("sled has unsynced blob files"));
        }
        Ok(Self { db, sync })
    }

    /// Reads all rows and verifies their checksum. Nothing less proves that all rows exist.
    fn checksum_rows(&self) -> Result<RowChecksum, StateError> {
        let mut sum = RowChecksum::default();
        let mut stored = None;
        for row in self.db.iter() {
            let (key, value) = row.map_err(StateError::Sled)?;
            if key == CHECKSUM { stored = RowChecksum::decode(&value) } else { sum.add(&key, &value) }
        }
        let is_empty = sum == RowChecksum::default();
        match stored {
            Some(stored) if stored == sum || failpoints::is_active(Mutation::TrustRows) => Ok(sum),
            None if is_empty => Ok(sum),
            Some(_) => Err(StateError::Damaged("row checksum mismatch")),
            None => Err(StateError::Damaged("the row checksum is missing")),
        }
    }

    /// Applies a batch. [`Self::finish_write`] makes it durable.
    fn apply(&mut self, batch: sled::Batch) -> Result<(), StateError> {
        self.finish_write()?;
        self.db.apply_batch(batch).map_err(StateError::Sled)?;
        self.db.flush().map_err(StateError::Sled)?;
        self.sync.begin();
        for _ in 0..EPOCH_FLUSHES {
            crossbeam_epoch::pin().flush();
        }
        Ok(())
    }

    fn finish_write(&mut self) -> Result<(), StateError> {
        self.sync.finish().map_err(StateError::Io)
    }
}

/// sled releases its lock some time after the drop. No other process can hold it, because this
/// process holds the lock of the data directory.
fn is_still_closing(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

/// Rows in sled.
#[derive(Debug)]
pub(crate) struct SledRows {
    directory: PathBuf,
    /// `None` during a reopen.
    store: Option<SledStore>,
    checksum: RowChecksum,
    failure: OnceCell<String>,
    /// The bundle that was read last, and its key: the next row is often in it.
    recent: RefCell<Option<(Vec<u8>, Option<sled::IVec>)>>,
    /// File size below which no compaction is considered.
    compact_at_bytes: u64,
}

impl SledRows {
    /// Opens or creates the store. An error means that the directory is unusable in its current
    /// form.
    fn open(directory: &Path) -> Result<Self, StateError> {
        finish_compaction(directory).map_err(StateError::Io)?;
        if directory.join(UNREADABLE_FILE).exists() {
            return Err(StateError::Damaged("a row could not be read before the last restart"));
        }
        let store = SledStore::open(directory)?;
        let checksum = store.checksum_rows()?;
        Ok(Self {
            directory: directory.to_owned(),
            store: Some(store),
            checksum,
            failure: OnceCell::new(),
            recent: RefCell::new(None),
            compact_at_bytes: limits::STATE_COPY_BYTES_MIN,
        })
    }

    fn store(&self) -> &SledStore {
        self.store.as_ref().expect("the store is open between calls")
    }

    fn store_mut(&mut self) -> &mut SledStore {
        *self.recent.get_mut() = None;
        self.store.as_mut().expect("the store is open between calls")
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        if bundles::is_bundled(key) {
            return self.get_bundled(key);
        }
        match self.store().db.get(key) {
            Ok(value) => value.map(|value| value.to_vec()),
            Err(error) => {
                record_failure(&self.failure, &error);
                None
            }
        }
    }

    fn get_bundled(&self, key: &[u8]) -> Option<Vec<u8>> {
        let (at, within) = bundles::place(key);
        let mut recent = self.recent.borrow_mut();
        if recent.as_ref().is_none_or(|(known, _)| *known != at) {
            match self.store().db.get(&at) {
                Ok(bundle) => *recent = Some((at, bundle)),
                Err(error) => {
                    record_failure(&self.failure, &error);
                    return None;
                }
            }
        }
        let (_, bundle) = recent.as_ref()?;
        match bundles::find(bundle.as_deref()?, within) {
            Ok(found) => found.map(<[u8]>::to_vec),
            Err(error) => {
                record_failure(&self.failure, &error);
                None
            }
        }
    }

    fn range(&self, from: &[u8], to: &[u8]) -> RowRange<'_> {
        let rows = self.store().db.range(bundles::first_key(from)..to.to_vec());
        RowRange::Sled(SledRange::new(rows, from..to, &self.failure))
    }

    fn mark_unreadable(&self) {
        let written = File::create(self.directory.join(UNREADABLE_FILE)).and_then(|file| {
            file.sync_all()?;
            File::open(&self.directory)?.sync_all()
        });
        if let Err(error) = written {
            tracing::error!(%error, "cannot mark the state as unreadable");
        }
    }

    fn write<'a>(
        &mut self,
        changes: impl Iterator<Item = (&'a [u8], RowChange<'a>)>,
    ) -> Result<(), StateError> {
        let mut change = Change::new(&self.store().db, self.checksum);
        change.all(changes)?;
        let (batch, sum) = change.finish();
        self.store_mut().apply(batch)?;
        self.checksum = sum;
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), StateError> {
        *self.recent.get_mut() = None;
        self.store = None;
        finish_compaction(&self.directory).map_err(StateError::Io)?;
        let store = SledStore::open(&self.directory)?;
        self.checksum = store.checksum_rows()?;
        self.store = Some(store);
        Ok(())
    }

    /// Bytes on disk.
    fn size_bytes(&self) -> u64 {
        fs::metadata(self.directory.join("db")).map_or(0, |metadata| metadata.len())
    }

    fn compact_if_oversized(&mut self) -> Result<bool, StateError> {
        let size = self.size_bytes();
        if size < self.compact_at_bytes || size < FILE_GROWTH_MAX * self.checksum.fresh_bytes() {
            return Ok(false);
        }
        self.store_mut().finish_write()?;
        let started = Instant::now();
        if let Err(error) = self.write_compacted_copy() {
            // The old store is unchanged.
            tracing::warn!(%error, "state compaction failed, continuing with the old file");
            // Best effort: the next compaction or open removes a leftover copy.
            drop(remove(&sibling(&self.directory, "copying")));
            self.compact_at_bytes = size + limits::STATE_COPY_BYTES_MIN;
            return Ok(false);
        }
        self.switch_to_copy()?;
        let left = self.size_bytes();
        self.compact_at_bytes = limits::STATE_COPY_BYTES_MIN.max(FILE_GROWTH_MAX * left);
        let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            before = size,
            after = left,
            rows = self.checksum.rows,
            milliseconds,
            "state compacted"
        );
        Ok(true)
    }

    /// Writes all rows to a new store beside this one. Makes it complete and durable before the
    /// rename that marks it as valid.
    fn write_compacted_copy(&self) -> Result<(), StateError> {
        let copying = sibling(&self.directory, "copying");
        remove(&copying).map_err(StateError::Io)?;
        let mut fresh = SledStore::open(&copying)?;
        let (mut batch, mut bytes, mut sum) = (sled::Batch::default(), 0, RowChecksum::default());
        for row in self.store().db.iter() {
            let (key, value) = row.map_err(StateError::Sled)?;
            if key != CHECKSUM {
                sum.add(&key, &value);
            }
            bytes += key.len() + value.len();
            batch.insert(key, value);
            if bytes >= COMPACTION_BATCH_BYTES {
                fresh.apply(std::mem::take(&mut batch))?;
                bytes = 0;
            }
        }
        if sum != self.checksum {
            return Err(StateError::Damaged("row checksum mismatch"));
        }
        fresh.apply(batch)?;
        fresh.finish_write()?;
        drop(fresh);
        sync_all_below(&copying)
            .and_then(|()| fs::rename(&copying, sibling(&self.directory, "copied")))
            .and_then(|()| sync_parent(&self.directory))
            .map_err(StateError::Io)
    }

    /// Replaces this store with the copy. [`finish_compaction`] recovers from a crash at any point.
    fn switch_to_copy(&mut self) -> Result<(), StateError> {
        *self.recent.get_mut() = None;
        self.store = None;
        fs::rename(&self.directory, sibling(&self.directory, "old")).map_err(StateError::Io)?;
        finish_compaction(&self.directory).map_err(StateError::Io)?;
        self.store = Some(SledStore::open(&self.directory)?);
        Ok(())
    }
}

/// Sibling directory with this extension.
fn sibling(directory: &Path, extension: &str) -> PathBuf {
    directory.with_extension(extension)
}

/// Finishes an interrupted compaction: a complete copy replaces a store that was moved away.
/// Removes all other leftovers.
fn finish_compaction(directory: &Path) -> io::Result<()> {
    let copied = sibling(directory, "copied");
    if copied.exists() && !directory.exists() {
        fs::rename(&copied, directory)?;
        sync_parent(directory)?;
    }
    for leftover in ["copying", "copied", "old"] {
        remove(&sibling(directory, leftover))?;
    }
    Ok(())
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_parent(directory: &Path) -> io::Result<()> {
    File::open(directory.parent().unwrap_or(directory))?.sync_all()
}

fn sync_all_below(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_all_below(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(directory)?.sync_all()
}

/// Removes unfinished snapshots. sled's own cleanup expects another file name.
fn remove_torn_snapshots(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

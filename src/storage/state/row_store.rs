//! The row store: sled, and workarounds for its defects.
//!
//! Owns the sled directory. Only this file opens or writes sled, and only the apply thread calls
//! it. The table lists the known defects of sled 0.34, the workarounds, and the tests that fail
//! without them:
//!
//! | defect | workaround | test |
//! |---|---|---|
//! | `flush` never fsyncs | each checkpoint ends with `fdatasync` on our own handle of sled's file | `syscalls`, `power` |
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
//! [`clippy.toml`]: https://doc.rust-lang.org/clippy/lint_configuration.html
//!
//! Tests can use an in-memory map instead ([`memory::MemoryRows`]).

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::StateError;
use crate::codec::{Reader, put_varint};
use crate::failpoints::{self, Mutation};
use crate::storage::disk::create_private;
use crate::{limits, panics};

#[cfg(test)]
pub(crate) mod memory;
mod replacement;
#[cfg(test)]
mod tests;

pub(crate) use replacement::{RebuildSite, ReplaceError};

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
/// Approximate overhead of a row in a new file, in bytes (measured: 150 to 300 for rows of 40).
const ROW_OVERHEAD_BYTES: u64 = 300;
/// Key of the checksum row. No row of a projection has this tag.
const CHECKSUM: &[u8] = b"0";
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
pub(crate) enum RowStore {
    Sled(SledRows),
    #[cfg(test)]
    Memory(memory::MemoryRows),
}

/// Iterator over rows in key order, from both ends.
#[allow(clippy::large_enum_variant, reason = "outside of tests there is one variant")]
pub(crate) enum RowRange<'a> {
    Sled {
        rows: sled::Iter,
        failure: &'a OnceCell<String>,
    },
    #[cfg(test)]
    Memory(std::vec::IntoIter<(sled::IVec, sled::IVec)>),
}

type Row = (sled::IVec, sled::IVec);

/// Returns the next row. An error ends the range and is recorded.
fn end_on_failure(row: Option<sled::Result<Row>>, failure: &OnceCell<String>) -> Option<Row> {
    match row? {
        Ok(row) => Some(row),
        Err(error) => {
            record_failure(failure, &error);
            None
        }
    }
}

fn record_failure(failure: &OnceCell<String>, error: &sled::Error) {
    // Only the first failure is kept.
    let _known = failure.set(error.to_string()).is_err();
}

impl Iterator for RowRange<'_> {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        match self {
            Self::Sled { rows, failure } => end_on_failure(rows.next(), failure),
            #[cfg(test)]
            Self::Memory(rows) => rows.next(),
        }
    }
}

impl DoubleEndedIterator for RowRange<'_> {
    fn next_back(&mut self) -> Option<Row> {
        match self {
            Self::Sled { rows, failure } => end_on_failure(rows.next_back(), failure),
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

    /// Applies all changes atomically and makes them durable.
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

/// Checksum of all rows, independent of their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct RowChecksum {
    rows: u64,
    bytes: u64,
    hash: u64,
}

impl RowChecksum {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.rows += 1;
        self.bytes += (key.len() + value.len()) as u64;
        self.hash = self.hash.wrapping_add(row_hash(key, value));
    }

    /// Wraps below zero if the store returned wrong rows. The next start then detects a mismatch.
    fn subtract(&mut self, key: &[u8], value: &[u8]) {
        self.rows = self.rows.wrapping_sub(1);
        self.bytes = self.bytes.wrapping_sub((key.len() + value.len()) as u64);
        self.hash = self.hash.wrapping_sub(row_hash(key, value));
    }

    fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        for number in [self.rows, self.bytes, self.hash] {
            put_varint(&mut out, number);
        }
        out
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(value);
        let mut number = || reader.get_varint().ok();
        Some(Self { rows: number()?, bytes: number()?, hash: number()? })
    }

    /// Estimated maximum size of a new file with these rows.
    fn fresh_bytes(self) -> u64 {
        self.bytes + self.bytes / 2 + self.rows * ROW_OVERHEAD_BYTES
    }
}

/// FNV-1a over key length, key and value. It never changes, because its sum is stored. It detects
/// corruption, not tampering.
fn row_hash(key: &[u8], value: &[u8]) -> u64 {
    let length = (key.len() as u64).to_le_bytes();
    length
        .iter()
        .chain(key)
        .chain(value)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// An open sled database.
#[derive(Debug)]
struct SledStore {
    db: sled::Db,
    /// Our own handle of sled's file, for `fdatasync`.
    file: File,
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
        let file = File::open(directory.join("db")).map_err(StateError::Io)?;
        let blobs = directory.join("blobs");
        if fs::read_dir(&blobs).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(StateError::Damaged("sled has unsynced blob files"));
        }
        Ok(Self { db, file })
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

    fn apply(&self, batch: sled::Batch) -> Result<(), StateError> {
        self.db.apply_batch(batch).map_err(StateError::Sled)?;
        self.db.flush().map_err(StateError::Sled)?;
        self.file.sync_data().map_err(StateError::Io)?;
        for _ in 0..EPOCH_FLUSHES {
            crossbeam_epoch::pin().flush();
        }
        Ok(())
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
            compact_at_bytes: limits::STATE_COPY_BYTES_MIN,
        })
    }

    fn store(&self) -> &SledStore {
        self.store.as_ref().expect("the store is open between calls")
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self.store().db.get(key) {
            Ok(value) => value.map(|value| value.to_vec()),
            Err(error) => {
                record_failure(&self.failure, &error);
                None
            }
        }
    }

    fn range(&self, from: &[u8], to: &[u8]) -> RowRange<'_> {
        RowRange::Sled { rows: self.store().db.range(from.to_vec()..to.to_vec()), failure: &self.failure }
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
        let mut batch = sled::Batch::default();
        let mut sum = self.checksum;
        for (key, change) in changes {
            let before = match change {
                RowChange::New(_) => None,
                RowChange::Put(_) | RowChange::Remove => {
                    self.store().db.get(key).map_err(StateError::Sled)?
                }
            };
            if let Some(before) = before {
                sum.subtract(key, &before);
            }
            match change {
                RowChange::New(value) | RowChange::Put(value) => {
                    assert!(value.len() <= limits::STATE_VALUE_BYTES_MAX, "a value of {} bytes", value.len());
                    sum.add(key, value);
                    batch.insert(key, value);
                }
                RowChange::Remove => batch.remove(key),
            }
        }
        batch.insert(CHECKSUM, sum.encode());
        self.store().apply(batch)?;
        self.checksum = sum;
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), StateError> {
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
        let fresh = SledStore::open(&copying)?;
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
        drop(fresh);
        sync_all_below(&copying)
            .and_then(|()| fs::rename(&copying, sibling(&self.directory, "copied")))
            .and_then(|()| sync_parent(&self.directory))
            .map_err(StateError::Io)
    }

    /// Replaces this store with the copy. [`finish_compaction`] recovers from a crash at any point.
    fn switch_to_copy(&mut self) -> Result<(), StateError> {
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

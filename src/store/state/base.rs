//! sled, contained.
//!
//! Owns the sled directory. Only this file touches sled, and only the state's thread calls it. What is known to go
//! wrong with sled 0.34, and what is done about it here:
//!
//! * `flush` never fsyncs: each checkpoint ends with `fdatasync` on our own handle of its file.
//! * `flush_async` and concurrent writers deadlock: neither is used; there is one thread, and no background flusher.
//! * Values above about 128 KB go to blob files without fsync: values are bounded, and the blob directory must be empty.
//! * `open` panics on damage, and a torn start-up snapshot makes it refuse for ever: the torn snapshot is removed, the
//!   panic is caught, and the caller rebuilds from the journal.
//! * Replaced pages are freed only when the thread pins the epoch often: the collector is pushed after each batch.
//! * Another engine's directory opens as an empty store: a format marker stands beside it.
//!
//! Tests may put a map in memory in its place ([`memory::MemoryRows`]).

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::StateError;
use crate::limits;

#[cfg(test)]
pub(crate) mod memory;

/// Times that the epoch collector is pushed after a batch: each push frees a bounded number of pages.
const EPOCH_PUSHES: usize = 64;

/// The rows of one position. There is one kind outside of tests.
#[derive(Debug)]
pub(crate) enum Base {
    Sled(SledRows),
    #[cfg(test)]
    Memory(memory::MemoryRows),
}

/// Rows in key order, from either end.
#[allow(clippy::large_enum_variant, reason = "outside of tests there is one variant")]
pub(crate) enum Range {
    Sled(sled::Iter),
    #[cfg(test)]
    Memory(std::vec::IntoIter<(sled::IVec, sled::IVec)>),
}

impl Iterator for Range {
    type Item = (sled::IVec, sled::IVec);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Sled(rows) => rows.next()?.ok(),
            #[cfg(test)]
            Self::Memory(rows) => rows.next(),
        }
    }
}

impl DoubleEndedIterator for Range {
    fn next_back(&mut self) -> Option<Self::Item> {
        match self {
            Self::Sled(rows) => rows.next_back()?.ok(),
            #[cfg(test)]
            Self::Memory(rows) => rows.next_back(),
        }
    }
}

impl Base {
    /// See [`SledRows::open`].
    pub(crate) fn open(directory: &Path) -> Result<Self, StateError> {
        SledRows::open(directory).map(Self::Sled)
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Sled(rows) => rows.get(key),
            #[cfg(test)]
            Self::Memory(rows) => rows.get(key),
        }
    }

    pub(crate) fn range(&self, from: &[u8], to: &[u8]) -> Range {
        match self {
            Self::Sled(rows) => Range::Sled(rows.db.range(from.to_vec()..to.to_vec())),
            #[cfg(test)]
            Self::Memory(rows) => Range::Memory(rows.range(from, to)),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Sled(rows) => rows.db.is_empty(),
            #[cfg(test)]
            Self::Memory(rows) => rows.is_empty(),
        }
    }

    /// Applies all changes at once and makes them durable.
    pub(crate) fn write(
        &self,
        changes: impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
    ) -> Result<(), StateError> {
        match self {
            Self::Sled(rows) => rows.write(changes),
            #[cfg(test)]
            Self::Memory(rows) => rows.write(changes),
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

/// Rows in sled.
#[derive(Debug)]
pub(crate) struct SledRows {
    db: sled::Db,
    /// Our own handle of sled's file, for `fdatasync`.
    file: File,
    directory: PathBuf,
}

impl SledRows {
    /// Opens or creates the store. An error means that the directory cannot be used as it is.
    fn open(directory: &Path) -> Result<Self, StateError> {
        std::fs::create_dir_all(directory).map_err(StateError::Io)?;
        remove_torn_snapshots(directory).map_err(StateError::Io)?;
        let config = sled::Config::new()
            .path(directory)
            .flush_every_ms(None)
            .cache_capacity(limits::STATE_CACHE_BYTES)
            .mode(sled::Mode::HighThroughput);
        let db = match catch_unwind(AssertUnwindSafe(|| config.open())) {
            Ok(opened) => opened.map_err(StateError::Sled)?,
            Err(_) => return Err(StateError::Damaged("sled panicked while it opened its file")),
        };
        let file = File::open(directory.join("db")).map_err(StateError::Io)?;
        let blobs = directory.join("blobs");
        if std::fs::read_dir(&blobs).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(StateError::Damaged("sled has blob files, which are never synced"));
        }
        Ok(Self { db, file, directory: directory.to_owned() })
    }

    /// A read error means damage; it is remembered by the caller through [`Base::get_checked`] at start, and answered
    /// as a missing row here: the state is only derived.
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self.db.get(key) {
            Ok(value) => value.map(|value| value.to_vec()),
            Err(error) => {
                tracing::error!(%error, "the state cannot be read; it will be rebuilt at the next start");
                None
            }
        }
    }

    /// Applies all changes at once and makes them durable.
    fn write(&self, changes: impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)>) -> Result<(), StateError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => {
                    assert!(value.len() <= limits::STATE_VALUE_BYTES_MAX, "a value of {} bytes", value.len());
                    batch.insert(key, value);
                }
                None => batch.remove(key),
            }
        }
        self.db.apply_batch(batch).map_err(StateError::Sled)?;
        self.db.flush().map_err(StateError::Sled)?;
        self.file.sync_data().map_err(StateError::Io)?;
        for _ in 0..EPOCH_PUSHES {
            crossbeam_epoch::pin().flush();
        }
        Ok(())
    }

    /// Bytes on disk.
    fn size_bytes(&self) -> u64 {
        std::fs::metadata(self.directory.join("db")).map_or(0, |metadata| metadata.len())
    }
}

/// sled's own clean-up looks for another name.
fn remove_torn_snapshots(directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

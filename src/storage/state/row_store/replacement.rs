//! Replacement of a store by one that was filled beside it.
//!
//! The replacement uses the directories of a compaction: a complete store with the name of a
//! finished copy takes the place of the old store, also after a crash in between.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

#[cfg(test)]
use super::memory::MemoryRows;
use super::{RowStore, SledRows, StateError, remove, sibling, sync_all_below, sync_parent};
use crate::limits;

/// Why a store was not replaced.
#[derive(Debug)]
pub(crate) enum ReplaceError {
    /// The old store is unchanged.
    Kept(StateError),
    /// The store on disk is valid, but cannot be opened.
    Closed(StateError),
}

/// The place beside a store where a new one is filled.
#[derive(Clone, Debug)]
pub(crate) enum RebuildSite {
    Directory(PathBuf),
    #[cfg(test)]
    Memory(MemoryRows),
}

impl RebuildSite {
    /// The place beside the store in `directory`. Its name has no extension, so that its own
    /// compactions use other names than those of the store.
    pub(crate) fn beside(directory: &Path) -> Self {
        let mut name = directory.file_name().unwrap_or_default().to_owned();
        name.push("-rebuild");
        Self::Directory(directory.with_file_name(name))
    }

    /// Removes everything at the place.
    pub(crate) fn clear(&self) -> Result<(), StateError> {
        match self {
            Self::Directory(directory) => {
                for extension in ["copying", "copied", "old"] {
                    remove(&sibling(directory, extension)).map_err(StateError::Io)?;
                }
                remove(directory).map_err(StateError::Io)
            }
            #[cfg(test)]
            Self::Memory(rows) => {
                rows.clear();
                Ok(())
            }
        }
    }

    /// Creates an empty store.
    pub(crate) fn create(&self) -> Result<RowStore, StateError> {
        self.clear()?;
        match self {
            Self::Directory(directory) => RowStore::open(directory),
            #[cfg(test)]
            Self::Memory(rows) => Ok(RowStore::Memory(rows.clone())),
        }
    }
}

impl RowStore {
    pub(crate) fn rebuild_site(&self) -> RebuildSite {
        match self {
            Self::Sled(rows) => RebuildSite::beside(&rows.directory),
            #[cfg(test)]
            Self::Memory(rows) => RebuildSite::Memory(rows.beside()),
        }
    }

    /// Replaces the rows by those of `fresh`, durably and atomically. `fresh` is closed.
    pub(crate) fn replace_with(&mut self, fresh: &mut Self) -> Result<(), ReplaceError> {
        match (self, fresh) {
            (Self::Sled(rows), Self::Sled(fresh)) => rows.replace_with(fresh),
            #[cfg(test)]
            (Self::Memory(rows), Self::Memory(fresh)) => rows.replace_with(fresh),
            #[cfg(test)]
            _ => unreachable!("the store and its site are of one kind"),
        }
    }
}

impl SledRows {
    fn replace_with(&mut self, fresh: &mut Self) -> Result<(), ReplaceError> {
        fresh.store = None;
        let copied = sibling(&self.directory, "copied");
        let prepared = sync_all_below(&fresh.directory)
            .and_then(|()| fs::rename(&fresh.directory, &copied))
            .and_then(|()| sync_parent(&self.directory));
        if let Err(error) = prepared {
            // Best effort: the next compaction or open removes a leftover copy.
            drop(remove(&copied));
            return Err(ReplaceError::Kept(StateError::Io(error)));
        }
        self.checksum = fresh.checksum;
        self.failure = OnceCell::new();
        self.compact_at_bytes = limits::STATE_COPY_BYTES_MIN;
        self.switch_to_copy().map_err(ReplaceError::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::state::row_store::RowChange;

    fn put(rows: &mut RowStore, value: &[u8], count: u8) {
        let keys: Vec<_> = (0..count).map(|number| [b'K', number]).collect();
        rows.write(keys.iter().map(|key| (&key[..], RowChange::Put(value)))).unwrap();
    }

    fn values(rows: &RowStore) -> Vec<Vec<u8>> {
        rows.range(b"K", b"L").map(|(_, value)| value.to_vec()).collect()
    }

    fn names(below: &Path) -> Vec<std::ffi::OsString> {
        fs::read_dir(below).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn replaced_store_has_only_the_new_rows() {
        let below = tempfile::tempdir().unwrap();
        let directory = below.path().join("state");
        let mut rows = RowStore::open(&directory).unwrap();
        put(&mut rows, b"old", 9);
        let site = rows.rebuild_site();
        let mut fresh = site.create().unwrap();
        put(&mut fresh, b"new", 4);
        rows.replace_with(&mut fresh).unwrap();
        assert_eq!((values(&rows), rows.len()), (vec![b"new".to_vec(); 4], 4));
        put(&mut rows, b"later", 2);
        drop((rows, fresh));
        assert_eq!(names(below.path()), ["state"]);
        let rows = RowStore::open(&directory).unwrap();
        let later = [b"later".to_vec(), b"later".to_vec(), b"new".to_vec(), b"new".to_vec()];
        assert_eq!(values(&rows), later);
    }

    #[test]
    fn failed_replacement_keeps_the_old_rows() {
        let below = tempfile::tempdir().unwrap();
        let directory = below.path().join("state");
        let mut rows = RowStore::open(&directory).unwrap();
        put(&mut rows, b"old", 9);
        let mut fresh = rows.rebuild_site().create().unwrap();
        put(&mut fresh, b"new", 4);
        // The name of the finished copy is taken by a file.
        fs::write(below.path().join("state.copied"), "in the way").unwrap();
        assert!(matches!(rows.replace_with(&mut fresh), Err(ReplaceError::Kept(_))));
        assert_eq!(values(&rows), vec![b"old".to_vec(); 9]);
        put(&mut rows, b"later", 1);
    }

    #[test]
    fn unfinished_store_is_removed() {
        let below = tempfile::tempdir().unwrap();
        let directory = below.path().join("state");
        let mut rows = RowStore::open(&directory).unwrap();
        put(&mut rows, b"old", 9);
        let site = rows.rebuild_site();
        put(&mut site.create().unwrap(), b"new", 4);
        assert!(site.create().unwrap().is_empty(), "a new store begins with old rows");
        fs::create_dir(below.path().join("state-rebuild.copying")).unwrap();
        RebuildSite::beside(&directory).clear().unwrap();
        assert_eq!(names(below.path()), ["state"]);
        assert_eq!(values(&rows), vec![b"old".to_vec(); 9]);
    }
}

//! An in-memory row store for tests. Its writes are durable and atomic, and the power can fail at a
//! write.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{ReplaceError, RowChange, StateError};

/// Called before each write: whether the power stays on, and if not, whether the write still
/// completes.
pub(crate) type PowerSource = Arc<dyn Fn() -> PowerState + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PowerState {
    On,
    /// The power fails directly before the write.
    FailsBeforeWrite,
    /// The power fails directly after the write.
    FailsAfterWrite,
}

type Image = BTreeMap<Vec<u8>, Vec<u8>>;

/// Rows of the last write that is not durable yet, as they were before it.
type Unsynced = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Clones share their rows, so that a test can simulate a restart.
#[derive(Clone)]
pub(crate) struct MemoryRows {
    image: Arc<Mutex<Image>>,
    unsynced: Arc<Mutex<Unsynced>>,
    power: PowerSource,
}

impl std::fmt::Debug for MemoryRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryRows")
    }
}

impl MemoryRows {
    pub(crate) fn new(power: PowerSource) -> Self {
        Self { image: Arc::default(), unsynced: Arc::default(), power }
    }

    fn with_image<R>(&self, work: impl FnOnce(&mut Image) -> R) -> R {
        work(&mut self.image.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_unsynced<R>(&self, work: impl FnOnce(&mut Unsynced) -> R) -> R {
        work(&mut self.unsynced.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Deletes all rows.
    pub(crate) fn clear(&self) {
        self.with_unsynced(BTreeMap::clear);
        self.with_image(BTreeMap::clear);
    }

    /// Undoes the last write if it is not durable, as a power failure may.
    pub(crate) fn lose_unsynced(&self) {
        for (key, before) in self.with_unsynced(std::mem::take) {
            self.with_image(|image| match before {
                Some(value) => drop(image.insert(key, value)),
                None => drop(image.remove(&key)),
            });
        }
    }

    pub(super) fn finish_write(&self) -> Result<(), StateError> {
        if self.with_unsynced(|unsynced| unsynced.is_empty()) {
            return Ok(());
        }
        let supply = (self.power)();
        if supply != PowerState::FailsBeforeWrite {
            self.with_unsynced(BTreeMap::clear);
        }
        if supply == PowerState::On { Ok(()) } else { Err(StateError::Damaged("the power has failed")) }
    }

    /// Another store with the same power supply, empty.
    pub(super) fn beside(&self) -> Self {
        Self::new(Arc::clone(&self.power))
    }

    pub(super) fn replace_with(&self, fresh: &Self) -> Result<(), ReplaceError> {
        let failed = || StateError::Damaged("the power has failed");
        let supply = (self.power)();
        if supply == PowerState::FailsBeforeWrite {
            return Err(ReplaceError::Kept(failed()));
        }
        let rows = fresh.with_image(std::mem::take);
        self.with_unsynced(BTreeMap::clear);
        self.with_image(|image| *image = rows);
        if supply == PowerState::On { Ok(()) } else { Err(ReplaceError::Closed(failed())) }
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.with_image(|image| image.get(key).cloned())
    }

    pub(super) fn range(&self, from: &[u8], to: &[u8]) -> std::vec::IntoIter<(sled::IVec, sled::IVec)> {
        let copy = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.as_slice().into(), value.as_slice().into());
        let rows: Vec<_> =
            self.with_image(|image| image.range(from.to_vec()..to.to_vec()).map(copy).collect());
        rows.into_iter()
    }

    pub(super) fn len(&self) -> u64 {
        self.with_image(|image| image.len() as u64)
    }

    pub(super) fn write<'a>(
        &self,
        changes: impl Iterator<Item = (&'a [u8], RowChange<'a>)>,
    ) -> Result<(), StateError> {
        self.finish_write()?;
        let failed = || Err(StateError::Damaged("the power has failed"));
        let supply = (self.power)();
        if supply == PowerState::FailsBeforeWrite {
            return failed();
        }
        let mut unsynced = Unsynced::new();
        self.with_image(|image| {
            for (key, change) in changes {
                let before = match change {
                    RowChange::New(value) | RowChange::Put(value) => {
                        image.insert(key.to_vec(), value.to_vec())
                    }
                    RowChange::Remove => image.remove(key),
                };
                let is_new = matches!(change, RowChange::New(_));
                assert!(!is_new || before.is_none(), "new row {key:?} already exists");
                unsynced.insert(key.to_vec(), before);
            }
        });
        self.with_unsynced(|known| *known = unsynced);
        if supply == PowerState::On { Ok(()) } else { failed() }
    }
}

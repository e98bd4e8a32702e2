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

/// Clones share their rows, so that a test can simulate a restart.
#[derive(Clone)]
pub(crate) struct MemoryRows {
    image: Arc<Mutex<Image>>,
    power: PowerSource,
}

impl std::fmt::Debug for MemoryRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryRows")
    }
}

impl MemoryRows {
    pub(crate) fn new(power: PowerSource) -> Self {
        Self { image: Arc::default(), power }
    }

    fn with_image<R>(&self, work: impl FnOnce(&mut Image) -> R) -> R {
        work(&mut self.image.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Deletes all rows.
    pub(crate) fn clear(&self) {
        self.with_image(BTreeMap::clear);
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
        let failed = || Err(StateError::Damaged("the power has failed"));
        let supply = (self.power)();
        if supply == PowerState::FailsBeforeWrite {
            return failed();
        }
        self.with_image(|image| {
            for (key, change) in changes {
                match change {
                    RowChange::New(value) => {
                        let before = image.insert(key.to_vec(), value.to_vec());
                        assert!(before.is_none(), "new row {key:?} already exists");
                    }
                    RowChange::Put(value) => drop(image.insert(key.to_vec(), value.to_vec())),
                    RowChange::Remove => drop(image.remove(key)),
                }
            }
        });
        if supply == PowerState::On { Ok(()) } else { failed() }
    }
}

//! A checkpoint in preparation.

use super::checksum::{CHECKSUM, RowChecksum};
use super::{RowChange, StateError, bundles};
use crate::codec::Malformed;
use crate::limits;

/// A batch of changes, with the checksum of the rows after them.
pub(super) struct Change<'a> {
    db: &'a sled::Db,
    batch: sled::Batch,
    sum: RowChecksum,
}

impl<'a> Change<'a> {
    pub(super) fn new(db: &'a sled::Db, sum: RowChecksum) -> Self {
        Self { db, batch: sled::Batch::default(), sum }
    }

    /// Adds changes, which are in key order.
    pub(super) fn all<'b>(
        &mut self,
        changes: impl Iterator<Item = (&'b [u8], RowChange<'b>)>,
    ) -> Result<(), StateError> {
        let (mut bundle, mut in_bundle) = (Vec::new(), Vec::new());
        for (key, row) in changes {
            if !bundles::is_bundled(key) {
                self.row(key, row)?;
                continue;
            }
            let (at, within) = bundles::place(key);
            if at != bundle {
                debug_assert!(bundle < at, "{key:?} comes after a later row");
                self.bundle(&bundle, &in_bundle)?;
                in_bundle.clear();
                bundle = at;
            }
            in_bundle.push((within, row));
        }
        self.bundle(&bundle, &in_bundle)
    }

    /// The batch with the new checksum.
    pub(super) fn finish(mut self) -> (sled::Batch, RowChecksum) {
        self.batch.insert(CHECKSUM, self.sum.encode());
        (self.batch, self.sum)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        assert!(value.len() <= limits::STATE_VALUE_BYTES_MAX, "a value of {} bytes", value.len());
        self.sum.add(key, value);
        self.batch.insert(key, value);
    }

    /// Changes a row outside of bundles.
    fn row(&mut self, key: &[u8], row: RowChange<'_>) -> Result<(), StateError> {
        let before = match row {
            RowChange::New(_) => None,
            RowChange::Put(_) | RowChange::Remove => self.db.get(key).map_err(StateError::Sled)?,
        };
        if let Some(before) = &before {
            self.sum.subtract(key, before);
        }
        match row {
            RowChange::New(value) | RowChange::Put(value) => self.put(key, value),
            RowChange::Remove if before.is_some() => self.batch.remove(key),
            RowChange::Remove => {}
        }
        Ok(())
    }

    /// Changes rows of one bundle.
    fn bundle(&mut self, key: &[u8], rows: &[(u8, RowChange<'_>)]) -> Result<(), StateError> {
        if rows.is_empty() {
            return Ok(());
        }
        let before = self.db.get(key).map_err(StateError::Sled)?;
        let known = before.as_deref().unwrap_or_default();
        let value = bundles::change(known, rows).map_err(malformed_bundle)?;
        if known == value {
            return Ok(());
        }
        if before.is_some() {
            self.sum.subtract(key, known);
        }
        if value.is_empty() {
            self.batch.remove(key);
        } else {
            self.put(key, &value);
        }
        Ok(())
    }
}

fn malformed_bundle(_: Malformed) -> StateError {
    StateError::Damaged("the rows of a bundle cannot be told apart")
}

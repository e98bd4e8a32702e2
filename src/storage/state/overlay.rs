//! Changed rows in memory over the checkpointed rows in sled.
//!
//! Owns the rows that changed since the last checkpoint. A row that is created and deleted between
//! two checkpoints is never written. Invariant: sled only holds the rows of one position; a
//! checkpoint is one atomic batch.

use std::collections::BTreeMap;
use std::collections::btree_map::{self, Entry};
use std::iter::Peekable;
use std::ops::{Bound, ControlFlow};

use sled::IVec;

use crate::projections::Rows;
use crate::projections::rows::Visit;

use super::row_store::{RowChange, RowStore};

#[derive(Debug)]
enum OverlayRow {
    Value {
        bytes: Vec<u8>,
        /// The store has no such row, so its removal needs no write.
        fresh: bool,
    },
    Removed,
}

impl OverlayRow {
    fn bytes(&self) -> usize {
        match self {
            Self::Value { bytes, .. } => bytes.len(),
            Self::Removed => 0,
        }
    }
}

/// Changed rows over a row store. See the module.
#[derive(Debug)]
pub(crate) struct Overlay {
    base: RowStore,
    /// Most keys fit in an [`IVec`] without an allocation.
    rows: BTreeMap<IVec, OverlayRow>,
    /// Of the values in `rows`.
    bytes: usize,
}

impl Overlay {
    pub(crate) fn new(base: RowStore) -> Self {
        Self { base, rows: BTreeMap::new(), bytes: 0 }
    }

    pub(crate) fn base(&self) -> &RowStore {
        &self.base
    }

    /// Number of rows that changed since the last checkpoint.
    pub(crate) fn changed_rows(&self) -> usize {
        self.rows.len()
    }

    /// Bytes of the values that changed since the last checkpoint.
    pub(crate) fn changed_bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn base_mut(&mut self) -> &mut RowStore {
        &mut self.base
    }

    /// Writes all changed rows in one atomic batch; see [`RowStore::write`]. After an error the
    /// overlay still holds them.
    pub(crate) fn checkpoint(&mut self) -> Result<(), super::StateError> {
        let changes = self.rows.iter().map(|(key, slot)| {
            let change = match slot {
                OverlayRow::Value { bytes, fresh: true } => RowChange::New(bytes),
                OverlayRow::Value { bytes, fresh: false } => RowChange::Put(bytes),
                OverlayRow::Removed => RowChange::Remove,
            };
            (&**key, change)
        });
        self.base.write(changes)?;
        self.rows.clear();
        self.bytes = 0;
        Ok(())
    }

    fn range(&self, from: &[u8], to: &[u8]) -> btree_map::Range<'_, IVec, OverlayRow> {
        self.rows.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)))
    }

    fn merge_scan<'a, I>(
        base: I,
        mut over: Peekable<impl Iterator<Item = (&'a IVec, &'a OverlayRow)>>,
        before: fn(&[u8], &[u8]) -> bool,
        visit: Visit<'_>,
    ) where
        I: Iterator<Item = (IVec, IVec)>,
    {
        let mut base = base.peekable();
        loop {
            let take_over = match (base.peek(), over.peek()) {
                (None, None) => return,
                (None, Some(_)) => true,
                (Some(_), None) => false,
                (Some((below, _)), Some((above, _))) => {
                    if **above == *below {
                        base.next();
                        true
                    } else {
                        before(above, below)
                    }
                }
            };
            let flow = if take_over {
                match over.next() {
                    Some((key, OverlayRow::Value { bytes, .. })) => visit(key, bytes),
                    Some((_, OverlayRow::Removed)) | None => ControlFlow::Continue(()),
                }
            } else {
                base.next().map_or(ControlFlow::Continue(()), |(key, value)| visit(&key, &value))
            };
            if flow.is_break() {
                return;
            }
        }
    }
}

impl Rows for Overlay {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self.rows.get(key) {
            Some(OverlayRow::Value { bytes, .. }) => Some(bytes.clone()),
            Some(OverlayRow::Removed) => None,
            None => self.base.get(key),
        }
    }

    fn put(&mut self, key: &[u8], value: Vec<u8>) {
        self.bytes += value.len();
        match self.rows.get_mut(key) {
            Some(OverlayRow::Value { bytes, .. }) => {
                self.bytes -= bytes.len();
                *bytes = value;
            }
            Some(slot @ OverlayRow::Removed) => *slot = OverlayRow::Value { bytes: value, fresh: false },
            None => {
                self.rows.insert(key.into(), OverlayRow::Value { bytes: value, fresh: false });
            }
        }
    }

    fn put_new(&mut self, key: &[u8], value: Vec<u8>) {
        self.bytes += value.len();
        match self.rows.entry(key.into()) {
            Entry::Vacant(vacant) => {
                vacant.insert(OverlayRow::Value { bytes: value, fresh: true });
            }
            Entry::Occupied(mut occupied) => {
                let fresh = matches!(occupied.get(), OverlayRow::Value { fresh: true, .. });
                self.bytes -= occupied.insert(OverlayRow::Value { bytes: value, fresh }).bytes();
            }
        }
    }

    fn append(&mut self, key: &[u8], more: &[u8]) -> usize {
        if let Some(OverlayRow::Value { bytes, .. }) = self.rows.get_mut(key) {
            bytes.extend_from_slice(more);
            self.bytes += more.len();
            return bytes.len();
        }
        let mut bytes = self.get(key).unwrap_or_default();
        bytes.extend_from_slice(more);
        let length = bytes.len();
        self.put(key, bytes);
        length
    }

    fn remove(&mut self, key: &[u8]) {
        match self.rows.entry(key.into()) {
            Entry::Occupied(occupied) if matches!(occupied.get(), OverlayRow::Value { fresh: true, .. }) => {
                self.bytes -= occupied.remove().bytes();
            }
            Entry::Occupied(mut occupied) => {
                self.bytes -= occupied.insert(OverlayRow::Removed).bytes();
            }
            Entry::Vacant(vacant) => {
                vacant.insert(OverlayRow::Removed);
            }
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) {
        let over = self.range(from, to).peekable();
        Self::merge_scan(self.base.range(from, to), over, |a, b| a < b, visit);
    }

    fn scan_back(&self, from: &[u8], to: &[u8], visit: Visit<'_>) {
        let over = self.range(from, to).rev().peekable();
        Self::merge_scan(self.base.range(from, to).rev(), over, |a, b| a > b, visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares random operations and checkpoints with a plain map.
    #[test]
    fn overlay_behaves_like_a_plain_map() {
        for seed in 1..60_u64 {
            let directory = tempfile::tempdir().unwrap();
            let mut overlay = Overlay::new(RowStore::open(directory.path()).unwrap());
            let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
            let mut state = seed;
            let mut random = move |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            for step in 0..400 {
                // Rows alone and rows in bundles, with bounds of any length.
                let mut key = |length: usize| match random(2) {
                    0 => vec![b'K', random(40) as u8],
                    _ => [&[b'L', 0, 0, 0, random(80) as u8, 0][..length]].concat(),
                };
                let (mut from, mut to) = (key(4 + step % 3), key(4 + step % 3));
                if from > to {
                    (from, to) = (to, from);
                }
                let key = key(5);
                let value = vec![random(256) as u8; 3];
                match random(12) {
                    0..4 if !model.contains_key(&key) => {
                        overlay.put_new(&key, value.clone());
                        model.insert(key, value);
                    }
                    0..6 => {
                        overlay.put(&key, value.clone());
                        model.insert(key, value);
                    }
                    6..9 => {
                        overlay.remove(&key);
                        model.remove(&key);
                    }
                    9 => {
                        let length = overlay.append(&key, &value);
                        assert_eq!(length, Rows::append(&mut model, &key, &value), "seed {seed} step {step}");
                    }
                    10 => assert_eq!(overlay.get(&key), model.get(&key).cloned(), "seed {seed} step {step}"),
                    _ => overlay.checkpoint().unwrap(),
                }
                let changed = overlay.rows.values().map(OverlayRow::bytes).sum::<usize>();
                assert_eq!(overlay.changed_bytes(), changed, "seed {seed} step {step}");
                let collect = |from: &[u8], to: &[u8], back: bool| {
                    let mut list = Vec::new();
                    let mut visit = |key: &[u8], value: &[u8]| {
                        list.push((key.to_vec(), value.to_vec()));
                        ControlFlow::Continue(())
                    };
                    if back {
                        overlay.scan_back(from, to, &mut visit)
                    } else {
                        overlay.scan(from, to, &mut visit)
                    }
                    list
                };
                for (from, to) in [(&b"K"[..], &b"M"[..]), (&from, &to)] {
                    let rows = model.range(from.to_vec()..to.to_vec());
                    let mut expected: Vec<_> =
                        rows.map(|(key, value)| (key.clone(), value.clone())).collect();
                    assert_eq!(collect(from, to, false), expected, "seed {seed} step {step}");
                    expected.reverse();
                    assert_eq!(collect(from, to, true), expected, "seed {seed} step {step}");
                }
            }
        }
    }

    #[test]
    fn row_deleted_before_a_checkpoint_is_never_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut overlay = Overlay::new(RowStore::open(directory.path()).unwrap());
        overlay.put_new(b"K1", vec![1]);
        overlay.remove(b"K1");
        assert_eq!(overlay.changed_rows(), 0);
    }
}

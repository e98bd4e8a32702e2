//! The ordered map of the projections, and the encoding of its keys.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::domain::{EndpointNumber, Position, Timestamp};

/// Visitor of a row's key and value. Its result continues or ends the scan.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Rows in key order. A fallible implementation stores a failure and returns no row. Its owner
/// checks for a failure before it uses a result.
pub trait Rows {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>>;
    fn put(&mut self, key: &[u8], value: Vec<u8>);
    /// Like `put`, for a key that is known to be absent. A row that is removed before the next
    /// checkpoint is never written.
    fn put_new(&mut self, key: &[u8], value: Vec<u8>);
    /// Appends to the row's value, or creates it. Returns the new length.
    fn append(&mut self, key: &[u8], bytes: &[u8]) -> usize;
    fn remove(&mut self, key: &[u8]);
    /// Visits `from..to` in ascending order.
    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>);
    /// Visits `from..to` in descending order.
    fn scan_back(&self, from: &[u8], to: &[u8], visit: Visit<'_>);
}

/// The first row with this prefix.
pub fn first_with_prefix(rows: &dyn Rows, prefix: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut found = None;
    rows.scan(prefix, &after_prefix(prefix), &mut |key, value| {
        found = Some((key.to_vec(), value.to_vec()));
        ControlFlow::Break(())
    });
    found
}

/// The smallest key above all keys with this prefix.
#[must_use]
pub fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    unreachable!("every key starts with a tag below 255")
}

/// The tags of all rows of projections; see the table in [`projections`](super). Verification
/// reports rows with other tags.
pub const TAGS: &[u8] = b"DPWEFHOMXxoSVIGJLRTBQUyjaut";

/// Key builder: a tag, then big-endian numbers, so that byte order is number order.
#[derive(Clone, Debug)]
pub struct Key(pub Vec<u8>);

impl Key {
    #[must_use]
    pub fn new(tag: u8) -> Self {
        debug_assert!(TAGS.contains(&tag), "the tag {tag} is not in the list of tags");
        let mut bytes = Vec::with_capacity(28);
        bytes.push(tag);
        Self(bytes)
    }

    #[must_use]
    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    #[must_use]
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    #[must_use]
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    #[must_use]
    pub fn endpoint(self, endpoint: EndpointNumber) -> Self {
        self.u32(endpoint.0)
    }

    #[must_use]
    pub fn position(self, position: Position) -> Self {
        self.u64(position.0)
    }

    #[must_use]
    pub fn time(self, time: Timestamp) -> Self {
        self.u64(time.millis())
    }

    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

/// The number at `offset` of a key that [`Key`] built.
///
/// # Panics
/// When the key is too short. Only this crate writes keys.
#[must_use]
pub fn u64_at(key: &[u8], offset: usize) -> u64 {
    u64::from_be_bytes(key[offset..offset + 8].try_into().expect("eight bytes"))
}

/// The endpoint number at `offset` of a key that [`Key`] built.
///
/// # Panics
/// When the key is too short. Only this crate writes keys.
#[must_use]
pub fn endpoint_at(key: &[u8], offset: usize) -> EndpointNumber {
    EndpointNumber(u32::from_be_bytes(key[offset..offset + 4].try_into().expect("four bytes")))
}

/// Rows in memory only.
impl Rows for BTreeMap<Vec<u8>, Vec<u8>> {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        Self::get(self, key).cloned()
    }

    fn put(&mut self, key: &[u8], value: Vec<u8>) {
        self.insert(key.to_vec(), value);
    }

    fn put_new(&mut self, key: &[u8], value: Vec<u8>) {
        self.insert(key.to_vec(), value);
    }

    fn append(&mut self, key: &[u8], bytes: &[u8]) -> usize {
        let value = self.entry(key.to_vec()).or_default();
        value.extend_from_slice(bytes);
        value.len()
    }

    fn remove(&mut self, key: &[u8]) {
        Self::remove(self, key);
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) {
        for (key, value) in self.range(from.to_vec()..to.to_vec()) {
            if visit(key, value).is_break() {
                return;
            }
        }
    }

    fn scan_back(&self, from: &[u8], to: &[u8], visit: Visit<'_>) {
        for (key, value) in self.range(from.to_vec()..to.to_vec()).rev() {
            if visit(key, value).is_break() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tag_is_in_the_table_once() {
        let rows = include_str!("mod.rs").lines().filter_map(|line| line.strip_prefix("//! | `"));
        let mut described: Vec<u8> = rows.filter_map(|row| row.strip_suffix('|')?.bytes().next()).collect();
        let mut known = TAGS.to_vec();
        for list in [&mut described, &mut known] {
            list.sort_unstable();
        }
        assert_eq!(described, known);
        known.dedup();
        assert_eq!(known.len(), TAGS.len());
    }
}

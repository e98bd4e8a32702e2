//! Bundles: rows whose keys differ only in the last five bits, in one value of sled.
//!
//! sled spends some microseconds on each key of a batch, however small the change, and the rows of
//! a checkpoint are often neighbours: the lanes of one event's endpoints, the messages of a queue.
//! So the rows of some kinds share a value. Its key is that of its rows without the last five
//! bits. The value lists its rows in order: the five bits, the length, the row's value.

use std::ops::Range;

use sled::IVec;

use super::RowChange;
use crate::codec::{Malformed, Reader, put_varint};
use crate::limits;

/// Tags of the rows in bundles, with the length of their keys: lanes, due and leased deliveries,
/// details of deliveries.
const BUNDLED: [(u8, usize); 4] = [(b'D', 21), (b'G', 13), (b'L', 5), (b'P', 13)];
/// The bits of a key's last byte that tell the rows of a bundle apart.
const WITHIN: u8 = 0x1f;
/// Bound of a row in a bundle: the details of a delivery are the largest.
const ROW_BYTES_MAX: usize = 128 + limits::LAST_ERROR_BYTES_MAX + 10 * limits::ATTEMPTS_KEPT_MAX;
const _: () = assert!((WITHIN as usize + 1) * ROW_BYTES_MAX <= limits::STATE_VALUE_BYTES_MAX);

/// Length of the keys with this tag, if their rows are in bundles.
fn key_length(key: &[u8]) -> Option<usize> {
    let tag = key.first()?;
    BUNDLED.iter().find(|(bundled, _)| bundled == tag).map(|(_, length)| *length)
}

/// Whether rows with this key are in a bundle. The key of a bundle is one of them.
pub(super) fn is_bundled(key: &[u8]) -> bool {
    key_length(key) == Some(key.len())
}

/// The key of the bundle of a row, and the bits of the row in it.
pub(super) fn place(key: &[u8]) -> (Vec<u8>, u8) {
    let mut bundle = key.to_vec();
    let last = bundle.last_mut().expect("a bundled key has a tag");
    let within = *last & WITHIN;
    *last &= !WITHIN;
    (bundle, within)
}

/// The key in sled from which on all rows from `from` on are.
pub(super) fn first_key(from: &[u8]) -> Vec<u8> {
    match key_length(from) {
        Some(length) if from.len() >= length => place(&from[..length]).0,
        _ => from.to_vec(),
    }
}

/// The rows of a bundle: the bits of each and its bytes in the value.
struct Entries<'a> {
    value: &'a [u8],
    reader: Reader<'a>,
}

impl<'a> Entries<'a> {
    fn new(value: &'a [u8]) -> Self {
        Self { value, reader: Reader::new(value) }
    }

    fn read(&mut self) -> Result<(u8, Range<usize>), Malformed> {
        let within = self.reader.get_u8()?;
        let length = self.reader.get_bytes()?.len();
        let end = self.value.len() - self.reader.left();
        if within > WITHIN { Err(Malformed::Number) } else { Ok((within, end - length..end)) }
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<(u8, Range<usize>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.is_empty() { None } else { Some(self.read()) }
    }
}

/// The value of one row of a bundle.
pub(super) fn find(bundle: &[u8], within: u8) -> Result<Option<&[u8]>, Malformed> {
    for entry in Entries::new(bundle) {
        let (found, bytes) = entry?;
        if found == within {
            return Ok(Some(&bundle[bytes]));
        }
    }
    Ok(None)
}

/// The rows of a bundle, in order.
pub(super) fn rows(key: &[u8], bundle: &IVec) -> Result<Vec<(IVec, IVec)>, Malformed> {
    let mut key = key.to_vec();
    let row = |entry: Result<(u8, Range<usize>), Malformed>| {
        let (within, bytes) = entry?;
        if let Some(last) = key.last_mut() {
            *last = *last & !WITHIN | within;
        }
        Ok((IVec::from(&key[..]), bundle.subslice(bytes.start, bytes.len())))
    };
    Entries::new(bundle).map(row).collect()
}

/// Changes a bundle. The changes are in order. Returns its new value, which is empty without rows.
pub(super) fn change(before: &[u8], changes: &[(u8, RowChange<'_>)]) -> Result<Vec<u8>, Malformed> {
    let mut value = Vec::with_capacity(before.len() + 64);
    let mut put = |within: u8, bytes: &[u8]| {
        value.push(within);
        put_varint(&mut value, bytes.len() as u64);
        value.extend_from_slice(bytes);
    };
    let mut changes = changes.iter().peekable();
    let mut known = Entries::new(before).peekable();
    loop {
        let kept = match known.peek() {
            Some(Ok((within, _))) => Some(*within),
            Some(Err(error)) => return Err(*error),
            None => None,
        };
        let changed = changes.peek().map(|(within, _)| *within);
        if kept.is_none() && changed.is_none() {
            break;
        }
        if kept.is_some_and(|kept| changed.is_none_or(|changed| kept <= changed))
            && let Some(Ok((within, bytes))) = known.next()
            && changed != Some(within)
        {
            put(within, &before[bytes]);
        }
        if changed.is_some_and(|changed| kept.is_none_or(|kept| changed <= kept))
            && let Some((within, RowChange::New(bytes) | RowChange::Put(bytes))) = changes.next()
        {
            put(*within, bytes);
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_bundle_is_an_error() {
        let key = [b'L', 0, 0, 0, 32];
        let good = change(&[], &[(1, RowChange::New(b"ab")), (9, RowChange::Put(b""))]).unwrap();
        assert_eq!(good, [1, 2, b'a', b'b', 9, 0]);
        let listed = rows(&key, &IVec::from(&good[..])).unwrap();
        let row = |last: u8, value: &[u8]| (IVec::from(&[b'L', 0, 0, 0, last]), IVec::from(value));
        assert_eq!(listed, [row(33, b"ab"), row(41, b"")]);
        for bad in [&good[..1], &good[..3], &[32, 0]] {
            assert!(rows(&key, &IVec::from(bad)).is_err(), "{bad:?}");
            assert!(change(bad, &[]).is_err());
            assert!(find(bad, 31).is_err());
        }
    }
}

//! The checksum of all rows, which is a row too.

use crate::codec::{Reader, put_varint};

/// Key of the checksum row. No row of a projection has this tag.
pub(super) const CHECKSUM: &[u8] = b"0";
/// Approximate overhead of a row in a new file, in bytes (measured: 150 to 300 for rows of 40).
const ROW_OVERHEAD_BYTES: u64 = 300;

/// Checksum of all rows, independent of their order. A bundle counts as one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RowChecksum {
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) hash: u64,
}

impl RowChecksum {
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.rows += 1;
        self.bytes += (key.len() + value.len()) as u64;
        self.hash = self.hash.wrapping_add(row_hash(key, value));
    }

    /// Wraps below zero if the store returned wrong rows. The next start then detects a mismatch.
    pub(super) fn subtract(&mut self, key: &[u8], value: &[u8]) {
        self.rows = self.rows.wrapping_sub(1);
        self.bytes = self.bytes.wrapping_sub((key.len() + value.len()) as u64);
        self.hash = self.hash.wrapping_sub(row_hash(key, value));
    }

    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        for number in [self.rows, self.bytes, self.hash] {
            put_varint(&mut out, number);
        }
        out
    }

    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(value);
        let mut number = || reader.get_varint().ok();
        Some(Self { rows: number()?, bytes: number()?, hash: number()? })
    }

    /// Estimated maximum size of a new file with these rows.
    pub(super) fn fresh_bytes(self) -> u64 {
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

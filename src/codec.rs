//! Primitives of every byte layout that Balto writes.
//!
//! Owns: fixed little-endian integers, canonical LEB128 varints and length-prefixed bytes. Pure, no
//! I/O. Reading never panics and never allocates. Results borrow from the input. The reader checks
//! a count against the remaining bytes, so that callers can allocate for it safely.

/// Bytes that do not follow their layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("{needed} bytes needed, {left} left")]
    Truncated { needed: u64, left: usize },
    #[error("a number is not in its canonical form or does not fit its type")]
    Number,
    #[error("a text is not UTF-8")]
    Text,
    #[error("{0} bytes after the end")]
    Trailing(usize),
}

pub fn put_u8(out: &mut Vec<u8>, value: u8) {
    out.push(value);
}

pub fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// LEB128: seven bits per byte, lowest first, 1 to 10 bytes.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Writes a varint length, then the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Length of [`put_varint`]'s output.
#[must_use]
pub fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Reads values from the front of a slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    #[must_use]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Returns an error if bytes are left.
    pub fn finish(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::Trailing(self.rest.len())) }
    }

    pub fn get_exact(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let Some((head, rest)) = self.rest.split_at_checked(count) else {
            return Err(Malformed::Truncated { needed: count as u64, left: self.rest.len() });
        };
        self.rest = rest;
        Ok(head)
    }

    pub fn get_array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.get_exact(N)?);
        Ok(array)
    }

    pub fn get_u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.get_array()?))
    }

    pub fn get_u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.get_array()?))
    }

    pub fn get_u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.get_array()?))
    }

    pub fn get_u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.get_array()?))
    }

    /// Accepts only the shortest form of a number, so that each value has exactly one encoding.
    pub fn get_varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.get_u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed::Number);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return if byte == 0 && shift > 0 { Err(Malformed::Number) } else { Ok(value) };
            }
        }
        Err(Malformed::Number)
    }

    pub fn get_varint_u32(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.get_varint()?).map_err(|_| Malformed::Number)
    }

    pub fn get_bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.get_varint()?;
        match usize::try_from(length) {
            Ok(length) if length <= self.rest.len() => self.get_exact(length),
            _ => Err(Malformed::Truncated { needed: length, left: self.rest.len() }),
        }
    }

    pub fn get_str(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.get_bytes()?).map_err(|_| Malformed::Text)
    }

    /// Reads a count of items of at least `item_bytes_min` bytes each. A count that the remaining
    /// bytes cannot hold is an error.
    pub fn get_count(&mut self, item_bytes_min: usize) -> Result<usize, Malformed> {
        let count = self.get_varint()?;
        let needed = count.saturating_mul(item_bytes_min.max(1) as u64);
        if needed > self.rest.len() as u64 {
            return Err(Malformed::Truncated { needed, left: self.rest.len() });
        }
        Ok(count as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn varints_round_trip_with_the_predicted_length(value: u64, shift in 0..64_u32) {
            let value = value >> shift;
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.get_varint(), Ok(value));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            while !reader.is_empty() && reader.get_varint().is_ok() && reader.get_bytes().is_ok() {}
        }
    }

    #[test]
    fn non_canonical_numbers_are_rejected() {
        assert_eq!(Reader::new(&[0x80, 0x00]).get_varint(), Err(Malformed::Number));
        assert_eq!(Reader::new(&[0xff; 10]).get_varint(), Err(Malformed::Number));
        assert_eq!(Reader::new(&[0xff, 0xff]).get_varint(), Err(Malformed::Truncated { needed: 1, left: 0 }));
    }

    #[test]
    fn count_beyond_the_remaining_bytes_is_rejected() {
        let mut out = Vec::new();
        put_varint(&mut out, u64::MAX);
        out.extend_from_slice(&[0; 8]);
        assert!(matches!(Reader::new(&out).get_count(2), Err(Malformed::Truncated { .. })));
        assert!(matches!(Reader::new(&out).get_bytes(), Err(Malformed::Truncated { .. })));
    }
}

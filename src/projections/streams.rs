//! Heads of streams (`S`): version and times.

use super::rows::{Key, Rows};
use crate::codec::{Malformed, Reader, put_varint};
use crate::domain::{Position, StreamName, Tenant, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Version of the last event; versions are dense from 1.
    pub version: u64,
    pub first_at: Timestamp,
    pub last_at: Timestamp,
    pub last: Position,
}

/// The separator of tenant and stream is a byte that neither can contain.
fn key(tenant: &Tenant, stream: &StreamName) -> Vec<u8> {
    Key::new(b'S').bytes(tenant.as_str().as_bytes()).bytes(&[0]).bytes(stream.as_str().as_bytes()).0
}

pub fn head(rows: &dyn Rows, tenant: &Tenant, stream: &StreamName) -> Option<Head> {
    decode(&rows.get(&key(tenant, stream))?)
}

pub(super) fn decode(value: &[u8]) -> Option<Head> {
    let read = || -> Result<Head, Malformed> {
        let mut reader = Reader::new(value);
        Ok(Head {
            version: reader.get_varint()?,
            first_at: Timestamp::from_millis(reader.get_varint()?),
            last_at: Timestamp::from_millis(reader.get_varint()?),
            last: Position(reader.get_varint()?),
        })
    };
    read().ok()
}

/// Updates the head for the stream's next event.
pub fn advance(
    rows: &mut dyn Rows,
    tenant: &Tenant,
    stream: &StreamName,
    version: u64,
    at: Timestamp,
    position: Position,
) {
    let first_at = head(rows, tenant, stream).map_or(at, |head| head.first_at);
    let mut value = Vec::with_capacity(32);
    for number in [version, first_at.millis(), at.millis(), position.0] {
        put_varint(&mut value, number);
    }
    rows.put(&key(tenant, stream), value);
}

//! The bytes of leases.

use super::attempt::get_dead_reason;
use super::fields::{CodecError, get_time, put_time};
use crate::codec::{Reader, put_u8, put_varint};
use crate::domain::{EndedLease, LeaseEnd, LeaseKey, Position, TakenFrom, TakenMessage};

/// Event; 1 due then (time), 2 an earlier lease (position).
pub(super) fn put_taken(out: &mut Vec<u8>, taken: &TakenMessage) {
    put_varint(out, taken.event.0);
    match taken.from {
        TakenFrom::Due(due) => {
            put_u8(out, 1);
            put_time(out, due);
        }
        TakenFrom::Lease(lease) => {
            put_u8(out, 2);
            put_varint(out, lease.0);
        }
    }
}

pub(super) fn get_taken(r: &mut Reader<'_>) -> Result<TakenMessage, CodecError> {
    let event = Position(r.get_varint()?);
    let from = match r.get_u8()? {
        1 => TakenFrom::Due(get_time(r)?),
        2 => TakenFrom::Lease(Position(r.get_varint()?)),
        found => {
            return Err(CodecError::UnknownValue { what: "place of a message", found: u64::from(found) });
        }
    };
    Ok(TakenMessage { event, from })
}

pub(super) fn put_lease_key(out: &mut Vec<u8>, key: &LeaseKey) {
    put_varint(out, key.event.0);
    put_varint(out, key.lease.0);
}

pub(super) fn get_lease_key(r: &mut Reader<'_>) -> Result<LeaseKey, CodecError> {
    Ok(LeaseKey { event: Position(r.get_varint()?), lease: Position(r.get_varint()?) })
}

/// Event and lease; 1 acked, 2 released, 3 requeued (due time), 4 dead (reason).
pub(super) fn put_ended(out: &mut Vec<u8>, ended: &EndedLease) {
    put_lease_key(out, &ended.key);
    match ended.end {
        LeaseEnd::Acked => put_u8(out, 1),
        LeaseEnd::Released => put_u8(out, 2),
        LeaseEnd::Requeued(due) => {
            put_u8(out, 3);
            put_time(out, due);
        }
        LeaseEnd::Dead(reason) => {
            put_u8(out, 4);
            put_u8(out, reason.code());
        }
    }
}

pub(super) fn get_ended(r: &mut Reader<'_>) -> Result<EndedLease, CodecError> {
    let key = get_lease_key(r)?;
    let end = match r.get_u8()? {
        1 => LeaseEnd::Acked,
        2 => LeaseEnd::Released,
        3 => LeaseEnd::Requeued(get_time(r)?),
        4 => LeaseEnd::Dead(get_dead_reason(r)?),
        found => return Err(CodecError::UnknownValue { what: "end of a lease", found: u64::from(found) }),
    };
    Ok(EndedLease { key, end })
}

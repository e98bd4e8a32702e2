//! The bytes of the records about leases.

use super::attempt::get_dead_reason;
use super::fields::{
    CodecError, get_list, get_name, get_number, get_option, get_text, get_time, put_list, put_option,
    put_text, put_time,
};
use super::record::LOST_ANSWER_LAYOUT;
use crate::codec::{Reader, put_u8, put_varint};
use crate::domain::{
    EndedLease, EndpointNumber, LeaseEnd, LeaseKey, Position, Record, TakenFrom, TakenMessage, Timestamp,
    WorkerName,
};

/// Event; 1 due then (time), 2 an earlier lease (position).
fn put_taken(out: &mut Vec<u8>, taken: &TakenMessage) {
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

fn get_taken(r: &mut Reader<'_>) -> Result<TakenMessage, CodecError> {
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

fn put_lease_key(out: &mut Vec<u8>, key: &LeaseKey) {
    put_varint(out, key.event.0);
    put_varint(out, key.lease.0);
}

fn get_lease_key(r: &mut Reader<'_>) -> Result<LeaseKey, CodecError> {
    Ok(LeaseKey { event: Position(r.get_varint()?), lease: Position(r.get_varint()?) })
}

/// Event and lease; 1 acked, 2 released, 3 requeued (due time), 4 dead (reason), 5 answer lost (due
/// time?; layout 2 only).
fn put_ended(out: &mut Vec<u8>, ended: &EndedLease) {
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
        LeaseEnd::Lost(due) => {
            put_u8(out, 5);
            put_option(out, due.as_ref(), |out, due| put_time(out, *due));
        }
    }
}

fn get_ended(r: &mut Reader<'_>, layout: u8) -> Result<EndedLease, CodecError> {
    let key = get_lease_key(r)?;
    let end = match r.get_u8()? {
        1 => LeaseEnd::Acked,
        2 => LeaseEnd::Released,
        3 => LeaseEnd::Requeued(get_time(r)?),
        4 => LeaseEnd::Dead(get_dead_reason(r)?),
        5 if layout >= LOST_ANSWER_LAYOUT => LeaseEnd::Lost(get_option(r, get_time)?),
        found => return Err(CodecError::UnknownValue { what: "end of a lease", found: u64::from(found) }),
    };
    Ok(EndedLease { key, end })
}

pub(super) fn put_messages_leased(
    out: &mut Vec<u8>,
    queue: EndpointNumber,
    messages: &[TakenMessage],
    (until, at): (Timestamp, Timestamp),
    worker: Option<&WorkerName>,
) {
    put_varint(out, u64::from(queue.0));
    put_list(out, messages, put_taken);
    put_time(out, until);
    put_time(out, at);
    put_option(out, worker, |out, worker| put_text(out, worker.as_str()));
}

pub(super) fn get_messages_leased(r: &mut Reader<'_>) -> Result<Record, CodecError> {
    Ok(Record::MessagesLeased {
        queue: get_number(r)?,
        messages: get_list(r, 3, get_taken)?,
        until: get_time(r)?,
        at: get_time(r)?,
        worker: get_option(r, get_name)?,
    })
}

pub(super) fn put_leases_ended(
    out: &mut Vec<u8>,
    queue: EndpointNumber,
    ends: &[EndedLease],
    at: Timestamp,
    reason: Option<&str>,
) {
    put_varint(out, u64::from(queue.0));
    put_list(out, ends, put_ended);
    put_time(out, at);
    put_option(out, reason.as_ref(), |out, reason| put_text(out, reason));
}

/// Whether the record has an end that layout 1 does not know.
pub(super) fn has_lost_answer(ends: &[EndedLease]) -> bool {
    ends.iter().any(|ended| matches!(ended.end, LeaseEnd::Lost(_)))
}

pub(super) fn get_leases_ended(r: &mut Reader<'_>, layout: u8) -> Result<Record, CodecError> {
    let queue = get_number(r)?;
    let ends = get_list(r, 3, |r| get_ended(r, layout))?;
    if layout >= LOST_ANSWER_LAYOUT && !has_lost_answer(&ends) {
        return Err(CodecError::UnknownValue { what: "number of lost answers", found: 0 });
    }
    Ok(Record::LeasesEnded { queue, ends, at: get_time(r)?, reason: get_option(r, get_text)? })
}

pub(super) fn put_leases_extended(
    out: &mut Vec<u8>,
    queue: EndpointNumber,
    leases: &[LeaseKey],
    (until, at): (Timestamp, Timestamp),
) {
    put_varint(out, u64::from(queue.0));
    put_list(out, leases, put_lease_key);
    put_time(out, until);
    put_time(out, at);
}

pub(super) fn get_leases_extended(r: &mut Reader<'_>) -> Result<Record, CodecError> {
    Ok(Record::LeasesExtended {
        queue: get_number(r)?,
        leases: get_list(r, 2, get_lease_key)?,
        until: get_time(r)?,
        at: get_time(r)?,
    })
}

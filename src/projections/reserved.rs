//! Reserved rates (`R`): the latest reservation of each live endpoint that has a rate.
//!
//! A crash can lose the outcome of a request in flight. Its part of the rate was reserved before,
//! so the restarted daemon counts it.

use super::rows::{Key, Rows};
use crate::codec::{Malformed, Reader, put_varint};
use crate::domain::{EndpointNumber, Position, RateLimit, Reservation, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    pub reservation: Reservation,
    /// Position of its record.
    pub position: Position,
}

fn key(endpoint: EndpointNumber) -> Vec<u8> {
    Key::new(b'R').endpoint(endpoint).0
}

/// The endpoint's latest reservation.
pub fn latest(rows: &dyn Rows, endpoint: EndpointNumber) -> Option<Reserved> {
    rows.get(&key(endpoint)).and_then(|value| decode(&value).ok())
}

/// Stores a reservation unless a later one is stored: records may come in either order.
pub(super) fn keep_latest(rows: &mut dyn Rows, reserved: &Reserved, endpoint: EndpointNumber) {
    if latest(rows, endpoint).is_none_or(|known| reserved.reservation.is_after(&known.reservation)) {
        let Reservation { revision, rate, full_at } = reserved.reservation;
        let per = u64::try_from(rate.per.as_nanos()).unwrap_or(u64::MAX);
        let mut value = Vec::with_capacity(32);
        for number in [
            reserved.position.0,
            revision.0,
            u64::from(rate.limit),
            per,
            u64::from(rate.burst),
            full_at.millis(),
        ] {
            put_varint(&mut value, number);
        }
        rows.put(&key(endpoint), value);
    }
}

/// Removes the reservation of a deleted endpoint.
pub(super) fn forget(rows: &mut dyn Rows, endpoint: EndpointNumber) {
    rows.remove(&key(endpoint));
}

fn decode(value: &[u8]) -> Result<Reserved, Malformed> {
    let mut reader = Reader::new(value);
    let position = Position(reader.get_varint()?);
    let revision = Position(reader.get_varint()?);
    let limit = reader.get_varint_u32()?;
    let per = std::time::Duration::from_nanos(reader.get_varint()?);
    let rate = RateLimit { limit, per, burst: reader.get_varint_u32()? };
    let full_at = Timestamp::from_millis(reader.get_varint()?);
    Ok(Reserved { reservation: Reservation { revision, rate, full_at }, position })
}

//! Dead letters (`X`), in order of death.

use std::ops::ControlFlow;

use super::rows::{Key, Rows, endpoint_at, u64_at};
use super::states::{reason, reason_code};
use crate::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::domain::{DeadReason, DeliveryKey, Position, Timestamp};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    pub delivery: DeliveryKey,
    /// Position of the record that ended the delivery.
    pub death: Position,
    pub died_at: Timestamp,
    pub reason: DeadReason,
    pub tenant: Box<str>,
    pub event_type: Box<str>,
}

fn key(death: Position, delivery: DeliveryKey) -> Vec<u8> {
    Key::new(b'X').position(death).position(delivery.event).endpoint(delivery.endpoint).0
}

pub fn put(rows: &mut dyn Rows, letter: &Letter) {
    let mut value = Vec::with_capacity(64);
    put_varint(&mut value, letter.died_at.millis());
    value.push(reason_code(letter.reason));
    put_bytes(&mut value, letter.tenant.as_bytes());
    put_bytes(&mut value, letter.event_type.as_bytes());
    rows.put_new(&key(letter.death, letter.delivery), value);
}

pub fn remove(rows: &mut dyn Rows, death: Position, delivery: DeliveryKey) {
    rows.remove(&key(death, delivery));
}

fn decode(key: &[u8], value: &[u8]) -> Result<Letter, Malformed> {
    let mut reader = Reader::new(value);
    Ok(Letter {
        death: Position(u64_at(key, 1)),
        delivery: DeliveryKey { event: Position(u64_at(key, 9)), endpoint: endpoint_at(key, 17) },
        died_at: Timestamp::from_millis(reader.get_varint()?),
        reason: reason(reader.get_u8()?)?,
        tenant: reader.get_str()?.into(),
        event_type: reader.get_str()?.into(),
    })
}

/// Visits dead letters older than `before` (all if `None`), newest first.
pub fn newest_first(
    rows: &dyn Rows,
    before: Option<(Position, DeliveryKey)>,
    visit: &mut dyn FnMut(Letter) -> ControlFlow<()>,
) {
    let to = before.map_or_else(|| vec![b'X' + 1], |(death, delivery)| key(death, delivery));
    rows.scan_back(b"X", &to, &mut |key, value| match decode(key, value) {
        Ok(letter) => visit(letter),
        Err(_) => ControlFlow::Continue(()),
    });
}

//! Leases (`G`): the last lease of each pending message that a worker has taken.
//!
//! Invariants: a pending delivery has either a `G` row or a place in `D` or `W` alone. The `W` row
//! of an ordered message stays during its lease, so that the messages behind it wait. The lease of
//! the row is not yet in the history of the delivery (`P`), unless it was released.
//!
//! In the history, the records that say how long a lease lasted precede it: the last extension, and
//! the record that ended its message. So the last position is that of a lease unless its worker
//! ended it.

use std::ops::ControlFlow;

use super::pending::Row;
use super::rows::{Key, Rows, after_prefix, u64_at};
use crate::codec::{Malformed, Reader, put_varint};
use crate::domain::{DeliveryKey, EndpointNumber, HeldLease, Position, Timestamp};

/// Value of a `G` row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    pub position: Position,
    pub since: Timestamp,
    pub until: Timestamp,
    /// The record of the last extension; 0 if there is none.
    pub extension: Position,
    pub is_released: bool,
    /// The progress counts this lease, unless it is released.
    pub row: Row,
}

impl LeaseRow {
    #[must_use]
    pub fn held(&self) -> HeldLease {
        let Self { position, since, until, is_released, row, .. } = *self;
        HeldLease { position, since, until, is_released, progress: row.progress }
    }

    /// The records of the lease for the history. None if it was released: then they are there.
    pub fn history(&self) -> impl Iterator<Item = Position> + use<> {
        let extension = Some(self.extension).filter(|extension| *extension != Position(0));
        let is_released = self.is_released;
        extension.into_iter().chain([self.position]).filter(move |_| !is_released)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        put_varint(&mut out, self.position.0);
        put_varint(&mut out, self.since.millis());
        put_varint(&mut out, self.until.millis());
        put_varint(&mut out, self.extension.0);
        out.push(u8::from(self.is_released));
        self.row.encode(&mut out);
        out
    }

    fn decode(value: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(value);
        Ok(Self {
            position: Position(reader.get_varint()?),
            since: Timestamp::from_millis(reader.get_varint()?),
            until: Timestamp::from_millis(reader.get_varint()?),
            extension: Position(reader.get_varint()?),
            is_released: reader.get_u8()? == 1,
            row: Row::decode(&mut reader)?,
        })
    }
}

fn lease_key(delivery: DeliveryKey) -> Vec<u8> {
    Key::new(b'G').endpoint(delivery.endpoint).position(delivery.event).0
}

/// The last lease of a pending message, if a worker has taken it.
pub fn get(rows: &dyn Rows, delivery: DeliveryKey) -> Option<LeaseRow> {
    rows.get(&lease_key(delivery)).and_then(|value| LeaseRow::decode(&value).ok())
}

/// Adds the lease of a message without one.
pub fn put_new(rows: &mut dyn Rows, delivery: DeliveryKey, lease: &LeaseRow) {
    rows.put_new(&lease_key(delivery), lease.encode());
}

pub fn put(rows: &mut dyn Rows, delivery: DeliveryKey, lease: &LeaseRow) {
    rows.put(&lease_key(delivery), lease.encode());
}

pub fn remove(rows: &mut dyn Rows, delivery: DeliveryKey) {
    rows.remove(&lease_key(delivery));
}

/// Leases of a queue after an event, by event.
pub fn of_queue(
    rows: &dyn Rows,
    queue: EndpointNumber,
    after: Position,
    limit: usize,
) -> Vec<(Position, HeldLease)> {
    let prefix = Key::new(b'G').endpoint(queue).0;
    let from = lease_key(DeliveryKey { event: after.next(), endpoint: queue });
    let mut found = Vec::new();
    rows.scan(&from, &after_prefix(&prefix), &mut |key, value| {
        if found.len() == limit {
            return ControlFlow::Break(());
        }
        found.extend(LeaseRow::decode(value).map(|lease| (Position(u64_at(key, 5)), lease.held())));
        ControlFlow::Continue(())
    });
    found
}

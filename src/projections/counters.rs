//! Counters of each endpoint's lane (`L`), with failures of its receiver and the `Retry-After`.

use std::ops::ControlFlow;

use super::failing::Failing;
use super::rows::{Key, Rows, endpoint_at};
use crate::codec::{Reader, put_varint};
use crate::domain::{EndpointNumber, Position, Timestamp};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lane {
    pub pending: u64,
    /// Pending deliveries behind another one of the same ordering key.
    pub waiting: u64,
    pub dead: u64,
    /// Failed attempts since the last success, or since an operator changed or opened the endpoint.
    pub failing: Option<Failing>,
    /// Position of that success, or zero. Retention keeps its record for a rebuild.
    pub last_success: Position,
    /// End of the receiver's `Retry-After`, and its record, which retention keeps for a rebuild.
    pub hold: Option<(Timestamp, Position)>,
    /// Position of the record that last opened the endpoint or moved it to another host. Holds of
    /// earlier revisions have ended.
    pub opened: Position,
}

pub fn lane(rows: &dyn Rows, endpoint: EndpointNumber) -> Lane {
    rows.get(&Key::new(b'L').endpoint(endpoint).0).map_or_else(Lane::default, |value| decode(&value))
}

pub(super) fn decode(value: &[u8]) -> Lane {
    let mut reader = Reader::new(value);
    let mut number = || reader.get_varint().unwrap_or(0);
    let mut lane = Lane {
        pending: number(),
        waiting: number(),
        dead: number(),
        last_success: Position(number()),
        opened: Position(number()),
        hold: Some((Timestamp::from_millis(number()), Position(number()))),
        failing: None,
    };
    lane.hold = lane.hold.filter(|(_, position)| *position != Position(0));
    if !reader.is_empty() {
        lane.failing = Failing::decode(&mut reader).ok();
    }
    lane
}

pub(super) fn put(rows: &mut dyn Rows, endpoint: EndpointNumber, counters: &Lane) {
    let mut value = Vec::with_capacity(16);
    let Lane { pending, waiting, dead, failing, last_success, hold, opened } = *counters;
    let (until, held_by) = hold.unwrap_or_default();
    for number in [pending, waiting, dead, last_success.0, opened.0, until.millis(), held_by.0] {
        put_varint(&mut value, number);
    }
    if let Some(failing) = failing {
        failing.encode(&mut value);
    }
    rows.put(&Key::new(b'L').endpoint(endpoint).0, value);
}

/// Endpoints with counters, from `first` on, in order.
pub fn endpoints_from(rows: &dyn Rows, first: EndpointNumber, limit: usize) -> Vec<EndpointNumber> {
    let mut list = Vec::new();
    rows.scan(&Key::new(b'L').endpoint(first).0, b"M", &mut |key, _| {
        list.push(endpoint_at(key, 1));
        if list.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    list
}

/// Counters of all endpoints, by number.
pub fn all(rows: &dyn Rows) -> Vec<(EndpointNumber, Lane)> {
    let mut list = Vec::new();
    rows.scan(b"L", b"M", &mut |key, value| {
        list.push((endpoint_at(key, 1), decode(value)));
        ControlFlow::Continue(())
    });
    list
}

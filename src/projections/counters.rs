//! How many deliveries wait, per endpoint (`L`) and in all.

use std::ops::ControlFlow;

use super::rows::{Key, Rows, endpoint_at};
use crate::codec::{Reader, put_varint};
use crate::domain::{EndpointNumber, Position, Timestamp};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lane {
    pub pending: u64,
    /// Of `pending`: behind another delivery of the same ordering key.
    pub waiting: u64,
    pub dead: u64,
    /// Start of the first attempt that failed since the last success.
    pub failing_since: Option<Timestamp>,
    /// Position of that success, or zero: its record has to stay, or a rebuild would not know of it.
    pub last_success: Position,
}

pub fn lane(rows: &dyn Rows, endpoint: EndpointNumber) -> Lane {
    rows.get(&Key::new(b'L').endpoint(endpoint).0).map_or_else(Lane::default, |value| decode(&value))
}

pub(super) fn decode(value: &[u8]) -> Lane {
    let mut reader = Reader::new(value);
    let mut number = || reader.get_varint().unwrap_or(0);
    Lane {
        pending: number(),
        waiting: number(),
        dead: number(),
        failing_since: Some(number()).filter(|millis| *millis != 0).map(Timestamp::from_millis),
        last_success: Position(number()),
    }
}

pub(super) fn put(rows: &mut dyn Rows, endpoint: EndpointNumber, counters: &Lane) {
    let mut value = Vec::with_capacity(16);
    let failing_since = counters.failing_since.map_or(0, Timestamp::millis);
    let Lane { pending, waiting, dead, last_success, .. } = *counters;
    for number in [pending, waiting, dead, failing_since, last_success.0] {
        put_varint(&mut value, number);
    }
    rows.put(&Key::new(b'L').endpoint(endpoint).0, value);
}

/// Endpoints that have counters, from a number on, in order.
pub fn from(rows: &dyn Rows, first: EndpointNumber, limit: usize) -> Vec<EndpointNumber> {
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

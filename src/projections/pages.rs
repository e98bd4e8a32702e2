//! Indexes of events (`E`) and delivery states (`O`), in blocks instead of a row per event.
//!
//! A page covers [`PAGE_POSITIONS`] journal positions. A checkpoint adds one block to a page, or
//! several if a block reaches its bound. Readers merge the blocks of a page in order. Of several
//! entries for one delivery, the last is valid.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::pending::{OrderHash, positions, put_positions};
use super::rows::{Key, Rows, after_prefix};
use crate::codec::{Malformed, Reader, put_bytes, put_u16, put_u64, put_varint};
use crate::domain::{DeadReason, DeliveryKey, DeliveryState, EndpointNumber, Position, Timestamp};
use crate::failpoints::{self, Bound};
use crate::limits;

/// Journal positions per page.
pub const PAGE_POSITIONS: u64 = 256;

/// [`PAGE_POSITIONS`]; a simulation uses smaller pages.
fn page_positions() -> u64 {
    failpoints::bound(Bound::PagePositions, PAGE_POSITIONS as usize) as u64
}

/// The page of a position.
#[must_use]
pub fn page_of(position: Position) -> u64 {
    position.0 / page_positions()
}

/// The first position of a page.
#[must_use]
pub fn first_position(page: u64) -> u64 {
    page * page_positions()
}

/// Size in bytes at which a block is closed.
const BLOCK_BYTES_TARGET: usize = 8 * 1024;
/// The largest entry: an event with the most targets (five bytes each) and the longest names.
const ENTRY_BYTES_MAX: usize = 64 * 1024;
const _: () = assert!(5 * limits::EVENT_TARGETS_MAX + 4 * limits::NAME_BYTES_MAX < ENTRY_BYTES_MAX);
const _: () = assert!(BLOCK_BYTES_TARGET + ENTRY_BYTES_MAX <= limits::STATE_VALUE_BYTES_MAX);

/// Index entry of an event, for lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventEntry {
    pub position: Position,
    pub accepted_at: Timestamp,
    pub first_due: Timestamp,
    pub tenant: Box<str>,
    pub event_type: Box<str>,
    /// Stream, and the event's version in it.
    pub stream: Option<(Box<str>, u64)>,
    pub order: OrderHash,
    /// See [`Event::stored_bytes`](crate::domain::Event::stored_bytes).
    pub bytes: u64,
    pub targets: Vec<EndpointNumber>,
}

impl EventEntry {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96);
        put_varint(&mut out, self.position.0);
        put_varint(&mut out, self.accepted_at.millis());
        put_varint(&mut out, self.first_due.millis());
        put_bytes(&mut out, self.tenant.as_bytes());
        put_bytes(&mut out, self.event_type.as_bytes());
        let (stream, version) = self.stream.as_ref().map_or(("", 0), |(stream, version)| (stream, *version));
        put_bytes(&mut out, stream.as_bytes());
        put_varint(&mut out, version);
        put_u64(&mut out, self.order);
        put_varint(&mut out, self.bytes);
        put_varint(&mut out, self.targets.len() as u64);
        for target in &self.targets {
            put_varint(&mut out, u64::from(target.0));
        }
        out
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let position = Position(reader.get_varint()?);
        let accepted_at = Timestamp::from_millis(reader.get_varint()?);
        let first_due = Timestamp::from_millis(reader.get_varint()?);
        let tenant = reader.get_str()?.into();
        let event_type = reader.get_str()?.into();
        let (stream, version) = (reader.get_str()?, reader.get_varint()?);
        let stream = Some((stream.into(), version)).filter(|_| !stream.is_empty());
        let order = reader.get_u64()?;
        let bytes = reader.get_varint()?;
        let count = reader.get_varint()?;
        let mut targets = Vec::new();
        for _ in 0..count {
            targets.push(EndpointNumber(reader.get_varint_u32()?));
        }
        Ok(Self { position, accepted_at, first_due, tenant, event_type, stream, order, bytes, targets })
    }
}

/// A change of a delivery's state: its end, or its revival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateEntry {
    pub delivery: DeliveryKey,
    pub state: DeliveryState,
    pub at: Timestamp,
    /// Position of the record of the death, for dead deliveries.
    pub death: Position,
    pub last_status: Option<u16>,
    pub attempts_made: u32,
    /// Positions of the attempts, oldest first. Empty after a revival: then `P` has them.
    pub attempts: Vec<Position>,
}

impl StateEntry {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(40);
        put_varint(&mut out, self.delivery.event.0);
        put_varint(&mut out, u64::from(self.delivery.endpoint.0));
        out.push(state_code(self.state));
        put_varint(&mut out, self.at.millis());
        put_varint(&mut out, self.death.0);
        put_u16(&mut out, self.last_status.unwrap_or(0));
        put_varint(&mut out, u64::from(self.attempts_made));
        put_positions(&mut out, &self.attempts);
        out
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let event = Position(reader.get_varint()?);
        let endpoint = EndpointNumber(reader.get_varint_u32()?);
        Ok(Self {
            delivery: DeliveryKey { event, endpoint },
            state: state(reader.get_u8()?)?,
            at: Timestamp::from_millis(reader.get_varint()?),
            death: Position(reader.get_varint()?),
            last_status: Some(reader.get_u16()?).filter(|status| *status != 0),
            attempts_made: reader.get_varint_u32()?,
            attempts: positions(reader)?,
        })
    }
}

fn state_code(state: DeliveryState) -> u8 {
    match state {
        DeliveryState::Pending => 0,
        DeliveryState::Delivered => 1,
        DeliveryState::Cancelled => 2,
        DeliveryState::Purged => 3,
        DeliveryState::Dead(reason) => 16 + reason_code(reason),
    }
}

fn state(code: u8) -> Result<DeliveryState, Malformed> {
    match code {
        0 => Ok(DeliveryState::Pending),
        1 => Ok(DeliveryState::Delivered),
        2 => Ok(DeliveryState::Cancelled),
        3 => Ok(DeliveryState::Purged),
        16.. => reason(code - 16).map(DeliveryState::Dead),
        _ => Err(Malformed::Number),
    }
}

/// Encodes a reason in rows: its code minus one.
#[must_use]
pub fn reason_code(reason: DeadReason) -> u8 {
    reason.code() - 1
}

/// Decodes the result of [`reason_code`].
///
/// # Errors
/// For an unknown code.
pub fn reason(code: u8) -> Result<DeadReason, Malformed> {
    code.checked_add(1).and_then(DeadReason::from_code).ok_or(Malformed::Number)
}

/// The open block of each page since the last checkpoint.
#[derive(Debug, Default)]
pub struct Blocks {
    chunks: HashMap<(u8, u64), u16>,
}

impl Blocks {
    /// Closes all blocks. Call this at each checkpoint.
    pub fn close(&mut self) {
        self.chunks.clear();
    }

    fn append(&mut self, rows: &mut dyn Rows, tag: u8, checkpoint: u64, position: Position, entry: &[u8]) {
        let page = page_of(position);
        let chunk = self.chunks.entry((tag, page)).or_insert(0);
        let key = Key::new(tag).u64(page).u64(checkpoint).u16(*chunk).0;
        if rows.append(&key, entry) >= BLOCK_BYTES_TARGET {
            *chunk += 1;
        }
    }

    pub fn add_event(&mut self, rows: &mut dyn Rows, checkpoint: u64, entry: &EventEntry) {
        self.append(rows, b'E', checkpoint, entry.position, &entry.encode());
    }

    pub fn add_state(&mut self, rows: &mut dyn Rows, checkpoint: u64, entry: &StateEntry) {
        self.append(rows, b'O', checkpoint, entry.delivery.event, &entry.encode());
    }
}

fn entries<T>(
    rows: &dyn Rows,
    tag: u8,
    page: u64,
    decode: fn(&mut Reader<'_>) -> Result<T, Malformed>,
) -> Vec<T> {
    let prefix = Key::new(tag).u64(page).0;
    let mut list = Vec::new();
    rows.scan(&prefix, &after_prefix(&prefix), &mut |_, value| {
        let mut reader = Reader::new(value);
        while !reader.is_empty() {
            match decode(&mut reader) {
                Ok(entry) => list.push(entry),
                Err(_) => break,
            }
        }
        ControlFlow::Continue(())
    });
    list
}

/// The page's events, in order.
pub fn events(rows: &dyn Rows, page: u64) -> Vec<EventEntry> {
    entries(rows, b'E', page, EventEntry::decode)
}

/// The last state entry of each delivery. A delivery without one is pending since its acceptance.
pub fn states(rows: &dyn Rows, page: u64) -> HashMap<DeliveryKey, StateEntry> {
    entries(rows, b'O', page, StateEntry::decode).into_iter().map(|entry| (entry.delivery, entry)).collect()
}

/// The entry of one event.
pub fn event(rows: &dyn Rows, position: Position) -> Option<EventEntry> {
    events(rows, page_of(position)).into_iter().find(|entry| entry.position == position)
}

/// The last state entry of one delivery.
pub fn state_of(rows: &dyn Rows, delivery: DeliveryKey) -> Option<StateEntry> {
    let page = entries(rows, b'O', page_of(delivery.event), StateEntry::decode);
    page.into_iter().rfind(|entry| entry.delivery == delivery)
}

/// The last page at or below `page` that has events.
pub fn page_at_or_below(rows: &dyn Rows, page: u64) -> Option<u64> {
    let mut found = None;
    let to = Key::new(b'E').u64(page).u64(u64::MAX).u64(u64::MAX).0;
    rows.scan_back(b"E", &to, &mut |key, _| {
        found = Some(super::rows::u64_at(key, 1));
        ControlFlow::Break(())
    });
    found
}

/// The first page at or above `page` that has events.
pub fn page_at_or_above(rows: &dyn Rows, page: u64) -> Option<u64> {
    let mut found = None;
    rows.scan(&Key::new(b'E').u64(page).0, b"F", &mut |key, _| {
        found = Some(super::rows::u64_at(key, 1));
        ControlFlow::Break(())
    });
    found
}

/// Deletes the events of a page and the states of their deliveries.
pub fn remove_page(rows: &mut dyn Rows, page: u64) {
    for tag in [b'E', b'O'] {
        let prefix = Key::new(tag).u64(page).0;
        let mut keys = Vec::new();
        rows.scan(&prefix, &after_prefix(&prefix), &mut |key, _| {
            keys.push(key.to_vec());
            ControlFlow::Continue(())
        });
        for key in keys {
            rows.remove(&key);
        }
    }
}

//! Index of events (`E`), in blocks instead of a row per event, and targets of wide events (`F`).
//!
//! A page covers [`PAGE_POSITIONS`] journal positions. A checkpoint adds one block to a page, or
//! several if a block reaches its bound. Readers merge the blocks of a page in order. Of
//! several entries for one event, the last is valid. They differ only in the event's size and
//! erasure. Invariant: an entry is small, so that finding one costs the same for events with one
//! and with many targets.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::ControlFlow;

use super::pending::OrderId;
use super::rows::{Key, Rows, after_prefix};
use super::tenant_pages::OpenPage;
use crate::codec::{Malformed, Reader, put_bytes, put_u32, put_u64, put_varint};
use crate::domain::{EndpointNumber, Position, Timestamp};
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
    page.saturating_mul(page_positions())
}

/// The last position of a page.
#[must_use]
pub fn last_position(page: u64) -> Position {
    Position(page.saturating_mul(page_positions()).saturating_add(page_positions() - 1))
}

/// Size in bytes at which a block is closed.
const BLOCK_BYTES_TARGET: usize = 8 * 1024;
/// The largest entry.
const ENTRY_BYTES_MAX: usize = 64 * 1024;
const _: () = assert!(5 * TARGETS_LISTED_MAX + 4 * limits::NAME_BYTES_MAX < ENTRY_BYTES_MAX);
const _: () = assert!(BLOCK_BYTES_TARGET + ENTRY_BYTES_MAX <= limits::STATE_VALUE_BYTES_MAX);
/// Most targets that an entry lists. An event with more is wide: it has a row of targets.
const TARGETS_LISTED_MAX: usize = 16;
/// Bytes of a target in a row of targets.
const TARGET_BYTES: usize = 4;
const _: () = assert!(TARGET_BYTES * limits::EVENT_TARGETS_MAX <= limits::STATE_VALUE_BYTES_MAX);

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
    pub order: OrderId,
    /// See [`Event::stored_bytes`](crate::domain::Event::stored_bytes).
    pub bytes: u64,
    pub targets: TargetList,
    /// When the event's content was erased.
    pub erased_at: Option<Timestamp>,
}

/// Endpoints of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetList {
    Listed(Vec<EndpointNumber>),
    /// The event is wide: the targets are in a row.
    Row,
}

/// Whether an event has few targets, or so many that they and their states have their own rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    Narrow,
    Wide,
}

impl Width {
    #[must_use]
    pub fn of(targets: &[EndpointNumber]) -> Self {
        let most = failpoints::bound(Bound::TargetsListed, TARGETS_LISTED_MAX);
        if targets.len() <= most { Self::Narrow } else { Self::Wide }
    }
}

impl TargetList {
    /// Lists the targets, or writes their row.
    pub fn write(rows: &mut dyn Rows, position: Position, targets: &[EndpointNumber]) -> Self {
        if Width::of(targets) == Width::Narrow {
            return Self::Listed(targets.to_vec());
        }
        let mut value = Vec::with_capacity(TARGET_BYTES * targets.len());
        for target in targets {
            put_u32(&mut value, target.0);
        }
        rows.put_new(&targets_key(position), value);
        Self::Row
    }

    #[must_use]
    pub fn width(&self) -> Width {
        match self {
            Self::Listed(_) => Width::Narrow,
            Self::Row => Width::Wide,
        }
    }
}

fn targets_key(event: Position) -> Vec<u8> {
    Key::new(b'F').position(event).0
}

/// All targets of an event.
pub fn targets<'a>(rows: &dyn Rows, event: &'a EventEntry) -> Cow<'a, [EndpointNumber]> {
    match &event.targets {
        TargetList::Listed(list) => Cow::Borrowed(list),
        TargetList::Row => {
            let value = rows.get(&targets_key(event.position)).unwrap_or_default();
            let number = |bytes: &[u8; TARGET_BYTES]| EndpointNumber(u32::from_le_bytes(*bytes));
            Cow::Owned(value.as_chunks().0.iter().map(number).collect())
        }
    }
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
        match &self.targets {
            TargetList::Row => out.push(0),
            TargetList::Listed(list) => {
                put_varint(&mut out, 1 + list.len() as u64);
                for target in list {
                    put_varint(&mut out, u64::from(target.0));
                }
            }
        }
        // Zero means not erased: no event was erased at time zero.
        put_varint(&mut out, self.erased_at.map_or(0, Timestamp::millis));
        out
    }

    /// The part that filters read.
    #[must_use]
    pub fn traits(&self) -> EventTraits<'_> {
        EventTraits {
            position: self.position,
            accepted_at: self.accepted_at,
            tenant: &self.tenant,
            event_type: &self.event_type,
            stream: self.stream.as_ref().map(|(stream, _)| &**stream),
        }
    }
}

/// The part of an event that filters read, borrowed from its entry.
#[derive(Clone, Copy, Debug)]
pub struct EventTraits<'a> {
    pub position: Position,
    pub accepted_at: Timestamp,
    pub tenant: &'a str,
    pub event_type: &'a str,
    pub stream: Option<&'a str>,
}

/// An entry in its block.
struct StoredEntry<'a> {
    traits: EventTraits<'a>,
    first_due: Timestamp,
    version: u64,
    order: OrderId,
    bytes: u64,
    /// Number of listed targets, and the encoded targets. `None` for a wide event.
    targets: Option<(u64, Reader<'a>)>,
    erased_at: Option<Timestamp>,
}

impl<'a> StoredEntry<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let position = Position(reader.get_varint()?);
        let accepted_at = Timestamp::from_millis(reader.get_varint()?);
        let first_due = Timestamp::from_millis(reader.get_varint()?);
        let tenant = reader.get_str()?;
        let event_type = reader.get_str()?;
        let stream = Some(reader.get_str()?).filter(|stream| !stream.is_empty());
        let version = reader.get_varint()?;
        let order = reader.get_u64()?;
        let bytes = reader.get_varint()?;
        let targets = match reader.get_varint()? {
            0 => None,
            count => {
                let encoded = reader.clone();
                for _ in 1..count {
                    reader.get_varint_u32()?;
                }
                Some((count - 1, encoded))
            }
        };
        let erased_at = Some(reader.get_varint()?).filter(|millis| *millis != 0).map(Timestamp::from_millis);
        let traits = EventTraits { position, accepted_at, tenant, event_type, stream };
        Ok(Self { traits, first_due, version, order, bytes, targets, erased_at })
    }

    fn to_entry(&self) -> Result<EventEntry, Malformed> {
        let EventTraits { position, accepted_at, tenant, event_type, stream } = self.traits;
        let targets = match self.targets.clone() {
            None => TargetList::Row,
            Some((count, mut encoded)) => {
                let number = |_| encoded.get_varint_u32().map(EndpointNumber);
                TargetList::Listed((0..count).map(number).collect::<Result<_, _>>()?)
            }
        };
        Ok(EventEntry {
            position,
            accepted_at,
            first_due: self.first_due,
            tenant: tenant.into(),
            event_type: event_type.into(),
            stream: stream.map(|stream| (stream.into(), self.version)),
            order: self.order,
            bytes: self.bytes,
            targets,
            erased_at: self.erased_at,
        })
    }
}

/// The open block of each page since the last checkpoint, and the newest page.
#[derive(Debug, Default)]
pub struct Blocks {
    chunks: HashMap<(u8, u64), u16>,
    open: OpenPage,
}

impl Blocks {
    /// Closes all blocks. Call this at each checkpoint.
    pub fn close(&mut self) {
        self.chunks.clear();
    }

    pub(super) fn append(
        &mut self,
        rows: &mut dyn Rows,
        tag: u8,
        checkpoint: u64,
        position: Position,
        entry: &[u8],
    ) {
        let page = page_of(position);
        let chunk = self.chunks.entry((tag, page)).or_insert(0);
        let key = Key::new(tag).u64(page).u64(checkpoint).u16(*chunk).0;
        if rows.append(&key, entry) >= BLOCK_BYTES_TARGET {
            *chunk += 1;
        }
    }

    /// Adds a new event, the last one so far.
    pub fn add_event(&mut self, rows: &mut dyn Rows, checkpoint: u64, entry: &EventEntry) {
        self.open.note(rows, &entry.tenant, page_of(entry.position));
        self.put_entry(rows, checkpoint, entry);
    }

    /// Writes an entry of an event that the page of its tenant has, or had.
    pub fn put_entry(&mut self, rows: &mut dyn Rows, checkpoint: u64, entry: &EventEntry) {
        self.append(rows, b'E', checkpoint, entry.position, &entry.encode());
    }

    /// Call this when events of a page were deleted.
    pub(super) fn on_deletion(&mut self, page: u64) {
        self.open.forget(page);
    }
}

/// Visits the entries of a page's blocks, in order. `read` takes one entry from the reader.
pub(super) fn scan_entries(
    rows: &dyn Rows,
    tag: u8,
    page: u64,
    read: &mut dyn FnMut(&mut Reader<'_>) -> Result<ControlFlow<()>, Malformed>,
) {
    let prefix = Key::new(tag).u64(page).0;
    rows.scan(&prefix, &after_prefix(&prefix), &mut |_, value| {
        let mut reader = Reader::new(value);
        while !reader.is_empty() {
            match read(&mut reader) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return ControlFlow::Break(()),
                Err(_) => break,
            }
        }
        ControlFlow::Continue(())
    });
}

/// The page's events, in order. A later entry of an event replaces its first one.
pub fn events(rows: &dyn Rows, page: u64) -> Vec<EventEntry> {
    events_where(rows, page, &mut |_| true)
}

/// The events of all pages, oldest first, without an index.
#[cfg(test)]
pub(super) fn all_events(rows: &std::collections::BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<EventEntry> {
    let pages = rows.keys().filter(|key| key[0] == b'E').map(|key| super::rows::u64_at(key, 1));
    let pages: std::collections::BTreeSet<u64> = pages.collect();
    pages.into_iter().flat_map(|page| events(rows, page)).collect()
}

/// The wanted ones of the page's events, in order. Asks for each entry, of an event with several
/// entries again, and copies only wanted ones.
pub fn events_where(
    rows: &dyn Rows,
    page: u64,
    wants: &mut dyn FnMut(&EventTraits<'_>) -> bool,
) -> Vec<EventEntry> {
    let mut events: Vec<EventEntry> = Vec::new();
    scan_entries(rows, b'E', page, &mut |reader| {
        let entry = StoredEntry::read(reader)?;
        if wants(&entry.traits) {
            let entry = entry.to_entry()?;
            match events.binary_search_by_key(&entry.position, |event| event.position) {
                Ok(at) => events[at] = entry,
                Err(at) => events.insert(at, entry),
            }
        }
        Ok(ControlFlow::Continue(()))
    });
    events
}

/// The last entry of one event.
pub fn event(rows: &dyn Rows, position: Position) -> Option<EventEntry> {
    events_where(rows, page_of(position), &mut |event| event.position == position).pop()
}

/// When the page's first event was accepted.
pub fn first_accepted_at(rows: &dyn Rows, page: u64) -> Option<Timestamp> {
    let mut first: Option<(Position, Timestamp)> = None;
    events_where(rows, page, &mut |event| {
        first = first.into_iter().chain([(event.position, event.accepted_at)]).min();
        false
    });
    first.map(|(_, accepted_at)| accepted_at)
}

/// Positions of the page's events, in order.
#[must_use]
pub fn positions(rows: &dyn Rows, page: u64) -> Vec<Position> {
    let mut positions = Vec::new();
    events_where(rows, page, &mut |event| {
        positions.push(event.position);
        false
    });
    positions.sort_unstable();
    positions.dedup();
    positions
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

/// Deletes the events and states of a page, without the rows of wide events.
pub fn remove_page(rows: &mut dyn Rows, page: u64) {
    for tag in [b'E', b'O'] {
        remove_with_prefix(rows, &Key::new(tag).u64(page).0);
    }
}

/// Deletes the rows of one event that are not on its page.
pub fn remove_event_rows(rows: &mut dyn Rows, event: &EventEntry) {
    if event.targets == TargetList::Row {
        rows.remove(&targets_key(event.position));
    }
    remove_with_prefix(rows, &super::states::parts_prefix(event.position));
}

fn remove_with_prefix(rows: &mut dyn Rows, prefix: &[u8]) {
    let mut keys = Vec::new();
    rows.scan(prefix, &after_prefix(prefix), &mut |key, _| {
        keys.push(key.to_vec());
        ControlFlow::Continue(())
    });
    for key in keys {
        rows.remove(&key);
    }
}

//! Delivery states: in blocks of a page (`O`), or in parts of an event (`M`).
//!
//! An event with few targets has its states with those of other events, in the order of their
//! changes; of several entries for one delivery, the last is valid. This takes the fewest rows. A
//! wide event has a row per [`PART_DELIVERIES`] targets, with one entry per delivery. Replays to
//! endpoints beside the targets are in parts too. Invariant: the place of a delivery's state never
//! changes, and reading one state costs the same for any number of targets.

use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::last_attempt;
use super::pages::{self, Blocks, EventEntry, Width, page_of, scan_entries};
use super::pending::{positions, put_positions};
use super::rows::{Key, Rows, after_prefix};
use crate::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::domain::{
    DeadReason, DeliveryKey, DeliveryState, EndpointNumber, LastAttempt, Position, Timestamp,
};
use crate::limits;

/// Deliveries per part of an event's states.
const PART_DELIVERIES: u32 = 32;
/// The first part of endpoints beside the targets.
const PART_OF_OTHERS: u32 = 1 << 31;
/// Largest entry: its numbers, its last error, and the differences of its attempts' positions.
const ENTRY_BYTES_MAX: usize = 64 + limits::LAST_ERROR_BYTES_MAX + 10 * limits::ATTEMPTS_KEPT_MAX;
const _: () = assert!(PART_DELIVERIES as usize * ENTRY_BYTES_MAX <= limits::STATE_VALUE_BYTES_MAX);
const _: () = assert!(limits::EVENT_TARGETS_MAX < PART_OF_OTHERS as usize);

/// Where the state of a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatePlace {
    /// On the page of its event.
    Page,
    /// In this part of its event.
    Part(u32),
}

impl StatePlace {
    /// The place for the target with this index.
    #[must_use]
    pub fn of_target(width: Width, index: usize) -> Self {
        match width {
            Width::Narrow => Self::Page,
            Width::Wide => Self::Part(u32::try_from(index).expect("targets are bounded") / PART_DELIVERIES),
        }
    }

    /// The place for an endpoint, and whether it is a target of the event.
    pub fn find(rows: &dyn Rows, event: &EventEntry, endpoint: EndpointNumber) -> (Self, bool) {
        match pages::targets(rows, event).iter().position(|target| *target == endpoint) {
            Some(index) => (Self::of_target(event.targets.width(), index), true),
            None => (Self::Part(PART_OF_OTHERS + endpoint.0 / PART_DELIVERIES), false),
        }
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
    pub last: LastAttempt,
    pub attempts_made: u32,
    /// Positions of the attempts, oldest first. Empty after a revival: then `P` has them.
    pub attempts: Vec<Position>,
}

impl StateEntry {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(40);
        put_varint(&mut out, self.delivery.event.0);
        put_varint(&mut out, u64::from(self.delivery.endpoint.0));
        let mut rest = Vec::with_capacity(32);
        rest.push(state_code(self.state));
        put_varint(&mut rest, self.at.millis());
        put_varint(&mut rest, self.death.0);
        last_attempt::put(&mut rest, &self.last);
        put_varint(&mut rest, u64::from(self.attempts_made));
        put_positions(&mut rest, &self.attempts);
        put_bytes(&mut out, &rest);
        out
    }

    /// Reads an entry without its content.
    fn split<'a>(reader: &mut Reader<'a>) -> Result<(DeliveryKey, &'a [u8]), Malformed> {
        let event = Position(reader.get_varint()?);
        let endpoint = EndpointNumber(reader.get_varint_u32()?);
        Ok((DeliveryKey { event, endpoint }, reader.get_bytes()?))
    }

    fn decode(delivery: DeliveryKey, content: &[u8]) -> Result<Self, Malformed> {
        let reader = &mut Reader::new(content);
        Ok(Self {
            delivery,
            state: state(reader.get_u8()?)?,
            at: Timestamp::from_millis(reader.get_varint()?),
            death: Position(reader.get_varint()?),
            last: last_attempt::get(reader)?,
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

pub(super) fn parts_prefix(event: Position) -> Vec<u8> {
    Key::new(b'M').position(event).0
}

fn part_key(event: Position, part: u32) -> Vec<u8> {
    Key::new(b'M').position(event).u32(part).0
}

/// Visits the entries of a part.
fn scan_part(value: &[u8], visit: &mut dyn FnMut(DeliveryKey, &[u8])) {
    let mut reader = Reader::new(value);
    while !reader.is_empty() {
        let Ok((delivery, content)) = StateEntry::split(&mut reader) else { return };
        visit(delivery, content);
    }
}

/// Writes the state of a delivery.
pub fn put(rows: &mut dyn Rows, blocks: &mut Blocks, checkpoint: u64, place: StatePlace, entry: &StateEntry) {
    let StatePlace::Part(part) = place else {
        return blocks.append(rows, b'O', checkpoint, entry.delivery.event, &entry.encode());
    };
    let key = part_key(entry.delivery.event, part);
    let Some(mut value) = rows.get(&key) else { return rows.put_new(&key, entry.encode()) };
    let mut is_changed = false;
    scan_part(&value, &mut |delivery, _| is_changed |= delivery == entry.delivery);
    if is_changed {
        let mut others = Vec::with_capacity(value.len() + 64);
        scan_part(&value, &mut |delivery, content| {
            if delivery != entry.delivery {
                put_varint(&mut others, delivery.event.0);
                put_varint(&mut others, u64::from(delivery.endpoint.0));
                put_bytes(&mut others, content);
            }
        });
        value = others;
    }
    value.extend_from_slice(&entry.encode());
    rows.put(&key, value);
}

/// The last state of one delivery. `None`: pending since its acceptance, or no delivery.
pub fn state_of(rows: &dyn Rows, delivery: DeliveryKey, place: StatePlace) -> Option<StateEntry> {
    let mut found = None;
    match place {
        StatePlace::Page => {
            let mut last = Vec::new();
            scan_entries(rows, b'O', page_of(delivery.event), &mut |reader| {
                let (of, content) = StateEntry::split(reader)?;
                if of == delivery {
                    last.clear();
                    last.extend_from_slice(content);
                }
                Ok(ControlFlow::Continue(()))
            });
            if !last.is_empty() {
                found = StateEntry::decode(delivery, &last).ok();
            }
        }
        StatePlace::Part(part) => {
            let value = rows.get(&part_key(delivery.event, part)).unwrap_or_default();
            scan_part(&value, &mut |of, content| {
                if of == delivery {
                    found = StateEntry::decode(of, content).ok();
                }
            });
        }
    }
    found
}

/// The states of a page's events, read when needed.
pub struct PageStates<'a> {
    rows: &'a dyn Rows,
    page: u64,
    listed: OnceCell<BTreeMap<DeliveryKey, StateEntry>>,
    examined: Cell<usize>,
}

impl<'a> PageStates<'a> {
    #[must_use]
    pub fn new(rows: &'a dyn Rows, page: u64) -> Self {
        Self { rows, page, listed: OnceCell::new(), examined: Cell::new(0) }
    }

    /// Number of deliveries that were examined.
    #[must_use]
    pub fn examined(&self) -> usize {
        self.examined.get()
    }

    fn count(&self, deliveries: usize) {
        self.examined.set(self.examined.get() + deliveries);
    }

    /// The last states of all deliveries on the page itself. One without a state is pending since
    /// its acceptance.
    pub fn listed(&self) -> &BTreeMap<DeliveryKey, StateEntry> {
        self.listed.get_or_init(|| {
            let mut states = BTreeMap::new();
            scan_entries(self.rows, b'O', self.page, &mut |reader| {
                let (delivery, content) = StateEntry::split(reader)?;
                states.insert(delivery, StateEntry::decode(delivery, content)?);
                Ok(ControlFlow::Continue(()))
            });
            states
        })
    }

    pub fn into_listed(self) -> BTreeMap<DeliveryKey, StateEntry> {
        self.listed();
        self.listed.into_inner().unwrap_or_default()
    }

    /// The deliveries of an event by endpoint, with the last state of each.
    pub fn deliveries(&self, event: &EventEntry) -> BTreeMap<EndpointNumber, Option<StateEntry>> {
        let targets = pages::targets(self.rows, event);
        let mut all: BTreeMap<_, _> = targets.iter().map(|target| (*target, None)).collect();
        if event.targets.width() == Width::Narrow {
            let key = |endpoint| DeliveryKey { event: event.position, endpoint };
            let states = self.listed().range(key(EndpointNumber(0))..=key(EndpointNumber(u32::MAX)));
            all.extend(states.map(|(delivery, entry)| (delivery.endpoint, Some(entry.clone()))));
        }
        let prefix = parts_prefix(event.position);
        self.rows.scan(&prefix, &after_prefix(&prefix), &mut |_, value| {
            scan_part(value, &mut |delivery, content| {
                if let Ok(entry) = StateEntry::decode(delivery, content) {
                    all.insert(delivery.endpoint, Some(entry));
                }
            });
            ControlFlow::Continue(())
        });
        self.count(all.len());
        all
    }

    /// The delivery of an event to one endpoint, with its last state. `None` if there is none.
    pub fn delivery(&self, event: &EventEntry, endpoint: EndpointNumber) -> Option<Option<StateEntry>> {
        self.count(1);
        let (place, is_target) = StatePlace::find(self.rows, event, endpoint);
        let delivery = DeliveryKey { event: event.position, endpoint };
        let state = match place {
            StatePlace::Page => self.listed().get(&delivery).cloned(),
            StatePlace::Part(_) => state_of(self.rows, delivery, place),
        };
        if is_target || state.is_some() { Some(state) } else { None }
    }
}

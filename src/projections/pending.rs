//! Pending deliveries: due index (`D`), details (`P`) and queues of ordering keys (`W`).
//!
//! Invariant: a pending delivery has one valid due time: in `D` if a lane may send it, else in `W`,
//! where it waits behind another delivery of its ordering key. While a delivery is in `D` or under
//! a lease, its `W` row only keeps its turn: its due time and progress are from when it last
//! waited. The fold applies the endpoint's current ordering. After a change of ordering,
//! [`misplaced`] finds the deliveries to move.

use std::ops::ControlFlow;

use super::last_attempt;
use super::pages;
use super::rows::{Key, Rows, after_prefix, endpoint_at, u64_at};
use super::states::StatePlace;
use crate::codec::{Malformed, Reader, put_u64, put_varint};
use crate::domain::{
    DeliveryKey, DueKey, EndpointNumber, LastAttempt, Ordering, Position, Progress, Timestamp, Trigger,
};
use crate::failpoints::{self, Bound};
use crate::limits;

/// Number of an order: the hash of an ordering key, or the position of an event without one. A
/// collision of two keys only makes their deliveries wait for each other.
pub type OrderId = u64;

/// The only queue of an endpoint with strict order.
pub const WHOLE_ENDPOINT: OrderId = 0;

/// Deliveries per queue that [`due_behind`] examines.
const QUEUE_SCAN_MAX: usize = 64;

/// Value of a `D` row. In a `W` row the due time precedes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub progress: Progress,
    /// The queue in `W`, if the delivery is in one.
    pub order: Option<OrderId>,
    /// Where the state of the delivery is written when it ends.
    pub place: StatePlace,
}

/// Set in the byte of the trigger if a part of the event's states follows.
const HAS_PART: u8 = 0x80;
/// Set in the byte of the trigger if a number of lost answers follows.
const HAS_LOST_ANSWERS: u8 = 0x40;

impl Row {
    /// Whether a delivery with this row in its lane or its queue was neither tried nor revived. It
    /// has no details.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.progress.attempts == 0 && self.progress.trigger == Trigger::Publish
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.progress.attempts));
        put_varint(out, u64::from(self.progress.attempts_in_series));
        put_varint(out, self.progress.series_started.millis());
        put_varint(out, self.progress.first_attempt.map_or(0, Timestamp::millis));
        let lost_answers = self.progress.lost_answers;
        let has_lost = if lost_answers > 0 { HAS_LOST_ANSWERS } else { 0 };
        let code = trigger_code(self.progress.trigger) | has_lost;
        match self.place {
            StatePlace::Page => out.push(code),
            StatePlace::Part(part) => {
                out.push(code | HAS_PART);
                put_varint(out, u64::from(part));
            }
        }
        if lost_answers > 0 {
            put_varint(out, u64::from(lost_answers));
        }
        if let Some(order) = self.order {
            put_u64(out, order);
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (attempts, attempts_in_series) = (reader.get_varint_u32()?, reader.get_varint_u32()?);
        let series_started = Timestamp::from_millis(reader.get_varint()?);
        let first_attempt =
            Some(reader.get_varint()?).filter(|millis| *millis != 0).map(Timestamp::from_millis);
        let code = reader.get_u8()?;
        let trigger = trigger(code & !(HAS_PART | HAS_LOST_ANSWERS))?;
        let place = match code & HAS_PART {
            0 => StatePlace::Page,
            _ => StatePlace::Part(reader.get_varint_u32()?),
        };
        let lost_answers = if code & HAS_LOST_ANSWERS == 0 { 0 } else { reader.get_varint_u32()? };
        let order = if reader.is_empty() { None } else { Some(reader.get_u64()?) };
        let progress =
            Progress { attempts, attempts_in_series, series_started, first_attempt, trigger, lost_answers };
        Ok(Self { progress, order, place })
    }
}

/// Encodes a trigger in rows: its code minus one.
fn trigger_code(trigger: Trigger) -> u8 {
    trigger.code() - 1
}

fn trigger(code: u8) -> Result<Trigger, Malformed> {
    code.checked_add(1).and_then(Trigger::from_code).ok_or(Malformed::Number)
}

/// Value of a `P` row. Only tried or revived deliveries have one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detail {
    pub due: Timestamp,
    pub last: LastAttempt,
    pub progress: Progress,
    /// Positions of the attempts, oldest first.
    pub attempts: Vec<Position>,
}

impl Detail {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + 9 * self.attempts.len());
        put_varint(&mut out, self.due.millis());
        last_attempt::put(&mut out, &self.last);
        put_positions(&mut out, &self.attempts);
        Row { progress: self.progress, order: None, place: StatePlace::Page }.encode(&mut out);
        out
    }

    fn decode(value: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(value);
        let due = Timestamp::from_millis(reader.get_varint()?);
        let last = last_attempt::get(&mut reader)?;
        let attempts = positions(&mut reader)?;
        let progress = Row::decode(&mut reader)?.progress;
        Ok(Self { due, last, progress, attempts })
    }
}

/// Encodes positions as differences, small ones short in both directions: a history is not quite in
/// order (see [`super::leases`]).
pub fn put_positions(out: &mut Vec<u8>, positions: &[Position]) {
    put_varint(out, positions.len() as u64);
    let mut before = 0;
    for position in positions {
        let difference = position.0.wrapping_sub(before).cast_signed();
        put_varint(out, ((difference << 1) ^ (difference >> 63)).cast_unsigned());
        before = position.0;
    }
}

/// Decodes the result of [`put_positions`].
///
/// # Errors
/// When the bytes end early.
pub fn positions(reader: &mut Reader<'_>) -> Result<Vec<Position>, Malformed> {
    let count = reader.get_varint()?;
    let mut list = Vec::new();
    let mut before = 0_u64;
    for _ in 0..count {
        let folded = reader.get_varint()?;
        let difference = (folded >> 1) ^ (folded & 1).wrapping_neg();
        before = before.wrapping_add(difference);
        list.push(Position(before));
    }
    Ok(list)
}

fn due_key(endpoint: EndpointNumber, key: DueKey) -> Vec<u8> {
    Key::new(b'D').endpoint(endpoint).time(key.due).position(key.event).0
}

fn detail_key(delivery: DeliveryKey) -> Vec<u8> {
    Key::new(b'P').position(delivery.event).endpoint(delivery.endpoint).0
}

fn queue_prefix(endpoint: EndpointNumber, order: OrderId) -> Vec<u8> {
    Key::new(b'W').endpoint(endpoint).u64(order).0
}

fn queue_key(delivery: DeliveryKey, order: OrderId) -> Vec<u8> {
    Key::new(b'W').endpoint(delivery.endpoint).u64(order).position(delivery.event).0
}

/// The due row, if the delivery is sendable at this due time.
pub fn due_row(rows: &dyn Rows, endpoint: EndpointNumber, key: DueKey) -> Option<Row> {
    rows.get(&due_key(endpoint, key)).and_then(|value| Row::decode(&mut Reader::new(&value)).ok())
}

/// Makes a delivery sendable. It must not be sendable already.
pub fn put_due(rows: &mut dyn Rows, endpoint: EndpointNumber, key: DueKey, row: &Row) {
    let mut value = Vec::with_capacity(24);
    row.encode(&mut value);
    rows.put_new(&due_key(endpoint, key), value);
}

pub fn remove_due(rows: &mut dyn Rows, endpoint: EndpointNumber, key: DueKey) {
    rows.remove(&due_key(endpoint, key));
}

pub fn detail(rows: &dyn Rows, delivery: DeliveryKey) -> Option<Detail> {
    rows.get(&detail_key(delivery)).and_then(|value| Detail::decode(&value).ok())
}

pub fn put_detail(rows: &mut dyn Rows, delivery: DeliveryKey, detail: &Detail) {
    rows.put(&detail_key(delivery), detail.encode());
}

pub fn remove_detail(rows: &mut dyn Rows, delivery: DeliveryKey) {
    rows.remove(&detail_key(delivery));
}

/// Inserts a delivery into its queue. Returns whether the queue was empty: then it may be sent.
pub fn enqueue(
    rows: &mut dyn Rows,
    delivery: DeliveryKey,
    order: OrderId,
    due: Timestamp,
    row: &Row,
) -> bool {
    let alone = super::rows::first_with_prefix(rows, &queue_prefix(delivery.endpoint, order)).is_none();
    rows.put_new(&queue_key(delivery, order), queue_value(due, row));
    alone
}

/// Changes the due time of a waiting delivery.
pub fn requeue(rows: &mut dyn Rows, delivery: DeliveryKey, order: OrderId, due: Timestamp, row: &Row) {
    rows.put(&queue_key(delivery, order), queue_value(due, row));
}

fn queue_value(due: Timestamp, row: &Row) -> Vec<u8> {
    let mut value = Vec::with_capacity(32);
    put_varint(&mut value, due.millis());
    row.encode(&mut value);
    value
}

pub fn dequeue(rows: &mut dyn Rows, delivery: DeliveryKey, order: OrderId) {
    rows.remove(&queue_key(delivery, order));
}

/// The due time and row of a delivery in a queue.
pub fn queued(rows: &dyn Rows, delivery: DeliveryKey, order: OrderId) -> Option<(Timestamp, Row)> {
    let value = rows.get(&queue_key(delivery, order))?;
    let mut reader = Reader::new(&value);
    let due = Timestamp::from_millis(reader.get_varint().ok()?);
    Some((due, Row::decode(&mut reader).ok()?))
}

/// The first delivery of a queue, with its due time.
pub fn queue_head(rows: &dyn Rows, endpoint: EndpointNumber, order: OrderId) -> Option<(DueKey, Row)> {
    let (key, value) = super::rows::first_with_prefix(rows, &queue_prefix(endpoint, order))?;
    let mut reader = Reader::new(&value);
    let due = Timestamp::from_millis(reader.get_varint().ok()?);
    let row = Row::decode(&mut reader).ok()?;
    Some((DueKey { due, event: Position(u64_at(&key, 13)) }, row))
}

/// The due key of the sendable delivery in a queue. `None` while a worker has taken one.
pub fn sendable_of(rows: &dyn Rows, endpoint: EndpointNumber, order: OrderId) -> Option<DueKey> {
    let prefix = queue_prefix(endpoint, order);
    let mut found = None;
    rows.scan(&prefix, &after_prefix(&prefix), &mut |key, value| {
        let event = Position(u64_at(key, 13));
        let queued = Reader::new(value).get_varint().ok().map(Timestamp::from_millis);
        let moved_to = detail(rows, DeliveryKey { event, endpoint }).map(|detail| detail.due);
        let mut places = queued.into_iter().chain(moved_to).map(|due| DueKey { due, event });
        found = places.find(|key| due_row(rows, endpoint, *key).is_some());
        match found.is_some() || is_leased(rows, key) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    found
}

/// Reads sendable deliveries after `after` in lane order. Returns them and whether they are all.
pub fn refill(
    rows: &dyn Rows,
    endpoint: EndpointNumber,
    after: Option<DueKey>,
    limit: usize,
) -> (Vec<(DueKey, Progress)>, bool) {
    let prefix = Key::new(b'D').endpoint(endpoint).0;
    let from = after.map_or_else(
        || prefix.clone(),
        |key| {
            let mut from = due_key(endpoint, key);
            from.push(0);
            from
        },
    );
    let mut entries = Vec::new();
    let mut exhausted = true;
    rows.scan(&from, &after_prefix(&prefix), &mut |key, value| {
        if entries.len() == limit {
            exhausted = false;
            return ControlFlow::Break(());
        }
        let due = DueKey { due: Timestamp::from_millis(u64_at(key, 5)), event: Position(u64_at(key, 13)) };
        if let Ok(row) = Row::decode(&mut Reader::new(value)) {
            entries.push((due, row.progress));
        }
        ControlFlow::Continue(())
    });
    (entries, exhausted)
}

/// Up to `limit` pending deliveries of an endpoint. Prefers sendable and leased ones to waiting
/// ones.
pub fn endpoint_deliveries(rows: &dyn Rows, endpoint: EndpointNumber, limit: usize) -> Vec<DeliveryKey> {
    let mut found = std::collections::BTreeSet::new();
    for (tag, offset) in [(b'D', 13), (b'G', 5), (b'W', 13)] {
        let prefix = Key::new(tag).endpoint(endpoint).0;
        rows.scan(&prefix, &after_prefix(&prefix), &mut |key, _| {
            if found.len() == limit {
                return ControlFlow::Break(());
            }
            found.insert(DeliveryKey { event: Position(u64_at(key, offset)), endpoint });
            ControlFlow::Continue(())
        });
    }
    found.into_iter().collect()
}

/// Row key at which the next step of [`misplaced`] starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot(Vec<u8>);

/// Result of a step of [`misplaced`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Misplaced {
    /// In order of acceptance.
    pub deliveries: Vec<DeliveryKey>,
    /// Start of the next step; `None` at the end.
    pub next: Option<Spot>,
}

/// Up to `limit` pending deliveries of an endpoint that are misplaced for this ordering. Skips key
/// ranges without such rows. Examines at most [`limits::SCAN_ENTRIES_MAX`] other rows per step.
pub fn misplaced(
    rows: &dyn Rows,
    endpoint: EndpointNumber,
    ordering: Ordering,
    after: Option<Spot>,
    limit: usize,
) -> Misplaced {
    let (lane, queues) = (Key::new(b'D').endpoint(endpoint).0, Key::new(b'W').endpoint(endpoint).0);
    let strict = queue_prefix(endpoint, WHOLE_ENDPOINT);
    // A delivery in a queue is found by its queue row.
    let ranges = match ordering {
        Ordering::None => vec![(queues.clone(), after_prefix(&queues))],
        Ordering::Key => vec![(lane.clone(), after_prefix(&lane)), (strict.clone(), after_prefix(&strict))],
        Ordering::Endpoint => {
            vec![(lane.clone(), after_prefix(&lane)), (after_prefix(&strict), after_prefix(&queues))]
        }
    };
    let is_misplaced = |key: &[u8], value: &[u8]| match (key[0], ordering) {
        // A leased delivery moves when its lease ends.
        (b'W', _) if is_leased(rows, key) => false,
        (b'D', _) => Row::decode(&mut Reader::new(value)).is_ok_and(|row| row.order.is_none()),
        // Some ordering keys have this hash.
        (_, Ordering::Key) => {
            pages::event(rows, Position(u64_at(key, 13))).is_some_and(|event| event.order != WHOLE_ENDPOINT)
        }
        (_, Ordering::None | Ordering::Endpoint) => true,
    };
    let (mut misplaced, mut looked_at) = (Misplaced::default(), 0);
    let begin = after.map(|Spot(key)| key).unwrap_or_default();
    for (from, to) in ranges {
        let from = from.max(begin.clone());
        if misplaced.next.is_some() || from >= to {
            continue;
        }
        rows.scan(&from, &to, &mut |key, value| {
            if misplaced.deliveries.len() == limit
                || looked_at == failpoints::bound(Bound::ScanEntries, limits::SCAN_ENTRIES_MAX)
            {
                misplaced.next = Some(Spot(key.to_vec()));
                return ControlFlow::Break(());
            }
            looked_at += 1;
            if is_misplaced(key, value) {
                misplaced.deliveries.push(DeliveryKey { event: Position(u64_at(key, 13)), endpoint });
            }
            ControlFlow::Continue(())
        });
    }
    misplaced.deliveries.sort_unstable();
    misplaced
}

/// Result of a step of [`due_behind`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DueBehind {
    /// Earliest due time that was found.
    pub oldest: Option<Timestamp>,
    /// Number of examined rows.
    pub looked_at: usize,
    /// First queue of the next step; `None` at the end.
    pub next: Option<OrderId>,
}

/// Finds the first due delivery that waits in each queue from `from` on, among the first
/// [`QUEUE_SCAN_MAX`] of the queue. A step ends between queues, after `limit` examined rows.
pub fn due_behind(
    rows: &dyn Rows,
    endpoint: EndpointNumber,
    from: OrderId,
    now: Timestamp,
    limit: usize,
) -> DueBehind {
    let end = after_prefix(&Key::new(b'W').endpoint(endpoint).0);
    let mut from = queue_prefix(endpoint, from);
    let mut behind = DueBehind::default();
    loop {
        // Skips queues with a single delivery.
        let (mut last, mut shared) = (None, None);
        rows.scan(&from, &end, &mut |key, _| {
            let order = u64_at(key, 5);
            if last == Some(order) {
                shared = last;
                return ControlFlow::Break(());
            }
            if behind.looked_at >= limit {
                behind.next = Some(order);
                return ControlFlow::Break(());
            }
            behind.looked_at += 1;
            last = Some(order);
            ControlFlow::Continue(())
        });
        let Some(order) = shared else { return behind };
        let queue = queue_prefix(endpoint, order);
        let end_of_queue = after_prefix(&queue);
        let mut looked_at = 0;
        rows.scan(&queue, &end_of_queue, &mut |key, value| {
            looked_at += 1;
            let due = Reader::new(value).get_varint().map(Timestamp::from_millis);
            if let Ok(due) = due
                && due <= now
                && !is_sendable(rows, key, value)
            {
                behind.oldest = Some(behind.oldest.map_or(due, |oldest| oldest.min(due)));
                return ControlFlow::Break(());
            }
            if looked_at == QUEUE_SCAN_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        behind.looked_at += looked_at;
        if end_of_queue >= end {
            return behind;
        }
        from = end_of_queue;
    }
}

/// Whether the value of a `D` row names a queue.
pub(super) fn is_ordered(value: &[u8]) -> bool {
    Row::decode(&mut Reader::new(value)).is_ok_and(|row| row.order.is_some())
}

/// Whether the delivery of a `D` row is in the queue that the row names.
pub(super) fn is_in_its_queue(rows: &dyn Rows, due_key: &[u8]) -> bool {
    let delivery = DeliveryKey { endpoint: endpoint_at(due_key, 1), event: Position(u64_at(due_key, 13)) };
    let row = rows.get(due_key).and_then(|value| Row::decode(&mut Reader::new(&value)).ok());
    let order = row.and_then(|row| row.order);
    order.is_some_and(|order| queued(rows, delivery, order).is_some())
}

/// Whether a worker has taken the delivery of a `W` row.
fn is_leased(rows: &dyn Rows, queue_key: &[u8]) -> bool {
    let (endpoint, event) = (endpoint_at(queue_key, 1), Position(u64_at(queue_key, 13)));
    super::leases::get(rows, DeliveryKey { event, endpoint }).is_some()
}

/// Whether the delivery of a `W` row may be sent, or a worker has taken it.
pub(super) fn is_sendable(rows: &dyn Rows, queue_key: &[u8], value: &[u8]) -> bool {
    let (endpoint, event) = (endpoint_at(queue_key, 1), Position(u64_at(queue_key, 13)));
    let queued_due = Reader::new(value).get_varint().ok().map(Timestamp::from_millis);
    let moved_to = detail(rows, DeliveryKey { event, endpoint }).map(|detail| detail.due);
    let is_due = |due| due_row(rows, endpoint, DueKey { due, event }).is_some();
    queued_due.is_some_and(is_due) || moved_to.is_some_and(is_due) || is_leased(rows, queue_key)
}

#[cfg(test)]
mod tests;

//! The state: rows derived from the journal, with the position that they reflect.
//!
//! Owns the overlay and the fold; is owned by one thread. May be lost at any time: it is rebuilt from the journal.
//! Invariant: applying every record after [`State::applied`] in order gives the state of the journal's end.

pub(crate) mod base;
mod overlay;

use std::collections::HashMap;
use std::path::Path;

use base::Base;
use overlay::Overlay;

use crate::codec::{Reader, put_varint};
use crate::domain::{DeliveryKey, EndpointNumber, KeyId, Position, Record, Timestamp};
use crate::knobs::{self, Bug, Knob};
use crate::limits;
use crate::projections::fold::Totals;
use crate::projections::retention::{self, Cutoffs, Forgotten};
use crate::projections::{Fold, LaneChange, Rows, idempotency};

/// What is wrong with the state. All of it is mended by a rebuild from the journal.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("state: {0}")]
    Sled(sled::Error),
    #[error("state: {0}")]
    Io(std::io::Error),
    #[error("state: {0}")]
    Damaged(&'static str),
    /// Only durable records are applied, so the journal has lost what lies between.
    #[error("state: it reflects records up to {applied}, and the journal ends at {journal_end}")]
    Ahead { applied: Position, journal_end: Position },
}

/// Key of the row that says which position the rows reflect. No row of a projection begins with this tag.
const CURSOR: &[u8] = b"A";
/// Version of the layout of all rows; another one means a rebuild.
const LAYOUT: u64 = 1;
/// Rows of endpoints (`C`, number; `c` once deleted) and keys (`K`, id): the position of the record that made them what
/// they are.
const ENDPOINTS: u8 = b'C';
const KEYS: u8 = b'K';

#[derive(Debug)]
pub struct State {
    rows: Overlay,
    fold: Fold,
    applied: Position,
    checkpointed: Position,
    /// Rows went by retention, without a record.
    forgot: bool,
}

impl State {
    /// Opens the state in `directory`. `journal_end` is the last position of the journal: a state that claims more than
    /// the journal holds is damaged.
    ///
    /// # Errors
    /// When the directory has to be moved aside and rebuilt.
    pub fn open(directory: &Path, journal_end: Position) -> Result<Self, StateError> {
        Self::over(Base::open(directory)?, journal_end)
    }

    /// As [`Self::open`], over rows that are open already.
    pub(crate) fn over(base: Base, journal_end: Position) -> Result<Self, StateError> {
        let cursor = base.get(CURSOR);
        let (applied, totals) = match cursor {
            None if base.is_empty() => (Position(0), Totals::default()),
            None => return Err(StateError::Damaged("rows without the position that they reflect")),
            Some(value) => read_cursor(&value).ok_or(StateError::Damaged("unknown layout"))?,
        };
        if applied > journal_end {
            return Err(StateError::Ahead { applied, journal_end });
        }
        let rows = Overlay::new(base);
        Ok(Self { rows, fold: Fold::resume(applied, totals), applied, checkpointed: applied, forgot: false })
    }

    /// Tells the fold of an endpoint that the rows know already; to be done before anything is applied.
    pub fn know(&mut self, record: &Record) {
        if let Record::EndpointPut(endpoint) = record {
            self.fold.know_endpoint(endpoint.number, endpoint.ordering);
        }
    }

    #[must_use]
    pub fn applied(&self) -> Position {
        self.applied
    }

    #[must_use]
    pub fn totals(&self) -> Totals {
        self.fold.totals
    }

    #[must_use]
    pub fn rows(&self) -> &dyn Rows {
        &self.rows
    }

    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.rows.base().size_bytes()
    }

    /// Applies the next record. See [`Fold::apply`] for `announced` and `changes`.
    pub fn apply(
        &mut self,
        position: Position,
        record: &Record,
        announced: bool,
        changes: &mut Vec<LaneChange>,
    ) {
        assert!(position > self.applied, "record {position} comes after {}", self.applied);
        self.fold.apply(&mut self.rows, position, record, announced, changes);
        self.keep_directory(position, record);
        self.applied = position;
    }

    fn keep_directory(&mut self, position: Position, record: &Record) {
        let at = || position.0.to_be_bytes().to_vec();
        match record {
            Record::EndpointPut(endpoint) => self.rows.put(&endpoint_key(endpoint.number), at()),
            Record::EndpointDeleted { endpoint, .. } => {
                // The last word on it stays, behind a tombstone, so that old deliveries can name it.
                if let Some(last) = self.rows.get(&endpoint_key(*endpoint)) {
                    self.rows.put(&deleted_key(*endpoint), last);
                    self.rows.remove(&endpoint_key(*endpoint));
                }
            }
            Record::KeyPut(key) => self.rows.put(&key_key(&key.id), at()),
            Record::KeyDeleted { id, .. } => self.rows.remove(&key_key(id)),
            Record::EventAccepted(_)
            | Record::AttemptFinished { .. }
            | Record::DeliveriesRevived { .. }
            | Record::DeliveriesCancelled { .. }
            | Record::DeliveriesDied { .. }
            | Record::DeadLettersPurged { .. }
            | Record::RequestAnswered { .. } => {}
        }
    }

    /// Forgets events whose time is over; see [`retention::forget`](crate::projections::retention::forget).
    pub fn forget(&mut self, cutoffs: Cutoffs, page: u64, pages_max: usize) -> Forgotten {
        let forgotten = self.fold.forget(&mut self.rows, cutoffs, page, pages_max);
        self.forgot |= forgotten.events > 0;
        forgotten
    }

    /// Forgets requests without an expiry, whose events are gone.
    pub fn forget_requests(&mut self, scopes: &[([u8; 16], Position)]) {
        for (scope, position) in scopes {
            idempotency::forget(&mut self.rows, scope, *position);
            self.forgot = true;
        }
    }

    /// Whether anything still rests on a record. What is not needed once is never needed again.
    pub fn needs(&self, events: &mut KnownEvents, position: Position, record: &Record) -> bool {
        if position > self.applied {
            return true;
        }
        let of_any = |deliveries: &[DeliveryKey], events: &mut KnownEvents| {
            deliveries.iter().any(|delivery| events.contains(&self.rows, delivery.event))
        };
        match record {
            Record::EventAccepted(_) => events.contains(&self.rows, position),
            Record::AttemptFinished { delivery, .. } => events.contains(&self.rows, delivery.event),
            // Few and small; what came between them was judged by each, and has to be judged so again.
            Record::EndpointPut(_)
            | Record::EndpointDeleted { .. }
            | Record::KeyPut(_)
            | Record::KeyDeleted { .. } => true,
            Record::DeliveriesRevived { deliveries, .. }
            | Record::DeliveriesCancelled { deliveries, .. }
            | Record::DeliveriesDied { deliveries, .. }
            | Record::DeadLettersPurged { deliveries, .. } => of_any(deliveries, events),
            Record::RequestAnswered { idempotency, .. } => idempotency::known(&self.rows, &idempotency.scope)
                .is_some_and(|known| known.position == position),
        }
    }

    /// Positions of the records that made the live endpoints and keys what they are.
    #[must_use]
    pub fn directory(&self) -> Vec<Position> {
        self.positions(&[ENDPOINTS]).into_iter().chain(self.positions(&[KEYS])).collect()
    }

    /// Positions of the last records of endpoints that were deleted.
    #[must_use]
    pub fn deleted_endpoints(&self) -> Vec<Position> {
        self.positions(b"c")
    }

    fn positions(&self, prefix: &[u8]) -> Vec<Position> {
        let mut positions = Vec::new();
        let end = crate::projections::rows::after_prefix(prefix);
        self.rows.scan(prefix, &end, &mut |_, value| {
            positions.extend(value.try_into().map(u64::from_be_bytes).map(Position));
            std::ops::ControlFlow::Continue(())
        });
        positions
    }

    /// Everything up to here is applied: damage has taken the records that are missing.
    pub fn reach(&mut self, end: Position) {
        self.applied = self.applied.max(end);
    }

    /// Whether enough has changed that a checkpoint should not wait for its time.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.rows.changed() >= knobs::bound(Knob::CheckpointRows, limits::CHECKPOINT_ROWS_MAX)
    }

    /// Whether anything was applied since the last checkpoint.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.applied > self.checkpointed || self.forgot
    }

    /// Writes what changed, with the position that it reflects, as one atomic batch.
    ///
    /// # Errors
    /// When sled or the disk failed; the state must not be used any more.
    pub fn checkpoint(&mut self, now: Timestamp) -> Result<(), StateError> {
        if !self.is_dirty() {
            return Ok(());
        }
        idempotency::forget_expired(&mut self.rows, now);
        let mut cursor = Vec::new();
        let Totals { pending, dead, events } = self.fold.totals;
        for number in [LAYOUT, self.applied.0, pending, dead, events] {
            put_varint(&mut cursor, number);
        }
        if knobs::has(Bug::CursorApart) {
            self.rows.checkpoint()?;
        }
        self.rows.put(CURSOR, cursor);
        self.rows.checkpoint()?;
        self.fold.on_checkpoint(self.applied);
        self.checkpointed = self.applied;
        self.forgot = false;
        Ok(())
    }
}

/// Events that the state knows, by page, as far as they were asked for.
#[derive(Debug, Default)]
pub struct KnownEvents {
    pages: HashMap<u64, Vec<Position>>,
}

impl KnownEvents {
    fn contains(&mut self, rows: &Overlay, position: Position) -> bool {
        let page = retention::page_of(position);
        let known = self.pages.entry(page).or_insert_with(|| retention::positions(rows, page));
        known.binary_search(&position).is_ok()
    }
}

fn endpoint_key(number: EndpointNumber) -> Vec<u8> {
    [&[ENDPOINTS][..], &number.0.to_be_bytes()].concat()
}

fn deleted_key(number: EndpointNumber) -> Vec<u8> {
    [&b"c"[..], &number.0.to_be_bytes()].concat()
}

fn key_key(id: &KeyId) -> Vec<u8> {
    [&[KEYS][..], id.as_str().as_bytes()].concat()
}

fn read_cursor(value: &[u8]) -> Option<(Position, Totals)> {
    let mut reader = Reader::new(value);
    if reader.get_varint().ok()? != LAYOUT {
        return None;
    }
    let applied = Position(reader.get_varint().ok()?);
    let totals = Totals {
        pending: reader.get_varint().ok()?,
        dead: reader.get_varint().ok()?,
        events: reader.get_varint().ok()?,
    };
    Some((applied, totals))
}

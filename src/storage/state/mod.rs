//! The state: rows derived from the journal, with the position that they reflect.
//!
//! Owns the overlay and the fold; is owned by one thread. May be lost at any time: it is rebuilt from the journal.
//! Invariant: applying every record after [`State::applied`] in order gives the state of the journal's end.

mod overlay;
pub(crate) mod row_store;

use std::collections::HashMap;
use std::io;
use std::path::Path;

use overlay::Overlay;
use row_store::RowStore;

use crate::codec::{Reader, put_varint};
use crate::domain::{DeliveryKey, EndpointNumber, Event, KeyId, Position, Record, Timestamp};
use crate::failpoints::{self, Bound, Mutation};
use crate::limits;
use crate::projections::audit::{self, Terms};
use crate::projections::fold::Totals;
use crate::projections::retention::{self, Cutoffs, Forgotten};
use crate::projections::{Fold, LaneChange, Rows, counters, idempotency, pages, reserved, stats, streams};
use crate::storage::disk::{is_disk_full, is_out_of_descriptors};

/// What is wrong with the state. All of it is mended by a rebuild from the journal.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("state: {0}")]
    Sled(sled::Error),
    #[error("state: {0}")]
    Io(std::io::Error),
    #[error("state: {0}")]
    Damaged(&'static str),
    /// Nothing is wrong with it.
    #[error("state: an earlier version wrote it, in layout {0}")]
    EarlierLayout(u64),
    /// Only durable records are applied, so the journal has lost what lies between.
    #[error("state: it reflects records up to {applied}, and the journal ends at {journal_end}")]
    Ahead { applied: Position, journal_end: Position },
}

impl StateError {
    fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Sled(sled::Error::Io(error)) | Self::Io(error) => Some(error),
            Self::Sled(_) | Self::Damaged(_) | Self::EarlierLayout(_) | Self::Ahead { .. } => None,
        }
    }

    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        self.io().is_some_and(is_disk_full)
    }

    /// Whether the fault lies with the system around it, so that nothing is gained by a rebuild.
    #[must_use]
    pub fn is_environmental(&self) -> bool {
        let denied = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
        let of_the_system = |error: &io::Error| {
            is_disk_full(error) || is_out_of_descriptors(error) || denied.contains(&error.kind())
        };
        self.io().is_some_and(of_the_system)
    }
}

/// Key of the row that says which position the rows reflect. No row of a projection begins with this tag.
const CURSOR: &[u8] = b"A";
/// Version of the layout of all rows and of what the fold makes of records; another one means a rebuild.
const LAYOUT: u64 = 5;
/// Rows of endpoints (`C`, number; `c` once deleted) and keys (`K`, id): the position of the record that made them what
/// they are.
const ENDPOINTS: u8 = b'C';
const DELETED: u8 = b'c';
const KEYS: u8 = b'K';
/// Tags of all rows: the cursor's, these, those of [`projections`](crate::projections), and the one that
/// [`base`] has for itself.
const TAGS: &[u8] = b"ACcKDPWEOXSIJLRT0";

/// What the rows reflect: records up to a position, and what was forgotten without a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    pub applied: Position,
    pub totals: Totals,
    /// Checkpoints so far.
    checkpoints: u64,
    /// Requests that expired until then may be gone.
    pub expired_until: Timestamp,
    /// Events that were over by these may be gone.
    pub cutoffs: Cutoffs,
}

#[derive(Debug)]
pub struct State {
    rows: Overlay,
    fold: Fold,
    applied: Position,
    checkpointed: Position,
    /// Rows went by retention, without a record.
    dirty_without_record: bool,
    expired_until: Timestamp,
    cutoffs: Cutoffs,
}

impl State {
    /// Opens the state in `directory`. `journal_end` is the last position of the journal: a state that claims more than
    /// the journal holds is damaged.
    ///
    /// # Errors
    /// When the directory has to be moved aside and rebuilt.
    pub fn open(directory: &Path, journal_end: Position) -> Result<Self, StateError> {
        Self::with_rows(RowStore::open(directory)?, journal_end)
    }

    /// As [`Self::open`], over rows that are open already.
    pub(crate) fn with_rows(base: RowStore, journal_end: Position) -> Result<Self, StateError> {
        let cursor = match base.get(CURSOR) {
            None if base.is_empty() => Cursor::default(),
            None => return Err(StateError::Damaged("rows without the position that they reflect")),
            Some(value) => match Cursor::read(&value) {
                Some(cursor) => cursor,
                None => return Err(layout_error(&value, journal_end)),
            },
        };
        let Cursor { applied, totals, checkpoints, expired_until, cutoffs } = cursor;
        if applied > journal_end {
            return Err(StateError::Ahead { applied, journal_end });
        }
        let (rows, fold) = (Overlay::new(base), Fold::resume(checkpoints, totals));
        Ok(Self {
            rows,
            fold,
            applied,
            checkpointed: applied,
            dirty_without_record: false,
            expired_until,
            cutoffs,
        })
    }

    /// Tells the fold of an endpoint that the rows restore_ordering already; to be done before anything is applied.
    pub fn restore_ordering(&mut self, record: &Record) {
        if let Record::EndpointPut(endpoint) = record {
            self.fold.know_endpoint(endpoint);
        }
    }

    #[must_use]
    pub fn applied(&self) -> Position {
        self.applied
    }

    #[must_use]
    pub(crate) fn rows(&self) -> &dyn Rows {
        debug_assert!(self.fold.has_written_tallies(), "a group of records has not been ended");
        &self.rows
    }

    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.rows.base().size_bytes()
    }

    /// Rows of the last checkpoint.
    #[must_use]
    pub fn checkpointed_rows(&self) -> u64 {
        self.rows.base().len()
    }

    /// Why rows could not be read: then no answer from them is to be trusted, not even one that was given.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.rows.base().failure()
    }

    /// Says on disk that the state has to be rebuilt.
    pub fn mark_unreadable(&self) {
        self.rows.base().mark_unreadable();
    }

    /// Applies the next record of a group; [`Self::end_group`] or a checkpoint comes before anything is read. See
    /// [`Fold::apply`] for `announced` and `changes`.
    pub fn apply(
        &mut self,
        position: Position,
        record: &Record,
        announced: bool,
        changes: &mut Vec<LaneChange>,
    ) {
        assert!(position > self.applied, "record {position} comes after {}", self.applied);
        self.fold.apply(&mut self.rows, position, record, announced, changes);
        self.update_registry_rows(position, record);
        self.applied = position;
    }

    pub fn end_group(&mut self) {
        self.fold.write_tallies(&mut self.rows);
    }

    fn update_registry_rows(&mut self, position: Position, record: &Record) {
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
            | Record::DeliveriesReordered { .. }
            | Record::RequestAnswered { .. }
            | Record::RateReserved { .. }
            | Record::EventRejected { .. } => {}
        }
    }

    /// Forgets events whose time is over; see [`retention::forget`](crate::projections::retention::forget).
    pub fn forget(&mut self, cutoffs: Cutoffs, page: u64, pages_max: usize) -> Forgotten {
        let forgotten = self.fold.forget(&mut self.rows, cutoffs, page, pages_max);
        self.dirty_without_record |= forgotten.events > 0;
        self.cutoffs.events = self.cutoffs.events.max(cutoffs.events);
        self.cutoffs.stream_events = self.cutoffs.stream_events.max(cutoffs.stream_events);
        forgotten
    }

    /// Forgets the statistics of the hours before, of up to `endpoints_max` endpoints from `from` on; gives where the
    /// next step begins.
    pub fn forget_hours(
        &mut self,
        before: Timestamp,
        from: EndpointNumber,
        endpoints_max: usize,
    ) -> Option<EndpointNumber> {
        let mut endpoints = counters::from(&self.rows, from, endpoints_max + 1);
        let next = if endpoints.len() > endpoints_max { endpoints.pop() } else { None };
        for endpoint in endpoints {
            self.dirty_without_record |= stats::forget(&mut self.rows, endpoint, before);
        }
        next
    }

    /// Forgets requests without an expiry, whose events are gone.
    pub fn forget_requests(&mut self, scopes: &[([u8; 16], Position)]) {
        for (scope, position) in scopes {
            idempotency::forget(&mut self.rows, scope, *position);
            self.dirty_without_record = true;
        }
    }

    /// Whether anything still rests on a record. What is not needed once is never needed again.
    pub fn needs_record(&self, events: &mut EventLookup, position: Position, record: &Record) -> bool {
        if position > self.applied {
            return true;
        }
        let of_any = |deliveries: &[DeliveryKey], events: &mut EventLookup| {
            deliveries.iter().any(|delivery| events.contains(&self.rows, delivery.event))
        };
        match record {
            Record::EventAccepted(_) if failpoints::is_active(Mutation::DropNeeded) => false,
            Record::EventAccepted(event) => {
                events.contains(&self.rows, position) || self.holds_stream_or_request(event, position)
            }
            Record::AttemptFinished { delivery, .. } => {
                let lane = counters::lane(&self.rows, delivery.endpoint);
                events.contains(&self.rows, delivery.event)
                    || lane.last_success == position
                    || lane.hold.is_some_and(|(_, held_by)| held_by == position)
            }
            Record::RateReserved { endpoint, .. } => {
                reserved::latest(&self.rows, *endpoint).is_some_and(|latest| latest.position == position)
            }
            // Few and small; what came between them was judged by each, and has to be judged so again.
            Record::EndpointPut(_)
            | Record::EndpointDeleted { .. }
            | Record::KeyPut(_)
            | Record::KeyDeleted { .. } => true,
            Record::DeliveriesRevived { deliveries, .. }
            | Record::DeliveriesCancelled { deliveries, .. }
            | Record::DeliveriesDied { deliveries, .. }
            | Record::DeadLettersPurged { deliveries, .. }
            | Record::DeliveriesReordered { deliveries, .. } => of_any(deliveries, events),
            Record::RequestAnswered { idempotency, .. } | Record::EventRejected { idempotency, .. } => {
                idempotency::known(&self.rows, &idempotency.scope)
                    .is_some_and(|known| known.position == position)
            }
        }
    }

    /// Whether a stream's version or an answered request rests on an event that is forgotten itself.
    fn holds_stream_or_request(&self, event: &Event, position: Position) -> bool {
        let head = event.stream.as_ref().and_then(|(stream, _)| {
            streams::head(&self.rows, &event.tenant, stream).filter(|head| head.last == position)
        });
        let remembered = || {
            let expiring = event.idempotency.iter().filter(|idempotency| idempotency.expires_at.is_some());
            let mut known =
                expiring.filter_map(|idempotency| idempotency::known(&self.rows, &idempotency.scope));
            known.any(|known| known.position == position)
        };
        head.is_some() || remembered()
    }

    /// Positions of the records that made the live endpoints and keys what they are.
    #[must_use]
    pub fn registry_positions(&self) -> Vec<Position> {
        self.positions(&[ENDPOINTS]).into_iter().chain(self.positions(&[KEYS])).collect()
    }

    /// Positions of the last records of endpoints that were deleted.
    #[must_use]
    pub fn deleted_endpoint_positions(&self) -> Vec<Position> {
        self.positions(&[DELETED])
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
    pub fn skip_to(&mut self, end: Position) {
        self.applied = self.applied.max(end);
    }

    /// Whether enough rows have changed that a checkpoint should not wait for its time.
    #[must_use]
    pub fn needs_checkpoint(&self) -> bool {
        self.rows.changed_rows() >= failpoints::bound(Bound::CheckpointRows, limits::CHECKPOINT_ROWS_MAX)
    }

    /// Compares it with one that was folded from the journal anew; tells each difference. `gaps` says that retention has
    /// taken records from the journal. Gives how many rows were looked at.
    pub fn audit(
        &self,
        folded: &Self,
        gaps: bool,
        differs: &mut dyn FnMut(String),
        looked_at: &mut dyn FnMut(u64),
    ) -> u64 {
        let Cursor { totals, expired_until, cutoffs, .. } = self.cursor();
        let meant = folded.cursor().totals;
        let events_differ = totals.events != meant.events && !(gaps && totals.events > meant.events);
        if (totals.pending, totals.dead) != (meant.pending, meant.dead) || events_differ {
            differs(format!("it counts {totals:?}, and the journal says {meant:?}"));
        }
        for prefix in [[ENDPOINTS], [DELETED], [KEYS]] {
            let (kept, meant) = (self.positions(&prefix), folded.positions(&prefix));
            if kept != meant {
                let what = if prefix == [KEYS] { "keys" } else { "endpoints" };
                differs(format!("{what} rest on the records {kept:?}, and the journal says {meant:?}"));
            }
        }
        for tag in (0..u8::MAX).filter(|tag| !TAGS.contains(tag)) {
            if let Some((key, _)) = crate::projections::rows::first_with(&self.rows, &[tag]) {
                differs(format!("there are rows of the unknown kind {tag}, for instance {key:?}"));
            }
        }
        let terms = Terms { cutoffs, expired_until, gaps };
        audit::audit(&self.rows, &folded.rows, &terms, differs, looked_at)
    }

    /// What a checkpoint would say now.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor {
            applied: self.applied,
            totals: self.fold.totals,
            checkpoints: self.fold.checkpoints(),
            expired_until: self.expired_until,
            cutoffs: self.cutoffs,
        }
    }

    /// Whether anything was applied since the last checkpoint.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.applied > self.checkpointed || self.dirty_without_record
    }

    /// Writes what changed_rows, with the position that it reflects, as one atomic batch; and copies the store when it has
    /// grown too much.
    ///
    /// # Errors
    /// When sled or the disk failed; the state must not be used any more, unless [`Self::reopen`] mends it.
    pub fn checkpoint(&mut self, now: Timestamp) -> Result<(), StateError> {
        if self.failure().is_some() {
            return Err(StateError::Damaged("a row could not be read"));
        }
        if !self.is_dirty() {
            return Ok(());
        }
        self.end_group();
        let over = if failpoints::is_active(Mutation::ForgetTooEarly) { Timestamp::MAX } else { now };
        idempotency::forget_expired(&mut self.rows, over);
        self.expired_until = self.expired_until.max(now);
        self.fold.on_checkpoint();
        if failpoints::is_active(Mutation::CursorApart) {
            self.rows.checkpoint()?;
        }
        self.rows.put(CURSOR, self.cursor().write());
        self.rows.checkpoint()?;
        self.checkpointed = self.applied;
        self.dirty_without_record = false;
        self.rows.base_mut().compact_if_oversized()?;
        Ok(())
    }

    /// After a checkpoint that failed because the disk was full: opens the rows again. What changed_rows since is still in
    /// memory, and the next checkpoint writes it.
    ///
    /// # Errors
    /// When they cannot be opened, or are not those of the last checkpoint or of the failed one.
    pub fn reopen(&mut self) -> Result<(), StateError> {
        self.rows.base_mut().reopen()?;
        let found = self.rows.base().get(CURSOR).and_then(|value| Cursor::read(&value)).unwrap_or_default();
        if [self.checkpointed, self.applied].contains(&found.applied) {
            Ok(())
        } else {
            Err(StateError::Damaged("it went back when it was opened again"))
        }
    }
}

/// Events that the state knows, by page, as far as they were asked for.
#[derive(Debug, Default)]
pub struct EventLookup {
    pages: HashMap<u64, Vec<Position>>,
}

impl EventLookup {
    fn contains(&mut self, rows: &Overlay, position: Position) -> bool {
        let page = pages::page_of(position);
        let known = self.pages.entry(page).or_insert_with(|| retention::positions(rows, page));
        known.binary_search(&position).is_ok()
    }
}

fn endpoint_key(number: EndpointNumber) -> Vec<u8> {
    [&[ENDPOINTS][..], &number.0.to_be_bytes()].concat()
}

fn deleted_key(number: EndpointNumber) -> Vec<u8> {
    [&[DELETED][..], &number.0.to_be_bytes()].concat()
}

fn key_key(id: &KeyId) -> Vec<u8> {
    [&[KEYS][..], id.as_str().as_bytes()].concat()
}

/// Why a cursor of another layout cannot be used. In each it begins with the layout and the position.
fn layout_error(cursor: &[u8], journal_end: Position) -> StateError {
    let mut reader = Reader::new(cursor);
    match (reader.get_varint(), reader.get_varint().map(Position)) {
        (Ok(1..LAYOUT), Ok(applied)) if applied > journal_end => StateError::Ahead { applied, journal_end },
        (Ok(layout @ 1..LAYOUT), Ok(_)) => StateError::EarlierLayout(layout),
        _ => StateError::Damaged("unknown layout"),
    }
}

impl Cursor {
    fn write(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(48);
        let Totals { pending, dead, events } = self.totals;
        // Nothing is over by time zero.
        let millis = |cutoff: Option<Timestamp>| cutoff.map_or(0, Timestamp::millis);
        let numbers = [
            LAYOUT,
            self.applied.0,
            pending,
            dead,
            events,
            self.checkpoints,
            self.expired_until.millis(),
            millis(self.cutoffs.events),
            millis(self.cutoffs.stream_events),
        ];
        for number in numbers {
            put_varint(&mut value, number);
        }
        value
    }

    /// `None` when it is of another layout.
    fn read(value: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(value);
        let mut number = || reader.get_varint().ok();
        if number()? != LAYOUT {
            return None;
        }
        let applied = Position(number()?);
        let totals = Totals { pending: number()?, dead: number()?, events: number()? };
        let checkpoints = number()?;
        let mut time = || number().map(Timestamp::from_millis);
        let expired_until = time()?;
        let cutoffs = Cutoffs {
            events: Some(time()?).filter(|cutoff| *cutoff != Timestamp::ZERO),
            stream_events: Some(time()?).filter(|cutoff| *cutoff != Timestamp::ZERO),
        };
        Some(Self { applied, totals, checkpoints, expired_until, cutoffs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::put_varint;

    #[test]
    fn a_state_of_an_earlier_layout_still_shows_that_the_journal_has_lost_its_end() {
        let cursor = |layout, applied| {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, layout);
            put_varint(&mut bytes, applied);
            layout_error(&bytes, Position(9))
        };
        assert!(matches!(cursor(LAYOUT - 1, 9), StateError::EarlierLayout(layout) if layout == LAYOUT - 1));
        assert!(matches!(cursor(LAYOUT - 1, 10), StateError::Ahead { applied: Position(10), .. }));
        assert!(matches!(cursor(LAYOUT + 1, 9), StateError::Damaged(_)));
    }
}

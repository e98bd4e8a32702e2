//! The state: rows derived from the journal, with the position that they reflect.
//!
//! Owns the overlay and the fold. A single thread owns the state. The state can be lost at any
//! time: it is rebuilt from the journal. Invariant: applying every record after [`State::applied`]
//! in order gives the state of the journal's end. A record that was applied early is then skipped.

mod cursor;
mod early;
mod forgetting;
mod needs;
mod overlay;
mod registry_keys;
mod replacement;
pub(crate) mod row_store;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

pub use cursor::{AppliedPart, StateCursor};
pub use early::EarlyRecords;
pub use needs::EventLookup;
pub(crate) use replacement::remove_unfinished;
pub(crate) use row_store::{RebuildSite, ReplaceError};

use cursor::layout_error;
use overlay::Overlay;
use registry_keys::{deleted_key, endpoint_key, key_key, source_key, tenant_key, type_key, use_key};
use row_store::RowStore;

use crate::domain::{
    ConsumerKey, ConsumerPlace, EndpointNumber, IdMap, JobProgress, Position, Record, Tenant, Timestamp,
};
use crate::failpoints::{self, Bound, Mutation};
use crate::limits;
use crate::projections::audit::{self, Terms};
use crate::projections::fold::RecordedHorizon;
use crate::projections::retention::Cutoffs;
use crate::projections::rows::TAGS;
use crate::projections::usage::{self, Usage};
use crate::projections::{Fold, LaneChange, Rows, consumers, erasures, idempotency, jobs, pages};
use crate::storage::disk::{is_disk_full, is_out_of_descriptors};

/// Why the state cannot be used. A rebuild from the journal repairs all of it.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("state: {0}")]
    Sled(sled::Error),
    #[error("state: {0}")]
    Io(std::io::Error),
    #[error("state: {0}")]
    Damaged(&'static str),
    /// The state is intact.
    #[error("state: written by an earlier version, layout {0}")]
    EarlierLayout(u64),
    /// Only durable records are applied, so the journal has lost the records in between.
    #[error("state: applied up to record {applied}, but the journal ends at {journal_end}")]
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

    /// Whether the cause is the environment (disk, permissions, descriptors), so that a rebuild
    /// does not help.
    #[must_use]
    pub fn is_environmental(&self) -> bool {
        let denied = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
        let of_the_system = |error: &io::Error| {
            is_disk_full(error) || is_out_of_descriptors(error) || denied.contains(&error.kind())
        };
        self.io().is_some_and(of_the_system)
    }
}

/// Key of the cursor row: the position that all rows reflect. No row of a projection has this tag.
const CURSOR: &[u8] = b"A";
/// Rows of endpoints (`C`, number; `c` after deletion), keys (`K`, id), settings of tenants
/// (`N`, tenant), event types (`Y`, name) and sources (`s`, name), and of the last uses of keys
/// (`k`, id). The value is the position of the record with their current content.
const ENDPOINTS: u8 = b'C';
const DELETED: u8 = b'c';
const KEYS: u8 = b'K';
const TENANTS: u8 = b'N';
const TYPES: u8 = b'Y';
const SOURCES: u8 = b's';
const KEY_USES: u8 = b'k';
/// Tags beside those of [`projections`](crate::projections): the cursor, the registry, and the
/// checksum row of [`row_store`].
const OWN_TAGS: &[u8] = &[b'A', ENDPOINTS, DELETED, KEYS, TENANTS, TYPES, SOURCES, KEY_USES, b'0'];

/// The tags of all rows.
pub(crate) fn known_tags() -> impl Iterator<Item = u8> {
    OWN_TAGS.iter().chain(TAGS).copied()
}

/// Result of [`State::apply_step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppliedStep {
    /// Number of deliveries that the step changed.
    pub deliveries: usize,
    /// Whether the record is applied as a whole.
    pub is_complete: bool,
}

#[derive(Debug)]
pub struct State {
    rows: Overlay,
    fold: Fold,
    applied: Position,
    part: Option<AppliedPart>,
    early: EarlyRecords,
    checkpointed_part: Option<AppliedPart>,
    checkpointed: Position,
    /// Retention deleted rows since the last checkpoint, without a record.
    dirty_without_record: bool,
    expired_until: Timestamp,
    cutoffs: Cutoffs,
    acts_from: Timestamp,
}

impl State {
    /// Opens the state in `directory`. `journal_end` is the last position of the journal. A state
    /// beyond it shows that the journal lost records.
    ///
    /// # Errors
    /// When the state has to be moved aside and rebuilt.
    pub fn open(directory: &Path, journal_end: Position) -> Result<Self, StateError> {
        Self::with_rows(RowStore::open(directory)?, journal_end)
    }

    /// As [`Self::open`], with open rows.
    pub(crate) fn with_rows(base: RowStore, journal_end: Position) -> Result<Self, StateError> {
        let cursor = match base.get(CURSOR) {
            None if base.is_empty() => StateCursor::default(),
            None => return Err(StateError::Damaged("the cursor row is missing")),
            Some(value) => match StateCursor::read(&value) {
                Some(cursor) => cursor,
                None => return Err(layout_error(&value, journal_end)),
            },
        };
        let StateCursor { applied, part, early, totals, checkpoints, .. } = cursor;
        let StateCursor { expired_until, cutoffs, horizon, acts_from, .. } = cursor;
        let in_part = part.map_or(applied, |part| part.position);
        let last = early.last().map_or(in_part, |last| in_part.max(last));
        if last > journal_end {
            return Err(StateError::Ahead { applied: last, journal_end });
        }
        let (rows, fold) = (Overlay::new(base), Fold::resume(checkpoints, totals, horizon));
        Ok(Self {
            rows,
            fold,
            applied,
            part: part.filter(|_| !failpoints::is_active(Mutation::ForgetPart)),
            early: if failpoints::is_active(Mutation::ForgetEarly) { EarlyRecords::default() } else { early },
            checkpointed_part: part,
            checkpointed: applied,
            dirty_without_record: false,
            expired_until,
            cutoffs,
            acts_from,
        })
    }

    /// Restores an existing endpoint or key in the fold. Call before the first [`Self::apply`].
    pub fn restore(&mut self, record: &Record) {
        match record {
            Record::EndpointPut(endpoint) => self.fold.restore_endpoint(endpoint),
            Record::KeyPut(key) => self.fold.restore_key(key),
            Record::TypePut(definition) => self.fold.restore_type(definition),
            _ => {}
        }
    }

    /// Restores a deleted endpoint in the fold. Call before the first [`Self::apply`].
    pub fn restore_deleted(&mut self, record: &Record) {
        if let Record::EndpointPut(endpoint) = record {
            self.fold.restore_deleted_endpoint(endpoint);
        }
    }

    /// Collects changed usage for [`Self::take_changed_usage`]. Returns the usage so far.
    pub(crate) fn watch_usage(&mut self) -> Vec<(Tenant, Usage)> {
        self.fold.watch_usage();
        usage::after(self.rows(), None, usize::MAX)
    }

    /// Usage that was written since the last call.
    pub(crate) fn take_changed_usage(&mut self) -> IdMap<Tenant, Usage> {
        self.fold.take_changed_usage()
    }

    #[must_use]
    pub fn applied(&self) -> Position {
        self.applied
    }

    /// The record that is applied in part; its rest must follow.
    #[must_use]
    pub fn part(&self) -> Option<AppliedPart> {
        self.part
    }

    /// The memory of the fold.
    #[must_use]
    pub(crate) fn fold(&self) -> &Fold {
        &self.fold
    }

    /// The endpoints of an event.
    #[must_use]
    pub(crate) fn targets_of(&self, event: Position) -> Vec<EndpointNumber> {
        let entry = pages::event(&self.rows, event);
        entry.map(|entry| pages::targets(&self.rows, &entry).into_owned()).unwrap_or_default()
    }

    #[must_use]
    pub(crate) fn rows(&self) -> &dyn Rows {
        debug_assert!(self.fold.has_written_tallies(), "end_group must precede a read");
        &self.rows
    }

    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.rows.base().size_bytes()
    }

    /// Number of rows at the last checkpoint, or fewer: some rows are stored together.
    #[must_use]
    pub fn checkpointed_rows(&self) -> u64 {
        self.rows.base().len()
    }

    /// Why a row could not be read. All answers are then unreliable, including earlier ones.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.rows.base().failure()
    }

    /// Marks the state on disk for a rebuild at the next start.
    pub fn mark_unreadable(&self) {
        self.rows.base().mark_unreadable();
    }

    /// Applies the next record of a group. Call [`Self::end_group`] or [`Self::checkpoint`] before
    /// reading. See [`Fold::apply`] for `announced` and `changes`.
    pub fn apply(
        &mut self,
        position: Position,
        record: &Record,
        announced: bool,
        changes: &mut Vec<LaneChange>,
    ) {
        while !self.apply_step(position, record, announced, changes).is_complete {}
    }

    /// Applies the next part of a record: of an event with many deliveries a bounded number of
    /// them. A checkpoint between two steps is allowed. See [`Self::apply`].
    pub fn apply_step(
        &mut self,
        position: Position,
        record: &Record,
        announced: bool,
        changes: &mut Vec<LaneChange>,
    ) -> AppliedStep {
        let most = failpoints::bound(Bound::ApplyStepTargets, limits::APPLY_STEP_TARGETS);
        self.apply_up_to(most, position, record, announced, changes)
    }

    fn apply_up_to(
        &mut self,
        most: usize,
        position: Position,
        record: &Record,
        announced: bool,
        changes: &mut Vec<LaneChange>,
    ) -> AppliedStep {
        assert!(position > self.applied, "record {position} does not follow {}", self.applied);
        if self.part.is_none() && position > self.applied.next() {
            self.fold.on_gap(Position(position.0 - 1));
        }
        if self.part.is_none() && self.early.whole.contains(&position) {
            self.advance_to(position);
            return AppliedStep { deliveries: 0, is_complete: true };
        }
        let deliveries = usize::from(self.early.begun.remove(&position));
        let part = self.part.unwrap_or(AppliedPart { position, deliveries });
        assert!(part.position == position, "record {position} precedes the rest of {}", part.position);
        let mut step = AppliedStep { deliveries: record.deliveries(position).len(), is_complete: true };
        if let Record::EventAccepted(event) = record {
            let first = part.deliveries.min(step.deliveries);
            let end = first.saturating_add(most).min(step.deliveries);
            step = AppliedStep { deliveries: end - first, is_complete: end == step.deliveries };
            self.fold.apply_part(&mut self.rows, position, event, first..end, announced, changes);
            self.part = Some(AppliedPart { position, deliveries: end });
        } else {
            self.fold.apply(&mut self.rows, position, record, announced, changes);
            self.update_registry_rows(position, record);
        }
        if step.is_complete {
            self.advance_to(position);
        }
        step
    }

    /// Also forgets the early records up to there: damage may have lost some of them.
    fn advance_to(&mut self, position: Position) {
        (self.applied, self.part) = (position, None);
        self.early.forget_up_to(position);
    }

    pub fn end_group(&mut self) {
        self.fold.write_tallies(&mut self.rows);
    }

    fn update_registry_rows(&mut self, position: Position, record: &Record) {
        let at = || position.0.to_be_bytes().to_vec();
        match record {
            Record::EndpointPut(endpoint) => self.rows.put(&endpoint_key(endpoint.number), at()),
            Record::EndpointDeleted { endpoint, .. } => {
                // A tombstone keeps the position of its last record, so that old deliveries can
                // name the endpoint.
                if let Some(last) = self.rows.get(&endpoint_key(*endpoint)) {
                    self.rows.put(&deleted_key(*endpoint), last);
                    self.rows.remove(&endpoint_key(*endpoint));
                }
            }
            Record::KeyPut(key) => self.rows.put(&key_key(&key.id), at()),
            Record::KeyDeleted { id, .. } => {
                self.rows.remove(&key_key(id));
                self.rows.remove(&use_key(id));
            }
            Record::KeyUsed { id, .. } => self.rows.put(&use_key(id), at()),
            Record::TenantPut(settings) => self.rows.put(&tenant_key(&settings.tenant), at()),
            Record::TenantDeleted { tenant, .. } => self.rows.remove(&tenant_key(tenant)),
            Record::TypePut(definition) => self.rows.put(&type_key(&definition.name), at()),
            Record::TypeDeleted { name, .. } => self.rows.remove(&type_key(name)),
            Record::SourcePut(source) => self.rows.put(&source_key(&source.name), at()),
            Record::SourceDeleted { name, .. } => self.rows.remove(&source_key(name)),
            Record::EventAccepted(_)
            | Record::HorizonMoved { .. }
            | Record::AttemptFinished { .. }
            | Record::DeliveriesRevived { .. }
            | Record::DeliveriesCancelled { .. }
            | Record::DeliveriesDied { .. }
            | Record::DeadLettersPurged { .. }
            | Record::DeliveriesReordered { .. }
            | Record::RequestAnswered { .. }
            | Record::RateReserved { .. }
            | Record::EventRejected { .. }
            | Record::ConsumerPut(_)
            | Record::ConsumerMoved { .. }
            | Record::ConsumerDeleted { .. }
            | Record::EventErased { .. }
            | Record::MessagesLeased { .. }
            | Record::LeasesEnded { .. }
            | Record::LeasesExtended { .. }
            | Record::JobPut(_)
            | Record::JobMoved { .. }
            | Record::Audited(_) => {}
        }
    }

    /// Up to `limit` erased events after a position whose content is still in the journal's files.
    #[must_use]
    pub fn pending_erasures(&self, after: Position, limit: usize) -> Vec<(Position, Timestamp)> {
        erasures::pending(&self.rows, after, limit)
    }

    /// Notes that no file of the journal has the content of these events.
    pub fn complete_erasures(&mut self, events: &[Position]) {
        erasures::complete(&mut self.rows, events);
        self.dirty_without_record |= !events.is_empty();
    }

    /// The recorded horizon.
    #[must_use]
    pub fn horizon(&self) -> RecordedHorizon {
        self.fold.horizon
    }

    /// Positions of the records with the current content of the live endpoints, keys, tenants,
    /// event types, sources, consumers and jobs, and of the last use of each key.
    #[must_use]
    pub fn registry_positions(&self) -> Vec<Position> {
        let consumers = consumers::all(&self.rows).into_iter().map(|(_, row)| row.defined);
        let jobs = jobs::all(&self.rows).into_iter().map(|(number, _)| number);
        [ENDPOINTS, KEYS, TENANTS, TYPES, SOURCES, KEY_USES]
            .into_iter()
            .flat_map(|tag| self.positions(&[tag]))
            .chain(consumers)
            .chain(jobs)
            .collect()
    }

    /// The places of all consumers.
    #[must_use]
    pub fn consumer_places(&self) -> Vec<(ConsumerKey, ConsumerPlace)> {
        consumers::all(&self.rows).into_iter().map(|(key, row)| (key, row.place)).collect()
    }

    /// The progress of all jobs, by number.
    #[must_use]
    pub fn job_progress(&self) -> Vec<(Position, JobProgress)> {
        jobs::all(&self.rows).into_iter().map(|(number, row)| (number, row.progress)).collect()
    }

    /// Positions of the last records of deleted endpoints.
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

    /// Advances the applied position past records that are lost to damage.
    pub fn skip_to(&mut self, end: Position) {
        if self.part.is_none() && end > self.applied {
            self.fold.on_gap(end);
            self.advance_to(end);
        }
    }

    /// Whether enough rows changed for a checkpoint before its regular time. On a slow disk more
    /// rows may change, because a checkpoint waits until the one before is durable.
    #[must_use]
    pub fn needs_checkpoint(&self) -> bool {
        let most = failpoints::bound(Bound::CheckpointRows, limits::CHECKPOINT_ROWS_MAX);
        let limit = match self.part {
            None => most,
            Some(_) => failpoints::bound(Bound::PartCheckpointRows, limits::PART_CHECKPOINT_ROWS_MAX),
        };
        let bytes = limits::CHECKPOINT_BYTES_MAX;
        let is_over = |rows, bytes| self.rows.changed_rows() >= rows || self.rows.changed_bytes() >= bytes;
        is_over(limit, bytes) && (is_over(limit + most, 2 * bytes) || !self.rows.base().is_writing())
    }

    /// Compares this state with one that was folded from the journal, and reports each difference
    /// to `differs`. `gaps`: retention has removed records from the journal. Returns the number of
    /// compared rows.
    pub fn audit(
        &self,
        folded: &Self,
        gaps: bool,
        differs: &mut dyn FnMut(String),
        looked_at: &mut dyn FnMut(u64),
    ) -> u64 {
        let StateCursor { totals, expired_until, cutoffs, horizon, acts_from, .. } = self.cursor();
        let meant = folded.cursor().totals;
        if horizon != folded.horizon() {
            differs(format!("the horizon is {horizon:?}, the journal gives {:?}", folded.horizon()));
        }
        let events_differ = totals.events != meant.events && !(gaps && totals.events > meant.events);
        if (totals.pending, totals.dead) != (meant.pending, meant.dead) || events_differ {
            differs(format!("counts are {totals:?}, the journal gives {meant:?}"));
        }
        for prefix in [[ENDPOINTS], [DELETED], [KEYS], [TENANTS], [TYPES], [SOURCES], [KEY_USES]] {
            let (kept, meant) = (self.positions(&prefix), folded.positions(&prefix));
            if kept != meant {
                let what = match prefix {
                    [KEYS] => "keys",
                    [TENANTS] => "tenants",
                    [TYPES] => "event types",
                    [SOURCES] => "sources",
                    [KEY_USES] => "uses of keys",
                    _ => "endpoints",
                };
                differs(format!("{what} refer to records {kept:?}, the journal gives {meant:?}"));
            }
        }
        for tag in (0..u8::MAX).filter(|tag| known_tags().all(|known| known != *tag)) {
            if let Some((key, _)) = crate::projections::rows::first_with_prefix(&self.rows, &[tag]) {
                differs(format!("rows of unknown kind {tag}, for example {key:?}"));
            }
        }
        let terms = Terms { cutoffs, expired_until, acts_from, horizon: horizon.horizon, gaps };
        audit::audit(&self.rows, &folded.rows, &terms, differs, looked_at)
    }

    /// The cursor that a checkpoint would write now.
    #[must_use]
    pub fn cursor(&self) -> StateCursor {
        StateCursor {
            applied: self.applied,
            part: self.part,
            early: self.early.clone(),
            totals: self.fold.totals,
            checkpoints: self.fold.checkpoints(),
            expired_until: self.expired_until,
            cutoffs: self.cutoffs,
            horizon: self.fold.horizon,
            acts_from: self.acts_from,
        }
    }

    /// Whether a record was applied or a row was deleted since the last checkpoint.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.applied > self.checkpointed || self.part != self.checkpointed_part || self.dirty_without_record
    }

    /// Writes a checkpoint and waits until it is durable; see [`Self::begin_checkpoint`].
    ///
    /// # Errors
    /// As there.
    pub fn checkpoint(&mut self, now: Timestamp) -> Result<(), StateError> {
        self.begin_checkpoint(now)?;
        if failpoints::is_active(Mutation::RemoveBeforeSync) {
            return Ok(());
        }
        self.rows.base_mut().finish_write()
    }

    /// Writes the changed rows and the cursor as one atomic batch. Compacts the store if its file
    /// is much larger than its rows. The checkpoint becomes durable in the background: a crash
    /// keeps it or the one before, and the journal has the records of both.
    ///
    /// # Errors
    /// When sled or the disk failed, now or with the checkpoint before. The state is then unusable,
    /// unless [`Self::reopen`] repairs it.
    pub fn begin_checkpoint(&mut self, now: Timestamp) -> Result<(), StateError> {
        if self.failure().is_some() {
            return Err(StateError::Damaged("a row cannot be read"));
        }
        if !self.is_dirty() {
            return self.rows.base_mut().finish_write();
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
        (self.checkpointed, self.checkpointed_part) = (self.applied, self.part);
        self.dirty_without_record = false;
        self.rows.base_mut().compact_if_oversized()?;
        Ok(())
    }

    /// Reopens the rows after a checkpoint failed on a full disk. The changed rows are still in
    /// memory, and the next checkpoint writes them.
    ///
    /// # Errors
    /// When the rows cannot be opened, or reflect neither the last checkpoint nor the failed one.
    pub fn reopen(&mut self) -> Result<(), StateError> {
        self.rows.base_mut().reopen()?;
        let found =
            self.rows.base().get(CURSOR).and_then(|value| StateCursor::read(&value)).unwrap_or_default();
        let is_last = (found.applied, found.part) == (self.checkpointed, self.checkpointed_part);
        if is_last || (found.applied, found.part) == (self.applied, self.part) {
            Ok(())
        } else {
            Err(StateError::Damaged("the reopened state is older than the last checkpoint"))
        }
    }
}

//! Records that are applied before earlier ones. [`State::apply_step`] then skips them.

use std::collections::BTreeSet;

use super::{AppliedPart, State};
use crate::codec::Reader;
use crate::domain::{Event, Position, Record};
use crate::projections::LaneChange;
use crate::projections::pending::{positions, put_positions};

/// Records after [`State::applied`], and after [`State::part`], that were applied early.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EarlyRecords {
    pub whole: BTreeSet<Position>,
    /// Events of which only the first delivery is applied.
    pub begun: BTreeSet<Position>,
}

impl EarlyRecords {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.whole.len() + self.begun.len()
    }

    #[must_use]
    pub fn last(&self) -> Option<Position> {
        self.whole.last().max(self.begun.last()).copied()
    }

    pub(super) fn forget_up_to(&mut self, last: Position) {
        for early in [&mut self.whole, &mut self.begun] {
            while early.first().is_some_and(|first| *first <= last) {
                early.pop_first();
            }
        }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        for early in [&self.whole, &self.begun] {
            put_positions(out, &early.iter().copied().collect::<Vec<_>>());
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let mut early = || positions(reader).ok().map(BTreeSet::from_iter);
        Some(Self { whole: early()?, begun: early()? })
    }
}

impl State {
    /// Which later records are applied already.
    #[must_use]
    pub fn early(&self) -> &EarlyRecords {
        &self.early
    }

    /// Applies a record before the rest of a partly applied event, or before other records. The
    /// caller ensures that both orders give the same rows.
    pub fn apply_early(&mut self, position: Position, record: &Record, changes: &mut Vec<LaneChange>) {
        self.check_is_early(position);
        self.early.whole.insert(position);
        self.fold.apply(&mut self.rows, position, record, true, changes);
        self.update_registry_rows(position, record);
    }

    /// As [`Self::apply_early`], for an event and its first delivery.
    pub fn begin_early(&mut self, position: Position, event: &Event, changes: &mut Vec<LaneChange>) {
        self.check_is_early(position);
        self.early.begun.insert(position);
        self.fold.apply_part(&mut self.rows, position, event, 0..1, false, changes);
    }

    fn check_is_early(&self, position: Position) {
        let last = self.part.map_or(self.applied, |part| part.position);
        let is_applied = self.early.whole.contains(&position) || self.early.begun.contains(&position);
        assert!(position > last && !is_applied, "record {position} is applied, or does not follow {last}");
    }

    /// Applies of a record what another state with the same position has applied of it: a part,
    /// the record as a whole, or nothing.
    pub fn apply_as(&mut self, other: &Self, position: Position, record: &Record) {
        if let Some(part) = other.part.filter(|part| part.position == position) {
            self.apply_part(part, record);
        } else if other.early.whole.contains(&position) {
            self.apply_early(position, record, &mut Vec::new());
        } else if let Record::EventAccepted(event) = record
            && other.early.begun.contains(&position)
        {
            self.begin_early(position, event, &mut Vec::new());
        }
        self.end_group();
    }

    /// Applies the first deliveries of an event.
    pub fn apply_part(&mut self, part: AppliedPart, record: &Record) {
        self.apply_up_to(part.deliveries, part.position, record, false, &mut Vec::new());
    }
}

//! The cursor row: the records that all rows reflect, in a versioned layout.

use super::{EarlyRecords, StateError};
use crate::codec::{Reader, put_varint};
use crate::domain::{Horizon, Position, Timestamp};
use crate::projections::fold::{RecordedHorizon, Totals};
use crate::projections::retention::Cutoffs;

/// Version of the row layouts and of the fold. A state of another version is rebuilt.
const LAYOUT: u64 = 17;

/// Position that the rows reflect, and what was deleted without a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateCursor {
    pub applied: Position,
    /// The record after it, if only a part of it is applied.
    pub part: Option<AppliedPart>,
    pub early: EarlyRecords,
    pub totals: Totals,
    /// Number of checkpoints so far.
    pub(super) checkpoints: u64,
    /// Requests that expired before this time may be deleted.
    pub expired_until: Timestamp,
    /// Events that ended before these times may be deleted.
    pub cutoffs: Cutoffs,
    /// Events up to it may be deleted.
    pub horizon: RecordedHorizon,
    /// Audit entries of acts before it may be deleted.
    pub acts_from: Timestamp,
}

/// A record of which only the first deliveries are applied. Their rows are part of the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppliedPart {
    pub position: Position,
    pub deliveries: usize,
}

/// Why a cursor of another layout cannot be used. Every layout begins with its version and the
/// position.
pub(super) fn layout_error(cursor: &[u8], journal_end: Position) -> StateError {
    let mut reader = Reader::new(cursor);
    match (reader.get_varint(), reader.get_varint().map(Position)) {
        (Ok(1..LAYOUT), Ok(applied)) if applied > journal_end => StateError::Ahead { applied, journal_end },
        (Ok(layout @ 1..LAYOUT), Ok(_)) => StateError::EarlierLayout(layout),
        _ => StateError::Damaged("unknown layout"),
    }
}

impl StateCursor {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(48);
        let Totals { pending, dead, events } = self.totals;
        // Zero means no cutoff: no event ended before time zero.
        let millis = |cutoff: Option<Timestamp>| cutoff.map_or(0, Timestamp::millis);
        let RecordedHorizon { horizon, record } = self.horizon;
        // Zero means no part: no record has this position.
        let part = self.part.unwrap_or_default();
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
            part.position.0,
            part.deliveries as u64,
            horizon.events.0,
            horizon.stream_events.0,
            record.0,
            self.acts_from.millis(),
        ];
        for number in numbers {
            put_varint(&mut value, number);
        }
        self.early.write(&mut value);
        value
    }

    /// Returns `None` for another layout.
    pub(super) fn read(value: &[u8]) -> Option<Self> {
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
        let position = Position(number()?);
        let part = AppliedPart { position, deliveries: usize::try_from(number()?).ok()? };
        let part = Some(part).filter(|part| part.position != Position(0));
        let horizon = Horizon { events: Position(number()?), stream_events: Position(number()?) };
        let horizon = RecordedHorizon { horizon, record: Position(number()?) };
        let acts_from = Timestamp::from_millis(number()?);
        let early = EarlyRecords::read(&mut reader)?;
        Some(Self { applied, part, early, totals, checkpoints, expired_until, cutoffs, horizon, acts_from })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::put_varint;

    #[test]
    fn earlier_layout_still_detects_a_lost_journal_end() {
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

//! The positions that the outbox has reached.

use std::sync::atomic::Ordering;

use super::Outbox;
use crate::domain::Position;

impl Outbox {
    /// The last position whose group the apply thread has got. Every later question reflects it.
    #[must_use]
    pub fn readable(&self) -> Position {
        Position(self.inner.readable.load(Ordering::Acquire))
    }

    /// Number of records that the state has not applied yet.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.inner.reader.last_position().0.saturating_sub(self.inner.applied.load(Ordering::Relaxed))
    }
}

//! The horizon of the log: how far retention has forgotten events.

use super::Position;

/// Positions of the last forgotten events. Every later event is still there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Horizon {
    /// The last forgotten event without a stream.
    pub events: Position,
    /// The last forgotten event of a stream.
    pub stream_events: Position,
}

impl Horizon {
    /// A horizon where every event up to a position may be forgotten.
    #[must_use]
    pub fn up_to(position: Position) -> Self {
        Self { events: position, stream_events: position }
    }

    /// The later one of each kind.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            events: self.events.max(other.events),
            stream_events: self.stream_events.max(other.stream_events),
        }
    }

    /// The position after which no event of any kind is forgotten.
    #[must_use]
    pub fn of_all(self) -> Position {
        self.events.max(self.stream_events)
    }
}

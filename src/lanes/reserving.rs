//! The reservation that a lane waits for before it sends at its rate.
//!
//! Owns: which reservation is being written, and for how long the next one has to be good. A lane
//! that waits for one holds no slot. When it is durable, the lane goes on at the front of its lines:
//! it has had its turn. The wait for a slot takes time, too, so a reservation covers a request that
//! leaves a while later ([`Reserving::lead`]); when it has become too old all the same, the lane asks
//! again, for a longer one.

use std::time::Duration;

use crate::domain::{Now, Reservation};
use crate::limits;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    None,
    /// It is being written.
    Asked {
        reservation: Reservation,
        at: Duration,
    },
    /// It is durable, and the request that it was asked for has not left.
    Durable {
        asked_at: Duration,
    },
}

#[derive(Debug)]
pub(super) struct Reserving {
    stage: Stage,
    lead: Duration,
}

impl Default for Reserving {
    fn default() -> Self {
        Self { stage: Stage::None, lead: limits::RATE_RESERVATION_LEAD_MIN }
    }
}

impl Reserving {
    pub(super) fn is_asked(&self) -> bool {
        matches!(self.stage, Stage::Asked { .. })
    }

    /// Whether the lane has had its turn, and has yet to use it.
    pub(super) fn is_durable(&self) -> bool {
        matches!(self.stage, Stage::Durable { .. })
    }

    /// How much later than its reservation a request may leave: twice the time that the last one took.
    pub(super) fn lead(&self) -> Duration {
        self.lead
    }

    pub(super) fn ask(&mut self, reservation: Reservation, now: Now) {
        self.stage = Stage::Asked { reservation, at: now.monotonic };
    }

    /// Gives whether it is the one that was asked for.
    pub(super) fn on_durable(&mut self, durable: &Reservation) -> bool {
        match self.stage {
            Stage::Asked { reservation, at } if reservation == *durable => {
                self.stage = Stage::Durable { asked_at: at };
                true
            }
            Stage::None | Stage::Asked { .. } | Stage::Durable { .. } => false,
        }
    }

    /// The lane could send now: the request leaves, or its reservation has become too old.
    pub(super) fn on_turn(&mut self, now: Now) {
        if let Stage::Durable { asked_at } = self.stage {
            let took = now.monotonic.saturating_sub(asked_at);
            let bounds = (limits::RATE_RESERVATION_LEAD_MIN, limits::RATE_RESERVATION_LEAD_MAX);
            self.lead = (2 * took).clamp(bounds.0, bounds.1);
            self.stage = Stage::None;
        }
    }

    /// The lane waits for something else than a slot: its turn is over.
    pub(super) fn lose_turn(&mut self) {
        if self.is_durable() {
            self.stage = Stage::None;
        }
    }
}

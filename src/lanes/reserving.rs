//! The rate reservation that a lane must make durable before it sends.
//!
//! Owns the pending reservation and the lead of the next one. A waiting lane holds no slot. When
//! the reservation is durable, the lane joins the front of its queues: it already spent its turn.
//! The wait for a slot also takes time, so a reservation covers requests up to [`Reserving::lead`]
//! later. If it is too old even so, the lane requests another one with a longer lead.

use std::time::Duration;

use crate::domain::{Now, Reservation};
use crate::limits;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    None,
    /// The reservation is being written.
    Requested {
        reservation: Reservation,
        at: Duration,
    },
    /// The reservation is durable, and its request is not sent yet.
    Durable {
        requested_at: Duration,
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
    pub(super) fn is_requested(&self) -> bool {
        matches!(self.stage, Stage::Requested { .. })
    }

    /// Whether the reservation is durable and unused.
    pub(super) fn is_durable(&self) -> bool {
        matches!(self.stage, Stage::Durable { .. })
    }

    /// How long after its reservation a request may leave: twice the delay of the last one.
    pub(super) fn lead(&self) -> Duration {
        self.lead
    }

    pub(super) fn request(&mut self, reservation: Reservation, now: Now) {
        self.stage = Stage::Requested { reservation, at: now.monotonic };
    }

    /// Returns whether this is the requested reservation.
    pub(super) fn on_durable(&mut self, durable: &Reservation) -> bool {
        match self.stage {
            Stage::Requested { reservation, at } if reservation == *durable => {
                self.stage = Stage::Durable { requested_at: at };
                true
            }
            Stage::None | Stage::Requested { .. } | Stage::Durable { .. } => false,
        }
    }

    /// The lane is about to send. If its reservation is too old, it requests another one.
    pub(super) fn on_turn(&mut self, now: Now) {
        if let Stage::Durable { requested_at } = self.stage {
            let took = now.monotonic.saturating_sub(requested_at);
            let bounds = (limits::RATE_RESERVATION_LEAD_MIN, limits::RATE_RESERVATION_LEAD_MAX);
            self.lead = (2 * took).clamp(bounds.0, bounds.1);
            self.stage = Stage::None;
        }
    }

    /// The lane waits for another reason than a slot, so it loses its priority in queues.
    pub(super) fn forfeit_turn(&mut self) {
        if self.is_durable() {
            self.stage = Stage::None;
        }
    }
}

//! The lanes of one tenant that wait for a slot, with headroom for healthy receivers.
//!
//! A lane whose receiver fails gets no slot of the headroom, an unknown receiver gets half of it. A
//! lane must also leave more slots free than it holds. So a healthy receiver finds a free slot at
//! once, however many receivers hang. Lanes without a slot wait in queues here, outside the ring.
//!
//! Receivers that answer slowly may take all slots. So that unknown receivers do not wait for ever
//! behind them, a few unknown receivers at a time may use any slot, and the next one is first in
//! turn.

use std::collections::VecDeque;

use super::host::QueueEnd;
use super::lane::{Lane, ReceiverHealth};
use crate::domain::EndpointNumber;

/// One in this many slots is headroom for receivers that answer.
const HEADROOM_PART: usize = 8;
/// Minimum headroom. A low limit that would give less has none: operators mean the exact number.
const HEADROOM_MIN: usize = 8;
/// One in this many slots of the headroom is for unknown receivers in turn.
const UNKNOWN_TURNS_PART: usize = 8;
const _: () = assert!(HEADROOM_MIN >= UNKNOWN_TURNS_PART); // at least one

/// Slots that a tenant may take now.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotRoom {
    pub(super) free: usize,
    headroom: usize,
}

impl SlotRoom {
    /// `held`: slots that the tenant holds already.
    pub(super) fn new(free: usize, held: usize) -> Self {
        let headroom = (free + held) / HEADROOM_PART;
        Self { free, headroom: if headroom < HEADROOM_MIN { 0 } else { headroom } }
    }

    /// Whether a slot is free for the lane without a turn of unknown receivers.
    pub(super) fn is_free_for(&self, lane: &Lane) -> bool {
        let usable = match lane.receiver {
            ReceiverHealth::Failing => 0,
            ReceiverHealth::Unknown => self.unknown_free(),
            ReceiverHealth::Answering => self.free,
        };
        self.free > self.headroom || lane.in_flight() < usable
    }

    fn unknown_free(&self) -> usize {
        self.free.saturating_sub(self.headroom / 2)
    }

    fn unknown_turns(&self) -> usize {
        self.headroom / UNKNOWN_TURNS_PART
    }
}

/// Lanes of one tenant.
#[derive(Debug, Default)]
pub(super) struct TenantLine {
    /// Lanes that may be ready, in order of turns.
    pub(super) ring: VecDeque<EndpointNumber>,
    failing: VecDeque<EndpointNumber>,
    unknown: VecDeque<EndpointNumber>,
    /// Requests to unknown receivers that use the headroom in turn.
    turns_taken: usize,
}

impl TenantLine {
    pub(super) fn is_empty(&self) -> bool {
        self.ring.is_empty() && self.failing.is_empty() && self.unknown.is_empty()
    }

    /// Whether a slot is free for this lane. A queued lane waits for [`Self::dequeue`], unless its
    /// receiver has answered since.
    pub(super) fn admit(&self, lane: &Lane, room: SlotRoom) -> bool {
        if lane.in_slot_queue && lane.receiver != ReceiverHealth::Answering {
            return false;
        }
        room.is_free_for(lane) || self.has_turn(lane, room)
    }

    /// Whether the lane may use the headroom in turn with receivers that answer.
    fn has_turn(&self, lane: &Lane, room: SlotRoom) -> bool {
        lane.receiver == ReceiverHealth::Unknown && lane.in_flight() == 0 && self.is_turn_free(room)
    }

    fn is_turn_free(&self, room: SlotRoom) -> bool {
        room.free > 0 && self.turns_taken < room.unknown_turns()
    }

    /// An admitted lane has sent. `in_turn`: it uses the headroom in turn.
    pub(super) fn on_sent(&mut self, lane: &mut Lane, in_turn: bool) {
        if in_turn {
            lane.in_turn = true;
            self.turns_taken += 1;
        }
    }

    /// A request of the lane has ended, or the lane was removed.
    pub(super) fn on_finished(&mut self, lane: &mut Lane) {
        if std::mem::take(&mut lane.in_turn) {
            self.turns_taken -= 1;
        }
    }

    /// Queues a lane that was not admitted. Returns whether it leaves the ring until it is
    /// dequeued. Lanes that hold slots and do not fail stay; the limit bounds their number.
    pub(super) fn enqueue(&mut self, endpoint: EndpointNumber, lane: &mut Lane) -> bool {
        let queue = match lane.receiver {
            ReceiverHealth::Failing => &mut self.failing,
            ReceiverHealth::Unknown if lane.in_flight() == 0 => &mut self.unknown,
            ReceiverHealth::Unknown | ReceiverHealth::Answering => return false,
        };
        if !std::mem::replace(&mut lane.in_slot_queue, true) {
            lane.queue_end().push(queue, endpoint);
        }
        true
    }

    pub(super) fn remove(&mut self, endpoint: EndpointNumber, lane: &Lane) {
        if lane.in_slot_queue {
            self.failing.retain(|other| *other != endpoint);
            self.unknown.retain(|other| *other != endpoint);
        }
    }

    /// Takes the next queued lane for which a slot may be free, and the end of the ring that it
    /// joins.
    pub(super) fn dequeue(&mut self, room: SlotRoom) -> Option<(EndpointNumber, QueueEnd)> {
        let at = |end| move |endpoint| (endpoint, end);
        let unknown = if room.unknown_free() > 0 {
            self.unknown.pop_front().map(at(QueueEnd::Back))
        } else if self.is_turn_free(room) {
            // Before the lanes that would take the slot otherwise.
            self.unknown.pop_front().map(at(QueueEnd::Front))
        } else {
            None
        };
        if unknown.is_none() && room.free > room.headroom {
            return self.failing.pop_front().map(at(QueueEnd::Back));
        }
        unknown
    }
}

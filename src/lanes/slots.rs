//! Slots: the limit of concurrent requests over all lanes, with headroom for healthy receivers.
//!
//! A lane whose receiver fails gets no slot of the headroom, an unknown receiver gets half of it. A
//! lane must also leave more slots free than it holds. So a healthy receiver finds a free slot at
//! once, however many receivers hang. Lanes without a slot wait in queues here, outside the ring.

use std::collections::VecDeque;

use super::lane::{Lane, ReceiverHealth};
use crate::domain::EndpointNumber;

/// One in this many slots is headroom for receivers that answer.
const HEADROOM_SHARE: usize = 8;
/// Minimum headroom. A low limit that would give less has none: operators mean the exact number.
const HEADROOM_MIN: usize = 8;

#[derive(Debug)]
pub(super) struct Slots {
    max: usize,
    taken: usize,
    failing: VecDeque<EndpointNumber>,
    unknown: VecDeque<EndpointNumber>,
}

impl Slots {
    pub(super) fn new(max: usize) -> Self {
        Self { max, taken: 0, failing: VecDeque::new(), unknown: VecDeque::new() }
    }

    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    pub(super) fn acquire(&mut self) {
        self.taken += 1;
    }

    pub(super) fn release(&mut self, count: usize) {
        self.taken -= count;
    }

    pub(super) fn is_full(&self) -> bool {
        self.taken >= self.max
    }

    /// Whether a slot is free for this lane. A queued lane waits for [`Self::dequeue`], unless its
    /// receiver has answered since.
    pub(super) fn admit(&self, lane: &Lane) -> bool {
        if lane.in_slot_queue && lane.receiver != ReceiverHealth::Answering {
            return false;
        }
        let free = self.free();
        let usable = match lane.receiver {
            ReceiverHealth::Failing => 0,
            ReceiverHealth::Unknown => free.saturating_sub(self.headroom() / 2),
            ReceiverHealth::Answering => free,
        };
        free > self.headroom() || lane.in_flight() < usable
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

    /// Takes the next queued lane for which a slot may be free.
    pub(super) fn dequeue(&mut self) -> Option<EndpointNumber> {
        let (free, headroom) = (self.free(), self.headroom());
        let unknown = if free > headroom / 2 { self.unknown.pop_front() } else { None };
        if unknown.is_none() && free > headroom { self.failing.pop_front() } else { unknown }
    }

    fn free(&self) -> usize {
        self.max.saturating_sub(self.taken)
    }

    fn headroom(&self) -> usize {
        let headroom = self.max / HEADROOM_SHARE;
        if headroom < HEADROOM_MIN { 0 } else { headroom }
    }
}

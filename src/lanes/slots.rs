//! The slots over all lanes: how many requests run at once, and who has to leave some of them to others.
//!
//! The last slots are not for lanes whose receiver has just failed, the very last not for those of which nothing is known, and
//! each lane has to leave more than it holds: however many receivers hang, one that answers finds a slot now, not when
//! their time is over. Lanes that wait for that stand in line here, so that they cost the turns of the others nothing.

use std::collections::VecDeque;

use super::lane::{Heard, Lane};
use crate::domain::EndpointNumber;

/// One part in so many of the slots is kept for receivers that answer.
const KEPT_PART: usize = 8;
/// With fewer slots to keep than this none is: an operator who allows few requests at once means the number.
const KEPT_MIN: usize = 8;

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

    pub(super) fn take(&mut self) {
        self.taken += 1;
    }

    pub(super) fn give_back(&mut self, count: usize) {
        self.taken -= count;
    }

    pub(super) fn is_full(&self) -> bool {
        self.taken >= self.max
    }

    /// Whether there is one for this lane. Who is in line waits to be called, unless its receiver has answered meanwhile.
    pub(super) fn admit(&self, lane: &Lane) -> bool {
        if lane.in_line && lane.heard != Heard::Answer {
            return false;
        }
        let free = self.free();
        let left = match lane.heard {
            Heard::Failure => 0,
            Heard::Nothing => free.saturating_sub(self.kept() / 2),
            Heard::Answer => free,
        };
        free > self.kept() || lane.in_flight() < left
    }

    /// Puts a lane in line that was not admitted. Gives whether it may go away until it is called: if it holds slots itself
    /// it may not, but of such lanes there are only so many.
    pub(super) fn line_up(&mut self, endpoint: EndpointNumber, lane: &mut Lane) -> bool {
        let line = match lane.heard {
            Heard::Failure => &mut self.failing,
            Heard::Nothing if lane.in_flight() == 0 => &mut self.unknown,
            Heard::Nothing | Heard::Answer => return false,
        };
        if !std::mem::replace(&mut lane.in_line, true) {
            lane.line_end().join(line, endpoint);
        }
        true
    }

    /// The lane is no more.
    pub(super) fn leave(&mut self, endpoint: EndpointNumber, lane: &Lane) {
        if lane.in_line {
            self.failing.retain(|other| *other != endpoint);
            self.unknown.retain(|other| *other != endpoint);
        }
    }

    /// The next one in line for whom there may be a slot again; it has left the line.
    pub(super) fn call(&mut self) -> Option<EndpointNumber> {
        let (free, kept) = (self.free(), self.kept());
        let unknown = if free > kept / 2 { self.unknown.pop_front() } else { None };
        if unknown.is_none() && free > kept { self.failing.pop_front() } else { unknown }
    }

    fn free(&self) -> usize {
        self.max.saturating_sub(self.taken)
    }

    fn kept(&self) -> usize {
        let kept = self.max / KEPT_PART;
        if kept < KEPT_MIN { 0 } else { kept }
    }
}

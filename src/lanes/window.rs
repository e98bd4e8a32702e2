//! The part of a lane's backlog that is in memory, and the protocol by which it follows the part on disk.
//!
//! The window holds the earliest keys, up to a boundary; what is beyond the boundary is on disk and is read by refills.
//! What makes it right:
//!
//! * The state has applied a record before anyone here hears of it, and a refill is asked through the same channel. So a
//!   refill reflects every notice that came before it was asked for; what comes while it is under way is logged, and what
//!   is newer than the refill's position is applied on top of it.
//! * Notices about one key come in order, but may lag behind a refill. A late one is about a key that is here, or was
//!   sent, or is beyond the boundary: in each case it changes nothing.
//! * Keys in flight, or sent and not yet recorded, are never taken in again.

use std::collections::{BTreeMap, HashMap};

use super::Backlog;
use crate::domain::{DueKey, Position, Progress};
use crate::knobs::{self, Bug, Knob};
use crate::limits;

/// A notice that came during a refill.
#[derive(Clone, Copy, Debug)]
enum Logged {
    Due(DueKey, Progress, Position),
    Settled(DueKey, Position),
}

/// Where a sent key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    InFlight,
    /// In flight, but its place is empty already: recorded, cancelled or moved. It may have come back to the same place.
    Settled {
        again: Option<Progress>,
    },
    /// Its attempt ended; its outcome is not recorded yet.
    Unrecorded,
}

/// A refill that is under way.
#[derive(Debug)]
struct Refilling {
    after: Option<DueKey>,
    log: Vec<Logged>,
}

fn window_max() -> usize {
    knobs::bound(Knob::LaneWindowMax, limits::LANE_WINDOW_MAX)
}

#[derive(Debug)]
pub(super) struct Window {
    keys: BTreeMap<DueKey, Progress>,
    sent: HashMap<DueKey, Sent>,
    in_flight: usize,
    /// `None`: everything is in memory. `Some(boundary)`: what is after it is on disk (all, when it is `None`).
    beyond: Option<Option<DueKey>>,
    refilling: Option<Refilling>,
}

impl Window {
    pub(super) fn new(backlog: Backlog) -> Self {
        let beyond = match backlog {
            Backlog::None => None,
            Backlog::OnDisk => Some(None),
        };
        Self { keys: BTreeMap::new(), sent: HashMap::new(), in_flight: 0, beyond, refilling: None }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn is_complete(&self) -> bool {
        self.beyond.is_none()
    }

    /// Keys that were sent and are not settled.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.sent.len()
    }

    /// Nothing is here and nothing is on disk.
    pub(super) fn is_idle(&self) -> bool {
        self.keys.is_empty() && self.is_complete()
    }

    pub(super) fn first(&self) -> Option<(DueKey, Progress)> {
        self.keys.first_key_value().map(|(key, progress)| (*key, *progress))
    }

    /// The first key is now in flight.
    pub(super) fn take_first(&mut self) -> Option<(DueKey, Progress)> {
        let (key, progress) = self.keys.pop_first()?;
        self.sent.insert(key, Sent::InFlight);
        self.in_flight += 1;
        Some((key, progress))
    }

    /// An attempt ended. Gives whether the key was in flight.
    pub(super) fn on_finished(&mut self, key: DueKey) -> bool {
        match self.sent.get(&key).copied() {
            None | Some(Sent::Unrecorded) => return false,
            Some(Sent::InFlight) if knobs::has(Bug::ForgetUnrecorded) => drop(self.sent.remove(&key)),
            Some(Sent::InFlight) => drop(self.sent.insert(key, Sent::Unrecorded)),
            Some(Sent::Settled { again }) => {
                self.sent.remove(&key);
                if let Some(progress) = again {
                    self.insert(key, progress);
                }
            }
        }
        self.in_flight -= 1;
        true
    }

    /// No attempt was made, so no outcome will be recorded: the key stands where it stood. Gives whether it was in flight.
    pub(super) fn on_returned(&mut self, key: DueKey, progress: Progress) -> bool {
        if self.sent.get(&key) != Some(&Sent::InFlight) {
            return self.on_finished(key);
        }
        self.sent.remove(&key);
        self.in_flight -= 1;
        self.insert(key, progress);
        true
    }

    pub(super) fn on_due(&mut self, key: DueKey, progress: Progress, at: Position) {
        if let Some(refilling) = &mut self.refilling
            && !knobs::has(Bug::ForgetDuringRefill)
        {
            refilling.log.push(Logged::Due(key, progress, at));
        }
        self.insert(key, progress);
    }

    pub(super) fn on_settled(&mut self, key: DueKey, at: Position) {
        if let Some(refilling) = &mut self.refilling {
            refilling.log.push(Logged::Settled(key, at));
        }
        self.keys.remove(&key);
        match self.sent.get(&key) {
            Some(Sent::Unrecorded) => {
                self.sent.remove(&key);
            }
            Some(Sent::InFlight | Sent::Settled { .. }) => {
                self.sent.insert(key, Sent::Settled { again: None });
            }
            None => {}
        }
    }

    fn insert(&mut self, key: DueKey, progress: Progress) {
        match self.sent.get_mut(&key) {
            Some(Sent::Settled { again }) => {
                *again = Some(progress);
                return;
            }
            Some(Sent::InFlight | Sent::Unrecorded) => return,
            None => {}
        }
        if self.beyond.is_some_and(|boundary| boundary.is_none_or(|boundary| key > boundary)) {
            return;
        }
        self.keys.insert(key, progress);
        if self.keys.len() > window_max() {
            self.keys.pop_last();
            self.beyond = Some(self.keys.last_key_value().map(|(key, _)| *key));
        }
    }

    /// Where to read on, and how much, when it is time to.
    pub(super) fn wants_refill(&mut self) -> Option<(Option<DueKey>, usize)> {
        let boundary = self.beyond?;
        if self.refilling.is_some()
            || self.keys.len() >= knobs::bound(Knob::LaneWindowLow, limits::LANE_WINDOW_LOW)
        {
            return None;
        }
        self.refilling = Some(Refilling { after: boundary, log: Vec::new() });
        Some((boundary, window_max() - self.keys.len()))
    }

    pub(super) fn on_refilled(&mut self, entries: Vec<(DueKey, Progress)>, exhausted: bool, as_of: Position) {
        let Some(Refilling { after, log }) = self.refilling.take() else { return };
        if self.beyond != Some(after) {
            // The window overflowed meanwhile: what it let go of lies before what was read. It asks again.
            return;
        }
        self.beyond =
            if exhausted { None } else { entries.last().map_or(self.beyond, |(key, _)| Some(Some(*key))) };
        for (key, progress) in entries {
            if !self.sent.contains_key(&key) {
                self.keys.insert(key, progress);
            }
        }
        for notice in log {
            match notice {
                Logged::Due(key, progress, at) if at > as_of => self.insert(key, progress),
                Logged::Settled(key, at) if at > as_of => {
                    self.keys.remove(&key);
                }
                Logged::Due(..) | Logged::Settled(..) => {}
            }
        }
    }
}

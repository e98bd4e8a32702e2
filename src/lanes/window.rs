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
//! * A delivery has one attempt at a time. While one is under way, or over and not yet recorded, its delivery is not taken in
//!   again under any key: where it stands meanwhile is kept beside the attempt ([`Flight::next`]), and it goes on from there.
//!   Of such a delivery the notices say everything, so refills and what was logged during them say nothing about it.

use std::collections::{BTreeMap, HashMap};

use super::Backlog;
use crate::domain::{DueKey, Position, Progress};
use crate::failpoints::{self, Bound, Mutation};
use crate::limits;

/// A notice that came during a refill.
#[derive(Clone, Copy, Debug)]
enum Logged {
    Due(DueKey, Progress, Position),
    Settled(DueKey, Position),
}

/// An attempt of a delivery, from its start until it is over and its outcome is recorded.
#[derive(Debug)]
struct Flight {
    /// Under which it was sent.
    key: DueKey,
    is_over: bool,
    place: Place,
    /// Where the delivery stands, since it left the place that it was sent from.
    next: Option<(DueKey, Progress)>,
}

/// The place that an attempt was sent from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The delivery stands there, as far as is known.
    Taken,
    /// The delivery was moved or ended meanwhile, by something else than this attempt.
    Left,
    /// The attempt's outcome is recorded.
    Recorded,
}

/// A refill that is under way.
#[derive(Debug)]
struct Refilling {
    after: Option<DueKey>,
    log: Vec<Logged>,
}

fn window_max() -> usize {
    failpoints::bound(Bound::LaneWindowMax, limits::LANE_WINDOW_MAX)
}

#[derive(Debug)]
pub(super) struct Window {
    keys: BTreeMap<DueKey, Progress>,
    /// At most one for each delivery: those in flight, and those whose outcome waits for its commit.
    flights: HashMap<Position, Flight>,
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
        Self { keys: BTreeMap::new(), flights: HashMap::new(), in_flight: 0, beyond, refilling: None }
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

    /// Attempts that are under way or not recorded.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.flights.len()
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
        // A refill may know already where it has moved to.
        let moved = self.keys.keys().find(|other| other.event == key.event).copied();
        let next = moved.and_then(|moved| self.keys.remove_entry(&moved));
        self.flights.insert(key.event, Flight { key, is_over: false, place: Place::Taken, next });
        self.in_flight += 1;
        Some((key, progress))
    }

    /// The attempt that was sent under a key, when it is not over yet.
    fn under_way(&mut self, key: DueKey) -> Option<&mut Flight> {
        self.flights.get_mut(&key.event).filter(|flight| flight.key == key && !flight.is_over)
    }

    /// An attempt ended. Gives whether the key was in flight.
    pub(super) fn on_finished(&mut self, key: DueKey) -> bool {
        let Some(flight) = self.under_way(key) else { return false };
        flight.is_over = true;
        if failpoints::is_active(Mutation::ForgetUnrecorded) {
            flight.place = Place::Recorded;
        }
        self.in_flight -= 1;
        self.land(key.event);
        true
    }

    /// No attempt was made, so no outcome will be recorded: the delivery stands where it stood. Gives whether it was in
    /// flight.
    pub(super) fn on_returned(&mut self, key: DueKey, progress: Progress) -> bool {
        let Some(flight) = self.under_way(key) else { return false };
        let stands = if flight.place == Place::Taken { Some((key, progress)) } else { flight.next };
        self.flights.remove(&key.event);
        self.in_flight -= 1;
        if let Some((key, progress)) = stands {
            self.insert(key, progress);
        }
        true
    }

    /// An attempt that is over and recorded holds its delivery no longer.
    fn land(&mut self, event: Position) {
        let landed = |flight: &Flight| flight.is_over && flight.place == Place::Recorded;
        if self.flights.get(&event).is_some_and(landed)
            && let Some(Flight { next: Some((key, progress)), .. }) = self.flights.remove(&event)
        {
            self.insert(key, progress);
        }
    }

    pub(super) fn on_due(&mut self, key: DueKey, progress: Progress, at: Position) {
        if let Some(refilling) = &mut self.refilling
            && !failpoints::is_active(Mutation::ForgetDuringRefill)
        {
            refilling.log.push(Logged::Due(key, progress, at));
        }
        match self.flights.get_mut(&key.event) {
            // It tells late of what was sent.
            Some(flight) if flight.key == key && flight.place == Place::Taken => {}
            Some(_) if failpoints::is_active(Mutation::SendBesideItself) => self.insert(key, progress),
            Some(flight) => flight.next = Some((key, progress)),
            None => self.insert(key, progress),
        }
    }

    pub(super) fn on_settled(&mut self, key: DueKey, at: Position) {
        if let Some(refilling) = &mut self.refilling {
            refilling.log.push(Logged::Settled(key, at));
        }
        self.keys.remove(&key);
        if let Some(flight) = self.flights.get_mut(&key.event) {
            flight.next = flight.next.filter(|(next, _)| *next != key);
            if flight.key == key && flight.place == Place::Taken {
                flight.place = Place::Left;
            }
        }
    }

    /// The outcome of the attempt that was sent under this key is recorded; what came of it was told before.
    pub(super) fn on_recorded(&mut self, key: DueKey) {
        if let Some(flight) = self.flights.get_mut(&key.event).filter(|flight| flight.key == key) {
            flight.place = Place::Recorded;
            self.land(key.event);
        }
    }

    fn insert(&mut self, key: DueKey, progress: Progress) {
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
            || self.keys.len() >= failpoints::bound(Bound::LaneWindowLow, limits::LANE_WINDOW_LOW)
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
            if !self.flights.contains_key(&key.event) {
                self.keys.insert(key, progress);
            }
        }
        for notice in log {
            match notice {
                Logged::Due(key, progress, at) if at > as_of && !self.flights.contains_key(&key.event) => {
                    self.insert(key, progress);
                }
                Logged::Settled(key, at) if at > as_of => {
                    self.keys.remove(&key);
                }
                Logged::Due(..) | Logged::Settled(..) => {}
            }
        }
    }
}

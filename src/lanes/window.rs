//! The part of a lane's backlog in memory, and the protocol that keeps it consistent with the disk.
//!
//! The window holds the earliest keys, up to a boundary. Refills read the keys after it from disk.
//!
//! Invariants:
//! * The state applies a record before the lane gets its notice, and refills use the same channel.
//!   So a refill reflects every notice before its request. Notices during a refill are logged;
//!   those newer than the refill's position are applied to its result.
//! * Notices of one key are in order, but may lag behind a refill. The key of a late notice is in
//!   the window, was sent, or lies after the boundary. In each case the notice changes nothing.
//! * A delivery has one attempt at a time. Until that is recorded, [`Flight::next`] holds the
//!   delivery's new key, and the window does not. Notices alone update it: refills and their logged
//!   notices skip such a delivery.

use std::collections::BTreeMap;

use super::Backlog;
use crate::domain::{DueKey, IdMap, Position, Progress};
use crate::failpoints::{self, Bound, Mutation};
use crate::limits;

/// A notice during a refill.
#[derive(Clone, Copy, Debug)]
enum Logged {
    Due(DueKey, Progress, Position),
    Settled(DueKey, Position),
}

/// An attempt of a delivery, until it is finished and its outcome is recorded.
#[derive(Debug)]
struct Flight {
    key: DueKey,
    /// Before the attempt.
    progress: Progress,
    is_finished: bool,
    state: FlightState,
    /// The delivery's key since it moved away from `key`.
    next: Option<(DueKey, Progress)>,
}

/// State of the key of a sent delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlightState {
    /// The delivery is still under this key, as far as the lane knows.
    Unchanged,
    /// Another cause than this attempt moved or ended the delivery.
    Superseded,
    /// The attempt's outcome is recorded.
    Recorded,
}

/// A requested refill.
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
    /// Attempts in flight or not recorded, by event; at most one per delivery.
    flights: IdMap<Position, Flight>,
    in_flight: usize,
    /// Boundary after which keys are on disk. `None`: no keys; `Some(None)`: all keys.
    disk_after: Option<Option<DueKey>>,
    refilling: Option<Refilling>,
}

impl Window {
    pub(super) fn new(backlog: Backlog) -> Self {
        let disk_after = match backlog {
            Backlog::None => None,
            Backlog::OnDisk => Some(None),
        };
        Self { keys: BTreeMap::new(), flights: IdMap::default(), in_flight: 0, disk_after, refilling: None }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn is_complete(&self) -> bool {
        self.disk_after.is_none()
    }

    /// Number of attempts that are in flight or not recorded.
    #[cfg(test)]
    pub(super) fn tracked_attempts(&self) -> usize {
        self.flights.len()
    }

    /// Whether no key is in memory or on disk.
    pub(super) fn is_idle(&self) -> bool {
        self.keys.is_empty() && self.is_complete()
    }

    pub(super) fn first(&self) -> Option<(DueKey, Progress)> {
        self.keys.first_key_value().map(|(key, progress)| (*key, *progress))
    }

    /// Takes the first key; it is now in flight.
    pub(super) fn take_first(&mut self) -> Option<(DueKey, Progress)> {
        let (key, progress) = self.keys.pop_first()?;
        // A refill may have read the delivery's new key already.
        let moved = self.keys.keys().find(|other| other.event == key.event).copied();
        let next = moved.and_then(|moved| self.keys.remove_entry(&moved));
        self.flights.insert(
            key.event,
            Flight { key, progress, is_finished: false, state: FlightState::Unchanged, next },
        );
        self.in_flight += 1;
        Some((key, progress))
    }

    /// The unfinished attempt under this key.
    fn active_flight(&mut self, key: DueKey) -> Option<&mut Flight> {
        self.flights.get_mut(&key.event).filter(|flight| flight.key == key && !flight.is_finished)
    }

    /// An attempt ended. Returns whether the key was in flight.
    pub(super) fn on_finished(&mut self, key: DueKey) -> bool {
        let Some(flight) = self.active_flight(key) else { return false };
        flight.is_finished = true;
        if failpoints::is_active(Mutation::ForgetUnrecorded) {
            flight.state = FlightState::Recorded;
        }
        self.in_flight -= 1;
        self.release_recorded(key.event);
        true
    }

    /// No attempt was made, so no outcome will be recorded. Restores the delivery's current key.
    /// Returns whether the key was in flight.
    pub(super) fn on_returned(&mut self, key: DueKey, progress: Progress) -> bool {
        let Some(flight) = self.active_flight(key) else { return false };
        let current =
            if flight.state == FlightState::Unchanged { Some((key, progress)) } else { flight.next };
        self.flights.remove(&key.event);
        self.in_flight -= 1;
        if let Some((key, progress)) = current {
            self.insert(key, progress);
        }
        true
    }

    /// As [`Self::on_returned`], with the delivery's progress from before.
    pub(super) fn give_back(&mut self, key: DueKey) {
        if let Some(progress) = self.flights.get(&key.event).map(|flight| flight.progress) {
            self.on_returned(key, progress);
        }
    }

    /// Releases the delivery of an attempt that is finished and recorded.
    fn release_recorded(&mut self, event: Position) {
        let is_complete = |flight: &Flight| flight.is_finished && flight.state == FlightState::Recorded;
        if self.flights.get(&event).is_some_and(is_complete)
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
            // A late notice of the key that was sent.
            Some(flight) if flight.key == key && flight.state == FlightState::Unchanged => {}
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
            if flight.key == key && flight.state == FlightState::Unchanged {
                flight.state = FlightState::Superseded;
            }
        }
    }

    /// The outcome of the attempt under this key is recorded. Notices of its effects came before.
    pub(super) fn on_recorded(&mut self, key: DueKey) {
        if let Some(flight) = self.flights.get_mut(&key.event).filter(|flight| flight.key == key) {
            flight.state = FlightState::Recorded;
            self.release_recorded(key.event);
        }
    }

    fn insert(&mut self, key: DueKey, progress: Progress) {
        if self.disk_after.is_some_and(|boundary| boundary.is_none_or(|boundary| key > boundary)) {
            return;
        }
        self.keys.insert(key, progress);
        if self.keys.len() > window_max() {
            self.keys.pop_last();
            self.disk_after = Some(self.keys.last_key_value().map(|(key, _)| *key));
        }
    }

    /// Requests a refill if the window is low. Returns its boundary and maximum number of keys.
    pub(super) fn begin_refill(&mut self) -> Option<(Option<DueKey>, usize)> {
        let boundary = self.disk_after?;
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
        if self.disk_after != Some(after) {
            // The window overflowed and dropped keys before these. The next refill reads both.
            return;
        }
        self.disk_after = if exhausted {
            None
        } else {
            entries.last().map_or(self.disk_after, |(key, _)| Some(Some(*key)))
        };
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

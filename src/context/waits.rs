//! Callers that wait until the deliveries of an event have ended.
//!
//! Owns one [`Notify`] per event with callers. The delivery loop wakes them after each commit that
//! can end a delivery; they read the state again. Must never hold anything for an event without a
//! caller.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::domain::{Party, Position};
use crate::limits;

/// All waiting callers.
#[derive(Debug, Default)]
pub(crate) struct EventWaits {
    waiting: Mutex<Waiting>,
    callers: AtomicUsize,
    /// The delivery loop has ended: nothing would wake a caller.
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    events: HashMap<Position, (Arc<Notify>, usize)>,
    /// Callers of each party.
    parties: HashMap<Party, usize>,
}

/// Too many callers wait; see [`limits::WAITERS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyWaiters;

impl EventWaits {
    /// Registers a caller, until the wait is dropped.
    ///
    /// # Errors
    /// Above [`limits::WAITERS_MAX`] callers, or [`limits::PARTY_WAITERS_MAX`] of the party.
    pub(crate) fn register(&self, event: Position, party: Party) -> Result<EventWait<'_>, TooManyWaiters> {
        // Counted before the caller reads: a commit after that read sees the caller.
        if self.callers.fetch_add(1, Ordering::SeqCst) >= limits::WAITERS_MAX {
            self.callers.fetch_sub(1, Ordering::SeqCst);
            return Err(TooManyWaiters);
        }
        let mut waiting = self.lock();
        let own = waiting.parties.entry(party.clone()).or_default();
        if *own >= limits::PARTY_WAITERS_MAX {
            self.callers.fetch_sub(1, Ordering::SeqCst);
            return Err(TooManyWaiters);
        }
        *own += 1;
        let (notify, callers) = waiting.events.entry(event).or_default();
        *callers += 1;
        Ok(EventWait { waits: self, event, party, notify: Arc::clone(notify) })
    }

    /// Number of waiting callers.
    pub(crate) fn callers(&self) -> usize {
        self.callers.load(Ordering::Relaxed)
    }

    /// Wakes the callers of these events. Costs one load without callers.
    pub(crate) fn wake(&self, events: impl IntoIterator<Item = Position>) {
        if self.callers.load(Ordering::SeqCst) == 0 {
            return;
        }
        let waiting = self.lock();
        for (notify, _) in events.into_iter().filter_map(|event| waiting.events.get(&event)) {
            notify.notify_waiters();
        }
    }

    /// Wakes all callers for good, because the daemon stops.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        for (notify, _) in self.lock().events.values() {
            notify.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A caller that waits for an event.
pub(crate) struct EventWait<'a> {
    waits: &'a EventWaits,
    event: Position,
    party: Party,
    notify: Arc<Notify>,
}

impl EventWait<'_> {
    /// Completes at the next wake-up. Enable it before reading the state.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.notify.notified()
    }

    /// Whether waiting is useless, because the daemon stops.
    pub(crate) fn has_ended(&self) -> bool {
        self.waits.ended.load(Ordering::SeqCst)
    }
}

impl Drop for EventWait<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waits.lock();
        if let Entry::Occupied(mut entry) = waiting.events.entry(self.event) {
            entry.get_mut().1 -= 1;
            if entry.get().1 == 0 {
                entry.remove();
            }
        }
        if let Entry::Occupied(mut entry) = waiting.parties.entry(self.party.clone()) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
        drop(waiting);
        self.waits.callers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    const EVENT: Position = Position(7);

    #[tokio::test]
    async fn commit_between_read_and_wait_wakes_the_caller() {
        let waits = EventWaits::default();
        let wait = waits.register(EVENT, Party::Operator).unwrap();
        let mut changed = pin!(wait.changed());
        changed.as_mut().enable();
        waits.wake([Position(6), EVENT]);
        changed.await;
    }

    #[tokio::test]
    async fn other_events_wake_nothing() {
        let waits = EventWaits::default();
        let wait = waits.register(EVENT, Party::Operator).unwrap();
        let mut changed = pin!(wait.changed());
        assert!(!changed.as_mut().enable());
        waits.wake([Position(6), Position(8)]);
        assert!(!changed.as_mut().enable());
    }

    #[tokio::test]
    async fn end_wakes_present_and_later_callers() {
        let waits = EventWaits::default();
        let wait = waits.register(EVENT, Party::Operator).unwrap();
        let mut changed = pin!(wait.changed());
        assert!(!changed.as_mut().enable() && !wait.has_ended());
        waits.end();
        changed.await;
        assert!(wait.has_ended() && waits.register(Position(8), Party::Operator).unwrap().has_ended());
    }

    #[test]
    fn callers_are_bounded_and_leave_nothing() {
        let waits = EventWaits::default();
        let tenant = |name: &str| Party::Tenant(name.into());
        let register = |number: usize, name: &str| waits.register(Position(number as u64 % 3), tenant(name));
        let busy: Vec<_> = (0..limits::PARTY_WAITERS_MAX).map(|at| register(at, "busy").unwrap()).collect();
        assert!(register(0, "busy").is_err(), "one party has all places");
        let rest = limits::WAITERS_MAX - limits::PARTY_WAITERS_MAX;
        let others: Vec<_> = (0..rest).map(|at| register(at, "other").unwrap()).collect();
        assert!(register(0, "third").is_err());
        let (events, parties) = {
            let waiting = waits.lock();
            (waiting.events.len(), waiting.parties.len())
        };
        assert_eq!((events, parties), (3, 2));
        drop((busy, others));
        assert!(waits.lock().events.is_empty());
        assert!(waits.lock().parties.is_empty());
        assert!(register(0, "busy").is_ok());
    }
}

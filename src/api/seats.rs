//! Places for connections: a limit, and who gives way at it.
//!
//! Owns the order in which connections give way. At the limit a new connection takes the place of the one that has waited
//! longest: for a request, or for its client to take an answer. So a client that opens many connections and is idle, or
//! reads slowly, keeps nobody out. Those on which a good key was shown go last, and only between two requests. A
//! connection whose request is being answered keeps its place.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The places of one listener.
pub struct Seats {
    limit: usize,
    places: Mutex<Places>,
    /// A place was given back, or one more connection waits.
    changed: Notify,
    displaced: AtomicU64,
}

#[derive(Default)]
struct Places {
    taken: usize,
    last_ticket: u64,
    newcomer: Newcomer,
    /// In the order in which they give way.
    waiting: BTreeMap<Rank, Arc<Notify>>,
}

/// The connection that waits for a place, of which there is one at most: they are accepted in turn.
#[derive(Default, PartialEq, Eq)]
enum Newcomer {
    #[default]
    None,
    /// No connection can give way yet. The next one that can has to.
    Waits,
    /// A connection was asked to leave, and takes a moment to do so.
    IsNext,
}

/// Whether a good key was shown, and a ticket: they rise, so of two the lower has waited longer.
type Rank = (bool, u64);

/// A connection's place; it is given back when this is dropped.
pub(super) struct Seat {
    seats: Arc<Seats>,
    leave: Arc<Notify>,
    /// 0 while the connection keeps its place.
    ticket: AtomicU64,
    /// A request has begun, and its client does not take what is written.
    stalled: AtomicBool,
    /// The answer is made, and may not have been written yet.
    answered: AtomicBool,
    /// A good key was shown.
    is_known: AtomicBool,
}

impl Seats {
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            places: Mutex::default(),
            changed: Notify::new(),
            displaced: AtomicU64::new(0),
        })
    }

    /// Connections now.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.lock().taken
    }

    /// Connections that have given way since this was asked last.
    pub fn take_displaced(&self) -> u64 {
        self.displaced.swap(0, Ordering::Relaxed)
    }

    /// A place, once there is one.
    pub(super) async fn take(self: &Arc<Self>) -> Seat {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.try_take() {
                let seat = Seat {
                    seats: self.clone(),
                    leave: Arc::default(),
                    ticket: AtomicU64::new(0),
                    stalled: AtomicBool::new(false),
                    answered: AtomicBool::new(false),
                    is_known: AtomicBool::new(false),
                };
                seat.wait();
                return seat;
            }
            changed.await;
        }
    }

    /// Without a free place it asks one connection to leave, now or as soon as one can.
    fn try_take(&self) -> bool {
        let mut places = self.lock();
        if places.taken < self.limit {
            places.taken += 1;
            places.newcomer = Newcomer::None;
            return true;
        }
        if places.newcomer == Newcomer::None {
            places.newcomer = Newcomer::Waits;
            self.make_room(&mut places);
        }
        false
    }

    /// Asks the connection that has waited longest to leave when a new one waits for its place.
    fn make_room(&self, places: &mut Places) {
        if places.newcomer == Newcomer::Waits && self.ask(places.waiting.pop_first()) {
            places.newcomer = Newcomer::IsNext;
        }
    }

    /// The same among those on which no good key was shown.
    pub(super) fn displace_stranger(&self) -> bool {
        let mut places = self.lock();
        let is_stranger = places.waiting.first_key_value().is_some_and(|((is_known, _), _)| !is_known);
        let leaves = if is_stranger { places.waiting.pop_first() } else { None };
        drop(places);
        self.ask(leaves)
    }

    fn ask(&self, leaves: Option<(Rank, Arc<Notify>)>) -> bool {
        let Some((_, leave)) = leaves else { return false };
        self.displaced.fetch_add(1, Ordering::Relaxed);
        leave.notify_one();
        true
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// From now on it waits for a request.
    pub(super) fn wait(&self) {
        let mut places = self.seats.lock();
        places.last_ticket += 1;
        let ticket = places.last_ticket;
        places.waiting.remove(&self.rank(self.ticket.swap(ticket, Ordering::Relaxed)));
        places.waiting.insert(self.rank(ticket), self.leave.clone());
        // Before its next request, which may be here already, can begin.
        self.seats.make_room(&mut places);
        drop(places);
        self.seats.changed.notify_waiters();
    }

    fn rank(&self, ticket: u64) -> Rank {
        (self.is_known.load(Ordering::Relaxed), ticket)
    }

    /// A request has come. Gives whether it may be answered: the connection may just have been asked to leave.
    pub(super) fn begin(&self) -> bool {
        self.answered.store(false, Ordering::Relaxed);
        self.stay()
    }

    /// From now on it keeps its place. Gives whether it may: it may just have been asked to leave.
    fn stay(&self) -> bool {
        self.stalled.store(false, Ordering::Relaxed);
        let ticket = self.ticket.swap(0, Ordering::Relaxed);
        ticket == 0 || self.seats.lock().waiting.remove(&self.rank(ticket)).is_some()
    }

    /// The client does not take what is written to it. Without a good key the connection may have to give way.
    pub(super) fn stalls(&self) {
        let gives_way = self.ticket.load(Ordering::Relaxed) != 0;
        if !gives_way && !self.is_known.load(Ordering::Relaxed) {
            self.stalled.store(true, Ordering::Relaxed);
            self.wait();
        }
    }

    /// The answer is made; once everything is written the connection waits again.
    pub(super) fn answered(&self, with_good_key: bool) {
        if with_good_key {
            // Its rank changes. When it has been asked to leave, it leaves all the same.
            self.stay();
            self.is_known.store(true, Ordering::Relaxed);
        }
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Everything that there was to write is written.
    pub(super) fn written(&self) {
        if self.answered.swap(false, Ordering::Relaxed) {
            self.stalled.store(false, Ordering::Relaxed);
            self.wait();
        } else if self.stalled.load(Ordering::Relaxed) {
            self.stay();
        }
    }

    /// No request has begun.
    pub(super) fn is_waiting(&self) -> bool {
        self.ticket.load(Ordering::Relaxed) != 0 && !self.stalled.load(Ordering::Relaxed)
    }

    /// Returns when the connection has to leave.
    pub(super) async fn left(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut places = self.seats.lock();
        places.waiting.remove(&self.rank(self.ticket.load(Ordering::Relaxed)));
        places.taken -= 1;
        drop(places);
        self.seats.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Asks the first in order to leave. Gives whether there was one.
    fn displace(seats: &Seats) -> bool {
        let leaves = seats.lock().waiting.pop_first();
        seats.ask(leaves)
    }

    #[tokio::test]
    async fn the_longest_waiting_gives_way_and_whoever_is_being_answered_stays() {
        let seats = Seats::new(3);
        let first = seats.take().await;
        let second = seats.take().await;
        let third = seats.take().await;
        assert!(first.begin(), "a request came on the first");
        let mut fourth = std::pin::pin!(seats.take());
        assert!(fourth.as_mut().now_or_never().is_none(), "there was a fourth place");
        assert!(
            second.left().now_or_never().is_some(),
            "the second has waited longest and was not asked to leave"
        );
        assert!(first.left().now_or_never().is_none() && third.left().now_or_never().is_none());
        assert!(!second.begin(), "a request that comes now is not answered");
        assert!(fourth.as_mut().now_or_never().is_none(), "it took a place that nobody has left");
        assert!(third.left().now_or_never().is_none(), "two were asked to leave for one");
        drop(second);
        assert!(fourth.now_or_never().is_some());
        assert_eq!((seats.taken(), seats.take_displaced(), seats.take_displaced()), (2, 1, 0));
    }

    #[tokio::test]
    async fn whoever_has_shown_a_good_key_gives_way_last() {
        let seats = Seats::new(2);
        let known = seats.take().await;
        assert!(known.begin());
        known.answered(true);
        known.written();
        let silent = seats.take().await;
        assert!(seats.displace_stranger());
        assert!(silent.left().now_or_never().is_some() && known.left().now_or_never().is_none());
        assert!(!seats.displace_stranger(), "nobody is a stranger any more");
        assert!(displace(&seats));
        assert!(known.left().now_or_never().is_some());
        drop(known);
        drop(silent);
        assert_eq!((seats.taken(), displace(&seats)), (0, false));
    }

    #[tokio::test]
    async fn a_new_one_waits_while_all_are_being_answered() {
        let seats = Seats::new(1);
        let only = seats.take().await;
        assert!(only.begin());
        let mut next = std::pin::pin!(seats.take());
        assert!(next.as_mut().now_or_never().is_none());
        only.answered(false);
        assert!(next.as_mut().now_or_never().is_none(), "the answer is not written yet");
        only.written();
        assert!(!only.begin(), "its next request was here already, and kept the new connection out");
        assert!(next.as_mut().now_or_never().is_none());
        assert!(only.left().now_or_never().is_some(), "it waits again, and gives way");
        drop(only);
        assert!(next.now_or_never().is_some());
    }

    #[tokio::test]
    async fn slow_reader_without_a_key_gives_way() {
        let seats = Seats::new(1);
        let slow = seats.take().await;
        assert!(slow.begin());
        slow.answered(false);
        slow.stalls();
        slow.stalls();
        assert!(!slow.is_waiting(), "its answer is not written: a shutdown lets it end");
        let mut next = std::pin::pin!(seats.take());
        assert!(next.as_mut().now_or_never().is_none());
        assert!(slow.left().now_or_never().is_some(), "it keeps the place");
        drop(slow);
        let next = next.now_or_never().expect("the place is free");

        assert!(next.begin());
        next.answered(false);
        next.stalls();
        next.written();
        assert!(next.is_waiting(), "the answer was taken after all");
        assert!(next.begin() && !displace(&seats), "the next request keeps its place");
        next.stalls();
        next.answered(true);
        assert!(!displace(&seats), "a good key was shown meanwhile");
        next.stalls();
        assert!(!displace(&seats), "a slow reader with a good key gave way");
        next.written();
        assert!(displace(&seats));
        drop(next);
        assert_eq!((seats.taken(), displace(&seats)), (0, false), "a phantom is left");
    }

    #[tokio::test]
    async fn interim_response_that_stalls_is_over_when_written() {
        let seats = Seats::new(1);
        let only = seats.take().await;
        assert!(only.begin());
        only.stalls();
        only.written();
        assert!(!only.is_waiting() && !displace(&seats), "its request is being answered");
    }

    #[tokio::test]
    async fn a_request_that_follows_in_the_same_bytes_keeps_its_place() {
        let seats = Seats::new(1);
        let only = seats.take().await;
        assert!(only.begin());
        only.answered(false);
        assert!(only.begin(), "the second came before the first answer was written");
        only.written();
        assert!(!only.is_waiting() && !displace(&seats));
    }
}

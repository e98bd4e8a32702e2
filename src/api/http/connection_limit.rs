//! Limit of a listener's connections, and the eviction order at the limit.
//!
//! At the limit a new connection evicts the one that has been idle longest: waiting for a request,
//! or for its client to read a response. So a client with many idle or slow connections cannot lock
//! others out. Authenticated connections are evicted last, and only between two requests. A
//! connection whose request is in progress is never evicted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The connection limit of one listener.
pub struct ConnectionLimit {
    limit: usize,
    slots: Mutex<Slots>,
    /// A slot was released, or one more connection became idle.
    changed: Notify,
    evicted: AtomicU64,
}

#[derive(Default)]
struct Slots {
    taken: usize,
    last_ticket: u64,
    newcomer: Newcomer,
    /// Idle connections in eviction order.
    idle: BTreeMap<Rank, Arc<Notify>>,
}

/// The new connection that waits for a slot. At most one waits: accepting is sequential.
#[derive(Default, PartialEq, Eq)]
enum Newcomer {
    #[default]
    None,
    /// No connection can be evicted yet. The next idle one will be.
    Waits,
    /// A connection was evicted and is closing.
    IsNext,
}

/// Whether the connection is authenticated, and a rising ticket: lower means idle longer.
type Rank = (bool, u64);

/// The slot of a connection, released on drop.
pub(super) struct ConnectionSlot {
    connections: Arc<ConnectionLimit>,
    evict: Arc<Notify>,
    /// 0 while the connection cannot be evicted.
    ticket: AtomicU64,
    /// A request is in progress, and its client does not read the response.
    stalled: AtomicBool,
    /// The response is ready, but may be unwritten.
    response_ready: AtomicBool,
    authenticated: AtomicBool,
}

impl ConnectionLimit {
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, slots: Mutex::default(), changed: Notify::new(), evicted: AtomicU64::new(0) })
    }

    /// Open connections.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.lock().taken
    }

    /// Connections evicted since the last call.
    pub fn take_evicted(&self) -> u64 {
        self.evicted.swap(0, Ordering::Relaxed)
    }

    /// Waits for a slot.
    pub(super) async fn take(self: &Arc<Self>) -> ConnectionSlot {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.try_take() {
                let slot = ConnectionSlot {
                    connections: self.clone(),
                    evict: Arc::default(),
                    ticket: AtomicU64::new(0),
                    stalled: AtomicBool::new(false),
                    response_ready: AtomicBool::new(false),
                    authenticated: AtomicBool::new(false),
                };
                slot.become_idle();
                return slot;
            }
            changed.await;
        }
    }

    /// If no slot is free, evicts one connection now or as soon as one is idle.
    fn try_take(&self) -> bool {
        let mut slots = self.lock();
        if slots.taken < self.limit {
            slots.taken += 1;
            slots.newcomer = Newcomer::None;
            return true;
        }
        if slots.newcomer == Newcomer::None {
            slots.newcomer = Newcomer::Waits;
            self.evict_for_newcomer(&mut slots);
        }
        false
    }

    /// If a new connection waits for a slot, evicts the one that has been idle longest.
    fn evict_for_newcomer(&self, slots: &mut Slots) {
        if slots.newcomer == Newcomer::Waits && self.evict(slots.idle.pop_first()) {
            slots.newcomer = Newcomer::IsNext;
        }
    }

    /// Evicts the unauthenticated connection that has been idle longest. Returns false without one.
    pub(super) fn evict_unauthenticated(&self) -> bool {
        let mut slots = self.lock();
        let is_unauthenticated =
            slots.idle.first_key_value().is_some_and(|((authenticated, _), _)| !authenticated);
        let chosen = if is_unauthenticated { slots.idle.pop_first() } else { None };
        drop(slots);
        self.evict(chosen)
    }

    fn evict(&self, chosen: Option<(Rank, Arc<Notify>)>) -> bool {
        let Some((_, evict)) = chosen else { return false };
        self.evicted.fetch_add(1, Ordering::Relaxed);
        evict.notify_one();
        true
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionSlot {
    /// Marks the connection as idle.
    pub(super) fn become_idle(&self) {
        let mut slots = self.connections.lock();
        slots.last_ticket += 1;
        let ticket = slots.last_ticket;
        slots.idle.remove(&self.rank(self.ticket.swap(ticket, Ordering::Relaxed)));
        slots.idle.insert(self.rank(ticket), self.evict.clone());
        // Evict now: the next request may have arrived already.
        self.connections.evict_for_newcomer(&mut slots);
        drop(slots);
        self.connections.changed.notify_waiters();
    }

    fn rank(&self, ticket: u64) -> Rank {
        (self.authenticated.load(Ordering::Relaxed), ticket)
    }

    /// Marks the start of a request. Returns false if the connection was just evicted.
    pub(super) fn begin(&self) -> bool {
        self.response_ready.store(false, Ordering::Relaxed);
        self.protect()
    }

    /// Protects the connection from eviction. Returns false if it was just evicted.
    fn protect(&self) -> bool {
        self.stalled.store(false, Ordering::Relaxed);
        let ticket = self.ticket.swap(0, Ordering::Relaxed);
        ticket == 0 || self.connections.lock().idle.remove(&self.rank(ticket)).is_some()
    }

    /// The client does not read the response. An unauthenticated connection becomes idle.
    pub(super) fn on_stalled(&self) {
        let idle = self.ticket.load(Ordering::Relaxed) != 0;
        if !idle && !self.authenticated.load(Ordering::Relaxed) {
            self.stalled.store(true, Ordering::Relaxed);
            self.become_idle();
        }
    }

    /// The response is ready. Once it is written, the connection is idle again.
    pub(super) fn on_response_ready(&self, is_authenticated: bool) {
        if is_authenticated {
            // Its rank changes. A decided eviction remains.
            self.protect();
            self.authenticated.store(true, Ordering::Relaxed);
        }
        self.response_ready.store(true, Ordering::Relaxed);
    }

    /// Everything is written.
    pub(super) fn on_written(&self) {
        if self.response_ready.swap(false, Ordering::Relaxed) {
            self.stalled.store(false, Ordering::Relaxed);
            self.become_idle();
        } else if self.stalled.load(Ordering::Relaxed) {
            self.protect();
        }
    }

    /// No request is in progress.
    pub(super) fn is_idle(&self) -> bool {
        self.ticket.load(Ordering::Relaxed) != 0 && !self.stalled.load(Ordering::Relaxed)
    }

    /// Returns when the connection is evicted.
    pub(super) async fn evicted(&self) {
        self.evict.notified().await;
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut slots = self.connections.lock();
        slots.idle.remove(&self.rank(self.ticket.load(Ordering::Relaxed)));
        slots.taken -= 1;
        drop(slots);
        self.connections.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Evicts the first connection in order. Returns false without one.
    fn evict_first(connections: &ConnectionLimit) -> bool {
        let chosen = connections.lock().idle.pop_first();
        connections.evict(chosen)
    }

    #[tokio::test]
    async fn longest_idle_connection_is_evicted_and_busy_ones_stay() {
        let connections = ConnectionLimit::new(3);
        let first = connections.take().await;
        let second = connections.take().await;
        let third = connections.take().await;
        assert!(first.begin(), "the first gets a request");
        let mut fourth = std::pin::pin!(connections.take());
        assert!(fourth.as_mut().now_or_never().is_none(), "there was a fourth slot");
        assert!(
            second.evicted().now_or_never().is_some(),
            "the second has been idle longest and was not evicted"
        );
        assert!(first.evicted().now_or_never().is_none() && third.evicted().now_or_never().is_none());
        assert!(!second.begin(), "a request after the eviction was accepted");
        assert!(fourth.as_mut().now_or_never().is_none(), "it took a slot that is not free");
        assert!(third.evicted().now_or_never().is_none(), "two were evicted for one");
        drop(second);
        assert!(fourth.now_or_never().is_some());
        assert_eq!((connections.taken(), connections.take_evicted(), connections.take_evicted()), (2, 1, 0));
    }

    #[tokio::test]
    async fn authenticated_connection_is_evicted_last() {
        let connections = ConnectionLimit::new(2);
        let known = connections.take().await;
        assert!(known.begin());
        known.on_response_ready(true);
        known.on_written();
        let silent = connections.take().await;
        assert!(connections.evict_unauthenticated());
        assert!(silent.evicted().now_or_never().is_some() && known.evicted().now_or_never().is_none());
        assert!(!connections.evict_unauthenticated(), "an authenticated connection was evicted");
        assert!(evict_first(&connections));
        assert!(known.evicted().now_or_never().is_some());
        drop(known);
        drop(silent);
        assert_eq!((connections.taken(), evict_first(&connections)), (0, false));
    }

    #[tokio::test]
    async fn new_connection_waits_while_all_are_busy() {
        let connections = ConnectionLimit::new(1);
        let only = connections.take().await;
        assert!(only.begin());
        let mut next = std::pin::pin!(connections.take());
        assert!(next.as_mut().now_or_never().is_none());
        only.on_response_ready(false);
        assert!(next.as_mut().now_or_never().is_none(), "the response is not written yet");
        only.on_written();
        assert!(!only.begin(), "its next request kept the new connection out");
        assert!(next.as_mut().now_or_never().is_none());
        assert!(only.evicted().now_or_never().is_some(), "it is idle again and was not evicted");
        drop(only);
        assert!(next.now_or_never().is_some());
    }

    #[tokio::test]
    async fn slow_reader_without_a_key_is_idle() {
        let connections = ConnectionLimit::new(1);
        let slow = connections.take().await;
        assert!(slow.begin());
        slow.on_response_ready(false);
        slow.on_stalled();
        slow.on_stalled();
        assert!(!slow.is_idle(), "its response is not written: a shutdown waits for it");
        let mut next = std::pin::pin!(connections.take());
        assert!(next.as_mut().now_or_never().is_none());
        assert!(slow.evicted().now_or_never().is_some(), "it keeps the slot");
        drop(slow);
        let next = next.now_or_never().expect("the slot is free");

        assert!(next.begin());
        next.on_response_ready(false);
        next.on_stalled();
        next.on_written();
        assert!(next.is_idle(), "the response was read after all");
        assert!(next.begin() && !evict_first(&connections), "the next request protects it");
        next.on_stalled();
        next.on_response_ready(true);
        assert!(!evict_first(&connections), "an authenticated connection was evicted");
        next.on_stalled();
        assert!(!evict_first(&connections), "a slow authenticated reader was evicted");
        next.on_written();
        assert!(evict_first(&connections));
        drop(next);
        assert_eq!(
            (connections.taken(), evict_first(&connections)),
            (0, false),
            "a released connection is left"
        );
    }

    #[tokio::test]
    async fn written_interim_response_ends_the_stall() {
        let connections = ConnectionLimit::new(1);
        let only = connections.take().await;
        assert!(only.begin());
        only.on_stalled();
        only.on_written();
        assert!(!only.is_idle() && !evict_first(&connections), "its request is in progress");
    }

    #[tokio::test]
    async fn pipelined_request_protects_its_connection() {
        let connections = ConnectionLimit::new(1);
        let only = connections.take().await;
        assert!(only.begin());
        only.on_response_ready(false);
        assert!(only.begin(), "the second request arrives before the first response is written");
        only.on_written();
        assert!(!only.is_idle() && !evict_first(&connections));
    }
}

//! Limit of a listener's connections, and the eviction order at the limit.
//!
//! At the limit a new connection evicts an idle one. First those without a key whose client does
//! not read a response, then those without a key that wait for a request, each by age.
//! Authenticated connections are evicted last, and only between two requests. A connection whose
//! request is in progress is never evicted. So a client with many idle or slow connections cannot
//! lock others out.
//!
//! Connections without a key are also limited per remote address. At that limit a new connection
//! evicts an idle one of the same address, or is closed.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use tokio::sync::Notify;

use crate::api::http::unread::ConnectionCloser;
use crate::domain::address_block;

/// The connection limit of one listener.
pub struct ConnectionLimit {
    limit: usize,
    per_address: AddressLimit,
    slots: Mutex<Slots>,
    /// A slot was released, or one more connection became idle.
    changed: Notify,
    evicted: AtomicU64,
}

/// Limit of connections without a key from one address.
#[derive(Clone, Debug)]
pub struct AddressLimit {
    pub connections: usize,
    /// Networks without a limit.
    pub unlimited: Vec<IpNet>,
}

impl AddressLimit {
    /// No limit.
    #[must_use]
    pub fn none() -> Self {
        Self { connections: usize::MAX, unlimited: Vec::new() }
    }

    /// The counted address: for IPv6 the network of 64 bits. `None`: not limited.
    fn counted(&self, address: IpAddr) -> Option<IpAddr> {
        let address = address.to_canonical();
        if self.connections == usize::MAX || self.unlimited.iter().any(|network| network.contains(&address)) {
            return None;
        }
        Some(address_block(address))
    }
}

#[derive(Default)]
struct Slots {
    taken: usize,
    last_ticket: u64,
    newcomer: Newcomer,
    /// Idle connections in eviction order.
    idle: BTreeMap<Rank, Evictable>,
    /// Connections without a key, by limited address.
    addresses: HashMap<IpAddr, usize>,
}

impl Slots {
    /// Ends the count of a connection for its address.
    fn uncount(&mut self, address: IpAddr) {
        if let Some(count) = self.addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&address);
            }
        }
    }
}

struct Evictable {
    evict: Arc<Notify>,
    address: Option<IpAddr>,
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

/// Class of an idle connection, and a rising ticket: lower means idle longer.
type Rank = (IdleClass, u64);

/// In eviction order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum IdleClass {
    /// Without a key; its client does not read a response.
    Stalled,
    /// Without a key.
    Unauthenticated,
    Authenticated,
}

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
    /// The class at [`Self::ticket`].
    idle_stalled: AtomicBool,
    /// The limited address, while the connection counts for it.
    address: Mutex<Option<IpAddr>>,
}

impl ConnectionLimit {
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Self::with_address_limit(limit, AddressLimit::none())
    }

    #[must_use]
    pub fn with_address_limit(limit: usize, per_address: AddressLimit) -> Arc<Self> {
        Arc::new(Self {
            limit,
            per_address,
            slots: Mutex::default(),
            changed: Notify::new(),
            evicted: AtomicU64::new(0),
        })
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

    /// Waits for a slot for a connection from this address. `None`: the address has too many
    /// connections, all with a request in progress.
    pub(super) async fn take_for(self: &Arc<Self>, peer: IpAddr) -> Option<ConnectionSlot> {
        let address = self.per_address.counted(peer);
        if let Some(address) = address
            && !self.count(address)
        {
            return None;
        }
        // Ends the count if this future is dropped.
        let counted = CountedAddress { connections: self, address };
        let slot = self.take().await;
        *lock_address(&slot.address) = counted.into_address();
        slot.rejoin_idle();
        Some(slot)
    }

    /// Counts a connection for its address. At the limit evicts another one of the address.
    fn count(&self, address: IpAddr) -> bool {
        let mut slots = self.lock();
        let count = slots.addresses.get(&address).copied().unwrap_or(0);
        if count >= self.per_address.connections {
            let own = slots.idle.iter().find(|((class, _), idle)| {
                *class != IdleClass::Authenticated && idle.address == Some(address)
            });
            let Some(rank) = own.map(|(rank, _)| *rank) else {
                self.evicted.fetch_add(1, Ordering::Relaxed);
                return false;
            };
            let chosen = slots.idle.remove_entry(&rank);
            self.evict(chosen);
        }
        *slots.addresses.entry(address).or_default() += 1;
        true
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
                    idle_stalled: AtomicBool::new(false),
                    address: Mutex::new(None),
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
            slots.idle.first_key_value().is_some_and(|((class, _), _)| *class != IdleClass::Authenticated);
        let chosen = if is_unauthenticated { slots.idle.pop_first() } else { None };
        drop(slots);
        self.evict(chosen)
    }

    fn evict(&self, chosen: Option<(Rank, Evictable)>) -> bool {
        let Some((_, Evictable { evict, .. })) = chosen else { return false };
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
        let address = *lock_address(&self.address);
        let mut slots = self.connections.lock();
        slots.last_ticket += 1;
        let ticket = slots.last_ticket;
        slots.idle.remove(&self.rank(self.ticket.swap(ticket, Ordering::Relaxed)));
        self.idle_stalled.store(self.stalled.load(Ordering::Relaxed), Ordering::Relaxed);
        slots.idle.insert(self.rank(ticket), Evictable { evict: self.evict.clone(), address });
        // Evict now: the next request may have arrived already.
        self.connections.evict_for_newcomer(&mut slots);
        drop(slots);
        self.connections.changed.notify_waiters();
    }

    /// Updates the address of an idle connection.
    fn rejoin_idle(&self) {
        let address = *lock_address(&self.address);
        let rank = self.rank(self.ticket.load(Ordering::Relaxed));
        if let Some(idle) = self.connections.lock().idle.get_mut(&rank) {
            idle.address = address;
        }
    }

    /// Closes the connection at any time.
    pub(super) fn closer(&self) -> ConnectionCloser {
        ConnectionCloser(Arc::clone(&self.evict))
    }

    fn rank(&self, ticket: u64) -> Rank {
        let class = if self.authenticated.load(Ordering::Relaxed) {
            IdleClass::Authenticated
        } else if self.idle_stalled.load(Ordering::Relaxed) {
            IdleClass::Stalled
        } else {
            IdleClass::Unauthenticated
        };
        (class, ticket)
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
            self.uncount_address();
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

    /// The connection has a key, or ends: it no longer counts for its address.
    fn uncount_address(&self) {
        let counted = lock_address(&self.address).take();
        if let Some(address) = counted {
            self.connections.lock().uncount(address);
        }
    }

    /// Returns when the connection is evicted.
    pub(super) async fn evicted(&self) {
        self.evict.notified().await;
    }
}

/// A counted address, until a slot has it.
struct CountedAddress<'a> {
    connections: &'a ConnectionLimit,
    address: Option<IpAddr>,
}

impl CountedAddress<'_> {
    fn into_address(mut self) -> Option<IpAddr> {
        self.address.take()
    }
}

impl Drop for CountedAddress<'_> {
    fn drop(&mut self) {
        if let Some(address) = self.address.take() {
            self.connections.lock().uncount(address);
        }
    }
}

fn lock_address(address: &Mutex<Option<IpAddr>>) -> MutexGuard<'_, Option<IpAddr>> {
    address.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.uncount_address();
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

    const ATTACKER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn limited(connections: usize) -> Arc<ConnectionLimit> {
        let unlimited = vec!["10.0.0.0/8".parse().unwrap()];
        ConnectionLimit::with_address_limit(100, AddressLimit { connections, unlimited })
    }

    #[tokio::test]
    async fn stalled_reader_is_evicted_before_older_idle_connections() {
        let connections = ConnectionLimit::new(2);
        let idle = connections.take().await;
        let slow = connections.take().await;
        assert!(slow.begin());
        slow.on_response_ready(false);
        slow.on_stalled();
        let mut next = std::pin::pin!(connections.take());
        assert!(next.as_mut().now_or_never().is_none());
        assert!(slow.evicted().now_or_never().is_some() && idle.evicted().now_or_never().is_none());
        drop(slow);
        assert!(next.now_or_never().is_some());
    }

    #[tokio::test]
    async fn address_at_its_limit_loses_its_own_idle_connection() {
        let connections = limited(2);
        let other = connections.take_for("192.0.2.2".parse().unwrap()).await.unwrap();
        let first = connections.take_for(ATTACKER).await.unwrap();
        let second = connections.take_for(ATTACKER).await.unwrap();
        assert!(first.begin());
        let third = connections.take_for(ATTACKER).await.unwrap();
        assert!(second.evicted().now_or_never().is_some() && first.evicted().now_or_never().is_none());
        assert!(other.evicted().now_or_never().is_none(), "another address pays");
        drop(second);
        assert!(third.begin());
        assert!(connections.take_for(ATTACKER).await.is_none(), "both are busy");
        drop((first, third));
        assert!(connections.take_for(ATTACKER).await.is_some());
        assert_eq!(connections.lock().addresses.len(), 1, "the other address alone is counted");
    }

    #[tokio::test]
    async fn authenticated_and_exempt_connections_do_not_count() {
        let connections = limited(1);
        let known = connections.take_for(ATTACKER).await.unwrap();
        assert!(known.begin());
        known.on_response_ready(true);
        known.on_written();
        let next = connections.take_for(ATTACKER).await.unwrap();
        assert!(known.evicted().now_or_never().is_none(), "a connection with a key gave way");
        drop((known, next));
        let proxy: IpAddr = "10.1.2.3".parse().unwrap();
        let first = connections.take_for(proxy).await.unwrap();
        assert!(first.begin() && connections.take_for(proxy).await.is_some());
        assert!(connections.lock().addresses.is_empty());
    }

    #[test]
    fn ipv6_network_counts_as_one_address() {
        let limit = AddressLimit { connections: 1, unlimited: Vec::new() };
        let counted = |text: &str| limit.counted(text.parse().unwrap());
        assert_eq!(counted("2001:db8:0:1::1"), counted("2001:db8:0:1:ffff::2"));
        assert_ne!(counted("2001:db8:0:1::1"), counted("2001:db8:0:2::1"));
        assert_eq!(counted("::ffff:192.0.2.1"), Some(ATTACKER));
    }
}

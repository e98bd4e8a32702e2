//! Limit of a listener's connections, and the eviction order at the limit.
//!
//! At the limit a new connection evicts an idle one. First those without a key whose client does
//! not read a response, then those without a key that wait for a request, each by age.
//! Authenticated connections are evicted last, and only between two requests. So a client with many
//! idle or slow connections cannot lock others out.
//!
//! An authenticated connection counts for its party. If a party has more than its share of the
//! connections when a new one needs room, it gives way: first its idle connections, then its newest
//! request that waits or whose body arrives, which gets 429, or its newest stream of events, which
//! ends. A party alone may use all connections.
//!
//! Connections without a key are also limited per remote address. At that limit a new connection
//! evicts an idle one of the same address, or is closed.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use tokio::sync::Notify;

use self::parties::Parties;
use crate::api::http::key_places::KeyPlace;
use crate::api::http::unread::ConnectionCloser;
use crate::api::http::watched_write::WatchedWrite;
use crate::domain::{Party, address_block};
use crate::limits;

mod parties;
mod seat;

pub(crate) use seat::{RequestSeat, StreamSeat};

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
    parties: Parties,
    /// The connection whose request was ended for the newcomer.
    ending: Option<Arc<Notify>>,
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
    party: Option<Party>,
}

/// The new connection that waits for a slot. At most one waits: accepting is sequential.
#[derive(Default, PartialEq, Eq)]
enum Newcomer {
    #[default]
    None,
    /// No connection can be evicted yet. The next idle one will be.
    Waits,
    /// A request was ended for it. The next idle connection will be evicted.
    WaitsForEnd,
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
    /// hyper has the whole response, but may not have written it.
    response_taken: AtomicBool,
    authenticated: AtomicBool,
    /// The response is a stream that has not ended.
    streaming: AtomicBool,
    /// The class at [`Self::ticket`].
    idle_stalled: AtomicBool,
    /// The limited address, while the connection counts for it.
    address: Mutex<Option<IpAddr>>,
    /// The party of its last request with a key.
    party: Mutex<Option<Party>>,
    /// Of the key of its last request, if a quota limits the key's connections.
    key_place: Mutex<Option<KeyPlace>>,
    /// Of responses that are not written whole. Without the connection they are undone.
    unwritten: Mutex<Vec<Arc<WatchedWrite>>>,
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
        *lock(&slot.address) = counted.into_address();
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
                    response_taken: AtomicBool::new(false),
                    authenticated: AtomicBool::new(false),
                    streaming: AtomicBool::new(false),
                    idle_stalled: AtomicBool::new(false),
                    address: Mutex::new(None),
                    party: Mutex::new(None),
                    key_place: Mutex::new(None),
                    unwritten: Mutex::default(),
                };
                slot.become_idle();
                return slot;
            }
            if tokio::time::timeout(limits::ENDED_REQUEST_GRACE, changed).await.is_err() {
                self.close_ending();
            }
        }
    }

    /// Closes the connection of the ended request: its client does not take the response.
    fn close_ending(&self) {
        let mut slots = self.lock();
        if slots.newcomer == Newcomer::WaitsForEnd
            && let Some(connection) = slots.ending.take()
        {
            self.evicted.fetch_add(1, Ordering::Relaxed);
            connection.notify_one();
            slots.newcomer = Newcomer::IsNext;
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

    /// If a new connection waits for a slot, evicts an idle one, or ends a request.
    fn evict_for_newcomer(&self, slots: &mut Slots) {
        if !matches!(slots.newcomer, Newcomer::Waits | Newcomer::WaitsForEnd) {
            return;
        }
        let above_share = slots.parties.above_share(self.limit);
        let first = slots.idle.first_key_value().map(|(rank, _)| *rank);
        let chosen = match (first, &above_share) {
            (Some(first), Some(party)) if first.0 == IdleClass::Authenticated => {
                let own = slots.idle.iter().find(|(_, idle)| idle.party.as_ref() == Some(party));
                own.map(|(rank, _)| *rank)
            }
            (first, _) => first,
        };
        if let Some(rank) = chosen {
            let chosen = slots.idle.remove_entry(&rank);
            self.evict(chosen);
            slots.newcomer = Newcomer::IsNext;
        } else if let Some(party) = above_share
            && slots.newcomer == Newcomer::Waits
            && let Some(connection) = slots.parties.end_newest_request(&party)
        {
            slots.newcomer = Newcomer::WaitsForEnd;
            slots.ending = Some(connection);
        } else if slots.newcomer == Newcomer::Waits && self.evict(slots.idle.pop_first()) {
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
        let address = *lock(&self.address);
        let mut slots = self.connections.lock();
        slots.last_ticket += 1;
        let ticket = slots.last_ticket;
        slots.idle.remove(&self.rank(self.ticket.swap(ticket, Ordering::Relaxed)));
        self.idle_stalled.store(self.stalled.load(Ordering::Relaxed), Ordering::Relaxed);
        let party = lock(&self.party).clone();
        slots.idle.insert(self.rank(ticket), Evictable { evict: self.evict.clone(), address, party });
        // Evict now: the next request may have arrived already.
        self.connections.evict_for_newcomer(&mut slots);
        drop(slots);
        self.connections.changed.notify_waiters();
    }

    /// Updates the address of an idle connection.
    fn rejoin_idle(&self) {
        let address = *lock(&self.address);
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
        self.streaming.store(false, Ordering::Relaxed);
        self.response_taken.store(false, Ordering::Relaxed);
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

    /// The head of the response is ready.
    pub(super) fn on_response_begun(&self, is_authenticated: bool, is_stream: bool) {
        if is_authenticated {
            // Its rank changes. A decided eviction remains.
            self.protect();
            self.authenticated.store(true, Ordering::Relaxed);
            self.uncount_address();
        }
        self.streaming.store(is_stream, Ordering::Relaxed);
    }

    /// hyper has taken the last part of the response. Once it is written, the connection is idle
    /// again. hyper also flushes between two parts.
    pub(super) fn on_response_taken(&self) {
        self.streaming.store(false, Ordering::Relaxed);
        self.response_taken.store(true, Ordering::Relaxed);
    }

    /// Whether a stream is written, so that its progress renews the client's deadline.
    pub(super) fn is_streaming(&self) -> bool {
        self.streaming.load(Ordering::Relaxed)
    }

    /// Undoes a response if the connection ends before it is written.
    pub(super) fn watch_write(&self, watch: Arc<WatchedWrite>) {
        lock(&self.unwritten).push(watch);
    }

    /// Everything is written.
    pub(super) fn on_written(&self) {
        lock(&self.unwritten).retain(|watch| !watch.on_written());
        if self.response_taken.swap(false, Ordering::Relaxed) {
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
        let counted = lock(&self.address).take();
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

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.uncount_address();
        let mut slots = self.connections.lock();
        slots.idle.remove(&self.rank(self.ticket.load(Ordering::Relaxed)));
        if let Some(party) = lock(&self.party).take() {
            slots.parties.leave(&party);
        }
        slots.taken -= 1;
        drop(slots);
        self.connections.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests;

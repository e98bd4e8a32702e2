//! Room in bytes that parties share: for request bodies, and for responses that wait for their
//! reader.
//!
//! Owns the ledger. One busy party may use all of the room. When another one needs some of it, the
//! party with the most bytes gives way: its slowest holder is evicted. So `n` busy parties get at
//! least `1/n` each. An evicted holder's bytes leave the ledger at once; its task frees them as
//! soon as it runs.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::domain::IdMap;

/// Limits of a room.
#[derive(Clone, Copy, Debug)]
pub struct RoomLimits {
    /// Bytes of all parties.
    pub bytes: usize,
    /// Bytes of one party.
    pub party_bytes: usize,
    /// Age from which a party's own holders give way to its next one. `None`: they never do, and
    /// the next one is rejected.
    pub own_give_way_after: Option<Duration>,
}

/// A shared room; cheap to clone.
pub struct SharedRoom<K> {
    limits: RoomLimits,
    ledger: Arc<Mutex<Ledger<K>>>,
}

struct Ledger<K> {
    used: usize,
    last_id: u64,
    parties: HashMap<K, PartyRoom>,
}

#[derive(Default)]
struct PartyRoom {
    used: usize,
    holders: IdMap<u64, Holder>,
    /// Holders that can be evicted, by the time of their last progress.
    evictable: BTreeMap<(Instant, u64), Arc<Notify>>,
}

struct Holder {
    bytes: usize,
    progress: Instant,
}

/// Bytes of one holder, given back on drop.
pub struct RoomGuard<K: Eq + Hash> {
    ledger: Arc<Mutex<Ledger<K>>>,
    party: K,
    id: u64,
}

/// No room is left for this party.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomFull;

impl<K: Clone + Eq + Hash> SharedRoom<K> {
    #[must_use]
    pub fn new(limits: RoomLimits) -> Self {
        let ledger = Ledger { used: 0, last_id: 0, parties: HashMap::new() };
        Self { limits, ledger: Arc::new(Mutex::new(ledger)) }
    }

    /// Adds a holder without bytes. `evict` is notified when it is evicted.
    pub fn enter(&self, party: K, evict: Arc<Notify>) -> RoomGuard<K> {
        let mut ledger = lock(&self.ledger);
        ledger.last_id += 1;
        let (id, progress) = (ledger.last_id, Instant::now());
        let own = ledger.parties.entry(party.clone()).or_default();
        own.holders.insert(id, Holder { bytes: 0, progress });
        own.evictable.insert((progress, id), evict);
        RoomGuard { ledger: Arc::clone(&self.ledger), party, id }
    }

    /// Gives a holder more bytes, and evicts others for them if needed.
    ///
    /// # Errors
    /// When the party has its share, or the holder was evicted.
    pub fn take(&self, guard: &RoomGuard<K>, bytes: usize) -> Result<(), RoomFull> {
        let mut ledger = lock(&self.ledger);
        let now = Instant::now();
        if !ledger.holds(guard) {
            return Err(RoomFull);
        }
        // A party alone may have one holder of any size.
        while ledger.party_used(&guard.party) + bytes > self.limits.party_bytes
            && ledger.has_other_holders(guard)
        {
            self.evict_own(&mut ledger, guard, now)?;
        }
        while ledger.used + bytes > self.limits.bytes && ledger.used > ledger.holder_bytes(guard) {
            let wanted = ledger.party_used(&guard.party) + bytes;
            if !ledger.evict_from_largest(&guard.party, wanted) {
                self.evict_own(&mut ledger, guard, now)?;
            }
        }
        ledger.used += bytes;
        if let Some(own) = ledger.parties.get_mut(&guard.party)
            && let Some(holder) = own.holders.get_mut(&guard.id)
        {
            own.used += bytes;
            holder.bytes += bytes;
            own.note_progress(guard.id, now);
        }
        Ok(())
    }

    /// Gives a holder more bytes even if none are left. Others give way as far as they can.
    pub fn take_regardless(&self, guard: &RoomGuard<K>, bytes: usize) {
        if self.take(guard, bytes).is_err() {
            let mut ledger = lock(&self.ledger);
            let own = ledger.parties.get_mut(&guard.party);
            if let Some(own) = own
                && let Some(holder) = own.holders.get_mut(&guard.id)
            {
                holder.bytes += bytes;
                own.used += bytes;
                ledger.used += bytes;
            }
        }
    }

    /// The holder can no longer be evicted: its bytes are complete.
    pub fn keep(&self, guard: &RoomGuard<K>) {
        if let Some(own) = lock(&self.ledger).parties.get_mut(&guard.party)
            && let Some(holder) = own.holders.get(&guard.id)
        {
            own.evictable.remove(&(holder.progress, guard.id));
        }
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> usize {
        lock(&self.ledger).used
    }

    fn evict_own(&self, ledger: &mut Ledger<K>, guard: &RoomGuard<K>, now: Instant) -> Result<(), RoomFull> {
        let age_min = self.limits.own_give_way_after.ok_or(RoomFull)?;
        let own = ledger.parties.get(&guard.party).ok_or(RoomFull)?;
        // A holder that waits for its first bytes has none to give.
        let (progress, id) = own.first_with_bytes(Some(guard.id)).ok_or(RoomFull)?;
        if now.saturating_duration_since(progress) < age_min {
            return Err(RoomFull);
        }
        let party = guard.party.clone();
        ledger.evict(&party, progress, id);
        Ok(())
    }
}

impl<K: Eq + Hash> Ledger<K> {
    fn release(&mut self, party: &K, id: u64) {
        let Some(room) = self.parties.get_mut(party) else { return };
        if let Some(holder) = room.holders.remove(&id) {
            room.evictable.remove(&(holder.progress, id));
            room.used -= holder.bytes;
            self.used -= holder.bytes;
        }
        if room.holders.is_empty() {
            self.parties.remove(party);
        }
    }
}

impl<K: Clone + Eq + Hash> Ledger<K> {
    fn party_used(&self, party: &K) -> usize {
        self.parties.get(party).map_or(0, |own| own.used)
    }

    fn holds(&self, guard: &RoomGuard<K>) -> bool {
        self.parties.get(&guard.party).is_some_and(|own| own.holders.contains_key(&guard.id))
    }

    fn holder_bytes(&self, guard: &RoomGuard<K>) -> usize {
        let own = self.parties.get(&guard.party);
        own.and_then(|own| own.holders.get(&guard.id)).map_or(0, |holder| holder.bytes)
    }

    fn has_other_holders(&self, guard: &RoomGuard<K>) -> bool {
        self.party_used(&guard.party) > self.holder_bytes(guard)
    }

    /// Evicts the slowest holder of the other party with the most bytes, if it has more than
    /// `wanted`. Returns whether it did.
    fn evict_from_largest(&mut self, except: &K, wanted: usize) -> bool {
        let others = self.parties.iter().filter(|(party, room)| *party != except && room.used > wanted);
        let largest =
            others.filter_map(|(party, room)| Some((room.used, party, room.first_with_bytes(None)?)));
        let Some((_, party, (progress, id))) = largest.max_by_key(|(used, _, _)| *used) else { return false };
        let party = party.clone();
        self.evict(&party, progress, id);
        true
    }

    fn evict(&mut self, party: &K, progress: Instant, id: u64) {
        if let Some(evict) =
            self.parties.get_mut(party).and_then(|room| room.evictable.remove(&(progress, id)))
        {
            evict.notify_one();
        }
        self.release(party, id);
    }
}

impl PartyRoom {
    fn note_progress(&mut self, id: u64, now: Instant) {
        let Some(holder) = self.holders.get_mut(&id) else { return };
        let before = std::mem::replace(&mut holder.progress, now);
        if let Some(evict) = self.evictable.remove(&(before, id)) {
            self.evictable.insert((now, id), evict);
        }
    }

    /// The slowest holder that can be evicted and has bytes.
    fn first_with_bytes(&self, except: Option<u64>) -> Option<(Instant, u64)> {
        let has_bytes = |id: &u64| self.holders.get(id).is_some_and(|holder| holder.bytes > 0);
        self.evictable.keys().find(|(_, id)| Some(*id) != except && has_bytes(id)).copied()
    }
}

impl<K: Eq + Hash> RoomGuard<K> {
    /// The holder is not slow: it has just moved on.
    pub fn progress(&self) {
        let (mut ledger, now) = (lock(&self.ledger), Instant::now());
        if let Some(room) = ledger.parties.get_mut(&self.party) {
            room.note_progress(self.id, now);
        }
    }
}

impl<K: Eq + Hash> fmt::Debug for RoomGuard<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RoomGuard")
    }
}

impl<K: Eq + Hash> Drop for RoomGuard<K> {
    fn drop(&mut self) {
        lock(&self.ledger).release(&self.party, self.id);
    }
}

fn lock<K>(ledger: &Mutex<Ledger<K>>) -> MutexGuard<'_, Ledger<K>> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

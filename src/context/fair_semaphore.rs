//! A semaphore whose turns are shared by party.
//!
//! A free turn goes to the waiting party with the fewest turns, and among equals to the one that
//! had its last turn longest ago. So `n` busy parties get `1/n` of the turns each. The requests of
//! one party keep their order. One party never has all turns if there are several, so that another
//! one need not wait for it.
//!
//! The crate `mea` has such a semaphore (`FairShare`), but among equals it goes by arrival: with a
//! single turn, a party with many requests holds up all others.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Waiting requests of a party between two searches for cancelled ones.
const CANCELLED_SOUGHT_EVERY: usize = 64;
/// One party has at most all turns but one in this many.
const PARTY_SHARE: usize = 4;

/// A fair semaphore; cheap to clone.
pub struct FairSemaphore<K: Ord + Clone>(Arc<Mutex<Turns<K>>>);

struct Turns<K: Ord + Clone> {
    free: usize,
    party_max: usize,
    last_turn: u64,
    parties: BTreeMap<K, PartyTurns<K>>,
}

struct PartyTurns<K: Ord + Clone> {
    held: usize,
    /// Number of its last turn.
    last_turn: u64,
    waiting: VecDeque<oneshot::Sender<FairTurn<K>>>,
}

/// A turn, given back on drop.
pub struct FairTurn<K: Ord + Clone> {
    turns: Arc<Mutex<Turns<K>>>,
    /// `None`: already given back.
    party: Option<K>,
}

impl<K: Ord + Clone> Clone for FairSemaphore<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Ord + Clone> FairSemaphore<K> {
    /// `turns` is at least 1.
    #[must_use]
    pub fn new(turns: usize) -> Self {
        let turns = turns.max(1);
        let party_max = (turns - turns / PARTY_SHARE).max(1);
        Self(Arc::new(Mutex::new(Turns { free: turns, party_max, last_turn: 0, parties: BTreeMap::new() })))
    }

    /// Waits for a turn. Dropping the future gives up the place, or the turn.
    ///
    /// # Panics
    /// Never: the semaphore answers every request.
    pub async fn turn(&self, party: &K) -> FairTurn<K> {
        let turn = self.request(party);
        turn.await.expect("the semaphore outlives its requests")
    }

    fn request(&self, party: &K) -> oneshot::Receiver<FairTurn<K>> {
        let (sender, turn) = oneshot::channel();
        let mut turns = lock(&self.0);
        let own = turns.parties.entry(party.clone()).or_insert_with(|| PartyTurns {
            held: 0,
            last_turn: 0,
            waiting: VecDeque::new(),
        });
        own.waiting.push_back(sender);
        if own.waiting.len().is_multiple_of(CANCELLED_SOUGHT_EVERY) {
            own.waiting.retain(|waiting| !waiting.is_closed());
        }
        self.hand_out(turns);
        turn
    }

    /// Hands out the free turns.
    fn hand_out(&self, mut turns: MutexGuard<'_, Turns<K>>) {
        while turns.free > 0
            && let Some(party) = turns.next_party()
        {
            turns.give_turn(&party, &self.0);
        }
    }
}

impl<K: Ord + Clone> Turns<K> {
    fn next_party(&self) -> Option<K> {
        let waits = |own: &PartyTurns<K>| !own.waiting.is_empty() && own.held < self.party_max;
        let waiting = self.parties.iter().filter(|(_, own)| waits(own));
        waiting.min_by_key(|(_, own)| (own.held, own.last_turn)).map(|(party, _)| party.clone())
    }

    /// Gives one turn to the party's first request that was not cancelled.
    fn give_turn(&mut self, party: &K, shared: &Arc<Mutex<Self>>) {
        let Some(own) = self.parties.get_mut(party) else { return };
        while let Some(sender) = own.waiting.pop_front() {
            let turn = FairTurn { turns: Arc::clone(shared), party: Some(party.clone()) };
            match sender.send(turn) {
                Ok(()) => {
                    self.last_turn += 1;
                    own.last_turn = self.last_turn;
                    own.held += 1;
                    self.free -= 1;
                    return;
                }
                // Its drop must not give back a turn, nor lock.
                Err(mut unused) => unused.party = None,
            }
        }
        if own.held == 0 {
            self.parties.remove(party);
        }
    }
}

impl<K: Ord + Clone> Drop for FairTurn<K> {
    fn drop(&mut self) {
        let Some(party) = self.party.take() else { return };
        let mut turns = lock(&self.turns);
        turns.free += 1;
        if let Some(own) = turns.parties.get_mut(&party) {
            own.held -= 1;
            if own.held == 0 && own.waiting.is_empty() {
                turns.parties.remove(&party);
            }
        }
        FairSemaphore(Arc::clone(&self.turns)).hand_out(turns);
    }
}

fn lock<K: Ord + Clone>(turns: &Mutex<Turns<K>>) -> MutexGuard<'_, Turns<K>> {
    turns.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

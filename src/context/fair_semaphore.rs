//! A semaphore whose turns are shared by party.
//!
//! A free turn goes to the waiting party with the fewest turns, and among equals to the first in
//! line. A party joins the end of the line when it begins to wait, and again with each turn that
//! it gets. So `n` busy parties get `1/n` of the turns each, also those with one request at a
//! time. The requests of one party keep their order. Of four or more turns one party never has
//! all, so that another one need not wait for it.
//!
//! The crate `mea` has such a semaphore (`FairShare`), but among equals it goes by arrival: with a
//! single turn, a party with many requests holds up all others.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Waiting requests of a party between two searches for cancelled ones.
const CANCELLED_SOUGHT_EVERY: usize = 64;
/// Of this many turns, one party leaves one to others.
const PARTY_SHARE: usize = 4;

/// A fair semaphore; cheap to clone.
pub struct FairSemaphore<K: Ord + Clone>(Arc<Mutex<Turns<K>>>);

struct Turns<K: Ord + Clone> {
    free: usize,
    party_max: usize,
    parties: BTreeMap<K, PartyTurns<K>>,
    /// The waiting parties by their turns and their place in line.
    order: BTreeSet<(usize, u64, K)>,
    last_place: u64,
}

struct PartyTurns<K: Ord + Clone> {
    held: usize,
    /// Place in line, if it waits.
    place: u64,
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
        Self(Arc::new(Mutex::new(Turns {
            free: turns,
            party_max,
            parties: BTreeMap::new(),
            order: BTreeSet::new(),
            last_place: 0,
        })))
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
            place: 0,
            waiting: VecDeque::new(),
        });
        own.waiting.push_back(sender);
        match own.waiting.len() {
            1 => turns.join_line(party),
            many if many.is_multiple_of(CANCELLED_SOUGHT_EVERY) => {
                // The new request remains, so the party still waits.
                own.waiting.retain(|waiting| !waiting.is_closed());
            }
            _ => {}
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
    /// Puts a party with a waiting request at the end of the line.
    fn join_line(&mut self, party: &K) {
        self.last_place += 1;
        if let Some(own) = self.parties.get_mut(party) {
            own.place = self.last_place;
            self.order.insert((own.held, own.place, party.clone()));
        }
    }

    fn next_party(&self) -> Option<K> {
        let (held, _, party) = self.order.first()?;
        (*held < self.party_max).then(|| party.clone())
    }

    /// Gives one turn to the party's first request that was not cancelled.
    fn give_turn(&mut self, party: &K, shared: &Arc<Mutex<Self>>) {
        let Some(own) = self.parties.get_mut(party) else { return };
        self.order.remove(&(own.held, own.place, party.clone()));
        while let Some(sender) = own.waiting.pop_front() {
            let turn = FairTurn { turns: Arc::clone(shared), party: Some(party.clone()) };
            match sender.send(turn) {
                Ok(()) => {
                    own.held += 1;
                    self.free -= 1;
                    break;
                }
                // Its drop must not give back a turn, nor lock.
                Err(mut unused) => unused.party = None,
            }
        }
        if !own.waiting.is_empty() {
            self.join_line(party);
        } else if own.held == 0 {
            self.parties.remove(party);
        }
    }

    fn take_back(&mut self, party: &K) {
        self.free += 1;
        let Some(own) = self.parties.get_mut(party) else { return };
        if self.order.remove(&(own.held, own.place, party.clone())) {
            self.order.insert((own.held - 1, own.place, party.clone()));
        }
        own.held -= 1;
        if own.held == 0 && own.waiting.is_empty() {
            self.parties.remove(party);
        }
    }
}

impl<K: Ord + Clone> Drop for FairTurn<K> {
    fn drop(&mut self) {
        let Some(party) = self.party.take() else { return };
        let mut turns = lock(&self.turns);
        turns.take_back(&party);
        FairSemaphore(Arc::clone(&self.turns)).hand_out(turns);
    }
}

fn lock<K: Ord + Clone>(turns: &Mutex<Turns<K>>) -> MutexGuard<'_, Turns<K>> {
    turns.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

//! A queue that parties share: each party's items keep their order, and the parties take turns.
//!
//! Start-time fair queueing: an item begins when its party's previous one ends, in units of cost.
//! The item with the earliest begin is next. So `n` parties with pending items each get `1/n` of
//! the cost that is served, also with items of different sizes. A party that was idle gets no
//! credit for it. Knows no clock and no threads.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;

/// Idle parties that are kept at least, so that forgetting them costs little per item.
const IDLE_PARTIES_KEPT: usize = 64;

/// Pending items by party.
#[derive(Debug)]
pub(super) struct FairQueue<K, T> {
    parties: HashMap<K, PartyItems<T>>,
    /// Begin of the first item of each party that has one. The number keeps arrival order among
    /// equals.
    order: BTreeSet<(u64, u64, K)>,
    /// Begin of a new party's first item: that of the last item taken, and what the items taken
    /// since cost each party.
    now: u64,
    last_ticket: u64,
    len: usize,
}

#[derive(Debug)]
struct PartyItems<T> {
    items: VecDeque<(T, u64)>,
    /// Entry of the first item in the order.
    begin: u64,
    ticket: u64,
}

impl<K, T> Default for FairQueue<K, T> {
    fn default() -> Self {
        Self { parties: HashMap::new(), order: BTreeSet::new(), now: 0, last_ticket: 0, len: 0 }
    }
}

impl<K: Clone + Eq + Hash + Ord, T> FairQueue<K, T> {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds an item behind the others of its party.
    pub(super) fn push(&mut self, party: &K, item: T, cost: u64) {
        self.len += 1;
        if let Some(own) = self.parties.get_mut(party) {
            own.items.push_back((item, cost));
            if own.items.len() > 1 {
                return;
            }
            own.begin = own.begin.max(self.now);
        } else {
            let own = PartyItems { items: VecDeque::from([(item, cost)]), begin: self.now, ticket: 0 };
            self.parties.insert(party.clone(), own);
        }
        self.enter_order(party);
    }

    /// Returns an item that was taken to the front of its party, as if it had not been taken.
    pub(super) fn put_back(&mut self, party: &K, item: T, cost: u64) {
        let now = self.now;
        self.len += 1;
        let own = self.parties.entry(party.clone()).or_insert_with(|| PartyItems {
            items: VecDeque::new(),
            begin: now,
            ticket: 0,
        });
        if !own.items.is_empty() {
            self.order.remove(&(own.begin, own.ticket, party.clone()));
        }
        own.begin = own.begin.saturating_sub(cost);
        own.items.push_front((item, cost));
        self.enter_order(party);
    }

    /// The next item.
    pub(super) fn first(&self) -> Option<&T> {
        let (_, _, party) = self.order.first()?;
        self.parties.get(party)?.items.front().map(|(item, _)| item)
    }

    /// Takes the next item.
    pub(super) fn take_first(&mut self) -> Option<T> {
        let (begin, _, party) = self.order.pop_first()?;
        let own = self.parties.get_mut(&party)?;
        let (item, cost) = own.items.pop_front()?;
        self.len -= 1;
        own.begin = begin + cost;
        // Time passes for all parties, so that new ones cannot hold up a party for ever.
        self.now = self.now.max(begin) + cost / (self.order.len() as u64 + 2);
        if !own.items.is_empty() {
            self.enter_order(&party);
        } else if self.len == 0 {
            // All parties are even.
            self.parties.clear();
            self.now = 0;
        } else if self.parties.len() > 2 * self.order.len() + IDLE_PARTIES_KEPT {
            self.forget_idle_parties();
        }
        Some(item)
    }

    /// Forgets the parties whose last item has ended: they begin now, as new ones do.
    fn forget_idle_parties(&mut self) {
        let now = self.now;
        self.parties.retain(|_, own| !own.items.is_empty() || own.begin > now);
    }

    fn enter_order(&mut self, party: &K) {
        self.last_ticket += 1;
        if let Some(own) = self.parties.get_mut(party) {
            own.ticket = self.last_ticket;
            self.order.insert((own.begin, own.ticket, party.clone()));
        }
    }
}

#[cfg(test)]
mod tests;

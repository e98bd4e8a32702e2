//! Bit-parallel matching of canonical patterns with wildcards.
//!
//! A pattern of n parts has n + 1 states: how many parts the words so far have matched. All states
//! of a shard are bits of one array, so one word of the event type advances 64 states at once.
//!
//! Cost: an event type of w words visits at most w times the blocks of the patterns. Memory: a
//! removed pattern is erased at once, and a shard with more erased than live states is built again.
//! So shards never have more than twice the blocks of their patterns.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::MatchCost;
use crate::domain::{EndpointNumber, Pattern};
use crate::rules::patterns::{ANY_WORD, ANY_WORDS, canonical_parts};

/// Most states of a shard. Building it again takes about 0.1 ms.
const SHARD_STATES_MAX: usize = 4_096;
const BLOCK_STATES: usize = 64;

/// Number of states of a canonical pattern.
pub(super) fn states_of(pattern: &Pattern) -> usize {
    canonical_parts(pattern).len() + 1
}

/// Bits of the shard's states, in blocks.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, state: usize, on: bool) {
        let block = state / BLOCK_STATES;
        if block >= self.0.len() {
            self.0.resize(block + 1, 0);
        }
        let mask = 1 << (state % BLOCK_STATES);
        if on { self.0[block] |= mask } else { self.0[block] &= !mask }
    }

    fn block(&self, block: usize) -> u64 {
        self.0.get(block).copied().unwrap_or(0)
    }
}

/// A pattern and the endpoints that have it.
#[derive(Debug)]
struct Entry {
    pattern: Pattern,
    first: usize,
    endpoints: BTreeSet<EndpointNumber>,
}

/// Some patterns.
#[derive(Debug, Default)]
struct Shard {
    /// By their last state, which accepts.
    entries: BTreeMap<usize, Entry>,
    /// States that were ever used, and those of the present patterns.
    used: usize,
    live: usize,
    /// First states.
    start: Bits,
    /// Last states.
    accept: Bits,
    /// `*` follows: any word leads to the next state.
    step: Bits,
    /// `#` follows: no word leads to the next state.
    skip: Bits,
    /// `#` precedes: any word leads to the same state.
    stay: Bits,
    /// States that a word leads to their next one, as blocks and bits.
    words: HashMap<Box<str>, BTreeMap<usize, u64>>,
}

impl Shard {
    fn has_room(&self, states: usize) -> bool {
        self.used + states <= SHARD_STATES_MAX
    }

    /// Adds a pattern. Returns its last state.
    fn add(&mut self, pattern: &Pattern, endpoints: BTreeSet<EndpointNumber>) -> usize {
        let first = self.used;
        let last = first + states_of(pattern) - 1;
        (self.used, self.live) = (last + 1, self.live + last + 1 - first);
        self.mark(first, pattern, true);
        self.entries.insert(last, Entry { pattern: pattern.clone(), first, endpoints });
        last
    }

    /// Writes or erases the bits of a pattern.
    fn mark(&mut self, first: usize, pattern: &Pattern, on: bool) {
        self.start.set(first, on);
        let mut state = first;
        for part in canonical_parts(pattern) {
            match part {
                ANY_WORD => self.step.set(state, on),
                ANY_WORDS => {
                    self.skip.set(state, on);
                    self.stay.set(state + 1, on);
                }
                word => self.mark_word(word, state, on),
            }
            state += 1;
        }
        self.accept.set(state, on);
    }

    fn mark_word(&mut self, word: &str, state: usize, on: bool) {
        let (block, mask) = (state / BLOCK_STATES, 1 << (state % BLOCK_STATES));
        if on {
            *self.words.entry(word.into()).or_default().entry(block).or_default() |= mask;
        } else if let Some(blocks) = self.words.get_mut(word) {
            if let Some(bits) = blocks.get_mut(&block) {
                *bits &= !mask;
            }
            blocks.retain(|_, bits| *bits != 0);
            if blocks.is_empty() {
                self.words.remove(word);
            }
        }
    }

    fn remove(&mut self, last: usize) {
        if let Some(entry) = self.entries.remove(&last) {
            self.live -= last + 1 - entry.first;
            self.mark(entry.first, &entry.pattern, false);
        }
    }

    /// Adds the endpoints of the matching patterns to `found`.
    fn collect(&self, words: &[&str], cost: &mut MatchCost, found: &mut Vec<EndpointNumber>) {
        let blocks = self.used.div_ceil(BLOCK_STATES);
        let mut active: Vec<u64> = (0..blocks).map(|block| self.start.block(block)).collect();
        self.follow_skips(&mut active);
        let none = BTreeMap::new();
        for word in words {
            let follow = self.words.get(*word).unwrap_or(&none);
            let (mut carry, mut any) = (0, 0);
            for (block, states) in active.iter_mut().enumerate() {
                cost.steps += 1;
                if *states == 0 && carry == 0 {
                    continue;
                }
                let by_word = if *states == 0 { 0 } else { follow.get(&block).copied().unwrap_or(0) };
                let leaving = *states & (self.step.block(block) | by_word);
                *states = (leaving << 1) | carry | (*states & self.stay.block(block));
                carry = leaving >> (BLOCK_STATES - 1);
                any |= *states;
            }
            if any == 0 {
                return;
            }
            self.follow_skips(&mut active);
        }
        for (block, states) in active.iter().enumerate() {
            let mut matched = states & self.accept.block(block);
            while matched != 0 {
                let last = block * BLOCK_STATES + matched.trailing_zeros() as usize;
                matched &= matched - 1;
                found.extend(self.entries.get(&last).into_iter().flat_map(|entry| &entry.endpoints));
            }
        }
    }

    /// Enters the state after a `#` that no word has to match. A canonical pattern never has two
    /// of them in a row.
    fn follow_skips(&self, active: &mut [u64]) {
        let mut carry = 0;
        for (block, states) in active.iter_mut().enumerate() {
            let skipping = *states & self.skip.block(block);
            *states |= (skipping << 1) | carry;
            carry = skipping >> (BLOCK_STATES - 1);
        }
    }
}

/// Patterns with wildcards, each once, with the endpoints that have it.
#[derive(Debug, Default)]
pub(super) struct Automaton {
    shards: BTreeMap<usize, Shard>,
    /// Shard and last state of each pattern.
    places: HashMap<Pattern, (usize, usize)>,
}

impl Automaton {
    pub(super) fn insert(&mut self, pattern: &Pattern, endpoint: EndpointNumber) {
        if let Some((shard, last)) = self.places.get(pattern)
            && let Some(entry) = self.shards.get_mut(shard).and_then(|shard| shard.entries.get_mut(last))
        {
            entry.endpoints.insert(endpoint);
            return;
        }
        let states = states_of(pattern);
        let with_room = self.shards.iter().rev().find(|(_, shard)| shard.has_room(states));
        let number = match with_room {
            Some((number, _)) => *number,
            None => self.shards.last_key_value().map_or(0, |(last, _)| last + 1),
        };
        let last = self.shards.entry(number).or_default().add(pattern, [endpoint].into());
        self.places.insert(pattern.clone(), (number, last));
    }

    pub(super) fn remove(&mut self, pattern: &Pattern, endpoint: EndpointNumber) {
        let Some((number, last)) = self.places.get(pattern).copied() else { return };
        let Some(shard) = self.shards.get_mut(&number) else { return };
        let Some(entry) = shard.entries.get_mut(&last) else { return };
        entry.endpoints.remove(&endpoint);
        if !entry.endpoints.is_empty() {
            return;
        }
        shard.remove(last);
        self.places.remove(pattern);
        if shard.live == 0 {
            self.shards.remove(&number);
        } else if shard.used > 2 * shard.live {
            let entries = std::mem::take(shard).entries;
            for entry in entries.into_values() {
                let last = shard.add(&entry.pattern, entry.endpoints);
                self.places.insert(entry.pattern, (number, last));
            }
        }
        if self.places.capacity() > 4 * (self.places.len() + 16) {
            self.places.shrink_to_fit();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn contains(&self, pattern: &Pattern) -> bool {
        self.places.contains_key(pattern)
    }

    /// States of all patterns.
    pub(super) fn states(&self) -> usize {
        self.shards.values().map(|shard| shard.live).sum()
    }

    /// States in memory, with those of removed patterns.
    #[cfg(test)]
    pub(super) fn allocated_states(&self) -> usize {
        self.shards.values().map(|shard| shard.used).sum()
    }

    /// Adds the endpoints of the matching patterns to `found`; an endpoint may appear twice.
    pub(super) fn collect(&self, words: &[&str], cost: &mut MatchCost, found: &mut Vec<EndpointNumber>) {
        for shard in self.shards.values() {
            shard.collect(words, cost, found);
        }
    }
}

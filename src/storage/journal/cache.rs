//! A least-recently-used cache with a limit on the total weight.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

pub(super) struct LruCache<K, V> {
    weight_max: usize,
    weight: usize,
    tick: u64,
    entries: HashMap<K, (u64, usize, V)>,
    by_age: BTreeMap<u64, K>,
}

impl<K: Hash + Eq + Copy, V: Clone> LruCache<K, V> {
    pub(super) fn new(weight_max: usize) -> Self {
        Self { weight_max, weight: 0, tick: 0, entries: HashMap::new(), by_age: BTreeMap::new() }
    }

    pub(super) fn get(&mut self, key: K) -> Option<V> {
        let (age, _, value) = self.entries.get_mut(&key)?;
        self.by_age.remove(age);
        self.tick += 1;
        *age = self.tick;
        self.by_age.insert(self.tick, key);
        Some(value.clone())
    }

    /// Adds a value. Drops a value that is heavier than the limit.
    pub(super) fn insert(&mut self, key: K, weight: usize, value: V) {
        self.remove(key);
        if weight > self.weight_max {
            return;
        }
        self.weight += weight;
        self.tick += 1;
        self.entries.insert(key, (self.tick, weight, value));
        self.by_age.insert(self.tick, key);
        while self.weight > self.weight_max
            && let Some((_, oldest)) = self.by_age.first_key_value()
        {
            self.remove(*oldest);
        }
    }

    /// Drops the values whose keys match.
    pub(super) fn remove_where(&mut self, matches: impl Fn(&K) -> bool) {
        let keys: Vec<K> = self.entries.keys().filter(|key| matches(key)).copied().collect();
        for key in keys {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: K) {
        if let Some((age, weight, _)) = self.entries.remove(&key) {
            self.by_age.remove(&age);
            self.weight -= weight;
        }
    }
}

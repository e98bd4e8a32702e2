//! Maps and sets of keys that clients cannot choose freely: numbers, positions, tenants, API keys.
//!
//! Their hash is fast, and seeded at random. Maps of names and texts from clients have the hash of
//! the standard library, which resists chosen collisions.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;

/// A map with the fast hash; see the module.
pub type IdMap<K, V> = HashMap<K, V, RandomState>;
/// A set with the fast hash; see the module.
pub type IdSet<K> = HashSet<K, RandomState>;

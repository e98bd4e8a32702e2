//! Maps and sets of keys that clients cannot choose freely: numbers, positions, tenants, API keys.
//!
//! Their hash is fast, and seeded at random. Maps of names and texts from clients have the hash of
//! the standard library, which resists chosen collisions.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;

pub type IdMap<K, V> = HashMap<K, V, RandomState>;
pub type IdSet<K> = HashSet<K, RandomState>;

//! Places of API keys: their connections, or their reads in progress. A quota of the tenant limits
//! the places of each key.
//!
//! Owns the counts of the keys with a limit. A connection counts from the first request that finds
//! a limit, so a quota that is set later applies to open connections with their next request.

use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::{IdMap, KeyId, Quota, QuotaExceeded};

/// Advice to a client whose key has no place left.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Places by key; cheap to clone.
#[derive(Clone)]
pub(crate) struct KeyPlaces {
    quota: Quota,
    counts: Arc<Mutex<IdMap<KeyId, u64>>>,
}

/// A place of a key, given back on drop.
pub(crate) struct KeyPlace {
    places: KeyPlaces,
    key: KeyId,
}

impl KeyPlaces {
    /// `quota` is the one that limits these places.
    pub(crate) fn new(quota: Quota) -> Self {
        Self { quota, counts: Arc::default() }
    }

    pub(crate) fn quota(&self) -> Quota {
        self.quota
    }

    /// # Errors
    /// When the key has `limit` places.
    pub(crate) fn enter(&self, key: &KeyId, limit: u64) -> Result<KeyPlace, QuotaExceeded> {
        let mut counts = self.lock();
        let before = counts.get(key).copied().unwrap_or(0);
        QuotaExceeded::check(self.quota, Some(limit), before + 1)
            .map_err(|exceeded| QuotaExceeded { retry_after: Some(RETRY_AFTER), ..exceeded })?;
        counts.insert(key.clone(), before + 1);
        Ok(KeyPlace { places: self.clone(), key: key.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, IdMap<KeyId, u64>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyPlace {
    pub(crate) fn key(&self) -> &KeyId {
        &self.key
    }
}

impl Drop for KeyPlace {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.places.lock().entry(self.key.clone()) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_a_key_are_limited_and_given_back() {
        let key = |name: char| format!("key_01{}", String::from(name).repeat(24)).parse::<KeyId>().unwrap();
        let places = KeyPlaces::new(Quota::ReadsPerKey);
        let held: Vec<_> = (0..3).map(|_| places.enter(&key('A'), 3)).collect();
        assert!(held.iter().all(Result::is_ok));
        let refused = places.enter(&key('A'), 3).err().expect("a fourth place");
        let expected = (Quota::ReadsPerKey, 3, 4, Some(RETRY_AFTER));
        assert_eq!((refused.quota, refused.limit, refused.value, refused.retry_after), expected);
        let other = places.enter(&key('B'), 3);
        assert!(other.is_ok(), "another key has its own places");
        drop(held);
        assert!(places.enter(&key('A'), 1).is_ok());
        drop(other);
        assert!(places.lock().is_empty(), "idle keys are forgotten");
    }
}

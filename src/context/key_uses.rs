//! Last use of each API key, to the hour.
//!
//! Kept in memory: a record per use would make every read a write. A background task records the
//! hours that are new, so that a restart keeps them ([`crate::delivery`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::domain::{IdMap, KeyId, Timestamp};

/// Resolution in milliseconds.
const HOUR: u64 = 3_600_000;

/// The hour of the last use of each key that was used since the start of the process. At most one
/// entry per live key.
#[derive(Debug, Default)]
pub(super) struct KeyUses {
    hours: RwLock<IdMap<KeyId, AtomicU64>>,
}

impl KeyUses {
    /// A request was authenticated with the key. Only the first use of a key locks for writing.
    pub(super) fn note(&self, key: &KeyId, at: Timestamp) {
        let hour = at.millis() / HOUR;
        if let Some(known) = self.hours.read().unwrap_or_else(PoisonError::into_inner).get(key) {
            known.fetch_max(hour, Ordering::Relaxed);
            return;
        }
        let mut hours = self.hours.write().unwrap_or_else(PoisonError::into_inner);
        hours.entry(key.clone()).or_default().fetch_max(hour, Ordering::Relaxed);
    }

    /// The start of the hour of the last use.
    pub(super) fn last(&self, key: &KeyId) -> Option<Timestamp> {
        let hours = self.hours.read().unwrap_or_else(PoisonError::into_inner);
        hours.get(key).map(|hour| Timestamp::from_millis(hour.load(Ordering::Relaxed) * HOUR))
    }

    /// The keys that were used since the start, with the start of the hour of their last use.
    pub(super) fn all(&self) -> Vec<(KeyId, Timestamp)> {
        let hours = self.hours.read().unwrap_or_else(PoisonError::into_inner);
        let start = |hour: &AtomicU64| Timestamp::from_millis(hour.load(Ordering::Relaxed) * HOUR);
        hours.iter().map(|(key, hour)| (key.clone(), start(hour))).collect()
    }

    pub(super) fn forget(&self, key: &KeyId) {
        self.hours.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_use_is_the_start_of_its_hour_and_never_decreases() {
        let (uses, key) = (KeyUses::default(), "key_1".parse().unwrap());
        assert_eq!(uses.last(&key), None);
        for (at, last) in
            [(2 * HOUR + 7, 2 * HOUR), (3 * HOUR - 1, 2 * HOUR), (5 * HOUR, 5 * HOUR), (HOUR, 5 * HOUR)]
        {
            uses.note(&key, Timestamp::from_millis(at));
            assert_eq!(uses.last(&key), Some(Timestamp::from_millis(last)), "{at}");
            assert_eq!(uses.all(), [(key.clone(), Timestamp::from_millis(last))], "{at}");
        }
        uses.forget(&key);
        assert_eq!(uses.last(&key), None);
    }
}

//! Limits of callers that wait, or read a stream of events: in total and per party.

use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::{IdMap, Party};
use crate::limits;

/// See the module.
#[derive(Debug, Default)]
pub struct WaiterLimit {
    total: AtomicUsize,
    parties: Mutex<IdMap<Party, usize>>,
}

/// The place of one caller, until it is dropped.
#[derive(Debug)]
pub struct WaiterPlace {
    limit: Arc<WaiterLimit>,
    party: Party,
}

/// No place is left for a caller; see [`limits::WAITERS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyWaiters;

impl WaiterLimit {
    /// # Errors
    /// Above `most` callers, or above the party's share: [`limits::WAITERS_SHARE`] times what it
    /// leaves free, and at least one.
    pub fn enter(self: &Arc<Self>, party: Party, most: usize) -> Result<WaiterPlace, TooManyWaiters> {
        let mut parties = self.lock();
        // Counted before the caller reads: a commit after that read sees the caller.
        let total = self.total.fetch_add(1, Ordering::SeqCst) + 1;
        let own = parties.get(&party).copied().unwrap_or(0);
        let is_above_share = own > 0 && own + 1 > limits::WAITERS_SHARE * most.saturating_sub(total);
        if total > most || is_above_share {
            self.total.fetch_sub(1, Ordering::SeqCst);
            return Err(TooManyWaiters);
        }
        parties.insert(party.clone(), own + 1);
        drop(parties);
        Ok(WaiterPlace { limit: Arc::clone(self), party })
    }

    #[must_use]
    pub fn callers(&self) -> usize {
        self.total.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, IdMap<Party, usize>> {
        self.parties.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for WaiterPlace {
    fn drop(&mut self) {
        let mut parties = self.limit.lock();
        if let Entry::Occupied(mut entry) = parties.entry(self.party.clone()) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
        drop(parties);
        self.limit.total.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_bounded_and_leave_nothing() {
        let limit = Arc::new(WaiterLimit::default());
        let most = 100;
        let enter = |name: &str| limit.enter(Party::Tenant(name.into()), most);
        let all = |name: &str| std::iter::from_fn(|| enter(name).ok()).collect::<Vec<_>>();
        let busy = all("busy");
        assert_eq!(busy.len(), 75, "a lone party has three quarters of the places");
        let others = all("other");
        assert_eq!(others.len(), 18);
        let third = all("third");
        assert!(!third.is_empty(), "the next party has no place");
        assert_eq!((limit.callers(), limit.lock().len()), (75 + 18 + third.len(), 3));
        drop((busy, others, third));
        assert_eq!((limit.callers(), limit.lock().len()), (0, 0));
        assert!(enter("busy").is_ok());
    }
}

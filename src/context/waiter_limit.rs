//! Limits of callers that wait, or read a stream of events: in total and per party.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::Party;
use crate::limits;

/// See the module.
#[derive(Debug, Default)]
pub struct WaiterLimit {
    total: AtomicUsize,
    parties: Mutex<HashMap<Party, usize>>,
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
    /// Above `most` callers, or [`limits::party_waiters_max`] of the party.
    pub fn enter(self: &Arc<Self>, party: Party, most: usize) -> Result<WaiterPlace, TooManyWaiters> {
        // Counted before the caller reads: a commit after that read sees the caller.
        if self.total.fetch_add(1, Ordering::SeqCst) >= most {
            self.total.fetch_sub(1, Ordering::SeqCst);
            return Err(TooManyWaiters);
        }
        let mut parties = self.lock();
        let own = parties.entry(party.clone()).or_default();
        if *own >= limits::party_waiters_max(most) {
            self.total.fetch_sub(1, Ordering::SeqCst);
            return Err(TooManyWaiters);
        }
        *own += 1;
        drop(parties);
        Ok(WaiterPlace { limit: Arc::clone(self), party })
    }

    #[must_use]
    pub fn callers(&self) -> usize {
        self.total.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Party, usize>> {
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
        let own = limits::party_waiters_max(most);
        let busy: Vec<_> = (0..own).map(|_| enter("busy").unwrap()).collect();
        assert!(enter("busy").is_err(), "one party has all places");
        let others: Vec<_> = (own..most).map(|_| enter("other").unwrap()).collect();
        assert!(enter("third").is_err());
        assert_eq!((limit.callers(), limit.lock().len()), (most, 2));
        drop((busy, others));
        assert_eq!((limit.callers(), limit.lock().len()), (0, 0));
        assert!(enter("busy").is_ok());
    }
}

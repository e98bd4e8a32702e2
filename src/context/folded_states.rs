//! A bounded cache of the states of streams.
//!
//! Holds the newest state of each stream that was folded, for one revision of the event types. An
//! erasure drops every state that may contain the event, before its response is sent. A fold that
//! an erasure overtook is not cached.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fair_semaphore::{FairSemaphore, FairTurn};
use crate::domain::{EventType, Party, Position, StreamName, Tenant};
use crate::limits;

/// An event that did not change the state as its type's rules say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateProblem {
    /// Of the stream.
    pub version: u64,
    pub event_type: EventType,
    pub detail: Box<str>,
}

/// The state of a stream at a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoldedState {
    /// The last event; 0 before the first one.
    pub version: u64,
    pub position: Position,
    /// Position of the first event.
    pub first: Position,
    /// JSON.
    pub state: Box<str>,
    /// The first ones, at most [`limits::STATE_PROBLEMS_MAX`].
    pub problems: Vec<StateProblem>,
}

impl FoldedState {
    /// Approximate bytes in memory.
    #[must_use]
    pub fn weight(&self) -> usize {
        let problem = |problem: &StateProblem| 64 + problem.detail.len() + problem.event_type.as_str().len();
        512 + self.state.len() + self.problems.iter().map(problem).sum::<usize>()
    }

    /// Whether the event may be one of those that made the state.
    fn may_contain(&self, event: Position) -> bool {
        (self.first..=self.position).contains(&event)
    }
}

/// Revision of the event types: the last change, and their number.
pub(crate) type RulesRevision = (Position, usize);

/// Proof of the number of erasures when a fold began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ErasureCount(u64);

pub(crate) struct FoldedStates {
    cached: Mutex<CachedStates>,
    /// Folds use the processors in turns.
    turns: FairSemaphore<Party>,
}

#[derive(Default)]
struct CachedStates {
    states: HashMap<(Tenant, StreamName), CachedState>,
    bytes: usize,
    /// Uses so far.
    uses: u64,
    erasures: u64,
}

struct CachedState {
    revision: RulesRevision,
    folded: Arc<FoldedState>,
    last_use: u64,
}

impl Default for FoldedStates {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { cached: Mutex::default(), turns: FairSemaphore::new(processors.div_ceil(2)) }
    }
}

impl FoldedStates {
    fn cached(&self) -> MutexGuard<'_, CachedStates> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of a party to fold some events.
    pub(crate) async fn turn(&self, party: &Party) -> FairTurn<Party> {
        self.turns.turn(party).await
    }

    /// The number of erasures so far, for [`Self::insert`].
    pub(crate) fn erasures(&self) -> ErasureCount {
        ErasureCount(self.cached().erasures)
    }

    pub(crate) fn get(
        &self,
        stream: &(Tenant, StreamName),
        revision: RulesRevision,
    ) -> Option<Arc<FoldedState>> {
        let mut cached = self.cached();
        cached.uses += 1;
        let now = cached.uses;
        let found = cached.states.get_mut(stream).filter(|found| found.revision == revision)?;
        found.last_use = now;
        Some(found.folded.clone())
    }

    /// Caches a state that was folded from events that were read after `erasures` was taken. Evicts
    /// those that were not used for the longest time, beyond the bound.
    pub(crate) fn insert(
        &self,
        stream: (Tenant, StreamName),
        revision: RulesRevision,
        folded: Arc<FoldedState>,
        erasures: ErasureCount,
    ) {
        let mut cached = self.cached();
        let is_older = |known: &CachedState| {
            known.revision == revision && known.folded.version >= folded.version
                || known.revision.0 > revision.0
        };
        if cached.erasures != erasures.0 || cached.states.get(&stream).is_some_and(is_older) {
            return;
        }
        cached.uses += 1;
        cached.bytes += folded.weight();
        let state = CachedState { revision, folded, last_use: cached.uses };
        if let Some(before) = cached.states.insert(stream, state) {
            cached.bytes -= before.folded.weight();
        }
        while cached.bytes > limits::STATE_CACHE_BYTES_MAX {
            let oldest = cached.states.iter().min_by_key(|(_, state)| state.last_use);
            let Some(oldest) = oldest.map(|(stream, _)| stream.clone()) else { break };
            let evicted = cached.states.remove(&oldest);
            cached.bytes -= evicted.map_or(0, |state| state.folded.weight());
        }
    }

    /// Drops the states that an erased event may have made.
    pub(crate) fn forget(&self, tenant: &Tenant, event: Position) {
        let mut cached = self.cached();
        cached.erasures += 1;
        let dropped: usize = cached
            .states
            .extract_if(|(owner, _), state| owner == tenant && state.folded.may_contain(event))
            .map(|(_, state)| state.folded.weight())
            .sum();
        cached.bytes -= dropped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acme() -> Tenant {
        "acme".parse().unwrap()
    }

    fn stream(name: &str) -> (Tenant, StreamName) {
        (acme(), name.parse().unwrap())
    }

    fn folded(version: u64, bytes: usize) -> Arc<FoldedState> {
        let position = Position(10 + version);
        let state = "1".repeat(bytes).into();
        Arc::new(FoldedState { version, position, first: Position(11), state, problems: Vec::new() })
    }

    const REVISION: RulesRevision = (Position(1), 1);

    #[test]
    fn newest_state_of_one_revision_is_kept() {
        let states = FoldedStates::default();
        let none = states.erasures();
        states.insert(stream("a"), REVISION, folded(5, 1), none);
        states.insert(stream("a"), REVISION, folded(3, 1), none);
        assert_eq!(states.get(&stream("a"), REVISION).unwrap().version, 5);
        assert!(states.get(&stream("a"), (Position(2), 1)).is_none());
        states.insert(stream("a"), (Position(2), 1), folded(2, 1), none);
        // Of an earlier revision.
        states.insert(stream("a"), REVISION, folded(9, 1), none);
        assert_eq!(states.get(&stream("a"), (Position(2), 1)).unwrap().version, 2);
    }

    #[test]
    fn states_that_were_not_used_are_evicted() {
        let states = FoldedStates::default();
        let none = states.erasures();
        for number in 0..20 {
            states.insert(stream(&format!("s{number}")), REVISION, folded(1, 1024 * 1024), none);
            assert!(states.get(&stream("s0"), REVISION).is_some(), "used all the time");
        }
        assert!(
            states.get(&stream("s1"), REVISION).is_none() && states.get(&stream("s19"), REVISION).is_some()
        );
        assert!(states.cached().bytes <= limits::STATE_CACHE_BYTES_MAX);
        let sum: usize = states.cached().states.values().map(|state| state.folded.weight()).sum();
        assert_eq!(states.cached().bytes, sum);
    }

    #[test]
    fn erasure_drops_states_and_overtakes_folds() {
        let states = FoldedStates::default();
        let before = states.erasures();
        states.insert(stream("a"), REVISION, folded(5, 1), before);
        states.forget(&acme(), Position(16));
        states.forget(&"other".parse().unwrap(), Position(12));
        assert!(states.get(&stream("a"), REVISION).is_some(), "another event");
        states.forget(&acme(), Position(12));
        assert!(states.get(&stream("a"), REVISION).is_none());
        assert_eq!(states.cached().bytes, 0);
        states.insert(stream("a"), REVISION, folded(5, 1), before);
        assert!(states.get(&stream("a"), REVISION).is_none(), "its events were read before");
        states.insert(stream("a"), REVISION, folded(5, 1), states.erasures());
        assert!(states.get(&stream("a"), REVISION).is_some());
    }
}

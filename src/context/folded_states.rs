//! A bounded cache of the states of streams.
//!
//! Holds the newest state of each stream that was folded, and the last one at a past version, for
//! one revision of the event types. An erasure drops every state of the tenant that may contain the
//! event, before its response is sent. A fold that an erasure of the tenant overtook is not cached.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fair_semaphore::{FairSemaphore, FairTurn};
use crate::domain::{EventType, IdMap, Party, Position, StreamName, Tenant};
use crate::failpoints::{self, Bound, Mutation};
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

    /// Whether one of the events, in order of position, may be one of those that made the state.
    fn may_contain(&self, events: &[Position]) -> bool {
        let from = events.partition_point(|event| *event < self.first);
        events.get(from).is_some_and(|event| *event <= self.position)
    }
}

/// Revision of the event types: the last change, and their number.
pub(crate) type RulesRevision = (Position, usize);

/// Proof of the number of the tenant's erasures when a fold began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ErasureCount(u64);

/// The place of a state in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct CacheKey {
    stream: StreamName,
    /// Of a version that is not the last one.
    is_past: bool,
}

pub(crate) struct FoldedStates {
    cached: Mutex<CachedStates>,
    /// Folds in progress: each has a state in memory.
    folds: FairSemaphore<Party>,
}

#[derive(Default)]
struct CachedStates {
    states: IdMap<Tenant, HashMap<CacheKey, CachedState>>,
    bytes: usize,
    /// Uses so far.
    uses: u64,
    /// Erasures of each tenant so far.
    erasures: IdMap<Tenant, u64>,
}

struct CachedState {
    revision: RulesRevision,
    folded: Arc<FoldedState>,
    last_use: u64,
}

impl CachedStates {
    fn erasures_of(&self, tenant: &Tenant) -> u64 {
        self.erasures.get(tenant).copied().unwrap_or_default()
    }

    /// Drops the state that was not used for the longest time. Returns whether there was one.
    fn evict(&mut self) -> bool {
        let all = self.states.iter().flat_map(|(tenant, states)| {
            states.iter().map(move |(key, state)| (state.last_use, tenant, key))
        });
        let Some((_, tenant, key)) = all.min_by_key(|(last_use, ..)| *last_use) else { return false };
        let (tenant, key) = (tenant.clone(), key.clone());
        if let Some(states) = self.states.get_mut(&tenant) {
            let evicted = states.remove(&key);
            self.bytes -= evicted.map_or(0, |state| state.folded.weight());
            if states.is_empty() {
                self.states.remove(&tenant);
            }
        }
        true
    }
}

impl Default for FoldedStates {
    fn default() -> Self {
        Self { cached: Mutex::default(), folds: FairSemaphore::new(limits::STATE_FOLDS_MAX) }
    }
}

impl FoldedStates {
    fn cached(&self) -> MutexGuard<'_, CachedStates> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a party may have one more state in memory.
    pub(crate) async fn fold(&self, party: &Party) -> FairTurn<Party> {
        self.folds.turn(party).await
    }

    /// The number of the tenant's erasures so far, for [`Self::insert`].
    pub(crate) fn erasures(&self, tenant: &Tenant) -> ErasureCount {
        ErasureCount(self.cached().erasures_of(tenant))
    }

    /// The newest cached state that is not above a version.
    pub(crate) fn get(
        &self,
        (tenant, stream): &(Tenant, StreamName),
        revision: RulesRevision,
        version: u64,
    ) -> Option<Arc<FoldedState>> {
        let mut cached = self.cached();
        cached.uses += 1;
        let now = cached.uses;
        let states = cached.states.get_mut(tenant)?;
        let is_of_rules = |state: &CachedState| {
            state.revision == revision || failpoints::is_active(Mutation::KeepStatesOfOldRules)
        };
        let is_wanted = |state: &CachedState| is_of_rules(state) && state.folded.version <= version;
        let keys = [false, true].map(|is_past| CacheKey { stream: stream.clone(), is_past });
        let found = keys.into_iter().filter(|key| states.get(key).is_some_and(is_wanted));
        let newest = found.max_by_key(|key| states[key].folded.version)?;
        let state = states.get_mut(&newest)?;
        state.last_use = now;
        Some(state.folded.clone())
    }

    /// Caches a state that was folded from events that were read after `erasures` was taken. Evicts
    /// those that were not used for the longest time, beyond the bound. `is_past`: the stream has
    /// more versions than were wanted.
    pub(crate) fn insert(
        &self,
        (tenant, stream): (Tenant, StreamName),
        is_past: bool,
        revision: RulesRevision,
        folded: Arc<FoldedState>,
        erasures: ErasureCount,
    ) {
        let mut cached = self.cached();
        if cached.erasures_of(&tenant) != erasures.0 {
            return;
        }
        cached.uses += 1;
        let (last_use, weight) = (cached.uses, folded.weight());
        let states = cached.states.entry(tenant).or_default();
        let key = CacheKey { stream, is_past };
        let is_older = |known: &CachedState| {
            !is_past && known.revision == revision && known.folded.version >= folded.version
        };
        if states.get(&key).is_some_and(is_older) {
            return;
        }
        let before = states.insert(key, CachedState { revision, folded, last_use });
        cached.bytes += weight;
        cached.bytes -= before.map_or(0, |before| before.folded.weight());
        let bytes_max = failpoints::bound(Bound::StateCacheBytes, limits::STATE_CACHE_BYTES_MAX);
        while cached.bytes > bytes_max && cached.evict() {}
    }

    /// Drops the states that erased events of the tenant may have made.
    pub(crate) fn forget(&self, tenant: &Tenant, mut events: Vec<Position>) {
        if failpoints::is_active(Mutation::KeepErasedStates) {
            return;
        }
        events.sort_unstable();
        let mut cached = self.cached();
        *cached.erasures.entry(tenant.clone()).or_default() += 1;
        let Some(states) = cached.states.get_mut(tenant) else { return };
        let dropped = states.extract_if(|_, state| state.folded.may_contain(&events));
        let dropped: usize = dropped.map(|(_, state)| state.folded.weight()).sum();
        if states.is_empty() {
            cached.states.remove(tenant);
        }
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
    const NEWEST: u64 = u64::MAX;

    fn insert(states: &FoldedStates, name: &str, is_past: bool, revision: RulesRevision, version: u64) {
        states.insert(stream(name), is_past, revision, folded(version, 1), states.erasures(&acme()));
    }

    fn version(states: &FoldedStates, name: &str, revision: RulesRevision, most: u64) -> Option<u64> {
        states.get(&stream(name), revision, most).map(|found| found.version)
    }

    #[test]
    fn newest_state_of_one_revision_is_kept() {
        let states = FoldedStates::default();
        insert(&states, "a", false, REVISION, 5);
        insert(&states, "a", false, REVISION, 3);
        assert_eq!(version(&states, "a", REVISION, NEWEST), Some(5));
        let (later, earlier) = ((Position(2), 1), (Position(0), 0));
        assert_eq!(version(&states, "a", later, NEWEST), None);
        // The deletion of the last type makes the revision smaller.
        for revision in [later, earlier] {
            insert(&states, "a", false, revision, 2);
            assert_eq!(version(&states, "a", revision, NEWEST), Some(2));
        }
    }

    #[test]
    fn past_state_has_its_own_place() {
        let states = FoldedStates::default();
        insert(&states, "a", false, REVISION, 20);
        insert(&states, "a", true, REVISION, 10);
        assert_eq!(version(&states, "a", REVISION, NEWEST), Some(20));
        assert_eq!(version(&states, "a", REVISION, 15), Some(10));
        assert_eq!(version(&states, "a", REVISION, 9), None);
        insert(&states, "a", true, REVISION, 7);
        assert_eq!(version(&states, "a", REVISION, 9), Some(7), "the last one that was wanted");
        assert_eq!(states.cached().bytes, 2 * folded(1, 1).weight());
    }

    #[test]
    fn states_that_were_not_used_are_evicted() {
        let states = FoldedStates::default();
        let none = states.erasures(&acme());
        for number in 0..20 {
            let large = folded(1, 1024 * 1024);
            states.insert(stream(&format!("s{number}")), false, REVISION, large, none);
            assert!(version(&states, "s0", REVISION, NEWEST).is_some(), "used all the time");
        }
        assert_eq!(version(&states, "s1", REVISION, NEWEST), None);
        assert!(version(&states, "s19", REVISION, NEWEST).is_some());
        let cached = states.cached();
        assert!(cached.bytes <= limits::STATE_CACHE_BYTES_MAX);
        let all = cached.states.values().flat_map(HashMap::values);
        assert_eq!(cached.bytes, all.map(|state| state.folded.weight()).sum::<usize>());
    }

    #[test]
    fn erasure_drops_states_and_overtakes_folds() {
        let states = FoldedStates::default();
        let before = states.erasures(&acme());
        let put = |erasures| states.insert(stream("a"), false, REVISION, folded(5, 1), erasures);
        put(before);
        states.forget(&acme(), vec![Position(16), Position(10)]);
        states.forget(&"other".parse().unwrap(), vec![Position(12)]);
        assert!(version(&states, "a", REVISION, NEWEST).is_some(), "other events");
        states.forget(&acme(), vec![Position(40), Position(12)]);
        assert_eq!((version(&states, "a", REVISION, NEWEST), states.cached().bytes), (None, 0));
        put(before);
        assert_eq!(version(&states, "a", REVISION, NEWEST), None, "its events were read before");
        let now = states.erasures(&acme());
        states.forget(&"other".parse().unwrap(), vec![Position(12)]);
        put(now);
        assert!(version(&states, "a", REVISION, NEWEST).is_some(), "erasures of others do not count");
    }
}

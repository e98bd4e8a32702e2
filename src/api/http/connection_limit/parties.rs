//! Connections of each party, and their requests that can be ended.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::domain::{IdMap, Party};

/// Connections with a key, by party.
#[derive(Default)]
pub(super) struct Parties {
    connections: IdMap<Party, usize>,
    /// Requests that wait, or whose body arrives, by party and in order of their begin.
    endable: BTreeMap<(Party, u64), Endable>,
    last_request: u64,
}

/// Ends a request, or closes its connection.
pub(super) struct Endable {
    pub(super) end: Arc<Notify>,
    pub(super) close: Arc<Notify>,
}

impl Parties {
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.endable.is_empty()
    }

    pub(super) fn enter(&mut self, party: &Party) {
        match self.connections.get_mut(party) {
            Some(count) => *count += 1,
            None => drop(self.connections.insert(party.clone(), 1)),
        }
    }

    pub(super) fn leave(&mut self, party: &Party) {
        if let Some(count) = self.connections.get_mut(party) {
            *count -= 1;
            if *count == 0 {
                self.connections.remove(party);
            }
        }
    }

    /// The party with the most connections, if these are more than its share of `limit`. One more
    /// party, to which a new connection may belong, has a share too.
    pub(super) fn above_share(&self, limit: usize) -> Option<Party> {
        let share = limit / (self.connections.len() + 1);
        let (party, count) = self.connections.iter().max_by_key(|(party, count)| (**count, *party))?;
        (*count > share).then(|| party.clone())
    }

    /// Registers a request that can be ended. Returns its number.
    pub(super) fn begin(&mut self, party: &Party, request: Endable) -> u64 {
        self.last_request += 1;
        self.endable.insert((party.clone(), self.last_request), request);
        self.last_request
    }

    /// Removes a request that cannot be ended any more.
    pub(super) fn finish(&mut self, party: &Party, number: u64) {
        self.endable.remove(&(party.clone(), number));
    }

    /// Ends the party's newest request that can be ended. Returns what closes its connection.
    pub(super) fn end_newest_request(&mut self, party: &Party) -> Option<Arc<Notify>> {
        let own = (party.clone(), 0)..=(party.clone(), u64::MAX);
        let newest = self.endable.range(own).next_back().map(|(key, _)| key.clone());
        let Endable { end, close } = newest.and_then(|key| self.endable.remove(&key))?;
        end.notify_one();
        Some(close)
    }
}

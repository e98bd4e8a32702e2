//! Hosts: how many requests are under way to each, over all lanes that lead there.
//!
//! A lane that its host has no room for stands in the host's queue, and a slot that becomes free is promised to the first
//! in line before anybody else can take it: so lanes of one host take turns, and none has to be looked at while it waits.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::domain::EndpointNumber;

/// Where a lane stands with its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    #[default]
    None,
    Waiting,
    /// A slot is kept for it.
    Promised,
}

/// Where a lane joins a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineEnd {
    Front,
    Back,
}

impl LineEnd {
    pub(super) fn join(self, line: &mut VecDeque<EndpointNumber>, endpoint: EndpointNumber) {
        match self {
            Self::Front => line.push_front(endpoint),
            Self::Back => line.push_back(endpoint),
        }
    }
}

#[derive(Debug, Default)]
struct Host {
    in_flight: usize,
    promised: usize,
    /// Each has [`Place::Waiting`]. Nobody waits where there is room.
    waiting: VecDeque<EndpointNumber>,
}

impl Host {
    fn taken(&self) -> usize {
        self.in_flight + self.promised
    }
}

/// All hosts that are sent to or waited for.
#[derive(Debug)]
pub(super) struct Hosts {
    limit: usize,
    hosts: HashMap<Arc<str>, Host>,
}

impl Hosts {
    /// `limit`: requests at once to one host; 0 is none.
    pub(super) fn new(limit: usize) -> Self {
        let mut hosts = Self { limit: 0, hosts: HashMap::new() };
        hosts.set_limit(limit);
        hosts
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = if limit == 0 { usize::MAX } else { limit };
    }

    pub(super) fn is_full(&self, host: &str) -> bool {
        self.hosts.get(host).is_some_and(|host| host.taken() >= self.limit)
    }

    /// Whether a lane may send now; if not, it stands in line.
    pub(super) fn admits(
        &mut self,
        host: &Arc<str>,
        endpoint: EndpointNumber,
        place: &mut Place,
        end: LineEnd,
    ) -> bool {
        if *place == Place::Promised || !self.is_full(host) {
            return true;
        }
        if *place == Place::None {
            end.join(&mut self.hosts.entry(host.clone()).or_default().waiting, endpoint);
            *place = Place::Waiting;
        }
        false
    }

    pub(super) fn on_sent(&mut self, host: &Arc<str>, place: &mut Place) {
        self.add(host, 1);
        self.give_up(host, place);
    }

    /// A lane with requests under way comes to this host.
    pub(super) fn add(&mut self, host: &Arc<str>, requests: usize) {
        if requests > 0 {
            self.hosts.entry(host.clone()).or_default().in_flight += requests;
        }
    }

    /// So many requests ended, or their lane has gone.
    pub(super) fn remove(&mut self, host: &Arc<str>, requests: usize) {
        if let Some(known) = self.hosts.get_mut(host) {
            known.in_flight -= requests;
        }
        self.forget(host);
    }

    /// A lane goes from this host, with its requests under way and its place in line.
    pub(super) fn leave(&mut self, host: &Arc<str>, endpoint: EndpointNumber, requests: usize, place: Place) {
        if let Some(known) = self.hosts.get_mut(host) {
            match place {
                Place::None => {}
                Place::Waiting => known.waiting.retain(|other| *other != endpoint),
                Place::Promised => known.promised -= 1,
            }
        }
        self.remove(host, requests);
    }

    /// A promise is no longer wanted. Gives whether there was one.
    pub(super) fn give_up(&mut self, host: &Arc<str>, place: &mut Place) -> bool {
        if *place != Place::Promised {
            return false;
        }
        *place = Place::None;
        if let Some(known) = self.hosts.get_mut(host) {
            known.promised -= 1;
        }
        self.forget(host);
        true
    }

    /// The first in line, when there is room for it: a slot is kept for whom this names.
    pub(super) fn next_promise(&mut self, host: &Arc<str>) -> Option<EndpointNumber> {
        let limit = self.limit;
        let known = self.hosts.get_mut(host).filter(|host| host.taken() < limit)?;
        let next = known.waiting.pop_front()?;
        known.promised += 1;
        Some(next)
    }

    /// Those that somebody waits for.
    pub(super) fn waited_for(&self) -> Vec<Arc<str>> {
        let waited = self.hosts.iter().filter(|(_, host)| !host.waiting.is_empty());
        waited.map(|(name, _)| name.clone()).collect()
    }

    fn forget(&mut self, host: &Arc<str>) {
        if self.hosts.get(host).is_some_and(|host| host.taken() == 0 && host.waiting.is_empty()) {
            self.hosts.remove(host);
        }
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.hosts.len()
    }
}

//! Hosts: the limit of concurrent requests to one host, over all its lanes.
//!
//! Lanes of a full host wait in the host's queue, where tenants take turns. A free slot is offered
//! to the next of them and is kept for it. So waiting lanes are not polled.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::tenants::TenantNumber;
use crate::domain::EndpointNumber;

/// State of a lane in its host's queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum HostQueueState {
    #[default]
    None,
    Waiting,
    /// A slot is kept for the lane.
    Offered,
}

/// The end at which a lane joins a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueEnd {
    Front,
    Back,
}

impl QueueEnd {
    pub(super) fn push(self, queue: &mut VecDeque<EndpointNumber>, endpoint: EndpointNumber) {
        match self {
            Self::Front => queue.push_front(endpoint),
            Self::Back => queue.push_back(endpoint),
        }
    }
}

/// Lanes in [`HostQueueState::Waiting`]: the queues of tenants, in turn. No queue is empty.
#[derive(Debug, Default)]
struct WaitingLanes {
    tenants: VecDeque<(TenantNumber, VecDeque<EndpointNumber>)>,
}

impl WaitingLanes {
    fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }

    fn push(&mut self, end: QueueEnd, tenant: TenantNumber, endpoint: EndpointNumber) {
        match self.tenants.iter_mut().find(|(other, _)| *other == tenant) {
            Some((_, queue)) => end.push(queue, endpoint),
            None => self.tenants.push_back((tenant, VecDeque::from([endpoint]))),
        }
    }

    fn pop(&mut self) -> Option<EndpointNumber> {
        let (tenant, mut queue) = self.tenants.pop_front()?;
        let next = queue.pop_front();
        if !queue.is_empty() {
            self.tenants.push_back((tenant, queue));
        }
        next
    }

    fn remove(&mut self, endpoint: EndpointNumber) {
        for (_, queue) in &mut self.tenants {
            queue.retain(|other| *other != endpoint);
        }
        self.tenants.retain(|(_, queue)| !queue.is_empty());
    }
}

#[derive(Debug, Default)]
struct Host {
    in_flight: usize,
    offered: usize,
    /// Empty while the host has free slots.
    waiting: WaitingLanes,
}

impl Host {
    fn taken(&self) -> usize {
        self.in_flight + self.offered
    }
}

/// Hosts with requests in flight, slot offers or waiting lanes.
#[derive(Debug)]
pub(super) struct Hosts {
    limit: usize,
    hosts: HashMap<Arc<str>, Host>,
}

impl Hosts {
    /// `limit`: concurrent requests to one host; 0: no limit.
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

    /// Whether a lane may send now. Otherwise it joins the queue.
    pub(super) fn admit(
        &mut self,
        host: &Arc<str>,
        (tenant, endpoint): (TenantNumber, EndpointNumber),
        state: &mut HostQueueState,
        end: QueueEnd,
    ) -> bool {
        if *state == HostQueueState::Offered || !self.is_full(host) {
            return true;
        }
        if *state == HostQueueState::None {
            self.hosts.entry(host.clone()).or_default().waiting.push(end, tenant, endpoint);
            *state = HostQueueState::Waiting;
        }
        false
    }

    pub(super) fn on_sent(&mut self, host: &Arc<str>, state: &mut HostQueueState) {
        self.add_requests(host, 1);
        self.decline_offer(host, state);
    }

    pub(super) fn add_requests(&mut self, host: &Arc<str>, requests: usize) {
        if requests > 0 {
            self.hosts.entry(host.clone()).or_default().in_flight += requests;
        }
    }

    /// Removes requests that ended, or whose lane was removed.
    pub(super) fn remove_requests(&mut self, host: &Arc<str>, requests: usize) {
        if let Some(known) = self.hosts.get_mut(host) {
            known.in_flight -= requests;
        }
        self.drop_if_unused(host);
    }

    /// Removes a lane from this host, with its requests in flight and its queue state.
    pub(super) fn remove_lane(
        &mut self,
        host: &Arc<str>,
        endpoint: EndpointNumber,
        requests: usize,
        state: HostQueueState,
    ) {
        if let Some(known) = self.hosts.get_mut(host) {
            match state {
                HostQueueState::None => {}
                HostQueueState::Waiting => known.waiting.remove(endpoint),
                HostQueueState::Offered => known.offered -= 1,
            }
        }
        self.remove_requests(host, requests);
    }

    /// Withdraws the slot offer of a lane. Returns whether it had one.
    pub(super) fn decline_offer(&mut self, host: &Arc<str>, state: &mut HostQueueState) -> bool {
        if *state != HostQueueState::Offered {
            return false;
        }
        *state = HostQueueState::None;
        if let Some(known) = self.hosts.get_mut(host) {
            known.offered -= 1;
        }
        self.drop_if_unused(host);
        true
    }

    /// Offers a free slot to the first waiting lane, and returns that lane.
    pub(super) fn offer_slot(&mut self, host: &Arc<str>) -> Option<EndpointNumber> {
        let limit = self.limit;
        let known = self.hosts.get_mut(host).filter(|host| host.taken() < limit)?;
        let next = known.waiting.pop()?;
        known.offered += 1;
        Some(next)
    }

    pub(super) fn with_waiting_lanes(&self) -> Vec<Arc<str>> {
        let waited = self.hosts.iter().filter(|(_, host)| !host.waiting.is_empty());
        waited.map(|(name, _)| name.clone()).collect()
    }

    fn drop_if_unused(&mut self, host: &Arc<str>) {
        if self.hosts.get(host).is_some_and(|host| host.taken() == 0 && host.waiting.is_empty()) {
            self.hosts.remove(host);
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.hosts.len()
    }
}

//! Handshake requests: which receivers are asked for consent next.
//!
//! Owns the running requests and their limits: over all endpoints, per host, and per tenant by
//! [`SharedSlots`]. A request also counts in its host's limit. Endpoints of the tenant with the
//! fewest running requests come first, and among equals those of the tenant that waits longest.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::Lanes;
use crate::domain::{EndpointNumber, IdMap, SharedSlots};
use crate::failpoints::{self, Bound};
use crate::limits;

#[derive(Debug)]
struct RunningHandshake {
    tenant: Arc<str>,
    host: Arc<str>,
}

/// Of one tenant.
#[derive(Default)]
struct TenantHandshakes {
    /// Running requests.
    held: usize,
    /// Due endpoints with their places in line.
    waiting: VecDeque<(usize, EndpointNumber)>,
}

/// Running handshake requests; at most [`limits::HANDSHAKES_MAX`].
#[derive(Debug, Default)]
pub(super) struct HandshakeSlots {
    running: IdMap<EndpointNumber, RunningHandshake>,
}

impl HandshakeSlots {
    fn at_host(&self, host: &str) -> usize {
        self.running.values().filter(|running| &*running.host == host).count()
    }
}

impl Lanes {
    /// Starts as many of the due handshake requests as the limits allow, and removes those and
    /// unknown endpoints from `due`, which has the longest due first. Call it again when a request
    /// has ended.
    pub fn start_handshakes(&mut self, due: &mut Vec<EndpointNumber>) -> Vec<EndpointNumber> {
        due.retain(|endpoint| {
            self.lanes.contains_key(endpoint) && !self.handshakes.running.contains_key(endpoint)
        });
        let mut tenants: BTreeMap<Arc<str>, TenantHandshakes> = BTreeMap::new();
        for running in self.handshakes.running.values() {
            tenants.entry(running.tenant.clone()).or_default().held += 1;
        }
        for (place, endpoint) in due.iter().enumerate() {
            let tenant = self.lanes[endpoint].tenant_name().clone();
            tenants.entry(tenant).or_default().waiting.push_back((place, *endpoint));
        }
        let mut started = Vec::new();
        while let Some(endpoint) = self.next_handshake(&mut tenants) {
            let lane = &self.lanes[&endpoint];
            let (tenant, host) = (lane.tenant_name().clone(), lane.host().clone());
            self.hosts.add_requests(&host, 1);
            self.handshakes.running.insert(endpoint, RunningHandshake { tenant, host });
            started.push(endpoint);
        }
        due.retain(|endpoint| !self.handshakes.running.contains_key(endpoint));
        started
    }

    /// The next endpoint of the tenant with the fewest running requests, and among equals of the
    /// tenant that waits longest. Skips endpoints of a host that is at its limit.
    fn next_handshake(&self, tenants: &mut BTreeMap<Arc<str>, TenantHandshakes>) -> Option<EndpointNumber> {
        loop {
            let limit = failpoints::bound(Bound::Handshakes, limits::HANDSHAKES_MAX);
            let active = tenants.values().filter(|own| own.held > 0 || !own.waiting.is_empty()).count();
            let slots = SharedSlots { limit, taken: self.handshakes.running.len(), active };
            let allowance =
                |held| if self.tenants.are_several() { slots.allowance(held) } else { slots.free() };
            let waiting = tenants.values_mut().filter_map(|own| {
                let (place, _) = *own.waiting.front().filter(|_| allowance(own.held) > 0)?;
                Some((own.held, place, own))
            });
            let (_, _, own) = waiting.min_by_key(|(held, place, _)| (*held, *place))?;
            let (_, endpoint) = own.waiting.pop_front()?;
            let host = self.lanes[&endpoint].host();
            if !self.hosts.is_full(host) && self.handshakes.at_host(host) < limits::HANDSHAKES_PER_HOST_MAX {
                own.held += 1;
                return Some(endpoint);
            }
        }
    }

    /// A handshake request has ended.
    pub fn on_handshake_finished(&mut self, endpoint: EndpointNumber) {
        if let Some(ended) = self.handshakes.running.remove(&endpoint) {
            self.hosts.remove_requests(&ended.host, 1);
            self.offer_slots(&ended.host);
        }
    }
}

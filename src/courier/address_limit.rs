//! The limit of requests in flight to one address, over all host names and tenants.
//!
//! Many host names can resolve to one address, so a limit per name does not protect a third party.
//! An IPv6 address counts with its /64 network, which its owner controls as a whole.
//! Tenants share an address by [`SharedSlots`], so that one with slow endpoints behind a shared
//! front end leaves room to others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::{IdMap, SharedSlots, address_block};

/// Requests in flight at one network, by tenant. No count is zero.
type TenantRequests = IdMap<Arc<str>, usize>;

/// Requests in flight. The limit on requests over all endpoints bounds the number of entries.
#[derive(Debug)]
pub(super) struct AddressLimit {
    /// 0: no limit.
    limit: AtomicUsize,
    networks: Mutex<HashMap<IpAddr, TenantRequests>>,
}

impl AddressLimit {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: AtomicUsize::new(limit), networks: Mutex::default() })
    }

    pub(super) fn set(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Counts a request. `None`: the tenant gets no further request to this address now.
    pub(super) fn acquire(self: &Arc<Self>, address: IpAddr, tenant: &Arc<str>) -> Option<AddressPermit> {
        let network = address_block(address);
        let limit = self.limit.load(Ordering::Relaxed);
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        let requests = networks.entry(network).or_default();
        if limit > 0 {
            let held = requests.get(tenant).copied().unwrap_or(0);
            let active = requests.len() + usize::from(held == 0);
            let slots = SharedSlots { limit, taken: requests.values().sum(), active };
            if slots.allowance(held) == 0 {
                return None;
            }
        }
        *requests.entry(tenant.clone()).or_default() += 1;
        Some(AddressPermit { limit: self.clone(), network, tenant: tenant.clone() })
    }
}

/// One counted request. Dropping it ends the count.
#[derive(Debug)]
pub(super) struct AddressPermit {
    limit: Arc<AddressLimit>,
    network: IpAddr,
    tenant: Arc<str>,
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let mut networks = self.limit.networks.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(requests) = networks.get_mut(&self.network) else { return };
        if let Some(count) = requests.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                requests.remove(&self.tenant);
            }
        }
        if requests.is_empty() {
            networks.remove(&self.network);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acquire(limit: &Arc<AddressLimit>, address: &str, tenant: &str, most: usize) -> Vec<AddressPermit> {
        let acquire = || limit.acquire(address.parse().unwrap(), &tenant.into());
        std::iter::from_fn(acquire).take(most).collect()
    }

    #[test]
    fn address_limit_leaves_room_to_other_tenants() {
        let limit = AddressLimit::new(64);
        let evil = acquire(&limit, "192.0.2.1", "evil", 1_000);
        assert_eq!(evil.len(), 56, "all but the reserve");
        assert_eq!(acquire(&limit, "::ffff:192.0.2.1", "evil", 1).len(), 0, "the same address");
        assert_eq!(acquire(&limit, "192.0.2.1", "good", 100).len(), 4, "half of the reserve");
        assert_eq!(acquire(&limit, "192.0.2.2", "evil", 100).len(), 56, "another address");
        drop(evil);
        assert!(limit.networks.lock().unwrap().is_empty());
    }

    #[test]
    fn ipv6_address_counts_with_its_network() {
        let limit = AddressLimit::new(8);
        let held = acquire(&limit, "2001:db8::1", "evil", 100);
        assert_eq!(held.len(), 7);
        assert_eq!(acquire(&limit, "2001:db8::2", "evil", 1).len(), 0);
        assert_eq!(acquire(&limit, "2001:db8:0:1::1", "evil", 1).len(), 1);
        limit.set(0);
        assert_eq!(acquire(&limit, "2001:db8::2", "evil", 50).len(), 50, "no limit");
    }
}

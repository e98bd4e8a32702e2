//! Endpoints by owner, so that a question about one tenant does not pass over the endpoints of
//! others, and deleted endpoints by the names that they had.

use std::collections::{BTreeSet, HashMap};

use crate::domain::{Endpoint, EndpointNumber, EndpointUid, IdMap, QueueName, Tenant};

#[derive(Debug, Default)]
struct Owned {
    live: BTreeSet<EndpointNumber>,
    deleted: BTreeSet<EndpointNumber>,
    /// Deleted queues.
    queues: HashMap<QueueName, BTreeSet<EndpointNumber>>,
}

/// Numbers of endpoints and queues, by owner. An endpoint never changes its owner.
#[derive(Debug, Default)]
pub(super) struct Owners {
    all: IdMap<Tenant, Owned>,
    /// Deleted endpoints of all owners.
    uids: HashMap<EndpointUid, BTreeSet<EndpointNumber>>,
}

impl Owners {
    pub(super) fn add(&mut self, endpoint: &Endpoint) {
        if !self.all.contains_key(&endpoint.tenant) {
            self.all.insert(endpoint.tenant.clone(), Owned::default());
        }
        let owned = self.all.get_mut(&endpoint.tenant).expect("it was inserted");
        owned.live.insert(endpoint.number);
    }

    pub(super) fn add_deleted(&mut self, endpoint: &Endpoint) {
        let owned = self.all.entry(endpoint.tenant.clone()).or_default();
        owned.live.remove(&endpoint.number);
        owned.deleted.insert(endpoint.number);
        if let Some(target) = endpoint.queue() {
            owned.queues.entry(target.name.clone()).or_default().insert(endpoint.number);
        }
        if let Some(uid) = &endpoint.uid {
            self.uids.entry(uid.clone()).or_default().insert(endpoint.number);
        }
    }

    /// Deleted queues of an owner that had this name, by number.
    pub(super) fn former_queues(
        &self,
        tenant: &Tenant,
        name: &QueueName,
    ) -> impl Iterator<Item = EndpointNumber> + '_ {
        let named = self.all.get(tenant).and_then(|owned| owned.queues.get(name));
        named.into_iter().flatten().copied()
    }

    /// Deleted endpoints that had this uid, by number.
    pub(super) fn former_endpoints(&self, uid: &EndpointUid) -> impl Iterator<Item = EndpointNumber> + '_ {
        self.uids.get(uid).into_iter().flatten().copied()
    }

    /// Live endpoints of an owner, by number.
    pub(super) fn live(&self, tenant: &Tenant) -> impl DoubleEndedIterator<Item = EndpointNumber> + '_ {
        self.all.get(tenant).into_iter().flat_map(|owned| owned.live.iter().copied())
    }

    /// Deleted endpoints of an owner, by number.
    pub(super) fn deleted(&self, tenant: &Tenant) -> impl Iterator<Item = EndpointNumber> + '_ {
        self.all.get(tenant).into_iter().flat_map(|owned| owned.deleted.iter().copied())
    }
}

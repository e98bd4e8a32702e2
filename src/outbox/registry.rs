//! The in-memory registry of endpoints and API keys, read by every request and every commit.
//!
//! A projection of the journal. The commit thread updates it after each commit.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::domain::{ApiKey, Endpoint, EndpointId, EndpointNumber, KeyId, Ordering, Record, Tenant};

#[derive(Debug, Default)]
pub struct Registry {
    endpoints: BTreeMap<EndpointNumber, Arc<Endpoint>>,
    /// Endpoints with an ordering.
    ordered: Arc<HashSet<EndpointNumber>>,
    /// Includes deleted endpoints, because queries still ask for their deliveries.
    by_id: HashMap<EndpointId, EndpointNumber>,
    /// Ids and tenants of deleted endpoints, which old deliveries still name.
    deleted: BTreeMap<EndpointNumber, (EndpointId, Tenant)>,
    keys: BTreeMap<KeyId, Arc<ApiKey>>,
    keys_by_hash: HashMap<[u8; 32], KeyId>,
    last_number: u32,
}

impl Registry {
    /// Applies a record. Most records do not concern endpoints or keys.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::EndpointPut(endpoint) => {
                self.last_number = self.last_number.max(endpoint.number.0);
                self.by_id.insert(endpoint.id.clone(), endpoint.number);
                self.set_ordered(endpoint.number, endpoint.ordering != Ordering::None);
                self.endpoints.insert(endpoint.number, endpoint.clone());
            }
            Record::EndpointDeleted { endpoint, .. } => {
                self.set_ordered(*endpoint, false);
                if let Some(gone) = self.endpoints.remove(endpoint) {
                    self.deleted.insert(*endpoint, (gone.id.clone(), gone.tenant.clone()));
                }
            }
            Record::KeyPut(key) => {
                self.keys_by_hash.insert(key.hash, key.id.clone());
                self.keys.insert(key.id.clone(), key.clone());
            }
            Record::KeyDeleted { id, .. } => {
                if let Some(gone) = self.keys.remove(id) {
                    self.keys_by_hash.remove(&gone.hash);
                }
            }
            Record::EventAccepted(_)
            | Record::AttemptFinished { .. }
            | Record::DeliveriesRevived { .. }
            | Record::DeliveriesCancelled { .. }
            | Record::DeliveriesDied { .. }
            | Record::DeadLettersPurged { .. }
            | Record::DeliveriesReordered { .. }
            | Record::RequestAnswered { .. }
            | Record::RateReserved { .. }
            | Record::EventRejected { .. } => {}
        }
    }

    fn set_ordered(&mut self, endpoint: EndpointNumber, is_ordered: bool) {
        if self.ordered.contains(&endpoint) != is_ordered {
            let ordered = Arc::make_mut(&mut self.ordered);
            if is_ordered {
                ordered.insert(endpoint)
            } else {
                ordered.remove(&endpoint)
            };
        }
    }

    /// Endpoints whose deliveries wait for each other, at this moment.
    #[must_use]
    pub fn ordered_endpoints(&self) -> Arc<HashSet<EndpointNumber>> {
        self.ordered.clone()
    }

    /// Applies the last record of a deleted endpoint.
    pub fn apply_deleted(&mut self, record: &Record) {
        if let Record::EndpointPut(endpoint) = record {
            self.last_number = self.last_number.max(endpoint.number.0);
            self.by_id.insert(endpoint.id.clone(), endpoint.number);
            self.deleted.insert(endpoint.number, (endpoint.id.clone(), endpoint.tenant.clone()));
        }
    }

    #[must_use]
    pub fn next_number(&self) -> EndpointNumber {
        EndpointNumber(self.last_number + 1)
    }

    #[must_use]
    pub fn endpoint(&self, number: EndpointNumber) -> Option<&Arc<Endpoint>> {
        self.endpoints.get(&number)
    }

    #[must_use]
    pub fn endpoint_by_id(&self, id: &EndpointId) -> Option<&Arc<Endpoint>> {
        self.by_id.get(id).and_then(|number| self.endpoints.get(number))
    }

    /// The number of an endpoint, including deleted ones.
    #[must_use]
    pub fn number_of(&self, id: &EndpointId) -> Option<EndpointNumber> {
        self.by_id.get(id).copied()
    }

    /// The id of an endpoint, including deleted ones.
    #[must_use]
    pub fn id_of(&self, number: EndpointNumber) -> Option<&EndpointId> {
        self.id_and_tenant(number).map(|(id, _)| id)
    }

    /// The tenant of an endpoint, including deleted ones.
    #[must_use]
    pub fn tenant_of(&self, number: EndpointNumber) -> Option<&Tenant> {
        self.id_and_tenant(number).map(|(_, tenant)| tenant)
    }

    fn id_and_tenant(&self, number: EndpointNumber) -> Option<(&EndpointId, &Tenant)> {
        let live = self.endpoints.get(&number).map(|endpoint| (&endpoint.id, &endpoint.tenant));
        live.or_else(|| self.deleted.get(&number).map(|(id, tenant)| (id, tenant)))
    }

    /// Live endpoints by number, which is the order of creation.
    pub fn endpoints(&self) -> impl DoubleEndedIterator<Item = &Arc<Endpoint>> {
        self.endpoints.values()
    }

    pub fn deleted_endpoints(&self) -> impl Iterator<Item = EndpointNumber> + '_ {
        self.deleted.keys().copied()
    }

    #[must_use]
    pub fn key_by_hash(&self, hash: &[u8; 32]) -> Option<&Arc<ApiKey>> {
        self.keys_by_hash.get(hash).and_then(|id| self.keys.get(id))
    }

    #[must_use]
    pub fn key(&self, id: &KeyId) -> Option<&Arc<ApiKey>> {
        self.keys.get(id)
    }

    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &Arc<ApiKey>> {
        self.keys.values()
    }
}

//! The in-memory registry of endpoints, API keys, settings of tenants, consumers, event types, jobs
//! and sources. Every request and every commit reads it.
//!
//! A projection of the journal. The commit thread updates it after each commit.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

mod consumers;
mod jobs;
mod owners;

pub use consumers::{ConsumerDirectory, ConsumerStatus};
pub use jobs::{JobDirectory, KnownJob};

use owners::Owners;

use crate::domain::{
    ApiKey, ConsumerKey, ConsumerPlace, Endpoint, EndpointId, EndpointNumber, EndpointUid, EventType, IdMap,
    IdSet, JobProgress, KeyId, Ordering, Position, QueueName, Quotas, Record, Source, SourceName,
    SourceTenant, Tenant, TenantSettings, Timestamp,
};
use crate::rules::patterns::wildcards;
use crate::schemas::RegisteredType;

/// Usage of a tenant's endpoints, keys and consumers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    pub endpoints: u64,
    pub pattern_bytes: u64,
    /// `*` and `#` in topic patterns.
    pub wildcard_parts: u64,
    pub header_bytes: u64,
    /// Keys that are bound to the tenant.
    pub keys: u64,
    pub consumers: u64,
}

/// `*` and `#` in the topic patterns of an endpoint.
pub(super) fn wildcard_parts(endpoint: &Endpoint) -> u64 {
    endpoint.event_types.iter().map(|pattern| wildcards(pattern) as u64).sum()
}

fn queue_key(endpoint: &Endpoint) -> Option<(Tenant, QueueName)> {
    Some((endpoint.tenant.clone(), endpoint.queue()?.name.clone()))
}

/// The part of a deleted endpoint that old deliveries show.
#[derive(Debug)]
struct DeletedEndpoint {
    id: EndpointId,
    tenant: Tenant,
    /// Its name, if it was a queue.
    queue: Option<QueueName>,
}

impl From<&Endpoint> for DeletedEndpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            id: endpoint.id.clone(),
            tenant: endpoint.tenant.clone(),
            queue: endpoint.queue().map(|target| target.name.clone()),
        }
    }
}

#[derive(Debug, Default)]
pub struct Registry {
    endpoints: BTreeMap<EndpointNumber, Arc<Endpoint>>,
    /// Endpoints with an ordering.
    ordered: Arc<IdSet<EndpointNumber>>,
    /// Endpoints and queues of all tenants, deleted ones included.
    shared: Arc<IdSet<EndpointNumber>>,
    owners: Owners,
    /// Includes deleted endpoints, because queries still ask for their deliveries.
    by_id: HashMap<EndpointId, EndpointNumber>,
    queues: HashMap<(Tenant, QueueName), EndpointNumber>,
    /// Live endpoints with a uid.
    uids: HashMap<EndpointUid, BTreeMap<Tenant, EndpointNumber>>,
    /// Deleted endpoints, which old deliveries still name.
    deleted: BTreeMap<EndpointNumber, DeletedEndpoint>,
    keys: BTreeMap<KeyId, Arc<ApiKey>>,
    keys_by_hash: HashMap<[u8; 32], KeyId>,
    /// The recorded hour of the last use of each key.
    key_uses: IdMap<KeyId, Timestamp>,
    tenants: BTreeMap<Tenant, Arc<TenantSettings>>,
    types: BTreeMap<EventType, Arc<RegisteredType>>,
    sources: BTreeMap<SourceName, Arc<Source>>,
    consumers: ConsumerDirectory,
    jobs: JobDirectory,
    /// Tenants with endpoints, keys or consumers.
    used: IdMap<Tenant, Used>,
    /// Limits of tenants without their own. Configuration, not a projection.
    default_quotas: Quotas,
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
                self.note_owner(endpoint);
                self.queues.extend(queue_key(endpoint).map(|key| (key, endpoint.number)));
                let before = self.endpoints.insert(endpoint.number, endpoint.clone());
                self.change_uid(before.as_deref(), Some(endpoint));
                self.count_endpoint(before.as_deref(), Some(endpoint));
            }
            Record::EndpointDeleted { endpoint, .. } => {
                self.set_ordered(*endpoint, false);
                if let Some(gone) = self.endpoints.remove(endpoint) {
                    if let Some(key) = queue_key(&gone) {
                        self.queues.remove(&key);
                    }
                    self.change_uid(Some(&gone), None);
                    self.count_endpoint(Some(&gone), None);
                    self.owners.add_deleted(&gone);
                    self.deleted.insert(*endpoint, gone.as_ref().into());
                }
            }
            Record::KeyPut(key) => {
                self.keys_by_hash.insert(key.hash, key.id.clone());
                let before = self.keys.insert(key.id.clone(), key.clone());
                self.count_key(before.as_deref(), Some(key));
            }
            Record::KeyUsed { id, at } => drop(self.key_uses.insert(id.clone(), *at)),
            Record::KeyDeleted { id, .. } => {
                self.key_uses.remove(id);
                if let Some(gone) = self.keys.remove(id) {
                    self.keys_by_hash.remove(&gone.hash);
                    self.count_key(Some(&gone), None);
                }
            }
            Record::TenantPut(settings) => {
                self.tenants.insert(settings.tenant.clone(), settings.clone());
            }
            Record::TenantDeleted { tenant, .. } => drop(self.tenants.remove(tenant)),
            Record::ConsumerPut(consumer) => self.change_consumers(&consumer.key, record),
            Record::ConsumerMoved { key, .. } | Record::ConsumerDeleted { key, .. } => {
                self.change_consumers(key, record);
            }
            Record::TypePut(definition) => {
                let registered = Arc::new(RegisteredType::new(definition.clone()));
                self.types.insert(definition.name.clone(), registered);
            }
            Record::TypeDeleted { name, .. } => drop(self.types.remove(name)),
            Record::JobPut(_) | Record::JobMoved { .. } => self.jobs.apply(record),
            Record::SourcePut(source) => drop(self.sources.insert(source.name.clone(), source.clone())),
            Record::SourceDeleted { name, .. } => drop(self.sources.remove(name)),
            Record::EventAccepted(_)
            | Record::HorizonMoved { .. }
            | Record::AttemptFinished { .. }
            | Record::DeliveriesRevived { .. }
            | Record::DeliveriesCancelled { .. }
            | Record::DeliveriesDied { .. }
            | Record::DeadLettersPurged { .. }
            | Record::DeliveriesReordered { .. }
            | Record::RequestAnswered { .. }
            | Record::RateReserved { .. }
            | Record::EventRejected { .. }
            | Record::EventErased { .. }
            | Record::MessagesLeased { .. }
            | Record::LeasesEnded { .. }
            | Record::LeasesExtended { .. }
            | Record::Audited(_) => {}
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

    fn note_owner(&mut self, endpoint: &Endpoint) {
        self.owners.add(endpoint);
        if endpoint.tenant.is_every() && !self.shared.contains(&endpoint.number) {
            Arc::make_mut(&mut self.shared).insert(endpoint.number);
        }
    }

    /// Endpoints and queues of all tenants, including deleted ones. Their deliveries belong to no
    /// tenant.
    #[must_use]
    pub fn shared_endpoints(&self) -> Arc<IdSet<EndpointNumber>> {
        self.shared.clone()
    }

    /// Endpoints whose deliveries wait for each other, at this moment.
    #[must_use]
    pub fn ordered_endpoints(&self) -> Arc<IdSet<EndpointNumber>> {
        self.ordered.clone()
    }

    fn change_uid(&mut self, before: Option<&Endpoint>, after: Option<&Endpoint>) {
        let (gone, new) = (before.and_then(|one| one.uid.as_ref()), after.and_then(|one| one.uid.as_ref()));
        if gone == new {
            return;
        }
        if let (Some(endpoint), Some(uid)) = (before, gone)
            && let Some(tenants) = self.uids.get_mut(uid)
        {
            tenants.remove(&endpoint.tenant);
            if tenants.is_empty() {
                self.uids.remove(uid);
            }
        }
        if let (Some(endpoint), Some(uid)) = (after, new) {
            self.uids.entry(uid.clone()).or_default().insert(endpoint.tenant.clone(), endpoint.number);
        }
    }

    fn count_endpoint(&mut self, before: Option<&Endpoint>, after: Option<&Endpoint>) {
        if let Some(endpoint) = before {
            self.change_used(&endpoint.tenant, |used| {
                used.endpoints -= 1;
                used.pattern_bytes -= endpoint.pattern_bytes();
                used.wildcard_parts -= wildcard_parts(endpoint);
                used.header_bytes -= endpoint.header_bytes();
            });
        }
        if let Some(endpoint) = after {
            self.change_used(&endpoint.tenant, |used| {
                used.endpoints += 1;
                used.pattern_bytes += endpoint.pattern_bytes();
                used.wildcard_parts += wildcard_parts(endpoint);
                used.header_bytes += endpoint.header_bytes();
            });
        }
    }

    fn count_key(&mut self, before: Option<&ApiKey>, after: Option<&ApiKey>) {
        if let Some(tenant) = before.and_then(|key| key.tenant.as_ref()) {
            self.change_used(tenant, |used| used.keys -= 1);
        }
        if let Some(tenant) = after.and_then(|key| key.tenant.as_ref()) {
            self.change_used(tenant, |used| used.keys += 1);
        }
    }

    fn change_consumers(&mut self, key: &ConsumerKey, record: &Record) {
        let before = self.consumers.get(key).is_some();
        self.consumers.apply(record);
        let after = self.consumers.get(key).is_some();
        if let Some(tenant) = key.tenant.as_ref().filter(|_| before != after) {
            self.change_used(tenant, |used| if after { used.consumers += 1 } else { used.consumers -= 1 });
        }
    }

    fn change_used(&mut self, tenant: &Tenant, change: impl FnOnce(&mut Used)) {
        let used = self.used.entry(tenant.clone()).or_default();
        change(used);
        if *used == Used::default() {
            self.used.remove(tenant);
        }
    }

    /// Applies the last record of a deleted endpoint.
    pub fn apply_deleted(&mut self, record: &Record) {
        if let Record::EndpointPut(endpoint) = record {
            self.last_number = self.last_number.max(endpoint.number.0);
            self.note_owner(endpoint);
            self.owners.add_deleted(endpoint);
            self.by_id.insert(endpoint.id.clone(), endpoint.number);
            self.deleted.insert(endpoint.number, endpoint.as_ref().into());
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

    /// The live endpoints with this uid, at most one per tenant.
    pub fn endpoints_by_uid(&self, uid: &EndpointUid) -> impl Iterator<Item = &Arc<Endpoint>> {
        let numbers = self.uids.get(uid).into_iter().flat_map(BTreeMap::values);
        numbers.filter_map(|number| self.endpoints.get(number))
    }

    /// Whether another live endpoint of the tenant has the uid of this one.
    #[must_use]
    pub fn is_uid_taken(&self, endpoint: &Endpoint) -> bool {
        let tenants = endpoint.uid.as_ref().and_then(|uid| self.uids.get(uid));
        let owner = tenants.and_then(|tenants| tenants.get(&endpoint.tenant));
        owner.is_some_and(|owner| *owner != endpoint.number)
    }

    /// Whether another live queue of the tenant has the name.
    #[must_use]
    pub fn is_queue_name_taken(&self, endpoint: &Endpoint) -> bool {
        let named = endpoint.queue().and_then(|target| self.queue(&endpoint.tenant, &target.name));
        named.is_some_and(|named| named.number != endpoint.number)
    }

    /// The live queue with this name.
    #[must_use]
    pub fn queue(&self, tenant: &Tenant, name: &QueueName) -> Option<&Arc<Endpoint>> {
        let number = self.queues.get(&(tenant.clone(), name.clone()))?;
        self.endpoints.get(number)
    }

    /// Numbers of the queues that have this name, or had it when they were deleted. Ascending: a
    /// live one is the last.
    #[must_use]
    pub fn queues_named(&self, tenant: &Tenant, name: &QueueName) -> Vec<EndpointNumber> {
        let live = self.queue(tenant, name).map(|queue| queue.number);
        self.owners.former_queues(tenant, name).chain(live).collect()
    }

    /// Numbers of the deleted endpoints that had this uid.
    pub fn former_endpoints(&self, uid: &EndpointUid) -> impl Iterator<Item = EndpointNumber> + '_ {
        self.owners.former_endpoints(uid)
    }

    /// The name of a queue, including deleted ones.
    #[must_use]
    pub fn queue_name(&self, number: EndpointNumber) -> Option<&QueueName> {
        let live = self.endpoints.get(&number).and_then(|endpoint| Some(&endpoint.queue()?.name));
        live.or_else(|| self.deleted.get(&number)?.queue.as_ref())
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
        live.or_else(|| self.deleted.get(&number).map(|gone| (&gone.id, &gone.tenant)))
    }

    /// Live endpoints by number, which is the order of creation.
    pub fn endpoints(&self) -> impl DoubleEndedIterator<Item = &Arc<Endpoint>> {
        self.endpoints.values()
    }

    /// Live endpoints of a tenant, or of all if `None`, by number.
    pub fn endpoints_of(&self, tenant: Option<&Tenant>) -> impl DoubleEndedIterator<Item = &Arc<Endpoint>> {
        let all = tenant.is_none().then(|| self.endpoints());
        let own = tenant.map(|tenant| self.owners.live(tenant));
        let own = own.into_iter().flatten().filter_map(|number| self.endpoints.get(&number));
        all.into_iter().flatten().chain(own)
    }

    pub fn deleted_endpoints(&self) -> impl Iterator<Item = EndpointNumber> + '_ {
        self.deleted.keys().copied()
    }

    /// Numbers of the live endpoints of a tenant, or of all if `None`, then of the deleted ones.
    pub fn numbers_of(&self, tenant: Option<&Tenant>) -> impl Iterator<Item = EndpointNumber> + '_ {
        let all = tenant.is_none().then(|| self.endpoints.keys().chain(self.deleted.keys()).copied());
        let own = tenant.map(|tenant| self.owners.live(tenant).chain(self.owners.deleted(tenant)));
        all.into_iter().flatten().chain(own.into_iter().flatten())
    }

    #[must_use]
    pub fn key_by_hash(&self, hash: &[u8; 32]) -> Option<&Arc<ApiKey>> {
        self.keys_by_hash.get(hash).and_then(|id| self.keys.get(id))
    }

    #[must_use]
    pub fn key(&self, id: &KeyId) -> Option<&Arc<ApiKey>> {
        self.keys.get(id)
    }

    /// The recorded hour of the key's last use.
    #[must_use]
    pub fn key_use(&self, id: &KeyId) -> Option<Timestamp> {
        self.key_uses.get(id).copied()
    }

    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &Arc<ApiKey>> {
        self.keys.values()
    }

    #[must_use]
    pub fn tenant(&self, tenant: &Tenant) -> Option<&Arc<TenantSettings>> {
        self.tenants.get(tenant)
    }

    /// Tenants with settings, by name.
    pub fn tenants(&self) -> impl ExactSizeIterator<Item = &Arc<TenantSettings>> {
        self.tenants.values()
    }

    /// Tenants with settings after a name, by name.
    pub fn tenants_after(&self, name: Option<&Tenant>) -> impl Iterator<Item = &Arc<TenantSettings>> {
        let from = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.tenants.range::<Tenant, _>((from, Bound::Unbounded)).map(|(_, settings)| settings)
    }

    #[must_use]
    pub fn consumers(&self) -> &ConsumerDirectory {
        &self.consumers
    }

    /// Restores the places of consumers that were moved after their definition.
    pub fn restore_places(&mut self, places: impl IntoIterator<Item = (ConsumerKey, ConsumerPlace)>) {
        for (key, place) in places {
            self.consumers.set_place(&key, place);
        }
    }

    #[must_use]
    pub fn jobs(&self) -> &JobDirectory {
        &self.jobs
    }

    /// Restores the progress of jobs that moved after their first record.
    pub fn restore_jobs(&mut self, progress: impl IntoIterator<Item = (Position, JobProgress)>) {
        for (number, progress) in progress {
            self.jobs.set_progress(number, progress);
        }
    }

    #[must_use]
    pub fn source(&self, name: &SourceName) -> Option<&Arc<Source>> {
        self.sources.get(name)
    }

    /// Sources, by name.
    pub fn sources(&self) -> impl ExactSizeIterator<Item = &Arc<Source>> {
        self.sources.values()
    }

    /// Sources whose events all belong to the tenant, by name.
    pub fn sources_of(&self, tenant: &Tenant) -> impl Iterator<Item = &Arc<Source>> {
        let is_own =
            move |source: &&Arc<Source>| matches!(&source.tenant, SourceTenant::Fixed(own) if own == tenant);
        self.sources.values().filter(is_own)
    }

    #[must_use]
    pub fn event_type(&self, name: &EventType) -> Option<&Arc<RegisteredType>> {
        self.types.get(name)
    }

    /// Registered event types, by name.
    pub fn event_types(&self) -> impl ExactSizeIterator<Item = &Arc<RegisteredType>> {
        self.types.values()
    }

    /// Registered event types after a name, by name.
    pub fn event_types_after(&self, name: Option<&EventType>) -> impl Iterator<Item = &Arc<RegisteredType>> {
        let from = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.types.range::<EventType, _>((from, Bound::Unbounded)).map(|(_, registered)| registered)
    }

    /// Revision of all event types: the last change, and their number, which a deletion changes.
    #[must_use]
    pub fn types_revision(&self) -> (Position, usize) {
        let last = self.types.values().map(|registered| registered.definition().revision).max();
        (last.unwrap_or_default(), self.types.len())
    }

    #[must_use]
    pub fn used(&self, tenant: &Tenant) -> Used {
        self.used.get(tenant).copied().unwrap_or_default()
    }

    pub fn set_default_quotas(&mut self, quotas: Quotas) {
        self.default_quotas = quotas;
    }

    #[must_use]
    pub fn default_quotas(&self) -> Quotas {
        self.default_quotas
    }

    /// The limits of a tenant.
    #[must_use]
    pub fn quotas(&self, tenant: &Tenant) -> Quotas {
        let settings = self.tenants.get(tenant);
        settings.map_or(self.default_quotas, |settings| settings.quotas.apply_to(&self.default_quotas))
    }
}

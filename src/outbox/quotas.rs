//! Quota checks of the writer. One writer judges all commands, so concurrent requests cannot exceed
//! a quota together.
//!
//! Owns the load that was committed and not yet applied by the state. A delivery that ends is
//! subtracted when the state applies it, so the writer may count slightly too much, never too
//! little.

use std::collections::VecDeque;
use std::sync::{Arc, RwLock};

use super::registry::{Registry, wildcard_parts};
use super::usage_board::{Load, UsageBoard};
use crate::domain::{
    ApiKey, DeliveryKey, Endpoint, EndpointNumber, Event, IdMap, IdSet, Position, Quota, QuotaExceeded,
    Record, Tenant, Trigger,
};
use crate::failpoints::{self, Mutation};

/// Load that the writer has committed and the state has not applied.
pub(super) struct UnappliedLoad {
    board: Arc<UsageBoard>,
    groups: VecDeque<(Position, Tenant, Load)>,
    sums: IdMap<Tenant, Load>,
}

impl UnappliedLoad {
    pub(super) fn new(board: Arc<UsageBoard>) -> Self {
        Self { board, groups: VecDeque::new(), sums: IdMap::default() }
    }

    /// Adds the load of a committed group, whose last record is at `position`.
    pub(super) fn add(&mut self, position: Position, loads: GroupLoads) {
        for (tenant, load) in loads.added() {
            self.sums.entry(tenant.clone()).or_default().add(load);
            self.groups.push_back((position, tenant, load));
        }
    }

    /// Load of a tenant: applied and committed.
    fn load(&mut self, tenant: &Tenant) -> Load {
        let (applied, mut load) = self.board.load(tenant);
        while self.groups.front().is_some_and(|(position, ..)| *position <= applied) {
            let Some((_, tenant, done)) = self.groups.pop_front() else { break };
            if let Some(sum) = self.sums.get_mut(&tenant) {
                sum.subtract(done);
                if *sum == Load::default() {
                    self.sums.remove(&tenant);
                }
            }
        }
        if !failpoints::is_active(Mutation::CountAppliedOnly) {
            load.add(self.sums.get(tenant).copied().unwrap_or_default());
        }
        load
    }
}

#[cfg(test)]
impl UnappliedLoad {
    pub(super) fn is_empty(&mut self, tenant: &str) -> bool {
        self.load(&tenant.parse().expect("a legal tenant"));
        self.groups.is_empty() && self.sums.is_empty()
    }
}

/// Whether no quota applies: to the operator, and to the owner of what belongs to all tenants.
fn is_exempt(tenant: &Tenant) -> bool {
    tenant.as_str() == Tenant::OPERATOR || tenant.is_every()
}

/// One tenant in a group.
struct TenantLoad {
    pending_max: Option<u64>,
    bytes_max: Option<u64>,
    /// Load before the group. Zero without a limit, where nothing reads it.
    before: Load,
    /// Load that the group adds.
    added: Load,
}

/// Loads of the tenants in a group that is not committed yet. Limits and earlier loads are read
/// once: the registry does not change within a group.
#[derive(Default)]
pub(super) struct GroupLoads {
    tenants: IdMap<Tenant, TenantLoad>,
    /// Endpoints and queues of all tenants. No tenant's quota counts their deliveries.
    shared: Option<Arc<IdSet<EndpointNumber>>>,
}

impl GroupLoads {
    fn of(
        &mut self,
        tenant: &Tenant,
        registry: &RwLock<Registry>,
        unapplied: &mut UnappliedLoad,
    ) -> &mut TenantLoad {
        if !self.tenants.contains_key(tenant) {
            let limits = registry.read().expect("no holder of this lock panics").quotas(tenant);
            let limit = |quota| limits.limit(quota).filter(|_| !is_exempt(tenant));
            let (pending_max, bytes_max) = (limit(Quota::PendingDeliveries), limit(Quota::StoredBytes));
            let is_limited = pending_max.is_some() || bytes_max.is_some();
            let before = if is_limited { unapplied.load(tenant) } else { Load::default() };
            let load = TenantLoad { pending_max, bytes_max, before, added: Load::default() };
            self.tenants.insert(tenant.clone(), load);
        }
        self.tenants.get_mut(tenant).expect("it was inserted")
    }

    /// Checks and adds an event.
    ///
    /// # Errors
    /// When the event would exceed a quota. It is not added.
    pub(super) fn add_event(
        &mut self,
        event: &Event,
        registry: &RwLock<Registry>,
        unapplied: &mut UnappliedLoad,
    ) -> Result<(), QuotaExceeded> {
        self.shared.get_or_insert_with(|| {
            registry.read().expect("no holder of this lock panics").shared_endpoints()
        });
        let more = self.load_of(event);
        let load = self.of(&event.tenant, registry, unapplied);
        let mut all = load.before;
        all.add(load.added);
        all.add(more);
        QuotaExceeded::check(Quota::StoredBytes, load.bytes_max, all.bytes)?;
        if more.pending > 0 {
            QuotaExceeded::check(Quota::PendingDeliveries, load.pending_max, all.pending)?;
        }
        load.added.add(more);
        Ok(())
    }

    /// Takes back an event that was added and is not committed.
    pub(super) fn remove_event(&mut self, event: &Event) {
        let gone = self.load_of(event);
        if let Some(load) = self.tenants.get_mut(&event.tenant) {
            load.added.subtract(gone);
        }
    }

    /// The load that an event adds to its tenant.
    fn load_of(&self, event: &Event) -> Load {
        let shared = self.shared.as_ref().filter(|shared| !shared.is_empty());
        let pending = shared.map_or(event.targets.len(), |shared| {
            event.targets.iter().filter(|target| !shared.contains(*target)).count()
        });
        Load { pending: pending as u64, bytes: event.stored_bytes() }
    }

    /// Checks replayed and redriven deliveries, of all records of a unit together. Manual retries
    /// are not checked, because their deliveries may be pending already.
    ///
    /// # Errors
    /// When they would exceed a quota.
    pub(super) fn check_revivals<'a>(
        &mut self,
        records: impl Iterator<Item = &'a Record>,
        registry: &RwLock<Registry>,
        unapplied: &mut UnappliedLoad,
    ) -> Result<(), QuotaExceeded> {
        let mut revived: IdMap<Tenant, u64> = IdMap::default();
        for record in records {
            if let Record::DeliveriesRevived {
                deliveries, trigger: Trigger::Replay | Trigger::Redrive, ..
            } = record
            {
                count_by_tenant(deliveries, registry, &mut revived);
            }
        }
        for (tenant, count) in revived {
            let load = self.of(&tenant, registry, unapplied);
            let pending = load.before.pending + load.added.pending + count;
            QuotaExceeded::check(Quota::PendingDeliveries, load.pending_max, pending)?;
        }
        Ok(())
    }

    /// Adds revived deliveries.
    pub(super) fn add_revived(
        &mut self,
        deliveries: &[DeliveryKey],
        registry: &RwLock<Registry>,
        unapplied: &mut UnappliedLoad,
    ) {
        let mut revived = IdMap::default();
        count_by_tenant(deliveries, registry, &mut revived);
        for (tenant, pending) in revived {
            self.of(&tenant, registry, unapplied).added.add(Load { pending, bytes: 0 });
        }
    }

    /// Added loads.
    fn added(self) -> impl Iterator<Item = (Tenant, Load)> {
        let added = self.tenants.into_iter().map(|(tenant, load)| (tenant, load.added));
        added.filter(|(_, load)| *load != Load::default())
    }
}

/// Counts deliveries by the tenants of their endpoints.
fn count_by_tenant(deliveries: &[DeliveryKey], registry: &RwLock<Registry>, counts: &mut IdMap<Tenant, u64>) {
    let registry = registry.read().expect("no holder of this lock panics");
    for delivery in deliveries {
        let Some(tenant) = registry.tenant_of(delivery.endpoint) else { continue };
        match counts.get_mut(tenant) {
            Some(count) => *count += 1,
            None => drop(counts.insert(tenant.clone(), 1)),
        }
    }
}

/// Checks a new or changed endpoint. A change is refused only if it increases what is too much
/// already, so a lowered quota blocks no correction. The daemon's own changes increase nothing.
pub(super) fn check_endpoint(registry: &Registry, endpoint: &Endpoint) -> Result<(), QuotaExceeded> {
    if is_exempt(&endpoint.tenant) {
        return Ok(());
    }
    let limits = registry.quotas(&endpoint.tenant);
    let used = registry.used(&endpoint.tenant);
    let current = registry.endpoint(endpoint.number).filter(|_| endpoint.number != EndpointNumber(0));
    if current.is_none() {
        QuotaExceeded::check(Quota::Endpoints, limits.limit(Quota::Endpoints), used.endpoints + 1)?;
    }
    let before = |amount: fn(&Endpoint) -> u64| current.map_or(0, |current| amount(current));
    for (quota, used, amount) in [
        (Quota::PatternBytes, used.pattern_bytes, Endpoint::pattern_bytes as fn(&Endpoint) -> u64),
        (Quota::WildcardParts, used.wildcard_parts, wildcard_parts),
        (Quota::HeaderBytes, used.header_bytes, Endpoint::header_bytes),
    ] {
        let (before, after) = (before(amount), amount(endpoint));
        if after > before {
            QuotaExceeded::check(quota, limits.limit(quota), used - before + after)?;
        }
    }
    Ok(())
}

/// Checks a new key. An existing one is replaced.
pub(super) fn check_key(registry: &Registry, key: &ApiKey) -> Result<(), QuotaExceeded> {
    let Some(tenant) = key.tenant.as_ref().filter(|tenant| !is_exempt(tenant)) else { return Ok(()) };
    let before = registry.key(&key.id).and_then(|known| known.tenant.as_ref());
    if before == Some(tenant) {
        return Ok(());
    }
    let limit = registry.quotas(tenant).limit(Quota::Keys);
    QuotaExceeded::check(Quota::Keys, limit, registry.used(tenant).keys + 1)
}

#[cfg(test)]
mod tests;

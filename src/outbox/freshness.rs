//! How fresh the state must be for a tenant's question while a large group is applied.
//!
//! A question that follows a response must see the effects of that response. Usually the order of
//! the apply thread's messages ensures this. While a large group is applied, that order would make
//! the questions of all tenants wait for one tenant's deliveries. So from a large group on, or
//! while many records are not applied, this module remembers the last record of each tenant. A
//! tenant's question needs that record only, and the apply thread answers it between two steps if
//! the record is applied.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use super::registry::Registry;
use crate::domain::{EndpointNumber, IdMap, Position, Record, Tenant};
use crate::failpoints::{self, Bound};
use crate::limits;

/// A question that is answered after everything that was sent to the apply thread before it.
pub(super) const IN_ORDER: Position = Position(u64::MAX);
/// A question whose answer the writer judges by position: it is answered as soon as possible.
pub(super) const AT_ONCE: Position = Position(0);

#[derive(Debug, Default)]
struct Tracked {
    /// Positions of the tracked groups: of the first record, and of the last one.
    first: Position,
    last: Position,
    tenants: IdMap<Tenant, Position>,
    /// Stored requests, by scope.
    requests: HashMap<[u8; 16], Position>,
    /// Number of both from which on the applied ones are forgotten.
    forget_at: usize,
}

/// Smallest number of tracked tenants and requests at which the applied ones are forgotten.
const FORGET_AT_MIN: usize = 4_096;

impl Tracked {
    /// Forgets what is applied: under a constant load the tracking never ends. Looks at all of it
    /// only when it has grown to twice what was left before.
    fn forget_applied(&mut self, applied: Position) {
        let size = |tracked: &Self| tracked.tenants.len() + tracked.requests.len();
        if size(self) >= self.forget_at.max(FORGET_AT_MIN) {
            self.tenants.retain(|_, position| *position > applied);
            self.requests.retain(|_, position| *position > applied);
            self.forget_at = 2 * size(self);
        }
    }
}

pub(super) struct Freshness {
    registry: Arc<RwLock<Registry>>,
    applied: Arc<AtomicU64>,
    tracked: Mutex<Tracked>,
}

impl Freshness {
    pub(super) fn new(registry: Arc<RwLock<Registry>>, applied: Arc<AtomicU64>) -> Self {
        Self { registry, applied, tracked: Mutex::default() }
    }

    /// Tracks a group that is large, or that many records or a tracked group precede which are not
    /// applied yet. Call this before the apply thread gets the group and before any caller gets an
    /// answer.
    pub(super) fn on_commit(&self, records: &[(Position, Record)]) {
        let (Some((first, _)), Some((last, _))) = (records.first(), records.last()) else { return };
        let mut tracked = self.tracked.lock().expect("no holder of this lock panics");
        let applied = self.applied.load(Ordering::Relaxed);
        let is_active = tracked.last.0 > applied;
        let is_behind = first.0.saturating_sub(applied) > apply_step_targets() as u64;
        if !is_active && !is_behind && deliveries(records) <= apply_step_targets() {
            return;
        }
        if !is_active {
            *tracked = Tracked { first: *first, ..Tracked::default() };
        }
        tracked.last = *last;
        tracked.forget_applied(Position(applied));
        let requests = records
            .iter()
            .flat_map(|(position, record)| scopes(record).into_iter().map(|scope| (scope, *position)));
        tracked.requests.extend(requests);
        let registry = self.registry.read().expect("no holder of this lock panics");
        let mut track = |tenant: &Tenant, position| match tracked.tenants.get_mut(tenant) {
            Some(known) => *known = position,
            None => drop(tracked.tenants.insert(tenant.clone(), position)),
        };
        for (position, record) in records {
            match record {
                Record::EventAccepted(event) => track(&event.tenant, *position),
                Record::EventErased { tenant, .. } => track(tenant, *position),
                _ => {}
            }
            for endpoint in changed_endpoints(record) {
                if let Some(tenant) = registry.tenant_of(endpoint) {
                    track(tenant, *position);
                }
            }
        }
    }

    /// The position that the state must have applied for a question of the tenant.
    pub(super) fn needed(&self, tenant: &Tenant) -> Position {
        self.needed_by(|tracked| tracked.tenants.get(tenant).copied())
    }

    /// The same for the question whether the request with this scope is stored.
    pub(super) fn needed_for_request(&self, scope: &[u8; 16]) -> Position {
        self.needed_by(|tracked| tracked.requests.get(scope).copied())
    }

    fn needed_by(&self, find: impl Fn(&Tracked) -> Option<Position>) -> Position {
        let tracked = self.tracked.lock().expect("no holder of this lock panics");
        if tracked.last.0 <= self.applied.load(Ordering::Relaxed) {
            return IN_ORDER;
        }
        find(&tracked).unwrap_or_else(|| Position(tracked.first.0.saturating_sub(1)))
    }
}

/// Deliveries per step of the apply thread.
pub(super) fn apply_step_targets() -> usize {
    failpoints::bound(Bound::ApplyStepTargets, limits::APPLY_STEP_TARGETS)
}

/// Number of deliveries that the records change.
fn deliveries(records: &[(Position, Record)]) -> usize {
    records.iter().map(|(position, record)| record.deliveries(*position).len()).sum()
}

/// Scopes of the requests that a record stores.
fn scopes(record: &Record) -> Vec<[u8; 16]> {
    match record {
        Record::EventAccepted(event) => event.idempotency.iter().map(|stored| stored.scope).collect(),
        Record::RequestAnswered { idempotency, .. } | Record::EventRejected { idempotency, .. } => {
            vec![idempotency.scope]
        }
        _ => Vec::new(),
    }
}

/// Endpoints whose deliveries or lane a record changes, except by a new event.
pub(super) fn changed_endpoints(record: &Record) -> Vec<EndpointNumber> {
    match record {
        Record::EventAccepted(_) => Vec::new(),
        Record::EndpointPut(endpoint) => vec![endpoint.number],
        Record::EndpointDeleted { endpoint, .. } | Record::RateReserved { endpoint, .. } => vec![*endpoint],
        // Stored requests are tracked by their scopes. The position concerns events alone.
        other => {
            let deliveries = other.deliveries(Position(0));
            let mut endpoints: Vec<_> = deliveries.iter().map(|delivery| delivery.endpoint).collect();
            endpoints.dedup();
            endpoints
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{DeliveryKey, Event, Idempotency, Timestamp};

    fn event(tenant: &str, targets: u32) -> Record {
        let targets = (1..=targets).map(EndpointNumber).collect();
        let event = crate::rules::tests::event();
        Record::EventAccepted(Arc::new(Event { tenant: tenant.parse().unwrap(), targets, ..event }))
    }

    #[test]
    fn applied_requests_are_forgotten_under_a_constant_load() {
        let applied = Arc::<AtomicU64>::default();
        let freshness = Freshness::new(Arc::default(), applied.clone());
        let last = 20 * FORGET_AT_MIN as u64;
        let scope = |at: u64| (u128::from(at)).to_be_bytes();
        for at in 1..=last {
            let idempotency = Idempotency { scope: scope(at), fingerprint: [0; 16], expires_at: None };
            let record = Record::RequestAnswered { idempotency, status: 200, body: Arc::from([]) };
            freshness.on_commit(&[(Position(at), record)]);
            applied.store(at.saturating_sub(300), Ordering::Relaxed);
        }
        assert_eq!(freshness.needed_for_request(&scope(last)), Position(last));
        assert!(freshness.needed_for_request(&scope(7)) < Position(last - 300), "it is applied");
        assert!(freshness.tracked.lock().unwrap().requests.len() <= 2 * FORGET_AT_MIN);
    }

    #[test]
    fn question_waits_for_changes_of_its_own_deliveries_only() {
        let registry = Arc::<RwLock<Registry>>::default();
        for (number, tenant) in [(1, "busy"), (2, "good")] {
            let endpoint = Arc::new(crate::rules::tests::endpoint(number, tenant, &[]));
            registry.write().unwrap().apply(&Record::EndpointPut(endpoint));
        }
        // Nothing else is unapplied, so the number of changed deliveries is why these are tracked.
        let freshness = Freshness::new(registry, Arc::new(AtomicU64::new(1_000)));
        let needed = |tenant: &str| freshness.needed(&tenant.parse().unwrap());
        let cancelled = |endpoint, events: u64| {
            let of = |event| DeliveryKey { event: Position(event), endpoint: EndpointNumber(endpoint) };
            Record::DeliveriesCancelled { deliveries: (1..=events).map(of).collect(), at: Timestamp::ZERO }
        };
        let many = limits::APPLY_STEP_TARGETS as u64 + 1;
        freshness.on_commit(&[(Position(1_001), cancelled(1, many)), (Position(1_002), cancelled(2, 1))]);
        freshness.on_commit(&[(Position(1_003), cancelled(1, 1))]);
        assert_eq!((needed("good"), needed("busy")), (Position(1_002), Position(1_003)));
        assert_eq!(needed("other"), Position(1_000));
    }

    #[test]
    fn question_waits_for_its_own_tenant_only() {
        let applied = Arc::<AtomicU64>::default();
        let freshness = Freshness::new(Arc::default(), applied.clone());
        let needed = |tenant: &str| freshness.needed(&tenant.parse().unwrap());
        freshness.on_commit(&[(Position(1), event("evil", 1))]);
        assert_eq!(needed("good"), IN_ORDER, "small groups need no tracking");
        let large = u32::try_from(limits::APPLY_STEP_TARGETS).unwrap() + 1;
        freshness.on_commit(&[(Position(2), event("evil", 1)), (Position(3), event("evil", large))]);
        assert_eq!((needed("good"), needed("evil")), (Position(1), Position(3)));
        freshness.on_commit(&[(Position(4), event("good", 1))]);
        assert_eq!(
            (needed("good"), needed("evil"), needed("other")),
            (Position(4), Position(3), Position(1))
        );
        applied.store(4, Ordering::Relaxed);
        assert_eq!(needed("evil"), IN_ORDER, "everything is applied");
        freshness.on_commit(&[(Position(5), event("good", large))]);
        assert_eq!(
            (needed("good"), needed("evil")),
            (Position(5), Position(4)),
            "earlier groups are forgotten"
        );
    }
}

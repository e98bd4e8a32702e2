//! A check of every turn, in tests only: recomputes from all lanes who waits, without the order of
//! turns.
//!
//! Invariants, while there are several tenants:
//!
//! * A tenant at or above its share gets no slot of the reserve, and no slot while a tenant below
//!   its share waits for one that it may take.
//! * A tenant below its share that waits for a slot that it may take is passed over at most once by
//!   each other tenant.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::lane::{Lane, Readiness, ReceiverHealth};
use super::tenants::TenantNumber;
use super::{Action, Lanes};
use crate::domain::{IdMap, Now, SharedSlots};

/// From this limit on, lanes leave headroom to other lanes of their tenant.
const LIMIT_WITH_HEADROOM: usize = 64;

#[derive(Debug, Default)]
pub(super) struct TurnAudit {
    /// The turns of others since the last turn of each waiting tenant.
    passed_over: IdMap<Arc<str>, PassingTurns>,
    /// All tenants that ever had a lane.
    names: BTreeSet<Arc<str>>,
}

#[derive(Debug, Default)]
struct PassingTurns {
    count: usize,
    /// The most tenants that there were at these turns, with the waiting one.
    tenants_max: usize,
}

impl TurnAudit {
    pub(super) fn on_lane(&mut self, tenant: &Arc<str>) {
        self.names.insert(tenant.clone());
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct TenantFacts {
    held: usize,
    waits: bool,
}

impl Lanes {
    /// Checks the state after an action.
    pub(super) fn check_turns(&mut self, action: Option<&Action>, now: Now) {
        let endpoint = match action {
            Some(Action::Send { endpoint, .. }) => endpoint,
            Some(Action::Reserve { endpoint, .. }) => {
                // The tenant has used its turn, and waits again only for another lane.
                self.audit.passed_over.remove(self.lanes[endpoint].tenant_name());
                return;
            }
            Some(_) | None => return,
        };
        if self.audit.names.len() < 2 {
            return;
        }
        let sender = self.lanes[endpoint].tenant_name().clone();
        let tenants = self.facts(now);
        if tenants.len() < 2 {
            self.audit.passed_over.clear();
            return;
        }
        let held_before = tenants[&sender].held - 1;
        let taken = tenants.values().map(|tenant| tenant.held).sum::<usize>() - 1;
        let active = tenants.values().filter(|tenant| tenant.held > 0 || tenant.waits).count();
        let slots = SharedSlots { limit: self.config.max_in_flight, taken, active };
        // A lane that was woken without work counts as waiting for a moment. So the share may be
        // lower than that of the tenants that really wait, but not lower than this.
        let lowest_share = SharedSlots { active: tenants.len(), ..slots }.share();
        let may_send = |tenant: &TenantFacts| {
            let may_take = slots.beyond_reserve() > 0 || tenant.held < slots.free();
            tenant.waits && tenant.held < lowest_share && may_take
        };
        let waiting: Vec<_> =
            tenants.iter().filter(|(name, tenant)| **name != sender && may_send(tenant)).collect();
        if held_before >= slots.share() {
            assert!(slots.beyond_reserve() > 0, "{sender} has {held_before}, and gets one of {slots:?}");
            assert!(waiting.is_empty(), "{sender} has {held_before} of {slots:?} before {waiting:?}");
        }
        let mut passed_over = std::mem::take(&mut self.audit.passed_over);
        passed_over.retain(|name, _| waiting.iter().any(|(other, _)| *other == name));
        for (name, _) in waiting {
            let turns = passed_over.entry(name.clone()).or_default();
            turns.count += 1;
            turns.tenants_max = turns.tenants_max.max(tenants.len());
            assert!(turns.count < turns.tenants_max, "{name} was passed over: {turns:?}, now by {sender}");
        }
        self.audit.passed_over = passed_over;
    }

    /// The tenant had its turn, and no lane of it could send.
    pub(super) fn audit_unused_turn(&mut self, tenant: TenantNumber) {
        let lane = self.lanes.values().find(|lane| lane.tenant == tenant);
        if let Some(lane) = lane.filter(|_| !self.audit.passed_over.is_empty()) {
            self.audit.passed_over.remove(lane.tenant_name());
        }
    }

    fn facts(&self, now: Now) -> IdMap<Arc<str>, TenantFacts> {
        let mut tenants: IdMap<Arc<str>, TenantFacts> = IdMap::default();
        for lane in self.lanes.values() {
            let facts = tenants.entry(lane.tenant_name().clone()).or_default();
            facts.held += lane.in_flight();
            facts.waits |= self.waits_for_slot(lane, now);
        }
        tenants
    }

    fn waits_for_slot(&self, lane: &Lane, now: Now) -> bool {
        let leaves_no_headroom = self.config.max_in_flight < LIMIT_WITH_HEADROOM
            || (lane.receiver == ReceiverHealth::Answering && lane.in_flight() == 0);
        leaves_no_headroom && !self.hosts.is_full(lane.host()) && lane.readiness(now) == Readiness::Ready
    }
}

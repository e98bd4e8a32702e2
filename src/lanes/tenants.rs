//! Turns of tenants: which tenant may take the next delivery slot.
//!
//! Owns the tenants' numbers, the slots that each holds, and their order of turns. The rule is
//! [`SharedSlots`]: tenants below their share have precedence. Within each of the two classes
//! tenants take turns, and only a send uses up a turn. So a tenant that waits for a slot that it
//! may take is passed over at most once by each other tenant. A tenant keeps its place while a
//! reservation of its lane is written.
//!
//! With one tenant no rule applies: the tenant may take every slot.

use std::collections::VecDeque;
use std::sync::Arc;

use super::host::QueueEnd;
use crate::domain::{IdMap, SharedSlots};
use crate::failpoints::{self, Mutation};

/// A tenant that has lanes. The number of a former tenant is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TenantNumber(pub(super) usize);

/// TurnOrder of turns that a waiting tenant belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TurnClass {
    /// The tenant has nothing to send.
    #[default]
    Idle,
    BelowShare,
    AtShare,
}

#[derive(Debug, Default)]
struct TenantAccount {
    name: Option<Arc<str>>,
    lanes: usize,
    held: usize,
    class: TurnClass,
    /// Identifies the tenant's valid entry in its order of turns.
    stamp: u64,
}

impl TenantAccount {
    fn is_active(&self) -> bool {
        self.held > 0 || self.class != TurnClass::Idle
    }
}

/// Entries of tenants in turn, by ascending stamp. An entry with an old stamp is invalid and is
/// skipped.
type TurnOrder = VecDeque<(TenantNumber, u64)>;

/// A search for the next tenant. It visits each waiting tenant at most once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TurnSearch {
    below: usize,
    at: usize,
}

#[derive(Debug)]
pub(super) struct Tenants {
    numbers: IdMap<Arc<str>, TenantNumber>,
    accounts: Vec<TenantAccount>,
    unused: Vec<TenantNumber>,
    slots: SharedSlots,
    /// Cached [`SharedSlots::share`].
    share: usize,
    below: TurnOrder,
    at: TurnOrder,
    last_stamp: u64,
}

impl Tenants {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            numbers: IdMap::default(),
            accounts: Vec::new(),
            unused: Vec::new(),
            slots: SharedSlots { limit, taken: 0, active: 0 },
            share: limit,
            below: TurnOrder::new(),
            at: TurnOrder::new(),
            last_stamp: 0,
        }
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.slots.limit = limit;
        self.update_share();
    }

    /// Adds a lane to a tenant. Returns the tenant's number.
    pub(super) fn add_lane(&mut self, name: &Arc<str>) -> TenantNumber {
        let shared: Arc<str> = "".into();
        let name = if failpoints::is_active(Mutation::TurnsByLane) { &shared } else { name };
        let tenant = self.numbers.get(name).copied().unwrap_or_else(|| {
            let tenant = self.unused.pop().unwrap_or_else(|| {
                self.accounts.push(TenantAccount::default());
                TenantNumber(self.accounts.len() - 1)
            });
            self.accounts[tenant.0].name = Some(name.clone());
            self.numbers.insert(name.clone(), tenant);
            self.update_share();
            tenant
        });
        self.accounts[tenant.0].lanes += 1;
        tenant
    }

    /// Removes a lane, whose slots are released. Returns whether it was the tenant's last.
    pub(super) fn remove_lane(&mut self, tenant: TenantNumber) -> bool {
        let account = &mut self.accounts[tenant.0];
        account.lanes -= 1;
        if account.lanes > 0 {
            return false;
        }
        assert_eq!(account.held, 0, "a tenant without lanes holds slots");
        if let Some(name) = account.name.take() {
            self.numbers.remove(&name);
        }
        self.on_idle(tenant);
        self.unused.push(tenant);
        self.update_share();
        true
    }

    /// Numbers of tenants are below this.
    pub(super) fn numbers_end(&self) -> usize {
        self.accounts.len()
    }

    /// Whether the rules of several tenants apply.
    pub(super) fn are_several(&self) -> bool {
        self.numbers.len() > 1
    }

    pub(super) fn taken(&self) -> usize {
        self.slots.taken
    }

    pub(super) fn is_full(&self) -> bool {
        self.slots.free() == 0
    }

    pub(super) fn held(&self, tenant: TenantNumber) -> usize {
        self.accounts[tenant.0].held
    }

    /// How many more slots the tenant may take.
    pub(super) fn allowance(&self, tenant: TenantNumber) -> usize {
        if !self.are_several() || failpoints::is_active(Mutation::GiveAboveShare) {
            return self.slots.free();
        }
        self.slots.allowance(self.held(tenant))
    }

    /// The tenant may have something to send. Unless it waits, it joins the back of its order, or
    /// takes the place of its unused turn: `Front`.
    pub(super) fn on_waiting(&mut self, tenant: TenantNumber, end: QueueEnd) {
        match end {
            _ if self.accounts[tenant.0].class != TurnClass::Idle => {}
            QueueEnd::Back => self.join(tenant),
            QueueEnd::Front => self.enter(tenant, self.accounts[tenant.0].stamp),
        }
    }

    /// The tenant has nothing to send.
    pub(super) fn on_idle(&mut self, tenant: TenantNumber) {
        self.change(tenant, |account| account.class = TurnClass::Idle);
    }

    /// The tenant sends: it takes a slot, and its turn is used up.
    pub(super) fn on_sent(&mut self, tenant: TenantNumber) {
        self.slots.taken += 1;
        self.change(tenant, |account| account.held += 1);
        if !failpoints::is_active(Mutation::KeepTurn) {
            self.join(tenant);
        }
    }

    pub(super) fn release(&mut self, tenant: TenantNumber, count: usize) {
        self.slots.taken -= count;
        self.change(tenant, |account| account.held -= count);
        let account = &self.accounts[tenant.0];
        if account.class == TurnClass::AtShare && account.held < self.share {
            self.join(tenant);
        }
    }

    /// The next waiting tenant in turn that may take a slot.
    pub(super) fn next(&mut self, search: &mut TurnSearch) -> Option<TenantNumber> {
        if self.is_full() {
            return None;
        }
        while let Some((tenant, stamp)) = self.below.get(search.below).copied() {
            let account = &self.accounts[tenant.0];
            if account.stamp != stamp || account.class != TurnClass::BelowShare {
                self.below.remove(search.below);
            } else if account.held >= self.share && self.are_several() {
                self.below.remove(search.below);
                self.join(tenant);
            } else {
                search.below += 1;
                if self.allowance(tenant) > 0 {
                    return Some(tenant);
                }
            }
        }
        while let Some((tenant, stamp)) = self.at.get(search.at).copied() {
            let account = &self.accounts[tenant.0];
            if account.stamp != stamp || account.class != TurnClass::AtShare {
                self.at.remove(search.at);
                continue;
            }
            if self.allowance(tenant) == 0 {
                return None; // as for every tenant at its share
            }
            search.at += 1;
            return Some(tenant);
        }
        None
    }

    /// Joins the back of the order of the tenant's class. An earlier entry becomes invalid.
    fn join(&mut self, tenant: TenantNumber) {
        self.last_stamp += 1;
        self.enter(tenant, self.last_stamp);
    }

    /// Takes the place of this stamp in the order of the tenant's class.
    fn enter(&mut self, tenant: TenantNumber, stamp: u64) {
        let is_below = self.accounts[tenant.0].held < self.share;
        let class = if is_below { TurnClass::BelowShare } else { TurnClass::AtShare };
        self.change(tenant, |account| (account.class, account.stamp) = (class, stamp));
        let order = if is_below { &mut self.below } else { &mut self.at };
        let place = order.partition_point(|(_, other)| *other < stamp);
        // An entry from before may still be there.
        if order.get(place) != Some(&(tenant, stamp)) {
            order.insert(place, (tenant, stamp));
        }
        if order.len() > 2 * self.accounts.len() + 8 {
            let accounts = &self.accounts;
            order.retain(|(tenant, stamp)| accounts[tenant.0].stamp == *stamp);
        }
    }

    fn change(&mut self, tenant: TenantNumber, change: impl FnOnce(&mut TenantAccount)) {
        let account = &mut self.accounts[tenant.0];
        let before = account.is_active();
        change(account);
        match (before, account.is_active()) {
            (false, true) => self.slots.active += 1,
            (true, false) => self.slots.active -= 1,
            _ => return,
        }
        self.update_share();
    }

    /// Recomputes the share. Tenants that are below the new one join that order.
    fn update_share(&mut self) {
        let share = if self.are_several() { self.slots.share() } else { self.slots.limit };
        let rises = share > std::mem::replace(&mut self.share, share);
        if rises {
            for (tenant, stamp) in std::mem::take(&mut self.at) {
                let account = &mut self.accounts[tenant.0];
                if account.stamp != stamp || account.class != TurnClass::AtShare {
                    continue;
                }
                if account.held < share {
                    self.last_stamp += 1;
                    (account.class, account.stamp) = (TurnClass::BelowShare, self.last_stamp);
                    self.below.push_back((tenant, self.last_stamp));
                } else {
                    self.at.push_back((tenant, stamp));
                }
            }
        }
    }
}

//! The selection of the next action: which tenant, then which of its lanes.

use super::host::{HostQueueState, QueueEnd};
use super::lane::{Readiness, SendDecision};
use super::line::SlotRoom;
use super::tenants::{TenantNumber, TurnSearch};
use super::{Action, Lanes, Polled, SendHold, WaitReason};
use crate::domain::{EndpointNumber, Now};

impl Lanes {
    /// Returns the next action. The caller repeats the call until it returns `None`.
    #[must_use]
    pub fn next_action(&mut self, now: Now) -> Option<Action> {
        self.wake_due_lanes(now);
        if self.hold != SendHold::None {
            return None;
        }
        let action = loop {
            let action = self.poll_tenants(now);
            if action.is_some() || !self.decline_unusable_offers() {
                break action;
            }
        };
        #[cfg(test)]
        self.check_turns(action.as_ref(), now);
        action
    }

    /// Polls the tenants in turn. Each may take a slot.
    fn poll_tenants(&mut self, now: Now) -> Option<Action> {
        let mut search = TurnSearch::default();
        while let Some(tenant) = self.tenants.next(&mut search) {
            match self.poll_tenant(tenant, now) {
                Polled::Act(action) => return Some(action),
                Polled::Nothing => {
                    #[cfg(test)]
                    self.audit_unused_turn(tenant);
                }
                // The lane with the offer may belong to a tenant that was polled before.
                Polled::SlotOffered => search = TurnSearch::default(),
            }
        }
        None
    }

    pub(super) fn room(&self, tenant: TenantNumber) -> SlotRoom {
        SlotRoom::new(self.tenants.allowance(tenant), self.tenants.held(tenant))
    }

    /// Lanes of the slot queues join the ring one by one while slots are free for them.
    fn poll_tenant(&mut self, tenant: TenantNumber, now: Now) -> Polled {
        let mut offered = false;
        loop {
            let room = self.room(tenant);
            let dequeued = self.lines[tenant.0].dequeue(room);
            if let Some((endpoint, end)) = dequeued {
                self.leave_slot_queue(endpoint, end);
            }
            let polled = self.poll_lanes(tenant, now);
            offered |= polled == Polled::SlotOffered;
            if let Polled::Act(_) = polled {
                return polled;
            }
            if dequeued.is_none() {
                break;
            }
        }
        if self.lines[tenant.0].is_empty() {
            self.tenants.on_idle(tenant);
        }
        if offered && self.tenants.are_several() { Polled::SlotOffered } else { Polled::Nothing }
    }

    /// Polls each lane of the tenant's ring at most once. A lane that sends moves to the back.
    fn poll_lanes(&mut self, tenant: TenantNumber, now: Now) -> Polled {
        let mut polls_left = self.lines[tenant.0].ring.len();
        let mut all = Polled::Nothing;
        while polls_left > 0 {
            polls_left -= 1;
            let Some(endpoint) = self.lines[tenant.0].ring.pop_front() else { break };
            match self.poll_lane(endpoint, tenant, now) {
                Polled::Act(action) => return Polled::Act(action),
                Polled::Nothing => {}
                Polled::SlotOffered => {
                    // The lane with the offer is at the back of its ring.
                    polls_left = self.lines[tenant.0].ring.len();
                    all = Polled::SlotOffered;
                }
            }
        }
        all
    }

    /// Polls a lane that was taken from its tenant's ring.
    fn poll_lane(&mut self, endpoint: EndpointNumber, tenant: TenantNumber, now: Now) -> Polled {
        let room = self.room(tenant);
        let Some(lane) = self.lanes.get_mut(&endpoint) else {
            self.in_ring.remove(&endpoint);
            return Polled::Nothing;
        };
        let line = &mut self.lines[tenant.0];
        if let Some((after, limit)) = lane.window.begin_refill() {
            line.ring.push_back(endpoint);
            return Polled::Act(Action::Refill { endpoint, after, limit });
        }
        let until = match lane.readiness(now) {
            Readiness::Waits { until, .. } => until,
            Readiness::Ready if !line.admit(lane, room) => {
                if line.enqueue(endpoint, lane) {
                    self.in_ring.remove(&endpoint);
                } else {
                    line.ring.push_back(endpoint);
                }
                return self.pass_on_offer(endpoint);
            }
            Readiness::Ready => {
                let host = lane.host().clone();
                let end = lane.queue_end();
                if !self.hosts.admit(&host, (tenant, endpoint), &mut lane.host_queue, end) {
                    self.in_ring.remove(&endpoint);
                    return Polled::Nothing;
                }
                let in_turn = !room.is_free_for(lane);
                let shut_since = lane.shut_since;
                match lane.decide_send(now) {
                    SendDecision::Send(key, progress) => {
                        line.on_sent(lane, in_turn);
                        self.hosts.on_sent(&host, &mut lane.host_queue);
                        line.ring.push_back(endpoint);
                        self.tenants.on_sent(tenant);
                        return Polled::Act(Action::Send { endpoint, key, progress, shut_since });
                    }
                    SendDecision::Reserve(reservation) => {
                        self.in_ring.remove(&endpoint);
                        // The next call of `next_action` polls the lanes that this wakes.
                        self.pass_on_offer(endpoint);
                        return Polled::Act(Action::Reserve { endpoint, reservation });
                    }
                    SendDecision::Wait => match lane.readiness(now) {
                        Readiness::Waits { reason, until } => {
                            if let (Some(WaitReason::Rate), Some(until)) = (reason, until) {
                                self.rate_waited += until.saturating_sub(now.monotonic);
                            }
                            until
                        }
                        Readiness::Ready => {
                            line.ring.push_back(endpoint);
                            return Polled::Nothing;
                        }
                    },
                }
            }
        };
        lane.forfeit_turn();
        self.in_ring.remove(&endpoint);
        self.sleep(endpoint, until);
        self.pass_on_offer(endpoint)
    }

    fn leave_slot_queue(&mut self, endpoint: EndpointNumber, end: QueueEnd) {
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.in_slot_queue = false;
            self.wake_at(endpoint, end);
        }
    }

    /// Passes an unused slot offer to the next lane in the host's queue.
    fn pass_on_offer(&mut self, endpoint: EndpointNumber) -> Polled {
        let Some(lane) = self.lanes.get_mut(&endpoint) else { return Polled::Nothing };
        let host = lane.host().clone();
        if !self.hosts.decline_offer(&host, &mut lane.host_queue) {
            return Polled::Nothing;
        }
        self.offer_slots(&host);
        Polled::SlotOffered
    }

    /// Passes on the offers of lanes whose tenant gets no slot now, so that a host's slots do not
    /// wait for them. Returns whether there were any.
    fn decline_unusable_offers(&mut self) -> bool {
        if self.offered.is_empty() || self.tenants.is_full() {
            return false;
        }
        let mut declined = false;
        for endpoint in std::mem::take(&mut self.offered) {
            let Some(lane) = self.lanes.get(&endpoint) else { continue };
            if lane.host_queue != HostQueueState::Offered {
                continue;
            }
            if self.tenants.allowance(lane.tenant) > 0 {
                self.offered.push(endpoint);
            } else {
                declined |= self.pass_on_offer(endpoint) == Polled::SlotOffered;
            }
        }
        declined
    }
}

//! Removal of expired rows by retention, without a record.

use super::State;
use crate::domain::{EndpointNumber, Horizon, Position, Timestamp};
use crate::projections::retention::{self, Cutoffs, Forgotten};
use crate::projections::{acts, counters, idempotency, stats, tenant_hours};

impl State {
    /// The horizon to record before a step of [`Self::forget`], if it is not recorded yet.
    #[must_use]
    pub fn next_horizon(&self, cutoffs: Cutoffs, page: u64, pages_max: usize) -> Option<Horizon> {
        let known = self.fold.horizon;
        let wanted = known.horizon.max(retention::horizon(self.rows(), cutoffs, page, pages_max));
        (known.record == Position(0) || wanted != known.horizon).then_some(wanted)
    }

    /// Deletes expired events up to the recorded horizon; see
    /// [`retention::forget`](crate::projections::retention::forget).
    pub fn forget(&mut self, cutoffs: Cutoffs, page: u64, pages_max: usize) -> Forgotten {
        let forgotten = self.fold.forget(&mut self.rows, cutoffs, page, pages_max);
        self.dirty_without_record |= forgotten.events > 0;
        self.cutoffs.events = self.cutoffs.events.max(cutoffs.events);
        self.cutoffs.stream_events = self.cutoffs.stream_events.max(cutoffs.stream_events);
        forgotten
    }

    /// Deletes statistics of the hours before `before`, for up to `endpoints_max` endpoints from
    /// `from` on. Returns the first endpoint of the next step.
    pub fn forget_hours(
        &mut self,
        before: Timestamp,
        from: EndpointNumber,
        endpoints_max: usize,
    ) -> Option<EndpointNumber> {
        let mut endpoints = counters::endpoints_from(&self.rows, from, endpoints_max + 1);
        let next = if endpoints.len() > endpoints_max { endpoints.pop() } else { None };
        for endpoint in endpoints {
            self.dirty_without_record |= stats::forget(&mut self.rows, endpoint, before);
        }
        next
    }

    /// Deletes up to `limit` hours of tenants before `before`. Returns whether there
    /// may be more.
    pub fn forget_tenant_hours(&mut self, before: Timestamp, limit: usize) -> bool {
        let forgotten = tenant_hours::forget(&mut self.rows, before, limit);
        self.dirty_without_record |= forgotten > 0;
        forgotten == limit
    }

    /// Deletes up to `limit` audit entries of acts before a time. Returns their positions.
    pub fn forget_acts(&mut self, before: Timestamp, limit: usize) -> Vec<Position> {
        let forgotten = acts::forget(&mut self.rows, before, limit);
        self.dirty_without_record |= !forgotten.is_empty();
        self.acts_from = self.acts_from.max(before);
        forgotten
    }

    /// Deletes requests without an expiry whose events are deleted.
    pub fn forget_requests(&mut self, scopes: &[([u8; 16], Position)]) {
        for (scope, position) in scopes {
            idempotency::forget(&mut self.rows, scope, *position);
            self.dirty_without_record = true;
        }
    }
}

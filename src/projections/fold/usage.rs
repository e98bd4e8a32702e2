//! Usage of tenants: endpoints, keys and their deliveries, events and attempts.

use std::time::Duration;

use super::Step;
use crate::domain::{ApiKey, EndpointNumber, KeyId, Tenant, Timestamp};
use crate::projections::stats::Hour;
use crate::projections::usage::Usage;

impl Step<'_> {
    /// Usage of the tenant of an endpoint. `None` if the record of the endpoint is lost.
    pub(super) fn usage_of(&mut self, endpoint: EndpointNumber) -> Option<&mut Usage> {
        let tenant = self.fold.tenants.get(&endpoint)?;
        Some(self.fold.tallies.usage(self.rows, tenant))
    }

    pub(super) fn usage(&mut self, tenant: &Tenant) -> &mut Usage {
        self.fold.tallies.usage(self.rows, tenant)
    }

    /// Counts an accepted event in its hour.
    pub(super) fn count_event(&mut self, tenant: &Tenant, at: Timestamp) {
        self.fold.tallies.tenant_hour(self.rows, tenant, at).events += 1;
    }

    /// Counts an attempt or a lease in the hour of `at`. Returns the endpoint's counts of it.
    pub(super) fn count_attempt(
        &mut self,
        endpoint: EndpointNumber,
        at: Timestamp,
        duration: Duration,
    ) -> &mut Hour {
        if let Some(tenant) = self.fold.tenants.get(&endpoint) {
            self.fold.tallies.tenant_hour(self.rows, tenant, at).attempts += 1;
        }
        let hour = self.hour(endpoint, at);
        hour.count_attempt(duration);
        hour
    }

    pub(super) fn put_key(&mut self, key: &ApiKey) {
        self.delete_key(&key.id);
        if let Some(tenant) = &key.tenant {
            self.fold.keys.insert(key.id.clone(), tenant.clone());
            self.usage(tenant).keys += 1;
        }
    }

    pub(super) fn delete_key(&mut self, id: &KeyId) {
        if let Some(tenant) = self.fold.keys.remove(id) {
            let usage = self.usage(&tenant);
            usage.keys = usage.keys.saturating_sub(1);
        }
    }
}

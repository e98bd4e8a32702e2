//! Decisions about tenants: settings, deletion, keys, and quotas of revived deliveries.

use std::sync::Arc;

use super::{Committer, StagedGroup, read};
use crate::domain::{ApiKey, KeyId, Position, QuotaExceeded, Record, Tenant, TenantSettings, Timestamp};
use crate::outbox::quotas;
use crate::outbox::unit::{Command, Outcome, Unit};

impl Committer {
    pub(super) fn put_key(&self, key: &Arc<ApiKey>, staged: &mut StagedGroup) -> Outcome {
        match quotas::check_key(&read(&self.registry), key) {
            Ok(()) => Outcome::Written(staged.push(Record::KeyPut(key.clone()))),
            Err(exceeded) => Outcome::QuotaExceeded(exceeded),
        }
    }

    /// Notes the use of a key. The key may have been deleted since.
    pub(super) fn use_key(&self, id: &KeyId, at: Timestamp, staged: &mut StagedGroup) -> Outcome {
        if read(&self.registry).key(id).is_none() {
            return Outcome::Passed;
        }
        Outcome::Written(staged.push(Record::KeyUsed { id: id.clone(), at }))
    }

    pub(super) fn put_tenant(&self, settings: &TenantSettings, staged: &mut StagedGroup) -> Outcome {
        let registry = read(&self.registry);
        let current = registry.tenant(&settings.tenant).map_or(Position(0), |current| current.revision);
        if current != settings.revision {
            return Outcome::Conflict;
        }
        let settings = Arc::new(TenantSettings { revision: staged.next, ..settings.clone() });
        staged.push(Record::TenantPut(settings.clone()));
        Outcome::Tenant(settings)
    }

    pub(super) fn delete_tenant(&self, tenant: &Tenant, at: Timestamp, staged: &mut StagedGroup) -> Outcome {
        let used = read(&self.registry).used(tenant);
        if used.endpoints > 0 || used.keys > 0 || used.consumers > 0 {
            return Outcome::Conflict;
        }
        Outcome::Written(staged.push(Record::TenantDeleted { tenant: tenant.clone(), at }))
    }

    pub(super) fn check_revivals(
        &mut self,
        unit: &Unit,
        staged: &mut StagedGroup,
    ) -> Result<(), QuotaExceeded> {
        let records = unit.commands.iter().filter_map(|command| match command {
            Command::Record(record) => Some(record),
            _ => None,
        });
        staged.loads.check_revivals(records, &self.registry, &mut self.unapplied_load)
    }
}

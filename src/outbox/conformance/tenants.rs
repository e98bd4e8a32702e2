//! Random keys and settings of tenants.

use std::sync::Arc;

use super::Store;
use super::work::Work;
use crate::domain::{
    ApiKey, Position, Quota, QuotaOverride, QuotaOverrides, Record, Role, Tenant, TenantDelivery,
    TenantSettings,
};
use crate::outbox::unit::Command;

impl<S: Store> Work<S> {
    pub(super) fn key(&mut self) -> Record {
        let id = format!("key_{}", self.random.u32(0..4)).parse().expect("a legal id");
        if self.percent(40) {
            return Record::KeyDeleted { id, at: self.now };
        }
        if self.percent(30) {
            return Record::KeyUsed { id, at: self.now };
        }
        Record::KeyPut(Arc::new(ApiKey {
            id,
            role: Role::Viewer,
            tenant: self
                .random
                .choice([None, Some("default"), Some("other")])
                .flatten()
                .map(|name| name.parse().expect("a legal tenant")),
            description: "".into(),
            hash: [self.random.u8(..); 32],
            created_at: self.now,
            expires_at: None,
        }))
    }

    /// Settings of a tenant with random quotas of endpoints, patterns and keys, or their deletion.
    pub(super) fn tenant(&mut self) -> Command {
        let tenant = self.random.choice(["default", "other", "unused"]).expect("three");
        let tenant: Tenant = tenant.parse().expect("a legal tenant");
        if self.percent(20) {
            return Command::DeleteTenant { tenant, at: self.now };
        }
        let current = self.oracle.tenants.get(&tenant).map_or(Position(0), |known| known.revision);
        let revision = if self.percent(15) { current.next() } else { current };
        let mut quotas = QuotaOverrides::default();
        let limited =
            [Quota::Endpoints, Quota::PatternBytes, Quota::WildcardParts, Quota::Keys, Quota::Consumers];
        for quota in limited {
            let most = if quota == Quota::PatternBytes { 40 } else { 5 };
            let limit = QuotaOverride::Limit(self.random.u64(0..most));
            quotas.set(quota, self.random.choice([QuotaOverride::Off, limit]).expect("two"));
        }
        let delivery = TenantDelivery { max_in_flight: Some(3), ..TenantDelivery::default() };
        Command::PutTenant(Box::new(TenantSettings {
            tenant,
            name: "A tenant".into(),
            metadata: None,
            quotas,
            delivery,
            created_at: self.now,
            updated_at: self.now,
            revision,
        }))
    }
}

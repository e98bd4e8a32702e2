//! Random changes of tenants: quotas and deletion.

use super::jobs;
use super::operations::{check_change, tenant};
use super::world::{World, wall};
use crate::context::Context;
use crate::domain::{Position, Quota, QuotaOverride, QuotaOverrides, Tenant, TenantDelivery, TenantSettings};
use crate::outbox::ReadModel as _;
use crate::service::Tenants;

/// Changes the quotas of a tenant, or deletes the smaller one.
pub(super) async fn change_tenant(context: &Context, world: &World) {
    let (tenant, limit, deletes) = world.with(|inner| {
        let tenant = tenant(inner);
        // Close to the present number, so that the next events reach it.
        let pending = inner.model.oracle.usage(&tenant).pending;
        let chance = &mut inner.chance;
        let limit = QuotaOverride::Limit(pending + chance.within(1, 8));
        let limit = *chance.pick(&[QuotaOverride::Off, QuotaOverride::Default, limit, limit]);
        (tenant, limit, chance.percent(20))
    });
    if deletes && tenant.as_str() != Tenant::DEFAULT {
        let new = match Tenants(context).deletion(&tenant).await {
            Ok((_, new)) => new,
            other => return check_change(world, "delete tenant", &other),
        };
        if jobs::run(context, world, "delete tenant", &new).await {
            world.count("tenantsDeleted");
        }
        return;
    }
    let current = Tenants(context).settings(&tenant);
    let mut quotas = QuotaOverrides::default();
    quotas.set(Quota::PendingDeliveries, limit);
    let settings = TenantSettings {
        tenant,
        name: "".into(),
        metadata: None,
        quotas,
        delivery: TenantDelivery::default(),
        created_at: wall(),
        updated_at: wall(),
        revision: current.map_or(Position(0), |current| current.revision),
    };
    let result = Tenants(context).put(settings).await;
    check_change(world, &format!("quota {limit:?}"), &result);
    if result.is_ok() {
        world.count("tenantsChanged");
    }
}

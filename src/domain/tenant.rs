//! Settings of a tenant. A tenant exists by first use; settings are optional.

use std::time::Duration;

use super::{Position, QuotaOverrides, RetryPolicy, Tenant, Timestamp};

/// Delivery settings of the tenant's new endpoints. `None`: the configured default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TenantDelivery {
    /// 1 to [`crate::limits::IN_FLIGHT_PER_ENDPOINT_MAX`].
    pub max_in_flight: Option<u32>,
    /// 100 ms to 60 s.
    pub timeout: Option<Duration>,
    pub retry: Option<RetryPolicy>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TenantSettings {
    pub tenant: Tenant,
    /// Name for people; may be empty.
    pub name: Box<str>,
    /// A JSON object, as text.
    pub metadata: Option<Box<str>>,
    pub quotas: QuotaOverrides,
    pub delivery: TenantDelivery,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Position of its latest record. An update names the revision that it read.
    pub revision: Position,
}

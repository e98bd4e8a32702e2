//! Quotas: what one tenant may use of the installation.

use std::time::Duration;

use super::closed_list::closed_list;
use crate::limits;

closed_list! {
    /// A limited quantity of a tenant.
    pub enum Quota {
        /// Endpoints.
        Endpoints = 1 => "endpoints",
        /// Bytes of the topic patterns of all endpoints.
        PatternBytes = 2 => "patternBytes",
        /// Bytes of the custom headers of all endpoints: names and values.
        HeaderBytes = 3 => "headerBytes",
        /// API keys that are bound to the tenant.
        Keys = 4 => "keys",
        PendingDeliveries = 5 => "pendingDeliveries",
        /// Bytes of stored events. See [`Event::stored_bytes`](super::Event::stored_bytes).
        StoredBytes = 6 => "storedBytes",
        EventsPerSecond = 7 => "eventsPerSecond",
        /// Bytes of published events per second.
        BytesPerSecond = 8 => "bytesPerSecond",
        /// Consumers of the tenant.
        Consumers = 9 => "consumers",
        /// `*` and `#` in the topic patterns of all endpoints.
        WildcardParts = 10 => "wildcardParts",
        /// Connections of one API key that is bound to the tenant.
        ConnectionsPerKey = 11 => "connectionsPerKey",
        /// Reads in progress with one API key that is bound to the tenant.
        ReadsPerKey = 12 => "readsPerKey",
    }
}

impl Quota {
    /// Smallest and largest limit.
    #[must_use]
    pub const fn bounds(self) -> (u64, u64) {
        match self {
            Self::EventsPerSecond => (1, limits::QUOTA_EVENTS_PER_SECOND_MAX),
            Self::BytesPerSecond => (limits::QUOTA_BYTES_PER_SECOND_MIN, limits::QUOTA_BYTES_PER_SECOND_MAX),
            Self::ConnectionsPerKey | Self::ReadsPerKey => (1, limits::QUOTA_MAX),
            Self::Endpoints
            | Self::PatternBytes
            | Self::WildcardParts
            | Self::HeaderBytes
            | Self::Keys
            | Self::Consumers
            | Self::PendingDeliveries
            | Self::StoredBytes => (0, limits::QUOTA_MAX),
        }
    }
}

/// Number of quotas.
const COUNT: usize = Quota::ALL.len();

/// The limit of each quota; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas([Option<u64>; COUNT]);

impl Quotas {
    #[must_use]
    pub fn limit(&self, quota: Quota) -> Option<u64> {
        self.0[quota.index()]
    }

    #[must_use]
    pub fn with(mut self, quota: Quota, limit: Option<u64>) -> Self {
        self.0[quota.index()] = limit;
        self
    }
}

/// A tenant's own limit of a quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QuotaOverride {
    /// The configured default applies.
    #[default]
    Default,
    /// No limit.
    Off,
    Limit(u64),
}

/// A tenant's own limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotaOverrides([QuotaOverride; COUNT]);

impl QuotaOverrides {
    #[must_use]
    pub fn get(&self, quota: Quota) -> QuotaOverride {
        self.0[quota.index()]
    }

    pub fn set(&mut self, quota: Quota, limit: QuotaOverride) {
        self.0[quota.index()] = limit;
    }

    /// The limits in effect with these defaults.
    #[must_use]
    pub fn apply_to(&self, defaults: &Quotas) -> Quotas {
        let mut quotas = *defaults;
        for quota in Quota::ALL {
            match self.get(quota) {
                QuotaOverride::Default => {}
                QuotaOverride::Off => quotas = quotas.with(quota, None),
                QuotaOverride::Limit(limit) => quotas = quotas.with(quota, Some(limit)),
            }
        }
        quotas
    }
}

/// A request would exceed a quota of its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tenant's quota `{}` is {limit}, the request needs {value}", quota.as_str())]
pub struct QuotaExceeded {
    pub quota: Quota,
    pub limit: u64,
    /// The value that the request would reach. For a rate: what was requested in the last second.
    pub value: u64,
    /// For a rate: when the request would be accepted.
    pub retry_after: Option<Duration>,
}

impl QuotaExceeded {
    /// # Errors
    /// When `value` exceeds the limit.
    pub fn check(quota: Quota, limit: Option<u64>, value: u64) -> Result<(), Self> {
        match limit {
            Some(limit) if value > limit => Err(Self { quota, limit, value, retry_after: None }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn override_replaces_or_removes_a_default() {
        let defaults = Quotas::default().with(Quota::Endpoints, Some(10)).with(Quota::Keys, Some(5));
        let mut own = QuotaOverrides::default();
        assert_eq!(own.apply_to(&defaults), defaults);
        own.set(Quota::Endpoints, QuotaOverride::Off);
        own.set(Quota::StoredBytes, QuotaOverride::Limit(7));
        let applied = own.apply_to(&defaults);
        let limits = [Quota::Endpoints, Quota::Keys, Quota::StoredBytes, Quota::BytesPerSecond];
        assert_eq!(limits.map(|quota| applied.limit(quota)), [None, Some(5), Some(7), None]);
    }

    #[test]
    fn value_at_its_limit_is_accepted() {
        assert_eq!(QuotaExceeded::check(Quota::Keys, None, u64::MAX), Ok(()));
        assert_eq!(QuotaExceeded::check(Quota::Keys, Some(3), 3), Ok(()));
        let error = QuotaExceeded::check(Quota::Keys, Some(3), 4).unwrap_err();
        assert_eq!((error.quota, error.limit, error.value), (Quota::Keys, 3, 4));
        assert_eq!(error.to_string(), "the tenant's quota `keys` is 3, the request needs 4");
    }

    #[test]
    fn stored_codes_of_quotas_never_change() {
        assert_eq!(Quota::ALL.map(Quota::code), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    }
}

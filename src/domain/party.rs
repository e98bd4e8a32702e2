//! The party of a request: the unit of fairness between callers.

use std::sync::Arc;

use super::names::Tenant;

/// The owner of a share. Parties that compete for a bound get equal shares of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// Requests without a key.
    NoKey,
    /// Keys without a tenant, and changes that name none.
    Operator,
    /// Outcomes of attempts and other records of the delivery loop.
    Delivery,
    Tenant(Arc<str>),
}

impl Party {
    /// The party of a key that is bound to a tenant, or of one that is not.
    #[must_use]
    pub fn of(tenant: Option<&Tenant>) -> Self {
        tenant.map_or(Self::Operator, |tenant| Self::Tenant(tenant.shared()))
    }
}

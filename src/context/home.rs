//! The outbox that has the data of a caller.
//!
//! Must stay the only way to an outbox: callers name what they know. There is one outbox, which has
//! all data. With several, their choice is here.

use crate::context::Context;
use crate::domain::{EndpointId, EndpointNumber, Position, Tenant};
use crate::outbox::Outbox;

/// Knowledge of a caller about the data that it reads or changes.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "one outbox has all data")]
pub(crate) enum Home<'a> {
    Tenant(&'a Tenant),
    /// An event, or another record.
    Position(Position),
    Endpoint(EndpointNumber),
    EndpointId(&'a EndpointId),
    /// Data of several tenants, or of none: API keys, event types, the end of the log.
    All,
}

impl<'a> From<&'a Tenant> for Home<'a> {
    fn from(tenant: &'a Tenant) -> Self {
        Self::Tenant(tenant)
    }
}

/// `None` is all tenants.
impl<'a> From<Option<&'a Tenant>> for Home<'a> {
    fn from(tenant: Option<&'a Tenant>) -> Self {
        tenant.map_or(Self::All, Self::Tenant)
    }
}

impl From<Position> for Home<'_> {
    fn from(position: Position) -> Self {
        Self::Position(position)
    }
}

impl From<EndpointNumber> for Home<'_> {
    fn from(endpoint: EndpointNumber) -> Self {
        Self::Endpoint(endpoint)
    }
}

impl<'a> From<&'a EndpointId> for Home<'a> {
    fn from(id: &'a EndpointId) -> Self {
        Self::EndpointId(id)
    }
}

impl Context {
    /// The outbox with this data.
    pub(crate) fn outbox_of<'a>(&self, home: impl Into<Home<'a>>) -> &Outbox {
        match home.into() {
            Home::Tenant(_) | Home::Position(_) | Home::Endpoint(_) | Home::EndpointId(_) | Home::All => {
                &self.shared.outbox
            }
        }
    }
}

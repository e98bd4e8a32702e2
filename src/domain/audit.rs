//! Audit entries: who did what, to what, from where, when. Never content and never secrets.

use std::net::IpAddr;

use super::closed_list::closed_list;
use super::{KeyId, Role, Tenant, Timestamp};

/// The caller of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// `None`: the configured admin key, or no key with `--dev`.
    pub key: Option<KeyId>,
    pub role: Role,
    /// The tenant of the key.
    pub tenant: Option<Tenant>,
}

closed_list! {
    pub enum ActOutcome {
        /// The entry is in the commit of the act.
        Done = 1 => "done",
        /// The entry precedes an act that is not a commit, or that continues after it.
        Accepted = 2 => "accepted",
    }
}

/// One act of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    pub at: Timestamp,
    pub actor: Actor,
    /// The operation, as the OpenAPI document names it.
    pub action: Box<str>,
    /// Id or name of the resource.
    pub target: Option<Box<str>>,
    /// The tenant whose data the act concerns; `None`: no tenant, or several.
    pub tenant: Option<Tenant>,
    /// The address of the caller's connection.
    pub address: Option<IpAddr>,
    pub outcome: ActOutcome,
}

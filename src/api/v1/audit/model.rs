//! Responses of the audit log.

use schemars::JsonSchema;
use serde::Serialize;

use crate::api::text::{Time, Word};
use crate::api::v1::jobs::model::{ActorBody, is_visible};
use crate::domain::{ActOutcome, AuditEntry, Position};
use crate::service::types::Scope;

/// An act of an operator. It has no content and no secrets.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditBody {
    /// The position of its record in the log.
    pub position: u64,
    pub at: Time,
    pub actor: ActorBody,
    /// The operation, by its `operationId` in the OpenAPI document.
    pub action: String,
    /// Id or name of the resource.
    pub target: Option<String>,
    /// The tenant whose data the act concerns; null: no tenant, or several.
    pub tenant: Option<String>,
    /// The address of the caller's connection; null if the caller may not see it.
    pub address: Option<String>,
    /// `done`: the entry was committed with the act. `accepted`: the entry was committed before the
    /// act, which is not a commit.
    #[schemars(with = "Word<ActOutcome>")]
    pub outcome: &'static str,
}

impl AuditBody {
    #[must_use]
    pub fn new(position: Position, entry: &AuditEntry, scope: &Scope) -> Self {
        let is_shown = is_visible(&entry.actor, scope);
        Self {
            position: position.0,
            at: Time(entry.at),
            actor: ActorBody::new(&entry.actor, scope),
            action: entry.action.to_string(),
            target: entry.target.as_ref().map(ToString::to_string),
            tenant: entry.tenant.as_ref().map(ToString::to_string),
            address: entry.address.filter(|_| is_shown).map(|address| address.to_string()),
            outcome: entry.outcome.as_str(),
        }
    }
}

//! Requests and responses of API keys.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::text::{Time, Word};
use crate::domain::{ApiKey, Role, Timestamp};

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyInput {
    /// `admin`: everything. `publisher`: publishes events, and reads events and deliveries.
    /// `viewer`: reads everything but secrets. `worker`: receives and ends messages of queues,
    /// commits consumers, and reads events and deliveries.
    #[schemars(extend("enum" = Role::ALL.map(Role::as_str)))]
    pub(super) role: String,
    /// The only tenant that the key can access; default: all tenants.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"))]
    pub(super) tenant: Option<String>,
    /// At most 1,024 bytes, without control characters.
    #[schemars(length(max = 1024))]
    pub(super) description: Option<String>,
    /// From this time on the key is rejected; in the future. Default: never.
    #[schemars(extend("format" = "date-time"))]
    pub(super) expires_at: Option<String>,
}

/// The changes of a key.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyPatch {
    /// At most 1,024 bytes, without control characters; null: none.
    #[schemars(length(max = 1024))]
    pub(super) description: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyBody {
    pub id: String,
    #[schemars(with = "Word<Role>")]
    pub role: &'static str,
    pub tenant: Option<String>,
    pub description: String,
    pub created_at: Time,
    pub expires_at: Option<Time>,
    /// The hour of the last request with the key; null if there was none. A crash may lose the uses
    /// of its last five minutes.
    pub last_used_at: Option<Time>,
    /// Only in the response to the creation. It is not stored, so a replayed response lacks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

impl KeyBody {
    pub(super) fn new(key: &ApiKey, last_used_at: Option<Timestamp>) -> Self {
        Self {
            id: key.id.to_string(),
            role: key.role.as_str(),
            tenant: key.tenant.as_ref().map(ToString::to_string),
            description: key.description.to_string(),
            created_at: Time(key.created_at),
            expires_at: key.expires_at.map(Time),
            last_used_at: last_used_at.map(Time),
            secret: None,
        }
    }
}

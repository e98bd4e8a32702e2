//! API keys and their roles. Only the hash of a secret is stored.

use super::closed_list::closed_list;
use super::{KeyId, Tenant, Timestamp};

closed_list! {
    pub enum Role {
        Admin = 1 => "admin",
        /// Posts events and reads its own.
        Publisher = 2 => "publisher",
        /// Reads.
        Viewer = 3 => "viewer",
        /// Receives messages, commits consumers, and reads events.
        Worker = 4 => "worker",
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    pub id: KeyId,
    pub role: Role,
    /// A key with a tenant has no access to other tenants.
    pub tenant: Option<Tenant>,
    pub description: Box<str>,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    pub created_at: Timestamp,
    /// The key is not accepted from this time on.
    pub expires_at: Option<Timestamp>,
}

impl ApiKey {
    #[must_use]
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

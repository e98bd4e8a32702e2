//! API keys: who may do what. Only the hash of the secret is ever kept.

use super::{KeyId, Tenant, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Admin,
    /// Posts events and reads its own.
    Publisher,
    /// Reads.
    Viewer,
}

impl Role {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Publisher => "publisher",
            Self::Viewer => "viewer",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    pub id: KeyId,
    pub role: Role,
    /// A bound key sees nothing outside its tenant.
    pub tenant: Option<Tenant>,
    pub description: Box<str>,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    pub created_at: Timestamp,
}

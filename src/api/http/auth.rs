//! Authentication by API key, and authorization by role and tenant.
//!
//! Keys are compared by SHA-256: the configured admin key in constant time, stored keys by hash
//! lookup. Stored keys, and admin keys of at least [`limits::UNGUESSABLE_KEY_BYTES_MIN`] bytes,
//! cannot be guessed. They are always checked, so an attacker cannot lock them out. A shorter admin
//! key is not checked for an address that has sent too many wrong keys.

use std::net::IpAddr;

use axum::http::{HeaderMap, header, request};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::api::http::problem::Problem;
use crate::api::{Api, ApiConfig};
use crate::domain::{ApiKey, Audience, KeyId, Role, Tenant};
use crate::limits;
use crate::service::Keys;
use crate::service::types::Scope;

/// The authorization that an operation requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No key.
    Public,
    /// Publish events: `admin` and `publisher`.
    Publish,
    /// Read events and deliveries: every role.
    ReadEvents,
    /// Receive messages, end leases, commit consumers: `admin` and `worker`.
    Work,
    /// Read everything else but secrets: `admin` and `viewer`.
    Read,
    /// Change resources and read secrets: `admin`.
    Admin,
    /// Operations across tenants, such as keys: an `admin` without a tenant.
    Operator,
}

impl Access {
    /// For the OpenAPI document.
    #[must_use]
    pub fn roles(self) -> &'static [&'static str] {
        match self {
            Self::Public => &[],
            Self::Publish => &["admin", "publisher"],
            Self::ReadEvents => &["admin", "publisher", "viewer", "worker"],
            Self::Work => &["admin", "worker"],
            Self::Read => &["admin", "viewer"],
            Self::Admin | Self::Operator => &["admin"],
        }
    }
}

/// The caller of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    pub role: Role,
    pub scope: Scope,
    /// The key, if it is one of `/v1/keys`.
    pub key: Option<KeyId>,
}

impl Principal {
    /// An `admin` without a tenant.
    #[must_use]
    pub fn operator() -> Self {
        Self { role: Role::Admin, scope: Scope(None), key: None }
    }

    #[must_use]
    pub fn audience(&self) -> Audience {
        if self.scope.0.is_none() { Audience::Operator } else { Audience::Tenant }
    }

    /// # Errors
    /// [`Problem::Forbidden`] when the role is not sufficient.
    pub fn check(&self, access: Access) -> Result<(), Problem> {
        let allowed = match access {
            Access::Public | Access::ReadEvents => true,
            Access::Publish => matches!(self.role, Role::Admin | Role::Publisher),
            Access::Work => matches!(self.role, Role::Admin | Role::Worker),
            Access::Read => matches!(self.role, Role::Admin | Role::Viewer),
            Access::Admin => self.role == Role::Admin,
            Access::Operator => {
                if self.role == Role::Admin && self.scope.0.is_some() {
                    return Err(Problem::Forbidden("a key bound to a tenant cannot do this".to_owned()));
                }
                self.role == Role::Admin
            }
        };
        if allowed {
            return Ok(());
        }
        Err(Problem::Forbidden(format!("the role `{}` cannot do this", self.role.as_str())))
    }

    /// The tenant of a request: the `named` one, or the key's, or the default.
    ///
    /// # Errors
    /// [`Problem::Forbidden`] when the key is bound to another tenant.
    pub fn tenant(&self, named: Option<Tenant>) -> Result<Tenant, Problem> {
        match self.tenant_filter(named)? {
            Some(tenant) => Ok(tenant),
            None => Tenant::DEFAULT.parse().map_err(|_| Problem::NotFound("no tenant".to_owned())),
        }
    }

    /// The tenant filter of a list: the `named` tenant, or the key's, or none.
    ///
    /// # Errors
    /// [`Problem::Forbidden`] when the key is bound to another tenant.
    pub fn tenant_filter(&self, named: Option<Tenant>) -> Result<Option<Tenant>, Problem> {
        match (&self.scope.0, named) {
            (Some(own), Some(named)) if *own != named => {
                Err(Problem::Forbidden(format!("this key is bound to the tenant `{own}`")))
            }
            (Some(own), _) => Ok(Some(own.clone())),
            (None, named) => Ok(named),
        }
    }

    /// # Errors
    /// [`Problem::Forbidden`] for the reserved tenant, except to an `admin` without a tenant.
    pub fn check_reserved(&self, tenant: &Tenant) -> Result<(), Problem> {
        if tenant.as_str() != Tenant::OPERATOR || *self == Self::operator() {
            return Ok(());
        }
        Err(Problem::Forbidden("the tenant `balto` is reserved for the operator".to_owned()))
    }

    /// The scope of the caller's idempotency keys.
    #[must_use]
    pub fn scope_text(&self) -> &str {
        self.scope.0.as_ref().map_or("", Tenant::as_str)
    }
}

/// The configured admin key. Only its hash is in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminKeyHash {
    hash: [u8; 32],
    is_guessable: bool,
}

impl AdminKeyHash {
    #[must_use]
    pub fn new(secret: &str) -> Self {
        Self { hash: hash_secret(secret), is_guessable: secret.len() < limits::UNGUESSABLE_KEY_BYTES_MIN }
    }
}

/// # Errors
/// [`Problem::Unauthorized`], [`Problem::KeyExpired`] or [`Problem::TooManyWrongKeys`] without a
/// valid key; with `--dev`, [`Problem::UntrustedOrigin`] for a request that a foreign page may have
/// sent.
pub fn authenticate(
    api: &Api,
    config: &ApiConfig,
    parts: &request::Parts,
    from: IpAddr,
) -> Result<Principal, Problem> {
    let secret = bearer(&parts.headers);
    if let Some(site) = &config.keyless {
        // A key of the daemon has its role and its tenant, as without `--dev`.
        let found = secret.map(|secret| find_stored_key(api, &hash_secret(secret))).transpose()?.flatten();
        return match (found, site.check_request(&parts.uri, &parts.headers)) {
            (Some(principal), _) => Ok(principal),
            (None, Ok(())) => Ok(Principal::operator()),
            (None, Err(reason)) => {
                api.observer.on_authentication_failed("untrustedOrigin");
                Err(Problem::UntrustedOrigin(reason))
            }
        };
    }
    let Some(secret) = secret else {
        api.observer.on_authentication_failed("missing");
        return Err(Problem::Unauthorized);
    };
    let now = api.context.now().monotonic;
    let hash = hash_secret(secret);
    if let Some(principal) = find_stored_key(api, &hash)? {
        return Ok(principal);
    }
    let checked = config
        .admin_key
        .as_ref()
        .filter(|key| !key.is_guessable || api.auth_throttle.wait(from, now).is_none());
    if checked.is_some_and(|key| bool::from(key.hash.ct_eq(&hash))) {
        return Ok(Principal::operator());
    }
    match api.auth_throttle.record_wrong_key(from, now) {
        None => {
            api.observer.on_authentication_failed("wrong");
            Err(Problem::Unauthorized)
        }
        Some(retry_after) => {
            api.observer.on_authentication_failed("tooMany");
            Err(Problem::TooManyWrongKeys { retry_after })
        }
    }
}

/// Finds a key created by `POST /v1/keys`.
///
/// # Errors
/// [`Problem::KeyExpired`]
fn find_stored_key(api: &Api, hash: &[u8; 32]) -> Result<Option<Principal>, Problem> {
    let Some(key) = Keys(&api.context).find_by_hash(hash) else { return Ok(None) };
    check_expiry(api, &key)?;
    Keys(&api.context).note_use(&key.id);
    Ok(Some(Principal { role: key.role, scope: Scope(key.tenant.clone()), key: Some(key.id.clone()) }))
}

/// Checks the key of a request again, after a wait.
///
/// # Errors
/// [`Problem::Unauthorized`] for a key that was deleted, [`Problem::KeyExpired`].
pub fn check_again(api: &Api, principal: &Principal) -> Result<(), Problem> {
    let Some(id) = &principal.key else { return Ok(()) };
    let Some(key) = Keys(&api.context).get(id) else {
        api.observer.on_authentication_failed("wrong");
        return Err(Problem::Unauthorized);
    };
    check_expiry(api, &key)
}

/// # Errors
/// [`Problem::KeyExpired`]
fn check_expiry(api: &Api, key: &ApiKey) -> Result<(), Problem> {
    match key.expires_at.filter(|_| key.has_expired(api.context.now().wall)) {
        None => Ok(()),
        Some(at) => {
            api.observer.on_authentication_failed("expired");
            Err(Problem::KeyExpired { at })
        }
    }
}

/// The stored form of a key's secret: its SHA-256.
#[must_use]
pub fn hash_secret(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, secret) = value.split_once(' ')?;
    let secret = secret.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty()).then_some(secret)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn authorization(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn only_a_single_bearer_key_is_accepted() {
        assert_eq!(bearer(&authorization(&["Bearer abc"])), Some("abc"));
        assert_eq!(bearer(&authorization(&["bearer abc"])), Some("abc"));
        for values in [&[][..], &["Basic abc"], &["Bearer"], &["Bearer "], &["Bearer a", "Bearer b"]] {
            assert_eq!(bearer(&authorization(values)), None, "{values:?}");
        }
    }

    #[test]
    fn bound_key_cannot_name_another_tenant() {
        let own: Tenant = "acme".parse().unwrap();
        let bound = Principal { role: Role::Admin, scope: Scope(Some(own.clone())), key: None };
        assert_eq!(bound.tenant(None), Ok(own.clone()));
        assert_eq!(bound.tenant(Some(own)), Ok("acme".parse().unwrap()));
        assert_eq!(bound.tenant(Some("other".parse().unwrap())).unwrap_err().status(), 403);
        assert_eq!(bound.check(Access::Operator).unwrap_err().status(), 403);
        assert_eq!(bound.check_reserved(&"balto".parse().unwrap()).unwrap_err().status(), 403);
        assert_eq!(Principal::operator().tenant(None).unwrap().as_str(), "default");
    }

    #[test]
    fn check_agrees_with_the_documented_roles() {
        let reads = [Access::ReadEvents, Access::Read];
        for access in
            [Access::Publish, Access::Work, Access::Admin, Access::Operator].into_iter().chain(reads)
        {
            for role in Role::ALL {
                let principal = Principal { role, scope: Scope(None), key: None };
                assert_eq!(
                    principal.check(access).is_ok(),
                    access.roles().contains(&role.as_str()),
                    "{access:?} {role:?}"
                );
            }
        }
    }
}

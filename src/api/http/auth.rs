//! Who calls, and what that caller may do.
//!
//! Keys are compared by their SHA-256: the configured admin key in constant time, the others by looking up their hash.
//! Generated keys cannot be guessed, and neither can an admin key of [`limits::UNGUESSABLE_KEY_BYTES_MIN`] or more: they are
//! judged always, so that nobody can lock them out. A shorter admin key is not judged from an address that has sent too
//! many wrong ones.

use std::net::IpAddr;

use axum::http::{HeaderMap, header, request};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::api::http::problem::Problem;
use crate::api::{Api, ApiConfig};
use crate::domain::{Role, Tenant};
use crate::limits;
use crate::service::Keys;
use crate::service::types::Scope;

/// What an operation needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No key.
    Public,
    /// Posting events: `admin` and `publisher`.
    Publish,
    /// Reading events and deliveries: every role.
    ReadEvents,
    /// Reading what else there is, without secrets: `admin` and `viewer`.
    Read,
    /// Changing things and reading secrets.
    Admin,
    /// What concerns every tenant, such as keys: an `admin` that is not bound to one.
    Operator,
}

impl Access {
    /// For the API document.
    #[must_use]
    pub fn roles(self) -> &'static [&'static str] {
        match self {
            Self::Public => &[],
            Self::Publish => &["admin", "publisher"],
            Self::ReadEvents => &["admin", "publisher", "viewer"],
            Self::Read => &["admin", "viewer"],
            Self::Admin | Self::Operator => &["admin"],
        }
    }
}

/// Who reads an answer: what comes from inside the operator's network is not for tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// A key that is bound to no tenant.
    Operator,
    Tenant,
}

/// The caller of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    pub role: Role,
    pub scope: Scope,
}

impl Principal {
    /// An `admin` that sees every tenant.
    #[must_use]
    pub fn operator() -> Self {
        Self { role: Role::Admin, scope: Scope(None) }
    }

    /// Which side the caller is on, whatever its role.
    #[must_use]
    pub fn audience(&self) -> Audience {
        if self.scope.0.is_none() { Audience::Operator } else { Audience::Tenant }
    }

    /// # Errors
    /// [`Problem::Forbidden`] when the role is not enough.
    pub fn check(&self, access: Access) -> Result<(), Problem> {
        let allowed = match access {
            Access::Public | Access::ReadEvents => true,
            Access::Publish => matches!(self.role, Role::Admin | Role::Publisher),
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

    /// The tenant of a request that may name one: what it names, else the key's own, else the default.
    ///
    /// # Errors
    /// [`Problem::Forbidden`] when the key is bound to another one.
    pub fn tenant(&self, named: Option<Tenant>) -> Result<Tenant, Problem> {
        match self.filter(named)? {
            Some(tenant) => Ok(tenant),
            None => Tenant::DEFAULT.parse().map_err(|_| Problem::NotFound("no tenant".to_owned())),
        }
    }

    /// The tenant that a list is narrowed to: what it names, else the key's own, else none.
    ///
    /// # Errors
    /// [`Problem::Forbidden`] when the key is bound to another one.
    pub fn filter(&self, named: Option<Tenant>) -> Result<Option<Tenant>, Problem> {
        match (&self.scope.0, named) {
            (Some(own), Some(named)) if *own != named => {
                Err(Problem::Forbidden(format!("this key is bound to the tenant `{own}`")))
            }
            (Some(own), _) => Ok(Some(own.clone())),
            (None, named) => Ok(named),
        }
    }

    /// # Errors
    /// [`Problem::Forbidden`] for the reserved tenant, unless this is an `admin` that is bound to no tenant.
    pub fn check_reserved(&self, tenant: &Tenant) -> Result<(), Problem> {
        if tenant.as_str() != Tenant::OPERATOR || *self == Self::operator() {
            return Ok(());
        }
        Err(Problem::Forbidden("the tenant `balto` is reserved for the operator".to_owned()))
    }

    /// A text that keeps one caller's idempotency keys apart from another tenant's.
    #[must_use]
    pub fn scope_text(&self) -> &str {
        self.scope.0.as_ref().map_or("", Tenant::as_str)
    }
}

/// The configured admin key, as far as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminKey {
    hash: [u8; 32],
    can_be_guessed: bool,
}

impl AdminKey {
    #[must_use]
    pub fn new(secret: &str) -> Self {
        Self { hash: hash_secret(secret), can_be_guessed: secret.len() < limits::UNGUESSABLE_KEY_BYTES_MIN }
    }
}

/// # Errors
/// [`Problem::Unauthorized`] without a key that exists; [`Problem::TooManyWrongKeys`] when there were too many before;
/// [`Problem::UntrustedOrigin`] where no key is needed, for requests that a foreign page may have sent.
pub fn authenticate(
    api: &Api,
    config: &ApiConfig,
    parts: &request::Parts,
    from: IpAddr,
) -> Result<Principal, Problem> {
    let secret = bearer(&parts.headers);
    if let Some(site) = &config.keyless {
        let Err(reason) = site.check_request(&parts.uri, &parts.headers) else {
            return Ok(Principal::operator());
        };
        return secret.and_then(|secret| stored(api, &hash_secret(secret))).ok_or_else(|| {
            api.observer.authentication_refused("untrustedOrigin");
            Problem::UntrustedOrigin(reason)
        });
    }
    let Some(secret) = secret else {
        api.observer.authentication_refused("missing");
        return Err(Problem::Unauthorized);
    };
    let now = api.context.now().monotonic;
    let hash = hash_secret(secret);
    if let Some(principal) = stored(api, &hash) {
        return Ok(principal);
    }
    let judged = config
        .admin_key
        .as_ref()
        .filter(|key| !key.can_be_guessed || api.auth_throttle.wait(from, now).is_none());
    if judged.is_some_and(|key| bool::from(key.hash.ct_eq(&hash))) {
        return Ok(Principal::operator());
    }
    match api.auth_throttle.note(from, now) {
        None => {
            api.observer.authentication_refused("wrong");
            Err(Problem::Unauthorized)
        }
        Some(retry_after) => {
            api.observer.authentication_refused("tooMany");
            Err(Problem::TooManyWrongKeys { retry_after })
        }
    }
}

/// The caller with a key that was made by `POST /v1/keys`.
fn stored(api: &Api, hash: &[u8; 32]) -> Option<Principal> {
    let key = Keys(&api.context).find_by_hash(hash)?;
    Some(Principal { role: key.role, scope: Scope(key.tenant.clone()) })
}

/// SHA-256 of a key's secret, as it is stored.
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

    fn with(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_bearer_key_is_found_and_nothing_else() {
        assert_eq!(bearer(&with(&["Bearer abc"])), Some("abc"));
        assert_eq!(bearer(&with(&["bearer abc"])), Some("abc"));
        for values in [&[][..], &["Basic abc"], &["Bearer"], &["Bearer "], &["Bearer a", "Bearer b"]] {
            assert_eq!(bearer(&with(values)), None, "{values:?}");
        }
    }

    #[test]
    fn a_bound_key_cannot_name_another_tenant() {
        let own: Tenant = "acme".parse().unwrap();
        let bound = Principal { role: Role::Admin, scope: Scope(Some(own.clone())) };
        assert_eq!(bound.tenant(None), Ok(own.clone()));
        assert_eq!(bound.tenant(Some(own)), Ok("acme".parse().unwrap()));
        assert_eq!(bound.tenant(Some("other".parse().unwrap())).unwrap_err().status(), 403);
        assert_eq!(bound.check(Access::Operator).unwrap_err().status(), 403);
        assert_eq!(bound.check_reserved(&"balto".parse().unwrap()).unwrap_err().status(), 403);
        assert_eq!(Principal::operator().tenant(None).unwrap().as_str(), "default");
    }

    #[test]
    fn each_role_may_do_what_its_operations_say() {
        for access in [Access::Publish, Access::ReadEvents, Access::Read, Access::Admin, Access::Operator] {
            for role in [Role::Admin, Role::Publisher, Role::Viewer] {
                let principal = Principal { role, scope: Scope(None) };
                assert_eq!(
                    principal.check(access).is_ok(),
                    access.roles().contains(&role.as_str()),
                    "{access:?} {role:?}"
                );
            }
        }
    }
}

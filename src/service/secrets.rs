//! Secrets of endpoints: signing keys, custom headers and client certificates. Decrypted only on
//! use.

use crate::context::Context;
use crate::context::home::Home;
use crate::courier::tls::{CheckedCertificate, ClientIdentity, IdentityError};
use crate::domain::{
    ClientCertificate, Endpoint, EndpointAuth, EndpointNumber, Sealed, Secret, SecretKind, Timestamp,
};
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::rules::signature::{SigningKey, is_live};
use crate::vault;
use crate::vault::{SealContext, SealedField, VaultError};

/// Header name and value.
type Header = (Box<str>, Box<str>);

/// Bytes of a generated signing key.
const KEY_BYTES: usize = 32;

/// Operations on the secrets of endpoints.
#[derive(Clone, Copy)]
pub struct Secrets<'a>(pub &'a Context);

impl Secrets<'_> {
    /// Generates a signing key of this kind.
    #[must_use]
    pub fn new_key(self, kind: SecretKind) -> SigningKey {
        SigningKey { kind, bytes: self.0.random_bytes::<KEY_BYTES>().to_vec() }
    }

    /// # Errors
    /// When the key was sealed under a vault key that is not configured.
    pub fn open_key(self, endpoint: &Endpoint, secret: &Secret) -> Result<SigningKey, VaultError> {
        let seal_context = SealContext::Endpoint(endpoint, SealedField::Secret(secret));
        Ok(SigningKey { kind: secret.kind, bytes: self.0.vault().open(&secret.key, seal_context)? })
    }

    /// The keys that sign at `now` with their expiry times, the current one first.
    ///
    /// # Errors
    /// When a key was sealed under a vault key that is not configured.
    pub fn live_keys(
        self,
        endpoint: &Endpoint,
        now: Timestamp,
    ) -> Result<Vec<(SigningKey, Option<Timestamp>)>, VaultError> {
        let live = endpoint.secrets.iter().filter(|secret| is_live(secret, now));
        live.map(|secret| Ok((self.open_key(endpoint, secret)?, secret.expires_at))).collect()
    }

    /// A copy of the endpoint with all secrets decrypted.
    ///
    /// # Errors
    /// When a secret was sealed under a vault key that is not configured.
    pub fn opened(self, endpoint: &Endpoint) -> Result<Endpoint, VaultError> {
        let mut opened = endpoint.clone();
        self.0.vault().open_endpoint(&mut opened, endpoint)?;
        Ok(opened)
    }

    /// Decrypts the sealed values that a changed endpoint copies from the current one.
    pub(crate) fn open_sealed_values(self, changed: &mut Endpoint) -> Result<(), ChangeError> {
        if vault::values(changed).all(|(_, value)| matches!(value, Sealed::Plain(_))) {
            return Ok(());
        }
        let current = self.0.outbox_of(changed.number).endpoint(changed.number);
        let current = current.filter(|current| current.revision == changed.revision);
        let current = current.ok_or(ChangeError::Conflict)?;
        let opened = self.0.vault().open_endpoint(changed, &current);
        opened.map_err(|error| {
            let reason = format!("a secret of endpoint {} cannot be opened: {error}", changed.id);
            ChangeError::Store(Unavailable::Failed(reason.into()))
        })
    }

    /// The endpoint's custom headers with the sensitive ones decrypted.
    pub(crate) fn open_headers(self, endpoint: &Endpoint) -> Result<Vec<Header>, VaultError> {
        let mut headers = endpoint.headers.clone();
        for (name, value) in &endpoint.sensitive_headers {
            let bytes =
                self.0.vault().open(value, SealContext::Endpoint(endpoint, SealedField::Header(name)))?;
            headers.push((name.clone(), String::from_utf8(bytes).map_err(|_| VaultError::Damaged)?.into()));
        }
        Ok(headers)
    }

    /// Parses and checks a client certificate and its key, both PEM.
    ///
    /// # Errors
    /// Which of the two is invalid, and why.
    pub fn client_certificate(
        self,
        certificate: &str,
        key: &str,
    ) -> Result<ClientCertificate, IdentityError> {
        let checked = CheckedCertificate::parse(certificate, key, self.0.now().wall)?;
        Ok(ClientCertificate {
            chain: checked.chain,
            key: Sealed::Plain(checked.key[..].into()),
            subject: checked.subject.into(),
            expires_at: checked.expires_at,
        })
    }

    /// The client certificate of the endpoint's connections.
    pub(crate) fn identity(self, endpoint: &Endpoint) -> Result<Option<ClientIdentity>, VaultError> {
        let Some(certificate) = &endpoint.client_certificate else { return Ok(None) };
        let seal_context = SealContext::Endpoint(endpoint, SealedField::ClientKey);
        let key = self.0.vault().open(&certificate.key, seal_context)?;
        Ok(Some(ClientIdentity::new(endpoint.number, &certificate.chain, key)))
    }

    /// The password or client secret of the endpoint's authorization.
    pub(crate) fn open_auth(self, endpoint: &Endpoint, auth: &EndpointAuth) -> Result<String, VaultError> {
        let seal_context = SealContext::Endpoint(endpoint, SealedField::Auth(auth));
        let bytes = self.0.vault().open(auth.secret(), seal_context)?;
        String::from_utf8(bytes).map_err(|_| VaultError::Damaged)
    }

    /// Checks that all secrets can be decrypted. A failed start is better than failed attempts
    /// later.
    ///
    /// # Errors
    /// The endpoint whose secret cannot be decrypted, and why.
    pub fn check(self) -> Result<(), String> {
        let endpoints: Vec<_> = self.0.outbox_of(Home::All).endpoints();
        for endpoint in endpoints {
            self.0
                .vault()
                .check(&endpoint)
                .map_err(|error| format!("a secret of endpoint {} cannot be opened: {error}", endpoint.id))?;
        }
        Ok(())
    }

    pub(crate) fn sealing_key(self) -> Option<vault::VaultKeyId> {
        self.0.vault().sealing_key()
    }

    /// Endpoints with a value that is not sealed under the first key in the current layout.
    pub(crate) fn outdated_endpoints(self) -> Vec<EndpointNumber> {
        let vault = self.0.vault();
        let is_outdated =
            |endpoint: &Endpoint| vault::values(endpoint).any(|(_, value)| !vault.is_current(value));
        self.0.outbox_of(Home::All).registry(|registry| {
            registry.endpoints().filter(|endpoint| is_outdated(endpoint)).map(|found| found.number).collect()
        })
    }
}

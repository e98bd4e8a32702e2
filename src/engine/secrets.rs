//! Secrets, sensitive headers and private keys: sealed before they are committed, opened only to sign, to send and to be
//! shown once.

use super::Engine;
use super::types::{Answer, Unavailable};
use crate::courier::tls::{CheckedCertificate, Identity, IdentityError};
use crate::domain::{
    ClientCertificate, Endpoint, EndpointId, Idempotency, Sealed, Secret, SecretKind, Timestamp,
};
use crate::rules::signature::{SigningKey, is_live};
use crate::vault::{ENCRYPTED, NONCE_BYTES, Place, VaultError};

/// Name and value.
type Header = (Box<str>, Box<str>);
/// Bytes of a generated key.
const KEY_BYTES: usize = 32;

impl Engine {
    /// A fresh key of this kind, in the form that the preset's receivers know.
    #[must_use]
    pub fn new_key(&self, kind: SecretKind) -> SigningKey {
        SigningKey { kind, bytes: self.random_bytes::<KEY_BYTES>().to_vec() }
    }

    /// The secret of an endpoint, ready to be stored.
    #[must_use]
    pub fn seal_key(&self, owner: &EndpointId, key: &SigningKey) -> Secret {
        let nonce = self.random_bytes::<NONCE_BYTES>();
        let sealed = self.shared.vault.seal(&key.bytes, Place::Secret(owner), nonce);
        Secret { kind: key.kind, key: sealed, expires_at: None }
    }

    /// # Errors
    /// When it was sealed under a key that is not there.
    pub fn open_key(&self, owner: &EndpointId, secret: &Secret) -> Result<SigningKey, VaultError> {
        let bytes = self.shared.vault.open(&secret.key, Place::Secret(owner))?;
        Ok(SigningKey { kind: secret.kind, bytes })
    }

    /// The keys that sign at `now` with their ends, the current one first.
    ///
    /// # Errors
    /// When one was sealed under a key that is not there.
    pub fn live_keys(
        &self,
        endpoint: &Endpoint,
        now: Timestamp,
    ) -> Result<Vec<(SigningKey, Option<Timestamp>)>, VaultError> {
        let live = endpoint.secrets.iter().filter(|secret| is_live(secret, now));
        live.map(|secret| Ok((self.open_key(&endpoint.id, secret)?, secret.expires_at))).collect()
    }

    /// The value of a sensitive header, ready to be stored. `name` is in lower case.
    #[must_use]
    pub fn seal_header(&self, owner: &EndpointId, name: &str, value: &str) -> Sealed {
        let nonce = self.random_bytes::<NONCE_BYTES>();
        self.shared.vault.seal(value.as_bytes(), Place::Header(owner, name), nonce)
    }

    /// The endpoint's own headers with the sensitive ones opened.
    pub(super) fn open_headers(&self, endpoint: &Endpoint) -> Result<Vec<Header>, VaultError> {
        let mut headers = endpoint.headers.clone();
        for (name, value) in &endpoint.sensitive_headers {
            let bytes = self.shared.vault.open(value, Place::Header(&endpoint.id, name))?;
            headers.push((name.clone(), String::from_utf8(bytes).map_err(|_| VaultError::Damaged)?.into()));
        }
        Ok(headers)
    }

    /// A client certificate from PEM, checked, with its key ready to be stored.
    ///
    /// # Errors
    /// Which of the two is wrong, and how.
    pub fn client_certificate(
        &self,
        owner: &EndpointId,
        certificate: &str,
        key: &str,
    ) -> Result<ClientCertificate, IdentityError> {
        let checked = CheckedCertificate::parse(certificate, key, self.now().wall)?;
        let nonce = self.random_bytes::<NONCE_BYTES>();
        Ok(ClientCertificate {
            chain: checked.chain,
            key: self.shared.vault.seal(&checked.key, Place::ClientKey(owner), nonce),
            subject: checked.subject.into(),
            expires_at: checked.expires_at,
        })
    }

    /// Who the endpoint's connections say that they are.
    pub(super) fn identity(&self, endpoint: &Endpoint) -> Result<Option<Identity>, VaultError> {
        let Some(certificate) = &endpoint.client_certificate else { return Ok(None) };
        let key = self.shared.vault.open(&certificate.key, Place::ClientKey(&endpoint.id))?;
        Ok(Some(Identity::new(endpoint.number, &certificate.chain, key)))
    }

    /// Whether every endpoint's secrets can be opened: better to refuse the start than to send nothing later.
    ///
    /// # Errors
    /// Which endpoint's cannot, and why.
    pub fn check_secrets(&self) -> Result<(), String> {
        let endpoints: Vec<_> = self.outbox().directory(|directory| directory.endpoints().cloned().collect());
        for endpoint in endpoints {
            self.shared
                .vault
                .check(&endpoint)
                .map_err(|error| format!("a secret of endpoint {} cannot be opened: {error}", endpoint.id))?;
        }
        Ok(())
    }

    /// Remembered answers may show a fresh secret, so they are sealed too.
    pub(super) fn seal_answer(&self, idempotency: &Idempotency, answer: Answer) -> Answer {
        let nonce = self.random_bytes::<NONCE_BYTES>();
        match self.shared.vault.seal(&answer.body, Place::Answer(&idempotency.scope), nonce) {
            Sealed::Encrypted(bytes) => Answer { body: bytes.into(), ..answer },
            Sealed::Plain(_) => answer,
        }
    }

    /// A plain answer is JSON or empty; encrypted bytes begin as neither does.
    pub(super) fn open_answer(
        &self,
        idempotency: &Idempotency,
        answer: Answer,
    ) -> Result<Answer, Unavailable> {
        if answer.body.first() != Some(&ENCRYPTED) {
            return Ok(answer);
        }
        let sealed = Sealed::Encrypted((*answer.body).into());
        match self.shared.vault.open(&sealed, Place::Answer(&idempotency.scope)) {
            Ok(body) => Ok(Answer { body: body.into(), ..answer }),
            Err(error) => Err(Unavailable::Failed(format!("a remembered answer: {error}").into())),
        }
    }
}

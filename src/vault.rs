//! Encryption at rest: secrets, sensitive header values and private keys under the operator's keys.
//!
//! Owns the keys and the layout of encrypted bytes: a version byte, the key id (first 4 bytes of
//! the key's SHA-256), a random nonce of 24 bytes, and the output of XChaCha20-Poly1305. The first
//! key encrypts; every key decrypts. Without a key, values stay plain. Must never log or show a
//! plain value.
//!
//! The associated data binds a value to its context, so that it does not decrypt in another one:
//!
//! * Version 2 (current): the endpoint's id, tenant, URL and revision, and the field with its
//!   attributes (of a client secret: the token URL). A value does not decrypt if the endpoint's URL
//!   was edited on disk or if an older ciphertext was restored. Only the writer knows the new
//!   revision, so it seals all values of an endpoint on each write.
//!   The password of a source is bound to the source's name, URL and user name.
//! * Version 1 (read only): the endpoint's id and the field. The next write of the endpoint
//!   replaces it.
//!
//! Limits of the protection: an attacker with write access to the disk can restore an earlier
//! journal or remove its last records, because no value on the same disk proves that a newer one
//! existed. While a key that sealed version 1 values is configured, that attacker can also restore
//! a version 1 value from the journal's history. Key rotation ends this.

use std::fmt;

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::domain::endpoint::SEALED_OVERHEAD_BYTES;
use crate::domain::{Endpoint, EndpointAuth, Sealed, Secret, SecretKind, Source};

/// Length of an operator's key.
pub const KEY_BYTES: usize = 32;
/// Length of a nonce. Random nonces of this length do not repeat in practice.
pub const NONCE_BYTES: usize = 24;
/// Layout version whose associated data holds the endpoint's id and the field.
const BOUND_TO_ID: u8 = 1;
/// Layout version whose associated data also holds the endpoint's tenant, URL and revision.
const BOUND_TO_REVISION: u8 = 2;
const ID_BYTES: usize = 4;
const HEAD_BYTES: usize = 1 + ID_BYTES + NONCE_BYTES;
/// Label that derives the keys for backup authentication.
const BACKUP_LABEL: &[u8] = b"balto backup authentication";
/// Length of the Poly1305 tag at the end of the ciphertext.
const TAG_BYTES: usize = 16;
const _: () = assert!(HEAD_BYTES + TAG_BYTES == SEALED_OVERHEAD_BYTES);

/// Identifies an operator's key without revealing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VaultKeyId([u8; ID_BYTES]);

impl VaultKeyId {
    #[must_use]
    pub fn of(key: &[u8; KEY_BYTES]) -> Self {
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&Sha256::digest(key)[..ID_BYTES]);
        Self(id)
    }
}

impl fmt::Display for VaultKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Encrypted bytes, split according to the layout.
struct SealedParts<'a> {
    version: u8,
    key: VaultKeyId,
    nonce: [u8; NONCE_BYTES],
    ciphertext: &'a [u8],
}

impl<'a> SealedParts<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (head, ciphertext) = bytes.split_at_checked(HEAD_BYTES)?;
        let version = *head.first()?;
        let is_known = is_encrypted(bytes) && ciphertext.len() >= TAG_BYTES;
        let key = VaultKeyId(head[1..=ID_BYTES].try_into().ok()?);
        let nonce = head[1 + ID_BYTES..].try_into().ok()?;
        is_known.then_some(Self { version, key, nonce, ciphertext })
    }
}

/// Whether bytes begin with a known layout version. JSON and the empty string do not.
#[must_use]
pub fn is_encrypted(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|version| [BOUND_TO_ID, BOUND_TO_REVISION].contains(version))
}

/// The id of the key that a value is encrypted under; `None` when its bytes are damaged.
#[must_use]
pub fn key_id(encrypted: &[u8]) -> Option<VaultKeyId> {
    SealedParts::read(encrypted).map(|parts| parts.key)
}

/// Why a value cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    #[error("it is encrypted under key {0}, and no key is configured (secrets.key or secrets.key_file)")]
    NoKey(VaultKeyId),
    #[error(
        "it is encrypted under key {0}, which is not configured: add that key to secrets.key or secrets.key_file"
    )]
    OtherKey(VaultKeyId),
    #[error("its encrypted bytes are damaged, or belong to another endpoint, URL or revision")]
    Damaged,
}

/// The owner of a sealed value. The value decrypts only in the same context.
#[derive(Clone, Copy, Debug)]
pub enum SealContext<'a> {
    Endpoint(&'a Endpoint, SealedField<'a>),
    /// A stored idempotent response, by its idempotency scope.
    StoredResponse(&'a [u8; 16]),
    /// The password of a source.
    Source(&'a Source),
}

/// A sealed field of an endpoint.
#[derive(Clone, Copy, Debug)]
pub enum SealedField<'a> {
    Secret(&'a Secret),
    /// A sensitive header's name in lower case.
    Header(&'a str),
    /// The private key of the client certificate.
    ClientKey,
    /// The password or client secret of the authorization.
    Auth(&'a EndpointAuth),
}

impl SealContext<'_> {
    fn associated_data(self, version: u8) -> Vec<u8> {
        if version == BOUND_TO_ID { self.associated_data_v1() } else { self.associated_data_v2() }
    }

    fn associated_data_v1(self) -> Vec<u8> {
        match self {
            Self::StoredResponse(scope) => [b"answer ", &scope[..]].concat(),
            // No version sealed it in this layout.
            Self::Source(source) => format!("source {}", source.name).into_bytes(),
            Self::Endpoint(owner, SealedField::Secret(_)) => format!("{} secret", owner.id).into_bytes(),
            Self::Endpoint(owner, SealedField::Header(name)) => {
                format!("{} header {name}", owner.id).into_bytes()
            }
            Self::Endpoint(owner, SealedField::ClientKey) => format!("{} client key", owner.id).into_bytes(),
            // No version sealed it in this layout.
            Self::Endpoint(owner, SealedField::Auth(_)) => format!("{} auth", owner.id).into_bytes(),
        }
    }

    fn associated_data_v2(self) -> Vec<u8> {
        let mut out = vec![BOUND_TO_REVISION];
        match self {
            Self::Source(source) => {
                put_text(&mut out, "source");
                for text in [source.name.as_str(), &*source.url, &*source.username] {
                    put_text(&mut out, text);
                }
            }
            Self::StoredResponse(scope) => {
                put_text(&mut out, "answer");
                out.extend(scope);
            }
            Self::Endpoint(owner, field) => {
                put_text(&mut out, "endpoint");
                for text in [owner.id.as_str(), owner.tenant.as_str(), &*owner.url] {
                    put_text(&mut out, text);
                }
                out.extend(owner.revision.0.to_be_bytes());
                field.put(&mut out);
            }
        }
        out
    }
}

impl SealedField<'_> {
    fn put(self, out: &mut Vec<u8>) {
        match self {
            Self::Secret(secret) => {
                put_text(out, "secret");
                out.push(match secret.kind {
                    SecretKind::Hmac => 1,
                    SecretKind::Ed25519 => 2,
                    SecretKind::Text => 3,
                });
                out.extend(secret.expires_at.map_or(u64::MAX, |at| at.millis()).to_be_bytes());
            }
            Self::Header(name) => {
                put_text(out, "header");
                put_text(out, name);
            }
            Self::ClientKey => put_text(out, "client key"),
            Self::Auth(EndpointAuth::Basic { username, .. }) => {
                put_text(out, "basic");
                put_text(out, username);
            }
            // A client secret goes to the token server.
            Self::Auth(EndpointAuth::OAuth2(client)) => {
                put_text(out, "oauth2");
                put_text(out, &client.token_url);
                put_text(out, &client.id);
            }
        }
    }
}

/// Writes a text with its length first, so that different lists of texts have different bytes.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_be_bytes());
    out.extend(text.as_bytes());
}

/// All sealed fields of an endpoint with their values.
pub fn values(endpoint: &Endpoint) -> impl Iterator<Item = (SealedField<'_>, &Sealed)> {
    let secrets = endpoint.secrets.iter().map(|secret| (SealedField::Secret(secret), &secret.key));
    let headers = endpoint.sensitive_headers.iter().map(|(name, value)| (SealedField::Header(name), value));
    let client_key = endpoint.client_certificate.iter().map(|held| (SealedField::ClientKey, &held.key));
    let auth = endpoint.auth.iter().map(|auth| (SealedField::Auth(auth), auth.secret()));
    secrets.chain(headers).chain(client_key).chain(auth)
}

/// The values of [`values`] in the same order, mutable.
fn sealed_values_mut(endpoint: &mut Endpoint) -> impl Iterator<Item = &mut Sealed> {
    let secrets = endpoint.secrets.iter_mut().map(|secret| &mut secret.key);
    let headers = endpoint.sensitive_headers.iter_mut().map(|(_, value)| value);
    let client_key = endpoint.client_certificate.iter_mut().map(|held| &mut held.key);
    secrets.chain(headers).chain(client_key).chain(endpoint.auth.iter_mut().map(EndpointAuth::secret_mut))
}

struct VaultKey {
    id: VaultKeyId,
    cipher: XChaCha20Poly1305,
    /// The derived key that authenticates backups.
    backup: [u8; KEY_BYTES],
}

/// Derives a key for another purpose. The result reveals nothing about `key`.
fn derive_key(key: &[u8; KEY_BYTES], label: &[u8]) -> [u8; KEY_BYTES] {
    let mut derived = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    derived.update(label);
    derived.finalize().into_bytes().into()
}

/// Encrypts and decrypts values. Without a key, sealing leaves values plain.
pub struct Vault {
    /// The first key encrypts.
    keys: Vec<VaultKey>,
}

impl Vault {
    #[must_use]
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a [u8; KEY_BYTES]>) -> Self {
        let key = |key: &[u8; KEY_BYTES]| VaultKey {
            id: VaultKeyId::of(key),
            cipher: XChaCha20Poly1305::new(key.into()),
            backup: derive_key(key, BACKUP_LABEL),
        };
        Self { keys: keys.into_iter().map(key).collect() }
    }

    /// The id of the encrypting key.
    #[must_use]
    pub fn sealing_key(&self) -> Option<VaultKeyId> {
        self.keys.first().map(|key| key.id)
    }

    #[must_use]
    pub fn has_key(&self, id: VaultKeyId) -> bool {
        self.keys.iter().any(|key| key.id == id)
    }

    /// The keys that authenticate backups, with their ids. The first one signs new backups.
    pub fn backup_keys(&self) -> impl Iterator<Item = (VaultKeyId, [u8; KEY_BYTES])> {
        self.keys.iter().map(|key| (key.id, key.backup))
    }

    /// Encrypts a value. `nonce` must be random and unused.
    #[must_use]
    pub fn seal(&self, plain: &[u8], context: SealContext<'_>, nonce: [u8; NONCE_BYTES]) -> Sealed {
        let Some(VaultKey { id, cipher, .. }) = self.keys.first() else { return Sealed::Plain(plain.into()) };
        let payload = Payload { msg: plain, aad: &context.associated_data(BOUND_TO_REVISION) };
        let ciphertext = cipher.encrypt(&XNonce::from(nonce), payload);
        let ciphertext = ciphertext.expect("values are far below the cipher's maximum length");
        Sealed::Encrypted([&[BOUND_TO_REVISION], &id.0[..], &nonce, &ciphertext].concat().into())
    }

    /// Decrypts a value, or returns a plain one.
    ///
    /// # Errors
    /// When the key is not configured, or the bytes were not sealed in this context.
    pub fn open(&self, sealed: &Sealed, context: SealContext<'_>) -> Result<Vec<u8>, VaultError> {
        let bytes = match sealed {
            Sealed::Plain(bytes) => return Ok(bytes.to_vec()),
            Sealed::Encrypted(bytes) => bytes,
        };
        let SealedParts { version, key, nonce, ciphertext } =
            SealedParts::read(bytes).ok_or(VaultError::Damaged)?;
        if self.keys.is_empty() {
            return Err(VaultError::NoKey(key));
        }
        let found = self.keys.iter().find(|found| found.id == key).ok_or(VaultError::OtherKey(key))?;
        let payload = Payload { msg: ciphertext, aad: &context.associated_data(version) };
        found.cipher.decrypt(&XNonce::from(nonce), payload).map_err(|_| VaultError::Damaged)
    }

    /// Seals the plain values of an endpoint under its current URL and revision.
    pub fn seal_endpoint(&self, endpoint: &mut Endpoint, nonce: &mut dyn FnMut() -> [u8; NONCE_BYTES]) {
        let sealed: Vec<_> = values(endpoint)
            .map(|(field, value)| match value {
                Sealed::Plain(plain) => self.seal(plain, SealContext::Endpoint(endpoint, field), nonce()),
                Sealed::Encrypted(_) => value.clone(),
            })
            .collect();
        for (value, sealed) in sealed_values_mut(endpoint).zip(sealed) {
            *value = sealed;
        }
    }

    /// Decrypts the values of `changed` in the context of `current`, the version it was copied
    /// from.
    ///
    /// # Errors
    /// When a value does not decrypt in the context of `current`.
    pub fn open_endpoint(&self, changed: &mut Endpoint, current: &Endpoint) -> Result<(), VaultError> {
        for value in sealed_values_mut(changed).filter(|value| matches!(value, Sealed::Encrypted(_))) {
            let (field, sealed) =
                values(current).find(|(_, sealed)| *sealed == value).ok_or(VaultError::Damaged)?;
            *value = Sealed::Plain(self.open(sealed, SealContext::Endpoint(current, field))?.into());
        }
        Ok(())
    }

    /// Checks that every sealed value of the endpoint decrypts.
    ///
    /// # Errors
    /// The first failure.
    pub fn check(&self, endpoint: &Endpoint) -> Result<(), VaultError> {
        values(endpoint).try_for_each(|(field, sealed)| {
            self.open(sealed, SealContext::Endpoint(endpoint, field)).map(drop)
        })
    }

    /// Whether a value is sealed under the first key in the current layout, or plain without keys.
    #[must_use]
    pub fn is_current(&self, sealed: &Sealed) -> bool {
        match sealed {
            Sealed::Plain(_) => self.keys.is_empty(),
            Sealed::Encrypted(bytes) => SealedParts::read(bytes).is_some_and(|parts| {
                parts.version == BOUND_TO_REVISION && Some(parts.key) == self.sealing_key()
            }),
        }
    }
}

#[cfg(test)]
mod tests;

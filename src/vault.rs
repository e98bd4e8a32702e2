//! Encryption at rest: secrets, sensitive header values and private keys under the operator's keys.
//!
//! Owns: the keys, and the layout of encrypted bytes: a version byte, the key's id (first 4 bytes of its SHA-256), a random
//! nonce of 24 bytes, and XChaCha20-Poly1305's output. The first key encrypts, all decrypt. Must never log or show a
//! plain value. Without a key, values stay plain.
//!
//! The associated data binds a value to its place, so it cannot be moved to another one:
//!
//! * Version 2 (written today): the endpoint's id, tenant, URL and revision, and the member with its attributes. An edited
//!   URL or an older ciphertext does not open. The revision is only known to the writer, which seals all values of an
//!   endpoint each time it writes one.
//! * Version 1 (read only): the endpoint's id and the member. The next write of the endpoint replaces it.
//!
//! A person who can write to the disk can still put the whole journal back to an earlier point, or remove its last
//! records: no value on the same disk can prove that a newer one existed. As long as a key that sealed version 1 is
//! configured, that person can also put back a version 1 value from the journal's history; a rotation of the key ends this.

use std::fmt;

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::domain::{Endpoint, Sealed, Secret, SecretKind};

/// Bytes of one of the operator's keys.
pub const KEY_BYTES: usize = 32;
/// Bytes of a nonce; random ones of this length do not repeat.
pub const NONCE_BYTES: usize = 24;
/// Version of the layout that is bound to the endpoint's id alone.
const BOUND_TO_ID: u8 = 1;
/// Version of the layout that is bound to the endpoint's URL and revision, too.
const BOUND_TO_REVISION: u8 = 2;
const ID_BYTES: usize = 4;
const HEAD_BYTES: usize = 1 + ID_BYTES + NONCE_BYTES;
/// What the keys are derived for that authenticate backups.
const BACKUP_LABEL: &[u8] = b"balto backup authentication";
/// Bytes of Poly1305's tag, at the end.
const TAG_BYTES: usize = 16;

/// Tells one of the operator's keys from another, without a hint at the key.
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

/// The parts of encrypted bytes.
struct Parts<'a> {
    version: u8,
    key: VaultKeyId,
    nonce: [u8; NONCE_BYTES],
    hidden: &'a [u8],
}

impl<'a> Parts<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (head, hidden) = bytes.split_at_checked(HEAD_BYTES)?;
        let version = *head.first()?;
        let is_known = is_encrypted(bytes) && hidden.len() >= TAG_BYTES;
        let key = VaultKeyId(head[1..=ID_BYTES].try_into().ok()?);
        let nonce = head[1 + ID_BYTES..].try_into().ok()?;
        is_known.then_some(Self { version, key, nonce, hidden })
    }
}

/// Whether bytes begin as encrypted ones do. JSON and the empty text do not.
#[must_use]
pub fn is_encrypted(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|version| [BOUND_TO_ID, BOUND_TO_REVISION].contains(version))
}

/// The id of the key that a value is encrypted under; `None` when its bytes are damaged.
#[must_use]
pub fn key_id(encrypted: &[u8]) -> Option<VaultKeyId> {
    Parts::read(encrypted).map(|parts| parts.key)
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

/// Where a value belongs; it opens nowhere else.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    Endpoint(&'a Endpoint, Member<'a>),
    /// A remembered answer, by the scope of its idempotency.
    Answer(&'a [u8; 16]),
}

/// What of an endpoint is sealed.
#[derive(Clone, Copy, Debug)]
pub enum Member<'a> {
    Secret(&'a Secret),
    /// By its name in lower case.
    Header(&'a str),
    /// The private key of its client certificate.
    ClientKey,
}

impl Place<'_> {
    /// The associated data.
    fn bytes(self, version: u8) -> Vec<u8> {
        if version == BOUND_TO_ID { self.bytes_of_version_1() } else { self.bytes_of_version_2() }
    }

    fn bytes_of_version_1(self) -> Vec<u8> {
        match self {
            Self::Answer(scope) => [b"answer ", &scope[..]].concat(),
            Self::Endpoint(owner, Member::Secret(_)) => format!("{} secret", owner.id).into_bytes(),
            Self::Endpoint(owner, Member::Header(name)) => format!("{} header {name}", owner.id).into_bytes(),
            Self::Endpoint(owner, Member::ClientKey) => format!("{} client key", owner.id).into_bytes(),
        }
    }

    fn bytes_of_version_2(self) -> Vec<u8> {
        let mut out = vec![BOUND_TO_REVISION];
        match self {
            Self::Answer(scope) => {
                put_text(&mut out, "answer");
                out.extend(scope);
            }
            Self::Endpoint(owner, member) => {
                put_text(&mut out, "endpoint");
                for text in [owner.id.as_str(), owner.tenant.as_str(), &*owner.url] {
                    put_text(&mut out, text);
                }
                out.extend(owner.revision.0.to_be_bytes());
                member.put(&mut out);
            }
        }
        out
    }
}

impl Member<'_> {
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
        }
    }
}

/// With its length before it, so that no two lists of texts have the same bytes.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_be_bytes());
    out.extend(text.as_bytes());
}

/// Every sealed value of an endpoint.
pub fn values(endpoint: &Endpoint) -> impl Iterator<Item = (Member<'_>, &Sealed)> {
    let secrets = endpoint.secrets.iter().map(|secret| (Member::Secret(secret), &secret.key));
    let headers = endpoint.sensitive_headers.iter().map(|(name, value)| (Member::Header(name), value));
    let client_key = endpoint.client_certificate.iter().map(|held| (Member::ClientKey, &held.key));
    secrets.chain(headers).chain(client_key)
}

/// The same values in the same order, to be replaced.
fn values_mut(endpoint: &mut Endpoint) -> impl Iterator<Item = &mut Sealed> {
    let secrets = endpoint.secrets.iter_mut().map(|secret| &mut secret.key);
    let headers = endpoint.sensitive_headers.iter_mut().map(|(_, value)| value);
    secrets.chain(headers).chain(endpoint.client_certificate.iter_mut().map(|held| &mut held.key))
}

struct VaultKey {
    id: VaultKeyId,
    cipher: XChaCha20Poly1305,
    /// Authenticates backups.
    backup: [u8; KEY_BYTES],
}

/// A key for another purpose, which tells nothing of the one that it comes from.
fn derived(key: &[u8; KEY_BYTES], label: &[u8]) -> [u8; KEY_BYTES] {
    let mut derived = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    derived.update(label);
    derived.finalize().into_bytes().into()
}

/// Seals and opens. Without a key it seals nothing.
pub struct Vault {
    /// The first one encrypts.
    keys: Vec<VaultKey>,
}

impl Vault {
    #[must_use]
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a [u8; KEY_BYTES]>) -> Self {
        let key = |key: &[u8; KEY_BYTES]| VaultKey {
            id: VaultKeyId::of(key),
            cipher: XChaCha20Poly1305::new(key.into()),
            backup: derived(key, BACKUP_LABEL),
        };
        Self { keys: keys.into_iter().map(key).collect() }
    }

    /// The id of the key that encrypts.
    #[must_use]
    pub fn sealing_key(&self) -> Option<VaultKeyId> {
        self.keys.first().map(|key| key.id)
    }

    #[must_use]
    pub fn has_key(&self, id: VaultKeyId) -> bool {
        self.keys.iter().any(|key| key.id == id)
    }

    /// The keys that authenticate backups with their ids, the first one signs.
    pub fn backup_keys(&self) -> impl Iterator<Item = (VaultKeyId, [u8; KEY_BYTES])> {
        self.keys.iter().map(|key| (key.id, key.backup))
    }

    /// `nonce` is random and used once.
    #[must_use]
    pub fn seal(&self, plain: &[u8], place: Place<'_>, nonce: [u8; NONCE_BYTES]) -> Sealed {
        let Some(VaultKey { id, cipher, .. }) = self.keys.first() else { return Sealed::Plain(plain.into()) };
        let payload = Payload { msg: plain, aad: &place.bytes(BOUND_TO_REVISION) };
        let hidden = cipher.encrypt(&XNonce::from(nonce), payload);
        let hidden = hidden.expect("values are far below what the cipher takes");
        Sealed::Encrypted([&[BOUND_TO_REVISION], &id.0[..], &nonce, &hidden].concat().into())
    }

    /// # Errors
    /// When it is encrypted and its key is not there, or the bytes are not what was sealed for this place.
    pub fn open(&self, sealed: &Sealed, place: Place<'_>) -> Result<Vec<u8>, VaultError> {
        let bytes = match sealed {
            Sealed::Plain(bytes) => return Ok(bytes.to_vec()),
            Sealed::Encrypted(bytes) => bytes,
        };
        let Parts { version, key, nonce, hidden } = Parts::read(bytes).ok_or(VaultError::Damaged)?;
        if self.keys.is_empty() {
            return Err(VaultError::NoKey(key));
        }
        let known = self.keys.iter().find(|known| known.id == key).ok_or(VaultError::OtherKey(key))?;
        let payload = Payload { msg: hidden, aad: &place.bytes(version) };
        known.cipher.decrypt(&XNonce::from(nonce), payload).map_err(|_| VaultError::Damaged)
    }

    /// Seals the plain values of an endpoint for its URL and revision.
    pub fn seal_endpoint(&self, endpoint: &mut Endpoint, nonce: &mut dyn FnMut() -> [u8; NONCE_BYTES]) {
        let sealed: Vec<_> = values(endpoint)
            .map(|(member, value)| match value {
                Sealed::Plain(plain) => self.seal(plain, Place::Endpoint(endpoint, member), nonce()),
                Sealed::Encrypted(_) => value.clone(),
            })
            .collect();
        for (value, sealed) in values_mut(endpoint).zip(sealed) {
            *value = sealed;
        }
    }

    /// Opens the values of a changed endpoint that were sealed in `current`, which it was made from.
    ///
    /// # Errors
    /// When one cannot be opened there.
    pub fn open_endpoint(&self, changed: &mut Endpoint, current: &Endpoint) -> Result<(), VaultError> {
        for value in values_mut(changed).filter(|value| matches!(value, Sealed::Encrypted(_))) {
            let (member, sealed) =
                values(current).find(|(_, sealed)| *sealed == value).ok_or(VaultError::Damaged)?;
            *value = Sealed::Plain(self.open(sealed, Place::Endpoint(current, member))?.into());
        }
        Ok(())
    }

    /// Whether everything that the endpoint has sealed can be opened.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, endpoint: &Endpoint) -> Result<(), VaultError> {
        values(endpoint)
            .try_for_each(|(member, sealed)| self.open(sealed, Place::Endpoint(endpoint, member)).map(drop))
    }

    /// Whether a value is sealed as a new one would be: under the first key, in the current layout; plain without keys.
    #[must_use]
    pub fn is_current(&self, sealed: &Sealed) -> bool {
        match sealed {
            Sealed::Plain(_) => self.keys.is_empty(),
            Sealed::Encrypted(bytes) => Parts::read(bytes).is_some_and(|parts| {
                parts.version == BOUND_TO_REVISION && Some(parts.key) == self.sealing_key()
            }),
        }
    }
}

#[cfg(test)]
mod tests;

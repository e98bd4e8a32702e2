//! Encryption at rest: secrets, sensitive header values and private keys under the operator's key.
//!
//! Owns: the key, and the layout of encrypted bytes: a version byte (1), the key's id (first 4 bytes of its SHA-256), a
//! random nonce of 24 bytes, and XChaCha20-Poly1305's output. Each value is bound to its endpoint and its use, so that
//! none can be put in the place of another. Must never log or show what it opens. Without a key, values stay plain.

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sha2::{Digest as _, Sha256};

use crate::domain::{Endpoint, EndpointId, Sealed};

/// Bytes of the operator's key.
pub const KEY_BYTES: usize = 32;
/// Bytes of a nonce; random ones of this length do not repeat.
pub const NONCE_BYTES: usize = 24;
/// What encrypted bytes begin with: the version of their layout.
pub const ENCRYPTED: u8 = 1;
const ID_BYTES: usize = 4;
const HEAD_BYTES: usize = 1 + ID_BYTES + NONCE_BYTES;
/// Bytes of Poly1305's tag, at the end.
const TAG_BYTES: usize = 16;
const _: () = assert!(ID_BYTES == 4); // which `key_id` spells out

/// The id of the key that bytes are encrypted under; `None` when they are no encrypted value.
#[must_use]
pub fn key_id(encrypted: &[u8]) -> Option<[u8; ID_BYTES]> {
    let (head, hidden) = encrypted.split_at_checked(HEAD_BYTES)?;
    let is_whole = head[0] == ENCRYPTED && hidden.len() >= TAG_BYTES;
    is_whole.then(|| [head[1], head[2], head[3], head[4]])
}

/// Why a value cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    #[error("it is encrypted, and no key is configured (secrets.key or secrets.key_file)")]
    NoKey,
    #[error("it was encrypted under another key than the configured one")]
    OtherKey,
    #[error("its encrypted bytes are damaged")]
    Damaged,
}

/// Where a value belongs; it opens nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    Secret(&'a EndpointId),
    /// With the header's name in lower case.
    Header(&'a EndpointId, &'a str),
    /// The private key of its client certificate.
    ClientKey(&'a EndpointId),
    /// A remembered answer, by the scope of its idempotency.
    Answer(&'a [u8; 16]),
}

impl Place<'_> {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Secret(owner) => format!("{owner} secret").into_bytes(),
            Self::Header(owner, name) => format!("{owner} header {name}").into_bytes(),
            Self::ClientKey(owner) => format!("{owner} client key").into_bytes(),
            Self::Answer(scope) => [b"answer ", &scope[..]].concat(),
        }
    }
}

/// Seals and opens. Without a key it seals nothing.
pub struct Vault {
    key: Option<(XChaCha20Poly1305, [u8; ID_BYTES])>,
}

impl Vault {
    #[must_use]
    pub fn new(key: Option<&[u8; KEY_BYTES]>) -> Self {
        let key = key.map(|key| {
            let mut id = [0; ID_BYTES];
            id.copy_from_slice(&Sha256::digest(key)[..ID_BYTES]);
            (XChaCha20Poly1305::new(key.into()), id)
        });
        Self { key }
    }

    /// `nonce` is random and used once.
    #[must_use]
    pub fn seal(&self, plain: &[u8], place: Place<'_>, nonce: [u8; NONCE_BYTES]) -> Sealed {
        let Some((cipher, id)) = &self.key else { return Sealed::Plain(plain.into()) };
        let payload = Payload { msg: plain, aad: &place.bytes() };
        let hidden = cipher.encrypt(&XNonce::from(nonce), payload);
        let hidden = hidden.expect("values are far below what the cipher takes");
        Sealed::Encrypted([&[ENCRYPTED], &id[..], &nonce, &hidden].concat().into())
    }

    /// # Errors
    /// When it is encrypted and the key is not the one, or the bytes are not what was sealed for this place.
    pub fn open(&self, sealed: &Sealed, place: Place<'_>) -> Result<Vec<u8>, VaultError> {
        let bytes = match sealed {
            Sealed::Plain(bytes) => return Ok(bytes.to_vec()),
            Sealed::Encrypted(bytes) => bytes,
        };
        let (cipher, id) = self.key.as_ref().ok_or(VaultError::NoKey)?;
        let (head, hidden) = bytes.split_at_checked(HEAD_BYTES).ok_or(VaultError::Damaged)?;
        if head[0] != ENCRYPTED {
            return Err(VaultError::Damaged);
        }
        if head[1..=ID_BYTES] != id[..] {
            return Err(VaultError::OtherKey);
        }
        let mut nonce = [0; NONCE_BYTES];
        nonce.copy_from_slice(&head[1 + ID_BYTES..]);
        let payload = Payload { msg: hidden, aad: &place.bytes() };
        cipher.decrypt(&XNonce::from(nonce), payload).map_err(|_| VaultError::Damaged)
    }

    /// Whether everything that the endpoint has sealed can be opened.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, endpoint: &Endpoint) -> Result<(), VaultError> {
        for secret in &endpoint.secrets {
            self.open(&secret.key, Place::Secret(&endpoint.id))?;
        }
        for (name, value) in &endpoint.sensitive_headers {
            self.open(value, Place::Header(&endpoint.id, name))?;
        }
        if let Some(certificate) = &endpoint.client_certificate {
            self.open(&certificate.key, Place::ClientKey(&endpoint.id))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: [u8; NONCE_BYTES] = [3; NONCE_BYTES];

    fn owner(name: &str) -> EndpointId {
        name.parse().unwrap()
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_only() {
        let vault = Vault::new(Some(&[7; KEY_BYTES]));
        let sealed = vault.seal(b"a secret", Place::Secret(&owner("ep_1")), NONCE);
        let Sealed::Encrypted(bytes) = &sealed else { panic!("{sealed:?}") };
        assert!(!bytes.windows(8).any(|window| window == b"a secret"));
        assert_eq!(vault.open(&sealed, Place::Secret(&owner("ep_1"))), Ok(b"a secret".to_vec()));
        let (one, two) = (owner("ep_1"), owner("ep_2"));
        for place in
            [Place::Secret(&two), Place::Header(&one, "a"), Place::ClientKey(&one), Place::Answer(&[0; 16])]
        {
            assert_eq!(vault.open(&sealed, place), Err(VaultError::Damaged));
        }
    }

    #[test]
    fn a_changed_byte_or_another_key_opens_nothing() {
        let vault = Vault::new(Some(&[7; KEY_BYTES]));
        let Sealed::Encrypted(bytes) = vault.seal(b"a secret", Place::Secret(&owner("ep_1")), NONCE) else {
            panic!("not encrypted")
        };
        let open = |vault: &Vault, bytes: Vec<u8>| {
            vault.open(&Sealed::Encrypted(bytes.into()), Place::Secret(&owner("ep_1")))
        };
        for at in 0..bytes.len() {
            let mut changed = bytes.to_vec();
            changed[at] ^= 1;
            assert!(open(&vault, changed).is_err(), "byte {at}");
            assert!(open(&vault, bytes[..at].to_vec()).is_err(), "cut at {at}");
        }
        assert_eq!(open(&Vault::new(None), bytes.to_vec()), Err(VaultError::NoKey));
        assert_eq!(open(&Vault::new(Some(&[8; KEY_BYTES])), bytes.to_vec()), Err(VaultError::OtherKey));
    }

    #[test]
    fn without_a_key_values_stay_plain_and_a_key_set_later_still_opens_them() {
        let sealed = Vault::new(None).seal(b"x", Place::Secret(&owner("ep_1")), NONCE);
        assert_eq!(sealed, Sealed::Plain((*b"x").into()));
        let later = Vault::new(Some(&[7; KEY_BYTES]));
        assert_eq!(later.open(&sealed, Place::Secret(&owner("ep_1"))), Ok(b"x".to_vec()));
    }

    #[test]
    fn nothing_sealed_is_shown_by_debug() {
        let plain = Sealed::Plain((*b"visible").into());
        assert_eq!(format!("{plain:?}"), "Sealed(..)");
    }
}

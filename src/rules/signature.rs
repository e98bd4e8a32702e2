//! Signatures of requests: Standard Webhooks 1.0.0 (`v1` HMAC-SHA256, `v1a` ed25519), and presets
//! for migrations from other senders.
//!
//! Must sign exactly the bytes that are sent, with the time of the attempt. Some verifiers require
//! more than the specification: elements `v1,<padded base64>`, separated by single spaces, in one
//! header line. The current key comes first.

use std::fmt::{self, Write as _};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer as _;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

pub use custom::{check_content, check_value, masked_signature_headers, signature_headers};

use super::weakness;
use crate::domain::{Secret, SecretKind, SignaturePreset, SignatureScheme, Timestamp};
use crate::limits;

mod custom;

const HMAC_PREFIX: &str = "whsec_";
const SECRET_KEY_PREFIX: &str = "whsk_";
const PUBLIC_KEY_PREFIX: &str = "whpk_";
const SEED_BYTES: usize = ed25519_dalek::SECRET_KEY_LENGTH;

/// Tolerance between the clocks of sender and receiver, as in all reference libraries.
pub const TOLERANCE: Duration = Duration::from_secs(300);

/// Why a secret is rejected. Never contains the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("a secret must begin with whsec_ (HMAC) or whsk_ (ed25519)")]
    Prefix,
    #[error("the text after whsec_ or whsk_ must be standard, padded base64")]
    Base64,
    #[error("a secret must have {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes, not {0}", SECRET_BYTES_MIN = limits::SECRET_BYTES_MIN, SECRET_BYTES_MAX = limits::SECRET_BYTES_MAX)]
    Length(usize),
    #[error("an ed25519 key must have 32 bytes (the seed) or 64 (seed and public key), not {0}")]
    KeyLength(usize),
    #[error("the second half of the ed25519 key is not its public key")]
    KeyHalves,
    #[error("whpk_ is a public key; the secret key begins with whsk_")]
    PublicKey,
    #[error(
        "a secret of this signature preset must be {SECRET_TEXT_BYTES_MIN} to {SECRET_TEXT_BYTES_MAX} printable ASCII characters without spaces around them",
        SECRET_TEXT_BYTES_MIN = limits::SECRET_TEXT_BYTES_MIN, SECRET_TEXT_BYTES_MAX = limits::SECRET_TEXT_BYTES_MAX
    )]
    Text,
    #[error(
        "the secret can be guessed: it is a published example, constant, repeated, a sequence or made of common words; omit it to have one generated, or use random bytes (`whsec_` and the output of `openssl rand -base64 32`)"
    )]
    Guessable,
    #[error("this signature preset cannot use an ed25519 key")]
    NotSymmetric,
    #[error("at most {SECRETS_MAX} secrets can be live; wait until one expires, or use a shorter overlap", SECRETS_MAX = limits::SECRETS_MAX)]
    TooMany,
}

/// An unsealed key. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey {
    pub kind: SecretKind,
    /// HMAC: the key's bytes. Ed25519: the seed. Text: the characters.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({:?}, ..)", self.kind)
    }
}

impl SigningKey {
    /// Parses the text form of a new secret. The `Standard` preset rejects arbitrary text.
    ///
    /// # Errors
    /// When the preset does not accept the secret, or it is guessable.
    pub fn parse(text: &str, preset: SignaturePreset) -> Result<Self, SecretError> {
        let key = match Self::parse_standard(text) {
            Ok(key) => key,
            Err(error) if preset == SignaturePreset::Standard => return Err(error),
            Err(_) => Self::parse_text(text)?,
        };
        key.check(preset)?;
        if weakness::is_guessable(&key.bytes) { Err(SecretError::Guessable) } else { Ok(key) }
    }

    /// As [`Self::parse`], for a key of several schemes.
    ///
    /// # Errors
    /// When a scheme does not accept the secret, or it is guessable.
    pub fn parse_for(text: &str, schemes: &[SignatureScheme]) -> Result<Self, SecretError> {
        let is_text = |scheme: &SignatureScheme| !needs_standard_key(scheme);
        let preset =
            if schemes.iter().all(is_text) { SignaturePreset::Github } else { SignaturePreset::Standard };
        let key = Self::parse(text, preset)?;
        key.check_all(schemes).map(|()| key)
    }

    /// Whether all schemes can sign with this key.
    ///
    /// # Errors
    /// When one cannot.
    pub fn check_all(&self, schemes: &[SignatureScheme]) -> Result<(), SecretError> {
        schemes.iter().try_for_each(|scheme| match scheme {
            SignatureScheme::Preset(preset) => self.check(*preset),
            // As `github`, a custom scheme signs with the text of any symmetric key.
            SignatureScheme::Custom(_) => self.check(SignaturePreset::Github),
        })
    }

    fn parse_standard(text: &str) -> Result<Self, SecretError> {
        if text.starts_with(PUBLIC_KEY_PREFIX) {
            return Err(SecretError::PublicKey);
        }
        let decode = |encoded| STANDARD.decode(encoded).map_err(|_| SecretError::Base64);
        if let Some(encoded) = text.strip_prefix(SECRET_KEY_PREFIX) {
            return Self::ed25519(&decode(encoded)?);
        }
        let bytes = decode(text.strip_prefix(HMAC_PREFIX).ok_or(SecretError::Prefix)?)?;
        if (limits::SECRET_BYTES_MIN..=limits::SECRET_BYTES_MAX).contains(&bytes.len()) {
            Ok(Self { kind: SecretKind::Hmac, bytes })
        } else {
            Err(SecretError::Length(bytes.len()))
        }
    }

    /// The bytes of `whsk_`, undefined by the standard: the seed, optionally with its public key.
    fn ed25519(bytes: &[u8]) -> Result<Self, SecretError> {
        if bytes.len() != SEED_BYTES && bytes.len() != 2 * SEED_BYTES {
            return Err(SecretError::KeyLength(bytes.len()));
        }
        let key = Self { kind: SecretKind::Ed25519, bytes: bytes[..SEED_BYTES].to_vec() };
        if bytes.len() == 2 * SEED_BYTES && key.public_bytes() != bytes.get(SEED_BYTES..).map(<[u8]>::to_vec)
        {
            return Err(SecretError::KeyHalves);
        }
        Ok(key)
    }

    fn parse_text(text: &str) -> Result<Self, SecretError> {
        let legal = (limits::SECRET_TEXT_BYTES_MIN..=limits::SECRET_TEXT_BYTES_MAX).contains(&text.len())
            && text.trim() == text
            && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if legal { Ok(Self { kind: SecretKind::Text, bytes: text.into() }) } else { Err(SecretError::Text) }
    }

    /// Whether the preset can sign with this key.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check(&self, preset: SignaturePreset) -> Result<(), SecretError> {
        match (preset, self.kind) {
            (SignaturePreset::Standard | SignaturePreset::Svix, SecretKind::Text) => Err(SecretError::Prefix),
            (SignaturePreset::Stripe | SignaturePreset::Github, SecretKind::Ed25519) => {
                Err(SecretError::NotSymmetric)
            }
            _ => Ok(()),
        }
    }

    /// Text form of the secret; the inverse of [`Self::parse`].
    #[must_use]
    pub fn text(&self) -> String {
        match self.kind {
            SecretKind::Hmac => format!("{HMAC_PREFIX}{}", STANDARD.encode(&self.bytes)),
            SecretKind::Ed25519 => {
                let public = self.public_bytes().unwrap_or_default();
                format!("{SECRET_KEY_PREFIX}{}", STANDARD.encode([&self.bytes[..], &public].concat()))
            }
            SecretKind::Text => String::from_utf8_lossy(&self.bytes).into_owned(),
        }
    }

    /// Public key for receivers, as `whpk_` and base64. `None` unless ed25519.
    #[must_use]
    pub fn public_text(&self) -> Option<String> {
        self.public_bytes().map(|bytes| format!("{PUBLIC_KEY_PREFIX}{}", STANDARD.encode(bytes)))
    }

    fn public_bytes(&self) -> Option<Vec<u8>> {
        Some(self.pair()?.verifying_key().to_bytes().to_vec())
    }

    fn pair(&self) -> Option<ed25519_dalek::SigningKey> {
        if self.kind != SecretKind::Ed25519 {
            return None;
        }
        Some(ed25519_dalek::SigningKey::from_bytes(self.bytes.get(..SEED_BYTES)?.try_into().ok()?))
    }

    /// One element of `webhook-signature`: `v1,` or `v1a,` and base64, over `id.timestamp.body`.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp_seconds: u64, body: &[u8]) -> String {
        let Some(pair) = self.pair() else { return sign_v1(&self.bytes, id, timestamp_seconds, body) };
        let signed = [format!("{id}.{timestamp_seconds}.").as_bytes(), body].concat();
        format!("v1a,{}", STANDARD.encode(pair.sign(&signed).to_bytes()))
    }
}

/// Whether a scheme signs with the bytes of a `whsec_` or `whsk_` key, and not with a text.
#[must_use]
pub fn needs_standard_key(scheme: &SignatureScheme) -> bool {
    matches!(scheme, SignatureScheme::Preset(SignaturePreset::Standard | SignaturePreset::Svix))
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> impl AsRef<[u8]> + use<> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}

/// One signature: `v1,` and the base64 of the HMAC-SHA256 over `id.timestamp.body`.
#[must_use]
pub fn sign_v1(secret: &[u8], id: &str, timestamp_seconds: u64, body: &[u8]) -> String {
    let head = format!("{id}.{timestamp_seconds}.");
    format!("v1,{}", STANDARD.encode(hmac(secret, &[head.as_bytes(), body])))
}

/// Name and value of the signature header: one element per live key, in order. GitHub's header
/// holds only the signature of the first key.
#[must_use]
pub fn signature_header(
    preset: SignaturePreset,
    keys: &[SigningKey],
    now: Timestamp,
    id: &str,
    body: &[u8],
) -> (&'static str, String) {
    let seconds = now.seconds();
    match preset {
        SignaturePreset::Standard | SignaturePreset::Svix => {
            let signatures: Vec<_> = keys.iter().map(|key| key.sign(id, seconds, body)).collect();
            let is_svix = preset == SignaturePreset::Svix;
            (if is_svix { "svix-signature" } else { "webhook-signature" }, signatures.join(" "))
        }
        SignaturePreset::Stripe => {
            let mut value = format!("t={seconds}");
            for key in keys {
                let head = format!("{seconds}.");
                let digest = hmac(key.text().as_bytes(), &[head.as_bytes(), body]);
                value.push_str(",v1=");
                value.push_str(&hex(digest.as_ref()));
            }
            ("stripe-signature", value)
        }
        SignaturePreset::Github => {
            let digest = keys.first().map(|key| hex(hmac(key.text().as_bytes(), &[body]).as_ref()));
            ("x-hub-signature-256", format!("sha256={}", digest.unwrap_or_default()))
        }
    }
}

/// Whether a secret signs at `now`.
#[must_use]
pub fn is_live(secret: &Secret, now: Timestamp) -> bool {
    secret.expires_at.is_none_or(|at| at > now)
}

/// Rotates to a new secret, followed by the old ones. Those expire after the overlap, or earlier if
/// their expiry is earlier. `is_new` recognizes old copies of the new secret, which are dropped.
///
/// # Errors
/// When more than [`limits::SECRETS_MAX`] secrets would be live.
pub fn rotate(
    secrets: &[Secret],
    new: Secret,
    is_new: impl Fn(&Secret) -> bool,
    overlap: Duration,
    now: Timestamp,
) -> Result<Vec<Secret>, SecretError> {
    let until = now.plus(overlap);
    let mut rotated = vec![new];
    for secret in secrets {
        let expires_at = secret.expires_at.map_or(until, |at| at.min(until));
        if expires_at > now && !is_new(secret) {
            rotated.push(Secret { expires_at: Some(expires_at), ..secret.clone() });
        }
    }
    if rotated.len() > limits::SECRETS_MAX { Err(SecretError::TooMany) } else { Ok(rotated) }
}

/// Whether a header holds a valid `v1` signature, as a receiver checks it.
#[must_use]
pub fn verify(secret: &[u8], id: &str, timestamp: &str, body: &[u8], header: &str, now: Timestamp) -> bool {
    let Some(seconds) = timestamp.parse::<u64>().ok().filter(|seconds| seconds.to_string() == timestamp)
    else {
        return false;
    };
    if now.seconds().abs_diff(seconds) > TOLERANCE.as_secs() {
        return false;
    }
    let expected = sign_v1(secret, id, seconds, body);
    header.split(' ').any(|candidate| bool::from(candidate.as_bytes().ct_eq(expected.as_bytes())))
}

#[cfg(test)]
mod tests;

//! Standard Webhooks signatures, scheme `v1` (Standard Webhooks 1.0.0, "Signature scheme").

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::domain::{Secret, Timestamp};
use crate::limits;

const PREFIX: &str = "whsec_";

/// How far a receiver's clock and the sender's may differ, as all reference libraries have it.
pub const TOLERANCE: Duration = Duration::from_secs(300);

/// Why a secret is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("a secret begins with whsec_")]
    Prefix,
    #[error("what follows whsec_ must be standard, padded base64")]
    Base64,
    #[error("a secret has {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes, not {0}", SECRET_BYTES_MIN = limits::SECRET_BYTES_MIN, SECRET_BYTES_MAX = limits::SECRET_BYTES_MAX)]
    Length(usize),
    #[error("at most {SECRETS_MAX} secrets can be live; wait until one expires, or use a shorter overlap", SECRETS_MAX = limits::SECRETS_MAX)]
    TooMany,
}

/// # Errors
/// When it is not `whsec_` and 24 to 64 bytes in standard, padded base64.
pub fn parse_secret(text: &str) -> Result<Vec<u8>, SecretError> {
    let bytes = STANDARD.decode(text.strip_prefix(PREFIX).ok_or(SecretError::Prefix)?);
    let bytes = bytes.map_err(|_| SecretError::Base64)?;
    if (limits::SECRET_BYTES_MIN..=limits::SECRET_BYTES_MAX).contains(&bytes.len()) {
        Ok(bytes)
    } else {
        Err(SecretError::Length(bytes.len()))
    }
}

#[must_use]
pub fn format_secret(bytes: &[u8]) -> String {
    format!("{PREFIX}{}", STANDARD.encode(bytes))
}

/// One signature: `v1,` and the base64 of the HMAC-SHA256 over `id.timestamp.body`.
#[must_use]
pub fn sign_v1(secret: &[u8], id: &str, timestamp_seconds: u64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(format!("{id}.{timestamp_seconds}.").as_bytes());
    mac.update(body);
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

/// The header: a signature for each live secret, the current one first, one space between.
#[must_use]
pub fn signature_header(secrets: &[Secret], now: Timestamp, id: &str, body: &[u8]) -> String {
    let live = secrets.iter().filter(|secret| secret.expires_at.is_none_or(|at| at > now));
    let signatures: Vec<_> = live.map(|secret| sign_v1(&secret.bytes, id, now.seconds(), body)).collect();
    signatures.join(" ")
}

/// The secrets after a rotation: the new one, then those that still sign until the overlap ends.
///
/// # Errors
/// When too many would be live.
pub fn rotate(
    secrets: &[Secret],
    new: Vec<u8>,
    overlap: Duration,
    now: Timestamp,
) -> Result<Vec<Secret>, SecretError> {
    let until = now.plus(overlap);
    let mut rotated = vec![Secret { bytes: new, expires_at: None }];
    for secret in secrets {
        let expires_at = secret.expires_at.map_or(until, |at| at.min(until));
        if expires_at > now {
            rotated.push(Secret { bytes: secret.bytes.clone(), expires_at: Some(expires_at) });
        }
    }
    if rotated.len() > limits::SECRETS_MAX { Err(SecretError::TooMany) } else { Ok(rotated) }
}

/// Whether a header holds a valid `v1` signature, as a receiver checks it.
#[must_use]
pub fn verify(secret: &[u8], id: &str, timestamp: &str, body: &[u8], header: &str, now: Timestamp) -> bool {
    let Ok(seconds) = timestamp.parse::<u64>() else { return false };
    if now.seconds().abs_diff(seconds) > TOLERANCE.as_secs() {
        return false;
    }
    let expected = sign_v1(secret, id, seconds, body);
    header.split(' ').any(|candidate| bool::from(candidate.as_bytes().ct_eq(expected.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn key(text: &str) -> Vec<u8> {
        parse_secret(text).unwrap()
    }

    #[test]
    fn published_vectors_come_out() {
        let tv1 =
            sign_v1(&key(SECRET), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(tv1, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let tv2 = sign_v1(
            &key("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"),
            "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
            1_649_367_553,
            br#"{"email":"test@example.com","username":"test_user"}"#,
        );
        assert_eq!(tv2, "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=");
    }

    #[test]
    fn both_secrets_sign_during_the_overlap_with_one_space_between() {
        let now = Timestamp::from_millis(1_000_000);
        let first = vec![Secret { bytes: vec![1; 24], expires_at: None }];
        let both = rotate(&first, vec![2; 24], Duration::from_secs(10), now).unwrap();
        let header = signature_header(&both, now, "evt_1", b"{}");
        let expected = format!(
            "{} {}",
            sign_v1(&[2; 24], "evt_1", 1_000, b"{}"),
            sign_v1(&[1; 24], "evt_1", 1_000, b"{}")
        );
        assert_eq!(header, expected);
        let later = now.plus(Duration::from_secs(10));
        assert_eq!(signature_header(&both, later, "evt_1", b"{}"), sign_v1(&[2; 24], "evt_1", 1_010, b"{}"));
        let once_more = rotate(&both, vec![3; 24], Duration::from_secs(86_400), now).unwrap();
        assert_eq!(once_more[2].expires_at, both[1].expires_at, "an overlap never grows");
        let mut many = first;
        for _ in 1..limits::SECRETS_MAX {
            many = rotate(&many, vec![4; 24], Duration::from_secs(10), now).unwrap();
        }
        assert_eq!(rotate(&many, vec![5; 24], Duration::from_secs(10), now), Err(SecretError::TooMany));
    }

    #[test]
    fn the_reference_library_verifies_what_we_sign() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let secrets = [
            Secret { bytes: vec![9; 32], expires_at: None },
            Secret { bytes: key(SECRET), expires_at: None },
        ];
        let body = br#"{"type":"order.paid","data":{"orderId":42}}"#;
        let header = signature_header(&secrets, Timestamp::from_millis(now * 1000), "evt_1", body);
        let webhook = standardwebhooks::Webhook::new(SECRET).unwrap();
        let expected = webhook.sign("evt_1", i64::try_from(now).unwrap(), body).unwrap();
        assert!(header.split(' ').any(|signature| signature == expected), "{header} lacks {expected}");
    }

    #[test]
    fn what_is_wrong_does_not_verify() {
        let body = br#"{"test": 2432232314}"#;
        let at = Timestamp::from_millis(1_614_265_330_000);
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        let good = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let rotated = format!("v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc= v2,Ceo5 {good} v1,Ceo5");
        assert!(verify(&key(SECRET), id, "1614265330", body, good, at));
        assert!(verify(&key(SECRET), id, "1614265330", body, &rotated, at));
        for header in ["v1,", &good[..8], "", "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc="] {
            assert!(!verify(&key(SECRET), id, "1614265330", body, header, at), "{header:?}");
        }
        assert!(!verify(&key(SECRET), id, "soon", body, good, at));
        assert!(!verify(&key(SECRET), id, "1614265330", body, good, at.plus(Duration::from_secs(301))));
        assert!(!verify(
            &key(SECRET),
            id,
            "1614265330",
            body,
            good,
            Timestamp::from_millis(1_614_265_029_000)
        ));
        assert!(!verify(&key(SECRET), id, "1614265330", b"{}", good, at));
    }

    #[test]
    fn secrets_follow_the_standard() {
        assert_eq!(format_secret(&key(SECRET)), SECRET);
        assert_eq!(parse_secret("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), Err(SecretError::Prefix));
        assert_eq!(parse_secret("whsec_!!"), Err(SecretError::Base64));
        assert_eq!(parse_secret(&format_secret(&[1; 23])), Err(SecretError::Length(23)));
        assert_eq!(parse_secret(&format_secret(&[1; 65])), Err(SecretError::Length(65)));
    }
}

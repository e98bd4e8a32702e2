//! Signatures that an endpoint describes: placeholders, checks and values.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Sha256, Sha512};

use super::{SigningKey, hex, signature_header};
use crate::domain::{
    CustomSignature, SignatureAlgorithm, SignatureEncoding, SignaturePreset, SignatureScheme, Timestamp,
};
use crate::limits;

const ID: &str = "{id}";
const TIMESTAMP: &str = "{timestamp}";
const BODY: &str = "{body}";
const SIGNATURE: &str = "{signature}";

/// Checks the template of the signed content: one `{body}`, and any `{id}` and `{timestamp}`.
///
/// # Errors
/// The reason, as a message for the client.
pub fn check_content(text: &str) -> Result<(), String> {
    check_placeholders(text, BODY)
}

/// Checks the template of the header's value: one `{signature}`, and any `{id}` and `{timestamp}`.
///
/// # Errors
/// The reason, as a message for the client.
pub fn check_value(text: &str) -> Result<(), String> {
    check_placeholders(text, SIGNATURE)
}

fn check_placeholders(text: &str, required: &str) -> Result<(), String> {
    if text.len() > limits::SIGNATURE_TEMPLATE_BYTES_MAX {
        return Err(format!("at most {} bytes", limits::SIGNATURE_TEMPLATE_BYTES_MAX));
    }
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) || text.trim() != text {
        return Err("must be printable ASCII without spaces around it".to_owned());
    }
    if text.matches(required).count() != 1 {
        return Err(format!("must contain `{required}` once"));
    }
    let rest = text.replacen(required, "", 1).replace(ID, "").replace(TIMESTAMP, "");
    if rest.contains(['{', '}']) {
        return Err(format!("the placeholders are `{ID}`, `{TIMESTAMP}` and `{required}`"));
    }
    Ok(())
}

fn filled(text: &str, id: &str, seconds: u64) -> String {
    text.replace(ID, id).replace(TIMESTAMP, &seconds.to_string())
}

fn mac<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

impl CustomSignature {
    /// The header's value: one signature per key if there is a separator, otherwise of the first.
    fn sign(&self, keys: &[SigningKey], seconds: u64, id: &str, body: &[u8]) -> String {
        let (before, after) = self.template.split_once(BODY).unwrap_or(("", ""));
        let (before, after) = (filled(before, id, seconds), filled(after, id, seconds));
        let parts = [before.as_bytes(), body, after.as_bytes()];
        let value = |key: &SigningKey| {
            let key = key.text();
            let digest = match self.algorithm {
                SignatureAlgorithm::Sha256 => mac::<Hmac<Sha256>>(key.as_bytes(), &parts),
                SignatureAlgorithm::Sha512 => mac::<Hmac<Sha512>>(key.as_bytes(), &parts),
                SignatureAlgorithm::Sha1 => mac::<Hmac<Sha1>>(key.as_bytes(), &parts),
            };
            let signature = match self.encoding {
                SignatureEncoding::Hex => hex(&digest),
                SignatureEncoding::Base64 => STANDARD.encode(digest),
            };
            filled(&self.value, id, seconds).replace(SIGNATURE, &signature)
        };
        let signing = if self.separator.is_some() { keys } else { &keys[..keys.len().min(1)] };
        let values: Vec<_> = signing.iter().map(value).collect();
        values.join(self.separator.as_deref().unwrap_or_default())
    }
}

/// Names and values of the signature headers of all schemes.
#[must_use]
pub fn signature_headers(
    schemes: &[SignatureScheme],
    keys: &[SigningKey],
    now: Timestamp,
    id: &str,
    body: &[u8],
) -> Vec<(Cow<'static, str>, String)> {
    headers_of(schemes, now, id, |scheme| match scheme {
        SignatureScheme::Preset(preset) => {
            let (name, value) = signature_header(*preset, keys, now, id, body);
            (name.into(), value)
        }
        SignatureScheme::Custom(custom) => {
            (custom.header.to_ascii_lowercase().into(), custom.sign(keys, now.seconds(), id, body))
        }
    })
}

/// The same headers, with this mask in place of each signature.
#[must_use]
pub fn masked_signature_headers(
    schemes: &[SignatureScheme],
    now: Timestamp,
    id: &str,
    mask: &str,
) -> Vec<(Cow<'static, str>, String)> {
    headers_of(schemes, now, id, |scheme| {
        let name = match scheme {
            SignatureScheme::Preset(preset) => signature_header(*preset, &[], now, id, &[]).0.into(),
            SignatureScheme::Custom(custom) => custom.header.to_ascii_lowercase().into(),
        };
        (name, mask.to_owned())
    })
}

fn headers_of(
    schemes: &[SignatureScheme],
    now: Timestamp,
    id: &str,
    signed: impl Fn(&SignatureScheme) -> (Cow<'static, str>, String),
) -> Vec<(Cow<'static, str>, String)> {
    let mut headers = Vec::with_capacity(schemes.len());
    for scheme in schemes {
        if matches!(scheme, SignatureScheme::Preset(SignaturePreset::Svix)) {
            headers.push(("svix-id".into(), id.to_owned()));
            headers.push(("svix-timestamp".into(), now.seconds().to_string()));
        }
        headers.push(signed(scheme));
    }
    headers
}

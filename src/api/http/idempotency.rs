//! `Idempotency-Key`: repeating a request returns the original response.
//!
//! A key is scoped to its tenant and route. A second request while the first is in progress gets a
//! 409. The response is committed with its effect; only that of a cancellation, which can be
//! repeated, is committed afterwards. An event of a batch derives its key from the batch's key and
//! its index. Bodies are compared byte for byte: comparing JSON would need a canonical form for
//! numbers of any size and for duplicate members.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use axum::http::HeaderMap;
use sha2::{Digest, Sha256};

use crate::api::Call;
use crate::api::http::problem::Problem;
use crate::api::http::reply::Reply;
use crate::api::http::response::Success;
use crate::api::routes::Repeat;
use crate::api::v1::cloudevents;
use crate::context::responses::Remembered;
use crate::domain::Idempotency;
use crate::limits;

const HEADER: &str = "idempotency-key";
const SHARDS: usize = 16;

/// The scopes of requests in progress.
#[derive(Default)]
pub struct InFlight {
    shards: [Mutex<HashSet<[u8; 16]>>; SHARDS],
}

impl InFlight {
    fn shard(&self, scope: [u8; 16]) -> &Mutex<HashSet<[u8; 16]>> {
        &self.shards[usize::from(scope[0]) % SHARDS]
    }

    /// # Errors
    /// [`Problem::RequestInFlight`] while another request holds the scope.
    pub fn enter(&self, scope: [u8; 16]) -> Result<InFlightGuard<'_>, Problem> {
        let fresh = self.shard(scope).lock().unwrap_or_else(PoisonError::into_inner).insert(scope);
        if fresh { Ok(InFlightGuard { set: self, scope }) } else { Err(Problem::RequestInFlight) }
    }
}

/// Releases its scope on drop.
pub struct InFlightGuard<'a> {
    set: &'a InFlight,
    scope: [u8; 16],
}

impl Drop for InFlightGuard<'_> {
    fn drop(&mut self) {
        self.set.shard(self.scope).lock().unwrap_or_else(PoisonError::into_inner).remove(&self.scope);
    }
}

/// Parses the request's key: a structured-field string, or bare.
///
/// # Errors
/// 400 for a duplicate header, or unless the key has 1 to [`limits::IDEMPOTENCY_KEY_BYTES_MAX`]
/// visible ASCII characters.
pub fn parse_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let malformed = |why: &str| Problem::Malformed(format!("Idempotency-Key: {why}"));
    let mut values = headers.get_all(HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(malformed("duplicate header"));
    }
    let value = value.to_str().map_err(|_| malformed("not visible ASCII"))?.trim();
    let key = match value.strip_prefix('"') {
        None => value.to_owned(),
        Some(rest) => unquote(rest).ok_or_else(|| malformed("malformed quoted string"))?,
    };
    let visible = key.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if key.is_empty() || key.len() > limits::IDEMPOTENCY_KEY_BYTES_MAX || !visible {
        return Err(malformed("must be 1 to 255 visible ASCII characters"));
    }
    Ok(Some(key))
}

/// Parses a structured-field string after its opening quote (RFC 8941, section 3.3.3).
fn unquote(rest: &str) -> Option<String> {
    let mut key = String::new();
    let mut chars = rest.chars();
    loop {
        match chars.next()? {
            '"' => return chars.as_str().is_empty().then_some(key),
            '\\' => key.push(chars.next().filter(|next| matches!(next, '"' | '\\'))?),
            other => key.push(other),
        }
    }
}

/// First 16 bytes of SHA-256 over the length-prefixed parts.
#[must_use]
pub fn scope(tenant: &str, route: &str, key: &str, index: Option<usize>) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for part in [tenant.as_bytes(), route.as_bytes(), key.as_bytes()] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    if let Some(index) = index {
        hasher.update((index as u64).to_be_bytes());
    }
    truncate(&hasher.finalize())
}

/// First 16 bytes of the body's SHA-256.
#[must_use]
pub fn fingerprint(body: &[u8]) -> [u8; 16] {
    truncate(&Sha256::digest(body))
}

fn truncate(hash: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&hash[..16]);
    out
}

impl Call {
    /// The request's idempotency key in `tenant`, and the guard of its scope.
    ///
    /// # Errors
    /// 400 for a malformed key, 409 while the first request is in progress.
    pub fn idempotency(
        &self,
        tenant: &str,
    ) -> Result<(Option<Idempotency>, Option<InFlightGuard<'_>>), Problem> {
        debug_assert_eq!(self.route.repeat, Repeat::Stored, "{} stores responses", self.route.operation);
        let Some(key) = parse_key(&self.headers)? else { return Ok((None, None)) };
        let route = format!("POST {}", self.path);
        let scope = scope(tenant, &route, &key, None);
        let guard = self.api.in_flight.enter(scope)?;
        let expires_at = Some(self.api.context.now().wall.plus(self.config.idempotency_ttl));
        let fingerprint = match self.media {
            cloudevents::BINARY => fingerprint(&cloudevents::canonical_bytes(&self.headers, &self.body)),
            _ => fingerprint(&self.body),
        };
        let idempotency = Idempotency { scope, fingerprint, expires_at };
        Ok((Some(idempotency), Some(guard)))
    }

    /// Replays the stored response of the key, or runs `act`, which commits its response.
    ///
    /// # Errors
    /// As [`Self::idempotency`], 422 when the key was used with another body, and those of `act`.
    pub async fn run_once<const STATUS: u16, T>(
        &self,
        tenant: &str,
        act: impl AsyncFnOnce(Option<Idempotency>) -> Result<Success<STATUS, T>, Problem>,
    ) -> Result<Success<STATUS, T>, Problem> {
        let (idempotency, _guard) = self.idempotency(tenant)?;
        if let Some(idempotency) = &idempotency {
            match self.api.context.stored_response(idempotency).await? {
                Remembered::Nothing => {}
                Remembered::Same(answer) => {
                    return Ok(Success::from_reply(Reply::replay(&answer, &self.path)));
                }
                Remembered::Mismatch => return Err(Problem::IdempotencyMismatch),
            }
        }
        act(idempotency).await
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn key_header(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        headers
    }

    #[test]
    fn quoted_and_bare_keys_are_equal() {
        assert_eq!(parse_key(&key_header("abc-1")).unwrap().as_deref(), Some("abc-1"));
        assert_eq!(parse_key(&key_header("\"abc-1\"")).unwrap().as_deref(), Some("abc-1"));
        assert_eq!(parse_key(&key_header(r#""a\"b\\c""#)).unwrap().as_deref(), Some(r#"a"b\c"#));
        assert_eq!(parse_key(&HeaderMap::new()).unwrap(), None);
        assert!(parse_key(&key_header(&"k".repeat(255))).is_ok());
    }

    #[test]
    fn bad_keys_are_rejected() {
        for bad in ["", "\"\"", "\"abc", "\"abc\"x", "\"a\\nb\"", "kö", &"k".repeat(256)] {
            assert_eq!(parse_key(&key_header(bad)).unwrap_err().status(), 400, "{bad:?}");
        }
        let mut duplicate = key_header("a");
        duplicate.append(HEADER, HeaderValue::from_static("b"));
        assert!(parse_key(&duplicate).is_err());
    }

    #[test]
    fn scopes_of_different_parts_differ() {
        assert_ne!(scope("a", "bc", "d", None), scope("ab", "c", "d", None));
        assert_ne!(scope("a", "b", "c", None), scope("a", "b", "c", Some(0)));
        assert_eq!(scope("a", "b", "c", Some(1)), scope("a", "b", "c", Some(1)));
    }

    #[test]
    fn second_request_is_rejected_while_the_first_is_in_flight() {
        let set = InFlight::default();
        let guard = set.enter([7; 16]).ok();
        assert_eq!(set.enter([7; 16]).err(), Some(Problem::RequestInFlight));
        assert!(set.enter([8; 16]).is_ok());
        drop(guard);
        assert!(set.enter([7; 16]).is_ok());
    }
}

//! Answered requests (`I`) and their expiry times (`J`).

use std::ops::ControlFlow;

use super::rows::{Key, Rows, after_prefix, u64_at};
use crate::codec::{Malformed, Reader, put_varint};
use crate::domain::{Idempotency, Position, Timestamp};

const HOUR_MILLIS: u64 = 3_600_000;

/// An answered request: the position of its answer and the hash of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub position: Position,
    pub fingerprint: [u8; 16],
    pub expires_at: Option<Timestamp>,
}

/// Hour of an expiry time, from the Unix epoch: part of the `J` key.
pub(super) fn hour_of(at: Timestamp) -> u64 {
    at.millis() / HOUR_MILLIS
}

/// Whether a `J` row has the expiry of this request.
pub(super) fn has_expiry(rows: &dyn Rows, scope: &[u8], at: Timestamp) -> bool {
    let prefix = Key::new(b'J').u64(hour_of(at)).0;
    let mut found = false;
    rows.scan(&prefix, &after_prefix(&prefix), &mut |_, scopes| {
        found |= scopes.chunks(scope.len()).any(|known| known == scope);
        if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    found
}

fn key(scope: &[u8; 16]) -> Vec<u8> {
    Key::new(b'I').bytes(scope).0
}

pub fn known(rows: &dyn Rows, scope: &[u8; 16]) -> Option<Known> {
    decode(&rows.get(&key(scope))?)
}

pub(super) fn decode(value: &[u8]) -> Option<Known> {
    let read = || -> Result<Known, Malformed> {
        let mut reader = Reader::new(value);
        let position = Position(reader.get_varint()?);
        let expires_at = Some(reader.get_varint()?).filter(|millis| *millis != 0).map(Timestamp::from_millis);
        let fingerprint = reader.get_array::<16>()?;
        Ok(Known { position, fingerprint, expires_at })
    };
    read().ok()
}

pub fn remember(rows: &mut dyn Rows, checkpoint: u64, idempotency: &Idempotency, position: Position) {
    let mut value = Vec::with_capacity(32);
    put_varint(&mut value, position.0);
    put_varint(&mut value, idempotency.expires_at.map_or(0, Timestamp::millis));
    value.extend_from_slice(&idempotency.fingerprint);
    rows.put(&key(&idempotency.scope), value);
    if let Some(at) = idempotency.expires_at {
        let hour = Key::new(b'J').u64(hour_of(at)).u64(checkpoint).0;
        rows.append(&hour, &idempotency.scope);
    }
}

/// Deletes a request if its answer is at this position.
pub fn forget(rows: &mut dyn Rows, scope: &[u8; 16], position: Position) {
    if known(rows, scope).is_some_and(|known| known.position == position) {
        rows.remove(&key(scope));
    }
}

/// Deletes one block of requests that expired before `now`. Returns whether there was one.
pub fn forget_expired(rows: &mut dyn Rows, now: Timestamp) -> bool {
    let mut block = None;
    let to = Key::new(b'J').u64(hour_of(now)).0;
    rows.scan(b"J", &to, &mut |key, value| {
        debug_assert!(u64_at(key, 1) < hour_of(now));
        block = Some((key.to_vec(), value.to_vec()));
        ControlFlow::Break(())
    });
    let Some((block_key, scopes)) = block else { return false };
    for scope in scopes.chunks_exact(16) {
        let scope: [u8; 16] = scope.try_into().expect("chunks of 16");
        // A later request may use the scope again.
        if known(rows, &scope).is_some_and(|known| known.expires_at.is_some_and(|at| at <= now)) {
            rows.remove(&key(&scope));
        }
    }
    rows.remove(&block_key);
    true
}

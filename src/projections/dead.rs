//! Dead letters in order of death: all (`X`), those of an endpoint (`x`), and those of an owner
//! (`o`).
//!
//! The owner is the event's tenant, or `*` for an endpoint of all tenants. Invariant: each letter
//! has one row of each kind. Only the `X` row has its content, the others are an index. So a list
//! of one endpoint or tenant does not pass over the letters of others.

use std::ops::ControlFlow;

use super::rows::{Key, Rows, after_prefix, endpoint_at, u64_at};
use super::states::{reason, reason_code};
use crate::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::domain::{DeadReason, DeliveryKey, EndpointNumber, Position, Tenant, Timestamp};
use crate::failpoints::{self, Mutation};

/// Bytes of a row's key that name a letter: death, event and endpoint.
const NAMED_BYTES: usize = 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    pub delivery: DeliveryKey,
    /// Position of the record that ended the delivery.
    pub death: Position,
    pub died_at: Timestamp,
    pub reason: DeadReason,
    pub tenant: Box<str>,
    pub event_type: Box<str>,
}

/// Which letters to visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LettersOf<'a> {
    All,
    Endpoint(EndpointNumber),
    Owner(&'a str),
}

fn key(death: Position, delivery: DeliveryKey) -> Vec<u8> {
    Key::new(b'X').position(death).position(delivery.event).endpoint(delivery.endpoint).0
}

fn endpoint_key(death: Position, delivery: DeliveryKey) -> Vec<u8> {
    Key::new(b'x').endpoint(delivery.endpoint).position(death).position(delivery.event).0
}

fn owner_prefix(owner: &str) -> Key {
    Key::new(b'o').bytes(owner.as_bytes()).bytes(&[0])
}

fn owner_key(owner: &str, death: Position, delivery: DeliveryKey) -> Vec<u8> {
    owner_prefix(owner).position(death).position(delivery.event).endpoint(delivery.endpoint).0
}

/// The owner of a delivery of an event of this tenant.
fn owner(tenant: &str, is_shared: bool) -> &str {
    if is_shared { Tenant::EVERY } else { tenant }
}

/// Adds a letter. `is_shared`: its endpoint takes the events of all tenants.
pub fn put(rows: &mut dyn Rows, letter: &Letter, is_shared: bool) {
    let mut value = Vec::with_capacity(64);
    put_varint(&mut value, letter.died_at.millis());
    value.push(reason_code(letter.reason));
    put_bytes(&mut value, letter.tenant.as_bytes());
    put_bytes(&mut value, letter.event_type.as_bytes());
    rows.put_new(&key(letter.death, letter.delivery), value);
    rows.put_new(&endpoint_key(letter.death, letter.delivery), Vec::new());
    if !failpoints::is_active(Mutation::ForgetOwner) || !is_shared {
        let owner = owner(&letter.tenant, is_shared);
        rows.put_new(&owner_key(owner, letter.death, letter.delivery), Vec::new());
    }
}

/// Removes the letter of a delivery. `is_shared` as for [`put`].
pub fn remove(rows: &mut dyn Rows, death: Position, delivery: DeliveryKey, is_shared: bool) {
    if let Some(letter) = get(rows, death, delivery) {
        rows.remove(&owner_key(owner(&letter.tenant, is_shared), death, delivery));
    }
    rows.remove(&endpoint_key(death, delivery));
    rows.remove(&key(death, delivery));
}

fn get(rows: &dyn Rows, death: Position, delivery: DeliveryKey) -> Option<Letter> {
    let key = key(death, delivery);
    decode(&key, &rows.get(&key)?).ok()
}

fn decode(key: &[u8], value: &[u8]) -> Result<Letter, Malformed> {
    let mut reader = Reader::new(value);
    Ok(Letter {
        death: Position(u64_at(key, 1)),
        delivery: DeliveryKey { event: Position(u64_at(key, 9)), endpoint: endpoint_at(key, 17) },
        died_at: Timestamp::from_millis(reader.get_varint()?),
        reason: reason(reader.get_u8()?)?,
        tenant: reader.get_str()?.into(),
        event_type: reader.get_str()?.into(),
    })
}

/// The letter that a row of the index names. `None` for a malformed key.
pub(super) fn named(key: &[u8]) -> Option<(Position, DeliveryKey)> {
    let of_endpoint = |rest: &[u8]| {
        let delivery = DeliveryKey { event: Position(u64_at(rest, 12)), endpoint: endpoint_at(rest, 0) };
        (Position(u64_at(rest, 4)), delivery)
    };
    let of_owner = |rest: &[u8]| {
        let delivery = DeliveryKey { event: Position(u64_at(rest, 8)), endpoint: endpoint_at(rest, 16) };
        (Position(u64_at(rest, 0)), delivery)
    };
    let (before, rest) = key.split_last_chunk::<NAMED_BYTES>()?;
    match before {
        [b'x'] => Some(of_endpoint(rest)),
        [b'o', owner @ .., 0] if std::str::from_utf8(owner).is_ok() => Some(of_owner(rest)),
        _ => None,
    }
}

/// Visits dead letters older than `before` (all if `None`), newest first.
pub fn newest_first(
    rows: &dyn Rows,
    of: LettersOf<'_>,
    before: Option<(Position, DeliveryKey)>,
    visit: &mut dyn FnMut(Letter) -> ControlFlow<()>,
) {
    let prefix = match of {
        LettersOf::All => Key::new(b'X'),
        LettersOf::Endpoint(endpoint) => Key::new(b'x').endpoint(endpoint),
        LettersOf::Owner(owner) => owner_prefix(owner),
    };
    let to = before.map_or_else(
        || after_prefix(&prefix.0),
        |(death, delivery)| match of {
            LettersOf::All => key(death, delivery),
            LettersOf::Owner(owner) => owner_key(owner, death, delivery),
            LettersOf::Endpoint(endpoint) => {
                let mut to = endpoint_key(death, DeliveryKey { endpoint, ..delivery });
                // Of one death and event, the letter of a lower endpoint is the older one.
                to.extend((endpoint < delivery.endpoint).then_some(0));
                to
            }
        },
    );
    rows.scan_back(&prefix.0, &to, &mut |key, value| {
        let letter = match of {
            LettersOf::All => decode(key, value).ok(),
            _ => named(key).and_then(|(death, delivery)| get(rows, death, delivery)),
        };
        letter.map_or(ControlFlow::Continue(()), &mut *visit)
    });
}

#[cfg(test)]
mod tests;

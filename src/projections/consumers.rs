//! Places of consumers (`Q`): how far each has come, and the records that say so.
//!
//! A rebuild needs the last record with the consumer's definition, and the last move after it.

use std::ops::ControlFlow;

use super::rows::{Key, Rows, after_prefix};
use crate::codec::{Malformed, Reader, put_varint};
use crate::domain::{Consumer, ConsumerKey, ConsumerPlace, Position, Timestamp};
use crate::failpoints::{self, Mutation};

const TAG: u8 = b'Q';

/// A consumer's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumerRow {
    /// Position of the record with its definition.
    pub defined: Position,
    /// Position of the record of its last move since then; 0: none.
    pub moved: Position,
    pub place: ConsumerPlace,
}

/// The separator of tenant and name is a byte that neither can contain.
fn key(consumer: &ConsumerKey) -> Vec<u8> {
    let tenant = consumer.tenant_text().as_bytes();
    Key::new(TAG).bytes(tenant).bytes(&[0]).bytes(consumer.name.as_str().as_bytes()).0
}

#[must_use]
pub fn row(rows: &dyn Rows, consumer: &ConsumerKey) -> Option<ConsumerRow> {
    decode(&rows.get(&key(consumer))?).ok()
}

/// All consumers with their rows, by tenant and name.
#[must_use]
pub fn all(rows: &dyn Rows) -> Vec<(ConsumerKey, ConsumerRow)> {
    let mut all = Vec::new();
    rows.scan(&[TAG], &after_prefix(&[TAG]), &mut |key, value| {
        all.extend(named(key).zip(decode(value).ok()));
        ControlFlow::Continue(())
    });
    all
}

/// The consumer of a row's key.
fn named(key: &[u8]) -> Option<ConsumerKey> {
    let (tenant, name) = std::str::from_utf8(key.get(1..)?).ok()?.split_once('\0')?;
    let tenant = if tenant.is_empty() { None } else { Some(tenant.parse().ok()?) };
    Some(ConsumerKey { tenant, name: name.parse().ok()? })
}

/// Applies a definition. It holds the place of the consumer at that time.
pub(super) fn define(rows: &mut dyn Rows, position: Position, consumer: &Consumer) {
    let row = ConsumerRow { defined: position, moved: Position(0), place: consumer.place };
    rows.put(&key(&consumer.key), encode(&row));
}

/// Applies a move. Ignores one of an unknown consumer, whose definition is lost to damage.
pub(super) fn advance(rows: &mut dyn Rows, position: Position, consumer: &ConsumerKey, place: ConsumerPlace) {
    if let Some(known) = row(rows, consumer).filter(|_| !failpoints::is_active(Mutation::ForgetCommits)) {
        rows.put(&key(consumer), encode(&ConsumerRow { moved: position, place, ..known }));
    }
}

pub(super) fn remove(rows: &mut dyn Rows, consumer: &ConsumerKey) {
    rows.remove(&key(consumer));
}

fn encode(row: &ConsumerRow) -> Vec<u8> {
    let ConsumerRow { defined, moved, place: ConsumerPlace { position, moved_at } } = row;
    let moved_at = moved_at.map_or(0, |at| at.millis() + 1);
    let mut value = Vec::with_capacity(24);
    for number in [defined.0, moved.0, position.0, moved_at] {
        put_varint(&mut value, number);
    }
    value
}

fn decode(value: &[u8]) -> Result<ConsumerRow, Malformed> {
    let mut reader = Reader::new(value);
    let defined = Position(reader.get_varint()?);
    let moved = Position(reader.get_varint()?);
    let position = Position(reader.get_varint()?);
    let moved_at = reader.get_varint()?.checked_sub(1).map(Timestamp::from_millis);
    Ok(ConsumerRow { defined, moved, place: ConsumerPlace { position, moved_at } })
}

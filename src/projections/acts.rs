//! The index of audit entries, by the position of their record: all (`a`), and those that concern a
//! tenant (`u`).
//!
//! An `a` row has the fields that a list filters by. Retention removes rows by the time of the act.
//! Invariant: each entry that concerns a tenant has one row of each kind.

use std::ops::ControlFlow;

use super::reads::{Cursor, Found};
use super::rows::{Key, Rows, after_prefix, u64_at};
use crate::codec::{Malformed, Reader, put_bytes, put_varint};
use crate::domain::{AuditEntry, Position, Tenant, Timestamp};
use crate::failpoints::{self, Bound};
use crate::limits;

const TAG: u8 = b'a';
const TENANT_TAG: u8 = b'u';

/// Word for the configured admin key, as the actor of a filter.
pub const ADMIN_ACTOR: &str = "admin";

/// The entries of a list. All conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    pub tenant: Option<Tenant>,
    /// Id of a key, or [`ADMIN_ACTOR`].
    pub actor: Option<Box<str>>,
    pub action: Option<Box<str>>,
    pub target: Option<Box<str>>,
    pub since: Option<Timestamp>,
    /// Exclusive.
    pub until: Option<Timestamp>,
}

/// The indexed fields of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ActRow {
    at: Timestamp,
    /// Empty: no tenant.
    tenant: Box<str>,
    actor: Box<str>,
    action: Box<str>,
    /// Empty: no target.
    target: Box<str>,
}

impl From<&AuditEntry> for ActRow {
    fn from(entry: &AuditEntry) -> Self {
        Self {
            at: entry.at,
            tenant: entry.tenant.as_ref().map_or("", Tenant::as_str).into(),
            actor: entry.actor.key.as_ref().map_or(ADMIN_ACTOR, |key| key.as_str()).into(),
            action: entry.action.clone(),
            target: entry.target.clone().unwrap_or_default(),
        }
    }
}

impl AuditFilter {
    /// Whether the filter wants an entry.
    #[must_use]
    pub fn wants(&self, entry: &AuditEntry) -> bool {
        self.wants_row(&entry.into())
    }

    fn wants_row(&self, row: &ActRow) -> bool {
        let is = |wanted: &Option<Box<str>>, found: &str| wanted.as_deref().is_none_or(|text| text == found);
        self.tenant.as_ref().is_none_or(|tenant| tenant.as_str() == &*row.tenant)
            && is(&self.actor, &row.actor)
            && is(&self.action, &row.action)
            && is(&self.target, &row.target)
            && self.since.is_none_or(|since| row.at >= since)
            && self.until.is_none_or(|until| row.at < until)
    }
}

fn key(position: Position) -> Vec<u8> {
    Key::new(TAG).position(position).0
}

fn tenant_prefix(tenant: &str) -> Key {
    Key::new(TENANT_TAG).bytes(tenant.as_bytes()).bytes(&[0])
}

fn tenant_key(tenant: &str, position: Position) -> Vec<u8> {
    tenant_prefix(tenant).position(position).0
}

/// The entry that a row of a tenant names. `None` for a malformed key.
pub(super) fn named(tenant_key: &[u8]) -> Option<Position> {
    match tenant_key.split_last_chunk::<8>()? {
        ([TENANT_TAG, tenant @ .., 0], position) if std::str::from_utf8(tenant).is_ok() => {
            Some(Position(u64::from_be_bytes(*position)))
        }
        _ => None,
    }
}

pub(super) fn put(rows: &mut dyn Rows, position: Position, entry: &AuditEntry) {
    let row = ActRow::from(entry);
    let mut value = Vec::with_capacity(64);
    put_varint(&mut value, row.at.millis());
    for text in [&row.tenant, &row.actor, &row.action, &row.target] {
        put_bytes(&mut value, text.as_bytes());
    }
    rows.put(&key(position), value);
    if !row.tenant.is_empty() {
        rows.put(&tenant_key(&row.tenant, position), Vec::new());
    }
}

/// Whether the entry is kept.
#[must_use]
pub fn is_kept(rows: &dyn Rows, position: Position) -> bool {
    rows.get(&key(position)).is_some()
}

/// The time of a row's act.
pub(super) fn time(value: &[u8]) -> Option<Timestamp> {
    decode(value).ok().map(|row| row.at)
}

/// The time of the act with this position.
pub(super) fn time_of(rows: &dyn Rows, position: Position) -> Option<Timestamp> {
    time(&rows.get(&key(position))?)
}

/// Entries before a cursor, newest first. A step examines a bounded number of rows.
#[must_use]
pub fn list(rows: &dyn Rows, filter: &AuditFilter, after: Option<Cursor>, limit: usize) -> Found<Position> {
    let prefix = filter.tenant.as_ref().map_or_else(|| Key::new(TAG), |own| tenant_prefix(own.as_str())).0;
    let end = after.map_or_else(
        || after_prefix(&prefix),
        |cursor| [&prefix[..], &cursor.position.0.to_be_bytes()].concat(),
    );
    let most = failpoints::bound(Bound::ScanEntries, limits::SCAN_ENTRIES_MAX);
    let mut found = Found { items: Vec::new(), next: None };
    let (mut examined, mut last) = (0, None);
    rows.scan_back(&prefix, &end, &mut |row_key, value| {
        if found.items.len() == limit || examined >= most {
            found.next = last.map(Cursor::at);
            return ControlFlow::Break(());
        }
        let position = Position(u64_at(row_key, prefix.len()));
        let of_tenant = filter.tenant.is_some().then(|| rows.get(&key(position)).unwrap_or_default());
        examined += 1 + usize::from(of_tenant.is_some());
        last = Some(position);
        if decode(of_tenant.as_deref().unwrap_or(value)).is_ok_and(|row| filter.wants_row(&row)) {
            found.items.push(position);
        }
        ControlFlow::Continue(())
    });
    found
}

/// Deletes up to `limit` entries of acts before a time, oldest first. Returns their positions.
pub fn forget(rows: &mut dyn Rows, before: Timestamp, limit: usize) -> Vec<Position> {
    let mut acts = Vec::new();
    rows.scan(&[TAG], &after_prefix(&[TAG]), &mut |key, value| {
        let row = decode(value).ok().filter(|row| row.at < before);
        match row.filter(|_| acts.len() < limit) {
            Some(row) => acts.push((Position(u64_at(key, 1)), row.tenant)),
            None => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    });
    for (position, tenant) in &acts {
        rows.remove(&key(*position));
        if !tenant.is_empty() {
            rows.remove(&tenant_key(tenant, *position));
        }
    }
    acts.into_iter().map(|(position, _)| position).collect()
}

fn decode(value: &[u8]) -> Result<ActRow, Malformed> {
    let mut reader = Reader::new(value);
    let at = Timestamp::from_millis(reader.get_varint()?);
    let mut text = || reader.get_str().map(Box::from);
    Ok(ActRow { at, tenant: text()?, actor: text()?, action: text()?, target: text()? })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::{ActOutcome, Actor, Role};

    fn rows() -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut rows = BTreeMap::new();
        for number in 1..=6_u64 {
            let key = (number % 2 == 0).then(|| "key_1".parse().unwrap());
            let entry = AuditEntry {
                at: Timestamp::from_millis(number * 10),
                actor: Actor { key, role: Role::Admin, tenant: None },
                action: "deleteEndpoint".into(),
                target: (number > 3).then(|| "ep_1".into()),
                tenant: (number > 2).then(|| "acme".parse().unwrap()),
                address: None,
                outcome: ActOutcome::Done,
            };
            put(&mut rows, Position(number * 100), &entry);
        }
        rows
    }

    fn found(filter: &AuditFilter) -> Vec<u64> {
        list(&rows(), filter, None, 9).items.into_iter().map(|position| position.0).collect()
    }

    #[test]
    fn audit_filters_select_entries_newest_first() {
        let all = AuditFilter::default();
        assert_eq!(found(&all), [600, 500, 400, 300, 200, 100]);
        let time = |millis| Some(Timestamp::from_millis(millis));
        let cases = [
            (AuditFilter { actor: Some("key_1".into()), ..all.clone() }, vec![600, 400, 200]),
            (AuditFilter { actor: Some(ADMIN_ACTOR.into()), ..all.clone() }, vec![500, 300, 100]),
            (AuditFilter { target: Some("ep_1".into()), ..all.clone() }, vec![600, 500, 400]),
            (AuditFilter { action: Some("deleteKey".into()), ..all.clone() }, vec![]),
            (AuditFilter { tenant: Some("acme".parse().unwrap()), ..all.clone() }, vec![600, 500, 400, 300]),
            (AuditFilter { since: time(20), until: time(40), ..all.clone() }, vec![300, 200]),
        ];
        for (filter, expected) in cases {
            assert_eq!(found(&filter), expected, "{filter:?}");
        }
        let page = list(&rows(), &all, None, 2);
        assert_eq!((page.items.len(), page.next), (2, Some(Cursor::at(Position(500)))));
        let rest = list(&rows(), &all, page.next, 9);
        assert_eq!((rest.items.len(), rest.next), (4, None));
    }

    #[test]
    fn retention_forgets_the_oldest_acts() {
        let mut rows = rows();
        assert_eq!(forget(&mut rows, Timestamp::from_millis(30), 1), [Position(100)]);
        assert_eq!(forget(&mut rows, Timestamp::from_millis(30), 9), [Position(200)]);
        assert!(!is_kept(&rows, Position(200)) && is_kept(&rows, Position(300)));
    }
}

//! Usage of each tenant (`U`): counters, by tenant.
//!
//! Invariants: deliveries count for the tenant of their endpoint, and events for their own. A row
//! of zeros does not exist, so a tenant without any of these leaves no row.

use std::ops::ControlFlow;

use super::rows::{Key, Rows};
use crate::codec::{Reader, put_varint};
use crate::domain::Tenant;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub endpoints: u64,
    /// API keys that are bound to the tenant.
    pub keys: u64,
    /// Pending deliveries.
    pub pending: u64,
    pub dead: u64,
    /// Stored events, and their bytes; see [`Event::stored_bytes`](crate::domain::Event).
    pub events: u64,
    pub bytes: u64,
}

fn key(tenant: &str) -> Vec<u8> {
    Key::new(b'U').bytes(tenant.as_bytes()).0
}

#[must_use]
pub fn usage(rows: &dyn Rows, tenant: &Tenant) -> Usage {
    rows.get(&key(tenant.as_str())).map_or_else(Usage::default, |value| decode(&value))
}

pub(super) fn decode(value: &[u8]) -> Usage {
    let mut reader = Reader::new(value);
    let mut number = || reader.get_varint().unwrap_or(0);
    Usage {
        endpoints: number(),
        keys: number(),
        pending: number(),
        dead: number(),
        events: number(),
        bytes: number(),
    }
}

pub(super) fn put(rows: &mut dyn Rows, tenant: &Tenant, usage: &Usage) {
    let key = key(tenant.as_str());
    if *usage == Usage::default() {
        return rows.remove(&key);
    }
    let Usage { endpoints, keys, pending, dead, events, bytes } = *usage;
    let mut value = Vec::with_capacity(16);
    for number in [endpoints, keys, pending, dead, events, bytes] {
        put_varint(&mut value, number);
    }
    rows.put(&key, value);
}

/// Tenants after a name, in order of their names, with their usage.
#[must_use]
pub fn after(rows: &dyn Rows, name: Option<&str>, limit: usize) -> Vec<(Tenant, Usage)> {
    let mut list = Vec::new();
    let from = name.map_or_else(|| key(""), |name| [&key(name)[..], &[0]].concat());
    rows.scan(&from, b"V", &mut |key, value| {
        if list.len() >= limit {
            return ControlFlow::Break(());
        }
        // Only names that were parsed before become keys.
        if let Some(tenant) = std::str::from_utf8(&key[1..]).ok().and_then(|name| name.parse().ok()) {
            list.push((tenant, decode(value)));
        }
        ControlFlow::Continue(())
    });
    list
}

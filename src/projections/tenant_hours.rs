//! Work of each tenant by hour (`B`): accepted events and attempts.
//!
//! Invariants: an event counts for its own tenant at its acceptance, an attempt for the tenant of
//! its endpoint at its start, and a lease at its end. Retention removes whole hours.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::rows::{Key, Rows, u64_at};
use super::stats::hour_of;
use crate::codec::{Reader, put_varint};
use crate::domain::{Tenant, Timestamp};

/// Counts of one hour of a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantHour {
    /// Accepted events.
    pub events: u64,
    /// Attempts and leases.
    pub attempts: u64,
}

impl TenantHour {
    pub(super) fn decode(value: &[u8]) -> Self {
        let mut reader = Reader::new(value);
        let mut number = || reader.get_varint().unwrap_or(0);
        Self { events: number(), attempts: number() }
    }

    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.attempts += other.attempts;
    }

    /// Whether no count is below that of `other`.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.events >= other.events && self.attempts >= other.attempts
    }

    /// This part of each count, rounded up.
    #[must_use]
    pub fn part(&self, numerator: u64, denominator: u64) -> Self {
        let part = |count: u64| {
            let part = (u128::from(count) * u128::from(numerator)).div_ceil(u128::from(denominator.max(1)));
            u64::try_from(part).unwrap_or(u64::MAX)
        };
        Self { events: part(self.events), attempts: part(self.attempts) }
    }
}

/// The hour comes first: retention removes a range of hours, and a window over all tenants is one
/// range.
fn key(hour: u64, tenant: &str) -> Vec<u8> {
    Key::new(b'B').u64(hour).bytes(tenant.as_bytes()).0
}

pub(super) fn hour(rows: &dyn Rows, hour: u64, tenant: &Tenant) -> TenantHour {
    rows.get(&key(hour, tenant.as_str())).map_or_else(TenantHour::default, |value| TenantHour::decode(&value))
}

pub(super) fn put(rows: &mut dyn Rows, hour: u64, tenant: &Tenant, counts: &TenantHour) {
    let mut value = Vec::with_capacity(8);
    for number in [counts.events, counts.attempts] {
        put_varint(&mut value, number);
    }
    rows.put(&key(hour, tenant.as_str()), value);
}

/// Each hour of the window with any counts, by its number since the Unix epoch. `None`: of all
/// tenants together.
pub fn hours(
    rows: &dyn Rows,
    tenant: Option<&Tenant>,
    since: Timestamp,
    until: Timestamp,
) -> Vec<(u64, TenantHour)> {
    let (first, last) = (hour_of(since), hour_of(until));
    if let Some(tenant) = tenant {
        let of_hour = |number| (number, hour(rows, number, tenant));
        return (first..=last).map(of_hour).filter(|(_, counts)| *counts != TenantHour::default()).collect();
    }
    let mut hours: BTreeMap<u64, TenantHour> = BTreeMap::new();
    rows.scan(&key(first, ""), &key(last + 1, ""), &mut |key, value| {
        hours.entry(u64_at(key, 1)).or_default().add(&TenantHour::decode(value));
        ControlFlow::Continue(())
    });
    hours.into_iter().collect()
}

/// Deletes up to `limit` rows of the hours before `before`. Returns the number of deleted rows.
pub fn forget(rows: &mut dyn Rows, before: Timestamp, limit: usize) -> usize {
    let mut keys = Vec::new();
    rows.scan(&key(0, ""), &key(hour_of(before), ""), &mut |key, _| {
        keys.push(key.to_vec());
        if keys.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    for key in &keys {
        rows.remove(key);
    }
    keys.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_of_an_hour_is_rounded_up() {
        let counts = TenantHour { events: 3, attempts: 1_000 };
        assert_eq!(counts.part(1, 1_000), TenantHour { events: 1, attempts: 1 });
        assert_eq!(counts.part(1_000, 1_000), counts);
        assert_eq!(counts.part(0, 1_000), TenantHour::default());
        let most = TenantHour { events: u64::MAX, attempts: 0 };
        assert_eq!(most.part(3_600_000, 3_600_000), most);
    }
}

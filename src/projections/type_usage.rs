//! Usage of a registered event type's versions (`y`): how many events it got, and when.
//!
//! Invariants: a version counts from its type's registration on, and its count never falls while
//! the type is registered. The deletion of a type removes its rows.

use std::ops::ControlFlow;

use super::rows::{Key, Rows, after_prefix};
use super::stats::hour_of;
use crate::codec::{Reader, put_varint};
use crate::domain::{EventType, EventVersion, Timestamp};

/// Hours whose counts are kept: a day, and the current one.
const HOURS_KEPT: u64 = 25;

/// The events of one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeUsage {
    /// Events since the registration of the type.
    pub events: u64,
    /// Counts of the last hours with events, by hour since 1970, ascending.
    hours: Vec<(u64, u64)>,
}

impl TypeUsage {
    pub(crate) fn count(&mut self, at: Timestamp) {
        self.events += 1;
        let hour = hour_of(at);
        match self.hours.last_mut() {
            Some((last, count)) if *last >= hour => *count += 1,
            _ => self.hours.push((hour, 1)),
        }
        self.hours.retain(|(kept, _)| kept + HOURS_KEPT > hour);
    }

    /// Events of the current hour and the 24 hours before it.
    #[must_use]
    pub fn last_day(&self, now: Timestamp) -> u64 {
        let recent = self.hours.iter().filter(|(hour, _)| hour + HOURS_KEPT > hour_of(now));
        recent.map(|(_, count)| count).sum()
    }

    /// Whether no count is below that of `other`, which may lack the latest events. It then keeps
    /// earlier hours.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let last = self.hours.last().map_or(0, |(hour, _)| *hour);
        let count =
            |hour: u64| self.hours.iter().find(|(own, _)| *own == hour).map_or(0, |(_, count)| *count);
        let is_covered = |(hour, other): &(u64, u64)| hour + HOURS_KEPT <= last || count(*hour) >= *other;
        self.events >= other.events && other.hours.iter().all(is_covered)
    }

    pub(super) fn decode(value: &[u8]) -> Self {
        let mut reader = Reader::new(value);
        let mut number = || reader.get_varint().ok();
        let mut usage = Self { events: number().unwrap_or(0), hours: Vec::new() };
        while let (Some(hour), Some(count)) = (number(), number()) {
            usage.hours.push((hour, count));
        }
        usage
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16);
        put_varint(&mut out, self.events);
        for (hour, count) in &self.hours {
            put_varint(&mut out, *hour);
            put_varint(&mut out, *count);
        }
        out
    }
}

/// Key of a version. No name has a zero byte.
fn key(name: &str, version: &str) -> Vec<u8> {
    [&Key::new(b'y').0[..], name.as_bytes(), &[0], version.as_bytes()].concat()
}

#[must_use]
pub fn usage(rows: &dyn Rows, name: &EventType, version: &EventVersion) -> TypeUsage {
    let row = rows.get(&key(name.as_str(), version.as_str()));
    row.map_or_else(TypeUsage::default, |value| TypeUsage::decode(&value))
}

pub(super) fn put(rows: &mut dyn Rows, name: &EventType, version: &EventVersion, usage: &TypeUsage) {
    rows.put(&key(name.as_str(), version.as_str()), usage.encode());
}

/// All versions with events of a type.
#[must_use]
pub fn of_type(rows: &dyn Rows, name: &EventType) -> Vec<(EventVersion, TypeUsage)> {
    let prefix = key(name.as_str(), "");
    let mut found = Vec::new();
    rows.scan(&prefix, &after_prefix(&prefix), &mut |key, value| {
        let version = std::str::from_utf8(&key[prefix.len()..]).ok().and_then(|text| text.parse().ok());
        found.extend(version.map(|version| (version, TypeUsage::decode(value))));
        ControlFlow::Continue(())
    });
    found
}

/// Removes all rows of a type.
pub(super) fn forget(rows: &mut dyn Rows, name: &EventType) {
    for (version, _) in of_type(rows, name) {
        rows.remove(&key(name.as_str(), version.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn counts_of_the_last_day_expire() {
        let hour =
            |number: u64| Timestamp::from_millis(1_700_000_000_000).plus(Duration::from_secs(number * 3_600));
        let mut usage = TypeUsage::default();
        for number in 0..100 {
            usage.count(hour(number));
            usage.count(hour(number));
        }
        assert_eq!((usage.events, usage.hours.len()), (200, 25));
        assert_eq!(usage.last_day(hour(99)), 50);
        assert_eq!(usage.last_day(hour(110)), 28);
        assert_eq!(usage.last_day(hour(200)), 0);
        assert_eq!(TypeUsage::decode(&usage.encode()), usage);
        let mut less = usage.clone();
        less.events -= 1;
        assert!(usage.covers(&less) && !less.covers(&usage));
        let mut earlier = TypeUsage::default();
        (0..60).for_each(|number| earlier.count(hour(number)));
        assert!(usage.covers(&earlier), "the earlier hours are no longer kept");
    }
}

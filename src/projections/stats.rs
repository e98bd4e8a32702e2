//! Hourly statistics of an endpoint (`T`).

use std::ops::ControlFlow;
use std::time::Duration;

use super::rows::{Key, Rows, u64_at};
use crate::codec::{Reader, put_varint};
use crate::domain::{EndpointNumber, Timestamp};

pub const HOUR_MILLIS: u64 = 3_600_000;

/// Upper ends of the latency classes in milliseconds. The last class is open.
pub const LATENCY_CLASSES: [u64; 24] = [
    1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1_000, 1_500, 2_000, 5_000, 10_000,
    20_000, 60_000,
];

/// Counts of one hour. An attempt and its success count at its start, other ends at their time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hour {
    pub attempts: u64,
    pub delivered: u64,
    /// With or without a final attempt.
    pub dead: u64,
    pub cancelled: u64,
    /// Attempts by latency class.
    pub latency: [u64; 25],
}

impl Hour {
    pub(super) fn decode(value: &[u8]) -> Self {
        let mut reader = Reader::new(value);
        let mut number = || reader.get_varint().unwrap_or(0);
        let (attempts, delivered, dead, cancelled) = (number(), number(), number(), number());
        let mut hour = Self { attempts, delivered, dead, cancelled, latency: [0; 25] };
        for class in &mut hour.latency {
            *class = number();
        }
        hour
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        for number in [self.attempts, self.delivered, self.dead, self.cancelled].iter().chain(&self.latency) {
            put_varint(&mut out, *number);
        }
        out
    }

    /// Whether no count is below that of `other`.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.attempts >= other.attempts
            && self.delivered >= other.delivered
            && self.dead >= other.dead
            && self.cancelled >= other.cancelled
            && self.latency.iter().zip(other.latency).all(|(own, other)| *own >= other)
    }

    /// Counts an attempt with this duration.
    pub fn count_attempt(&mut self, duration: Duration) {
        self.attempts += 1;
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.latency[LATENCY_CLASSES.partition_point(|end| *end < millis)] += 1;
    }

    pub fn add(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.delivered += other.delivered;
        self.dead += other.dead;
        self.cancelled += other.cancelled;
        for (class, more) in self.latency.iter_mut().zip(other.latency) {
            *class += more;
        }
    }

    /// Attempts without a success. A late acknowledgement counts at its time, which may be a later
    /// hour than that of its lease.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.attempts.saturating_sub(self.delivered)
    }

    /// Share of the attempts with a success, 0 to 1; `None` without attempts.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    pub fn success_rate(&self) -> Option<f64> {
        let succeeded = self.attempts - self.failed();
        (self.attempts > 0).then(|| succeeded as f64 / self.attempts as f64)
    }

    /// Upper end in milliseconds of the latency class at this quantile (0.0 to 1.0).
    #[must_use]
    pub fn percentile(&self, part: f64) -> Option<u64> {
        let total: u64 = self.latency.iter().sum();
        if total == 0 {
            return None;
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank"
        )]
        let rank = ((total as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        for (class, count) in self.latency.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(LATENCY_CLASSES.get(class).copied().unwrap_or(120_000));
            }
        }
        None
    }
}

/// Number of the hour, from the Unix epoch.
#[must_use]
pub fn hour_of(at: Timestamp) -> u64 {
    at.millis() / HOUR_MILLIS
}

fn key(endpoint: EndpointNumber, hour: u64) -> Vec<u8> {
    Key::new(b'T').endpoint(endpoint).u64(hour).0
}

pub(super) fn hour(rows: &dyn Rows, endpoint: EndpointNumber, hour: u64) -> Hour {
    rows.get(&key(endpoint, hour)).map_or_else(Hour::default, |value| Hour::decode(&value))
}

pub(super) fn put(rows: &mut dyn Rows, endpoint: EndpointNumber, hour: u64, counts: &Hour) {
    rows.put(&key(endpoint, hour), counts.encode());
}

/// Deletes the hours before `before`. Returns whether there were any.
pub fn forget(rows: &mut dyn Rows, endpoint: EndpointNumber, before: Timestamp) -> bool {
    let mut keys = Vec::new();
    rows.scan(&key(endpoint, 0), &key(endpoint, hour_of(before)), &mut |key, _| {
        keys.push(key.to_vec());
        ControlFlow::Continue(())
    });
    for key in &keys {
        rows.remove(key);
    }
    !keys.is_empty()
}

/// The hours that overlap the window, by number.
pub fn hours(
    rows: &dyn Rows,
    endpoint: EndpointNumber,
    since: Timestamp,
    until: Timestamp,
) -> Vec<(u64, Hour)> {
    let mut list = Vec::new();
    let (from, to) = (key(endpoint, hour_of(since)), key(endpoint, hour_of(until) + 1));
    rows.scan(&from, &to, &mut |key, value| {
        list.push((u64_at(key, 5), Hour::decode(value)));
        ControlFlow::Continue(())
    });
    list
}

/// Sum of the hours that overlap the window.
pub fn window(rows: &dyn Rows, endpoint: EndpointNumber, since: Timestamp, until: Timestamp) -> Hour {
    let mut sum = Hour::default();
    let from = key(endpoint, hour_of(since));
    let to = key(endpoint, hour_of(until) + 1);
    rows.scan(&from, &to, &mut |_, value| {
        sum.add(&Hour::decode(value));
        ControlFlow::Continue(())
    });
    sum
}

//! Evidence of a failing receiver: the gaps between its failed attempts since the last success.
//!
//! The threshold for disabling the endpoint is configuration, which is not in the journal. So gaps
//! are stored by length, and the rule decides how much of each one counts.

use std::time::Duration;

use crate::codec::{Malformed, Reader, put_varint};
use crate::domain::{Attempt, Endpoint, EndpointStatus, Timestamp};

/// Classes of gaps: below 8 ms, below 64 ms, and so on. The last one starts at 99 days.
const CLASSES: usize = 12;

/// Gaps of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Gaps {
    count: u64,
    millis: u64,
}

/// Failed attempts without a success between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// Start of the first attempt.
    pub since: Timestamp,
    /// Start of the latest attempt.
    last: Timestamp,
    gaps: [Gaps; CLASSES],
}

/// Identifies an operator's change of an endpoint by its time and the new status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperatorChange {
    updated_at: Timestamp,
    status: EndpointStatus,
}

impl From<&Endpoint> for OperatorChange {
    fn from(endpoint: &Endpoint) -> Self {
        Self { updated_at: endpoint.updated_at, status: endpoint.status }
    }
}

impl Failing {
    /// Adds a failed attempt to the known ones.
    #[must_use]
    pub fn after(known: Option<Self>, attempt: &Attempt) -> Self {
        let at = attempt.started_at;
        let Some(mut failing) = known else {
            return Self { since: at, last: at, gaps: [Gaps::default(); CLASSES] };
        };
        // The time before the start of the daemon does not count.
        let gap = at.since(failing.last).min(attempt.uptime.unwrap_or(Duration::MAX));
        let millis = u64::try_from(gap.as_millis()).unwrap_or(u64::MAX);
        let gaps = &mut failing.gaps[class(millis)];
        gaps.count += 1;
        gaps.millis = gaps.millis.saturating_add(millis);
        failing.last = failing.last.max(at);
        failing
    }

    /// Whether a record of an endpoint ends the evidence: an operator changed or opened it.
    /// Resealing its secrets repeats the previous change.
    #[must_use]
    pub fn is_ended_by(endpoint: &Endpoint, before: Option<OperatorChange>) -> bool {
        endpoint.status == EndpointStatus::Active && before != Some(endpoint.into())
    }

    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.gaps.iter().map(|gaps| gaps.count).sum::<u64>() + 1
    }

    /// Sum of the gaps, each counted up to about `gap_max`. The limit applies per class, so a long
    /// gap may use the unused part of short ones.
    #[must_use]
    pub fn time(&self, gap_max: Duration) -> Duration {
        let most = u64::try_from(gap_max.as_millis()).unwrap_or(u64::MAX);
        let counted = self.gaps.iter().map(|gaps| gaps.millis.min(gaps.count.saturating_mul(most)));
        Duration::from_millis(counted.fold(0, u64::saturating_add))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.since.millis());
        put_varint(out, self.last.millis());
        for (class, gaps) in self.gaps.iter().enumerate().filter(|(_, gaps)| gaps.count > 0) {
            put_varint(out, class as u64);
            put_varint(out, gaps.count);
            put_varint(out, gaps.millis);
        }
    }

    /// Reads all remaining bytes.
    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut time = || reader.get_varint().map(Timestamp::from_millis);
        let mut failing = Self { since: time()?, last: time()?, gaps: [Gaps::default(); CLASSES] };
        while !reader.is_empty() {
            let class = usize::try_from(reader.get_varint()?).map_err(|_| Malformed::Number)?;
            let gaps = failing.gaps.get_mut(class).ok_or(Malformed::Number)?;
            *gaps = Gaps { count: reader.get_varint()?, millis: reader.get_varint()? };
        }
        Ok(failing)
    }
}

fn class(millis: u64) -> usize {
    let bits = (u64::BITS - millis.leading_zeros()) as usize;
    (bits.saturating_sub(1) / 3).min(CLASSES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(millis: u64, uptime: Option<u64>) -> Attempt {
        Attempt {
            started_at: Timestamp::from_millis(millis),
            uptime: uptime.map(Duration::from_millis),
            ..Attempt::for_tests()
        }
    }

    fn failing(attempts: &[(u64, Option<u64>)]) -> Failing {
        let add =
            |known, (at, uptime): &(u64, Option<u64>)| Some(Failing::after(known, &failed(*at, *uptime)));
        attempts.iter().fold(None, add).unwrap()
    }

    #[test]
    fn gap_counts_up_to_its_bound() {
        let failing = failing(&[(1_000, None), (1_500, None), (61_500, None), (61_500, None)]);
        let time = |most| failing.time(Duration::from_millis(most)).as_millis();
        assert_eq!((time(u64::MAX), time(60_000), time(10_000), time(100)), (60_500, 60_500, 10_500, 200));
        assert_eq!((failing.attempts(), failing.since), (4, Timestamp::from_millis(1_000)));
    }

    #[test]
    fn time_before_the_start_of_the_daemon_does_not_count() {
        let failing = failing(&[(1_000, Some(900)), (90_000, Some(250)), (91_000, Some(1_250))]);
        assert_eq!(failing.time(Duration::MAX), Duration::from_millis(1_250));
    }

    #[test]
    fn late_record_of_an_earlier_attempt_adds_no_time() {
        let failing = failing(&[(5_000, None), (3_000, None), (6_000, None)]);
        assert_eq!((failing.attempts(), failing.time(Duration::MAX)), (3, Duration::from_secs(1)));
    }

    #[test]
    fn evidence_survives_its_encoding() {
        let attempts: Vec<_> = (0..40).map(|bit| ((1_u64 << bit) + 7, None)).collect();
        for count in 1..attempts.len() {
            let failing = failing(&attempts[..count]);
            let mut bytes = Vec::new();
            failing.encode(&mut bytes);
            assert_eq!(Failing::decode(&mut Reader::new(&bytes)), Ok(failing));
        }
        for junk in [&[1][..], &[1, 1, 12, 1, 1], &[1, 1, 3, 1]] {
            assert!(Failing::decode(&mut Reader::new(junk)).is_err(), "{junk:?}");
        }
    }
}

//! When a failing endpoint is disabled.

use std::time::Duration;

use crate::projections::failing::Failing;

/// Minimum failed attempts before an endpoint is disabled.
pub const FAILURES_MIN: u32 = 5;

/// Whether to disable an endpoint with these failures and no success since the first of them: if it
/// failed for the whole of `after`. A gap between two failures counts for about `after` divided by
/// `FAILURES_MIN - 1` at most, so at least `FAILURES_MIN` failures are spread over that time.
#[must_use]
pub fn should_disable(failing: &Failing, after: Duration) -> bool {
    failing.time(after / (FAILURES_MIN - 1)) >= after
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Attempt, Timestamp};

    /// Attempts: time of the failure and uptime of the daemon, in seconds.
    fn is_disabled(attempts: &[(u64, u64)]) -> bool {
        let mut failing = None;
        for (at, uptime) in attempts {
            let started_at = Timestamp::from_millis(1_000_000 + at * 1_000);
            let uptime = Some(Duration::from_secs(*uptime));
            let attempt = Attempt { started_at, uptime, ..Attempt::for_tests() };
            failing = Some(Failing::after(failing, &attempt));
        }
        should_disable(&failing.unwrap(), Duration::from_secs(100))
    }

    #[test]
    fn endpoint_is_disabled_at_the_limit_and_not_before() {
        let every_second = |seconds| (0..=seconds).map(|at| (at, 1_000)).collect::<Vec<_>>();
        assert!(!is_disabled(&every_second(99)));
        assert!(is_disabled(&every_second(100)));
        assert!(is_disabled(&[(0, 0), (25, 25), (50, 50), (75, 75), (100, 100)]));
    }

    #[test]
    fn few_or_old_failures_do_not_disable() {
        assert!(!is_disabled(&[(0, 0), (1, 1), (9_000, 9_000)]), "two failures far apart");
        assert!(!is_disabled(&[(0, 0), (1, 1), (2, 2), (3, 3), (9_000, 9_000), (9_001, 9_001)]));
        assert!(!is_disabled(&[(0, 0), (9_000, 9_000), (18_000, 18_000), (27_000, 27_000)]), "four failures");
        assert!(is_disabled(&[(0, 0), (900, 900), (1_800, 1_800), (2_700, 2_700), (3_600, 3_600)]));
    }

    #[test]
    fn downtime_does_not_count() {
        let mut attempts: Vec<_> = (0..=50).map(|at| (at, at)).collect();
        attempts.extend((0..=49).map(|at| (1_000 + at, at)));
        assert!(!is_disabled(&attempts), "99 s of failures");
        attempts.push((1_050, 50));
        assert!(is_disabled(&attempts));
        // A daemon that restarts repeatedly.
        let restarts: Vec<_> = (0..90).map(|life| (life * 1_000, 1)).collect();
        assert!(!is_disabled(&restarts));
    }
}

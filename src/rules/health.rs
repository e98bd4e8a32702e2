//! When an endpoint that only fails is given up.

use std::time::Duration;

use crate::domain::Timestamp;

/// Whether an endpoint that has failed since `since` without one success is disabled at `now`.
#[must_use]
pub fn should_disable(since: Timestamp, after: Duration, now: Timestamp) -> bool {
    now.since(since) >= after
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_given_up_at_the_limit_and_not_before() {
        let (since, after) = (Timestamp::from_millis(1_000), Duration::from_secs(10));
        assert!(!should_disable(since, after, Timestamp::from_millis(10_999)));
        assert!(should_disable(since, after, Timestamp::from_millis(11_000)));
        assert!(!should_disable(since, after, Timestamp::from_millis(0)));
    }
}

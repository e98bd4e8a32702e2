//! Limits test events per endpoint, so that test sends cannot flood a third party.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::domain::{EndpointNumber, IdMap};
use crate::limits;

/// Monotonic times of the test events of the last [`limits::TEST_SENDS_PERIOD`], oldest first.
/// Endpoints without one have no entry, so the rate of requests bounds the number of entries.
#[derive(Debug, Default)]
pub(in crate::api) struct TestLimit {
    sent: Mutex<IdMap<EndpointNumber, VecDeque<Duration>>>,
}

impl TestLimit {
    /// Counts a test event.
    ///
    /// # Errors
    /// The wait time of an endpoint at its limit.
    pub(in crate::api) fn record(&self, endpoint: EndpointNumber, now: Duration) -> Result<(), Duration> {
        let mut all = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let has_expired = |at: &Duration| *at + limits::TEST_SENDS_PERIOD <= now;
        if !all.contains_key(&endpoint) {
            all.retain(|_, sent| sent.back().is_some_and(|last| !has_expired(last)));
        }
        let sent = all.entry(endpoint).or_default();
        while sent.front().is_some_and(has_expired) {
            sent.pop_front();
        }
        match sent.front() {
            Some(first) if sent.len() >= limits::TEST_SENDS_MAX => {
                Err((*first + limits::TEST_SENDS_PERIOD).saturating_sub(now))
            }
            Some(_) | None => {
                sent.push_back(now);
                Ok(())
            }
        }
    }

    /// Removes the last test event from the count: the request was a repetition.
    pub(in crate::api) fn withdraw(&self, endpoint: EndpointNumber) {
        let mut all = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sent) = all.get_mut(&endpoint) {
            sent.pop_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_events_are_limited_per_endpoint_and_minute() {
        let limit = TestLimit::default();
        let (one, two) = (EndpointNumber(1), EndpointNumber(2));
        let second = Duration::from_secs;
        for sent in 0..limits::TEST_SENDS_MAX as u64 {
            assert_eq!(limit.record(one, second(sent)), Ok(()));
        }
        assert_eq!(limit.record(one, second(20)), Err(second(40)));
        assert_eq!(limit.record(two, second(20)), Ok(()), "another endpoint");
        limit.withdraw(one);
        assert_eq!(limit.record(one, second(20)), Ok(()), "a repetition does not count");
        assert_eq!(limit.record(one, second(59)), Err(second(1)));
        assert_eq!(limit.record(one, second(60)), Ok(()));
        assert_eq!(limit.record(two, second(200)), Ok(()));
        assert_eq!(limit.record(EndpointNumber(3), second(400)), Ok(()));
        assert_eq!(limit.sent.lock().unwrap().len(), 1, "old entries are removed");
    }
}

//! Limits wrong keys per client address, so that a short key cannot be guessed by trying.
//!
//! Long keys are always checked, so an attacker cannot lock out a valid client ([`super::auth`]).
//! Behind a proxy all clients share its address: forwarding headers are ignored.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::domain::address_block;
use crate::limits;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    /// See [`address_block`]: an IPv6 client owns its whole network.
    Block(IpAddr),
    /// Addresses beyond the bound, counted together.
    Others,
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self::Block(address_block(address))
    }
}

/// Token bucket per source: each wrong key costs [`limits::AUTH_FAILURES_INTERVAL`].
#[derive(Debug, Default)]
pub(in crate::api) struct AuthThrottle {
    /// When the allowance of each source is full again, in monotonic time.
    refilled_at: Mutex<HashMap<Source, Duration>>,
}

const ALLOWANCE: Duration = limits::AUTH_FAILURES_INTERVAL.saturating_mul(limits::AUTH_FAILURES_BURST);

impl AuthThrottle {
    /// Records a wrong key. Returns the wait time of a source that exceeded its allowance.
    pub(in crate::api) fn record_wrong_key(&self, address: IpAddr, now: Duration) -> Option<Duration> {
        let mut sources = self.refilled_at.lock().unwrap_or_else(PoisonError::into_inner);
        let mut source = Source::from(address);
        if !sources.contains_key(&source) && sources.len() >= limits::AUTH_FAILURE_COUNTERS_MAX {
            sources.retain(|_, refilled_at| *refilled_at > now);
            if sources.len() >= limits::AUTH_FAILURE_COUNTERS_MAX {
                source = Source::Others;
            }
        }
        let refilled_at = sources.entry(source).or_default();
        let wait = wait(*refilled_at, now);
        if wait.is_none() {
            *refilled_at = (*refilled_at).max(now) + limits::AUTH_FAILURES_INTERVAL;
        }
        wait
    }

    /// The time until the source's next try.
    pub(in crate::api) fn wait(&self, address: IpAddr, now: Duration) -> Option<Duration> {
        let sources = self.refilled_at.lock().unwrap_or_else(PoisonError::into_inner);
        let full = sources.len() >= limits::AUTH_FAILURE_COUNTERS_MAX;
        let known = sources.get(&Source::from(address));
        let refilled_at = known.or_else(|| sources.get(&Source::Others).filter(|_| full))?;
        wait(*refilled_at, now)
    }
}

/// The time until the allowance covers one more try.
fn wait(refilled_at: Duration, now: Duration) -> Option<Duration> {
    let spent = refilled_at.saturating_sub(now) + limits::AUTH_FAILURES_INTERVAL;
    spent.checked_sub(ALLOWANCE).filter(|wait| !wait.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTACKER: &str = "192.0.2.1";

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn exhaust(throttle: &AuthThrottle, source: &str, now: Duration) -> u32 {
        (0..1_000).take_while(|_| throttle.record_wrong_key(address(source), now).is_none()).count() as u32
    }

    #[test]
    fn throttle_is_per_address() {
        let throttle = AuthThrottle::default();
        let now = Duration::from_secs(1_000);
        assert_eq!(exhaust(&throttle, ATTACKER, now), limits::AUTH_FAILURES_BURST);
        assert_eq!(throttle.wait(address(ATTACKER), now), Some(limits::AUTH_FAILURES_INTERVAL));
        assert_eq!(
            throttle.wait(address("::ffff:192.0.2.1"), now),
            Some(limits::AUTH_FAILURES_INTERVAL),
            "an IPv4-mapped address is the same source"
        );
        assert_eq!(throttle.wait(address("192.0.2.2"), now), None);
    }

    #[test]
    fn many_tries_do_not_delay_the_next_one() {
        let throttle = AuthThrottle::default();
        let mut now = Duration::from_secs(1_000);
        let mut accepted = 0;
        for _ in 0..100_000 {
            accepted += u32::from(throttle.record_wrong_key(address(ATTACKER), now).is_none());
            now += Duration::from_millis(1);
        }
        assert!(
            (limits::AUTH_FAILURES_BURST + 99..=limits::AUTH_FAILURES_BURST + 101).contains(&accepted),
            "{accepted} in 100 s"
        );
        now += limits::AUTH_FAILURES_INTERVAL;
        assert_eq!(throttle.record_wrong_key(address(ATTACKER), now), None);
        assert_eq!(exhaust(&throttle, ATTACKER, now + 2 * ALLOWANCE), limits::AUTH_FAILURES_BURST);
    }

    #[test]
    fn ipv6_network_counts_as_one_address() {
        let throttle = AuthThrottle::default();
        let now = Duration::from_secs(1);
        assert_eq!(exhaust(&throttle, "2001:db8::1", now), limits::AUTH_FAILURES_BURST);
        assert!(throttle.wait(address("2001:db8::ffff"), now).is_some());
        assert!(throttle.wait(address("2001:db8:0:1::1"), now).is_none());
    }

    #[test]
    fn addresses_beyond_the_limit_share_one_counter() {
        let throttle = AuthThrottle::default();
        let now = Duration::from_secs(1);
        let many = |number: u32| IpAddr::from(number.to_be_bytes());
        for number in 0..100_000 {
            throttle.record_wrong_key(many(number), now);
        }
        let known = throttle.refilled_at.lock().unwrap().len();
        assert!(known <= limits::AUTH_FAILURE_COUNTERS_MAX + 1, "{known} are kept");
        assert!(throttle.wait(many(4_000_000), now).is_some(), "new addresses share one counter");
        assert!(throttle.wait(many(1), now).is_none(), "known addresses have their own");
        let later = now + 2 * ALLOWANCE;
        assert_eq!(throttle.record_wrong_key(many(4_000_000), later), None);
        assert_eq!(
            throttle.refilled_at.lock().unwrap().len(),
            1,
            "sources with a full allowance are removed"
        );
    }
}

//! Limits wrong keys per client address.
//!
//! A short key must not be guessable by trying, and an attacker must not lock out a valid client. So an address with too
//! many wrong keys is throttled, but a long key is checked all the same (see [`super::auth`]). Behind a proxy all clients
//! share its address; forwarding headers are ignored.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::limits;

/// An IPv6 client owns its whole /64 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
    /// Addresses beyond the bound, counted together.
    Others,
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// Allowances spent per source: each wrong key costs [`limits::AUTH_FAILURES_INTERVAL`].
#[derive(Debug, Default)]
pub(in crate::api) struct AuthThrottle {
    /// When the allowance of each source is full again, in monotonic time.
    refilled_at: Mutex<HashMap<Source, Duration>>,
}

const ALLOWANCE: Duration = limits::AUTH_FAILURES_INTERVAL.saturating_mul(limits::AUTH_FAILURES_BURST);

impl AuthThrottle {
    /// Records a wrong key. Returns how long the source has to wait if it exceeded its allowance.
    pub(in crate::api) fn note(&self, address: IpAddr, now: Duration) -> Option<Duration> {
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

    /// How long the source has to wait before its next try.
    pub(in crate::api) fn wait(&self, address: IpAddr, now: Duration) -> Option<Duration> {
        let sources = self.refilled_at.lock().unwrap_or_else(PoisonError::into_inner);
        let full = sources.len() >= limits::AUTH_FAILURE_COUNTERS_MAX;
        let known = sources.get(&Source::from(address));
        let refilled_at = known.or_else(|| sources.get(&Source::Others).filter(|_| full))?;
        wait(*refilled_at, now)
    }
}

/// Until one more try fits into the allowance.
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

    fn exhausted(throttle: &AuthThrottle, who: &str, now: Duration) -> u32 {
        (0..1_000).take_while(|_| throttle.note(address(who), now).is_none()).count() as u32
    }

    #[test]
    fn throttle_is_per_address() {
        let throttle = AuthThrottle::default();
        let now = Duration::from_secs(1_000);
        assert_eq!(exhausted(&throttle, ATTACKER, now), limits::AUTH_FAILURES_BURST);
        assert_eq!(throttle.wait(address(ATTACKER), now), Some(limits::AUTH_FAILURES_INTERVAL));
        assert_eq!(
            throttle.wait(address("::ffff:192.0.2.1"), now),
            Some(limits::AUTH_FAILURES_INTERVAL),
            "the same one"
        );
        assert_eq!(throttle.wait(address("192.0.2.2"), now), None);
    }

    #[test]
    fn next_try_is_soon_after_any_number_of_tries() {
        let throttle = AuthThrottle::default();
        let mut now = Duration::from_secs(1_000);
        let mut judged = 0;
        for _ in 0..100_000 {
            judged += u32::from(throttle.note(address(ATTACKER), now).is_none());
            now += Duration::from_millis(1);
        }
        assert!(
            (limits::AUTH_FAILURES_BURST + 99..=limits::AUTH_FAILURES_BURST + 101).contains(&judged),
            "{judged} in 100 s"
        );
        now += limits::AUTH_FAILURES_INTERVAL;
        assert_eq!(throttle.note(address(ATTACKER), now), None);
        assert_eq!(exhausted(&throttle, ATTACKER, now + 2 * ALLOWANCE), limits::AUTH_FAILURES_BURST);
    }

    #[test]
    fn ipv6_network_counts_as_one_address() {
        let throttle = AuthThrottle::default();
        let now = Duration::from_secs(1);
        assert_eq!(exhausted(&throttle, "2001:db8::1", now), limits::AUTH_FAILURES_BURST);
        assert!(throttle.wait(address("2001:db8::ffff"), now).is_some());
        assert!(throttle.wait(address("2001:db8:0:1::1"), now).is_none());
    }

    #[test]
    fn addresses_beyond_the_bound_are_counted_together() {
        let throttle = AuthThrottle::default();
        let now = Duration::from_secs(1);
        let many = |number: u32| IpAddr::from(number.to_be_bytes());
        for number in 0..100_000 {
            throttle.note(many(number), now);
        }
        let known = throttle.refilled_at.lock().unwrap().len();
        assert!(known <= limits::AUTH_FAILURE_COUNTERS_MAX + 1, "{known} are kept");
        assert!(throttle.wait(many(4_000_000), now).is_some(), "newcomers share what is left");
        assert!(throttle.wait(many(1), now).is_none(), "known ones have their own");
        let later = now + 2 * ALLOWANCE;
        assert_eq!(throttle.note(many(4_000_000), later), None);
        assert_eq!(
            throttle.refilled_at.lock().unwrap().len(),
            1,
            "sources with a full allowance are removed"
        );
    }
}

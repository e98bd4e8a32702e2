//! Wrong keys, counted by the address that they come from.
//!
//! Owns how many an address may send. A key that can be guessed must not be guessed at leisure, and a key that cannot
//! be guessed must not be locked out by somebody who tries: so whoever has sent too many is held off, but a long key is
//! judged all the same (see [`super::auth`]). Behind a proxy all clients have its address; headers that claim another
//! one are not believed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::limits;

/// Whoever has an IPv6 address has all those that differ from it in the last 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
    /// Those that there is no room to count one by one.
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

/// What sources have spent of their allowance: each wrong key costs [`limits::FAILURES_INTERVAL`].
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// When each source has its whole allowance again, in monotonic time.
    whole_again: Mutex<HashMap<Source, Duration>>,
}

const ALLOWANCE: Duration = limits::FAILURES_INTERVAL.saturating_mul(limits::FAILURES_BURST);

impl Failures {
    /// Notes a wrong key. Gives how long the source should wait, when this was one too many.
    pub(super) fn note(&self, address: IpAddr, now: Duration) -> Option<Duration> {
        let mut sources = self.whole_again.lock().unwrap_or_else(PoisonError::into_inner);
        let mut source = Source::from(address);
        if !sources.contains_key(&source) && sources.len() >= limits::FAILING_ADDRESSES_MAX {
            sources.retain(|_, whole_again| *whole_again > now);
            if sources.len() >= limits::FAILING_ADDRESSES_MAX {
                source = Source::Others;
            }
        }
        let whole_again = sources.entry(source).or_default();
        let wait = wait(*whole_again, now);
        if wait.is_none() {
            *whole_again = (*whole_again).max(now) + limits::FAILURES_INTERVAL;
        }
        wait
    }

    /// How long the source has to wait before it may send another wrong key.
    pub(super) fn wait(&self, address: IpAddr, now: Duration) -> Option<Duration> {
        let sources = self.whole_again.lock().unwrap_or_else(PoisonError::into_inner);
        let full = sources.len() >= limits::FAILING_ADDRESSES_MAX;
        let known = sources.get(&Source::from(address));
        let whole_again = known.or_else(|| sources.get(&Source::Others).filter(|_| full))?;
        wait(*whole_again, now)
    }
}

/// Until one more fits into the allowance.
fn wait(whole_again: Duration, now: Duration) -> Option<Duration> {
    let spent = whole_again.saturating_sub(now) + limits::FAILURES_INTERVAL;
    spent.checked_sub(ALLOWANCE).filter(|wait| !wait.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTACKER: &str = "192.0.2.1";

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn exhausted(failures: &Failures, who: &str, now: Duration) -> u32 {
        (0..1_000).take_while(|_| failures.note(address(who), now).is_none()).count() as u32
    }

    #[test]
    fn an_address_is_held_off_after_its_allowance_and_others_are_not() {
        let failures = Failures::default();
        let now = Duration::from_secs(1_000);
        assert_eq!(exhausted(&failures, ATTACKER, now), limits::FAILURES_BURST);
        assert_eq!(failures.wait(address(ATTACKER), now), Some(limits::FAILURES_INTERVAL));
        assert_eq!(
            failures.wait(address("::ffff:192.0.2.1"), now),
            Some(limits::FAILURES_INTERVAL),
            "the same one"
        );
        assert_eq!(failures.wait(address("192.0.2.2"), now), None);
    }

    #[test]
    fn however_long_it_went_on_the_next_try_is_soon() {
        let failures = Failures::default();
        let mut now = Duration::from_secs(1_000);
        let mut judged = 0;
        for _ in 0..100_000 {
            judged += u32::from(failures.note(address(ATTACKER), now).is_none());
            now += Duration::from_millis(1);
        }
        assert!(
            (limits::FAILURES_BURST + 99..=limits::FAILURES_BURST + 101).contains(&judged),
            "{judged} in 100 s"
        );
        now += limits::FAILURES_INTERVAL;
        assert_eq!(failures.note(address(ATTACKER), now), None);
        assert_eq!(exhausted(&failures, ATTACKER, now + 2 * ALLOWANCE), limits::FAILURES_BURST);
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_address() {
        let failures = Failures::default();
        let now = Duration::from_secs(1);
        assert_eq!(exhausted(&failures, "2001:db8::1", now), limits::FAILURES_BURST);
        assert!(failures.wait(address("2001:db8::ffff"), now).is_some());
        assert!(failures.wait(address("2001:db8:0:1::1"), now).is_none());
    }

    #[test]
    fn more_addresses_than_there_is_room_for_are_counted_together() {
        let failures = Failures::default();
        let now = Duration::from_secs(1);
        let many = |number: u32| IpAddr::from(number.to_be_bytes());
        for number in 0..100_000 {
            failures.note(many(number), now);
        }
        let known = failures.whole_again.lock().unwrap().len();
        assert!(known <= limits::FAILING_ADDRESSES_MAX + 1, "{known} are kept");
        assert!(failures.wait(many(4_000_000), now).is_some(), "newcomers share what is left");
        assert!(failures.wait(many(1), now).is_none(), "known ones have their own");
        let later = now + 2 * ALLOWANCE;
        assert_eq!(failures.note(many(4_000_000), later), None);
        assert_eq!(failures.whole_again.lock().unwrap().len(), 1, "whoever is whole again is forgotten");
    }
}

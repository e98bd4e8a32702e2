//! An endpoint's rate: GCRA with burst, by the `governor` crate on the lane's own time.
//!
//! Its only state is the time at which the whole burst is available again ([`Rate::full_at`]). What
//! goes out is reserved on disk first, so that the next life of the daemon begins where this one
//! ended, however it ended. The durable time may be later than the true one, never earlier.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};

use crate::domain::{Now, RateLimit, Timestamp};
use crate::failpoints::{self, Mutation};
use crate::limits;

/// Time as the lane was last told it.
#[derive(Clone, Debug, Default)]
struct ToldClock(Arc<AtomicU64>);

impl Clock for ToldClock {
    type Instant = Told;

    fn now(&self) -> Told {
        Told(self.0.load(Ordering::Relaxed))
    }
}

/// Nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Told(u64);

impl Reference for Told {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.saturating_sub(earlier.0).into()
    }

    fn saturating_sub(&self, duration: Nanos) -> Self {
        Self(self.0.saturating_sub(duration.as_u64()))
    }
}

impl std::ops::Add<Nanos> for Told {
    type Output = Self;

    fn add(self, duration: Nanos) -> Self {
        Self(self.0.saturating_add(duration.as_u64()))
    }
}

/// The limiter's state, which the crate's own store would not show: GCRA's theoretical arrival time,
/// in nanoseconds of the told clock.
#[derive(Clone, Debug, Default)]
struct FullAt(Arc<AtomicU64>);

impl StateStore for FullAt {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, judge: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // A lane has one owner, so nothing comes between the two.
        let (judged, after) = judge(Some(self.0.load(Ordering::Relaxed).into()))?;
        self.0.store(after.as_u64(), Ordering::Relaxed);
        Ok(judged)
    }
}

type Limiter = RateLimiter<NotKeyed, FullAt, ToldClock, NoOpMiddleware<Told>>;

/// Leave for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    Granted,
    /// Only once this time is durable as the one at which the burst is available again. Nothing was
    /// taken.
    Unreserved(Timestamp),
    /// Not yet: [`Rate::denied`] says until when.
    Denied,
}

#[derive(Debug)]
pub(super) struct Rate {
    limit: RateLimit,
    limiter: Limiter,
    clock: ToldClock,
    full_at: FullAt,
    /// What is durable of `full_at`, by the same clock.
    reserved: Duration,
    /// What the last refusal said.
    denied_until: Option<Duration>,
}

impl Rate {
    pub(super) fn new(limit: RateLimit) -> Self {
        let times = if failpoints::is_active(Mutation::DoubleBurst) { 2 } else { 1 };
        let burst = NonZeroU32::new(limit.burst.saturating_mul(times)).unwrap_or(NonZeroU32::MIN);
        let quota =
            Quota::with_period(interval(&limit)).expect("the interval is not zero").allow_burst(burst);
        let (clock, full_at) = (ToldClock::default(), FullAt::default());
        let limiter = RateLimiter::new(quota, full_at.clone(), clock.clone());
        Self { limit, limiter, clock, full_at, reserved: Duration::ZERO, denied_until: None }
    }

    /// As an earlier life left it: with this time as the one at which the burst is available again.
    pub(super) fn restored(limit: RateLimit, full_at: Timestamp, now: Now) -> Self {
        Self::new(limit).with_full_after(full_at.since(now.wall).min(whole_burst(&limit)), now)
    }

    /// Another limit. Requests that were counted for this one count for it, too.
    pub(super) fn changed(self, limit: RateLimit, now: Now) -> Self {
        if limit == self.limit {
            return self;
        }
        let counted = self.full_at().saturating_sub(now.monotonic).as_nanos();
        let wait = counted.saturating_mul(interval(&limit).as_nanos()) / interval(&self.limit).as_nanos();
        let wait = Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX));
        Self::new(limit).with_full_after(wait.min(whole_burst(&limit)), now)
    }

    fn with_full_after(self, wait: Duration, now: Now) -> Self {
        self.full_at.0.store(nanos(now.monotonic.saturating_add(wait)), Ordering::Relaxed);
        self
    }

    pub(super) fn limit(&self) -> RateLimit {
        self.limit
    }

    fn full_at(&self) -> Duration {
        Duration::from_nanos(self.full_at.0.load(Ordering::Relaxed))
    }

    /// Until when nothing may go, as far as is known without taking anything.
    pub(super) fn denied(&self, now: Duration) -> Option<Duration> {
        self.denied_until.filter(|until| *until > now)
    }

    /// Takes leave for one request, if what that takes is durable; a refusal is remembered. What is to
    /// be reserved is good for a request that leaves at most `lead` later.
    pub(super) fn try_take(&mut self, lead: Duration, now: Now) -> Leave {
        self.clock.0.store(nanos(now.monotonic), Ordering::Relaxed);
        let before = self.full_at.0.load(Ordering::Relaxed);
        match self.limiter.check() {
            Ok(()) => {
                self.denied_until = None;
                let full_at = self.full_at();
                if full_at <= self.reserved {
                    return Leave::Granted;
                }
                self.full_at.0.store(before, Ordering::Relaxed);
                let full_at = full_at + reserved_ahead(&self.limit) + lead;
                // The wall clock and what is stored are cut to whole milliseconds.
                let wait = full_at.saturating_sub(now.monotonic) + Duration::from_millis(2);
                Leave::Unreserved(now.wall.plus(wait))
            }
            Err(refusal) => {
                self.denied_until = Some(Duration::from_nanos(refusal.earliest_possible().0));
                Leave::Denied
            }
        }
    }

    /// This time is durable.
    pub(super) fn on_reserved(&mut self, full_at: Timestamp, now: Now) {
        let until = now.monotonic + full_at.since(now.wall);
        self.reserved = self.reserved.max(until.saturating_sub(Duration::from_millis(1)));
    }

    /// The wall clock was set: what is durable says something else now.
    pub(super) fn forget_reserved(&mut self) {
        self.reserved = Duration::ZERO;
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Time that one request takes of the rate.
fn interval(limit: &RateLimit) -> Duration {
    (limit.per / limit.limit.max(1)).max(Duration::from_nanos(1))
}

/// Time after which a whole burst is available again.
fn whole_burst(limit: &RateLimit) -> Duration {
    interval(limit).saturating_mul(limit.burst.max(1))
}

/// What is reserved beyond a request, in whole requests: a fast rate needs one record in this time,
/// and a slow one loses nothing by a restart.
fn reserved_ahead(limit: &RateLimit) -> Duration {
    let interval = interval(limit);
    let count = limits::RATE_RESERVED_AHEAD.as_nanos() / interval.as_nanos();
    interval.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

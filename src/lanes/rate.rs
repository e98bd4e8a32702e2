//! The rate of an endpoint: GCRA with burst, by the `governor` crate on the lane's clock.
//!
//! Its only state is the time at which the whole burst is available again ([`Rate::full_at`]).
//! Requests are reserved on disk before they are sent, so that the rate also holds across crashes.
//! The durable time may be later than the true one, never earlier.

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

/// Clock that the lane sets in each call.
#[derive(Clone, Debug, Default)]
struct ManualClock(Arc<AtomicU64>);

impl Clock for ManualClock {
    type Instant = ManualInstant;

    fn now(&self) -> ManualInstant {
        ManualInstant(self.0.load(Ordering::Relaxed))
    }
}

/// Nanoseconds of monotonic time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ManualInstant(u64);

impl Reference for ManualInstant {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.saturating_sub(earlier.0).into()
    }

    fn saturating_sub(&self, duration: Nanos) -> Self {
        Self(self.0.saturating_sub(duration.as_u64()))
    }
}

impl std::ops::Add<Nanos> for ManualInstant {
    type Output = Self;

    fn add(self, duration: Nanos) -> Self {
        Self(self.0.saturating_add(duration.as_u64()))
    }
}

/// The limiter's state: GCRA's theoretical arrival time, in nanoseconds of [`ManualClock`]. The
/// crate's own store does not expose it.
#[derive(Clone, Debug, Default)]
struct FullAt(Arc<AtomicU64>);

impl StateStore for FullAt {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, judge: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // A lane has one owner, so load and store do not race.
        let (judged, after) = judge(Some(self.0.load(Ordering::Relaxed).into()))?;
        self.0.store(after.as_u64(), Ordering::Relaxed);
        Ok(judged)
    }
}

type Limiter = RateLimiter<NotKeyed, FullAt, ManualClock, NoOpMiddleware<ManualInstant>>;

/// Decision for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RateDecision {
    Granted,
    /// Granted after this time is durable as [`Rate::full_at`]. No request was counted.
    Unreserved(Timestamp),
    /// Denied until [`Rate::denied_until`].
    Denied,
}

#[derive(Debug)]
pub(super) struct Rate {
    limit: RateLimit,
    limiter: Limiter,
    clock: ManualClock,
    full_at: FullAt,
    /// Durable bound of `full_at`, by the same clock.
    reserved: Duration,
    denied_until: Option<Duration>,
}

impl Rate {
    pub(super) fn new(limit: RateLimit) -> Self {
        let times = if failpoints::is_active(Mutation::DoubleBurst) { 2 } else { 1 };
        let burst = NonZeroU32::new(limit.burst.saturating_mul(times)).unwrap_or(NonZeroU32::MIN);
        let quota =
            Quota::with_period(interval(&limit)).expect("the interval is not zero").allow_burst(burst);
        let (clock, full_at) = (ManualClock::default(), FullAt::default());
        let limiter = RateLimiter::new(quota, full_at.clone(), clock.clone());
        Self { limit, limiter, clock, full_at, reserved: Duration::ZERO, denied_until: None }
    }

    /// Restores a rate from the durable time at which its burst is available again.
    pub(super) fn restore(limit: RateLimit, full_at: Timestamp, now: Now) -> Self {
        Self::new(limit).with_full_after(full_at.since(now.wall).min(burst_refill_time(&limit)), now)
    }

    /// Changes the limit. Requests that were counted for the old limit also count for the new one.
    pub(super) fn with_limit(self, limit: RateLimit, now: Now) -> Self {
        if limit == self.limit {
            return self;
        }
        let counted = self.full_at().saturating_sub(now.monotonic).as_nanos();
        let wait = counted.saturating_mul(interval(&limit).as_nanos()) / interval(&self.limit).as_nanos();
        let wait = Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX));
        Self::new(limit).with_full_after(wait.min(burst_refill_time(&limit)), now)
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

    /// End of the last denial if it lies in the future. Does not query the limiter.
    pub(super) fn denied_until(&self, now: Duration) -> Option<Duration> {
        self.denied_until.filter(|until| *until > now)
    }

    /// Counts one request if the durable reservation covers it; remembers a denial. A reservation
    /// that it returns covers requests that leave up to `lead` later.
    pub(super) fn try_take(&mut self, lead: Duration, now: Now) -> RateDecision {
        self.clock.0.store(nanos(now.monotonic), Ordering::Relaxed);
        let before = self.full_at.0.load(Ordering::Relaxed);
        match self.limiter.check() {
            Ok(()) => {
                self.denied_until = None;
                let full_at = self.full_at();
                if full_at <= self.reserved {
                    return RateDecision::Granted;
                }
                self.full_at.0.store(before, Ordering::Relaxed);
                let full_at = full_at + reserved_ahead(&self.limit) + lead;
                // The wall clock and the stored time are truncated to milliseconds.
                let wait = full_at.saturating_sub(now.monotonic) + Duration::from_millis(2);
                RateDecision::Unreserved(now.wall.plus(wait))
            }
            Err(denial) => {
                self.denied_until = Some(Duration::from_nanos(denial.earliest_possible().0));
                RateDecision::Denied
            }
        }
    }

    pub(super) fn on_reserved(&mut self, full_at: Timestamp, now: Now) {
        let until = now.monotonic + full_at.since(now.wall);
        self.reserved = self.reserved.max(until.saturating_sub(Duration::from_millis(1)));
    }

    /// Clears the durable bound after a step of the wall clock, which changes its meaning.
    pub(super) fn clear_reserved(&mut self) {
        self.reserved = Duration::ZERO;
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Time between two requests at the rate.
fn interval(limit: &RateLimit) -> Duration {
    (limit.per / limit.limit.max(1)).max(Duration::from_nanos(1))
}

/// Time until a fully spent burst is available again.
fn burst_refill_time(limit: &RateLimit) -> Duration {
    interval(limit).saturating_mul(limit.burst.max(1))
}

/// Time reserved beyond a request, in whole intervals. A fast rate needs one record in this time,
/// and a slow one loses nothing by a restart.
fn reserved_ahead(limit: &RateLimit) -> Duration {
    let interval = interval(limit);
    let count = limits::RATE_RESERVED_AHEAD.as_nanos() / interval.as_nanos();
    interval.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

//! An endpoint's rate: GCRA with burst, by the `governor` crate on the lane's own time.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::domain::RateLimit;
use crate::knobs::{self, Bug};

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

type Limiter = RateLimiter<NotKeyed, InMemoryState, ToldClock, NoOpMiddleware<Told>>;

#[derive(Debug)]
pub(super) struct Rate {
    limiter: Limiter,
    clock: ToldClock,
    /// What the last refusal said.
    denied_until: Option<Duration>,
}

impl Rate {
    pub(super) fn new(limit: RateLimit) -> Self {
        let interval = (limit.per / limit.limit.max(1)).max(Duration::from_nanos(1));
        let times = if knobs::has(Bug::DoubleBurst) { 2 } else { 1 };
        let burst = NonZeroU32::new(limit.burst.saturating_mul(times)).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(interval).expect("the interval is not zero").allow_burst(burst);
        let clock = ToldClock::default();
        Self { limiter: RateLimiter::direct_with_clock(quota, clock.clone()), clock, denied_until: None }
    }

    /// Until when nothing may go, as far as is known without taking anything.
    pub(super) fn denied(&self, now: Duration) -> Option<Duration> {
        self.denied_until.filter(|until| *until > now)
    }

    /// Takes leave for one request; a refusal is remembered.
    pub(super) fn try_take(&mut self, now: Duration) -> bool {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.clock.0.store(now, Ordering::Relaxed);
        match self.limiter.check() {
            Ok(()) => {
                self.denied_until = None;
                true
            }
            Err(refusal) => {
                self.denied_until = Some(Duration::from_nanos(refusal.earliest_possible().0));
                false
            }
        }
    }
}

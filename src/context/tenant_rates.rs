//! Rates of tenants: events and bytes per second, by GCRA with a burst of one second.
//!
//! Owns the limiters of the tenants that have a rate and published lately. An idle limiter equals a
//! new one after a second, so it can be removed.

use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use governor::clock::{Clock as _, FakeRelativeClock};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota as Gcra, RateLimiter};

use crate::domain::{IdMap, Quota, QuotaExceeded, Quotas, Tenant};
use crate::limits;

/// Bytes per cell of the byte limiter. Coarser cells keep its interval exact at high rates.
const CELL_BYTES: u64 = 1024;
/// Time after which a limiter equals a new one.
const IDLE: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);

type Limiter = RateLimiter<NotKeyed, InMemoryState, FakeRelativeClock, NoOpMiddleware<Nanos>>;

/// One limiter with its limit.
struct Rate {
    limit: u64,
    limiter: Limiter,
    /// Start of the current second, and what was requested in it.
    window: (Duration, u64),
}

impl Rate {
    /// `cells`: the limit in cells of the limiter.
    fn new(limit: u64, cells: u64, clock: &FakeRelativeClock) -> Self {
        let cells = u32::try_from(cells).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        let limiter = RateLimiter::direct_with_clock(Gcra::per_second(cells), clock.clone());
        Self { limit, limiter, window: (Duration::ZERO, 0) }
    }

    /// `amount` is what the request needs, in the unit of the limit.
    fn take(
        &mut self,
        quota: Quota,
        amount: u64,
        cells: u64,
        clock: &FakeRelativeClock,
        now: Duration,
    ) -> Result<(), QuotaExceeded> {
        if now.saturating_sub(self.window.0) >= SECOND {
            self.window = (now, 0);
        }
        self.window.1 = self.window.1.saturating_add(amount);
        let cells = u32::try_from(cells).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        let retry_after = match self.limiter.check_n(cells) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(denied)) => Some(denied.wait_time_from(clock.now())),
            // More than the limit at once, by an atomic request: waiting does not help.
            Err(_) => None,
        };
        let value = self.window.1.max(self.limit + 1);
        Err(QuotaExceeded { quota, limit: self.limit, value, retry_after })
    }
}

#[derive(Default)]
struct TenantRate {
    events: Option<Rate>,
    bytes: Option<Rate>,
    used_at: Duration,
}

/// The rates of all tenants.
#[derive(Default)]
pub(crate) struct TenantRates(Mutex<Inner>);

struct Inner {
    clock: FakeRelativeClock,
    now: Duration,
    tenants: IdMap<Tenant, TenantRate>,
    /// Number of tenants at which idle ones are removed.
    sweep_at: usize,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            clock: FakeRelativeClock::default(),
            now: Duration::ZERO,
            tenants: IdMap::default(),
            sweep_at: limits::TENANT_RATES_SWEEP,
        }
    }
}

impl TenantRates {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// Takes events together: their number and bytes. `now` is monotonic.
    ///
    /// # Errors
    /// When the tenant's rate has no room for them.
    pub(crate) fn take(
        &self,
        tenant: &Tenant,
        quotas: &Quotas,
        amounts: (u64, u64),
        now: Duration,
    ) -> Result<(), QuotaExceeded> {
        let limits = (quotas.limit(Quota::EventsPerSecond), quotas.limit(Quota::BytesPerSecond));
        if limits == (None, None) {
            return Ok(());
        }
        self.lock().take(tenant, limits, amounts, now)
    }
}

impl Inner {
    fn take(
        &mut self,
        tenant: &Tenant,
        (events_max, bytes_max): (Option<u64>, Option<u64>),
        (events, bytes): (u64, u64),
        now: Duration,
    ) -> Result<(), QuotaExceeded> {
        // Several threads read the clock, so times may arrive out of order.
        self.clock.advance(now.saturating_sub(self.now));
        self.now = self.now.max(now);
        let (clock, now) = (self.clock.clone(), self.now);
        if !self.tenants.contains_key(tenant) {
            self.sweep();
            self.tenants.insert(tenant.clone(), TenantRate::default());
        }
        let Some(rate) = self.tenants.get_mut(tenant) else { return Ok(()) };
        rate.used_at = now;
        set_limit(&mut rate.events, events_max, |limit| Rate::new(limit, limit, &clock));
        set_limit(&mut rate.bytes, bytes_max, |limit| Rate::new(limit, limit / CELL_BYTES, &clock));
        if let Some(rate) = &mut rate.bytes {
            rate.take(Quota::BytesPerSecond, bytes, bytes.div_ceil(CELL_BYTES), &clock, now)?;
        }
        if let Some(rate) = &mut rate.events {
            rate.take(Quota::EventsPerSecond, events, events, &clock, now)?;
        }
        Ok(())
    }

    /// Removes idle tenants when there are many. Each sweep doubles the number for the next one, so
    /// its cost per tenant is constant.
    fn sweep(&mut self) {
        if self.tenants.len() < self.sweep_at {
            return;
        }
        let now = self.now;
        self.tenants.retain(|_, rate| now.saturating_sub(rate.used_at) < IDLE);
        self.sweep_at = limits::TENANT_RATES_SWEEP.max(2 * self.tenants.len());
    }
}

/// Replaces a limiter whose limit has changed.
fn set_limit(rate: &mut Option<Rate>, limit: Option<u64>, new: impl Fn(u64) -> Rate) {
    if rate.as_ref().map(|rate| rate.limit) != limit {
        *rate = limit.map(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas(events: Option<u64>, bytes: Option<u64>) -> Quotas {
        Quotas::default().with(Quota::EventsPerSecond, events).with(Quota::BytesPerSecond, bytes)
    }

    fn tenant(name: &str) -> Tenant {
        name.parse().unwrap()
    }

    #[test]
    fn rate_admits_one_second_at_once_then_its_rate() {
        let (rates, acme, limit) = (TenantRates::default(), tenant("acme"), quotas(Some(5), None));
        let take = |millis| rates.take(&acme, &limit, (1, 10), Duration::from_millis(millis));
        assert!((0..5).all(|_| take(1_000).is_ok()));
        let refused = take(1_000).unwrap_err();
        assert_eq!((refused.quota, refused.limit, refused.value), (Quota::EventsPerSecond, 5, 6));
        assert_eq!(refused.retry_after, Some(Duration::from_millis(200)));
        assert!(take(1_200).is_ok());
        assert!(take(1_300).is_err());
        // Another tenant has its own rate, and one without a limit has none.
        assert!(rates.take(&tenant("other"), &limit, (1, 10), Duration::from_millis(1_300)).is_ok());
        assert!((0..99).all(|_| rates.take(&acme, &quotas(None, None), (1, 10), Duration::ZERO).is_ok()));
    }

    #[test]
    fn atomic_request_above_a_rate_is_refused_for_good() {
        let (rates, acme, limit) = (TenantRates::default(), tenant("acme"), quotas(Some(5), None));
        let refused = rates.take(&acme, &limit, (6, 60), SECOND).unwrap_err();
        assert_eq!((refused.value, refused.limit, refused.retry_after), (6, 5, None));
        assert!(rates.take(&acme, &limit, (5, 50), SECOND).is_ok());
        assert!(rates.take(&acme, &limit, (1, 10), SECOND).unwrap_err().retry_after.is_some());
    }

    #[test]
    fn byte_rate_admits_the_largest_event() {
        let largest = limits::EVENT_BYTES_MAX as u64;
        let (rates, acme) = (TenantRates::default(), tenant("acme"));
        let limit = quotas(None, Some(limits::QUOTA_BYTES_PER_SECOND_MIN));
        let take = |millis| rates.take(&acme, &limit, (1, largest), Duration::from_millis(millis));
        assert!(take(1).is_ok());
        let refused = take(1).unwrap_err();
        assert_eq!((refused.quota, refused.value), (Quota::BytesPerSecond, 2 * largest));
        assert!(take(1_010).is_ok());
    }

    #[test]
    fn changed_limit_takes_effect_at_once() {
        let (rates, acme) = (TenantRates::default(), tenant("acme"));
        let take = |limit| rates.take(&acme, &quotas(Some(limit), None), (1, 1), SECOND);
        assert!(take(1).is_ok() && take(1).is_err());
        assert!(take(2).is_ok());
    }

    #[test]
    fn idle_tenants_are_removed() {
        let (rates, limit) = (TenantRates::default(), quotas(Some(5), None));
        for number in 0..limits::TENANT_RATES_SWEEP {
            rates.take(&tenant(&format!("t{number}")), &limit, (1, 1), SECOND).unwrap();
        }
        rates.take(&tenant("late"), &limit, (1, 1), SECOND + IDLE).unwrap();
        assert_eq!(rates.lock().tenants.len(), 1);
    }
}

//! The only place that reads clocks and randomness.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::domain::{Now, Timestamp};
use crate::failpoints;
use crate::failpoints::Mutation;
use crate::outbox::decide::CommitEnvironment;

/// The clocks of the system as this process reads them.
static SYSTEM: LazyLock<Clock> = LazyLock::new(|| Clock::new(read_system));

static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Both clocks. Clones are one clock.
///
/// The wall clock that everything is scheduled, accepted and expired by never goes back, and runs on at least as fast as
/// monotonic time: when somebody sets the system's clock back by hours, nothing waits for hours. It follows a clock that
/// is set forward, and never stands before the last commit of an earlier life. What strangers compare with their own
/// clocks goes by the second of [`Clock::now_and_civil`].
#[derive(Clone, Debug)]
pub struct Clock {
    read: fn() -> Now,
    /// By how much wall time is ahead of monotonic time at most so far, in milliseconds.
    lead: Arc<AtomicI64>,
}

impl Default for Clock {
    /// The system's.
    fn default() -> Self {
        SYSTEM.clone()
    }
}

impl Clock {
    /// Over a reading of both clocks as they are.
    #[must_use]
    pub fn new(read: fn() -> Now) -> Self {
        Self { read, lead: Arc::new(AtomicI64::new(i64::MIN)) }
    }

    #[must_use]
    pub fn now(&self) -> Now {
        self.now_and_civil().0
    }

    /// As [`Self::now`], with the wall clock as it stands, right or wrong: for signatures, and for dates that receivers name.
    #[must_use]
    pub fn now_and_civil(&self) -> (Now, Timestamp) {
        let read = (self.read)();
        if failpoints::is_active(Mutation::TrustWallClock) {
            return (read, read.wall);
        }
        let lead = self.raise(lead(read.wall, read));
        let wall = u64::try_from(lead.saturating_add(millis(read.monotonic))).unwrap_or(0);
        (Now { wall: Timestamp::from_millis(wall), ..read }, read.wall)
    }

    /// From now on it does not stand before `wall`.
    pub fn not_before(&self, wall: Timestamp) {
        self.raise(lead(wall, (self.read)()));
    }

    fn raise(&self, lead: i64) -> i64 {
        let known = self.lead.load(Ordering::Relaxed);
        if known >= lead { known } else { self.lead.fetch_max(lead, Ordering::Relaxed).max(lead) }
    }
}

fn millis(monotonic: Duration) -> i64 {
    i64::try_from(monotonic.as_millis()).unwrap_or(i64::MAX)
}

fn lead(wall: Timestamp, now: Now) -> i64 {
    i64::try_from(wall.millis()).unwrap_or(i64::MAX).saturating_sub(millis(now.monotonic))
}

fn read_system() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let wall = Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    Now { wall, monotonic: STARTED.elapsed() }
}

/// `N` random bytes.
///
/// # Panics
/// When the operating system has no randomness.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill_random(&mut bytes);
    bytes
}

/// # Panics
/// When the operating system has no randomness.
pub(super) fn fill_random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the operating system has randomness");
}

/// Time and chance for the writer.
#[derive(Debug)]
pub struct SystemSource;

impl CommitEnvironment for SystemSource {
    fn now(&mut self) -> Timestamp {
        SYSTEM.now().wall
    }

    fn random(&mut self) -> u128 {
        u128::from_be_bytes(random_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static NOW: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    }

    fn told() -> Now {
        let (wall, monotonic) = NOW.get();
        Now { wall: Timestamp::from_millis(wall), monotonic: Duration::from_millis(monotonic) }
    }

    #[test]
    fn a_clock_that_is_set_back_neither_goes_back_nor_stands_still() {
        let clock = Clock::new(told);
        let read = |wall, monotonic| {
            NOW.set((wall, monotonic));
            clock.now().wall.millis()
        };
        assert_eq!(read(1_000_000, 10), 1_000_000);
        assert_eq!(read(1_000_005, 15), 1_000_005);
        assert_eq!(read(400_000, 25), 1_000_015, "set back");
        assert_eq!(read(400_500, 525), 1_000_515);
        assert_eq!(read(9_000_000, 530), 9_000_000, "set forward");
        assert_eq!(clock.now_and_civil().1.millis(), 9_000_000);
        NOW.set((5, 600));
        clock.not_before(Timestamp::from_millis(9_900_000));
        assert_eq!(clock.now().wall.millis(), 9_900_000);
        assert_eq!(clock.now_and_civil().1.millis(), 5);
    }
}

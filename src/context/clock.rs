//! Clocks and system randomness. No other module reads them.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::domain::{Now, Timestamp};
use crate::failpoints;
use crate::failpoints::Mutation;
use crate::outbox::decide::CommitEnvironment;

/// The system's clocks, shared by the process.
static SYSTEM: LazyLock<Clock> = LazyLock::new(|| Clock::new(read_system));

static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The wall clock and the monotonic clock. Clones share their state.
///
/// This wall clock schedules, accepts and expires. It never goes back, and advances at least as
/// fast as monotonic time, so that a backward step of the system's clock delays no delivery. It
/// follows forward steps, and starts no earlier than the last commit of the previous process. Times
/// that other parties compare with their clocks use the second value of [`Clock::now_and_civil`].
#[derive(Clone, Debug)]
pub struct Clock {
    read: fn() -> Now,
    /// Maximum lead of wall time over monotonic time so far, in milliseconds.
    lead: Arc<AtomicI64>,
}

impl Default for Clock {
    /// The system's clocks.
    fn default() -> Self {
        SYSTEM.clone()
    }
}

impl Clock {
    /// A clock over a function that reads both raw clocks.
    #[must_use]
    pub fn new(read: fn() -> Now) -> Self {
        Self { read, lead: Arc::new(AtomicI64::new(i64::MIN)) }
    }

    #[must_use]
    pub fn now(&self) -> Now {
        self.now_and_civil().0
    }

    /// Like [`Self::now`], with the raw wall clock: for signatures, and for dates in replies.
    #[must_use]
    pub fn now_and_civil(&self) -> (Now, Timestamp) {
        let read = (self.read)();
        if failpoints::is_active(Mutation::TrustWallClock) {
            return (read, read.wall);
        }
        let lead = self.raise_lead(lead(read.wall, read));
        let wall = u64::try_from(lead.saturating_add(millis(read.monotonic))).unwrap_or(0);
        (Now { wall: Timestamp::from_millis(wall), ..read }, read.wall)
    }

    /// Raises the wall clock to at least `wall`.
    pub fn raise_to(&self, wall: Timestamp) {
        self.raise_lead(lead(wall, (self.read)()));
    }

    fn raise_lead(&self, lead: i64) -> i64 {
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
/// When the operating system provides no random bytes.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill_random(&mut bytes);
    bytes
}

pub(super) fn fill_random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the operating system provides random bytes");
}

/// Time and randomness for the writer.
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

    fn read_test_clock() -> Now {
        let (wall, monotonic) = NOW.get();
        Now { wall: Timestamp::from_millis(wall), monotonic: Duration::from_millis(monotonic) }
    }

    #[test]
    fn wall_clock_advances_after_the_system_clock_is_set_back() {
        let clock = Clock::new(read_test_clock);
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
        clock.raise_to(Timestamp::from_millis(9_900_000));
        assert_eq!(clock.now().wall.millis(), 9_900_000);
        assert_eq!(clock.now_and_civil().1.millis(), 5);
    }
}

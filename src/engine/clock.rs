//! The only place that reads clocks and randomness.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::domain::{Now, Timestamp};
use crate::store::writer::Source;

/// Reads both clocks of the system.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self { started: Instant::now() }
    }
}

impl Clock {
    #[must_use]
    pub fn now(&self) -> Now {
        Now { wall: wall(), monotonic: self.started.elapsed() }
    }
}

fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// # Panics
/// When the operating system has no randomness.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    bytes
}

/// Time and chance for the writer.
#[derive(Debug)]
pub struct SystemSource;

impl Source for SystemSource {
    fn now(&mut self) -> Timestamp {
        wall()
    }

    fn random(&mut self) -> u128 {
        u128::from_be_bytes(random_bytes())
    }
}

//! The only place that reads clocks and randomness.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::domain::{Now, Timestamp};
use crate::store::writer::Source;

/// Both clocks: those of the system, or told ones.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    System {
        started: Instant,
    },
    #[cfg(test)]
    #[allow(dead_code, reason = "for simulations")]
    Told(fn() -> Now),
}

impl Default for Clock {
    fn default() -> Self {
        Self::System { started: Instant::now() }
    }
}

impl Clock {
    #[must_use]
    pub fn now(&self) -> Now {
        match self {
            Self::System { started } => Now { wall: wall(), monotonic: started.elapsed() },
            #[cfg(test)]
            Self::Told(now) => now(),
        }
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

//! Long computations of requests: parsing a batch, serialising its results or a long page.
//!
//! They leave the thread that serves other requests, so that a short request does not wait behind
//! them. Parties take turns, and there is one turn for each processor.

use tokio::runtime::{Handle, RuntimeFlavor};

use crate::context::fair_semaphore::FairSemaphore;
use crate::domain::Party;
use crate::limits::HEAVY_WORK_BYTES;

/// The turns of long computations.
pub struct HeavyWork(FairSemaphore<Party>);

impl Default for HeavyWork {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(FairSemaphore::new(processors))
    }
}

impl HeavyWork {
    /// Computes something about this many bytes. Few bytes need no turn.
    pub async fn run<R>(&self, party: &Party, bytes: usize, work: impl FnOnce() -> R) -> R {
        if bytes < HEAVY_WORK_BYTES {
            return work();
        }
        let _turn = self.0.turn(party).await;
        off_thread(work)
    }
}

/// Runs a long computation while another thread serves the other requests of this thread.
pub fn off_thread<R>(work: impl FnOnce() -> R) -> R {
    let has_threads =
        Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if has_threads { tokio::task::block_in_place(work) } else { work() }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn computes() {
        let work = HeavyWork::default();
        let party = Party::Operator;
        assert_eq!(work.run(&party, 0, || 1).await, 1);
        assert_eq!(work.run(&party, HEAVY_WORK_BYTES, || 2).await, 2);
    }

    #[tokio::test]
    async fn work_runs_on_a_single_thread() {
        computes().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn work_runs_beside_other_requests() {
        computes().await;
    }
}

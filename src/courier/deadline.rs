//! Deadlines that count only the time in which this process runs.
//!
//! Time in which the process was stopped, or the machine slept, is not charged to the receiver.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::task::unconstrained;

/// A timer that is late by more than this was late because the process was suspended.
const TIMER_STEP: Duration = Duration::from_secs(1);

/// Completes when this process has run for `remaining`.
pub(super) async fn running_timer(mut remaining: Duration) {
    while !remaining.is_zero() {
        let step = remaining.min(TIMER_STEP);
        let started = tokio::time::Instant::now();
        tokio::time::sleep(step).await;
        if started.elapsed() < step + TIMER_STEP {
            remaining -= step;
        }
    }
}

/// The result of `work`, or `None` if `deadline` ends first. The deadline is polled even if `work`
/// has used up the task's budget, so a receiver that streams forever cannot starve it.
///
/// The caller pins both futures. An async function would store its arguments twice and double the
/// size of the attempt's future.
pub(super) fn with_deadline<T>(
    mut deadline: Pin<&mut impl Future<Output = ()>>,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> impl Future<Output = Option<T>> {
    poll_fn(move |cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => pin!(unconstrained(deadline.as_mut())).poll(cx).map(|()| None),
    })
}

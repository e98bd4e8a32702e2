//! Background tasks: restartable work that blocks no request and no attempt.
//!
//! Owns the handling of a task's panic: counts it, logs it, and restarts the task after a pause, so
//! that a bug in retention does not stop deliveries. Essential loops and threads belong elsewhere:
//! their panic ends the process ([`crate::panics`]).

use std::time::Duration;

use crate::context::Context;
use crate::metrics::BackgroundTask;
use crate::panics;

/// Pause between a panic and the restart.
const PAUSE: Duration = Duration::from_secs(5);

/// Runs a task until it returns. Restarts it after a panic.
pub(super) async fn run_task<F: Future>(
    context: &Context,
    task: BackgroundTask,
    start: impl Fn(Context) -> F,
) -> F::Output {
    loop {
        if let Ok(done) = panics::caught(start(context.clone())).await {
            return done;
        }
        context.metrics().task_panicked(task);
        tracing::error!(task = task.as_str(), pause = ?PAUSE, "background task panicked, restarting");
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn panicked_task_is_counted_and_restarted() {
        let (context, _dispatcher, _directory) = crate::service::tests::context();
        let runs = AtomicU32::new(0);
        let done = run_task(&context, BackgroundTask::Retention, async |_| {
            assert!(runs.fetch_add(1, Ordering::Relaxed) == 2, "on purpose");
            "done"
        });
        assert_eq!(done.await, "done");
        let metrics = String::from_utf8(context.metrics().encode()).unwrap();
        let counted = r#"balto_background_panics_total{task="retention"} 2"#;
        assert!(metrics.contains(counted), "{metrics}");
    }
}

//! Background jobs: work that no request and no attempt waits for, and that can be begun again.
//!
//! Owns what the panic of a job costs: that run of it. It is counted, logged, and the job begins again after a pause, so
//! that a bug in retention stops no delivery. Loops and threads that everything else rests on are no jobs: their panic
//! ends the process ([`crate::panics`]).

use std::time::Duration;

use crate::context::Context;
use crate::metrics::BackgroundJob;
use crate::panics;

/// Between a panic and the next run.
const PAUSE: Duration = Duration::from_secs(5);

/// Runs a job until it ends by itself.
pub(super) async fn see_to<F: Future>(
    context: &Context,
    job: BackgroundJob,
    begin: impl Fn(Context) -> F,
) -> F::Output {
    loop {
        if let Ok(done) = panics::caught(begin(context.clone())).await {
            return done;
        }
        context.metrics().job_panicked(job);
        tracing::error!(job = job.as_str(), pause = ?PAUSE, "background job panicked, starting it again");
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn panicked_job_is_counted_and_begins_again() {
        let (context, _dispatcher, _directory) = crate::service::tests::context();
        let runs = AtomicU32::new(0);
        let done = see_to(&context, BackgroundJob::Retention, async |_| {
            assert!(runs.fetch_add(1, Ordering::Relaxed) == 2, "on purpose");
            "done"
        });
        assert_eq!(done.await, "done");
        let metrics = String::from_utf8(context.metrics().encode()).unwrap();
        let counted = r#"balto_background_panics_total{job="retention"} 2"#;
        assert!(metrics.contains(counted), "{metrics}");
    }
}

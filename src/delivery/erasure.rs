//! The erasure task: removes the content of erased events from the disk, soon after each erasure.
//!
//! A pass may rewrite a segment for one event. So passes have a pause between them, and erasures
//! that arrive in the pause share the next pass.

use std::time::Duration;

use crate::context::Context;
use crate::context::home::Home;
use crate::delivery::background::run_task;
use crate::maintenance::erasure::{ErasureReport, Erasures};
use crate::metrics::BackgroundTask;
use crate::panics;

/// Pause after a pass.
const PAUSE: Duration = Duration::from_secs(2);
/// Pause after a pass that left content, for example during a backup.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// Runs erasure passes forever. The first pass continues the work of the previous process.
pub async fn run(context: Context) {
    run_task(&context, BackgroundTask::Erasure, run_passes).await;
}

async fn run_passes(context: Context) {
    panics::test_point("erasure");
    let mut erasures = Erasures::new(context.outbox_of(Home::All).clone());
    loop {
        let is_done = match erasures.pass(context.now().wall).await {
            Ok(ErasureReport { events, records, left }) => {
                context.metrics().set_pending_erasures(left);
                if events + left > 0 {
                    tracing::info!(events, records, left, "erasure pass completed");
                }
                left == 0
            }
            Err(error) => {
                tracing::warn!(%error, "erasure pass failed, retrying");
                false
            }
        };
        if is_done {
            tokio::time::sleep(PAUSE).await;
            context.erasure_requested().await;
        } else {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

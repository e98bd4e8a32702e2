//! Records the hours in which API keys were used, so that a restart keeps them.

use std::time::Duration;

use crate::context::Context;
use crate::delivery::background::run_task;
use crate::metrics::BackgroundTask;
use crate::service::Keys;

/// Pause between two passes: a crash loses at most the uses of this time.
const PAUSE: Duration = Duration::from_secs(300);
/// How long a shutdown waits for the last pass.
const LAST_PASS_MAX: Duration = Duration::from_secs(1);

/// Records new hours forever.
pub async fn run(context: Context) {
    run_task(&context, BackgroundTask::KeyUses, run_passes).await;
}

async fn run_passes(context: Context) {
    loop {
        tokio::time::sleep(PAUSE).await;
        pass(&context).await;
    }
}

/// Records the hours since the last pass, before a shutdown.
pub async fn finish(context: &Context) {
    if tokio::time::timeout(LAST_PASS_MAX, pass(context)).await.is_err() {
        tracing::warn!("recording the last uses of keys timed out");
    }
}

async fn pass(context: &Context) {
    if let Err(error) = Keys(context).record_uses().await {
        tracing::warn!(%error, "recording the last uses of keys failed");
    }
}

//! The task that rebuilds the state when an operator requests it.

use crate::context::Context;
use crate::context::home::Home;
use crate::delivery::background::run_task;
use crate::domain::Position;
use crate::maintenance::rebuild::rebuild;
use crate::metrics::BackgroundTask;
use crate::outbox::rebuild::RebuildError;
use crate::panics;

/// Runs requested rebuilds forever.
pub async fn run(context: Context) {
    run_task(&context, BackgroundTask::Rebuild, run_requests).await;
}

async fn run_requests(context: Context) {
    // A panic ended the one before.
    end(&context, Err("an internal error, see the log".to_owned()));
    loop {
        context.rebuilds().requested().await;
        panics::test_point("rebuild");
        tracing::info!("state rebuild started");
        match run_once(&context).await {
            Ok(position) => {
                tracing::info!(%position, "state rebuild completed");
                end(&context, Ok(position));
                // The new state does not know which content has left the disk, and has again what
                // retention removed.
                context.request_erasure_pass();
                context.request_retention_pass();
            }
            Err(error) => {
                tracing::warn!(%error, "state rebuild failed, the old state is kept");
                end(&context, Err(error.to_string()));
            }
        }
    }
}

pub(crate) async fn run_once(context: &Context) -> Result<Position, RebuildError> {
    rebuild(context.outbox_of(Home::All), &mut |done, total| context.rebuilds().on_progress(done, total))
        .await
}

fn end(context: &Context, result: Result<Position, String>) {
    context.rebuilds().end(context.now().wall, result);
}

//! Retention as the daemon runs it: dead letters that nobody wants any more are purged, then the store takes its pass.

use std::time::Duration;

use super::Engine;
use super::types::{ChangeError, Filter, Scope};
use crate::store::retention::{Pass, Retention, RetentionPolicy};

/// Longest and shortest pause between two passes.
const PAUSE_MAX: Duration = Duration::from_secs(600);
const PAUSE_MIN: Duration = Duration::from_secs(5);

/// How long things are kept; `None`: for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    pub events: Option<Duration>,
    pub stream_events: Option<Duration>,
    pub dead_letters: Option<Duration>,
}

impl Keep {
    /// A tenth of the shortest, so that nothing stays much longer than was asked for. `None`: no pass is needed.
    fn pause(&self) -> Option<Duration> {
        let shortest = [self.events, self.stream_events, self.dead_letters].into_iter().flatten().min()?;
        Some((shortest / 10).clamp(PAUSE_MIN, PAUSE_MAX))
    }
}

/// Takes passes for ever, or ends at once when everything is kept.
pub async fn run(engine: Engine, keep: Keep) {
    let Some(pause) = keep.pause() else { return };
    let mut retention = retention(&engine, keep);
    loop {
        tokio::time::sleep(pause).await;
        match pass(&engine, keep, &mut retention).await {
            Ok(Pass { events: 0, records: 0, .. }) => {}
            Ok(Pass { events, records, bytes }) => {
                engine.metrics().retained(events, bytes);
                tracing::info!(events, records, bytes, "retention has removed what is over");
            }
            Err(error) => tracing::warn!(%error, "retention goes on at its next pass"),
        }
    }
}

pub(super) fn retention(engine: &Engine, keep: Keep) -> Retention {
    let policy = RetentionPolicy { events: keep.events, stream_events: keep.stream_events };
    Retention::new(engine.outbox().clone(), policy)
}

pub(super) async fn pass(
    engine: &Engine,
    keep: Keep,
    retention: &mut Retention,
) -> Result<Pass, ChangeError> {
    let now = engine.now().wall;
    if let Some(age) = keep.dead_letters {
        let over = Filter { until: Some(now.minus(age)), ..Filter::default() };
        engine.purge_matching(&Scope(None), over, None).await?;
    }
    Ok(retention.pass(now).await?)
}

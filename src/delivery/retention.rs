//! The retention task: gives up overdue deliveries, purges dead letters, deletes old events.
//!
//! A pending delivery keeps its event. At a paused endpoint, or under a retry schedule without a
//! maximum age, it could stay pending forever. So a delivery expires when it has been due for
//! longer than the retention period of its event. A delivery with a later due time does not expire.

use std::time::Duration;

use crate::context::Context;
use crate::context::home::Home;
use crate::delivery::background::run_task;
use crate::domain::{DeadReason, Timestamp};
use crate::failpoints::Bound;
use crate::maintenance::retention::{Retention, RetentionPolicy, RetentionReport};
use crate::metrics::BackgroundTask;
use crate::outbox::ReadModel;
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::projections::reads::Filter;
use crate::projections::retention::Cutoffs;
use crate::service::Consumers;
use crate::service::bulk::Deaths;
use crate::service::dead_letters::DeadLetters;
use crate::service::deliveries::Deliveries;
use crate::{failpoints, panics};

/// Bounds of the pause between two passes.
const PAUSE_MAX: Duration = Duration::from_secs(600);
const PAUSE_MIN: Duration = Duration::from_secs(5);

/// Upper bound of an attempt's duration. The grace period lets a running attempt end first.
const ATTEMPT_SECONDS_MAX: usize = 300;

/// Retention periods; `None`: forever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    pub events: Option<Duration>,
    pub stream_events: Option<Duration>,
    pub dead_letters: Option<Duration>,
    /// Of audit entries.
    pub audit: Option<Duration>,
}

impl Keep {
    /// A tenth of the shortest period, to bound a deletion's delay. `None` without a period.
    fn pause(&self) -> Option<Duration> {
        let shortest =
            [self.events, self.stream_events, self.dead_letters, self.audit].into_iter().flatten().min()?;
        Some((shortest / 10).clamp(PAUSE_MIN, PAUSE_MAX))
    }
}

/// Runs retention passes forever. Returns at once if no retention period is set.
pub async fn run(context: Context, keep: Keep) {
    let Some(pause) = keep.pause() else { return };
    run_task(&context, BackgroundTask::Retention, |context| run_passes(context, keep, pause)).await;
}

/// Runs passes until a panic. Completed work stays; the restarted task continues from the disk.
/// The first pass is after a pause, because the clock may be wrong when a machine starts. A rebuild
/// asks for one at once.
async fn run_passes(context: Context, keep: Keep, pause: Duration) {
    panics::test_point("retention");
    let mut retention = retention(&context, keep);
    loop {
        let _requested = tokio::time::timeout(pause, context.retention_requested()).await.is_ok();
        match pass(&context, keep, &mut retention).await {
            Ok(RetentionReport { events: 0, records: 0, .. }) => {}
            Ok(RetentionReport { events, records, bytes }) => {
                context.metrics().retention_removed(events, bytes);
                tracing::info!(events, records, bytes, "retention pass completed");
            }
            Err(error) => tracing::warn!(%error, "retention pass failed, retrying at the next pass"),
        }
    }
}

pub(crate) fn retention(context: &Context, keep: Keep) -> Retention {
    let Keep { events, stream_events, audit, .. } = keep;
    let policy = RetentionPolicy { events, stream_events, audit };
    Retention::new(context.outbox_of(Home::All).clone(), policy)
}

pub(crate) async fn pass(
    context: &Context,
    keep: Keep,
    retention: &mut Retention,
) -> Result<RetentionReport, ChangeError> {
    let now = context.now().wall;
    expire(context, keep, now).await?;
    if let Some(age) = keep.dead_letters {
        let expired = Filter { until: Some(now.minus(age)), ..Filter::default() };
        DeadLetters(context).purge_matching(expired).await?;
    }
    let report = retention.pass(now).await?;
    Consumers(context).report_gone().await;
    Ok(report)
}

/// Gives up overdue deliveries, in bounded steps.
async fn expire(context: &Context, keep: Keep, now: Timestamp) -> Result<(), Unavailable> {
    let grace = Duration::from_secs(failpoints::bound(Bound::AttemptSecondsMax, ATTEMPT_SECONDS_MAX) as u64);
    let before = |keep: Option<Duration>| keep.map(|keep| now.minus(keep + grace));
    let cutoffs = Cutoffs { events: before(keep.events), stream_events: before(keep.stream_events) };
    let mut page = Some(0);
    let mut deaths = Deaths::new(DeadReason::Expired);
    let mut expired = Ok(());
    while let Some(from) = page {
        let overdue = move |state: &dyn ReadModel| {
            let overdue = state.overdue(cutoffs, from);
            (overdue.deliveries, overdue.next)
        };
        page = match Deliveries(context).give_up_if(&mut deaths, overdue, || true).await {
            Ok(next) => next,
            Err(error) => {
                expired = Err(error);
                None
            }
        };
    }
    Deliveries(context).report(deaths).await;
    expired
}

//! Retention as the daemon runs it: what has waited for too long becomes a dead letter, dead letters that nobody wants any
//! more are purged, then the store takes its pass.
//!
//! A delivery keeps its event for as long as it is pending, and at an endpoint that is paused, or that fails by a schedule
//! without an age, nothing else would ever end it. So one that has been due for longer than its event is kept has expired.
//! One that is to be tried at a later time has not, however old it is.

use std::time::Duration;

use crate::context::Context;
use crate::delivery::background::see_to;
use crate::domain::{DeadReason, Timestamp};
use crate::failpoints::Bound;
use crate::maintenance::retention::{Retention, RetentionPolicy, RetentionReport};
use crate::metrics::BackgroundJob;
use crate::outbox::ReadModel;
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::projections::reads::Filter;
use crate::projections::retention::Cutoffs;
use crate::service::dead_letters::DeadLetters;
use crate::service::deliveries::Deliveries;
use crate::service::types::Scope;
use crate::{failpoints, panics};

/// Longest and shortest pause between two passes.
const PAUSE_MAX: Duration = Duration::from_secs(600);

const PAUSE_MIN: Duration = Duration::from_secs(5);

/// Longer than an attempt takes: one that is under way, and began in time, is let end.
const ATTEMPT_SECONDS_MAX: usize = 300;

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
pub async fn run(context: Context, keep: Keep) {
    let Some(pause) = keep.pause() else { return };
    see_to(&context, BackgroundJob::Retention, |context| take_passes(context, keep, pause)).await;
}

/// What a pass has done stays when a later one panics: the next run begins with what the disk has.
async fn take_passes(context: Context, keep: Keep, pause: Duration) {
    panics::test_point("retention");
    let mut retention = retention(&context, keep);
    loop {
        tokio::time::sleep(pause).await;
        match pass(&context, keep, &mut retention).await {
            Ok(RetentionReport { events: 0, records: 0, .. }) => {}
            Ok(RetentionReport { events, records, bytes }) => {
                context.metrics().retention_removed(events, bytes);
                tracing::info!(events, records, bytes, "retention has removed what is over");
            }
            Err(error) => tracing::warn!(%error, "retention goes on at its next pass"),
        }
    }
}

pub(crate) fn retention(context: &Context, keep: Keep) -> Retention {
    let policy = RetentionPolicy { events: keep.events, stream_events: keep.stream_events };
    Retention::new(context.outbox().clone(), policy)
}

pub(crate) async fn pass(
    context: &Context,
    keep: Keep,
    retention: &mut Retention,
) -> Result<RetentionReport, ChangeError> {
    let now = context.now().wall;
    expire(context, keep, now).await?;
    if let Some(age) = keep.dead_letters {
        let over = Filter { until: Some(now.minus(age)), ..Filter::default() };
        DeadLetters(context).purge_matching(&Scope(None), over, None).await?;
    }
    Ok(retention.pass(now).await?)
}

/// Gives up what has been due for too long, in bounded steps.
async fn expire(context: &Context, keep: Keep, now: Timestamp) -> Result<(), Unavailable> {
    let grace = Duration::from_secs(failpoints::bound(Bound::AttemptSecondsMax, ATTEMPT_SECONDS_MAX) as u64);
    let before = |keep: Option<Duration>| keep.map(|keep| now.minus(keep + grace));
    let cutoffs = Cutoffs { events: before(keep.events), stream_events: before(keep.stream_events) };
    let mut page = Some(0);
    while let Some(from) = page {
        let overdue = move |state: &dyn ReadModel| {
            let overdue = state.overdue(cutoffs, from);
            (overdue.deliveries, overdue.next)
        };
        page = Deliveries(context).give_up(DeadReason::Expired, overdue).await?;
    }
    Ok(())
}

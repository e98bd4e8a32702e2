//! Upkeep of lanes in the background: sweeps, reordering, expiry at disabled endpoints, refills.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;

use crate::context::Context;
use crate::context::signal::Signal;
use crate::domain::{
    DeadReason, DeliveryKey, DueKey, Endpoint, EndpointNumber, EndpointStatus, Progress, RetryPolicy,
    Timestamp,
};
use crate::failpoints::Bound;
use crate::outbox::ReadModel;
use crate::outbox::draft::Unavailable;
use crate::service::bulk::{Deaths, deliveries_per_step};
use crate::service::deliveries::Deliveries;
use crate::{failpoints, limits};

/// Pause before the work continues after the outbox rejects a commit.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Idempotent work on all pending deliveries of an endpoint, in bounded steps.
#[derive(Clone, Copy, Debug)]
pub(super) enum PendingWork {
    /// Turns the deliveries of a deleted endpoint into dead letters.
    Sweep,
    /// Requeues the deliveries by the endpoint's ordering.
    Reorder,
}

pub(super) async fn reorder_all(context: Context, endpoints: Vec<EndpointNumber>) {
    for endpoint in endpoints {
        run_until_done(context.clone(), endpoint, PendingWork::Reorder).await;
    }
}

/// Does the work until none is left. Waits while the disk is full or the outbox is overloaded.
pub(super) async fn run_until_done(context: Context, endpoint: EndpointNumber, work: PendingWork) {
    loop {
        let done = match work {
            PendingWork::Sweep => Deliveries(&context).sweep_deleted(endpoint).await,
            PendingWork::Reorder => Deliveries(&context).reorder_pending(endpoint).await,
        };
        match done {
            Ok(()) => return,
            Err(_) if context.waits().have_ended() => return,
            Err(Unavailable::DiskFull | Unavailable::Overloaded { .. }) => {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Err(error @ (Unavailable::Stopping | Unavailable::Failed(_))) => {
                tracing::warn!(%error, ?work, endpoint = endpoint.0, "background task ended, continuing at the next start");
                return;
            }
        }
    }
}

pub(super) async fn refill(context: Context, endpoint: EndpointNumber, after: Option<DueKey>, limit: usize) {
    let read = context
        .outbox_of(endpoint)
        .read(move |state| {
            let (entries, exhausted) = state.sendable(endpoint, after, limit);
            Signal::Refilled { endpoint, entries, exhausted, as_of: state.applied() }
        })
        .await;
    if let Ok(signal) = read {
        context.signal(signal);
    }
}

/// When the endpoint was disabled. Only these deliveries expire here, because no retry ends them.
/// Deliveries of a paused endpoint, or one without consent, are left to retention.
pub(super) fn disabled_at(endpoint: &Endpoint) -> Option<Timestamp> {
    match endpoint.status {
        EndpointStatus::Disabled { at, .. } => Some(at),
        EndpointStatus::Active | EndpointStatus::Paused => None,
    }
}

pub(super) fn is_finished(task: Option<&AbortHandle>) -> bool {
    task.is_none_or(AbortHandle::is_finished)
}

/// Selects the next closed endpoints to check, round robin by number, starting after `last`.
pub(super) fn next_to_check(mut closed: Vec<Arc<Endpoint>>, last: EndpointNumber) -> Vec<Arc<Endpoint>> {
    closed.sort_unstable_by_key(|endpoint| (endpoint.number <= last, endpoint.number));
    closed.truncate(failpoints::bound(Bound::ClosedEndpointsChecked, limits::CLOSED_ENDPOINTS_CHECKED_MAX));
    closed
}

pub(super) async fn expire_all(context: Context, closed: Vec<Arc<Endpoint>>, now: Timestamp) {
    for endpoint in closed {
        expire(&context, &endpoint, now).await;
    }
}

/// Gives up deliveries that have waited at a disabled endpoint for longer than its policy's age.
pub(super) async fn expire(context: &Context, endpoint: &Endpoint, now: Timestamp) {
    let settings = context.settings();
    let (&RetryPolicy::Exponential { max_age, .. }, Some(disabled_at)) =
        (endpoint.retry(&settings.defaults), disabled_at(endpoint))
    else {
        return;
    };
    let number = endpoint.number;
    let expired = move |state: &dyn ReadModel| {
        let (entries, _) = state.sendable(number, None, deliveries_per_step());
        let since = |progress: &Progress| progress.series_started.max(disabled_at);
        let old = entries.into_iter().filter(|(_, progress)| now.since(since(progress)) > max_age);
        let old: Vec<_> = old.map(|(key, _)| DeliveryKey { event: key.event, endpoint: number }).collect();
        let is_last = old.is_empty();
        (old, is_last)
    };
    // After a concurrent resume, the deliveries must not expire.
    let still_closed = || {
        let known = context.outbox_of(number).endpoint(number);
        known.is_some_and(|known| self::disabled_at(&known) == Some(disabled_at))
    };
    let mut deaths = Deaths::new(DeadReason::EndpointDisabled);
    let given_up = loop {
        match Deliveries(context).give_up_if(&mut deaths, expired, still_closed).await {
            Ok(is_last) if is_last || !still_closed() || context.waits().have_ended() => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    Deliveries(context).report(deaths).await;
    if let Err(error) = given_up {
        tracing::warn!(%error, "giving up expired deliveries failed, retrying at the next check");
    }
}

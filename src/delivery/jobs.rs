//! Background jobs of the delivery loop: sweeps, reordering, expiry at disabled endpoints, refills of lanes.

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
use crate::service::bulk::deliveries_per_step;
use crate::service::deliveries::Deliveries;
use crate::{failpoints, limits};

/// Pause before a job is tried again after the outbox refused a commit.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What is done to all that is pending for an endpoint, in the background and in bounded steps. Repeating it changes nothing.
#[derive(Clone, Copy, Debug)]
pub(super) enum Chore {
    /// The endpoint was deleted: it becomes dead letters.
    Sweep,
    /// It is put where the endpoint's ordering wants it.
    Reorder,
}

pub(super) async fn reorder_all(context: Context, endpoints: Vec<EndpointNumber>) {
    for endpoint in endpoints {
        see_through(context.clone(), endpoint, Chore::Reorder).await;
    }
}

/// Goes on until it is done, also through a full disk and too much else to do.
pub(super) async fn see_through(context: Context, endpoint: EndpointNumber, chore: Chore) {
    loop {
        let done = match chore {
            Chore::Sweep => Deliveries(&context).sweep_deleted(endpoint).await,
            Chore::Reorder => Deliveries(&context).put_in_order(endpoint).await,
        };
        match done {
            Ok(()) => return,
            Err(Unavailable::DiskFull | Unavailable::Overloaded { .. }) => {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Err(error @ (Unavailable::Stopping | Unavailable::Failed(_))) => {
                tracing::warn!(%error, ?chore, endpoint = endpoint.0, "what is pending there waits for the next start");
                return;
            }
        }
    }
}

pub(super) async fn refill(context: Context, endpoint: EndpointNumber, after: Option<DueKey>, limit: usize) {
    let read = context
        .outbox()
        .read(move |state| {
            let (entries, exhausted) = state.sendable(endpoint, after, limit);
            Signal::Refilled { endpoint, entries, exhausted, as_of: state.applied() }
        })
        .await;
    if let Ok(signal) = read {
        context.signal(signal);
    }
}

/// Since when nothing is tried at an endpoint, so that no retry ends its deliveries. A paused endpoint is
/// the operator's to resume, and a receiver may still agree to its handshake: there only retention ends
/// what waits.
pub(super) fn disabled_at(endpoint: &Endpoint) -> Option<Timestamp> {
    match endpoint.status {
        EndpointStatus::Disabled { at, .. } => Some(at),
        EndpointStatus::Active | EndpointStatus::Paused => None,
    }
}

pub(super) fn is_over(task: Option<&AbortHandle>) -> bool {
    task.is_none_or(AbortHandle::is_finished)
}

/// Of the closed endpoints those whose turn it is: by number, from the first after the one that was looked at last.
pub(super) fn in_turn(mut closed: Vec<Arc<Endpoint>>, last: EndpointNumber) -> Vec<Arc<Endpoint>> {
    closed.sort_unstable_by_key(|endpoint| (endpoint.number <= last, endpoint.number));
    closed.truncate(failpoints::bound(Bound::ClosedEndpointsChecked, limits::CLOSED_ENDPOINTS_CHECKED_MAX));
    closed
}

pub(super) async fn expire_all(context: Context, closed: Vec<Arc<Endpoint>>, now: Timestamp) {
    for endpoint in closed {
        expire(&context, &endpoint, now).await;
    }
}

/// What waits at a disabled endpoint for longer than its policy's age is given up.
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
        (old.map(|(key, _)| DeliveryKey { event: key.event, endpoint: number }).collect(), ())
    };
    // An operator who opens the endpoint meanwhile wants them delivered.
    let still_closed = || {
        let known = context.outbox().endpoint(number);
        known.is_some_and(|known| self::disabled_at(&known) == Some(disabled_at))
    };
    if let Err(error) =
        Deliveries(context).give_up_if(DeadReason::EndpointDisabled, expired, still_closed).await
    {
        tracing::warn!(%error, "expired deliveries of a closed endpoint wait for the next look");
    }
}

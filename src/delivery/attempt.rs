//! One attempt, from the lane's decision to its recorded outcome.
//!
//! Decide (sign, send, judge), commit (the outcome joins the next group), then signal the lane.
//! Local failures (an unreadable record, a shutdown) never count as an attempt.

use std::sync::Arc;
use std::time::Duration;

use crate::context::Context;
use crate::context::environment::EXHAUSTED_PAUSE;
use crate::context::signal::{FailedAttempt, Signal};
use crate::courier::{NotSent, ReceiverReply};
use crate::delivery::lane_policy::gate;
use crate::delivery::sending::Sending;
use crate::domain::last_attempt::status_text;
use crate::domain::{
    Attempt, DeadReason, DeliveryKey, DueKey, Endpoint, EndpointNumber, ErrorClass, Event, Exchange, Hold,
    Next, Now, Progress, ReceiverAnswer, Record, Timestamp, Verdict,
};
use crate::lanes::{Gate, PostponeCause};
use crate::outbox::unit::Unit;
use crate::rules::retry;
use crate::rules::verdict::{ReplyFacts, verdict};
use crate::service::conversions::{Conversions, OutgoingEvent};
use crate::service::deliveries::Deliveries;
use crate::service::endpoints::Endpoints;
use crate::service::requests::masked_reply_headers;
use crate::service::system_events::SystemEvents;
use crate::{lanes, panics};

/// A delivery that a lane has selected to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Assignment {
    pub(crate) endpoint: EndpointNumber,
    pub(crate) key: DueKey,
    pub(crate) progress: Progress,
    /// When the receiver shut the lane; see [`lanes::Action`].
    pub(crate) shut_since: Option<Timestamp>,
    /// The event, if the payload cache still had it.
    pub(crate) event: Option<Arc<Event>>,
}

/// Pause before a delivery whose event cannot be read returns to its lane. The disk or the file
/// descriptors failed.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(1);

/// Pause before a delivery returns to a lane whose gate is stale.
const DISALLOWED_PAUSE: Duration = Duration::from_millis(50);

/// Frees an attempt's slot in its lane if the attempt panics. The delivery then waits for the next
/// start, and the lane continues.
pub(crate) struct AttemptGuard<'a> {
    pub(crate) context: &'a Context,
    pub(crate) assignment: &'a Assignment,
}

impl Drop for AttemptGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            signal_finished(self.context, self.assignment, lanes::AttemptOutcome::Failing, None);
        }
    }
}

/// Makes one attempt and signals the dispatcher.
pub(crate) async fn attempt(context: Context, assignment: Assignment) {
    let _guard = AttemptGuard { context: &context, assignment: &assignment };
    panics::test_point("attempt");
    let position = assignment.key.event;
    let event = match &assignment.event {
        // The event may have been erased after the lane selected its delivery.
        Some(event) if !context.outbox_of(position).journal().hides(position) => Some(event.clone()),
        _ => match context.event_at(position).await {
            Ok(event) => event,
            // The lane decides again: its rate may allow no request after the pause.
            Err(_) => return return_delivery(&context, &assignment, UNREADABLE_PAUSE).await,
        },
    };
    // Read last, so that the attempt uses the current endpoint.
    let endpoint = context.outbox_of(assignment.endpoint).endpoint(assignment.endpoint);
    if endpoint.as_ref().is_some_and(|endpoint| gate(endpoint) != Gate::Open) {
        // The lane is about to learn that the endpoint is closed.
        return return_delivery(&context, &assignment, DISALLOWED_PAUSE).await;
    }
    match (endpoint, event) {
        (Some(_), Some(event)) if event.erased_at.is_some() => {
            // Repeats the cancellation by the erasure, if the lane does not know it yet.
            let delivery = DeliveryKey { event: position, endpoint: assignment.endpoint };
            let cancelled =
                Record::DeliveriesCancelled { deliveries: vec![delivery], at: context.now().wall };
            context.outbox_of(assignment.endpoint).record(Unit::of_record(cancelled));
        }
        (Some(endpoint), Some(event)) => {
            match Conversions(&context).convert(&endpoint.versions, position, &event) {
                Ok(outgoing) => return send(&context, &assignment, &endpoint, &outgoing).await,
                Err(error) => {
                    tracing::warn!(
                        event = %event.id, endpoint = %endpoint.id, %error,
                        trace_id = event.trace_id().map(tracing::field::display),
                        "event cannot be converted, giving up the delivery"
                    );
                    give_up(&context, &assignment, DeadReason::Unconvertible).await;
                }
            }
        }
        (Some(_), None) => {
            // The frame is damaged or removed, so the delivery can never be sent.
            tracing::error!(
                position = position.0,
                "event of a pending delivery is missing or damaged, giving up the delivery"
            );
            give_up(&context, &assignment, DeadReason::Expired).await;
        }
        (None, _) => {}
    }
    // A delivery that was given up has left its lane when this signal arrives.
    return_delivery(&context, &assignment, DISALLOWED_PAUSE).await;
}

/// Makes a dead letter of a delivery that can never be sent.
async fn give_up(context: &Context, assignment: &Assignment, reason: DeadReason) {
    let delivery = DeliveryKey { event: assignment.key.event, endpoint: assignment.endpoint };
    let given_up = Deliveries(context).give_up(reason, move |_| (vec![delivery], ())).await;
    if let Err(error) = given_up {
        tracing::warn!(%error, reason = reason.as_str(), "giving up a delivery failed");
    }
}

/// Returns an unsent delivery to its lane after a pause, without an outcome.
async fn return_delivery(context: &Context, assignment: &Assignment, pause: Duration) {
    tokio::time::sleep(pause).await;
    let Assignment { endpoint, key, progress, .. } = *assignment;
    context.signal(Signal::Returned { endpoint, key, progress });
}

fn signal_finished(
    context: &Context,
    assignment: &Assignment,
    outcome: lanes::AttemptOutcome,
    failure: Option<FailedAttempt>,
) {
    let Assignment { endpoint, key, .. } = *assignment;
    context.signal(Signal::Finished { endpoint, key, outcome, failure });
}

async fn send(
    context: &Context,
    assignment: &Assignment,
    endpoint: &Arc<Endpoint>,
    outgoing: &OutgoingEvent,
) {
    let event = &*outgoing.event;
    let delivery = DeliveryKey { event: assignment.key.event, endpoint: endpoint.number };
    let number = assignment.progress.attempts + 1;
    let (started, civil) = context.now_and_civil();
    let sending =
        Sending { context, endpoint, outgoing, delivery, number, started_at: started.wall, signed_at: civil };
    let (mut reply, sent) = match sending.reply().await {
        Ok(reply) => reply,
        // The endpoint may change during the pause, so the lane decides again.
        Err(NotSent::DescriptorsExhausted) => {
            return return_delivery(context, assignment, EXHAUSTED_PAUSE).await;
        }
        Err(reason @ (NotSent::AddressLimit | NotSent::BrokerBlocked)) => {
            let cause = match reason {
                NotSent::BrokerBlocked => PostponeCause::BrokerBlocked,
                _ => PostponeCause::AddressLimit,
            };
            if cause == PostponeCause::AddressLimit {
                context.metrics().address_limit_reached();
            }
            let Assignment { endpoint, key, progress, .. } = *assignment;
            return context.signal(Signal::Postponed { endpoint, key, progress, cause });
        }
    };
    if assignment.progress.attempts == 0 && is_first_series(&assignment.progress, event) {
        context.metrics().first_attempt(started.wall.since(event.first_due()));
    }
    let (finished, received_at) = context.now_and_civil();
    let facts = ReplyFacts {
        outcome: match &reply.outcome {
            Ok(answer) => Ok(*answer),
            Err((class, _)) => Err(*class),
        },
        url_is_forbidden: reply.url_is_forbidden,
        retry_after: reply.retry_after.as_deref(),
        webhook_delivery: reply.webhook_delivery.as_deref(),
        received_at,
    };
    let settings = context.settings();
    let verdict = verdict(&facts, &settings.refused_statuses);
    let policy = endpoint.retry(&settings.defaults);
    let delay = retry::delay(assignment.key.due, started.wall, assignment.shut_since);
    let progress = assignment.progress.after(delay);
    let next = retry::next(policy, delivery, &progress, verdict, started.wall, finished.wall);
    let exchange = Exchange {
        request: sent,
        connection: reply.connection,
        rule: retry::rule(next, verdict, finished.wall),
        headers: masked_reply_headers(std::mem::take(&mut reply.headers)),
    };
    let known = context.outbox_of(endpoint.number).endpoint(endpoint.number);
    // The former URL's reply says nothing about the current URL.
    let known = known.filter(|known| known.url == endpoint.url);
    let hold = known.as_ref().and_then(|known| hold(known, verdict, finished));
    let attempt = Arc::new(Attempt { delay, exchange, ..attempt_of(&progress, started, reply, next, hold) });
    report(context, endpoint, event, &assignment.progress, delivery, &attempt, finished);
    let record = Record::AttemptFinished { delivery, due: assignment.key.due, attempt: attempt.clone() };
    context.outbox_of(endpoint.number).record(Unit::of_record(record));
    if let Verdict::Gone(reason) = verdict {
        // Before the slot is free, so that no further request goes to the endpoint.
        let disabled = Endpoints(context).disable(endpoint.number, reason, |known| known.url == endpoint.url);
        // Boxed, because it is rare; every attempt would reserve its size otherwise.
        Box::pin(disabled).await;
    }
    let outcome = known.map_or(lanes::AttemptOutcome::Neutral, |_| lane_outcome(verdict, &attempt));
    signal_finished(context, assignment, outcome, FailedAttempt::of(&attempt));
    if let Next::Dead(reason) = next {
        // After the signal: the lane's view of the receiver does not wait for a commit.
        Box::pin(report_death(context, event, delivery, assignment.key.due, reason)).await;
    }
}

async fn report_death(
    context: &Context,
    event: &Event,
    delivery: DeliveryKey,
    due: Timestamp,
    reason: DeadReason,
) {
    if Deliveries(context).is_dead_or_dying(delivery, due, reason).await {
        context.metrics().dead_lettered(reason, 1);
        let death = SystemEvents(context).deaths_data(delivery, 1, Some(event), reason);
        SystemEvents(context).publish_dead(death.as_slice()).await;
    }
}

fn attempt_of(
    progress: &Progress,
    started: Now,
    reply: ReceiverReply,
    next: Next,
    hold: Option<Hold>,
) -> Attempt {
    let status = reply.outcome.as_ref().ok().and_then(|answer| answer.status());
    let error = match reply.outcome {
        Ok(ReceiverAnswer::Confirmed | ReceiverAnswer::Status(200..300)) => None,
        Ok(ReceiverAnswer::Status(status)) => {
            Some((ErrorClass::Status, status_text(status, reply.location.as_deref()).into()))
        }
        Err((class, text)) => Some((class, text.into())),
    };
    Attempt {
        number: progress.attempts + 1,
        trigger: progress.trigger,
        started_at: started.wall,
        duration: reply.duration,
        status,
        error,
        reply: reply.body,
        network: reply.network,
        next,
        hold,
        uptime: Some(whole_millis(started.monotonic)),
        delay: Duration::ZERO,
        exchange: Exchange::default(),
    }
}

/// The precision of the stored record.
fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// How long a reply holds the endpoint's lane. `endpoint` is the endpoint at the time of the reply,
/// so that a change by the operator during the request does not end the hold.
fn hold(endpoint: &Endpoint, verdict: Verdict, finished: Now) -> Option<Hold> {
    let Verdict::RetryAfter(wait) = verdict else { return None };
    Some(Hold { until: finished.wall.plus(wait), revision: endpoint.revision })
}

/// Whether the delivery is in its first retry series, without a manual retry, redrive or replay.
fn is_first_series(progress: &Progress, event: &Event) -> bool {
    progress.series_started == event.first_due()
}

fn report(
    context: &Context,
    endpoint: &Endpoint,
    event: &Event,
    progress: &Progress,
    delivery: DeliveryKey,
    attempt: &Attempt,
    finished: Now,
) {
    let class = attempt.error.as_ref().map(|(class, _)| *class);
    context.metrics().attempt(attempt.status, class, attempt.duration);
    match attempt.next {
        Next::Delivered => {
            let took = finished.wall.since(event.first_due());
            context.metrics().delivered(is_first_series(progress, event).then_some(took));
        }
        // Counted after the commit: a concurrent retry may have revived the delivery.
        Next::Dead(_) => {}
        Next::RetryAt(at) => context.metrics().retry(at.since(finished.wall)),
    }
    tracing::debug!(
        event = %event.id,
        endpoint = %endpoint.id,
        delivery = %crate::domain::DeliveryId(delivery),
        attempt = attempt.number,
        status = attempt.status,
        error = class.map(ErrorClass::as_str),
        milliseconds = u64::try_from(attempt.duration.as_millis()).unwrap_or(u64::MAX),
        trace_id = event.trace_id().map(tracing::field::display),
        "attempt"
    );
}

fn lane_outcome(verdict: Verdict, attempt: &Attempt) -> lanes::AttemptOutcome {
    if let Some(hold) = attempt.hold {
        return lanes::AttemptOutcome::Throttled(hold);
    }
    match verdict {
        Verdict::Delivered => lanes::AttemptOutcome::Healthy,
        Verdict::Retry | Verdict::RetryAfter(_) => match (attempt.status, &attempt.error) {
            // The receiver is up and rejects this delivery.
            (Some(400..500), _) | (None, Some((ErrorClass::Unroutable, _))) => lanes::AttemptOutcome::Neutral,
            _ => lanes::AttemptOutcome::Failing,
        },
        // A refusal concerns only the delivery. An endpoint that is gone is disabled anyway.
        Verdict::Refused(_) | Verdict::Gone(_) => lanes::AttemptOutcome::Neutral,
    }
}

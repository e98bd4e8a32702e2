//! One attempt, from the lane's decision to its recorded outcome.
//!
//! Decide (sign, send, judge), commit (the outcome joins the next group), then tell the lane. Our own trouble (a record
//! that cannot be read, a shutdown) is never charged as an attempt.

use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::dispatcher::{Signal, gate};
use crate::courier::{Exhausted, Parcel, Reply, body};
use crate::domain::{
    Attempt, DeadReason, DeliveryKey, DeliveryState, DisabledReason, DueKey, Endpoint, EndpointNumber,
    EndpointStatus, ErrorClass, Event, Hold, Next, Now, Position, Progress, Record, Timestamp, Verdict,
    attribute,
};
use crate::lanes::{self, Gate};
use crate::outbox::unit::Unit;
use crate::panics;
use crate::rules::signature::{SigningKey, signature_header};
use crate::rules::verdict::{ReplyFacts, verdict};
use crate::rules::{retry, trace};

/// What a lane wants to be sent.
#[derive(Clone, Debug)]
pub(super) struct Assignment {
    pub(super) endpoint: EndpointNumber,
    pub(super) key: DueKey,
    pub(super) progress: Progress,
    /// Still in memory since its acceptance.
    pub(super) event: Option<Arc<Event>>,
}

/// How long a delivery waits before its event is read again, when the disk did not answer (or no file descriptor was left).
const UNREADABLE_PAUSE: Duration = Duration::from_secs(1);

/// How long a delivery waits that must not be sent, although its lane thinks so.
const DISALLOWED_PAUSE: Duration = Duration::from_millis(50);
/// How long whoever found no file descriptor for a connection waits before asking for one again.
pub(super) const EXHAUSTED_PAUSE: Duration = Duration::from_secs(1);

/// An attempt's place in its lane, which is free again should the attempt panic: a defect costs one delivery, which waits for
/// the next start, and not a lane.
pub(super) struct Place<'a> {
    pub(super) engine: &'a Engine,
    pub(super) assignment: &'a Assignment,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            finish(self.engine, self.assignment, lanes::Outcome::Failing);
        }
    }
}

/// Makes one attempt and tells the dispatcher.
pub(super) async fn attempt(engine: Engine, assignment: Assignment) {
    let _place = Place { engine: &engine, assignment: &assignment };
    panics::test_point("attempt");
    let event = match &assignment.event {
        Some(event) => Some(event.clone()),
        None => read_event(&engine, assignment.key.event).await,
    };
    // Last of all: what is true now is what counts.
    let endpoint = engine.outbox().endpoint(assignment.endpoint);
    if endpoint.as_ref().is_some_and(|endpoint| gate(endpoint) != Gate::Open) {
        // The lane will have heard in a moment that the endpoint is closed.
        return give_back(&engine, &assignment, DISALLOWED_PAUSE).await;
    }
    match (endpoint, event) {
        (Some(endpoint), Some(event)) => return make(&engine, &assignment, &endpoint, &event).await,
        (Some(_), None) => {
            // Its frame is damaged or retention has taken it: nothing can ever be sent.
            tracing::error!(
                position = assignment.key.event.0,
                "the event of a pending delivery cannot be read"
            );
            let delivery = DeliveryKey { event: assignment.key.event, endpoint: assignment.endpoint };
            let given_up = engine.give_up(DeadReason::Expired, move |_| (vec![delivery], ())).await;
            if let Err(error) = given_up {
                tracing::warn!(%error, "a delivery without its event could not be given up");
            }
        }
        (None, _) => {}
    }
    // Nothing will be recorded; what was given up has left its place by then.
    give_back(&engine, &assignment, DISALLOWED_PAUSE).await;
}

/// Nothing was sent: after a pause the delivery is its lane's again, as it was.
async fn give_back(engine: &Engine, assignment: &Assignment, pause: Duration) {
    tokio::time::sleep(pause).await;
    let Assignment { endpoint, key, progress, .. } = *assignment;
    engine.signal(Signal::Returned { endpoint, key, progress });
}

fn finish(engine: &Engine, assignment: &Assignment, outcome: lanes::Outcome) {
    engine.signal(Signal::Finished { endpoint: assignment.endpoint, key: assignment.key, outcome });
}

/// `None` only when the event is no more.
async fn read_event(engine: &Engine, position: Position) -> Option<Arc<Event>> {
    loop {
        match engine.event_at(position).await {
            Ok(event) => return event,
            Err(_) => tokio::time::sleep(UNREADABLE_PAUSE).await,
        }
    }
}

async fn make(engine: &Engine, assignment: &Assignment, endpoint: &Arc<Endpoint>, event: &Event) {
    let delivery = DeliveryKey { event: assignment.key.event, endpoint: endpoint.number };
    let number = assignment.progress.attempts + 1;
    let (started, civil) = engine.now_and_civil();
    let signed_at = Now { wall: civil, ..started };
    let reply = match parcel(engine, endpoint, event, delivery, number, signed_at) {
        Err(reason) => Reply::failed(ErrorClass::Request, reason),
        Ok(parcel) => match carry(engine, parcel).await {
            Ok(reply) => reply,
            // What was read of the endpoint may be true no more by then: its lane decides anew.
            Err(Exhausted) => return give_back(engine, assignment, EXHAUSTED_PAUSE).await,
        },
    };
    if assignment.progress.attempts == 0 && is_first_series(&assignment.progress, event) {
        engine.metrics().first_attempt(started.wall.since(event.first_due()));
    }
    let (finished, received_at) = engine.now_and_civil();
    let facts = ReplyFacts {
        outcome: match &reply.outcome {
            Ok(status) => Ok(*status),
            Err((class, _)) => Err(*class),
        },
        url_is_forbidden: reply.url_is_forbidden,
        retry_after: reply.retry_after.as_deref(),
        webhook_delivery: reply.webhook_delivery.as_deref(),
        received_at,
    };
    let settings = engine.settings();
    let verdict = verdict(&facts, &settings.refused_statuses);
    let policy = endpoint.retry(&settings.defaults);
    let next = retry::next(policy, delivery, &assignment.progress, verdict, started.wall, finished.wall);
    let known = engine.outbox().endpoint(endpoint.number);
    // Whatever the URL of before answered, it says nothing about the one of now.
    let known = known.filter(|known| known.url == endpoint.url);
    let hold = known.as_ref().and_then(|known| hold(known, verdict, finished));
    let attempt = Arc::new(record_of(&assignment.progress, started, reply, next, hold));
    report(engine, endpoint, event, &assignment.progress, delivery, &attempt, finished);
    let record = Record::AttemptFinished { delivery, due: assignment.key.due, attempt: attempt.clone() };
    engine.outbox().record(Unit::of_record(record));
    if let Verdict::Gone(reason) = verdict {
        // Before its slot is free: nothing more is to go there.
        engine.disable(endpoint.number, reason, |known| known.url == endpoint.url).await;
    }
    let outcome = known.map_or(lanes::Outcome::Neutral, |_| lane_outcome(verdict, &attempt));
    finish(engine, assignment, outcome);
    if let Next::Dead(reason) = next
        // After its lane was told: what it says of the receiver does not wait for a commit.
        && engine.ends_by(delivery, assignment.key.due, reason).await
    {
        engine.metrics().died(reason, 1);
        let words = engine.words_on_death(delivery, Some(event), reason);
        engine.tell_dead(words.as_slice()).await;
    }
}

pub(super) async fn carry(engine: &Engine, parcel: Parcel) -> Result<Reply, Exhausted> {
    #[cfg(test)]
    if let Some(receivers) = engine.shared.receivers.get() {
        return receivers.receive(&parcel).await;
    }
    engine.shared.courier.send(parcel).await
}

fn parcel(
    engine: &Engine,
    endpoint: &Endpoint,
    event: &Event,
    delivery: DeliveryKey,
    number: u32,
    now: Now,
) -> Result<Parcel, String> {
    let (body, media) = body::body(endpoint, event);
    let keys = engine.live_keys(endpoint, now.wall).map_err(|error| error.to_string())?;
    let keys: Vec<SigningKey> = keys.into_iter().map(|(key, _)| key).collect();
    let mut ours = vec![signature_header(endpoint.signature, &keys, now.wall, event.id.as_str(), &body)];
    if endpoint.trace {
        let parent = trace::traceparent(event, delivery, number);
        ours.extend(parent.map(|parent| (attribute::TRACE_PARENT, parent.to_string())));
    }
    if let Some(handshake) = &endpoint.handshake {
        ours.push((body::REQUEST_ORIGIN, handshake.origin.to_string()));
    }
    let own = engine.open_headers(endpoint).map_err(|error| error.to_string())?;
    let headers = body::headers(&own, media, event, number, now.wall, ours)?;
    let identity = engine.identity(endpoint).map_err(|error| error.to_string())?;
    let timeout = endpoint.timeout(&engine.settings().defaults);
    Ok(Parcel::new(&endpoint.url, headers, body, timeout)?.with_identity(identity))
}

fn record_of(progress: &Progress, started: Now, reply: Reply, next: Next, hold: Option<Hold>) -> Attempt {
    let status = reply.outcome.as_ref().ok().copied();
    let error = match reply.outcome {
        Ok(200..300) => None,
        Ok(status) => Some((ErrorClass::Status, words_of(status, reply.location.as_deref()).into())),
        Err((class, words)) => Some((class, words.into())),
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
    }
}

/// As it is stored.
fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// How long a reply keeps the lane of the endpoint from sending. `endpoint` is as it is at the reply: an
/// operator who opened it since the request was sent did so before the reply.
fn hold(endpoint: &Endpoint, verdict: Verdict, finished: Now) -> Option<Hold> {
    let Verdict::RetryAfter(wait) = verdict else { return None };
    Some(Hold { until: finished.wall.plus(wait), revision: endpoint.revision })
}

/// Whether the delivery has been on its way since its event was accepted, and not set going again by somebody.
fn is_first_series(progress: &Progress, event: &Event) -> bool {
    progress.series_started == event.first_due()
}

fn words_of(status: u16, location: Option<&str>) -> String {
    match (status, location) {
        (300..400, Some(place)) => format!("status {status}: redirects are not followed (to {place})"),
        _ => format!("status {status}"),
    }
}

fn report(
    engine: &Engine,
    endpoint: &Endpoint,
    event: &Event,
    progress: &Progress,
    delivery: DeliveryKey,
    attempt: &Attempt,
    finished: Now,
) {
    let class = attempt.error.as_ref().map(|(class, _)| *class);
    engine.metrics().attempt(attempt.status, class, attempt.duration);
    match attempt.next {
        Next::Delivered => {
            let took = finished.wall.since(event.first_due());
            engine.metrics().delivered(is_first_series(progress, event).then_some(took));
        }
        // It may have been set going again meanwhile.
        Next::Dead(_) => {}
        Next::RetryAt(at) => engine.metrics().retry(at.since(finished.wall)),
    }
    tracing::debug!(
        event = %event.id,
        endpoint = %endpoint.id,
        delivery = %crate::domain::DeliveryId(delivery),
        attempt = attempt.number,
        status = attempt.status,
        error = class.map(ErrorClass::as_str),
        milliseconds = u64::try_from(attempt.duration.as_millis()).unwrap_or(u64::MAX),
        "attempt"
    );
}

fn lane_outcome(verdict: Verdict, attempt: &Attempt) -> lanes::Outcome {
    if let Some(hold) = attempt.hold {
        return lanes::Outcome::Throttled(hold);
    }
    match verdict {
        Verdict::Delivered => lanes::Outcome::Healthy,
        Verdict::Retry | Verdict::RetryAfter(_) => match attempt.status {
            // The receiver is there and says no: that is about this delivery, not about the lane.
            Some(400..500) => lanes::Outcome::Neutral,
            Some(_) | None => lanes::Outcome::Failing,
        },
        // About the delivery alone; one that is gone is disabled, which says more than its lane could.
        Verdict::Refused(_) | Verdict::Gone(_) => lanes::Outcome::Neutral,
    }
}

impl Engine {
    /// Whether a delivery has died of this reason, or will in a moment, by the outcome of the attempt that was sent under
    /// this due time.
    pub(super) async fn ends_by(&self, delivery: DeliveryKey, due: Timestamp, reason: DeadReason) -> bool {
        let facts = self.outbox().read(move |state| state.delivery(delivery)).await;
        facts.ok().flatten().is_some_and(|facts| match facts.state {
            DeliveryState::Pending => facts.due == Some(due),
            DeliveryState::Dead(found) => found == reason,
            DeliveryState::Delivered | DeliveryState::Cancelled | DeliveryState::Purged => false,
        })
    }

    /// Disables an active endpoint and tells the operator, for as long as the reason holds for what it is now: someone
    /// else's change in between is read again.
    pub(super) async fn disable(
        &self,
        number: EndpointNumber,
        reason: DisabledReason,
        holds: impl Fn(&Endpoint) -> bool,
    ) {
        loop {
            let current = self.outbox().endpoint(number);
            let Some(current) = current else { return };
            if matches!(current.status, EndpointStatus::Disabled { .. }) || !holds(&current) {
                return;
            }
            let at = self.now().wall;
            let mut changed = Endpoint::clone(&current);
            changed.status = EndpointStatus::Disabled { reason, at };
            match self.update_endpoint(changed, None).await {
                Ok(endpoint) => {
                    tracing::warn!(endpoint = %endpoint.id, reason = reason.as_str(), "endpoint disabled");
                    self.tell_disabled(&endpoint, reason).await;
                    return;
                }
                Err(super::types::ChangeError::Conflict) => {}
                Err(error) => {
                    tracing::error!(endpoint = %current.id, %error, "an endpoint could not be disabled");
                    return;
                }
            }
        }
    }
}

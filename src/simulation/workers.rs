//! Workers of queues: they take messages, and end their leases in time, late, twice, by receipts
//! of earlier lives, and by receipts that they never got.

use std::time::Duration;

use super::operations::check_refusal;
use super::world::{World, wall};
use crate::context::Context;
use crate::context::home::Home;
use crate::domain::{
    DeliveryKey, Endpoint, EndpointTransport, LeaseKey, Party, Position, QueueTarget, RetryPolicy,
};
use crate::service::Queues;
use crate::service::leases::{LeaseAction, Leases, ReceiptResult, ReceiptStatus};
use crate::service::queues::{ReceiveError, ReceiveOptions, ReceivedMessage};
use crate::service::receipts::Receipt;

/// Longest lease of a queue.
const LEASE_MAX: Duration = Duration::from_secs(12);
/// Receipts that workers keep, also over restarts.
const RECEIPTS_KEPT: usize = 30;

/// The endpoint as a queue.
pub(super) fn as_queue(endpoint: Endpoint, visibility: Duration, deliveries_max: u32) -> Endpoint {
    let name = endpoint.id.as_str().to_lowercase().parse().expect("an id is a legal name");
    Endpoint {
        transport: EndpointTransport::Queue(QueueTarget { name, lease_max: LEASE_MAX }),
        url: "".into(),
        rate_limit: None,
        max_in_flight: Some(3),
        timeout: Some(visibility),
        retry: Some(RetryPolicy::Exponential {
            initial: Duration::from_millis(200),
            multiplier: 2.0,
            max_interval: Duration::from_secs(4),
            max_attempts: deliveries_max,
            max_age: Duration::from_secs(3_600),
            jitter: 0.2,
        }),
        secrets: Vec::new(),
        handshake: None,
        ..endpoint
    }
}

fn any_queue(context: &Context, world: &World) -> Option<Endpoint> {
    let all: Vec<_> = context.outbox_of(Home::All).endpoints();
    let queues: Vec<_> = all.into_iter().filter(|endpoint| endpoint.queue().is_some()).collect();
    if queues.is_empty() {
        return None;
    }
    Some(Endpoint::clone(world.chance(|chance| chance.pick(&queues).clone()).as_ref()))
}

/// A worker's turn: it takes messages and ends their leases. Sometimes it shows other receipts.
pub(super) async fn work(context: &Context, world: &World) {
    let Some(queue) = any_queue(context, world) else { return };
    if world.chance(|chance| chance.percent(25)) {
        let Some(receipt) = other_receipt(world, &queue) else { return };
        let action = draw_action(world);
        return end(context, world, &queue, receipt, &action).await;
    }
    let mut messages = receive(context, world, &queue).await;
    while is_answer_lost(world, &messages) {
        world.count("answersLost");
        let lost: Vec<_> = messages.iter().map(|message| (message.receipt, message.progress)).collect();
        Queues(context).return_lost(&queue, &lost);
        messages = receive(context, world, &queue).await;
    }
    for message in messages {
        let pause = world.chance(|chance| chance.within(0, 3_000));
        let (dies, twice) = world.chance(|chance| (chance.percent(10), chance.percent(15)));
        if dies {
            world.count("workersDied");
            return;
        }
        // Sometimes longer than the lease.
        tokio::time::sleep(Duration::from_millis(if pause < 1_500 { pause / 30 } else { pause })).await;
        let action = draw_action(world);
        end(context, world, &queue, message.receipt, &action).await;
        if twice {
            end(context, world, &queue, message.receipt, &action).await;
        }
    }
}

/// Whether the worker does not get the answer. Some messages are mostly the cause.
fn is_answer_lost(world: &World, messages: &[ReceivedMessage]) -> bool {
    let has_cause = messages.iter().any(|message| message.delivery.event.0.is_multiple_of(3));
    !messages.is_empty() && world.chance(|chance| chance.percent(if has_cause { 70 } else { 5 }))
}

/// Takes every message of every queue that is there now, and acknowledges it. An ordered queue
/// gives one at a time.
pub(super) async fn finish(context: &Context, world: &World) {
    let all: Vec<_> = context.outbox_of(Home::All).endpoints();
    for queue in all.into_iter().filter(|endpoint| endpoint.queue().is_some()) {
        loop {
            let options = options(10, Duration::ZERO, None);
            let received = take(context, world, &queue, options, std::future::pending()).await;
            if received.is_empty() {
                break;
            }
            for message in received {
                end(context, world, &queue, message.receipt, &LeaseAction::Ack).await;
            }
        }
    }
}

fn options(most: usize, wait: Duration, visibility: Option<Duration>) -> ReceiveOptions {
    ReceiveOptions { most, bytes_max: 1 << 20, wait, visibility, worker: None }
}

async fn receive(context: &Context, world: &World, queue: &Endpoint) -> Vec<ReceivedMessage> {
    let (options, leaves_after) = world.chance(|chance| {
        let wait = Duration::from_millis(*chance.pick(&[0, 0, 500, 4_000]));
        let visibility = chance.percent(40).then(|| Duration::from_millis(chance.within(100, 5_000)));
        let leaves = chance.percent(20).then(|| Duration::from_millis(chance.within(0, 2_000)));
        (options(chance.within(1, 3) as usize, wait, visibility), leaves)
    });
    match leaves_after {
        Some(after) => take(context, world, queue, options, tokio::time::sleep(after)).await,
        None => take(context, world, queue, options, std::future::pending()).await,
    }
}

async fn take(
    context: &Context,
    world: &World,
    queue: &Endpoint,
    options: ReceiveOptions,
    gone: impl Future<Output = ()> + Send,
) -> Vec<ReceivedMessage> {
    let party = Party::of(Some(&queue.tenant));
    let messages = match Queues(context).receive(party, queue, options, gone).await {
        Ok(messages) => messages,
        Err(ReceiveError::Unavailable(error)) => {
            check_refusal(world, "receive", &error);
            return Vec::new();
        }
        Err(error @ (ReceiveError::Deleted | ReceiveError::TooManyWaiters)) => {
            world.note(format_args!("receive: {error}"));
            return Vec::new();
        }
    };
    if !world.is_alive() {
        return Vec::new();
    }
    for message in &messages {
        check_message(world, message);
    }
    messages
}

/// Checks that the lease is durable, and that it took the message.
fn check_message(world: &World, message: &ReceivedMessage) {
    let (delivery, key) = (message.delivery, message.receipt.key);
    world.note(format_args!("received {}/{} under {}", delivery.event, delivery.endpoint.0, key.lease));
    world.count("messagesReceived");
    let violation = world.with(|inner| {
        inner.received.insert(delivery);
        inner.receipts.push(message.receipt);
        let surplus = inner.receipts.len().saturating_sub(RECEIPTS_KEPT);
        inner.receipts.drain(..surplus);
        let is_effective = inner.model.leases.is_effective(delivery, key.lease);
        (!is_effective).then(|| format!("{delivery:?} was handed out, but {key:?} is no lease of it"))
    });
    if let Some(violation) = violation {
        world.record_violation(violation);
    }
}

fn draw_action(world: &World) -> LeaseAction {
    world.chance(|chance| match chance.within(0, 19) {
        0..11 => LeaseAction::Ack,
        11 | 12 => LeaseAction::Requeue(None),
        13 | 14 => LeaseAction::Requeue(Some(Duration::from_millis(chance.within(0, 5_000)))),
        15 => LeaseAction::Reject,
        16 | 17 => LeaseAction::Release,
        _ => LeaseAction::Extend(Duration::from_millis(chance.within(100, 4_000))),
    })
}

/// A receipt of this queue from before, or a forged one.
fn other_receipt(world: &World, queue: &Endpoint) -> Option<Receipt> {
    world.with(|inner| {
        let of_queue: Vec<_> =
            inner.receipts.iter().copied().filter(|receipt| receipt.queue == queue.number).collect();
        if inner.chance.percent(70) && !of_queue.is_empty() {
            return Some(*inner.chance.pick(&of_queue));
        }
        let all: Vec<_> = inner.model.oracle.deliveries.keys().copied().collect();
        if all.is_empty() {
            return None;
        }
        let event = inner.chance.pick(&all).event;
        let lease = Position(inner.chance.within(1, inner.model.last().0));
        // No worker can guess the seal of a real receipt.
        let is_real = inner.model.leases.is_effective(DeliveryKey { event, endpoint: queue.number }, lease);
        (!is_real).then_some(Receipt { queue: queue.number, key: LeaseKey { event, lease } })
    })
}

/// Ends or extends a lease, and checks the result.
async fn end(context: &Context, world: &World, queue: &Endpoint, receipt: Receipt, action: &LeaseAction) {
    let key = receipt.key;
    let delivery = DeliveryKey { event: key.event, endpoint: queue.number };
    // Its record delivered the message: a repetition gets the same answer.
    let was_acked = world.with(|inner| inner.model.leases.is_acked(delivery, key.lease));
    let result = match Leases(context, queue).end(&[receipt], action, None).await {
        Ok(results) => results[0],
        Err(error) => return check_refusal(world, "end a lease", &error),
    };
    if !world.is_alive() {
        return;
    }
    let status = result.status.as_str();
    world.note(format_args!("{action:?} of {key:?}: {status}"));
    let violation = world.with(|inner| {
        let model = &inner.model;
        let is_owned = model.leases.is_effective(delivery, key.lease);
        if !is_owned && !matches!(result.status, ReceiptStatus::Stale | ReceiptStatus::Gone) {
            return Some(format!("{key:?} is no lease of {delivery:?}, but was {status}"));
        }
        let may_be_gone = result.status == ReceiptStatus::Gone && model.may_be_removed(key.event);
        let is_acked = result.status == ReceiptStatus::Acked || may_be_gone;
        let counts = was_acked || model.leases.is_acked(delivery, key.lease);
        if counts && *action == LeaseAction::Ack && !is_acked {
            return Some(format!("the ack of {key:?} counts, but was {status}"));
        }
        let is_durable = match result.status {
            ReceiptStatus::Extended => model.leases.is_extended(delivery, key.lease, result.leased_until),
            ReceiptStatus::Stale | ReceiptStatus::Gone => true,
            other => model.leases.has_ended(delivery, key.lease, other),
        };
        (!is_durable).then(|| format!("{key:?} was answered as {status} before a durable record"))
    });
    if let Some(violation) = violation {
        world.record_violation(violation);
    }
    count(world, result);
}

fn count(world: &World, result: ReceiptResult) {
    world.count(match result.status {
        ReceiptStatus::Acked => "acked",
        ReceiptStatus::Requeued => "requeued",
        ReceiptStatus::Dead => "refusedByWorkers",
        ReceiptStatus::Released => "released",
        ReceiptStatus::Extended => "extended",
        ReceiptStatus::Stale => "staleReceipts",
        ReceiptStatus::Gone => "goneReceipts",
    });
    if result.leased_until.is_some_and(|until| until > wall().plus(LEASE_MAX)) {
        world.record_violation("a lease is longer than the longest of its queue".to_owned());
    }
}

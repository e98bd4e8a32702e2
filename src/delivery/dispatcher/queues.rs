//! The loop's part for queues: receives, leases and their answers.
//!
//! A receive is answered when the fold has applied its record: what an operator took away in
//! between is not in the answer, and the lane knows the lease before its worker does.

use std::time::Duration;

use tokio::sync::oneshot;

use super::Dispatcher;
use super::takes::Takes;
use crate::context::Context;
use crate::context::queue_signal::{LeasedMessage, QueueSignal, ReceiveAnswer, ReceiveEnd, ReceiveRequest};
use crate::context::signal::Signal;
use crate::delivery::lane_policy::queue_policy;
use crate::delivery::lane_upkeep::refill;
use crate::domain::{
    DeadReason, DeliveryKey, Endpoint, EndpointNumber, HeldLease, IdMap, LeaseKey, Now, Position, Record,
    TakenFrom, TakenMessage,
};
use crate::lanes::Backlog;
use crate::lanes::leases::JudgedLease;
use crate::lanes::queue::{QueueAction, QueueLane, WaiterNumber};
use crate::lanes::queues::QueueLanes;
use crate::metrics::BackgroundTask;
use crate::outbox::ReadModel;
use crate::outbox::draft::Unavailable;
use crate::outbox::unit::Command;
use crate::panics;
use crate::service::deliveries::Deliveries;
use crate::service::leases::release_unsent;

/// Pause before a message that could not be given up is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A receive without an answer.
struct OpenReceive {
    request: ReceiveRequest,
    answer: oneshot::Sender<ReceiveAnswer>,
    /// Messages whose record is not applied yet.
    pending: usize,
    leased: Vec<LeasedMessage>,
    is_time_up: bool,
}

/// The lanes of queues, and the receives that they serve.
#[derive(Default)]
pub(super) struct QueueDesk {
    pub(super) lanes: QueueLanes,
    receives: IdMap<WaiterNumber, OpenReceive>,
    takes: Takes,
}

impl QueueDesk {
    /// Whether a receive waits for its records.
    pub(super) fn has_pending_receives(&self) -> bool {
        !self.receives.is_empty()
    }

    /// Ends all receives without an answer, and returns their number.
    pub(super) fn abandon_receives(&mut self) -> usize {
        std::mem::take(&mut self.receives).len()
    }
}

impl Dispatcher {
    /// Creates the lane of a queue that was there before the start.
    pub(super) fn restore_queue(
        &mut self,
        queue: &Endpoint,
        backlog: Backlog,
        leases: Vec<(Position, HeldLease)>,
        now: Now,
    ) {
        self.desk.lanes.on_queue(queue.number, queue_policy(queue, &self.context), backlog);
        self.desk.lanes.with(queue.number, |lane| lane.restore(leases, now));
    }

    pub(super) fn on_queue(&mut self, queue: &Endpoint) {
        let policy = queue_policy(queue, &self.context);
        self.desk.lanes.on_queue(queue.number, policy, Backlog::None);
    }

    pub(super) fn on_queue_removed(&mut self, queue: EndpointNumber) {
        let waiters = self.desk.lanes.on_queue_removed(queue).map(|mut lane| lane.take_waiters());
        for waiter in waiters.unwrap_or_default() {
            self.answer_receive(queue, waiter, Err(ReceiveEnd::Deleted));
        }
    }

    /// Answers the receives that wait, because the loop ends.
    pub(super) fn end_receives(&mut self) {
        for queue in self.desk.lanes.numbers() {
            let waiters = self.desk.lanes.with(queue, QueueLane::take_waiters);
            for waiter in waiters.unwrap_or_default() {
                self.answer_receive(queue, waiter, Ok(Vec::new()));
            }
        }
    }

    pub(super) fn on_queue_signal(&mut self, signal: QueueSignal, now: Now) {
        match signal {
            QueueSignal::Receive { queue, waiter, request, answer } => {
                self.on_receive(queue, waiter, request, answer, now);
            }
            QueueSignal::TimeUp { queue, waiter } => {
                if let Some(open) = self.desk.receives.get_mut(&waiter) {
                    open.is_time_up = true;
                    self.desk.lanes.with(queue, |lane| lane.on_time_up(waiter));
                }
            }
            QueueSignal::Gone { queue, waiter } => {
                // A receive with taken messages ends when their records are applied.
                if self.desk.lanes.with(queue, |lane| lane.on_waiter_gone(waiter)) == Some(true) {
                    self.desk.receives.remove(&waiter);
                }
            }
            QueueSignal::TakeFailed { queue, waiter, messages, error } => {
                self.on_take_failed(queue, waiter, &messages, error, now);
            }
            QueueSignal::GivenUp { queue, message } => {
                self.desk.lanes.with(queue, |lane| lane.on_given_up(message, now));
            }
            QueueSignal::Judge { queue, leases, answer } => self.judge(queue, leases, answer, now),
            QueueSignal::Free { queue, leases } => self.free(queue, leases, now),
            QueueSignal::Report { queue, answer } => {
                // The caller may have been dropped.
                let _dropped = answer.send(self.desk.lanes.report(queue, now).unwrap_or_default()).is_err();
            }
        }
    }

    fn on_receive(
        &mut self,
        queue: EndpointNumber,
        waiter: WaiterNumber,
        request: ReceiveRequest,
        answer: oneshot::Sender<ReceiveAnswer>,
        now: Now,
    ) {
        let most = request.most;
        let open = OpenReceive { request, answer, pending: 0, leased: Vec::new(), is_time_up: false };
        self.desk.receives.insert(waiter, open);
        let end = if self.draining { Ok(Vec::new()) } else { Err(ReceiveEnd::Deleted) };
        let is_parked = !self.draining
            && self.desk.lanes.with(queue, |lane| lane.on_receive(waiter, most, now)).is_some();
        if !is_parked {
            return self.answer_receive(queue, waiter, end);
        }
        // A receive that does not wait takes what is there now.
        self.perform_queue_actions();
    }

    fn judge(
        &mut self,
        queue: EndpointNumber,
        leases: Vec<LeaseKey>,
        answer: oneshot::Sender<Vec<JudgedLease>>,
        now: Now,
    ) {
        let judged = self
            .desk
            .lanes
            .with(queue, |lane| leases.iter().map(|lease| lane.judge(*lease)).collect::<Vec<_>>());
        let judged = judged.unwrap_or_else(|| vec![JudgedLease::Unknown; leases.len()]);
        if answer.send(judged).is_err() {
            self.free(queue, leases, now);
        }
    }

    fn free(&mut self, queue: EndpointNumber, leases: Vec<LeaseKey>, now: Now) {
        self.desk.lanes.with(queue, |lane| leases.into_iter().for_each(|lease| lane.free(lease, now)));
    }

    /// Performs the actions of the queues' lanes until none is left.
    pub(super) fn perform_queue_actions(&mut self) {
        let now = self.context.now();
        while let Some((queue, action)) = self.desk.lanes.next_action(now) {
            match action {
                QueueAction::Take { waiter, messages } => self.take(queue, waiter, messages, now),
                QueueAction::GiveUp { message, reason } => {
                    let give_up = give_up(self.context.clone(), queue, message, reason);
                    self.tasks.spawn(panics::contained(give_up));
                }
                QueueAction::Empty { waiter } => self.answer_receive(queue, waiter, Ok(Vec::new())),
                QueueAction::Refill { after, limit } => {
                    self.spawn_task(BackgroundTask::Refill, move |context| {
                        refill(context, queue, after, limit)
                    });
                }
            }
        }
    }

    fn take(&mut self, queue: EndpointNumber, waiter: WaiterNumber, messages: Vec<TakenMessage>, now: Now) {
        let open = self.desk.receives.get_mut(&waiter).filter(|open| !open.answer.is_closed());
        let Some(open) = open else {
            self.desk.receives.remove(&waiter);
            self.desk.lanes.with(queue, |lane| lane.on_take_failed(&messages, now));
            return;
        };
        open.pending = messages.len();
        let worker = open.request.worker.clone();
        let until = now.wall.plus(open.request.visibility);
        self.desk.takes.begin(queue, &messages, waiter);
        let record =
            Record::MessagesLeased { queue, messages: messages.clone(), until, at: now.wall, worker };
        let context = self.context.clone();
        self.tasks.spawn(panics::contained(async move {
            if let Err(error) = context.submit(vec![Command::Record(record)]).await {
                let failed = QueueSignal::TakeFailed { queue, waiter, messages, error };
                context.signal(Signal::Queue(failed));
            }
        }));
    }

    fn on_take_failed(
        &mut self,
        queue: EndpointNumber,
        waiter: WaiterNumber,
        messages: &[TakenMessage],
        error: Unavailable,
        now: Now,
    ) {
        for taken in messages {
            self.desk.takes.end(queue, *taken);
        }
        self.desk.lanes.with(queue, |lane| lane.on_take_failed(messages, now));
        self.answer_receive(queue, waiter, Err(ReceiveEnd::Unavailable(error)));
    }

    /// The record of a taken message is applied.
    pub(super) fn on_taken(
        &mut self,
        queue: EndpointNumber,
        taken: TakenMessage,
        lease: Option<HeldLease>,
        now: Now,
    ) {
        self.desk.lanes.with(queue, |lane| lane.on_taken(taken, lease, now));
        let Some(waiter) = self.desk.takes.end(queue, taken) else { return };
        let Some(open) = self.desk.receives.get_mut(&waiter) else { return };
        open.pending -= 1;
        if let Some(lease) = lease {
            let is_fresh = matches!(taken.from, TakenFrom::Due(_)) && lease.progress.attempts == 1;
            let payload = if is_fresh { self.payloads.take(taken.event) } else { None };
            open.leased.push(LeasedMessage { event: taken.event, lease, payload });
        }
        if open.pending > 0 {
            return;
        }
        if open.leased.is_empty() && !open.is_time_up && !self.draining {
            let most = open.request.most;
            let parked = self.desk.lanes.with(queue, |lane| lane.on_receive_again(waiter, most));
            if parked.is_some() {
                return;
            }
        }
        let leased = std::mem::take(&mut open.leased);
        self.answer_receive(queue, waiter, Ok(leased));
    }

    /// Answers a receive. Messages whose client has gone return to the front, uncharged.
    fn answer_receive(&mut self, queue: EndpointNumber, waiter: WaiterNumber, answer: ReceiveAnswer) {
        let Some(open) = self.desk.receives.remove(&waiter) else { return };
        if let Err(Ok(unsent)) = open.answer.send(answer)
            && !unsent.is_empty()
        {
            let key =
                |message: &LeasedMessage| LeaseKey { event: message.event, lease: message.lease.position };
            release_unsent(&self.context, queue, unsent.iter().map(key).collect());
        }
    }
}

/// Gives up a message that is still in its place.
async fn give_up(context: Context, queue: EndpointNumber, message: TakenMessage, reason: DeadReason) {
    let key = DeliveryKey { event: message.event, endpoint: queue };
    let is_there = move |state: &dyn ReadModel| {
        let facts = state.delivery(key).filter(|facts| facts.due.is_some());
        let is_there = facts.is_some_and(|facts| match (message.from, facts.lease) {
            (TakenFrom::Lease(position), Some(lease)) => lease.position == position,
            (TakenFrom::Due(due), None) => facts.due == Some(due),
            (TakenFrom::Lease(_), None) | (TakenFrom::Due(_), Some(_)) => false,
        });
        (if is_there { vec![key] } else { Vec::new() }, ())
    };
    if let Err(error) = Deliveries(&context).give_up(reason, is_there).await {
        tracing::warn!(%error, queue = queue.0, "giving up message failed, retrying");
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    context.signal(Signal::Queue(QueueSignal::GivenUp { queue, message }));
}

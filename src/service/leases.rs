//! Ends of leases: acknowledged, returned, given up, released, extended.
//!
//! The lane judges each receipt first and keeps the lease from everybody else until the record is
//! applied. The fold judges again; both agree but for what operators do in between. A receipt that
//! the lane does not hold is judged by the history of its message, so that a repeated request gets
//! the same answer, also after a restart. An acknowledgement that delivers the message is answered
//! as `acked`, no matter how late.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::context::Context;
use crate::context::queue_signal::QueueSignal;
use crate::context::signal::Signal;
use crate::domain::closed_list::closed_list;
use crate::domain::{
    DeadReason, DeliveryKey, DeliveryState, EndedLease, Endpoint, EndpointNumber, HeldLease, LeaseEnd,
    LeaseKey, Next, Progress, Record, Timestamp,
};
use crate::lanes::leases::JudgedLease;
use crate::outbox::draft::Unavailable;
use crate::outbox::unit::{Command, Unit};
use crate::projections::reads::DeliveryFacts;
use crate::rules::retry;
use crate::service::bulk::Deaths;
use crate::service::deliveries::Deliveries;
use crate::service::receipts::Receipt;

/// First and longest pause before a receipt is judged again while another request about it is in
/// progress.
const BUSY_PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(64));

closed_list! {
    /// Result of one receipt.
    pub enum ReceiptStatus {
        Acked => "acked",
        Requeued => "requeued",
        Dead => "dead",
        Released => "released",
        Extended => "extended",
        /// The message was taken again, or returned, since the receipt was given. Nothing happened.
        Stale => "stale",
        /// The message has ended: it was delivered, cancelled or given up. Nothing happened.
        Gone => "gone",
    }
}

/// Action of a worker on its leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseAction {
    Ack,
    /// The message is due again after this delay; `None`: as the queue's retry policy says.
    Requeue(Option<Duration>),
    /// The message becomes a dead letter.
    Reject,
    Release,
    /// The leases last this long from now, within the queue's longest lease.
    Extend(Duration),
}

/// Result of one receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiptResult {
    pub status: ReceiptStatus,
    /// Of an extended lease.
    pub leased_until: Option<Timestamp>,
}

impl From<ReceiptStatus> for ReceiptResult {
    fn from(status: ReceiptStatus) -> Self {
        Self { status, leased_until: None }
    }
}

/// A change of a held lease.
#[derive(Clone, Copy, Debug)]
enum Planned {
    End(LeaseEnd, ReceiptStatus),
    Extend(Timestamp),
    Nothing(ReceiptStatus),
}

/// Judgement of a receipt by the history of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    Ended(ReceiptStatus),
    /// The message died or was cancelled under its last lease. The work is done, so it counts.
    LateAck,
}

impl Past {
    /// `None`: not before the record of the acknowledgement.
    fn status(self) -> Option<ReceiptStatus> {
        match self {
            Self::Ended(status) => Some(status),
            Self::LateAck => None,
        }
    }
}

/// Operations on leases of a queue.
#[derive(Clone, Copy)]
pub struct Leases<'a>(pub &'a Context, pub &'a Endpoint);

impl Leases<'_> {
    fn queue(self) -> EndpointNumber {
        self.1.number
    }

    /// Applies the action to the lease of each receipt. Returns the results in order, durable.
    ///
    /// # Errors
    /// When the outbox is unavailable. A repeated request then gets the results.
    pub async fn end(
        self,
        receipts: &[Receipt],
        action: &LeaseAction,
        reason: Option<&str>,
    ) -> Result<Vec<ReceiptResult>, Unavailable> {
        let mut known: HashMap<LeaseKey, ReceiptResult> = HashMap::new();
        let mut open: Vec<LeaseKey> = Vec::new();
        for receipt in receipts.iter().filter(|receipt| receipt.queue == self.queue()) {
            if known.insert(receipt.key, ReceiptStatus::Gone.into()).is_none() {
                open.push(receipt.key);
            }
        }
        let mut pause = BUSY_PAUSE.0;
        while !open.is_empty() {
            let judged = self.judge(&open).await?;
            let (mut held, mut ended, mut busy) = (Vec::new(), Vec::new(), Vec::new());
            for (key, judged) in open.iter().zip(judged) {
                match judged {
                    JudgedLease::Held(lease) => held.push((*key, lease)),
                    JudgedLease::Busy => busy.push(*key),
                    JudgedLease::Stale | JudgedLease::Unknown => ended.push(*key),
                }
            }
            self.end_held(held, action, reason, &mut known).await?;
            self.judge_ended(ended, action, &mut known).await?;
            open = busy;
            if !open.is_empty() {
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(BUSY_PAUSE.1);
                // Fails while the state cannot answer, which may be why the lease is busy.
                self.0.outbox_of(self.queue()).read(|state| state.applied()).await?;
            }
        }
        if *action != LeaseAction::Ack {
            // The next receive finds the messages again.
            self.0.outbox_of(self.queue()).read(|state| state.applied()).await?;
        }
        let gone = ReceiptResult::from(ReceiptStatus::Gone);
        Ok(receipts
            .iter()
            .map(|receipt| match receipt.queue == self.queue() {
                true => known.get(&receipt.key).copied().unwrap_or(gone),
                false => gone,
            })
            .collect())
    }

    async fn judge(self, keys: &[LeaseKey]) -> Result<Vec<JudgedLease>, Unavailable> {
        let (answer, judged) = oneshot::channel();
        let signal = QueueSignal::Judge { queue: self.queue(), leases: keys.to_vec(), answer };
        self.0.signal(Signal::Queue(signal));
        judged.await.map_err(|_| Unavailable::Stopping)
    }

    async fn end_held(
        self,
        held: Vec<(LeaseKey, HeldLease)>,
        action: &LeaseAction,
        reason: Option<&str>,
        known: &mut HashMap<LeaseKey, ReceiptResult>,
    ) -> Result<(), Unavailable> {
        if held.is_empty() {
            return Ok(());
        }
        let at = self.0.now().wall;
        let mut busy = BusyLeases { context: self.0, queue: self.queue(), leases: Vec::new() };
        busy.leases.extend(held.iter().map(|(key, _)| *key));
        let (mut ends, mut unchanged) = (Vec::new(), Vec::new());
        let mut extended: BTreeMap<Timestamp, Vec<LeaseKey>> = BTreeMap::new();
        let mut results = Vec::with_capacity(held.len());
        for (key, lease) in &held {
            let result = match self.plan(*key, lease, action, at) {
                Planned::End(end, status) => {
                    ends.push(EndedLease { key: *key, end });
                    status.into()
                }
                Planned::Extend(until) => {
                    extended.entry(until).or_default().push(*key);
                    ReceiptResult { status: ReceiptStatus::Extended, leased_until: Some(until) }
                }
                Planned::Nothing(status) => {
                    unchanged.push(*key);
                    status.into()
                }
            };
            results.push((*key, result));
        }
        let queue = self.queue();
        let mut commands = Vec::new();
        let end = |ends: Vec<EndedLease>, reason: Option<&str>| {
            Command::Record(Record::LeasesEnded { queue, ends, at, reason: reason.map(Into::into) })
        };
        match reason {
            _ if ends.is_empty() => {}
            None => commands.push(end(ends.clone(), None)),
            // A record per message, so that an erasure of its event removes the reason.
            Some(_) => commands.extend(ends.iter().map(|ended| end(vec![*ended], reason))),
        }
        for (until, leases) in extended {
            commands.push(Command::Record(Record::LeasesExtended { queue, leases, until, at }));
        }
        self.0.submit(commands).await?;
        // The fold tells the lane about the others.
        busy.leases = unchanged;
        drop(busy);
        self.report(&ends).await;
        known.extend(results);
        Ok(())
    }

    fn plan(self, key: LeaseKey, lease: &HeldLease, action: &LeaseAction, at: Timestamp) -> Planned {
        match action {
            LeaseAction::Ack => Planned::End(LeaseEnd::Acked, ReceiptStatus::Acked),
            LeaseAction::Release if lease.is_released => Planned::Nothing(ReceiptStatus::Released),
            LeaseAction::Requeue(_) | LeaseAction::Reject | LeaseAction::Extend(_) if lease.is_released => {
                Planned::Nothing(ReceiptStatus::Stale)
            }
            LeaseAction::Release => Planned::End(LeaseEnd::Released, ReceiptStatus::Released),
            LeaseAction::Reject => Planned::End(LeaseEnd::Dead(DeadReason::Refused), ReceiptStatus::Dead),
            LeaseAction::Requeue(delay) => self.requeue(key, lease, *delay, at),
            LeaseAction::Extend(visibility) => {
                let lease_max = self.1.queue().map_or(*visibility, |target| target.lease_max);
                Planned::Extend(at.plus(*visibility).min(lease.since.plus(lease_max)))
            }
        }
    }

    fn requeue(self, key: LeaseKey, lease: &HeldLease, delay: Option<Duration>, at: Timestamp) -> Planned {
        let delivery = DeliveryKey { event: key.event, endpoint: self.queue() };
        let settings = self.0.settings();
        let policy = self.1.retry(&settings.defaults);
        match (retry::next_after_lease(policy, delivery, &lease.progress, at), delay) {
            (Next::Dead(reason), _) => Planned::End(LeaseEnd::Dead(reason), ReceiptStatus::Dead),
            (_, Some(delay)) => Planned::End(LeaseEnd::Requeued(at.plus(delay)), ReceiptStatus::Requeued),
            (Next::RetryAt(due), None) => Planned::End(LeaseEnd::Requeued(due), ReceiptStatus::Requeued),
            (Next::Delivered, None) => Planned::Nothing(ReceiptStatus::Gone),
        }
    }

    /// Reports dead letters to the operator.
    async fn report(self, ends: &[EndedLease]) {
        let mut dead: BTreeMap<DeadReason, Deaths> = BTreeMap::new();
        for EndedLease { key, end } in ends {
            if let LeaseEnd::Dead(reason) = end {
                let delivery = DeliveryKey { event: key.event, endpoint: self.queue() };
                dead.entry(*reason).or_insert_with(|| Deaths::new(*reason)).add(delivery);
                self.0.metrics().dead_lettered(*reason, 1);
            }
        }
        for (_, deaths) in dead {
            Deliveries(self.0).report(deaths).await;
        }
    }

    /// Judges receipts of leases that the lane does not hold.
    async fn judge_ended(
        self,
        keys: Vec<LeaseKey>,
        action: &LeaseAction,
        known: &mut HashMap<LeaseKey, ReceiptResult>,
    ) -> Result<(), Unavailable> {
        let judged = self.judge_by_history(keys, action).await?;
        let late: Vec<_> =
            judged.iter().filter(|(_, judged)| *judged == Past::LateAck).map(|(key, _)| *key).collect();
        known.extend(judged.into_iter().filter_map(|(key, judged)| Some((key, judged.status()?.into()))));
        if late.is_empty() {
            return Ok(());
        }
        let ends = late.iter().map(|key| EndedLease { key: *key, end: LeaseEnd::Acked }).collect();
        let (queue, at) = (self.queue(), self.0.now().wall);
        self.0.submit(vec![Command::Record(Record::LeasesEnded { queue, ends, at, reason: None })]).await?;
        // An operator may have sent the message to the queue again before the record.
        let judged = self.judge_by_history(late, action).await?;
        known.extend(judged.into_iter().filter_map(|(key, judged)| Some((key, judged.status()?.into()))));
        Ok(())
    }

    /// Judges receipts by the histories of their messages. Leaves out those without a message.
    async fn judge_by_history(
        self,
        keys: Vec<LeaseKey>,
        action: &LeaseAction,
    ) -> Result<Vec<(LeaseKey, Past)>, Unavailable> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let (queue, wanted) = (self.queue(), keys.clone());
        let facts = self.0.outbox_of(queue).read(move |state| {
            let delivery = |key: &LeaseKey| state.delivery(DeliveryKey { event: key.event, endpoint: queue });
            wanted.iter().map(delivery).collect::<Vec<_>>()
        });
        let mut judged = Vec::with_capacity(keys.len());
        for (key, facts) in keys.into_iter().zip(facts.await?) {
            let Some(facts) = facts else { continue };
            let (end, is_last) = self.history(&facts, key).await?;
            let is_pending = facts.state == DeliveryState::Pending;
            let past = match (end, action) {
                (Some(LeaseEnd::Acked), LeaseAction::Ack) => Past::Ended(ReceiptStatus::Acked),
                (Some(LeaseEnd::Released), LeaseAction::Release) => Past::Ended(ReceiptStatus::Released),
                (Some(LeaseEnd::Requeued(_)), LeaseAction::Requeue(_)) => {
                    Past::Ended(ReceiptStatus::Requeued)
                }
                (Some(LeaseEnd::Dead(_)), LeaseAction::Requeue(_) | LeaseAction::Reject) => {
                    Past::Ended(ReceiptStatus::Dead)
                }
                _ if is_pending || !is_last => Past::Ended(ReceiptStatus::Stale),
                (None, LeaseAction::Ack) if facts.state != DeliveryState::Delivered => Past::LateAck,
                _ => Past::Ended(ReceiptStatus::Gone),
            };
            judged.push((key, past));
        }
        Ok(judged)
    }

    /// How the lease ended by its own receipt, and whether it is the last lease of its message. A
    /// released lease may be acknowledged later.
    async fn history(
        self,
        facts: &DeliveryFacts,
        key: LeaseKey,
    ) -> Result<(Option<LeaseEnd>, bool), Unavailable> {
        let Some(at) = facts.attempts.iter().position(|position| *position == key.lease) else {
            return Ok((None, false));
        };
        let (mut end, mut last) = (None, at);
        for position in &facts.attempts[at + 1..] {
            let Some(Record::LeasesEnded { ends, .. }) = self.0.record_at(*position).await? else { break };
            let Some(ended) = ends.iter().find(|ended| ended.key == key) else { break };
            (end, last) = (Some(ended.end), last + 1);
        }
        Ok((end, last + 1 == facts.attempts.len()))
    }
}

/// Returns messages that were in no answer to the front, uncharged. No caller waits.
pub(crate) fn release_unsent(context: &Context, queue: EndpointNumber, leases: Vec<LeaseKey>) {
    let record = released(context, queue, leases);
    context.outbox_of(queue).record(Unit::of_record(record));
}

/// The record that returns messages to the front, uncharged.
pub(crate) fn released(context: &Context, queue: EndpointNumber, leases: Vec<LeaseKey>) -> Record {
    let ends = leases.into_iter().map(|key| EndedLease { key, end: LeaseEnd::Released }).collect();
    Record::LeasesEnded { queue, ends, at: context.now().wall, reason: None }
}

/// Ends the leases of messages whose answer did not reach the worker. `leased` has their progress
/// with the lease. No caller waits.
pub(crate) fn end_lost(context: &Context, queue: &Endpoint, leased: &[(LeaseKey, Progress)]) {
    let at = context.now().wall;
    // The queue may have changed since the receive.
    let current = context.outbox_of(queue.number).endpoint(queue.number);
    let queue = current.as_deref().unwrap_or(queue);
    let settings = context.settings();
    let policy = queue.retry(&settings.defaults);
    let end = |(key, progress): &(LeaseKey, Progress)| {
        let delivery = DeliveryKey { event: key.event, endpoint: queue.number };
        EndedLease { key: *key, end: retry::end_of_lost_answer(policy, delivery, progress, at) }
    };
    let ends: Vec<_> = leased.iter().map(end).collect();
    let charged = ends.iter().filter(|ended| matches!(ended.end, LeaseEnd::Lost(Some(_)))).count();
    if charged > 0 {
        tracing::warn!(queue = %queue.id, messages = charged, "answer to a worker lost again, charging its messages");
    }
    let record = Record::LeasesEnded { queue: queue.number, ends, at, reason: None };
    context.outbox_of(queue.number).record(Unit::of_record(record));
}

/// Leases that no other request may end or take, until the guard is dropped.
struct BusyLeases<'a> {
    context: &'a Context,
    queue: EndpointNumber,
    leases: Vec<LeaseKey>,
}

impl Drop for BusyLeases<'_> {
    fn drop(&mut self) {
        if !self.leases.is_empty() {
            let leases = std::mem::take(&mut self.leases);
            self.context.signal(Signal::Queue(QueueSignal::Free { queue: self.queue, leases }));
        }
    }
}

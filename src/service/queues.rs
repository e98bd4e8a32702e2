//! Queues: creating, reading, and receiving messages. `leases` ends leases.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::context::Context;
use crate::context::queue_signal::{LeasedMessage, QueueSignal, ReceiveEnd, ReceiveRequest};
use crate::context::signal::Signal;
use crate::courier::body::message_body;
use crate::domain::{
    DeadReason, DeliveryKey, Endpoint, EndpointId, EndpointNumber, Event, LeaseKey, Party, Position,
    Progress, QueueName, Record, Tenant, Timestamp, WorkerName,
};
use crate::lanes::queue::{QueueReport, WaiterNumber};
use crate::lanes::{WaitReason, with_order};
use crate::limits;
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::outbox::unit::Command;
use crate::projections::reads::Cursor;
use crate::service::conversions::Conversions;
use crate::service::deliveries::Deliveries;
use crate::service::endpoints::Endpoints;
use crate::service::pages::cut;
use crate::service::receipts::Receipt;
use crate::service::types::{Page, Scope};

/// Prefix of the ids of queues.
pub(crate) const QUEUE_ID: &str = "que_";

/// How often a receive looks for other messages when none of those that it got can be converted.
const UNCONVERTIBLE_ROUNDS_MAX: usize = 100;

/// Operations on queues.
#[derive(Clone, Copy)]
pub struct Queues<'a>(pub &'a Context);

/// A receive's parameters.
#[derive(Clone, Debug)]
pub struct ReceiveOptions {
    /// Number of messages, at least 1.
    pub most: usize,
    /// Bound of the events' bytes. The first message may exceed it.
    pub bytes_max: usize,
    /// How long to wait for the first message.
    pub wait: Duration,
    /// Time of the leases; `None`: the queue's.
    pub visibility: Option<Duration>,
    pub worker: Option<WorkerName>,
}

/// A message with its lease.
#[derive(Clone, Debug)]
pub struct ReceivedMessage {
    pub receipt: Receipt,
    pub delivery: DeliveryKey,
    /// Counts the lease.
    pub progress: Progress,
    pub leased_until: Timestamp,
    /// The event in the queue's format.
    pub event: Bytes,
}

/// Why a receive failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error("too many callers wait")]
    TooManyWaiters,
    /// The queue was deleted.
    #[error("the queue was deleted")]
    Deleted,
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Messages of a queue, and why they wait.
#[derive(Clone, Copy, Debug)]
pub struct QueueLaneView {
    pub reason: Option<&'static str>,
    pub pending: u64,
    pub waiting_for_order: u64,
    pub leased: u64,
    pub returned: u64,
    pub waiters: u64,
    pub last_receive: Option<Timestamp>,
    pub next_due: Option<Timestamp>,
}

/// A message under lease.
#[derive(Clone, Debug)]
pub struct LeaseView {
    pub delivery: DeliveryKey,
    pub event: Option<Arc<Event>>,
    pub worker: Option<WorkerName>,
    pub delivery_count: u32,
    pub received_at: Timestamp,
    pub until: Timestamp,
    pub is_released: bool,
}

impl Queues<'_> {
    /// The live queue with this name.
    #[must_use]
    pub fn get(self, scope: &Scope, tenant: &Tenant, name: &QueueName) -> Option<Arc<Endpoint>> {
        let found = self.0.outbox_of(tenant).registry(|registry| registry.queue(tenant, name).cloned());
        found.filter(|queue| scope.covers(&queue.tenant))
    }

    /// The queues that have this name, or had it when they were deleted, by number. Empty: none in
    /// the scope.
    #[must_use]
    pub fn named(self, scope: &Scope, tenant: &Tenant, name: &QueueName) -> Vec<EndpointNumber> {
        if !scope.covers(tenant) {
            return Vec::new();
        }
        self.0.outbox_of(tenant).registry(|registry| registry.queues_named(tenant, name))
    }

    /// Newest first.
    #[must_use]
    pub fn list(
        self,
        scope: &Scope,
        tenant: Option<&Tenant>,
        after: Option<Cursor>,
        limit: usize,
    ) -> Page<Arc<Endpoint>> {
        Endpoints(self.0).page(scope, tenant, after, limit, |endpoint| endpoint.queue().is_some())
    }

    #[must_use]
    pub fn new_id(self) -> EndpointId {
        self.0.new_id(QUEUE_ID).parse().expect("a ULID contains only letters and digits")
    }

    /// Returns messages whose answer could not be sent whole: free the first time, charged later.
    pub fn return_lost(self, queue: &Endpoint, messages: &[(Receipt, Progress)]) {
        let leased: Vec<_> = messages.iter().map(|(receipt, progress)| (receipt.key, *progress)).collect();
        super::leases::end_lost(self.0, queue, &leased);
    }

    /// Deletes a queue. A background task turns its messages into dead letters.
    ///
    /// # Errors
    /// When the queue was deleted before, or the commit failed.
    pub async fn delete(self, scope: &Scope, queue: &Endpoint) -> Result<(), ChangeError> {
        Endpoints(self.0).delete_number(scope, queue.number).await
    }

    /// Messages of a queue, and why they wait.
    ///
    /// # Errors
    /// When the outbox or the delivery loop is unavailable.
    pub async fn lane(self, queue: EndpointNumber) -> Result<QueueLaneView, Unavailable> {
        let counted = Endpoints(self.0).counters(queue).await?;
        let report = self.report(queue).await?;
        Ok(QueueLaneView {
            reason: with_order(report.reason, counted.waiting > 0).map(WaitReason::as_str),
            pending: counted.pending,
            waiting_for_order: counted.waiting,
            leased: report.leased as u64,
            returned: report.returned as u64,
            waiters: report.waiters as u64,
            last_receive: report.last_receive,
            next_due: report.next_due,
        })
    }

    /// State of the lane.
    ///
    /// # Errors
    /// When the delivery loop has ended.
    pub(crate) async fn report(self, queue: EndpointNumber) -> Result<QueueReport, Unavailable> {
        let (answer, report) = oneshot::channel();
        self.0.signal(Signal::Queue(QueueSignal::Report { queue, answer }));
        report.await.map_err(|_| Unavailable::Stopping)
    }

    /// Messages under lease after an event, by event. The cursor is an event's.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn leases(
        self,
        queue: EndpointNumber,
        after: Position,
        limit: usize,
    ) -> Result<Page<LeaseView>, Unavailable> {
        let mut leases =
            self.0.outbox_of(queue).read(move |state| state.leases(queue, after, limit + 1)).await?;
        let more = cut(&mut leases, limit);
        let next = leases.last().filter(|_| more).map(|(event, _)| Cursor::at(*event));
        let mut views = Vec::with_capacity(leases.len());
        for (event, lease) in leases {
            let worker = match self.0.record_at(lease.position).await? {
                Some(Record::MessagesLeased { worker, .. }) => worker,
                _ => None,
            };
            views.push(LeaseView {
                delivery: DeliveryKey { event, endpoint: queue },
                event: self.0.event_at(event).await?,
                worker,
                delivery_count: lease.progress.attempts_in_series,
                received_at: lease.since,
                until: lease.until,
                is_released: lease.is_released,
            });
        }
        Ok(Page { items: views, next, as_of: self.0.last_position() })
    }

    /// Takes messages under lease. Answers as soon as there is one. Messages of a client that has
    /// gone return to the front, uncharged.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub async fn receive(
        self,
        party: Party,
        queue: &Endpoint,
        options: ReceiveOptions,
        gone: impl Future<Output = ()> + Send,
    ) -> Result<Vec<ReceivedMessage>, ReceiveError> {
        let number = queue.number;
        let _registered = if options.wait.is_zero() {
            // The lane then knows everything that was answered before.
            self.0.outbox_of(number).read(|state| state.applied()).await?;
            None
        } else {
            let registered = self.0.waits().enter(party);
            Some(registered.map_err(|_| ReceiveError::TooManyWaiters)?)
        };
        let mut gone = pin!(gone);
        let deadline = tokio::time::Instant::now() + options.wait;
        let mut options = options;
        for _ in 0..UNCONVERTIBLE_ROUNDS_MAX {
            let leased = self.take(queue, &options, gone.as_mut()).await?;
            // The wait for the client may have ended: it must not be polled again.
            if leased.is_empty() {
                break;
            }
            let mut unsent = UnsentMessages::new(self.0, number, &leased);
            let (messages, unconvertible) = self.read_messages(queue, leased, options.bytes_max).await?;
            self.give_up_unconvertible(number, &unconvertible).await?;
            unsent.keep(unconvertible.into_iter());
            let is_gone = std::future::poll_fn(|context| {
                std::task::Poll::Ready(gone.as_mut().poll(context).is_ready())
            });
            if is_gone.await {
                break;
            }
            if !messages.is_empty() {
                let sent: Vec<_> = messages.iter().map(|message| message.receipt.key).collect();
                unsent.return_others(&sent).await;
                return Ok(messages);
            }
            options.wait = deadline.saturating_duration_since(tokio::time::Instant::now());
        }
        Ok(Vec::new())
    }

    /// Makes dead letters of messages that cannot be converted to the version that the queue pins.
    async fn give_up_unconvertible(
        self,
        queue: EndpointNumber,
        leases: &[LeaseKey],
    ) -> Result<(), Unavailable> {
        if leases.is_empty() {
            return Ok(());
        }
        let deliveries: Vec<_> =
            leases.iter().map(|lease| DeliveryKey { event: lease.event, endpoint: queue }).collect();
        Deliveries(self.0).give_up(DeadReason::Unconvertible, move |_| (deliveries, ())).await
    }

    async fn take(
        self,
        queue: &Endpoint,
        options: &ReceiveOptions,
        gone: impl Future<Output = ()>,
    ) -> Result<Vec<LeasedMessage>, ReceiveError> {
        let defaults = &self.0.settings().defaults;
        let lease_max = queue.queue().map_or(Duration::MAX, |target| target.lease_max);
        let visibility = options.visibility.unwrap_or_else(|| queue.timeout(defaults)).min(lease_max);
        let request = ReceiveRequest { most: options.most, visibility, worker: options.worker.clone() };
        let (answer, mut leased) = oneshot::channel();
        let (waiter, queue) = (self.0.next_waiter(), queue.number);
        self.0.signal(Signal::Queue(QueueSignal::Receive { queue, waiter, request, answer }));
        let _parked = ParkedReceive { context: self.0, queue, waiter };
        let mut gone = pin!(gone);
        let mut time_up = pin!(tokio::time::sleep(options.wait));
        let mut is_time_up = false;
        loop {
            tokio::select! {
                biased;
                answer = &mut leased => {
                    return match answer {
                        Ok(Ok(leased)) => Ok(leased),
                        Ok(Err(ReceiveEnd::Deleted)) => Err(ReceiveError::Deleted),
                        Ok(Err(ReceiveEnd::Unavailable(error))) => Err(error.into()),
                        Err(_) => Err(Unavailable::Stopping.into()),
                    };
                }
                () = &mut gone => return Ok(Vec::new()),
                () = &mut time_up, if !is_time_up => {
                    is_time_up = true;
                    self.0.signal(Signal::Queue(QueueSignal::TimeUp { queue, waiter }));
                }
            }
        }
    }

    /// Reads and converts the events of leased messages, in order, up to a number of bytes. Also
    /// returns the leases of those that cannot be converted.
    async fn read_messages(
        self,
        queue: &Endpoint,
        leased: Vec<LeasedMessage>,
        bytes_max: usize,
    ) -> Result<(Vec<ReceivedMessage>, Vec<LeaseKey>), Unavailable> {
        // The queue may have changed while the caller waited.
        let current = self.0.outbox_of(queue.number).endpoint(queue.number);
        let queue = current.as_deref().unwrap_or(queue);
        let conversions = Conversions(self.0);
        let (mut messages, mut unconvertible) = (Vec::with_capacity(leased.len()), Vec::new());
        let mut bytes = 0;
        let not_cached = leased.iter().filter(|message| message.payload.is_none());
        let not_cached = not_cached.map(|message| message.event).collect();
        let mut read = self.0.events_at(not_cached, bytes_max).await?.into_iter();
        for LeasedMessage { event, lease, payload } in leased {
            let payload = match payload {
                Some(payload) => Some(payload),
                None => match read.next() {
                    Some(payload) => payload,
                    // The events that were read before this one have at least `bytes_max` bytes.
                    None => break,
                },
            };
            let Some(payload) = payload else {
                tracing::error!(%event, "event of a message is unreadable");
                continue;
            };
            let key = LeaseKey { event, lease: lease.position };
            let outgoing = match conversions.convert(&queue.versions, event, &payload) {
                Ok(outgoing) => outgoing,
                Err(error) => {
                    tracing::warn!(
                        event = %payload.id, queue = %queue.id, %error,
                        trace_id = payload.trace_id().map(tracing::field::display),
                        "event cannot be converted, giving up the message"
                    );
                    unconvertible.push(key);
                    continue;
                }
            };
            let deprecation = conversions.deprecation(&outgoing.event);
            let stored = outgoing.stored_version.as_ref();
            let body = message_body(queue, &outgoing.event, stored, deprecation, event);
            bytes += body.len();
            if bytes > bytes_max && !messages.is_empty() {
                break;
            }
            messages.push(ReceivedMessage {
                receipt: Receipt { queue: queue.number, key },
                delivery: DeliveryKey { event, endpoint: queue.number },
                progress: lease.progress,
                leased_until: lease.until,
                event: body,
            });
        }
        Ok((messages, unconvertible))
    }
}

/// Tells the delivery loop when a receive ends before its answer.
struct ParkedReceive<'a> {
    context: &'a Context,
    queue: EndpointNumber,
    waiter: WaiterNumber,
}

impl Drop for ParkedReceive<'_> {
    fn drop(&mut self) {
        let Self { queue, waiter, .. } = *self;
        self.context.signal(Signal::Queue(QueueSignal::Gone { queue, waiter }));
    }
}

/// Messages that go back to the front unless they are sent.
struct UnsentMessages<'a> {
    context: &'a Context,
    queue: EndpointNumber,
    leases: Vec<LeaseKey>,
}

impl<'a> UnsentMessages<'a> {
    fn new(context: &'a Context, queue: EndpointNumber, leased: &[LeasedMessage]) -> Self {
        let key = |message: &LeasedMessage| LeaseKey { event: message.event, lease: message.lease.position };
        Self { context, queue, leases: leased.iter().map(key).collect() }
    }

    /// These are sent. Returns the others, for which the answer has no room, before the answer:
    /// otherwise a next receive that does not wait could find none. If the client goes before the
    /// record is durable, all return.
    async fn return_others(&mut self, sent: &[LeaseKey]) {
        let others: Vec<_> = self.leases.iter().filter(|lease| !sent.contains(lease)).copied().collect();
        if !others.is_empty() {
            let released = super::leases::released(self.context, self.queue, others.clone());
            // If this fails, the others return with a later commit.
            if self.context.submit(vec![Command::Record(released)]).await.is_ok() {
                self.keep(others.into_iter());
            }
        }
        self.keep(sent.iter().copied());
    }

    /// These are sent.
    fn keep(&mut self, sent: impl Iterator<Item = LeaseKey>) {
        let sent: std::collections::HashSet<_> = sent.collect();
        self.leases.retain(|lease| !sent.contains(lease));
    }
}

impl Drop for UnsentMessages<'_> {
    fn drop(&mut self) {
        if !self.leases.is_empty() {
            super::leases::release_unsent(self.context, self.queue, std::mem::take(&mut self.leases));
        }
    }
}

const _: () = assert!(limits::RECEIVE_MESSAGES_MAX <= limits::BULK_DELIVERIES_MAX);

//! Signals to the delivery loop about queues.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::domain::{EndpointNumber, Event, HeldLease, LeaseKey, Position, TakenMessage, WorkerName};
use crate::lanes::leases::JudgedLease;
use crate::lanes::queue::{QueueReport, WaiterNumber};
use crate::outbox::draft::Unavailable;

/// Parameters of a receive.
#[derive(Clone, Debug)]
pub(crate) struct ReceiveRequest {
    /// Number of messages, at least 1.
    pub most: usize,
    /// Time of the leases.
    pub visibility: Duration,
    pub worker: Option<WorkerName>,
}

/// A message that a worker got.
#[derive(Clone, Debug)]
pub(crate) struct LeasedMessage {
    pub event: Position,
    pub lease: HeldLease,
    /// The event, if it is still in memory.
    pub payload: Option<Arc<Event>>,
}

/// Messages of a receive; none if its time is up.
pub(crate) type ReceiveAnswer = Result<Vec<LeasedMessage>, ReceiveEnd>;

/// Why a receive got no answer.
#[derive(Clone, Debug)]
pub(crate) enum ReceiveEnd {
    /// The queue was deleted.
    Deleted,
    Unavailable(Unavailable),
}

#[derive(Debug)]
pub(crate) enum QueueSignal {
    /// A worker asks for messages.
    Receive {
        queue: EndpointNumber,
        waiter: WaiterNumber,
        request: ReceiveRequest,
        answer: oneshot::Sender<ReceiveAnswer>,
    },
    /// A receive waits no longer. It is answered soon.
    TimeUp {
        queue: EndpointNumber,
        waiter: WaiterNumber,
    },
    /// The client of a receive has gone.
    Gone {
        queue: EndpointNumber,
        waiter: WaiterNumber,
    },
    /// The record of taken messages was not written.
    TakeFailed {
        queue: EndpointNumber,
        waiter: WaiterNumber,
        messages: Vec<TakenMessage>,
        error: Unavailable,
    },
    /// A message was given up, or could not be.
    GivenUp {
        queue: EndpointNumber,
        message: TakenMessage,
    },
    /// Judges receipts. Held leases are busy until a record about them is applied.
    Judge {
        queue: EndpointNumber,
        leases: Vec<LeaseKey>,
        answer: oneshot::Sender<Vec<JudgedLease>>,
    },
    /// No record about these leases will come.
    Free {
        queue: EndpointNumber,
        leases: Vec<LeaseKey>,
    },
    Report {
        queue: EndpointNumber,
        answer: oneshot::Sender<QueueReport>,
    },
}

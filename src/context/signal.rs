//! Signals to the delivery loop: results of its tasks, and requests from services.

use tokio::sync::oneshot;

use crate::context::overdue::Behind;
use crate::context::queue_signal::QueueSignal;
use crate::domain::{DueKey, EndpointNumber, Position, Progress, Timestamp};
use crate::lanes;
use crate::lanes::LaneReport;

/// A message to the delivery loop, besides the outbox's notices.
#[derive(Debug)]
pub(crate) enum Signal {
    Finished {
        endpoint: EndpointNumber,
        key: DueKey,
        outcome: lanes::AttemptOutcome,
    },
    Refilled {
        endpoint: EndpointNumber,
        entries: Vec<(DueKey, Progress)>,
        exhausted: bool,
        as_of: Position,
    },
    /// The attempt was not made.
    Returned {
        endpoint: EndpointNumber,
        key: DueKey,
        progress: Progress,
    },
    /// The attempt was not made, because the receiver's address is at its limit.
    Postponed {
        endpoint: EndpointNumber,
        key: DueKey,
        progress: Progress,
    },
    /// A handshake request has ended.
    Asked {
        endpoint: EndpointNumber,
    },
    Explain {
        endpoint: EndpointNumber,
        answer: oneshot::Sender<LaneAnswer>,
    },
    /// Result of the last scan for overdue deliveries behind others.
    Behind(Behind),
    Reconfigured,
    /// About queues.
    Queue(QueueSignal),
}

/// A lane's report for the API.
#[derive(Clone, Debug, Default)]
pub(crate) struct LaneAnswer {
    pub reason: Option<lanes::WaitReason>,
    pub in_flight: usize,
    /// Pending deliveries in memory, without those in flight.
    pub window: usize,
    pub next_due: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub circuit: &'static str,
    pub consecutive_failures: u32,
}

impl From<LaneReport> for LaneAnswer {
    fn from(report: LaneReport) -> Self {
        Self {
            reason: report.reason,
            in_flight: report.in_flight,
            window: report.window,
            next_due: report.next_due,
            until: report.retry_at,
            circuit: report.circuit.as_str(),
            consecutive_failures: report.consecutive_failures,
        }
    }
}

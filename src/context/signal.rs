//! Signals to the delivery loop: results of its tasks, and requests from services.

use tokio::sync::oneshot;

use crate::context::overdue::Behind;
use crate::context::queue_signal::QueueSignal;
use crate::domain::{Attempt, DueKey, EndpointNumber, Position, Progress, Timestamp};
use crate::lanes;
use crate::lanes::LaneReport;

/// The facts of a failed attempt that an operator event shows.
#[derive(Clone, Debug)]
pub(crate) struct FailedAttempt {
    pub(crate) started_at: Timestamp,
    pub(crate) status: Option<u16>,
    /// Without text from the receiver, which may repeat the content of an event.
    pub(crate) error: Box<str>,
}

impl FailedAttempt {
    /// `None` after a success.
    pub(crate) fn of(attempt: &Attempt) -> Option<Self> {
        let (_, text) = attempt.error.as_ref()?;
        let error = match attempt.status {
            Some(status) => format!("status {status}").into(),
            None => text.clone(),
        };
        Some(Self { started_at: attempt.started_at, status: attempt.status, error })
    }
}

/// A message to the delivery loop, besides the outbox's notices.
#[derive(Debug)]
pub(crate) enum Signal {
    Finished {
        endpoint: EndpointNumber,
        key: DueKey,
        outcome: lanes::AttemptOutcome,
        failure: Option<FailedAttempt>,
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
    /// The attempt was not made, because of a limit outside the lane.
    Postponed {
        endpoint: EndpointNumber,
        key: DueKey,
        progress: Progress,
        cause: lanes::PostponeCause,
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

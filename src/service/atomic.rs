//! Atomic requests: appends to a stream, and batches whose events are all accepted or none.

use crate::context::records::UNEXPECTED_OUTCOME;
use crate::domain::{
    Expected, IdMap, Idempotency, Position, QuotaExceeded, Record, Rejection, StreamName, Tenant,
};
use crate::outbox::draft::{AcceptedEvent, EventDraft, PublishError, Unavailable};
use crate::outbox::unit::{Command, Outcome};
use crate::service::events::Events;

/// Submissions of a request whose original events retention removes in between.
const TRIES_MAX: usize = 3;

/// A condition on a stream that the request does not append to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamCheck {
    pub tenant: Tenant,
    pub stream: StreamName,
    pub expected: Expected,
}

/// Events to accept together. The first one has the key of the request.
#[derive(Clone, Debug)]
pub struct AtomicRequest {
    pub key: Option<Idempotency>,
    pub checks: Vec<StreamCheck>,
    pub drafts: Vec<EventDraft>,
}

/// The part of an atomic request that failed it, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedPart {
    Check(usize),
    Event(usize),
}

/// Why no event of an atomic request was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtomicError {
    /// `None` if no part is to blame.
    pub part: Option<FailedPart>,
    pub error: PublishError,
}

impl From<Unavailable> for AtomicError {
    fn from(error: Unavailable) -> Self {
        Self { part: None, error: error.into() }
    }
}

/// Result of a submission.
enum Judged {
    Accepted(Vec<AcceptedEvent>),
    Failed(AtomicError),
    /// An event of the original request has left the journal.
    OriginalGone,
}

impl Events<'_> {
    /// Accepts all events, or none. On return, they and their deliveries are on disk. A repeated
    /// request returns the original events.
    ///
    /// # Errors
    /// When no event was accepted.
    pub async fn publish_atomic(self, request: AtomicRequest) -> Result<Vec<AcceptedEvent>, AtomicError> {
        let mut request = request;
        self.take_rates_at_once(&request.drafts)?;
        self.resolve_generated_ids(&mut request.drafts).await?;
        for _ in 0..TRIES_MAX {
            match self.submit_atomic(&request).await? {
                Judged::Accepted(events) => return Ok(events),
                Judged::Failed(error) => return Err(error),
                Judged::OriginalGone => {}
            }
        }
        let reason = "the original events of a repeated request have left the journal";
        Err(Unavailable::Failed(reason.into()).into())
    }

    /// Takes all events from the rates of their tenants.
    fn take_rates_at_once(self, drafts: &[EventDraft]) -> Result<(), AtomicError> {
        let mut amounts: IdMap<&Tenant, (usize, u64, u64)> = IdMap::default();
        for (index, draft) in drafts.iter().enumerate() {
            let (_, events, bytes) = amounts.entry(&draft.tenant).or_insert((index, 0, 0));
            (*events, *bytes) = (*events + 1, *bytes + draft.data.len() as u64);
        }
        for (tenant, (first, events, bytes)) in amounts {
            let refused = |exceeded: QuotaExceeded| AtomicError {
                part: Some(FailedPart::Event(first)),
                error: exceeded.into(),
            };
            self.0.take_rate(tenant, events, bytes).map_err(refused)?;
        }
        Ok(())
    }

    async fn submit_atomic(self, request: &AtomicRequest) -> Result<Judged, Unavailable> {
        let checks = request.checks.iter().cloned();
        let checks = checks.map(|StreamCheck { tenant, stream, expected }| Command::Check {
            tenant,
            stream,
            expected,
        });
        let events = request.drafts.iter().cloned().map(|draft| Command::Publish(Box::new(draft)));
        let mark = std::iter::once(Command::Atomic(request.key.clone()));
        let outcomes = self.0.submit(mark.chain(checks).chain(events).collect()).await?;
        // Of a rejected request, only one command has its own outcome.
        let is_cause = |outcome: &&Outcome| !matches!(outcome, Outcome::Withdrawn | Outcome::Passed);
        let Some(cause) = outcomes.iter().position(|outcome| is_cause(&outcome)) else {
            unreachable!("{UNEXPECTED_OUTCOME}")
        };
        let part = part(cause, request.checks.len());
        match &outcomes[cause] {
            Outcome::Accepted(_) | Outcome::Duplicate(_) => {
                let first = 1 + request.checks.len();
                self.accepted(outcomes.into_iter().skip(first).collect(), request).await
            }
            outcome => Ok(Judged::Failed(self.failure(outcome, part))),
        }
    }

    fn failure(self, outcome: &Outcome, part: Option<FailedPart>) -> AtomicError {
        let error = match outcome {
            Outcome::Mismatch => return AtomicError { part: None, error: PublishError::IdempotencyMismatch },
            Outcome::Rejected(rejection) => PublishError::Rejected { rejection: *rejection, repeated: false },
            Outcome::Refused(refusal) => PublishError::Refused(refusal.clone()),
            Outcome::TooManyTargets => PublishError::TooManyTargets,
            Outcome::QuotaExceeded(exceeded) => {
                self.0.metrics().quota_refused(exceeded.quota);
                PublishError::QuotaExceeded(*exceeded)
            }
            _ => unreachable!("{UNEXPECTED_OUTCOME}"),
        };
        AtomicError { part, error }
    }

    /// The events of a request that was accepted, now or earlier.
    async fn accepted(self, outcomes: Vec<Outcome>, request: &AtomicRequest) -> Result<Judged, Unavailable> {
        let mut events = Vec::with_capacity(outcomes.len());
        for outcome in outcomes {
            let position = match outcome {
                Outcome::Accepted(accepted) => {
                    self.0.metrics().accepted();
                    events.push(accepted);
                    continue;
                }
                Outcome::Duplicate(position) => position,
                _ => unreachable!("{UNEXPECTED_OUTCOME}"),
            };
            match self.0.record_at(position).await? {
                Some(Record::EventAccepted(event)) => {
                    self.0.metrics().duplicate();
                    events.push(AcceptedEvent { event, position, duplicate: true });
                }
                Some(Record::EventRejected { rejection, command, .. }) if events.is_empty() => {
                    return Ok(Judged::Failed(repeated(rejection, command, request)));
                }
                _ => return Ok(Judged::OriginalGone),
            }
        }
        Ok(Judged::Accepted(events))
    }
}

/// The stored rejection of an earlier request with the same key, and so with the same body.
fn repeated(rejection: Rejection, command: Option<u32>, request: &AtomicRequest) -> AtomicError {
    let command = command.and_then(|command| usize::try_from(command).ok());
    AtomicError {
        part: command.and_then(|command| part(command, request.checks.len())),
        error: PublishError::Rejected { rejection, repeated: true },
    }
}

/// The part of a request that is the command with this index in its unit.
fn part(command: usize, checks: usize) -> Option<FailedPart> {
    let index = command.checked_sub(1)?;
    Some(match index.checked_sub(checks) {
        Some(event) => FailedPart::Event(event),
        None => FailedPart::Check(index),
    })
}

/// The version and position of the last event; all events are of one stream. A repeated request may
/// name them in another order.
#[must_use]
pub fn last_version(events: &[AcceptedEvent]) -> Option<(u64, Position)> {
    let last = events.iter().max_by_key(|accepted| accepted.position)?;
    let (_, version) = last.event.stream.as_ref()?;
    Some((*version, last.position))
}

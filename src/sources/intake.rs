//! The way of a source's messages into the outbox.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{SourceOptions, StopSignal};
use crate::context::Context;
use crate::domain::{EventType, OnInvalid, Source, SourceName, SourceOutcome, SourceState, Tenant};
use crate::limits;
use crate::outbox::draft::{EventDraft, PublishError, Unavailable};
use crate::service::types::TypeRefusal;
use crate::service::{EventTypes, Events};

/// The type of the operator event of an invalid message.
const REJECTED: &str = "balto.source.rejected";

/// A message that cannot become an event.
#[derive(Clone, Debug)]
pub struct InvalidMessage {
    pub reason: String,
    /// The message as the operator event shows it, without its body.
    pub shown: Map<String, Value>,
    pub body: Vec<u8>,
}

/// A message that a source offers.
#[derive(Clone, Debug)]
pub struct Incoming {
    pub draft: Result<EventDraft, String>,
    pub shown: Map<String, Value>,
    pub body: Vec<u8>,
}

/// The fate of a message, which is final: its event is durable, or there will be none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// As an event, as a repetition of one, or as an operator event.
    Done,
    /// The broker may drop it.
    Rejected,
}

/// Why messages were not settled. The broker has to send them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntakeError {
    /// The store refused them for too long.
    Held,
    Stopping,
}

/// Takes the messages of one source.
pub struct Intake {
    context: Context,
    name: SourceName,
    on_invalid: OnInvalid,
    options: SourceOptions,
    stop: StopSignal,
}

/// A place of a batch: a draft that is not settled yet.
struct Open {
    index: usize,
    draft: EventDraft,
    /// It is an invalid message's operator event.
    is_parked: bool,
}

impl Intake {
    pub(super) fn new(context: Context, source: &Source, options: SourceOptions, stop: StopSignal) -> Self {
        let (name, on_invalid) = (source.name.clone(), source.on_invalid);
        Self { context, name, on_invalid, options, stop }
    }

    #[must_use]
    pub fn max_event_bytes(&self) -> usize {
        self.options.max_event_bytes
    }

    /// The source is connected.
    pub fn on_connected(&self) {
        let now = self.context.now().wall;
        self.context.source_board().update(&self.name, now, |report| {
            report.enter(SourceState::Connected, now);
            report.connections += 1;
            report.unacknowledged = 0;
        });
        self.show_states();
    }

    fn enter(&self, state: SourceState) {
        let now = self.context.now().wall;
        let mut is_new = false;
        self.context.source_board().update(&self.name, now, |report| {
            is_new = report.state != state;
            report.enter(state, now);
        });
        if is_new {
            self.show_states();
        }
    }

    fn show_states(&self) {
        self.context.metrics().source_states(&self.context.source_board().states());
    }

    /// Makes messages durable, in order, as far as the store accepts all of them. Answers in order
    /// when the last of them is settled.
    ///
    /// # Errors
    /// When the store refused messages for [`limits::broker::HOLD_MAX`], or the source stops.
    pub async fn offer(&self, messages: Vec<Incoming>) -> Result<Vec<Settled>, IntakeError> {
        let now = self.context.now().wall;
        let count = messages.len() as u64;
        self.context.source_board().update(&self.name, now, |report| {
            report.unacknowledged = count;
            report.last_message_at = Some(now);
        });
        let mut settled = vec![None; messages.len()];
        let mut open = Vec::with_capacity(messages.len());
        let mut kept = Vec::with_capacity(messages.len());
        for (index, message) in messages.into_iter().enumerate() {
            let Incoming { draft, shown, body } = message;
            let mut invalid = InvalidMessage { reason: String::new(), shown, body };
            match draft {
                Ok(mut draft) => {
                    EventTypes(&self.context).check(&mut draft, self.options.unregistered);
                    open.push(Open { index, draft, is_parked: false });
                }
                Err(reason) => {
                    invalid.reason = reason;
                    open.extend(self.give_up(index, &invalid, &mut settled));
                }
            }
            kept.push(invalid);
        }
        self.settle(open, &mut kept, &mut settled).await?;
        self.context.source_board().update(&self.name, now, |report| report.unacknowledged = 0);
        Ok(settled.into_iter().map(|fate| fate.unwrap_or(Settled::Rejected)).collect())
    }

    async fn settle(
        &self,
        mut open: Vec<Open>,
        kept: &mut [InvalidMessage],
        settled: &mut [Option<Settled>],
    ) -> Result<(), IntakeError> {
        let began = Instant::now();
        while !open.is_empty() {
            let drafts = open.iter().map(|one| one.draft.clone()).collect();
            let results = match Events(&self.context).publish_batch(drafts, None).await {
                Ok(published) => published.results,
                Err(error) => open.iter().map(|_| Err(error.clone())).collect(),
            };
            let mut again = Vec::new();
            let mut is_refused = false;
            for (one, result) in open.into_iter().zip(results) {
                let reason = match result {
                    Ok(accepted) => {
                        let outcome = match (one.is_parked, accepted.duplicate) {
                            (true, _) => SourceOutcome::Parked,
                            (false, true) => SourceOutcome::Duplicate,
                            (false, false) => SourceOutcome::Accepted,
                        };
                        settled[one.index] = Some(self.count(outcome));
                        continue;
                    }
                    Err(PublishError::Store(Unavailable::Stopping)) => return Err(IntakeError::Stopping),
                    Err(PublishError::Store(_) | PublishError::QuotaExceeded(_)) => {
                        is_refused = true;
                        again.push(one);
                        continue;
                    }
                    Err(PublishError::Refused(refusal)) => describe(&refusal),
                    Err(PublishError::IdempotencyMismatch) => {
                        "another message with this id was different".to_owned()
                    }
                    Err(error) => error.to_string(),
                };
                kept[one.index].reason = reason;
                again.extend(self.give_up(one.index, &kept[one.index], settled));
            }
            open = again;
            if is_refused {
                self.pause(began).await?;
            }
        }
        self.enter(SourceState::Connected);
        Ok(())
    }

    /// Waits before the store is tried again.
    async fn pause(&self, began: Instant) -> Result<(), IntakeError> {
        self.enter(SourceState::Holding);
        if began.elapsed() > limits::broker::HOLD_MAX {
            return Err(IntakeError::Held);
        }
        let mut stop = self.stop.clone();
        tokio::select! {
            () = tokio::time::sleep(limits::broker::HOLD_PAUSE) => Ok(()),
            _ = stop.wait_for(|stop| *stop) => Err(IntakeError::Stopping),
        }
    }

    fn count(&self, outcome: SourceOutcome) -> Settled {
        self.context.metrics().source_messages(outcome, 1);
        let now = self.context.now().wall;
        self.context.source_board().update(&self.name, now, |report| report.add(outcome));
        if outcome == SourceOutcome::Rejected { Settled::Rejected } else { Settled::Done }
    }

    /// Rejects an invalid message, or returns its operator event.
    fn give_up(
        &self,
        index: usize,
        message: &InvalidMessage,
        settled: &mut [Option<Settled>],
    ) -> Option<Open> {
        tracing::warn!(source = %self.name, reason = message.reason, "message is not a valid event");
        if self.on_invalid == OnInvalid::Reject {
            settled[index] = Some(self.count(SourceOutcome::Rejected));
            return None;
        }
        let tenant: Tenant = Tenant::OPERATOR.parse().expect("a legal tenant");
        let event_type: EventType = REJECTED.parse().expect("a legal type");
        let data = self.parked_data(message);
        let fingerprint = Sha256::digest(&data);
        let mut draft = EventDraft::new(tenant, event_type, data);
        draft.fingerprint.copy_from_slice(&fingerprint[..16]);
        Some(Open { index, draft, is_parked: true })
    }

    /// The data of an operator event: the reason, and the message with its body in base64.
    fn parked_data(&self, message: &InvalidMessage) -> Bytes {
        // With base64 and the headers, it stays below the bound of an event.
        let most = limits::broker::PARKED_BYTES_MAX;
        let body = &message.body[..message.body.len().min(most)];
        let data = json!({
            "source": self.name.as_str(),
            "reason": message.reason,
            "message": message.shown,
            "body": STANDARD.encode(body),
            "bodyBytes": message.body.len(),
            "bodyTruncated": message.body.len() > most,
        });
        data.to_string().into()
    }
}

fn describe(refusal: &TypeRefusal) -> String {
    match refusal {
        TypeRefusal::UnknownType => "the type is not registered".to_owned(),
        TypeRefusal::UnknownVersion { .. } => "the version of the type is not registered".to_owned(),
        TypeRefusal::Violations(violations) => violations.first().map_or_else(String::new, |violation| {
            format!("the data does not match its type: /data{}: {}", violation.pointer, violation.detail)
        }),
    }
}

//! The way of a source's messages into the outbox.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{SourceOptions, StopSignal};
use crate::context::Context;
use crate::domain::{
    EventType, Idempotency, OnInvalid, Source, SourceName, SourceOutcome, SourceState, Tenant,
};
use crate::failpoints::{self, Mutation};
use crate::limits;
use crate::outbox::draft::{AcceptedEvent, EventDraft, PublishError, Unavailable};
use crate::service::types::TypeRefusal;
use crate::service::{EventTypes, Events};

/// The type of the operator event of an invalid message.
const REJECTED: &str = "balto.source.rejected";

/// A message that cannot become an event.
#[derive(Clone, Debug)]
pub struct InvalidMessage {
    pub reason: String,
    /// The id that identifies its repetitions, if it has one.
    pub id: Option<String>,
    /// The message as the operator event shows it, without its body.
    pub shown: Map<String, Value>,
    pub body: Vec<u8>,
}

/// A message that a source offers.
#[derive(Clone, Debug)]
pub struct Incoming {
    pub draft: Result<EventDraft, String>,
    /// As [`InvalidMessage::id`].
    pub id: Option<String>,
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

/// Messages of which some are not settled. The broker has to send those again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsettled {
    pub why: IntakeError,
    /// The fates in order; `None` for a message that is not settled.
    pub settled: Vec<Option<Settled>>,
}

/// Why messages were not settled.
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

/// The consequence of one result of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
enum CommitVerdict {
    Settled(SourceOutcome),
    /// The same commit had no room for it.
    Later,
    /// The store takes it at another time.
    Refused,
    Stopping,
    Invalid(String),
}

/// `is_first`: no earlier event of the commit took a part of its room.
fn judge(result: Result<AcceptedEvent, PublishError>, is_parked: bool, is_first: bool) -> CommitVerdict {
    let reason = match result {
        Ok(accepted) if accepted.duplicate => return CommitVerdict::Settled(SourceOutcome::Duplicate),
        Ok(_) if is_parked => return CommitVerdict::Settled(SourceOutcome::Parked),
        Ok(_) => return CommitVerdict::Settled(SourceOutcome::Accepted),
        Err(PublishError::Store(Unavailable::Stopping)) => return CommitVerdict::Stopping,
        Err(PublishError::Store(_)) if failpoints::is_active(Mutation::SettleRefused) => {
            return CommitVerdict::Settled(SourceOutcome::Accepted);
        }
        Err(PublishError::Store(_) | PublishError::QuotaExceeded(_)) => return CommitVerdict::Refused,
        Err(PublishError::TooManyTargets) if !is_first => return CommitVerdict::Later,
        // An operator event has no other form to be parked in.
        Err(_) if is_parked => return CommitVerdict::Refused,
        Err(PublishError::Refused(refusal)) => describe(&refusal),
        Err(PublishError::IdempotencyMismatch) => "another message with this id was different".to_owned(),
        Err(error @ (PublishError::Rejected { .. } | PublishError::TooManyTargets)) => error.to_string(),
    };
    CommitVerdict::Invalid(reason)
}

impl Intake {
    pub(crate) fn new(context: Context, source: &Source, options: SourceOptions, stop: StopSignal) -> Self {
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
        self.context.source_board().update(&self.name, |report| {
            report.enter(SourceState::Connected, now);
            report.connections += 1;
            report.unacknowledged = 0;
        });
        self.show_states();
    }

    fn enter(&self, state: SourceState) {
        let now = self.context.now().wall;
        let mut is_new = false;
        self.context.source_board().update(&self.name, |report| {
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
    /// When the store refused messages for [`limits::broker::HOLD_MAX`], or the source stops. The
    /// other messages may be settled.
    ///
    /// # Panics
    /// On a defect: a message without a fate. None of the messages is acknowledged then.
    pub async fn offer(&self, messages: Vec<Incoming>) -> Result<Vec<Settled>, Unsettled> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let now = self.context.now().wall;
        let count = messages.len() as u64;
        self.context.source_board().update(&self.name, |report| {
            report.unacknowledged = count;
            report.last_message_at = Some(now);
        });
        let mut settled = vec![None; messages.len()];
        let mut open = Vec::with_capacity(messages.len());
        let mut kept = Vec::with_capacity(messages.len());
        for (index, message) in messages.into_iter().enumerate() {
            let Incoming { draft, id, shown, body } = message;
            let mut invalid = InvalidMessage { reason: String::new(), id, shown, body };
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
        let result = self.settle(open, &mut kept, &mut settled).await;
        self.context.source_board().update(&self.name, |report| report.unacknowledged = 0);
        if let Err(why) = result {
            return Err(Unsettled { why, settled });
        }
        Ok(settled.into_iter().map(|fate| fate.expect("every message is settled")).collect())
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
            let (mut is_first, mut is_refused, mut is_stopping) = (true, false, false);
            for (one, result) in open.into_iter().zip(results) {
                // An event that is too large uses up the room of those that follow it.
                let takes_room = matches!(&result, Ok(_) | Err(PublishError::TooManyTargets));
                match judge(result, one.is_parked, is_first) {
                    CommitVerdict::Settled(outcome) => settled[one.index] = Some(self.count(outcome)),
                    CommitVerdict::Later => again.push(one),
                    CommitVerdict::Refused => {
                        is_refused = true;
                        again.push(one);
                    }
                    // The events after it may be durable all the same.
                    CommitVerdict::Stopping => is_stopping = true,
                    CommitVerdict::Invalid(reason) => {
                        kept[one.index].reason = reason;
                        again.extend(self.give_up(one.index, &kept[one.index], settled));
                    }
                }
                is_first &= !takes_room;
            }
            if is_stopping {
                return Err(IntakeError::Stopping);
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
        self.context.source_board().update(&self.name, |report| report.add(outcome));
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
        let mut draft = EventDraft::new(tenant, event_type, self.parked_data(message));
        let id = message.id.as_deref();
        draft.idempotency = id.map(|id| parked_key(&self.name, id, &message.body));
        draft.fingerprint = match &draft.idempotency {
            Some(key) => key.fingerprint,
            None => first_half(&Sha256::digest(&draft.data)),
        };
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

/// Recognises an invalid message that is sent again, as long as its operator event is stored.
/// Messages without an id are not recognised: two equal ones may be two messages. The reason and
/// the mark of a repetition may differ, so the fingerprint leaves them out.
pub(crate) fn parked_key(source: &SourceName, id: &str, body: &[u8]) -> Idempotency {
    let mut hasher = Sha256::new();
    for part in [b"source-parked", source.as_str().as_bytes(), id.as_bytes(), body] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let scope = first_half(&hasher.finalize());
    Idempotency { scope, fingerprint: scope, expires_at: None }
}

fn first_half(hash: &[u8]) -> [u8; 16] {
    hash[..16].try_into().expect("a hash has 32 bytes")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crowded_commit_makes_no_message_invalid() {
        let judge = |error, is_parked, is_first| judge(Err(error), is_parked, is_first);
        let crowded = || PublishError::TooManyTargets;
        assert_eq!(judge(crowded(), false, false), CommitVerdict::Later);
        assert_eq!(judge(crowded(), true, false), CommitVerdict::Later);
        assert!(matches!(judge(crowded(), false, true), CommitVerdict::Invalid(_)));
    }

    #[test]
    fn refused_operator_event_is_held() {
        for error in [PublishError::TooManyTargets, PublishError::IdempotencyMismatch] {
            assert_eq!(judge(Err(error), true, true), CommitVerdict::Refused);
        }
        let stopping = PublishError::Store(Unavailable::Stopping);
        assert_eq!(judge(Err(stopping), true, true), CommitVerdict::Stopping);
    }

    #[test]
    fn parked_message_is_recognised_by_id_and_body() {
        let key = |source: &str, id, body: &[u8]| parked_key(&source.parse().unwrap(), id, body);
        let known = key("shop", "1", b"{");
        assert_eq!((known.scope, known.expires_at), (key("shop", "1", b"{").scope, None));
        for other in [key("mill", "1", b"{"), key("shop", "2", b"{"), key("shop", "1", b"}")] {
            assert_ne!(known.scope, other.scope);
        }
        assert_ne!(key("shop", "1{", b"").scope, known.scope);
    }
}

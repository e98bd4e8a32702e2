//! Publishing events: judged and committed by the writer, answered only then.

use super::Engine;
use super::commands::UNJUDGED;
use super::types::{Accepted, EventDraft, PublishError, Published, Unavailable};
use crate::domain::{Idempotency, Record};
use crate::outbox::draft::generated_at;
use crate::outbox::unit::{Command, Outcome};

impl Engine {
    /// Accepts one event: when this returns, it and its deliveries are on disk.
    ///
    /// # Errors
    /// When nothing was accepted.
    pub async fn publish(&self, draft: EventDraft) -> Result<Accepted, PublishError> {
        let mut published = self.publish_batch(vec![draft], None).await?;
        published.results.pop().expect("one result per draft")
    }

    /// Each event stands alone. `request` is the key that they came with; each has its own beside it.
    ///
    /// # Errors
    /// When nothing could be judged, or the key was another request's.
    pub async fn publish_batch(
        &self,
        mut drafts: Vec<EventDraft>,
        request: Option<Idempotency>,
    ) -> Result<Published, PublishError> {
        let has_key = request.is_some();
        self.resolve_generated_ids(&mut drafts).await?;
        let mut kept = Vec::new();
        if drafts.iter().any(EventDraft::may_repeat) {
            kept.clone_from(&drafts);
        }
        let mut kept = kept.into_iter();
        let publish = drafts.into_iter().map(|draft| Command::Publish(Box::new(draft)));
        let commands = request.map(Command::Claim).into_iter().chain(publish).collect();
        let mut outcomes = self.submit(commands).await?.into_iter();
        let mut published = Published::default();
        if has_key {
            published.repeated = match outcomes.next() {
                Some(Outcome::Mismatch) => return Err(PublishError::IdempotencyMismatch),
                claimed => matches!(claimed, Some(Outcome::Duplicate(_))),
            };
        }
        for outcome in outcomes {
            let result = self.published(outcome, kept.next()).await;
            match &result {
                Ok(accepted) if accepted.duplicate => self.metrics().duplicate(),
                Ok(_) => self.metrics().accepted(),
                // Counted at the door, with what is refused before it comes here.
                Err(_) => {}
            }
            published.results.push(result);
        }
        Ok(published)
    }

    /// A chosen id may be one that the daemon has given to another event of the tenant. Nobody knows such an id before
    /// its event is in the journal, so that what the journal says here is the last word; also of an event that retention
    /// has let go, because a state that is made anew would know both.
    async fn resolve_generated_ids(&self, drafts: &mut [EventDraft]) -> Result<(), Unavailable> {
        let shaped = |draft: &&mut EventDraft| draft.id.as_ref().and_then(generated_at).is_some();
        let shaped: Vec<_> = drafts.iter_mut().filter(shaped).collect();
        if shaped.is_empty() {
            return Ok(());
        }
        let ids = shaped.iter().filter_map(|draft| draft.id.clone()).collect();
        for (draft, found) in shaped.into_iter().zip(self.generated_events(ids).await?) {
            if let Some((position, event)) = found.filter(|(_, event)| event.tenant == draft.tenant) {
                draft.id_conflict = draft.judge_id_conflict(position, &event);
            }
        }
        Ok(())
    }

    /// What to say of an outcome. The event that it repeats may be forgotten before it is read: then there is none that
    /// `kept`, the draft, would repeat, and it is judged once more.
    async fn published(
        &self,
        mut outcome: Outcome,
        mut kept: Option<EventDraft>,
    ) -> Result<Accepted, PublishError> {
        loop {
            let position = match outcome {
                Outcome::Accepted(accepted) => return Ok(accepted),
                Outcome::Duplicate(position) => position,
                Outcome::Mismatch => return Err(PublishError::IdempotencyMismatch),
                Outcome::Rejected(rejection) => {
                    return Err(PublishError::Rejected { rejection, repeated: false });
                }
                Outcome::TooManyTargets => return Err(PublishError::TooManyTargets),
                Outcome::Endpoint(_) | Outcome::Written(_) | Outcome::Conflict => {
                    unreachable!("{UNJUDGED}")
                }
            };
            outcome = match self.record_at(position).await? {
                Some(Record::EventAccepted(event)) => {
                    return Ok(Accepted { event, position, duplicate: true });
                }
                Some(Record::EventRejected { rejection, .. }) => {
                    return Err(PublishError::Rejected { rejection, repeated: true });
                }
                _ => {
                    let Some(draft) = kept.take() else { return Err(PublishError::IdempotencyMismatch) };
                    self.submit(vec![Command::Publish(Box::new(draft))]).await?.pop().expect("one command")
                }
            };
        }
    }
}

//! Stored responses: repeating a request with its idempotency key returns the original response.

use std::sync::Arc;

use crate::context::Context;
use crate::context::home::Home;
use crate::domain::{Idempotency, Record, Sealed};
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::outbox::unit::{Command, Outcome};
use crate::rules::append::{Judged, judge_idempotency};
use crate::vault;
use crate::vault::{NONCE_BYTES, SealContext};

/// A response to store for its idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: Arc<[u8]>,
}

/// An idempotency key, and the function that makes the response. The commit of the request's change
/// stores the response, so that a crash leaves both or neither.
#[derive(Clone, Debug)]
pub struct Keyed<T> {
    pub idempotency: Idempotency,
    pub answer: fn(&T) -> Answer,
}

impl<T> Keyed<T> {
    #[must_use]
    pub fn response_for(self, result: &T) -> Remember {
        Remember { answer: (self.answer)(result), idempotency: self.idempotency }
    }
}

/// A response to store, and its idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remember {
    pub idempotency: Idempotency,
    pub answer: Answer,
}

/// Result of the lookup of a stored response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remembered {
    Nothing,
    Same(Answer),
    /// The key was used with another body.
    Mismatch,
}

impl Context {
    /// Looks up the response to an earlier request with this key, other than publishing events.
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn stored_response(&self, wanted: &Idempotency) -> Result<Remembered, Unavailable> {
        let known = self.outbox_of(Home::All).stored_request(wanted.scope).await?;
        let position = match judge_idempotency(known.as_ref(), &wanted.fingerprint, self.now().wall) {
            Judged::Fresh => return Ok(Remembered::Nothing),
            Judged::Mismatch(_) => return Ok(Remembered::Mismatch),
            Judged::Duplicate(position) => position,
        };
        Ok(match self.record_at(position).await? {
            Some(Record::RequestAnswered { status, body, .. }) => {
                Remembered::Same(self.open_response(wanted, Answer { status, body })?)
            }
            _ => Remembered::Nothing,
        })
    }

    /// Commits the commands and the response to store, all or none.
    pub(crate) async fn commit(
        &self,
        mut commands: Vec<Command>,
        remember: Option<Remember>,
    ) -> Result<Vec<Outcome>, ChangeError> {
        commands.extend(remember.map(|remember| self.response_command(remember)));
        let outcomes = self.submit(commands).await?;
        match outcomes.first() {
            Some(Outcome::Conflict) => Err(ChangeError::Conflict),
            Some(Outcome::UidTaken) => Err(ChangeError::UidTaken),
            Some(Outcome::TooManyJobs) => Err(ChangeError::TooManyJobs),
            Some(Outcome::Duplicate(_) | Outcome::Mismatch) => Err(ChangeError::Repeated),
            Some(Outcome::QuotaExceeded(exceeded)) => {
                self.metrics().quota_refused(exceeded.quota);
                Err(ChangeError::QuotaExceeded(*exceeded))
            }
            _ => Ok(outcomes),
        }
    }

    fn response_command(&self, Remember { idempotency, answer }: Remember) -> Command {
        let Answer { status, body } = self.seal_response(&idempotency, answer);
        Command::Record(Record::RequestAnswered { idempotency, status, body })
    }

    /// Seals a stored response, because it may show a new secret.
    pub(crate) fn seal_response(&self, idempotency: &Idempotency, answer: Answer) -> Answer {
        let nonce = self.random_bytes::<NONCE_BYTES>();
        match self.vault().seal(&answer.body, SealContext::StoredResponse(&idempotency.scope), nonce) {
            Sealed::Encrypted(bytes) => Answer { body: bytes.into(), ..answer },
            Sealed::Plain(_) => answer,
        }
    }

    /// Opens a stored response. A plain body, JSON or empty, never starts like encrypted bytes.
    pub(crate) fn open_response(
        &self,
        idempotency: &Idempotency,
        answer: Answer,
    ) -> Result<Answer, Unavailable> {
        if !vault::is_encrypted(&answer.body) {
            return Ok(answer);
        }
        let sealed = Sealed::Encrypted((*answer.body).into());
        match self.vault().open(&sealed, SealContext::StoredResponse(&idempotency.scope)) {
            Ok(body) => Ok(Answer { body: body.into(), ..answer }),
            Err(error) => {
                Err(Unavailable::Failed(format!("a stored response cannot be opened: {error}").into()))
            }
        }
    }
}

//! Stored responses: what a request with an idempotency key is answered when it is repeated.

use std::sync::Arc;

use crate::context::Context;
use crate::domain::{Idempotency, Record, Sealed};
use crate::outbox::draft::{ChangeError, Unavailable};
use crate::outbox::unit::{Command, Outcome};
use crate::rules::append::{Judged, judge_idempotency};
use crate::vault;
use crate::vault::{NONCE_BYTES, SealContext};

/// An answer to be remembered for its idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: Arc<[u8]>,
}

/// The key of a request, and how what it did is answered: the answer is remembered in the commit of what it does, so that
/// a crash leaves both or neither.
#[derive(Clone, Debug)]
pub struct Keyed<T> {
    pub idempotency: Idempotency,
    pub answer: fn(&T) -> Answer,
}

impl<T> Keyed<T> {
    #[must_use]
    pub fn answered(self, done: &T) -> Remember {
        Remember { answer: (self.answer)(done), idempotency: self.idempotency }
    }
}

/// What a request with this key is answered when it comes again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remember {
    pub idempotency: Idempotency,
    pub answer: Answer,
}

/// What a repeated request finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remembered {
    Nothing,
    Same(Answer),
    /// The key was used with another body.
    Mismatch,
}

impl Context {
    /// What an earlier request with the same scope and key was answered (requests other than events).
    ///
    /// # Errors
    /// When the outbox cannot answer.
    pub async fn remembered(&self, wanted: &Idempotency) -> Result<Remembered, Unavailable> {
        let scope = wanted.scope;
        let known = self.outbox().read(move |state| state.request(&scope)).await?;
        let position = match judge_idempotency(known.as_ref(), &wanted.fingerprint, self.now().wall) {
            Judged::Fresh => return Ok(Remembered::Nothing),
            Judged::Mismatch(_) => return Ok(Remembered::Mismatch),
            Judged::Duplicate(position) => position,
        };
        Ok(match self.record_at(position).await? {
            Some(Record::RequestAnswered { status, body, .. }) => {
                Remembered::Same(self.open_answer(wanted, Answer { status, body })?)
            }
            _ => Remembered::Nothing,
        })
    }

    /// Commits all of it, with the answer that the request gets when it is repeated, or nothing.
    pub(crate) async fn commit(
        &self,
        mut commands: Vec<Command>,
        remember: Option<Remember>,
    ) -> Result<Vec<Outcome>, ChangeError> {
        commands.extend(remember.map(|remember| self.answered(remember)));
        let outcomes = self.submit(commands).await?;
        match outcomes.first() {
            Some(Outcome::Conflict) => Err(ChangeError::Conflict),
            Some(Outcome::Duplicate(_) | Outcome::Mismatch) => Err(ChangeError::Repeated),
            _ => Ok(outcomes),
        }
    }

    fn answered(&self, Remember { idempotency, answer }: Remember) -> Command {
        let Answer { status, body } = self.seal_answer(&idempotency, answer);
        Command::Record(Record::RequestAnswered { idempotency, status, body })
    }

    /// Remembered answers may show a fresh secret, so they are sealed too.
    pub(crate) fn seal_answer(&self, idempotency: &Idempotency, answer: Answer) -> Answer {
        let nonce = self.random_bytes::<NONCE_BYTES>();
        match self.vault().seal(&answer.body, SealContext::StoredResponse(&idempotency.scope), nonce) {
            Sealed::Encrypted(bytes) => Answer { body: bytes.into(), ..answer },
            Sealed::Plain(_) => answer,
        }
    }

    /// A plain answer is JSON or empty; encrypted bytes begin as neither does.
    pub(crate) fn open_answer(
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
            Err(error) => Err(Unavailable::Failed(format!("a remembered answer: {error}").into())),
        }
    }
}

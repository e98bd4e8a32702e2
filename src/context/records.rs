//! Reads of journal records off the async threads, and commits.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::context::Context;
use crate::domain::{Attempt, Event, Position, Record};
use crate::outbox::draft::Unavailable;
use crate::outbox::unit::{Command, Outcome};
use crate::storage::journal::ReadError;

impl Context {
    /// Runs a file read off the async threads.
    pub(crate) async fn blocking<R: Send + 'static>(
        &self,
        read: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        let (sender, answer) = oneshot::channel();
        let read = Box::new(move || {
            // The caller may have gone.
            let _gone = sender.send(read()).is_err();
        });
        self.shared.environment.reads.run(read).await;
        answer.await.map_err(|_| Unavailable::Stopping)
    }

    /// `None` when there is no such record any more.
    pub(crate) async fn record_at(&self, position: Position) -> Result<Option<Record>, Unavailable> {
        let reader = self.outbox().journal().clone();
        match self.blocking(move || reader.read(position)).await? {
            Ok(record) => Ok(record),
            Err(error) => {
                tracing::error!(%error, %position, "a record cannot be read");
                match error {
                    ReadError::Damaged { .. } | ReadError::Undecodable { .. } => Ok(None),
                    ReadError::Io(error) => Err(Unavailable::Failed(error.to_string().into())),
                }
            }
        }
    }

    /// The event at a position; `None` when retention or damage has taken it.
    pub(crate) async fn event_at(&self, position: Position) -> Result<Option<Arc<Event>>, Unavailable> {
        Ok(match self.record_at(position).await? {
            Some(Record::EventAccepted(event)) => Some(event),
            _ => None,
        })
    }

    pub(crate) async fn attempt_at(&self, position: Position) -> Option<Arc<Attempt>> {
        match self.record_at(position).await {
            Ok(Some(Record::AttemptFinished { attempt, .. })) => Some(attempt),
            Ok(_) | Err(_) => None,
        }
    }

    /// What becomes of the commands, once that is durable. Without commands there is nothing to do.
    pub(crate) async fn submit(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, Unavailable> {
        self.outbox().commit(commands).await
    }

    pub(crate) async fn write(&self, record: Record) -> Result<Position, Unavailable> {
        match self.submit(vec![Command::Record(record)]).await?.first() {
            Some(Outcome::Written(position)) => Ok(*position),
            _ => unreachable!("{UNJUDGED}"),
        }
    }
}

/// The outcomes of commands that are never judged against anything.
pub(crate) const UNJUDGED: &str = "the writer gives each kind of command its own kinds of outcome";

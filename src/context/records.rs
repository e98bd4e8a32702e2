//! Journal reads on blocking threads, and commits.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::context::Context;
use crate::context::home::Home;
use crate::domain::{Event, Position, Record};
use crate::outbox::draft::Unavailable;
use crate::outbox::unit::{Command, Outcome};
use crate::storage::journal::ReadError;

impl Context {
    /// Runs a file read on a blocking thread.
    pub(crate) async fn blocking<R: Send + 'static>(
        &self,
        read: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        let (sender, result) = oneshot::channel();
        let read = Box::new(move || {
            // The caller may have been dropped.
            let _dropped = sender.send(read()).is_err();
        });
        self.shared.environment.reads.run(read).await;
        result.await.map_err(|_| Unavailable::Stopping)
    }

    /// The record at a position; `None` if it was removed or damaged.
    pub(crate) async fn record_at(&self, position: Position) -> Result<Option<Record>, Unavailable> {
        let reader = self.outbox_of(position).journal().clone();
        match self.blocking(move || reader.read(position)).await? {
            Ok(record) => Ok(record),
            Err(error) => {
                tracing::error!(%error, %position, "reading record failed");
                match error {
                    ReadError::Damaged { .. } | ReadError::Undecodable { .. } => Ok(None),
                    ReadError::Io(error) => Err(Unavailable::Failed(error.to_string().into())),
                }
            }
        }
    }

    /// The event at a position; `None` if it was removed or damaged.
    pub(crate) async fn event_at(&self, position: Position) -> Result<Option<Arc<Event>>, Unavailable> {
        Ok(match self.record_at(position).await? {
            Some(Record::EventAccepted(event)) => Some(event),
            _ => None,
        })
    }

    /// Commits commands and returns their outcomes, which are durable. An empty list is allowed.
    pub(crate) async fn submit(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, Unavailable> {
        if self.is_act() {
            return self.commit_act(commands).await;
        }
        self.outbox_of(Home::All).commit(commands).await
    }

    /// See [`Outbox::commit_independent`](crate::outbox::Outbox::commit_independent).
    pub(crate) async fn submit_independent(
        &self,
        commands: Vec<Command>,
    ) -> Result<(Vec<Outcome>, Option<Unavailable>), Unavailable> {
        // An act publishes at most one event.
        if self.is_act() {
            return Ok((self.commit_act(commands).await?, None));
        }
        self.outbox_of(Home::All).commit_independent(commands).await
    }

    pub(crate) async fn write(&self, record: Record) -> Result<Position, Unavailable> {
        match self.submit(vec![Command::Record(record)]).await?.first() {
            Some(Outcome::Written(position)) => Ok(*position),
            _ => unreachable!("{UNEXPECTED_OUTCOME}"),
        }
    }
}

/// Panic message for an outcome of another kind of command.
pub(crate) const UNEXPECTED_OUTCOME: &str = "each kind of command has its own kinds of outcome";

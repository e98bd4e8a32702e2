//! Journal reads on blocking threads, and commits.

use std::ops::ControlFlow;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::context::Context;
use crate::context::home::Home;
use crate::domain::{Event, Party, Position, Record};
use crate::failpoints::{self, Bound};
use crate::limits;
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

    /// Runs a long computation on a blocking thread, in the turn of a party. It keeps its turn
    /// when its caller has gone.
    pub(crate) async fn compute<R: Send + 'static>(
        &self,
        party: &Party,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        let turn = self.processor_turn(party).await;
        self.blocking(move || {
            let _turn = turn;
            work()
        })
        .await
    }

    /// The record at a position; `None` if it was removed or damaged.
    pub(crate) async fn record_at(&self, position: Position) -> Result<Option<Record>, Unavailable> {
        let reader = self.outbox_of(position).journal().clone();
        self.blocking(move || readable(position, reader.read(position))).await?
    }

    /// The event at a position; `None` if it was removed or damaged.
    pub(crate) async fn event_at(&self, position: Position) -> Result<Option<Arc<Event>>, Unavailable> {
        Ok(self.record_at(position).await?.and_then(event_of))
    }

    /// The events at positions, in their order, read in one go; `None` as in [`Self::event_at`].
    /// Ends with the event that brings their data to `bytes_max` bytes.
    pub(crate) async fn events_at(
        &self,
        positions: Vec<Position>,
        bytes_max: usize,
    ) -> Result<Vec<Option<Arc<Event>>>, Unavailable> {
        let Some(first) = positions.first() else { return Ok(Vec::new()) };
        let reader = self.outbox_of(*first).journal().clone();
        let read = move || {
            let (mut events, mut bytes, mut failed) = (Vec::with_capacity(positions.len()), 0, None);
            reader.read_each(
                positions.into_iter(),
                &mut |position, record| match readable(position, record) {
                    Ok(record) => {
                        let event = record.and_then(event_of);
                        bytes += event.as_ref().map_or(0, |event| event.data.len());
                        events.push(event);
                        if bytes < bytes_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                    }
                    Err(error) => {
                        failed = Some(error);
                        ControlFlow::Break(())
                    }
                },
            );
            failed.map_or(Ok(events), Err)
        };
        self.blocking(read).await?
    }

    /// Visits rows with their events, until `visit` ends it. Few bytes of events are in memory at
    /// once.
    pub(crate) async fn visit_events<R>(
        &self,
        rows: Vec<R>,
        position: impl Fn(&R) -> Position,
        mut visit: impl FnMut(R, Option<Arc<Event>>) -> ControlFlow<()>,
    ) -> Result<(), Unavailable> {
        let mut rows = rows.into_iter();
        while !rows.as_slice().is_empty() {
            let positions = rows.as_slice().iter().map(&position).collect();
            let bytes_max = failpoints::bound(Bound::PageBytes, limits::PAGE_BYTES_TARGET);
            for event in self.events_at(positions, bytes_max).await? {
                let Some(row) = rows.next() else { return Ok(()) };
                if visit(row, event).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Commits commands and returns their outcomes, which are durable. An empty list is allowed.
    /// Wakes the runner of the sources after a change of one.
    pub(crate) async fn submit(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, Unavailable> {
        let is_of_source =
            |command: &Command| matches!(command, Command::PutSource(_) | Command::DeleteSource { .. });
        let changes_sources = commands.iter().any(is_of_source);
        let outcomes = if self.is_act() {
            self.commit_act(commands).await?
        } else {
            self.outbox_of(Home::All).commit(commands).await?
        };
        if changes_sources {
            self.source_board().wake();
        }
        Ok(outcomes)
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

/// A record as read: `None` if it was removed or damaged.
fn readable(
    position: Position,
    record: Result<Option<Record>, ReadError>,
) -> Result<Option<Record>, Unavailable> {
    record.or_else(|error| {
        tracing::error!(%error, %position, "reading record failed");
        match error {
            ReadError::Damaged { .. } | ReadError::Undecodable { .. } => Ok(None),
            ReadError::Io(error) => Err(Unavailable::Failed(error.to_string().into())),
        }
    })
}

fn event_of(record: Record) -> Option<Arc<Event>> {
    match record {
        Record::EventAccepted(event) => Some(event),
        _ => None,
    }
}

/// Panic message for an outcome of another kind of command.
pub(crate) const UNEXPECTED_OUTCOME: &str = "each kind of command has its own kinds of outcome";

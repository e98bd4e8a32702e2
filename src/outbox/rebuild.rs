//! Rebuild of the state from the journal while the old state serves.
//!
//! The caller folds the records into a new state beside the old one. The apply thread folds the
//! last records and replaces the old state, between two messages. A rebuild stops at unreadable
//! records: the old state may still know their content.

use tokio::sync::oneshot;

use super::apply_thread::ApplyThread;
use super::disk_reserve::DiskShortage;
use super::draft::Unavailable;
use super::health::{Activity, DiskThread};
use super::opening::apply_replayed;
use super::{Outbox, StateMessage};
use crate::domain::Position;
use crate::storage::journal::{JournalReader, ReadError};
use crate::storage::state::{RebuildSite, ReplaceError, State, StateError};

/// Why the old state was kept.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error("the disk is full")]
    DiskFull,
    #[error("only {free} bytes of the disk are free, and {reserve} are the disk reserve")]
    DiskReserve { free: u64, reserve: u64 },
    #[error("the journal cannot be read, and the state may know the lost records: {0}")]
    Journal(#[from] ReadError),
    #[error("{0}")]
    State(StateError),
    #[error(transparent)]
    Outbox(#[from] Unavailable),
}

impl From<StateError> for RebuildError {
    fn from(error: StateError) -> Self {
        if error.is_disk_full() { Self::DiskFull } else { Self::State(error) }
    }
}

impl From<DiskShortage> for RebuildError {
    fn from(DiskShortage { free, reserve }: DiskShortage) -> Self {
        Self::DiskReserve { free, reserve }
    }
}

/// A new state that is nearly as far as the old one.
pub(super) struct Replacement {
    fresh: Box<State>,
    reader: JournalReader,
    reply: oneshot::Sender<Result<(), RebuildError>>,
}

/// Applies the records up to `until`.
///
/// # Errors
/// When a record cannot be read, or the disk failed.
pub fn fold_to(state: &mut State, reader: &JournalReader, until: Position) -> Result<(), RebuildError> {
    if state.applied() >= until {
        return Ok(());
    }
    let mut changes = Vec::new();
    // As the files have them. The journal may have an erasure that the old state has not applied:
    // the apply thread applies its record to the new state, and it must find the content.
    for frame in reader.stored_frames_from(state.applied().next()) {
        for (position, record) in frame? {
            if position > until {
                break;
            }
            apply_replayed(state, position, &record, &mut changes)?;
        }
        if state.applied() >= until {
            break;
        }
    }
    // Retention may have removed the last records.
    state.skip_to(until);
    state.end_group();
    Ok(())
}

impl Outbox {
    /// Excludes a rebuild while the guard lives. A pass that decides by the state and then changes
    /// the journal or the state holds it.
    pub(crate) async fn hold_state(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.inner.rebuilding.read().await
    }

    /// Excludes retention and erasure on disk while the guard lives. Retention would remove records
    /// that the new state needs, because the old state does not.
    pub(crate) async fn hold_maintenance(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.inner.rebuilding.write().await
    }

    /// The position that the state has applied.
    #[must_use]
    pub fn applied(&self) -> Position {
        Position(self.inner.applied.load(std::sync::atomic::Ordering::Acquire))
    }

    /// The place beside the state where another one is built.
    ///
    /// # Errors
    /// When the outbox has stopped.
    pub(crate) async fn rebuild_site(&self) -> Result<RebuildSite, Unavailable> {
        self.with_state_mut(|state| state.rebuild_site()).await
    }

    /// Replaces the state by a new one, which may lack the last records. Questions wait for the
    /// end, and commits go on.
    ///
    /// # Errors
    /// When the old state was kept, or the outbox has failed.
    pub(crate) async fn replace_state(&self, fresh: State) -> Result<(), RebuildError> {
        let (reply, answer) = oneshot::channel();
        let replacement = Replacement { fresh: Box::new(fresh), reader: self.journal().clone(), reply };
        let message = StateMessage::Replace(replacement);
        self.inner.state.send(message).map_err(|_| self.unavailable())?;
        answer.await.map_err(|_| self.unavailable())?
    }
}

impl ApplyThread {
    /// Folds the last records into the new state and replaces the old one. Returns whether to
    /// continue.
    pub(super) fn replace(&mut self, replacement: Replacement) -> bool {
        let Replacement { mut fresh, reader, reply } = replacement;
        self.links.disk_waits.begin(DiskThread::State, Activity::Disk);
        if let Err(error) = fold_to(&mut fresh, &reader, self.state.applied()) {
            drop(fresh);
            return self.reply_and_continue(reply, Err(error));
        }
        let usage = fresh.watch_usage();
        match self.state.replace_with(*fresh) {
            Err(ReplaceError::Kept(error)) => self.reply_and_continue(reply, Err(error.into())),
            Ok(()) => {
                self.board.replace(self.state.applied(), usage);
                self.reply_and_continue(reply, Ok(()))
            }
            Err(ReplaceError::Closed(error)) if error.is_disk_full() => {
                self.board.replace(self.state.applied(), usage);
                self.wait_for_disk_space() && self.reply_and_continue(reply, Ok(()))
            }
            Err(ReplaceError::Closed(error)) => self.give_up(&error),
        }
    }

    fn reply_and_continue(
        &self,
        reply: oneshot::Sender<Result<(), RebuildError>>,
        result: Result<(), RebuildError>,
    ) -> bool {
        self.links.disk_waits.begin(DiskThread::State, Activity::Applying);
        // The caller may have gone away.
        let _gone = reply.send(result).is_err();
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::{
        Attempt, DeadReason, DeliveryKey, Endpoint, EndpointNumber, Event, Next, Record, Tenant, Timestamp,
        Trigger,
    };
    use crate::outbox::ReadModel;
    use crate::storage::disk::MemoryDisk;
    use crate::storage::journal::{Journal, JournalOptions};

    const EVENT: Position = Position(2);

    fn erased_at() -> Timestamp {
        Timestamp::from_millis(9_000)
    }

    /// A delivered event that was sent again, without success, before it was erased.
    fn records() -> Vec<Record> {
        let endpoint = crate::rules::tests::endpoint(1, Tenant::DEFAULT, &[]);
        let event = Event { targets: [EndpointNumber(1)].into(), ..crate::rules::tests::event() };
        let due = event.first_due();
        let delivery = DeliveryKey { event: EVENT, endpoint: EndpointNumber(1) };
        let finished = |due, next| Record::AttemptFinished {
            delivery,
            due,
            attempt: Arc::new(Attempt { next, ..Attempt::for_tests() }),
        };
        vec![
            Record::EndpointPut(Arc::new(Endpoint { revision: Position(1), ..endpoint })),
            Record::EventAccepted(Arc::new(event)),
            finished(due, Next::Delivered),
            Record::DeliveriesRevived {
                deliveries: vec![delivery],
                trigger: Trigger::Manual,
                at: erased_at(),
            },
            finished(erased_at(), Next::Dead(DeadReason::AttemptsExhausted)),
            Record::EventErased {
                event: EVENT,
                tenant: Tenant::DEFAULT.parse().unwrap(),
                at: erased_at(),
                reason: "asked for".into(),
            },
            Record::DeadLettersPurged { deliveries: vec![delivery], at: erased_at() },
        ]
    }

    fn state(directory: &tempfile::TempDir, name: &str) -> State {
        State::open(&directory.path().join(name), Position(0)).unwrap()
    }

    fn journal(records: &[Record]) -> Journal {
        let mut journal = Journal::open(Arc::new(MemoryDisk::new()), JournalOptions::new(1)).unwrap().0;
        journal.append(Timestamp::from_millis(1), &[records]).unwrap();
        journal
    }

    /// The writer commits an erasure while the old state is behind it. The fold of the earlier
    /// records must not know of the erasure: its record would then find no content to remove.
    #[test]
    fn erasure_committed_during_a_rebuild_stays_pending() {
        let records = records();
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(&records);
        assert!(journal.reader().hides(EVENT));
        let before = |record: &&Record| !matches!(record, Record::EventErased { .. });
        let behind = records.iter().take_while(before).count();
        let (mut original, mut rebuilt) = (state(&directory, "original"), state(&directory, "rebuilt"));
        fold_to(&mut rebuilt, &journal.reader(), Position(behind as u64)).unwrap();
        for (position, record) in (1..).map(Position).zip(&records) {
            original.apply(position, record, false, &mut Vec::new());
            original.end_group();
            if position > rebuilt.applied() {
                rebuilt.apply(position, record, false, &mut Vec::new());
                rebuilt.end_group();
            }
            if position.0 >= behind as u64 {
                assert_eq!(rebuilt.deliveries_of(EVENT), original.deliveries_of(EVENT), "{position}");
            }
        }
        assert_eq!(rebuilt.pending_erasures(Position(0), 9), [(EVENT, erased_at())]);
        let tenant = Tenant::DEFAULT.parse().unwrap();
        assert_eq!(rebuilt.usage(&tenant), original.usage(&tenant));
    }

    #[test]
    fn rebuild_after_an_erasure_repeats_what_preceded_it() {
        let records = records();
        let directory = tempfile::tempdir().unwrap();
        let (mut original, last) = (state(&directory, "original"), Position(records.len() as u64));
        for (position, record) in (1..).map(Position).zip(&records) {
            original.apply(position, record, false, &mut Vec::new());
        }
        original.end_group();
        let journal = journal(&records);
        assert!(journal.reader().hides(EVENT));
        let mut rebuilt = state(&directory, "rebuilt");
        fold_to(&mut rebuilt, &journal.reader(), last).unwrap();
        assert_eq!(rebuilt.deliveries_of(EVENT), original.deliveries_of(EVENT));
        assert_eq!(
            rebuilt.pending_erasures(Position(0), 9),
            [(EVENT, erased_at())],
            "the content is in the files"
        );

        // Afterwards the files have lost the content, and nothing is hidden.
        let erased: Vec<_> = (1..)
            .map(Position)
            .zip(&records)
            .map(|(position, record)| {
                if record.content_of(position) == Some(EVENT) {
                    record.erased(erased_at())
                } else {
                    record.clone()
                }
            })
            .collect();
        let erased = self::journal(&erased);
        erased.reader().end_hiding(&[EVENT]);
        let mut rebuilt = state(&directory, "again");
        fold_to(&mut rebuilt, &erased.reader(), last).unwrap();
        assert_eq!(rebuilt.deliveries_of(EVENT), original.deliveries_of(EVENT));
        assert_eq!(rebuilt.pending_erasures(Position(0), 9), []);
    }
}

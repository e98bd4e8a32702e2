//! Opening of a data directory: recovery of the state, and replay of the records that it has not
//! applied.

use std::io;
use std::path::{Path, PathBuf};

use crate::domain::{EndpointId, Position, Record, Timestamp};
use crate::outbox::registry::Registry;
use crate::projections::LaneChange;
use crate::storage::data_directory::{ClaimError, STATE, failed};
use crate::storage::journal::{AppendError, Journal, JournalError, JournalReader, OpenReport, ReadError};
use crate::storage::progress::{OnProgress, WorkProgress};
use crate::storage::state::{State, StateError, remove_unfinished};

/// Why a data directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error("cannot start the thread {name}: {error}")]
    Thread { name: &'static str, error: io::Error },
    #[error(
        "the record of endpoint {endpoint} at position {position} was written for position {revision}: the journal was edited; restore a backup"
    )]
    MisplacedEndpoint { endpoint: EndpointId, position: Position, revision: Position },
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Read(ReadError),
    /// Continuing would lose the record.
    #[error("a newer version has written to this data directory; start that version: {0}")]
    NewerRecord(ReadError),
    #[error(transparent)]
    State(#[from] StateError),
}

/// Opens the state and replays missing records. A damaged state is moved aside and rebuilt. A state
/// of an earlier layout is removed and rebuilt.
pub(crate) fn open_state(
    path: &Path,
    journal: &mut Journal,
    report: &mut OpenReport,
    progress: OnProgress<'_>,
) -> Result<(State, Option<String>, u64), OpenError> {
    let directory = path.join(STATE);
    remove_unfinished(&directory)?;
    let end = journal.reader().last_position();
    let opened = State::open(&directory, end).and_then(|state| check_parts(state, journal));
    let (mut state, rebuilt) = match opened {
        Ok(state) if state.applied() == Position(0) && end > Position(0) => {
            (state, Some("the state is missing".to_owned()))
        }
        Ok(state) => (state, None),
        Err(error) if error.is_environmental() => return Err(error.into()),
        Err(error) => {
            if let StateError::Ahead { applied, .. } = error {
                report.damage.push(journal.skip_lost_positions(applied)?);
                report.last = applied;
            }
            if matches!(error, StateError::EarlierLayout(_)) {
                std::fs::remove_dir_all(&directory).map_err(failed(&directory))?;
                tracing::info!(%error, "rebuilding the state from the journal");
            } else {
                let aside = set_aside(&directory).map_err(failed(&directory))?;
                tracing::warn!(%error, moved_to = %aside.display(), "state unusable, rebuilding it from the journal");
            }
            (State::open(&directory, journal.reader().last_position())?, Some(error.to_string()))
        }
    };
    let replayed = catch_up(&mut state, journal, progress)?;
    Ok((state, rebuilt, replayed))
}

/// The rest of partly applied records must be readable.
fn check_parts(state: State, journal: &Journal) -> Result<State, StateError> {
    let lost = |position: &Position| !matches!(journal.reader().read(*position), Ok(Some(_)));
    let part = state.part().map(|part| part.position);
    if part.iter().chain(&state.early().begun).any(lost) {
        return Err(StateError::Damaged("the rest of a partly applied record is lost"));
    }
    Ok(state)
}

/// Applies the records that the state has not applied. Returns their number.
pub(crate) fn catch_up(
    state: &mut State,
    journal: &Journal,
    progress: OnProgress<'_>,
) -> Result<u64, OpenError> {
    for (_, record) in read_records(&journal.reader(), state.registry_positions()) {
        state.restore(&record);
    }
    for (_, record) in read_records(&journal.reader(), state.deleted_endpoint_positions()) {
        state.restore_deleted(&record);
    }
    let replayed = replay(state, &journal.reader(), journal.reader().last_position(), progress)?;
    check_revisions(state, &journal.reader())?;
    Ok(replayed)
}

/// Checks that each endpoint record is at its original position. An endpoint's values are sealed
/// for its revision, which is the position of its record. A record copied to another position would
/// still decrypt, so it is rejected.
fn check_revisions(state: &State, reader: &JournalReader) -> Result<(), OpenError> {
    for (position, record) in read_records(reader, state.registry_positions()) {
        if let Record::EndpointPut(found) = &record
            && found.revision != position
        {
            return Err(OpenError::MisplacedEndpoint {
                endpoint: found.id.clone(),
                position,
                revision: found.revision,
            });
        }
    }
    Ok(())
}

/// Moves the damaged state aside. Keeps one damaged state for analysis.
fn set_aside(directory: &Path) -> std::io::Result<PathBuf> {
    let aside = directory.with_extension("damaged");
    match std::fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::rename(directory, &aside)?;
    Ok(aside)
}

fn replay(
    state: &mut State,
    reader: &JournalReader,
    end: Position,
    progress: OnProgress<'_>,
) -> Result<u64, OpenError> {
    let mut replayed = 0;
    let mut changes = Vec::new();
    for frame in reader.frames_from(state.applied().next()) {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error @ ReadError::Undecodable { source, .. }) if source.is_newer() => {
                return Err(OpenError::NewerRecord(error));
            }
            Err(error @ (ReadError::Damaged { .. } | ReadError::Undecodable { .. })) => {
                tracing::error!(%error, "journal records lost");
                continue;
            }
            Err(error @ ReadError::Io(_)) => return Err(OpenError::Read(error)),
        };
        for (position, record) in frame {
            apply_replayed(state, position, &record, &mut changes)?;
            replayed += 1;
        }
        progress(WorkProgress { done: state.applied().0, total: end.0 });
    }
    state.skip_to(end);
    state.checkpoint(Timestamp::default())?;
    Ok(replayed)
}

/// Applies a record of the journal, with a checkpoint when one is due. `changes` is for reuse: no
/// lane needs the changes of a replay.
pub(super) fn apply_replayed(
    state: &mut State,
    position: Position,
    record: &Record,
    changes: &mut Vec<LaneChange>,
) -> Result<(), StateError> {
    let mut is_complete = false;
    while !is_complete {
        is_complete = state.apply_step(position, record, false, changes).is_complete;
        changes.clear();
        if state.needs_checkpoint() {
            state.begin_checkpoint(Timestamp::default())?;
        }
    }
    Ok(())
}

pub(crate) fn registry_of(state: &State, reader: &JournalReader) -> Registry {
    let mut registry = Registry::default();
    for (_, record) in read_records(reader, state.deleted_endpoint_positions()) {
        registry.apply_deleted(&record);
    }
    for (_, record) in read_records(reader, state.registry_positions()) {
        registry.apply(&record);
    }
    registry.restore_places(state.consumer_places());
    registry.restore_jobs(state.job_progress());
    registry
}

/// Reads the records at these positions. Reports and skips damaged ones.
fn read_records(
    reader: &JournalReader,
    mut positions: Vec<Position>,
) -> impl Iterator<Item = (Position, Record)> {
    // In journal order, each block is read once.
    positions.sort_unstable();
    positions.into_iter().filter_map(|position| match reader.read(position) {
        Ok(record) => Some((position, record?)),
        Err(error) => {
            tracing::error!(%error, %position, "endpoint, key, tenant, consumer, event type or job lost");
            None
        }
    })
}

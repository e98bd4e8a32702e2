//! Verification of a data directory: every byte of the journal, every record and every row of the
//! state.
//!
//! Owns the definition of an intact directory. Never writes into the directory: it reads the
//! journal through [`ReadOnlyDisk`] and opens a copy of the state, because sled writes on open. It
//! folds the journal's records into a second state in the scratch directory, with the code of a
//! rebuild, and compares the rows. Verification needs as much memory as the daemon, and disk space
//! for two copies of the state, regardless of the backlog.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::domain::{Endpoint, Position, Record, Source, StreamName, Tenant, Timestamp};
use crate::filters::parse_stored;
use crate::outbox::registry::Registry;
use crate::outbox::{ReadModel, registry_of};
use crate::storage::data_directory::{FORMAT, FORMAT_FILE, JOURNAL, LOCK_FILE};
use crate::storage::disk::{Disk, ReadOnlyDisk, RealDisk};
use crate::storage::journal::{
    self, Journal, JournalError, JournalOptions, JournalReader, ReadError, VerifyReport,
};
use crate::storage::progress::{OnProgress, WorkProgress};
use crate::storage::state::{State, StateError};

/// Maximum number of problems in the list. More problems are only counted.
const PROBLEMS_LISTED_MAX: usize = 100;

/// Why a directory cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
    #[error("the data directory {0} is in use by another process: stop it, or verify a restored backup")]
    Locked(String),
    #[error("the journal cannot be read: {0}")]
    Read(#[from] ReadError),
    #[error("scratch directory (set by TMPDIR): {0}")]
    Scratch(StateError),
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyProblem {
    pub text: String,
    /// First and last affected position, if any.
    pub positions: Option<(Position, Position)>,
}

/// All problems.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    pub listed: Vec<VerifyProblem>,
    /// Includes the problems that are not in the list.
    pub count: u64,
}

impl Problems {
    pub fn add(&mut self, text: String) {
        self.add_at(None, text);
    }

    fn add_at(&mut self, positions: Option<(Position, Position)>, text: String) {
        self.count += 1;
        if self.listed.len() < PROBLEMS_LISTED_MAX {
            self.listed.push(VerifyProblem { text, positions });
        }
    }
}

/// Result of the state verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateCheck {
    /// The state is missing. The next start rebuilds it from the journal.
    #[default]
    Missing,
    /// An earlier version wrote it. The next start rebuilds it from the journal.
    EarlierLayout,
    /// The state or the journal could not be read.
    NotCompared,
    Compared {
        applied: Position,
        rows: u64,
    },
}

/// Result of the verification.
#[derive(Debug, Default)]
pub struct VerificationReport {
    pub journal: VerifyReport,
    pub last: Position,
    pub state: StateCheck,
    /// Endpoints at the end of the journal.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Live sources.
    pub sources: Vec<Arc<Source>>,
    pub problems: Problems,
}

/// Stage of the verification, for progress reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyStage {
    /// Reading the bytes of the journal.
    Bytes,
    /// Folding the records.
    Records,
    /// Comparing the rows of the state.
    Rows,
}

/// Verifies a data directory. `scratch` is an empty directory for temporary files.
///
/// # Errors
/// When the directory cannot be verified. Problems of the directory are not errors; the report
/// lists them.
pub fn verify(
    path: &Path,
    scratch: &Path,
    progress: &mut dyn FnMut(VerifyStage, WorkProgress),
) -> Result<VerificationReport, VerifyError> {
    let failed = |error| VerifyError::Io { path: path.display().to_string(), error };
    let mut report = VerificationReport::default();
    let _lock = lock(path)?;
    if !is_stamped(path, &mut report.problems).map_err(failed)? {
        return Ok(report);
    }
    let disk = ReadOnlyDisk(RealDisk::existing(path.join(JOURNAL)).map_err(failed)?);
    let checked = journal::verify(&disk, &mut |at| progress(VerifyStage::Bytes, at));
    match checked.and_then(|found| {
        let (journal, _) = Journal::open(Arc::new(disk) as Arc<dyn Disk>, JournalOptions::new(0))?;
        Ok((found, journal))
    }) {
        Ok((found, journal)) => {
            for damage in &found.damage {
                report.problems.add_at(damage.positions, format!("journal: {damage}"));
            }
            report.journal = found;
            check_state(path, scratch, &journal.reader(), &mut report, progress)?;
        }
        Err(error @ JournalError::NewerFormat { .. }) => report.problems.add(format!("journal: {error}")),
        Err(JournalError::Io(error)) => return Err(failed(error)),
    }
    Ok(report)
}

/// Takes a shared lock: it excludes a daemon and permits other verifications.
fn lock(path: &Path) -> Result<Option<File>, VerifyError> {
    let failed = |error| VerifyError::Io { path: path.display().to_string(), error };
    let lock = match File::open(path.join(LOCK_FILE)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_dir() => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(Some(lock)),
        Err(std::fs::TryLockError::WouldBlock) => Err(VerifyError::Locked(path.display().to_string())),
        Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn is_stamped(path: &Path, problems: &mut Problems) -> io::Result<bool> {
    match std::fs::read(path.join(FORMAT_FILE)) {
        Ok(found) if found == FORMAT.as_bytes() => Ok(true),
        Ok(found) => {
            let found = String::from_utf8_lossy(&found);
            problems.add(format!("not a data directory of this version: FORMAT contains {found:?}"));
            Ok(false)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            problems.add("not a data directory: FORMAT is missing".to_owned());
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn check_state(
    path: &Path,
    scratch: &Path,
    reader: &JournalReader,
    report: &mut VerificationReport,
    progress: &mut dyn FnMut(VerifyStage, WorkProgress),
) -> Result<(), VerifyError> {
    report.last = reader.last_position();
    let kept = open_copy(&path.join("state"), &scratch.join("state"), report)?;
    let until = kept.as_ref().map_or(report.last, State::applied);
    let mut folded = State::open(&scratch.join("folded"), report.last).map_err(VerifyError::Scratch)?;
    let mut check =
        RecordCheck { problems: &mut report.problems, accepted_at: Timestamp::ZERO, before: 0, after: 0 };
    check.fold(reader, kept.as_ref(), until, &mut folded, &mut |at| progress(VerifyStage::Records, at))?;
    let (before, after) = (check.before, check.after);
    if before + after != report.journal.records {
        let records = report.journal.records;
        report.problems.add(format!("journal: only {} of {records} records are readable", before + after));
    }
    let mut known = Registry::default();
    let from = if kept.is_some() { until.next() } else { Position(1) };
    if let Some(kept) = kept {
        if report.journal.damage.is_empty() {
            let gaps = before < until.0;
            let of = kept.checkpointed_rows();
            let rows = kept.audit(
                &folded,
                gaps,
                &mut |problem| report.problems.add(format!("state: {problem}")),
                &mut |at| progress(VerifyStage::Rows, WorkProgress { done: at, total: of.max(at) }),
            );
            report.state = StateCheck::Compared { applied: until, rows };
        } else {
            report.state = StateCheck::NotCompared;
        }
        if let Some(reason) = kept.failure() {
            report.problems.add(format!("state: a row cannot be read: {reason}"));
        }
        known = registry_of(&kept, reader);
    }
    // Records that are newer than the state.
    for frame in reader.frames_from(from) {
        frame.into_iter().flatten().for_each(|(_, record)| known.apply(&record));
    }
    report_repetitions(&known, &mut report.problems);
    report.endpoints = known.endpoints().cloned().collect();
    for endpoint in &report.endpoints {
        let filter = endpoint.selection.filter.as_deref();
        if filter.is_some_and(|filter| parse_stored(filter).is_none()) {
            report.problems.add(format!("journal: the filter of endpoint {} is unreadable", endpoint.id));
        }
    }
    report.sources = known.sources().cloned().collect();
    Ok(())
}

/// Reports live endpoints and queues of one id, uid or name, and keys of one secret. The journal
/// can hold them, and requests find only one of them.
fn report_repetitions(known: &Registry, problems: &mut Problems) {
    let mut repeated = |what: String, ids: Vec<&str>| {
        if ids.len() > 1 {
            problems.add(format!("journal: {} {what}: {}", ids.len(), ids.join(", ")));
        }
    };
    let (mut ids, mut uids, mut queues) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for endpoint in known.endpoints() {
        let (id, tenant) = (endpoint.id.as_str(), endpoint.tenant.as_str());
        ids.entry(id).or_insert_with(Vec::new).push(id);
        if let Some(uid) = &endpoint.uid {
            uids.entry((tenant, uid.as_str())).or_insert_with(Vec::new).push(id);
        }
        if let Some(target) = endpoint.queue() {
            queues.entry((tenant, target.name.as_str())).or_insert_with(Vec::new).push(id);
        }
    }
    let mut secrets: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for key in known.keys() {
        secrets.entry(key.hash).or_default().push(key.id.as_str());
    }
    ids.into_iter().for_each(|(id, found)| repeated(format!("endpoints have the id {id}"), found));
    for ((tenant, uid), found) in uids {
        repeated(format!("endpoints of tenant {tenant} have the uid {uid}"), found);
    }
    for ((tenant, name), found) in queues {
        repeated(format!("queues of tenant {tenant} have the name {name}"), found);
    }
    secrets.into_values().for_each(|found| repeated("keys have one secret".to_owned(), found));
}

/// Opens a copy of the state. Returns `None` if there is nothing to compare; the report gives the
/// reason.
fn open_copy(
    state: &Path,
    copy: &Path,
    report: &mut VerificationReport,
) -> Result<Option<State>, VerifyError> {
    if !state.exists() {
        return Ok(None);
    }
    report.state = StateCheck::NotCompared;
    let failed = |error| VerifyError::Io { path: copy.display().to_string(), error };
    copy_directory(state, copy).map_err(failed)?;
    match State::open(copy, report.last) {
        Ok(kept) => Ok(Some(kept)),
        Err(StateError::Ahead { applied, journal_end }) => {
            let first = journal_end.next();
            let text = format!("journal: durable positions {first} to {applied} are missing");
            report.problems.add_at(Some((first, applied)), text);
            Ok(None)
        }
        Err(StateError::EarlierLayout(_)) => {
            report.state = StateCheck::EarlierLayout;
            Ok(None)
        }
        Err(error) if error.is_environmental() => Err(VerifyError::Scratch(error)),
        Err(error) => {
            report.problems.add(format!("{error} (the next start rebuilds it from the journal)"));
            Ok(None)
        }
    }
}

fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// A pass over all records.
struct RecordCheck<'a> {
    problems: &'a mut Problems,
    /// Acceptance time of the last event.
    accepted_at: Timestamp,
    /// Number of records up to the state's position, and after it.
    before: u64,
    after: u64,
}

impl RecordCheck<'_> {
    /// Folds the records that the state has applied. Reads and counts the later ones.
    fn fold(
        &mut self,
        reader: &JournalReader,
        kept: Option<&State>,
        until: Position,
        folded: &mut State,
        progress: OnProgress<'_>,
    ) -> Result<(), VerifyError> {
        let end = reader.last_position();
        let mut changes = Vec::new();
        for frame in reader.frames_from(Position(1)) {
            let frame = match frame {
                Ok(frame) => frame,
                // The byte verification has already reported it.
                Err(ReadError::Damaged { .. }) => continue,
                Err(error @ ReadError::Undecodable { position, .. }) => {
                    self.problems.add_at(Some((position, position)), format!("journal: {error}"));
                    continue;
                }
                Err(error @ ReadError::Io(_)) => return Err(error.into()),
            };
            let last = frame.last().map_or(Position(0), |(position, _)| *position);
            for (position, record) in frame {
                if position > until {
                    self.after += 1;
                    if let Some(kept) = kept {
                        folded.apply_as(kept, position, &record);
                    }
                    continue;
                }
                self.before += 1;
                self.check_record(position, &record, folded);
                folded.apply(position, &record, false, &mut changes);
                folded.end_group();
                changes.clear();
                if folded.needs_checkpoint() {
                    folded.checkpoint(Timestamp::ZERO).map_err(VerifyError::Scratch)?;
                }
            }
            progress(WorkProgress { done: last.0, total: end.0 });
        }
        folded.skip_to(until);
        folded.checkpoint(Timestamp::ZERO).map_err(VerifyError::Scratch)
    }

    /// Checks the invariants of a record.
    fn check_record(&mut self, position: Position, record: &Record, folded: &State) {
        let here = Some((position, position));
        if let Record::EndpointPut(found) = record
            && found.revision != position
        {
            let (id, revision) = (&found.id, found.revision);
            let text = format!(
                "journal: the record of endpoint {id} at {position} was written for position {revision}"
            );
            self.problems.add_at(here, text);
        }
        let Record::EventAccepted(event) = record else { return };
        if event.accepted_at < self.accepted_at {
            let text =
                format!("journal: event {position} has an earlier acceptance time than the event before it");
            self.problems.add_at(here, text);
        }
        self.accepted_at = self.accepted_at.max(event.accepted_at);
        if let Some((stream, version)) = &event.stream {
            let before = version_of(folded, &event.tenant, stream);
            // Retention may have removed the events before.
            if *version <= before || (before + 1 != *version && position.0 == self.before) {
                let text = format!(
                    "journal: event {position} is version {version} of stream {stream}, whose previous version is {before}"
                );
                self.problems.add_at(here, text);
            }
        }
    }
}

fn version_of(state: &State, tenant: &Tenant, stream: &StreamName) -> u64 {
    ReadModel::stream(state, tenant, stream).map_or(0, |head| head.version)
}

#[cfg(test)]
mod part_tests;
#[cfg(test)]
mod tests;

//! Backup and restore: the journal's records as lines of text.
//!
//! Owns the backup format. The format is independent of segments, frames and the state. Its record
//! bytes are those of [`crate::storage::format`], which stay readable. A prefix of the journal is
//! always consistent, so a backup needs no lock.
//!
//! ```text
//! balto-backup 1
//! c <position before> <commit time, ms> <position>:<record, base64> ... <CRC-32>
//! end <position before> <last position> <CRC-32>
//! ```
//!
//! A CRC-32 covers the line before it and is hexadecimal. Each line names the last position of the
//! line before (0 for the first), which reveals a missing line. The `end` line reveals a truncated
//! backup. Positions ascend, with gaps where retention or damage removed records.
//!
//! A daemon with a secrets key authenticates its backups. Each line then has a keyed checksum
//! (HMAC-SHA256 of the line so far, hexadecimal) after the CRC-32. The header holds the backup id
//! and the key id, see [`authentication`]:
//!
//! ```text
//! balto-backup 2 <backup id, hexadecimal> <key id>
//! c <position before> ... <CRC-32> <HMAC-SHA256>
//! end <position before> <last position> <CRC-32> <HMAC-SHA256>
//! ```

mod authentication;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, BufRead};
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::domain::{Position, Record, Timestamp};
use crate::storage::data_directory;
use crate::storage::disk::{RealDisk, create_private, entry_names};
use crate::storage::format;
use crate::storage::journal::{JournalReader, RawRecord, ReadError, Restorer};
use crate::storage::permissions::{self, PermissionError};

pub use authentication::{BackupId, BackupKey};

const HEADER: &str = "balto-backup 1";
/// Header prefix of an authenticated backup.
const HEADER_AUTHENTICATED: &str = "balto-backup 2 ";
/// Maximum length of a line, in bytes. The record of the largest event fits, in base64.
const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A part of a backup.
#[derive(Debug)]
pub struct BackupPart {
    pub text: String,
    /// Last position in this part, for the next call. `None` when this part ends the backup.
    pub next: Option<Position>,
    /// First and last positions of unreadable ranges.
    pub damaged: Vec<(Position, Position)>,
}

/// Key and id for the authentication of a backup.
#[derive(Clone, Debug)]
pub struct BackupSigning {
    pub key: BackupKey,
    /// The same in all parts.
    pub backup: BackupId,
}

/// Creates the part after a position, about `bytes_wanted` long. The first part comes after
/// position 0. `until` is the last position of the backup.
///
/// # Errors
/// When the disk cannot be read.
pub fn part(
    reader: &JournalReader,
    after: Position,
    until: Position,
    bytes_wanted: usize,
    signing: Option<&BackupSigning>,
) -> Result<BackupPart, ReadError> {
    let mut part = BackupPart { text: String::new(), next: None, damaged: Vec::new() };
    if after == Position(0) {
        match signing {
            Some(BackupSigning { key, backup }) => {
                write!(part.text, "{HEADER_AUTHENTICATED}{backup} {}", key.id).expect(INFALLIBLE);
            }
            None => part.text.push_str(HEADER),
        }
        part.text.push('\n');
    }
    let (mut before, mut at) = (after, after.next());
    while at <= until {
        let Some(step) = reader.raw_from(at)? else { break };
        at = step.next;
        part.damaged.extend(step.damaged.iter().filter(|(first, _)| *first <= until));
        let records: Vec<_> = step.records.into_iter().filter(|record| record.position <= until).collect();
        for commit in records.chunk_by(|one, other| one.time == other.time) {
            before = write_commit(&mut part.text, before, commit, signing);
        }
        if part.text.len() >= bytes_wanted && before > after && at <= until {
            part.next = Some(before);
            return Ok(part);
        }
    }
    let start = part.text.len();
    write!(part.text, "end {} {}", before.0, until.0).expect(INFALLIBLE);
    end_line(&mut part.text, start, signing);
    Ok(part)
}

const INFALLIBLE: &str = "writing to a string cannot fail";

/// Writes the line of a commit. Returns its last position.
fn write_commit(
    text: &mut String,
    before: Position,
    commit: &[RawRecord],
    signing: Option<&BackupSigning>,
) -> Position {
    let start = text.len();
    let (first, last) = (&commit[0], &commit[commit.len() - 1]);
    write!(text, "c {} {}", before.0, first.time.millis()).expect(INFALLIBLE);
    for record in commit {
        write!(text, " {}:", record.position.0).expect(INFALLIBLE);
        STANDARD.encode_string(&record.bytes, text);
    }
    end_line(text, start, signing);
    last.position
}

/// Completes the line that begins at `start` with its checksums.
fn end_line(text: &mut String, start: usize, signing: Option<&BackupSigning>) {
    let crc = crc32fast::hash(&text.as_bytes()[start..]);
    write!(text, " {crc:08x}").expect(INFALLIBLE);
    if let Some(BackupSigning { key, backup }) = signing {
        let checksum = key.sign(*backup, &text[start..]);
        write!(text, " {checksum}").expect(INFALLIBLE);
    }
    text.push('\n');
}

/// Why a restore failed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("{0} is not empty: restore into a new directory")]
    NotEmpty(String),
    #[error("the directory {0} is in use by another process")]
    Locked(String),
    #[error(transparent)]
    Permission(#[from] PermissionError),
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
    #[error("the backup cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("this is not a backup, or a newer version wrote it: it begins with {0:?}")]
    Foreign(String),
    #[error(
        "the backup is authenticated with key {0}, which is not configured: use --config with a configuration that has the key, or accept the backup unchecked with --unauthenticated"
    )]
    MissingKey(String),
    #[error(
        "the backup is not authenticated, although a secrets key is configured: an earlier version wrote it, or it was tampered with; if you trust the file, accept it with --unauthenticated"
    )]
    NotAuthenticated,
    #[error("line {0} of the backup was changed: its keyed checksum does not match")]
    Forged(u64),
    #[error("line {line} of the backup is damaged: {what}")]
    Damaged { line: u64, what: &'static str },
    #[error(
        "line {0} of the backup ends with CRLF: the file was copied as text; copy it in binary mode, or remove each CR with `tr -d '\\r'`"
    )]
    CarriageReturn(u64),
    #[error("the backup is truncated after line {0}: the end line is missing")]
    Truncated(u64),
}

/// Result of a restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreReport {
    pub records: u64,
    pub last: Position,
    /// Whether every line has a valid keyed checksum.
    pub authenticated: bool,
}

/// Configured keys, and the required authentication of a backup.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackupTrust<'a> {
    pub keys: &'a [BackupKey],
    /// Accepts an unauthenticated backup, and checks no keyed checksum.
    pub unauthenticated: bool,
}

impl BackupTrust<'_> {
    /// Returns how the lines after this header are authenticated.
    fn check(self, header: &str) -> Result<Option<BackupSigning>, RestoreError> {
        if header == HEADER {
            let accepted = self.unauthenticated || self.keys.is_empty();
            return if accepted { Ok(None) } else { Err(RestoreError::NotAuthenticated) };
        }
        let foreign = || RestoreError::Foreign(header.chars().take(40).collect());
        let ids = header.strip_prefix(HEADER_AUTHENTICATED).and_then(|ids| ids.split_once(' '));
        let (backup, id) = ids.ok_or_else(foreign)?;
        let backup = BackupId::parse(backup).ok_or_else(foreign)?;
        if self.unauthenticated {
            return Ok(None);
        }
        let key = self.keys.iter().find(|key| &*key.id == id);
        let key = key.ok_or_else(|| RestoreError::MissingKey(id.chars().take(40).collect()))?;
        Ok(Some(BackupSigning { key: key.clone(), backup }))
    }
}

/// Restores a backup into a new or empty directory, or over the leftovers of an interrupted
/// restore. The stamp is written last. Without it, a daemon rejects the directory.
///
/// # Errors
/// When the directory is in use or not empty, the backup is incomplete, or the disk fails. The
/// directory is then restored to its earlier content.
pub fn restore(
    backup: &mut dyn BufRead,
    directory: &Path,
    salt: u32,
    trust: BackupTrust<'_>,
) -> Result<RestoreReport, RestoreError> {
    let mut lines = BackupLines { backup, number: 0, has_keyed_checksums: false, signing: None };
    let header = lines.next()?.unwrap_or_default();
    lines.signing = trust.check(&header)?;
    lines.has_keyed_checksums = header != HEADER;
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    // The directory first, then its missing parents.
    let missing: Vec<_> = directory.ancestors().take_while(is_missing).collect();
    let restored = create_private(directory)
        .map_err(|error| io(directory, error))
        .and_then(|()| restore_into(&mut lines, directory, salt));
    if restored.is_err() {
        for made in missing {
            // Removes empty directories only.
            std::fs::remove_dir(made).ok();
        }
    }
    restored
}

fn restore_into(
    lines: &mut BackupLines<'_>,
    directory: &Path,
    salt: u32,
) -> Result<RestoreReport, RestoreError> {
    permissions::check(directory)?;
    check_empty(directory)?;
    let lock = data_directory::lock(directory).map_err(|error| io(directory, error))?;
    let _lock = lock.ok_or_else(|| RestoreError::Locked(directory.display().to_string()))?;
    // Another process may have filled the directory before this one got the lock.
    check_empty(directory)?;
    let restored = write_directory(lines, directory, salt);
    if restored.is_err() {
        // The first error is reported. The next restore recognizes the leftovers as its own.
        remove_partial_restore(directory).ok();
    }
    restored
}

fn write_directory(
    lines: &mut BackupLines<'_>,
    directory: &Path,
    salt: u32,
) -> Result<RestoreReport, RestoreError> {
    let failed = |error| io(directory, error);
    remove_journal(directory).map_err(failed)?;
    data_directory::begin_stamp(directory).map_err(failed)?;
    let disk = RealDisk::new(directory.join(data_directory::JOURNAL)).map_err(failed)?;
    let restored = restore_records(lines, Restorer::new(Arc::new(disk), salt), directory)?;
    data_directory::stamp(directory).map_err(failed)?;
    Ok(restored)
}

/// Removes a partial restore. The stamp goes first: a stamp without a journal would look like an
/// empty outbox.
fn remove_partial_restore(directory: &Path) -> io::Result<()> {
    let begun = directory.join(data_directory::STAMP_BEGUN_FILE);
    match std::fs::rename(directory.join(data_directory::FORMAT_FILE), &begun) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    remove_journal(directory)?;
    std::fs::remove_file(begun)?;
    std::fs::remove_file(directory.join(data_directory::LOCK_FILE))
}

/// Checks that the directory holds nothing but the leftovers of an interrupted restore.
fn check_empty(directory: &Path) -> Result<(), RestoreError> {
    let names = entry_names(directory).map_err(|error| io(directory, error))?;
    let is_ours = |name: &OsString| match name.to_str() {
        Some(data_directory::STAMP_BEGUN_FILE | data_directory::LOCK_FILE) => true,
        Some(data_directory::JOURNAL) => names.iter().any(|other| other == data_directory::STAMP_BEGUN_FILE),
        _ => false,
    };
    if names.iter().all(is_ours) {
        Ok(())
    } else {
        Err(RestoreError::NotEmpty(directory.display().to_string()))
    }
}

fn remove_journal(directory: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(directory.join(data_directory::JOURNAL)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn io(directory: &Path, error: io::Error) -> RestoreError {
    RestoreError::Io { path: directory.display().to_string(), error }
}

fn restore_records(
    lines: &mut BackupLines<'_>,
    mut journal: Restorer,
    directory: &Path,
) -> Result<RestoreReport, RestoreError> {
    let failed = |error| io(directory, error);
    let mut restored = RestoreReport { authenticated: lines.signing.is_some(), ..RestoreReport::default() };
    let mut time = Timestamp::default();
    while let Some(line) = lines.next()? {
        let number = lines.number;
        let damaged = |what| RestoreError::Damaged { line: number, what };
        let content = lines.checked(&line)?;
        let mut fields = content.split(' ');
        let kind = fields.next();
        if fields.next().and_then(number_of) != Some(restored.last.0) {
            return Err(damaged("the line before it is missing"));
        }
        match kind {
            Some("end") => {
                let last = fields.next().and_then(number_of).map(Position);
                let last =
                    last.filter(|last| *last >= restored.last).ok_or_else(|| damaged("invalid end line"))?;
                if lines.next()?.is_some() {
                    return Err(damaged("data after the end line"));
                }
                journal.finish(last).map_err(failed)?;
                return Ok(RestoreReport { last, ..restored });
            }
            Some("c") => {}
            _ => return Err(damaged("unknown line type")),
        }
        let at = fields.next().and_then(number_of).map(Timestamp::from_millis);
        time = at.filter(|at| *at >= time).ok_or_else(|| damaged("invalid commit time"))?;
        for field in fields {
            let (position, bytes) =
                record(field).ok_or_else(|| damaged("a record is invalid or of another position"))?;
            if position <= restored.last {
                return Err(damaged("positions do not ascend"));
            }
            journal.push(position, time, bytes).map_err(failed)?;
            restored.records += 1;
            restored.last = position;
        }
    }
    Err(RestoreError::Truncated(lines.number))
}

/// Returns the line without its CRC-32 if the CRC-32 matches.
fn strip_crc(line: &str) -> Option<&str> {
    let (content, crc) = line.rsplit_once(' ')?;
    (u32::from_str_radix(crc, 16).ok()? == crc32fast::hash(content.as_bytes())).then_some(content)
}

fn number_of(word: &str) -> Option<u64> {
    // Keeps later additions from overflowing.
    word.parse().ok().filter(|number| *number < u64::MAX / 2)
}

fn record(word: &str) -> Option<(Position, Vec<u8>)> {
    let (position, text) = word.split_once(':')?;
    let bytes = STANDARD.decode(text).ok()?;
    let (position, decoded) = (Position(number_of(position)?), format::decode(&bytes).ok()?);
    // The secrets of an endpoint are bound to its position.
    let is_in_place = !matches!(&decoded, Record::EndpointPut(found) if found.revision != position);
    is_in_place.then_some((position, bytes))
}

struct BackupLines<'a> {
    backup: &'a mut dyn BufRead,
    number: u64,
    has_keyed_checksums: bool,
    /// Key of the keyed checksums. `None`: they are not checked.
    signing: Option<BackupSigning>,
}

impl BackupLines<'_> {
    /// Returns the line without its checksums if they match.
    fn checked<'l>(&self, line: &'l str) -> Result<&'l str, RestoreError> {
        let damaged = || RestoreError::Damaged { line: self.number, what: "checksum mismatch" };
        let keyed = line.rsplit_once(' ').filter(|_| self.has_keyed_checksums);
        let (rest, checksum) = keyed.unwrap_or((line, ""));
        let content = strip_crc(rest).ok_or_else(damaged)?;
        match &self.signing {
            Some(BackupSigning { key, backup }) if !key.verifies(*backup, rest, checksum) => {
                Err(RestoreError::Forged(self.number))
            }
            _ => Ok(content),
        }
    }

    /// Returns the next line without its line end. Returns `None` at the end, and for a line
    /// without a line end.
    fn next(&mut self) -> Result<Option<String>, RestoreError> {
        let mut bytes = Vec::new();
        io::Read::take(&mut *self.backup, LINE_BYTES_MAX).read_until(b'\n', &mut bytes)?;
        if bytes.pop() != Some(b'\n') {
            return Ok(None);
        }
        self.number += 1;
        // The checksums cover the original lines. A tool that changed the line ends may have
        // changed more.
        if bytes.last() == Some(&b'\r') {
            return Err(RestoreError::CarriageReturn(self.number));
        }
        let line = String::from_utf8(bytes);
        line.map(Some).map_err(|_| RestoreError::Damaged { line: self.number, what: "invalid UTF-8" })
    }
}

#[cfg(test)]
mod tests;

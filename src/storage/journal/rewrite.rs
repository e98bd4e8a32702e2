//! Rewriting of a sealed segment without its unneeded records, and without erased content.
//!
//! Owns the only way by which bytes leave the journal. Never touches the active segment and never
//! changes a position. Rejects a damaged segment, so that its damage stays visible. An emptied
//! segment becomes a gap marker, because a missing file counts as damage. Adjacent gap markers are
//! merged.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::frame::{FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader};
use super::open::TEMPORARY_SUFFIX;
use super::reader::{SegmentEntry, SegmentStore, lock, read, write};
use super::segment::{BlockRecord, Segment, file_name};
use super::sparse::SparseSegmentWriter;
use super::{Journal, JournalReader, ReadError};
use crate::domain::{Position, Record};
use crate::storage::disk::DiskFile;
use crate::storage::format;

#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    #[error("no sealed segment begins at position {0}")]
    NotSealed(Position),
    /// The caller should retry later.
    #[error("rewrites are paused during a backup")]
    Paused,
    /// The segment is unchanged. Also returned when it is damaged.
    #[error("cannot read the segment: {0}")]
    Read(#[from] ReadError),
    /// The segment is either unchanged or completely rewritten.
    #[error("cannot rewrite the segment: {0}")]
    Io(#[from] io::Error),
}

/// The fate of a record in a rewrite.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    Keep,
    Remove,
    /// This record takes its position. It must have the same meaning for every later record.
    Replace(Record),
}

impl Fate {
    #[must_use]
    pub fn keep_if(is_needed: bool) -> Self {
        if is_needed { Self::Keep } else { Self::Remove }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RewriteReport {
    /// Includes the replaced records.
    pub kept: u64,
    pub replaced: u64,
    pub removed: u64,
    pub bytes_before: u64,
    /// Zero when the file was removed.
    pub bytes_after: u64,
}

/// Length of a file with only a gap marker. A file with a record is always longer.
const GAP_FILE_BYTES: u64 = (FILE_HEADER_BYTES + FRAME_HEADER_BYTES) as u64;

impl Journal {
    /// See [`JournalReader::rewrite_segment`].
    pub fn rewrite_segment(
        &self,
        first: Position,
        judge: &mut dyn FnMut(Position, &Record) -> Fate,
    ) -> Result<RewriteReport, RewriteError> {
        self.reader().rewrite_segment(first, judge)
    }
}

impl JournalReader {
    /// Pauses rewrites until `until`. A backup reads the whole journal in steps, and must not see
    /// an event without its outcome.
    pub fn hold_rewrites(&self, until: Instant) {
        *lock(&self.shared.rewrite_hold) = Some(until);
    }

    /// Rewrites the sealed segment that begins at `first`. `judge` decides about each record, as it
    /// is in the file. Rewrites run one at a time, concurrently with appends and reads.
    pub fn rewrite_segment(
        &self,
        first: Position,
        judge: &mut dyn FnMut(Position, &Record) -> Fate,
    ) -> Result<RewriteReport, RewriteError> {
        let shared = &*self.shared;
        let held_until = lock(&shared.rewrite_hold);
        if held_until.is_some_and(|until| Instant::now() < until) {
            return Err(RewriteError::Paused);
        }
        let (entry, upper) = find_sealed(shared, first).ok_or(RewriteError::NotSealed(first))?;
        let segment = shared.open(entry, Some(upper))?;
        let header = FileHeader { rewritten: true, ..segment.header };
        let mut report = write_temporary(shared, header, |file| {
            let mut copy = SegmentCopy {
                file: SparseSegmentWriter::new(file, header)?,
                report: RewriteReport::default(),
            };
            copy.run(&segment, upper, judge)?;
            Ok(copy.report)
        })?;
        report.bytes_before = entry.bytes;
        if report.removed + report.replaced == 0 {
            shared.disk.remove(&temporary_name(first))?;
            report.bytes_after = entry.bytes;
            return Ok(report);
        }
        install(shared, first, report.bytes_after)?;
        shared.forget_file(entry);
        if report.kept == 0 && merge_gap_markers(shared, first, upper)? {
            report.bytes_after = 0;
        }
        shared.disk.sync_dir()?;
        Ok(report)
    }
}

fn temporary_name(first: Position) -> String {
    format!("{}{TEMPORARY_SUFFIX}", file_name(first))
}

/// Writes and syncs a new file with this header beside the existing one.
fn write_temporary<R>(
    shared: &SegmentStore,
    header: FileHeader,
    write: impl FnOnce(&dyn DiskFile) -> Result<R, RewriteError>,
) -> Result<R, RewriteError> {
    let temporary = temporary_name(header.first);
    match shared.disk.remove(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let written = shared.disk.create(&temporary).map_err(RewriteError::from).and_then(|file| {
        let written = write(&*file)?;
        file.sync_data()?;
        Ok(written)
    });
    if written.is_err() {
        // Best effort: the next open removes a leftover file.
        drop(shared.disk.remove(&temporary));
    }
    written
}

/// Replaces the segment's file with the temporary one. Readers keep using an old file that they
/// have open.
fn install(shared: &SegmentStore, first: Position, bytes: u64) -> io::Result<()> {
    shared.disk.rename(&temporary_name(first), &file_name(first))?;
    if let Some(entry) = write(&shared.list).iter_mut().find(|entry| entry.first == first) {
        entry.version += 1;
        entry.bytes = bytes;
    }
    Ok(())
}

/// Merges this gap marker into the segment before it, if that segment is a gap marker as well, and
/// removes this file. A crash in between leaves both files, and both are valid.
fn merge_gap_markers(shared: &SegmentStore, first: Position, upper: Position) -> Result<bool, RewriteError> {
    let before = {
        let list = read(&shared.list);
        let number = list.iter().position(|entry| entry.first == first);
        number.and_then(|number| list.get(number.checked_sub(1)?).copied())
    };
    let Some(before) = before.filter(|before| before.bytes == GAP_FILE_BYTES) else { return Ok(false) };
    let segment = shared.open(before, Some(first))?;
    write_temporary(shared, segment.header, |file| {
        Ok(SparseSegmentWriter::new(file, segment.header)?.finish(upper)?)
    })?;
    install(shared, before.first, GAP_FILE_BYTES)?;
    // The merged marker must be durable before this file is removed. The list changes first: a
    // reader that misses a file looks it up again.
    shared.disk.sync_dir()?;
    write(&shared.list).retain(|entry| entry.first != first);
    shared.disk.remove(&file_name(first))?;
    Ok(true)
}

/// Returns the entry of a sealed segment, and the first position of the next one. The last file is
/// never sealed.
fn find_sealed(shared: &SegmentStore, first: Position) -> Option<(SegmentEntry, Position)> {
    let list = read(&shared.list);
    let number = list.iter().position(|entry| entry.first == first)?;
    Some((list[number], list.get(number + 1)?.first))
}

/// A copy of a segment in progress.
struct SegmentCopy<'a> {
    file: SparseSegmentWriter<'a>,
    report: RewriteReport,
}

impl SegmentCopy<'_> {
    fn run(
        &mut self,
        segment: &Arc<Segment>,
        upper: Position,
        judge: &mut dyn FnMut(Position, &Record) -> Fate,
    ) -> Result<(), RewriteError> {
        check_undamaged(&segment.damage)?;
        let mut position = segment.header.first;
        while position < upper {
            let Some(location) = segment.locate_block(position) else { break };
            let block = segment.read_block(&location)?;
            check_undamaged(&block.damage)?;
            for record in block.records.iter().filter(|record| record.position >= position) {
                let bytes = block.record_bytes(record);
                let decoded = format::decode(bytes)
                    .map_err(|source| ReadError::Undecodable { position: record.position, source })?;
                self.copy(record, bytes, judge(record.position, &decoded))?;
            }
            match location.upper {
                Some(next) if !location.is_last => position = next,
                _ => break,
            }
        }
        self.report.bytes_after = self.file.finish(upper)?;
        Ok(())
    }

    fn copy(&mut self, record: &BlockRecord, bytes: &[u8], fate: Fate) -> io::Result<()> {
        match fate {
            Fate::Remove => {
                self.report.removed += 1;
                return Ok(());
            }
            Fate::Keep => self.file.push(record.position, record.time, bytes)?,
            Fate::Replace(replacement) => {
                let mut encoded = Vec::with_capacity(format::size_hint(&replacement));
                format::encode(&replacement, &mut encoded);
                self.report.replaced += u64::from(encoded != bytes);
                self.file.push(record.position, record.time, &encoded)?;
            }
        }
        self.report.kept += 1;
        Ok(())
    }
}

fn check_undamaged(damage: &[super::Damage]) -> Result<(), ReadError> {
    match damage.iter().find_map(|damage| damage.positions) {
        Some((first, last)) => Err(ReadError::Damaged { first, last }),
        None => Ok(()),
    }
}

//! The journal: an append-only log of records, and the source of truth.
//!
//! Owns the files `journal-<first position>.log`, their order and their durability. One owner
//! writes ([`Journal`]); any thread reads ([`JournalReader`]). It interprets no record, reads no
//! clock and uses no randomness.
//!
//! Invariants:
//!
//! * Positions are assigned in dense ascending order and never change.
//! * An append returns after its bytes are synced. Readers see the records only then.
//! * After a write or sync error the journal accepts no more appends: a sync that succeeds after a
//!   failure proves nothing. A full disk is the exception: the unsynced bytes are truncated.
//! * An incomplete commit at the end of the last file was never acknowledged. The next start
//!   truncates it.
//! * Damage anywhere else costs only the damaged frame, and is reported.

mod cache;
mod erased;
mod frame;
mod open;
mod reader;
mod restore;
mod rewrite;
mod segment;
mod sparse;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use open::{JournalError, OpenReport, VerifyReport, verify};
pub use reader::{Frames, JournalReader, RawBatch, RawRecord, ReadError, RecordsAt};
pub use restore::Restorer;
pub use rewrite::{Fate, RewriteError, RewriteReport};

use crate::codec::varint_len;
use crate::domain::{Position, Record, Timestamp};
use crate::limits;
use crate::storage::disk::{Disk, DiskFile, is_disk_full, is_out_of_descriptors};
use crate::storage::format;
use frame::{FILE_HEADER_BYTES, FileHeader, FrameBuilder, FrameHeader};
use reader::{SegmentEntry, SegmentStore, write};
use segment::{Segment, file_name};

/// Longest position delta of an appended record, as a varint.
const DELTA_BYTES: usize = 1;

#[derive(Clone, Copy, Debug)]
pub struct JournalOptions {
    /// Random salt of new files: prevents payload bytes from passing as frames.
    pub salt: u32,
    pub segment_bytes: u64,
    /// Zero bytes that are preallocated behind the last frame.
    pub preallocation_bytes: usize,
    pub frame_bytes: usize,
    /// Size limit of the readers' block cache, in bytes.
    pub cache_bytes: usize,
}

impl JournalOptions {
    #[must_use]
    pub fn new(salt: u32) -> Self {
        Self {
            salt,
            segment_bytes: limits::SEGMENT_BYTES_TARGET,
            preallocation_bytes: limits::SEGMENT_PREALLOCATED_BYTES,
            frame_bytes: limits::FRAME_BYTES_TARGET,
            cache_bytes: 16 * 1024 * 1024,
        }
    }
}

/// Kind of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageCause {
    /// Both copies of the file header are damaged.
    FileHeader,
    /// A byte range without a readable frame.
    Unreadable,
    /// The body of a frame does not match its checksum or its header.
    Body,
    /// Frames are missing.
    Missing,
}

/// A damaged range of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// First position of the segment, as in the file name.
    pub segment: Position,
    /// Byte range in the file; empty for missing frames.
    pub bytes: Range<u64>,
    /// First and last lost position, or `None` if no record is lost. In a rewritten segment the
    /// range is an upper bound.
    pub positions: Option<(Position, Position)>,
    pub cause: DamageCause,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.positions {
            Some((first, last)) if first == last => write!(f, "position {first} lost")?,
            Some((first, last)) => write!(f, "positions {first} to {last} lost")?,
            None => f.write_str("no record lost")?,
        }
        let cause = match self.cause {
            DamageCause::FileHeader => "both copies of the file header are damaged or belong to another file",
            DamageCause::Unreadable => "no readable frame",
            DamageCause::Body => "a frame does not match its checksum",
            DamageCause::Missing => "frames are missing",
        };
        let Range { start, end } = self.bytes;
        write!(f, " ({}, bytes {start} to {end}: {cause})", file_name(self.segment))
    }
}

/// Why an append failed.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Nothing was appended. The journal remains usable.
    #[error("the disk is full")]
    DiskFull,
    /// Nothing was appended. The journal remains usable.
    #[error("unit of {bytes} bytes exceeds the frame limit of {bytes_max} bytes")]
    TooLarge { bytes: usize, bytes_max: usize },
    /// The next start decides whether the records were appended. The journal accepts no more
    /// appends.
    #[error("journal write failed: {0}")]
    Io(#[source] io::Error),
    #[error("the journal failed earlier; restart to reopen it")]
    Poisoned,
}

/// The encoded records of one append. A unit is appended completely or not at all.
#[derive(Default)]
struct Encoded {
    bytes: Vec<u8>,
    records: Vec<Range<usize>>,
    /// For each unit: its range of records, and an upper bound of its bytes in a frame body.
    units: Vec<(Range<usize>, usize)>,
}

impl Encoded {
    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(2 * limits::COMMIT_BYTES_MAX);
        self.records.clear();
        self.units.clear();
    }

    fn push(&mut self, unit: &[Record]) {
        let first = self.records.len();
        let mut frame_bytes = 0;
        self.bytes.reserve(unit.iter().map(format::size_hint).sum());
        for record in unit {
            let start = self.bytes.len();
            format::encode(record, &mut self.bytes);
            let length = self.bytes.len() - start;
            frame_bytes += DELTA_BYTES + varint_len(length as u64) + length;
            self.records.push(start..self.bytes.len());
        }
        self.units.push((first..self.records.len(), frame_bytes));
    }
}

/// The single writer of the journal.
pub struct Journal {
    shared: Arc<SegmentStore>,
    options: JournalOptions,
    active: Option<Arc<Segment>>,
    /// End of the durable frames in the active file.
    end: u64,
    /// Length of the active file. The bytes behind `end` are preallocated zeros.
    allocated_end: u64,
    next: Position,
    /// Commit time of the last append.
    time: Timestamp,
    poisoned: bool,
    /// Bytes of the last write that failed because the disk was full.
    refused_bytes: usize,
    encoded: Encoded,
    /// The next write: frames, and preallocated zeros behind them.
    buffer: Vec<u8>,
}

impl Journal {
    #[must_use]
    pub fn reader(&self) -> JournalReader {
        JournalReader { shared: Arc::clone(&self.shared) }
    }

    /// The disk of the journal's files.
    #[must_use]
    pub fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.shared.disk)
    }

    /// Position of the next record.
    #[must_use]
    pub fn next_position(&self) -> Position {
        self.next
    }

    /// Time of the last commit. Later commits are never earlier.
    #[must_use]
    pub fn last_time(&self) -> Timestamp {
        self.time
    }

    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Records that durable records up to `last` are missing from the end. Starts a new segment
    /// after them, so that no position is assigned twice.
    pub(crate) fn skip_lost_positions(&mut self, last: Position) -> Result<Damage, AppendError> {
        let first = self.next;
        self.next = last.next();
        let segment = self.start_next_segment(self.time)?.header.first;
        self.shared.last.store(last.0, Ordering::Release);
        Ok(Damage { segment, bytes: 0..0, positions: Some((first, last)), cause: DamageCause::Missing })
    }

    /// Whether a disk that was full has space again for the failed write.
    #[must_use]
    pub fn has_space(&self) -> bool {
        open::has_space(&*self.shared.disk, self.refused_bytes.max(limits::FRAME_BYTES_TARGET))
    }

    /// Appends all units with one write and one sync. Returns the first position and the position
    /// after the last.
    ///
    /// A unit lies in one frame, so that a crash keeps it completely or not at all. A commit time
    /// before the last one is raised to the last one.
    pub fn append<U: AsRef<[Record]>>(
        &mut self,
        commit_time: Timestamp,
        units: &[U],
    ) -> Result<Range<Position>, AppendError> {
        if self.poisoned {
            return Err(AppendError::Poisoned);
        }
        self.encoded.clear();
        for unit in units {
            self.encoded.push(unit.as_ref());
        }
        let bytes_max = limits::FRAME_BYTES_MAX;
        if let Some((_, bytes)) = self.encoded.units.iter().find(|(_, bytes)| *bytes > bytes_max) {
            return Err(AppendError::TooLarge { bytes: *bytes, bytes_max });
        }
        let count = self.encoded.records.len() as u64;
        let range = self.next..Position(self.next.0 + count);
        if count == 0 {
            return Ok(range);
        }
        let time = commit_time.max(self.time);
        let segment = self.segment_for(time)?;
        let frames = self.build_frames(&segment, time, &range);
        self.write_and_preallocate(&segment)?;
        self.sync(&segment)?;
        self.end += self.buffer.len() as u64;
        for record in units.iter().flat_map(AsRef::as_ref) {
            if let Record::EventErased { event, at, .. } = record {
                self.shared.erased.insert(*event, *at);
            }
        }
        segment.publish(&frames, self.end);
        if let Some(entry) = write(&self.shared.list).last_mut() {
            entry.bytes = self.end;
        }
        self.time = time;
        self.next = range.end;
        self.shared.last.store(range.end.0 - 1, Ordering::Release);
        Ok(range)
    }

    /// Encodes the units as frames into the buffer.
    fn build_frames(
        &mut self,
        segment: &Segment,
        time: Timestamp,
        range: &Range<Position>,
    ) -> Vec<(u64, FrameHeader)> {
        self.buffer.clear();
        self.buffer.shrink_to(2 * limits::COMMIT_BYTES_MAX);
        let commit = (range.start, Position(range.end.0 - 1));
        let mut frames = Vec::new();
        let mut builder = FrameBuilder::default();
        let mut position = range.start;
        let mut close = |builder: &mut FrameBuilder, buffer: &mut Vec<u8>| {
            let offset = self.end + buffer.len() as u64;
            frames.push((offset, builder.finish(segment.header.salt, time, commit, buffer)));
        };
        for (records, bytes) in &self.encoded.units {
            let grown = builder.body_bytes() + bytes;
            if !builder.is_empty() && grown > limits::FRAME_BYTES_MAX {
                close(&mut builder, &mut self.buffer);
            }
            for record in &self.encoded.records[records.clone()] {
                builder.push(position, &self.encoded.bytes[record.clone()]);
                position = position.next();
            }
            if builder.body_bytes() >= self.options.frame_bytes {
                close(&mut builder, &mut self.buffer);
            }
        }
        if !builder.is_empty() {
            close(&mut builder, &mut self.buffer);
        }
        assert_eq!(position, range.end, "each record must have a position");
        frames
    }

    /// Writes the buffer. Preallocates zeros behind the frames when the file has none left: a sync
    /// within the file size costs one disk write, and a sync that extends the file costs two or
    /// three (measured: 95 against 150 microseconds).
    fn write_and_preallocate(&mut self, segment: &Segment) -> Result<(), AppendError> {
        let frames = self.buffer.len();
        let end = self.end + frames as u64;
        if end > self.allocated_end {
            let most = self.options.segment_bytes.saturating_sub(end);
            let zeros = self.options.preallocation_bytes.min(usize::try_from(most).unwrap_or(usize::MAX));
            self.buffer.resize(frames + zeros, 0);
        }
        let mut written = self.write(segment);
        if matches!(written, Err(AppendError::DiskFull)) && self.buffer.len() > frames {
            // The frames without preallocation may still fit.
            self.buffer.truncate(frames);
            written = self.write(segment);
        }
        written?;
        self.allocated_end = self.allocated_end.max(self.end + self.buffer.len() as u64);
        self.buffer.truncate(frames);
        Ok(())
    }

    fn write(&mut self, segment: &Segment) -> Result<(), AppendError> {
        let Err(error) = segment.file.write_at(self.end, &self.buffer) else { return Ok(()) };
        if is_disk_full(&error) && self.truncate_preallocation(segment).is_ok() {
            self.refused_bytes = self.buffer.len();
            return Err(AppendError::DiskFull);
        }
        Err(self.poison(error))
    }

    /// Truncates the file to the end of its frames.
    fn truncate_preallocation(&mut self, segment: &Segment) -> io::Result<()> {
        segment.file.truncate(self.end)?;
        self.allocated_end = self.end;
        segment.file.sync_data()
    }

    fn sync(&mut self, segment: &Segment) -> Result<(), AppendError> {
        if crate::failpoints::is_active(crate::failpoints::Mutation::AnswerBeforeFlush) {
            return Ok(());
        }
        // ENOSPC from a sync is not treated as a full disk, because the file's content is then
        // unknown.
        segment.file.sync_data().map_err(|error| self.poison(error))
    }

    fn poison(&mut self, error: io::Error) -> AppendError {
        self.poisoned = true;
        AppendError::Io(error)
    }

    /// Returns the segment of the next append. A full segment keeps growing while no file
    /// descriptor is free.
    fn segment_for(&mut self, time: Timestamp) -> Result<Arc<Segment>, AppendError> {
        let Some(active) = self.active.clone() else { return self.start_next_segment(time) };
        if self.end < self.options.segment_bytes {
            return Ok(active);
        }
        self.trim_active_segment()?;
        let header = self.next_header(time);
        match self.create_segment_file(&header) {
            Err(error) if is_out_of_descriptors(&error) => Ok(active),
            made => self.activate_segment(header, made),
        }
    }

    /// Seals the active segment, so that it can be rewritten. The last segment cannot.
    pub(crate) fn seal(&mut self) -> Result<(), AppendError> {
        if self.poisoned {
            return Err(AppendError::Poisoned);
        }
        if self.active.is_some() && self.end > FILE_HEADER_BYTES as u64 {
            self.start_next_segment(self.time)?;
        }
        Ok(())
    }

    /// The record without the content of an erased event: an attempt may end after the erasure.
    #[must_use]
    pub(crate) fn without_erased_content(&self, record: &Record) -> Option<Record> {
        self.shared.erased.without_content(self.next, record)
    }

    /// Seals the active segment and starts a new one.
    fn start_next_segment(&mut self, time: Timestamp) -> Result<Arc<Segment>, AppendError> {
        self.trim_active_segment()?;
        let header = self.next_header(time);
        let made = self.create_segment_file(&header);
        self.activate_segment(header, made)
    }

    /// Removes the preallocated zeros: a sealed file ends with its last frame.
    fn trim_active_segment(&mut self) -> Result<(), AppendError> {
        match self.active.clone().filter(|_| self.allocated_end > self.end) {
            Some(active) => self.truncate_preallocation(&active).map_err(|error| self.poison(error)),
            None => Ok(()),
        }
    }

    fn next_header(&self, time: Timestamp) -> FileHeader {
        FileHeader { salt: self.options.salt, rewritten: false, first: self.next, time }
    }

    fn create_segment_file(&self, header: &FileHeader) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.shared.disk.create(&file_name(header.first))?;
        file.write_at(0, &header.encode())?;
        Ok(file)
    }

    /// Seals the active segment and activates the new file. Makes the file's name and header
    /// durable before any frame is written.
    fn activate_segment(
        &mut self,
        header: FileHeader,
        made: io::Result<Arc<dyn DiskFile>>,
    ) -> Result<Arc<Segment>, AppendError> {
        let name = file_name(header.first);
        let disk = Arc::clone(&self.shared.disk);
        let file = match made {
            Ok(file) => file,
            Err(error) if is_disk_full(&error) => {
                let removed = match disk.remove(&name) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                };
                return Err(removed.map_or_else(|error| self.poison(error), |()| AppendError::DiskFull));
            }
            Err(error) => return Err(self.poison(error)),
        };
        file.sync_data().and_then(|()| disk.sync_dir()).map_err(|error| self.poison(error))?;
        let end = FILE_HEADER_BYTES as u64;
        let segment =
            Arc::new(Segment::new(self.shared.next_id(), file, header, Vec::new(), end, Vec::new()));
        // Readers look at the list and the active segment, so both change together.
        let mut list = write(&self.shared.list);
        let mut active = write(&self.shared.active);
        if let (Some(sealed), Some(entry)) = (self.active.take(), list.last()) {
            sealed.seal(self.next);
            self.shared.keep_sealed(*entry, sealed);
        }
        list.push(SegmentEntry { first: header.first, time: header.time, bytes: end, version: 0 });
        *active = Some(Arc::clone(&segment));
        self.active = Some(Arc::clone(&segment));
        (self.end, self.allocated_end) = (end, end);
        Ok(segment)
    }
}

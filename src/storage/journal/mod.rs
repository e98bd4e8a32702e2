//! The journal: an append-only log of records, the only truth.
//!
//! Owns: the files `journal-<first position>.log`, their order and their durability. One owner writes
//! ([`Journal`]); anyone reads ([`JournalReader`]). Must never know what a record means, read a clock or start_next_segment dice.
//!
//! Invariants: positions rise densely as they are assigned and never change; an append returns only after its bytes
//! are synced, and readers see it only then; after a write or sync error nothing more is appended, because a sync that
//! failed once proves nothing when it succeeds later (a full disk is the exception: what was not synced is cut off
//! again). What is not whole at the end of the last file was never acknowledged and is cut at the next start. Damage
//! anywhere else costs the frame that it hit, and is reported.

mod cache;
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
pub use rewrite::{RewriteError, RewriteReport};

use crate::codec::varint_len;
use crate::domain::{Position, Record, Timestamp};
use crate::limits;
use crate::storage::disk::{DiskFile, is_disk_full, is_out_of_descriptors};
use crate::storage::format;
use frame::{FILE_HEADER_BYTES, FileHeader, FrameBuilder, FrameHeader};
use reader::{SegmentEntry, SegmentStore, write};
use segment::{Segment, file_name};

/// Longest varint delta in front of a record of an append.
const DELTA_BYTES: usize = 1;

#[derive(Clone, Copy, Debug)]
pub struct JournalOptions {
    /// A random number for files made from now on: keeps payload bytes from passing for frames.
    pub salt: u32,
    pub segment_bytes: u64,
    /// Zeros that are put behind the end at once.
    pub preallocation_bytes: usize,
    pub frame_bytes: usize,
    /// Bound of the blocks that readers keep, in bytes.
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

/// What kind of damage it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageCause {
    /// Both copies of a file's header.
    FileHeader,
    /// Bytes in which no frame can be found.
    Unreadable,
    /// A frame's body does not match its checksum or its header.
    Body,
    /// Frames that should be there are not.
    Missing,
}

/// A damaged location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// First position of the segment, as in its file name.
    pub segment: Position,
    /// Bytes of the file; empty where frames are missing.
    pub bytes: Range<u64>,
    /// First and last position lost (in a rewritten segment: at most these). `None` when no record is.
    pub positions: Option<(Position, Position)>,
    pub cause: DamageCause,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.positions {
            Some((first, last)) if first == last => write!(f, "position {first} is lost")?,
            Some((first, last)) => write!(f, "positions {first} to {last} are lost")?,
            None => f.write_str("no record is lost")?,
        }
        let cause = match self.cause {
            DamageCause::FileHeader => {
                "both copies of the file's header are damaged, or it is another file's"
            }
            DamageCause::Unreadable => "no frame can be found there",
            DamageCause::Body => "a frame does not match its checksum",
            DamageCause::Missing => "frames that have to be there are not",
        };
        let Range { start, end } = self.bytes;
        write!(f, " ({}, bytes {start} to {end}: {cause})", file_name(self.segment))
    }
}

/// Why an append was not made.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Nothing was appended; the journal remains usable.
    #[error("the disk is full")]
    DiskFull,
    /// Nothing was appended; the journal remains usable.
    #[error("a unit of {bytes} bytes does not fit a frame of {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    /// Whether it was appended is decided at the next start. The journal takes no more.
    #[error("the journal cannot be written: {0}")]
    Io(#[source] io::Error),
    #[error("the journal has failed before and must be opened again")]
    Poisoned,
}

/// The records of one append as bytes, one behind the other. A unit is appended all or none.
#[derive(Default)]
struct Encoded {
    bytes: Vec<u8>,
    records: Vec<Range<usize>>,
    /// Of each unit: its records, and the bytes that it takes in a frame's body, at most.
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

/// The single writer.
pub struct Journal {
    shared: Arc<SegmentStore>,
    options: JournalOptions,
    active: Option<Arc<Segment>>,
    /// End of what is durable in the active file.
    end: u64,
    /// Length of the active file: what lies behind the end are zeros, to be written over.
    allocated_end: u64,
    next: Position,
    /// Time of the last commit.
    time: Timestamp,
    poisoned: bool,
    /// Bytes that a full disk did not take the last time.
    refused_bytes: usize,
    encoded: Encoded,
    /// What is written next: frames, and room behind them.
    buffer: Vec<u8>,
}

impl Journal {
    #[must_use]
    pub fn reader(&self) -> JournalReader {
        JournalReader { shared: Arc::clone(&self.shared) }
    }

    /// Position that the next record will get.
    #[must_use]
    pub fn next_position(&self) -> Position {
        self.next
    }

    /// Time of the last commit: the next is never earlier.
    #[must_use]
    pub fn last_time(&self) -> Timestamp {
        self.time
    }

    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Notes that records up to `last`, once durable, are gone from the end: a new segment begins after them, so that no
    /// position is given twice.
    pub(crate) fn skip_lost_positions(&mut self, last: Position) -> Result<Damage, AppendError> {
        let first = self.next;
        self.next = last.next();
        let segment = self.start_next_segment(self.time)?.header.first;
        self.shared.last.store(last.0, Ordering::Release);
        Ok(Damage { segment, bytes: 0..0, positions: Some((first, last)), cause: DamageCause::Missing })
    }

    /// Whether a disk that was full takes again what it refused.
    #[must_use]
    pub fn has_space(&self) -> bool {
        open::has_space(&*self.shared.disk, self.refused_bytes.max(limits::FRAME_BYTES_TARGET))
    }

    /// Appends all units with one write and one sync; returns the first position and the one after the last. A unit
    /// lies in one frame, so that it survives whole or not at all. A commit time earlier than the last is raised to it.
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
        segment.publish(&frames, self.end);
        if let Some(entry) = write(&self.shared.list).last_mut() {
            entry.bytes = self.end;
        }
        self.time = time;
        self.next = range.end;
        self.shared.last.store(range.end.0 - 1, Ordering::Release);
        Ok(range)
    }

    /// Puts the units' frames into the buffer.
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
        assert_eq!(position, range.end, "every record has its position");
        frames
    }

    /// Writes the buffer, and room behind it when there is none left: to sync bytes that lie within a file takes one
    /// write to the disk, while a file that grows takes two or three (measured: 95 against 150 microseconds).
    fn write_and_preallocate(&mut self, segment: &Segment) -> Result<(), AppendError> {
        let frames = self.buffer.len();
        let end = self.end + frames as u64;
        if end > self.allocated_end {
            let most = self.options.segment_bytes.saturating_sub(end);
            let room = self.options.preallocation_bytes.min(usize::try_from(most).unwrap_or(usize::MAX));
            self.buffer.resize(frames + room, 0);
        }
        let mut written = self.write(segment);
        if matches!(written, Err(AppendError::DiskFull)) && self.buffer.len() > frames {
            // The frames alone may still fit.
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

    /// Cuts the file off where its frames end.
    fn truncate_preallocation(&mut self, segment: &Segment) -> io::Result<()> {
        segment.file.truncate(self.end)?;
        self.allocated_end = self.end;
        segment.file.sync_data()
    }

    fn sync(&mut self, segment: &Segment) -> Result<(), AppendError> {
        if crate::failpoints::is_active(crate::failpoints::Mutation::AnswerBeforeFlush) {
            return Ok(());
        }
        // A full disk that shows only here is no exception: what the file holds is unknown.
        segment.file.sync_data().map_err(|error| self.poison(error))
    }

    fn poison(&mut self, error: io::Error) -> AppendError {
        self.poisoned = true;
        AppendError::Io(error)
    }

    /// The segment that the next append goes to. One that has reached its target goes on growing while no further file
    /// can be opened.
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

    /// Seals the active segment and starts a new one.
    fn start_next_segment(&mut self, time: Timestamp) -> Result<Arc<Segment>, AppendError> {
        self.trim_active_segment()?;
        let header = self.next_header(time);
        let made = self.create_segment_file(&header);
        self.activate_segment(header, made)
    }

    /// A sealed file ends with its last frame.
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

    /// Seals the active segment and starts one in a file that was just made, durable in name and header before anything
    /// is put into it.
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
        // The list and the active segment change together, as readers look at both.
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

//! Writer of a segment with position gaps: a rewritten or a restored segment.
//!
//! Owns the grouping of records into frames, and the gap marker at the end. The caller syncs the
//! file.

use std::io;

use super::frame::{FILE_HEADER_BYTES, FileHeader, FrameBuilder, FrameHeader};
use super::segment::before;
use crate::domain::{Position, Timestamp};
use crate::failpoints::{self, Mutation};
use crate::limits;
use crate::storage::disk::DiskFile;

/// Size of the write buffer, in bytes.
const WRITE_BYTES: usize = 1024 * 1024;

pub(super) struct SparseSegmentWriter<'a> {
    file: &'a dyn DiskFile,
    salt: u32,
    builder: FrameBuilder,
    /// Commit time of the current frame. A frame has a single commit time, because searches by time
    /// depend on it.
    time: Timestamp,
    first: Position,
    /// Position after the last record.
    next: Position,
    buffer: Vec<u8>,
    written: u64,
}

impl<'a> SparseSegmentWriter<'a> {
    /// Starts a segment in an empty file.
    pub(super) fn new(file: &'a dyn DiskFile, header: FileHeader) -> io::Result<Self> {
        file.write_at(0, &header.encode())?;
        let (builder, buffer, written) = (FrameBuilder::default(), Vec::new(), FILE_HEADER_BYTES as u64);
        let FileHeader { salt, first, time, .. } = header;
        Ok(Self { file, salt, builder, time, first, next: first, buffer, written })
    }

    /// Appends a record. Positions must be ascending.
    pub(super) fn push(&mut self, position: Position, time: Timestamp, record: &[u8]) -> io::Result<()> {
        let full = self.builder.body_bytes() + record.len() > limits::FRAME_BYTES_TARGET;
        if time != self.time || full {
            self.close()?;
        }
        if self.builder.is_empty() {
            (self.time, self.first) = (time, position);
        }
        self.builder.push(position, record);
        self.next = position.next();
        Ok(())
    }

    /// Flushes the buffer. Adds a gap marker when positions before `upper`, where the next file
    /// begins, are missing. Returns the length of the file.
    pub(super) fn finish(&mut self, upper: Position) -> io::Result<u64> {
        self.close()?;
        if self.next < upper && !failpoints::is_active(Mutation::LeaveNoNote) {
            let marker = FrameHeader::gap_marker(self.next, before(upper), self.time, self.salt);
            self.buffer.extend_from_slice(&marker.encode(self.salt));
        }
        self.flush()?;
        Ok(self.written)
    }

    fn close(&mut self) -> io::Result<()> {
        if !self.builder.is_empty() {
            self.builder.finish(self.salt, self.time, (self.first, before(self.next)), &mut self.buffer);
        }
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(self.written, &self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

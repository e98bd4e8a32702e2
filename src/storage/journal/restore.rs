//! Writes a whole journal from records with given positions.

use std::io;
use std::sync::Arc;

use super::frame::FileHeader;
use super::segment::file_name;
use super::sparse::SparseSegmentWriter;
use crate::domain::{Position, Timestamp};
use crate::limits;
use crate::storage::disk::Disk;

/// Writes a journal into an empty directory. Nothing is durable before [`Restorer::finish`]
/// returns.
pub struct Restorer {
    disk: Arc<dyn Disk>,
    salt: u32,
    /// First position of the current file.
    first: Position,
    /// Records of the current file.
    records: Vec<(Position, Timestamp, Vec<u8>)>,
    bytes: u64,
    time: Timestamp,
}

impl Restorer {
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, salt: u32) -> Self {
        Self { disk, salt, first: Position(1), records: Vec::new(), bytes: 0, time: Timestamp::default() }
    }

    /// Adds a record. Positions must be ascending, and times must not decrease.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn push(&mut self, position: Position, time: Timestamp, record: Vec<u8>) -> io::Result<()> {
        self.bytes += record.len() as u64;
        self.time = time;
        self.records.push((position, time, record));
        if self.bytes >= limits::SEGMENT_BYTES_TARGET { self.seal(position.next()) } else { Ok(()) }
    }

    /// Writes the last file, and a new segment after `last`, so that no position up to `last` is
    /// assigned again.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn finish(mut self, last: Position) -> io::Result<()> {
        self.seal(last.next())?;
        let header = FileHeader { salt: self.salt, rewritten: false, first: last.next(), time: self.time };
        self.write(header, last.next())?;
        self.disk.sync_dir()
    }

    /// Writes the collected records as the file of the positions before `upper`.
    fn seal(&mut self, upper: Position) -> io::Result<()> {
        if self.first == upper {
            return Ok(());
        }
        let time = self.records.first().map_or(self.time, |(_, time, _)| *time);
        self.write(FileHeader { salt: self.salt, rewritten: true, first: self.first, time }, upper)
    }

    fn write(&mut self, header: FileHeader, upper: Position) -> io::Result<()> {
        let file = self.disk.create(&file_name(header.first))?;
        let mut sparse = SparseSegmentWriter::new(&*file, header)?;
        for (position, time, record) in self.records.drain(..) {
            sparse.push(position, time, &record)?;
        }
        sparse.finish(upper)?;
        (self.first, self.bytes) = (upper, 0);
        file.sync_data()
    }
}

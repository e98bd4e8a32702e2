//! The bytes of a journal file: file header, frames, and the search for frames in damaged bytes.
//!
//! Owns layout version 1 of the journal. Never writes to a disk. All integers are little-endian.
//! Each checksum is a CRC-32/IEEE that starts with the file's salt: bytes from an event's data
//! cannot pass as a frame when the scanner searches for the next frame after damage.
//!
//! File header, 64 bytes: the same 32 bytes twice, so that one damaged sector does not destroy the
//! salt.
//!
//! | bytes | |
//! |---|---|
//! | 0..4 | `BLTJ` |
//! | 4..8 | CRC of bytes 8..32, without salt (these bytes contain the salt) |
//! | 8..10 | format version, 1 |
//! | 10..12 | flags: 1 = rewritten, so positions may be missing between its frames |
//! | 12..16 | salt |
//! | 16..24 | first position that the file can hold |
//! | 24..32 | commit time of the commit that created the file, ms; no frame in it is earlier |
//!
//! Frame: a header of 64 bytes, then the body.
//!
//! | bytes | |
//! |---|---|
//! | 0..4 | `BLTF` |
//! | 4..8 | CRC of bytes 8..64 |
//! | 8..12 | body length |
//! | 12..16 | CRC of the body |
//! | 16..18 | format version, 1 |
//! | 18..20 | zero |
//! | 20..24 | record count; 0 in a gap marker |
//! | 24..32 | first position |
//! | 32..40 | last position |
//! | 40..48 | commit time, ms, never less than that of the frame before |
//! | 48..56 | first position of the frame's commit (one write and one fsync) |
//! | 56..64 | last position of that commit |
//!
//! The active file may have preallocated zeros after its last frame.
//!
//! Body: for each record a varint position delta (from the record before; 0 for the first), a
//! varint length, and the record.
//!
//! A gap marker is a frame without records: retention removed the positions that it names. A
//! rewritten file ends with a gap marker unless its last record is directly before the next file. A
//! truncated or missing file is therefore detected.

use std::io;
use std::ops::Range;

use crate::codec::{Reader, put_bytes, put_varint};
use crate::domain::{Position, Timestamp};
use crate::failpoints::{self, Mutation};
use crate::limits;
use crate::storage::disk::DiskFile;

pub(super) const FORMAT_VERSION: u16 = 1;
pub(super) const FILE_HEADER_BYTES: usize = 64;
pub(super) const FRAME_HEADER_BYTES: usize = 64;

const FILE_MAGIC: &[u8; 4] = b"BLTJ";
const FRAME_MAGIC: &[u8; 4] = b"BLTF";
const FLAG_REWRITTEN: u16 = 1;
/// Read size while searching for the next frame after damage.
const RESYNC_BYTES: usize = 1024 * 1024;
/// Read size while reading frame headers.
const WALK_BYTES: usize = 8 * 1024;

const _: () = assert!(RESYNC_BYTES > FRAME_HEADER_BYTES && WALK_BYTES > FRAME_HEADER_BYTES);
const _: () = assert!(limits::FRAME_BYTES_MAX < u32::MAX as usize);

/// Whether the bytes at `offset` match the beginning of a frame, as far as they exist.
pub(super) fn starts_with_frame_magic<R: ReadAt + ?Sized>(source: &R, offset: u64) -> io::Result<bool> {
    let mut bytes = [0; FRAME_MAGIC.len()];
    let count = source.read_at(offset, &mut bytes)?;
    Ok(count > 0 && FRAME_MAGIC.starts_with(&bytes[..count]))
}

fn checksum(salt: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(salt);
    hasher.update(bytes);
    hasher.finalize()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) salt: u32,
    pub(super) rewritten: bool,
    pub(super) first: Position,
    pub(super) time: Timestamp,
}

/// Result of reading a file header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FoundHeader {
    Ours(FileHeader),
    /// Both copies are damaged.
    Damaged,
    /// Intact, but written by a newer version.
    Newer(u16),
}

impl FileHeader {
    pub(super) fn encode(self) -> [u8; FILE_HEADER_BYTES] {
        let mut bytes = [0; FILE_HEADER_BYTES];
        bytes[0..4].copy_from_slice(FILE_MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&if self.rewritten { FLAG_REWRITTEN } else { 0 }.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.salt.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.time.millis().to_le_bytes());
        let crc = checksum(0, &bytes[8..32]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes.copy_within(0..32, 32);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> FoundHeader {
        for copy in bytes.chunks_exact(32).take(2) {
            if &copy[0..4] == FILE_MAGIC && u32_at(copy, 4) == checksum(0, &copy[8..32]) {
                let version = u16_at(copy, 8);
                if version != FORMAT_VERSION {
                    return FoundHeader::Newer(version);
                }
                return FoundHeader::Ours(Self {
                    salt: u32_at(copy, 12),
                    rewritten: u16_at(copy, 10) & FLAG_REWRITTEN != 0,
                    first: Position(u64_at(copy, 16)),
                    time: Timestamp::from_millis(u64_at(copy, 24)),
                });
            }
        }
        FoundHeader::Damaged
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) body_bytes: u32,
    pub(super) body_crc: u32,
    pub(super) count: u32,
    pub(super) first: Position,
    pub(super) last: Position,
    pub(super) time: Timestamp,
    pub(super) commit_first: Position,
    pub(super) commit_last: Position,
}

impl FrameHeader {
    /// Creates a gap marker for the removed positions `first` to `last`.
    pub(super) fn gap_marker(first: Position, last: Position, time: Timestamp, salt: u32) -> Self {
        Self {
            body_bytes: 0,
            body_crc: checksum(salt, &[]),
            count: 0,
            first,
            last,
            time,
            commit_first: first,
            commit_last: last,
        }
    }

    pub(super) fn is_gap_marker(&self) -> bool {
        self.count == 0
    }

    pub(super) fn frame_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + u64::from(self.body_bytes)
    }

    pub(super) fn encode(self, salt: u32) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[0..4].copy_from_slice(FRAME_MAGIC);
        bytes[8..12].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.body_crc.to_le_bytes());
        bytes[16..18].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.count.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.last.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.time.millis().to_le_bytes());
        bytes[48..56].copy_from_slice(&self.commit_first.0.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.commit_last.0.to_le_bytes());
        let crc = checksum(salt, &bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], salt: u32) -> Option<Self> {
        let valid = bytes.len() >= FRAME_HEADER_BYTES
            && &bytes[0..4] == FRAME_MAGIC
            && u32_at(bytes, 4) == checksum(salt, &bytes[8..FRAME_HEADER_BYTES])
            && u16_at(bytes, 16) == FORMAT_VERSION;
        let header = valid.then(|| Self {
            body_bytes: u32_at(bytes, 8),
            body_crc: u32_at(bytes, 12),
            count: u32_at(bytes, 20),
            first: Position(u64_at(bytes, 24)),
            last: Position(u64_at(bytes, 32)),
            time: Timestamp::from_millis(u64_at(bytes, 40)),
            commit_first: Position(u64_at(bytes, 48)),
            commit_last: Position(u64_at(bytes, 56)),
        })?;
        (header.is_gap_marker() == (header.body_bytes == 0) && header.first <= header.last).then_some(header)
    }
}

/// Collects records into the body of one frame.
#[derive(Default)]
pub(super) struct FrameBuilder {
    body: Vec<u8>,
    count: u32,
    first: Position,
    last: Position,
}

impl FrameBuilder {
    pub(super) fn push(&mut self, position: Position, record: &[u8]) {
        assert!(self.count == 0 || position > self.last, "positions of a frame must ascend");
        if self.count == 0 {
            self.first = position;
        }
        let before = if self.count == 0 { position } else { self.last };
        put_varint(&mut self.body, position.0 - before.0);
        put_bytes(&mut self.body, record);
        self.last = position;
        self.count += 1;
    }

    pub(super) fn body_bytes(&self) -> usize {
        self.body.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Appends the frame to `out` and starts a new one.
    pub(super) fn finish(
        &mut self,
        salt: u32,
        time: Timestamp,
        commit: (Position, Position),
        out: &mut Vec<u8>,
    ) -> FrameHeader {
        assert!(self.count > 0 && self.body.len() <= limits::FRAME_BYTES_MAX, "frame size out of bounds");
        let header = FrameHeader {
            body_bytes: self.body.len() as u32,
            body_crc: checksum(salt, &self.body),
            count: self.count,
            first: self.first,
            last: self.last,
            time,
            commit_first: commit.0,
            commit_last: commit.1,
        };
        out.extend_from_slice(&header.encode(salt));
        out.extend_from_slice(&self.body);
        self.body.clear();
        self.count = 0;
        header
    }
}

/// Returns the byte ranges of a body's records, or `None` if the body contradicts its header.
pub(super) fn record_ranges(header: &FrameHeader, body: &[u8]) -> Option<Vec<(Position, Range<usize>)>> {
    let mut reader = Reader::new(body);
    let mut ranges = Vec::with_capacity((header.count as usize).min(body.len()));
    let mut position = header.first.0;
    for index in 0..header.count {
        let delta = reader.get_varint().ok()?;
        if (delta == 0) != (index == 0) {
            return None;
        }
        position = position.checked_add(delta)?;
        let length = reader.get_bytes().ok()?.len();
        let end = body.len() - reader.left();
        ranges.push((Position(position), end - length..end));
    }
    (reader.is_empty() && position == header.last.0).then_some(ranges)
}

/// Bytes that can be read at any offset.
pub(super) trait ReadAt {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

impl ReadAt for dyn DiskFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        DiskFile::read_at(self, offset, buffer)
    }
}

/// A part of a file in memory.
pub(super) struct FileWindow<'a> {
    pub(super) start: u64,
    pub(super) bytes: &'a [u8],
}

impl ReadAt for FileWindow<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let from = offset.saturating_sub(self.start).min(self.bytes.len() as u64) as usize;
        let count = buffer.len().min(self.bytes.len() - from);
        buffer[..count].copy_from_slice(&self.bytes[from..from + count]);
        Ok(count)
    }
}

/// Depth of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScanDepth {
    /// Frame headers only.
    Headers,
    /// Frame headers and bodies.
    Bodies,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ScanItem {
    Frame {
        offset: u64,
        header: FrameHeader,
    },
    /// Bytes without a readable frame. `known` holds their positions if the frame header is valid.
    Damage {
        bytes: Range<u64>,
        known: Option<(Position, Position)>,
    },
}

/// Iterates over the frames of a byte range and skips damage.
pub(super) struct Scanner<'a, R: ReadAt + ?Sized> {
    source: &'a R,
    salt: u32,
    depth: ScanDepth,
    offset: u64,
    end: u64,
    /// Last position seen. A frame must begin above it.
    last: Position,
    window: Vec<u8>,
    window_start: u64,
    body: Vec<u8>,
}

impl<'a, R: ReadAt + ?Sized> Scanner<'a, R> {
    pub(super) fn new(source: &'a R, salt: u32, depth: ScanDepth, range: Range<u64>, last: Position) -> Self {
        let (window, body) = (Vec::new(), Vec::new());
        Self { source, salt, depth, offset: range.start, end: range.end, last, window, window_start: 0, body }
    }

    /// Body of the frame that [`Self::next`] returned last, with [`ScanDepth::Bodies`].
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    pub(super) fn next(&mut self) -> io::Result<Option<ScanItem>> {
        if self.offset >= self.end {
            return Ok(None);
        }
        let start = self.offset;
        let Some(header) = self.header_at(start)? else {
            self.offset = self.resync(start + 1)?;
            return Ok(Some(ScanItem::Damage { bytes: start..self.offset, known: None }));
        };
        self.offset = start + header.frame_bytes();
        self.last = header.last;
        if self.depth == ScanDepth::Bodies && !self.is_body_valid(start, &header)? {
            let known = Some((header.first, header.last));
            return Ok(Some(ScanItem::Damage { bytes: start..self.offset, known }));
        }
        Ok(Some(ScanItem::Frame { offset: start, header }))
    }

    /// Returns the header at `offset` if it is valid and its frame ends within the range.
    fn header_at(&mut self, offset: u64) -> io::Result<Option<FrameHeader>> {
        let needed = offset + FRAME_HEADER_BYTES as u64;
        if needed > self.end {
            return Ok(None);
        }
        let window_end = self.window_start + self.window.len() as u64;
        if offset < self.window_start || needed > window_end {
            self.window.resize(WALK_BYTES.min((self.end - offset) as usize), 0);
            self.window_start = offset;
            let count = self.source.read_at(offset, &mut self.window)?;
            self.window.truncate(count);
        }
        let from = (offset - self.window_start) as usize;
        let header = FrameHeader::decode(self.window.get(from..).unwrap_or_default(), self.salt);
        Ok(header.filter(|header| self.is_plausible(offset, header)))
    }

    fn is_plausible(&self, offset: u64, header: &FrameHeader) -> bool {
        header.first > self.last && offset + header.frame_bytes() <= self.end
    }

    fn is_body_valid(&mut self, offset: u64, header: &FrameHeader) -> io::Result<bool> {
        self.body.resize(header.body_bytes as usize, 0);
        let count = self.source.read_at(offset + FRAME_HEADER_BYTES as u64, &mut self.body)?;
        let is_valid = checksum(self.salt, &self.body) == header.body_crc;
        Ok(count == self.body.len() && (is_valid || failpoints::is_active(Mutation::IgnoreChecksums)))
    }

    /// Returns the offset of the next intact frame at or after `offset`, or the end.
    fn resync(&mut self, mut offset: u64) -> io::Result<u64> {
        let mut chunk = Vec::new();
        while offset + FRAME_HEADER_BYTES as u64 <= self.end {
            chunk.resize(RESYNC_BYTES.min((self.end - offset) as usize), 0);
            let count = self.source.read_at(offset, &mut chunk)?;
            if count < FRAME_HEADER_BYTES {
                break;
            }
            let starts = count - FRAME_HEADER_BYTES + 1;
            for from in 0..starts {
                if chunk[from] != FRAME_MAGIC[0] || !chunk[from..].starts_with(FRAME_MAGIC) {
                    continue;
                }
                let at = offset + from as u64;
                let header = FrameHeader::decode(&chunk[from..count], self.salt);
                if let Some(header) = header.filter(|header| self.is_plausible(at, header))
                    && self.is_body_valid(at, &header)?
                {
                    return Ok(at);
                }
            }
            offset += starts as u64;
        }
        Ok(self.end)
    }
}

//! One open journal file: its sparse index and its blocks of verified frames.
//!
//! Owns the search for a position in a file. Never writes. A block lies between two index entries.
//! It is read with one call, verified as a whole, and cached by the reader.

use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use super::frame::{
    FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader, FileWindow, FoundHeader, FrameHeader, ReadAt,
    ScanDepth, ScanItem, Scanner, record_ranges,
};
use super::{Damage, DamageCause};
use crate::domain::{Position, Timestamp};
use crate::limits;
use crate::storage::disk::DiskFile;

/// Distance between index entries, in bytes.
const INDEX_STEP_BYTES: u64 = limits::FRAME_BYTES_TARGET as u64;

pub(super) fn file_name(first: Position) -> String {
    format!("journal-{:020}.log", first.0)
}

pub(super) fn parse_file_name(name: &str) -> Option<Position> {
    let digits = name.strip_prefix("journal-")?.strip_suffix(".log")?;
    let plain = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok().map(Position))?
}

/// Reads the file header. A header whose first position differs from the file name counts as
/// damaged.
pub(super) fn read_file_header(file: &dyn DiskFile, first: Position) -> io::Result<FoundHeader> {
    let mut bytes = [0; FILE_HEADER_BYTES];
    let count = file.read_at(0, &mut bytes)?;
    Ok(match FileHeader::decode(&bytes[..count]) {
        FoundHeader::Ours(header) if header.first != first => FoundHeader::Damaged,
        found => found,
    })
}

/// The position before.
pub(super) fn before(position: Position) -> Position {
    Position(position.0.saturating_sub(1))
}

#[derive(Clone, Copy, Debug)]
pub(super) struct IndexEntry {
    pub(super) first: Position,
    pub(super) time: Timestamp,
    pub(super) offset: u64,
}

/// Damage and the frame before it. The frame shows whether the damage is a torn commit.
#[derive(Clone, Debug)]
pub(super) struct FoundDamage {
    pub(super) damage: Damage,
    pub(super) before: Option<FrameHeader>,
}

/// Result of a frame scan.
#[derive(Debug, Default)]
pub(super) struct FrameScan {
    pub(super) damage: Vec<FoundDamage>,
    pub(super) last_frame: Option<FrameHeader>,
    /// End of the last readable frame, or the start of the range.
    pub(super) end: u64,
    pub(super) frames: u64,
    pub(super) records: u64,
}

/// Range of a frame scan.
pub(super) struct ScanRange {
    pub(super) bytes: Range<u64>,
    /// First position that the range can hold.
    pub(super) first: Position,
    /// First position after the range, if known.
    pub(super) upper: Option<Position>,
}

/// Scans a range of frames and reports lost positions. Calls `on_frame` with offset, header and
/// (with [`ScanDepth::Bodies`]) body.
pub(super) fn scan_frames<R: ReadAt + ?Sized>(
    source: &R,
    header: &FileHeader,
    depth: ScanDepth,
    span: ScanRange,
    on_frame: &mut dyn FnMut(u64, &FrameHeader, &[u8]),
) -> io::Result<FrameScan> {
    let mut scanner = Scanner::new(source, header.salt, depth, span.bytes.clone(), before(span.first));
    let mut scan = FrameScan { end: span.bytes.start, ..FrameScan::default() };
    let mut expected = span.first;
    let mut pending: Option<Range<u64>> = None;
    let lost = |bytes: Range<u64>, first: Position, last: Position, cause| Damage {
        segment: header.first,
        bytes,
        positions: (first <= last).then_some((first, last)),
        cause,
    };
    while let Some(item) = scanner.next()? {
        let (first, last, offset, known) = match &item {
            ScanItem::Damage { bytes, known: None } => {
                let start = pending.as_ref().map_or(bytes.start, |pending| pending.start);
                pending = Some(start..bytes.end);
                continue;
            }
            ScanItem::Damage { bytes, known: Some((first, last)) } => {
                (*first, *last, bytes.start, Some(bytes.clone()))
            }
            ScanItem::Frame { offset, header } => (header.first, header.last, *offset, None),
        };
        let found = match pending.take() {
            Some(bytes) => Some(lost(bytes, expected, before(first), DamageCause::Unreadable)),
            None if first > expected && !header.rewritten => {
                Some(lost(offset..offset, expected, before(first), DamageCause::Missing))
            }
            None => None,
        };
        let bad_body = known.map(|bytes| lost(bytes, first, last, DamageCause::Body));
        for damage in found.into_iter().chain(bad_body) {
            scan.damage.push(FoundDamage { damage, before: scan.last_frame });
        }
        expected = last.next();
        if let ScanItem::Frame { offset, header } = item {
            if !header.is_gap_marker() {
                on_frame(offset, &header, scanner.body());
            }
            scan.end = offset + header.frame_bytes();
            scan.last_frame = Some(header);
            scan.frames += 1;
            scan.records += u64::from(header.count);
        }
    }
    let last = span.upper.map_or(expected, before);
    let end = span.bytes.end;
    let tail = match pending {
        Some(bytes) => Some(lost(bytes, expected, last, DamageCause::Unreadable)),
        None if span.upper.is_some() && last >= expected => {
            Some(lost(end..end, expected, last, DamageCause::Missing))
        }
        None => None,
    };
    scan.damage.extend(tail.map(|damage| FoundDamage { damage, before: scan.last_frame }));
    Ok(scan)
}

/// Adds an index entry if the last one is at least one index step away.
pub(super) fn index_frame(index: &mut Vec<IndexEntry>, offset: u64, header: &FrameHeader) {
    if index.last().is_none_or(|entry| offset - entry.offset >= INDEX_STEP_BYTES) {
        index.push(IndexEntry { first: header.first, time: header.time, offset });
    }
}

struct Extent {
    index: Vec<IndexEntry>,
    end: u64,
    upper: Option<Position>,
}

/// An open file with its index. The active segment grows; a sealed segment does not change.
pub(super) struct Segment {
    /// Unique for each opened file; a rewritten file gets a new id.
    pub(super) id: u64,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) header: FileHeader,
    pub(super) damage: Vec<Damage>,
    extent: RwLock<Extent>,
}

/// Location of a block.
#[derive(Clone, Debug)]
pub(super) struct BlockLocation {
    pub(super) bytes: Range<u64>,
    pub(super) first: Position,
    /// First position after the block, if any.
    pub(super) upper: Option<Position>,
    pub(super) is_last: bool,
}

#[derive(Clone, Debug)]
pub(super) struct BlockRecord {
    pub(super) position: Position,
    pub(super) time: Timestamp,
    range: Range<usize>,
}

/// A run of adjacent verified frames.
pub(super) struct Block {
    bytes: Vec<u8>,
    pub(super) end: u64,
    pub(super) records: Vec<BlockRecord>,
    pub(super) damage: Vec<Damage>,
}

impl Block {
    pub(super) fn weight(&self) -> usize {
        self.bytes.len() + self.records.len() * size_of::<BlockRecord>() + 256
    }

    pub(super) fn record_bytes(&self, record: &BlockRecord) -> &[u8] {
        &self.bytes[record.range.clone()]
    }
}

impl Segment {
    pub(super) fn new(
        id: u64,
        file: Arc<dyn DiskFile>,
        header: FileHeader,
        index: Vec<IndexEntry>,
        end: u64,
        damage: Vec<Damage>,
    ) -> Self {
        let extent = RwLock::new(Extent { index, end, upper: None });
        Self { id, file, header, damage, extent }
    }

    /// Opens a sealed file and builds its index from the frame headers.
    pub(super) fn load(
        id: u64,
        file: Arc<dyn DiskFile>,
        header: FileHeader,
        upper: Option<Position>,
    ) -> io::Result<Self> {
        let mut index = Vec::new();
        let end = file.len()?;
        let span = ScanRange { bytes: FILE_HEADER_BYTES as u64..end, first: header.first, upper };
        let scan = scan_frames(&*file, &header, ScanDepth::Headers, span, &mut |offset, frame, _| {
            index_frame(&mut index, offset, frame);
        })?;
        let damage = scan.damage.into_iter().map(|seen| seen.damage).collect();
        let extent = RwLock::new(Extent { index, end: scan.end, upper });
        Ok(Self { id, file, header, damage, extent })
    }

    /// Makes durable frames visible to readers.
    pub(super) fn publish(&self, frames: &[(u64, FrameHeader)], end: u64) {
        let mut extent = self.extent.write().unwrap_or_else(PoisonError::into_inner);
        for (offset, header) in frames {
            index_frame(&mut extent.index, *offset, header);
        }
        extent.end = end;
    }

    /// Marks the segment as complete.
    pub(super) fn seal(&self, upper: Position) {
        self.extent.write().unwrap_or_else(PoisonError::into_inner).upper = Some(upper);
    }

    /// Returns the block for the position: the last block that begins at or before it, or the first
    /// block.
    pub(super) fn locate_block(&self, position: Position) -> Option<BlockLocation> {
        let extent = self.extent.read().unwrap_or_else(PoisonError::into_inner);
        let number = extent.index.partition_point(|entry| entry.first <= position).saturating_sub(1);
        let entry = extent.index.get(number)?;
        let next = extent.index.get(number + 1);
        Some(BlockLocation {
            bytes: entry.offset..next.map_or(extent.end, |next| next.offset),
            first: entry.first,
            upper: next.map_or(extent.upper, |next| Some(next.first)),
            is_last: next.is_none(),
        })
    }

    /// Position at which a search for a commit time starts.
    pub(super) fn search_start(&self, time: Timestamp) -> Position {
        let extent = self.extent.read().unwrap_or_else(PoisonError::into_inner);
        let number = extent.index.partition_point(|entry| entry.time < time).saturating_sub(1);
        extent.index.get(number).map_or(self.header.first, |entry| entry.first)
    }

    pub(super) fn read_block(&self, location: &BlockLocation) -> io::Result<Block> {
        let mut bytes = vec![0; (location.bytes.end - location.bytes.start) as usize];
        let count = self.file.read_at(location.bytes.start, &mut bytes)?;
        bytes.truncate(count);
        let window = FileWindow { start: location.bytes.start, bytes: &bytes };
        let span = ScanRange { bytes: location.bytes.clone(), first: location.first, upper: location.upper };
        let mut records = Vec::new();
        let mut contradictions = Vec::new();
        let scan =
            scan_frames(&window, &self.header, ScanDepth::Bodies, span, &mut |offset, header, body| {
                let Some(ranges) = record_ranges(header, body) else {
                    contradictions.push(Damage {
                        segment: self.header.first,
                        bytes: offset..offset + header.frame_bytes(),
                        positions: Some((header.first, header.last)),
                        cause: DamageCause::Body,
                    });
                    return;
                };
                let base = (offset - location.bytes.start) as usize + FRAME_HEADER_BYTES;
                records.extend(ranges.into_iter().map(|(position, range)| BlockRecord {
                    position,
                    time: header.time,
                    range: base + range.start..base + range.end,
                }));
            })?;
        let damage = scan.damage.into_iter().map(|seen| seen.damage).chain(contradictions).collect();
        Ok(Block { bytes, end: location.bytes.end, records, damage })
    }
}

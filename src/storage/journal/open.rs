//! Opening and verification of a journal.
//!
//! Owns the recovery after a crash or disk damage. Reads the whole last file, and only the headers
//! of sealed files. Never drops an intact frame of an earlier commit.

use std::io;
use std::sync::Arc;

use super::frame::{
    FILE_HEADER_BYTES, FileHeader, FoundHeader, FrameHeader, ScanDepth, starts_with_frame_magic,
};
use super::reader::{SegmentEntry, SegmentStore, missing_between, write};
use super::segment::{
    FoundDamage, FrameScan, IndexEntry, ScanRange, Segment, before, file_name, index_frame, parse_file_name,
    read_file_header, scan_frames,
};
use super::{Damage, DamageCause, Encoded, Journal, JournalOptions};
use crate::domain::{Position, Timestamp};
use crate::failpoints::{self, Mutation};
use crate::limits;
use crate::storage::disk::{Disk, DiskFile};
use crate::storage::progress::{OnProgress, WorkProgress};

/// Suffix of an unfinished rewrite's file.
pub(super) const TEMPORARY_SUFFIX: &str = ".rewrite";

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("cannot open the journal: {0}")]
    Io(#[from] io::Error),
    #[error(
        "segment {segment} has format {found}, this version supports format {known}; use a newer version"
    )]
    NewerFormat { segment: Position, found: u16, known: u16 },
}

/// Result of opening a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    pub segments: usize,
    /// Zero when the journal is empty.
    pub last: Position,
    /// Bytes of an incomplete commit at the end of the last file. They are truncated.
    pub torn_bytes: u64,
    pub damage: Vec<Damage>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    pub segments: usize,
    pub frames: u64,
    pub records: u64,
    pub bytes: u64,
    /// As [`OpenReport::torn_bytes`]. Verification does not truncate them.
    pub torn_bytes: u64,
    pub damage: Vec<Damage>,
}

/// The last file, with its scan.
struct Tail {
    file: Arc<dyn DiskFile>,
    header: FileHeader,
    index: Vec<IndexEntry>,
    scan: FrameScan,
    valid_end: u64,
    /// Length without preallocated zeros.
    length: u64,
    /// Length with preallocated zeros.
    allocated_end: u64,
}

fn segment_positions(disk: &dyn Disk) -> Result<Vec<Position>, JournalError> {
    let mut firsts: Vec<_> = disk.list()?.iter().filter_map(|name| parse_file_name(name)).collect();
    firsts.sort_unstable();
    Ok(firsts)
}

fn read_known_header(file: &dyn DiskFile, segment: Position) -> Result<Option<FileHeader>, JournalError> {
    match read_file_header(file, segment)? {
        FoundHeader::Ours(header) => Ok(Some(header)),
        FoundHeader::Damaged => Ok(None),
        FoundHeader::Newer(found) => {
            Err(JournalError::NewerFormat { segment, found, known: super::frame::FORMAT_VERSION })
        }
    }
}

/// Upper bound of the positions in an unreadable last file. Each record takes more than one byte,
/// so no position from here on was assigned.
fn position_bound(first: Position, bytes: u64) -> Position {
    Position(first.0 + bytes)
}

fn file_header_damage(segment: Position, bytes: u64, upper: Option<Position>) -> Damage {
    let positions = upper.map(|upper| (segment, before(upper)));
    Damage { segment, bytes: 0..bytes, positions, cause: DamageCause::FileHeader }
}

/// Returns the offset at which the last file is truncated.
///
/// * Bytes after the last intact frame are torn.
/// * Damage within the last commit is torn as well: the pages of a commit reach the disk in any
///   order, and an incomplete commit was never acknowledged.
/// * Damage in a complete last commit is real damage if another frame begins after it: a later
///   write proves that the commit was synced. Other bytes after it prove nothing, because they may
///   be preallocated bytes of the same write.
fn valid_end(scan: &FrameScan, frame_begins: bool) -> u64 {
    let Some(last) = scan.last_frame else { return scan.end };
    let complete = last.last == last.commit_last;
    let in_last_commit = |seen: &&FoundDamage| {
        let touches = |frame: FrameHeader| {
            frame.commit_first == last.commit_first || frame.last.next() >= last.commit_first
        };
        seen.damage.bytes.start < scan.end
            && seen.damage.cause != DamageCause::Missing
            && seen.before.map_or(last.commit_first == seen.damage.segment, touches)
    };
    match scan.damage.iter().find(in_last_commit) {
        Some(seen) if !(frame_begins && complete) => seen.damage.bytes.start,
        _ => scan.end,
    }
}

/// Whether the file has only zeros from `offset` on: unused preallocation.
fn is_zero_from(file: &dyn DiskFile, mut offset: u64) -> io::Result<bool> {
    let mut bytes = vec![0; limits::FRAME_BYTES_TARGET];
    loop {
        let count = file.read_at(offset, &mut bytes)?;
        if count == 0 {
            return Ok(true);
        }
        if bytes[..count].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        offset += count as u64;
    }
}

fn scan_tail(file: Arc<dyn DiskFile>, header: FileHeader) -> Result<Tail, JournalError> {
    let allocated_end = file.len()?;
    let scan_until = |end: u64| {
        let mut index = Vec::new();
        let span = ScanRange { bytes: FILE_HEADER_BYTES as u64..end, first: header.first, upper: None };
        scan_frames(&*file, &header, ScanDepth::Bodies, span, &mut |offset, frame, _| {
            index_frame(&mut index, offset, frame);
        })
        .map(|scan| (scan, index))
    };
    let (found, mut index) = scan_until(allocated_end)?;
    let length = if is_zero_from(&*file, found.end)? { found.end } else { allocated_end };
    let valid_end = valid_end(&found, starts_with_frame_magic(&*file, found.end)?);
    let mut scan = found;
    if valid_end < scan.end {
        (scan, index) = scan_until(valid_end)?;
    }
    scan.damage.retain(|seen| seen.damage.bytes.start < valid_end);
    Ok(Tail { file, header, index, scan, valid_end, length, allocated_end })
}

impl Journal {
    /// Opens the journal of a directory, or creates an empty one. The caller ensures that no other
    /// process uses the directory.
    pub fn open(disk: Arc<dyn Disk>, options: JournalOptions) -> Result<(Self, OpenReport), JournalError> {
        for name in disk.list()?.iter().filter(|name| name.ends_with(TEMPORARY_SUFFIX)) {
            disk.remove(name)?;
        }
        let mut firsts = segment_positions(&*disk)?;
        let mut report = OpenReport::default();
        let mut next = Position(1);
        let mut time = Timestamp::default();
        let mut entries = Vec::new();
        let mut tail = None;
        while let Some(first) = firsts.pop() {
            next = next.max(first);
            let file = disk.open_write(&file_name(first))?;
            let bytes = file.len()?;
            // A file shorter than its header was never completed, even if the first header copy is
            // readable. Later appends would lie where no reader looks.
            let header = read_known_header(&*file, first)?.filter(|_| bytes >= FILE_HEADER_BYTES as u64);
            if let Some(header) = header {
                let scanned = scan_tail(file, header)?;
                time = scanned.scan.last_frame.map_or(header.time, |frame| frame.time.max(header.time));
                let after = |last: Position| {
                    if failpoints::is_active(Mutation::GivePositionTwice) { last } else { last.next() }
                };
                next = next.max(scanned.scan.last_frame.map_or(first, |frame| after(frame.last)));
                entries.push(SegmentEntry { first, time: header.time, bytes: scanned.valid_end, version: 0 });
                tail = Some(scanned);
                break;
            }
            if bytes > FILE_HEADER_BYTES as u64 {
                next = next.max(position_bound(first, bytes));
                report.damage.push(file_header_damage(first, bytes, Some(next)));
                entries.push(SegmentEntry { first, time: Timestamp::default(), bytes, version: 0 });
                break;
            }
            // A crash interrupted the creation of this file. It holds no frame.
            disk.remove(&file_name(first))?;
            report.torn_bytes += bytes;
        }
        let mut upper = entries.first().map(|entry| entry.first);
        for first in firsts.into_iter().rev() {
            let (entry, damage) = sealed_entry(&*disk, first, upper)?;
            report.damage.extend(damage);
            time = time.max(entry.time);
            entries.push(entry);
            upper = Some(first);
        }
        entries.reverse();
        report.damage.extend(entries.first().and_then(|entry| missing_between(entry.first, Position(1))));
        fill_unknown_times(&mut entries);
        report.segments = entries.len();
        report.last = before(next);
        disk.sync_dir()?;
        let shared = Arc::new(SegmentStore::new(disk, entries, before(next), options.cache_bytes));
        let mut journal = Self {
            shared,
            options,
            active: None,
            end: 0,
            allocated_end: 0,
            next,
            time,
            poisoned: false,
            refused_bytes: 0,
            encoded: Encoded::default(),
            buffer: Vec::new(),
        };
        if let Some(tail) = tail {
            journal.adopt_tail(tail, &mut report)?;
        }
        report.damage.sort_by_key(|damage| (damage.segment, damage.bytes.start));
        Ok((journal, report))
    }

    /// Continues in the last file if it is undamaged. After damage, the next append starts a new
    /// file: appended bytes could change how the damage is read. For example, a frame with a
    /// missing end would swallow them.
    fn adopt_tail(&mut self, tail: Tail, report: &mut OpenReport) -> Result<(), JournalError> {
        let damage: Vec<_> = tail.scan.damage.into_iter().map(|seen| seen.damage).collect();
        self.allocated_end = tail.allocated_end;
        let valid_end =
            if failpoints::is_active(Mutation::KeepTornTail) { tail.length } else { tail.valid_end };
        if tail.length > valid_end || !damage.is_empty() {
            tail.file.truncate(valid_end)?;
            self.allocated_end = valid_end;
            report.torn_bytes += tail.length - valid_end;
        }
        // The bytes may be in the page cache only. They must be durable before anything depends on
        // them.
        tail.file.sync_data()?;
        report.damage.extend(damage.iter().cloned());
        if !damage.is_empty() {
            return Ok(());
        }
        let id = self.shared.next_id();
        let segment = Arc::new(Segment::new(id, tail.file, tail.header, tail.index, valid_end, damage));
        *write(&self.shared.active) = Some(Arc::clone(&segment));
        self.active = Some(segment);
        self.end = valid_end;
        Ok(())
    }
}

fn sealed_entry(
    disk: &dyn Disk,
    first: Position,
    upper: Option<Position>,
) -> Result<(SegmentEntry, Option<Damage>), JournalError> {
    let file = disk.open_read(&file_name(first))?;
    let bytes = file.len()?;
    let header = read_known_header(&*file, first)?;
    let damage = header.is_none().then(|| file_header_damage(first, bytes, upper));
    let time = header.map(|header| header.time).unwrap_or_default();
    Ok((SegmentEntry { first, time, bytes, version: 0 }, damage))
}

/// Searches by time need ascending times. A file with a lost header takes the time of the file
/// before it.
fn fill_unknown_times(entries: &mut [SegmentEntry]) {
    let mut time = Timestamp::default();
    for entry in entries {
        entry.time = entry.time.max(time);
        time = entry.time;
    }
}

/// Whether the disk has space for this many bytes. Writes and removes a probe file.
pub(super) fn has_space(disk: &dyn Disk, bytes: usize) -> bool {
    let name = format!("probe{TEMPORARY_SUFFIX}");
    let written = disk.create(&name).and_then(|file| {
        file.write_at(0, &vec![0; bytes])?;
        file.sync_data()
    });
    let removed = disk.remove(&name);
    written.and(removed).is_ok()
}

/// Reads every byte of the journal and lists the damage. Changes nothing. Not for a journal that is
/// being written.
pub fn verify(disk: &dyn Disk, progress: OnProgress<'_>) -> Result<VerifyReport, JournalError> {
    let firsts = segment_positions(disk)?;
    let mut report = VerifyReport { segments: firsts.len(), ..VerifyReport::default() };
    let lengths: Result<Vec<u64>, _> =
        firsts.iter().map(|first| disk.open_read(&file_name(*first))?.len()).collect();
    let all = lengths?.iter().sum();
    report.damage.extend(firsts.first().and_then(|first| missing_between(*first, Position(1))));
    for (number, first) in firsts.iter().enumerate() {
        let upper = firsts.get(number + 1).copied();
        let file = disk.open_read(&file_name(*first))?;
        let bytes = file.len()?;
        report.bytes += bytes;
        progress(WorkProgress { done: report.bytes, total: all });
        let header = read_known_header(&*file, *first)?.filter(|_| bytes >= FILE_HEADER_BYTES as u64);
        let Some(header) = header else {
            if upper.is_none() && bytes <= FILE_HEADER_BYTES as u64 {
                report.torn_bytes += bytes;
            } else {
                let upper = upper.unwrap_or_else(|| position_bound(*first, bytes));
                report.damage.push(file_header_damage(*first, bytes, Some(upper)));
            }
            continue;
        };
        let scan = if upper.is_none() {
            let tail = scan_tail(file, header)?;
            report.torn_bytes += tail.length - tail.valid_end;
            tail.scan
        } else {
            let span = ScanRange { bytes: FILE_HEADER_BYTES as u64..bytes, first: *first, upper };
            scan_frames(&*file, &header, ScanDepth::Bodies, span, &mut |_, _, _| {})?
        };
        report.frames += scan.frames;
        report.records += scan.records;
        report.damage.extend(scan.damage.into_iter().map(|seen| seen.damage));
    }
    Ok(report)
}

//! Reading of the journal, concurrently with the writer.
//!
//! Owns the list of files, and the caches of indexes and blocks. Never shows a record before it is
//! durable: after its sync, the writer publishes the end of the file first and the last position
//! second.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use super::cache::LruCache;
use super::erased::ErasedEvents;
use super::frame::FoundHeader;
use super::segment::{Block, BlockLocation, BlockRecord, Segment, before, file_name, read_file_header};
use super::{Damage, DamageCause};
use crate::domain::{Position, Record, Timestamp};
use crate::storage::disk::Disk;
use crate::storage::format::{self, CodecError};

/// Maximum number of sealed segments with an open file and an index in memory.
const SEALED_OPEN_MAX: usize = 64;

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("positions {first} to {last} are damaged")]
    Damaged { first: Position, last: Position },
    #[error("cannot decode record {position}: {source}")]
    Undecodable { position: Position, source: CodecError },
    #[error("cannot read the journal: {0}")]
    Io(#[from] io::Error),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct SegmentEntry {
    pub(super) first: Position,
    pub(super) time: Timestamp,
    pub(super) bytes: u64,
    /// Number of rewrites: keeps the caches from mixing two files with the same name.
    pub(super) version: u64,
}

/// A segment and the first position of the next one.
type LocatedSegment = (Arc<Segment>, Option<Position>);

pub(super) struct SegmentStore {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) list: RwLock<Vec<SegmentEntry>>,
    pub(super) active: RwLock<Option<Arc<Segment>>>,
    sealed: Mutex<LruCache<(Position, u64), Arc<Segment>>>,
    blocks: Mutex<LruCache<(u64, u64), Arc<Block>>>,
    pub(super) last: AtomicU64,
    ids: AtomicU64,
    pub(super) rewrite_hold: Mutex<Option<Instant>>,
    pub(super) erased: ErasedEvents,
}

// Each change under these locks is a single step, so a panic of another thread leaves them
// consistent.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl SegmentStore {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        list: Vec<SegmentEntry>,
        last: Position,
        cache_bytes: usize,
    ) -> Self {
        Self {
            disk,
            list: RwLock::new(list),
            active: RwLock::new(None),
            sealed: Mutex::new(LruCache::new(SEALED_OPEN_MAX)),
            blocks: Mutex::new(LruCache::new(cache_bytes)),
            last: AtomicU64::new(last.0),
            ids: AtomicU64::new(0),
            rewrite_hold: Mutex::new(None),
            erased: ErasedEvents::default(),
        }
    }

    pub(super) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn keep_sealed(&self, entry: SegmentEntry, segment: Arc<Segment>) {
        lock(&self.sealed).insert((entry.first, entry.version), 1, segment);
    }

    /// Drops the cached content of a file that was replaced.
    pub(super) fn forget_file(&self, replaced: SegmentEntry) {
        let key = (replaced.first, replaced.version);
        let mut sealed = lock(&self.sealed);
        let id = sealed.get(key).map(|segment| segment.id);
        sealed.remove_where(|other| *other == key);
        drop(sealed);
        if let Some(id) = id {
            lock(&self.blocks).remove_where(|(segment, _)| *segment == id);
        }
    }

    /// Decodes a record as it is in the file.
    fn decode_stored(block: &Block, record: &BlockRecord) -> Result<Record, ReadError> {
        format::decode(block.record_bytes(record))
            .map_err(|source| ReadError::Undecodable { position: record.position, source })
    }

    /// Decodes a record, without the content of an erased event.
    fn decode(&self, block: &Block, record: &BlockRecord) -> Result<Record, ReadError> {
        let found = Self::decode_stored(block, record)?;
        Ok(self.erased.without_content(record.position, &found).unwrap_or(found))
    }

    /// The bytes of a record, without the content of an erased event. A record that cannot be
    /// decoded stays as it is.
    fn encoded(&self, block: &Block, record: &BlockRecord) -> Vec<u8> {
        let bytes = block.record_bytes(record);
        let found = if self.erased.is_empty() { None } else { format::decode(bytes).ok() };
        match found.and_then(|found| self.erased.without_content(record.position, &found)) {
            Some(erased) => {
                let mut encoded = Vec::new();
                format::encode(&erased, &mut encoded);
                encoded
            }
            None => bytes.to_vec(),
        }
    }

    /// Returns the entry for the position (or the first entry), and the first position of the next
    /// entry.
    fn find(&self, position: Position) -> Option<(SegmentEntry, Option<Position>)> {
        let list = read(&self.list);
        let number = list.partition_point(|entry| entry.first <= position).saturating_sub(1);
        let entry = *list.get(number)?;
        Some((entry, list.get(number + 1).map(|next| next.first)))
    }

    pub(super) fn open(
        &self,
        entry: SegmentEntry,
        upper: Option<Position>,
    ) -> Result<Arc<Segment>, ReadError> {
        if let Some(active) = read(&self.active).as_ref().filter(|active| active.header.first == entry.first)
        {
            return Ok(Arc::clone(active));
        }
        let key = (entry.first, entry.version);
        if let Some(segment) = lock(&self.sealed).get(key) {
            return Ok(segment);
        }
        let file = self.disk.open_read(&file_name(entry.first))?;
        let FoundHeader::Ours(header) = read_file_header(&*file, entry.first)? else {
            let last = upper.map_or(entry.first, before);
            return Err(ReadError::Damaged { first: entry.first, last });
        };
        let segment = Arc::new(Segment::load(self.next_id(), file, header, upper)?);
        lock(&self.sealed).insert(key, 1, Arc::clone(&segment));
        Ok(segment)
    }

    /// Finds and opens the segment of a position. Repeats when a rewrite removed the file in
    /// between.
    fn open_at(&self, position: Position) -> Result<Option<LocatedSegment>, ReadError> {
        loop {
            let Some((entry, upper)) = self.find(position) else { return Ok(None) };
            match self.open(entry, upper) {
                Ok(segment) => return Ok(Some((segment, upper))),
                Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                    let now = self.find(position).map(|(now, _)| (now.first, now.version));
                    if now == Some((entry.first, entry.version)) {
                        return Err(ReadError::Io(error));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn block(
        &self,
        segment: &Segment,
        location: &BlockLocation,
        keep: bool,
    ) -> Result<Arc<Block>, ReadError> {
        let key = (segment.id, location.bytes.start);
        let kept = lock(&self.blocks).get(key);
        // The last block of the active segment grows.
        if let Some(block) = kept.filter(|block| block.end == location.bytes.end) {
            return Ok(block);
        }
        let block = Arc::new(segment.read_block(location)?);
        if keep {
            lock(&self.blocks).insert(key, block.weight(), Arc::clone(&block));
        }
        Ok(block)
    }
}

/// One step of a read in position order.
struct ReadStep {
    block: Option<Arc<Block>>,
    damage: Vec<Damage>,
    /// Position of the next step.
    next: Position,
}

/// An encoded record of the journal.
pub struct RawRecord {
    pub position: Position,
    /// Commit time.
    pub time: Timestamp,
    pub bytes: Vec<u8>,
}

/// See [`JournalReader::raw_from`].
pub struct RawBatch {
    pub records: Vec<RawRecord>,
    /// First and last positions of each damaged range.
    pub damaged: Vec<(Position, Position)>,
    /// Position of the next step.
    pub next: Position,
}

/// Reads records by position or in order. Cheap to clone. Any thread can use it while the writer
/// appends.
#[derive(Clone)]
pub struct JournalReader {
    pub(super) shared: Arc<SegmentStore>,
}

impl JournalReader {
    /// Returns the record at a position. Returns `None` if it does not exist yet, or was removed.
    pub fn read(&self, position: Position) -> Result<Option<Record>, ReadError> {
        match self.locate(position)? {
            Some((block, at)) => self.shared.decode(&block, &block.records[at]).map(Some),
            None => Ok(None),
        }
    }

    /// Reads the records at these positions, in their order, until `visit` ends it. Positions that
    /// follow each other in one block cost one look at the caches.
    pub fn read_each(
        &self,
        positions: impl Iterator<Item = Position>,
        visit: &mut dyn FnMut(Position, Result<Option<Record>, ReadError>) -> ControlFlow<()>,
    ) {
        let mut last: Option<Arc<Block>> = None;
        for position in positions {
            let in_last = last.take().and_then(|block| {
                let at = block.records.binary_search_by_key(&position, |record| record.position).ok()?;
                Some((block, at))
            });
            let located = match in_last {
                Some(found) => Ok(Some(found)),
                None => self.locate(position),
            };
            let record = located.and_then(|found| match found {
                Some((block, at)) => {
                    let record = self.shared.decode(&block, &block.records[at]);
                    last = Some(block);
                    record.map(Some)
                }
                None => Ok(None),
            });
            if visit(position, record).is_break() {
                return;
            }
        }
    }

    /// The block with the record at a position, and the record's index in it.
    fn locate(&self, position: Position) -> Result<Option<(Arc<Block>, usize)>, ReadError> {
        if position > self.last_position() || position == Position(0) {
            return Ok(None);
        }
        let Some((segment, _)) = self.shared.open_at(position)? else { return Ok(None) };
        if position < segment.header.first {
            return Err(ReadError::Damaged { first: Position(1), last: before(segment.header.first) });
        }
        let mut damage = segment.damage.clone();
        if let Some(location) = segment.locate_block(position) {
            let block = self.shared.block(&segment, &location, true)?;
            if let Ok(at) = block.records.binary_search_by_key(&position, |record| record.position) {
                return Ok(Some((block, at)));
            }
            damage.extend(block.damage.iter().cloned());
        }
        for (first, last) in damage.iter().filter_map(|damage| damage.positions) {
            if first <= position && position <= last {
                return Err(ReadError::Damaged { first, last });
            }
        }
        Ok(None)
    }

    /// Iterates over the records from a position on, in order, in batches of about 64 KB. Damage is
    /// an `Err` item between batches, and the iteration continues. An I/O error ends it. It ends at
    /// the last position at that time.
    #[must_use]
    pub fn frames_from(&self, position: Position) -> Frames {
        Frames {
            reader: self.clone(),
            next: position.max(Position(1)),
            damage: VecDeque::new(),
            ended: false,
            shows_erased: false,
        }
    }

    /// As [`Self::frames_from`], with each record as it is in the files, for a fold: an erasure
    /// must not change what precedes its record, and its record must find the content that the
    /// files still have. The rows have no content. Never show these records to anyone.
    #[must_use]
    pub fn stored_frames_from(&self, position: Position) -> Frames {
        Frames { shows_erased: true, ..self.frames_from(position) }
    }

    /// Iterates over the records with exactly this commit time, in order. Damage as in
    /// [`Self::frames_from`].
    #[must_use]
    pub fn positions_at(&self, time: Timestamp) -> RecordsAt {
        let entry = {
            let list = read(&self.shared.list);
            let number = list.partition_point(|entry| entry.time < time).saturating_sub(1);
            list.get(number).copied().zip(Some(list.get(number + 1).map(|next| next.first)))
        };
        let start = entry.map_or(Position(1), |(entry, upper)| {
            self.shared.open(entry, upper).map_or(entry.first, |segment| segment.search_start(time))
        });
        RecordsAt { reader: self.clone(), time, next: start, ready: VecDeque::new(), ended: false }
    }

    /// The position before the first record that was committed at or after this time.
    ///
    /// # Errors
    /// When the disk cannot be read. Damaged records are skipped.
    pub fn last_before(&self, time: Timestamp) -> Result<Position, ReadError> {
        let mut next = self.positions_at(time).next;
        while let Some(step) = self.step(next, false)? {
            let records = step.block.iter().flat_map(|block| block.records.iter());
            if let Some(found) = records.clone().find(|record| record.position >= next && record.time >= time)
            {
                return Ok(before(found.position));
            }
            next = step.next;
        }
        Ok(self.last_position())
    }

    /// Reads the next encoded records from a position on, about 64 KB, and the damage among them.
    /// Returns `None` at the end.
    ///
    /// # Errors
    /// When the disk cannot be read. Damage is not an error.
    pub fn raw_from(&self, position: Position) -> Result<Option<RawBatch>, ReadError> {
        let Some(step) = self.step(position, false)? else { return Ok(None) };
        let mut records = Vec::new();
        if let Some(block) = &step.block {
            for record in block.records.iter().filter(|record| record.position >= position) {
                let bytes = self.shared.encoded(block, record);
                records.push(RawRecord { position: record.position, time: record.time, bytes });
            }
        }
        let damaged = step.damage.iter().filter_map(|damage| damage.positions).collect();
        Ok(Some(RawBatch { records, damaged, next: step.next }))
    }

    /// Removes the content of these events from all records that are read, from now on. Erasures
    /// that are appended do this themselves.
    pub fn hide_erased(&self, events: impl IntoIterator<Item = (Position, Timestamp)>) {
        for (event, at) in events {
            self.shared.erased.insert(event, at);
        }
    }

    /// Whether the content of an event is removed from the records that are read. If not, the event
    /// was not erased, or its files have lost the content.
    #[must_use]
    pub fn hides(&self, event: Position) -> bool {
        self.shared.erased.contains(event)
    }

    /// Ends [`Self::hide_erased`] for events whose content has left the files.
    pub fn end_hiding(&self, events: &[Position]) {
        self.shared.erased.remove(events);
    }

    /// Last position; zero when the journal is empty.
    #[must_use]
    pub fn last_position(&self) -> Position {
        Position(self.shared.last.load(Ordering::Acquire))
    }

    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        read(&self.shared.list).iter().map(|entry| entry.bytes).sum()
    }

    /// First positions and sizes of the sealed segments, oldest first: the candidates for a
    /// rewrite.
    #[must_use]
    pub fn sealed_segments(&self) -> Vec<(Position, u64)> {
        let active = read(&self.shared.active).as_ref().map(|active| active.header.first);
        let list = read(&self.shared.list);
        list.iter()
            .filter(|entry| Some(entry.first) != active)
            .map(|entry| (entry.first, entry.bytes))
            .collect()
    }

    /// First position of the active segment.
    #[must_use]
    pub fn active_first(&self) -> Position {
        let active = read(&self.shared.active).as_ref().map(|active| active.header.first);
        active.unwrap_or_else(|| self.last_position().next())
    }

    fn step(&self, from: Position, keep: bool) -> Result<Option<ReadStep>, ReadError> {
        let last = self.last_position();
        if from > last {
            return Ok(None);
        }
        let (segment, upper) = match self.shared.open_at(from) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(ReadError::Damaged { first, last: lost }) => {
                let positions = Some((first.max(from), lost.max(from)));
                let damage =
                    Damage { segment: first, bytes: 0..0, positions, cause: DamageCause::FileHeader };
                return Ok(Some(ReadStep { block: None, damage: vec![damage], next: lost.max(from).next() }));
            }
            Err(error) => return Err(error),
        };
        if let Some(missing) = missing_between(segment.header.first, from) {
            return Ok(Some(ReadStep { block: None, damage: vec![missing], next: segment.header.first }));
        }
        let segment_end = upper.unwrap_or_else(|| last.next());
        let Some(location) = segment.locate_block(from) else {
            let damage = segment.damage.clone();
            return Ok(Some(ReadStep { block: None, damage, next: segment_end.max(from.next()) }));
        };
        let block = self.shared.block(&segment, &location, keep)?;
        let after = block.records.last().map_or(from, |record| record.position).next();
        let next = if location.is_last { upper.unwrap_or(after) } else { location.upper.unwrap_or(after) };
        let next = next.max(from.next());
        let mut damage = block.damage.clone();
        for other in &segment.damage {
            if !damage.iter().any(|known| known.bytes == other.bytes) {
                damage.push(other.clone());
            }
        }
        damage.retain(|damage| damage.positions.is_some_and(|(first, last)| first < next && last >= from));
        Ok(Some(ReadStep { block: Some(block), damage, next }))
    }
}

/// Returns the missing range when a segment begins after the expected position.
pub(super) fn missing_between(first: Position, from: Position) -> Option<Damage> {
    let positions = Some((from, before(first)));
    (from < first).then_some(Damage { segment: first, bytes: 0..0, positions, cause: DamageCause::Missing })
}

fn damage_errors(damage: &[Damage]) -> impl Iterator<Item = ReadError> {
    damage
        .iter()
        .filter_map(|damage| damage.positions)
        .map(|(first, last)| ReadError::Damaged { first, last })
}

/// See [`JournalReader::frames_from`] and [`JournalReader::stored_frames_from`].
pub struct Frames {
    reader: JournalReader,
    next: Position,
    damage: VecDeque<ReadError>,
    ended: bool,
    /// The content of erased events is not hidden.
    shows_erased: bool,
}

impl Iterator for Frames {
    type Item = Result<Vec<(Position, Record)>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            if let Some(error) = self.damage.pop_front() {
                return Some(Err(error));
            }
            // Replays read each block once, so they bypass the cache.
            let step = match self.reader.step(self.next, false) {
                Ok(Some(step)) => step,
                Ok(None) => return None,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            };
            let from = std::mem::replace(&mut self.next, step.next);
            self.damage.extend(damage_errors(&step.damage));
            let Some(block) = step.block else { continue };
            let mut batch = Vec::with_capacity(block.records.len());
            for record in block.records.iter().filter(|record| record.position >= from) {
                let decoded = if self.shows_erased {
                    SegmentStore::decode_stored(&block, record)
                } else {
                    self.reader.shared.decode(&block, record)
                };
                match decoded {
                    Ok(decoded) => batch.push((record.position, decoded)),
                    Err(error) => self.damage.push_back(error),
                }
            }
            if !batch.is_empty() {
                return Some(Ok(batch));
            }
        }
        None
    }
}

/// See [`JournalReader::positions_at`].
pub struct RecordsAt {
    reader: JournalReader,
    time: Timestamp,
    next: Position,
    ready: VecDeque<Result<(Position, Record), ReadError>>,
    ended: bool,
}

impl Iterator for RecordsAt {
    type Item = Result<(Position, Record), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(item);
            }
            if self.ended {
                return None;
            }
            let step = match self.reader.step(self.next, true) {
                Ok(Some(step)) => step,
                Ok(None) => return None,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            };
            let from = std::mem::replace(&mut self.next, step.next);
            if let Some(block) = step.block {
                self.ended = block.records.last().is_some_and(|record| record.time > self.time);
                let matching = |record: &&BlockRecord| record.time == self.time && record.position >= from;
                for record in block.records.iter().filter(matching) {
                    let decoded = self.reader.shared.decode(&block, record);
                    self.ready.push_back(decoded.map(|decoded| (record.position, decoded)));
                }
            }
            self.ready.extend(damage_errors(&step.damage).map(Err));
        }
    }
}

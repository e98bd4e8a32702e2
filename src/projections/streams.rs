//! Index of streams: the head of each stream (`S`), and the positions of its events in blocks
//! (`V`).
//!
//! A block covers [`BLOCK_VERSIONS`] versions. The last, open block is part of the head row, so a
//! short stream costs one row. Versions are dense, in commit order. Retention moves the first
//! version that can be read. After a rebuild from a journal with a gap, it is behind the gap.
//! Invariants: the blocks list the stream's events that the rows have, and no others. From the
//! first version on, they are complete. Below it are events that retention has kept, because of a
//! dead letter for instance: reads by version do not give them, lists of events do.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, RangeInclusive};

use super::pages;
use super::rows::{Key, Rows, after_prefix, u64_at};
use crate::codec::{Malformed, Reader, put_varint};
use crate::domain::{Position, StreamName, Tenant, Timestamp};
use crate::failpoints::{self, Bound, Mutation};
use crate::limits;

/// Versions per block.
pub const BLOCK_VERSIONS: u64 = 64;

/// A head: six numbers and an open block, whose positions are varints.
const HEAD_BYTES_MAX: usize = 10 * (6 + BLOCK_VERSIONS as usize);
const _: () = assert!(HEAD_BYTES_MAX <= limits::STATE_VALUE_BYTES_MAX);

/// [`BLOCK_VERSIONS`]; a simulation uses smaller blocks.
fn block_versions() -> u64 {
    failpoints::bound(Bound::StreamBlock, BLOCK_VERSIONS as usize) as u64
}

fn block_of(version: u64) -> u64 {
    (version - 1) / block_versions()
}

/// The last version of a block.
fn last_of(block: u64) -> u64 {
    (block + 1) * block_versions()
}

/// Facts about a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Version of the last event; versions are dense from 1.
    pub version: u64,
    /// The first version that can be read. Above `version` if retention removed all events.
    pub first_version: u64,
    pub first_at: Timestamp,
    pub last_at: Timestamp,
    pub last: Position,
}

/// Positions of consecutive versions: the first version, and the encoded positions. The first
/// position is absolute, each further one is the difference to the previous one. A difference of
/// zero is a version that is not there.
struct Block<'a> {
    first: u64,
    positions: &'a [u8],
}

impl Block<'_> {
    fn decode(bytes: &[u8]) -> Result<Block<'_>, Malformed> {
        let mut reader = Reader::new(bytes);
        let first = reader.get_varint()?;
        Ok(Block { first, positions: &bytes[bytes.len() - reader.left()..] })
    }

    fn versions(&self) -> impl Iterator<Item = (u64, Position)> {
        let (mut reader, mut at) = (Reader::new(self.positions), 0_u64);
        let all = (self.first..).map_while(move |version| {
            let difference = reader.get_varint().ok()?;
            at = at.checked_add(difference)?;
            Some((difference > 0).then_some((version, Position(at))))
        });
        all.flatten()
    }

    fn listed(&self) -> Vec<Position> {
        self.versions().map(|(_, position)| position).collect()
    }
}

/// The first of some ascending versions, and their encoded positions. `None` if there are none.
fn encode_versions(versions: impl IntoIterator<Item = (u64, Position)>) -> Option<(u64, Vec<u8>)> {
    let mut versions = versions.into_iter();
    let (first, position) = versions.next()?;
    let mut positions = Vec::with_capacity(8);
    put_varint(&mut positions, position.0);
    let (mut next, mut before) = (first + 1, position.0);
    for (version, position) in versions {
        (next..version).for_each(|_| put_varint(&mut positions, 0));
        put_varint(&mut positions, position.0 - before);
        (next, before) = (version + 1, position.0);
    }
    Some((first, positions))
}

/// The value of a `V` row.
fn encode_block(first: u64, positions: &[u8]) -> Vec<u8> {
    let mut block = Vec::with_capacity(positions.len() + 10);
    put_varint(&mut block, first);
    block.extend_from_slice(positions);
    block
}

/// The separator of tenant, stream and block is a byte that no name contains.
fn key(tag: u8, tenant: &str, stream: &str) -> Key {
    Key::new(tag).bytes(tenant.as_bytes()).bytes(&[0]).bytes(stream.as_bytes())
}

fn head_key(tenant: &str, stream: &str) -> Vec<u8> {
    key(b'S', tenant, stream).0
}

fn block_key(tenant: &str, stream: &str, block: u64) -> Vec<u8> {
    key(b'V', tenant, stream).bytes(&[0]).u64(block).0
}

/// Tenant and stream of a head's key.
fn names(head_key: &[u8]) -> Option<(&str, &str)> {
    std::str::from_utf8(head_key.get(1..)?).ok()?.split_once('\0')
}

pub fn head(rows: &dyn Rows, tenant: &Tenant, stream: &StreamName) -> Option<Head> {
    decode(&rows.get(&head_key(tenant.as_str(), stream.as_str()))?).map(|(head, _)| head)
}

fn decode(row: &[u8]) -> Option<(Head, Block<'_>)> {
    let read = || -> Result<_, Malformed> {
        let mut reader = Reader::new(row);
        let head = Head {
            version: reader.get_varint()?,
            first_version: reader.get_varint()?,
            first_at: Timestamp::from_millis(reader.get_varint()?),
            last_at: Timestamp::from_millis(reader.get_varint()?),
            last: Position(reader.get_varint()?),
        };
        Ok((head, Block::decode(&row[row.len() - reader.left()..])?))
    };
    read().ok()
}

fn encode(head: &Head, open: &Block<'_>) -> Vec<u8> {
    let mut row = Vec::with_capacity(open.positions.len() + 48);
    let (first_at, last_at) = (head.first_at.millis(), head.last_at.millis());
    for number in [head.version, head.first_version, first_at, last_at, head.last.0, open.first] {
        put_varint(&mut row, number);
    }
    row.extend_from_slice(open.positions);
    row
}

/// Appends the stream's next event. A version that does not follow the head's shows that the
/// journal lost the events in between: the stream then begins at this version.
pub fn append(
    rows: &mut dyn Rows,
    tenant: &Tenant,
    stream: &StreamName,
    version: u64,
    at: Timestamp,
    position: Position,
) {
    let (tenant, stream) = (tenant.as_str(), stream.as_str());
    let key = head_key(tenant, stream);
    let row = rows.get(&key);
    let known = row.as_deref().and_then(decode);
    let mut head = Head { version, first_version: version, first_at: at, last_at: at, last: position };
    let (mut first, mut positions, mut previous) = (version, Vec::with_capacity(8), 0);
    if let Some((before, open)) = known {
        head.first_at = before.first_at;
        let follows = version == before.version + 1;
        if follows {
            head.first_version = before.first_version;
        }
        if follows && before.first_version <= open.first {
            if !open.positions.is_empty() {
                (first, previous) = (open.first, before.last.0);
                positions.extend_from_slice(open.positions);
            }
        } else {
            let is_in_block = block_of(version) == block_of(before.version);
            let last = if is_in_block { Some((version, position)) } else { None };
            let kept = open.versions().filter(|(kept, _)| *kept < version);
            match encode_versions(kept.chain(last)) {
                Some(whole) if is_in_block => (first, positions) = whole,
                Some((first, kept)) => {
                    let block = encode_block(first, &kept);
                    rows.put(&block_key(tenant, stream, block_of(before.version)), block);
                }
                None => {}
            }
        }
    }
    if previous > 0 || positions.is_empty() {
        put_varint(&mut positions, position.0 - previous);
    }
    if version == last_of(block_of(version)) {
        if !failpoints::is_active(Mutation::ForgetStreamBlock) {
            let block = encode_block(first, &positions);
            rows.put(&block_key(tenant, stream, block_of(version)), block);
        }
        (first, positions) = (version + 1, Vec::new());
    }
    rows.put(&key, encode(&head, &Block { first, positions: &positions }));
}

/// Removes a deleted event from its block, and moves the first version of the stream behind it.
pub(super) fn forget(rows: &mut dyn Rows, tenant: &str, stream: &str, version: u64) {
    let key = head_key(tenant, stream);
    let Some(row) = rows.get(&key) else { return };
    let Some((mut head, open)) = decode(&row) else { return };
    head.first_version = head.first_version.max(version + 1);
    let without = |block: &Block<'_>| encode_versions(block.versions().filter(|(kept, _)| *kept != version));
    if version >= open.first {
        let (first, positions) = without(&open).unwrap_or((head.version + 1, Vec::new()));
        return rows.put(&key, encode(&head, &Block { first, positions: &positions }));
    }
    rows.put(&key, encode(&head, &open));
    let key = block_key(tenant, stream, block_of(version));
    if failpoints::is_active(Mutation::DropKeptVersions) && block_of(version + 1) == block_of(version) {
        return rows.remove(&key);
    }
    let row = rows.get(&key).unwrap_or_default();
    match Block::decode(&row).ok().and_then(|block| without(&block)) {
        Some((first, positions)) => rows.put(&key, encode_block(first, &positions)),
        None => rows.remove(&key),
    }
}

/// Versions and positions of a range of a stream's versions, ascending, without those below the
/// first version.
pub fn positions(
    rows: &dyn Rows,
    tenant: &Tenant,
    stream: &StreamName,
    versions: RangeInclusive<u64>,
) -> Vec<(u64, Position)> {
    let (tenant, stream) = (tenant.as_str(), stream.as_str());
    let Some(row) = rows.get(&head_key(tenant, stream)) else { return Vec::new() };
    let Some((head, open)) = decode(&row) else { return Vec::new() };
    let (first, last) = (head.first_version.max(*versions.start()), head.version.min(*versions.end()));
    if first > last {
        return Vec::new();
    }
    let is_wanted = |(version, _): &(u64, Position)| (first..=last).contains(version);
    let mut found = Vec::new();
    let (from, to) =
        (block_key(tenant, stream, block_of(first)), block_key(tenant, stream, block_of(last) + 1));
    rows.scan(&from, &to, &mut |_, value| {
        if let Ok(block) = Block::decode(value) {
            found.extend(block.versions().filter(is_wanted));
        }
        ControlFlow::Continue(())
    });
    found.extend(open.versions().filter(is_wanted));
    found
}

/// Finds a closed block among those with these numbers: the first one, or the last one.
fn closed_block(
    rows: &dyn Rows,
    (tenant, stream): (&str, &str),
    blocks: std::ops::Range<u64>,
    is_last: bool,
) -> Option<(u64, Vec<Position>)> {
    let (from, to) = (block_key(tenant, stream, blocks.start), block_key(tenant, stream, blocks.end));
    let mut found = None;
    let visit = &mut |key: &[u8], value: &[u8]| {
        let positions = Block::decode(value).map(|block| block.listed());
        found = Some((u64_at(key, key.len() - 8), positions.unwrap_or_default()));
        ControlFlow::Break(())
    };
    if is_last {
        rows.scan_back(&from, &to, visit)
    } else {
        rows.scan(&from, &to, visit)
    }
    found
}

/// The newest event of a stream at or below a position, among those that the rows have.
pub(super) fn newest_until(
    rows: &dyn Rows,
    (tenant, stream): (&str, &str),
    until: Position,
) -> Option<Position> {
    let row = rows.get(&head_key(tenant, stream))?;
    let (head, open) = decode(&row)?;
    let newest = |all: &[Position]| all[..all.partition_point(|at| *at <= until)].last().copied();
    let open = newest(&open.listed());
    if open.is_some() {
        return open;
    }
    // Blocks below `low` begin at or below the position, those from `high` on do not.
    let (mut low, mut high, mut found) = (0, block_of(head.version) + 1, None);
    while low < high {
        let middle = low + (high - low) / 2;
        let block = closed_block(rows, (tenant, stream), low..middle + 1, true);
        match block.map(|(number, all)| (number, newest(&all))) {
            Some((number, None)) => high = number,
            Some((_, newest)) => (low, found) = (middle + 1, newest),
            None => low = middle + 1,
        }
    }
    found
}

/// The oldest event of a stream from a position on, among those that the rows have.
pub(super) fn oldest_from(
    rows: &dyn Rows,
    (tenant, stream): (&str, &str),
    from: Position,
) -> Option<Position> {
    let row = rows.get(&head_key(tenant, stream))?;
    let (head, open) = decode(&row)?;
    let oldest = |all: &[Position]| all.get(all.partition_point(|at| *at < from)).copied();
    let mut found = oldest(&open.listed());
    // Blocks below `low` end below the position, those from `high` on do not.
    let (mut low, mut high) = (0, block_of(head.version) + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        let block = closed_block(rows, (tenant, stream), middle..high, false);
        match block.map(|(number, all)| (number, oldest(&all))) {
            Some((number, None)) => low = number + 1,
            Some((_, oldest)) => (high, found) = (middle, oldest),
            None => high = middle,
        }
    }
    found
}

/// The tenants that have a stream with this name. `None` if more than `most` tenants have streams.
pub(super) fn tenants_with(rows: &dyn Rows, stream: &str, most: usize) -> Option<Vec<Box<str>>> {
    let (mut from, end) = (Key::new(b'S').0, after_prefix(b"S"));
    let (mut tenants, mut looked_at) = (Vec::new(), 0);
    loop {
        let mut next: Option<Box<str>> = None;
        rows.scan(&from, &end, &mut |key, _| {
            next = names(key).map(|(tenant, _)| tenant.into());
            ControlFlow::Break(())
        });
        let Some(tenant) = next else { return Some(tenants) };
        looked_at += 1;
        if looked_at > most {
            return None;
        }
        from = after_prefix(&Key::new(b'S').bytes(tenant.as_bytes()).bytes(&[0]).0);
        if rows.get(&head_key(&tenant, stream)).is_some() {
            tenants.push(tenant);
        }
    }
}

/// The last version that was accepted before a time, or the one before the first version.
/// Acceptance times follow versions.
pub fn version_before(rows: &dyn Rows, tenant: &Tenant, stream: &StreamName, until: Timestamp) -> u64 {
    let Some(head) = head(rows, tenant, stream) else { return 0 };
    if head.last_at < until {
        return head.version;
    }
    let is_before = |version| {
        let position = positions(rows, tenant, stream, version..=version).first().map(|(_, at)| *at);
        position.and_then(|at| pages::event(rows, at)).is_some_and(|event| event.accepted_at < until)
    };
    // Versions below `low` were accepted before the time, those from `high` on were not.
    let (mut low, mut high) = (head.first_version, head.version);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_before(middle) { low = middle + 1 } else { high = middle }
    }
    low - 1
}

/// Streams of a tenant whose names begin with a prefix, by name, after another name.
pub fn list(
    rows: &dyn Rows,
    tenant: &Tenant,
    prefix: &str,
    after: Option<&StreamName>,
    limit: usize,
) -> Vec<(StreamName, Head)> {
    let start = head_key(tenant.as_str(), prefix);
    let next = after.map(|stream| [&head_key(tenant.as_str(), stream.as_str())[..], &[0]].concat());
    let (from, to) = (start.clone().max(next.unwrap_or_default()), after_prefix(&start));
    let mut found = Vec::new();
    if from >= to || limit == 0 {
        return found;
    }
    rows.scan(&from, &to, &mut |key, value| {
        let stream = names(key).and_then(|(_, stream)| stream.parse().ok());
        found.extend(stream.zip(decode(value).map(|(head, _)| head)));
        if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    found
}

/// Whether the head of a kept stream agrees with the one that the journal gives. Retention may have
/// moved the kept first version, if it deleted the event before it. Where `gaps` are, the journal
/// may have lost the first events.
pub(super) fn heads_agree(
    (kept_rows, folded_rows): (&dyn Rows, &dyn Rows),
    key: &[u8],
    (kept, folded): (&[u8], &[u8]),
    gaps: bool,
) -> bool {
    let (Some((kept, kept_open)), Some((folded, folded_open))) = (decode(kept), decode(folded)) else {
        return false;
    };
    let ends = |head: &Head| (head.version, head.last_at, head.last);
    let begins = kept.first_at == folded.first_at || (gaps && kept.first_at < folded.first_at);
    let is_deleted = |version| {
        let (tenant, stream) = names(key)?;
        let (tenant, stream) = (tenant.parse().ok()?, stream.parse().ok()?);
        let at = positions(folded_rows, &tenant, &stream, version..=version).first()?.1;
        Some(pages::event(kept_rows, at).is_none())
    };
    let first = kept.first_version;
    let is_moved = || first > folded.first_version && is_deleted(first - 1) == Some(true);
    ends(&kept) == ends(&folded)
        && begins
        && (first == folded.first_version || is_moved())
        && versions_agree(kept_rows, first, &kept_open, &folded_open)
}

/// Whether a kept block of positions agrees with the one that the journal gives.
pub(super) fn blocks_agree(
    kept_rows: &dyn Rows,
    key: &[u8],
    kept: Option<&[u8]>,
    folded: Option<&[u8]>,
) -> bool {
    let Some(name) = key.len().checked_sub(9).and_then(|end| key.get(1..end)) else { return false };
    let head = kept_rows.get(&[&b"S"[..], name].concat());
    let Some(first) = head.as_deref().and_then(decode).map(|(head, _)| head.first_version) else {
        return false;
    };
    let empty = Block { first: 1, positions: &[] };
    let Some(Ok(folded)) = folded.map(Block::decode) else { return false };
    let Ok(kept) = kept.map_or(Ok(empty), Block::decode) else { return false };
    versions_agree(kept_rows, first, &kept, &folded)
}

/// Whether a kept block lists what the journal gives. Below the first version, retention may have
/// deleted events: it lists those that the rows have.
fn versions_agree(kept_rows: &dyn Rows, first: u64, kept: &Block<'_>, folded: &Block<'_>) -> bool {
    let kept: BTreeMap<u64, Position> = kept.versions().collect();
    let folded: BTreeMap<u64, Position> = folded.versions().collect();
    let is_there = |position| pages::event(kept_rows, position).is_some();
    kept.iter().all(|(version, at)| folded.get(version) == Some(at) && (*version >= first || is_there(*at)))
        && folded
            .iter()
            .all(|(version, at)| kept.contains_key(version) || (*version < first && !is_there(*at)))
}

#[cfg(test)]
mod tests;

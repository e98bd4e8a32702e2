//! Tests of the journal: acknowledged records survive, and damage costs only the damaged frames and
//! is reported.

mod faults;

use super::*;
use crate::domain::{EndpointNumber, Idempotency, Record};
use crate::failpoints::{Mutation, fails_with};
use crate::storage::disk::{Disk, Fault, MemoryDisk, Operation};

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn record(number: u64) -> Record {
    Record::EndpointDeleted { endpoint: EndpointNumber(7), at: at(number) }
}

fn options() -> JournalOptions {
    JournalOptions {
        segment_bytes: 2_000,
        preallocation_bytes: 0,
        frame_bytes: 100,
        ..JournalOptions::new(0xfeed)
    }
}

fn open(disk: &MemoryDisk) -> (Journal, OpenReport) {
    Journal::open(Arc::new(disk.clone()), options()).unwrap()
}

const PREALLOCATIONS: [usize; 3] = [0, 300, 5_000];

/// As [`open`], with one of three preallocation sizes.
fn open_with_preallocation(disk: &MemoryDisk, number: u64) -> (Journal, OpenReport) {
    let preallocation_bytes = PREALLOCATIONS[number as usize % 3];
    Journal::open(Arc::new(disk.clone()), JournalOptions { preallocation_bytes, ..options() }).unwrap()
}

/// Appends one record per commit. Each record holds its own position; the commit time is 1000 +
/// position / 4.
fn fill(journal: &mut Journal, count: u64) {
    for _ in 0..count {
        let number = journal.next_position().0;
        journal.append(at(1_000 + number / 4), &[vec![record(number)]]).unwrap();
    }
}

fn all(journal: &Journal) -> Vec<u64> {
    let batches = journal.reader().frames_from(Position(1));
    let records = batches.filter_map(Result::ok).flatten();
    records
        .map(|(position, found)| {
            assert_eq!(found, record(position.0));
            position.0
        })
        .collect()
}

#[test]
fn appended_records_are_readable_before_and_after_reopen() {
    let disk = MemoryDisk::new();
    let (mut journal, report) = open(&disk);
    assert_eq!(report, OpenReport::default());
    fill(&mut journal, 200);
    for _ in 0..2 {
        assert!(journal.reader().sealed_segments().len() > 3);
        assert_eq!(all(&journal), (1..=200).collect::<Vec<_>>());
        for position in [1, 2, 99, 200] {
            assert_eq!(journal.reader().read(Position(position)).unwrap(), Some(record(position)));
        }
        assert_eq!(journal.reader().read(Position(201)).unwrap(), None);
        assert_eq!(journal.reader().read(Position(0)).unwrap(), None);
        for time in 1_000..=1_050 {
            let found: Vec<_> =
                journal.reader().positions_at(at(time)).map(|item| item.unwrap().0.0).collect();
            let first = ((time - 1_000) * 4).max(1);
            let expected: Vec<_> = (first..(time - 999) * 4).filter(|number| *number <= 200).collect();
            assert_eq!(found, expected, "commit time {time}");
        }
        let (reopened, report) = open(&disk);
        assert_eq!((report.last, report.torn_bytes, report.damage.len()), (Position(200), 0, 0));
        journal = reopened;
    }
    assert_eq!(verify(&disk, &mut |_| ()).unwrap().records, 200);
    fill(&mut journal, 1);
    assert_eq!(journal.last_time(), at(1_050));
    journal.append(at(5), &[vec![record(202)]]).unwrap();
    assert_eq!(journal.last_time(), at(1_050), "a commit time decreased");
}

#[test]
fn units_of_a_commit_share_a_sync_and_get_dense_positions() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    fill(&mut journal, 1);
    let before = disk.syncs();
    let units: Vec<Vec<_>> = (0..40).map(|unit| (0..3).map(|n| record(2 + unit * 3 + n)).collect()).collect();
    assert_eq!(journal.append(at(9_999), &units).unwrap(), Position(2)..Position(122));
    assert_eq!(disk.syncs(), before + 1);
    assert_eq!(all(&journal), (1..=121).collect::<Vec<_>>());
    assert!(verify(&disk, &mut |_| ()).unwrap().frames > 5);
}

#[test]
fn torn_tail_is_truncated_at_every_byte_of_last_frame() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    fill(&mut journal, 5);
    let name = file_name(Position(1));
    let before = disk.contents(&name).unwrap().len();
    fill(&mut journal, 1);
    let whole = disk.contents(&name).unwrap();
    for length in before..whole.len() {
        let torn = MemoryDisk::new();
        torn.put(&name, &whole[..length]);
        let (mut journal, report) = open(&torn);
        assert_eq!((report.last, report.torn_bytes), (Position(5), (length - before) as u64));
        assert_eq!(report.damage, []);
        fill(&mut journal, 2);
        assert_eq!(all(&journal), (1..=7).collect::<Vec<_>>(), "cut at {length}");
        assert_eq!(verify(&torn, &mut |_| ()).unwrap().damage, []);
    }
}

#[test]
fn hole_in_last_commit_is_torn_not_damage() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    fill(&mut journal, 3);
    let name = file_name(Position(1));
    let before = disk.contents(&name).unwrap().len();
    let units: Vec<_> = (4..60).map(|n| vec![record(n)]).collect();
    journal.append(at(2_000), &units).unwrap();
    let mut bytes = disk.contents(&name).unwrap();
    bytes[before + 3] ^= 1;
    disk.put(&name, &bytes);
    let (journal, report) = open(&disk);
    assert_eq!((report.last, report.torn_bytes), (Position(3), (bytes.len() - before) as u64));
    assert_eq!(report.damage, []);
    assert_eq!(all(&journal), [1, 2, 3]);
}

#[test]
fn hole_in_last_commit_is_damage_if_a_later_commit_began() {
    for room in 0..3 {
        let disk = MemoryDisk::new();
        let (mut journal, _) = open_with_preallocation(&disk, room);
        fill(&mut journal, 3);
        let units: Vec<_> = (4..40).map(|n| vec![record(n)]).collect();
        journal.append(at(2_000), &units).unwrap();
        let end = journal.end as usize;
        fill(&mut journal, 1);
        let name = file_name(Position(1));
        let mut bytes = disk.contents(&name).unwrap();
        // Only the beginning of the later commit reached the disk, and the first frame of the
        // commit before is corrupt.
        bytes[end + 10..journal.end as usize].fill(0);
        let frames = bytes.windows(4).enumerate().filter(|(_, four)| four == b"BLTF").map(|(at, _)| at);
        let first = frames.collect::<Vec<_>>()[3];
        bytes[first + 70] ^= 1;
        disk.put(&name, &bytes);
        let (journal, report) = open_with_preallocation(&disk, room);
        assert_eq!((report.last, report.damage.len()), (Position(39), 1), "room {room}: {report:?}");
        assert_eq!(all(&journal).last(), Some(&39));
    }
}

#[test]
fn flipped_bit_costs_only_its_frame_and_is_reported() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    fill(&mut journal, 2);
    let name = file_name(Position(1));
    let start = disk.contents(&name).unwrap().len();
    fill(&mut journal, 1);
    let end = disk.contents(&name).unwrap().len();
    fill(&mut journal, 60); // several segments: the damaged one is sealed in the second round
    let last_name = file_name(*journal.reader().sealed_segments().first().map(|(first, _)| first).unwrap());
    assert_eq!(last_name, name);
    let whole = disk.contents(&name).unwrap();
    for only_this_file in [true, false] {
        for byte in start..end {
            let damaged = if only_this_file { MemoryDisk::new() } else { disk.crash(0) };
            let mut bytes = whole.clone();
            bytes[byte] ^= 1 << (byte % 8);
            damaged.put(&name, &bytes);
            let found = verify(&damaged, &mut |_| ()).unwrap().damage;
            assert_eq!(found.len(), 1, "byte {byte}: {found:?}");
            assert_eq!(found[0].positions, Some((Position(3), Position(3))));
            let (journal, report) = open(&damaged);
            assert_eq!(report.damage.len(), usize::from(only_this_file));
            let expected: Vec<_> = (1..=report.last.0).filter(|position| *position != 3).collect();
            assert_eq!(all(&journal), expected, "byte {byte}");
            assert!(matches!(journal.reader().read(Position(3)), Err(ReadError::Damaged { .. })));
            assert_eq!(journal.reader().frames_from(Position(1)).filter(Result::is_err).count(), 1);
        }
    }
}

#[test]
fn damage_of_both_header_copies_loses_the_segment() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    fill(&mut journal, 60);
    let name = file_name(Position(1));
    let mut bytes = disk.contents(&name).unwrap();
    bytes[13] ^= 1;
    disk.put(&name, &bytes);
    assert_eq!(all(&open(&disk).0).len(), 60);
    bytes[45] ^= 1;
    disk.put(&name, &bytes);
    let (journal, report) = open(&disk);
    let (first, last) = report.damage[0].positions.unwrap();
    assert_eq!(first, Position(1));
    assert_eq!(all(&journal), (last.0 + 1..=60).collect::<Vec<_>>());
    assert!(journal.reader().read(Position(2)).is_err());
}

#[test]
fn sync_error_poisons_the_journal() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    fill(&mut journal, 3);
    disk.inject(Fault::once(Operation::SyncData, Fault::EIO));
    assert!(matches!(journal.append(at(1), &[vec![record(4)]]), Err(AppendError::Io(_))));
    assert!(matches!(journal.append(at(1), &[vec![record(4)]]), Err(AppendError::Poisoned)));
    assert_eq!(journal.reader().last_position(), Position(3), "an undurable record is visible");
    assert_eq!(all(&journal), [1, 2, 3]);
}

#[test]
fn preallocated_zeros_are_neither_torn_nor_damaged() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open_with_preallocation(&disk, 2);
    let mut grown = 0;
    for round in 1..=200 {
        let before = disk.bytes_used();
        fill(&mut journal, 1);
        grown += u64::from(disk.bytes_used() > before);
        if round % 7 == 0 {
            let found = verify(&disk, &mut |_| ()).unwrap();
            assert_eq!((found.torn_bytes, found.damage), (0, Vec::new()), "round {round}");
            drop(journal);
            let (again, report) = open_with_preallocation(&disk.crash(round), round);
            assert_eq!((report.last.0, report.torn_bytes, report.damage), (round, 0, Vec::new()));
            assert_eq!(all(&again), (1..=round).collect::<Vec<_>>());
            journal = open_with_preallocation(&disk, 2).0;
        }
    }
    let sealed = journal.reader().sealed_segments();
    assert!(sealed.len() > 2 && grown < 20, "{grown} of 200 commits made a file grow");
    // A sealed file has no preallocated zeros.
    for (first, bytes) in sealed {
        assert_eq!(disk.contents(&file_name(first)).unwrap().len() as u64, bytes);
    }
}

/// Found by fuzzing: a truncated frame swallowed the records that were appended after it.
#[test]
fn records_appended_after_damage_survive() {
    let disk = MemoryDisk::new();
    let options = JournalOptions { segment_bytes: 1 << 20, ..options() };
    let open = || Journal::open(Arc::new(disk.clone()), options).unwrap();
    let (mut journal, _) = open();
    fill(&mut journal, 3);
    let before = disk.contents(&file_name(Position(1))).unwrap().len();
    let body = vec![7; 4_000].into();
    let idempotency = Idempotency { scope: [1; 16], fingerprint: [2; 16], expires_at: None };
    journal.append(at(2_000), &[vec![Record::RequestAnswered { idempotency, status: 200, body }]]).unwrap();
    fill(&mut journal, 2);
    let mut bytes = disk.contents(&file_name(Position(1))).unwrap();
    bytes.drain(before + 200..before + 3_900);
    disk.put(&file_name(Position(1)), &bytes);
    let (mut journal, report) = open();
    assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
    fill(&mut journal, 100);
    let held = all(&journal);
    assert_eq!(held, [1, 2, 3].into_iter().chain(5..=106).collect::<Vec<_>>());
    drop(journal);
    let (journal, report) = open();
    assert_eq!((all(&journal), report.last, report.torn_bytes), (held, Position(106), 0));
}

#[test]
fn segment_grows_while_no_descriptor_is_free() {
    const EMFILE: i32 = 24;
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    fill(&mut journal, 20);
    let before = journal.reader().sealed_segments().len();
    disk.inject(Fault { operation: Operation::Create, errno: EMFILE, skip: 0, count: u64::MAX });
    fill(&mut journal, 40);
    assert_eq!(journal.reader().sealed_segments().len(), before, "a segment began without a file");
    disk.clear_faults();
    fill(&mut journal, 20);
    assert!(journal.reader().sealed_segments().len() > before, "no new segment began");
    assert_eq!(all(&journal), (1..=80).collect::<Vec<_>>());
    let (journal, report) = open(&disk.crash(1));
    assert_eq!((all(&journal), report.damage), ((1..=80).collect::<Vec<_>>(), vec![]));
}

#[test]
fn journal_survives_full_disk_at_every_free_space() {
    for room in 0..400 {
        let disk = MemoryDisk::new();
        let (mut journal, _) = open_with_preallocation(&disk, room);
        fill(&mut journal, 20);
        // The file still has preallocated space, so the test starts a new segment.
        journal.skip_lost_positions(Position(20)).unwrap();
        disk.set_bytes_max(Some(disk.bytes_used() + room));
        let mut refused = 0;
        for _ in 0..8 {
            let number = journal.next_position().0;
            match journal.append(at(2_000), &[vec![record(number)]]) {
                Ok(_) => {}
                Err(AppendError::DiskFull) => refused += 1,
                Err(error) => panic!("room {room}: {error}"),
            }
        }
        assert!(refused > 0);
        disk.set_bytes_max(None);
        fill(&mut journal, 30);
        let last = journal.reader().last_position().0;
        drop(journal);
        let (journal, report) = open(&disk.crash(room));
        assert_eq!((report.torn_bytes, report.damage.len()), (0, 0));
        assert_eq!(all(&journal), (1..=last).collect::<Vec<_>>(), "room {room}");
    }
}

#[test]
fn rewrite_keeps_positions_and_open_readers() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    fill(&mut journal, 100);
    let reader = journal.reader();
    let sealed = reader.sealed_segments();
    let (first, second) = (sealed[0].0, sealed[1].0);
    let size = reader.size_bytes();
    let report =
        journal.rewrite_segment(first, &mut |position, _| Fate::keep_if(position.0 % 3 == 0)).unwrap();
    assert!(report.kept > 0 && report.removed > report.kept);
    assert_eq!(size - reader.size_bytes(), report.bytes_before - report.bytes_after);
    let expected: Vec<_> = (1..=100).filter(|position| *position >= second.0 || position % 3 == 0).collect();
    for journal in [journal, open(&disk.crash(1)).0] {
        assert_eq!(all(&journal), expected);
        assert_eq!(journal.reader().read(Position(1)).unwrap(), None);
        assert_eq!(journal.reader().read(Position(3)).unwrap(), Some(record(3)));
        let found: Vec<_> = journal.reader().positions_at(at(1_000)).map(|item| item.unwrap().0.0).collect();
        assert_eq!(found, [3]);
    }
    assert_eq!(verify(&disk, &mut |_| ()).unwrap().damage, []);
    let (journal, _) = open(&disk);
    let report = journal.rewrite_segment(first, &mut |_, _| Fate::Remove).unwrap();
    assert_eq!((report.kept, report.bytes_after), (0, 128), "a gap marker remains");
    assert_eq!(all(&journal), (second.0..=100).collect::<Vec<_>>());
    let active = disk.list().unwrap().into_iter().max().unwrap();
    let active = segment::parse_file_name(&active).unwrap();
    let refused = journal.rewrite_segment(active, &mut |_, _| Fate::Remove);
    assert!(matches!(refused, Err(RewriteError::NotSealed(_))));
}

#[test]
fn readers_see_a_growing_prefix_during_appends_and_rewrites() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    fill(&mut journal, 1);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let reader = journal.reader();
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let last = reader.last_position();
                    match reader.read(last).unwrap() {
                        Some(found) => assert_eq!(found, record(last.0)),
                        // A rewrite removed the record in between.
                        None => assert_eq!(last.0 % 2, 1),
                    }
                    let seen: Vec<_> = reader.frames_from(Position(1)).flat_map(Result::unwrap).collect();
                    assert!(seen.last().unwrap().0 >= last);
                    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0));
                }
            });
        }
        for round in 0..30 {
            fill(&mut journal, 20);
            let sealed = journal.reader().sealed_segments();
            if let Some((first, _)) = sealed.get(round / 3) {
                journal
                    .rewrite_segment(*first, &mut |position, _| Fate::keep_if(position.0 % 2 == 0))
                    .unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn adjacent_emptied_segments_merge_into_one_gap_marker() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    fill(&mut journal, 300);
    let sealed: Vec<_> = journal.reader().sealed_segments().into_iter().map(|(first, _)| first).collect();
    assert!(sealed.len() > 7);
    // In this order, a gap marker meets one before it and one after it.
    for dropped in [2, 5, 3, 4, 0] {
        journal.rewrite_segment(sealed[dropped], &mut |_, _| Fate::Remove).unwrap();
        let gone = |position: &u64| {
            let files = journal.reader().sealed_segments();
            let at = sealed.partition_point(|first| first.0 <= *position) - 1;
            let note = files.iter().rfind(|(first, _)| first.0 <= *position).unwrap();
            at < 6 && at != 1 && note.1 == 128
        };
        let expected: Vec<_> = (1..=300).filter(|position| !gone(position)).collect();
        for journal in [&journal, &open(&disk.crash(dropped as u64)).0] {
            assert_eq!(all(journal), expected, "after {dropped}");
            assert_eq!(journal.reader().frames_from(Position(1)).filter(Result::is_err).count(), 0);
        }
        assert_eq!(verify(&disk, &mut |_| ()).unwrap().damage, []);
    }
    let notes = journal.reader().sealed_segments().iter().filter(|(_, bytes)| *bytes == 128).count();
    assert_eq!(notes, 3, "segments 0, 2 to 4, and 5, which was emptied before 3 and 4");
}

/// Creates sealed files of each kind: as written, rewritten, and gap markers at the beginning and
/// in the middle.
fn journal_with_all_file_kinds() -> (MemoryDisk, Vec<u64>) {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    fill(&mut journal, 300);
    let sealed: Vec<_> = journal.reader().sealed_segments().into_iter().map(|(first, _)| first).collect();
    for dropped in [0, 3] {
        journal.rewrite_segment(sealed[dropped], &mut |_, _| Fate::Remove).unwrap();
    }
    for thinned in [2, 4] {
        journal
            .rewrite_segment(sealed[thinned], &mut |position, _| Fate::keep_if(position.0 % 3 == 0))
            .unwrap();
    }
    let there = all(&journal);
    (disk, there)
}

/// Asserts that the verification, the open report and the reader report every lost position.
fn assert_every_loss_is_reported(disk: &MemoryDisk, there: &[u64], story: &str) {
    let named = verify(disk, &mut |_| ()).unwrap().damage;
    let (journal, report) = open(disk);
    let left = all(&journal);
    assert!(left.iter().all(|position| there.contains(position)), "{story}: {left:?}");
    let read: Vec<_> = journal.reader().frames_from(Position(1)).filter_map(Result::err).collect();
    for position in there.iter().filter(|position| !left.contains(position)) {
        let holds = |range: Option<(Position, Position)>| {
            range.is_some_and(|(first, last)| (first.0..=last.0).contains(position))
        };
        let at_open = report.damage.iter().any(|damage| holds(damage.positions));
        let in_check = named.iter().any(|damage| holds(damage.positions));
        let in_walk = read.iter().any(|error| match error {
            ReadError::Damaged { first, last } => holds(Some((*first, *last))),
            _ => false,
        });
        assert!(in_check, "{story}: verification misses {position}: {named:?}");
        // Only the open report covers the last file.
        assert!(in_walk || at_open, "{story}: no reader reports {position}: {read:?}");
    }
    let (again, _) = open(disk);
    assert_eq!(all(&again), left, "{story}: second open");
}

#[test]
fn missing_swapped_cut_or_zeroed_file_is_reported() {
    let (disk, there) = journal_with_all_file_kinds();
    let names: Vec<_> = disk.list().unwrap();
    // The journal alone cannot detect the loss of the last file; the state can.
    let sealed = &names[..names.len() - 1];
    let changed = |change: &dyn Fn(&MemoryDisk)| {
        let damaged = disk.crash(0);
        change(&damaged);
        damaged
    };
    for (number, name) in sealed.iter().enumerate() {
        let bytes = disk.contents(name).unwrap();
        let without = changed(&|disk| Disk::remove(disk, name).unwrap());
        assert_every_loss_is_reported(&without, &there, &format!("{name} removed"));
        assert!(!verify(&without, &mut |_| ()).unwrap().damage.is_empty(), "{name} removed");
        for length in (0..bytes.len()).step_by(16) {
            let cut = changed(&|disk| disk.put(name, &bytes[..length]));
            assert_every_loss_is_reported(&cut, &there, &format!("{name} cut at {length}"));
            assert!(!verify(&cut, &mut |_| ()).unwrap().damage.is_empty(), "{name} cut at {length}");
        }
        for start in (0..bytes.len()).step_by(256) {
            let mut zeroed = bytes.clone();
            zeroed[start..bytes.len().min(start + 512)].fill(0);
            let zeroed = changed(&|disk| disk.put(name, &zeroed));
            assert_every_loss_is_reported(&zeroed, &there, &format!("{name} zeroed at {start}"));
            assert!(!verify(&zeroed, &mut |_| ()).unwrap().damage.is_empty(), "{name} zeroed at {start}");
        }
        for other in &names[number + 1..] {
            let swapped = changed(&|disk| {
                let (one, two) = (disk.contents(name).unwrap(), disk.contents(other).unwrap());
                disk.put(name, &two);
                disk.put(other, &one);
            });
            assert_every_loss_is_reported(&swapped, &there, &format!("{name} swapped with {other}"));
        }
    }
}

/// The bytes of an appended file, a rewritten file and a gap marker. They are a public promise and
/// never change.
#[test]
fn file_bytes_match_format_1() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    journal.append(at(1_000), &[vec![record(1), record(2)], vec![record(3)]]).unwrap();
    let appended = disk.contents(&file_name(Position(1))).unwrap();
    fill(&mut journal, 200);
    let sealed = journal.reader().sealed_segments();
    journal.rewrite_segment(sealed[0].0, &mut |position, _| Fate::keep_if(position.0 < 3)).unwrap();
    journal.rewrite_segment(sealed[1].0, &mut |_, _| Fate::Remove).unwrap();
    let rewritten = [sealed[0], sealed[1]].map(|(first, _)| disk.contents(&file_name(first)).unwrap());
    let [thinned, noted] = rewritten;
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let found: Vec<_> = [appended, thinned, noted].into_iter().map(hex).collect();
    let golden: Vec<_> = include_str!("golden.txt").lines().collect();
    assert_eq!(found, golden);
}

#[test]
fn mutations_are_caught() {
    fails_with(Mutation::LeaveNoNote, adjacent_emptied_segments_merge_into_one_gap_marker);
    fails_with(Mutation::IgnoreChecksums, flipped_bit_costs_only_its_frame_and_is_reported);
    fails_with(Mutation::KeepTornTail, torn_tail_is_truncated_at_every_byte_of_last_frame);
    fails_with(Mutation::GivePositionTwice, appended_records_are_readable_before_and_after_reopen);
    fails_with(Mutation::AnswerBeforeFlush, faults::crash_keeps_every_synced_record);
}

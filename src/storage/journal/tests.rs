//! Promises of the journal: what was acknowledged survives, and damage costs what it hit and is reported.

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

const ROOMS: [usize; 3] = [0, 300, 5_000];

/// As [`open`], with room of some size or other behind the end.
fn open_with_room(disk: &MemoryDisk, number: u64) -> (Journal, OpenReport) {
    let preallocation_bytes = ROOMS[number as usize % 3];
    Journal::open(Arc::new(disk.clone()), JournalOptions { preallocation_bytes, ..options() }).unwrap()
}

/// One record per commit, saying its own position; commit time 1000 + position / 4.
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
fn what_was_appended_is_read_back_before_and_after_a_reopen() {
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
    assert_eq!(journal.last_time(), at(1_050), "commit times never go back");
}

#[test]
fn units_of_one_commit_share_one_sync_and_get_dense_positions() {
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
fn a_torn_tail_is_cut_at_every_byte_of_the_last_frame() {
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
fn a_hole_in_the_last_commit_is_torn_and_not_damage() {
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
fn a_hole_in_the_last_commit_is_damage_when_a_later_one_has_begun() {
    for room in 0..3 {
        let disk = MemoryDisk::new();
        let (mut journal, _) = open_with_room(&disk, room);
        fill(&mut journal, 3);
        let units: Vec<_> = (4..40).map(|n| vec![record(n)]).collect();
        journal.append(at(2_000), &units).unwrap();
        let end = journal.end as usize;
        fill(&mut journal, 1);
        let name = file_name(Position(1));
        let mut bytes = disk.contents(&name).unwrap();
        // Of the later commit only the beginning has arrived; the first frame of the one before has rotted.
        bytes[end + 10..journal.end as usize].fill(0);
        let frames = bytes.windows(4).enumerate().filter(|(_, four)| four == b"BLTF").map(|(at, _)| at);
        let first = frames.collect::<Vec<_>>()[3];
        bytes[first + 70] ^= 1;
        disk.put(&name, &bytes);
        let (journal, report) = open_with_room(&disk, room);
        assert_eq!((report.last, report.damage.len()), (Position(39), 1), "room {room}: {report:?}");
        assert_eq!(all(&journal).last(), Some(&39));
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_middle_frame_costs_that_frame_and_is_reported() {
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
fn one_damaged_copy_of_a_file_header_costs_nothing_and_two_cost_the_segment_loudly() {
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
fn a_sync_error_poisons_for_good() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    fill(&mut journal, 3);
    disk.inject(Fault::once(Operation::SyncData, Fault::EIO));
    assert!(matches!(journal.append(at(1), &[vec![record(4)]]), Err(AppendError::Io(_))));
    assert!(matches!(journal.append(at(1), &[vec![record(4)]]), Err(AppendError::Poisoned)));
    assert_eq!(journal.reader().last_position(), Position(3), "what is not durable is not shown");
    assert_eq!(all(&journal), [1, 2, 3]);
}

#[test]
fn room_behind_the_end_is_neither_torn_nor_damaged_and_is_written_to() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open_with_room(&disk, 2);
    let mut grown = 0;
    for round in 1..=200 {
        let before = disk.bytes_used();
        fill(&mut journal, 1);
        grown += u64::from(disk.bytes_used() > before);
        if round % 7 == 0 {
            let found = verify(&disk, &mut |_| ()).unwrap();
            assert_eq!((found.torn_bytes, found.damage), (0, Vec::new()), "round {round}");
            drop(journal);
            let (again, report) = open_with_room(&disk.crash(round), round);
            assert_eq!((report.last.0, report.torn_bytes, report.damage), (round, 0, Vec::new()));
            assert_eq!(all(&again), (1..=round).collect::<Vec<_>>());
            journal = open_with_room(&disk, 2).0;
        }
    }
    let sealed = journal.reader().sealed_segments();
    assert!(sealed.len() > 2 && grown < 20, "{grown} of 200 commits made a file grow");
    // A sealed file has none.
    for (first, bytes) in sealed {
        assert_eq!(disk.contents(&file_name(first)).unwrap().len() as u64, bytes);
    }
}

/// Found by fuzzing: a frame that claims more than is left of it swallowed what was appended later.
#[test]
fn what_is_appended_after_damage_stays_whatever_the_damage_looks_like() {
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
fn a_segment_grows_on_while_no_further_file_can_be_opened() {
    const EMFILE: i32 = 24;
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    fill(&mut journal, 20);
    let before = journal.reader().sealed_segments().len();
    disk.inject(Fault { operation: Operation::Create, errno: EMFILE, skip: 0, count: u64::MAX });
    fill(&mut journal, 40);
    assert_eq!(journal.reader().sealed_segments().len(), before, "a segment was begun without a file");
    disk.clear_faults();
    fill(&mut journal, 20);
    assert!(journal.reader().sealed_segments().len() > before, "no segment is begun any more");
    assert_eq!(all(&journal), (1..=80).collect::<Vec<_>>());
    let (journal, report) = open(&disk.crash(1));
    assert_eq!((all(&journal), report.damage), ((1..=80).collect::<Vec<_>>(), vec![]));
}

#[test]
fn a_full_disk_is_survived_at_every_amount_of_room() {
    for room in 0..400 {
        let disk = MemoryDisk::new();
        let (mut journal, _) = open_with_room(&disk, room);
        fill(&mut journal, 20);
        // The room that the file has is no longer there for the taking: a new segment begins.
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
fn a_rewrite_leaves_gaps_and_positions_and_readers_work_on() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    fill(&mut journal, 100);
    let reader = journal.reader();
    let sealed = reader.sealed_segments();
    let (first, second) = (sealed[0].0, sealed[1].0);
    let size = reader.size_bytes();
    let report = journal.rewrite_segment(first, &mut |position, _| position.0 % 3 == 0).unwrap();
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
    let report = journal.rewrite_segment(first, &mut |_, _| false).unwrap();
    assert_eq!((report.kept, report.bytes_after), (0, 128), "a note stays");
    assert_eq!(all(&journal), (second.0..=100).collect::<Vec<_>>());
    let active = disk.list().unwrap().into_iter().max().unwrap();
    let active = segment::parse_file_name(&active).unwrap();
    let refused = journal.rewrite_segment(active, &mut |_, _| false);
    assert!(matches!(refused, Err(RewriteError::NotSealed(_))));
}

#[test]
fn readers_see_a_growing_dense_prefix_while_the_writer_appends_and_rewrites() {
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
                        // Sealed and rewritten meanwhile.
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
                journal.rewrite_segment(*first, &mut |position, _| position.0 % 2 == 0).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_crash_keeps_every_synced_record() {
    for seed in 0..600_u64 {
        let disk = MemoryDisk::new();
        let (mut journal, _) = open_with_room(&disk, seed);
        fill(&mut journal, 10 + seed % 40);
        let durable = journal.reader().last_position().0;
        // A commit of several frames that never gets its sync.
        disk.inject(Fault::once(Operation::SyncData, Fault::EIO));
        let units: Vec<_> = (durable + 1..durable + 80).map(|n| vec![record(n)]).collect();
        assert!(journal.append(at(3_000), &units).is_err());
        let mut after = disk.crash(seed);
        for round in 0..2 {
            let (mut journal, report) = open_with_room(&after, seed / 3);
            assert_eq!(report.damage, [], "seed {seed}");
            let found = all(&journal);
            assert!(found.len() as u64 >= durable, "seed {seed}: {} of {durable}", found.len());
            assert_eq!(found, (1..=found.len() as u64).collect::<Vec<_>>(), "seed {seed}");
            fill(&mut journal, 3);
            after = after.crash(seed + 1_000 + round);
        }
        assert_eq!(verify(&after, &mut |_| ()).unwrap().damage, [], "seed {seed}");
    }
}

/// Appends, rewrites, reads and opens again, whatever fails; gives the last position that was acknowledged.
fn work_on(disk: &MemoryDisk, number: u64) -> u64 {
    let mut acknowledged = 0;
    for _ in 0..2 {
        let options = JournalOptions { preallocation_bytes: ROOMS[number as usize % 3], ..options() };
        let Ok((mut journal, _)) = Journal::open(Arc::new(disk.clone()), options) else { continue };
        for _ in 0..40 {
            let number = journal.next_position().0;
            if journal.append(at(1_000 + number), &[vec![record(number)]]).is_ok() {
                acknowledged = number;
            }
        }
        let sealed = journal.reader().sealed_segments();
        for (number, (first, _)) in sealed.into_iter().take(3).enumerate() {
            // Two are dropped, so that their notes become one, and one is thinned out.
            let keep = |position: u64| number == 2 && (position > 30 || position.is_multiple_of(2));
            drop(journal.rewrite_segment(first, &mut |position, _| keep(position.0)));
        }
        for frame in journal.reader().frames_from(Position(1)).filter_map(Result::ok) {
            assert!(frame.iter().all(|(position, found)| *found == record(position.0)));
        }
    }
    acknowledged
}

/// What may be gone after [`work_on`]: what the first three segments held.
const PERHAPS_REWRITTEN: u64 = 90;

/// Crashes of each kind of failure whose remains are verified.
const CRASHES_PER_CASE: u64 = 20;

/// The power fails at each operation in turn; what is left is verified, opened, written to and verified again.
#[test]
fn power_cut_at_any_operation_leaves_a_sound_journal() {
    const SEEDS: u64 = 6;
    let mut cuts = 0;
    for operations in 0.. {
        let mut is_cut = false;
        for seed in 0..SEEDS {
            let story = format!("the power fails after {operations} operations, seed {seed}");
            let disk = MemoryDisk::new();
            disk.cut_power_after(operations, operations * SEEDS + seed);
            let acknowledged = work_on(&disk, operations);
            is_cut = disk.disk_after_power_cut().is_some();
            let left = disk.disk_after_power_cut().unwrap_or_else(|| disk.crash(seed));
            assert_eq!(verify(&left, &mut |_| ()).unwrap().damage, [], "{story}");
            let (mut journal, report) = open(&left);
            assert_eq!(report.damage, [], "{story}");
            let found = all(&journal);
            let missing = (PERHAPS_REWRITTEN..=acknowledged).find(|number| !found.contains(number));
            assert_eq!(missing, None, "{story}: {found:?}");
            fill(&mut journal, 3);
            assert_eq!(
                verify(&left.crash(seed), &mut |_| ()).unwrap().damage,
                [],
                "{story}, then appended to"
            );
        }
        if !is_cut {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 100, "the power failed at {cuts} operations only");
}

/// The n-th operation of each kind fails, alone or with all that follow, for every n until the whole run goes through.
#[test]
fn whichever_operation_of_the_disk_fails_nothing_that_was_acknowledged_is_lost() {
    use Operation::{Create, List, Open, Read, Remove, Rename, SyncData, SyncDir, Truncate, Write};
    for operation in [Write, SyncData, Read, List, Open, Create, Rename, Remove, SyncDir, Truncate] {
        for (errno, count) in
            [(Fault::EIO, 1), (Fault::ENOSPC, 1), (Fault::EIO, u64::MAX), (Fault::ENOSPC, u64::MAX)]
        {
            let mut skip = 0;
            loop {
                let story = format!("{operation:?} {errno} after {skip}, {count} times");
                let disk = MemoryDisk::new();
                disk.inject(Fault { operation, errno, skip, count });
                let acknowledged = work_on(&disk, skip);
                let faults_hit = disk.faults_hit() > 0;
                disk.clear_faults();
                let (journal, report) = open(&disk.crash(skip));
                assert_eq!(report.damage, [], "{story}");
                let found = all(&journal);
                let missing = (PERHAPS_REWRITTEN..=acknowledged).find(|number| !found.contains(number));
                assert_eq!(missing, None, "{story}: {found:?}");
                for seed in skip..skip + CRASHES_PER_CASE {
                    let left = verify(&disk.crash(seed), &mut |_| ()).unwrap();
                    assert_eq!(left.damage, [], "{story}, crash {seed}");
                }
                if !faults_hit {
                    break;
                }
                skip += 1;
            }
            assert!(skip > 0 || operation == Truncate, "{operation:?} is never done");
        }
    }
}

#[test]
fn dropped_segments_leave_one_note_between_them_and_are_no_damage() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    fill(&mut journal, 300);
    let sealed: Vec<_> = journal.reader().sealed_segments().into_iter().map(|(first, _)| first).collect();
    assert!(sealed.len() > 7);
    // In this order, so that a note meets one before it and one behind it.
    for dropped in [2, 5, 3, 4, 0] {
        journal.rewrite_segment(sealed[dropped], &mut |_, _| false).unwrap();
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
    assert_eq!(
        notes, 3,
        "of the first, the third and fourth and fifth, and of the sixth, which came before those"
    );
}

/// Sealed files of each kind: as written, rewritten, a note in the middle and at the beginning.
fn journal_with_all_file_kinds() -> (MemoryDisk, Vec<u64>) {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    fill(&mut journal, 300);
    let sealed: Vec<_> = journal.reader().sealed_segments().into_iter().map(|(first, _)| first).collect();
    for dropped in [0, 3] {
        journal.rewrite_segment(sealed[dropped], &mut |_, _| false).unwrap();
    }
    for thinned in [2, 4] {
        journal.rewrite_segment(sealed[thinned], &mut |position, _| position.0 % 3 == 0).unwrap();
    }
    let there = all(&journal);
    (disk, there)
}

/// What is not there any more is named, by the check, by the reader and (when it is asked for alone) by each read.
fn every_loss_is_named(disk: &MemoryDisk, there: &[u64], story: &str) {
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
        assert!(in_check, "{story}: the check does not name {position}: {named:?}");
        // What the last file has lost is known to open alone.
        assert!(in_walk || at_open, "{story}: nobody reads of {position}: {read:?}");
    }
    let (again, _) = open(disk);
    assert_eq!(all(&again), left, "{story}: opened twice");
}

#[test]
fn a_file_that_is_missing_swapped_cut_or_zeroed_is_named_whatever_kind_it_is() {
    let (disk, there) = journal_with_all_file_kinds();
    let names: Vec<_> = disk.list().unwrap();
    // The last file is known to the state alone.
    let sealed = &names[..names.len() - 1];
    let changed = |change: &dyn Fn(&MemoryDisk)| {
        let damaged = disk.crash(0);
        change(&damaged);
        damaged
    };
    for (number, name) in sealed.iter().enumerate() {
        let bytes = disk.contents(name).unwrap();
        let without = changed(&|disk| Disk::remove(disk, name).unwrap());
        every_loss_is_named(&without, &there, &format!("{name} removed"));
        assert!(!verify(&without, &mut |_| ()).unwrap().damage.is_empty(), "{name} removed");
        for length in (0..bytes.len()).step_by(16) {
            let cut = changed(&|disk| disk.put(name, &bytes[..length]));
            every_loss_is_named(&cut, &there, &format!("{name} cut at {length}"));
            assert!(!verify(&cut, &mut |_| ()).unwrap().damage.is_empty(), "{name} cut at {length}");
        }
        for start in (0..bytes.len()).step_by(256) {
            let mut zeroed = bytes.clone();
            zeroed[start..bytes.len().min(start + 512)].fill(0);
            let zeroed = changed(&|disk| disk.put(name, &zeroed));
            every_loss_is_named(&zeroed, &there, &format!("{name} zeroed at {start}"));
            assert!(!verify(&zeroed, &mut |_| ()).unwrap().damage.is_empty(), "{name} zeroed at {start}");
        }
        for other in &names[number + 1..] {
            let swapped = changed(&|disk| {
                let (one, two) = (disk.contents(name).unwrap(), disk.contents(other).unwrap());
                disk.put(name, &two);
                disk.put(other, &one);
            });
            every_loss_is_named(&swapped, &there, &format!("{name} swapped with {other}"));
        }
    }
}

/// The bytes of a file as it is appended to, of one that was rewritten, and of one of which a note is left: a public
/// promise, never to be changed.
#[test]
fn the_bytes_of_files_are_those_of_format_1() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = open(&disk);
    journal.append(at(1_000), &[vec![record(1), record(2)], vec![record(3)]]).unwrap();
    let appended = disk.contents(&file_name(Position(1))).unwrap();
    fill(&mut journal, 200);
    let sealed = journal.reader().sealed_segments();
    journal.rewrite_segment(sealed[0].0, &mut |position, _| position.0 < 3).unwrap();
    journal.rewrite_segment(sealed[1].0, &mut |_, _| false).unwrap();
    let rewritten = [sealed[0], sealed[1]].map(|(first, _)| disk.contents(&file_name(first)).unwrap());
    let [thinned, noted] = rewritten;
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let found: Vec<_> = [appended, thinned, noted].into_iter().map(hex).collect();
    let golden: Vec<_> = include_str!("golden.txt").lines().collect();
    assert_eq!(found, golden);
}

#[test]
fn bugs_that_are_put_in_are_caught() {
    fails_with(Mutation::LeaveNoNote, dropped_segments_leave_one_note_between_them_and_are_no_damage);
    fails_with(
        Mutation::IgnoreChecksums,
        a_flipped_bit_anywhere_in_a_middle_frame_costs_that_frame_and_is_reported,
    );
    fails_with(Mutation::KeepTornTail, a_torn_tail_is_cut_at_every_byte_of_the_last_frame);
    fails_with(Mutation::GivePositionTwice, what_was_appended_is_read_back_before_and_after_a_reopen);
    fails_with(Mutation::AnswerBeforeFlush, a_crash_keeps_every_synced_record);
}

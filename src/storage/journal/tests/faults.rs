//! Crashes, power cuts and failing operations: no acknowledged record is lost.

use super::*;

#[test]
pub(super) fn crash_keeps_every_synced_record() {
    for seed in 0..600_u64 {
        let disk = MemoryDisk::new();
        let (mut journal, _) = open_with_preallocation(&disk, seed);
        fill(&mut journal, 10 + seed % 40);
        let durable = journal.reader().last_position().0;
        // A commit of several frames without a successful sync.
        disk.inject(Fault::once(Operation::SyncData, Fault::EIO));
        let units: Vec<_> = (durable + 1..durable + 80).map(|n| vec![record(n)]).collect();
        assert!(journal.append(at(3_000), &units).is_err());
        let mut after = disk.crash(seed);
        for round in 0..2 {
            let (mut journal, report) = open_with_preallocation(&after, seed / 3);
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

/// Appends, rewrites, reads and reopens, and ignores errors. Returns the last acknowledged
/// position.
fn run_workload(disk: &MemoryDisk, number: u64) -> u64 {
    let mut acknowledged = 0;
    for _ in 0..2 {
        let options =
            JournalOptions { preallocation_bytes: PREALLOCATIONS[number as usize % 3], ..options() };
        let Ok((mut journal, _)) = Journal::open(Arc::new(disk.clone()), options) else { continue };
        for _ in 0..40 {
            let number = journal.next_position().0;
            if journal.append(at(1_000 + number), &[vec![record(number)]]).is_ok() {
                acknowledged = number;
            }
        }
        let sealed = journal.reader().sealed_segments();
        for (number, (first, _)) in sealed.into_iter().take(3).enumerate() {
            // Empties two segments, so that their gap markers merge, and thins out a third.
            let keep = |position: u64| number == 2 && (position > 30 || position.is_multiple_of(2));
            drop(journal.rewrite_segment(first, &mut |position, _| Fate::keep_if(keep(position.0))));
        }
        for frame in journal.reader().frames_from(Position(1)).filter_map(Result::ok) {
            assert!(frame.iter().all(|(position, found)| *found == record(position.0)));
        }
    }
    acknowledged
}

/// Highest position that [`run_workload`] may remove: the end of the first three segments.
const REWRITTEN_POSITIONS_MAX: u64 = 90;

/// Verified crashes for each injected failure.
const CRASHES_PER_CASE: u64 = 20;

/// Cuts the power at each operation in turn. Verifies, opens, extends and verifies the surviving
/// files.
#[test]
fn power_cut_at_any_operation_leaves_an_intact_journal() {
    const SEEDS: u64 = 6;
    let mut cuts = 0;
    for operations in 0.. {
        let mut is_cut = false;
        for seed in 0..SEEDS {
            let story = format!("the power fails after {operations} operations, seed {seed}");
            let disk = MemoryDisk::new();
            disk.cut_power_after(operations, operations * SEEDS + seed);
            let acknowledged = run_workload(&disk, operations);
            is_cut = disk.disk_after_power_cut().is_some();
            let left = disk.disk_after_power_cut().unwrap_or_else(|| disk.crash(seed));
            assert_eq!(verify(&left, &mut |_| ()).unwrap().damage, [], "{story}");
            let (mut journal, report) = open(&left);
            assert_eq!(report.damage, [], "{story}");
            let found = all(&journal);
            let missing = (REWRITTEN_POSITIONS_MAX..=acknowledged).find(|number| !found.contains(number));
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
    assert!(cuts > 100, "only {cuts} power cuts");
}

/// Fails the n-th operation of each kind, alone or with all later ones, for every n until a run
/// hits no failure.
#[test]
fn failure_of_any_operation_loses_no_acknowledged_record() {
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
                let acknowledged = run_workload(&disk, skip);
                let faults_hit = disk.faults_hit() > 0;
                disk.clear_faults();
                let (journal, report) = open(&disk.crash(skip));
                assert_eq!(report.damage, [], "{story}");
                let found = all(&journal);
                let missing = (REWRITTEN_POSITIONS_MAX..=acknowledged).find(|number| !found.contains(number));
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
            assert!(skip > 0 || operation == Truncate, "{operation:?} never ran");
        }
    }
}

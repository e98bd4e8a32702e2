//! Tests of the workarounds for sled's defects.

use std::collections::BTreeMap;

use super::range::end_on_failure;
use super::*;
use crate::failpoints::fails_with;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

fn read(rows: &SledRows) -> Rows {
    rows.range(b"A", b"\xff").map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

fn write(rows: &mut SledRows, model: &mut Rows, changes: &[(Vec<u8>, Option<Vec<u8>>)]) {
    for (key, value) in changes {
        match value {
            Some(value) => model.insert(key.clone(), value.clone()),
            None => model.remove(key),
        };
    }
    let changes = changes.iter().map(|(key, value)| {
        let change = value.as_deref().map_or(RowChange::Remove, RowChange::Put);
        (key.as_slice(), change)
    });
    rows.write(changes).unwrap();
}

/// Writes 200 checkpoints of random rows. Returns the rows after each checkpoint.
fn fill(directory: &Path, random: &mut fastrand::Rng) -> Vec<Rows> {
    let mut rows = SledRows::open(directory).unwrap();
    let mut images = vec![Rows::new()];
    for number in 0..200_u32 {
        let mut image = images[images.len() - 1].clone();
        let mut changes: BTreeMap<_, _> = (0..60)
            .map(|_| {
                let value = vec![random.u8(..); random.usize(0..200)];
                (format!("K{:05}", random.u16(0..8_000)).into_bytes(), random.bool().then_some(value))
            })
            .collect();
        changes.insert(b"A".to_vec(), Some(number.to_be_bytes().to_vec()));
        write(&mut rows, &mut image, &changes.into_iter().collect::<Vec<_>>());
        images.push(image);
    }
    assert_eq!(read(&rows), images[200]);
    images
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn flipped_bit_is_rejected_or_yields_a_checkpoint() {
    let seed = crate::failpoints::seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let below = tempfile::tempdir().unwrap();
    let whole = below.path().join("whole");
    let images = fill(&whole, &mut random);
    let (mut refused, mut older) = (0, 0);
    for round in 0..crate::failpoints::rounds(60) {
        let damaged = below.path().join(round.to_string());
        copy_directory(&whole, &damaged);
        let file = damaged.join(if random.u8(0..8) == 0 { "conf" } else { "db" });
        let mut bytes = fs::read(&file).unwrap();
        let at = random.usize(0..bytes.len());
        bytes[at] ^= 1 << random.u8(0..8);
        fs::write(&file, bytes).unwrap();
        match SledRows::open(&damaged) {
            Err(_) => refused += 1,
            Ok(rows) => {
                let found = read(&rows);
                assert_eq!(rows.failure.get(), None);
                let known = images.iter().rposition(|image| *image == found);
                let known = known.unwrap_or_else(|| panic!("seed {seed}, byte {at} of {}", file.display()));
                older += u32::from(known < 200);
            }
        }
        fs::remove_dir_all(&damaged).unwrap();
    }
    assert!(refused > 0 && older > 0, "{refused} rejected, {older} older: no damage was tested");
}

#[test]
fn unreadable_row_is_a_failure_not_a_missing_row() {
    let below = tempfile::tempdir().unwrap();
    let directory = below.path().join("state");
    let images = fill(&directory, &mut fastrand::Rng::with_seed(7));
    // Opens the store without reading its rows, so that sled reads each row on demand.
    let store = Some(SledStore::open(&directory).unwrap());
    let (checksum, failure, recent) = (RowChecksum::default(), OnceCell::new(), RefCell::new(None));
    let (directory_of, compact_at_bytes) = (directory.clone(), u64::MAX);
    let mut rows = SledRows { directory: directory_of, store, checksum, failure, recent, compact_at_bytes };
    let length = fs::metadata(directory.join("db")).unwrap().len();
    let file = File::options().write(true).open(directory.join("db")).unwrap();
    file.set_len(0).and_then(|()| file.set_len(length)).unwrap();
    assert_eq!(rows.failure.get(), None);
    let found = read(&rows);
    assert!(found.len() < images[200].len(), "read all rows from a file of zeros");
    assert!(rows.failure.get().is_some(), "{} rows found without a failure", found.len());
    let written = rows.write([(&b"K"[..], RowChange::Put(b"1"))].into_iter());
    assert!(written.is_err() || rows.failure.get().is_some());
    rows.mark_unreadable();
    drop(rows);
    assert!(matches!(SledRows::open(&directory), Err(StateError::Damaged(_))));
}

#[test]
fn failure_ends_a_range_and_is_recorded() {
    let failure = OnceCell::new();
    let torn = sled::Error::ReportableBug("a page cannot be read".to_owned());
    assert!(end_on_failure(Some(Err(torn)), &failure).is_none());
    assert!(failure.get().unwrap().contains("a page cannot be read"));
    assert!(end_on_failure(None, &failure).is_none());
}

#[test]
fn largest_value_creates_no_blob_file() {
    let below = tempfile::tempdir().unwrap();
    let mut rows = SledRows::open(below.path()).unwrap();
    let value = vec![7; limits::STATE_VALUE_BYTES_MAX];
    for number in 0..20_u8 {
        write(&mut rows, &mut Rows::new(), &[(vec![b'K', number], Some(value.clone()))]);
    }
    assert_eq!(fs::read_dir(below.path().join("blobs")).unwrap().count(), 0);
    drop(rows);
    assert_eq!(read(&SledRows::open(below.path()).unwrap()).len(), 20);
    fs::write(below.path().join("blobs/00"), "x").unwrap();
    assert!(matches!(SledRows::open(below.path()), Err(StateError::Damaged(_))));
}

#[test]
#[should_panic(expected = "a value of 100001 bytes")]
fn oversized_value_is_never_written() {
    let below = tempfile::tempdir().unwrap();
    let mut rows = SledRows::open(below.path()).unwrap();
    let value = vec![7; limits::STATE_VALUE_BYTES_MAX + 1];
    write(&mut rows, &mut Rows::new(), &[(b"K".to_vec(), Some(value))]);
}

#[test]
fn torn_snapshot_is_removed_on_open() {
    let below = tempfile::tempdir().unwrap();
    let directory = below.path().join("state");
    let images = fill(&directory, &mut fastrand::Rng::with_seed(3));
    for _ in 0..2 {
        fs::write(directory.join("snap.00000000000FFFFF.generating"), [0; 100]).unwrap();
        assert_eq!(read(&SledRows::open(&directory).unwrap()), images[200]);
    }
}

#[test]
fn store_with_missing_or_wrong_checksum_is_rejected() {
    for sum in [None, Some(RowChecksum { rows: 1, bytes: 4, hash: 0 }.encode())] {
        let below = tempfile::tempdir().unwrap();
        let mut store = SledStore::open(below.path()).unwrap();
        let mut batch = sled::Batch::default();
        batch.insert(b"K1", b"ab");
        if let Some(sum) = sum {
            batch.insert(CHECKSUM, sum);
        }
        store.apply(batch).unwrap();
        drop(store);
        assert!(matches!(SledRows::open(below.path()), Err(StateError::Damaged(_))));
    }
}

/// Rows of mixed lifetimes: in random order, 19 of 20 are deleted and one stays. This makes sled's
/// file grow.
struct GrowingRows {
    random: fastrand::Rng,
    model: Rows,
    mortal: Vec<Vec<u8>>,
    number: u32,
}

impl GrowingRows {
    fn new() -> Self {
        let random = fastrand::Rng::with_seed(5);
        Self { random, model: Rows::new(), mortal: Vec::new(), number: 0 }
    }

    fn grow(&mut self, rows: &mut SledRows, rounds: u32) {
        for _ in 0..rounds {
            let mut changes = BTreeMap::new();
            for _ in 0..50 {
                let key = format!("K{:09}", self.number).into_bytes();
                changes.insert(key.clone(), Some(vec![7; 1_000]));
                if !self.number.is_multiple_of(20) {
                    self.mortal.push(key);
                }
                self.number += 1;
            }
            while self.mortal.len() > 1_000 {
                let chosen = self.random.usize(0..self.mortal.len());
                changes.insert(self.mortal.swap_remove(chosen), None);
            }
            write(rows, &mut self.model, &changes.into_iter().collect::<Vec<_>>());
        }
    }
}

#[test]
fn oversized_store_is_compacted() {
    const COPY_AT: u64 = 20 * 1024 * 1024;
    let below = tempfile::tempdir().unwrap();
    let directory = below.path().join("state");
    let mut rows = SledRows::open(&directory).unwrap();
    rows.compact_at_bytes = COPY_AT;
    let mut growing = GrowingRows::new();
    let mut copies = 0;
    while copies < 2 {
        growing.grow(&mut rows, 20);
        let before = rows.size_bytes();
        if rows.compact_if_oversized().unwrap() {
            copies += 1;
            rows.compact_at_bytes = COPY_AT;
            assert!(rows.size_bytes() * 2 < before, "{} after {before}", rows.size_bytes());
        }
        assert_eq!(read(&rows), growing.model);
        assert!(growing.number < 200_000, "{before} bytes on disk, {:?}", rows.checksum);
    }
    drop(rows);
    let rows = SledRows::open(&directory).unwrap();
    assert_eq!(read(&rows), growing.model);
    let left: Vec<_> = fs::read_dir(below.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["state"]);
}

#[test]
fn store_without_growth_is_not_compacted() {
    let below = tempfile::tempdir().unwrap();
    let mut rows = SledRows::open(&below.path().join("state")).unwrap();
    rows.compact_at_bytes = 0;
    for number in 0..40_u32 {
        let changes: Vec<_> = (0..500_u32)
            .map(|row| ([&b"K"[..], &number.to_be_bytes(), &row.to_be_bytes()].concat(), Some(vec![1; 12])))
            .collect();
        write(&mut rows, &mut Rows::new(), &changes);
    }
    assert!(
        !rows.compact_if_oversized().unwrap(),
        "{} bytes on disk for {:?}",
        rows.size_bytes(),
        rows.checksum
    );
}

/// Simulates a crash after each step of a compaction.
#[test]
fn crash_at_any_step_of_a_compaction_keeps_the_rows() {
    let below = tempfile::tempdir().unwrap();
    let directory = below.path().join("state");
    let mut rows = SledRows::open(&directory).unwrap();
    let mut growing = GrowingRows::new();
    growing.grow(&mut rows, 30);
    let model = growing.model;
    rows.write_compacted_copy().unwrap();
    drop(rows);
    let (copied, old) = (sibling(&directory, "copied"), sibling(&directory, "old"));
    let after = |story: &str, step: &dyn Fn(&Path)| {
        let crashed = tempfile::tempdir().unwrap();
        let at = |of: &Path| crashed.path().join(of.file_name().unwrap());
        copy_directory(&directory, &at(&directory));
        copy_directory(&copied, &at(&copied));
        step(crashed.path());
        for _ in 0..2 {
            assert_eq!(read(&SledRows::open(&at(&directory)).unwrap()), model, "{story}");
        }
        for rest in [&copied, &old, &sibling(&directory, "copying")] {
            assert!(!at(rest).exists(), "{story} leaves {}", rest.display());
        }
    };
    after("while it is written", &|at| {
        fs::rename(at.join("state.copied"), at.join("state.copying")).unwrap()
    });
    after("written in part", &|at| {
        fs::rename(at.join("state.copied"), at.join("state.copying")).unwrap();
        File::options().write(true).open(at.join("state.copying/db")).unwrap().set_len(1_000).unwrap();
    });
    after("complete", &|_| ());
    after("with the old one away", &|at| fs::rename(at.join("state"), at.join("state.old")).unwrap());
    after("in its place", &|at| {
        fs::rename(at.join("state"), at.join("state.old")).unwrap();
        fs::rename(at.join("state.copied"), at.join("state")).unwrap();
    });
}

#[test]
fn store_works_after_reopen() {
    let below = tempfile::tempdir().unwrap();
    let mut rows = SledRows::open(&below.path().join("state")).unwrap();
    let mut growing = GrowingRows::new();
    for _ in 0..5 {
        growing.grow(&mut rows, 2);
        rows.reopen().unwrap();
        assert_eq!(read(&rows), growing.model);
    }
}

#[test]
fn mutations_are_caught() {
    fails_with(Mutation::TrustRows, store_with_missing_or_wrong_checksum_is_rejected);
}

//! Tests of the verification: intact directories pass, every kind of damage is reported, and no
//! file changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::*;
use crate::domain::EndpointNumber;
use crate::outbox::conformance::data_directory;
use crate::projections::states::PageStates;
use crate::projections::streams::Head;
use crate::projections::{counters, idempotency, pages, streams};
use crate::storage::state::known_tags;
use crate::storage::state::row_store::{RowChange, RowStore};

/// Reads all files below a directory.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            all.insert(entry.path(), Vec::new());
            all.extend(contents(&entry.path()));
        } else {
            all.insert(entry.path(), std::fs::read(entry.path()).unwrap());
        }
    }
    all
}

/// Verifies a directory, and asserts that no file changed.
fn verified(directory: &Path) -> VerificationReport {
    let before = contents(directory);
    let scratch = tempfile::tempdir().unwrap();
    let (mut stages, mut last) = (Vec::new(), None);
    let report = verify(directory, scratch.path(), &mut |stage, progress| {
        assert!(progress.done <= progress.total.max(progress.done), "{stage:?}: {progress:?}");
        if last != Some(stage) {
            stages.push(stage);
        }
        last = Some(stage);
    });
    assert!(contents(directory) == before, "the verification changed a file");
    stages.sort_by_key(|stage| *stage as u8);
    assert!(stages.windows(2).all(|pair| pair[0] != pair[1]), "a stage occurred twice: {stages:?}");
    report.unwrap()
}

fn problems(directory: &Path) -> Vec<String> {
    verified(directory).problems.listed.into_iter().map(|problem| problem.text).collect()
}

#[test]
fn intact_directory_passes_with_and_without_retention() {
    for (seed, retains) in [(3, false), (4, true), (5, true)] {
        let (_below, directory) = data_directory(seed, retains);
        let report = verified(&directory);
        assert_eq!(report.problems, Problems::default(), "seed {seed}");
        assert!(
            matches!(report.state, StateCheck::Compared { applied, rows } if applied == report.last && rows > 10)
        );
        assert!(!report.endpoints.is_empty());
        // A missing state is not damage: a restored directory has none.
        std::fs::remove_dir_all(directory.join("state")).unwrap();
        let report = verified(&directory);
        assert_eq!((report.problems, report.state), (Problems::default(), StateCheck::Missing));
        assert!(!report.endpoints.is_empty());
    }
}

fn all_rows(directory: &Path) -> Rows {
    let rows = RowStore::open(&directory.join("state")).unwrap();
    rows.range(b"A", b"\xff").map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

/// Changes a row with a correct checksum, as only a bug could.
fn change(directory: &Path, key: &[u8], value: Option<&[u8]>) {
    let mut rows = RowStore::open(&directory.join("state")).unwrap();
    rows.write([(key, value.map_or(RowChange::Remove, RowChange::Put))].into_iter()).unwrap();
}

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Compares the meaning of different rows.
struct Meaning {
    /// Requests that expired before this time may be deleted.
    expired_until: Timestamp,
}

impl Meaning {
    fn is_same(&self, one: &Rows, other: &Rows) -> bool {
        self.events(one) == self.events(other)
            && self.requests(one) == self.requests(other)
            && self.expire_alike(one, other)
            && Self::lanes(one) == Self::lanes(other)
            && Self::streams(one) == Self::streams(other)
            && Self::position_and_counts(one) == Self::position_and_counts(other)
    }

    /// A later entry of a block may override an earlier one.
    fn events(&self, rows: &Rows) -> impl PartialEq + use<> {
        let last = pages::page_at_or_below(rows, u64::MAX).unwrap_or(0);
        (0..=last)
            .map(|page| (pages::events(rows, page), PageStates::new(rows, page).into_listed()))
            .collect::<Vec<_>>()
    }

    fn requests(&self, rows: &Rows) -> BTreeMap<[u8; 16], idempotency::Known> {
        let scopes = rows.keys().filter(|key| key[0] == b'I' && key.len() == 17);
        let scopes = scopes.map(|key| <[u8; 16]>::try_from(&key[1..]).unwrap());
        let known = scopes.filter_map(|scope| Some((scope, idempotency::known(rows, &scope)?)));
        known.filter(|(_, known)| known.expires_at.is_none_or(|at| at > self.expired_until)).collect()
    }

    /// The first version of an empty open block has no meaning.
    fn streams(rows: &Rows) -> impl PartialEq + use<> {
        let tenants = ["default", "other", "workers"].map(|tenant| tenant.parse().unwrap());
        let of_tenant = |tenant: &Tenant| {
            let all = streams::list(rows, tenant, "", None, usize::MAX).into_iter();
            let with_positions = |(name, head): (StreamName, Head)| {
                let positions = streams::positions(rows, tenant, &name, 1..=head.version);
                (name, head, positions)
            };
            all.map(with_positions).collect::<Vec<_>>()
        };
        tenants.iter().map(of_tenant).collect::<Vec<_>>()
    }

    /// Missing counters equal zero counters.
    fn lanes(rows: &Rows) -> Vec<(EndpointNumber, counters::Lane)> {
        let all = counters::all(rows).into_iter();
        all.filter(|(_, lane)| *lane != counters::Lane::default()).collect()
    }

    /// Duplicate entries count once.
    fn expiries(&self, rows: &Rows) -> BTreeSet<(u64, Vec<u8>)> {
        let blocks = rows.iter().filter(|(key, _)| key[0] == b'J');
        let hour = |key: &[u8]| u64::from_be_bytes(key[1..9].try_into().unwrap());
        let blocks = blocks.map(|(key, scopes)| (hour(key), scopes));
        blocks.flat_map(|(hour, all)| all.chunks(16).map(move |scope| (hour, scope.to_vec()))).collect()
    }

    /// Expired scopes need an entry only while they exist.
    fn expire_alike(&self, one: &Rows, other: &Rows) -> bool {
        let hour_of = |at: Timestamp| at.millis() / 3_600_000;
        let of_now = |(hour, _): &(u64, Vec<u8>)| *hour >= hour_of(self.expired_until);
        let (one, noted) = (self.expiries(one), self.expiries(other));
        let scopes = other.keys().filter(|key| key[0] == b'I' && key.len() == 17);
        let mut expiring = scopes.filter_map(|key| {
            let known = idempotency::known(other, &<[u8; 16]>::try_from(&key[1..]).unwrap());
            Some((hour_of(known?.expires_at?), key[1..].to_vec()))
        });
        one.into_iter().filter(of_now).eq(noted.clone().into_iter().filter(of_now))
            && expiring.all(|expiry| noted.contains(&expiry))
    }

    fn position_and_counts(rows: &Rows) -> Vec<u64> {
        let cursor = rows.get(&b"A"[..]).cloned().unwrap_or_default();
        let mut reader = crate::codec::Reader::new(&cursor);
        (0..5).filter_map(|_| reader.get_varint().ok()).collect()
    }
}

/// Changes the layout number: an earlier layout is reported as such, and any other one as a
/// problem.
#[test]
fn changed_layout_of_the_state_is_reported() {
    let (below, whole) = data_directory(20, false);
    let cursor = all_rows(&whole)[&b"A"[..]].clone();
    let layout = cursor[0];
    for number in (0..layout + 4).chain([127]).filter(|number| *number != layout) {
        let mut changed = cursor.clone();
        changed[0] = number;
        let damaged = below.path().join("damaged");
        copy_directory(&whole, &damaged).unwrap();
        change(&damaged, b"A", Some(&changed));
        let report = verified(&damaged);
        let is_earlier = (1..layout).contains(&number);
        assert_eq!(report.state == StateCheck::EarlierLayout, is_earlier, "layout {number}: {report:?}");
        assert!(is_earlier || report.problems.count > 0, "layout {number}: {report:?}");
        std::fs::remove_dir_all(&damaged).unwrap();
    }
}

/// Kinds of rows that [`missing_changed_or_added_row_is_detected`] damages: all, except the
/// checksum row, which every write replaces.
fn damaged_tags() -> impl Iterator<Item = u8> {
    known_tags().filter(|tag| *tag != b'0')
}

#[test]
fn missing_changed_or_added_row_is_detected() {
    let seed = crate::failpoints::seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut found: BTreeMap<char, u32> = BTreeMap::new();
    let missed = |found: &BTreeMap<char, u32>| -> Vec<char> {
        let is_missed = |tag: &char| found.get(tag).is_none_or(|count| *count == 0);
        damaged_tags().map(char::from).filter(is_missed).collect()
    };
    // At least two directories, and until rows of every kind were damaged.
    for directory in 20..40 {
        if directory > 21 && missed(&found).is_empty() {
            break;
        }
        let (below, whole) = data_directory(directory, false);
        let rows = all_rows(&whole);
        let last = verified(&whole).last;
        let copy = below.path().join("copy");
        copy_directory(&whole.join("state"), &copy).unwrap();
        let meaning = Meaning { expired_until: State::open(&copy, last).unwrap().cursor().expired_until };
        for tag in damaged_tags() {
            let of_tag: Vec<_> = rows.iter().filter(|(key, _)| key[0] == tag).collect();
            let Some((key, value)) = random.choice(of_tag) else { continue };
            // The rows of an index are empty.
            let mut changed = if value.is_empty() { vec![0] } else { value.clone() };
            let at = random.usize(0..changed.len());
            changed[at] ^= 1 << random.u8(0..7);
            let mut invented = key.clone();
            *invented.last_mut().unwrap() ^= 0x40;
            let cases = [(key, None), (key, Some(&changed)), (&invented, Some(value))];
            for (number, (key, value)) in cases.into_iter().enumerate() {
                let damaged = below.path().join("damaged");
                copy_directory(&whole, &damaged).unwrap();
                change(&damaged, key, value.map(Vec::as_slice));
                let mut after = rows.clone();
                match value {
                    Some(value) => after.insert(key.clone(), value.clone()),
                    None => after.remove(key),
                };
                let report = verified(&damaged);
                let listed = report.problems.listed;
                let tag = char::from(tag);
                // With an earlier layout in the cursor, the next start rebuilds the state
                // regardless of its content.
                let is_earlier = tag == 'A' && report.state == StateCheck::EarlierLayout;
                // The row of an erasure may outlive the content.
                let is_late = tag == 'H' && number == 2;
                let is_same = || "EOIJLAS".contains(tag) && meaning.is_same(&rows, &after);
                let harmless = after == rows || is_earlier || is_late || is_same();
                assert!(
                    !listed.is_empty() || harmless,
                    "BALTO_TEST_SEED={seed}, directory {directory}, case {number}: undetected change of {tag} {key:?}"
                );
                *found.entry(tag).or_default() += u32::from(!listed.is_empty());
                std::fs::remove_dir_all(&damaged).unwrap();
            }
        }
        // A row of an unknown kind.
        change(&whole, b"Zebra", Some(b"1"));
        assert!(problems(&whole)[0].contains("unknown kind 90"));
    }
    let missed = missed(&found);
    assert!(missed.is_empty(), "damage of these kinds was not detected: {missed:?}");
}

#[test]
fn missing_foreign_or_newer_stamp_is_reported() {
    let (_below, directory) = data_directory(1, false);
    for (stamp, expected) in [
        (Some("balto data directory, format 2\n"), "of this version"),
        (Some("something"), "something"),
        (Some(""), "of this version"),
        (None, "FORMAT is missing"),
    ] {
        match stamp {
            Some(stamp) => std::fs::write(directory.join(FORMAT_FILE), stamp).unwrap(),
            None => std::fs::remove_file(directory.join(FORMAT_FILE)).unwrap(),
        }
        let listed = problems(&directory);
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert!(listed[0].contains(expected) && listed[0].contains("not a data directory"), "{listed:?}");
    }
}

#[test]
fn lost_end_of_the_journal_is_reported() {
    let (_below, directory) = data_directory(2, false);
    let last = verified(&directory).last;
    let mut files: Vec<_> = std::fs::read_dir(directory.join("journal")).unwrap().collect();
    files.sort_by_key(|file| file.as_ref().unwrap().file_name());
    let newest = files.pop().unwrap().unwrap().path();
    std::fs::remove_file(newest).unwrap();
    let listed = problems(&directory);
    assert!(listed.iter().any(|listed| listed.contains(&format!("to {last} are missing"))), "{listed:?}");
}

#[test]
fn flipped_bit_of_the_journal_is_detected_or_harmless() {
    let seed = crate::failpoints::seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let (_below, directory) = data_directory(6, true);
    let files: Vec<_> = std::fs::read_dir(directory.join("journal")).unwrap().collect();
    let files: Vec<_> = files.into_iter().map(|file| file.unwrap().path()).collect();
    let whole = verified(&directory);
    let mut found = 0;
    for _ in 0..crate::failpoints::rounds(40) {
        let file = random.choice(&files).unwrap();
        let bytes = std::fs::read(file).unwrap();
        let at = random.usize(0..bytes.len());
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << random.u8(0..8);
        std::fs::write(file, &flipped).unwrap();
        let report = verified(&directory);
        // Damage is harmless in one copy of a file header, and in the preallocated zeros.
        let same =
            (report.journal.records, report.journal.frames) == (whole.journal.records, whole.journal.frames);
        let story = format!("BALTO_TEST_SEED={seed}: byte {at} of {}", file.display());
        assert!(report.problems.count > 0 || same, "{story}: {report:?}");
        found += u32::from(report.problems.count > 0);
        std::fs::write(file, bytes).unwrap();
    }
    assert!(found > 10, "only {found} detected");
}

#[test]
fn unopenable_state_is_reported_and_left_unchanged() {
    let (_below, directory) = data_directory(7, false);
    let file = directory.join("state/db");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, vec![7; bytes.len()]).unwrap();
    let report = verified(&directory);
    assert_eq!((report.problems.count, report.state), (1, StateCheck::NotCompared));
    assert!(report.problems.listed[0].text.contains("the next start rebuilds it"), "{:?}", report.problems);
    assert!(!report.endpoints.is_empty());
}

#[test]
fn directory_in_use_is_not_checked() {
    let (_below, directory) = data_directory(8, false);
    let lock = File::options().create(true).truncate(false).write(true).open(directory.join("LOCK")).unwrap();
    lock.try_lock().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let refused = verify(&directory, scratch.path(), &mut |_, _| ());
    assert!(matches!(refused, Err(VerifyError::Locked(_))), "{refused:?}");
    drop(lock);
    assert!(problems(&directory).is_empty());
    let nowhere = verify(&directory.join("nowhere"), scratch.path(), &mut |_, _| ());
    assert!(matches!(nowhere, Err(VerifyError::Io { .. })), "{nowhere:?}");
}

#[test]
fn problems_beyond_the_list_limit_are_counted() {
    let mut problems = Problems::default();
    (0..250).for_each(|number| problems.add(number.to_string()));
    assert_eq!((problems.listed.len(), problems.count), (PROBLEMS_LISTED_MAX, 250));
}

//! The index of streams against a plain list.

use std::collections::BTreeMap;

use super::*;
use crate::projections::audit::{Terms, audit};
use crate::projections::pages::{Blocks, EventEntry, TargetList};
use crate::projections::retention::Cutoffs;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

fn tenant() -> Tenant {
    "acme".parse().unwrap()
}

fn stream(name: &str) -> StreamName {
    name.parse().unwrap()
}

fn at(version: u64) -> Timestamp {
    Timestamp::from_millis(1_000 + version)
}

/// Rows with one stream whose version `n` is at position `10 n`.
fn rows(versions: impl Iterator<Item = u64>) -> Map {
    let mut rows = Map::new();
    for version in versions {
        append(&mut rows, &tenant(), &stream("s"), version, at(version), Position(10 * version));
    }
    rows
}

fn all(rows: &Map) -> Vec<(u64, Position)> {
    positions(rows, &tenant(), &stream("s"), 1..=u64::MAX)
}

fn expected(versions: RangeInclusive<u64>) -> Vec<(u64, Position)> {
    versions.map(|version| (version, Position(10 * version))).collect()
}

#[test]
fn positions_cross_blocks() {
    for last in [1, 63, 64, 65, 128, 1_000] {
        let rows = rows(1..=last);
        assert_eq!(all(&rows), expected(1..=last), "{last}");
        assert_eq!(rows.len() as u64, 1 + last / BLOCK_VERSIONS, "rows of {last} versions");
        for versions in [1..=1, 60..=70, 64..=64, 65..=65, last..=last, last + 1..=last + 9] {
            let wanted: Vec<_> = versions.clone().filter(|version| *version <= last).collect();
            let found = positions(&rows, &tenant(), &stream("s"), versions.clone());
            let found: Vec<_> = found.into_iter().map(|(version, _)| version).collect();
            assert_eq!(found, wanted, "{versions:?} of {last}");
        }
        assert!(rows.values().all(|row| row.len() < 300), "rows are small");
    }
}

#[test]
fn deleted_versions_are_not_read() {
    let mut rows = rows(1..=200);
    for deleted in [1, 2, 5, 64, 130] {
        forget(&mut rows, "acme", "s", deleted);
        assert_eq!(all(&rows), expected(deleted + 1..=200), "{deleted}");
    }
    let names = ("acme", "s");
    let below = |version: u64| newest_until(&rows, names, Position(10 * version - 1)).map(|at| at.0 / 10);
    assert_eq!([6, 5, 3, 64, 131].map(below), [Some(4), Some(4), None, Some(63), Some(129)]);
    let above = |version: u64| oldest_from(&rows, names, Position(10 * version)).map(|at| at.0 / 10);
    assert_eq!(
        [1, 5, 64, 130, 200, 201].map(above),
        [Some(3), Some(6), Some(65), Some(131), Some(200), None]
    );
    for deleted in (3..130).filter(|version| ![5, 64].contains(version)) {
        forget(&mut rows, "acme", "s", deleted);
    }
    assert_eq!(rows.len(), 2, "blocks without events are removed");
    forget(&mut rows, "acme", "s", 3);
    assert_eq!(head(&rows, &tenant(), &stream("s")).unwrap().first_version, 131, "it never goes back");
    forget(&mut rows, "acme", "s", 200);
    assert_eq!(all(&rows), []);
    append(&mut rows, &tenant(), &stream("s"), 201, at(201), Position(2_010));
    assert_eq!(all(&rows), expected(201..=201), "versions go on");
    assert_eq!(head(&rows, &tenant(), &stream("s")).unwrap().first_at, at(1));
    assert_eq!(newest_until(&rows, names, Position(2_000)), Some(Position(1_990)), "kept ones are listed");
}

#[test]
fn rebuild_with_a_gap_begins_behind_it() {
    for (first, gap, last) in [(1, 5, 9), (1, 64, 70), (1, 65, 200), (100, 130, 131), (3, 129, 300)] {
        let rows = rows((first..gap).chain(gap + 1..=last));
        assert_eq!(all(&rows), expected(gap + 1..=last), "{first} to {last} without {gap}");
        let kept = head(&rows, &tenant(), &stream("s")).unwrap();
        assert_eq!((kept.first_version, kept.version, kept.first_at), (gap + 1, last, at(first)));
    }
}

#[test]
fn lists_are_ordered_and_stay_in_their_tenant() {
    let mut rows = Map::new();
    for (owner, name) in
        [("acme", "order-2"), ("acme", "order-1"), ("acme", "pet"), ("acm", "order-9"), ("acmes", "order-8")]
    {
        append(&mut rows, &owner.parse().unwrap(), &stream(name), 1, at(1), Position(1));
    }
    let names = |prefix: &str, after: Option<&str>, limit| {
        let after = after.map(stream);
        let found = list(&rows, &tenant(), prefix, after.as_ref(), limit);
        found.into_iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names("", None, 9), ["order-1", "order-2", "pet"]);
    assert_eq!(names("order-", None, 9), ["order-1", "order-2"]);
    assert_eq!(names("", Some("order-1"), 1), ["order-2"]);
    assert_eq!(names("order-", Some("order-2"), 9), Vec::<String>::new());
    assert_eq!(names("order-", Some("pet"), 9), Vec::<String>::new());
    assert_eq!(names("x", None, 9), Vec::<String>::new());
}

/// Rows of the index and of the events, so that an audit can compare them.
fn indexed(versions: impl Iterator<Item = u64> + Clone) -> Map {
    let mut rows = rows(versions.clone());
    let mut blocks = Blocks::default();
    for version in versions {
        let entry = EventEntry {
            position: Position(10 * version),
            accepted_at: at(version),
            first_due: at(version),
            tenant: "acme".into(),
            event_type: "a".into(),
            stream: Some(("s".into(), version)),
            order: 0,
            bytes: 0,
            targets: TargetList::Listed(Vec::new()),
            erased_at: None,
        };
        blocks.add_event(&mut rows, 0, &entry);
    }
    rows
}

/// The differences that an audit of the streams finds.
fn differences(kept: &Map, folded: &Map, gaps: bool) -> Vec<String> {
    let mut found = Vec::new();
    let cutoffs = Cutoffs { events: None, stream_events: Some(at(1_000)) };
    let terms = Terms { cutoffs, gaps, ..Terms::default() };
    audit(kept, folded, &terms, &mut |difference| found.push(difference), &mut |_| ());
    found.retain(|difference| difference.contains("stream"));
    found
}

#[test]
fn audit_accepts_what_retention_deletes_and_nothing_else() {
    let folded = indexed(1..=150);
    assert_eq!(differences(&folded, &folded, false), Vec::<String>::new());
    // Retention deleted the first 70 events.
    let mut kept = indexed(71..=150);
    let complete = rows(1..=150);
    kept.retain(|key, _| key[0] != b'S' && key[0] != b'V');
    kept.extend(complete);
    for version in 1..=70 {
        forget(&mut kept, "acme", "s", version);
    }
    assert_eq!(differences(&kept, &folded, false), Vec::<String>::new());
    // The journal lost a part of them.
    assert_eq!(differences(&kept, &indexed(40..=150), true), Vec::<String>::new());
    let mut moved = kept.clone();
    forget(&mut moved, "acme", "s", 71);
    assert_eq!(
        differences(&moved, &folded, false).len(),
        2,
        "the first version is too high, the event is there"
    );
    let mut lost = folded.clone();
    lost.remove(&block_key("acme", "s", 1));
    assert_eq!(differences(&lost, &folded, false).len(), 1, "a block is missing");
    let mut other = folded.clone();
    other.insert(block_key("acme", "s", 1), vec![65, 1, 1, 1]);
    assert_eq!(differences(&other, &folded, false).len(), 1, "a block has other positions");
    other = folded.clone();
    other.insert(block_key("acme", "never", 0), vec![1, 1]);
    assert_eq!(differences(&other, &folded, false).len(), 1, "a block has no stream");
}

//! Tests of backups: a journal with gaps, read in small parts, and damaged in transit.

use super::*;
use crate::domain::Record;
use crate::storage::disk::MemoryDisk;
use crate::storage::journal::{Fate, Journal, JournalOptions};

fn record(number: u64) -> Record {
    Record::KeyDeleted { id: format!("key_{number}").parse().unwrap(), at: Timestamp::from_millis(number) }
}

/// Creates fifty commits of two records. With `gaps`, positions that are multiples of seven are
/// removed.
fn journal(gaps: bool) -> Journal {
    let options = JournalOptions { segment_bytes: 900, frame_bytes: 100, ..JournalOptions::new(7) };
    let (mut journal, _) = Journal::open(Arc::new(MemoryDisk::new()), options).unwrap();
    for number in 0..50 {
        let unit = vec![record(2 * number + 1), record(2 * number + 2)];
        journal.append(Timestamp::from_millis(1_000 + number / 3), &[unit]).unwrap();
    }
    for (first, _) in if gaps { journal.reader().sealed_segments() } else { Vec::new() } {
        journal.rewrite_segment(first, &mut |position, _| Fate::keep_if(position.0 % 7 != 0)).unwrap();
    }
    journal
}

fn whole(reader: &JournalReader, until: Position) -> String {
    whole_signed(reader, until, None)
}

fn whole_signed(reader: &JournalReader, until: Position, signing: Option<&BackupSigning>) -> String {
    let (mut text, mut after) = (String::new(), Position(0));
    loop {
        let part = part(reader, after, until, 300, signing).unwrap();
        assert!(part.damaged.is_empty());
        text.push_str(&part.text);
        match part.next {
            Some(next) => after = next,
            None => return text,
        }
    }
}

fn content(reader: &JournalReader) -> Vec<(Position, Timestamp, Vec<u8>)> {
    let (mut all, mut at) = (Vec::new(), Position(1));
    while let Some(step) = reader.raw_from(at).unwrap() {
        all.extend(step.records.into_iter().map(|raw| (raw.position, raw.time, raw.bytes)));
        at = step.next;
    }
    all
}

fn restored(text: &str) -> Result<(RestoreReport, Journal, tempfile::TempDir), RestoreError> {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let restored = restore(&mut text.as_bytes(), &data, 9, BackupTrust::default())?;
    let disk = RealDisk::new(data.join("journal")).unwrap();
    let (journal, report) = Journal::open(Arc::new(disk), JournalOptions::new(8)).unwrap();
    assert_eq!((report.damage, report.torn_bytes), (Vec::new(), 0));
    Ok((restored, journal, directory))
}

#[test]
fn restore_keeps_records_positions_and_times() {
    for gaps in [false, true] {
        let journal = journal(gaps);
        let text = whole(&journal.reader(), Position(100));
        let (report, mut copy, _directory) = restored(&text).unwrap();
        let expected = content(&journal.reader());
        assert_eq!(content(&copy.reader()), expected);
        assert_eq!(
            report,
            RestoreReport { records: expected.len() as u64, last: Position(100), authenticated: false }
        );
        let next = copy.append(Timestamp::from_millis(1), &[vec![record(1)]]).unwrap();
        assert_eq!(next.start, Position(101));
        assert_eq!(copy.last_time(), Timestamp::from_millis(1_016), "the commit time does not decrease");
    }
}

#[test]
fn backup_ends_at_the_given_position() {
    let (report, copy, _directory) = restored(&whole(&journal(false).reader(), Position(41))).unwrap();
    assert_eq!(report, RestoreReport { records: 41, last: Position(41), authenticated: false });
    assert_eq!(content(&copy.reader()).len(), 41);
}

#[test]
fn empty_journal_can_be_backed_up() {
    let options = JournalOptions::new(7);
    let (journal, _) = Journal::open(Arc::new(MemoryDisk::new()), options).unwrap();
    let (report, ..) = restored(&whole(&journal.reader(), Position(0))).unwrap();
    assert_eq!(report, RestoreReport::default());
}

#[test]
fn changed_byte_or_missing_line_is_detected() {
    let text = whole(&journal(true).reader(), Position(100));
    let lines: Vec<_> = text.lines().collect();
    for missing in 0..lines.len() {
        let rest: Vec<_> =
            lines.iter().enumerate().filter(|(at, _)| *at != missing).map(|(_, line)| *line).collect();
        assert!(restored(&format!("{}\n", rest.join("\n"))).is_err(), "without line {missing}");
    }
    for at in (0..text.len()).step_by(37) {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        let changed = String::from_utf8(bytes).unwrap();
        assert!(restored(&changed).is_err(), "byte {at} of {changed}");
    }
    for end in (0..text.len()).step_by(53) {
        assert!(restored(&text[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn backup_with_crlf_line_ends_is_rejected() {
    let text = whole(&journal(false).reader(), Position(10));
    let refused = restored(&text.replace('\n', "\r\n")).err().unwrap();
    assert!(matches!(refused, RestoreError::CarriageReturn(1)), "{refused}");
    let message = refused.to_string();
    assert!(
        message.starts_with("line 1 of the backup ends with CRLF") && message.contains(r"`tr -d '\r'`"),
        "{message}"
    );
    let last = format!("{}\r\n", text.trim_end());
    assert!(matches!(restored(&last), Err(RestoreError::CarriageReturn(number)) if number > 2));
}

#[test]
fn restore_leaves_a_non_empty_directory_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("keep"), "x").unwrap();
    let text = whole(&journal(false).reader(), Position(100));
    let refused = restore(&mut text.as_bytes(), directory.path(), 9, BackupTrust::default());
    assert!(matches!(refused, Err(RestoreError::NotEmpty(_))));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

/// Lists the entries of a directory.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn failed_restore_cleans_up_and_can_be_repeated() {
    let text = whole(&journal(false).reader(), Position(100));
    let half = &text[..text.len() / 2];
    let below = tempfile::tempdir().unwrap();
    // A directory whose parent is missing as well, and an empty one.
    for (path, kept) in [("a/b", None), ("empty", Some("empty"))] {
        let data = below.path().join(path);
        if kept.is_some() {
            std::fs::create_dir(&data).unwrap();
        }
        let failed = restore(&mut half.as_bytes(), &data, 9, BackupTrust::default());
        assert!(
            matches!(failed, Err(RestoreError::Damaged { .. } | RestoreError::Truncated(_))),
            "{failed:?}"
        );
        assert_eq!(names(below.path()), kept.into_iter().collect::<Vec<_>>(), "{path}");
        assert!(kept.is_none() || names(&data).is_empty(), "{path}: {:?}", names(&data));
        restore(&mut text.as_bytes(), &data, 9, BackupTrust::default()).unwrap();
        assert_eq!(names(&data), ["FORMAT", "LOCK", "journal"]);
        std::fs::remove_dir_all(below.path().join(path.split('/').next().unwrap())).unwrap();
    }
}

#[test]
fn restore_resumes_only_over_its_own_leftovers() {
    let text = whole(&journal(false).reader(), Position(100));
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path();
    let make = |names: &[&str]| {
        std::fs::remove_dir_all(data).unwrap();
        std::fs::create_dir(data).unwrap();
        for name in names {
            match *name {
                "journal" => {
                    std::fs::create_dir(data.join(name)).unwrap();
                    std::fs::write(data.join("journal/journal-00000000000000000001.log"), "half").unwrap();
                }
                _ => std::fs::write(data.join(name), "").unwrap(),
            }
        }
    };
    for left in [&["LOCK"][..], &["FORMAT.new", "LOCK"], &["FORMAT.new", "LOCK", "journal"]] {
        make(left);
        let restored = restore(&mut text.as_bytes(), data, 9, BackupTrust::default())
            .unwrap_or_else(|error| panic!("{left:?}: {error}"));
        assert_eq!(
            restored,
            RestoreReport { records: 100, last: Position(100), authenticated: false },
            "{left:?}"
        );
        assert_eq!(names(data), ["FORMAT", "LOCK", "journal"], "{left:?}");
    }
    for other in [
        &["LOCK", "journal"][..],
        &["FORMAT", "LOCK", "journal"],
        &["FORMAT", "FORMAT.new", "LOCK", "journal"],
        &["FORMAT.new", "journal", "keep"],
        &["FORMAT.new", "state"],
    ] {
        make(other);
        let refused = restore(&mut text.as_bytes(), data, 9, BackupTrust::default());
        assert!(matches!(refused, Err(RestoreError::NotEmpty(_))), "{other:?}: {refused:?}");
        assert_eq!(names(data), other, "the directory changed");
    }
    // Another process holds the lock of the empty directory.
    make(&[]);
    let _lock = data_directory::lock(data).unwrap().unwrap();
    let refused = restore(&mut text.as_bytes(), data, 9, BackupTrust::default());
    assert!(matches!(refused, Err(RestoreError::Locked(_))), "{refused:?}");
    assert_eq!(names(data), ["LOCK"]);
}

#[test]
fn backup_reports_damaged_positions() {
    let disk = MemoryDisk::new();
    let options = JournalOptions { segment_bytes: 900, frame_bytes: 100, ..JournalOptions::new(7) };
    let (mut journal, _) = Journal::open(Arc::new(disk.clone()), options).unwrap();
    for number in 1..=20 {
        journal.append(Timestamp::from_millis(number), &[vec![record(number)]]).unwrap();
    }
    let name = format!("journal-{:020}.log", 1);
    let mut bytes = disk.contents(&name).unwrap();
    bytes[64 + 70] ^= 1;
    disk.put(&name, &bytes);
    let (journal, _) = Journal::open(Arc::new(disk), options).unwrap();
    let part = part(&journal.reader(), Position(0), Position(20), usize::MAX, None).unwrap();
    assert_eq!(part.damaged, [(Position(1), Position(1))]);
    assert_eq!(part.next, None);
}

fn key(id: &str) -> BackupKey {
    BackupKey::new(id.into(), [id.len() as u8; 32])
}

fn signing(key: BackupKey, backup: u8) -> BackupSigning {
    BackupSigning { key, backup: BackupId([backup; authentication::BACKUP_ID_BYTES]) }
}

fn restored_with(
    text: &str,
    keys: &[BackupKey],
    unauthenticated: bool,
) -> Result<RestoreReport, RestoreError> {
    let directory = tempfile::tempdir().unwrap();
    restore(&mut text.as_bytes(), &directory.path().join("data"), 9, BackupTrust { keys, unauthenticated })
}

/// Corrects the CRC-32 of an authenticated line.
fn with_right_crc(line: &str) -> String {
    let (rest, checksum) = line.rsplit_once(' ').unwrap();
    let (content, _) = rest.rsplit_once(' ').unwrap();
    format!("{content} {:08x} {checksum}", crc32fast::hash(content.as_bytes()))
}

#[test]
fn authenticated_backup_requires_its_key() {
    let journal = journal(true);
    let text = whole_signed(&journal.reader(), Position(100), Some(&signing(key("a"), 1)));
    let plain = whole(&journal.reader(), Position(100));
    let signed = RestoreReport { authenticated: true, ..restored(&plain).unwrap().0 };
    assert_eq!(restored_with(&text, &[key("bb"), key("a")], false).unwrap(), signed);
    for keys in [&[][..], &[key("bb")]] {
        assert!(matches!(restored_with(&text, keys, false), Err(RestoreError::MissingKey(id)) if id == "a"));
        let unchecked = restored_with(&text, keys, true).unwrap();
        assert_eq!(unchecked, RestoreReport { authenticated: false, ..signed });
    }
    assert!(matches!(restored_with(&plain, &[key("a")], false), Err(RestoreError::NotAuthenticated)));
    assert!(!restored_with(&plain, &[key("a")], true).unwrap().authenticated);
    // Another key with the same id.
    let other = BackupKey::new("a".into(), [9; 32]);
    assert!(matches!(restored_with(&text, &[other], false), Err(RestoreError::Forged(2))));
}

#[test]
fn authenticated_backup_rejects_every_changed_line() {
    let journal = journal(false);
    let text = whole_signed(&journal.reader(), Position(20), Some(&signing(key("a"), 1)));
    let other = whole_signed(&journal.reader(), Position(20), Some(&signing(key("a"), 2)));
    let (lines, others): (Vec<_>, Vec<_>) = (text.lines().collect(), other.lines().collect());
    let fails = |lines: &[&str], story: &str| {
        let failed = restored_with(&format!("{}\n", lines.join("\n")), &[key("a")], false);
        assert!(failed.is_err(), "{story}");
    };
    for at in 0..lines.len() {
        let mut dropped = lines.clone();
        dropped.remove(at);
        fails(&dropped, &format!("without line {at}"));
        let mut exchanged = lines.clone();
        exchanged[at] = others[at];
        fails(&exchanged, &format!("line {at} of another backup"));
        // The reader stops at the end line.
        if at + 1 < lines.len() {
            let mut doubled = lines.clone();
            doubled.insert(at, lines[at]);
            fails(&doubled, &format!("line {at} twice"));
        }
        for byte in 0..if at == 0 { 0 } else { lines[at].len() } {
            let mut changed = lines[at].as_bytes().to_vec();
            changed[byte] = if changed[byte] == b'1' { b'2' } else { b'1' };
            let changed = with_right_crc(std::str::from_utf8(&changed).unwrap());
            let mut with = lines.clone();
            with[at] = &changed;
            // The correction of a changed CRC-32 restores the original line.
            if changed != lines[at] {
                fails(&with, &format!("byte {byte} of line {at}: {changed}"));
            }
        }
    }
    // The end of an earlier, shorter backup.
    let earlier = whole_signed(&journal.reader(), Position(10), Some(&signing(key("a"), 2)));
    let mut cut: Vec<_> = lines[..lines.len() / 2].to_vec();
    cut.push(earlier.lines().last().unwrap());
    fails(&cut, "the end of another backup");
}

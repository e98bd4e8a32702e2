//! Records, journals and backups.

use std::collections::BTreeMap;
use std::io::Cursor as IoCursor;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::requests::{SERVER, request_seeds, requests};
use axum::body::Body;
use axum::http::Request;
use balto::domain::{
    Attempt, ConnectionFacts, DeadReason, DeliveryKey, EndpointNumber, Exchange, Next, PhaseTimes, Position,
    Record, RetryRule, SentRequest, Timestamp, Trigger,
};
use balto::maintenance::backup;
use balto::projections::Fold;
use balto::storage::disk::{Disk, MemoryDisk};
use balto::storage::journal::{Journal, JournalOptions, Restorer};
use balto::storage::{format as codec, journal};
use bytes::Bytes;
use tower::ServiceExt;

/// A store with every kind of data: its records, and the files of its journal.
pub(super) struct Sample {
    records: Vec<(Position, Timestamp, Vec<u8>)>,
    backup: String,
    pub(super) rows: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub(super) static SAMPLE: LazyLock<Sample> = LazyLock::new(sample);

pub(super) fn delivery(event: u64) -> DeliveryKey {
    DeliveryKey { event: Position(event), endpoint: EndpointNumber(1) }
}

/// An exchange with every field.
fn exchange() -> Exchange {
    let time = Some(Duration::from_micros(1_500));
    Exchange {
        request: Some(SentRequest { revision: Position(2), signed_at: Some(Timestamp::from_millis(1_000)) }),
        connection: ConnectionFacts {
            remote_address: "192.0.2.7:443".parse().ok(),
            is_reused: false,
            times: PhaseTimes { dns: time, connect: time, tls: time, first_byte: time },
        },
        rule: Some(RetryRule::RetryAfter),
        headers: vec![("retry-after".into(), "30".into())],
    }
}

/// Records that only a delivery loop or an operator would write.
fn synthetic_records() -> Vec<Record> {
    let at = Timestamp::from_millis(1_773_398_100_000);
    let attempt = |number, next| Attempt {
        number,
        trigger: Trigger::Retry,
        started_at: at,
        duration: Duration::from_millis(1_234),
        status: Some(503),
        error: Some((balto::domain::ErrorClass::Status, "status 503".into())),
        reply: Bytes::from_static(b"no \xff"),
        network: balto::domain::Network::Public,
        next,
        hold: None,
        uptime: Some(Duration::from_secs(60)),
        delay: Duration::from_millis(700),
        exchange: exchange(),
    };
    let finished = |event, number, next| Record::AttemptFinished {
        delivery: delivery(event),
        due: at,
        attempt: Arc::new(attempt(number, next)),
    };
    vec![
        finished(3, 1, Next::RetryAt(at)),
        finished(3, 2, Next::Dead(DeadReason::AttemptsExhausted)),
        finished(4, 1, Next::Delivered),
        Record::DeliveriesRevived {
            deliveries: vec![delivery(3), delivery(4)],
            trigger: Trigger::Redrive,
            at,
        },
        Record::DeliveriesReordered { deliveries: vec![delivery(3), delivery(4)], at },
        Record::DeliveriesCancelled { deliveries: vec![delivery(4)], at },
        Record::DeliveriesDied { deliveries: vec![delivery(3)], reason: DeadReason::MaxAge, at },
        Record::DeadLettersPurged { deliveries: vec![delivery(3)], at },
        Record::EndpointDeleted { endpoint: EndpointNumber(2), at },
    ]
}

fn sample() -> Sample {
    for seed in request_seeds() {
        requests(&seed);
        requests(&seed);
    }
    let server = SERVER.lock().expect("no earlier panic");
    // Every acknowledged record is in the journal; a backup shows it.
    let mut records = Vec::new();
    let (mut text, mut after) = (String::new(), 0);
    loop {
        let request =
            Request::get(format!("/v1/backup?after={after}")).body(Body::empty()).expect("a request");
        let response = server.runtime.block_on(server.router.clone().oneshot(request)).expect("infallible");
        let body =
            server.runtime.block_on(axum::body::to_bytes(response.into_body(), usize::MAX)).expect("a body");
        let part: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        text.push_str(part["text"].as_str().expect("text"));
        match part["next"].as_u64() {
            Some(next) => after = next,
            None => break,
        }
    }
    drop(server);
    let directory = tempfile::tempdir().expect("a directory");
    backup::restore(
        &mut IoCursor::new(&text),
        &directory.path().join("data"),
        1,
        backup::BackupTrust::default(),
    )
    .expect("the backup is complete");
    let disk: Arc<dyn Disk> =
        Arc::new(balto::storage::disk::RealDisk::new(directory.path().join("data/journal")).expect("a disk"));
    let (journal, _) = Journal::open(disk, JournalOptions::new(1)).expect("the journal opens");
    let mut at = Position(1);
    while let Ok(Some(step)) = journal.reader().raw_from(at) {
        at = step.next;
        records.extend(step.records.into_iter().map(|raw| (raw.position, raw.time, raw.bytes)));
    }
    let (mut position, time) =
        records.last().map(|(at, time, _)| (*at, *time)).expect("the sample has records");
    for record in synthetic_records() {
        position = position.next();
        let mut bytes = Vec::new();
        codec::encode(&record, &mut bytes);
        records.push((position, time, bytes));
    }
    let mut rows = BTreeMap::new();
    fold(&records, &mut rows);
    Sample { records, backup: text, rows }
}

fn fold(records: &[(Position, Timestamp, Vec<u8>)], rows: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
    let mut fold = Fold::default();
    for (position, _, bytes) in records {
        let record = codec::decode(bytes).expect("the sample is valid");
        fold.apply(rows, *position, &record, false, &mut Vec::new());
    }
}

pub(super) fn record_seeds() -> Vec<Vec<u8>> {
    SAMPLE.records.iter().map(|(.., bytes)| bytes.clone()).collect()
}

/// A readable record has exactly one encoding, and decodes to itself.
pub(super) fn records(bytes: &[u8]) {
    let Ok(record) = codec::decode(bytes) else { return };
    let mut again = Vec::new();
    codec::encode(&record, &mut again);
    // NaN differs from itself.
    let has_nan = format!("{record:?}").contains("NaN");
    assert!(has_nan || codec::decode(&again).as_ref() == Ok(&record), "{record:?}");
    assert!(again.len() <= bytes.len() + 64, "the encoding is longer than its input");
}

pub(super) fn journal_seeds() -> Vec<Vec<u8>> {
    let disk = MemoryDisk::new();
    let mut restorer = Restorer::new(Arc::new(disk.clone()), 7);
    for (position, time, bytes) in &SAMPLE.records {
        restorer.push(*position, *time, bytes.clone()).expect("memory");
    }
    restorer.finish(Position(SAMPLE.records.len() as u64 + 1)).expect("memory");
    let mut seeds: Vec<_> =
        disk.list().expect("memory").iter().filter_map(|name| disk.contents(name)).collect();
    // The state after a crash within a commit.
    let disk = MemoryDisk::new();
    let options = JournalOptions { segment_bytes: 4_096, frame_bytes: 256, ..JournalOptions::new(9) };
    let (mut journal, _) = Journal::open(Arc::new(disk.clone()), options).expect("the journal opens");
    for (_, time, bytes) in &SAMPLE.records {
        let record = codec::decode(bytes).expect("the sample is valid");
        journal.append(*time, &[vec![record]]).expect("memory");
    }
    seeds.extend(disk.list().expect("memory").iter().filter_map(|name| disk.contents(name)));
    seeds
}

/// A file in place of a journal's first one: it is opened or refused, and every record read is in
/// the file.
pub(super) fn journals(bytes: &[u8]) {
    let disk = MemoryDisk::new();
    disk.put("journal-00000000000000000001.log", bytes);
    let _report = journal::verify(&disk, &mut |_| ());
    let Ok((mut journal, report)) = Journal::open(Arc::new(disk), JournalOptions::new(3)) else {
        return;
    };
    let reader = journal.reader();
    let (mut read, mut at) = (0_usize, Position(1));
    while let Ok(Some(step)) = reader.raw_from(at) {
        assert!(step.next > at, "the reader does not advance");
        at = step.next;
        for raw in step.records {
            assert!(raw.position <= report.last, "a record after the last one");
            read += 1;
            let _may_be_undecodable = reader.read(raw.position);
        }
    }
    assert!(read <= bytes.len(), "more records than bytes");
    let fresh = Record::EndpointDeleted { endpoint: EndpointNumber(1), at: Timestamp::ZERO };
    let range =
        journal.append(Timestamp::ZERO, &[vec![fresh.clone()]]).expect("an open journal accepts records");
    assert!(range.start > report.last, "a position was assigned twice");
    assert_eq!(journal.reader().read(range.start).expect("the record is readable"), Some(fresh));
}

pub(super) fn backup_seeds() -> Vec<Vec<u8>> {
    vec![
        SAMPLE.backup.clone().into_bytes(),
        b"balto-backup 1\nend 0 0 5c7ad6d8\n".to_vec(),
        b"balto-backup 2 000102030405060708090a0b0c0d0e0f 9c5230e7\nend 0 0 5c7ad6d8 00\n".to_vec(),
    ]
}

/// A backup as it is, and once more with correct checksums, since mutations hardly find those.
pub(super) fn backups(bytes: &[u8]) {
    let fitting: Vec<u8> = bytes
        .split(|byte| *byte == b'\n')
        .flat_map(|line| {
            let content = match line.iter().rposition(|byte| *byte == b' ') {
                Some(end) if line.first() != Some(&b'b') => &line[..end],
                _ => return [line, b"\n"].concat(),
            };
            [content, format!(" {:08x}\n", crc32fast::hash(content)).as_bytes()].concat()
        })
        .collect();
    for text in [bytes, &fitting] {
        let directory = tempfile::tempdir().expect("a directory");
        let data = directory.path().join("data");
        let trust = backup::BackupTrust { keys: &[], unauthenticated: true };
        let Ok(restored) = backup::restore(&mut IoCursor::new(text), &data, 1, trust) else { continue };
        let disk: Arc<dyn Disk> =
            Arc::new(balto::storage::disk::RealDisk::new(data.join("journal")).expect("a disk"));
        let (journal, report) = Journal::open(disk, JournalOptions::new(1)).expect("the restored data opens");
        assert!(report.damage.is_empty(), "restored with damage: {:?}", report.damage);
        assert_eq!(journal.reader().last_position(), restored.last);
    }
}

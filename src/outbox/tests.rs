//! Tests of opening a data directory after a restart, an upgrade or damage, and of fatal failures.

use super::*;
use crate::domain::{KeyId, Position, Record};
use crate::outbox::conformance::data_directory;
use crate::storage::data_directory::{ClaimError, FORMAT, FORMAT_FILE, stamp};
use crate::storage::format;
use crate::storage::journal::Restorer;
use crate::storage::state::StateError;

struct Clock(u64);

impl CommitEnvironment for Clock {
    fn now(&mut self) -> Timestamp {
        self.0 += 1;
        Timestamp::from_millis(self.0)
    }

    fn random(&mut self) -> u128 {
        7
    }
}

fn open(path: &Path) -> Result<OpenedOutbox, OpenError> {
    open_and_watch(path, &mut |_| ())
}

fn open_and_watch(path: &Path, progress: OnProgress<'_>) -> Result<OpenedOutbox, OpenError> {
    let admission = AdmissionLimits { bytes: 1 << 20, commands: 1_000 };
    let source = Box::new(Clock(3_000_000_000_000));
    Outbox::open(path, admission, source, Arc::new(|_, _| ()), progress)
}

fn record(number: u64) -> Record {
    let id: KeyId = format!("key_{number}").parse().unwrap();
    Record::KeyDeleted { id, at: Timestamp::from_millis(number) }
}

#[test]
fn record_of_a_newer_version_stops_the_start() {
    let (mut tag, mut layout) = (Vec::new(), Vec::new());
    for bytes in [&mut tag, &mut layout] {
        format::encode(&record(1), bytes);
    }
    tag[0] = 200;
    layout[1] = 99;
    for newer in [tag, layout] {
        let directory = tempfile::tempdir().unwrap();
        let disk = Arc::new(RealDisk::new(directory.path().join("journal")).unwrap());
        let mut journal = Restorer::new(disk, 1);
        for number in 1..5 {
            let mut bytes = Vec::new();
            format::encode(&record(number), &mut bytes);
            let bytes = if number == 3 { newer.clone() } else { bytes };
            journal.push(Position(number), Timestamp::from_millis(number), bytes).unwrap();
        }
        journal.finish(Position(4)).unwrap();
        stamp(directory.path()).unwrap();
        for _ in 0..2 {
            let refused = open(directory.path());
            assert!(matches!(refused, Err(OpenError::NewerRecord(_))), "{refused:?}");
        }
    }
}

/// Creates a data directory whose journal has one endpoint, at position 2, sealed for `revision`.
fn with_endpoint(directory: &Path, revision: u64) {
    let disk = Arc::new(RealDisk::new(directory.join(JOURNAL)).unwrap());
    let mut journal = Restorer::new(disk, 1);
    let mut endpoint = crate::rules::tests::endpoint(1, "acme", &[]);
    endpoint.revision = Position(revision);
    for (position, record) in [(1, record(1)), (2, Record::EndpointPut(Arc::new(endpoint)))] {
        let mut bytes = Vec::new();
        format::encode(&record, &mut bytes);
        journal.push(Position(position), Timestamp::from_millis(position), bytes).unwrap();
    }
    journal.finish(Position(2)).unwrap();
    stamp(directory).unwrap();
}

#[test]
fn endpoint_record_of_another_position_stops_the_start() {
    for (revision, refused) in [(2, false), (1, true), (3, true)] {
        let directory = tempfile::tempdir().unwrap();
        with_endpoint(directory.path(), revision);
        let scratch = tempfile::tempdir().unwrap();
        let report =
            crate::maintenance::verify::verify(directory.path(), scratch.path(), &mut |_, _| ()).unwrap();
        let reported =
            report.problems.listed.iter().any(|problem| problem.text.contains("was written for position"));
        assert_eq!(reported, refused, "revision {revision}: {:?}", report.problems);
        let opened = open(directory.path());
        let displaced = matches!(opened, Err(OpenError::MisplacedEndpoint { .. }));
        assert_eq!((displaced, opened.is_ok()), (refused, !refused), "revision {revision}: {opened:?}");
    }
}

#[test]
fn rebuild_reports_progress_and_keeps_one_damaged_state() {
    let (_below, directory) = data_directory(9, true);
    for round in 0..3 {
        std::fs::write(directory.join("state/db"), "damaged").unwrap();
        let mut reports = Vec::new();
        let opened = open_and_watch(&directory, &mut |progress| reports.push(progress)).unwrap();
        assert!(opened.rebuilt.is_some() && opened.replayed > 0, "round {round}");
        let last = opened.outbox.journal().last_position().0;
        assert!(reports.windows(2).all(|pair| pair[0].done <= pair[1].done), "{reports:?}");
        assert!(reports.iter().all(|progress| progress.total == last && progress.done <= last));
        // Retention may have removed the records of the last positions.
        assert!(reports.last().is_some_and(|progress| progress.done > last / 2), "{reports:?} of {last}");
        opened.outbox.stop();
        drop(opened);
        let aside: Vec<_> = std::fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("state"))
            .collect();
        assert_eq!(aside.len(), 2, "{aside:?}");
        let again = open(&directory).unwrap();
        assert_eq!((again.rebuilt, again.replayed), (None, 0));
        again.outbox.stop();
    }
}

#[test]
fn partial_stamp_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("FORMAT.new"), "balto da").unwrap();
    open(directory.path()).unwrap().outbox.stop();
    assert_eq!(std::fs::read_to_string(directory.path().join(FORMAT_FILE)).unwrap(), FORMAT);
}

#[test]
fn open_directory_is_locked() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path()).unwrap();
    assert!(matches!(open(directory.path()), Err(OpenError::Claim(ClaimError::Locked(_)))));
    first.outbox.stop();
    drop(first);
    open(directory.path()).unwrap().outbox.stop();
}

#[tokio::test]
async fn state_is_rebuilt_at_next_start_after_panic() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path()).unwrap();
    let unit = |number| Unit {
        commands: vec![Command::Record(record(number))],
        prepared: Prepared::default(),
        reply: None,
    };
    for number in 0..5 {
        opened.outbox.submit(unit(number)).await.unwrap();
    }
    let mut health = opened.outbox.health();
    let panicked = opened.outbox.with_state_mut(|_: &mut State| panic!("simulated sled panic")).await;
    assert!(panicked.is_err());
    health.wait_for(|health| matches!(health, Health::Failed(_))).await.unwrap();
    assert!(matches!(opened.outbox.submit(unit(6)).await, Err(Unavailable::Failed(_))));
    opened.outbox.stop();
    drop(opened);
    let again = open(directory.path()).unwrap();
    assert!(again.rebuilt.is_some() && again.replayed == 5, "{:?} {}", again.rebuilt, again.replayed);
    again.outbox.stop();
}

#[tokio::test]
async fn blocked_state_is_detected_while_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path()).unwrap();
    let outbox = opened.outbox.clone();
    outbox.read(|_| ()).await.unwrap();
    let until = async |is_right: fn(Duration) -> bool| {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        let busy = || outbox.stall().map_or(Duration::ZERO, |stall| stall.duration);
        while !is_right(busy()) {
            assert!(std::time::Instant::now() < deadline, "busy for {:?}", outbox.stall());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    until(|busy| busy.is_zero()).await;
    let (answer, wait) = mpsc::channel::<()>();
    let asking = tokio::spawn({
        let outbox = outbox.clone();
        async move { outbox.read(move |_| wait.recv().is_ok()).await }
    });
    until(|busy| busy > Duration::from_millis(50)).await;
    assert_eq!(outbox.stall().map(|stall| stall.activity), Some(Activity::Answering));
    answer.send(()).unwrap();
    assert!(asking.await.unwrap().unwrap());
    until(|busy| busy.is_zero()).await;
    outbox.stop();
}

/// Panics from the second call on.
struct Broken(Clock);

impl CommitEnvironment for Broken {
    fn now(&mut self) -> Timestamp {
        assert!(self.0.now().millis() < 3_000_000_000_002, "simulated writer panic");
        Timestamp::from_millis(3_000_000_000_000)
    }

    fn random(&mut self) -> u128 {
        7
    }
}

#[tokio::test]
async fn writer_panic_fails_all_waiting_callers() {
    let directory = tempfile::tempdir().unwrap();
    let admission = AdmissionLimits { bytes: 1 << 20, commands: 1_000 };
    let source = Box::new(Broken(Clock(3_000_000_000_000)));
    let path = directory.path();
    let opened = Outbox::open(path, admission, source, Arc::new(|_, _| ()), &mut |_| ()).unwrap();
    let unit = |number| Unit {
        commands: vec![Command::Record(record(number))],
        prepared: Prepared::default(),
        reply: None,
    };
    let outbox = &opened.outbox;
    outbox.submit(unit(1)).await.unwrap();
    // The writer panics while it holds the second unit. The third unit arrives after that.
    let lost = tokio::time::timeout(Duration::from_secs(60), outbox.submit(unit(2))).await;
    assert!(lost.expect("an answer").is_err());
    let mut health = outbox.health();
    let failed = health.wait_for(|health| matches!(health, Health::Failed(_)));
    let failed = tokio::time::timeout(Duration::from_secs(60), failed).await;
    assert!(failed.expect("the health changes").is_ok());
    assert!(matches!(outbox.submit(unit(3)).await, Err(Unavailable::Failed(_))));
    outbox.stop();
    drop(opened);
    let again = open(path).unwrap();
    assert_eq!(again.outbox.journal().last_position(), Position(1));
    again.outbox.stop();
}

#[test]
fn environment_errors_are_not_damage() {
    let of = |error: std::io::Error| StateError::Io(error).is_environmental();
    for code in [28, 122, 13, 30, 23, 24] {
        assert!(of(std::io::Error::from_raw_os_error(code)), "{code}");
        let in_sled = StateError::Sled(sled::Error::Io(std::io::Error::from_raw_os_error(code)));
        assert!(in_sled.is_environmental(), "{code} within sled");
    }
    assert!(!of(std::io::Error::from_raw_os_error(5)), "an unreadable file is damage");
    assert!(!StateError::Damaged("x").is_environmental());
    let ahead = StateError::Ahead { applied: Position(2), journal_end: Position(1) };
    assert!(!ahead.is_environmental());
    assert!(StateError::Io(std::io::Error::from_raw_os_error(28)).is_disk_full());
}

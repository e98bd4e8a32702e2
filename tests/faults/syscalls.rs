//! What the daemon asks of the operating system, seen and bent by `strace`: the order of sync and answer, kills at exact
//! calls, and a disk that fails.
//!
//! Without `strace` the tests say so and check nothing. `BALTO_TEST_ROUNDS` says how many kills (default 12).

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::load::{Book, check_held, held, publishers};
use crate::support::{Daemon, Receiver, has, number, quiet, say, seed, traced};
use fastrand::Rng;
use serde_json::json;

/// What happened, in order, of a trace with `-y`: the journal written and synced, an answer of 202, a request sent.
#[derive(Debug, PartialEq)]
enum Seen {
    Written,
    Synced,
    Accepted,
    Sent,
}

/// A call that was interrupted by another thread's stands on two lines: it happens at the second.
fn seen(line: &str) -> Option<Seen> {
    let journal = line.contains("/journal/journal-");
    if line.contains("\"HTTP/1.1 202 ") {
        Some(Seen::Accepted)
    } else if line.contains("\"POST /hook ") {
        Some(Seen::Sent)
    } else if journal && line.contains(" pwrite64(") {
        Some(Seen::Written)
    } else if (journal && line.contains(" fdatasync(") && line.ends_with("= 0"))
        || (line.contains("fdatasync resumed") && line.ends_with("= 0"))
    {
        Some(Seen::Synced)
    } else {
        None
    }
}

#[tokio::test]
async fn every_answer_and_every_request_follows_the_sync_of_its_event() {
    if !has("strace") {
        return say("SKIPPED: no strace");
    }
    const EVENTS: usize = 20;
    let data = tempfile::tempdir().unwrap();
    let trace = data.path().join("trace");
    let receiver = Receiver::status(200).await;
    let options = [
        "-y",
        "-s",
        "16",
        "-e",
        "trace=fdatasync,pwrite64,write,writev,sendto",
        "-o",
        trace.to_str().unwrap(),
    ];
    let mut daemon =
        Daemon::spawn(traced(&crate::support::serve(&data.path().join("data"), &["--dev"]), &options));
    daemon.until_ready().await;
    daemon.post("/endpoints", &json!({"url": receiver.url}).to_string()).await;
    for _ in 0..EVENTS {
        let accepted = daemon.post("/events", r#"{"type":"a.b","data":1}"#).await;
        let path = format!("/events/{}", accepted["id"].as_str().unwrap());
        daemon.until(&path, |event| event["status"] == "delivered").await;
    }
    assert_eq!(daemon.terminate(), Some(0));
    let text = std::fs::read_to_string(&trace).unwrap();
    let (mut written, mut synced, mut accepted, mut sent) = (0, 0, 0, 0);
    // The file's header is written first. Then one by one: the endpoint, and for each event itself and its outcome.
    for what in text.lines().filter_map(seen) {
        match what {
            Seen::Written => written += 1,
            Seen::Synced => synced = written,
            Seen::Accepted => {
                accepted += 1;
                assert!(synced > 2 * accepted, "answer {accepted} came with {synced} writes synced");
            }
            Seen::Sent => {
                sent += 1;
                assert!(synced > 2 * sent, "request {sent} left with {synced} writes synced");
            }
        }
    }
    assert_eq!((accepted, sent), (EVENTS, EVENTS), "{text}");
    // sled itself never syncs its file: each checkpoint does.
    let of_the_state = |line: &&str| line.contains("fdatasync(") && line.contains("/state/db>");
    assert!(text.lines().any(|line| of_the_state(&line)), "no checkpoint of the state was synced: {text}");
}

/// Load on a daemon that is being interfered with, until it dies or is killed. What it had acknowledged must hold.
async fn until_it_dies(
    data: &Path,
    book: &Arc<Mutex<Book>>,
    random: &mut Rng,
    inject: &str,
    patience: Duration,
) -> Option<i32> {
    until_it_dies_of(data, book, random, &["-e", &format!("inject={inject}")], patience).await
}

/// As [`until_it_dies`], with options for the tracer.
async fn until_it_dies_of(
    data: &Path,
    book: &Arc<Mutex<Book>>,
    random: &mut Rng,
    options: &[&str],
    patience: Duration,
) -> Option<i32> {
    let options = [options, &["-o", "/dev/null"]].concat();
    let mut daemon = Daemon::spawn(traced(&quiet(crate::support::serve(data, &["--dev"])), &options));
    // It may die before it is ready.
    while !daemon.is_ready().await && daemon.is_running() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let publishers = publishers(book, &daemon, random);
    let code = daemon.ended_within(patience).await;
    for publisher in publishers {
        publisher.await.unwrap();
    }
    let daemon = Daemon::start(data).await;
    let held = held(&daemon).await;
    check_held(&book.lock().unwrap(), &held);
    code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_call_that_changes_the_disk_loses_nothing() {
    if !has("strace") {
        return say("SKIPPED: no strace");
    }
    let mut random = Rng::with_seed(seed());
    let data = tempfile::tempdir().unwrap();
    let book = Arc::<Mutex<Book>>::default();
    for _ in 0..number("BALTO_TEST_ROUNDS").unwrap_or(12) {
        let call = ["fdatasync", "fsync", "pwrite64", "openat"][random.usize(0..4)];
        let which = if call == "openat" { random.u32(20..60) } else { random.u32(1..4) };
        // Syncs of the journal are many, those at the start and of the state few.
        let which = if call == "fdatasync" { random.u32(1..60) } else { which };
        let inject = format!("{call}:signal=KILL:when={which}");
        // Some calls are not reached in this time; then the kill comes from outside.
        until_it_dies(data.path(), &book, &mut random, &inject, Duration::from_secs(1)).await;
    }
    say(&format!("{} acknowledged, none lost", book.lock().unwrap().accepted.len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failed_sync_nothing_is_acknowledged_and_the_process_ends() {
    if !has("strace") {
        return say("SKIPPED: no strace");
    }
    let mut random = Rng::with_seed(seed());
    let data = tempfile::tempdir().unwrap();
    let book = Arc::<Mutex<Book>>::default();
    for error in ["EIO", "ENOSPC", "EIO"] {
        let which = random.u32(4..60);
        let inject = format!("fdatasync:error={error}:when={which}");
        let code = until_it_dies(data.path(), &book, &mut random, &inject, crate::support::PATIENCE).await;
        assert_eq!(code, Some(74), "{error} at sync {which}");
    }
    assert!(!book.lock().unwrap().accepted.is_empty());
}

/// Errors on one file alone, whichever call it is: the journal's, or the state's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failed_write_to_journal_or_state_the_process_ends_and_the_next_start_has_everything() {
    if !has("strace") {
        return say("SKIPPED: no strace");
    }
    let mut random = Rng::with_seed(seed());
    let data = tempfile::tempdir().unwrap();
    let book = Arc::<Mutex<Book>>::default();
    Daemon::start(data.path()).await.post("/events", r#"{"type":"n.0","data":1}"#).await;
    for (file, call) in [
        ("journal/journal-00000000000000000001.log", "pwrite64"),
        ("state/db", "pwrite64"),
        ("state/db", "fdatasync"),
        ("journal/journal-00000000000000000001.log", "pread64"),
    ] {
        let path = data.path().join(file);
        let which = if call == "pread64" { 1 } else { random.u32(1..4) };
        let inject = format!("inject={call}:error=EIO:when={which}");
        let options = ["-P", path.to_str().unwrap(), "-e", &inject];
        let code =
            until_it_dies_of(data.path(), &book, &mut random, &options, crate::support::PATIENCE).await;
        // What cannot be read stops the start; what cannot be written, the process, or (what it replays) the start.
        let expected: &[i32] = match (file, call) {
            (_, "pread64") => &[1],
            ("state/db", _) => &[1, 74],
            _ => &[74],
        };
        assert!(code.is_some_and(|code| expected.contains(&code)), "{code:?}: {call} {which} of {file}");
    }
    assert!(!book.lock().unwrap().accepted.is_empty());
}

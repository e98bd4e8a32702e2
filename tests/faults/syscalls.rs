//! System calls of the daemon under `strace`: the order of sync and response, kills at exact calls,
//! and a disk that fails.
//!
//! Without `strace` the tests report that they are skipped. `BALTO_TEST_ROUNDS` sets the number of
//! kills (default 12).

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::load::{Ledger, check_stored, publishers, stored_events};
use crate::support::{Daemon, Receiver, has_program, number, quiet, say, seed, traced};
use fastrand::Rng;
use serde_json::json;

/// A step in a trace with `-y`: the journal written and synced, a 202 response, a request sent.
#[derive(Debug, PartialEq)]
enum TraceStep {
    Written,
    Synced,
    Accepted,
    Sent,
}

/// The lines of a trace without the ends of the state's syncs, which name no file. They are on
/// another thread than those of the journal.
fn without_syncs_of_the_state(trace: &str) -> impl Iterator<Item = &str> {
    let mut syncing = std::collections::HashSet::new();
    trace.lines().filter(move |line| {
        let thread = line.split(' ').next().unwrap_or_default().to_owned();
        if line.contains("/state/db>") && line.contains(" fdatasync(") && line.contains("<unfinished") {
            syncing.insert(thread);
            return true;
        }
        !(line.contains("fdatasync resumed") && syncing.remove(&thread))
    })
}

/// A call that another thread's call interrupts takes two lines: it counts at the second.
fn trace_step(line: &str) -> Option<TraceStep> {
    let journal = line.contains("/journal/journal-");
    if line.contains("\"HTTP/1.1 202 ") {
        Some(TraceStep::Accepted)
    } else if line.contains("\"POST /hook ") {
        Some(TraceStep::Sent)
    } else if journal && line.contains(" pwrite64(") {
        Some(TraceStep::Written)
    } else if (journal && line.contains(" fdatasync(") && line.ends_with("= 0"))
        || (line.contains("fdatasync resumed") && line.ends_with("= 0"))
    {
        Some(TraceStep::Synced)
    } else {
        None
    }
}

#[tokio::test]
async fn each_response_and_request_follows_the_sync_of_its_event() {
    if !has_program("strace") {
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
    // The file's header is written first. Then one by one: the endpoint, and for each event the
    // event and its outcome.
    for what in without_syncs_of_the_state(&text).filter_map(trace_step) {
        match what {
            TraceStep::Written => written += 1,
            TraceStep::Synced => synced = written,
            TraceStep::Accepted => {
                accepted += 1;
                assert!(synced > 2 * accepted, "answer {accepted} came with {synced} writes synced");
            }
            TraceStep::Sent => {
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

/// Every call of a worker is a record, and its answer follows the sync of it.
#[tokio::test]
async fn each_answer_about_a_lease_follows_its_sync() {
    if !has_program("strace") {
        return say("SKIPPED: no strace");
    }
    const ROUNDS: usize = 5;
    let data = tempfile::tempdir().unwrap();
    let trace = data.path().join("trace");
    let calls = "trace=fdatasync,pwrite64,write,writev,sendto";
    let options = ["-y", "-s", "16", "-e", calls, "-o", trace.to_str().unwrap()];
    let mut daemon =
        Daemon::spawn(traced(&crate::support::serve(&data.path().join("data"), &["--dev"]), &options));
    daemon.until_ready().await;
    daemon.post("/queues", r#"{"name":"jobs"}"#).await;
    for _ in 0..2 * ROUNDS {
        daemon.post("/events", r#"{"type":"a.b","data":1}"#).await;
    }
    let receive = async || {
        let got = daemon.post("/queues/jobs/receive", r#"{"max":1}"#).await;
        got["messages"][0]["receipt"].as_str().unwrap().to_owned()
    };
    let end = async |action: &str, receipt: &str, more: &[(&str, &str)]| {
        let mut body = json!({"receipts": [receipt]});
        for (name, value) in more {
            body[*name] = json!(value);
        }
        let body = body.to_string();
        let path = format!("/queues/jobs/{action}");
        daemon.post(&path, &body).await["results"][0]["status"].as_str().unwrap().to_owned()
    };
    for _ in 0..ROUNDS {
        let released = receive().await;
        assert_eq!(end("extend", &released, &[("visibility", "1m")]).await, "extended");
        assert_eq!(end("release", &released, &[]).await, "released");
        let requeued = receive().await;
        assert_eq!(end("nack", &requeued, &[("delay", "1h")]).await, "requeued");
        let acked = receive().await;
        assert_eq!(end("ack", &acked, &[]).await, "acked");
    }
    assert_eq!(daemon.terminate(), Some(0));
    let text = std::fs::read_to_string(&trace).unwrap();
    let calls: Vec<_> = without_syncs_of_the_state(&text).collect();
    // From the last event on, only the worker calls.
    let first = calls.iter().rposition(|line| line.contains("\"HTTP/1.1 202 ")).unwrap() + 1;
    let (mut written, mut synced, mut answers) = (0, 0, 0);
    for line in &calls[first..] {
        match trace_step(line) {
            Some(TraceStep::Written) => written += 1,
            Some(TraceStep::Synced) => synced = written,
            _ if line.contains("\"HTTP/1.1 200 ") => {
                answers += 1;
                assert_eq!(synced, written, "answer {answers} left before the sync: {line}");
                assert!(written >= answers, "answer {answers} came with {written} records: {line}");
            }
            _ => {}
        }
    }
    assert_eq!(answers, 7 * ROUNDS, "{text}");
}

/// Runs load on a daemon with injected faults until it dies or is killed. Acknowledged events must
/// survive.
async fn run_until_death(
    data: &Path,
    ledger: &Arc<Mutex<Ledger>>,
    random: &mut Rng,
    inject: &str,
    limit: Duration,
) -> Option<i32> {
    run_traced_until_death(data, ledger, random, &["-e", &format!("inject={inject}")], limit).await
}

/// As [`run_until_death`], with options for the tracer.
async fn run_traced_until_death(
    data: &Path,
    ledger: &Arc<Mutex<Ledger>>,
    random: &mut Rng,
    options: &[&str],
    limit: Duration,
) -> Option<i32> {
    let options = [options, &["-o", "/dev/null"]].concat();
    let mut daemon = Daemon::spawn(traced(&quiet(crate::support::serve(data, &["--dev"])), &options));
    // It may die before it is ready.
    while !daemon.is_ready().await && daemon.is_running() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let publishers = publishers(ledger, &daemon, random);
    let code = daemon.ended_within(limit).await;
    for publisher in publishers {
        publisher.await.unwrap();
    }
    let daemon = Daemon::start(data).await;
    let stored = stored_events(&daemon).await;
    check_stored(&ledger.lock().unwrap(), &stored);
    code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_at_any_disk_call_loses_no_event() {
    if !has_program("strace") {
        return say("SKIPPED: no strace");
    }
    let mut random = Rng::with_seed(seed());
    let data = tempfile::tempdir().unwrap();
    let ledger = Arc::<Mutex<Ledger>>::default();
    for _ in 0..number("BALTO_TEST_ROUNDS").unwrap_or(12) {
        let call = ["fdatasync", "fsync", "pwrite64", "openat"][random.usize(0..4)];
        let which = if call == "openat" { random.u32(20..60) } else { random.u32(1..4) };
        // Syncs of the journal are frequent, those at the start and of the state are rare.
        let which = if call == "fdatasync" { random.u32(1..60) } else { which };
        let inject = format!("{call}:signal=KILL:when={which}");
        // Some calls are not reached in this time; then the test kills the daemon.
        run_until_death(data.path(), &ledger, &mut random, &inject, Duration::from_secs(1)).await;
    }
    say(&format!("{} acknowledged, none lost", ledger.lock().unwrap().accepted.len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_sync_ends_the_process_without_acknowledgement() {
    if !has_program("strace") {
        return say("SKIPPED: no strace");
    }
    let mut random = Rng::with_seed(seed());
    let data = tempfile::tempdir().unwrap();
    let ledger = Arc::<Mutex<Ledger>>::default();
    for error in ["EIO", "ENOSPC", "EIO"] {
        let which = random.u32(4..60);
        let inject = format!("fdatasync:error={error}:when={which}");
        let code =
            run_until_death(data.path(), &ledger, &mut random, &inject, crate::support::WAIT_MAX).await;
        assert_eq!(code, Some(74), "{error} at sync {which}");
    }
    assert!(!ledger.lock().unwrap().accepted.is_empty());
}

/// Errors on one file, the journal's or the state's, in any call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_write_ends_the_process_and_the_next_start_recovers() {
    if !has_program("strace") {
        return say("SKIPPED: no strace");
    }
    let mut random = Rng::with_seed(seed());
    let data = tempfile::tempdir().unwrap();
    let ledger = Arc::<Mutex<Ledger>>::default();
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
            run_traced_until_death(data.path(), &ledger, &mut random, &options, crate::support::WAIT_MAX)
                .await;
        // A read error fails the start; a write error ends the process, or the start that replays.
        let expected: &[i32] = match (file, call) {
            (_, "pread64") => &[1],
            ("state/db", _) => &[1, 74],
            _ => &[74],
        };
        assert!(code.is_some_and(|code| expected.contains(&code)), "{code:?}: {call} {which} of {file}");
    }
    assert!(!ledger.lock().unwrap().accepted.is_empty());
}

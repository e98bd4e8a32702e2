//! Erasure on disk: after `onDisk: done`, no file of the data directory has the content, also with
//! a kill in between and after a restore of a later backup.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::json;

use crate::support::{Daemon, Receiver, WAIT_MAX, serve};

const CANARY: &str = "canary-4711";
const BALTO: &str = env!("CARGO_BIN_EXE_balto");

/// The files below a directory that have the canary.
fn with_canary(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(with_canary(&path));
        } else if let Ok(bytes) = std::fs::read(&path)
            && bytes.windows(CANARY.len()).any(|part| part == CANARY.as_bytes())
        {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Repeats an erasure until the content has left the disk.
async fn until_done(daemon: &Daemon, id: &str) {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let answer = daemon.post(&format!("/events/{id}/erase"), r#"{"reason": "a test"}"#).await;
        if answer["onDisk"] == "done" {
            return;
        }
        assert!(Instant::now() < deadline, "{answer}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn verify(data: &Path) {
    let verified = Command::new(BALTO).args(["verify", "--data-dir"]).arg(data).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erased_content_leaves_all_files_despite_kills() {
    let (data, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start(|_, _| {
        let head = format!("HTTP/1.1 302 x\r\nlocation: http://a.example/{CANARY}\r\n");
        format!("{head}content-length: {}\r\n\r\n{CANARY}", CANARY.len())
    })
    .await;
    let mut daemon = Daemon::start(data.path()).await;
    let endpoint = json!({"url": receiver.url, "retry": {"schedule": ["10ms", "1h"]}}).to_string();
    let endpoint = daemon.post("/endpoints", &endpoint).await;
    let queue = json!({"name": "jobs", "visibility": "1h", "retry": {"initial": "1h", "maxInterval": "1h"}});
    daemon.post("/queues", &queue.to_string()).await;
    let mut ids = Vec::new();
    for number in 0..3 {
        let event = json!({"type": "a", "data": [CANARY, number], "metadata": {"name": CANARY}}).to_string();
        let accepted = daemon.post("/events", &event).await;
        ids.push(accepted["id"].as_str().unwrap().to_owned());
    }
    receiver.until(6).await;
    // One message stays leased.
    let received = daemon.post("/queues/jobs/receive", r#"{"max": 3}"#).await;
    let receipts: Vec<_> =
        received["messages"].as_array().unwrap().iter().skip(1).map(|one| &one["receipt"]).collect();
    assert_eq!(receipts.len(), 2);
    daemon.post("/queues/jobs/nack", &json!({"receipts": receipts, "reason": CANARY}).to_string()).await;
    let path = format!("/deliveries?eventId={}&endpointId={}", ids[0], endpoint["id"].as_str().unwrap());
    daemon.until(&path, |page| page["data"][0]["attemptCount"] == 2).await;
    assert!(!with_canary(data.path()).is_empty());
    for (round, id) in ids.iter().enumerate() {
        let answer = daemon.post(&format!("/events/{id}/erase"), r#"{"reason": "a test"}"#).await;
        assert_eq!(answer["count"], 1, "{answer}");
        // Before, within and after the work of the background task.
        tokio::time::sleep(std::time::Duration::from_millis(60 * round as u64)).await;
        daemon.kill();
        daemon = Daemon::spawn(serve(data.path(), &["--dev"]));
        daemon.until_ready().await;
        let event = daemon.get(&format!("/events/{id}")).await;
        assert!(event["data"].is_null() && event["erasedAt"].is_string(), "{event}");
    }
    let lane = daemon.get("/queues/jobs/lane").await;
    assert_eq!((&lane["pending"], &lane["leased"]), (&json!(0), &json!(0)), "{lane}");
    // A backup that begins after the erasures has no content, also before the files lose it.
    let backup = elsewhere.path().join("balto.backup");
    let mut command = Command::new(BALTO);
    command.args(["backup", "--to"]).arg(&backup);
    command.env("BALTO_URL", daemon.api.trim_end_matches("/v1"));
    let made = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // The backup holds rewrites for a while. A restart ends the hold.
    assert_eq!(daemon.terminate(), Some(0));
    verify(data.path());
    daemon = Daemon::start(data.path()).await;
    for id in &ids {
        until_done(&daemon, id).await;
    }
    assert_eq!(with_canary(data.path()), Vec::<String>::new());
    daemon.kill();
    verify(data.path());
    assert_eq!(with_canary(data.path()), Vec::<String>::new());

    let restored = elsewhere.path().join("restored");
    let mut restore = Command::new(BALTO);
    restore.args(["restore", "--from"]).arg(&backup).arg("--data-dir").arg(&restored);
    assert!(restore.output().unwrap().status.success());
    let daemon = Daemon::start(&restored).await;
    for id in &ids {
        let event = daemon.get(&format!("/events/{id}")).await;
        assert!(event["data"].is_null() && event["erasedAt"].is_string(), "{event}");
        until_done(&daemon, id).await;
    }
    assert_eq!(with_canary(elsewhere.path()), Vec::<String>::new());
}

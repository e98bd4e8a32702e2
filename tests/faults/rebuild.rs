//! The state is rebuilt while the daemon serves: under load, with kills in between, and on a disk
//! that fills up.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

use super::disk::{SmallVolume, fill_up};
use crate::support::load::{Ledger, accepted, check_stored, publish, publishers, stored_events};
use crate::support::{Daemon, Receiver, number, say, seed, serve};

const REBUILD: &str = "/projections/state/rebuild";

fn verify(data: &Path) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balto"));
    let verified = command.args(["verify", "--data-dir"]).arg(data).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

/// Names of a rebuild or replacement in the data directory.
fn leftovers(data: &Path) -> Vec<String> {
    let names = fs::read_dir(data).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("state") && name != "state").collect()
}

async fn until_rebuilt(daemon: &Daemon) -> Value {
    let is_over = |page: &Value| !["running", ""].contains(&status(page));
    daemon.until("/projections", is_over).await["data"][0]["rebuild"].clone()
}

fn status(projections: &Value) -> &str {
    projections["data"][0]["rebuild"]["status"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rebuild_under_load_keeps_every_event() {
    let data = tempfile::tempdir().unwrap();
    let receiver = Receiver::status(200).await;
    let mut daemon = Daemon::start(data.path()).await;
    let endpoint = json!({"url": receiver.url, "maxInFlight": 32}).to_string();
    daemon.post("/endpoints", &endpoint).await;
    let ledger = Arc::<Mutex<Ledger>>::default();
    let publishers = publishers(&ledger, &daemon, &mut Rng::with_seed(seed()));
    accepted(&ledger, 300).await;
    for _ in 0..3 {
        let begun = daemon.post(REBUILD, "").await;
        assert_eq!((begun["name"].as_str(), begun["kind"].as_str()), (Some("state"), Some("state")));
        let rebuilt = until_rebuilt(&daemon).await;
        assert_eq!((&rebuilt["status"], &rebuilt["error"]), (&json!("completed"), &Value::Null), "{rebuilt}");
        assert_eq!(rebuilt["done"], rebuilt["total"]);
        // Ingest and reads go on with the new state.
        let count = ledger.lock().unwrap().accepted.len();
        accepted(&ledger, count + 100).await;
        assert_eq!(leftovers(data.path()), Vec::<String>::new());
    }
    for publisher in publishers {
        publisher.abort();
        publisher.await.ok();
    }
    let stored = stored_events(&daemon).await;
    check_stored(&ledger.lock().unwrap(), &stored);
    daemon.until("/deliveries?limit=1&status=pending", |page| page["data"] == json!([])).await;
    assert_eq!(daemon.terminate(), Some(0));
    verify(data.path());
    let daemon = Daemon::start(data.path()).await;
    // A publisher that was stopped may have had a request in progress.
    let after: HashSet<_> = stored_events(&daemon).await.into_iter().collect();
    assert!(stored.iter().all(|event| after.contains(event)), "an event was lost by the restart");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_during_a_rebuild_leaves_a_valid_state() {
    let seed = seed();
    let mut random = Rng::with_seed(seed);
    let data = tempfile::tempdir().unwrap();
    let receiver = Receiver::status(200).await;
    let mut daemon = Daemon::start(data.path()).await;
    daemon.post("/endpoints", &json!({"url": receiver.url, "maxInFlight": 32}).to_string()).await;
    let batch = json!({"events": vec![json!({"type": "old", "data": 1}); 1_000]}).to_string();
    for _ in 0..4 {
        daemon.post("/events/batch", &batch).await;
    }
    let ledger = Arc::<Mutex<Ledger>>::default();
    for _ in 0..number("BALTO_TEST_ROUNDS").unwrap_or(8) {
        let unsure = std::mem::take(&mut ledger.lock().unwrap().unsure);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        for event_type in unsure {
            let id = publish(&client, &daemon.api, &event_type, true).await.unwrap();
            ledger.lock().unwrap().accepted.insert(event_type, id);
        }
        let publishers = publishers(&ledger, &daemon, &mut random);
        daemon.post(REBUILD, "").await;
        tokio::time::sleep(Duration::from_millis(random.u64(0..600))).await;
        daemon.kill();
        for publisher in publishers {
            publisher.await.unwrap();
        }
        verify(data.path());
        daemon = Daemon::spawn(serve(data.path(), &["--dev"]));
        daemon.until_ready().await;
        assert_eq!(leftovers(data.path()), Vec::<String>::new(), "seed {seed}");
        let projections = daemon.get("/projections").await;
        assert!(projections["data"][0].get("rebuild").is_none(), "{projections}");
    }
    daemon.post(REBUILD, "").await;
    assert_eq!(until_rebuilt(&daemon).await["status"], "completed", "seed {seed}");
    let mut stored = stored_events(&daemon).await;
    stored.retain(|(event_type, _)| event_type != "old");
    check_stored(&ledger.lock().unwrap(), &stored);
    daemon.until("/deliveries?limit=1&status=pending", |page| page["data"] == json!([])).await;
    assert_eq!(daemon.terminate(), Some(0));
    verify(data.path());
}

#[tokio::test]
async fn full_disk_ends_a_rebuild_and_keeps_the_state() {
    let below = tempfile::tempdir().unwrap();
    let Some(small) = SmallVolume::mount_of_size(below.path().join("small"), "96m") else {
        return say("SKIPPED: this machine mounts no tmpfs");
    };
    let mut daemon = Daemon::start(&small.0.join("data")).await;
    let endpoint = daemon.post("/endpoints", r#"{"url": "http://127.0.0.1:9999/"}"#).await;
    daemon.post(&format!("/endpoints/{}/pause", endpoint["id"].as_str().unwrap()), "").await;
    let batch = json!({"events": vec![json!({"type": "a", "data": 1}); 1_000]}).to_string();
    for _ in 0..30 {
        daemon.post("/events/batch", &batch).await;
    }
    // The restart writes a checkpoint: later the old state needs no space.
    assert_eq!(daemon.terminate(), Some(0));
    daemon = Daemon::start(&small.0.join("data")).await;
    let ballast = fill_up(&small.0, 1 << 20);
    let (status, refusal, _) = daemon.call("POST", REBUILD, &[], "").await;
    assert_eq!((status, &refusal["code"]), (507, &json!("disk_full")), "{refusal}");
    fs::remove_file(ballast).unwrap();
    // The disk fills up while the rebuild runs: at its next step it finds less than the reserve.
    daemon.post(REBUILD, "").await;
    let ballast = fill_up(&small.0, 1 << 20);
    let failed = until_rebuilt(&daemon).await;
    assert_eq!(failed["status"], "failed", "{failed}");
    let error = failed["error"].as_str().unwrap();
    assert!(error.contains("reserve") || error.contains("the disk is full"), "{failed}");
    assert!(failed["endedAt"].is_string());
    assert_eq!(leftovers(&small.0.join("data")), Vec::<String>::new());
    fs::remove_file(ballast).unwrap();
    daemon.until_ready().await;
    daemon.post("/events", r#"{"type": "a", "data": 2}"#).await;
    daemon.post(REBUILD, "").await;
    assert_eq!(until_rebuilt(&daemon).await["status"], "completed");
    let page = daemon.get("/projections").await;
    assert_eq!(page["data"][0]["rows"]["pendingDeliveries"], 30_001, "{page}");
    assert_eq!(daemon.terminate(), Some(0));
    verify(&small.0.join("data"));
}

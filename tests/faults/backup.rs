//! `balto backup` of a running daemon, and the answers of a daemon after `balto restore`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::load::{Ledger, accepted, check_stored, publishers, stored_events};
use crate::support::{Daemon, Receiver, answer, seed};
use fastrand::Rng;
use serde_json::{Value, json};
use tokio::net::TcpListener;

async fn balto(daemon: Option<&Daemon>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balto"));
    command.args(arguments);
    if let Some(daemon) = daemon {
        command.env("BALTO_URL", daemon.api.trim_end_matches("/v1"));
    }
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// The output of the command.
async fn backup(daemon: &Daemon, file: &Path) -> String {
    let done = balto(Some(daemon), &["backup", "--to", file.to_str().unwrap()]).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

async fn restore(file: &Path, data: &Path) -> Output {
    balto(None, &["restore", "--from", file.to_str().unwrap(), "--data-dir", data.to_str().unwrap()]).await
}

/// Every response that shows stored data.
async fn responses(daemon: &Daemon) -> Vec<Value> {
    let mut all = Vec::new();
    for list in ["endpoints", "keys", "events", "deliveries", "dead-letters"] {
        let page = daemon.get(&format!("/{list}?limit=250")).await;
        for item in page["data"].as_array().unwrap() {
            let path = format!("/{list}/{}", item["id"].as_str().unwrap());
            all.push(if list == "keys" { item.clone() } else { daemon.get(&path).await });
        }
    }
    all
}

/// Deliveries in each state: delivered, pending, dead, redriven; two keys, one of them deleted.
async fn fill(daemon: &Daemon, receiver: &Receiver) {
    let retry = json!({"schedule": ["10ms"]});
    let good = daemon.post("/endpoints", &json!({"url": receiver.url, "retry": retry}).to_string()).await;
    for number in 0..60 {
        let at = ["2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"][usize::from(number % 5 == 0)];
        let event = json!({"type": format!("n.{number}"), "data": {"n": number}, "deliverAt": at});
        daemon.post("/events", &event.to_string()).await;
    }
    for name in ["one", "two"] {
        let key = daemon.post("/keys", &json!({"role": "viewer", "description": name}).to_string()).await;
        if name == "two" {
            let (status, ..) =
                daemon.call("DELETE", &format!("/keys/{}", key["id"].as_str().unwrap()), &[], "").await;
            assert_eq!(status, 204);
        }
    }
    let settled = |page: &Value| page["data"].as_array().unwrap().len() == 12;
    daemon.until("/deliveries?status=pending&limit=250", settled).await;
    let letters = daemon.get("/dead-letters").await;
    let letter = letters["data"][0]["id"].as_str().unwrap();
    daemon.post(&format!("/dead-letters/{letter}/redrive"), "").await;
    daemon.until("/deliveries?status=pending&limit=250", settled).await;
    daemon.post(&format!("/endpoints/{}/pause", good["id"].as_str().unwrap()), "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_daemon_answers_like_the_original() {
    let below = tempfile::tempdir().unwrap();
    let (file, copy) = (below.path().join("file"), below.path().join("copy"));
    let daemon = Daemon::start(&below.path().join("data")).await;
    let receiver = Receiver::start(|_, got| answer(if got.body.contains("7\",") { 500 } else { 200 })).await;
    fill(&daemon, &receiver).await;
    backup(&daemon, &file).await;
    let done = restore(&file, &copy).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let restored = Daemon::start(&copy).await;
    let (original, copied) = (responses(&daemon).await, responses(&restored).await);
    assert_eq!(original, copied);
    assert!(original.len() > 120, "{} things", original.len());
    // Positions continue after those of the backup, and a second restore leaves existing data
    // alone.
    let event = restored.post("/events", r#"{"type":"after","data":1}"#).await;
    assert!(event["position"].as_u64() > daemon.get("/events?limit=1").await["data"][0]["position"].as_u64());
    let refused = restore(&file, &copy).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is not empty"));
}

/// Restores the backup of a restored daemon, twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_backup_is_backed_up_and_restored_again() {
    let below = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(|_, got| answer(if got.body.contains("7\",") { 500 } else { 200 })).await;
    let mut daemon = Daemon::start(&below.path().join("data")).await;
    fill(&daemon, &receiver).await;
    let mut counts = Vec::new();
    for round in 0..3 {
        let (file, copy) =
            (below.path().join(format!("file-{round}")), below.path().join(format!("copy-{round}")));
        // Two backups of the same data are equal.
        backup(&daemon, &below.path().join(format!("other-{round}"))).await;
        backup(&daemon, &file).await;
        let bytes = |name: &str| std::fs::read(below.path().join(format!("{name}-{round}"))).unwrap();
        assert!(bytes("file") == bytes("other"), "round {round}");
        assert!(restore(&file, &copy).await.status.success(), "round {round}");
        let restored = Daemon::start(&copy).await;
        assert_eq!(responses(&daemon).await, responses(&restored).await, "round {round}");
        let event = json!({"type": "after", "data": round, "deliverAt": "2999-01-01T00:00:00Z"});
        restored.post("/events", &event.to_string()).await;
        counts.push(stored_events(&restored).await.len());
        daemon = restored;
    }
    assert_eq!(counts, [61, 62, 63]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_under_load_holds_all_earlier_acknowledged_events() {
    let below = tempfile::tempdir().unwrap();
    let (file, copy) = (below.path().join("file"), below.path().join("copy"));
    let mut random = Rng::with_seed(seed());
    let mut daemon = Daemon::start(&below.path().join("data")).await;
    let receiver = Receiver::status(200).await;
    daemon.post("/endpoints", &json!({"url": receiver.url}).to_string()).await;
    let ledger = Arc::<Mutex<Ledger>>::default();
    let publishers = publishers(&ledger, &daemon, &mut random);
    let accepted = accepted(&ledger, 100).await;
    backup(&daemon, &file).await;
    daemon.kill();
    for publisher in publishers {
        publisher.await.unwrap();
    }
    assert!(restore(&file, &copy).await.status.success());
    let restored = Daemon::start(&copy).await;
    let before = Ledger { accepted, ..Ledger::default() };
    check_stored(&before, &stored_events(&restored).await);
    restored.until("/deliveries?limit=1&status=pending", |page| page["data"] == json!([])).await;
}

#[tokio::test]
async fn backup_reports_its_content_and_replaces_only_with_force() {
    let below = tempfile::tempdir().unwrap();
    let file = below.path().join("file");
    let daemon = Daemon::start(&below.path().join("data")).await;
    let position = |event: &Value| event["position"].as_u64().unwrap();
    let first = daemon.post("/events", r#"{"type":"a","data":1}"#).await;
    let message = backup(&daemon, &file).await;
    let bytes = std::fs::read(&file).unwrap();
    let expected =
        format!("{}: {} bytes, up to position {}\n", file.display(), bytes.len(), position(&first));
    assert_eq!(message, expected);
    let second = daemon.post("/events", r#"{"type":"a","data":2}"#).await;
    let again = ["backup", "--to", file.to_str().unwrap()];
    let refused = balto(Some(&daemon), &again).await;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && words.contains("--force"), "{words}");
    assert_eq!(std::fs::read(&file).unwrap(), bytes, "the backup was replaced without --force");
    let forced = balto(Some(&daemon), &[&again[..], &["--force", "--json"]].concat()).await;
    let answer: Value = serde_json::from_slice(&forced.stdout).unwrap();
    let length = std::fs::metadata(&file).unwrap().len();
    let expected = json!({"path": file.to_str().unwrap(), "bytes": length, "position": position(&second)});
    assert_eq!(answer, expected);
    let copy = below.path().join("copy");
    let (from, to) = (file.to_str().unwrap(), copy.to_str().unwrap());
    let restored = balto(None, &["restore", "--from", from, "--data-dir", to, "--json"]).await;
    let answer: Value = serde_json::from_slice(&restored.stdout).unwrap();
    let records = answer["records"].as_u64().unwrap();
    assert!(records >= 2, "{answer}");
    assert_eq!(answer, json!({"path": to, "records": records, "position": position(&second)}));
}

#[tokio::test]
async fn interrupted_backup_leaves_no_file() {
    let below = tempfile::tempdir().unwrap();
    let file = below.path().join("file");
    // A server that never responds, then an invalid one.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    for ending in ["-TERM", "-INT", "reset"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_balto"));
        command.args(["backup", "--to", file.to_str().unwrap()]).stderr(Stdio::piped());
        let running = command.env("BALTO_URL", format!("http://{address}")).spawn().unwrap();
        let (connection, _) = silent.accept().await.unwrap();
        assert!(below.path().join("file.partial").exists(), "{ending}: nothing was begun");
        match ending {
            "reset" => drop(connection),
            signal => {
                let id = running.id().to_string();
                assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
            }
        }
        let ended = tokio::task::spawn_blocking(move || running.wait_with_output().unwrap()).await.unwrap();
        let words = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{ending}: {words}");
        assert_eq!(std::fs::read_dir(below.path()).unwrap().count(), 0, "{ending}: {words}");
    }
}

#[tokio::test]
async fn leftovers_of_a_killed_backup_do_not_block_the_next() {
    let below = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&below.path().join("data")).await;
    let (file, partial, other) =
        (below.path().join("file"), below.path().join("file.partial"), below.path().join("other"));
    std::fs::write(&other, "not ours").unwrap();
    std::os::unix::fs::symlink(&other, &partial).unwrap();
    backup(&daemon, &file).await;
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("balto-backup 1\n"));
    assert!(std::fs::symlink_metadata(&file).unwrap().is_file() && !partial.exists());
    assert_eq!(
        std::fs::read_to_string(&other).unwrap(),
        "not ours",
        "the target of the link was overwritten"
    );
}

/// Both contain payloads, and secrets if no key encrypts them.
#[tokio::test]
async fn other_users_cannot_read_the_data_directory_or_a_backup() {
    let below = tempfile::tempdir().unwrap();
    let (data, copy, file) =
        (below.path().join("data"), below.path().join("copy"), below.path().join("file"));
    let daemon = Daemon::start(&data).await;
    // A leftover of an interrupted backup.
    std::fs::write(below.path().join("file.partial"), "").unwrap();
    assert!(balto(Some(&daemon), &["backup", "--to", file.to_str().unwrap()]).await.status.success());
    assert!(restore(&file, &copy).await.status.success());
    for (path, mode) in [(data, 0o700), (copy, 0o700), (file, 0o600)] {
        let found = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{} has mode {found:o}", path.display());
    }
}

#[tokio::test]
async fn tenant_key_gets_no_backup_and_bad_file_no_directory() {
    let below = tempfile::tempdir().unwrap();
    let data = below.path().join("data");
    let daemon = Daemon::start_with(&data, &[]).await;
    let admin = format!("Bearer {}", std::fs::read_to_string(data.join("admin.key")).unwrap().trim());
    let admin = [("authorization", admin.as_str())];
    let key = json!({"role": "admin", "tenant": "acme", "description": "x"});
    let (status, key, _) = daemon.call("POST", "/keys", &admin, &key.to_string()).await;
    assert_eq!(status, 201, "{key}");
    let bound = format!("Bearer {}", key["secret"].as_str().unwrap_or_else(|| panic!("{key}")));
    let (status, problem, _) = daemon.call("GET", "/backup", &[("authorization", &bound)], "").await;
    assert_eq!((status, problem["code"].as_str()), (403, Some("forbidden")), "{problem}");
    for query in ["after=-1", "after=x", "until=9223372036854775808", "from=1"] {
        let (status, problem, _) = daemon.call("GET", &format!("/backup?{query}"), &admin, "").await;
        assert_eq!(status, 422, "{query}: {problem}");
    }
    let (file, copy) = (below.path().join("file"), below.path().join("copy"));
    std::fs::write(&file, "something else\n").unwrap();
    let refused = restore(&file, &copy).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("this is not a backup"));
    assert!(!copy.exists());
}

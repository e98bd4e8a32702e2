//! Encryption at rest in the real daemon: rotation of keys, and changes by a person with write
//! access to the disk.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::{Daemon, Receiver, serve};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const OLD: &str = "b2xkLW9sZC1vbGQtb2xkLW9sZC1vbGQtb2xkLW9sZC0=";
const NEW: &str = "bmV3LW5ldy1uZXctbmV3LW5ldy1uZXctbmV3LW5ldy0=";
/// First 4 bytes of the SHA-256 of the old key.
const OLD_ID: &str = "9c5230e7";
const SECRET: &str = "whsec_wxRESeK8Anx6dxdg2gY7mrQuXLZPoCuy";

async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn start(data: &Path, keys: &str) -> Daemon {
    let environment = [("BALTO__SECRETS__KEY", keys)];
    let environment = if keys.is_empty() { &[][..] } else { &environment };
    Daemon::start_in(data, &["--dev"], environment).await
}

/// The error output of a start that fails.
async fn refused(data: &Path, keys: &str) -> String {
    let mut command = serve(data, &["--dev"]);
    command.stderr(Stdio::piped());
    if !keys.is_empty() {
        command.env("BALTO__SECRETS__KEY", keys);
    }
    let done = output(command).await;
    assert_eq!(done.status.code(), Some(1), "{}", text(&done.stderr));
    text(&done.stderr)
}

async fn verified(data: &Path, keys: &str) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balto"));
    command.args(["verify", "--json", "--data-dir"]).arg(data).env("BALTO__SECRETS__KEY", keys);
    let done = output(command).await;
    serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{}", text(&done.stderr)))
}

async fn until_resealed(daemon: &Daemon) {
    daemon.until_metric("balto_endpoints_to_reseal", "", |endpoints| endpoints == 0.0).await;
}

async fn add(daemon: &Daemon, receiver: &Receiver) -> String {
    let endpoint = json!({"url": receiver.url, "secret": SECRET, "sensitiveHeaders": {"X-Token": "hush"}});
    let endpoint = daemon.post("/endpoints", &endpoint.to_string()).await;
    endpoint["id"].as_str().unwrap().to_owned()
}

/// Asserts that deliveries have the secret's signature and the sensitive header.
async fn check_delivery(daemon: &Daemon, receiver: &Receiver, endpoint: &str) {
    let before = receiver.count();
    daemon.post(&format!("/endpoints/{endpoint}/test"), "").await;
    let got = receiver.until(before + 1).await.pop().unwrap();
    assert_eq!(got.headers["x-token"], "hush");
    let mut headers = axum::http::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, got.headers[name].parse().unwrap());
    }
    standardwebhooks::Webhook::new(SECRET).unwrap().verify(got.body.as_bytes(), &headers).unwrap();
    assert_eq!(daemon.get(&format!("/endpoints/{endpoint}/secret")).await["secret"], SECRET);
}

#[tokio::test]
async fn rotation_seals_again_and_retires_the_old_key() {
    let directory = tempfile::tempdir().unwrap();
    let (data, receiver) = (directory.path().join("data"), Receiver::status(200).await);
    let mut daemon = start(&data, OLD).await;
    let endpoint = add(&daemon, &receiver).await;
    let shown = daemon.get(&format!("/endpoints/{endpoint}")).await;
    assert_eq!(daemon.terminate(), Some(0));
    for keys in [NEW, ""] {
        let message = refused(&data, keys).await;
        assert!(message.contains(&endpoint) && message.contains(OLD_ID), "{message}");
    }
    // With the old key first, nothing changes yet.
    for (keys, outdated) in [(format!("{OLD},{NEW}"), 0), (format!("{NEW},{OLD}"), 2)] {
        let found = verified(&data, &keys).await;
        assert_eq!(
            (&found["ok"], &found["secrets"]["outdated"]),
            (&json!(true), &json!(outdated)),
            "{found}"
        );
        let mut daemon = start(&data, &keys).await;
        until_resealed(&daemon).await;
        check_delivery(&daemon, &receiver, &endpoint).await;
        assert_eq!(daemon.get(&format!("/endpoints/{endpoint}")).await, shown);
        assert_eq!(daemon.terminate(), Some(0));
    }
    let daemon = start(&data, NEW).await;
    check_delivery(&daemon, &receiver, &endpoint).await;
    drop(daemon);
    let message = refused(&data, OLD).await;
    assert!(message.contains("which is not configured"), "{message}");
}

/// Starts a daemon that logs to a file, and stops it when it has delivered. Gives what it logged.
async fn logged(below: &Path, keys: &str, receiver: &Receiver, endpoint: &str) -> String {
    let log = below.join("log");
    let mut command = serve(&below.join("data"), &["--dev"]);
    command.envs([("BALTO__SECRETS__KEY", keys), ("BALTO__LOG__LEVEL", "info")]);
    command.stderr(std::fs::File::create(&log).unwrap());
    let mut daemon = Daemon::spawn(command);
    daemon.until_ready().await;
    until_resealed(&daemon).await;
    check_delivery(&daemon, receiver, endpoint).await;
    assert_eq!(daemon.terminate(), Some(0));
    std::fs::read_to_string(log).unwrap()
}

#[tokio::test]
async fn start_with_nothing_to_seal_again_logs_nothing_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let (data, receiver) = (directory.path().join("data"), Receiver::status(200).await);
    let mut daemon = start(&data, OLD).await;
    let endpoint = add(&daemon, &receiver).await;
    assert_eq!(daemon.terminate(), Some(0));
    let keys = format!("{NEW},{OLD}");
    let first = logged(directory.path(), &keys, &receiver, &endpoint).await;
    assert!(first.contains("\"resealed\":1"), "{first}");
    let second = logged(directory.path(), &keys, &receiver, &endpoint).await;
    assert!(!second.contains("resealed"), "{second}");
}

#[tokio::test]
async fn plain_secrets_are_sealed_once_a_key_exists() {
    let directory = tempfile::tempdir().unwrap();
    let (data, receiver) = (directory.path().join("data"), Receiver::status(200).await);
    let mut daemon = start(&data, "").await;
    let endpoint = add(&daemon, &receiver).await;
    assert_eq!(daemon.terminate(), Some(0));
    assert_eq!(verified(&data, NEW).await["secrets"]["plain"], 2);
    let mut daemon = start(&data, NEW).await;
    until_resealed(&daemon).await;
    check_delivery(&daemon, &receiver, &endpoint).await;
    assert_eq!(daemon.terminate(), Some(0));
    let found = verified(&data, NEW).await;
    assert_eq!((&found["ok"], &found["secrets"]["plain"]), (&json!(true), &json!(0)), "{found}");
    assert!(refused(&data, "").await.contains("no key is configured"));
}

#[tokio::test]
async fn patch_keeps_every_secret_that_it_does_not_name() {
    let directory = tempfile::tempdir().unwrap();
    let (data, receiver) = (directory.path().join("data"), Receiver::status(200).await);
    let daemon = start(&data, NEW).await;
    let endpoint = add(&daemon, &receiver).await;
    let path = format!("/endpoints/{endpoint}");
    for change in
        [json!({"description": "x"}), json!({"headers": {"X-Plain": "1"}}), json!({"rateLimit": null})]
    {
        let (status, body, _) = daemon.call("PATCH", &path, &[], &change.to_string()).await;
        assert_eq!(status, 200, "{body}");
        check_delivery(&daemon, &receiver, &endpoint).await;
    }
    for action in ["pause", "resume"] {
        daemon.post(&format!("{path}/{action}"), "").await;
    }
    check_delivery(&daemon, &receiver, &endpoint).await;
    // The rotated secret still signs beside the new one, also after another change.
    let fresh = daemon.post(&format!("{path}/secret/rotate"), "").await;
    assert_eq!(fresh["previous"][0]["secret"], SECRET);
    daemon.call("PATCH", &path, &[], r#"{"description":"y"}"#).await;
    let shown = daemon.get(&format!("{path}/secret")).await;
    assert_eq!((&shown["secret"], &shown["previous"]), (&fresh["secret"], &fresh["previous"]));
    drop(daemon);
    let daemon = start(&data, NEW).await;
    assert_eq!(daemon.get(&format!("{path}/secret")).await, shown);
}

#[tokio::test]
async fn killed_resealing_continues_at_the_next_start() {
    const ENDPOINTS: usize = 60;
    let directory = tempfile::tempdir().unwrap();
    let (data, receiver) = (directory.path().join("data"), Receiver::status(200).await);
    let daemon = start(&data, OLD).await;
    let mut endpoints = Vec::new();
    for _ in 0..ENDPOINTS {
        endpoints.push(add(&daemon, &receiver).await);
    }
    drop(daemon);
    let keys = format!("{NEW},{OLD}");
    let mut killed_within = 0;
    for _ in 0..20 {
        let mut daemon = start(&data, &keys).await;
        daemon.kill();
        let found = verified(&data, &keys).await;
        assert_eq!(found["ok"], true, "{found}");
        let outdated = found["secrets"]["outdated"].as_u64().unwrap();
        killed_within += u64::from(outdated > 0);
        if outdated == 0 {
            break;
        }
    }
    crate::support::say(&format!("killed {killed_within} times before it finished"));
    let mut daemon = start(&data, &keys).await;
    until_resealed(&daemon).await;
    assert_eq!(daemon.terminate(), Some(0));
    let daemon = start(&data, NEW).await;
    for endpoint in endpoints {
        assert_eq!(daemon.get(&format!("/endpoints/{endpoint}/secret")).await["secret"], SECRET);
    }
}

/// Takes a backup with both keys of a rotation.
async fn backup(daemon: &Daemon, file: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balto"));
    command.args(["backup", "--force", "--to"]).arg(file);
    command.env("BALTO_URL", daemon.api.trim_end_matches("/v1"));
    let done = output(command).await;
    assert!(done.status.success(), "{}", text(&done.stderr));
    std::fs::read_to_string(file).unwrap()
}

/// Restores a backup. Returns its error output when it fails, otherwise its notes.
async fn restore(backup: &str, data: &Path, keys: &str, flags: &[&str]) -> Result<String, String> {
    if data.exists() {
        std::fs::remove_dir_all(data).unwrap();
    }
    let file = data.with_extension("backup");
    std::fs::write(&file, backup).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_balto"));
    command.args(["restore", "--from"]).arg(&file).arg("--data-dir").arg(data).args(flags);
    if !keys.is_empty() {
        command.env("BALTO__SECRETS__KEY", keys);
    }
    let done = output(command).await;
    let message = text(&done.stderr);
    assert_eq!(done.status.success(), data.exists(), "{message}");
    if done.status.success() { Ok(message) } else { Err(message) }
}

/// Changes the records of a backup and corrects the CRC-32, but not the keyed checksums.
fn edit_backup(backup: &str, change: impl Fn(u64, &mut Vec<u8>)) -> String {
    let line = |line: &str| {
        if !line.starts_with("c ") {
            return format!("{line}\n");
        }
        let words: Vec<_> = line.split(' ').collect();
        let records = words[3..words.len() - 2].iter().map(|word| {
            let (position, bytes) = word.split_once(':').unwrap();
            let mut bytes = STANDARD.decode(bytes).unwrap();
            change(position.parse().unwrap(), &mut bytes);
            format!("{position}:{}", STANDARD.encode(bytes))
        });
        let content = [words[..3].join(" "), records.collect::<Vec<_>>().join(" ")].join(" ");
        let crc = crc32fast::hash(content.as_bytes());
        format!("{content} {crc:08x} {}\n", words[words.len() - 1])
    };
    backup.lines().map(line).collect()
}

/// The record at a position.
fn record(backup: &str, wanted: u64) -> Vec<u8> {
    let found = std::cell::RefCell::new(Vec::new());
    edit_backup(backup, |position, bytes| {
        if position == wanted {
            found.borrow_mut().clone_from(bytes);
        }
    });
    assert!(!found.borrow().is_empty(), "no record {wanted}");
    found.into_inner()
}

/// The offset of the first value that is encrypted under the new key.
fn first_value(record: &[u8]) -> usize {
    let head = [2, 0xa9, 0x4d, 0xdb, 0x8d];
    record.windows(head.len()).position(|window| window == head).expect("a value under the new key")
}

#[tokio::test]
async fn edited_backup_is_refused_and_its_secrets_do_not_open() {
    let directory = tempfile::tempdir().unwrap();
    let (file, copy) = (directory.path().join("file"), directory.path().join("copy"));
    let receiver = Receiver::status(200).await;
    let daemon = start(&directory.path().join("data"), NEW).await;
    let endpoint = add(&daemon, &receiver).await;
    // Of the same length.
    let other = json!({"secret": "whsec_b3RoZXIga2V5IGZvciBhIHJvdGF0aW9u", "overlap": "0s"});
    daemon.post(&format!("/endpoints/{endpoint}/secret/rotate"), &other.to_string()).await;
    let saved = backup(&daemon, &file).await;
    let again = backup(&daemon, &file).await;
    drop(daemon);
    // Each is followed by its audit entry.
    let (before, after) = (record(&saved, 1), record(&saved, 3));
    let secret_at = first_value(&after);
    let secret_bytes = 1 + 4 + 24 + 24 + 16;
    let old_secret = before[first_value(&before)..][..secret_bytes].to_vec();
    type Edit<'a> = &'a dyn Fn(&mut Vec<u8>);
    let edits: [(&str, Edit); 2] = [
        ("another URL", &|bytes| {
            let at = bytes.windows(5).position(|window| window == b"/hook").unwrap();
            bytes[at..at + 5].copy_from_slice(b"/evil");
        }),
        ("the secret from before the rotation", &|bytes| {
            bytes[secret_at..secret_at + secret_bytes].copy_from_slice(&old_secret);
        }),
    ];
    for (what, edit) in edits {
        let changed = edit_backup(&saved, |position, bytes| {
            if position == 3 {
                edit(bytes)
            }
        });
        let message = restore(&changed, &copy, NEW, &[]).await.unwrap_err();
        assert!(message.contains("was changed: its keyed checksum"), "{what}: {message}");
        // A person who can write to the disk needs no restore.
        restore(&changed, &copy, NEW, &["--unauthenticated"]).await.unwrap();
        let message = refused(&copy, NEW).await;
        assert!(
            message.contains(&endpoint) && message.contains("another endpoint, URL or revision"),
            "{what}: {message}"
        );
    }
    let moved = edit_backup(&saved, |position, bytes| {
        if position == 3 {
            bytes.clone_from(&before)
        }
    });
    let message = restore(&moved, &copy, NEW, &["--unauthenticated"]).await.unwrap_err();
    assert!(message.contains("of another position"), "{message}");
    // A line of another backup of the same daemon.
    let (mine, theirs): (Vec<_>, Vec<_>) = (saved.lines().collect(), again.lines().collect());
    let mixed = [&mine[..1], &theirs[1..2], &mine[2..], &[""]].concat().join("\n");
    let message = restore(&mixed, &copy, NEW, &[]).await.unwrap_err();
    assert!(message.contains("line 2 of the backup was changed"), "{message}");
    // Control: the unchanged backup is restored, with the check and without.
    for flags in [&[][..], &["--unauthenticated"]] {
        let message = restore(&saved, &copy, NEW, flags).await.unwrap();
        assert_eq!(message.contains("is not authenticated"), !flags.is_empty(), "{message}");
        assert_eq!(edit_backup(&saved, |_, _| ()), saved);
        let daemon = start(&copy, NEW).await;
        assert_eq!(daemon.get(&format!("/endpoints/{endpoint}/secret")).await["secret"], other["secret"]);
    }
}

#[tokio::test]
async fn authenticated_backup_needs_its_key_and_its_checksums() {
    let directory = tempfile::tempdir().unwrap();
    let (file, copy) = (directory.path().join("file"), directory.path().join("copy"));
    let daemon = start(&directory.path().join("data"), OLD).await;
    // More than one part.
    for _ in 0..24 {
        daemon.post("/events", &json!({"type": "a", "data": "x".repeat(200_000)}).to_string()).await;
    }
    let saved = backup(&daemon, &file).await;
    let (status, problem, _) = daemon.call("GET", "/backup?after=1", &[], "").await;
    assert_eq!((status, problem.to_string().contains("is missing")), (422, true), "{problem}");
    drop(daemon);
    for keys in ["", NEW] {
        let message = restore(&saved, &copy, keys, &[]).await.unwrap_err();
        assert!(message.contains(OLD_ID) && message.contains("--unauthenticated"), "{message}");
    }
    // After a rotation the old key still checks.
    for keys in [OLD.to_owned(), format!("{NEW},{OLD}")] {
        let message = restore(&saved, &copy, &keys, &[]).await.unwrap();
        assert_eq!(message, "");
    }
    let config = directory.path().join("balto.toml");
    std::fs::write(&config, format!("[secrets]\nkey = [\"{OLD}\"]\n")).unwrap();
    restore(&saved, &copy, "", &["--config", config.to_str().unwrap()]).await.unwrap();
    // The format of a daemon without a key.
    let stripped = saved.lines().map(|line| match line.split_once(' ') {
        Some(("balto-backup", _)) => "balto-backup 1\n".to_owned(),
        _ => format!("{}\n", line.rsplit_once(' ').unwrap().0),
    });
    let stripped: String = stripped.collect();
    let message = restore(&stripped, &copy, OLD, &[]).await.unwrap_err();
    assert!(message.contains("is not authenticated, although a secrets key is configured"), "{message}");
    for (keys, flags) in [(OLD, &["--unauthenticated"][..]), ("", &[])] {
        let message = restore(&stripped, &copy, keys, flags).await.unwrap();
        assert!(message.contains("the backup is not authenticated"), "{message}");
    }
}

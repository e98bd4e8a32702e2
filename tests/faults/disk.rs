//! A full disk, and damaged data directories: losses are reported, everything else continues.
//!
//! `BALTO_TEST_ROUNDS` sets the number of damages (default 40), `BALTO_TEST_SEED` the choices.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::load::stored_events;
use crate::support::{Daemon, Receiver, number, say, seed};
use balto::storage::disk::RealDisk;
use balto::storage::journal;
use fastrand::Rng;
use serde_json::{Value, json};

const EVENTS: u64 = 200;

/// Fills a data directory with delivered and pending events, in many commits. Returns the position
/// and type of each.
async fn fill(data: &Path, receiver: &Receiver) -> BTreeMap<u64, String> {
    let mut daemon = Daemon::start(data).await;
    daemon.post("/endpoints", &json!({"url": receiver.url}).to_string()).await;
    let mut accepted = BTreeMap::new();
    for number in 0..EVENTS {
        let event_type = format!("n.{number}");
        let data = "x".repeat((number % 7 * 300) as usize);
        let at = ["2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"][(number % 2) as usize];
        let event = json!({"type": event_type, "data": data, "deliverAt": at});
        let answer = daemon.post("/events", &event.to_string()).await;
        accepted.insert(answer["position"].as_u64().unwrap(), event_type);
    }
    receiver.until(EVENTS as usize / 2).await;
    assert_eq!(daemon.terminate(), Some(0));
    accepted
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(below).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// Damages one file and returns a description.
fn damage(data: &Path, random: &mut Rng) -> String {
    let files: Vec<_> = files(data).into_iter().filter(|file| !file.ends_with("LOCK")).collect();
    let file = random.choice(&files).unwrap();
    let mut bytes = fs::read(file).unwrap();
    let at = if bytes.is_empty() { 0 } else { random.usize(0..bytes.len()) };
    let what = match random.u8(0..10) {
        0..4 if !bytes.is_empty() => {
            bytes[at] ^= 1 << random.u8(0..8);
            "one bit flipped"
        }
        4..6 => {
            bytes.truncate(at);
            "cut"
        }
        6..8 => {
            let end = bytes.len().min(at + 4_096);
            bytes[at..end].fill(0);
            "4 KiB zeroed"
        }
        8 => {
            let other = random.choice(&files).unwrap();
            bytes = fs::read(other).unwrap();
            "replaced by another file"
        }
        _ => {
            fs::remove_file(file).unwrap();
            return format!("{} removed", file.display());
        }
    };
    fs::write(file, bytes).unwrap();
    format!("{} {what} at {at}", file.display())
}

/// Positions that are reported as lost, by the check of the journal or by the log of the start.
fn reported_losses(data: &Path, log: &Path) -> Vec<RangeInclusive<u64>> {
    let disk = RealDisk::new(data.join("journal")).unwrap();
    let damage = journal::verify(&disk, &mut |_| ()).unwrap().damage;
    let checked =
        damage.into_iter().filter_map(|damage| damage.positions).map(|(first, last)| first.0..=last.0);
    let log = fs::read_to_string(log).unwrap();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    checked.chain(lines.filter_map(|line| Some(line["first"].as_u64()?..=line["last"].as_u64()?))).collect()
}

/// Starts the daemon on a damaged directory. Either the start fails with a reason and changes no
/// file, or every missing event is reported and the rest equals the accepted events.
async fn check(data: &Path, accepted: &BTreeMap<u64, String>, what: &str) -> &'static str {
    let log = data.with_extension("log");
    let mut command = crate::support::serve(data, &["--dev"]);
    command.stderr(fs::File::create(&log).unwrap());
    let mut daemon = Daemon::spawn(command);
    while !daemon.is_ready().await {
        if !daemon.is_running() {
            let code = daemon.ended_within(crate::support::WAIT_MAX).await;
            assert_eq!(code, Some(1), "{what}: the daemon neither runs nor exits");
            return "refused";
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let stored: Vec<String> =
        stored_events(&daemon).await.into_iter().map(|(event_type, _)| event_type).collect();
    let fresh = daemon.post("/events", r#"{"type":"fresh","data":1}"#).await;
    let fresh = fresh["position"].as_u64().unwrap();
    assert!(accepted.keys().all(|position| *position < fresh), "{what}: position {fresh} was assigned twice");
    assert_eq!(daemon.terminate(), Some(0), "{what}");
    let named = reported_losses(data, &log);
    for (position, event_type) in accepted {
        let is_named = named.iter().any(|range| range.contains(position));
        assert!(
            stored.contains(event_type) || is_named,
            "{what}: {event_type} at {position} went silently; named: {named:?}"
        );
    }
    assert!(
        stored.iter().all(|stored| accepted.values().any(|known| known == stored)),
        "{what}: an unknown event"
    );
    if stored.len() == accepted.len() { "whole" } else { "named" }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_damage_is_reported() {
    let mut random = Rng::with_seed(seed());
    let below = tempfile::tempdir().unwrap();
    let whole = below.path().join("whole");
    let receiver = Receiver::status(200).await;
    let accepted = fill(&whole, &receiver).await;
    let mut ends: BTreeMap<&str, u32> = BTreeMap::new();
    for round in 0..number("BALTO_TEST_ROUNDS").unwrap_or(40) {
        let data = below.path().join(round.to_string());
        copy(&whole, &data);
        let what = damage(&data, &mut random);
        *ends.entry(check(&data, &accepted, &what).await).or_default() += 1;
        fs::remove_dir_all(&data).unwrap();
    }
    for got in receiver.got() {
        let event: Value = serde_json::from_str(&got.body).unwrap();
        let number =
            event["type"].as_str().unwrap().strip_prefix("n.").and_then(|number| number.parse::<u64>().ok());
        assert!(number.is_none_or(|number| number % 2 == 0), "sent too early: {event}");
    }
    say(&format!("{ends:?}"));
}

#[tokio::test]
async fn foreign_or_newer_directory_is_refused_untouched() {
    let cases =
        [("FORMAT", "balto data directory, format 2\n"), ("FORMAT", "something\n"), ("journal/keep", "x")];
    for (name, content) in cases {
        let data = tempfile::tempdir().unwrap();
        fs::create_dir_all(data.path().join("journal")).unwrap();
        fs::write(data.path().join(name), content).unwrap();
        let output = crate::support::serve(data.path(), &["--dev"])
            .stderr(std::process::Stdio::piped())
            .output()
            .unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("not a data directory of this program"), "{message}");
        assert_eq!(fs::read_to_string(data.path().join(name)).unwrap(), content);
        assert!(!data.path().join("state").exists());
    }
}

/// A small file system in memory; `None` where it cannot be mounted.
pub(crate) struct SmallVolume(pub(crate) PathBuf);

impl SmallVolume {
    pub(crate) fn mount(at: PathBuf) -> Option<Self> {
        Self::mount_of_size(at, "16m")
    }

    pub(crate) fn mount_of_size(at: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "balto-test"])
            .arg(&at)
            .stderr(std::process::Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then_some(Self(at))
    }
}

impl Drop for SmallVolume {
    fn drop(&mut self) {
        let _gone = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// The way in which a disk is filled, and the load on it.
struct FillPlan {
    /// Bytes that are left free.
    free: u64,
    /// Bytes of an event's data.
    event_bytes: usize,
}

/// Fills the disk except for this number of bytes.
pub(crate) fn fill_up(below: &Path, free: u64) -> PathBuf {
    let ballast = below.join("ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    while file.write_all(&[1; 4_096]).is_ok() {}
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub(free)).unwrap();
    ballast
}

/// The log is on the same disk, as is common.
async fn refuses_and_recovers(small: &SmallVolume, filling: FillPlan) {
    let data = small.0.join("data");
    let log = small.0.join("log");
    let receiver = Receiver::status(200).await;
    let mut command = crate::support::serve(&data, &["--dev"]);
    let mut appending = fs::File::options().create(true).append(true).open(&log).unwrap();
    command.env("BALTO__LOG__LEVEL", "info").stderr(appending.try_clone().unwrap());
    let mut daemon = Daemon::spawn(command);
    daemon.until_ready().await;
    daemon.post("/endpoints", &json!({"url": receiver.url}).to_string()).await;
    let event = json!({"type": "a.b", "data": "x".repeat(filling.event_bytes)}).to_string();
    let mut accepted = vec![daemon.post("/events", &event).await["id"].as_str().unwrap().to_owned()];
    let ballast = fill_up(&small.0, filling.free);
    if filling.free == 0 {
        // Up to the end of the last block, so that the next log line needs a new block.
        while appending.write_all(b"\n").is_ok() {}
    }
    let deadline = std::time::Instant::now() + crate::support::WAIT_MAX;
    let refusal = loop {
        let (status, answer, headers) = daemon.call("POST", "/events", &[], &event).await;
        if status != 202 {
            break (status, answer, headers);
        }
        accepted.push(answer["id"].as_str().unwrap().to_owned());
        assert!(std::time::Instant::now() < deadline, "the disk never fills");
    };
    assert_eq!((refusal.0, refusal.1["code"].as_str()), (507, Some("disk_full")), "{}", refusal.1);
    assert!(refusal.2.contains_key("retry-after"));
    assert!(!daemon.is_ready().await, "ready with a full disk");
    fs::remove_file(&ballast).unwrap();
    let deadline = std::time::Instant::now() + crate::support::WAIT_MAX;
    let after = loop {
        let (status, answer, _) = daemon.call("POST", "/events", &[], &event).await;
        if status == 202 {
            break answer["id"].as_str().unwrap().to_owned();
        }
        assert_eq!(status, 507, "{answer}");
        assert!(std::time::Instant::now() < deadline, "the daemon does not recover");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    accepted.push(after);
    daemon.until("/events?limit=1&status=pending", |page: &Value| page["data"] == json!([])).await;
    let mut stored: Vec<_> = stored_events(&daemon).await.into_iter().map(|(_, id)| id).collect();
    let mut sent: Vec<_> = receiver.got().iter().map(|got| got.headers["webhook-id"].clone()).collect();
    for ids in [&mut accepted, &mut stored, &mut sent] {
        ids.sort();
        ids.dedup();
    }
    assert_eq!(accepted, stored, "stored and acknowledged events differ");
    assert_eq!(accepted, sent, "sent and acknowledged events differ");
    let dropped = daemon.metric("balto_log_lines_dropped_total", "").await;
    assert_eq!(daemon.terminate(), Some(0));
    check_log(&fs::read_to_string(&log).unwrap(), dropped);
}

/// Asserts that the lines are complete, and report the number of dropped lines.
fn check_log(log: &str, dropped: f64) {
    let lines = log.lines().filter(|line| line.ends_with('}'));
    let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    let reports = lines.iter().filter_map(|line| Some((line["lines"].as_u64()?, line["total"].as_u64()?)));
    let reported: u64 = reports.map(|(lines, _)| lines).sum();
    assert_eq!(reported as f64, dropped, "{log}");
    assert!(lines.iter().any(|line| line["message"] == "stopped"), "{log}");
}

#[tokio::test]
async fn full_disk_refuses_events_and_recovers_by_itself() {
    let below = tempfile::tempdir().unwrap();
    let Some(small) = SmallVolume::mount(below.path().join("small")) else {
        return say("SKIPPED: this machine mounts no tmpfs");
    };
    refuses_and_recovers(&small, FillPlan { free: 4 << 20, event_bytes: 100_000 }).await;
}

/// The journal has room within its file, the state has none: the state fails first.
#[tokio::test]
async fn disk_too_full_for_the_state_recovers_by_itself() {
    let below = tempfile::tempdir().unwrap();
    for free in [0, 4_096, 20_000] {
        let Some(small) = SmallVolume::mount(below.path().join(free.to_string())) else {
            return say("SKIPPED: this machine mounts no tmpfs");
        };
        refuses_and_recovers(&small, FillPlan { free, event_bytes: 10 }).await;
    }
}

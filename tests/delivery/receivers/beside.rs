//! Misbehaving receivers beside a healthy one, at the real daemon: their cost, and their effect on
//! the healthy one.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::table_f::{self, Case};
use crate::support::chaos::{Chaos, replies_with, script};
use crate::support::{Daemon, Receiver, WAIT_MAX, answer, say};

/// Events for each misbehaving receiver: no more than fail before its circuit opens.
const EACH: usize = 5;
/// Events for the healthy receiver.
const HEALTHY: usize = 200;
/// Memory limit of the daemon in bytes: much less than the receivers send.
const MEMORY_BYTES_MAX: u64 = 256 << 20;

/// The peak memory of the daemon, in bytes.
fn memory_peak(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
}

async fn healthy(daemon: &Daemon) -> Receiver {
    let healthy = Receiver::status(204).await;
    let body = json!({"url": healthy.url, "eventTypes": ["healthy"]});
    daemon.post("/endpoints", &body.to_string()).await;
    healthy
}

/// Posts events of these types in one batch.
async fn publish(daemon: &Daemon, types: impl Iterator<Item = String>) {
    let events: Vec<_> = types.map(|kind| json!({"type": kind, "data": 1})).collect();
    for events in events.chunks(1_000) {
        let answer = daemon.post("/events/batch", &json!({"events": events}).to_string()).await;
        let accepted = answer["results"].as_array().unwrap().iter().all(|result| result["status"] == 202);
        assert!(accepted, "{answer}");
    }
}

/// Asserts that the receiver got each of its events once, at the first attempt.
fn check_healthy(healthy: &Receiver) {
    let got = healthy.got();
    let ids: HashSet<_> = got.iter().map(|got| got.headers["webhook-id"].as_str()).collect();
    assert_eq!((got.len(), ids.len()), (HEALTHY, HEALTHY));
    assert!(got.iter().all(|got| got.headers["balto-attempt"] == "1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_table_f_at_once_costs_bounded_memory() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let healthy = healthy(&daemon).await;
    let mut stage: Vec<(Case, Chaos, String, usize)> = Vec::new();
    for (number, case) in table_f::all().into_iter().enumerate() {
        let receiver = Chaos::start(&case.script);
        // Hundreds run concurrently, and each has to send its status line in time.
        let timeout = 5 * case.timeout().as_secs();
        let body = json!({"url": receiver.url, "eventTypes": [format!("case.{number}")], "retry": {"maxAttempts": 1},
            "timeout": format!("{}s", timeout.min(25))});
        let endpoint = daemon.post("/endpoints", &body.to_string()).await["id"].as_str().unwrap().to_owned();
        // An endpoint that answered 410 gets no further event.
        let events = if case.expected == Ok(410) { 1 } else { EACH };
        stage.push((case, receiver, endpoint, events));
    }
    let rows: BTreeSet<_> = stage.iter().map(|(case, ..)| case.row).collect();
    assert_eq!(rows.len(), 10, "{rows:?}");
    let events = (0..EACH).flat_map(|round| {
        let bad = stage.iter().enumerate().filter(move |(_, (_, _, _, events))| round < *events);
        let bad = bad.map(|(number, _)| format!("case.{number}"));
        bad.chain(std::iter::repeat_n("healthy".to_owned(), HEALTHY / EACH))
    });
    publish(&daemon, events).await;
    healthy.until(HEALTHY).await;
    for (case, _, endpoint, events) in &stage {
        let path = format!("/deliveries?endpointId={endpoint}&limit=250");
        let ended = |list: &Value| {
            let all = list["data"].as_array().unwrap();
            all.len() == *events && all.iter().all(|delivery| delivery["status"] != "pending")
        };
        for delivery in daemon.until(&path, ended).await["data"].as_array().unwrap() {
            let shown = daemon.get(&format!("/deliveries/{}", delivery["id"].as_str().unwrap())).await;
            let (attempt, story) = (&shown["attempts"][0], format!("{}, {}: {shown}", case.row, case.story));
            let (status, class) = match case.expected {
                Ok(status @ 200..300) => (json!(status), Value::Null),
                Ok(status) => (json!(status), json!("status")),
                Err(class) => (Value::Null, json!(class.as_str())),
            };
            assert_eq!((&attempt["statusCode"], &attempt["errorClass"]), (&status, &class), "{story}");
            assert_eq!(shown["status"] == "delivered", class.is_null(), "{story}");
        }
    }
    check_healthy(&healthy);
    let offered: u64 = stage.iter().map(|(_, receiver, ..)| receiver.written()).sum();
    let peak = memory_peak(&daemon);
    say(&format!(
        "{} receivers offered {} MiB; the daemon had {} MiB",
        stage.len(),
        offered >> 20,
        peak >> 20
    ));
    assert!(peak < MEMORY_BYTES_MAX, "the daemon had {peak} bytes");
    assert!(offered > MEMORY_BYTES_MAX, "only {offered} bytes were offered: too few for the test");
    assert_eq!(daemon.terminate(), Some(0), "exit code of SIGTERM");
    for (_, receiver, ..) in &stage {
        receiver.until_all_closed().await;
    }
}

/// A thousand endpoints whose receivers hang, refuse, reset or fail, with more deliveries than
/// slots (T30).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t30_dead_receivers_do_not_delay_a_healthy_one() {
    const DEAD: usize = 1_000;
    let data = tempfile::tempdir().unwrap();
    // Fewer slots than usual, for machines that allow a process only a thousand file descriptors.
    let slots = [("BALTO__DELIVERY__MAX_IN_FLIGHT", "160")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &slots).await;
    let healthy = healthy(&daemon).await;
    let hang = script(|mut talk| async move { talk.hang().await });
    let reset = script(|mut talk| async move {
        talk.first_byte().await;
        talk.reset();
    });
    let hanging: Vec<_> = (0..4).map(|_| Chaos::start(&hang)).collect();
    let (resetting, failing) = (Chaos::start(&reset), Chaos::start(&replies_with(answer(500))));
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refusing = format!("http://{refusing}/");
    for number in 0..DEAD {
        let url = match number % 4 {
            0 => &hanging[number / 4 % hanging.len()].url,
            1 => &resetting.url,
            2 => &failing.url,
            _ => &refusing,
        };
        // The attempts outlast the test.
        let body =
            json!({"url": url, "eventTypes": ["dead"], "timeout": "60s", "retry": {"schedule": ["1h"]}});
        daemon.post("/endpoints", &body.to_string()).await;
    }
    publish(&daemon, std::iter::once("healthy".to_owned())).await;
    healthy.until(1).await;
    publish(&daemon, std::iter::repeat_n("dead".to_owned(), 3)).await;
    let waiting = until_slots_are_exhausted(&daemon).await;
    publish(&daemon, std::iter::repeat_n("healthy".to_owned(), HEALTHY - 1)).await;
    healthy.until(HEALTHY).await;
    check_healthy(&healthy);
    let held: usize = hanging.iter().map(Chaos::connections).sum();
    assert!(hanging.iter().all(|receiver| receiver.ended() == 0), "a hanging request ended");
    let peak = memory_peak(&daemon);
    say(&format!("{held} requests hung, {waiting} lanes waited for a slot; peak memory {} MiB", peak >> 20));
    assert!(peak < MEMORY_BYTES_MAX, "the daemon had {peak} bytes");
}

/// Waits until lanes report the global limit; returns their number.
async fn until_slots_are_exhausted(daemon: &Daemon) -> usize {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        let metrics =
            client.get(format!("{}/metrics", daemon.ops)).send().await.unwrap().text().await.unwrap();
        let line =
            metrics.lines().find_map(|line| line.strip_prefix(r#"balto_lanes{reason="globalLimit"} "#));
        match line.map(|count| count.parse().unwrap()) {
            Some(waiting @ 1..) => return waiting,
            _ => assert!(Instant::now() < deadline, "the slots never ran out: {line:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

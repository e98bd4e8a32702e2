//! Receivers that misbehave beside one that is well, at the real daemon: what they cost, and whom.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::table_f::{self, Case};
use crate::support::chaos::{Chaos, says, script};
use crate::support::{Daemon, PATIENCE, Receiver, answer, say};

/// Events for each receiver that misbehaves: no more than fail before its circuit opens.
const EACH: usize = 5;
/// Events for the receiver that is well.
const HEALTHY: usize = 200;
/// What the daemon may take, in bytes: much less than the receivers offer.
const MEMORY_BYTES_MAX: u64 = 256 << 20;

/// The most memory that the daemon has had, in bytes.
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

/// Posts events of these types in one go.
async fn publish(daemon: &Daemon, types: impl Iterator<Item = String>) {
    let events: Vec<_> = types.map(|kind| json!({"type": kind, "data": 1})).collect();
    for events in events.chunks(1_000) {
        let answer = daemon.post("/events/batch", &json!({"events": events}).to_string()).await;
        let accepted = answer["results"].as_array().unwrap().iter().all(|result| result["status"] == 202);
        assert!(accepted, "{answer}");
    }
}

/// It got each of its events once, at the first try.
fn check_healthy(healthy: &Receiver) {
    let got = healthy.got();
    let ids: HashSet<_> = got.iter().map(|got| got.headers["webhook-id"].as_str()).collect();
    assert_eq!((got.len(), ids.len()), (HEALTHY, HEALTHY));
    assert!(got.iter().all(|got| got.headers["balto-attempt"] == "1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_table_f_at_once_costs_bounded_memory_and_nobody_else_notices() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let healthy = healthy(&daemon).await;
    let mut stage: Vec<(Case, Chaos, String, usize)> = Vec::new();
    for (number, case) in table_f::all().into_iter().enumerate() {
        let receiver = Chaos::start(&case.script);
        // Each is one of hundreds at once, and still has to come to its status line in time.
        let timeout = 5 * case.timeout().as_secs();
        let body = json!({"url": receiver.url, "eventTypes": [format!("case.{number}")], "retry": {"maxAttempts": 1},
            "timeout": format!("{}s", timeout.min(25))});
        let endpoint = daemon.post("/endpoints", &body.to_string()).await["id"].as_str().unwrap().to_owned();
        // A receiver that is gone gets nothing more.
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
    assert!(offered > MEMORY_BYTES_MAX, "only {offered} bytes were offered: nothing is shown");
    assert_eq!(daemon.terminate(), Some(0), "it stops as ever");
    for (_, receiver, ..) in &stage {
        receiver.until_left_alone().await;
    }
}

/// A thousand endpoints whose receivers hang, refuse, reset or fail, with more for them than there are slots (T30).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t30_a_thousand_dead_receivers_do_not_keep_a_healthy_one_waiting() {
    const DEAD: usize = 1_000;
    let data = tempfile::tempdir().unwrap();
    // Fewer slots than usual, for the sake of machines that give a process a thousand file descriptors.
    let slots = [("BALTO__DELIVERY__MAX_IN_FLIGHT", "160")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &slots).await;
    let healthy = healthy(&daemon).await;
    let hang = script(|mut talk| async move { talk.hang().await });
    let reset = script(|mut talk| async move {
        talk.first_byte().await;
        talk.reset();
    });
    let hanging: Vec<_> = (0..4).map(|_| Chaos::start(&hang)).collect();
    let (resetting, failing) = (Chaos::start(&reset), Chaos::start(&says(answer(500))));
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refusing = format!("http://{refusing}/");
    for number in 0..DEAD {
        let url = match number % 4 {
            0 => &hanging[number / 4 % hanging.len()].url,
            1 => &resetting.url,
            2 => &failing.url,
            _ => &refusing,
        };
        // Nothing of it ends by itself as long as anybody here has patience.
        let body =
            json!({"url": url, "eventTypes": ["dead"], "timeout": "60s", "retry": {"schedule": ["1h"]}});
        daemon.post("/endpoints", &body.to_string()).await;
    }
    publish(&daemon, std::iter::once("healthy".to_owned())).await;
    healthy.until(1).await;
    publish(&daemon, std::iter::repeat_n("dead".to_owned(), 3)).await;
    let waiting = wait_for_pressure(&daemon).await;
    publish(&daemon, std::iter::repeat_n("healthy".to_owned(), HEALTHY - 1)).await;
    healthy.until(HEALTHY).await;
    check_healthy(&healthy);
    let held: usize = hanging.iter().map(Chaos::connections).sum();
    assert!(hanging.iter().all(|receiver| receiver.ended() == 0), "one of those that hang was given up");
    let peak = memory_peak(&daemon);
    say(&format!(
        "{held} requests hung, {waiting} lanes waited for a slot; the daemon had {} MiB",
        peak >> 20
    ));
    assert!(peak < MEMORY_BYTES_MAX, "the daemon had {peak} bytes");
}

/// Until lanes wait because there are no more slots for them; gives how many.
async fn wait_for_pressure(daemon: &Daemon) -> usize {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let deadline = Instant::now() + PATIENCE;
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

//! More load than the daemon or its disk can take, and many requests with one key.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{EVENT, JOURNAL, until};
use crate::support::raw::{Raw, post};
use crate::support::{Daemon, Interference, Receiver, WAIT_MAX, has_program, say, traced};

/// The responses that the publishers got.
#[derive(Default)]
struct PublisherCounts {
    accepted: std::sync::Mutex<HashSet<String>>,
    offered: AtomicU64,
    refused: AtomicU64,
}

/// Publishes single events and batches alternately until stopped.
async fn publisher(
    api: String,
    counts: Arc<PublisherCounts>,
    stop: tokio::sync::watch::Receiver<bool>,
    data: String,
) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let event = json!({"type": "a.b", "data": data}).to_string();
    let batch = format!(r#"{{"events":[{}]}}"#, vec![event.as_str(); 100].join(","));
    for turn in 0.. {
        if *stop.borrow() {
            return;
        }
        let (path, body, count) = if turn % 2 == 0 { ("", &event, 1) } else { ("/batch", &batch, 100) };
        counts.offered.fetch_add(count, Ordering::Relaxed);
        let request = client.post(format!("{api}/events{path}")).header("content-type", "application/json");
        let reply = request.body(body.clone()).send().await.unwrap();
        let status = reply.status().as_u16();
        let retry_after = reply.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        let answer: Value = serde_json::from_str(&reply.text().await.unwrap()).unwrap();
        if status == 429 {
            assert!(
                retry_after.is_some_and(|after| after.parse::<u64>().is_ok_and(|after| after > 0)),
                "{answer}"
            );
            assert_eq!(answer["code"], "overloaded");
            counts.refused.fetch_add(count, Ordering::Relaxed);
            continue;
        }
        assert_eq!(status, 202, "{answer}");
        let results = answer["results"].as_array().cloned().unwrap_or_else(|| vec![answer]);
        let mut accepted = counts.accepted.lock().unwrap();
        for result in results {
            assert!(accepted.insert(result["id"].as_str().expect("accepted").to_owned()), "{result} twice");
        }
    }
}

/// Each sync takes two seconds, so one group commit holds at most a thousand events. The publishers
/// offer more than that, also on a busy machine, so most events are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_is_refused_and_accepted_events_are_delivered() {
    if !has_program("strace") {
        return say("SKIPPED: no strace");
    }
    let data = tempfile::tempdir().unwrap();
    let receiver = Receiver::status(200).await;
    let mut command = crate::support::serve(data.path(), &["--dev"]);
    command.env("BALTO__INGEST__ADMISSION_EVENTS", "1000").env("BALTO__INGEST__ADMISSION_BYTES", "32MiB");
    let slow = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=2000000", "-o", "/dev/null"];
    let mut daemon = Daemon::spawn(traced(&command, &slow));
    daemon.until_ready().await;
    daemon.post("/endpoints", &json!({"url": receiver.url, "maxInFlight": 64}).to_string()).await;
    let counts = Arc::<PublisherCounts>::default();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let publishers: Vec<_> = (0..64)
        .map(|_| {
            tokio::spawn(publisher(daemon.api.clone(), counts.clone(), stopped.clone(), "x".repeat(500)))
        })
        .collect();
    let deadline = Instant::now() + 2 * WAIT_MAX;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (offered, refused) =
            (counts.offered.load(Ordering::Relaxed), counts.refused.load(Ordering::Relaxed));
        let accepted = counts.accepted.lock().unwrap().len() as u64;
        if accepted >= 2_000 && refused >= accepted {
            say(&format!("{offered} offered, {accepted} accepted, {refused} refused"));
            break;
        }
        assert!(Instant::now() < deadline, "{offered} offered, {accepted} accepted, {refused} refused");
        assert!(daemon.is_ready().await, "the daemon is unready");
    }
    stop.send_replace(true);
    for publisher in publishers {
        publisher.await.unwrap();
    }
    assert!(daemon.kibibytes("VmHWM") < 200 * 1024, "{} KiB", daemon.kibibytes("VmHWM"));
    let accepted = counts.accepted.lock().unwrap().clone();
    until("all accepted events are delivered", async || {
        daemon.get("/deliveries?limit=1&status=pending").await["data"] == json!([])
    })
    .await;
    let sent: HashSet<_> = receiver.got().iter().map(|got| got.headers["webhook-id"].clone()).collect();
    assert!(sent == accepted, "{} accepted, {} delivered", accepted.len(), sent.len());
    assert_eq!(daemon.terminate(), Some(0));
}

/// The state's disk hangs while large events arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_state_disk_does_not_fill_the_memory() {
    let data = tempfile::tempdir().unwrap();
    let bounds = [("BALTO__INGEST__ADMISSION_BYTES", "32MiB"), ("BALTO__SERVER__MAX_BODY_BYTES", "32MiB")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &bounds).await;
    let hanging = ["-e", "trace=pwrite64", "-e", "inject=pwrite64:delay_enter=600000000"];
    let Some(interference) = Interference::with(&daemon, &data.path().join("state/db"), &hanging).await
    else {
        return say("SKIPPED: strace cannot be had here");
    };
    let counts = Arc::<PublisherCounts>::default();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let publish =
        |data: String| tokio::spawn(publisher(daemon.api.clone(), counts.clone(), stopped.clone(), data));
    let publishers: Vec<_> = (0..8).map(|_| publish("x".repeat(100_000))).collect();
    // The daemon accepts 64 MiB plus the backlog of the state before it hung; then it refuses for
    // as long as the disk hangs.
    let (mut accepted, mut since) = (0, Instant::now());
    until("the daemon refuses events", async || {
        let now = counts.accepted.lock().unwrap().len();
        assert!(now < 5_000, "the daemon accepts events without a limit");
        if now != accepted {
            (accepted, since) = (now, Instant::now());
        }
        accepted >= 500 && since.elapsed() > Duration::from_secs(2)
    })
    .await;
    until("the daemon is unready", async || !daemon.is_ready().await).await;
    let peak = daemon.kibibytes("VmHWM") / 1024;
    say(&format!("{accepted} of 100 kB accepted, at most {peak} MiB in memory"));
    assert!(peak < 450, "{peak} MiB");
    stop.send_replace(true);
    drop(interference);
    for publisher in publishers {
        publisher.await.unwrap();
    }
    daemon.until_ready().await;
    let accepted = counts.accepted.lock().unwrap().clone();
    let stored: HashSet<_> =
        crate::support::load::stored_events(&daemon).await.into_iter().map(|(_, id)| id).collect();
    assert!(accepted == stored, "{} accepted, {} stored", accepted.len(), stored.len());
}

/// The journal's disk hangs: no event is acknowledged, the operator is informed, durable deliveries
/// continue within a bound. Everything recovers when the disk answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_journal_disk_makes_the_daemon_unready() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    daemon.post("/events", EVENT).await;
    let hanging = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=600000000"];
    let Some(interference) = Interference::with(&daemon, &data.path().join(JOURNAL), &hanging).await else {
        return say("SKIPPED: strace cannot be had here");
    };
    let mut publisher = Raw::connect(daemon.address()).await;
    publisher.send(post("/v1/events", "", EVENT).as_bytes()).await;
    until("the daemon is unready", async || !daemon.is_ready().await).await;
    let reason = reqwest::get(format!("{}/readyz", daemon.ops)).await.unwrap().text().await.unwrap();
    assert!(reason.contains("the disk has not answered for"), "{reason}");
    assert!(reqwest::get(format!("{}/healthz", daemon.ops)).await.unwrap().status().is_success());
    let answered = tokio::time::timeout(Duration::from_millis(200), publisher.stream.readable()).await;
    assert!(answered.is_err(), "the response was sent before the sync");
    drop(interference);
    assert_eq!(publisher.answer().await.unwrap().status, 202);
    daemon.until_ready().await;
    assert_eq!(daemon.get("/events").await["data"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_bodies_stay_within_the_memory_limit() {
    let data = tempfile::tempdir().unwrap();
    let daemon =
        Daemon::start_in(data.path(), &["--dev"], &[("BALTO__SERVER__MAX_BODY_BYTES", "32MiB")]).await;
    let head = "POST /v1/events/batch HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\ncontent-length: 16000000\r\n\r\n";
    let part = vec![b'x'; 15_000_000];
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut raw = Raw::connect(daemon.address()).await;
        raw.send(head.as_bytes()).await;
        assert!(raw.send(&part).await, "the connection was closed without a response");
        held.push(raw);
    }
    // Two bodies fit, and wait for their remaining bytes.
    let mut refused = 0;
    let mut unanswered: Vec<_> = held.iter_mut().collect();
    until("18 of 20 are refused", async || {
        let mut silent = Vec::new();
        for raw in unanswered.drain(..) {
            if tokio::time::timeout(Duration::from_millis(20), raw.stream.readable()).await.is_err() {
                silent.push(raw);
                continue;
            }
            let answer = raw.answer().await.unwrap();
            assert_eq!(answer.status, 429, "{answer:?}");
            assert!(answer.head.contains("retry-after: "), "{answer:?}");
            refused += 1;
        }
        unanswered = silent;
        refused >= 18
    })
    .await;
    assert!(daemon.kibibytes("VmHWM") < 250 * 1024, "{} KiB", daemon.kibibytes("VmHWM"));
    drop(held);
    until("the memory is free again", async || daemon.call("POST", "/events", &[], EVENT).await.0 == 202)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_posts_with_one_key_make_one_event_despite_kills() {
    let mut random = fastrand::Rng::with_seed(crate::support::seed());
    let data = tempfile::tempdir().unwrap();
    let mut kinds = 0;
    for round in 0..8 {
        let key = format!("key-{round}");
        let body = format!(r#"{{"type":"n.{round}","data":1}}"#);
        let mut ids = HashSet::new();
        for kill in [true, true, false] {
            let mut daemon = Daemon::start(data.path()).await;
            let clients: Vec<_> = (0..64)
                .map(|_| {
                    let (url, key, body) = (format!("{}/events", daemon.api), key.clone(), body.clone());
                    tokio::spawn(async move {
                        let client = reqwest::Client::builder().no_proxy().build().unwrap();
                        let request = client.post(url).header("content-type", "application/json");
                        let reply = request.header("idempotency-key", key).body(body).send().await.ok()?;
                        let status = reply.status().as_u16();
                        Some((status, serde_json::from_str::<Value>(&reply.text().await.ok()?).ok()?))
                    })
                })
                .collect();
            if kill {
                tokio::time::sleep(Duration::from_millis(random.u64(0..60))).await;
                daemon.kill();
            }
            for client in clients {
                match client.await.unwrap() {
                    Some((202, accepted)) => {
                        ids.insert(accepted["id"].as_str().unwrap().to_owned());
                    }
                    Some((409, problem)) => assert_eq!(problem["code"], "request_in_flight"),
                    Some((status, other)) => panic!("{status} {other}"),
                    None => assert!(kill, "no answer"),
                }
            }
            if !kill {
                kinds += 1;
                assert_eq!(ids.len(), 1, "one key, and the answers {ids:?}");
                let events = crate::support::load::stored_events(&daemon).await;
                let ours = events.iter().filter(|(kind, _)| *kind == format!("n.{round}"));
                assert_eq!(ours.map(|(_, id)| id).collect::<Vec<_>>(), ids.iter().collect::<Vec<_>>());
            }
        }
    }
    assert_eq!(kinds, 8);
}

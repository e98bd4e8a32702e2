//! State of endpoints and deliveries across restarts of the real daemon, by `SIGTERM` and by `kill
//! -9`: holds, rates, the failure history that disables an endpoint, and the age of deliveries.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::support::raw::lose_answer;
use crate::support::{Daemon, Receiver, answer};
use serde_json::{Value, json};

/// A daemon that can be stopped in either way and started again.
struct Restarting {
    data: tempfile::TempDir,
    environment: Vec<(&'static str, &'static str)>,
    daemon: Daemon,
}

impl Restarting {
    async fn start(environment: &[(&'static str, &'static str)]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let daemon = start(data.path(), environment).await;
        Self { data, environment: environment.to_vec(), daemon }
    }

    fn stop(&mut self, is_killed: bool) {
        if is_killed {
            self.daemon.kill();
        } else {
            assert_eq!(self.daemon.terminate(), Some(0));
        }
    }

    async fn again(&mut self, is_killed: bool) {
        self.stop(is_killed);
        self.daemon = start(self.data.path(), &self.environment).await;
    }

    /// Registers an endpoint; returns its path.
    async fn endpoint(&self, url: &str, policy: Value) -> String {
        let mut body = json!({"url": url});
        body.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
        let made = self.daemon.post("/endpoints", &body.to_string()).await;
        format!("/endpoints/{}", made["id"].as_str().unwrap())
    }

    /// Posts an event; returns the path of its delivery.
    async fn event(&self) -> String {
        let event = self.daemon.post("/events", r#"{"type":"a.b","data":1}"#).await;
        let shown = self.daemon.get(&format!("/events/{}", event["id"].as_str().unwrap())).await;
        format!("/deliveries/{}", shown["deliveries"][0]["id"].as_str().unwrap())
    }

    async fn until_tried(&self, delivery: &str, attempts: u64) -> Value {
        self.daemon.until(delivery, |shown| shown["attemptCount"] == attempts).await
    }
}

async fn start(data: &Path, environment: &[(&'static str, &'static str)]) -> Daemon {
    Daemon::start_in(data, &["--dev"], environment).await
}

/// A receiver that answers with the current value of this status.
async fn switchable_receiver(status: u16) -> (Receiver, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(status));
    let now = status.clone();
    (Receiver::start(move |_, _| answer(now.load(Ordering::SeqCst))).await, status)
}

#[tokio::test]
async fn retry_after_holds_over_a_restart() {
    let mut world = Restarting::start(&[]).await;
    let receiver = Receiver::start(|number, _| match number {
        0 => "HTTP/1.1 429 x\r\nretry-after: 3600\r\ncontent-length: 0\r\n\r\n".to_owned(),
        _ => answer(200),
    })
    .await;
    let endpoint = world.endpoint(&receiver.url, json!({})).await;
    let lane = format!("{endpoint}/lane");
    let first = world.event().await;
    world.until_tried(&first, 1).await;
    for _ in 0..5 {
        world.event().await;
    }
    let before = world.daemon.until(&lane, |lane| lane["reason"] == "retryAfter").await;
    for is_killed in [false, true, true] {
        world.again(is_killed).await;
        let held = world.daemon.until(&lane, |lane| lane["reason"] == "retryAfter").await;
        assert_eq!((&held["until"], &held["pending"]), (&before["until"], &json!(6)));
    }
    assert_eq!(receiver.got().len(), 1);
    // The operator ends the hold, and a restart does not bring it back.
    world.daemon.post(&format!("{endpoint}/pause"), "").await;
    world.daemon.post(&format!("{endpoint}/resume"), "").await;
    receiver.until(6).await;
    world.again(true).await;
    world.event().await;
    receiver.until(7).await;
}

#[tokio::test]
async fn rate_holds_over_restarts_also_with_lost_outcomes() {
    // Status 0: the receiver never replies, so that a crash loses each attempt.
    for status in [200, 0] {
        let mut world = Restarting::start(&[]).await;
        let began = Instant::now();
        let receiver = Receiver::start(move |_, _| match status {
            0 => String::new(),
            status => answer(status),
        })
        .await;
        let rate = json!({"rateLimit": {"limit": 3, "per": "60s", "burst": 3}, "timeout": "60s"});
        let endpoint = world.endpoint(&receiver.url, rate).await;
        for _ in 0..12 {
            world.event().await;
        }
        receiver.until(3).await;
        for is_killed in [true, status == 0, true] {
            let lane = format!("{endpoint}/lane");
            world.daemon.until(&lane, |lane| lane["reason"] == "rate").await;
            world.again(is_killed).await;
        }
        world.daemon.until(&format!("{endpoint}/lane"), |lane| lane["reason"] == "rate").await;
        // Two changes of the endpoint do not refill the rate.
        for description in ["once", "twice"] {
            let change = json!({"description": description}).to_string();
            world.daemon.call("PATCH", &endpoint, &[], &change).await;
        }
        world.daemon.until(&format!("{endpoint}/lane"), |lane| lane["reason"] == "rate").await;
        let allowed = 3 + began.elapsed().as_secs() / 20 + 1;
        let got = receiver.got().len() as u64;
        assert!(got >= 3 && got <= allowed, "{got} in {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn endpoint_is_not_disabled_for_old_failures() {
    let failing = [("BALTO__DELIVERY__DISABLE_AFTER", "2s")];
    for is_stopped in [false, true] {
        let mut world = Restarting::start(&failing).await;
        let (receiver, status) = switchable_receiver(503).await;
        let policy = json!({"retry": {"schedule": ["300ms"]}});
        let endpoint = world.endpoint(&receiver.url, policy).await;
        let first = world.event().await;
        world.daemon.until(&first, |shown| shown["status"] == "dead").await;
        if is_stopped {
            world.stop(true);
        }
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        if is_stopped {
            world.daemon = start(world.data.path(), &failing).await;
        }
        let second = world.event().await;
        world.until_tried(&second, 1).await;
        status.store(200, Ordering::SeqCst);
        world.daemon.until(&second, |shown| shown["status"] == "delivered").await;
        let shown = world.daemon.get(&endpoint).await;
        assert_eq!(shown["status"], "active", "stopped meanwhile: {is_stopped}");
    }
}

#[tokio::test]
async fn endpoint_that_keeps_failing_is_disabled_each_time() {
    let failing = [
        ("BALTO__DELIVERY__DISABLE_AFTER", "1s"),
        ("BALTO__DELIVERY__BREAKER_PROBE_INITIAL", "100ms"),
        ("BALTO__DELIVERY__BREAKER_PROBE_MAX", "100ms"),
    ];
    let mut world = Restarting::start(&failing).await;
    let (receiver, _) = switchable_receiver(503).await;
    let policy = json!({"retry": {"schedule": vec!["50ms"; 100]}});
    let endpoint = world.endpoint(&receiver.url, policy).await;
    world.event().await;
    let mut before = 0;
    for round in 0..2 {
        let shown = world.daemon.until(&endpoint, |shown| shown["status"] == "disabled").await;
        assert_eq!(shown["disabledReason"], "failing");
        let count = receiver.got().len();
        assert!(count >= before + 5, "round {round}: disabled after {} failures", count - before);
        before = count;
        world.again(true).await;
        assert_eq!(world.daemon.get(&endpoint).await["status"], "disabled");
        world.daemon.post(&format!("{endpoint}/resume"), "").await;
    }
}

#[tokio::test]
async fn paused_time_does_not_count_for_the_age_of_a_delivery() {
    let mut world = Restarting::start(&[]).await;
    let (receiver, status) = switchable_receiver(503).await;
    let policy =
        json!({"retry": {"maxAge": "2s", "initial": "100ms", "maxInterval": "200ms", "maxAttempts": 100}});
    let endpoint = world.endpoint(&receiver.url, policy).await;
    world.daemon.post(&format!("{endpoint}/pause"), "").await;
    let delivered = world.event().await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    world.again(true).await;
    world.daemon.post(&format!("{endpoint}/resume"), "").await;
    world.daemon.until(&delivered, |shown| shown["attemptCount"].as_u64() > Some(1)).await;
    status.store(200, Ordering::SeqCst);
    world.daemon.until(&delivered, |shown| shown["status"] == "delivered").await;
    // The age counts from the first attempt, and again from the first one after a redrive.
    status.store(503, Ordering::SeqCst);
    let dead = world.event().await;
    for round in 1..=2 {
        let shown = world.daemon.until(&dead, |shown| shown["status"] == "dead").await;
        assert_eq!(shown["reason"], "maxAge", "round {round}: {shown}");
        let attempts = shown["attemptCount"].as_u64().unwrap();
        assert!(attempts >= 2 * round, "round {round}: {attempts} attempts");
        if round == 1 {
            world.daemon.post(&format!("{}/redrive", dead.replace("deliveries", "dead-letters")), "").await;
        }
    }
}

/// Also after the state was built again from the journal.
#[tokio::test]
async fn only_the_first_lost_answer_is_free_over_restarts() {
    let mut world = Restarting::start(&[]).await;
    let retry = json!({"initial": "1h", "maxInterval": "1h"});
    let queue = json!({"name": "cut", "eventTypes": ["cut"], "visibility": "1h", "retry": retry});
    world.daemon.post("/queues", &queue.to_string()).await;
    for _ in 0..3 {
        let event = json!({"type": "cut", "data": "x".repeat(200_000)});
        world.daemon.post("/events", &event.to_string()).await;
    }
    let returned =
        |count| move |lane: &Value| lane["leased"] == 0 && lane["returned"] == count && lane["pending"] == 3;
    lose_answer(&world.daemon, "cut", 3).await;
    world.daemon.until("/queues/cut/lane", returned(3)).await;
    for (left, is_killed, has_state) in [(2, true, true), (1, true, false), (0, false, true)] {
        world.stop(is_killed);
        if !has_state {
            std::fs::remove_dir_all(world.data.path().join("state")).unwrap();
        }
        world.daemon = start(world.data.path(), &[]).await;
        lose_answer(&world.daemon, "cut", 1).await;
        world.daemon.until("/queues/cut/lane", returned(left)).await;
    }
    let page = world.daemon.get("/deliveries?queue=cut").await;
    for delivery in page["data"].as_array().unwrap() {
        let shown = world.daemon.get(&format!("/deliveries/{}", delivery["id"].as_str().unwrap())).await;
        let leases = shown["attempts"].as_array().unwrap().iter();
        let outcomes: Vec<_> = leases.map(|lease| lease["outcome"].as_str().unwrap()).collect();
        assert_eq!((outcomes, &shown["attemptCount"]), (vec!["released", "requeued"], &json!(1)), "{shown}");
    }
}

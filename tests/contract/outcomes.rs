//! Final states of deliveries, also when a caller acts on a delivery while its attempt is in
//! flight.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use super::support::{Daemon, ReceivedRequest, Receiver, WAIT_MAX, answer, next_request};
use super::{endpoint, is_problem, list, publish, text};

/// A receiver that answers one request at a time, when and with the status that the test chooses.
struct GatedReceiver {
    url: String,
    got: Arc<Mutex<Vec<ReceivedRequest>>>,
    answers: mpsc::UnboundedSender<u16>,
}

impl GatedReceiver {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (answers, next) = mpsc::unbounded_channel();
        let (got, next) = (Arc::<Mutex<Vec<ReceivedRequest>>>::default(), Arc::new(AsyncMutex::new(next)));
        let kept = got.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (kept, next) = (kept.clone(), next.clone());
                tokio::spawn(async move {
                    let mut buffer = Vec::new();
                    while let Some(request) = next_request(&mut stream, &mut buffer).await {
                        kept.lock().unwrap().push(request);
                        let Some(status) = next.lock().await.recv().await else { return };
                        stream.write_all(answer(status).as_bytes()).await.unwrap();
                    }
                });
            }
        });
        Self { url, got, answers }
    }

    fn answer(&self, status: u16) {
        self.answers.send(status).unwrap();
    }

    async fn until(&self, count: usize) -> Vec<ReceivedRequest> {
        let all = async {
            while self.got.lock().unwrap().len() < count {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(WAIT_MAX, all).await.unwrap_or_else(|_| panic!("no request number {count}"));
        self.got.lock().unwrap().clone()
    }
}

/// A daemon, a receiver, and the path of a delivery whose first attempt is in flight.
struct InFlight {
    _data: tempfile::TempDir,
    daemon: Daemon,
    receiver: GatedReceiver,
    endpoint: String,
    event: String,
    delivery: String,
}

impl InFlight {
    async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(data.path()).await;
        let receiver = GatedReceiver::start().await;
        let body = json!({"url": receiver.url, "retry": {"schedule": ["1h"]}}).to_string();
        let endpoint = text(&daemon.post("/endpoints", &body).await, "id");
        let event = text(&publish(&daemon, json!({"type": "a", "data": 1})).await, "id");
        receiver.until(1).await;
        let shown = daemon.get(&format!("/events/{event}")).await;
        let delivery = format!("/deliveries/{}", text(&shown["deliveries"][0], "id"));
        Self { _data: data, daemon, receiver, endpoint, event, delivery }
    }

    async fn act(&self, what: &str) {
        let path = match what {
            "replay" => format!("/events/{}/replay", self.event),
            "delete" => {
                let gone =
                    self.daemon.call("DELETE", &format!("/endpoints/{}", self.endpoint), &[], "").await;
                assert_eq!(gone.0, 204);
                self.daemon.until(&self.delivery, |delivery| delivery["status"] == "dead").await;
                return;
            }
            "redrive" => format!("{}/redrive", self.delivery.replace("deliveries", "dead-letters")),
            _ => format!("{}/{what}", self.delivery),
        };
        self.daemon.post(&path, if what == "replay" { "{}" } else { "" }).await;
    }

    /// The delivery, once it has this status and number of attempts.
    async fn until(&self, status: &str, attempts: usize) -> Value {
        let is_so = |delivery: &Value| {
            delivery["status"] == status && delivery["attempts"].as_array().unwrap().len() == attempts
        };
        self.daemon.until(&self.delivery, is_so).await
    }

    /// Asserts that nothing more is sent: the next request is that of a new event. It gets a 200.
    async fn assert_quiet(&self, before: usize) {
        let next = text(&publish(&self.daemon, json!({"type": "next", "data": 1})).await, "id");
        let got = self.receiver.until(before + 1).await;
        assert_eq!(got[before].headers["webhook-id"], next);
        self.receiver.answer(200);
    }
}

fn attempt_members(delivery: &Value, member: &str) -> Vec<Value> {
    delivery["attempts"].as_array().unwrap().iter().map(|attempt| attempt[member].clone()).collect()
}

#[tokio::test]
async fn retry_or_replay_waits_for_the_attempt_in_flight() {
    for (action, trigger) in [("retry", "manual"), ("replay", "replay")] {
        let world = InFlight::start().await;
        world.act(action).await;
        world.receiver.answer(500);
        world.receiver.until(2).await;
        world.receiver.answer(200);
        let done = world.until("delivered", 2).await;
        assert_eq!(attempt_members(&done, "number"), [1, 2], "{action}: {done}");
        assert_eq!(attempt_members(&done, "trigger"), ["publish", trigger], "{action}: {done}");
        assert_eq!(attempt_members(&done, "statusCode"), [500, 200], "{action}: {done}");
        assert_eq!(done["attemptCount"], 2, "{action}: {done}");
        let got = world.receiver.until(2).await;
        let numbers: Vec<_> = got.iter().map(|got| got.headers["balto-attempt"].as_str()).collect();
        assert_eq!(numbers, ["1", "2"], "{action}");
        world.assert_quiet(2).await;
    }
}

#[tokio::test]
async fn retry_or_replay_ends_when_the_attempt_in_flight_succeeds() {
    for action in ["retry", "replay"] {
        let world = InFlight::start().await;
        world.act(action).await;
        // The number of repetitions does not matter.
        world.act(action).await;
        world.receiver.answer(200);
        let done = world.until("delivered", 1).await;
        assert_eq!(attempt_members(&done, "trigger"), ["publish"], "{action}: {done}");
        world.assert_quiet(1).await;
    }
}

#[tokio::test]
async fn new_series_counts_no_attempt_of_the_previous_one() {
    let world = InFlight::start().await;
    world.act("retry").await;
    world.receiver.answer(500);
    world.receiver.until(2).await;
    world.receiver.answer(500);
    // The schedule has one retry: the second attempt is the first of its series.
    let waits = world.until("pending", 2).await;
    assert!(attempt_members(&waits, "nextAttemptAt")[1].is_string(), "{waits}");
}

#[tokio::test]
async fn cancelled_delivery_ends_delivered_only_if_attempt_succeeds() {
    for (status, ends) in [(500, "cancelled"), (200, "delivered")] {
        let world = InFlight::start().await;
        world.act("cancel").await;
        world.receiver.answer(status);
        let done = world.until(ends, 1).await;
        assert_eq!((&done["lastStatusCode"], &done["attemptCount"]), (&json!(status), &json!(1)), "{done}");
        assert!(done["settledAt"].is_string(), "{done}");
        let event = if status == 200 { "delivered" } else { "failed" };
        assert_eq!(world.daemon.get(&format!("/events/{}", world.event)).await["status"], event);
        world.assert_quiet(1).await;
    }
}

#[tokio::test]
async fn cancelled_and_retried_delivery_continues_after_its_attempt() {
    let world = InFlight::start().await;
    for action in ["cancel", "retry", "cancel", "retry"] {
        world.act(action).await;
    }
    world.receiver.answer(500);
    let got = world.receiver.until(2).await;
    assert_eq!(got[1].headers["balto-attempt"], "2");
    world.receiver.answer(200);
    let done = world.until("delivered", 2).await;
    assert_eq!(attempt_members(&done, "number"), [1, 2], "{done}");
    world.assert_quiet(2).await;
}

#[tokio::test]
async fn dead_letter_is_delivered_if_its_attempt_in_flight_succeeds() {
    for (status, ends) in [(500, "dead"), (200, "delivered")] {
        let world = InFlight::start().await;
        world.act("delete").await;
        world.receiver.answer(status);
        let done = world.until(ends, 1).await;
        let reason = if status == 200 { Value::Null } else { json!("endpointDeleted") };
        assert_eq!(done["reason"], reason, "{done}");
        let letters = world.daemon.get("/dead-letters").await;
        assert_eq!(list(&letters).len(), usize::from(status != 200), "{letters}");
    }
}

#[tokio::test]
async fn statistics_count_every_end_of_a_delivery() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(410).await;
    let endpoint = endpoint(&daemon, &receiver, json!({"retry": {"maxAge": "1s", "maxAttempts": 2}})).await;
    let stats = format!("/endpoints/{}/stats", text(&endpoint, "id"));
    // The first delivery dies by a 410, which disables the endpoint; the second expires; the third
    // is cancelled.
    publish(&daemon, json!({"type": "a", "data": 1})).await;
    daemon.until("/dead-letters?reason=gone", |letters| list(letters).len() == 1).await;
    publish(&daemon, json!({"type": "a", "data": 2})).await;
    let later = json!({"type": "a", "data": 3, "deliverAt": "2100-01-01T00:00:00Z"});
    let cancelled = publish(&daemon, later).await;
    let shown = daemon.get(&format!("/events/{}", text(&cancelled, "id"))).await;
    daemon.post(&format!("/deliveries/{}/cancel", text(&shown["deliveries"][0], "id")), "").await;
    daemon.until("/dead-letters?reason=endpointDisabled", |letters| list(letters).len() == 1).await;
    let counted = daemon.get(&stats).await;
    let counts = ["attempts", "delivered", "failedAttempts", "dead", "cancelled", "backlog"];
    assert_eq!(counts.map(|name| counted[name].as_u64().unwrap()), [1, 0, 1, 2, 1, 0], "{counted}");
    // A purged dead letter stays counted as dead; a redriven one that dies again counts twice.
    daemon.post("/dead-letters/purge", r#"{"reason":"gone"}"#).await;
    daemon.post("/dead-letters/redrive", r#"{"reason":"endpointDisabled"}"#).await;
    let counted = daemon.until(&stats, |stats| stats["dead"] == 3).await;
    assert_eq!((&counted["cancelled"], &counted["attempts"]), (&json!(1), &json!(1)), "{counted}");
}

/// A daemon with dead letters; the receiver now answers with `answer`.
struct DeadLetters {
    _data: tempfile::TempDir,
    daemon: Daemon,
    receiver: Receiver,
    answer: Arc<AtomicU16>,
    endpoint: String,
    deliveries: Vec<String>,
}

impl DeadLetters {
    async fn start(count: usize) -> Self {
        let data = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(data.path()).await;
        let status = Arc::new(AtomicU16::new(400));
        let asked = status.clone();
        let receiver = Receiver::start(move |_, _| answer(asked.load(Ordering::SeqCst))).await;
        let body = json!({"retry": {"maxAttempts": 1}, "maxInFlight": 64});
        let endpoint = text(&endpoint(&daemon, &receiver, body).await, "id");
        let events: Vec<_> = (0..count).map(|number| json!({"type": "a", "data": number})).collect();
        daemon.post("/events/batch", &json!({"events": events}).to_string()).await;
        let letters = daemon.until("/dead-letters?limit=250", |all| list(all).len() == count).await;
        let deliveries = list(&letters).iter().map(|letter| text(letter, "deliveryId")).collect();
        status.store(200, Ordering::SeqCst);
        Self { _data: data, daemon, receiver, answer: status, endpoint, deliveries }
    }

    async fn assert_refused(&self, path: &str, status: u16, code: &str, word: &str) {
        let (found, problem, _) = self.daemon.call("POST", path, &[], "").await;
        is_problem(&(found, problem.clone()), status, code, path);
        assert!(text(&problem, "detail").contains(word), "{problem}");
    }
}

#[tokio::test]
async fn purged_dead_letter_returns_only_by_a_replay_of_its_event() {
    let world = DeadLetters::start(1).await;
    let (daemon, id) = (&world.daemon, &world.deliveries[0]);
    assert_eq!(daemon.call("DELETE", &format!("/dead-letters/{id}"), &[], "").await.0, 204);
    assert_eq!(daemon.call("DELETE", &format!("/dead-letters/{id}"), &[], "").await.0, 404, "once");
    world.assert_refused(&format!("/deliveries/{id}/retry"), 409, "conflict", "purged").await;
    world.assert_refused(&format!("/deliveries/{id}/cancel"), 409, "conflict", "pending").await;
    world.assert_refused(&format!("/dead-letters/{id}/redrive"), 404, "not_found", id).await;
    for bulk in ["redrive", "purge"] {
        assert_eq!(daemon.post(&format!("/dead-letters/{bulk}"), "{}").await["count"], 0, "{bulk}");
    }
    let replay = format!("/endpoints/{}/replay", world.endpoint);
    let undelivered = json!({"since": "2026-01-01T00:00:00Z", "onlyUndelivered": true}).to_string();
    assert_eq!(daemon.post(&replay, &undelivered).await["count"], 0);
    let shown = daemon.get(&format!("/deliveries/{id}")).await;
    assert_eq!((&shown["status"], &shown["attemptCount"]), (&json!("cancelled"), &json!(1)), "{shown}");
    assert_eq!(daemon.get(&format!("/events/{}", text(&shown, "eventId"))).await["status"], "failed");
    let replayed = daemon.post(&format!("/events/{}/replay", text(&shown, "eventId")), "{}").await;
    assert_eq!(replayed["count"], 1);
    let done = daemon.until(&format!("/deliveries/{id}"), |shown| shown["status"] == "delivered").await;
    assert_eq!(attempt_members(&done, "number"), [1, 2], "{done}");
}

#[tokio::test]
async fn dead_letter_is_either_redriven_or_purged_when_concurrent() {
    let world = DeadLetters::start(60).await;
    let daemon = &world.daemon;
    let one = |path: String, method: &'static str| async move {
        let (status, _, _) = daemon.call(method, &path, &[], "").await;
        assert!([202, 204, 404, 409].contains(&status), "{method} {path}: {status}");
        usize::from(status < 300)
    };
    // The first half by id, both ways at the same time; the second half by filters.
    let singly = world.deliveries[..30].iter().map(|id| async move {
        let path = format!("/dead-letters/{id}");
        let retried = one(format!("/deliveries/{id}/retry"), "POST");
        let (redriven, purged, retried) =
            tokio::join!(one(format!("{path}/redrive"), "POST"), one(path, "DELETE"), retried);
        assert!(redriven + purged <= 1, "{id} was redriven and purged");
        (id, purged == 1, redriven + retried > 0)
    });
    for (id, purged, revived) in futures_util::future::join_all(singly).await {
        let end = if purged { "cancelled" } else { "delivered" };
        assert!(purged != revived, "{id} was purged: {purged}, revived: {revived}");
        daemon.until(&format!("/deliveries/{id}"), |shown| shown["status"] == end).await;
    }
    let (redriven, purged) =
        tokio::join!(daemon.post("/dead-letters/redrive", "{}"), daemon.post("/dead-letters/purge", "{}"));
    let (redriven, purged) = (redriven["count"].as_u64().unwrap(), purged["count"].as_u64().unwrap());
    assert_eq!(redriven + purged, 30, "{redriven} redriven, {purged} purged");
    daemon.until("/deliveries?status=pending", |all| list(all).is_empty()).await;
    assert_eq!(list(&daemon.get("/dead-letters").await).len(), 0);
    let ended = async |status: &str| {
        let mut all = Vec::new();
        for id in &world.deliveries[30..] {
            all.push(daemon.get(&format!("/deliveries/{id}")).await["status"] == status);
        }
        all.into_iter().filter(|is_so| *is_so).count() as u64
    };
    assert_eq!((ended("delivered").await, ended("cancelled").await), (redriven, purged));
}

#[tokio::test]
async fn impossible_redrive_is_refused_and_not_counted() {
    let world = DeadLetters::start(3).await;
    let daemon = &world.daemon;
    let (first, endpoint) = (&world.deliveries[0], format!("/endpoints/{}", world.endpoint));
    // At a disabled endpoint they wait, like all deliveries, until the endpoint is resumed.
    world.answer.store(410, Ordering::SeqCst);
    publish(daemon, json!({"type": "last", "data": 1})).await;
    daemon.until(&endpoint, |shown| shown["status"] == "disabled").await;
    world.answer.store(400, Ordering::SeqCst);
    assert_eq!(daemon.post("/dead-letters/redrive", r#"{"type":"a"}"#).await["count"], 3);
    assert_eq!(list(&daemon.get("/deliveries?status=pending").await).len(), 3);
    assert_eq!(daemon.get(&format!("{endpoint}/lane")).await["reason"], "disabled");
    assert_eq!(world.receiver.count(), 4, "nothing more was sent");
    daemon.post(&format!("{endpoint}/resume"), "").await;
    daemon.until("/dead-letters?type=a", |all| list(all).len() == 3).await;
    // At a deleted endpoint they stay dead.
    assert_eq!(daemon.call("DELETE", &endpoint, &[], "").await.0, 204);
    world
        .assert_refused(
            &format!("/dead-letters/{first}/redrive"),
            409,
            "conflict",
            "the endpoint was deleted",
        )
        .await;
    world
        .assert_refused(&format!("/deliveries/{first}/retry"), 409, "conflict", "the endpoint was deleted")
        .await;
    assert_eq!(daemon.post("/dead-letters/redrive", "{}").await["count"], 0);
    assert_eq!(list(&daemon.get("/dead-letters").await).len(), 4);
    let replayed = daemon.post(&format!("/events/{}/replay", event_of(daemon, first).await), "{}").await;
    assert_eq!(replayed["count"], 0);
}

async fn event_of(daemon: &Daemon, delivery: &str) -> String {
    text(&daemon.get(&format!("/deliveries/{delivery}")).await, "eventId")
}

#[tokio::test]
async fn event_status_summarises_its_deliveries() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    for _ in 0..2 {
        endpoint(&daemon, &receiver, json!({})).await;
    }
    let later = json!({"type": "a", "data": 1, "deliverAt": "2100-01-01T00:00:00Z"});
    for (cancelled, expected) in [(2, "failed"), (1, "partial"), (0, "delivered")] {
        let event = format!("/events/{}", text(&publish(&daemon, later.clone()).await, "id"));
        let shown = daemon.get(&event).await;
        assert_eq!(shown["status"], "pending");
        for (number, delivery) in shown["deliveries"].as_array().unwrap().iter().enumerate() {
            let act = if number < cancelled { "cancel" } else { "retry" };
            daemon.post(&format!("/deliveries/{}/{act}", text(delivery, "id")), "").await;
        }
        daemon.until(&event, |shown| shown["status"] == expected).await;
        let found = daemon.get(&format!("/events?status={expected}")).await;
        assert_eq!(list(&found).len(), 1, "{found}");
    }
    let unmatched = publish(&daemon, json!({"type": "a", "data": 1, "tenant": "nobody"})).await;
    assert_eq!(
        daemon.get(&format!("/events/{}?tenant=nobody", text(&unmatched, "id"))).await["status"],
        "unmatched"
    );
}

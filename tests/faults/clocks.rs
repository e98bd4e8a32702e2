//! The real process under a clock that jumps by hours, back and forth, and stopped for longer than its timeouts: nothing
//! waits for the jump, nothing is sent twice for it, nothing is forgotten before its time.
//!
//! libfaketime, which Debian has, shows the process another time of day; monotonic time stays right, as it does when
//! somebody sets a machine's clock. Where it cannot be had the tests say so and check nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::load::{Book, accepted, check_held, held, publishers};
use crate::support::{Daemon, Receiver, answer, say, seed};
use serde_json::{Value, json};

const HOUR: i64 = 3_600;
const EVENT: &str = r#"{"type":"a.b","data":1}"#;

/// A clock that shows the real time and some seconds.
struct Clock {
    library: String,
    file: PathBuf,
}

impl Clock {
    fn new(below: &Path) -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/faketime");
        let found = Command::new(script).output().unwrap();
        let library = String::from_utf8(found.stdout).unwrap().trim().to_owned();
        let clock = Self { library, file: below.join("clock") };
        clock.set(0);
        found.status.success().then_some(clock)
    }

    /// In one step, so that it is never read half written.
    fn set(&self, seconds: i64) {
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{seconds:+}\n")).unwrap();
        std::fs::rename(&next, &self.file).unwrap();
    }

    async fn start(&self, data: &Path, more: &[(&str, &str)]) -> Daemon {
        let mut command = crate::support::serve(data, &["--dev"]);
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
            .envs(more.iter().copied());
        let daemon = Daemon::spawn(command);
        daemon.until_ready().await;
        daemon
    }
}

/// Seconds since 1970 on the right clock.
fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

fn seconds(text: &Value) -> i64 {
    let format = time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::parse(text.as_str().unwrap(), &format).unwrap().unix_timestamp()
}

fn rfc3339(seconds: i64) -> String {
    let format = time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::from_unix_timestamp(seconds).unwrap().format(&format).unwrap()
}

fn near(one: i64, other: i64) -> bool {
    (one - other).abs() < 120
}

async fn delivered(daemon: &Daemon, event: &Value) -> Value {
    let path = format!("/events/{}", event["id"].as_str().unwrap());
    daemon.until(&path, |event| event["status"] == "delivered").await
}

macro_rules! clock_or_skip {
    ($below:expr) => {
        match Clock::new($below) {
            Some(clock) => clock,
            None => return say("SKIPPED: libfaketime cannot be had here"),
        }
    };
}

#[tokio::test]
async fn a_clock_that_is_set_back_and_forth_delays_nothing_and_reorders_nothing() {
    let below = tempfile::tempdir().unwrap();
    let clock = clock_or_skip!(below.path());
    let data = below.path().join("data");
    let mut daemon = clock.start(&data, &[]).await;
    let receiver = Receiver::status(200).await;
    daemon.post("/endpoints", &json!({"url": receiver.url}).to_string()).await;
    let mut last = 0;
    let mut ids = Vec::new();
    for (number, offset) in [0, -6 * HOUR, 6 * HOUR, -6 * HOUR, 0, -24 * HOUR].into_iter().enumerate() {
        clock.set(offset);
        let event = daemon.post("/events", EVENT).await;
        let shown = delivered(&daemon, &event).await;
        assert_eq!(shown["deliveries"][0]["attempts"], 1, "at {offset}: {shown}");
        let accepted = seconds(&shown["acceptedAt"]);
        assert!(accepted >= last, "at {offset}: accepted at {accepted}, and the one before at {last}");
        last = accepted;
        ids.push(event["id"].as_str().unwrap().to_owned());
        // Receivers compare the signature's time with their own clocks: it is the one that the machine shows.
        let signed: i64 =
            receiver.until(number + 1).await[number].headers["webhook-timestamp"].parse().unwrap();
        assert!(near(signed, now() + offset), "at {offset}: signed at {signed}, and it is {}", now());
    }
    assert!(ids.is_sorted(), "ids do not follow the order of acceptance: {ids:?}");
    // A start while the clock stands far behind the last commit.
    assert_eq!(daemon.terminate(), Some(0));
    let daemon = clock.start(&data, &[]).await;
    let event = daemon.post("/events", EVENT).await;
    let shown = delivered(&daemon, &event).await;
    assert!(seconds(&shown["acceptedAt"]) >= last);
    assert_eq!(receiver.got().len(), 7, "something was sent twice");
}

#[tokio::test]
async fn schedules_fall_due_by_the_clock_and_once() {
    let below = tempfile::tempdir().unwrap();
    let clock = clock_or_skip!(below.path());
    let daemon = clock.start(&below.path().join("data"), &[]).await;
    let failing = Receiver::start(|number, _| answer(if number < 2 { 500 } else { 200 })).await;
    let punctual = Receiver::status(200).await;
    let retrying =
        json!({"url": failing.url, "eventTypes": ["retried"], "retry": {"schedule": ["1h", "1s"]}});
    daemon.post("/endpoints", &retrying.to_string()).await;
    daemon.post("/endpoints", &json!({"url": punctual.url, "eventTypes": ["later"]}).to_string()).await;
    let retried = daemon.post("/events", r#"{"type":"retried","data":1}"#).await;
    let at = rfc3339(now() + 3 * HOUR);
    let later =
        daemon.post("/events", &json!({"type": "later", "data": 1, "deliverAt": at}).to_string()).await;
    failing.until(1).await;
    let path = format!("/events/{}", retried["id"].as_str().unwrap());
    let waiting = daemon.until(&path, |event| event["deliveries"][0]["attempts"] == 1).await;
    let due = seconds(&waiting["deliveries"][0]["nextAttemptAt"]);
    assert!(near(due, now() + HOUR), "{waiting}");
    // Back: neither sooner nor (as what follows shows) hours later.
    clock.set(-5 * HOUR);
    daemon.post("/events", EVENT).await;
    assert_eq!((failing.got().len(), punctual.got().len()), (1, 0), "sent because the clock was set back");
    // Two hours on: the retry is due, and its own retry after a second of any clock.
    clock.set(2 * HOUR);
    failing.until(2).await;
    clock.set(-20 * HOUR);
    delivered(&daemon, &retried).await;
    assert_eq!((failing.got().len(), punctual.got().len()), (3, 0));
    // Four hours on: what was to be delivered in three.
    clock.set(4 * HOUR);
    delivered(&daemon, &later).await;
    clock.set(0);
    daemon.post("/events", EVENT).await;
    assert_eq!((failing.got().len(), punctual.got().len()), (3, 1));
}

/// Receivers name dates by their own clocks, which stand near the machine's. The time by which
/// deliveries are scheduled does not go back with it.
#[tokio::test]
async fn date_in_retry_after_is_read_by_the_clock_of_the_machine() {
    let below = tempfile::tempdir().unwrap();
    let clock = clock_or_skip!(below.path());
    let daemon = clock.start(&below.path().join("data"), &[]).await;
    for (offset, wait) in [(0, 600), (-6 * HOUR, 600), (-6 * HOUR, 1_200), (-2 * HOUR, 600)] {
        clock.set(offset);
        let date = UNIX_EPOCH + Duration::from_secs(u64::try_from(now() + offset + wait).unwrap());
        let reply = format!(
            "HTTP/1.1 429 x\r\nretry-after: {}\r\ncontent-length: 0\r\n\r\n",
            httpdate::fmt_http_date(date)
        );
        let receiver = Receiver::start(move |_, _| reply.clone()).await;
        let kind = format!("at.{}.{wait}", -offset);
        let endpoint = json!({"url": receiver.url, "eventTypes": [kind]}).to_string();
        let endpoint = daemon.post("/endpoints", &endpoint).await;
        for _ in 0..2 {
            daemon.post("/events", &json!({"type": kind, "data": 1}).to_string()).await;
        }
        let lane = format!("/endpoints/{}/lane", endpoint["id"].as_str().unwrap());
        let held = daemon.until(&lane, |lane| lane["reason"] == "retryAfter").await;
        assert!(near(seconds(&held["until"]), now() + wait), "clock set by {offset}: {held}");
    }
}

#[tokio::test]
async fn keys_are_forgotten_after_their_time_and_not_before() {
    let below = tempfile::tempdir().unwrap();
    let clock = clock_or_skip!(below.path());
    let daemon = clock.start(&below.path().join("data"), &[]).await;
    let publish = async || {
        let (status, event, headers) =
            daemon.call("POST", "/events", &[("idempotency-key", "k")], EVENT).await;
        assert_eq!(status, 202, "{event}");
        (event["id"].as_str().unwrap().to_owned(), headers.contains_key("idempotent-replayed"))
    };
    let (first, replayed) = publish().await;
    assert!(!replayed);
    for offset in [23 * HOUR, -100 * HOUR, 0, 23 * HOUR] {
        clock.set(offset);
        daemon.post("/events", EVENT).await;
        assert_eq!(publish().await, (first.clone(), true), "at {offset}");
    }
    clock.set(25 * HOUR);
    let (second, replayed) = publish().await;
    assert!(!replayed && second != first, "remembered for longer than 24 hours");
    clock.set(-HOUR);
    assert_eq!(publish().await, (second, true));
}

#[tokio::test]
async fn what_waits_for_longer_than_its_event_is_kept_expires_and_what_is_planned_for_later_does_not() {
    let below = tempfile::tempdir().unwrap();
    let clock = clock_or_skip!(below.path());
    // Kept for so short a time, retention looks at it every few seconds.
    let keep = [("BALTO__RETENTION__EVENTS", "1m"), ("BALTO__INGEST__IDEMPOTENCY_TTL", "1m")];
    let daemon = clock.start(&below.path().join("data"), &keep).await;
    let receiver = Receiver::start(|_, got| answer(if got.body.contains("fails") { 500 } else { 200 })).await;
    let operator = Receiver::status(204).await;
    daemon.post("/endpoints", &json!({"url": operator.url, "tenant": "balto"}).to_string()).await;
    let policy = json!({"url": receiver.url, "retry": {"schedule": ["300h"]}}).to_string();
    let id = daemon.post("/endpoints", &policy).await["id"].as_str().unwrap().to_owned();
    let publish = async |more: Value| {
        let mut event = json!({"type": "a.b", "data": 1});
        event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let event = daemon.post("/events", &event.to_string()).await;
        let path = format!("/events/{}", event["id"].as_str().unwrap());
        let shown = daemon.get(&path).await;
        format!("/deliveries/{}", shown["deliveries"][0]["id"].as_str().unwrap())
    };
    let retried = publish(json!({"data": "fails"})).await;
    daemon.until(&retried, |shown| shown["attemptCount"] == 1).await;
    daemon.post(&format!("/endpoints/{id}/pause"), "").await;
    let waits = publish(json!({})).await;
    let scheduled = publish(json!({"deliverAt": rfc3339(now() + 300 * HOUR)})).await;
    let streamed = publish(json!({"stream": "s-1"})).await;
    clock.set(5 * HOUR);
    let dead = daemon.until(&waits, |shown| shown["status"] == "dead").await;
    assert_eq!((&dead["reason"], &dead["attemptCount"]), (&json!("expired"), &json!(0)), "{dead}");
    let letters = daemon.get("/dead-letters?reason=expired").await;
    assert_eq!(letters["data"].as_array().unwrap().len(), 1, "{letters}");
    let told = operator.until(1).await;
    assert!(told[0].body.contains("\"reason\":\"expired\""), "{told:?}");
    for (pending, why) in [
        (&retried, "its retry is planned for later"),
        (&scheduled, "it is not due yet"),
        (&streamed, "events of streams are kept for ever"),
    ] {
        assert_eq!(daemon.get(pending).await["status"], "pending", "{why}");
    }
    // It is a dead letter like any other.
    daemon.post(&format!("{}/redrive", waits.replace("deliveries", "dead-letters")), "").await;
    daemon.post(&format!("/endpoints/{id}/resume"), "").await;
    daemon.until(&waits, |shown| shown["status"] == "delivered").await;
    daemon.until(&streamed, |shown| shown["status"] == "delivered").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_a_clock_that_never_rests_costs_nothing() {
    let below = tempfile::tempdir().unwrap();
    let clock = clock_or_skip!(below.path());
    let mut random = fastrand::Rng::with_seed(seed());
    let data = below.path().join("data");
    let mut daemon = clock.start(&data, &[]).await;
    let moods = Mutex::new(random.fork());
    let receiver =
        Receiver::start(move |_, _| answer(if moods.lock().unwrap().u8(0..5) == 0 { 500 } else { 200 }))
            .await;
    let endpoint = json!({"url": receiver.url, "retry": {"initial": "50ms", "maxInterval": "100ms", "maxAttempts": 100}});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    let book = Arc::<Mutex<Book>>::default();
    let publishers = publishers(&book, &daemon, &mut random);
    for _ in 0..100 {
        clock.set(random.i64(-12 * HOUR..12 * HOUR));
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    accepted(&book, 60).await;
    assert_eq!(daemon.terminate(), Some(0));
    for publisher in publishers {
        publisher.await.unwrap();
    }
    let mut daemon = clock.start(&data, &[]).await;
    daemon.until("/deliveries?limit=1&status=pending", |page| page["data"] == json!([])).await;
    assert_eq!(daemon.get("/dead-letters").await["data"], json!([]), "something was given up");
    let held = held(&daemon).await;
    check_held(&book.lock().unwrap(), &held);
    let mut attempts = BTreeMap::<String, u32>::new();
    for got in receiver.got() {
        *attempts.entry(got.headers["webhook-id"].clone()).or_default() += 1;
    }
    let accepted = book.lock().unwrap().accepted.len();
    assert!(attempts.len() >= accepted && accepted > 50, "{} of {accepted} were sent", attempts.len());
    // A fifth fails: sixteen tries for one event would be a storm.
    assert!(attempts.values().all(|attempts| *attempts <= 16), "{:?}", attempts.values().max());
    assert_eq!(daemon.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_stopped_goes_on_where_it_was() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    // Answers come while the process stands still, and are there when it goes on.
    let endpoint =
        json!({"url": receiver.url, "timeout": "5s", "maxInFlight": 64, "retry": {"schedule": ["100ms"]}});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    for round in 0..3 {
        let events: Vec<_> = (0..300).map(|number| json!({"type": "a.b", "data": number})).collect();
        daemon.post("/events/batch", &json!({"events": events}).to_string()).await;
        let later = json!({"type": "a.b", "data": "later", "deliverAt": rfc3339(now() + 2)});
        daemon.post("/events", &later.to_string()).await;
        receiver.until(301 * round + 1).await;
        daemon.signal("STOP");
        let asking = tokio::spawn({
            let url = format!("{}/events", daemon.api);
            async move {
                reqwest::Client::new()
                    .post(url)
                    .header("content-type", "application/json")
                    .body(EVENT)
                    .send()
                    .await
            }
        });
        tokio::time::sleep(Duration::from_secs(7)).await;
        daemon.signal("CONT");
        assert_eq!(asking.await.unwrap().unwrap().status(), 202, "whoever asked meanwhile was not answered");
        daemon.until("/deliveries?limit=1&status=pending", |page| page["data"] == json!([])).await;
        assert!(daemon.is_ready().await);
    }
    let mut cursor = String::new();
    loop {
        let page = daemon.get(&format!("/deliveries?limit=250{cursor}")).await;
        for delivery in page["data"].as_array().unwrap() {
            assert_eq!(delivery["attempts"], 1, "its own standstill was charged: {delivery}");
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(receiver.got().len(), 3 * 302);
}

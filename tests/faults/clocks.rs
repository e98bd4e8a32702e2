//! The real process with a clock that jumps by hours in both directions, and paused for longer than
//! its timeouts. Deliveries are neither delayed nor repeated, and nothing expires early.
//!
//! libfaketime, a Debian package, changes the time of day of the process; monotonic time stays
//! correct, as after setting a machine's clock. Without libfaketime the tests report that they are
//! skipped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::clock::Clock;
use crate::support::load::{Ledger, accepted, check_stored, publishers, stored_events};
use crate::support::{Daemon, Receiver, answer, say, seed};
use serde_json::{Value, json};

const HOUR: i64 = 3_600;
const EVENT: &str = r#"{"type":"a.b","data":1}"#;

/// The real time in seconds since 1970.
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
            None => return say("SKIPPED: libfaketime is not available"),
        }
    };
}

#[tokio::test]
async fn clock_jumps_neither_delay_nor_reorder_deliveries() {
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
        assert_eq!(shown["deliveries"][0]["attemptCount"], 1, "at {offset}: {shown}");
        let accepted = seconds(&shown["acceptedAt"]);
        assert!(accepted >= last, "at {offset}: accepted at {accepted}, the previous event at {last}");
        last = accepted;
        ids.push(event["id"].as_str().unwrap().to_owned());
        // Receivers compare the signature's time with their own clocks: it is the machine's current
        // time.
        let signed: i64 =
            receiver.until(number + 1).await[number].headers["webhook-timestamp"].parse().unwrap();
        assert!(near(signed, now() + offset), "at {offset}: signed at {signed}, and it is {}", now());
    }
    assert!(ids.is_sorted(), "ids do not follow the order of acceptance: {ids:?}");
    // A start while the clock is far behind the last commit.
    assert_eq!(daemon.terminate(), Some(0));
    let daemon = clock.start(&data, &[]).await;
    let event = daemon.post("/events", EVENT).await;
    let shown = delivered(&daemon, &event).await;
    assert!(seconds(&shown["acceptedAt"]) >= last);
    assert_eq!(receiver.got().len(), 7, "an event was sent twice");
}

#[tokio::test]
async fn schedules_follow_the_clock_and_fire_once() {
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
    let waiting = daemon.until(&path, |event| event["deliveries"][0]["attemptCount"] == 1).await;
    let due = seconds(&waiting["deliveries"][0]["nextAttemptAt"]);
    assert!(near(due, now() + HOUR), "{waiting}");
    // Back five hours: the schedule neither fires early nor (see below) hours late.
    clock.set(-5 * HOUR);
    daemon.post("/events", EVENT).await;
    assert_eq!((failing.got().len(), punctual.got().len()), (1, 0), "sent because the clock was set back");
    // Two hours ahead: the retry is due, and its own retry one second later by either clock.
    clock.set(2 * HOUR);
    failing.until(2).await;
    clock.set(-20 * HOUR);
    delivered(&daemon, &retried).await;
    assert_eq!((failing.got().len(), punctual.got().len()), (3, 0));
    // Four hours ahead: the event that was scheduled in three hours is due.
    clock.set(4 * HOUR);
    delivered(&daemon, &later).await;
    clock.set(0);
    daemon.post("/events", EVENT).await;
    assert_eq!((failing.got().len(), punctual.got().len()), (3, 1));
}

/// Receivers compute dates with their own clocks, which are close to the machine's. The clock of
/// the delivery schedule does not go back with the machine's.
#[tokio::test]
async fn retry_after_date_is_read_by_the_machines_clock() {
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
        let hold = daemon.until(&lane, |lane| lane["reason"] == "retryAfter").await;
        assert!(near(seconds(&hold["until"]), now() + wait), "clock set by {offset}: {hold}");
    }
}

#[tokio::test]
async fn idempotency_keys_expire_after_their_time_and_not_before() {
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
    assert!(!replayed && second != first, "the key is valid for longer than 24 hours");
    clock.set(-HOUR);
    assert_eq!(publish().await, (second, true));
}

#[tokio::test]
async fn waiting_delivery_expires_with_its_event_unless_scheduled() {
    let below = tempfile::tempdir().unwrap();
    let clock = clock_or_skip!(below.path());
    // With such short limits, retention runs every few seconds.
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
    let notice = operator.until(1).await;
    assert!(notice[0].body.contains("\"reason\":\"expired\""), "{notice:?}");
    for (pending, why) in [
        (&retried, "the retry is due later"),
        (&scheduled, "the delivery is not due"),
        (&streamed, "events of streams never expire"),
    ] {
        assert_eq!(daemon.get(pending).await["status"], "pending", "{why}");
    }
    // An ordinary dead letter.
    daemon.post(&format!("{}/redrive", waits.replace("deliveries", "dead-letters")), "").await;
    daemon.post(&format!("/endpoints/{id}/resume"), "").await;
    daemon.until(&waits, |shown| shown["status"] == "delivered").await;
    daemon.until(&streamed, |shown| shown["status"] == "delivered").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsteady_clock_under_load_loses_no_delivery() {
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
    let ledger = Arc::<Mutex<Ledger>>::default();
    let publishers = publishers(&ledger, &daemon, &mut random);
    for _ in 0..100 {
        clock.set(random.i64(-12 * HOUR..12 * HOUR));
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    accepted(&ledger, 60).await;
    assert_eq!(daemon.terminate(), Some(0));
    for publisher in publishers {
        publisher.await.unwrap();
    }
    let mut daemon = clock.start(&data, &[]).await;
    daemon.until("/deliveries?limit=1&status=pending", |page| page["data"] == json!([])).await;
    assert_eq!(daemon.get("/dead-letters").await["data"], json!([]), "something was given up");
    let stored = stored_events(&daemon).await;
    check_stored(&ledger.lock().unwrap(), &stored);
    let mut attempts = BTreeMap::<String, u32>::new();
    for got in receiver.got() {
        *attempts.entry(got.headers["webhook-id"].clone()).or_default() += 1;
    }
    let accepted = ledger.lock().unwrap().accepted.len();
    assert!(attempts.len() >= accepted && accepted > 50, "{} of {accepted} were sent", attempts.len());
    // A fifth of the attempts fail: more than sixteen attempts for one event would be a retry
    // storm.
    assert!(attempts.values().all(|attempts| *attempts <= 16), "{:?}", attempts.values().max());
    assert_eq!(daemon.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suspended_process_continues_where_it_was() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    // Responses arrive while the process is suspended, and are available when it continues.
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
        assert_eq!(
            asking.await.unwrap().unwrap().status(),
            202,
            "a request during the suspension got no response"
        );
        daemon.until("/deliveries?limit=1&status=pending", |page| page["data"] == json!([])).await;
        assert!(daemon.is_ready().await);
    }
    let mut cursor = String::new();
    loop {
        let page = daemon.get(&format!("/deliveries?limit=250{cursor}")).await;
        for delivery in page["data"].as_array().unwrap() {
            assert_eq!(delivery["attemptCount"], 1, "its own standstill was charged: {delivery}");
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(receiver.got().len(), 3 * 302);
}

//! Wait reasons of a lane, as `GET /v1/endpoints/{id}/lane` and the metric report them: each one is
//! produced in the real daemon.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{Daemon, Receiver, answer, next_request};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

/// Registers an endpoint for this type of event; returns the path of its lane.
async fn lane(daemon: &Daemon, url: &str, kind: &str, more: Value) -> String {
    let mut body = json!({"url": url, "eventTypes": [kind], "retry": {"schedule": vec!["10ms"; 50]}});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let made = daemon.post("/endpoints", &body.to_string()).await;
    let path = format!("/endpoints/{}/lane", made["id"].as_str().unwrap());
    let idle = daemon.get(&path).await;
    assert_eq!((&idle["reason"], &idle["pending"], &idle["until"]), (&Value::Null, &json!(0), &Value::Null));
    path
}

async fn post(daemon: &Daemon, kind: &str, count: usize) {
    for number in 0..count {
        daemon.post("/events", &json!({"type": kind, "data": number}).to_string()).await;
    }
}

/// The lane's report once it has this reason. The metric must count one such lane, too.
async fn until_reason(daemon: &Daemon, lane: &str, reason: &str) -> Value {
    let report = daemon.until(lane, |report| report["reason"] == reason).await;
    daemon.until_metric("balto_lanes", &format!("reason=\"{reason}\""), |lanes| lanes == 1.0).await;
    report
}

/// Accepts connections and never answers.
async fn silent_receiver() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    (listener, url)
}

/// The seconds from now to a time of the report.
fn seconds_ahead(time: &Value) -> i64 {
    let moment = OffsetDateTime::parse(time.as_str().unwrap(), &Rfc3339).unwrap();
    (moment - OffsetDateTime::now_utc()).whole_seconds()
}

#[tokio::test]
async fn not_due_reports_the_time_of_the_next_delivery() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let lane = lane(&daemon, &receiver.url, "a", json!({})).await;
    let event = r#"{"type":"a","data":1,"deliverAt":"2100-01-01T00:00:00.000Z"}"#;
    let event = daemon.post("/events", event).await;
    let report = until_reason(&daemon, &lane, "notDue").await;
    assert_eq!((&report["nextDueAt"], &report["pending"]), (&json!("2100-01-01T00:00:00.000Z"), &json!(1)));
    assert_eq!(report["until"].as_str().unwrap()[..10], *"2100-01-01", "{report}");
    assert_eq!(receiver.got().len(), 0);
    let shown = daemon.get(&format!("/events/{}", event["id"].as_str().unwrap())).await;
    let retry = format!("/deliveries/{}/retry", shown["deliveries"][0]["id"].as_str().unwrap());
    daemon.post(&retry, "").await;
    receiver.until(1).await;
    daemon.until(&lane, |report| report["reason"].is_null() && report["pending"] == 0).await;
}

#[tokio::test]
async fn rate_reports_the_time_of_the_next_send() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let limit = json!({"rateLimit": {"limit": 1, "per": "1h", "burst": 2}});
    let lane = lane(&daemon, &receiver.url, "a", limit).await;
    post(&daemon, "a", 4).await;
    let report = until_reason(&daemon, &lane, "rate").await;
    assert!((3_500..=3_600).contains(&seconds_ahead(&report["until"])), "{report}");
    let report = daemon.until(&lane, |report| report["pending"] == 2).await;
    assert_eq!((receiver.got().len(), &report["reason"]), (2, &json!("rate")), "{report}");
}

#[tokio::test]
async fn in_flight_limit_reports_the_number_in_flight() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (_held, url) = silent_receiver().await;
    let lane = lane(&daemon, &url, "a", json!({"maxInFlight": 2, "timeout": "60s"})).await;
    post(&daemon, "a", 3).await;
    let report = until_reason(&daemon, &lane, "inFlightLimit").await;
    assert_eq!((&report["inFlight"], &report["pending"]), (&json!(2), &json!(3)), "{report}");
}

#[tokio::test]
async fn circuit_open_reports_the_time_of_the_probe() {
    let data = tempfile::tempdir().unwrap();
    let breaker =
        [("BALTO__DELIVERY__BREAKER_PROBE_INITIAL", "30m"), ("BALTO__DELIVERY__BREAKER_PROBE_MAX", "1h")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &breaker).await;
    let receiver = Receiver::status(500).await;
    let lane = lane(&daemon, &receiver.url, "a", json!({"maxInFlight": 1})).await;
    post(&daemon, "a", 1).await;
    let report = until_reason(&daemon, &lane, "circuitOpen").await;
    assert_eq!((&report["circuit"], &report["consecutiveFailures"]), (&json!("open"), &json!(5)), "{report}");
    assert!((1_700..=1_800).contains(&seconds_ahead(&report["until"])), "{report}");
    assert_eq!(receiver.got().len(), 5, "a retried delivery to a held lane was sent");
}

#[tokio::test]
async fn retry_after_reports_the_end_of_the_pause() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let busy = "HTTP/1.1 503 x\r\nretry-after: 1800\r\ncontent-length: 0\r\n\r\n";
    let receiver = Receiver::start(move |_, _| busy.to_owned()).await;
    let lane = lane(&daemon, &receiver.url, "a", json!({})).await;
    post(&daemon, "a", 1).await;
    // The throttled delivery waits for that time, and so do later deliveries.
    for _ in 0..2 {
        let report = until_reason(&daemon, &lane, "retryAfter").await;
        assert!((1_700..=1_800).contains(&seconds_ahead(&report["until"])), "{report}");
        assert_eq!((&report["circuit"], receiver.got().len()), (&json!("closed"), 1), "{report}");
        post(&daemon, "a", 1).await;
    }
}

#[tokio::test]
async fn manual_retry_waits_for_retry_after_until_it_is_cleared() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let busy = "HTTP/1.1 503 x\r\nretry-after: 1800\r\ncontent-length: 0\r\n\r\n".to_owned();
    let receiver =
        Receiver::start(move |number, _| if number == 0 { busy.clone() } else { answer(200) }).await;
    let lane = lane(&daemon, &receiver.url, "a", json!({})).await;
    post(&daemon, "a", 1).await;
    until_reason(&daemon, &lane, "retryAfter").await;
    let pending = daemon.get("/deliveries").await["data"][0]["id"].clone();
    let delivery = format!("/deliveries/{}", pending.as_str().unwrap());
    assert_eq!(daemon.post(&format!("{delivery}/retry"), "").await["status"], "pending");
    let endpoint = lane.strip_suffix("/lane").unwrap();
    daemon.post(&format!("{endpoint}/resume"), "").await;
    let report = until_reason(&daemon, &lane, "retryAfter").await;
    assert_eq!(receiver.got().len(), 1, "resuming an active endpoint ended the hold: {report}");
    for step in ["pause", "resume"] {
        daemon.post(&format!("{endpoint}/{step}"), "").await;
    }
    daemon.until(&delivery, |delivery| delivery["status"] == "delivered").await;
}

#[tokio::test]
async fn paused_lasts_until_resumed() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let lane = lane(&daemon, &receiver.url, "a", json!({})).await;
    let endpoint = lane.strip_suffix("/lane").unwrap();
    assert_eq!(daemon.post(&format!("{endpoint}/pause"), "").await["status"], "paused");
    assert_eq!(daemon.get(&lane).await["reason"], Value::Null, "nothing waits yet");
    post(&daemon, "a", 2).await;
    let report = until_reason(&daemon, &lane, "paused").await;
    assert_eq!((&report["pending"], &report["until"]), (&json!(2), &Value::Null), "{report}");
    assert_eq!(receiver.got().len(), 0);
    assert_eq!(daemon.post(&format!("{endpoint}/resume"), "").await["status"], "active");
    receiver.until(2).await;
}

#[tokio::test]
async fn disabled_lasts_until_resumed() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::start(|number, _| answer(if number == 0 { 410 } else { 200 })).await;
    let lane = lane(&daemon, &receiver.url, "a", json!({})).await;
    let endpoint = lane.strip_suffix("/lane").unwrap();
    post(&daemon, "a", 1).await;
    daemon.until(endpoint, |endpoint| endpoint["status"] == "disabled").await;
    post(&daemon, "a", 1).await;
    let report = until_reason(&daemon, &lane, "disabled").await;
    assert_eq!((&report["pending"], &report["until"]), (&json!(1), &Value::Null), "{report}");
    daemon.post(&format!("{endpoint}/resume"), "").await;
    receiver.until(2).await;
}

#[tokio::test]
async fn ordering_reports_the_number_of_queued_deliveries() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (_held, url) = silent_receiver().await;
    let lane = lane(&daemon, &url, "a", json!({"ordering": "key", "timeout": "60s"})).await;
    for key in ["k1", "k1", "k2", "k1"] {
        daemon.post("/events", &json!({"type": "a", "data": 1, "orderingKey": key}).to_string()).await;
    }
    daemon.until(&lane, |report| report["inFlight"] == 2).await;
    let report = until_reason(&daemon, &lane, "ordering").await;
    assert_eq!((&report["pending"], &report["waitingForOrder"]), (&json!(4), &json!(2)), "{report}");
}

/// A receiver that fails requests with `head` in them. The endpoint's head waits long for its
/// retry, with three deliveries behind it. Also returns the endpoint's path.
async fn with_stuck_head(daemon: &Daemon) -> (Receiver, String) {
    let receiver = Receiver::start(|_, got| answer(if got.body.contains("head") { 500 } else { 200 })).await;
    let strict = json!({"ordering": "endpoint", "retry": {"schedule": ["1h"]}});
    let lane = lane(daemon, &receiver.url, "a", strict).await;
    for data in ["head", "first", "second", "third"] {
        daemon.post("/events", &json!({"type": "a", "data": data}).to_string()).await;
    }
    receiver.until(1).await;
    let report = until_reason(daemon, &lane, "ordering").await;
    assert_eq!((&report["pending"], &report["waitingForOrder"]), (&json!(4), &json!(3)), "{report}");
    (receiver, lane.strip_suffix("/lane").unwrap().to_owned())
}

async fn set_ordering(daemon: &Daemon, endpoint: &str, ordering: &str) {
    let change = json!({"ordering": ordering}).to_string();
    let (status, answer, _) = daemon.call("PATCH", endpoint, &[], &change).await;
    assert_eq!((status, &answer["ordering"]), (200, &json!(ordering)), "{answer}");
}

#[tokio::test]
async fn deliveries_in_order_are_released_when_ordering_ends() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (receiver, endpoint) = with_stuck_head(&daemon).await;
    set_ordering(&daemon, &endpoint, "none").await;
    let got = receiver.until(4).await;
    let mut bodies: Vec<_> = got[1..].iter().map(|got| got.body.rsplit(':').next().unwrap()).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, [r#""first"}"#, r#""second"}"#, r#""third"}"#]);
    let lane = format!("{endpoint}/lane");
    let report = daemon.until(&lane, |report| report["pending"] == 1 && report["reason"] == "notDue").await;
    assert_eq!(report["waitingForOrder"], 0, "{report}");
}

/// A receiver that fails until it recovers, and is slow then. It records its deliveries and the
/// maximum of concurrent requests.
#[derive(Default)]
struct RecoveringReceiver {
    is_healthy: AtomicBool,
    inside: AtomicUsize,
    most: AtomicUsize,
    took: Mutex<Vec<String>>,
}

impl RecoveringReceiver {
    async fn start() -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let receiver = Arc::new(Self::default());
        let own = receiver.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let own = own.clone();
                tokio::spawn(async move {
                    let mut buffer = Vec::new();
                    while let Some(got) = next_request(&mut stream, &mut buffer).await {
                        let status = own.take(&got.body).await;
                        if stream.write_all(answer(status).as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        (receiver, url)
    }

    async fn take(&self, body: &str) -> u16 {
        if !self.is_healthy.load(Ordering::SeqCst) {
            return 500;
        }
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(inside, Ordering::SeqCst);
        // Time for a concurrent request to arrive, if the lane sends one.
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.took.lock().unwrap().push(body.rsplit(':').next().unwrap().to_owned());
        self.inside.fetch_sub(1, Ordering::SeqCst);
        200
    }
}

#[tokio::test]
async fn unordered_deliveries_go_one_by_one_when_ordering_begins() {
    let data = tempfile::tempdir().unwrap();
    let breaker = [
        ("BALTO__DELIVERY__BREAKER_PROBE_INITIAL", "100ms"),
        ("BALTO__DELIVERY__BREAKER_PROBE_MAX", "100ms"),
    ];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &breaker).await;
    let (receiver, url) = RecoveringReceiver::start().await;
    let retry = json!({"retry": {"schedule": vec!["200ms"; 50]}});
    let lane = lane(&daemon, &url, "a", retry).await;
    post(&daemon, "a", 5).await;
    let tried = |report: &Value| report["consecutiveFailures"].as_u64().is_some_and(|count| count >= 5);
    daemon.until(&lane, tried).await;
    set_ordering(&daemon, lane.strip_suffix("/lane").unwrap(), "endpoint").await;
    // The attempts from before the change have ended, except for the one that may continue.
    daemon.until(&lane, |report| report["waitingForOrder"] == 4 && report["inFlight"] == 0).await;
    receiver.is_healthy.store(true, Ordering::SeqCst);
    daemon.until(&lane, |report| report["pending"] == 0).await;
    assert_eq!(*receiver.took.lock().unwrap(), ["0}", "1}", "2}", "3}", "4}"]);
    assert_eq!(receiver.most.load(Ordering::SeqCst), 1, "deliveries were concurrent");
}

#[tokio::test]
async fn delivery_behind_a_retrying_head_counts_as_overdue() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let before = OffsetDateTime::now_utc().unix_timestamp();
    let (receiver, endpoint) = with_stuck_head(&daemon).await;
    let after = OffsetDateTime::now_utc().unix_timestamp();
    let is_due = |seconds: f64| (before as f64..=after as f64).contains(&seconds);
    oldest_due(&daemon, is_due).await;
    // The age survives a restart, and is reset after the overdue deliveries are sent.
    drop(daemon);
    let daemon = Daemon::start(data.path()).await;
    oldest_due(&daemon, is_due).await;
    let deliveries = daemon.get("/deliveries?status=pending").await;
    let head = deliveries["data"].as_array().unwrap().last().unwrap()["id"].as_str().unwrap().to_owned();
    daemon.post(&format!("/deliveries/{head}/cancel"), "").await;
    receiver.until(4).await;
    daemon.until(&format!("{endpoint}/lane"), |report| report["pending"] == 0).await;
    oldest_due(&daemon, |seconds| seconds == 0.0).await;
}

/// Waits until the metric of the oldest due delivery has such a value.
async fn oldest_due(daemon: &Daemon, wanted: impl Fn(f64) -> bool) {
    daemon.until_metric("balto_oldest_due_timestamp_seconds", "", wanted).await;
}

#[tokio::test]
async fn global_limit_is_distinct_from_the_endpoints_limit() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_in(data.path(), &["--dev"], &[("BALTO__DELIVERY__MAX_IN_FLIGHT", "1")]).await;
    let (_held, url) = silent_receiver().await;
    let other = Receiver::status(200).await;
    let first = lane(&daemon, &url, "hangs", json!({"timeout": "60s"})).await;
    let second = lane(&daemon, &other.url, "waits", json!({})).await;
    post(&daemon, "hangs", 1).await;
    daemon.until(&first, |report| report["inFlight"] == 1).await;
    post(&daemon, "waits", 1).await;
    let report = until_reason(&daemon, &second, "globalLimit").await;
    assert_eq!((&report["inFlight"], &report["pending"]), (&json!(0), &json!(1)), "{report}");
    assert_eq!(daemon.get(&first).await["reason"], Value::Null, "what is under way does not wait");
}

//! Effects of a receiver's status on the delivery, its endpoint and its lane, against the real
//! process.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use crate::support::{Daemon, Receiver, answer};
use serde_json::{Value, json};

fn with_header(status: u16, header: &str) -> String {
    format!("HTTP/1.1 {status} x\r\n{header}\r\ncontent-length: 0\r\n\r\n")
}

/// Registers an endpoint with two attempts and posts one event to it alone; returns the paths of
/// both.
async fn post_to_new_endpoint(daemon: &Daemon, url: &str, kind: &str) -> (String, String) {
    let body = json!({"url": url, "eventTypes": [kind], "timeout": "300ms",
        "retry": {"initial": "10ms", "maxInterval": "20ms", "maxAttempts": 2}});
    let made = daemon.post("/endpoints", &body.to_string()).await;
    let event = daemon.post("/events", &json!({"type": kind, "data": 1}).to_string()).await;
    let path = |kind: &str, value: &Value| format!("/{kind}/{}", value["id"].as_str().unwrap());
    (path("endpoints", &made), path("events", &event))
}

/// The only delivery of an event, with its attempts, once it is settled.
async fn settled(daemon: &Daemon, event: &str) -> Value {
    let done = daemon.until(event, |event| event["deliveries"][0]["status"] != "pending").await;
    daemon.get(&format!("/deliveries/{}", done["deliveries"][0]["id"].as_str().unwrap())).await
}

#[tokio::test]
async fn each_status_has_its_standard_effect() {
    let data = tempfile::tempdir().unwrap();
    let refused = [("BALTO__DELIVERY__REFUSED_STATUSES", "400,418")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &refused).await;
    const NONE: &str = "x-a: b";
    // Status, a header; then the delivery's end, its reason, attempts, and the endpoint's status
    // with its reason.
    let rows = [
        (200, NONE, "delivered", "", 1, "active", ""),
        (202, NONE, "delivered", "", 1, "active", ""),
        (204, "webhook-delivery: disable", "delivered", "", 1, "active", ""),
        (299, NONE, "delivered", "", 1, "active", ""),
        (301, "location: http://127.0.0.1:1/", "dead", "attemptsExhausted", 2, "active", ""),
        (304, NONE, "dead", "attemptsExhausted", 2, "active", ""),
        (308, "location: /", "dead", "attemptsExhausted", 2, "active", ""),
        (400, NONE, "dead", "refused", 1, "active", ""),
        (401, NONE, "dead", "attemptsExhausted", 2, "active", ""),
        (404, NONE, "dead", "attemptsExhausted", 2, "active", ""),
        // On a connection that was used before, 408 ends the connection and not the attempt.
        (408, "connection: close", "dead", "attemptsExhausted", 2, "active", ""),
        (410, NONE, "dead", "gone", 1, "disabled", "gone"),
        (415, NONE, "dead", "attemptsExhausted", 2, "active", ""),
        (418, NONE, "dead", "refused", 1, "active", ""),
        (425, NONE, "dead", "attemptsExhausted", 2, "active", ""),
        (429, NONE, "dead", "attemptsExhausted", 2, "active", ""),
        (429, "retry-after: 0", "dead", "attemptsExhausted", 2, "active", ""),
        (429, "retry-after: 120.5", "dead", "attemptsExhausted", 2, "active", ""),
        (500, NONE, "dead", "attemptsExhausted", 2, "active", ""),
        (500, "webhook-delivery: disable", "dead", "endpointDisabled", 1, "disabled", "requested"),
        (500, "webhook-delivery: abort-message", "dead", "refused", 1, "active", ""),
        (404, "webhook-delivery: abort-message", "dead", "refused", 1, "active", ""),
        (500, "webhook-delivery: dance", "dead", "attemptsExhausted", 2, "active", ""),
        (502, NONE, "dead", "attemptsExhausted", 2, "active", ""),
        (503, "retry-after: Sun, 06 Nov 1994 08:49:37 GMT", "dead", "attemptsExhausted", 2, "active", ""),
        (504, NONE, "dead", "attemptsExhausted", 2, "active", ""),
        (599, NONE, "dead", "attemptsExhausted", 2, "active", ""),
    ];
    for (number, (status, header, end, reason, attempts, endpoint_status, disabled)) in
        rows.iter().enumerate()
    {
        let story = format!("{status} {header}");
        let reply = with_header(*status, header);
        let receiver = Receiver::start(move |_, _| reply.clone()).await;
        let (endpoint, event) = post_to_new_endpoint(&daemon, &receiver.url, &format!("row.{number}")).await;
        let delivery = settled(&daemon, &event).await;
        let reason = if reason.is_empty() { Value::Null } else { json!(reason) };
        assert_eq!((&delivery["status"], &delivery["reason"]), (&json!(end), &reason), "{story}: {delivery}");
        let made = delivery["attempts"].as_array().unwrap();
        assert_eq!((made.len(), receiver.got().len()), (*attempts, *attempts), "{story}: {delivery}");
        for attempt in made {
            let class = if *end == "delivered" { Value::Null } else { json!("status") };
            assert_eq!((&attempt["statusCode"], &attempt["errorClass"]), (&json!(status), &class), "{story}");
        }
        let shown = daemon.until(&endpoint, |shown| shown["status"] == *endpoint_status).await;
        let disabled = if disabled.is_empty() { Value::Null } else { json!(disabled) };
        assert_eq!(shown["disabledReason"], disabled, "{story}: {shown}");
    }
}

#[tokio::test]
async fn operator_gets_an_event_for_a_gone_endpoint_and_resumes_it() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let operator = Receiver::status(204).await;
    let watch = json!({"url": operator.url, "tenant": "balto", "eventTypes": ["balto.endpoint.disabled"]});
    daemon.post("/endpoints", &watch.to_string()).await;
    let asks = with_header(500, "webhook-delivery: disable");
    let rows = [("a", answer(410), "gone", "gone"), ("b", asks, "requested", "endpointDisabled")];
    for (number, (kind, reply, why, dead)) in rows.into_iter().enumerate() {
        let receiver =
            Receiver::start(move |number, _| if number == 0 { reply.clone() } else { answer(200) }).await;
        let (endpoint, event) = post_to_new_endpoint(&daemon, &receiver.url, kind).await;
        let notice: Value = serde_json::from_str(&operator.until(number + 1).await[number].body).unwrap();
        assert_eq!(
            (&notice["type"], &notice["tenant"]),
            (&json!("balto.endpoint.disabled"), &json!("balto"))
        );
        let id = endpoint.rsplit('/').next().unwrap();
        assert_eq!(notice["data"], json!({"endpointId": id, "tenant": "default", "reason": why}));
        let shown = daemon.get(&endpoint).await;
        assert_eq!((&shown["status"], &shown["disabledReason"]), (&json!("disabled"), &json!(why)));
        assert!(shown["disabledAt"].is_string(), "{shown}");
        assert_eq!(settled(&daemon, &event).await["reason"], dead);
        // The disabled endpoint gets no requests, and new deliveries wait until an operator resumes
        // it.
        daemon.post("/events", &json!({"type": kind, "data": 2}).to_string()).await;
        let lane = daemon.until(&format!("{endpoint}/lane"), |lane| lane["pending"] == 1).await;
        assert_eq!((&lane["reason"], receiver.got().len()), (&json!("disabled"), 1), "{lane}");
        let resumed = daemon.post(&format!("{endpoint}/resume"), "").await;
        assert_eq!((&resumed["status"], &resumed["disabledReason"]), (&json!("active"), &Value::Null));
        assert!(receiver.until(2).await[1].body.contains(r#""data":2"#));
    }
}

#[tokio::test]
async fn retry_after_holds_the_lane_in_both_forms_and_is_capped() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let hour = Duration::from_secs(3_600);
    let date = httpdate::fmt_http_date(SystemTime::now() + 2 * hour);
    let rows = [
        (429, "3600".to_owned(), hour),
        (503, "3600".to_owned(), hour),
        (503, date, 2 * hour),
        (429, "99999999999999999999".to_owned(), 24 * hour),
    ];
    for (number, (status, value, wait)) in rows.into_iter().enumerate() {
        let reply = with_header(status, &format!("retry-after: {value}"));
        let receiver = Receiver::start(move |_, _| reply.clone()).await;
        let kind = format!("row.{number}");
        let (endpoint, event) = post_to_new_endpoint(&daemon, &receiver.url, &kind).await;
        let delivery = daemon.until(&event, |event| event["deliveries"][0]["attemptCount"] == 1).await;
        // Later deliveries wait too: the lane is held, not the delivery.
        daemon.post("/events", &json!({"type": kind, "data": 2}).to_string()).await;
        let lane = daemon.until(&format!("{endpoint}/lane"), |lane| lane["reason"] == "retryAfter").await;
        let until = lane["until"].as_str().unwrap();
        for moment in [until, delivery["deliveries"][0]["nextAttemptAt"].as_str().unwrap()] {
            let moment = humantime(moment);
            let off = moment.abs_diff_from(SystemTime::now() + wait);
            assert!(off < Duration::from_secs(60), "{status} {value}: {off:?} off, {lane} {delivery}");
        }
        assert_eq!(receiver.got().len(), 1);
    }
}

#[tokio::test]
async fn lane_continues_after_retry_after_and_others_never_wait() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let noted = times.clone();
    let busy = Receiver::start(move |number, _| {
        noted.lock().unwrap().push(Instant::now());
        if number == 0 { with_header(429, "retry-after: 4") } else { answer(200) }
    });
    let (busy, other) = (busy.await, Receiver::status(200).await);
    let (endpoint, first) = post_to_new_endpoint(&daemon, &busy.url, "busy").await;
    daemon.until(&first, |event| event["deliveries"][0]["attemptCount"] == 1).await;
    let second = daemon.post("/events", r#"{"type":"busy","data":2}"#).await;
    let lane = daemon.until(&format!("{endpoint}/lane"), |lane| lane["reason"] == "retryAfter").await;
    assert_eq!(lane["pending"], 2, "{lane}");
    // By its policy the retry was due after some milliseconds, and the second event immediately.
    let (_, free) = post_to_new_endpoint(&daemon, &other.url, "free").await;
    assert_eq!(settled(&daemon, &free).await["status"], "delivered");
    assert_eq!(busy.got().len(), 1);
    for event in [first, format!("/events/{}", second["id"].as_str().unwrap())] {
        assert_eq!(settled(&daemon, &event).await["status"], "delivered");
    }
    let times = times.lock().unwrap();
    assert!(times.len() == 3 && times[1] - times[0] >= Duration::from_secs(4), "{times:?}");
}

/// Seconds since 1970 of an RFC 3339 time in UTC.
struct Moment(i64);

fn humantime(text: &str) -> Moment {
    let format = time::format_description::well_known::Rfc3339;
    Moment(time::OffsetDateTime::parse(text, &format).unwrap().unix_timestamp())
}

impl Moment {
    fn abs_diff_from(&self, other: SystemTime) -> Duration {
        let other = other.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        Duration::from_secs(self.0.unsigned_abs().abs_diff(other))
    }
}

#[tokio::test]
async fn failure_before_a_status_has_an_error_class() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    // Kept open, so that connections are accepted and never answered.
    let silence = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}/", silence.local_addr().unwrap());
    let plain = Receiver::status(200).await;
    let garbage = Receiver::start(|_, _| "this is not HTTP at all\r\n\r\n".to_owned()).await;
    let endless =
        Receiver::start(|_, _| format!("HTTP/1.1 200 x\r\na: {}\r\n\r\n", "b".repeat(1 << 20))).await;
    let closing = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reset = format!("http://{}/", closing.local_addr().unwrap());
    let closer = tokio::spawn(async move {
        while let Ok((mut stream, _)) = closing.accept().await {
            use tokio::io::AsyncReadExt as _;
            let _read = stream.read(&mut [0; 4096]).await;
        }
    });
    let talker = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain_text = format!("https://{}/", talker.local_addr().unwrap());
    let talking = tokio::spawn(async move {
        while let Ok((mut stream, _)) = talker.accept().await {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let _read = stream.read(&mut [0; 4096]).await;
            let _written = stream.write_all(b"HTTP/1.1 400 x\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rows = [
        ("dns", "http://no-such-host.invalid/".to_owned()),
        ("connect", format!("http://{nobody}/")),
        ("tls", plain_text),
        ("timeout", silent),
        ("reset", reset),
        ("protocol", garbage.url.clone()),
        ("responseTooLarge", endless.url.clone()),
    ];
    for (number, (class, url)) in rows.iter().enumerate() {
        let (_, event) = post_to_new_endpoint(&daemon, url, &format!("row.{number}")).await;
        let delivery = settled(&daemon, &event).await;
        let attempt = &delivery["attempts"][0];
        assert_eq!(
            (&attempt["errorClass"], &attempt["statusCode"]),
            (&json!(class), &Value::Null),
            "{delivery}"
        );
        assert_eq!(
            (&delivery["reason"], delivery["attempts"].as_array().unwrap().len()),
            (&json!("attemptsExhausted"), 2)
        );
    }
    closer.abort();
    talking.abort();
    // An address that was forbidden after the save: the attempt is not repeated and reveals nothing
    // about the host.
    let made =
        daemon.post("/endpoints", &json!({"url": plain.url, "eventTypes": ["late"]}).to_string()).await;
    assert_eq!(made["status"], "active");
    assert_eq!(daemon.terminate(), Some(0));
    let denied = [("BALTO__EGRESS__DENY_NETWORKS", "127.0.0.0/8")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &denied).await;
    let event = daemon.post("/events", r#"{"type":"late","data":1}"#).await;
    let delivery = settled(&daemon, &format!("/events/{}", event["id"].as_str().unwrap())).await;
    assert_eq!(delivery["reason"], "blockedAddress");
    assert_eq!(delivery["attempts"][0]["errorClass"], "blockedAddress");
}

#[tokio::test]
async fn recovered_receiver_gets_the_same_event_and_id_once_more() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::start(|number, _| answer(if number == 0 { 500 } else { 200 })).await;
    let (_, event) = post_to_new_endpoint(&daemon, &receiver.url, "a").await;
    assert_eq!(settled(&daemon, &event).await["status"], "delivered");
    let got = receiver.got();
    assert_eq!(got[0].headers["webhook-id"], got[1].headers["webhook-id"]);
    assert_eq!([&got[0], &got[1]].map(|got| got.headers["balto-attempt"].as_str()), ["1", "2"]);
}

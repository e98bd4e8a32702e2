//! The handshake of CloudEvents' "HTTP 1.1 Web Hooks for Event Delivery", against the real process.
//! `WH-n` are its rules: 3 no redirects, 4 gone, 5 `Retry-After`, 8 the request, 9 consent, 10 its
//! rate, 11 the origin on deliveries, 12 the callback, 13 no consent, 14 when it is made.

mod callbacks;

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Daemon, ReceivedRequest, Receiver, answer};

/// Short pauses between requests for consent.
const SHORT_PAUSES: [(&str, &str); 2] =
    [("BALTO__HANDSHAKE__RETRY_INITIAL", "100ms"), ("BALTO__HANDSHAKE__RETRY_MAX_INTERVAL", "200ms")];
const ORIGIN: &str = "events.example.com";
const PUBLIC: (&str, &str) = ("BALTO__SERVER__PUBLIC_URL", "https://webhooks.example.com/balto/");

async fn start_soon(data: &Path) -> Daemon {
    Daemon::start_in(data, &["--dev"], &SHORT_PAUSES).await
}

/// A response with these header lines.
fn reply(status: u16, lines: &[&str]) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!("HTTP/1.1 {status} x\r\n{lines}content-length: 0\r\n\r\n")
}

fn grant() -> String {
    reply(200, &["WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: *"])
}

/// Answers requests for consent by the rule, and accepts every delivery.
async fn receiver(rule: impl Fn(&ReceivedRequest) -> String + Send + Sync + 'static) -> Receiver {
    Receiver::start(move |_, got| if got.method == "OPTIONS" { rule(got) } else { answer(204) }).await
}

fn requests_with(receiver: &Receiver, method: &str) -> Vec<ReceivedRequest> {
    receiver.got().into_iter().filter(|got| got.method == method).collect()
}

fn handshake_requests(receiver: &Receiver) -> Vec<ReceivedRequest> {
    requests_with(receiver, "OPTIONS")
}

fn delivered(receiver: &Receiver) -> Vec<ReceivedRequest> {
    requests_with(receiver, "POST")
}

async fn until(what: &str, wanted: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + crate::support::WAIT_MAX;
    while !wanted() {
        assert!(std::time::Instant::now() < deadline, "timeout: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// The path of a callback, below `/v1`.
fn callback(request: &ReceivedRequest) -> String {
    let url = &request.headers["webhook-request-callback"];
    let (base, path) = url.split_once("/v1/").unwrap();
    assert_eq!(base, "https://webhooks.example.com/balto", "{url}");
    format!("/{path}")
}

/// Registers an endpoint for events of one type; returns its path.
async fn register(daemon: &Daemon, url: &str, kind: &str, handshake: Value, more: Value) -> String {
    let mut body = json!({"url": url, "eventTypes": [kind], "handshake": handshake});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let made = daemon.post("/endpoints", &body.to_string()).await;
    format!("/endpoints/{}", made["id"].as_str().unwrap())
}

async fn post(daemon: &Daemon, kind: &str) -> String {
    let event = daemon.post("/events", &json!({"type": kind, "data": 1}).to_string()).await;
    format!("/events/{}", event["id"].as_str().unwrap())
}

async fn patch(daemon: &Daemon, endpoint: &str, change: Value) -> Value {
    let (status, shown, _) = daemon.call("PATCH", endpoint, &[], &change.to_string()).await;
    assert_eq!(status, 200, "{change}: {shown}");
    shown
}

async fn lane_waits(daemon: &Daemon, endpoint: &str, reason: &str) -> Value {
    daemon.until(&format!("{endpoint}/lane"), |lane| lane["reason"] == reason).await
}

async fn until_consented(daemon: &Daemon, endpoint: &str) -> Value {
    let shown = daemon.until(endpoint, |shown| shown["handshake"]["status"] == "consented").await;
    shown["handshake"].clone()
}

async fn until_refused(daemon: &Daemon, endpoint: &str) -> Value {
    let shown = daemon.until(endpoint, |shown| shown["handshake"]["requests"] != 0).await;
    shown["handshake"].clone()
}

#[tokio::test]
async fn handshake_asks_the_exact_url_and_deliveries_name_the_origin() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let target = receiver(|got| {
        // A receiver that knows its sender returns the origin, here in upper case.
        let origin = got.headers["webhook-request-origin"].to_uppercase();
        reply(
            200,
            &[&format!("WebHook-Allowed-Origin: {origin}"), "WebHook-Allowed-Rate: 6000", "Allow: POST"],
        )
    })
    .await;
    let url = format!("{}/a%2Fb?x=1&y=%20z", target.url);
    let handshake = json!({"origin": "Events.Example.com", "rate": 120});
    let more = json!({"headers": {"Authorization": "Bearer abc"}, "sensitiveHeaders": {"x-key": "secret"}});
    let endpoint = register(&daemon, &url, "a", handshake, more).await;
    let shown = until_consented(&daemon, &endpoint).await;
    let request = handshake_requests(&target).remove(0);
    assert_eq!(request.target, "/hook/a%2Fb?x=1&y=%20z", "WH-8");
    assert_eq!(
        (&*request.headers["webhook-request-origin"], &*request.headers["webhook-request-rate"]),
        (ORIGIN, "120")
    );
    for name in [
        "webhook-request-callback",
        "authorization",
        "x-key",
        "content-type",
        "webhook-id",
        "webhook-signature",
    ] {
        assert!(!request.headers.contains_key(name), "WH-8 {name}: {request:?}");
    }
    assert_eq!(request.body, "");
    let expected = json!({"origin": ORIGIN, "rate": 120, "callback": false, "status": "consented",
        "consentedAt": shown["consentedAt"], "allowedRate": 6_000, "requests": 1,
        "lastRequestAt": shown["lastRequestAt"], "lastAnswer": "agreed", "nextRequestAt": null});
    assert_eq!(shown, expected);
    assert!(shown["consentedAt"].is_string() && shown["lastRequestAt"].is_string());
    for number in 1..=2 {
        let event = post(&daemon, "a").await;
        daemon.until(&event, |event| event["status"] == "delivered").await;
        let got = &delivered(&target)[number - 1];
        assert_eq!(
            (&*got.headers["webhook-request-origin"], &*got.target),
            (ORIGIN, &*request.target),
            "WH-11"
        );
        assert_eq!(got.headers["authorization"], "Bearer abc");
    }
    assert_eq!(handshake_requests(&target).len(), 1, "WH-14: a consented endpoint is not asked again");
    // An endpoint without a handshake sends no origin.
    let plain = Receiver::status(204).await;
    let body = json!({"url": plain.url, "eventTypes": ["b"]});
    let made = daemon.post("/endpoints", &body.to_string()).await;
    assert_eq!(made["handshake"], Value::Null);
    post(&daemon, "b").await;
    let got = plain.until(1).await;
    assert!(
        got.iter().all(|got| got.method == "POST" && !got.headers.contains_key("webhook-request-origin"))
    );
}

/// Rule, status, header lines; then the granted rate (null: any), or a part of the error.
type Row<'a> = (&'a str, u16, &'a [&'a str], Result<Value, &'a str>);

#[tokio::test]
async fn only_an_explicit_grant_is_consent() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    const OURS: &str = "WebHook-Allowed-Origin: events.example.com";
    const ANY: &str = "WebHook-Allowed-Origin: *";
    const ALL: &str = "WebHook-Allowed-Rate: *";
    let rows: [Row; 25] = [
        ("WH-9", 200, &[OURS, ALL], Ok(Value::Null)),
        ("WH-9", 204, &[ANY, ALL], Ok(Value::Null)),
        ("WH-9", 200, &["webhook-allowed-origin: EVENTS.example.COM", ALL], Ok(Value::Null)),
        ("WH-9", 405, &[OURS, ALL], Ok(Value::Null)),
        ("WH-9", 500, &[ANY, ALL], Ok(Value::Null)),
        ("WH-10", 200, &[OURS, "WebHook-Allowed-Rate: 7"], Ok(json!(7))),
        ("WH-10", 200, &[OURS, "WebHook-Allowed-Rate: 99999999999999999999"], Ok(json!(u32::MAX))),
        ("WH-10", 200, &[OURS], Ok(json!(120))),
        ("WH-13", 405, &[], Err("status 405: no WebHook-Allowed-Origin")),
        ("WH-9", 200, &[], Err("status 200: no WebHook-Allowed-Origin")),
        ("WH-9", 200, &["Allow: POST, OPTIONS"], Err("status 200: no WebHook-Allowed-Origin")),
        ("WH-9", 200, &["Access-Control-Allow-Origin: *", ALL], Err("status 200: no WebHook-Allowed-Origin")),
        ("WH-9", 200, &[ALL], Err("status 200: no WebHook-Allowed-Origin")),
        ("WH-9", 200, &["WebHook-Allowed-Origin: other.example.com", ALL], Err("neither our origin")),
        ("WH-9", 200, &["WebHook-Allowed-Origin: example.com", ALL], Err("neither our origin")),
        ("WH-9", 200, &["WebHook-Allowed-Origin: ", ALL], Err("neither our origin")),
        ("WH-9", 200, &["WebHook-Allowed-Origin: other.example.com", OURS, ALL], Err("neither our origin")),
        ("WH-9", 200, &["WebHook-Allowed-Origin: \u{e9}", ALL], Err("neither our origin")),
        ("WH-10", 200, &[OURS, "WebHook-Allowed-Rate: 0"], Err("WebHook-Allowed-Rate is 0")),
        ("WH-10", 200, &[OURS, "WebHook-Allowed-Rate: -1"], Err("neither a positive number")),
        ("WH-10", 200, &[OURS, "WebHook-Allowed-Rate: abc"], Err("neither a positive number")),
        (
            "WH-10",
            200,
            &[OURS, "WebHook-Allowed-Rate: 5", "WebHook-Allowed-Rate: 6"],
            Err("neither a positive number"),
        ),
        ("WH-3", 301, &["location: /other", OURS, ALL], Err("status 301: a redirect is not followed")),
        ("WH-3", 308, &["location: /other"], Err("status 308: a redirect is not followed")),
        ("WH-13", 503, &[], Err("status 503: no WebHook-Allowed-Origin")),
    ];
    for (number, (rule, status, lines, outcome)) in rows.into_iter().enumerate() {
        let (story, kind) = (format!("{rule} {status} {lines:?}"), format!("row.{number}"));
        let message = reply(status, lines);
        let target = receiver(move |_| message.clone()).await;
        let handshake = json!({"origin": ORIGIN, "rate": 120});
        let endpoint = register(&daemon, &target.url, &kind, handshake, json!({})).await;
        let event = post(&daemon, &kind).await;
        match outcome {
            Ok(rate) => {
                assert_eq!(until_consented(&daemon, &endpoint).await["allowedRate"], rate, "{story}");
                daemon.until(&event, |event| event["status"] == "delivered").await;
            }
            Err(words) => {
                let shown = until_refused(&daemon, &endpoint).await;
                assert_eq!(
                    (&shown["status"], &shown["consentedAt"]),
                    (&json!("pending"), &Value::Null),
                    "{story}"
                );
                assert!(shown["lastAnswer"].as_str().unwrap().contains(words), "{story}: {shown}");
                assert!(shown["nextRequestAt"].is_string(), "{story}: {shown}");
                let lane = lane_waits(&daemon, &endpoint, "handshake").await;
                assert_eq!((&lane["pending"], &lane["until"]), (&json!(1), &Value::Null), "{story}: {lane}");
                assert_eq!(
                    daemon.get(&event).await["deliveries"][0]["attemptCount"],
                    0,
                    "{story}: a handshake is not an attempt"
                );
                assert_eq!((handshake_requests(&target).len(), delivered(&target).len()), (1, 0), "{story}");
            }
        }
        assert!(
            handshake_requests(&target).iter().all(|got| got.target == "/hook"),
            "{story}: a redirect was followed"
        );
    }
    let metrics = reqwest::get(format!("{}/metrics", daemon.ops)).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("balto_handshakes_total{outcome=\"agreed\"} 8"), "{metrics}");
    assert!(metrics.contains("balto_handshakes_total{outcome=\"refused\"} 17"), "{metrics}");
}

#[tokio::test]
async fn receiver_is_asked_until_it_agrees_and_gets_the_backlog() {
    let data = tempfile::tempdir().unwrap();
    let daemon = start_soon(data.path()).await;
    let silence = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}/", silence.local_addr().unwrap());
    let hanging = register(&daemon, &silent, "hangs", json!({}), json!({"timeout": "100ms"})).await;
    let target = Receiver::start(|number, got| match (&*got.method, number) {
        ("OPTIONS", 0) => answer(405),
        ("OPTIONS", 1) => "this is not HTTP\r\n\r\n".to_owned(),
        ("OPTIONS", _) => grant(),
        _ => answer(204),
    })
    .await;
    let endpoint = register(&daemon, &target.url, "a", json!({}), json!({"ordering": "endpoint"})).await;
    let events = [post(&daemon, "a").await, post(&daemon, "a").await];
    let shown = until_consented(&daemon, &endpoint).await;
    assert_eq!((&shown["requests"], &shown["origin"]), (&json!(3), &json!("localhost")));
    for event in events {
        daemon.until(&event, |event| event["status"] == "delivered").await;
    }
    // A receiver that never responds is asked again as well, and blocks no other endpoint.
    let shown = daemon.until(&hanging, |shown| shown["handshake"]["requests"].as_u64().unwrap() > 1).await;
    assert_eq!(shown["handshake"]["lastAnswer"], "timeout: no reply within the timeout");
}

#[tokio::test]
async fn forbidden_address_gets_no_handshake_request() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let target = receiver(|_| answer(405)).await;
    let endpoint = register(&daemon, &target.url, "a", json!({}), json!({})).await;
    until_refused(&daemon, &endpoint).await;
    let waiting = post(&daemon, "a").await;
    assert_eq!(daemon.terminate(), Some(0));
    let denied = [SHORT_PAUSES[0], SHORT_PAUSES[1], ("BALTO__EGRESS__DENY_NETWORKS", "127.0.0.0/8")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &denied).await;
    let (status, ..) = daemon.call("POST", &format!("{endpoint}/handshake"), &[], "").await;
    assert_eq!(status, 202);
    let blocked = |shown: &Value| {
        shown["handshake"]["lastAnswer"].as_str().is_some_and(|words| words.starts_with("blockedAddress"))
    };
    let shown = daemon.until(&endpoint, blocked).await;
    let words = shown["handshake"]["lastAnswer"].as_str().unwrap();
    assert!(!words.contains("127.0.0.1"), "not a word about what is there: {words}");
    assert_eq!(target.got().len(), 1, "only the delivery from before the change");
    assert_eq!(daemon.get(&waiting).await["status"], "pending");
}

#[tokio::test]
async fn stricter_of_both_rates_applies() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    // Granted per minute; the endpoint's own rate; whether the second delivery waits for the rate.
    let rows = [
        ("1", Value::Null, true),
        ("1", json!({"limit": 1000, "per": "1s"}), true),
        ("1000000", json!({"limit": 1, "per": "24h", "burst": 1}), true),
        ("*", json!({"limit": 1, "per": "24h", "burst": 1}), true),
        ("1000000", Value::Null, false),
        ("*", json!({"limit": 1000, "per": "1s"}), false),
    ];
    for (number, (allowed, own, waits)) in rows.into_iter().enumerate() {
        let (story, kind) = (format!("{allowed} and {own}"), format!("row.{number}"));
        let message = reply(200, &["WebHook-Allowed-Origin: *", &format!("WebHook-Allowed-Rate: {allowed}")]);
        let target = receiver(move |_| message.clone()).await;
        let endpoint = register(&daemon, &target.url, &kind, json!({}), json!({"rateLimit": own})).await;
        until_consented(&daemon, &endpoint).await;
        for _ in 0..3 {
            post(&daemon, &kind).await;
        }
        if waits {
            let lane = lane_waits(&daemon, &endpoint, "rate").await;
            assert!(lane["until"].is_string(), "{story}: {lane}");
            daemon.until(&format!("{endpoint}/lane"), |lane| lane["pending"] == 2).await;
            assert_eq!(delivered(&target).len(), 1, "WH-10 {story}");
        } else {
            daemon.until(&format!("{endpoint}/lane"), |lane| lane["pending"] == 0).await;
            assert_eq!(delivered(&target).len(), 3, "WH-10 {story}");
        }
    }
}

#[tokio::test]
async fn new_url_origin_or_rate_repeats_the_handshake() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_in(data.path(), &["--dev"], &[PUBLIC]).await;
    let first = receiver(|_| grant()).await;
    let second = receiver(|_| answer(405)).await;
    let handshake = json!({"origin": ORIGIN, "callback": true});
    let endpoint = register(&daemon, &first.url, "a", handshake, json!({})).await;
    until_consented(&daemon, &endpoint).await;
    for change in [
        json!({"description": "x", "rateLimit": {"limit": 1000}}),
        json!({"handshake": {"callback": false}}),
        json!({"handshake": {"callback": true}}),
        json!({"handshake": {"origin": ORIGIN.to_uppercase()}}),
        json!({"url": first.url}),
    ] {
        assert_eq!(
            patch(&daemon, &endpoint, change.clone()).await["handshake"]["status"],
            "consented",
            "{change}"
        );
    }
    for (number, change) in
        [json!({"handshake": {"rate": 60}}), json!({"handshake": {"origin": "b.example"}})]
            .into_iter()
            .enumerate()
    {
        let shown = patch(&daemon, &endpoint, change).await;
        assert_eq!(
            (&shown["handshake"]["status"], &shown["handshake"]["requests"]),
            (&json!("pending"), &json!(0))
        );
        until_consented(&daemon, &endpoint).await;
        assert_eq!(handshake_requests(&first).len(), number + 2);
    }
    let last = handshake_requests(&first).pop().unwrap();
    assert_eq!(
        (&*last.headers["webhook-request-origin"], &*last.headers["webhook-request-rate"]),
        ("b.example", "60")
    );
    let stale = callback(&last);
    let shown = patch(&daemon, &endpoint, json!({"url": second.url})).await;
    assert_eq!(shown["handshake"]["status"], "pending");
    let event = post(&daemon, "a").await;
    until_refused(&daemon, &endpoint).await;
    lane_waits(&daemon, &endpoint, "handshake").await;
    assert_eq!(daemon.call("GET", &stale, &[], "").await.0, 404, "another receiver's callback");
    assert_eq!((delivered(&first).len(), delivered(&second).len()), (0, 0));
    // Back at the first URL, the earlier consent is void.
    patch(&daemon, &endpoint, json!({"url": first.url})).await;
    daemon.until(&event, |event| event["status"] == "delivered").await;
    assert_eq!((handshake_requests(&first).len(), delivered(&first).len()), (4, 1));
    // Without a handshake no request for consent is sent.
    let shown = patch(&daemon, &endpoint, json!({"url": second.url, "handshake": null})).await;
    assert_eq!(shown["handshake"], Value::Null);
    daemon.until(&post(&daemon, "a").await, |event| event["status"] == "delivered").await;
    assert!(!delivered(&second)[0].headers.contains_key("webhook-request-origin"));
}

#[tokio::test]
async fn operator_can_repeat_the_handshake_unless_paused() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let target = receiver(|_| answer(405)).await;
    let endpoint = register(&daemon, &target.url, "a", json!({}), json!({})).await;
    until_refused(&daemon, &endpoint).await;
    let ask = format!("{endpoint}/handshake");
    let shown = daemon.post(&ask, "").await;
    assert_eq!(
        (&shown["handshake"]["requests"], &shown["handshake"]["lastAnswer"]),
        (&json!(0), &Value::Null)
    );
    until("a second request for consent", || handshake_requests(&target).len() == 2).await;
    until_refused(&daemon, &endpoint).await;
    daemon.post(&format!("{endpoint}/pause"), "").await;
    let paused = patch(&daemon, &endpoint, json!({"url": format!("{}?2", target.url)})).await;
    assert_eq!(paused["handshake"]["nextRequestAt"], Value::Null);
    post(&daemon, "a").await;
    lane_waits(&daemon, &endpoint, "paused").await;
    let plain = daemon.post("/endpoints", &json!({"url": target.url, "eventTypes": ["b"]}).to_string()).await;
    for (path, status) in [
        (ask.clone(), 409),
        (format!("/endpoints/{}/handshake", plain["id"].as_str().unwrap()), 409),
        ("/endpoints/ep_nobody/handshake".to_owned(), 404),
    ] {
        assert_eq!(daemon.call("POST", &path, &[], "").await.0, status, "{path}");
    }
    assert_eq!(handshake_requests(&target).len(), 2, "the paused endpoint got a request");
    daemon.post(&format!("{endpoint}/resume"), "").await;
    until("a request after the resume", || {
        handshake_requests(&target).iter().any(|got| got.target.ends_with("?2"))
    })
    .await;
    lane_waits(&daemon, &endpoint, "handshake").await;
}

#[tokio::test]
async fn repeated_handshake_revokes_consent_until_a_new_grant() {
    let data = tempfile::tempdir().unwrap();
    let daemon = start_soon(data.path()).await;
    // Grants, then refuses, then grants again.
    let target = Receiver::start(|number, got| match (&*got.method, number) {
        ("OPTIONS", 1 | 2) => answer(403),
        ("OPTIONS", _) => grant(),
        _ => answer(204),
    })
    .await;
    let endpoint = register(&daemon, &target.url, "a", json!({}), json!({})).await;
    until_consented(&daemon, &endpoint).await;
    let shown = daemon.post(&format!("{endpoint}/handshake"), "").await;
    assert_eq!(shown["handshake"]["status"], "pending");
    let event = post(&daemon, "a").await;
    daemon.until(&event, |event| event["status"] == "delivered").await;
    let order: Vec<_> = target.got().into_iter().map(|got| got.method).collect();
    assert_eq!(order, ["OPTIONS", "OPTIONS", "OPTIONS", "OPTIONS", "POST"]);
}

#[tokio::test]
async fn receiver_that_never_agrees_is_disabled_as_failing() {
    let data = tempfile::tempdir().unwrap();
    let environment = [SHORT_PAUSES[0], SHORT_PAUSES[1], ("BALTO__DELIVERY__DISABLE_AFTER", "1s")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    let operator = Receiver::status(204).await;
    let watch = json!({"url": operator.url, "tenant": "balto", "eventTypes": ["balto.endpoint.disabled"]});
    daemon.post("/endpoints", &watch.to_string()).await;
    let stubborn = receiver(|_| answer(405)).await;
    let endpoint = register(&daemon, &stubborn.url, "a", json!({}), json!({})).await;
    let shown = daemon.until(&endpoint, |shown| shown["status"] == "disabled").await;
    assert_eq!(
        (&shown["disabledReason"], &shown["handshake"]["nextRequestAt"]),
        (&json!("failing"), &Value::Null)
    );
    let notice: Value = serde_json::from_str(&operator.until(1).await[0].body).unwrap();
    assert_eq!(notice["data"]["reason"], "failing");
    let count = handshake_requests(&stubborn).len();
    assert!(count >= 2, "it was disabled after the first request");
    let resumed = daemon.post(&format!("{endpoint}/resume"), "").await;
    assert_eq!((&resumed["status"], &resumed["handshake"]["requests"]), (&json!("active"), &json!(0)));
    until("a request after the resume", || handshake_requests(&stubborn).len() > count).await;
    // An endpoint that answered 410 is not asked again.
    let gone = receiver(|_| answer(410)).await;
    let endpoint = register(&daemon, &gone.url, "b", json!({}), json!({})).await;
    let shown = daemon.until(&endpoint, |shown| shown["status"] == "disabled").await;
    assert_eq!((&shown["disabledReason"], handshake_requests(&gone).len()), (&json!("gone"), 1), "WH-4");
}

#[tokio::test]
async fn wait_for_consent_ends_by_disabling_the_endpoint() {
    let data = tempfile::tempdir().unwrap();
    let environment = [SHORT_PAUSES[0], SHORT_PAUSES[1], ("BALTO__DELIVERY__DISABLE_AFTER", "1s")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    let target = receiver(|_| answer(405)).await;
    let retry = json!({"retry": {"maxAge": "1s"}});
    let endpoint = register(&daemon, &target.url, "a", json!({}), retry).await;
    let event = post(&daemon, "a").await;
    // By then the delivery is older than its policy allows, and still pending.
    daemon.until(&endpoint, |shown| shown["status"] == "disabled").await;
    assert_eq!(daemon.get("/dead-letters?reason=maxAge").await["data"], json!([]));
    // A disabled endpoint gets no attempts: the delivery dies after the same time.
    daemon.until(&event, |event| event["status"] == "failed").await;
    let letters = daemon.get("/dead-letters").await;
    assert_eq!(
        (&letters["data"][0]["reason"], &letters["data"][0]["attemptCount"]),
        (&json!("endpointDisabled"), &json!(0))
    );
    assert_eq!(delivered(&target).len(), 0);
}

#[tokio::test]
async fn retry_after_delays_the_next_handshake_request() {
    let data = tempfile::tempdir().unwrap();
    let daemon = start_soon(data.path()).await;
    let target = receiver(|_| reply(429, &["retry-after: 3600"])).await;
    let endpoint = register(&daemon, &target.url, "a", json!({}), json!({})).await;
    let shown = until_refused(&daemon, &endpoint).await;
    let seconds = |name: &str| {
        let format = time::format_description::well_known::Rfc3339;
        time::OffsetDateTime::parse(shown[name].as_str().unwrap(), &format).unwrap().unix_timestamp()
    };
    assert_eq!(seconds("nextRequestAt") - seconds("lastRequestAt"), 3_600, "WH-5 {shown}");
}

//! The handshake of CloudEvents' "HTTP 1.1 Web Hooks for Event Delivery", against the real process. `WH-n` are its rules:
//! 3 no redirects, 4 gone, 5 `Retry-After`, 8 the request, 9 consent, 10 its rate, 11 the origin on deliveries, 12 the
//! callback, 13 no consent, 14 when it is made.

use std::path::Path;

use crate::support::{Daemon, Got, Receiver, answer};
use serde_json::{Value, json};

/// Asks again soon, where the receiver does not agree.
const SOON: [(&str, &str); 2] =
    [("BALTO__HANDSHAKE__RETRY_INITIAL", "100ms"), ("BALTO__HANDSHAKE__RETRY_MAX_INTERVAL", "200ms")];
const ORIGIN: &str = "events.example.com";

async fn start_soon(data: &Path) -> Daemon {
    Daemon::start_in(data, &["--dev"], &SOON).await
}

/// An answer with these header lines.
fn reply(status: u16, lines: &[&str]) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!("HTTP/1.1 {status} x\r\n{lines}content-length: 0\r\n\r\n")
}

fn agree() -> String {
    reply(200, &["WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: *"])
}

/// Answers requests for consent by the rule, and takes every delivery.
async fn receiver(rule: impl Fn(&Got) -> String + Send + Sync + 'static) -> Receiver {
    Receiver::start(move |_, got| if got.method == "OPTIONS" { rule(got) } else { answer(204) }).await
}

fn of(receiver: &Receiver, method: &str) -> Vec<Got> {
    receiver.got().into_iter().filter(|got| got.method == method).collect()
}

fn asked(receiver: &Receiver) -> Vec<Got> {
    of(receiver, "OPTIONS")
}

fn delivered(receiver: &Receiver) -> Vec<Got> {
    of(receiver, "POST")
}

async fn until(what: &str, wanted: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while !wanted() {
        assert!(std::time::Instant::now() < deadline, "it does not come to this: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Registers an endpoint for events of one type; gives its path.
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

async fn consented(daemon: &Daemon, endpoint: &str) -> Value {
    let shown = daemon.until(endpoint, |shown| shown["handshake"]["status"] == "consented").await;
    shown["handshake"].clone()
}

async fn refused(daemon: &Daemon, endpoint: &str) -> Value {
    let shown = daemon.until(endpoint, |shown| shown["handshake"]["requests"] != 0).await;
    shown["handshake"].clone()
}

#[tokio::test]
async fn the_exact_url_is_asked_and_every_delivery_names_who_asked() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let target = receiver(|got| {
        // A receiver that knows its sender echoes it, in a case of its own.
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
    let shown = consented(&daemon, &endpoint).await;
    let request = asked(&target).remove(0);
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
    assert_eq!(asked(&target).len(), 1, "WH-14: once is enough");
    // Who does not ask names nobody.
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

/// Rule, status, header lines; then the rate agreed to (null: any), or what is said of the answer.
type Row<'a> = (&'a str, u16, &'a [&'a str], Result<Value, &'a str>);

#[tokio::test]
async fn only_a_clear_yes_is_consent() {
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
        let said = reply(status, lines);
        let target = receiver(move |_| said.clone()).await;
        let handshake = json!({"origin": ORIGIN, "rate": 120});
        let endpoint = register(&daemon, &target.url, &kind, handshake, json!({})).await;
        let event = post(&daemon, &kind).await;
        match outcome {
            Ok(rate) => {
                assert_eq!(consented(&daemon, &endpoint).await["allowedRate"], rate, "{story}");
                daemon.until(&event, |event| event["status"] == "delivered").await;
            }
            Err(words) => {
                let shown = refused(&daemon, &endpoint).await;
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
                    daemon.get(&event).await["deliveries"][0]["attempts"],
                    0,
                    "{story}: it costs no attempt"
                );
                assert_eq!((asked(&target).len(), delivered(&target).len()), (1, 0), "{story}");
            }
        }
        assert!(asked(&target).iter().all(|got| got.target == "/hook"), "{story}: a redirect was followed");
    }
    let metrics = reqwest::get(format!("{}/metrics", daemon.ops)).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("balto_handshakes_total{outcome=\"agreed\"} 8"), "{metrics}");
    assert!(metrics.contains("balto_handshakes_total{outcome=\"refused\"} 17"), "{metrics}");
}

#[tokio::test]
async fn a_receiver_is_asked_again_until_it_agrees_and_then_gets_what_waited() {
    let data = tempfile::tempdir().unwrap();
    let daemon = start_soon(data.path()).await;
    let silence = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}/", silence.local_addr().unwrap());
    let hanging = register(&daemon, &silent, "hangs", json!({}), json!({"timeout": "100ms"})).await;
    let target = Receiver::start(|number, got| match (&*got.method, number) {
        ("OPTIONS", 0) => answer(405),
        ("OPTIONS", 1) => "this is not HTTP\r\n\r\n".to_owned(),
        ("OPTIONS", _) => agree(),
        _ => answer(204),
    })
    .await;
    let endpoint = register(&daemon, &target.url, "a", json!({}), json!({"ordering": "endpoint"})).await;
    let events = [post(&daemon, "a").await, post(&daemon, "a").await];
    let shown = consented(&daemon, &endpoint).await;
    assert_eq!((&shown["requests"], &shown["origin"]), (&json!(3), &json!("localhost")));
    for event in events {
        daemon.until(&event, |event| event["status"] == "delivered").await;
    }
    // One that never answers is asked again as well, and keeps nobody.
    let shown = daemon.until(&hanging, |shown| shown["handshake"]["requests"].as_u64().unwrap() > 1).await;
    assert_eq!(shown["handshake"]["lastAnswer"], "timeout: no reply within the timeout");
}

#[tokio::test]
async fn a_forbidden_address_is_not_asked() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let target = receiver(|_| answer(405)).await;
    let endpoint = register(&daemon, &target.url, "a", json!({}), json!({})).await;
    refused(&daemon, &endpoint).await;
    let waiting = post(&daemon, "a").await;
    assert_eq!(daemon.terminate(), Some(0));
    let denied = [SOON[0], SOON[1], ("BALTO__EGRESS__DENY_NETWORKS", "127.0.0.0/8")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &denied).await;
    let (status, ..) = daemon.call("POST", &format!("{endpoint}/handshake"), &[], "").await;
    assert_eq!(status, 202);
    let blocked = |shown: &Value| {
        shown["handshake"]["lastAnswer"].as_str().is_some_and(|words| words.starts_with("blockedAddress"))
    };
    let shown = daemon.until(&endpoint, blocked).await;
    let words = shown["handshake"]["lastAnswer"].as_str().unwrap();
    assert!(!words.contains("127.0.0.1"), "not a word about what is there: {words}");
    assert_eq!(target.got().len(), 1, "only the one from before");
    assert_eq!(daemon.get(&waiting).await["status"], "pending");
}

/// The path of a callback, below `/v1`.
fn callback(request: &Got) -> String {
    let url = &request.headers["webhook-request-callback"];
    let (base, path) = url.split_once("/v1/").unwrap();
    assert_eq!(base, "https://webhooks.example.com/balto", "{url}");
    format!("/{path}")
}

/// Method, headers and body; then the rate that was agreed to.
type Call<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, Value);

const PUBLIC: (&str, &str) = ("BALTO__SERVER__PUBLIC_URL", "https://webhooks.example.com/balto/");

#[tokio::test]
async fn a_receiver_may_agree_later_by_get_or_post_and_each_callback_is_good_once() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_in(data.path(), &["--dev"], &[PUBLIC]).await;
    let form = ("content-type", "application/x-www-form-urlencoded");
    let rate = |rate| ("webhook-allowed-rate", rate);
    // Without the header it is the rate that was asked for.
    let rows: [Call; 4] = [
        ("GET", &[], "", json!(120)),
        ("POST", &[rate("7")], "", json!(7)),
        ("POST", &[form], "any=thing", json!(120)),
        ("GET", &[rate("*")], "", Value::Null),
    ];
    let mut used = Vec::new();
    for (number, (method, headers, body, agreed)) in rows.into_iter().enumerate() {
        let kind = format!("row.{number}");
        let target = receiver(|_| answer(404)).await;
        let handshake = json!({"origin": ORIGIN, "rate": 120, "callback": true});
        let endpoint = register(&daemon, &target.url, &kind, handshake, json!({})).await;
        refused(&daemon, &endpoint).await;
        let event = post(&daemon, &kind).await;
        let path = callback(&asked(&target)[0]);
        let token = path.rsplit_once('.').unwrap().1;
        assert_eq!(token.len(), 64, "WH-12: 256 bits");
        assert_eq!(delivered(&target).len(), 0);
        for bad in ["0", "-1", "abc", ""] {
            let (status, problem, _) = daemon.call(method, &path, &[rate(bad)], "").await;
            assert_eq!(
                (status, &problem["errors"][0]["header"]),
                (422, &json!("webhook-allowed-rate")),
                "{bad:?}: {problem}"
            );
        }
        // A preview or a scanner looks at a link without opening it.
        let (status, _, sent) = daemon.call("HEAD", &path, headers, "").await;
        assert_eq!((status, sent["allow"].as_str()), (405, "GET, POST"));
        assert_eq!(daemon.get(&endpoint).await["handshake"]["status"], "pending");
        let (status, answer, sent) = daemon.call(method, &path, headers, body).await;
        assert_eq!((status, &answer), (200, &json!({"status": "consented"})), "WH-12 {method} {headers:?}");
        assert_eq!(sent["cache-control"], "no-store");
        let shown = daemon.get(&endpoint).await["handshake"].clone();
        assert_eq!(
            (&shown["status"], &shown["allowedRate"]),
            (&json!("consented"), &agreed),
            "{method} {headers:?}"
        );
        daemon.until(&event, |event| event["status"] == "delivered").await;
        assert_eq!(delivered(&target)[0].headers["webhook-request-origin"], ORIGIN, "WH-11");
        used.push((endpoint, path));
    }
    // Used ones, changed ones, made-up ones: all get one answer, which says nothing of what exists.
    let (endpoint, path) = used.remove(0);
    let id = endpoint.rsplit('/').next().unwrap();
    let zeros = "0".repeat(64);
    let forged = [
        path.clone(),
        path[..path.len() - 1].to_owned() + "x",
        path.to_uppercase().replace("/HANDSHAKES", "/handshakes"),
        format!("/handshakes/{id}.{zeros}"),
        format!("/handshakes/{id}."),
        format!("/handshakes/{id}"),
        format!("/handshakes/ep_nobody.{zeros}"),
        "/handshakes/..".to_owned() + &zeros,
        "/handshakes/%00.%C3%A9".to_owned(),
        format!("/handshakes/{}.{}", "x".repeat(5_000), "y".repeat(5_000)),
        path.replace(id, used[0].0.rsplit('/').next().unwrap()),
    ];
    let (_, expected, _) = daemon.call("GET", &format!("/handshakes/{id}.{zeros}"), &[], "").await;
    for forged in forged {
        for (method, headers) in
            [("GET", &[][..]), ("POST", &[]), ("POST", &[rate("0")]), ("POST", &[rate("9")])]
        {
            let (status, problem, _) = daemon.call(method, &forged, headers, "").await;
            assert_eq!((status, &problem), (404, &expected), "WH-12 {method} {forged}");
        }
    }
    assert_eq!(
        daemon.get(&endpoint).await["handshake"]["allowedRate"],
        120,
        "a used callback changed what was agreed to"
    );
}

#[tokio::test]
async fn a_callback_needs_no_key_and_each_of_the_last_requests_has_one() {
    let data = tempfile::tempdir().unwrap();
    let key = "an-admin-key-for-the-tests";
    let environment = [
        SOON[0],
        PUBLIC,
        ("BALTO__AUTH__ADMIN_KEY", key),
        ("BALTO__EGRESS__ALLOW_HTTP", "true"),
        ("BALTO__EGRESS__ALLOW_NETWORKS", "127.0.0.0/8"),
    ];
    let daemon = Daemon::start_in(data.path(), &[], &environment).await;
    let bearer = format!("Bearer {key}");
    let auth = [("authorization", bearer.as_str())];
    let target = receiver(|_| answer(404)).await;
    let call = async |handshake: Value| {
        let body = json!({"url": target.url, "handshake": handshake}).to_string();
        let (status, made, _) = daemon.call("POST", "/endpoints", &auth, &body).await;
        (status, made)
    };
    let (status, problem) = call(json!({"callback": true})).await;
    assert_eq!(
        (status, &problem["errors"][0]["pointer"]),
        (422, &json!("/handshake/origin")),
        "nobody said who we are"
    );
    let (status, made) = call(json!({"origin": ORIGIN, "callback": true})).await;
    assert_eq!(status, 201, "{made}");
    until("three requests", || asked(&target).len() >= 3).await;
    let first = callback(&asked(&target)[0]);
    assert_ne!(first, callback(&asked(&target)[1]), "each is shown a URL of its own");
    let endpoint = format!("/endpoints/{}", made["id"].as_str().unwrap());
    for (path, status) in
        [(&first, 200), (&first, 404), (&callback(&asked(&target)[1]), 404), (&endpoint, 401)]
    {
        assert_eq!(daemon.call("GET", path, &[], "").await.0, status, "{path}");
    }
}

#[tokio::test]
async fn what_is_agreed_to_outlives_a_crash_and_so_do_callbacks() {
    let data = tempfile::tempdir().unwrap();
    let environment = [PUBLIC];
    let mut daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    let agreeing = receiver(|_| reply(200, &["WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: 77"])).await;
    let hesitant = receiver(|_| answer(404)).await;
    let agreed = register(&daemon, &agreeing.url, "a", json!({"origin": ORIGIN}), json!({})).await;
    let handshake = json!({"origin": ORIGIN, "callback": true});
    let pending = register(&daemon, &hesitant.url, "b", handshake, json!({})).await;
    let (before, waiting) = (consented(&daemon, &agreed).await, refused(&daemon, &pending).await);
    let event = post(&daemon, "b").await;
    daemon.kill();
    drop(daemon);
    let mut daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    assert_eq!(daemon.get(&agreed).await["handshake"], before);
    assert_eq!(daemon.get(&pending).await["handshake"], waiting);
    daemon.until(&post(&daemon, "a").await, |event| event["status"] == "delivered").await;
    assert_eq!(delivered(&agreeing)[0].headers["webhook-request-origin"], ORIGIN);
    assert_eq!(asked(&agreeing).len(), 1, "WH-14: it was not asked again");
    lane_waits(&daemon, &pending, "handshake").await;
    let path = callback(&asked(&hesitant)[0]);
    assert_eq!(daemon.call("POST", &path, &[("webhook-allowed-rate", "60000")], "").await.0, 200);
    // The answer was durable: a crash right after it takes nothing back, and the token stays used.
    daemon.kill();
    drop(daemon);
    let daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    daemon.until(&event, |event| event["status"] == "delivered").await;
    assert_eq!(daemon.call("POST", &path, &[], "").await.0, 404);
    assert_eq!(asked(&hesitant).len(), 1);
}

#[tokio::test]
async fn the_stricter_of_both_rates_holds() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    // Agreed to per minute; the endpoint's own; whether the second delivery has to wait for the rate.
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
        let said = reply(200, &["WebHook-Allowed-Origin: *", &format!("WebHook-Allowed-Rate: {allowed}")]);
        let target = receiver(move |_| said.clone()).await;
        let endpoint = register(&daemon, &target.url, &kind, json!({}), json!({"rateLimit": own})).await;
        consented(&daemon, &endpoint).await;
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
async fn a_new_url_origin_or_rate_asks_again_and_what_else_changes_does_not() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_in(data.path(), &["--dev"], &[PUBLIC]).await;
    let first = receiver(|_| agree()).await;
    let second = receiver(|_| answer(405)).await;
    let handshake = json!({"origin": ORIGIN, "callback": true});
    let endpoint = register(&daemon, &first.url, "a", handshake, json!({})).await;
    consented(&daemon, &endpoint).await;
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
        consented(&daemon, &endpoint).await;
        assert_eq!(asked(&first).len(), number + 2);
    }
    let last = asked(&first).pop().unwrap();
    assert_eq!(
        (&*last.headers["webhook-request-origin"], &*last.headers["webhook-request-rate"]),
        ("b.example", "60")
    );
    let stale = callback(&last);
    let shown = patch(&daemon, &endpoint, json!({"url": second.url})).await;
    assert_eq!(shown["handshake"]["status"], "pending");
    let event = post(&daemon, "a").await;
    refused(&daemon, &endpoint).await;
    lane_waits(&daemon, &endpoint, "handshake").await;
    assert_eq!(daemon.call("GET", &stale, &[], "").await.0, 404, "another receiver's callback");
    assert_eq!((delivered(&first).len(), delivered(&second).len()), (0, 0));
    // Back to the first: that it agreed once is forgotten.
    patch(&daemon, &endpoint, json!({"url": first.url})).await;
    daemon.until(&event, |event| event["status"] == "delivered").await;
    assert_eq!((asked(&first).len(), delivered(&first).len()), (4, 1));
    // Without a handshake nobody is asked.
    let shown = patch(&daemon, &endpoint, json!({"url": second.url, "handshake": null})).await;
    assert_eq!(shown["handshake"], Value::Null);
    daemon.until(&post(&daemon, "a").await, |event| event["status"] == "delivered").await;
    assert!(!delivered(&second)[0].headers.contains_key("webhook-request-origin"));
}

#[tokio::test]
async fn an_operator_can_ask_at_once_and_a_paused_receiver_is_left_alone() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let target = receiver(|_| answer(405)).await;
    let endpoint = register(&daemon, &target.url, "a", json!({}), json!({})).await;
    refused(&daemon, &endpoint).await;
    let ask = format!("{endpoint}/handshake");
    let shown = daemon.post(&ask, "").await;
    assert_eq!(
        (&shown["handshake"]["requests"], &shown["handshake"]["lastAnswer"]),
        (&json!(0), &Value::Null)
    );
    until("a second request", || asked(&target).len() == 2).await;
    refused(&daemon, &endpoint).await;
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
    assert_eq!(asked(&target).len(), 2, "a paused endpoint was asked");
    daemon.post(&format!("{endpoint}/resume"), "").await;
    until("a request after the pause", || asked(&target).iter().any(|got| got.target.ends_with("?2"))).await;
    lane_waits(&daemon, &endpoint, "handshake").await;
}

#[tokio::test]
async fn asking_anew_takes_the_consent_back_until_there_is_a_new_one() {
    let data = tempfile::tempdir().unwrap();
    let daemon = start_soon(data.path()).await;
    // Agrees, then has changed its mind, then comes round.
    let target = Receiver::start(|number, got| match (&*got.method, number) {
        ("OPTIONS", 1 | 2) => answer(403),
        ("OPTIONS", _) => agree(),
        _ => answer(204),
    })
    .await;
    let endpoint = register(&daemon, &target.url, "a", json!({}), json!({})).await;
    consented(&daemon, &endpoint).await;
    let shown = daemon.post(&format!("{endpoint}/handshake"), "").await;
    assert_eq!(shown["handshake"]["status"], "pending");
    let event = post(&daemon, "a").await;
    daemon.until(&event, |event| event["status"] == "delivered").await;
    let order: Vec<_> = target.got().into_iter().map(|got| got.method).collect();
    assert_eq!(order, ["OPTIONS", "OPTIONS", "OPTIONS", "OPTIONS", "POST"]);
}

#[tokio::test]
async fn a_receiver_that_never_agrees_ends_as_one_that_always_fails() {
    let data = tempfile::tempdir().unwrap();
    let environment = [SOON[0], SOON[1], ("BALTO__DELIVERY__DISABLE_AFTER", "1s")];
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
    let told: Value = serde_json::from_str(&operator.until(1).await[0].body).unwrap();
    assert_eq!(told["data"]["reason"], "failing");
    let count = asked(&stubborn).len();
    assert!(count >= 2, "it was disabled after the first request");
    let resumed = daemon.post(&format!("{endpoint}/resume"), "").await;
    assert_eq!((&resumed["status"], &resumed["handshake"]["requests"]), (&json!("active"), &json!(0)));
    until("a request after the pause", || asked(&stubborn).len() > count).await;
    // One that is gone is not asked twice.
    let gone = receiver(|_| answer(410)).await;
    let endpoint = register(&daemon, &gone.url, "b", json!({}), json!({})).await;
    let shown = daemon.until(&endpoint, |shown| shown["status"] == "disabled").await;
    assert_eq!((&shown["disabledReason"], asked(&gone).len()), (&json!("gone"), 1), "WH-4");
}

#[tokio::test]
async fn waiting_for_consent_is_no_failure_and_ends_by_disabling() {
    let data = tempfile::tempdir().unwrap();
    let environment = [SOON[0], SOON[1], ("BALTO__DELIVERY__DISABLE_AFTER", "1s")];
    let daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    let target = receiver(|_| answer(405)).await;
    let retry = json!({"retry": {"maxAge": "1s"}});
    let endpoint = register(&daemon, &target.url, "a", json!({}), retry).await;
    let event = post(&daemon, "a").await;
    // It is older than its policy allows by then, and not given up.
    daemon.until(&endpoint, |shown| shown["status"] == "disabled").await;
    assert_eq!(daemon.get("/dead-letters?reason=maxAge").await["data"], json!([]));
    // Nothing is tried at a disabled endpoint: that ends after the same time.
    daemon.until(&event, |event| event["status"] == "failed").await;
    let letters = daemon.get("/dead-letters").await;
    assert_eq!(
        (&letters["data"][0]["reason"], &letters["data"][0]["attempts"]),
        (&json!("endpointDisabled"), &json!(0))
    );
    assert_eq!(delivered(&target).len(), 0);
}

#[tokio::test]
async fn retry_after_keeps_the_next_request_away() {
    let data = tempfile::tempdir().unwrap();
    let daemon = start_soon(data.path()).await;
    let target = receiver(|_| reply(429, &["retry-after: 3600"])).await;
    let endpoint = register(&daemon, &target.url, "a", json!({}), json!({})).await;
    let shown = refused(&daemon, &endpoint).await;
    let seconds = |name: &str| {
        let format = time::format_description::well_known::Rfc3339;
        time::OffsetDateTime::parse(shown[name].as_str().unwrap(), &format).unwrap().unix_timestamp()
    };
    assert_eq!(seconds("nextRequestAt") - seconds("lastRequestAt"), 3_600, "WH-5 {shown}");
}

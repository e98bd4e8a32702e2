//! Replies of receivers in records, API responses, terminals and logs.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use balto::limits;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::table_f::with_body;
use crate::support::chaos::{Chaos, Talk, replies_with, script};
use crate::support::{self, Daemon, Receiver};

fn id(value: &Value) -> &str {
    value["id"].as_str().unwrap()
}

/// Sends one event to a new endpoint with a single attempt: the endpoint's path, and the delivery's
/// path after the attempt.
async fn attempt_once(daemon: &Daemon, url: &str, kind: &str) -> (String, String) {
    let endpoint = json!({"url": url, "eventTypes": [kind], "timeout": "20s", "retry": {"maxAttempts": 2, "initial": "1h"}});
    let made = daemon.post("/endpoints", &endpoint.to_string()).await;
    let event = daemon.post("/events", &json!({"type": kind, "data": 1}).to_string()).await;
    let path = format!("/events/{}", id(&event));
    let shown = daemon.until(&path, |event| event["deliveries"][0]["attemptCount"] == 1).await;
    (format!("/endpoints/{}", id(&made)), format!("/deliveries/{}", id(&shown["deliveries"][0])))
}

#[tokio::test]
async fn f1_record_of_a_redirect_names_the_target_briefly() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let long = format!("https://a.example/{}", "x".repeat(10_000));
    let rows = [
        (
            "https://a.example/new",
            "status 307: redirects are not followed (to https://a.example/new)".to_owned(),
        ),
        (
            &long,
            format!("status 307: redirects are not followed (to {})", &long[..limits::LOCATION_BYTES_MAX]),
        ),
        ("\u{9b}31m", "status 307".to_owned()),
    ];
    for (number, (location, words)) in rows.into_iter().enumerate() {
        let reply = format!("HTTP/1.1 307 x\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
        let receiver = Chaos::start(&replies_with(reply));
        let (_, delivery) = attempt_once(&daemon, &receiver.url, &format!("row.{number}")).await;
        let shown = daemon.get(&delivery).await;
        // The row of the delivery has no text from the receiver.
        let brief = words.split(" (to ").next().unwrap();
        assert_eq!((&shown["lastError"], &shown["attempts"][0]["error"]), (&json!(brief), &json!(words)));
        assert_eq!(shown["attempts"][0]["errorClass"], "status");
    }
}

/// Markup, terminal sequences (with ESC and with C1), a title, right-to-left text, NUL, quotes,
/// line breaks, and bytes that are not UTF-8.
const HOSTILE: &[u8] =
    b"<script>alert(1)</script>\x1b]0;owned\x07\x1b[2J\xc2\x9b31m\xe2\x80\xae\0\"\\\r\n\xff\xfe\xc0\x80end";

#[tokio::test]
async fn f12_reply_is_kept_as_bytes_and_escaped_in_every_output() {
    let receiver =
        Chaos::start(&replies_with(with_body("HTTP/1.1 500 No\r\ncontent-type: text/html", HOSTILE)));
    for format in ["json", "text"] {
        let data = tempfile::tempdir().unwrap();
        let log = data.path().join("log");
        let mut command = support::serve(data.path(), &["--dev"]);
        command.env("BALTO__LOG__LEVEL", "trace").env("BALTO__LOG__FORMAT", format);
        command.stderr(std::fs::File::create(&log).unwrap());
        let mut daemon = Daemon::spawn(command);
        daemon.until_ready().await;
        let (_, delivery) = attempt_once(&daemon, &receiver.url, "a").await;

        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(format!("{}{delivery}", daemon.api)).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/json");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
        let text = answer.text().await.unwrap();
        assert!(!text.contains(|c: char| c < ' '), "{text:?}");
        let shown: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(shown["attempts"][0]["responseBody"], json!(String::from_utf8_lossy(HOSTILE)));

        let delivery = delivery.rsplit('/').next().unwrap();
        for arguments in [&["deliveries", "show", delivery][..], &["deliveries", "list"], &["events", "list"]]
        {
            let message = balto(&daemon, arguments);
            let drives = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(!message.contains(drives), "{arguments:?}: {message:?}");
            assert_eq!(
                message.contains("<script>alert(1)</script>\\u{1b}]0;owned"),
                arguments[1] == "show",
                "{message}"
            );
        }

        let backup = data.path().join("backup");
        balto(&daemon, &["backup", "--to", backup.to_str().unwrap()]);
        assert!(
            has_record_with(&std::fs::read_to_string(backup).unwrap(), HOSTILE),
            "the stored bytes differ"
        );

        assert_eq!(daemon.terminate(), Some(0));
        let log = String::from_utf8(std::fs::read(&log).unwrap()).unwrap();
        assert!(log.contains("attempt"), "the log says nothing: {log}");
        assert!(!log.contains("alert(1)") && !log.contains('\u{1b}') && !log.contains("owned"), "{log}");
    }
}

/// The output of a client command.
fn balto(daemon: &Daemon, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balto"));
    command.args(arguments).env("BALTO_URL", daemon.api.trim_end_matches("/v1")).stdin(Stdio::null());
    let output = command.output().unwrap();
    let words = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{arguments:?}: {words}");
    words
}

/// Whether a record of a backup contains these bytes.
fn has_record_with(backup: &str, bytes: &[u8]) -> bool {
    let records = backup.split_whitespace().filter_map(|word| word.split_once(':'));
    let mut decoded = records.filter_map(|(_, record)| STANDARD.decode(record).ok());
    decoded.any(|record| record.windows(bytes.len()).any(|window| window == bytes))
}

#[tokio::test]
async fn f13_replies_of_internal_hosts_are_for_operators_only() {
    let data = tempfile::tempdir().unwrap();
    let inside = Receiver::start(|_, _| "HTTP/1.1 500 x\r\ncontent-length: 6\r\n\r\nsecret".to_owned()).await;
    let settings = [
        ("BALTO__AUTH__ADMIN_KEY", "an-operator-key-that-is-long-enough"),
        ("BALTO__EGRESS__ALLOW_HTTP", "true"),
        ("BALTO__EGRESS__ALLOW_NETWORKS", "127.0.0.0/8"),
    ];
    let daemon = Daemon::start_in(data.path(), &[], &settings).await;
    let operator = format!("Bearer {}", settings[0].1);
    let ask = async |key: &str, method: &str, path: &str, body: Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer, _) = daemon.call(method, path, &[("authorization", key)], &body).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    };
    let mut keys = Vec::new();
    for key in [
        json!({"role": "viewer"}),
        json!({"role": "admin", "tenant": "acme"}),
        json!({"role": "viewer", "tenant": "acme"}),
        json!({"role": "publisher", "tenant": "acme"}),
    ] {
        let made = ask(&operator, "POST", "/keys", key).await;
        keys.push(format!("Bearer {}", made["secret"].as_str().unwrap()));
    }
    let [watcher, tenant, viewer, publisher] = &keys[..] else { unreachable!() };
    let endpoint = json!({"url": inside.url, "retry": {"maxAttempts": 1}});
    let endpoint = ask(tenant, "POST", "/endpoints", endpoint).await;
    ask(tenant, "POST", &format!("/endpoints/{}/test", id(&endpoint)), Value::Null).await;
    ask(tenant, "POST", "/events", json!({"type": "a", "data": 1})).await;
    inside.until(2).await;
    let deadline = std::time::Instant::now() + support::WAIT_MAX;
    let letters = loop {
        let letters = ask(tenant, "GET", "/dead-letters", Value::Null).await["data"].take();
        if letters.as_array().unwrap().len() == 2 {
            break letters;
        }
        assert!(std::time::Instant::now() < deadline, "{letters}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    for letter in letters.as_array().unwrap() {
        let delivery = letter["deliveryId"].as_str().unwrap();
        for path in [format!("/deliveries/{delivery}"), format!("/dead-letters/{delivery}")] {
            for (key, body) in [
                (&operator, json!("secret")),
                (watcher, json!("secret")),
                (tenant, Value::Null),
                (viewer, Value::Null),
            ] {
                let shown = ask(key, "GET", &path, Value::Null).await;
                let attempt = &shown["attempts"][0];
                // The status shows whether the tenant's own webhook works.
                assert_eq!(
                    (&attempt["responseBody"], &attempt["statusCode"]),
                    (&body, &json!(500)),
                    "{path}: {shown}"
                );
                let is_operator = body == "secret";
                for member in ["remoteAddress", "reused"] {
                    assert_eq!(attempt[member] != Value::Null, is_operator, "{member}: {shown}");
                }
                assert_eq!(attempt["response"]["headers"] != Value::Null, is_operator, "{shown}");
                assert_eq!(attempt["timing"].get("firstByte").is_some(), is_operator, "{shown}");
                assert_eq!(attempt["request"]["url"], json!(inside.url), "{shown}");
                assert_eq!(shown.to_string().contains("secret"), body == "secret", "{shown}");
            }
        }
        let shown = ask(publisher, "GET", &format!("/deliveries/{delivery}"), Value::Null).await;
        assert!(!shown.to_string().contains("secret"), "{shown}");
    }
}

/// Receivers in the operator's network that send no HTTP reply, each in another way, and the error
/// class for the operator.
fn without_reply() -> Vec<(&'static str, String, Option<Chaos>)> {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let says_at_once = |bytes: &'static [u8]| {
        script(move |mut talk: Talk| async move {
            talk.request().await;
            talk.send(bytes).await;
        })
    };
    let start = |script| {
        let receiver = Chaos::start(&script);
        (receiver.url.clone(), Some(receiver))
    };
    let huge: &[u8] =
        Box::leak(format!("HTTP/1.1 200 x\r\nx: {}\r\n", "x".repeat(200_000)).into_bytes().into());
    let (ssh, ssh_alive) = start(says_at_once(b"SSH-2.0-OpenSSH_9.6\r\n"));
    let (hangs_up, hangs_up_alive) = start(says_at_once(b""));
    let (large, large_alive) = start(says_at_once(huge));
    let (plain, plain_alive) = start(says_at_once(b"HTTP/1.1 200 x\r\n\r\n"));
    let (silent, silent_alive) =
        start(script(|mut talk: Talk| async move { while talk.request().await.is_some() {} }));
    vec![
        ("connect", format!("http://{closed}/"), None),
        ("protocol", ssh, ssh_alive),
        ("reset", hangs_up, hangs_up_alive),
        ("responseTooLarge", large, large_alive),
        ("tls", plain.replace("http:", "https:"), plain_alive),
        ("timeout", silent, silent_alive),
    ]
}

/// Every text in which the API shows the last failure of the only delivery.
async fn failures(ask: &impl AsyncFn(&str) -> Value, event: &Value, endpoint: &Value) -> BTreeSet<String> {
    let (event, endpoint) = (id(event), id(endpoint));
    let mut shown = Vec::new();
    for path in ["deliveries", "dead-letters"] {
        let listed = ask(&format!("/{path}?endpointId={endpoint}")).await;
        let detail = ask(&format!("/{path}/{}", id(&listed["data"][0]))).await;
        let attempt = &detail["attempts"][0];
        let line = match attempt["errorClass"].as_str() {
            Some("status") => attempt["error"].as_str().unwrap().to_owned(),
            class => format!("{}: {}", class.unwrap(), attempt["error"].as_str().unwrap()),
        };
        shown.extend([listed["data"][0]["lastError"].clone(), detail["lastError"].clone(), json!(line)]);
    }
    let events = ask("/events?limit=250").await;
    let listed = events["data"].as_array().unwrap().iter().find(|one| one["id"] == event).unwrap();
    shown.push(listed["deliveries"][0]["lastError"].clone());
    shown.push(ask(&format!("/events/{event}")).await["deliveries"][0]["lastError"].clone());
    shown.into_iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn details_of_internal_failures_are_for_operators_only() {
    let data = tempfile::tempdir().unwrap();
    let admin = "an-operator-key-that-is-long-enough";
    let settings = [
        ("BALTO__AUTH__ADMIN_KEY", admin),
        ("BALTO__EGRESS__ALLOW_HTTP", "true"),
        ("BALTO__EGRESS__ALLOW_NETWORKS", "127.0.0.0/8"),
    ];
    let daemon = Daemon::start_in(data.path(), &[], &settings).await;
    let ask = async |key: &str, method: &str, path: &str, body: &str| {
        let bearer = format!("Bearer {key}");
        let (status, answer, _) = daemon.call(method, path, &[("authorization", &bearer)], body).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    };
    let made = ask(admin, "POST", "/keys", r#"{"role":"admin","tenant":"acme"}"#).await;
    let tenant = made["secret"].as_str().unwrap();
    let inner = "HTTP/1.1 302 x\r\nlocation: http://10.9.8.7/?token=INSIDE\r\ncontent-length: 0\r\n\r\n";
    let redirects = Chaos::start(&replies_with(inner));
    let mut rows = without_reply();
    rows.push(("status 302", redirects.url.clone(), Some(redirects)));
    let mut to_tenant = BTreeSet::new();
    for (number, (class, url, _alive)) in rows.iter().enumerate() {
        let kind = format!("row.{number}");
        let hook = json!({"url": url, "eventTypes": [kind], "timeout": "500ms", "retry": {"maxAttempts": 1}});
        let endpoint = ask(tenant, "POST", "/endpoints", &hook.to_string()).await;
        let event = ask(tenant, "POST", "/events", &json!({"type": kind, "data": 1}).to_string()).await;
        let path = format!("/events/{}", id(&event));
        let deadline = std::time::Instant::now() + support::WAIT_MAX;
        while ask(tenant, "GET", &path, "").await["status"] == "pending" {
            assert!(std::time::Instant::now() < deadline, "{class} {url} stays pending");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let read = |key| async move |path: &str| ask(key, "GET", path, "").await;
        let operator = failures(&read(admin), &event, &endpoint).await;
        assert!(operator.iter().all(|line| line.starts_with(class)), "{class}: {operator:?}");
        let lines = failures(&read(tenant), &event, &endpoint).await;
        let delivery = ask(tenant, "GET", &path, "").await["deliveries"][0].clone();
        let retried = ask(tenant, "POST", &format!("/deliveries/{}/retry", id(&delivery)), "").await;
        assert_eq!(retried["lastError"], delivery["lastError"]);
        if *class == "status 302" {
            assert_eq!(Vec::from_iter(lines), ["status 302"]);
            assert_eq!(delivery["lastStatusCode"], 302);
            let brief = "status 302: redirects are not followed";
            let full = format!("{brief} (to http://10.9.8.7/?token=INSIDE)");
            assert_eq!(Vec::from_iter(operator), [brief, full.as_str()]);
        } else {
            to_tenant.extend(lines);
        }
    }
    let count =
        async |key: &str, path: &str| ask(key, "GET", path, "").await["data"].as_array().unwrap().len();
    // The same for the filter of the list.
    for class in ["connect", "protocol", "reset", "responseTooLarge", "tls", "timeout"] {
        let path = format!("/deliveries?errorClass={class}");
        assert_eq!((count(admin, &path).await, count(tenant, &path).await), (1, 0), "{path}");
    }
    let path = "/deliveries?errorClass=noReply";
    assert_eq!((count(admin, path).await, count(tenant, path).await), (0, 6));
    assert_eq!(to_tenant.len(), 1, "a tenant can distinguish the ports: {to_tenant:?}");
    assert!(to_tenant.first().unwrap().starts_with("noReply: "), "{to_tenant:?}");
}

#[tokio::test]
async fn internal_handshake_replies_are_for_operators_only() {
    let data = tempfile::tempdir().unwrap();
    let admin = "an-operator-key-that-is-long-enough";
    let settings = [
        ("BALTO__AUTH__ADMIN_KEY", admin),
        ("BALTO__EGRESS__ALLOW_HTTP", "true"),
        ("BALTO__EGRESS__ALLOW_NETWORKS", "127.0.0.0/8"),
    ];
    let daemon = Daemon::start_in(data.path(), &[], &settings).await;
    let call = async |key: &str, method: &str, path: &str, body: &str| {
        let bearer = format!("Bearer {key}");
        daemon.call(method, path, &[("authorization", &bearer)], body).await.1
    };
    let made = call(admin, "POST", "/keys", r#"{"role":"admin","tenant":"acme"}"#).await;
    let tenant = made["secret"].as_str().unwrap();
    let refuses = Receiver::status(405).await;
    let mut rows = without_reply();
    rows.push(("status 405", refuses.url.clone(), None));
    let mut to_tenant = BTreeSet::new();
    for (class, url, _alive) in &rows {
        let hook = json!({"url": url, "timeout": "500ms", "handshake": {"origin": "a.example"}}).to_string();
        let path = format!("/endpoints/{}", id(&call(tenant, "POST", "/endpoints", &hook).await));
        let deadline = std::time::Instant::now() + support::WAIT_MAX;
        let detail = loop {
            let shown = call(admin, "GET", &path, "").await["handshake"]["lastAnswer"].clone();
            if let Some(detail) = shown.as_str() {
                break detail.to_owned();
            }
            assert!(std::time::Instant::now() < deadline, "{class} {url} got no handshake request");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(detail.starts_with(class), "{class}: {detail}");
        let listed =
            call(tenant, "GET", "/endpoints", "").await["data"][0]["handshake"]["lastAnswer"].clone();
        let shown = call(tenant, "GET", &path, "").await["handshake"]["lastAnswer"].clone();
        assert_eq!(shown, listed);
        to_tenant.insert(shown.as_str().unwrap().to_owned());
    }
    assert_eq!(to_tenant.len(), 1, "a tenant can distinguish the ports: {to_tenant:?}");
}

#[tokio::test]
async fn f15_absurd_retry_after_is_capped_or_ignored() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let digits = "9".repeat(50_000);
    let rows = [
        ("99999999999", Some(limits::RETRY_AFTER_MAX)),
        ("00000000000000000000000000000000000000000086401", Some(limits::RETRY_AFTER_MAX)),
        (digits.as_str(), Some(limits::RETRY_AFTER_MAX)),
        ("Fri, 31 Dec 9999 23:59:59 GMT", Some(limits::RETRY_AFTER_MAX)),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
        ("-1", None),
        ("1e99", None),
        ("infinity", None),
        ("60, 99999999999", None),
    ];
    for (number, (value, wait)) in rows.into_iter().enumerate() {
        let story = &value[..value.len().min(50)];
        let reply = format!("HTTP/1.1 503 x\r\nretry-after: {value}\r\ncontent-length: 0\r\n\r\n");
        let receiver = Chaos::start(&replies_with(reply));
        let kind = format!("row.{number}");
        let (endpoint, delivery) = attempt_once(&daemon, &receiver.url, &kind).await;
        let next = moment(&daemon.get(&delivery).await["attempts"][0]["nextAttemptAt"]);
        // The policy's own delay is an hour, plus or minus its jitter.
        let expected = wait.unwrap_or(Duration::from_secs(3_600));
        let off = seconds_from_now(next).abs_diff(expected.as_secs());
        assert!(off < expected.as_secs() / 4, "{story}: {off} s off");
        // A later delivery waits too if the lane is held, and is sent immediately otherwise.
        daemon.post("/events", &json!({"type": kind, "data": 2}).to_string()).await;
        let (reason, requests) = if wait.is_some() { ("retryAfter", 1) } else { ("notDue", 2) };
        receiver.until(requests).await;
        daemon
            .until(&format!("{endpoint}/lane"), |lane| lane["reason"] == reason && lane["pending"] == 2)
            .await;
        assert_eq!(receiver.requests().len(), requests, "{story}");
    }
}

fn moment(value: &Value) -> OffsetDateTime {
    OffsetDateTime::parse(value.as_str().unwrap(), &Rfc3339).unwrap()
}

fn seconds_from_now(moment: OffsetDateTime) -> u64 {
    let wait = moment - OffsetDateTime::from(SystemTime::now());
    u64::try_from(wait.whole_seconds()).unwrap()
}

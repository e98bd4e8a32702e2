//! Table E: the headers of a request to a receiver, and their sources.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::fixture::delivered;
use crate::support::{Daemon, Receiver, answer};

const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("E1", "a b", "x"),
    ("E1", "a:b", "x"),
    ("E1", "a\r\nb", "x"),
    ("E1", "ä", "x"),
    ("E1", "(a)", "x"),
    ("E1", "", "x"),
    ("E2", "X-A", "a\r\nb"),
    ("E2", "X-A", "a\nb"),
    ("E2", "X-A", "\0"),
    ("E2", "X-A", "ä"),
    ("E3", "Host", "x"),
    ("E3", "Content-Length", "1"),
    ("E3", "Transfer-Encoding", "chunked"),
    ("E3", "Connection", "close"),
    ("E3", "Upgrade", "h2c"),
    ("E3", "TE", "trailers"),
    ("E3", "Trailer", "x"),
    ("E3", "Expect", "100-continue"),
    ("E3", "Proxy-Authorization", "x"),
    ("E3", "Proxy-Connection", "x"),
    ("E3", "Webhook-Id", "x"),
    ("E3", "webhook-signature", "x"),
    ("E3", "ce-type", "x"),
    ("E3", "balto-hops", "0"),
    ("E3", "Max-Forwards", "0"),
    ("E3", "Content_Length", "1"),
    ("E3", "Transfer_Encoding", "chunked"),
    ("E3", "X_Own", "x"),
    ("E3", "Content.Length", "1"),
    ("E4", "X.Forwarded.For", "127.0.0.1"),
    ("E4", "Metadata-Flavor", "Google"),
    ("E4", "Metadata", "true"),
    ("E4", "X-aws-ec2-metadata-token", "x"),
    ("E4", "X-aws-ec2-metadata-token-ttl-seconds", "1"),
    ("E4", "Metadata_Flavor", "Google"),
    ("E4", "Metadata-Token", "x"),
    ("E4", "x-google-metadata-request", "True"),
    ("E4", "X-aliyun-ecs-metadata-token", "x"),
    ("E4", "X-Real-IP", "127.0.0.1"),
    ("E4", "True-Client-IP", "127.0.0.1"),
    ("E4", "CF-Connecting-IP", "127.0.0.1"),
    ("E4", "CF-Connecting-IPv6", "::1"),
    ("E4", "X-Client-IP", "127.0.0.1"),
    ("E4", "Client-IP", "127.0.0.1"),
    ("E4", "X-Cluster-Client-IP", "127.0.0.1"),
    ("E4", "X-Original-URL", "/admin"),
    ("E4", "X-Rewrite-URL", "/admin"),
    ("E4", "X-Original-Host", "x"),
    ("E4", "X-Host", "x"),
    ("E4", "X-Envoy-Original-Path", "/admin"),
    ("E4", "Remote-User", "admin"),
    ("E4", "X-Appengine-User-Ip", "127.0.0.1"),
    ("E4", "X-Forwarded", "for=127.0.0.1"),
    ("E4", "X-Forwarded-For", "127.0.0.1"),
    ("E4", "x-forwarded-host", "x"),
    ("E6", "X-HTTP-Method-Override", "DELETE"),
    ("E6", "X-HTTP-Method", "PUT"),
    ("E6", "X-Method-Override", "GET"),
];

async fn refused(daemon: &Daemon, path: &str, body: &Value) -> String {
    let (status, answer, _) = daemon.call("POST", path, &[], &body.to_string()).await;
    assert!(matches!(status, 400 | 422), "{body} was answered {status} {answer}");
    answer["errors"][0]["pointer"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn reserved_custom_headers_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let url = "http://127.0.0.1:54321/";
    for (row, name, value) in FORBIDDEN {
        for member in ["headers", "sensitiveHeaders"] {
            let place = refused(&daemon, "/endpoints", &json!({"url": url, member: {*name: value}})).await;
            assert!(
                place.starts_with(&format!("/{member}/")),
                "{row} {name:?}: {value:?} is wrong at {place}"
            );
        }
    }
    let long = json!({"url": url, "headers": {"X-A": "x".repeat(4_097)}});
    assert_eq!(refused(&daemon, "/endpoints", &long).await, "/headers/X-A", "E2");
    let many: serde_json::Map<_, _> = (0..51).map(|n| (format!("X-{n}"), json!("x"))).collect();
    assert_eq!(refused(&daemon, "/endpoints", &json!({"url": url, "headers": many})).await, "/headers", "E2");
    let fits = json!({"url": url, "headers": {"X-Env": "prod", "Authorization": "Bearer abc", "X-A": "x".repeat(4_096)}});
    daemon.post("/endpoints", &fits.to_string()).await;
}

#[tokio::test]
async fn e5_e7_generated_headers_contain_no_line_break() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    for (row, member, value) in [
        ("E5", "type", "a\r\nX-B: c"),
        ("E5", "type", "a b"),
        ("E5", "tenant", "a\r\nb"),
        ("E5", "id", "a\r\nb"),
        ("E5", "version", "1\n0"),
        ("E7", "id", "a.b"),
        ("E7", "id", "a b"),
        ("E7", "id", "evt_\u{e9}"),
    ] {
        let mut event = json!({"type": "a", "data": 1});
        event[member] = json!(value);
        assert_eq!(refused(&daemon, "/events", &event).await, format!("/{member}"), "{row} {value:?}");
    }
}

/// The API has no member for a method, and a delivery is a `POST`.
#[tokio::test]
async fn e6_delivery_is_always_a_post() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    for method in ["GET", "PUT", "DELETE", "OPTIONS"] {
        let body = json!({"url": receiver.url, "method": method});
        assert_eq!(refused(&daemon, "/endpoints", &body).await, "/method");
    }
    daemon.post("/endpoints", &json!({"url": receiver.url, "headers": {"X-Env": "prod"}}).to_string()).await;
    assert_eq!(delivered(&daemon, "a").await["status"], "delivered");
    let got = receiver.got();
    assert_eq!((got[0].line.as_str(), got[0].headers["x-env"].as_str()), ("POST /hook HTTP/1.1", "prod"));
    assert!(got[0].headers["host"].starts_with("127.0.0.1:"), "{got:?}");
}

#[tokio::test]
async fn refused_underscore_error_suggests_a_hyphen() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let body = json!({"url": "http://127.0.0.1:54321/", "headers": {"X_Own": "x"}});
    let (_, problem, _) = daemon.call("POST", "/endpoints", &[], &body.to_string()).await;
    let detail = problem["errors"][0]["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("`_`") && detail.contains("write `-`"), "{problem}");
}

/// The head of the next request as it was sent, answered with 200.
async fn raw_head(listener: &TcpListener) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|four| four == b"\r\n\r\n") {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "a request ends in its head");
    }
    stream.write_all(answer(200).replace("x\r\n", "x\r\nconnection: close\r\n").as_bytes()).await.unwrap();
    // Reads the remaining bytes, so that closing does not reset the reply.
    stream.shutdown().await.unwrap();
    let _rest = stream.read_to_end(&mut Vec::new()).await;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}

/// A gateway that forwards names unchanged, and a receiver behind it that compares their case.
#[tokio::test]
async fn header_names_are_sent_in_title_case() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    for (signature, name) in
        [("standard", "Webhook-Signature"), ("stripe", "Stripe-Signature"), ("github", "X-Hub-Signature-256")]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let body = json!({"url": url, "signature": signature, "eventTypes": [signature], "trace": true,
            "headers": {"X-Own-Header": "1", "x-lower": "2"}, "sensitiveHeaders": {"Authorization": "Bearer abc"}});
        daemon.post("/endpoints", &body.to_string()).await;
        daemon.post("/events", &json!({"type": signature, "data": 1}).to_string()).await;
        let head = raw_head(&listener).await;
        let names: Vec<_> = head.lines().skip(1).map(|line| line.split(':').next().unwrap()).collect();
        let ours = [
            "Host",
            "Content-Type",
            "Content-Length",
            "User-Agent",
            "Accept",
            "Webhook-Id",
            "Webhook-Timestamp",
            "Balto-Attempt",
            "Balto-Hops",
        ];
        for expected in ours.into_iter().chain([name, "X-Own-Header", "X-Lower", "Authorization"]) {
            assert!(names.contains(&expected), "{expected} is missing: {head}");
        }
        let is_titled = |name: &&&str| {
            name.split('-').all(|part| !part.starts_with(|first: char| first.is_ascii_lowercase()))
        };
        assert_eq!(names.iter().filter(is_titled).count(), names.len(), "{head}");
    }
}

const CREDENTIALS: &[&str] = &[
    "Authorization",
    "Cookie",
    "X-Api-Key",
    "Api-Key",
    "X-Auth-Token",
    "X-Access-Token",
    "X-Amz-Security-Token",
    "X-Hook-Secret",
    "X-Hook-Password",
    "Authentication",
    "X-Jwt-Assertion",
    "X-CSRFToken",
    "X-Access-Key-Id",
    "X.Api.Key",
];

#[tokio::test]
async fn credentials_in_headers_are_kept_as_sensitive() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let mut given: serde_json::Map<_, _> =
        CREDENTIALS.iter().map(|name| ((*name).to_owned(), json!(format!("hush {name}")))).collect();
    given.insert("X-Env".to_owned(), json!("prod"));
    let made = daemon.post("/endpoints", &json!({"url": receiver.url, "headers": given}).to_string()).await;
    let mut names: Vec<_> = CREDENTIALS.iter().map(|name| name.to_ascii_lowercase()).collect();
    names.sort_unstable();
    let path = format!("/endpoints/{}", made["id"].as_str().unwrap());
    let viewer = daemon.post("/keys", r#"{"role":"viewer","tenant":"default"}"#).await;
    let viewer = format!("Bearer {}", viewer["secret"].as_str().unwrap());
    let (_, seen, _) = daemon.call("GET", &path, &[("authorization", &viewer)], "").await;
    for shown in [&made, &seen] {
        assert_eq!(shown["headers"], json!({"X-Env": "prod"}));
        assert_eq!(shown["sensitiveHeaderNames"], json!(names));
        assert!(!shown.to_string().contains("hush"), "{shown}");
    }
    assert_eq!(delivered(&daemon, "a").await["status"], "delivered");
    let got = receiver.got().remove(0);
    for name in CREDENTIALS {
        assert_eq!(got.headers[&name.to_ascii_lowercase()], format!("hush {name}"));
    }
}

#[tokio::test]
async fn credential_can_be_changed_in_either_header_member() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let body = json!({"url": receiver.url, "headers": {"X-Env": "prod", "Authorization": "one"}});
    let path =
        format!("/endpoints/{}", daemon.post("/endpoints", &body.to_string()).await["id"].as_str().unwrap());
    let env = json!({"X-Env": "prod"});
    for (number, (patch, headers, names, sent)) in [
        (json!({"description": "d"}), env.clone(), json!(["authorization"]), Some("one")),
        (json!({"headers": {"authorization": "two"}}), env.clone(), json!(["authorization"]), Some("two")),
        (
            json!({"sensitiveHeaders": {"Authorization": "three"}}),
            env.clone(),
            json!(["authorization"]),
            Some("three"),
        ),
        (json!({"headers": {"X-Env": null}}), json!({}), json!(["authorization"]), Some("three")),
        (json!({"headers": {"AUTHORIZATION": null}}), json!({}), json!([]), None),
        (
            json!({"headers": {"Authorization": null}, "sensitiveHeaders": {"authorization": "four"}}),
            json!({}),
            json!(["authorization"]),
            Some("four"),
        ),
        (
            json!({"headers": {"Authorization": "five"}, "sensitiveHeaders": {"authorization": null}}),
            json!({}),
            json!(["authorization"]),
            Some("five"),
        ),
        (json!({"headers": null}), json!({}), json!(["authorization"]), Some("five")),
        (json!({"sensitiveHeaders": null}), json!({}), json!([]), None),
    ]
    .into_iter()
    .enumerate()
    {
        let (status, changed, _) = daemon.call("PATCH", &path, &[], &patch.to_string()).await;
        assert_eq!(
            (status, &changed["headers"], &changed["sensitiveHeaderNames"]),
            (200, &headers, &names),
            "{patch}: {changed}"
        );
        assert_eq!(delivered(&daemon, "a").await["status"], "delivered", "{patch}");
        assert_eq!(receiver.got()[number].headers.get("authorization").map(String::as_str), sent, "{patch}");
    }
    for method in ["PATCH", "POST"] {
        let both = json!({"url": receiver.url, "headers": {"Authorization": "a"}, "sensitiveHeaders": {"authorization": "b"}});
        let path = if method == "POST" { "/endpoints" } else { &path };
        let (status, problem, _) = daemon.call(method, path, &[], &both.to_string()).await;
        assert!(matches!(status, 400 | 422), "{method}: {status} {problem}");
        assert_eq!(problem["errors"][0]["pointer"], "/sensitiveHeaders/Authorization", "{problem}");
    }
}

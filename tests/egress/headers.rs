//! Table E: what a request to a receiver may carry, and who may say so.

use serde_json::{Value, json};

use crate::support::{Daemon, Receiver};
use crate::world::delivered;

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
    ("E4", "Metadata-Flavor", "Google"),
    ("E4", "Metadata", "true"),
    ("E4", "X-aws-ec2-metadata-token", "x"),
    ("E4", "X-aws-ec2-metadata-token-ttl-seconds", "1"),
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
async fn custom_headers_are_refused_when_they_are_not_the_customers() {
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
async fn e5_e7_what_reaches_a_header_of_ours_has_no_line_break_in_it() {
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

/// There is no member for a method, and a delivery is a `POST`.
#[tokio::test]
async fn e6_a_delivery_is_a_post_and_nothing_else() {
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

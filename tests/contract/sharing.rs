//! Tenants share one daemon: what one tenant holds or queues does not delay another.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpSocket;

use crate::support::raw::Raw;
use crate::support::{Daemon, WAIT_MAX};
use crate::{ADMIN, call_as, key, text};

/// The longest time that a request of another tenant may take. A busy test machine runs an
/// unoptimized daemon; without shares these requests take 10 s and more.
const SOON: Duration = Duration::from_secs(8);

async fn daemon(data: &Path, environment: &[(&str, &str)]) -> Daemon {
    let mut all = vec![("BALTO__AUTH__ADMIN_KEY", ADMIN)];
    all.extend(environment);
    Daemon::start_in(data, &[], &all).await
}

/// A client that sends requests and does not read the responses.
async fn slow_reader(daemon: &Daemon, path: &str, key: Option<&str>) -> Raw {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut raw = Raw::over(socket.connect(daemon.address()).await.unwrap());
    let authorization = key.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{authorization}\r\n");
    assert!(raw.send(request.repeat(4).as_bytes()).await);
    raw
}

/// Sends a request and asserts its status and its time.
async fn answers_soon(daemon: &Daemon, key: &str, method: &str, path: &str, body: &str, expected: u16) {
    let started = Instant::now();
    let (status, answer) = call_as(daemon, key, method, path, body).await;
    assert_eq!(status, expected, "{method} {path}: {answer}");
    assert!(started.elapsed() < SOON, "{method} {path} took {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_of_one_tenant_do_not_delay_reads_of_others() {
    let data = tempfile::tempdir().unwrap();
    // No timeout helps during the test.
    let daemon = daemon(data.path(), &[("BALTO__SERVER__ANSWER_TIMEOUT", "1h")]).await;
    let publisher = key(&daemon, "publisher", Some("evil")).await;
    let evil = key(&daemon, "viewer", Some("evil")).await;
    let good = key(&daemon, "viewer", Some("good")).await;
    let large = json!({"type": "a", "data": "x".repeat(250_000)}).to_string();
    for _ in 0..10 {
        assert_eq!(call_as(&daemon, &publisher, "POST", "/events", &large).await.0, 202);
    }
    let mut readers = Vec::new();
    for _ in 0..80 {
        readers.push(slow_reader(&daemon, "/v1/events?limit=250", Some(&evil)).await);
    }
    for _ in 0..5 {
        answers_soon(&daemon, &good, "GET", "/events?limit=1", "", 200).await;
        answers_soon(&daemon, ADMIN, "GET", "/keys", "", 200).await;
    }
    // The key's unread responses are bounded: its slowest readers are disconnected.
    // 80 responses have 2.5 MB each.
    daemon.until_metric("balto_api_connections", "", |open| open <= 20.0).await;
    assert!(daemon.kibibytes("VmHWM") < 400 * 1024);
}

#[tokio::test]
async fn public_document_is_small_for_clients_that_accept_gzip() {
    use std::io::Read as _;
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon(data.path(), &[]).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let get = async |encoding: &str| {
        let url = format!("{}/openapi.json", daemon.api);
        let reply = client.get(url).header("accept-encoding", encoding).send().await.unwrap();
        let coding =
            reply.headers().get("content-encoding").map(|coding| coding.to_str().unwrap().to_owned());
        assert_eq!(reply.headers()["vary"], "accept-encoding");
        (coding, reply.bytes().await.unwrap())
    };
    let (coding, plain) = get("identity").await;
    assert_eq!(coding, None);
    let (coding, gzip) = get("br, gzip").await;
    assert_eq!(coding.as_deref(), Some("gzip"));
    assert!(gzip.len() < plain.len() / 4, "{} of {} bytes", gzip.len(), plain.len());
    let mut read = Vec::new();
    flate2::read::GzDecoder::new(&gzip[..]).read_to_end(&mut read).unwrap();
    assert_eq!(read, plain);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn address_without_key_has_a_connection_limit() {
    let data = tempfile::tempdir().unwrap();
    let limits =
        [("BALTO__SERVER__MAX_CONNECTIONS_PER_ADDRESS", "8"), ("BALTO__SERVER__UNLIMITED_NETWORKS", "")];
    let daemon = daemon(data.path(), &limits).await;
    // The first request builds the document.
    answers_soon(&daemon, ADMIN, "GET", "/openapi.json", "", 200).await;
    let mut readers = Vec::new();
    for _ in 0..40 {
        readers.push(slow_reader(&daemon, "/v1/openapi.json", None).await);
    }
    let started = Instant::now();
    while daemon.metric("balto_api_connections", "").await > 8.0 {
        assert!(started.elapsed() < WAIT_MAX, "40 connections of one address stay open");
    }
    answers_soon(&daemon, ADMIN, "GET", "/events?limit=1", "", 200).await;
    drop(readers);
    // Connections with a key do not count.
    let mut with_key = Vec::new();
    for _ in 0..20 {
        let mut raw = Raw::connect(daemon.address()).await;
        let request =
            format!("GET /v1/keys HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {ADMIN}\r\n\r\n");
        raw.send(request.as_bytes()).await;
        assert_eq!(raw.answer().await.unwrap().status, 200);
        with_key.push(raw);
    }
    for raw in &mut with_key {
        raw.send(b"GET /v1/openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        assert_eq!(raw.answer().await.unwrap().status, 200, "a connection with a key was closed");
    }
}

/// A body of this tenant that never ends.
async fn unfinished_body(daemon: &Daemon, key: &str, path: &str, length: usize) -> Raw {
    let mut raw = Raw::connect(daemon.address()).await;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    raw.send(head.as_bytes()).await;
    // The daemon may close the connection before all is sent.
    let _all_sent = raw.send(&vec![b' '; length - 100]).await;
    raw
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_bodies_of_one_tenant_leave_room_for_others() {
    let data = tempfile::tempdir().unwrap();
    let limits = [("BALTO__SERVER__MAX_BODY_BYTES", "32MiB"), ("BALTO__SERVER__BODY_TIMEOUT", "1h")];
    let daemon = daemon(data.path(), &limits).await;
    let evil = key(&daemon, "publisher", Some("evil")).await;
    let good = key(&daemon, "publisher", Some("good")).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(unfinished_body(&daemon, &evil, "/v1/events/batch", 16 << 20).await);
    }
    for _ in 0..32 {
        held.push(unfinished_body(&daemon, &evil, "/v1/events", 200_000).await);
    }
    for bytes in [10, 2_000, 200_000] {
        let event = json!({"type": "a", "data": "x".repeat(bytes)}).to_string();
        answers_soon(&daemon, &good, "POST", "/events", &event, 202).await;
    }
    let events = vec![json!({"type": "a", "data": "x".repeat(9_000)}); 1_000];
    let batch = json!({"events": events}).to_string();
    let (status, _) = call_as(&daemon, &good, "POST", "/events/batch", &batch).await;
    assert_eq!(status, 202, "a batch of 9 MB is within the tenant's share");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_body_is_rejected_before_its_timeout() {
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon(data.path(), &[("BALTO__SERVER__BODY_TIMEOUT", "1h")]).await;
    let mut raw = unfinished_body(&daemon, ADMIN, "/v1/events", 20_000).await;
    let answer = raw.answer().await.unwrap();
    assert_eq!(answer.status, 408);
    assert!(
        answer.body.contains("body_too_slow") && answer.body.contains("min_body_rate"),
        "{}",
        answer.body
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_of_one_tenant_do_not_hold_up_events_of_another() {
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon(data.path(), &[]).await;
    let evil = key(&daemon, "publisher", Some("evil")).await;
    let good = key(&daemon, "publisher", Some("good")).await;
    let events = vec![json!({"type": "a", "data": "x".repeat(200)}); 1_000];
    let batch = json!({"events": events}).to_string();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let publishers: Vec<_> = (0..8)
        .map(|_| {
            let (client, key, batch, stopped) =
                (client.clone(), evil.clone(), batch.clone(), stopped.clone());
            let url = format!("{}/events/batch", daemon.api);
            tokio::spawn(async move {
                let mut accepted = 0;
                while !*stopped.borrow() {
                    let request = client.post(&url).bearer_auth(&key);
                    let request = request.header("content-type", "application/json").body(batch.clone());
                    accepted += u32::from(request.send().await.unwrap().status() == 202);
                }
                accepted
            })
        })
        .collect();
    for _ in 0..20 {
        answers_soon(&daemon, &good, "POST", "/events", r#"{"type":"a","data":1}"#, 202).await;
    }
    stop.send_replace(true);
    for publisher in publishers {
        assert!(publisher.await.unwrap() > 0, "a publisher of batches got nothing through");
    }
}

/// Takes all connections for one tenant, and asserts that another one is answered soon.
async fn others_are_answered_beside(daemon: &Daemon, request: &str) {
    let good = key(daemon, "viewer", Some("good")).await;
    answers_soon(daemon, &good, "GET", "/events?limit=1", "", 200).await;
    let mut held = Vec::new();
    for _ in 0..60 {
        let mut raw = Raw::connect(daemon.address()).await;
        assert!(raw.send(request.as_bytes()).await);
        held.push(raw);
    }
    for _ in 0..20 {
        // A new connection each time.
        answers_soon(daemon, &good, "GET", "/events?limit=1", "", 200).await;
    }
    let mut ended = 0;
    for raw in &mut held {
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(20), raw.answer()).await {
            // On a busy machine, connections give way before their requests are read.
            assert!(answer.is_none_or(|answer| answer.body.contains("overloaded")));
            ended += 1;
        }
    }
    assert!((1..50).contains(&ended), "{ended} requests of the tenant were ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_of_one_tenant_leave_connections_for_others() {
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon(data.path(), &[("BALTO__SERVER__MAX_CONNECTIONS", "40")]).await;
    let evil = key(&daemon, "admin", Some("evil")).await;
    let endpoint = json!({"url": "https://example.com/"}).to_string();
    let (_, endpoint) = call_as(&daemon, &evil, "POST", "/endpoints", &endpoint).await;
    call_as(&daemon, &evil, "POST", &format!("/endpoints/{}/pause", text(&endpoint, "id")), "").await;
    let (_, event) = call_as(&daemon, &evil, "POST", "/events", r#"{"type": "a", "data": 1}"#).await;
    let path = format!("/v1/events/{}?wait=60s", text(&event, "id"));
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {evil}\r\n\r\n");
    others_are_answered_beside(&daemon, &request).await;
}

/// Everything that a connection has to read within a short time.
async fn rest_of(raw: &mut Raw) -> String {
    let mut all = Vec::new();
    let mut bytes = [0; 4_096];
    let read = async {
        while let Ok(count @ 1..) = tokio::io::AsyncReadExt::read(&mut raw.stream, &mut bytes).await {
            all.extend_from_slice(&bytes[..count]);
        }
    };
    let _ended = tokio::time::timeout(Duration::from_millis(20), read).await.is_ok();
    String::from_utf8(all).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_one_tenant_leave_connections_for_others() {
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon(data.path(), &[("BALTO__SERVER__MAX_CONNECTIONS", "40")]).await;
    let evil = key(&daemon, "viewer", Some("evil")).await;
    let good = key(&daemon, "viewer", Some("good")).await;
    let request = |key: &str, query: &str| {
        format!(
            "GET /v1/feed?after=now{query} HTTP/1.1\r\nhost: localhost\r\naccept: {}\r\nauthorization: Bearer {key}\r\n\r\n",
            if query.is_empty() { "text/event-stream" } else { "application/json" }
        )
    };
    let mut own = Raw::connect(daemon.address()).await;
    assert!(own.send(request(&good, "").as_bytes()).await);
    daemon.until_metric("balto_api_streams", "", |streams| streams == 1.0).await;
    // The connections without a stream wait, so that no idle one can be closed.
    let (mut held, mut waiting) = (Vec::new(), Vec::new());
    for number in 1..=19 {
        let mut raw = Raw::connect(daemon.address()).await;
        assert!(raw.send(request(&evil, "&wait=60s").as_bytes()).await);
        waiting.push(raw);
        let number = f64::from(number);
        daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting == number).await;
    }
    for number in 2..=21 {
        let mut raw = Raw::connect(daemon.address()).await;
        assert!(raw.send(request(&evil, "").as_bytes()).await);
        held.push(raw);
        let number = f64::from(number);
        daemon.until_metric("balto_api_streams", "", |streams| streams == number).await;
    }
    for _ in 0..20 {
        // A new connection each time.
        answers_soon(&daemon, &good, "GET", "/events?limit=1", "", 200).await;
    }
    let mut ended = 0;
    for raw in &mut held {
        let text = rest_of(raw).await;
        let is_ended = text.contains("event: balto.end\n");
        assert!(!is_ended || text.contains(r#"data: {"reason":"connections"}"#), "{text}");
        ended += usize::from(is_ended);
    }
    assert!((1..5).contains(&ended), "{ended} streams of the tenant were ended");
    let text = rest_of(&mut own).await;
    assert!(
        text.contains("balto.caughtup") && !text.contains("balto.end"),
        "a tenant below its share: {text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_bodies_of_one_tenant_leave_connections_for_others() {
    let data = tempfile::tempdir().unwrap();
    let environment = [
        ("BALTO__SERVER__MAX_CONNECTIONS", "40"),
        ("BALTO__SERVER__BODY_TIMEOUT", "1h"),
        ("BALTO__SERVER__MIN_BODY_RATE", "0"),
    ];
    let daemon = daemon(data.path(), &environment).await;
    let evil = key(&daemon, "publisher", Some("evil")).await;
    let headers = format!("authorization: Bearer {evil}\r\n");
    let whole = crate::support::raw::post("/v1/events", &headers, r#"{"type": "a", "data": 1}"#);
    others_are_answered_beside(&daemon, &whole[..whole.len() - 5]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_and_reads_are_limited_per_key() {
    let data = tempfile::tempdir().unwrap();
    let daemon = daemon(data.path(), &[]).await;
    let first = key(&daemon, "viewer", Some("acme")).await;
    let second = key(&daemon, "viewer", Some("acme")).await;
    let set = async |quotas: serde_json::Value| {
        let settings = json!({"quotas": quotas}).to_string();
        assert!(call_as(&daemon, ADMIN, "PUT", "/tenants/acme", &settings).await.0 < 300);
    };
    let request = |key: &str, wait: &str| {
        let headers = format!("host: localhost\r\nauthorization: Bearer {key}\r\n");
        format!("GET /v1/feed?after=0{wait} HTTP/1.1\r\n{headers}\r\n")
    };
    let refused = async |key: &str, quota: &str, limit: u64| {
        let (status, refusal) = call_as(&daemon, key, "GET", "/feed?after=0", "").await;
        assert_eq!((status, text(&refusal, "quota").as_str()), (429, quota), "{refusal}");
        assert_eq!((&refusal["limit"], &refusal["value"]), (&json!(limit), &json!(limit + 1)));
    };

    // A read that waits is in progress.
    set(json!({"readsPerKey": 1})).await;
    let mut waiting = Raw::connect(daemon.address()).await;
    assert!(waiting.send(request(&first, "&wait=60s").as_bytes()).await);
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting == 1.0).await;
    refused(&first, "readsPerKey", 1).await;
    answers_soon(&daemon, &second, "GET", "/feed?after=0", "", 200).await;
    drop(waiting);
    daemon.until_metric("balto_api_waiting_requests", "", |waiting| waiting == 0.0).await;
    answers_soon(&daemon, &first, "GET", "/feed?after=0", "", 200).await;

    // A connection counts once, and only for the key of its last request.
    set(json!({"connectionsPerKey": 2})).await;
    let mut open = [Raw::connect(daemon.address()).await, Raw::connect(daemon.address()).await];
    for number in [0, 1, 0, 1] {
        let raw = &mut open[number];
        assert!(raw.send(request(&first, "").as_bytes()).await);
        assert_eq!(raw.answer().await.unwrap().status, 200);
    }
    let mut third = Raw::connect(daemon.address()).await;
    assert!(third.send(request(&first, "").as_bytes()).await);
    let refusal = third.answer().await.unwrap();
    let body: serde_json::Value = serde_json::from_str(&refusal.body).unwrap();
    assert_eq!((refusal.status, text(&body, "quota").as_str()), (429, "connectionsPerKey"), "{body}");
    assert_eq!((&body["limit"], &body["value"]), (&json!(2), &json!(3)), "{body}");
    assert!(third.is_closed_within(WAIT_MAX).await, "a refused connection stays");
    assert!(open[0].send(request(&second, "").as_bytes()).await);
    assert_eq!(open[0].answer().await.unwrap().status, 200);
    answers_soon(&daemon, &first, "GET", "/feed?after=0", "", 200).await;
    for quota in ["readsPerKey", "connectionsPerKey"] {
        let labels = format!("quota=\"{quota}\"");
        daemon.until_metric("balto_quota_refusals_total", &labels, |refusals| refusals == 1.0).await;
    }
}

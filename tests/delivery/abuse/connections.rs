//! Connections that are held and never used, requests that never arrive, responses that are never
//! read.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpSocket;

use super::{EVENT, until};
use crate::support::raw::{Raw, post};
use crate::support::{Daemon, WAIT_MAX};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_and_slow_connections_do_not_block_other_clients() {
    const LIMIT: usize = 64;
    const SOCKETS: usize = 2_000;
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_in(
        data.path(),
        &["--dev"],
        &[("BALTO__SERVER__MAX_CONNECTIONS", "64"), ("BALTO__SERVER__HEADER_TIMEOUT", "1h")],
    )
    .await;
    // Half of them are silent, half send headers byte by byte until the deadline.
    let mut sockets = Vec::new();
    for number in 0..SOCKETS {
        let mut raw = Raw::connect(daemon.address()).await;
        if number % 2 == 0 {
            raw.send(b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\nx: y").await;
        }
        sockets.push(raw);
        if number % 100 == 99 {
            let (status, answer, _) = daemon.call("POST", "/events", &[], EVENT).await;
            assert_eq!(status, 202, "with {number} sockets: {answer}");
            for drip in sockets.iter_mut().step_by(2) {
                drip.send(b"y").await;
            }
        }
    }
    // The kernel completes a connection before the daemon accepts it: the last ones may still be
    // queued.
    until("excess connections are evicted", async || {
        let open = daemon.metric("balto_api_connections", "").await;
        let displaced = daemon.metric("balto_api_connections_displaced_total", "").await;
        open <= LIMIT as f64 && displaced >= (SOCKETS - LIMIT) as f64
    })
    .await;
    assert!(daemon.kibibytes("VmHWM") < 200 * 1024);
    drop(sockets);
    until("the connection limit is free again", async || {
        daemon.metric("balto_api_connections", "").await <= 1.0
    })
    .await;
}

#[tokio::test]
async fn requests_that_do_not_arrive_in_time_are_ended() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_in(
        data.path(),
        &["--dev"],
        &[("BALTO__SERVER__HEADER_TIMEOUT", "1s"), ("BALTO__SERVER__BODY_TIMEOUT", "1s")],
    )
    .await;
    let silent = Raw::connect(daemon.address()).await;
    let mut dripping = Raw::connect(daemon.address()).await;
    dripping.send(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n").await;
    let mut kept = Raw::connect(daemon.address()).await;
    kept.send(post("/v1/events", "", EVENT).as_bytes()).await;
    assert_eq!(kept.answer().await.unwrap().status, 202);
    let mut slow_body = Raw::connect(daemon.address()).await;
    slow_body
        .send(b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
        .await;
    // A byte now and then does not extend the deadline.
    let started = Instant::now();
    let mut headers_open = true;
    let mut body_open = true;
    while headers_open || body_open {
        headers_open = headers_open && dripping.send(b"x: y\r\n").await;
        body_open = body_open && slow_body.send(b" ").await;
        assert!(started.elapsed() < WAIT_MAX, "headers: {headers_open}, body: {body_open}");
        if body_open
            && tokio::time::timeout(Duration::from_millis(50), slow_body.stream.readable()).await.is_ok()
        {
            assert_eq!(slow_body.answer().await.unwrap().status, 408);
            body_open = false;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (name, mut socket) in [("silent", silent), ("kept alive", kept)] {
        assert!(socket.is_closed_within(WAIT_MAX).await, "{name} stays open");
    }
}

#[tokio::test]
async fn unread_responses_do_not_hold_request_slots() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_in(
        data.path(),
        &["--dev"],
        &[("BALTO__SERVER__ANSWER_TIMEOUT", "1s"), ("BALTO__INGEST__MAX_EVENT_BYTES", "1MiB")],
    )
    .await;
    let large = json!({"type": "a.b", "data": "x".repeat(1_000_000)}).to_string();
    for _ in 0..20 {
        daemon.post("/events", &large).await;
    }
    let page = daemon.get("/events?limit=250").await;
    let shown = page["data"].as_array().unwrap().len();
    assert!((1..=3).contains(&shown) && page["next"].is_string(), "{shown} events of a megabyte on one page");
    // More clients than request slots: each requests pages and reads nothing.
    let mut readers = Vec::new();
    for _ in 0..80 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let mut raw = Raw::over(socket.connect(daemon.address()).await.unwrap());
        let request = b"GET /v1/events?limit=250 HTTP/1.1\r\nhost: localhost\r\n\r\n";
        raw.send(&request.repeat(4)).await;
        readers.push(raw);
    }
    let all = walk(&daemon).await;
    assert_eq!(all, 20, "pages that end early link to the rest");
    assert!(daemon.kibibytes("VmHWM") < 400 * 1024, "{} KiB", daemon.kibibytes("VmHWM"));
    until("the readers' connections are closed", async || {
        daemon.metric("balto_api_connections", "").await <= 2.0
    })
    .await;
}

/// The number of events, counted page by page.
async fn walk(daemon: &Daemon) -> usize {
    crate::support::load::stored_events(daemon).await.len()
}

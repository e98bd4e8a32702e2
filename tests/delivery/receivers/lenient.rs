//! Irregular replies that other clients accept: the status decides, and a body has two seconds.

use std::time::{Duration, Instant};

use balto::courier::{CourierSettings, Proxy};
use balto::domain::ErrorClass;
use balto::domain::ReceiverAnswer::Status;
use balto::limits;
use serde_json::{Value, json};

use super::{courier, courier_with, send, settings};
use crate::support::chaos::{Chaos, replies_with, script};
use crate::support::{Daemon, WAIT_MAX, answer};

/// Far above the time limit of a body, and far below the timeout of the attempts.
const BODY_SECONDS_MAX: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn headers_are_found_in_any_notation() {
    for line in [
        "Retry-After: 7",
        "RETRY-AFTER:7",
        "retry-after \t:\t7\t",
        "Retry-After:\r\n 7",
        "Retry-After:\r\n\t\r\n 7",
        "X-Policy: a;\r\n b;\r\n\tc\r\nRetry-After: 7",
        "X[Foo]: bar\r\nRetry-After: 7",
        "no colon\r\nRetry-After: 7",
        ": no name\r\nRetry-After: 7",
        "X-A: \u{1}\r\nRetry-After: 7",
        "X-A: b\r\r\nRetry-After: 7\r",
    ] {
        let receiver =
            Chaos::start(&replies_with(format!("HTTP/1.1 429\r\n{line}\r\nContent-Length: 0\r\n\r\n")));
        let reply = send(&courier(), &receiver.url, "a", WAIT_MAX).await;
        assert_eq!((reply.outcome, reply.retry_after.as_deref()), (Ok(Status(429)), Some("7")), "{line:?}");
    }
}

#[tokio::test]
async fn folded_value_is_one_line_with_spaces() {
    let head =
        "HTTP/1.1 200 OK\r\nWebHook-Allowed-Origin: a.example,\r\n   b.example,\r\n\tc.example\r\n\r\n";
    let receiver = Chaos::start(&script(move |mut talk| async move {
        talk.request().await;
        talk.send(head.as_bytes()).await;
    }));
    let reply = send(&courier(), &receiver.url, "a", WAIT_MAX).await;
    assert_eq!(reply.allowed_origin.as_deref(), Some("a.example, b.example, c.example"));
}

#[tokio::test]
async fn reply_may_have_256_header_lines() {
    for count in [101, 255] {
        let lines = "X-N: 1\r\n".repeat(count);
        let receiver =
            Chaos::start(&replies_with(format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 2\r\n\r\nhi")));
        let reply = send(&courier(), &receiver.url, "a", WAIT_MAX).await;
        assert_eq!((reply.outcome, &reply.body[..]), (Ok(Status(200)), &b"hi"[..]), "{count}");
    }
}

/// The split of a head into packets does not matter.
#[tokio::test]
async fn irregular_head_may_arrive_byte_by_byte() {
    let head = "\r\nhttp/1.1  200\tOK\r\r\nX[Foo] : a\r\n b\r\nContent-Length : 2\r\n\r\nhi";
    let receiver = Chaos::start(&script(move |mut talk| async move {
        talk.request().await;
        for byte in head.as_bytes() {
            talk.send(&[*byte]).await;
            tokio::task::yield_now().await;
        }
        talk.hang().await;
    }));
    let reply = send(&courier(), &receiver.url, "a", WAIT_MAX).await;
    assert_eq!((reply.outcome, &reply.body[..]), (Ok(Status(200)), &b"hi"[..]));
    receiver.until_all_closed().await;
}

/// Silence, drips and floods after the head, with any announced length: the attempt and its
/// connection end long before the timeout.
#[tokio::test]
async fn body_ends_two_seconds_after_the_head() {
    let heads = [
        (200, "HTTP/1.1 200 OK\r\n\r\n"),
        (200, "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n"),
        (200, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"),
        (200, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (200, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\nhel"),
        (201, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\n\r\n"),
        (404, "HTTP/1.1 404 Not Found\r\n\r\n"),
        (503, "HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 100000\r\n\r\n"),
    ];
    let meet = async |(status, head): (u16, &'static str), drips: bool| {
        let receiver = Chaos::start(&script(move |mut talk| async move {
            talk.request().await;
            talk.send(head.as_bytes()).await;
            if drips { talk.drip(b"0").await } else { talk.hang().await }
        }));
        let reply = send(&courier(), &receiver.url, "a", TIMEOUT).await;
        let story = format!("{head:?}, drips: {drips}, {reply:?}");
        assert_eq!(reply.outcome, Ok(Status(status)), "{story}");
        assert!((limits::REPLY_BODY_TIMEOUT..BODY_SECONDS_MAX).contains(&reply.duration), "{story}");
        assert_eq!(reply.retry_after.is_some(), head.contains("Retry-After"), "{story}");
        receiver.until_all_closed().await;
    };
    let meetings = heads.into_iter().flat_map(|head| [meet(head, false), meet(head, true)]);
    futures_util::future::join_all(meetings).await;
}

/// The earlier of the two limits ends the body. One of many tries has to show it on a busy machine.
#[tokio::test]
async fn body_ends_with_a_shorter_timeout() {
    let receiver = Chaos::start(&script(|mut talk| async move {
        talk.request().await;
        talk.send(b"HTTP/1.1 200 OK\r\n\r\n").await;
        talk.hang().await;
    }));
    for _ in 0..50 {
        let reply = send(&courier(), &receiver.url, "a", Duration::from_millis(500)).await;
        if reply.outcome == Ok(Status(200)) && reply.duration < limits::REPLY_BODY_TIMEOUT {
            return;
        }
    }
    panic!("the shorter timeout never ended the body");
}

/// A small device that answers without a length and keeps the connection open, three events in
/// order.
#[tokio::test]
async fn device_without_a_length_frees_its_slot() {
    let device = Chaos::start(&script(|mut talk| async move {
        talk.request().await;
        talk.send(b"HTTP/1.1 200 OK\r\n\r\n").await;
        talk.hang().await;
    }));
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let body = json!({"url": device.url, "ordering": "endpoint", "timeout": "60s"});
    let endpoint = daemon.post("/endpoints", &body.to_string()).await;
    let started = Instant::now();
    for _ in 0..3 {
        daemon.post("/events", &json!({"type": "a", "data": 1}).to_string()).await;
    }
    let path = format!("/deliveries?endpointId={}", endpoint["id"].as_str().unwrap());
    let delivered = |list: &Value| {
        let all = list["data"].as_array().unwrap();
        all.len() == 3 && all.iter().all(|delivery| delivery["status"] == "delivered")
    };
    daemon.until(&path, delivered).await;
    assert!(started.elapsed() < TIMEOUT, "{:?}", started.elapsed());
    assert_eq!(device.connections(), 3);
}

/// A proxy's reply is parsed like a receiver's, and its refusal may have a body.
#[tokio::test]
async fn proxy_replies_are_read_leniently() {
    for (head, refusal) in [
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nsorry", Some("(status 403)")),
        ("HTTP/1.0  407\nProxy-Authenticate:\n Basic\n\n<html>", Some("(status 407)")),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\nVia : x\r\n\r\n", None),
    ] {
        let proxy = Chaos::start(&script(move |mut talk| async move {
            talk.request().await;
            talk.send(head.as_bytes()).await;
            talk.request().await;
            talk.send(answer(200).as_bytes()).await;
        }));
        let proxied = Proxy::new(&proxy.url.parse().unwrap());
        let courier = courier_with(CourierSettings { proxy: proxied, ..settings() });
        let outcome = send(&courier, "http://127.0.0.1:8080/", "a", WAIT_MAX).await.outcome;
        match refusal {
            None => assert_eq!(outcome, Ok(Status(200)), "{head:?}"),
            Some(status) => {
                let Err((class, words)) = outcome else { panic!("{head:?}") };
                assert!(class == ErrorClass::Connect && words.ends_with(status), "{head:?}: {words}");
            }
        }
    }
}

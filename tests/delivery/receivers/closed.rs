//! Receivers that close a pooled connection: the courier repeats the request on a new connection if
//! no byte of a reply has arrived. It is still the same attempt.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use balto::courier::{CourierSettings, OutboundRequest, Proxy, RequestUrl};
use balto::domain::ErrorClass;
use balto::domain::ReceiverAnswer::Status;
use hyper::header::HeaderMap;
use serde_json::{Value, json};

use super::{courier, courier_with, send, settings};
use crate::support::chaos::{Chaos, Script, Talk, script};
use crate::support::{Daemon, WAIT_MAX, answer};

type Ending = Arc<dyn Fn(Talk) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Answers the first request of each of the first `spoilt` connections and passes the connection on
/// to `end`. Later connections answer every request.
fn ends_on_reuse(spoilt: usize, end: Ending) -> Script {
    script(move |mut talk| {
        let end = end.clone();
        async move {
            let mut answered = 0;
            while talk.number >= spoilt || answered == 0 {
                if talk.request().await.is_none() || !talk.send(answer(200).as_bytes()).await {
                    return;
                }
                answered += 1;
            }
            end(talk).await;
        }
    })
}

fn ids(receiver: &Chaos) -> Vec<String> {
    receiver.requests().iter().map(|got| got.headers["webhook-id"].clone()).collect()
}

/// The ways in which a connection ends without a reply, and whether the request was read.
fn endings() -> Vec<(&'static str, Ending, bool)> {
    vec![
        ("closed before the request", script(|_| async {}), false),
        (
            "408 for an idle connection",
            script(|mut talk| async move {
                talk.first_byte().await;
                let reply = "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                talk.send(reply.as_bytes()).await;
            }),
            false,
        ),
        (
            "closed while the request arrives",
            script(|mut talk| async move { talk.first_byte().await }),
            false,
        ),
        (
            "reset while the request arrives",
            script(|mut talk| async move {
                talk.first_byte().await;
                talk.reset();
            }),
            false,
        ),
        (
            "closed after the request",
            script(|mut talk| async move {
                talk.request().await;
            }),
            true,
        ),
        (
            "reset after the request",
            script(|mut talk| async move {
                talk.request().await;
                talk.reset();
            }),
            true,
        ),
        (
            "half closed after the request",
            script(|mut talk| async move {
                talk.request().await;
                talk.half_close().await;
                talk.hang().await;
            }),
            true,
        ),
    ]
}

#[tokio::test]
async fn reused_connection_that_ends_is_replaced_once() {
    for (story, end, is_read) in endings() {
        let receiver = Chaos::start(&ends_on_reuse(1, end));
        let courier = courier();
        assert_eq!(
            send(&courier, &receiver.url, "first", WAIT_MAX).await.outcome,
            Ok(Status(200)),
            "{story}"
        );
        assert_eq!(
            send(&courier, &receiver.url, "second", WAIT_MAX).await.outcome,
            Ok(Status(200)),
            "{story}"
        );
        let expected = if is_read { vec!["first", "second", "second"] } else { vec!["first", "second"] };
        assert_eq!(
            (ids(&receiver), receiver.connections()),
            (expected.iter().map(ToString::to_string).collect(), 2),
            "{story}"
        );
        let requests = receiver.requests();
        let (sent, again) = (&requests[1], &requests[requests.len() - 1]);
        assert_eq!(
            (&sent.line, &sent.headers, &sent.body),
            (&again.line, &again.headers, &again.body),
            "{story}"
        );
    }
}

#[tokio::test]
async fn fresh_connection_that_ends_fails_the_attempt() {
    for (story, end, _) in endings() {
        let receiver = Chaos::start(&script(move |mut talk| {
            let end = end.clone();
            async move {
                if talk.number == 0 {
                    talk.request().await;
                    talk.send(answer(200).as_bytes()).await;
                }
                end(talk).await;
            }
        }));
        let courier = courier();
        assert_eq!(
            send(&courier, &receiver.url, "first", WAIT_MAX).await.outcome,
            Ok(Status(200)),
            "{story}"
        );
        let reply = send(&courier, &receiver.url, "second", WAIT_MAX).await;
        assert!(matches!(reply.outcome, Err((ErrorClass::Reset, _)) | Ok(Status(408))), "{story}: {reply:?}");
        assert_eq!(receiver.connections(), 2, "{story}");
    }
}

#[tokio::test]
async fn request_with_a_byte_of_a_reply_is_not_repeated() {
    for byte in ["H", "\r", "\n", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 100 Continue\r\n\r\n"] {
        let end: Ending = script(move |mut talk| async move {
            talk.request().await;
            talk.send(byte.as_bytes()).await;
        });
        let receiver = Chaos::start(&ends_on_reuse(1, end));
        let courier = courier();
        send(&courier, &receiver.url, "first", WAIT_MAX).await;
        let reply = send(&courier, &receiver.url, "second", WAIT_MAX).await;
        assert!(matches!(reply.outcome, Err((ErrorClass::Reset, _))), "{byte:?}: {reply:?}");
        assert_eq!(
            (ids(&receiver), receiver.connections()),
            (vec!["first".into(), "second".into()], 1),
            "{byte:?}"
        );
    }
}

#[tokio::test]
async fn timed_out_request_is_not_repeated() {
    let end: Ending = script(|mut talk| async move { talk.hang().await });
    let receiver = Chaos::start(&ends_on_reuse(1, end));
    let courier = courier();
    send(&courier, &receiver.url, "first", WAIT_MAX).await;
    let reply = send(&courier, &receiver.url, "second", Duration::from_millis(300)).await;
    assert!(matches!(reply.outcome, Err((ErrorClass::Timeout, _))), "{reply:?}");
    receiver.until_all_closed().await;
    assert_eq!(receiver.connections(), 1);
}

/// The receiver waits for half of the timeout, closes, and is silent on the new connection.
#[tokio::test]
async fn repeated_request_shares_the_timeout_of_its_attempt() {
    const TIMEOUT: Duration = Duration::from_secs(6);
    let receiver = Chaos::start(&script(|mut talk| async move {
        talk.request().await;
        if talk.number == 0 {
            talk.send(answer(200).as_bytes()).await;
            talk.request().await;
            tokio::time::sleep(TIMEOUT / 2).await;
        } else {
            talk.hang().await;
        }
    }));
    let courier = courier();
    send(&courier, &receiver.url, "first", WAIT_MAX).await;
    let reply = send(&courier, &receiver.url, "second", TIMEOUT).await;
    assert!(matches!(reply.outcome, Err((ErrorClass::Timeout, _))), "{reply:?}");
    assert_eq!(receiver.connections(), 2);
    assert!(reply.duration < TIMEOUT * 3 / 2, "the repeated request had a new timeout: {:?}", reply.duration);
}

/// A restarted receiver has closed all connections: the courier tries one of them, then makes a new
/// one.
#[tokio::test]
async fn stale_pool_costs_one_connection() {
    const POOLED: usize = 8;
    let barrier = Arc::new(tokio::sync::Barrier::new(POOLED));
    let receiver = Chaos::start(&script(move |mut talk| {
        let barrier = barrier.clone();
        async move {
            while talk.request().await.is_some() {
                if talk.number < POOLED {
                    barrier.wait().await;
                }
                talk.send(answer(200).as_bytes()).await;
                if talk.number < POOLED {
                    talk.request().await;
                    return;
                }
            }
        }
    }));
    let courier = courier();
    let sends = (0..POOLED).map(|_| send(&courier, &receiver.url, "first", WAIT_MAX));
    for reply in futures_util::future::join_all(sends).await {
        assert_eq!(reply.outcome, Ok(Status(200)));
    }
    assert_eq!(send(&courier, &receiver.url, "second", WAIT_MAX).await.outcome, Ok(Status(200)));
    let seconds = ids(&receiver).iter().filter(|id| *id == "second").count();
    assert_eq!((receiver.connections(), seconds), (POOLED + 1, 2));
}

#[tokio::test]
async fn handshake_request_is_repeated_like_a_delivery() {
    let end: Ending = script(|mut talk| async move {
        talk.request().await;
    });
    let receiver = Chaos::start(&ends_on_reuse(1, end));
    let courier = courier();
    send(&courier, &receiver.url, "first", WAIT_MAX).await;
    let url = RequestUrl::parse(&receiver.url).unwrap().into();
    let outbound_request = OutboundRequest::options(url, HeaderMap::new(), WAIT_MAX);
    assert_eq!(courier.send(outbound_request).await.unwrap().outcome, Ok(Status(200)));
    let lines: Vec<_> = receiver.requests().into_iter().map(|got| got.line).collect();
    assert_eq!(lines, ["POST /hook HTTP/1.1", "OPTIONS /hook HTTP/1.1", "OPTIONS /hook HTTP/1.1"]);
}

#[tokio::test]
async fn connection_through_a_proxy_is_replaced_too() {
    // The proxy's answer to CONNECT, the receiver's to the first request, then the end.
    let proxy = Chaos::start(&script(|mut talk| async move {
        talk.request().await;
        talk.send(b"HTTP/1.1 200 Connected\r\n\r\n").await;
        talk.request().await;
        talk.send(answer(200).as_bytes()).await;
        talk.request().await;
    }));
    let address = proxy.url.parse().unwrap();
    let courier = courier_with(CourierSettings { proxy: Proxy::new(&address), ..settings() });
    for id in ["first", "second"] {
        assert_eq!(send(&courier, "http://127.0.0.1:8080/", id, WAIT_MAX).await.outcome, Ok(Status(200)));
    }
    let lines: Vec<_> = proxy.requests().into_iter().map(|got| got.line).collect();
    let (connect, post) = ("CONNECT 127.0.0.1:8080 HTTP/1.1", "POST / HTTP/1.1");
    assert_eq!(lines, [connect, post, post, connect, post]);
}

/// Three hundred events to a receiver that closes each connection up to two milliseconds after its
/// reply, without `Connection: close`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_connection_is_retried_without_charge() {
    const EVENTS: usize = 300;
    let receiver = Chaos::start(&script(|mut talk| async move {
        if talk.request().await.is_some() && talk.send(answer(200).as_bytes()).await {
            tokio::time::sleep(Duration::from_micros(talk.number as u64 % 20 * 100)).await;
        }
    }));
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    // The retry of a failed attempt would come in an hour, so that a failed attempt fails the test.
    let body = json!({"url": receiver.url, "retry": {"schedule": ["1h"]}});
    let endpoint = daemon.post("/endpoints", &body.to_string()).await;
    let event = json!({"type": "a", "data": 1});
    for _ in 0..EVENTS / 100 {
        daemon.post("/events/batch", &json!({"events": vec![&event; 100]}).to_string()).await;
    }
    let mut counts: HashMap<String, usize> = HashMap::new();
    for got in receiver.until(EVENTS).await {
        assert_eq!(got.headers["balto-attempt"], "1");
        *counts.entry(got.headers["webhook-id"].clone()).or_default() += 1;
    }
    assert!(counts.len() == EVENTS && counts.values().all(|count| *count == 1), "{counts:?}");
    let path = format!("/deliveries?endpointId={}&limit=250", endpoint["id"].as_str().unwrap());
    let all_delivered = |list: &Value| {
        let all = list["data"].as_array().unwrap();
        all.len() == 250 && all.iter().all(|delivery| delivery["status"] == "delivered")
    };
    let list = daemon.until(&path, all_delivered).await;
    let first_try = list["data"].as_array().unwrap().iter().all(|delivery| delivery["attemptCount"] == 1);
    assert!(first_try, "{list}");
}

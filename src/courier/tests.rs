//! Receivers that misbehave, on real sockets.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// A receiver that answers each connection's requests by a script, and counts connections.
struct Chaos {
    url: String,
    connections: Arc<AtomicUsize>,
}

async fn chaos<F, Fut>(script: F) -> Chaos
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(script(stream));
        }
    });
    Chaos { url, connections }
}

/// Reads one request and answers it with these bytes.
async fn answer(mut stream: TcpStream, bytes: &[u8]) -> TcpStream {
    let mut buffer = [0; 4096];
    let _read = stream.read(&mut buffer).await;
    let _written = stream.write_all(bytes).await;
    stream
}

async fn fixed(reply: &'static str) -> Chaos {
    chaos(move |stream| async move { drop(answer(stream, reply.as_bytes()).await) }).await
}

fn courier() -> Courier {
    Courier::new(CourierSettings { policy: EgressPolicy::default().dev(), ..CourierSettings::for_tests() })
        .unwrap()
}

async fn send(courier: &Courier, url: &str) -> Reply {
    let parcel = Parcel::new(url, HeaderMap::new(), Bytes::from_static(b"{}"), Duration::from_millis(400));
    courier.send(parcel.unwrap()).await
}

fn class(reply: &Reply) -> ErrorClass {
    reply.outcome.as_ref().expect_err("a failure").0
}

#[tokio::test]
async fn statuses_and_headers_come_back_and_redirects_are_not_followed() {
    let target = fixed("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let location = target.url.clone();
    let redirect = chaos(move |stream| {
        let reply = format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
        async move { drop(answer(stream, reply.as_bytes()).await) }
    })
    .await;
    assert_eq!(send(&courier(), &redirect.url).await.outcome, Ok(302));
    assert_eq!(target.connections.load(Ordering::SeqCst), 0, "F1");
    let busy = fixed(
        "HTTP/1.1 429 Slow\r\nretry-after: 7\r\nwebhook-delivery: disable\r\ncontent-length: 2\r\n\r\nno",
    )
    .await;
    let reply = send(&courier(), &busy.url).await;
    assert_eq!((reply.outcome, reply.retry_after.as_deref()), (Ok(429), Some("7")));
    assert_eq!((reply.webhook_delivery.as_deref(), &reply.body[..]), (Some("disable"), &b"no"[..]));
}

#[tokio::test]
async fn endless_bodies_are_capped_and_drips_end_at_the_deadline() {
    let endless = chaos(|stream| async move {
        let mut stream = answer(stream, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
        while stream.write_all(chunk.as_bytes()).await.is_ok() {}
    })
    .await;
    let reply = send(&courier(), &endless.url).await;
    assert_eq!((reply.outcome, reply.body.len()), (Ok(200), limits::REPLY_BYTES_MAX), "F2");
    let drip = |prefix: &'static [u8]| {
        chaos(move |stream| async move {
            let mut stream = answer(stream, prefix).await;
            while stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    };
    let body = drip(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await;
    assert_eq!(send(&courier(), &body.url).await.outcome, Ok(200), "F4 body");
    let head = drip(b"HTTP/1.1 200 OK\r\nx: ").await;
    assert_eq!(class(&send(&courier(), &head.url).await), ErrorClass::Timeout, "F4 header");
    let informed = chaos(|stream| async move {
        let mut stream = answer(stream, b"").await;
        while stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(class(&send(&courier(), &informed.url).await), ErrorClass::Timeout, "F6");
}

#[tokio::test]
async fn what_is_not_http_is_told_apart() {
    let flood: &'static str =
        Box::leak(format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(10_000)).into());
    let rows = [
        ("F5", flood, ErrorClass::ResponseTooLarge),
        (
            "F7",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            ErrorClass::Protocol,
        ),
        ("F8", "hello there\r\n\r\n", ErrorClass::Protocol),
        ("F8", "", ErrorClass::Reset),
    ];
    for (row, reply, expected) in rows {
        let receiver = fixed(reply).await;
        assert_eq!(class(&send(&courier(), &receiver.url).await), expected, "{row}");
    }
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", gone.local_addr().unwrap());
    drop(gone);
    assert_eq!(class(&send(&courier(), &url).await), ErrorClass::Connect);
}

#[tokio::test]
async fn connections_are_used_again() {
    let receiver = chaos(|mut stream| async move {
        let mut buffer = [0; 4096];
        while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
            let _written = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        }
    })
    .await;
    let courier = courier();
    for _ in 0..50 {
        assert_eq!(send(&courier, &receiver.url).await.outcome, Ok(204));
    }
    assert_eq!(receiver.connections.load(Ordering::SeqCst), 1);
}

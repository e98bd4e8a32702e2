//! Tests of internal state. Tests through the public interface are in `tests/delivery`.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;
use hyper::header::HeaderMap;

use super::failure::is_exhausted;
use super::*;
use crate::domain::ReceiverAnswer;
use crate::limits;

/// Reads once and returns the number of bytes; 0 if the stream is closed.
fn read_some(stream: &mut TcpStream) -> usize {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.read(&mut [0; 4_096]).unwrap()
}

/// Sends a request over a new connection, answers it, and returns the receiver's end.
async fn connect(courier: &Courier, listener: &TcpListener, request: OutboundRequest) -> TcpStream {
    let listener = listener.try_clone().unwrap();
    let answering = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(read_some(&mut stream) > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        stream
    });
    assert_eq!(courier.send(request).await.unwrap().outcome, Ok(ReceiverAnswer::Status(200)));
    answering.await.unwrap()
}

/// A courier that may send to this machine, a listener, and requests to that listener.
fn setup() -> (Courier, TcpListener, impl Fn() -> OutboundRequest) {
    let mut settings = CourierSettings::for_tests();
    settings.policy.allow_http = true;
    settings.policy.allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1_024).unwrap().into_std().unwrap();
    listener.set_nonblocking(false).unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let url = Arc::new(RequestUrl::parse(&url).unwrap());
    let request =
        move || OutboundRequest::new(url.clone(), HeaderMap::new(), Bytes::new(), Duration::from_secs(60));
    (Courier::new(settings).unwrap(), listener, request)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_on_a_closed_connection_is_returned_unsent() {
    let (courier, listener, request) = setup();
    let receiver_end = connect(&courier, &listener, request()).await;
    let pool = courier.shared.generation.load().pool(None).unwrap();
    let url = request().url;
    let target = &url.wire().unwrap().target;
    let mut connection = pool.take(target).expect("the connection is idle");
    drop(receiver_end);
    tokio::time::sleep(Duration::from_millis(100)).await; // the kernel delivers the close
    let sending = connection.send(request().into_http().unwrap());
    let sent = tokio::time::timeout(Duration::from_secs(10), sending).await;
    let unsent = sent.expect("sending ends").expect_err("the connection is closed");
    assert!(unsent.into_error().is_canceled());
    // The courier takes the closed connection and repeats the request on a new one.
    pool.put(target.clone(), connection);
    connect(&courier, &listener, request()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reply_that_the_library_rejects_keeps_its_headers() {
    let (courier, listener, request) = setup();
    let answering = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(read_some(&mut stream) > 0);
        let head = "HTTP/1.1 429 x\r\ncontent-length: 5\r\ncontent-length: 6\r\n";
        let headers = "retry-after: 30\r\nwebhook-delivery: disable\r\nwebhook-allowed-rate: 1\r\n\r\n";
        stream.write_all(format!("{head}{headers}").as_bytes()).unwrap();
        stream
    });
    let reply = courier.send(request()).await.unwrap();
    assert_eq!(reply.outcome, Ok(ReceiverAnswer::Status(429)));
    assert_eq!(reply.retry_after.as_deref(), Some("30"));
    assert_eq!(reply.webhook_delivery.as_deref(), Some("disable"));
    assert_eq!(reply.allowed_rate.as_deref(), Some("1"));
    assert!(reply.body.is_empty());
    drop(answering.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reaper_evicts_all_closed_connections_at_once() {
    const MANY: usize = 200; // exceeds the budget of a task (128 in tokio)
    let (courier, listener, request) = setup();
    let accepting = std::thread::spawn(move || {
        let accepted: Vec<_> = (0..MANY).map(|_| listener.accept().unwrap().0).collect();
        accepted
            .into_iter()
            .map(|mut stream| {
                assert!(read_some(&mut stream) > 0);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                stream
            })
            .collect::<Vec<_>>()
    });
    let sending = (0..MANY).map(|_| {
        tokio::spawn({
            let (courier, request) = (courier.clone(), request());
            async move { courier.send(request).await.unwrap().outcome }
        })
    });
    for sent in sending.collect::<Vec<_>>() {
        assert_eq!(sent.await.unwrap(), Ok(ReceiverAnswer::Status(200)));
    }
    let pool = courier.shared.generation.load().pool(None).unwrap();
    drop(accepting.join().unwrap());
    tokio::time::sleep(Duration::from_millis(100)).await; // the kernel delivers the closes
    tokio::spawn(async move { assert!(!pool.evict_expired().await, "some are still kept") }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptor_shortage_closes_connections_after_their_reply() {
    let (courier, listener, request) = setup();
    let send = || {
        let (courier, request) = (courier.clone(), request());
        tokio::spawn(async move { courier.send(request).await.unwrap().outcome })
    };
    let (one, other) = (send(), send());
    let accepting = tokio::task::spawn_blocking(move || {
        [(); 2].map(|()| {
            let mut stream = listener.accept().unwrap().0;
            assert!(read_some(&mut stream) > 0);
            stream
        })
    });
    let [mut answered, _silent] = accepting.await.unwrap();
    courier.on_shortage();
    answered.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    let closed = tokio::task::spawn_blocking(move || read_some(&mut answered));
    assert_eq!(closed.await.unwrap(), 0);
    let (ended, _) = futures_util::future::select(one, other).await.factor_first();
    assert_eq!(ended.unwrap(), Ok(ReceiverAnswer::Status(200)));
}

#[tokio::test]
async fn idle_connection_is_evicted_after_its_timeout() {
    let (courier, listener, request) = setup();
    let _receiver_end = connect(&courier, &listener, request()).await;
    let pool = courier.shared.generation.load().pool(None).unwrap();
    assert!(pool.evict_expired().await, "the connection is evicted too early");
    tokio::time::pause();
    tokio::time::advance(pool::IDLE_TIMEOUT).await;
    assert!(!pool.evict_expired().await, "the connection is still kept");
}

/// An endless read uses up the task's budget. The deadline must still be polled.
#[tokio::test]
async fn endless_read_does_not_starve_the_deadline() {
    use tokio::task::coop::poll_proceed;
    let mut polls = 0;
    let endless_read = poll_fn(|cx| {
        while let Poll::Ready(budget) = poll_proceed(cx) {
            budget.made_progress();
        }
        polls += 1;
        if polls < 1_000_000 { Poll::Pending } else { Poll::Ready(()) }
    });
    let deadline = pin!(running_timer(Duration::from_millis(5)));
    assert_eq!(with_deadline(deadline, pin!(endless_read)).await, None);
}

#[test]
fn error_message_is_truncated_at_a_character_boundary() {
    let long = "é".repeat(limits::ERROR_BYTES_MAX);
    let message = ReceiverReply::failed(ErrorClass::Tls, long.clone()).outcome.unwrap_err().1;
    assert_eq!(message, long[..limits::ERROR_BYTES_MAX]);
    let message = ReceiverReply::failed(ErrorClass::Tls, format!("x{long}")).outcome.unwrap_err().1;
    assert_eq!(message.len(), limits::ERROR_BYTES_MAX - 1);
    assert_eq!(ReceiverReply::failed(ErrorClass::Tls, "short".to_owned()).outcome.unwrap_err().1, "short");
}

#[test]
fn descriptor_shortage_is_found_inside_other_errors() {
    let io = std::io::Error::from_raw_os_error;
    assert!(is_exhausted(&std::io::Error::other(io(24))));
    assert!(is_exhausted(&io(23)));
    assert!(!is_exhausted(&std::io::Error::other(io(111))));
    assert!(!is_exhausted(&std::io::Error::other("not a system error")));
}

//! What is seen from within only; the rest is in `tests/delivery`.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use super::*;

/// What comes from it before it is closed.
fn read_a_bit(stream: &mut TcpStream) -> usize {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.read(&mut [0; 4_096]).unwrap()
}

/// Sends a request, which is answered on a new connection; the receiver's end of it.
async fn connect(courier: &Courier, listener: &TcpListener, parcel: Parcel) -> TcpStream {
    let listener = listener.try_clone().unwrap();
    let answering = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(read_a_bit(&mut stream) > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        stream
    });
    assert_eq!(courier.send(parcel).await.unwrap().outcome, Ok(200));
    answering.await.unwrap()
}

/// A courier that may send to this machine, and somebody to send to.
fn stage() -> (Courier, TcpListener, impl Fn() -> Parcel) {
    let mut settings = CourierSettings::for_tests();
    settings.policy.allow_http = true;
    settings.policy.allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1_024).unwrap().into_std().unwrap();
    listener.set_nonblocking(false).unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let parcel = move || Parcel::new(&url, HeaderMap::new(), Bytes::new(), Duration::from_secs(60)).unwrap();
    (Courier::new(settings).unwrap(), listener, parcel)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_ends_just_before_it_is_used_again_gives_the_request_back() {
    let (courier, listener, parcel) = stage();
    let theirs = connect(&courier, &listener, parcel()).await;
    let pool = courier.shared.outfit.load().pool(None).unwrap();
    let mut line = pool.take(&Target::new(&parcel().url).unwrap()).expect("it rests");
    drop(theirs);
    tokio::time::sleep(Duration::from_millis(100)).await; // until it must have been heard
    let sent = tokio::time::timeout(Duration::from_secs(10), line.send(parcel().request().unwrap())).await;
    let unsent = sent.expect("nobody says anything").expect_err("there is nobody who could answer");
    assert!(unsent.into_error().is_canceled());
    // So that the courier sends it again.
    pool.put(Target::new(&parcel().url).unwrap(), line);
    connect(&courier, &listener, parcel()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reply_that_the_library_refuses_keeps_its_headers() {
    let (courier, listener, parcel) = stage();
    let answering = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(read_a_bit(&mut stream) > 0);
        let head = "HTTP/1.1 429 x\r\ncontent-length: 5\r\ncontent-length: 6\r\n";
        let headers = "retry-after: 30\r\nwebhook-delivery: disable\r\nwebhook-allowed-rate: 1\r\n\r\n";
        stream.write_all(format!("{head}{headers}").as_bytes()).unwrap();
        stream
    });
    let reply = courier.send(parcel()).await.unwrap();
    assert_eq!(reply.outcome, Ok(429));
    assert_eq!(reply.retry_after.as_deref(), Some("30"));
    assert_eq!(reply.webhook_delivery.as_deref(), Some("disable"));
    assert_eq!(reply.allowed_rate.as_deref(), Some("1"));
    assert!(reply.body.is_empty());
    drop(answering.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_connections_that_have_ended_are_seen_in_one_look() {
    const MANY: usize = 200; // more than a task may do at once (tokio's budget is 128)
    let (courier, listener, parcel) = stage();
    let accepting = std::thread::spawn(move || {
        let accepted: Vec<_> = (0..MANY).map(|_| listener.accept().unwrap().0).collect();
        accepted
            .into_iter()
            .map(|mut stream| {
                assert!(read_a_bit(&mut stream) > 0);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                stream
            })
            .collect::<Vec<_>>()
    });
    let sending = (0..MANY).map(|_| {
        tokio::spawn({
            let (courier, parcel) = (courier.clone(), parcel());
            async move { courier.send(parcel).await.unwrap().outcome }
        })
    });
    for sent in sending.collect::<Vec<_>>() {
        assert_eq!(sent.await.unwrap(), Ok(200));
    }
    let pool = courier.shared.outfit.load().pool(None).unwrap();
    drop(accepting.join().unwrap());
    tokio::time::sleep(Duration::from_millis(100)).await; // until it must have been heard
    tokio::spawn(async move { assert!(!pool.look_after().await, "some are still kept") }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_way_when_descriptors_are_short_keeps_none() {
    let (courier, listener, parcel) = stage();
    let send = || {
        let (courier, parcel) = (courier.clone(), parcel());
        tokio::spawn(async move { courier.send(parcel).await.unwrap().outcome })
    };
    let (one, other) = (send(), send());
    let accepting = tokio::task::spawn_blocking(move || {
        [(); 2].map(|()| {
            let mut stream = listener.accept().unwrap().0;
            assert!(read_a_bit(&mut stream) > 0);
            stream
        })
    });
    let [mut answered, _silent] = accepting.await.unwrap();
    courier.on_shortage();
    answered.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    let closed = tokio::task::spawn_blocking(move || read_a_bit(&mut answered));
    assert_eq!(closed.await.unwrap(), 0);
    let (ended, _) = futures_util::future::select(one, other).await.factor_first();
    assert_eq!(ended.unwrap(), Ok(200));
}

#[tokio::test]
async fn a_connection_rests_so_long_and_no_longer() {
    let (courier, listener, parcel) = stage();
    let _theirs = connect(&courier, &listener, parcel()).await;
    let pool = courier.shared.outfit.load().pool(None).unwrap();
    assert!(pool.look_after().await, "it is as good as new");
    tokio::time::pause();
    tokio::time::advance(pool::REST_MAX).await;
    assert!(!pool.look_after().await, "it is still kept");
}

/// What reads without end uses up what its task may do at once, and the clock is asked all the same.
#[tokio::test]
async fn whoever_talks_without_end_does_not_stop_the_clock() {
    use tokio::task::coop::poll_proceed;
    let mut turns = 0;
    let talk = poll_fn(|cx| {
        while let Poll::Ready(budget) = poll_proceed(cx) {
            budget.made_progress();
        }
        turns += 1;
        if turns < 1_000_000 { Poll::Pending } else { Poll::Ready(()) }
    });
    let patience = pin!(awake(Duration::from_millis(5)));
    assert_eq!(within(patience, pin!(talk)).await, None);
}

#[test]
fn words_about_a_failure_have_a_bound() {
    let long = "é".repeat(limits::ERROR_BYTES_MAX);
    let words = Reply::failed(ErrorClass::Tls, long.clone()).outcome.unwrap_err().1;
    assert_eq!(words, long[..limits::ERROR_BYTES_MAX]);
    let words = Reply::failed(ErrorClass::Tls, format!("x{long}")).outcome.unwrap_err().1;
    assert_eq!(words.len(), limits::ERROR_BYTES_MAX - 1, "no half of a character");
    assert_eq!(Reply::failed(ErrorClass::Tls, "short".to_owned()).outcome.unwrap_err().1, "short");
}

#[test]
fn a_want_of_file_descriptors_is_found_behind_other_errors() {
    let io = std::io::Error::from_raw_os_error;
    assert!(is_exhausted(&std::io::Error::other(io(24))));
    assert!(is_exhausted(&io(23)));
    assert!(!is_exhausted(&std::io::Error::other(io(111))));
    assert!(!is_exhausted(&std::io::Error::other("nothing of the system's")));
}

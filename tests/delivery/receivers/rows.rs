//! Each row of table F against the courier. F12, F13 and F15 are about records and lanes: see
//! `records.rs`.

use std::sync::Arc;
use std::time::Duration;

use balto::courier::ReceiverReply;
use balto::domain::ErrorClass;
use balto::domain::ReceiverAnswer::Status;
use balto::limits;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use super::table_f::{self, Case, Ends, with_body};
use super::{courier, send, send_body};
use crate::support::chaos::{Chaos, FLOOD_BYTES_MAX, replies_with, script};
use crate::support::{WAIT_MAX, answer};

/// Upper limit of the socket buffers on both sides.
const BUFFERS_BYTES_MAX: u64 = 32 * 1024 * 1024;
const _: () = assert!(BUFFERS_BYTES_MAX < FLOOD_BYTES_MAX); // a flood exceeds the socket buffers

/// Runs the courier against each case of a row; returns the results for further checks.
async fn run_cases(row: &str) -> Vec<(Case, ReceiverReply, Chaos)> {
    let mut met = Vec::new();
    for case in table_f::all().into_iter().filter(|case| case.row == row) {
        let receiver = Chaos::start(&case.script);
        let reply = send(&courier(), &receiver.url, "a", case.timeout()).await;
        let story = format!("{row}, {}: {reply:?}", case.story);
        let outcome = reply.outcome.as_ref().map_err(|(class, _)| *class);
        assert_eq!(outcome.copied(), case.expected.map(Status), "{story}");
        assert_eq!(reply.duration >= case.timeout(), case.ends == Ends::AtTheDeadline, "{story}");
        assert!(reply.body.len() <= limits::REPLY_BYTES_MAX, "{story}");
        assert_eq!(receiver.connections(), 1, "{story}");
        // The courier and its pool are dropped, so every receiver must lose its connections.
        receiver.until_all_closed().await;
        assert!(receiver.written() < BUFFERS_BYTES_MAX, "{story}: {} bytes were taken", receiver.written());
        met.push((case, reply, receiver));
    }
    assert!(!met.is_empty(), "{row} has no case");
    met
}

#[tokio::test]
async fn f1_redirect_is_a_failure_and_is_not_followed() {
    for (case, _, receiver) in run_cases("F1").await {
        assert_eq!(receiver.requests().len(), 1, "{}", case.story);
    }
    let target = Chaos::start(&replies_with(answer(200)));
    for status in [301, 302, 303, 307, 308] {
        // Each hop would lead to a hundred more, and each of them to the target.
        let hops = format!("HTTP/1.1 {status} x\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", target.url);
        let receiver = Chaos::start(&replies_with(hops));
        let reply = send(&courier(), &receiver.url, "a", WAIT_MAX).await;
        assert_eq!(
            (reply.outcome, reply.location.as_deref()),
            (Ok(Status(status)), Some(target.url.as_str()))
        );
        assert_eq!((receiver.requests().len(), target.connections()), (1, 0), "{status}");
    }
    let long = format!("http://a.example/{}", "x".repeat(50_000));
    let reply = format!("HTTP/1.1 302 x\r\nlocation: {long}\r\ncontent-length: 0\r\n\r\n");
    let receiver = Chaos::start(&replies_with(reply));
    let shown = send(&courier(), &receiver.url, "a", WAIT_MAX).await.location.unwrap();
    assert_eq!(shown, long[..limits::LOCATION_BYTES_MAX]);
}

#[tokio::test]
async fn f2_bodies_are_read_up_to_the_cap_with_any_length() {
    for (case, reply, _) in run_cases("F2").await {
        let expected = match case.story.as_str() {
            story if story.contains("endless") || story.contains("gigabytes") => limits::REPLY_BYTES_MAX,
            story if story.contains("less than") => "short".len(),
            "more than announced" => 2,
            _ => 0,
        };
        assert_eq!(reply.body.len(), expected, "{}", case.story);
    }
}

#[tokio::test]
async fn f3_no_encoding_is_requested_or_decoded() {
    let bomb = table_f::gzip_bomb();
    assert!((5_000..limits::REPLY_BYTES_MAX).contains(&bomb.len()), "the bomb has {} bytes", bomb.len());
    for (case, reply, receiver) in run_cases("F3").await {
        assert_eq!(reply.body, bomb, "{}", case.story);
        let headers = &receiver.requests()[0].headers;
        assert!(!headers.contains_key("accept-encoding") && !headers.contains_key("te"), "{headers:?}");
    }
}

#[tokio::test]
async fn f4_slow_reply_ends_at_the_attempts_deadline() {
    run_cases("F4").await;
}

#[tokio::test]
async fn f4_unread_request_ends_at_the_attempts_deadline() {
    let receiver = Chaos::with_small_window(&script(|talk| async move { talk.stay().await }));
    let timeout = Duration::from_millis(400);
    let body = vec![b'x'; 16 << 20];
    let reply = send_body(&courier(), &receiver.url, "a", &body, timeout).await;
    assert!(matches!(reply.outcome, Err((ErrorClass::Timeout, _))), "{reply:?}");
}

#[tokio::test]
async fn f5_endless_heads_fail_the_attempt() {
    run_cases("F5").await;
}

#[tokio::test]
async fn f6_endless_informational_responses_fail_the_attempt() {
    run_cases("F6").await;
}

#[tokio::test]
async fn f7_protocol_switch_is_refused() {
    run_cases("F7").await;
}

#[tokio::test]
async fn f8_non_http_bytes_are_not_a_reply() {
    run_cases("F8").await;
}

/// Socket buffers hide how much of a request the receiver has read: an early reply counts like any
/// other.
#[tokio::test]
async fn f8_early_reply_counts_and_its_connection_is_not_reused() {
    for status in [413, 200] {
        let receiver = Chaos::with_small_window(&table_f::answers_early(status));
        let (courier, body) = (courier(), vec![b'x'; 16 << 20]);
        for attempt in 1..=2 {
            // The courier does not wait until the receiver reads the rest.
            let sending = send_body(&courier, &receiver.url, "a", &body, WAIT_MAX);
            let reply = tokio::time::timeout(WAIT_MAX / 2, sending).await.unwrap();
            assert_eq!(reply.outcome, Ok(Status(status)));
            assert_eq!(receiver.connections(), attempt, "the rest of the first request is still on its way");
        }
    }
}

#[tokio::test]
async fn f8_early_reply_without_an_end_ends_at_the_deadline() {
    let receiver = Chaos::with_small_window(&script(|mut talk| async move {
        talk.first_byte().await;
        talk.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n").await;
        talk.stay().await;
    }));
    let body = vec![b'x'; 16 << 20];
    let reply = send_body(&courier(), &receiver.url, "a", &body, Duration::from_millis(400)).await;
    assert_eq!(reply.outcome, Ok(Status(200)));
}

#[tokio::test]
async fn f8_request_is_sent_in_full_after_an_early_reply() {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let receiver = Chaos::with_small_window(&script(|mut talk| async move {
        talk.first_byte().await;
        talk.send(OK).await;
        // Time for the courier to read the reply separately.
        tokio::time::sleep(Duration::from_millis(100)).await;
        talk.request().await;
        talk.request().await;
        talk.send(OK).await;
        talk.hang().await;
    }));
    let (courier, body) = (courier(), vec![b'x'; 16 << 20]);
    assert_eq!(send_body(&courier, &receiver.url, "a", &body, WAIT_MAX).await.outcome, Ok(Status(200)));
    assert!(receiver.until(1).await[0].body.as_bytes() == body);
    assert_eq!(send(&courier, &receiver.url, "b", WAIT_MAX).await.outcome, Ok(Status(200)));
    assert_eq!(
        (receiver.until(2).await.len(), receiver.connections()),
        (2, 1),
        "the connection is not reused"
    );
}

#[tokio::test]
async fn f9_wrongly_framed_body_leaves_the_status() {
    run_cases("F9").await;
}

/// HTTP/2 is neither offered nor tried, and a receiver that speaks it is not understood (F7, F8).
/// Its floods therefore cannot start.
#[tokio::test]
async fn f10_http_2_is_never_offered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let hello = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut acceptor = rustls::server::Acceptor::default();
        loop {
            let mut bytes = vec![0; 4_096];
            let read = stream.read(&mut bytes).await.unwrap();
            acceptor.read_tls(&mut &bytes[..read]).unwrap();
            if let Some(accepted) = acceptor.accept().map_err(|(error, _)| error).unwrap() {
                let offered = accepted.client_hello().alpn().unwrap().map(<[u8]>::to_vec);
                return offered.collect::<Vec<_>>();
            }
        }
    });
    let reply = send(&courier(), &url, "a", WAIT_MAX).await;
    assert!(reply.outcome.is_err(), "{reply:?}");
    assert_eq!(hello.await.unwrap(), [b"http/1.1".to_vec()]);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let line = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut begin = [0; 16];
        stream.read_exact(&mut begin).await.unwrap();
        begin
    });
    send(&courier(), &url, "a", WAIT_MAX).await;
    assert_eq!(line.await.unwrap(), *b"POST / HTTP/1.1\r", "the request starts with an HTTP/2 preface");
}

#[tokio::test]
async fn f11_cookies_and_other_client_state_are_ignored() {
    let elsewhere = Chaos::start(&replies_with(answer(200)));
    let port = elsewhere.url.rsplit(':').next().unwrap().trim_end_matches("/hook").to_owned();
    let wishes = format!(
        "HTTP/1.1 401 Unauthorized\r\nset-cookie: a=b; path=/; max-age=99999\r\nset-cookie2: c=d\r\n\
         alt-svc: h2=\":{port}\"; ma=99999; persist=1, h3=\":{port}\"\r\n\
         strict-transport-security: max-age=99999; includeSubDomains\r\nwww-authenticate: Basic realm=\"x\"\r\n\
         proxy-authenticate: Basic\r\naccept-ch: device-memory\r\ncontent-security-policy: upgrade-insecure-requests\r\n\
         public-key-pins: x\r\nnel: {{}}\r\netag: \"x\"\r\ncache-control: max-age=99999\r\ncontent-location: /x\r\n\
         keep-alive: timeout=99999\r\ncontent-length: 0\r\n\r\n"
    );
    let receiver = Chaos::start(&replies_with(wishes));
    let courier = courier();
    for _ in 0..3 {
        assert_eq!(send(&courier, &receiver.url, "a", WAIT_MAX).await.outcome, Ok(Status(401)));
    }
    let requests = receiver.requests();
    assert_eq!(requests.len(), 3, "a challenge was answered or a response was cached");
    assert_eq!((&requests[1].headers, &requests[2].headers), (&requests[0].headers, &requests[0].headers));
    let mut names: Vec<_> = requests[0].headers.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "content-length", "host", "webhook-id"]);
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn f14_status_line_decides_when_the_body_breaks_off() {
    for (case, reply, _) in run_cases("F14").await {
        assert_eq!(reply.body, "abc", "{}", case.story);
    }
}

/// RST and FIN at each step, T23: the next request uses a new connection, and the failed request is
/// not repeated.
#[tokio::test]
async fn broken_connection_is_not_reused_and_not_repeated() {
    let breaks: Vec<_> =
        table_f::all().into_iter().filter(|case| case.expected == Err(ErrorClass::Reset)).collect();
    assert!(breaks.len() >= 6);
    for case in breaks {
        let broken = case.script.clone();
        let receiver = Chaos::start(&script(move |mut talk| {
            let broken = broken.clone();
            async move {
                if talk.number == 0 {
                    return broken(talk).await;
                }
                while talk.request().await.is_some() && talk.send(answer(200).as_bytes()).await {}
            }
        }));
        let courier = courier();
        let first = send(&courier, &receiver.url, "first", WAIT_MAX).await;
        assert!(matches!(first.outcome, Err((ErrorClass::Reset, _))), "{}: {first:?}", case.story);
        let second = send(&courier, &receiver.url, "second", WAIT_MAX).await;
        assert_eq!((second.outcome, receiver.connections()), (Ok(Status(200)), 2), "{}", case.story);
        let firsts = receiver.requests().iter().filter(|got| got.headers["webhook-id"] == "first").count();
        assert!(firsts <= 1, "{}", case.story);
    }
}

#[tokio::test]
async fn connections_are_reused() {
    let receiver = Chaos::start(&replies_with(with_body("HTTP/1.1 200 OK", b"thanks")));
    let courier = courier();
    for _ in 0..50 {
        assert_eq!(send(&courier, &receiver.url, "a", WAIT_MAX).await.outcome, Ok(Status(200)));
    }
    assert_eq!(receiver.connections(), 1);
}

/// A dropped attempt (for example at a shutdown) closes its connection.
#[tokio::test]
async fn dropped_attempt_closes_its_connection() {
    let receiver = Arc::new(Chaos::start(&script(|mut talk| async move {
        talk.request().await;
        talk.hang().await;
    })));
    let courier = courier();
    let sending = tokio::spawn({
        let (courier, url) = (courier.clone(), receiver.url.clone());
        async move { send(&courier, &url, "a", WAIT_MAX).await }
    });
    receiver.until(1).await;
    sending.abort();
    receiver.until_all_closed().await;
}

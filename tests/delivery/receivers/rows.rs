//! Each row of table F against the courier. F12, F13 and F15 are about records and lanes: see `records.rs`.

use std::sync::Arc;
use std::time::Duration;

use balto::courier::Reply;
use balto::domain::ErrorClass;
use balto::limits;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use super::table_f::{self, Case, Ends, with_body};
use super::{courier, send, send_body};
use crate::support::chaos::{Chaos, FLOOD_BYTES_MAX, says, script};
use crate::support::{PATIENCE, answer};

/// What the system's buffers between the two may hold.
const BUFFERS_BYTES_MAX: u64 = 32 * 1024 * 1024;
const _: () = assert!(BUFFERS_BYTES_MAX < FLOOD_BYTES_MAX); // a flood is larger than what hides it

/// Lets the courier meet each case of a row; gives what came back, for what else the row promises.
async fn meet(row: &str) -> Vec<(Case, Reply, Chaos)> {
    let mut met = Vec::new();
    for case in table_f::all().into_iter().filter(|case| case.row == row) {
        let receiver = Chaos::start(&case.script);
        let reply = send(&courier(), &receiver.url, "a", case.timeout()).await;
        let story = format!("{row}, {}: {reply:?}", case.story);
        let outcome = reply.outcome.as_ref().map_err(|(class, _)| *class);
        assert_eq!(outcome, case.expected.as_ref().map_err(|class| *class), "{story}");
        assert_eq!(reply.duration >= case.timeout(), case.ends == Ends::AtTheDeadline, "{story}");
        assert!(reply.body.len() <= limits::REPLY_BYTES_MAX, "{story}");
        assert_eq!(receiver.connections(), 1, "{story}");
        // The courier is gone, and its pool with it: whoever still talks must have been hung up on.
        receiver.until_left_alone().await;
        assert!(receiver.written() < BUFFERS_BYTES_MAX, "{story}: {} bytes were taken", receiver.written());
        met.push((case, reply, receiver));
    }
    assert!(!met.is_empty(), "{row} has no case");
    met
}

#[tokio::test]
async fn f1_a_redirect_is_a_failure_and_nothing_follows_it() {
    for (case, _, receiver) in meet("F1").await {
        assert_eq!(receiver.requests().len(), 1, "{}", case.story);
    }
    let target = Chaos::start(&says(answer(200)));
    for status in [301, 302, 303, 307, 308] {
        // Each hop would lead to a hundred more, and each of them to the target.
        let hops = format!("HTTP/1.1 {status} x\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", target.url);
        let receiver = Chaos::start(&says(hops));
        let reply = send(&courier(), &receiver.url, "a", PATIENCE).await;
        assert_eq!((reply.outcome, reply.location.as_deref()), (Ok(status), Some(target.url.as_str())));
        assert_eq!((receiver.requests().len(), target.connections()), (1, 0), "{status}");
    }
    let long = format!("http://a.example/{}", "x".repeat(50_000));
    let reply = format!("HTTP/1.1 302 x\r\nlocation: {long}\r\ncontent-length: 0\r\n\r\n");
    let receiver = Chaos::start(&says(reply));
    let shown = send(&courier(), &receiver.url, "a", PATIENCE).await.location.unwrap();
    assert_eq!(shown, long[..limits::LOCATION_BYTES_MAX]);
}

#[tokio::test]
async fn f2_bodies_without_end_are_read_up_to_the_cap_and_lengths_that_lie_change_nothing() {
    for (case, reply, _) in meet("F2").await {
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
async fn f3_nothing_is_decoded_and_no_encoding_is_asked_for() {
    let bomb = table_f::gzip_bomb();
    assert!((5_000..limits::REPLY_BYTES_MAX).contains(&bomb.len()), "the bomb has {} bytes", bomb.len());
    for (case, reply, receiver) in meet("F3").await {
        assert_eq!(reply.body, bomb, "{}", case.story);
        let headers = &receiver.requests()[0].headers;
        assert!(!headers.contains_key("accept-encoding") && !headers.contains_key("te"), "{headers:?}");
    }
}

#[tokio::test]
async fn f4_what_comes_byte_by_byte_ends_with_the_attempts_time() {
    meet("F4").await;
}

#[tokio::test]
async fn f4_a_request_that_nobody_reads_ends_with_the_attempts_time() {
    let receiver = Chaos::with_small_window(&script(|talk| async move { talk.stay().await }));
    let timeout = Duration::from_millis(400);
    let body = vec![b'x'; 16 << 20];
    let reply = send_body(&courier(), &receiver.url, "a", &body, timeout).await;
    assert!(matches!(reply.outcome, Err((ErrorClass::Timeout, _))), "{reply:?}");
}

#[tokio::test]
async fn f5_heads_without_end_are_given_up() {
    meet("F5").await;
}

#[tokio::test]
async fn f6_informational_answers_without_end_are_given_up() {
    meet("F6").await;
}

#[tokio::test]
async fn f7_nobody_switches_protocols() {
    meet("F7").await;
}

#[tokio::test]
async fn f8_what_is_not_http_is_no_answer() {
    meet("F8").await;
}

/// What the system has taken of a request cannot be told from what the receiver has read: its word counts, early or not.
#[tokio::test]
async fn f8_an_answer_before_the_request_has_ended_is_the_answer_and_its_connection_is_not_used_again() {
    for status in [413, 200] {
        let receiver = Chaos::with_small_window(&table_f::answers_early(status));
        let (courier, body) = (courier(), vec![b'x'; 16 << 20]);
        for attempt in 1..=2 {
            // Nobody waits for the rest to be read until the attempt's time is over.
            let sending = send_body(&courier, &receiver.url, "a", &body, PATIENCE);
            let reply = tokio::time::timeout(PATIENCE / 2, sending).await.unwrap();
            assert_eq!(reply.outcome, Ok(status));
            assert_eq!(receiver.connections(), attempt, "the rest of the first request is still on its way");
        }
    }
}

#[tokio::test]
async fn f8_an_early_answer_that_does_not_end_ends_with_the_attempts_time() {
    let receiver = Chaos::with_small_window(&script(|mut talk| async move {
        talk.first_byte().await;
        talk.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n").await;
        talk.stay().await;
    }));
    let body = vec![b'x'; 16 << 20];
    let reply = send_body(&courier(), &receiver.url, "a", &body, Duration::from_millis(400)).await;
    assert_eq!(reply.outcome, Ok(200));
}

#[tokio::test]
async fn f8_whoever_answers_early_and_reads_on_gets_the_whole_request() {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let receiver = Chaos::with_small_window(&script(|mut talk| async move {
        talk.first_byte().await;
        talk.send(OK).await;
        // Long enough for the answer to be read by itself.
        tokio::time::sleep(Duration::from_millis(100)).await;
        talk.request().await;
        talk.request().await;
        talk.send(OK).await;
        talk.hang().await;
    }));
    let (courier, body) = (courier(), vec![b'x'; 16 << 20]);
    assert_eq!(send_body(&courier, &receiver.url, "a", &body, PATIENCE).await.outcome, Ok(200));
    assert!(receiver.until(1).await[0].body.as_bytes() == body);
    assert_eq!(send(&courier, &receiver.url, "b", PATIENCE).await.outcome, Ok(200));
    assert_eq!(
        (receiver.until(2).await.len(), receiver.connections()),
        (2, 1),
        "its connection is as good as any"
    );
}

#[tokio::test]
async fn f9_wrongly_framed_body_leaves_the_status() {
    meet("F9").await;
}

/// HTTP/2 is not spoken, so that its floods and storms have nothing to begin with: it is neither offered, nor tried, and a
/// receiver that speaks it is not understood (F7, F8).
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
    let reply = send(&courier(), &url, "a", PATIENCE).await;
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
    send(&courier(), &url, "a", PATIENCE).await;
    assert_eq!(line.await.unwrap(), *b"POST / HTTP/1.1\r", "no preface of HTTP/2");
}

#[tokio::test]
async fn f11_what_a_receiver_wants_remembered_is_forgotten() {
    let elsewhere = Chaos::start(&says(answer(200)));
    let port = elsewhere.url.rsplit(':').next().unwrap().trim_end_matches("/hook").to_owned();
    let wishes = format!(
        "HTTP/1.1 401 Unauthorized\r\nset-cookie: a=b; path=/; max-age=99999\r\nset-cookie2: c=d\r\n\
         alt-svc: h2=\":{port}\"; ma=99999; persist=1, h3=\":{port}\"\r\n\
         strict-transport-security: max-age=99999; includeSubDomains\r\nwww-authenticate: Basic realm=\"x\"\r\n\
         proxy-authenticate: Basic\r\naccept-ch: device-memory\r\ncontent-security-policy: upgrade-insecure-requests\r\n\
         public-key-pins: x\r\nnel: {{}}\r\netag: \"x\"\r\ncache-control: max-age=99999\r\ncontent-location: /x\r\n\
         keep-alive: timeout=99999\r\ncontent-length: 0\r\n\r\n"
    );
    let receiver = Chaos::start(&says(wishes));
    let courier = courier();
    for _ in 0..3 {
        assert_eq!(send(&courier, &receiver.url, "a", PATIENCE).await.outcome, Ok(401));
    }
    let requests = receiver.requests();
    assert_eq!(requests.len(), 3, "a challenge is not answered, an answer is not kept");
    assert_eq!((&requests[1].headers, &requests[2].headers), (&requests[0].headers, &requests[0].headers));
    let mut names: Vec<_> = requests[0].headers.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "content-length", "host", "webhook-id"]);
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn f14_the_status_line_decides_when_the_body_breaks_off() {
    for (case, reply, _) in meet("F14").await {
        assert_eq!(reply.body, "abc", "{}", case.story);
    }
}

/// RST and FIN at each step, T23: what comes next goes on a connection of its own, and there is no second request.
#[tokio::test]
async fn a_connection_that_broke_is_not_used_again_and_its_request_is_not_repeated() {
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
        let first = send(&courier, &receiver.url, "first", PATIENCE).await;
        assert!(matches!(first.outcome, Err((ErrorClass::Reset, _))), "{}: {first:?}", case.story);
        let second = send(&courier, &receiver.url, "second", PATIENCE).await;
        assert_eq!((second.outcome, receiver.connections()), (Ok(200), 2), "{}", case.story);
        let firsts = receiver.requests().iter().filter(|got| got.headers["webhook-id"] == "first").count();
        assert!(firsts <= 1, "{}", case.story);
    }
}

#[tokio::test]
async fn connections_are_used_again() {
    let receiver = Chaos::start(&says(with_body("HTTP/1.1 200 OK", b"thanks")));
    let courier = courier();
    for _ in 0..50 {
        assert_eq!(send(&courier, &receiver.url, "a", PATIENCE).await.outcome, Ok(200));
    }
    assert_eq!(receiver.connections(), 1);
}

/// An attempt that is dropped (a shutdown that cuts it off) takes its connection with it.
#[tokio::test]
async fn a_dropped_attempt_hangs_up() {
    let receiver = Arc::new(Chaos::start(&script(|mut talk| async move {
        talk.request().await;
        talk.hang().await;
    })));
    let courier = courier();
    let sending = tokio::spawn({
        let (courier, url) = (courier.clone(), receiver.url.clone());
        async move { send(&courier, &url, "a", PATIENCE).await }
    });
    receiver.until(1).await;
    sending.abort();
    receiver.until_left_alone().await;
}

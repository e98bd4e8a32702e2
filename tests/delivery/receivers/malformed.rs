//! Replies as raw bytes: the courier never hangs or panics, and never mistakes a reply for that of
//! the next request (T25).

use std::time::Duration;

use balto::domain::ErrorClass;
use balto::domain::ReceiverAnswer::Status;

use super::{courier, send};
use crate::support::chaos::{Chaos, replies_with, script};
use crate::support::{WAIT_MAX, say};

/// The receiver's behaviour after the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterReply {
    /// Continues on the same connection as if the reply were valid.
    GoesOn,
    Closes,
}

use AfterReply::{Closes, GoesOn};

type Row = (&'static [u8], AfterReply, Result<u16, ErrorClass>);

const PROTOCOL: Result<u16, ErrorClass> = Err(ErrorClass::Protocol);
const RESET: Result<u16, ErrorClass> = Err(ErrorClass::Reset);

/// Bytes of the status line, and the courier's result.
const STATUS_LINES: &[Row] = &[
    (b"", Closes, RESET),
    (b"\r\n\r\n", Closes, RESET),
    (b"H", Closes, RESET),
    (b"HTTP/1.1", Closes, RESET),
    (b"HTTP/1.1 200", Closes, RESET),
    (b"HTTP/1.1 200 OK\r\n", Closes, RESET),
    (b"HTTP/1.1 200 OK\r\na: b\r\n", Closes, RESET),
    (b"HTTP/1.1 200\r\n\r\n", Closes, Ok(200)),
    (b"HTTP/1.1 200 \r\n\r\n", Closes, Ok(200)),
    (b"HTTP/1.1 200 OK\n\n", Closes, Ok(200)),
    (b"HTTP/1.0 200 OK\r\n\r\nbody", Closes, Ok(200)),
    (b"\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 \xff\xfe\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 999 x\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(999)),
    (b"HTTP/1.1   200 OK\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b" HTTP/1.1 200 OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"HTTP/1.1\t200 OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"HTTP/1.1 20 OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"HTTP/1.1 2000 OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"HTTP/1.1 -20 OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"HTTP/1.1 2e2 OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"HTTP/1.1 099 OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"HTTP/1.1 000 OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"HTTP/1.1 200OK\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200\tOK\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 O\x01K\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\r\ncontent-length: 0\r\r\n\r\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\ncontent-length: 0\n\n", GoesOn, Ok(200)),
    (b"HTTP/1 200 OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"HTTP 200 OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"HTTP/1.1 abc OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"HTTP/1.1 200 O\0K\r\n\r\n", GoesOn, PROTOCOL),
    (b"HTTP/1.1 200 O\rK\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/0.9 200 OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"HTTP/1.2 200 OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"HTTP/2.0 200 OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"http/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"ICY 200 OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"RTSP/1.0 200 OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"POST / HTTP/1.1\r\n\r\n", GoesOn, PROTOCOL),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", GoesOn, PROTOCOL),
    (b"\xef\xbb\xbfHTTP/1.1 200 OK\r\n\r\n", GoesOn, PROTOCOL),
];

/// Header fields.
const HEADERS: &[Row] = &[
    (b"HTTP/1.1 200 OK\r\na: b\r\n c: d\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\na: b\r\n\tc\r\n  d\r\ncontent-length:\r\n 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\na: b\n c\ncontent-length: 0\n\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\n a: b\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length \t: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\n: b\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\nno colon\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\nX[Foo]: b\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\n\xc3\xa4: b\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\na: b\0c\r\n\r\n", GoesOn, PROTOCOL),
    (b"HTTP/1.1 200 OK\r\na: b\rc\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\na: b\x01\x7f\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\na: \xff\xfe\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\na:\r\ncontent-length:0\r\n\r\n", GoesOn, Ok(200)),
    (
        b"HTTP/1.1 429 x\r\nretry-after: \xff\r\nwebhook-delivery: \xff\r\ncontent-length: 0\r\n\r\n",
        GoesOn,
        Ok(429),
    ),
];

/// Body lengths.
const LENGTHS: &[Row] = &[
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", Closes, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5, 6\r\n\r\nhello", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nhello", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 0x5\r\n\r\nhello", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5 5\r\n\r\nhello", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 1e1\r\n\r\nhello", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5.0\r\n\r\nhello", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: \xd9\xa5\r\n\r\nhello", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551616\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551615\r\n\r\n", GoesOn, Ok(200)),
];

/// Transfer codings and chunks.
const CODINGS: &[Row] = &[
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\nhello", Closes, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Closes, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n", Closes, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: ChUnKeD\r\n\r\n0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\ncontent-length: 5\r\n\r\nhello", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", Closes, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", Closes, Ok(200)),
    (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a=b;c=\"d\"\r\nhello\r\n0\r\nx: y\r\n\r\n",
        GoesOn,
        Ok(200),
    ),
    (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n000000005\r\nhello\r\n0\r\n\r\n",
        GoesOn,
        Ok(200),
    ),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 9\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5 5\r\nhello\r\n0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\nhello\n0\n\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloworld\r\n0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a\n\r\nhello\r\n0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nno colon\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: b\0\r\n\r\n", GoesOn, Ok(200)),
];

/// Bytes after the reply, which must not become the next reply.
const SURPLUS: &[Row] = &[
    (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(500)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhello", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 410 x\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n\0", GoesOn, Ok(200)),
    (b"HTTP/1.1 204 x\r\n\r\nhello", GoesOn, Ok(204)),
    (b"HTTP/1.1 204 x\r\ncontent-length: 5\r\n\r\nhello", GoesOn, Ok(204)),
    (b"HTTP/1.1 204 x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", GoesOn, Ok(204)),
    (b"HTTP/1.1 204 x\r\n\r\nHTTP/1.1 410 x\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(204)),
    (b"HTTP/1.1 304 x\r\ncontent-length: 5\r\n\r\nhello", GoesOn, Ok(304)),
    (b"HTTP/1.1 205 x\r\ncontent-length: 5\r\n\r\nhello", GoesOn, Ok(205)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nhello", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 410 x\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\nmore", GoesOn, Ok(200)),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", GoesOn, Ok(200)),
    (b"HTTP/1.1 100 x\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n\r\n", GoesOn, PROTOCOL),
    (b"HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nhello", GoesOn, PROTOCOL),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 410 x\r\n\r\n", GoesOn, Ok(200)),
];

/// Sends the row's bytes to the first request; every later one gets the right reply.
fn receiver((bytes, then, _): Row) -> Chaos {
    Chaos::start(&script(move |mut talk| async move {
        while let Some(got) = talk.request().await {
            let id = &got.headers["webhook-id"];
            if id == "first" {
                talk.send(bytes).await;
                if then == Closes {
                    return;
                }
            } else {
                let own = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\nto {id}", id.len() + 3);
                talk.send(own.as_bytes()).await;
            }
        }
    }))
}

async fn check(rows: &[Row]) {
    for row in rows {
        let receiver = receiver(*row);
        let courier = courier();
        let story = format!("{:?}, {:?}", String::from_utf8_lossy(row.0), row.1);
        let reply = send(&courier, &receiver.url, "first", WAIT_MAX).await;
        let outcome = reply.outcome.as_ref().map_err(|(class, _)| *class);
        assert_eq!(outcome.copied(), row.2.map(Status), "{story}: {reply:?}");
        for id in ["second", "third"] {
            let reply = send(&courier, &receiver.url, id, WAIT_MAX).await;
            assert_eq!(
                (reply.outcome, &reply.body[..]),
                (Ok(Status(200)), format!("to {id}").as_bytes()),
                "{story}"
            );
        }
        // No request was repeated, and none was lost.
        let ids: Vec<_> = receiver.requests().iter().map(|got| got.headers["webhook-id"].clone()).collect();
        assert_eq!(ids, ["first", "second", "third"], "{story}");
    }
}

#[tokio::test]
async fn status_lines_are_read_as_curl_reads_them() {
    check(STATUS_LINES).await;
}

#[tokio::test]
async fn headers_are_read_as_curl_reads_them() {
    check(HEADERS).await;
}

#[tokio::test]
async fn odd_lengths_leave_the_status_and_end_the_connection() {
    check(LENGTHS).await;
}

#[tokio::test]
async fn odd_codings_leave_the_status_and_end_the_connection() {
    check(CODINGS).await;
}

#[tokio::test]
async fn bytes_after_a_reply_belong_to_no_request() {
    check(SURPLUS).await;
    let rows: usize = [STATUS_LINES, HEADERS, LENGTHS, CODINGS, SURPLUS].iter().map(|rows| rows.len()).sum();
    say(&format!("{rows} malformed replies"));
    assert!(rows >= 60);
}

/// Many concurrent requests; every third reply has a second reply behind it.
#[tokio::test]
async fn replies_match_their_requests_in_a_shared_pool() {
    let receiver = Chaos::start(&script(move |mut talk| async move {
        while let Some(got) = talk.request().await {
            let id = &got.headers["webhook-id"];
            let mut own = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\nto {id}", id.len() + 3);
            if id.ends_with(['0', '3', '6', '9']) {
                own.push_str("HTTP/1.1 410 x\r\ncontent-length: 5\r\n\r\nwrong");
            }
            talk.send(own.as_bytes()).await;
        }
    }));
    let courier = courier();
    for round in 0..20 {
        let sends = (0..16).map(|number| {
            let (courier, url, id) = (&courier, &receiver.url, format!("{}", 16 * round + number));
            async move { (send(courier, url, &id, WAIT_MAX).await, id) }
        });
        for (reply, id) in futures_util::future::join_all(sends).await {
            assert_eq!((reply.outcome, &reply.body[..]), (Ok(Status(200)), format!("to {id}").as_bytes()));
        }
    }
    assert_eq!(receiver.requests().len(), 320);
    let (connections, spoilt) = (receiver.connections(), 128);
    assert!(
        (spoilt..320).contains(&connections),
        "{connections} connections: a broken one was reused, or the pool was not used"
    );
}

/// After an impossible or repeated body length, the bytes of the body might arrive where the next
/// reply is expected. The same holds for a head that another reader, such as a proxy, delimits
/// differently.
#[tokio::test]
async fn ambiguous_reply_ends_its_connection() {
    let rows = [
        ("204 x\r\ncontent-length: 5\r\n\r\n", 2),
        ("204 x\r\ntransfer-encoding: chunked\r\n\r\n", 2),
        ("304 x\r\ncontent-length: 5\r\n\r\n", 2),
        ("200 x\r\ncontent-length: 0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 2),
        ("200 x\r\ncontent-length: 0\r\ncontent-length: 1\r\n\r\n", 2),
        ("200 x\r\ncontent-length: 0, 1\r\n\r\n", 2),
        ("200 x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 2),
        ("200 x\r\ncontent-length : 0\r\n\r\n", 2),
        ("200 x\r\ncontent-length:\r\n 0\r\n\r\n", 2),
        ("200 x\r\nX[Foo]: b\r\ncontent-length: 0\r\n\r\n", 2),
        ("200 x\r\na: \u{1}\r\ncontent-length: 0\r\n\r\n", 2),
        ("200 x\r\na: b\rc\r\ncontent-length: 0\r\n\r\n", 2),
        ("200 x\r\ncontent-length: 0, 0\r\n\r\n", 1),
        ("200 x\r\nCONTENT-Length:0\r\n\r\n", 1),
        ("200\r\ncontent-length: 0\r\n\r\n", 1),
        ("204 x\r\n\r\n", 1),
        ("204 x\r\ncontent-length: 0\r\n\r\n", 1),
        ("304 x\r\n\r\n", 1),
        ("200 x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 1),
        ("200 x\r\ncontent-length: 2\r\n\r\nhi", 1),
    ];
    for (reply, connections) in rows {
        let receiver = Chaos::start(&replies_with(format!("HTTP/1.1 {reply}")));
        let courier = courier();
        for id in ["first", "second"] {
            send(&courier, &receiver.url, id, WAIT_MAX).await;
        }
        assert_eq!(receiver.connections(), connections, "{reply:?}");
    }
}

/// A late second reply on an idle pooled connection closes the connection.
#[tokio::test]
async fn unrequested_bytes_on_an_idle_connection_close_it() {
    for unasked in
        ["HTTP/1.1 410 x\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n", "\r\n", "x"]
    {
        let receiver = Chaos::start(&script(move |mut talk| async move {
            talk.request().await;
            talk.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            if talk.number == 0 {
                // Time for the courier to read the reply separately.
                tokio::time::sleep(Duration::from_millis(50)).await;
                talk.send(unasked.as_bytes()).await;
            }
            talk.hang().await;
        }));
        let courier = courier();
        assert_eq!(send(&courier, &receiver.url, "first", WAIT_MAX).await.outcome, Ok(Status(200)));
        receiver.until_all_closed().await;
        assert_eq!(
            send(&courier, &receiver.url, "second", WAIT_MAX).await.outcome,
            Ok(Status(200)),
            "{unasked:?}"
        );
        assert_eq!((receiver.connections(), receiver.requests().len()), (2, 2), "{unasked:?}");
    }
}

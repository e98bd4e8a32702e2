//! Table F of the attack tables: misbehaviour of receivers, and the expected attempt record.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use balto::domain::ErrorClass;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::support::chaos::{Script, Talk, replies_with, script};

/// The moment at which an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// Without waiting for the deadline.
    AtOnce,
    /// Only at its deadline.
    AtTheDeadline,
}

/// One kind of misbehaviour.
pub(crate) struct Case {
    /// Its row in the table.
    pub(crate) row: &'static str,
    pub(crate) story: String,
    pub(crate) script: Script,
    pub(crate) expected: Result<u16, ErrorClass>,
    pub(crate) ends: Ends,
}

impl Case {
    fn new(row: &'static str, story: &str, expected: Result<u16, ErrorClass>, script: Script) -> Self {
        Self { row, story: story.to_owned(), script, expected, ends: Ends::AtOnce }
    }

    fn slow(self) -> Self {
        Self { ends: Ends::AtTheDeadline, ..self }
    }

    /// Long enough for a case that ends by itself, also on a busy machine.
    pub(crate) fn timeout(&self) -> Duration {
        match self.ends {
            Ends::AtOnce => Duration::from_secs(25),
            Ends::AtTheDeadline => Duration::from_secs(1),
        }
    }
}

const TIMEOUT: Result<u16, ErrorClass> = Err(ErrorClass::Timeout);
const RESET: Result<u16, ErrorClass> = Err(ErrorClass::Reset);
const PROTOCOL: Result<u16, ErrorClass> = Err(ErrorClass::Protocol);
const TOO_LARGE: Result<u16, ErrorClass> = Err(ErrorClass::ResponseTooLarge);

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

/// Reads a request, sends these bytes, and leaves the connection to `rest`.
fn begins<F, Fut>(first: impl Into<Vec<u8>>, rest: F) -> Script
where
    F: Fn(Talk) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let first: Arc<[u8]> = first.into().into();
    script(move |mut talk| {
        let (first, rest) = (first.clone(), rest.clone());
        async move {
            if talk.request().await.is_some() && talk.send(&first).await {
                rest(talk).await;
            }
        }
    })
}

fn floods(first: impl Into<Vec<u8>>, flood: impl Into<Vec<u8>>) -> Script {
    let flood: Arc<[u8]> = flood.into().into();
    begins(first, move |mut talk| {
        let flood = flood.clone();
        async move { talk.flood(&flood).await }
    })
}

fn drips(first: impl Into<Vec<u8>>, drip: impl Into<Vec<u8>>) -> Script {
    let drip: Arc<[u8]> = drip.into().into();
    begins(first, move |mut talk| {
        let drip = drip.clone();
        async move { talk.drip(&drip).await }
    })
}

fn hangs(first: impl Into<Vec<u8>>) -> Script {
    begins(first, |mut talk| async move { talk.hang().await })
}

fn closes(first: impl Into<Vec<u8>>) -> Script {
    begins(first, |_| async {})
}

fn resets(first: impl Into<Vec<u8>>) -> Script {
    begins(first, |talk| async { talk.reset() })
}

/// Ten MiB of zeros in ten KiB.
pub(crate) fn gzip_bomb() -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    for _ in 0..10 {
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
    }
    encoder.finish().unwrap()
}

pub(crate) fn with_body(head: &str, body: &[u8]) -> Vec<u8> {
    [format!("{head}\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

/// Answers the head of a request and never reads its body.
pub(crate) fn answers_early(status: u16) -> Script {
    script(move |mut talk| async move {
        let reply = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
        if talk.head().await.is_some() && talk.send(reply.as_bytes()).await {
            talk.stay().await;
        }
    })
}

/// Every case of the table except those with separate tests: F10 to F13 and F15.
pub(crate) fn all() -> Vec<Case> {
    [
        redirects(),
        bodies(),
        encodings(),
        drips_of_a_byte(),
        heads(),
        informational(),
        not_http(),
        framing(),
        truncations(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

pub(crate) fn redirects() -> Vec<Case> {
    let places = [
        "location: http://169.254.169.254/latest/meta-data/",
        "location: http://example.com/",
        "location: /elsewhere",
        "location: /hook",
        "location: file:///etc/passwd",
        "location: //127.0.0.1:1/",
        "location: http://user:secret@127.0.0.1:1/",
        "location: \u{e9}\u{1}",
        "refresh: 0; url=http://127.0.0.1:1/",
        "x-none: 1",
    ];
    let mut cases = Vec::new();
    for (number, place) in places.iter().enumerate() {
        let status = [301, 302, 303, 307, 308][number % 5];
        let reply = format!("HTTP/1.1 {status} x\r\n{place}\r\ncontent-length: 0\r\n\r\n");
        cases.push(Case::new("F1", &format!("{status} {place:?}"), Ok(status), replies_with(reply)));
    }
    cases
}

fn bodies() -> Vec<Case> {
    let kilobytes = "x".repeat(64 * 1024);
    let chunk = format!("10000\r\n{kilobytes}\r\n");
    let announced = |length: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
    let f2 = |story, expected, script| Case::new("F2", story, expected, script);
    vec![
        f2("ten gigabytes as announced", Ok(200), floods(announced("10737418240"), kilobytes.clone())),
        f2("endless chunks", Ok(200), floods(CHUNKED, chunk)),
        f2("one endless chunk", Ok(200), floods(format!("{CHUNKED}fffffffffffff\r\n"), kilobytes.clone())),
        f2("an endless body without a length", Ok(200), floods("HTTP/1.1 200 OK\r\n\r\n", kilobytes.clone())),
        f2("an endless body to a failure", Ok(500), floods("HTTP/1.1 500 No\r\n\r\n", kilobytes)),
        f2("less than announced, then FIN", Ok(200), closes(announced("10") + "short")),
        f2("less than announced, then silence", Ok(200), hangs(announced("10") + "short")).slow(),
        f2("more than announced", Ok(200), replies_with(announced("2") + "more")),
        f2("a length of 2^64 - 1", Ok(200), replies_with(announced("18446744073709551615"))),
        f2("a length of 2^64", Ok(200), replies_with(announced("18446744073709551616"))),
    ]
}

fn encodings() -> Vec<Case> {
    let f3 =
        |story, head: &str, body: &[u8]| Case::new("F3", story, Ok(200), replies_with(with_body(head, body)));
    vec![
        f3("a gzip bomb", "HTTP/1.1 200 OK\r\ncontent-encoding: gzip", &gzip_bomb()),
        f3(
            "a gzip bomb without Content-Encoding",
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain",
            &gzip_bomb(),
        ),
        f3("many nested encodings", "HTTP/1.1 200 OK\r\ncontent-encoding: br, zstd, deflate", &gzip_bomb()),
        Case::new(
            "F3",
            "a gzip bomb as transfer coding",
            Ok(200),
            closes([b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", &gzip_bomb()[..]].concat()),
        ),
    ]
}

fn drips_of_a_byte() -> Vec<Case> {
    let f4 = |story, expected, script| Case::new("F4", story, expected, script).slow();
    vec![
        f4("in the status line", TIMEOUT, drips("HTTP/1.1 200 ", "x")),
        f4("in a header", TIMEOUT, drips("HTTP/1.1 200 OK\r\na: ", "x")),
        f4("header after header", TIMEOUT, drips("HTTP/1.1 200 OK\r\n", "a: b\r\n")),
        f4("empty lines before the status line", TIMEOUT, drips("", "\r\n")),
        f4("in the body", Ok(200), drips("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", "x")),
        f4("chunk after chunk", Ok(200), drips(CHUNKED, "1\r\nx\r\n")),
        f4("in a chunk size", Ok(200), drips(CHUNKED, "0")),
        f4("in the trailers", Ok(200), drips(format!("{CHUNKED}0\r\n"), "a: b\r\n")),
        f4("silence from the start", TIMEOUT, script(|mut talk| async move { talk.hang().await })),
        f4("silence after the request", TIMEOUT, hangs("")),
    ]
}

fn heads() -> Vec<Case> {
    let kilobytes = "x".repeat(64 * 1024);
    let f5 = |story, script| Case::new("F5", story, TOO_LARGE, script);
    let many = |count: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(count));
    vec![
        f5("an endless header line", floods("HTTP/1.1 200 OK\r\na: ", kilobytes.clone())),
        f5("an endless header name", floods("HTTP/1.1 200 OK\r\n", kilobytes.clone())),
        f5("endless headers", floods("HTTP/1.1 200 OK\r\n", "a: b\r\n".repeat(10_000))),
        f5("an endless reason", floods("HTTP/1.1 200 ", kilobytes)),
        f5("endless empty lines", floods("", "\r\n".repeat(10_000))),
        f5(
            "a header of 5 MB",
            replies_with(format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "b".repeat(5 << 20))),
        ),
        f5("10,000 headers", replies_with(many(10_000))),
        f5("257 headers", replies_with(many(257))),
    ]
}

fn informational() -> Vec<Case> {
    let (once, hint) = ("HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
    let end = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let switching = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: ";
    vec![
        Case::new("F6", "100 without end", TOO_LARGE, floods("", once.repeat(100))),
        Case::new("F6", "103 without end", TOO_LARGE, floods("", hint.repeat(100))),
        Case::new("F6", "100 now and then", TIMEOUT, drips("", once)).slow(),
        Case::new("F6", "100 and no more", TIMEOUT, hangs(once)).slow(),
        Case::new(
            "F6",
            "some, and then an answer",
            Ok(200),
            replies_with(format!("{once}{hint}{hint}{end}")),
        ),
        Case::new("F7", "to a web socket", PROTOCOL, replies_with(format!("{switching}websocket\r\n\r\n"))),
        Case::new(
            "F7",
            "to HTTP/2",
            PROTOCOL,
            replies_with(format!("{switching}h2c\r\n\r\n\0\0\0\x04\0\0\0\0\0")),
        ),
        Case::new("F7", "to nothing", PROTOCOL, replies_with("HTTP/1.1 101 x\r\n\r\n")),
    ]
}

fn not_http() -> Vec<Case> {
    let f8 = |story, expected, script| Case::new("F8", story, expected, script);
    let banner = script(|mut talk| async move {
        if talk.send(b"220 mail.example ESMTP\r\n").await {
            talk.hang().await;
        }
    });
    vec![
        f8("HTTP/0.9", PROTOCOL, closes("<html>it works</html>")),
        f8("another protocol", PROTOCOL, replies_with("SSH-2.0-OpenSSH_9.9\r\n")),
        f8("a TLS alert", PROTOCOL, replies_with([0x15, 3, 3, 0, 2, 2, 40])),
        f8("endless zeros", PROTOCOL, floods("", [0; 65_536])),
        f8("frames of HTTP/2 without end", PROTOCOL, floods("", b"\0\0\0\x04\0\0\0\0\0".repeat(1_000))),
        f8("no bytes, then FIN", RESET, closes("")),
        f8("no bytes, then a half close", RESET, {
            begins("", |mut talk| async move {
                talk.half_close().await;
                talk.hang().await;
            })
        }),
        f8("FIN before the request", RESET, script(|_| async {})),
        f8(
            "a reset instead of reading",
            RESET,
            script(|mut talk| async move {
                talk.first_byte().await;
                talk.reset();
            }),
        ),
        f8("a reset after the request", RESET, resets("")),
        f8("a reset in the head", RESET, resets("HTTP/1.1 200 OK\r\na")),
        f8("FIN in the head", RESET, closes("HTTP/1.1 200 OK\r\na: b\r\n")),
        f8("a banner before the request", PROTOCOL, banner),
    ]
}

fn framing() -> Vec<Case> {
    let f9 = |story, script| Case::new("F9", story, Ok(200), script);
    let both = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let extension = format!("1;{}\r\nx\r\n", "a".repeat(1_000));
    vec![
        f9("an endless chunk extension", floods(format!("{CHUNKED}5;"), "a".repeat(65_536))),
        f9("endless chunk extensions", floods(CHUNKED, extension.repeat(50))),
        f9("endless trailers", floods(format!("{CHUNKED}0\r\n"), "a: b\r\n".repeat(10_000))),
        f9("an endless trailer", floods(format!("{CHUNKED}0\r\na: "), "b".repeat(65_536))),
        f9("a chunk without a size", replies_with(format!("{CHUNKED}zz\r\nhello\r\n0\r\n\r\n"))),
        f9("a chunk size that overflows", replies_with(format!("{CHUNKED}fffffffffffffffff\r\n"))),
        f9("a chunk longer than its size", replies_with(format!("{CHUNKED}2\r\nhello\r\n0\r\n\r\n"))),
        f9("a length and chunks", replies_with(both)),
        f9("chunks in HTTP/1.0", replies_with(CHUNKED.replace("1.1", "1.0") + "0\r\n\r\n")),
        f9(
            "two lengths",
            replies_with("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx"),
        ),
    ]
}

/// The status line decides.
fn truncations() -> Vec<Case> {
    let mut cases = Vec::new();
    for status in [200, 500, 410] {
        let head = format!("HTTP/1.1 {status} x\r\ncontent-length: 100\r\n\r\nabc");
        let chunked = CHUNKED.replace("200", &status.to_string()) + "a\r\nabc";
        cases.push(Case::new("F14", &format!("{status}, then a reset"), Ok(status), resets(head.clone())));
        cases.push(Case::new("F14", &format!("{status}, then the end"), Ok(status), closes(head)));
        cases.push(Case::new(
            "F14",
            &format!("{status}, then a reset in a chunk"),
            Ok(status),
            resets(chunked),
        ));
    }
    cases
}

//! Malformed requests, byte by byte: ambiguous framing, truncated bodies, edge cases of JSON. Each
//! gets an error response, and no refused event is stored.

use crate::support::raw::{Raw, RawResponse, post};
use crate::support::{Daemon, Receiver};
use serde_json::{Value, json};

const EVENT: &str = r#"{"type":"a.b","data":1}"#;

async fn event_count(daemon: &Daemon) -> usize {
    daemon.get("/events?limit=250").await["data"].as_array().unwrap().len()
}

/// Sends bytes, closes the sending side, and returns all responses until the server closes the
/// connection.
async fn answers(daemon: &Daemon, bytes: &[u8]) -> Vec<RawResponse> {
    let mut raw = Raw::connect(daemon.address()).await;
    raw.send(bytes).await;
    raw.half_close().await;
    let mut answers = Vec::new();
    while let Some(answer) = raw.answer().await {
        answers.push(answer);
    }
    answers
}

fn statuses(answers: &[RawResponse]) -> Vec<u16> {
    answers.iter().map(|answer| answer.status).collect()
}

/// Asserts problem+json also for the errors that the HTTP library generates.
fn assert_problems(answers: &[RawResponse], name: &str) {
    for answer in answers.iter().filter(|answer| answer.status >= 400) {
        let head = &answer.head;
        assert!(head.contains("\r\ncontent-type: application/problem+json\r\n"), "{name}: {head}");
        assert!(head.contains("\r\ndate: "), "{name}: {head}");
        let problem: Value =
            serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{name}: {answer:?}"));
        assert_eq!(problem["status"], answer.status, "{name}");
        let code = match answer.status {
            400 => "malformed",
            404 => "not_found",
            414 => "uri_too_long",
            417 => "expectation_failed",
            431 => "headers_too_large",
            other => panic!("{name}: {other}"),
        };
        assert_eq!(problem["code"], code, "{name}");
    }
}

/// A request with these header lines and this body, followed by a request that must never get a
/// response.
fn with_hidden_request(headers: &str, body: &str) -> String {
    format!(
        "POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}\r\n{body}GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n"
    )
}

/// Name, header lines, body and expected status.
type Framing = (&'static str, String, String, u16);

/// Body lengths that are repeated, wrong, or ambiguous to a proxy.
fn ambiguous_lengths() -> Vec<Framing> {
    let chunked = format!("{:x}\r\n{EVENT}\r\n0\r\n\r\n", EVENT.len());
    let length = EVENT.len();
    vec![
        (
            "length and chunks",
            format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"),
            chunked.clone(),
            202,
        ),
        (
            "chunks and length",
            format!("transfer-encoding: chunked\r\ncontent-length: {length}\r\n"),
            chunked.clone(),
            202,
        ),
        ("chunks and no length", "content-length: 0\r\ntransfer-encoding: chunked\r\n".into(), chunked, 202),
        ("two lengths", format!("content-length: {length}\r\ncontent-length: 5\r\n"), EVENT.to_owned(), 400),
        ("a list of lengths", format!("content-length: {length}, {length}\r\n"), EVENT.to_owned(), 400),
        ("a signed length", format!("content-length: +{length}\r\n"), EVENT.to_owned(), 400),
        ("a negative length", "content-length: -1\r\n".into(), EVENT.to_owned(), 400),
        ("a hexadecimal length", "content-length: 0x17\r\n".into(), EVENT.to_owned(), 400),
        ("an empty length", "content-length:\r\n".into(), EVENT.to_owned(), 400),
        ("a length with a space in it", "content-length: 2 3\r\n".into(), EVENT.to_owned(), 400),
        (
            "a length that overflows every integer",
            "content-length: 99999999999999999999999\r\n".into(),
            EVENT.to_owned(),
            400,
        ),
    ]
}

/// Transfer codings and chunks that are repeated, wrong, or ambiguous to a proxy.
fn ambiguous_chunks() -> Vec<Framing> {
    let chunked = format!("{:x}\r\n{EVENT}\r\n0\r\n\r\n", EVENT.len());
    let length = EVENT.len();
    vec![
        ("a coding before chunks", "transfer-encoding: gzip, chunked\r\n".into(), chunked.clone(), 400),
        ("chunks in chunks", "transfer-encoding: chunked, chunked\r\n".into(), chunked.clone(), 400),
        (
            "chunks twice",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n".into(),
            chunked.clone(),
            400,
        ),
        (
            "identity and chunks",
            "transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n".into(),
            chunked.clone(),
            400,
        ),
        ("chunks and identity", "transfer-encoding: chunked, identity\r\n".into(), chunked.clone(), 400),
        ("nearly chunks", "transfer-encoding: xchunked\r\n".into(), chunked.clone(), 400),
        ("quoted chunks", "transfer-encoding: \"chunked\"\r\n".into(), chunked.clone(), 400),
        ("chunks behind a vertical tab", "transfer-encoding: \x0bchunked\r\n".into(), chunked.clone(), 400),
        ("a space before the colon", "transfer-encoding : chunked\r\n".into(), chunked, 400),
        (
            "a folded line",
            format!("x: y\r\n transfer-encoding: chunked\r\ncontent-length: {length}\r\n"),
            EVENT.to_owned(),
            400,
        ),
        ("a bare carriage return", format!("x: y\rz\r\ncontent-length: {length}\r\n"), EVENT.to_owned(), 400),
        ("a NUL in a value", format!("x: y\0z\r\ncontent-length: {length}\r\n"), EVENT.to_owned(), 400),
        ("a NUL in a name", format!("x\0y: z\r\ncontent-length: {length}\r\n"), EVENT.to_owned(), 400),
        ("two hosts", format!("host: y\r\ncontent-length: {length}\r\n"), EVENT.to_owned(), 400),
        (
            "a chunk without a length",
            "transfer-encoding: chunked\r\n".into(),
            "zz\r\n\r\n0\r\n\r\n".into(),
            400,
        ),
        ("a signed chunk", "transfer-encoding: chunked\r\n".into(), "+17\r\n{}\r\n0\r\n\r\n".into(), 400),
        ("a negative chunk", "transfer-encoding: chunked\r\n".into(), "-1\r\n{}\r\n0\r\n\r\n".into(), 400),
        ("a prefixed chunk", "transfer-encoding: chunked\r\n".into(), "0x2\r\n{}\r\n0\r\n\r\n".into(), 400),
        (
            "a chunk length that overflows every integer",
            "transfer-encoding: chunked\r\n".into(),
            "fffffffffffffffff\r\n{}\r\n".into(),
            400,
        ),
        (
            "a chunk longer than its length",
            "transfer-encoding: chunked\r\n".into(),
            "1\r\n{}\r\n0\r\n\r\n".into(),
            400,
        ),
        (
            "a chunk that ends with a bare line feed",
            "transfer-encoding: chunked\r\n".into(),
            "2\n{}\n0\n\n".into(),
            400,
        ),
    ]
}

/// A second response would mean that the daemon accepted a request that is hidden in the first one.
#[tokio::test]
async fn ambiguous_length_hides_no_second_request() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let rows = [ambiguous_lengths(), ambiguous_chunks()].concat();
    for (name, headers, body, status) in &rows {
        let answers = answers(&daemon, with_hidden_request(headers, body).as_bytes()).await;
        assert_eq!(statuses(&answers), [*status], "{name}: {answers:#?}");
        assert_problems(&answers, name);
    }
    let accepted = rows.iter().filter(|(.., status)| *status == 202).count();
    assert_eq!(event_count(&daemon).await, accepted, "a refused event was kept");
}

#[tokio::test]
async fn malformed_http_gets_400_and_the_connection_closes() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let many_headers: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let rows: &[(&str, Vec<u8>, u16)] = &[
        ("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(20), 400),
        ("HTTP/0.9", b"GET /v1/events\r\n\r\n".to_vec(), 400),
        ("HTTP/3.0", b"GET /v1/events HTTP/3.0\r\nhost: localhost\r\n\r\n".to_vec(), 400),
        ("no host", b"GET /v1/events HTTP/1.1\r\n\r\n".to_vec(), 400),
        (
            "chunks in HTTP/1.0",
            b"POST /v1/events HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
            400,
        ),
        (
            "too many headers",
            format!("GET /v1/events HTTP/1.1\r\nhost: localhost\r\n{many_headers}\r\n").into_bytes(),
            431,
        ),
        (
            "a header that is too long",
            format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)).into_bytes(),
            431,
        ),
        (
            "a key of a megabyte",
            post("/v1/events", &format!("idempotency-key: {}\r\n", "k".repeat(1 << 20)), EVENT).into_bytes(),
            431,
        ),
        (
            "a URL that is too long",
            format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "y".repeat(1 << 20)).into_bytes(),
            431,
        ),
        ("a tunnel", b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec(), 404),
    ];
    for (name, bytes, status) in rows {
        let answers = answers(&daemon, bytes).await;
        assert_eq!(statuses(&answers), [*status], "{name}: {answers:#?}");
        assert_problems(&answers, name);
    }
    // Also after valid requests on the same connection.
    let good = "GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let late = answers(&daemon, format!("{good}{good}nothing like that\r\n\r\n").as_bytes()).await;
    assert_eq!(statuses(&late), [200, 200, 400], "{late:#?}");
    assert_problems(&late, "after two valid requests");
    // Too long for a URI but not for the headers, or too long for both: the way the bytes arrive
    // decides.
    let long = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "y".repeat(65_540));
    let long = answers(&daemon, long.as_bytes()).await;
    assert!([[414], [431]].iter().any(|status| statuses(&long) == status), "{long:#?}");
    assert_problems(&long, "a URL that is a little too long");
    let newer = answers(&daemon, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert_eq!(statuses(&newer), [0_u16; 0], "HTTP/2 cannot be answered: {newer:#?}");
    let old = answers(&daemon, b"GET /v1/events HTTP/1.0\r\n\r\n").await;
    assert_eq!(statuses(&old), [200], "HTTP/1.0 needs no host: {old:#?}");
    assert_eq!(event_count(&daemon).await, 0);
}

#[tokio::test]
async fn endless_headers_are_cut_off_at_the_limit() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let mut raw = Raw::connect(daemon.address()).await;
    assert!(raw.send(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n").await);
    let mut sent = 0_usize;
    // The daemon discards further bytes for a moment, so that the client can read the refusal; then
    // it resets the connection.
    while raw
        .send(b"x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n")
        .await
    {
        sent += 1;
        assert!(sent < 100_000_000, "the daemon reads headers without a limit");
    }
    assert!(daemon.kibibytes("VmHWM") < 200 * 1024, "the daemon keeps the headers in memory");
    assert!(daemon.is_ready().await);
}

#[tokio::test]
async fn oversized_body_is_refused_and_the_refusal_is_readable() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let large = "x".repeat(8 << 20);
    let announced = post("/v1/events", "", &large);
    let mut chunked =
        "POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_owned();
    for _ in 0..128 {
        chunked.push_str(&format!("10000\r\n{}\r\n", &large[..0x10000]));
    }
    let never_ending = chunked.clone();
    chunked.push_str("0\r\n\r\n");
    for (name, bytes) in [("announced", announced), ("in chunks", chunked), ("without an end", never_ending)]
    {
        let mut raw = Raw::connect(daemon.address()).await;
        // The client sends all of the body before it reads.
        assert!(raw.send(bytes.as_bytes()).await, "{name}: the connection was reset while the client sent");
        let answer = raw.answer().await.expect(name);
        assert_eq!(answer.status, 413, "{name}: {answer:?}");
        assert!(answer.head.contains("connection: close"), "{name}: {answer:?}");
        let problem: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(
            (&problem["code"], &problem["limit"]),
            (&json!("payload_too_large"), &json!(262_144)),
            "{name}"
        );
    }
    assert_eq!(event_count(&daemon).await, 0);
}

#[tokio::test]
async fn body_that_differs_from_its_length_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let head = |length: usize| {
        format!(
            "POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let longer = answers(&daemon, format!("{}{EVENT}", head(EVENT.len() + 1)).as_bytes()).await;
    assert_eq!(statuses(&longer), [400], "a length above the body: {longer:#?}");
    let shorter = answers(&daemon, format!("{}{EVENT}", head(EVENT.len() - 1)).as_bytes()).await;
    assert_eq!(statuses(&shorter), [400, 400], "a length below the body: {shorter:#?}");
    let encoded = post("/v1/events", "content-encoding: gzip\r\n", EVENT);
    let encoded = answers(&daemon, encoded.as_bytes()).await;
    assert_eq!(statuses(&encoded), [415], "{encoded:#?}");
    // A client that disconnects within a body, even before its last byte, publishes nothing.
    for sent in [1, EVENT.len() / 2, EVENT.len() - 1] {
        let mut raw = Raw::connect(daemon.address()).await;
        assert!(raw.send(format!("{}{}", head(EVENT.len()), &EVENT[..sent]).as_bytes()).await);
    }
    assert_eq!(event_count(&daemon).await, 0);
}

#[tokio::test]
async fn expect_continue_is_answered_before_the_body() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let head = |length: usize| {
        format!(
            "POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let mut raw = Raw::connect(daemon.address()).await;
    raw.send(head(EVENT.len()).as_bytes()).await;
    assert_eq!(raw.answer().await.unwrap().status, 100);
    raw.send(EVENT.as_bytes()).await;
    assert_eq!(raw.answer().await.unwrap().status, 202);
    let mut raw = Raw::connect(daemon.address()).await;
    raw.send(head(1 << 30).as_bytes()).await;
    assert_eq!(raw.answer().await.unwrap().status, 413, "100 Continue for a body that is too large");
}

#[tokio::test]
async fn unknown_expectations_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    for (expectation, status) in [
        ("expect: 200-ok\r\n", 417),
        ("expect: 100-continue, 200-ok\r\n", 417),
        ("expect: 100-continue\r\nexpect: 200-ok\r\n", 417),
        ("expect:\r\n", 417),
        ("", 202),
    ] {
        let answers = answers(&daemon, post("/v1/events", expectation, EVENT).as_bytes()).await;
        assert_eq!(statuses(&answers), [status], "{expectation}: {answers:#?}");
        assert_problems(&answers, expectation);
    }
    let continued = answers(&daemon, post("/v1/events", "expect: 100-Continue\r\n", EVENT).as_bytes()).await;
    assert_eq!(continued.last().unwrap().status, 202, "{continued:#?}");
    assert_eq!(event_count(&daemon).await, 2);
}

/// The bytes arrive in one piece, or in many.
#[tokio::test]
async fn heads_are_refused_above_exactly_64_kib() {
    const BOUND: usize = 64 * 1024;
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let head = |length: usize| {
        let start = "GET /v1/events?limit=1 HTTP/1.1\r\nhost: localhost\r\n";
        // A single header has no limit of its size, so three headers share the length.
        let rest = length - start.len() - 3 * "x1: \r\n".len() - "\r\n".len();
        let parts = [rest / 3, rest / 3, rest - 2 * (rest / 3)];
        let fields: String =
            parts.iter().enumerate().map(|(n, part)| format!("x{n}: {}\r\n", "y".repeat(*part))).collect();
        format!("{start}{fields}\r\n")
    };
    for (length, status) in
        [(BOUND - 1, 200), (BOUND, 200), (BOUND + 1, 431), (70_000, 431), (100_000, 431), (130_000, 431)]
    {
        let head = head(length);
        assert_eq!(head.len(), length);
        let whole = answers(&daemon, head.as_bytes()).await;
        assert_eq!(statuses(&whole), [status], "{length} bytes at once");
        assert_problems(&whole, "at once");
        let mut raw = Raw::connect(daemon.address()).await;
        for piece in head.as_bytes().chunks(5_000) {
            if !raw.send(piece).await {
                break;
            }
            tokio::task::yield_now().await;
        }
        let answer = raw.answer().await.unwrap();
        assert_eq!(answer.status, status, "{length} bytes in pieces");
        assert_eq!(answer.head.contains("connection: close"), status != 200, "{}", answer.head);
    }
}

#[tokio::test]
async fn pipelined_requests_are_all_answered_in_order() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let all: String = (0..20)
        .map(|number| {
            post("/v1/events", "", &format!(r#"{{"type":"a.b","data":{number},"id":"n-{number}"}}"#))
        })
        .collect();
    let answers = answers(&daemon, all.as_bytes()).await;
    let ids: Vec<_> = answers
        .iter()
        .map(|answer| serde_json::from_str::<Value>(&answer.body).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids, (0..20).map(|number| format!("n-{number}")).collect::<Vec<_>>());
}

fn nested(depth: usize) -> String {
    format!("{}1{}", "[".repeat(depth), "]".repeat(depth))
}

fn members(count: usize) -> String {
    let members: Vec<_> = (0..count).map(|number| format!("\"{number:x}\":0")).collect();
    format!("{{{}}}", members.join(","))
}

/// Valid JSON in `data` is delivered byte for byte.
#[tokio::test]
async fn valid_json_in_data_reaches_the_subscriber_unchanged() {
    let data = tempfile::tempdir().unwrap();
    let daemon =
        Daemon::start_in(data.path(), &["--dev"], &[("BALTO__INGEST__MAX_EVENT_BYTES", "1MiB")]).await;
    let receiver = Receiver::status(200).await;
    daemon.post("/endpoints", &json!({"url": receiver.url, "ordering": "endpoint"}).to_string()).await;
    let many = members(80_000);
    let deep = nested(100);
    let rows = [
        "1e309",
        "-1e-400",
        "123456789012345678901234567890.000000000000000000000000001",
        "0.1e1",
        r#"{"a":1,"a":2,"a":{"b":1,"b":1}}"#,
        r#""\ud800""#,
        r#""\udc00\ud800 \u0000""#,
        "\"\u{202e}gpj.exe\u{2066}\u{feff}\"",
        "\"\u{10ffff}\u{fdd0}e\u{301}\u{e9}\"",
        "[ 1 ,\t2\r\n]",
        r#"{"":{"":[]}}"#,
        &many,
        &deep,
    ];
    for row in &rows {
        let (status, answer, _) =
            daemon.call("POST", "/events", &[], &format!(r#"{{"type":"a.b","data":{row}}}"#)).await;
        assert_eq!(status, 202, "{}: {answer}", &row[..row.len().min(60)]);
    }
    let got = receiver.until(rows.len()).await;
    for (got, row) in got.iter().zip(rows) {
        let data = got.body.split_once(r#""data":"#).unwrap().1.strip_suffix('}').unwrap();
        assert_eq!(data, row);
    }
}

#[tokio::test]
async fn json_edge_cases_are_refused_with_a_reason() {
    let data = tempfile::tempdir().unwrap();
    let daemon =
        Daemon::start_in(data.path(), &["--dev"], &[("BALTO__INGEST__MAX_EVENT_BYTES", "1MiB")]).await;
    let event = |data: &str| format!(r#"{{"type":"a.b","data":{data}}}"#).into_bytes();
    let text = |bytes: &[u8]| [&br#"{"type":"a.b","data":""#[..], bytes, b"\"}"].concat();
    let rows: Vec<(&str, Vec<u8>, u16)> = vec![
        ("101 levels", event(&nested(101)), 422),
        ("100,000 levels", event(&nested(100_000)), 422),
        ("100,000 levels without an end", event(&"[{\"a\":".repeat(100_000)), 400),
        ("100,000 levels around the event", "{\"type\":".repeat(100_000).into_bytes(), 400),
        (
            "100,000 levels of metadata",
            format!(r#"{{"type":"a","data":1,"metadata":{{"a":{}}}}}"#, nested(8_000)).into_bytes(),
            422,
        ),
        ("1,000,000 members", event(&members(1_000_000)), 413),
        ("80,000 unknown members", members(80_000).into_bytes(), 422),
        ("a member twice", br#"{"type":"a.b","type":"a.b","data":1}"#.to_vec(), 422),
        ("data twice", br#"{"type":"a.b","data":1,"data":1}"#.to_vec(), 422),
        ("a member twice, once escaped", br#"{"type":"a.b","t\u0079pe":"a.b","data":1}"#.to_vec(), 422),
        ("not UTF-8", text(b"\xff"), 400),
        ("a truncated UTF-8 character", text(b"\xe2\x82"), 400),
        ("an overlong UTF-8 encoding", text(b"\xc0\xaf"), 400),
        ("a lone surrogate in UTF-8", text(b"\xed\xa0\x80"), 400),
        ("beyond Unicode", text(b"\xf4\x90\x80\x80"), 400),
        ("a lone surrogate as type", br#"{"type":"\ud800","data":1}"#.to_vec(), 400),
        ("a NUL in a text", text(b"\0"), 400),
        ("a NUL behind", [&event("1")[..], b"\0"].concat(), 400),
        ("a NUL in the type", br#"{"type":"a\u0000","data":1}"#.to_vec(), 422),
        ("a byte order mark", [b"\xef\xbb\xbf", &event("1")[..]].concat(), 400),
        ("UTF-16", r#"{"type":"a","data":1}"#.encode_utf16().flat_map(u16::to_le_bytes).collect(), 400),
        ("a bidirectional override as type", "{\"type\":\"a\u{202e}b\",\"data\":1}".into(), 422),
        ("a line separator as tenant", "{\"type\":\"a\",\"data\":1,\"tenant\":\"a\u{2028}b\"}".into(), 422),
        (
            "a version beyond integers",
            br#"{"type":"a","data":1,"stream":"s","expectedVersion":18446744073709551616}"#.to_vec(),
            422,
        ),
        (
            "a fractional version",
            br#"{"type":"a","data":1,"stream":"s","expectedVersion":1.5}"#.to_vec(),
            422,
        ),
        (
            "a version that is infinite",
            br#"{"type":"a","data":1,"stream":"s","expectedVersion":1e309}"#.to_vec(),
            400,
        ),
        ("NaN", event("NaN"), 400),
        ("a leading zero", event("01"), 400),
        ("a trailing comma", event("[1,]"), 400),
        ("a comment", event("/* */1"), 400),
        ("two values", event("1}{"), 400),
        ("nothing", Vec::new(), 400),
        ("spaces", vec![b' '; 100_000], 400),
    ];
    for (name, body, status) in rows {
        let head = format!(
            "POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let answers = answers(&daemon, &[head.as_bytes(), &body].concat()).await;
        assert_eq!(statuses(&answers), [status], "{name}: {answers:#?}");
    }
    assert_eq!(event_count(&daemon).await, 0);
    assert!(daemon.is_ready().await);
}

#[tokio::test]
async fn invalid_key_is_refused_and_similar_keys_are_distinct() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    for (name, key) in [
        ("empty", String::new()),
        ("spaces", "   ".to_owned()),
        ("composed", "\u{e9}".to_owned()),
        ("decomposed", "e\u{301}".to_owned()),
        ("too long", "k".repeat(256)),
        ("an open quote", "\"k".to_owned()),
    ] {
        let request = post("/v1/events", &format!("idempotency-key: {key}\r\n"), EVENT);
        let answers = answers(&daemon, request.as_bytes()).await;
        assert_eq!(statuses(&answers), [400], "{name}: {answers:#?}");
    }
    let mut ids = std::collections::HashSet::new();
    for key in ["k", "K", "k ", "k\\\\", "\"k\\\\\"", "%6b"] {
        let request = post("/v1/events", &format!("idempotency-key: {key}\r\n"), EVENT);
        let answer = answers(&daemon, request.as_bytes()).await.remove(0);
        let id = serde_json::from_str::<Value>(&answer.body).unwrap()["id"].clone();
        ids.insert(id.as_str().unwrap().to_owned());
    }
    // `k ` equals `k`: whitespace around a header value is not part of it. The others are all
    // different.
    assert_eq!(ids.len(), 5);
}

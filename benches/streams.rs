//! Streams: appends to one stream beside plain ingest, and reads of a warm stream.
//!
//! Appends and plain events alternate in short turns of one process, with the same writers. The
//! result is the median of the turns' ratios, since a shared machine changes its speed.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark ends on an error, and prints its results"
)]

mod support;

use std::time::{Duration, Instant};

use support::{Subject, connect, event, judge, median, message_length, post, posts};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const WRITERS: usize = 64;
const EVENTS: usize = 10_000;
const ROUNDS: usize = 9;
/// Pause between two turns, so that the work of one is not charged to the next.
const PAUSE: Duration = Duration::from_millis(200);
const READERS: usize = 4;
const READS: usize = 100;

const APPEND_RATIO_MIN: f64 = 0.85;
const READ_RATE_MIN: f64 = 100_000.0;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    let subject = Subject::start().await;
    let port = subject.port;
    let append = format!(r#"{{"events":[{}]}}"#, event());
    let mut ratios = Vec::new();
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let plain = posts(port, "/v1/events", &[event()], WRITERS, EVENTS).await;
        tokio::time::sleep(PAUSE).await;
        let appended =
            posts(port, "/v1/streams/busy/events", std::slice::from_ref(&append), WRITERS, EVENTS).await;
        tokio::time::sleep(PAUSE).await;
        ratios.push(appended / plain);
        rates[0].push(plain);
        rates[1].push(appended);
    }
    let [plain, appended] = rates.map(median);
    println!("plain ingest, {WRITERS} writers: {plain:.0} events/s");
    let ratio = median(ratios);
    judge(
        ratio >= APPEND_RATIO_MIN,
        &format!(
            "appends to one stream: {appended:.0} events/s, {ratio:.2} of plain, at least {APPEND_RATIO_MIN}"
        ),
    );
    let mut stream = connect(port).await;
    let batch = format!(r#"{{"events":[{}]}}"#, vec![event(); 1_000].join(","));
    post(&mut stream, "/v1/streams/read/events", &batch, 202).await;
    let (events, bytes) = reads(port).await;
    judge(
        events >= READ_RATE_MIN,
        &format!(
            "reads of a warm stream of 1,000: {events:.0} events/s, at least {READ_RATE_MIN:.0} ({:.0} MB/s)",
            bytes / 1e6
        ),
    );
}

/// Reads the stream in pages of 1,000 events. Returns events and bytes per second.
async fn reads(port: u16) -> (f64, f64) {
    let read = async |stream: &mut TcpStream| {
        let request = "GET /v1/streams/read/events?limit=1000 HTTP/1.1\r\nhost: localhost\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut buffer = Vec::with_capacity(2 << 20);
        while message_length(&buffer).is_none() {
            assert!(stream.read_buf(&mut buffer).await.unwrap() > 0, "the connection was closed");
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..200]));
        buffer.len()
    };
    let mut stream = connect(port).await;
    read(&mut stream).await;
    let started = Instant::now();
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            tokio::spawn(async move {
                let (mut stream, mut bytes) = (connect(port).await, 0);
                for _ in 0..READS {
                    bytes += read(&mut stream).await;
                }
                bytes
            })
        })
        .collect();
    let mut bytes = 0;
    for reader in readers {
        bytes += reader.await.unwrap();
    }
    let seconds = started.elapsed().as_secs_f64();
    ((1_000 * READERS * READS) as f64 / seconds, bytes as f64 / seconds)
}

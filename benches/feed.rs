//! The feed: 100 readers of server-sent events at its tail, beside ingest.
//!
//! Do all readers get all events at 1,000 events/s in (100,000 events/s out)? How much of its
//! ingest does the daemon keep while the readers get 100,000 events/s, each the events of one type?
//! And while each reader gets all events, which is as much as two processors can send? The readers
//! run in this process, so their cost counts against the daemon. Turns with and without readers
//! alternate.

#![expect(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    reason = "a benchmark ends on an error, and prints its results"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::{Duration, Instant};

use support::{Subject, WAIT_MAX, connect, cpu, event, judge, median, post, posts};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const READERS: usize = 100;
/// Types of the events, if each reader reads one: a type has 6 or 7 readers.
const TYPES: usize = 16;
/// Lines of an event's block: its id, its data, and the empty line.
const LINES: usize = 3;
const WRITERS: usize = 64;
const EVENTS: usize = 20_000;
const ROUNDS: usize = 7;
const PACED_EVENTS: usize = 10_000;
const PACED_RATE: u32 = 1_000;
/// Events of one paced request.
const PACED_BATCH: usize = 10;

const RATE_OUT_MIN: f64 = 100_000.0;
const KEPT_MIN: f64 = 0.70;
/// Part of the offered pace that the readers must see: the rest is the time of the last batch.
const PACE_MIN: f64 = 0.98;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        paced().await;
        let (ratio, out, report) = beside_full_ingest(Some(TYPES)).await;
        judge(ratio >= KEPT_MIN && out >= RATE_OUT_MIN, &report);
        let (_, _, report) = beside_full_ingest(None).await;
        println!("for comparison: {report}");
    });
}

struct Readers {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    lines: Arc<AtomicIsize>,
}

impl Readers {
    /// Returns when all readers wait at the tail. With `types`, each reads one of that many types.
    async fn start(port: u16, types: Option<usize>) -> Self {
        let lines = Arc::new(AtomicIsize::new(0));
        let mut tasks = Vec::new();
        for reader in 0..READERS {
            let mut stream = connect(port).await;
            let filter = types.map(|types| format!("&types={}", type_of(reader % types))).unwrap_or_default();
            let request = format!(
                "GET /v1/feed?after=now{filter} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut buffer = vec![0; 1 << 18];
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..read]));
            let lines = Arc::clone(&lines);
            tasks.push(tokio::spawn(async move {
                loop {
                    let read = stream.read(&mut buffer).await.unwrap();
                    assert!(read > 0, "the stream has ended");
                    lines.fetch_add(lines_in(&buffer[..read]), Ordering::Relaxed);
                }
            }));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        lines.store(0, Ordering::Relaxed);
        Self { tasks, lines }
    }

    fn events(&self) -> usize {
        self.lines.load(Ordering::Relaxed).max(0).cast_unsigned() / LINES
    }

    async fn wait_for(&self, events: usize) {
        let deadline = Instant::now() + WAIT_MAX;
        while self.events() < events {
            assert!(Instant::now() < deadline, "{} of {events} events arrived", self.events());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Lines of the events. The HTTP chunks around them have lines, too; those end with `\r\n`.
/// Counts in bytes, which the compiler does many at a time.
fn lines_in(bytes: &[u8]) -> isize {
    let part = |part: &[u8]| -> i8 {
        part.iter().map(|byte| i8::from(*byte == b'\n') - i8::from(*byte == b'\r')).sum()
    };
    bytes.chunks(127).map(|bytes| isize::from(part(bytes))).sum()
}

async fn paced() {
    let subject = Subject::start().await;
    let readers = Readers::start(subject.port, None).await;
    let batch = format!(r#"{{"events":[{}]}}"#, vec![event(); PACED_BATCH].join(","));
    let mut stream = connect(subject.port).await;
    let requests = PACED_RATE / u32::try_from(PACED_BATCH).unwrap();
    let mut turn = tokio::time::interval(Duration::from_secs(1) / requests);
    let (before, started) = (cpu(subject.daemon.0.id()), Instant::now());
    for _ in 0..PACED_EVENTS / PACED_BATCH {
        turn.tick().await;
        post(&mut stream, "/v1/events/batch", &batch, 202).await;
    }
    readers.wait_for(PACED_EVENTS * READERS).await;
    let out = (PACED_EVENTS * READERS) as f64 / started.elapsed().as_secs_f64();
    let busy = (cpu(subject.daemon.0.id()) - before) / started.elapsed().as_secs_f64() / 1e6;
    judge(
        out >= RATE_OUT_MIN * PACE_MIN,
        &format!(
            "{READERS} readers at {PACED_RATE} events/s in: {out:.0} events/s out, {busy:.2} processors of the daemon"
        ),
    );
}

fn type_of(number: usize) -> String {
    format!("order.paid{number}")
}

/// The ratio of ingest beside readers to ingest alone, the events per second that all readers get,
/// and both as a sentence.
async fn beside_full_ingest(types: Option<usize>) -> (f64, f64, String) {
    let subject = Subject::start().await;
    let of_type = |number| event().replace("order.paid", &type_of(number));
    let bodies: Vec<_> = (0..types.unwrap_or(1)).map(of_type).collect();
    let ingest = || posts(subject.port, "/v1/events", &bodies, WRITERS, EVENTS);
    let (mut ratios, mut rates) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
    // The first round warms up and does not count.
    for round in 0..=ROUNDS {
        let alone = ingest().await;
        let readers = Readers::start(subject.port, types).await;
        let started = Instant::now();
        let beside = ingest().await;
        let out = readers.events() as f64 / started.elapsed().as_secs_f64();
        if round > 0 {
            ratios.push(beside / alone);
            rates.iter_mut().zip([alone, beside, out]).for_each(|(rates, rate)| rates.push(rate));
        }
        drop(readers);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let (ratio, [alone, beside, out]) = (median(ratios), rates.map(median));
    let wanted = if types.is_some() { "of one type each" } else { "of all events" };
    let report = format!(
        "ingest beside {READERS} readers {wanted}: {beside:.0} events/s of {alone:.0} alone, {ratio:.2} (at least {KEPT_MIN}); {out:.0} events/s out (at least {RATE_OUT_MIN:.0})"
    );
    (ratio, out, report)
}

//! One million deliveries to an endpoint that is down: memory during ingest, after a `kill -9` and
//! during the drain; time until the daemon is ready again; order of the drain after recovery. The
//! report shows for each promise whether it holds.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark ends on an error, and prints its results"
)]

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{ChildGuard, balto, connect, free_port, most_memory, number, post};
use tokio::net::TcpListener;

const EVENTS: u64 = 1_000_000;
const BATCH: u64 = 1_000;
/// Maximum resident memory, in each phase.
const MEMORY_BYTES_MAX: u64 = 300_000_000;
/// From start to ready after a `kill -9`.
const READY_MAX: Duration = Duration::from_secs(5);
/// With 64 concurrent requests, neighbours overtake each other by a few places.
const PLACES_FEW: u32 = 256;
/// On a busy machine a request may be delayed while the deliveries of a fifth of a second pass it.
const PLACES_MAX: u32 = 4_096;
/// Deadline of the drain.
const WAIT_MAX: Duration = Duration::from_secs(600);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    let data = tempfile::tempdir().unwrap();
    let (port, ops) = (free_port(), free_port());
    // No receiver listens until the backlog is complete.
    let receiver = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut daemon = balto(data.path(), port, ops);
    let mut stream = connect(port).await;
    let endpoint = format!(
        r#"{{"url":"http://{receiver}/","maxInFlight":64,"retry":{{"initial":"1s","maxInterval":"5s","maxAttempts":100}}}}"#
    );
    post(&mut stream, "/v1/endpoints", &endpoint, 201).await;
    let started = Instant::now();
    for first in (0..EVENTS).step_by(usize::try_from(BATCH).unwrap()) {
        let events: Vec<_> = (first..first + BATCH)
            .map(|number| {
                format!(r#"{{"type":"a.b","data":{{"number":{number},"pad":"{}"}}}}"#, "x".repeat(450))
            })
            .collect();
        post(&mut stream, "/v1/events/batch", &format!(r#"{{"events":[{}]}}"#, events.join(",")), 202).await;
    }
    println!("accepted: {EVENTS} in {:.1} s", started.elapsed().as_secs_f64());
    judge_memory(&daemon, "during ingest");
    daemon.0.kill().unwrap();
    daemon.0.wait().unwrap();
    daemon = restart_and_time(data.path(), port, ops).await;
    drain(&daemon, receiver).await;
}

async fn restart_and_time(data: &std::path::Path, port: u16, ops: u16) -> ChildGuard {
    let started = Instant::now();
    let daemon = balto(data, port, ops);
    while !support::get(ops, "/readyz").await.starts_with("HTTP/1.1 200") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = started.elapsed();
    judge(took < READY_MAX, &format!("ready {:.2} s after the restart, below 5", took.as_secs_f64()));
    judge_memory(&daemon, "during the start");
    daemon
}

fn judge(holds: bool, promise: &str) {
    println!("{}: {promise}", if holds { "HOLDS" } else { "BROKEN" });
}

fn judge_memory(daemon: &ChildGuard, when: &str) {
    let most = most_memory(daemon.0.id());
    judge(most < MEMORY_BYTES_MAX, &format!("memory {when}: {} MB at most, below 300", most / 1_000_000));
}

async fn drain(daemon: &ChildGuard, receiver: std::net::SocketAddr) {
    // Number of the event, and whether it is the first attempt.
    let got: Arc<Mutex<Vec<(u32, bool)>>> = Arc::default();
    let count = Arc::new(AtomicU64::new(0));
    let (kept, counted) = (got.clone(), count.clone());
    let started = Instant::now();
    tokio::spawn(support::answering(TcpListener::bind(receiver).await.unwrap(), move |request| {
        let arrived = (u32::try_from(number(request)).unwrap(), is_first_attempt(request));
        kept.lock().unwrap().push(arrived);
        counted.fetch_add(1, Ordering::Relaxed);
        Some(200)
    }));
    let mut first = None;
    while count.load(Ordering::Relaxed) < EVENTS {
        assert!(started.elapsed() < WAIT_MAX, "{} of {EVENTS} arrived", count.load(Ordering::Relaxed));
        if first.is_none() && count.load(Ordering::Relaxed) > 0 {
            first = Some(Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let first = first.unwrap_or(started);
    println!("first delivery: {:.1} s after the receiver's recovery", (first - started).as_secs_f64());
    println!("drained: {:.1} s after that", first.elapsed().as_secs_f64());
    judge_memory(daemon, "during the drain");
    judge_order(&got.lock().unwrap());
}

/// Only deliveries that were attempted while the receiver was down may come later, at their own
/// retry time.
fn judge_order(got: &[(u32, bool)]) {
    let mut highest = 0;
    let [mut fresh, mut tried] = [(); 2].map(|()| Lateness::default());
    for (number, first) in got {
        highest = highest.max(*number);
        let kind = if *first { &mut fresh } else { &mut tried };
        kind.note(highest - number);
    }
    let twice = got.len() as u64 - EVENTS;
    println!("received: {} ({twice} twice)", got.len());
    println!("attempted while the receiver was down: {tried}");
    judge(fresh.most <= PLACES_MAX, &format!("the others, in order of acceptance: {fresh}"));
}

#[derive(Default)]
struct Lateness {
    count: u32,
    /// More than a few places.
    late: u32,
    most: u32,
}

impl Lateness {
    fn note(&mut self, places: u32) {
        self.count += 1;
        self.late += u32::from(places > PLACES_FEW);
        self.most = self.most.max(places);
    }
}

impl std::fmt::Display for Lateness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { count, late, most } = self;
        write!(f, "{count}, {late} of them more than {PLACES_FEW} places late, {most} at most")
    }
}

fn is_first_attempt(request: &[u8]) -> bool {
    request.windows(18).any(|header| header == b"balto-attempt: 1\r\n")
}

//! One million deliveries to an endpoint that is down: memory while they come in and after a `kill -9`, time until the
//! daemon is ready again, and in which order they go out when the receiver is back.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on ends, and prints what it measured"
)]

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{Ended, balto, connect, free_port, memory, number, post};
use tokio::net::TcpListener;

const EVENTS: u64 = 1_000_000;
const BATCH: u64 = 1_000;
/// How long the drain may take.
const PATIENCE: Duration = Duration::from_secs(600);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    let data = tempfile::tempdir().unwrap();
    let (port, ops) = (free_port(), free_port());
    // Nobody listens there until the backlog is complete.
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
    let process = daemon.0.id();
    println!("accepted: {EVENTS} in {:.1} s", started.elapsed().as_secs_f64());
    println!("memory: {} MiB now, {} MiB at most", memory(process, "VmRSS:"), memory(process, "VmHWM:"));
    daemon.0.kill().unwrap();
    daemon.0.wait().unwrap();
    daemon = ready_again(data.path(), port, ops).await;
    drain(&daemon, receiver).await;
}

async fn ready_again(data: &std::path::Path, port: u16, ops: u16) -> Ended {
    let started = Instant::now();
    let daemon = balto(data, port, ops);
    while !support::get(ops, "/readyz").await.starts_with("HTTP/1.1 200") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("ready after kill -9: {:.2} s", started.elapsed().as_secs_f64());
    daemon
}

async fn drain(daemon: &Ended, receiver: std::net::SocketAddr) {
    let got: Arc<Mutex<Vec<u32>>> = Arc::default();
    let count = Arc::new(AtomicU64::new(0));
    let (kept, counted) = (got.clone(), count.clone());
    let started = Instant::now();
    tokio::spawn(support::answering(TcpListener::bind(receiver).await.unwrap(), move |request| {
        kept.lock().unwrap().push(u32::try_from(number(request)).unwrap());
        counted.fetch_add(1, Ordering::Relaxed);
        Some(200)
    }));
    let mut first = None;
    while count.load(Ordering::Relaxed) < EVENTS {
        assert!(started.elapsed() < PATIENCE, "{} of {EVENTS} arrived", count.load(Ordering::Relaxed));
        if first.is_none() && count.load(Ordering::Relaxed) > 0 {
            first = Some(Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let first = first.unwrap_or(started);
    println!("first delivery: {:.1} s after the receiver was back", (first - started).as_secs_f64());
    println!("drained: {:.1} s after that", first.elapsed().as_secs_f64());
    println!("memory: {} MiB at most since the restart", memory(daemon.0.id(), "VmHWM:"));
    let got = got.lock().unwrap();
    // With 64 requests at once neighbours may overtake each other; what had been tried before the crash comes later.
    let mut late = 0;
    let mut highest = 0;
    for number in got.iter() {
        highest = highest.max(*number);
        late += u32::from(highest - number > 256);
    }
    println!(
        "received: {} ({} twice), {late} of them more than 256 places late",
        got.len(),
        got.len() as u64 - EVENTS
    );
}

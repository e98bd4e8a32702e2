//! Isolation: the latency of a healthy endpoint beside a receiver that hangs and one that answers
//! 500. Measured from the publisher's request to the receiver's, the same load alone and beside
//! them, in turn, in one run.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark ends on an error, and prints its results"
)]

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{balto, connect, free_port, number, post};
use tokio::net::TcpListener;

/// Events per second, few enough to leave idle CPU time: the bench measures waiting, not queueing.
const RATE: u32 = 500;
const RUN: Duration = Duration::from_secs(8);
const ROUNDS: usize = 3;
/// First events, which do not count: they open the connections.
const WARM_UP: u64 = 500;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        println!("| round | alone, ms p50 / p99 | beside a hanging and a failing one | p99, times |");
        println!("|---|---|---|---|");
        for round in 1..=ROUNDS {
            let (alone, beside) = (latencies(false).await, latencies(true).await);
            println!("| {round} | {alone} | {beside} | {:.2} |", beside.p99 / alone.p99);
        }
    });
}

/// Milliseconds.
struct Latency {
    p50: f64,
    p99: f64,
}

impl std::fmt::Display for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} / {:.2}", self.p50, self.p99)
    }
}

async fn latencies(beside: bool) -> Latency {
    let started = Instant::now();
    let micros = move || u64::try_from(started.elapsed().as_micros()).unwrap();
    let taken: Arc<Mutex<Vec<u64>>> = Arc::default();
    let data = tempfile::tempdir().unwrap();
    let port = free_port();
    let _daemon = balto(data.path(), port, free_port());
    let kept = taken.clone();
    subscribe(port, move |request| {
        kept.lock().unwrap().push(micros() - number(request));
        Some(200)
    })
    .await;
    if beside {
        subscribe(port, |_| None).await;
        subscribe(port, |_| Some(500)).await;
    }
    let mut stream = connect(port).await;
    let mut turn = tokio::time::interval(Duration::from_secs(1) / RATE);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let events = u64::from(RATE) * RUN.as_secs();
    for _ in 0..events {
        turn.tick().await;
        let body =
            format!(r#"{{"type":"a.b","data":{{"number":{},"pad":"{}"}}}}"#, micros(), "x".repeat(450));
        post(&mut stream, "/v1/events", &body, 202).await;
    }
    let deadline = Instant::now() + support::WAIT_MAX;
    while (taken.lock().unwrap().len() as u64) < events {
        assert!(Instant::now() < deadline, "some deliveries are missing");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut taken = taken.lock().unwrap().split_off(usize::try_from(WARM_UP).unwrap());
    taken.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a short run")]
    let at = |part: usize| taken[taken.len() * part / 100] as f64 / 1e3;
    Latency { p50: at(50), p99: at(99) }
}

async fn subscribe(port: u16, answer: impl Fn(&[u8]) -> Option<u16> + Send + Sync + 'static) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    support::subscribe(port, &format!("http://{}/", listener.local_addr().unwrap())).await;
    tokio::spawn(support::answering(listener, answer));
}

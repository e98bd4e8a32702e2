//! Deliveries per second, end to end: Balto (durable, fdatasync before each 202) beside a bare
//! relay with the same HTTP in and out and no storage; and batch ingest in acknowledged events per
//! second. The relay sends Balto's messages, head and body, recorded from one event: it reads each
//! event, and answers and sends the same every time.
//!
//! Both run as child processes and take short turns, with the same publishers and the same receiver
//! in this process. The result is the median of the turns' ratios, since a shared machine changes
//! its speed from second to second. The run ends after a few tens of seconds.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark ends on an error, and prints its results"
)]

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, Method, Request, StatusCode, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use support::{
    ChildGuard, WAIT_MAX, answering, balto, connect, cpu, event, free_port, get, median, post, receiver,
    subscribe,
};
use tokio::net::TcpListener;

const PUBLISHERS: usize = 64;
const EVENTS: usize = 20_000;
const ROUNDS: usize = 15;
/// Pause between two turns, so that the work of one is not charged to the next.
const PAUSE: Duration = Duration::from_millis(200);
const BATCHES: usize = 200;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    match arguments.iter().position(|argument| argument == "--relay") {
        Some(at) => {
            let [port, target, recorded] = [1, 2, 3].map(|next| &arguments[at + next]);
            runtime.block_on(relay(port, target, Path::new(recorded)));
        }
        None => runtime.block_on(measure()),
    }
}

/// Reads a body, answers 202, sends a request, and does nothing else.
async fn relay(port: &str, target: &str, recorded: &Path) {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let target: Uri = target.parse().unwrap();
    let [answer, delivery] =
        [ANSWER, DELIVERY].map(|name| message(&std::fs::read(recorded.join(name)).unwrap()));
    let handler = move |_: Bytes| {
        let (client, target, (headers, body)) = (client.clone(), target.clone(), delivery.clone());
        let (answer_headers, answer_body) = answer.clone();
        async move {
            tokio::spawn(async move {
                let mut request = Request::new(Full::new(body));
                *request.method_mut() = Method::POST;
                *request.uri_mut() = target;
                *request.headers_mut() = headers;
                let reply = client.request(request).await.unwrap();
                reply.into_body().collect().await.unwrap();
            });
            (StatusCode::ACCEPTED, answer_headers, answer_body)
        }
    };
    let router = axum::Router::new().route("/v1/events", axum::routing::post(handler));
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await.unwrap();
    let bounds = balto::api::http::server::Bounds {
        connections: balto::api::http::connection_limit::ConnectionLimit::new(4_096),
        header_timeout: Duration::from_secs(30),
        answer_timeout: Duration::from_secs(30),
        on_shortage: Arc::new(|| ()),
        tls: None,
    };
    balto::api::http::server::serve(listener, router, bounds, std::future::pending()).await;
}

/// File name of Balto's recorded response.
const ANSWER: &str = "answer";
const DELIVERY: &str = "delivery";

/// Records one event through Balto, at its publisher and its receiver.
async fn record(recorded: &Path) {
    let data = tempfile::tempdir().unwrap();
    let port = free_port();
    let _balto = balto(data.path(), port, free_port());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (url, (responses, delivered)) =
        (format!("http://{}/hook", listener.local_addr().unwrap()), std::sync::mpsc::channel());
    tokio::spawn(answering(listener, move |request| {
        responses.send(request.to_vec()).unwrap();
        Some(200)
    }));
    subscribe(port, &url).await;
    let answer = post(&mut connect(port).await, "/v1/events", &event(), 202).await;
    std::fs::write(recorded.join(ANSWER), answer).unwrap();
    let delivered = tokio::task::spawn_blocking(move || delivered.recv_timeout(WAIT_MAX)).await.unwrap();
    std::fs::write(recorded.join(DELIVERY), delivered.unwrap()).unwrap();
}

/// Headers and body, without the headers that the relay's HTTP library generates.
fn message(raw: &[u8]) -> (HeaderMap, Bytes) {
    let text = std::str::from_utf8(raw).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut headers = HeaderMap::new();
    for line in head.lines().skip(1) {
        let (name, value) = line.split_once(": ").unwrap();
        if !["host", "date", "content-length"].contains(&name) {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
    }
    (headers, body.to_owned().into())
}

async fn measure() {
    let recorded = tempfile::tempdir().unwrap();
    record(recorded.path()).await;
    let received = Arc::new(AtomicUsize::new(0));
    let target = receiver(received.clone()).await;
    let (relay_port, port, ops) = (free_port(), free_port(), free_port());
    let relay = Command::new(std::env::current_exe().unwrap())
        .args(["--relay", &relay_port.to_string(), &target])
        .arg(recorded.path())
        .spawn();
    let relay = ChildGuard(relay.unwrap());
    let data = tempfile::tempdir().unwrap();
    let engine = balto(data.path(), port, ops);
    subscribe(port, &target).await;
    println!("| turn | bare relay, deliveries/s (CPU µs each, of both sides) | balto, same units | ratio |");
    println!("|---|---|---|---|");
    let mut turns = Vec::new();
    for turn in 0..=ROUNDS {
        let relay = load(relay_port, &relay, &received).await;
        let balto = load(port, &engine, &received).await;
        // The first turn of each warms up and does not count.
        if turn > 0 {
            let ratio = balto.rate / relay.rate;
            println!("| {turn} | {relay} | {balto} | {ratio:.2} |");
            turns.push([relay.rate, balto.rate, ratio, relay.cost_of_all / balto.cost_of_all]);
        }
    }
    let [relay, balto, ratio, cost] =
        [0, 1, 2, 3].map(|column| median(turns.iter().map(|turn| turn[column]).collect()));
    println!("\nmedians: relay {relay:.0}, balto {balto:.0}, ratio {ratio:.2}; by CPU alone {cost:.2}");
    println!("records per commit: {:.1}", records_per_commit(ops).await);
    drop((engine, data));
    let (matched, unmatched) = (batches(Some(&target)).await, batches(None).await);
    println!("\nbatch ingest, 500-byte events in batches of 1000, 4 connections, acknowledged events/s:");
    println!("without an endpoint {unmatched:.0}; with an endpoint {matched:.0}");
}

/// Result of a round.
struct Speed {
    /// Deliveries per second.
    rate: f64,
    /// CPU time of the process under test per delivery, in microseconds; less noisy than the rate.
    cost: f64,
    /// The same including publishers and receiver: the difference to the total CPU time was idle.
    cost_of_all: f64,
}

impl std::fmt::Display for Speed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} ({:.0}, {:.0})", self.rate, self.cost, self.cost_of_all)
    }
}

async fn records_per_commit(ops: u16) -> f64 {
    let metrics = get(ops, "/metrics").await;
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap().parse().unwrap()
    };
    value("balto_commit_records_sum") / value("balto_commit_records_count")
}

/// Posts all events one by one over all connections, and waits until each has arrived.
async fn load(port: u16, child: &ChildGuard, received: &AtomicUsize) -> Speed {
    tokio::time::sleep(PAUSE).await;
    let mut streams = Vec::new();
    for _ in 0..PUBLISHERS {
        streams.push(connect(port).await);
    }
    received.store(0, Ordering::Relaxed);
    let used = [child.0.id(), std::process::id()].map(cpu);
    let started = Instant::now();
    let left = Arc::new(AtomicUsize::new(EVENTS));
    let mut publishers = tokio::task::JoinSet::new();
    for mut stream in streams {
        let left = left.clone();
        publishers.spawn(async move {
            let body = event();
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                post(&mut stream, "/v1/events", &body, 202).await;
            }
        });
    }
    while publishers.join_next().await.transpose().unwrap().is_some() {}
    while received.load(Ordering::Relaxed) < EVENTS {
        assert!(started.elapsed() < WAIT_MAX, "{} of {EVENTS} arrived", received.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let (events, took) = (EVENTS as f64, started.elapsed().as_secs_f64());
    let [cost, ours] = [(child.0.id(), used[0]), (std::process::id(), used[1])]
        .map(|(process, before)| (cpu(process) - before) / events);
    Speed { rate: events / took, cost, cost_of_all: cost + ours }
}

/// Acknowledged events per second of batch ingest.
async fn batches(target: Option<&str>) -> f64 {
    let data = tempfile::tempdir().unwrap();
    let port = free_port();
    let _child = balto(data.path(), port, free_port());
    if let Some(target) = target {
        subscribe(port, target).await;
    }
    let body = Arc::new(format!(r#"{{"events":[{}]}}"#, vec![event(); 1_000].join(",")));
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(connect(port).await);
    }
    let started = Instant::now();
    let mut publishers = tokio::task::JoinSet::new();
    for mut stream in streams {
        let body = body.clone();
        publishers.spawn(async move {
            for _ in 0..BATCHES / 4 {
                post(&mut stream, "/v1/events/batch", &body, 202).await;
            }
        });
    }
    while publishers.join_next().await.transpose().unwrap().is_some() {}
    (BATCHES * 1_000) as f64 / started.elapsed().as_secs_f64()
}

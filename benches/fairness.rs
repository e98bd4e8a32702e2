//! Fairness: shares of 1,000 tenants with equal load, and latencies of one tenant while another one
//! floods. Ratios within one run count.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a benchmark ends on an error, and prints its results"
)]

mod support;

use std::collections::HashMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{ChildGuard, answering, connect, free_port, judge, message_length};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ADMIN: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const TENANTS: usize = 1_000;
const RUN: Duration = Duration::from_secs(10);
/// Endpoints of the flooding tenant.
const FAN_OUT: usize = 5_000;
const PROBES: usize = 150;

/// Largest distance of a tenant's share from the mean, as a part of it.
const SPREAD_MAX: f64 = 0.20;
/// A p99 beside the flood may be this many times the one alone, or this many milliseconds.
const TIMES_MAX: f64 = 3.0;
const MILLIS_MAX: f64 = 50.0;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        equal_tenants().await;
        beside_a_flood().await;
    });
}

struct Daemon {
    port: u16,
    _child: ChildGuard,
    _data: tempfile::TempDir,
}

async fn daemon() -> Daemon {
    let data = tempfile::tempdir().unwrap();
    let port = free_port();
    let child = Command::new(env!("CARGO_BIN_EXE_balto"))
        .args(["serve", "--data-dir"])
        .arg(data.path())
        .env("BALTO__SERVER__API_LISTEN", format!("127.0.0.1:{port}"))
        .env("BALTO__SERVER__OPS_LISTEN", format!("127.0.0.1:{}", free_port()))
        .env("BALTO__AUTH__ADMIN_KEY", ADMIN)
        .env("BALTO__EGRESS__ALLOW_HTTP", "true")
        .env("BALTO__EGRESS__ALLOW_NETWORKS", "127.0.0.0/8")
        .env("BALTO__HANDSHAKE__ORIGIN", "balto.example.com")
        .env("BALTO__LOG__LEVEL", "error")
        .spawn();
    connect(port).await;
    Daemon { port, _child: ChildGuard(child.unwrap()), _data: data }
}

/// A caller with its key and its connection.
struct Caller {
    stream: TcpStream,
    key: String,
}

impl Caller {
    async fn new(port: u16, key: &str) -> Self {
        Self { stream: connect(port).await, key: key.to_owned() }
    }

    async fn call(&mut self, line: &str, headers: &str, body: &str) -> (u16, String) {
        let (key, length) = (&self.key, body.len());
        let request = format!(
            "{line} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}"
        );
        self.stream.write_all(request.as_bytes()).await.unwrap();
        let mut buffer = Vec::new();
        while message_length(&buffer).is_none() {
            assert!(self.stream.read_buf(&mut buffer).await.unwrap() > 0, "the connection was closed");
        }
        let text = String::from_utf8_lossy(&buffer).into_owned();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    async fn expect(&mut self, status: u16, line: &str, headers: &str, body: &str) -> String {
        let (found, answer) = self.call(line, headers, body).await;
        assert_eq!(found, status, "{line}: {answer}");
        answer
    }

    async fn key_for(&mut self, tenant: &str) -> String {
        let body = format!(r#"{{"role":"admin","tenant":"{tenant}"}}"#);
        let made = self.expect(201, "POST /v1/keys", "", &body).await;
        made.split_once(r#""secret":"#).unwrap().1.split('"').nth(1).unwrap().to_owned()
    }
}

/// Posts, reads and deliveries of a tenant.
#[derive(Clone, Copy, Default)]
struct Counts([u64; 3]);

async fn equal_tenants() {
    let daemon = daemon().await;
    let counts: Arc<Mutex<HashMap<String, Counts>>> = Arc::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let running = Arc::new(AtomicBool::new(false));
    let (counted, is_running) = (Arc::clone(&counts), Arc::clone(&running));
    tokio::spawn(answering(listener, move |request| {
        let line = std::str::from_utf8(&request[..60.min(request.len())]).unwrap_or_default();
        let name = line.split(['/', ' ']).nth(2).unwrap_or_default();
        if is_running.load(Ordering::Relaxed) {
            counted.lock().unwrap().entry(name.to_owned()).or_default().0[2] += 1;
        }
        Some(200)
    }));
    let mut operator = Caller::new(daemon.port, ADMIN).await;
    let mut callers = Vec::new();
    for number in 0..TENANTS {
        let name = format!("t{number}");
        let key = operator.key_for(&name).await;
        let mut caller = Caller::new(daemon.port, &key).await;
        let endpoint = format!(r#"{{"url":"http://{target}/{name}"}}"#);
        caller.expect(201, "POST /v1/endpoints", "", &endpoint).await;
        callers.push((name, caller));
    }
    running.store(true, Ordering::Relaxed);
    let started = Instant::now();
    let load = callers.into_iter().map(|(name, mut caller)| {
        let counts = Arc::clone(&counts);
        tokio::spawn(async move {
            let mut own = Counts::default();
            while started.elapsed() < RUN {
                caller.expect(202, "POST /v1/events", "", r#"{"type":"a.b","data":1}"#).await;
                own.0[0] += 1;
                caller.expect(200, "GET /v1/events?limit=1", "", "").await;
                own.0[1] += 1;
            }
            let mut counts = counts.lock().unwrap();
            let all = &mut counts.entry(name).or_default().0;
            (all[0], all[1]) = (own.0[0], own.0[1]);
        })
    });
    for task in load.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    running.store(false, Ordering::Relaxed);
    let counts: Vec<Counts> = counts.lock().unwrap().values().copied().collect();
    let mut within = true;
    println!("| {TENANTS} tenants with equal load | per second | smallest share of the mean | largest |");
    println!("|---|---|---|---|");
    for (at, what) in ["events posted", "lists read", "deliveries received"].into_iter().enumerate() {
        let all: Vec<u64> = counts.iter().map(|counts| counts.0[at]).collect();
        let (sum, mean) = (all.iter().sum::<u64>() as f64, all.iter().sum::<u64>() as f64 / TENANTS as f64);
        let part = |count: u64| count as f64 / mean;
        let (least, most) = (*all.iter().min().unwrap(), *all.iter().max().unwrap());
        println!("| {what} | {:.0} | {:.2} | {:.2} |", sum / RUN.as_secs_f64(), part(least), part(most));
        within &= part(least) >= 1.0 - SPREAD_MAX && part(most) <= 1.0 + SPREAD_MAX;
    }
    judge(within, "each tenant is within 20 % of the mean");
}

/// Latencies of one tenant by request, in milliseconds.
struct Probe {
    daemon: u16,
    key: String,
    received: Arc<Mutex<HashMap<u64, Instant>>>,
    last: u64,
}

const REQUESTS: [&str; 4] = ["plain post", "post with a key", "list after an own post", "delivery"];

impl Probe {
    async fn run(&mut self) -> [Vec<f64>; 4] {
        let mut caller = Caller::new(self.daemon, &self.key).await;
        let mut taken: [Vec<f64>; 4] = Default::default();
        for _ in 0..PROBES {
            self.last += 1;
            let number = self.last;
            let started = Instant::now();
            let body = format!(r#"{{"type":"a.b","data":{{"number":{number}}}}}"#);
            caller.expect(202, "POST /v1/events", "", &body).await;
            taken[0].push(millis(started));
            let listed = Instant::now();
            caller.expect(200, "GET /v1/events?limit=1", "", "").await;
            taken[2].push(millis(listed));
            let keyed = Instant::now();
            let key = format!("idempotency-key: k{number}\r\n");
            caller.expect(202, "POST /v1/events", &key, r#"{"type":"other","data":1}"#).await;
            taken[1].push(millis(keyed));
            let deadline = Instant::now() + support::WAIT_MAX;
            let received = loop {
                if let Some(at) = self.received.lock().unwrap().remove(&number) {
                    break at;
                }
                assert!(Instant::now() < deadline, "a delivery is missing");
                tokio::time::sleep(Duration::from_micros(200)).await;
            };
            taken[3].push((received - started).as_secs_f64() * 1e3);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        taken
    }
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn percentiles(mut taken: Vec<f64>) -> (f64, f64) {
    taken.sort_unstable_by(f64::total_cmp);
    (taken[taken.len() / 2], taken[taken.len() * 99 / 100])
}

async fn beside_a_flood() {
    let daemon = daemon().await;
    let mut operator = Caller::new(daemon.port, ADMIN).await;
    let (evil, good) = (operator.key_for("evil").await, operator.key_for("good").await);
    let received: Arc<Mutex<HashMap<u64, Instant>>> = Arc::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let kept = Arc::clone(&received);
    tokio::spawn(answering(listener, move |request| {
        kept.lock().unwrap().insert(support::number(request), Instant::now());
        Some(200)
    }));
    let endpoint = format!(r#"{{"url":"http://{target}/","eventTypes":["a.b"]}}"#);
    Caller::new(daemon.port, &good).await.expect(201, "POST /v1/endpoints", "", &endpoint).await;
    let mut flooder = Caller::new(daemon.port, &evil).await;
    for _ in 0..FAN_OUT {
        let endpoint = r#"{"url":"http://127.0.0.1:39999/","eventTypes":["big"]}"#;
        flooder.expect(201, "POST /v1/endpoints", "", endpoint).await;
    }
    let mut probe = Probe { daemon: daemon.port, key: good, received, last: 0 };
    let alone = probe.run().await;
    let event = r#"{"type":"big","data":1,"deliverAt":"9999-01-01T00:00:00Z"}"#;
    let batch = format!(r#"{{"events":[{}]}}"#, [event; 100].join(","));
    let floods = (0..4).map(|_| {
        let (batch, key, port) = (batch.clone(), evil.clone(), daemon.port);
        tokio::spawn(async move {
            let mut caller = Caller::new(port, &key).await;
            loop {
                let (status, _) = caller.call("POST /v1/events/batch", "", &batch).await;
                if status != 202 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        })
    });
    let floods: Vec<_> = floods.collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let beside = probe.run().await;
    floods.iter().for_each(tokio::task::JoinHandle::abort);
    let mut within = true;
    println!("\n| beside a fan-out to {FAN_OUT} endpoints | alone, ms p50 / p99 | beside | p99, times |");
    println!("|---|---|---|---|");
    for ((what, alone), beside) in REQUESTS.into_iter().zip(alone).zip(beside) {
        let ((low, high), (low_beside, high_beside)) = (percentiles(alone), percentiles(beside));
        let times = high_beside / high;
        println!("| {what} | {low:.2} / {high:.2} | {low_beside:.2} / {high_beside:.2} | {times:.1} |");
        within &= times <= TIMES_MAX || high_beside <= MILLIS_MAX;
    }
    judge(within, "each p99 beside the flood is at most 3 times that alone, or 50 ms");
}

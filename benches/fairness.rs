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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::tenants::{ADMIN, Caller, Daemon, Probe, REQUESTS, is_undisturbed, percentiles};
use support::{answering, judge};
use tokio::net::TcpListener;

const TENANTS: usize = 1_000;
const RUN: Duration = Duration::from_secs(10);
/// Endpoints of the flooding tenant.
const FAN_OUT: usize = 5_000;
const PROBES: usize = 150;

/// Largest distance of a tenant's share from the mean, as a part of it.
const SPREAD_MAX: f64 = 0.20;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        equal_tenants().await;
        beside_a_flood().await;
    });
}

/// Posts, reads and deliveries of a tenant.
#[derive(Clone, Copy, Default)]
struct Counts([u64; 3]);

async fn equal_tenants() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
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
        let key = operator.key_for("admin", &name).await;
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

async fn beside_a_flood() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let mut operator = Caller::new(daemon.port, ADMIN).await;
    let (evil, good) = (operator.key_for("admin", "evil").await, operator.key_for("admin", "good").await);
    let mut flooder = Caller::new(daemon.port, &evil).await;
    for _ in 0..FAN_OUT {
        let endpoint = r#"{"url":"http://127.0.0.1:39999/","eventTypes":["big"]}"#;
        flooder.expect(201, "POST /v1/endpoints", "", endpoint).await;
    }
    let mut probe = Probe::new(daemon.port, &good, false).await;
    let alone = probe.run(|rounds| rounds == PROBES).await;
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
    let beside = probe.run(|rounds| rounds == PROBES).await;
    floods.iter().for_each(tokio::task::JoinHandle::abort);
    let mut within = true;
    println!("\n| beside a fan-out to {FAN_OUT} endpoints | alone, ms p50 / p99 | beside | p99, times |");
    println!("|---|---|---|---|");
    assert!(beside.failures.is_empty(), "{:?}", beside.failures);
    for ((what, alone), beside) in REQUESTS.into_iter().zip(&alone.taken).zip(&beside.taken) {
        let ((low, high), (low_beside, high_beside)) = (percentiles(alone), percentiles(beside));
        let times = high_beside / high;
        println!("| {what} | {low:.2} / {high:.2} | {low_beside:.2} / {high_beside:.2} | {times:.1} |");
        within &= is_undisturbed(high, high_beside);
    }
    judge(within, "each p99 beside the flood is at most 3 times that alone, or 50 ms");
}

//! DescriptorsExhausted file descriptors.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpListener;

use super::{EVENT, until};
use crate::support::raw::{Raw, post};
use crate::support::{Daemon, Receiver, quiet};

/// Limits the process to its currently open files plus `more`.
fn allow_descriptors(daemon: &Daemon, more: usize) {
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    daemon.limit_descriptors(open + more);
}

/// CPU time used so far.
fn processor_time(daemon: &Daemon) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exhausted_descriptors_pause_the_daemon_without_busy_loop() {
    const EVENTS: usize = 20;
    let data = tempfile::tempdir().unwrap();
    let receiver = Receiver::status(200).await;
    let mut daemon = Daemon::start_in(data.path(), &["--dev"], &[("BALTO__LOG__LEVEL", "off")]).await;
    let mut publisher = Raw::connect(daemon.address()).await;
    let publish = post("/v1/events", "", EVENT);
    // An authenticated connection is evicted last. No endpoint matches this first event.
    publisher.send(publish.as_bytes()).await;
    assert_eq!(publisher.answer().await.unwrap().status, 202);
    let endpoint = json!({"url": receiver.url, "retry": {"schedule": ["10ms"]}});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    // From here on no file can be opened: no client connection, and no connection to the receiver,
    // which has none yet.
    allow_descriptors(&daemon, 0);
    let before = processor_time(&daemon);
    let started = Instant::now();
    let waiting: Vec<_> = (0..50).map(|_| std::net::TcpStream::connect(daemon.address()).unwrap()).collect();
    for _ in 0..EVENTS {
        publisher.send(publish.as_bytes()).await;
        assert_eq!(publisher.answer().await.unwrap().status, 202, "the journal needs no further descriptor");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(daemon.is_running());
    }
    let spent = processor_time(&daemon) - before;
    assert!(spent < started.elapsed() / 2, "it spins: {spent:?} of {:?}", started.elapsed());
    allow_descriptors(&daemon, 1_000);
    drop(waiting);
    receiver.until(EVENTS).await;
    let all = daemon.until("/deliveries?limit=250&status=delivered", |page| {
        page["data"].as_array().unwrap().len() == EVENTS
    });
    for delivery in all.await["data"].as_array().unwrap() {
        assert_eq!(delivery["attemptCount"], 1, "our own want of descriptors was charged: {delivery}");
    }
    assert_eq!(receiver.got().len(), EVENTS);
    assert_eq!(daemon.terminate(), Some(0));
}

/// A receiver that accepts connections and never responds.
async fn silent_receiver() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (format!("http://{}/", listener.local_addr().unwrap()), listener)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scarce_descriptors_are_reserved_for_store_and_operator() {
    let data = tempfile::tempdir().unwrap();
    let command = crate::support::serve(data.path(), &["--dev"]);
    let daemon = Daemon::spawn(crate::support::behind(&["prlimit", "--nofile=256:256"], &quiet(command)));
    daemon.until_ready().await;
    let (silent, _held) = silent_receiver().await;
    let healthy = Receiver::status(200).await;
    daemon
        .post("/endpoints", &json!({"url": silent, "eventTypes": ["slow"], "maxInFlight": 1000}).to_string())
        .await;
    let events = vec![json!({"type": "slow", "data": 1}); 1_000];
    daemon.post("/events/batch", &json!({"events": events}).to_string()).await;
    let mut idle = Vec::new();
    for _ in 0..1_000 {
        idle.push(Raw::connect(daemon.address()).await);
    }
    daemon.post("/endpoints", &json!({"url": healthy.url, "eventTypes": ["quick"]}).to_string()).await;
    for number in 0..20 {
        assert!(daemon.is_ready().await, "the ops listener has no descriptor");
        daemon.post("/events", &json!({"type": "quick", "data": number}).to_string()).await;
        assert!(daemon.metric("process_open_fds", "").await < 256.0);
    }
    until("requests are in flight", async || daemon.metric("balto_deliveries_in_flight", "").await >= 30.0)
        .await;
    drop(idle);
}

#[tokio::test]
async fn too_low_descriptor_limit_fails_the_start() {
    let data = tempfile::tempdir().unwrap();
    let command = crate::support::serve(data.path(), &["--dev"]);
    let mut command = crate::support::behind(&["prlimit", "--nofile=100:100"], &command);
    let output = command.stderr(std::process::Stdio::piped()).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(1) && message.contains("is 100, at least 192 are needed"),
        "{message}"
    );
}

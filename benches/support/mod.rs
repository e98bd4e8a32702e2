//! Shared parts of the benchmarks: the daemon as a child process, a receiver that counts, and
//! publishers with minimal overhead.

#![allow(dead_code, reason = "each benchmark uses its part")]

pub(crate) mod broker;
pub(crate) mod stage;
pub(crate) mod tenants;

use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);

/// Counts requests and answers each with 200.
pub(crate) async fn receiver(received: Arc<AtomicUsize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            tokio::spawn(count(stream, received.clone()));
        }
    });
    url
}

pub(crate) async fn count(mut stream: TcpStream, received: Arc<AtomicUsize>) {
    let mut buffer = Vec::with_capacity(8192);
    loop {
        while let Some(length) = message_length(&buffer) {
            buffer.drain(..length);
            received.fetch_add(1, Ordering::Relaxed);
            if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.is_err() {
                return;
            }
        }
        if !matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
    }
}

/// Length of the first whole message in the buffer.
pub(crate) fn message_length(buffer: &[u8]) -> Option<usize> {
    let end = buffer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&buffer[..end]).unwrap().to_ascii_lowercase();
    let length = head
        .split("content-length: ")
        .nth(1)
        .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
    (buffer.len() >= end + length).then_some(end + length)
}

pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) struct ChildGuard(pub(crate) Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// CPU time of a process in microseconds (the kernel counts hundredths of a second).
pub(crate) fn cpu(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) * 10_000.0
}

pub(crate) fn balto(data: &std::path::Path, port: u16, ops: u16) -> ChildGuard {
    let child = Command::new(env!("CARGO_BIN_EXE_balto"))
        .args(["serve", "--dev", "--data-dir"])
        .arg(data)
        .env("BALTO__SERVER__API_LISTEN", format!("127.0.0.1:{port}"))
        .env("BALTO__SERVER__OPS_LISTEN", format!("127.0.0.1:{ops}"))
        .env("BALTO__LOG__LEVEL", "error")
        .spawn();
    ChildGuard(child.unwrap())
}

pub(crate) async fn get(port: u16, path: &str) -> String {
    let mut stream = connect(port).await;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

pub(crate) async fn subscribe(port: u16, target: &str) {
    let mut stream = connect(port).await;
    post(&mut stream, "/v1/endpoints", &format!(r#"{{"url":"{target}","maxInFlight":64}}"#), 201).await;
}

pub(crate) async fn connect(port: u16) -> TcpStream {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await {
            stream.set_nodelay(true).unwrap();
            return stream;
        }
        assert!(Instant::now() < deadline, "the port has no listener");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The response, head and body.
pub(crate) async fn post(stream: &mut TcpStream, path: &str, body: &str, status: u16) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).await.unwrap();
    let mut buffer = Vec::new();
    while message_length(&buffer).is_none() {
        assert!(stream.read_buf(&mut buffer).await.unwrap() > 0, "the connection was closed");
    }
    let expected = format!("HTTP/1.1 {status}");
    assert!(buffer.starts_with(expected.as_bytes()), "{}", String::from_utf8_lossy(&buffer));
    buffer
}

pub(crate) fn event() -> String {
    format!(r#"{{"type":"order.paid","data":{{"note":"{}"}}}}"#, "x".repeat(460))
}

/// A receiver whose response depends on the request's body; `None` sends no response.
pub(crate) async fn answering(
    listener: TcpListener,
    answer: impl Fn(&[u8]) -> Option<u16> + Send + Sync + 'static,
) {
    let answer = Arc::new(answer);
    while let Ok((mut stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let answer = answer.clone();
        tokio::spawn(async move {
            let mut buffer = Vec::with_capacity(8192);
            loop {
                while let Some(length) = message_length(&buffer) {
                    let Some(status) = answer(&buffer[..length]) else { return std::future::pending().await };
                    buffer.drain(..length);
                    let head = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
                    if stream.write_all(head.as_bytes()).await.is_err() {
                        return;
                    }
                }
                if !matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
                    return;
                }
            }
        });
    }
}

/// The number in an event's data, read from a delivered body.
pub(crate) fn number(request: &[u8]) -> u64 {
    let text = std::str::from_utf8(request).unwrap();
    let (_, rest) = text.split_once(r#""number":"#).unwrap();
    rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// Peak resident memory of a process, in bytes.
pub(crate) fn most_memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap() * 1024
}

/// Posts `count` requests from `writers` connections, each with the body of its turn; returns
/// requests per second.
pub(crate) async fn posts(
    port: u16,
    path: &'static str,
    bodies: &[String],
    writers: usize,
    count: usize,
) -> f64 {
    let mut streams = Vec::new();
    for _ in 0..writers {
        streams.push(connect(port).await);
    }
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (mut stream, body) in streams.into_iter().zip(bodies.iter().cycle().cloned()) {
        tasks.spawn(async move {
            for _ in 0..count / writers {
                post(&mut stream, path, &body, 202).await;
            }
        });
    }
    while tasks.join_next().await.transpose().unwrap().is_some() {}
    (count / writers * writers) as f64 / started.elapsed().as_secs_f64()
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn verdict(holds: bool) -> &'static str {
    if holds { "HOLDS" } else { "BROKEN" }
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its results")]
pub(crate) fn judge(holds: bool, promise: &str) {
    println!("{}: {promise}", verdict(holds));
}

/// A daemon with `--dev`, its ports, and its data directory.
pub(crate) struct Subject {
    pub(crate) daemon: ChildGuard,
    pub(crate) port: u16,
    pub(crate) ops: u16,
    _data: tempfile::TempDir,
}

impl Subject {
    pub(crate) async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let (port, ops) = (free_port(), free_port());
        let daemon = balto(data.path(), port, ops);
        drop(connect(port).await);
        Self { daemon, port, ops, _data: data }
    }
}

//! Tenants of one daemon: their keys and calls, and the latencies of one of them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{ChildGuard, WAIT_MAX, answering, connect, free_port, message_length, most_memory, number};

pub(crate) const ADMIN: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A daemon in production mode with default limits, whose receivers may be on this machine.
pub(crate) struct Daemon {
    pub(crate) port: u16,
    child: ChildGuard,
    path: PathBuf,
}

impl Daemon {
    pub(crate) async fn start(path: &Path) -> Self {
        let port = free_port();
        let child = Command::new(env!("CARGO_BIN_EXE_balto"))
            .args(["serve", "--data-dir"])
            .arg(path)
            .env("BALTO__SERVER__API_LISTEN", format!("127.0.0.1:{port}"))
            .env("BALTO__SERVER__OPS_LISTEN", format!("127.0.0.1:{}", free_port()))
            .env("BALTO__AUTH__ADMIN_KEY", ADMIN)
            .env("BALTO__EGRESS__ALLOW_HTTP", "true")
            .env("BALTO__EGRESS__ALLOW_NETWORKS", "127.0.0.0/8")
            .env("BALTO__HANDSHAKE__ORIGIN", "balto.example.com")
            .env("BALTO__LOG__LEVEL", "error")
            .spawn();
        connect(port).await;
        Self { port, child: ChildGuard(child.unwrap()), path: path.to_owned() }
    }

    /// Peak resident memory in bytes.
    pub(crate) fn most_memory(&self) -> u64 {
        most_memory(self.child.0.id())
    }

    /// Kills the daemon, starts it again, and returns it with the time to its first answer.
    pub(crate) async fn restart(self) -> (Self, Duration) {
        let path = self.path.clone();
        drop(self);
        let started = Instant::now();
        let daemon = Self::start(&path).await;
        Caller::new(daemon.port, ADMIN).await.expect(200, "GET /v1/events?limit=1", "", "").await;
        (daemon, started.elapsed())
    }
}

/// A caller with its key and its connection.
pub(crate) struct Caller {
    port: u16,
    stream: Option<TcpStream>,
    key: String,
}

/// Status and body.
pub(crate) type Answer = (u16, String);

/// An answer's status with its problem code, for example `429 overloaded`.
pub(crate) fn outcome(answer: Option<&Answer>) -> String {
    let Some((status, body)) = answer else { return "no answer".to_owned() };
    match member(body, "code").filter(|_| *status >= 300) {
        Some(code) => format!("{status} {code}"),
        None => status.to_string(),
    }
}

/// The first text member of this name.
pub(crate) fn member<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(&format!(r#""{name}":""#))?;
    rest.split('"').next()
}

impl Caller {
    pub(crate) async fn new(port: u16, key: &str) -> Self {
        Self { port, stream: Some(connect(port).await), key: key.to_owned() }
    }

    /// Closes the connection. The next call makes another one.
    pub(crate) fn disconnect(&mut self) {
        self.stream = None;
    }

    async fn exchange(&mut self, request: &str) -> std::io::Result<Answer> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
                stream.set_nodelay(true)?;
                none.insert(stream)
            }
        };
        stream.write_all(request.as_bytes()).await?;
        let mut buffer = Vec::new();
        while message_length(&buffer).is_none() {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        let text = String::from_utf8_lossy(&buffer).into_owned();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        if head.to_ascii_lowercase().contains("connection: close") {
            self.stream = None;
        }
        Ok((status, body.to_owned()))
    }

    /// `None` when the connection was closed, or no answer came in this time.
    pub(crate) async fn call_within(
        &mut self,
        most: Duration,
        line: &str,
        headers: &str,
        body: &str,
    ) -> Option<Answer> {
        let (key, length) = (&self.key, body.len());
        let request = format!(
            "{line} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}"
        );
        let answer = tokio::time::timeout(most, self.exchange(&request)).await;
        let answer = answer.ok().and_then(Result::ok);
        if answer.is_none() {
            self.stream = None;
        }
        answer
    }

    pub(crate) async fn call(&mut self, line: &str, headers: &str, body: &str) -> Answer {
        self.call_within(WAIT_MAX, line, headers, body).await.unwrap()
    }

    pub(crate) async fn expect(&mut self, status: u16, line: &str, headers: &str, body: &str) -> String {
        let (found, answer) = self.call(line, headers, body).await;
        assert_eq!(found, status, "{line}: {answer}");
        answer
    }

    pub(crate) async fn key_for(&mut self, role: &str, tenant: &str) -> String {
        let body = format!(r#"{{"role":"{role}","tenant":"{tenant}"}}"#);
        let made = self.expect(201, "POST /v1/keys", "", &body).await;
        member(&made, "secret").unwrap().to_owned()
    }
}

/// An answer or a delivery that takes longer counts as if it had taken this time.
pub(crate) const LATEST: Duration = Duration::from_secs(10);

pub(crate) const REQUESTS: [&str; 4] =
    ["plain post", "post with a key", "list after an own post", "delivery"];

/// Latencies by request, in milliseconds, and the number of failures by outcome.
#[derive(Default)]
pub(crate) struct Latencies {
    pub(crate) taken: [Vec<f64>; 4],
    pub(crate) failures: BTreeMap<String, usize>,
}

/// Measures the requests and deliveries of one tenant.
pub(crate) struct Probe {
    caller: Caller,
    /// Whether each round begins with a new connection, whose time counts.
    reconnects: bool,
    received: Arc<Mutex<HashMap<u64, Instant>>>,
    last: u64,
}

impl Probe {
    /// Creates the tenant's endpoint, with a receiver that answers at once.
    pub(crate) async fn new(port: u16, key: &str, reconnects: bool) -> Self {
        let received: Arc<Mutex<HashMap<u64, Instant>>> = Arc::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let kept = Arc::clone(&received);
        tokio::spawn(answering(listener, move |request| {
            kept.lock().unwrap().insert(number(request), Instant::now());
            Some(200)
        }));
        let endpoint = format!(r#"{{"url":"http://{target}/","eventTypes":["a.b"]}}"#);
        let mut caller = Caller::new(port, key).await;
        caller.expect(201, "POST /v1/endpoints", "", &endpoint).await;
        Self { caller, reconnects, received, last: 0 }
    }

    /// Measures until `is_done` of the number of rounds.
    pub(crate) async fn run(&mut self, is_done: impl Fn(usize) -> bool) -> Latencies {
        let mut found = Latencies::default();
        for round in 0.. {
            if is_done(round) {
                break;
            }
            if self.reconnects {
                self.caller.disconnect();
            }
            self.round(&mut found).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        found
    }

    async fn round(&mut self, found: &mut Latencies) {
        self.last += 1;
        let number = self.last;
        let started = Instant::now();
        let body = format!(r#"{{"type":"a.b","data":{{"number":{number}}}}}"#);
        let is_accepted = self.timed(found, 0, 202, "POST /v1/events", "", &body).await;
        self.timed(found, 2, 200, "GET /v1/events?limit=1", "", "").await;
        let key = format!("idempotency-key: k{number}\r\n");
        self.timed(found, 1, 202, "POST /v1/events", &key, r#"{"type":"other","data":1}"#).await;
        if !is_accepted {
            return;
        }
        loop {
            if let Some(at) = self.received.lock().unwrap().remove(&number) {
                return found.taken[3].push((at - started).as_secs_f64() * 1e3);
            }
            if started.elapsed() > LATEST {
                *found.failures.entry("no delivery".to_owned()).or_default() += 1;
                return found.taken[3].push(LATEST.as_secs_f64() * 1e3);
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }

    /// Whether the request was answered with this status.
    async fn timed(
        &mut self,
        found: &mut Latencies,
        at: usize,
        status: u16,
        line: &str,
        headers: &str,
        body: &str,
    ) -> bool {
        let started = Instant::now();
        let answer = self.caller.call_within(LATEST, line, headers, body).await;
        let is_good = answer.as_ref().is_some_and(|(found, _)| *found == status);
        if !is_good {
            *found.failures.entry(format!("{line}: {}", outcome(answer.as_ref()))).or_default() += 1;
        }
        let taken = if is_good { started.elapsed() } else { LATEST };
        found.taken[at].push(taken.as_secs_f64() * 1e3);
        is_good
    }
}

/// Whether a p99 beside others is at most three times the one alone, or 50 ms; in milliseconds.
pub(crate) fn is_undisturbed(alone: f64, beside: f64) -> bool {
    beside <= (3.0 * alone).max(50.0)
}

/// The median and the 99th percentile.
pub(crate) fn percentiles(taken: &[f64]) -> (f64, f64) {
    let mut taken = taken.to_vec();
    taken.sort_unstable_by(f64::total_cmp);
    match taken.len() {
        0 => (f64::NAN, f64::NAN),
        count => (taken[count / 2], taken[count * 99 / 100]),
    }
}

//! The real daemon as a child process, and a receiver that records its requests.

#![expect(clippy::unwrap_used, reason = "a test fails on an error")]
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod chaos;
pub(crate) mod clock;
pub(crate) mod judges;
pub(crate) mod load;
pub(crate) mod petstore;
pub(crate) mod proxy;
pub(crate) mod raw;

use std::collections::HashMap;
use std::net::TcpListener as StdListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Deadline of every wait.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);

/// A deadline that each change extends: a slow machine makes progress, a broken daemon makes none.
pub(crate) struct Progress<T> {
    last: T,
    deadline: Instant,
    /// Final deadline, also with progress.
    end: Instant,
}

impl<T: PartialEq> Progress<T> {
    pub(crate) fn from(value: T) -> Self {
        let now = Instant::now();
        Self { last: value, deadline: now + WAIT_MAX, end: now + 10 * WAIT_MAX }
    }

    /// Whether to continue waiting, given the current value.
    pub(crate) fn goes_on(&mut self, value: T) -> bool {
        let now = Instant::now();
        if value != self.last {
            self.last = value;
            self.deadline = now + WAIT_MAX;
        }
        now < self.deadline.min(self.end)
    }
}

/// A number from the environment.
pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// The seed of a random test: from `BALTO_TEST_SEED`, or random. It is printed when the test fails.
pub(crate) fn seed() -> u64 {
    let seed = number("BALTO_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    say(&format!("BALTO_TEST_SEED={seed}"));
    seed
}

/// Prints a note to the test output.
#[expect(clippy::print_stdout, reason = "results and skipped parts of a test")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// Ports below the ephemeral range: an outgoing connection might take one of those before the
/// daemon listens.
const PORTS: std::ops::Range<u32> = 10_000..32_000;

/// An unused port, a different one at each call.
pub(crate) fn free_port() -> u16 {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    // Concurrent test processes start their search at different ports.
    let first = std::process::id().wrapping_mul(101);
    loop {
        let turn = first.wrapping_add(CALLS.fetch_add(1, Ordering::Relaxed));
        let port = (PORTS.start + turn % (PORTS.end - PORTS.start)) as u16;
        if StdListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The daemon's command on free ports.
pub(crate) fn serve(data: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balto"));
    command
        .arg("serve")
        .args(flags)
        .arg("--data-dir")
        .arg(data)
        .env("BALTO__SERVER__API_LISTEN", "127.0.0.1:0")
        .env("BALTO__SERVER__OPS_LISTEN", "127.0.0.1:0")
        .env("BALTO__LOG__LEVEL", "error")
        .stderr(Stdio::inherit());
    command
}

/// Hides log lines of failures that a test causes on purpose.
pub(crate) fn quiet(mut command: Command) -> Command {
    command.env("BALTO__LOG__LEVEL", "off");
    command
}

/// Whether the machine has a program.
pub(crate) fn has_program(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// A command under `strace -f`; the tracer is detached, so that the child is the daemon itself.
pub(crate) fn traced(command: &Command, options: &[&str]) -> Command {
    behind(&[&["strace", "-f", "-D", "-q"], options].concat(), command)
}

/// Runs `strace` on a running daemon's calls on one file, until this is dropped.
pub(crate) struct Interference(Child);

impl Interference {
    /// `None` where `strace` is not possible.
    pub(crate) async fn with(daemon: &Daemon, file: &Path, options: &[&str]) -> Option<Self> {
        if !has_program("strace") {
            return None;
        }
        assert!(file.is_file(), "{} does not exist", file.display());
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-q", "-o", "/dev/null", "-p", &daemon.pid().to_string(), "-P"])
            .arg(file)
            .args(options);
        let mut attached = Self(strace.stderr(Stdio::null()).spawn().unwrap());
        let deadline = Instant::now() + WAIT_MAX;
        while !is_traced(daemon.pid()) {
            if attached.0.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(Instant::now() < deadline, "strace does not attach");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Some(attached)
    }
}

/// Whether every thread of a process is traced.
fn is_traced(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let statuses =
        threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("status")).ok());
    statuses.into_iter().all(|status| !status.contains("TracerPid:\t0\n"))
}

impl Drop for Interference {
    fn drop(&mut self) {
        // SIGTERM makes strace detach; after SIGKILL it would not.
        let _told = Command::new("kill").arg(self.0.id().to_string()).status();
        let _gone = self.0.wait();
    }
}

/// The same command behind a wrapper, which becomes it by `exec`.
pub(crate) fn behind(wrapper: &[&str], command: &Command) -> Command {
    let mut wrapped = Command::new(wrapper[0]);
    wrapped.args(&wrapper[1..]).arg(command.get_program()).args(command.get_args());
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    wrapped
}

pub(crate) struct Daemon {
    child: Child,
    pub(crate) api: String,
    pub(crate) ops: String,
    /// The key of calls that bring none.
    pub(crate) key: Option<String>,
    client: reqwest::Client,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Daemon {
    pub(crate) async fn start(data: &Path) -> Self {
        Self::start_with(data, &["--dev"]).await
    }

    pub(crate) async fn start_with(data: &Path, flags: &[&str]) -> Self {
        Self::start_in(data, flags, &[]).await
    }

    /// With more environment variables.
    pub(crate) async fn start_in(data: &Path, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = serve(data, flags);
        command.envs(environment.iter().copied());
        let daemon = Self::spawn(command);
        daemon.until_ready().await;
        daemon
    }

    /// Starts a command of [`serve`] without waiting.
    pub(crate) fn spawn(mut command: Command) -> Self {
        balto::courier::tls::install_provider();
        let (api, ops) = (free_port(), free_port());
        let child = command
            .env("BALTO__SERVER__API_LISTEN", format!("127.0.0.1:{api}"))
            .env("BALTO__SERVER__OPS_LISTEN", format!("127.0.0.1:{ops}"))
            .spawn()
            .unwrap();
        Self {
            child,
            api: format!("http://127.0.0.1:{api}/v1"),
            ops: format!("http://127.0.0.1:{ops}"),
            key: None,
            // Each call opens a new connection. The daemon may close an idle one at any time, and a
            // busy machine notices that only after it has sent the next request.
            client: reqwest::Client::builder()
                .no_proxy()
                .pool_max_idle_per_host(0)
                // A hanging request fails the test. One with a million deliveries takes a minute.
                .timeout(5 * WAIT_MAX)
                .build()
                .unwrap(),
        }
    }

    pub(crate) async fn until_ready(&self) {
        let deadline = Instant::now() + WAIT_MAX;
        while let Err(reason) = self.readiness().await {
            assert!(!self.has_ended(), "the daemon ended before it was ready: {reason}");
            assert!(Instant::now() < deadline, "the daemon did not become ready: {reason}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn is_ready(&self) -> bool {
        self.readiness().await.is_ok()
    }

    /// Whether the process has ended and its exit code was not read yet.
    fn has_ended(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.contains(") Z ")
    }

    /// Why the daemon is not ready, as its operations port says.
    async fn readiness(&self) -> Result<(), String> {
        let sent = self.client.get(format!("{}/readyz", self.ops)).send().await;
        let reply = sent.map_err(|error| format!("{error:?}"))?;
        let status = reply.status();
        if status == 200 {
            return Ok(());
        }
        Err(format!("{status} {}", reply.text().await.unwrap_or_default()))
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The exit code of a daemon that ends within that time; otherwise it is killed.
    pub(crate) async fn ended_within(&mut self, limit: Duration) -> Option<i32> {
        let deadline = Instant::now() + limit;
        while self.is_running() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.kill();
        self.child.wait().unwrap().code()
    }

    /// Sends it a signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status().unwrap();
        assert!(sent.success());
    }

    /// The address of the API, for clients with their own HTTP.
    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.api.strip_prefix("http://").and_then(|rest| rest.strip_suffix("/v1")).unwrap().parse().unwrap()
    }

    /// A line of `/proc/<pid>/status`, in KiB.
    pub(crate) fn kibibytes(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:"))).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    /// The sum of a metric over its labels that contain `labels`; 0 without samples.
    pub(crate) async fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.metrics().await;
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        let ours = lines.filter(|(what, _)| what.split('{').next() == Some(name) && what.contains(labels));
        ours.map(|(_, value)| value.parse::<f64>().unwrap()).sum()
    }

    /// Waits until a metric has a wanted value; returns it.
    pub(crate) async fn until_metric(&self, name: &str, labels: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        let mut progress = Progress::from(0.0);
        loop {
            let value = self.metric(name, labels).await;
            if wanted(value) {
                return value;
            }
            assert!(progress.goes_on(value), "{name} {labels} stays {value}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// From now on the process cannot open a file descriptor with this number or a higher one.
    pub(crate) fn limit_descriptors(&self, limit: usize) {
        let limit = format!("--nofile={limit}:");
        let set = Command::new("prlimit").args(["--pid", &self.pid().to_string(), &limit]).status().unwrap();
        assert!(set.success());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// As after a crash: no signal handler runs.
    pub(crate) fn kill(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }

    /// Stops the daemon and returns its exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        self.signal("TERM");
        self.child.wait().unwrap().code()
    }

    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, Value, HashMap<String, String>) {
        let mut request = self.client.request(method.parse().unwrap(), format!("{}{path}", self.api));
        if !body.is_empty() && !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(key) =
            self.key.as_ref().filter(|_| !headers.iter().any(|(name, _)| *name == "authorization"))
        {
            request = request.bearer_auth(key);
        }
        let reply = request.body(body.to_owned()).send().await.unwrap();
        let status = reply.status().as_u16();
        let headers = reply
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        let headers = headers.collect();
        let text = reply.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null), headers)
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body, _) = self.call("GET", path, &[], "").await;
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    /// The media type and the text of a resource.
    pub(crate) async fn text(&self, path: &str) -> (String, String) {
        let reply = self.client.get(format!("{}{path}", self.api)).send().await.unwrap();
        let media = reply.headers()["content-type"].to_str().unwrap().to_owned();
        (media, reply.text().await.unwrap())
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Value {
        let (status, answer, _) = self.call("POST", path, &[], body).await;
        assert!((200..300).contains(&status), "POST {path} {body}: {status} {answer}");
        answer
    }

    /// The response, if the daemon lived to send one.
    pub(crate) async fn try_post(&self, path: &str, body: &str) -> Option<Value> {
        let request =
            self.client.post(format!("{}{path}", self.api)).header("content-type", "application/json");
        let reply = request.body(body.to_owned()).send().await.ok()?;
        let success = reply.status().is_success();
        serde_json::from_str(&reply.text().await.ok()?).ok().filter(|_| success)
    }

    /// Status and text of a GET on the ops listener.
    pub(crate) async fn ops(&self, path: &str) -> (u16, String) {
        let reply = self.client.get(format!("{}{path}", self.ops)).send().await.unwrap();
        (reply.status().as_u16(), reply.text().await.unwrap())
    }

    /// The text of `/metrics`.
    pub(crate) async fn metrics(&self) -> String {
        let reply = self.client.get(format!("{}/metrics", self.ops)).send().await.unwrap();
        assert_eq!(reply.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        reply.text().await.unwrap()
    }

    /// Repeats a GET until the response is as wanted.
    pub(crate) async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut progress = Progress::from(Value::Null);
        loop {
            let body = self.get(path).await;
            if wanted(&body) {
                return body;
            }
            assert!(progress.goes_on(body.clone()), "GET {path} stays {body}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// One received request: method and target as they were sent, headers in lower case, and the body.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReceivedRequest {
    pub(crate) line: String,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

/// Answers every request by a rule, and records it.
pub(crate) struct Receiver {
    pub(crate) url: String,
    got: Arc<Mutex<Vec<ReceivedRequest>>>,
}

impl Receiver {
    /// `rule` returns the whole head and body of the response to the request with this number (from
    /// 0).
    pub(crate) async fn start(
        rule: impl Fn(usize, &ReceivedRequest) -> String + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let got: Arc<Mutex<Vec<ReceivedRequest>>> = Arc::default();
        let (kept, rule) = (got.clone(), Arc::new(rule));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (kept, rule) = (kept.clone(), rule.clone());
                tokio::spawn(async move {
                    let mut buffer = Vec::new();
                    while let Some(request) = next_request(&mut stream, &mut buffer).await {
                        let number = {
                            let mut kept = kept.lock().unwrap();
                            kept.push(request.clone());
                            kept.len() - 1
                        };
                        if stream.write_all(rule(number, &request).as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { url, got }
    }

    pub(crate) async fn status(status: u16) -> Self {
        Self::start(move |_, _| answer(status)).await
    }

    pub(crate) fn got(&self) -> Vec<ReceivedRequest> {
        self.got.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.got.lock().unwrap().len()
    }

    pub(crate) async fn until(&self, count: usize) -> Vec<ReceivedRequest> {
        let mut progress = Progress::from(0);
        while self.count() < count {
            assert!(progress.goes_on(self.count()), "only {} of {count} requests came", self.count());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.got()
    }
}

pub(crate) fn answer(status: u16) -> String {
    format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n")
}

pub(crate) async fn next_request(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> Option<ReceivedRequest> {
    loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            let line = head.lines().next().unwrap_or_default().to_owned();
            let mut words = line.split(' ').map(ToOwned::to_owned);
            let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let fields = head.lines().skip(1).filter_map(|line| line.split_once(": "));
            let headers: HashMap<_, _> =
                fields.map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned())).collect();
            let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
            if buffer.len() >= end + 4 + length {
                let body = String::from_utf8_lossy(&buffer[end + 4..end + 4 + length]).into_owned();
                buffer.drain(..end + 4 + length);
                return Some(ReceivedRequest { line, method, target, headers, body });
            }
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

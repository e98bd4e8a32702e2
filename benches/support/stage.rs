//! The scene of an attack: a daemon, the attacker's keys, and what its requests were answered.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::message_length;
use super::tenants::{ADMIN, Caller, Latencies, Probe, outcome};

/// Callers that prepare an attack together.
const PREPARING: usize = 8;
/// Pause of an attacker after a refusal.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Preparing,
    Running,
    Over,
}

pub(crate) struct Stage {
    pub(crate) port: u16,
    /// An admin key of the attacker's tenant, `evil`.
    pub(crate) evil: String,
    /// An admin key of the other tenant, `good`.
    pub(crate) good: String,
    /// Divides the counts of an attack, for a short trial.
    pub(crate) scale: usize,
    phase: watch::Sender<Phase>,
    answers: Mutex<BTreeMap<String, usize>>,
    tasks: Mutex<JoinSet<()>>,
}

/// A promise beside the latencies, and whether it holds.
pub(crate) struct Claim {
    pub(crate) holds: bool,
    pub(crate) words: String,
}

impl Claim {
    pub(crate) fn new(holds: bool, words: impl Display) -> Self {
        Self { holds, words: words.to_string() }
    }

    /// Of the longest of these times.
    pub(crate) fn within(most: Duration, what: &str, taken: &[Duration]) -> Self {
        let worst = taken.iter().max().copied().unwrap_or(Duration::MAX);
        Self::new(worst <= most, format!("{what}: at most {:.0} ms", worst.as_secs_f64() * 1e3))
    }
}

impl Stage {
    pub(crate) async fn new(port: u16, scale: usize) -> Arc<Self> {
        let mut operator = Caller::new(port, ADMIN).await;
        Arc::new(Self {
            port,
            evil: operator.key_for("admin", "evil").await,
            good: operator.key_for("admin", "good").await,
            scale,
            phase: watch::Sender::new(Phase::Preparing),
            answers: Mutex::default(),
            tasks: Mutex::default(),
        })
    }

    /// A key of the attacker with this role.
    pub(crate) async fn key(&self, role: &str) -> String {
        Caller::new(self.port, ADMIN).await.key_for(role, "evil").await
    }

    pub(crate) async fn caller(&self, key: &str) -> Caller {
        Caller::new(self.port, key).await
    }

    async fn reach(&self, phase: Phase) {
        let mut phases = self.phase.subscribe();
        phases.wait_for(|now| *now >= phase).await.unwrap();
    }

    /// Ends the preparation, and waits for the end of the measurement.
    pub(crate) async fn run_until_measured(&self) {
        self.phase.send_replace(Phase::Running);
        self.reach(Phase::Over).await;
    }

    pub(crate) async fn prepared(&self) {
        self.reach(Phase::Running).await;
    }

    pub(crate) fn end(&self) {
        self.phase.send_replace(Phase::Over);
    }

    fn is_over(&self) -> bool {
        *self.phase.borrow() == Phase::Over
    }

    /// Runs beside the measurement, and ends with it.
    pub(crate) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap().spawn(task);
    }

    pub(crate) fn stop(&self) {
        self.tasks.lock().unwrap().abort_all();
    }

    pub(crate) fn record(&self, outcome: String) {
        *self.answers.lock().unwrap().entry(outcome).or_default() += 1;
    }

    /// The attacker's answers by status and code.
    pub(crate) fn answers(&self) -> BTreeMap<String, usize> {
        self.answers.lock().unwrap().clone()
    }

    /// One request of the attacker. Returns its status, 0 without an answer, and the body.
    pub(crate) async fn attack(&self, caller: &mut Caller, line: &str, body: &str) -> (u16, String) {
        let answer = caller.call_within(Duration::from_secs(60), line, "", body).await;
        self.record(outcome(answer.as_ref()));
        answer.unwrap_or_default()
    }

    /// Makes this many requests of the attacker, several at once. Returns the bodies of successes.
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        count: usize,
        line: &str,
        body: impl Fn(usize) -> String + Clone + Send + 'static,
    ) -> Vec<String> {
        let mut callers = JoinSet::new();
        for first in 0..PREPARING {
            let (stage, line, body) = (self.clone(), line.to_owned(), body.clone());
            callers.spawn(async move {
                let mut caller = stage.caller(&stage.evil).await;
                let mut made = Vec::new();
                for number in (first..count).step_by(PREPARING) {
                    let (status, answer) = stage.attack(&mut caller, &line, &body(number)).await;
                    made.extend((200..300).contains(&status).then_some(answer));
                }
                made
            });
        }
        callers.join_all().await.into_iter().flatten().collect()
    }

    /// Callers that repeat a request until the measurement ends.
    pub(crate) fn flood(
        self: &Arc<Self>,
        callers: usize,
        line: impl Into<String>,
        body: impl Fn(usize) -> String + Clone + Send + Sync + 'static,
    ) {
        let line = line.into();
        for first in 0..callers {
            let (stage, line, body) = (self.clone(), line.clone(), body.clone());
            self.spawn(async move {
                let mut caller = stage.caller(&stage.evil).await;
                for turn in 0.. {
                    if stage.is_over() {
                        return;
                    }
                    let (status, _) = stage.attack(&mut caller, &line, &body(first + turn * callers)).await;
                    if !(200..300).contains(&status) {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            });
        }
    }

    /// Ends the preparation, and times an act of the other tenant until the end of the measurement.
    pub(crate) async fn time(&self, pause: Duration, mut act: impl AsyncFnMut(&mut Caller)) -> Vec<Duration> {
        self.phase.send_replace(Phase::Running);
        let mut caller = self.caller(&self.good).await;
        let mut taken = Vec::new();
        while !self.is_over() {
            let started = Instant::now();
            act(&mut caller).await;
            taken.push(started.elapsed());
            tokio::time::sleep(pause).await;
        }
        taken
    }
}

/// A connection whose client takes almost nothing.
pub(crate) async fn slow_reader(port: u16, request: &str, times: usize) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2_048).unwrap();
    let most = Duration::from_secs(5);
    let connecting = tokio::time::timeout(most, socket.connect(([127, 0, 0, 1], port).into()));
    let mut stream = connecting.await.ok()?.ok()?;
    let text = request.repeat(times);
    tokio::time::timeout(most, stream.write_all(text.as_bytes())).await.ok()?.ok()?;
    Some(stream)
}

/// Sends all of a request but its end, and waits for the answer to that.
pub(crate) async fn unfinished(port: u16, key: &str, path: &str, size: usize) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    // A refusal may come while the body goes out.
    let (mut reading, mut writing) = stream.split();
    let mut buffer = Vec::new();
    let body = vec![b' '; size - 100];
    let mut sending = std::pin::pin!(writing.write_all(&body));
    let mut is_sent = false;
    while message_length(&buffer).is_none() {
        tokio::select! {
            _sent = &mut sending, if !is_sent => is_sent = true,
            read = reading.read_buf(&mut buffer) => if !matches!(read, Ok(1..)) { return None },
        }
    }
    let text = String::from_utf8_lossy(&buffer);
    let status = text.split(' ').nth(1)?.parse().ok()?;
    Some((status, text.split_once("\r\n\r\n")?.1.to_owned()))
}

/// The requests to a receiver: now, at most at once, and in all.
#[derive(Clone, Copy, Default)]
pub(crate) struct Load {
    pub(crate) now: usize,
    pub(crate) most: usize,
    pub(crate) all: usize,
}

/// A receiver that answers each request with this status and headers after a time.
pub(crate) async fn holding(
    hold: Duration,
    status: &'static str,
    is_counted: impl Fn(&[u8]) -> bool + Clone + Send + 'static,
) -> (u16, Arc<Mutex<Load>>) {
    let (at, load) = holding_at(Ipv4Addr::LOCALHOST, hold, status, is_counted).await;
    (at.port(), load)
}

/// As [`holding`], at one of the loopback addresses.
pub(crate) async fn holding_at(
    address: Ipv4Addr,
    hold: Duration,
    status: &'static str,
    is_counted: impl Fn(&[u8]) -> bool + Clone + Send + 'static,
) -> (SocketAddr, Arc<Mutex<Load>>) {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    let load: Arc<Mutex<Load>> = Arc::default();
    let counts = load.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (load, is_counted) = (counts.clone(), is_counted.clone());
            tokio::spawn(async move {
                let mut buffer = Vec::with_capacity(4_096);
                loop {
                    let Some(length) = message_length(&buffer) else {
                        match stream.read_buf(&mut buffer).await {
                            Ok(1..) => continue,
                            _ => return,
                        }
                    };
                    let counts = is_counted(&buffer[..length]);
                    buffer.drain(..length);
                    if counts {
                        let mut load = load.lock().unwrap();
                        (load.now, load.all) = (load.now + 1, load.all + 1);
                        load.most = load.most.max(load.now);
                    }
                    tokio::time::sleep(hold).await;
                    if counts {
                        load.lock().unwrap().now -= 1;
                    }
                    let reply = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    if stream.write_all(reply.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (at, load)
}

/// Measures the other tenant on a separate thread, so that the attacker's tasks do not delay it.
pub(crate) struct Meter(std::sync::mpsc::Sender<Order>);

/// The time to measure, and where the latencies go.
type Order = (Duration, tokio::sync::oneshot::Sender<Latencies>);

impl Meter {
    pub(crate) fn start(port: u16, key: &str) -> Self {
        let (sender, orders) = std::sync::mpsc::channel::<Order>();
        let key = key.to_owned();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut probe = runtime.block_on(Probe::new(port, &key, true));
            while let Ok((time, reply)) = orders.recv() {
                let started = Instant::now();
                let found = runtime.block_on(probe.run(|_| started.elapsed() > time));
                drop(reply.send(found));
            }
        });
        Self(sender)
    }

    pub(crate) async fn measure(&self, time: Duration) -> Latencies {
        let (reply, found) = tokio::sync::oneshot::channel();
        self.0.send((time, reply)).unwrap();
        found.await.unwrap()
    }
}

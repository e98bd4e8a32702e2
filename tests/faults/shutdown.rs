//! Shutdown, reload and supervisor messages: by signals, under load, gracefully and not.

use std::collections::{HashMap, HashSet};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::load::{Ledger, check_stored, publishers, stored_events};
use crate::support::raw::Raw;
use crate::support::{Daemon, Receiver, WAIT_MAX, answer, has_program, say, seed};
use fastrand::Rng;
use serde_json::json;
use tokio::net::TcpListener;

const EVENT: &str = r#"{"type":"a.b","data":1}"#;

/// The answer of `/readyz`.
async fn readiness(daemon: &Daemon) -> Option<(u16, String)> {
    let reply = reqwest::get(format!("{}/readyz", daemon.ops)).await.ok()?;
    Some((reply.status().as_u16(), reply.text().await.ok()?))
}

async fn until_draining(daemon: &Daemon) {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        match readiness(daemon).await {
            Some((503, text)) if text.contains("draining") => return,
            Some((200, _)) => {}
            other => panic!("while it drains: {other:?}"),
        }
        assert!(Instant::now() < deadline, "the daemon does not drain");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A receiver with slow responses, so that many requests are in flight.
async fn slow_receiver(delay: Duration) -> Receiver {
    Receiver::start(move |_, _| {
        std::thread::sleep(delay);
        answer(200)
    })
    .await
}

/// A receiver that accepts connections and never responds, until it is dropped.
async fn silent_receiver() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (format!("http://{}/", listener.local_addr().unwrap()), listener)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn shutdown_under_load_finishes_attempts_and_loses_nothing() {
    let mut random = Rng::with_seed(seed());
    let data = tempfile::tempdir().unwrap();
    let receiver = slow_receiver(Duration::from_millis(1)).await;
    let ledger = Arc::<Mutex<Ledger>>::default();
    for round in 0..5 {
        let mut daemon = Daemon::start(data.path()).await;
        if round == 0 {
            daemon.post("/endpoints", &json!({"url": receiver.url, "maxInFlight": 50}).to_string()).await;
        }
        let publishers = publishers(&ledger, &daemon, &mut random);
        tokio::time::sleep(Duration::from_millis(random.u64(50..500))).await;
        assert_eq!(daemon.terminate(), Some(0), "round {round}");
        for publisher in publishers {
            publisher.await.unwrap();
        }
    }
    let daemon = Daemon::start(data.path()).await;
    let stored = stored_events(&daemon).await;
    check_stored(&ledger.lock().unwrap(), &stored);
    daemon.until("/deliveries?limit=1&status=pending", |page| page["data"] == json!([])).await;
    let mut sent = HashMap::<String, u32>::new();
    for got in receiver.got() {
        assert_eq!(got.headers["balto-attempt"], "1", "a stop was charged");
        *sent.entry(got.headers["webhook-id"].clone()).or_default() += 1;
    }
    // No attempt was aborted, so none had to be repeated.
    assert!(sent.values().all(|times| *times == 1), "an event was sent twice without a failure");
    let stored: HashSet<_> = stored.into_iter().map(|(_, id)| id).collect();
    assert!(sent.into_keys().collect::<HashSet<_>>() == stored, "stored and sent events differ");
    say(&format!("5 stops, {} acknowledged, {} stored", ledger.lock().unwrap().accepted.len(), stored.len()));
}

/// Posts events to a receiver that never answers, waits until they are in flight, and ends the
/// daemon by `end`.
async fn cut_off(drain_timeout: &str, end: impl AsyncFnOnce(&mut Daemon)) -> Option<i32> {
    const EVENTS: usize = 40;
    let data = tempfile::tempdir().unwrap();
    let environment = [("BALTO__DELIVERY__DRAIN_TIMEOUT", drain_timeout), ("BALTO__LOG__LEVEL", "error")];
    let mut daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    let (url, listener) = silent_receiver().await;
    let endpoint = json!({"url": url, "timeout": "60s", "maxInFlight": 100});
    let endpoint = daemon.post("/endpoints", &endpoint.to_string()).await;
    let events = vec![json!({"type": "a.b", "data": 1}); EVENTS];
    daemon.post("/events/batch", &json!({"events": events}).to_string()).await;
    let path = format!("/endpoints/{}", endpoint["id"].as_str().unwrap());
    daemon.until(&format!("{path}/lane"), |lane| lane["inFlight"] == EVENTS).await;
    // The pause keeps the endpoint idle after the restart until the test has looked.
    daemon.post(&format!("{path}/pause"), "").await;
    daemon.signal("TERM");
    until_draining(&daemon).await;
    end(&mut daemon).await;
    let code = daemon.ended_within(WAIT_MAX).await;
    drop(listener);

    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let waiting = daemon.get("/deliveries?limit=250").await;
    let waiting = waiting["data"].as_array().unwrap();
    assert_eq!(waiting.len(), EVENTS);
    for delivery in waiting {
        assert_eq!(delivery["status"], "pending", "{delivery}");
    }
    let (status, answer, _) =
        daemon.call("PATCH", &path, &[], &json!({"url": receiver.url}).to_string()).await;
    assert_eq!(status, 200, "{answer}");
    daemon.post(&format!("{path}/resume"), "").await;
    daemon.until("/deliveries?limit=1&status=pending", |page| page["data"] == json!([])).await;
    for got in receiver.got() {
        assert_eq!(got.headers["balto-attempt"], "1", "what was cut off was charged");
    }
    assert_eq!(receiver.got().len(), EVENTS);
    code
}

#[tokio::test]
async fn drain_limit_aborts_attempts_without_charging_them() {
    assert_eq!(cut_off("1s", async |_| ()).await, Some(0));
}

#[tokio::test]
async fn second_signal_ends_the_drain() {
    for second in ["TERM", "INT"] {
        let code = cut_off("1h", async |daemon| {
            for _ in 0..5 {
                assert!(daemon.is_running(), "the daemon did not wait for the receiver");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            daemon.signal("HUP"); // ignored during a shutdown
            daemon.signal(second);
        })
        .await;
        assert_eq!(code, Some(0), "after TERM and {second}");
    }
}

#[tokio::test]
async fn unfinished_clients_do_not_delay_the_shutdown() {
    let below = tempfile::tempdir().unwrap();
    let (data, log) = (below.path().join("data"), below.path().join("log"));
    let mut command = crate::support::serve(&data, &["--dev"]);
    command.env("BALTO__LOG__LEVEL", "warn").stderr(std::fs::File::create(&log).unwrap());
    let mut daemon = Daemon::spawn(command);
    daemon.until_ready().await;
    let mut sockets = Vec::new();
    for number in 0..100 {
        let mut raw = Raw::connect(daemon.address()).await;
        if number % 2 == 0 {
            raw.send(b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\nx: y").await;
        }
        sockets.push(raw);
    }
    // This client has sent half a request.
    let mut busy = Raw::connect(daemon.address()).await;
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        EVENT.len()
    );
    busy.send(head.as_bytes()).await;
    assert_eq!(busy.answer().await.unwrap().status, 100);
    let address = daemon.address();
    daemon.signal("TERM");
    until_draining(&daemon).await;
    let deadline = Instant::now() + WAIT_MAX;
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < deadline, "the daemon accepts new connections");
    }
    busy.send(EVENT.as_bytes()).await;
    let accepted = busy.answer().await.unwrap();
    assert_eq!(accepted.status, 202, "{accepted:?}");
    assert_eq!(daemon.ended_within(WAIT_MAX).await, Some(0));
    let message = std::fs::read_to_string(&log).unwrap();
    assert!(
        !message.contains("connections were cut"),
        "the shutdown waited for the request limit: {message}"
    );
    let daemon = Daemon::start(&data).await;
    assert_eq!(stored_events(&daemon).await.len(), 1, "the event that was accepted during the drain is lost");
}

// ---- reload ------------------------------------------------------------------------

/// Replaces the file atomically, as careful operators do.
fn write_config(path: &Path, text: &str) {
    let next = path.with_extension("next");
    std::fs::write(&next, text).unwrap();
    std::fs::rename(next, path).unwrap();
}

const KEY: &str = "an-admin-key-that-is-long-enough-for-all";

const BAD_CONFIGS: [&str; 5] =
    ["[egress", "[egress]\nallow_http = 1", "[none]\nx = 1", "\0", "[server]\nmax_connections = 4"];

fn good_config(allow_http: bool) -> String {
    format!(
        "[auth]\nadmin_key = \"{KEY}\"\n[egress]\nallow_http = {allow_http}\nallow_networks = [\"127.0.0.0/8\"]\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_reloads_with_good_and_bad_files_disturb_no_delivery() {
    let mut random = Rng::with_seed(seed());
    let below = tempfile::tempdir().unwrap();
    let config = below.path().join("balto.toml");
    write_config(&config, &good_config(true));
    let mut command =
        crate::support::serve(&below.path().join("data"), &["--config", config.to_str().unwrap()]);
    command.env("BALTO__LOG__LEVEL", "off");
    let mut daemon = Daemon::spawn(command);
    daemon.until_ready().await;
    let authorization = format!("Bearer {KEY}");
    let with = [("authorization", authorization.as_str())];
    let receiver = Receiver::status(200).await;
    let endpoint = json!({"url": receiver.url}).to_string();
    assert_eq!(daemon.call("POST", "/endpoints", &with, &endpoint).await.0, 201);
    let published = Mutex::new(0);
    let publish = async {
        loop {
            let (status, answer, _) = daemon.call("POST", "/events", &with, EVENT).await;
            assert_eq!(status, 202, "{answer}");
            *published.lock().unwrap() += 1;
        }
    };
    let storm = async {
        for _ in 0..400 {
            match random.u8(0..3) {
                0 => write_config(&config, &good_config(true)),
                1 => write_config(&config, random.choice(BAD_CONFIGS).unwrap()),
                _ => std::fs::remove_file(&config).unwrap_or_default(),
            }
            daemon.signal("HUP");
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = publish => {}
        () = storm => {}
    }
    // The limit of open files is read at the start only.
    let fewer = ["--pid", &daemon.pid().to_string(), "--nofile=250:250"];
    assert!(std::process::Command::new("prlimit").args(fewer).status().unwrap().success());
    // The last good file applies; a bad one after it changes nothing.
    for (allow_http, status) in [(false, 422), (true, 201), (false, 422)] {
        write_config(&config, &good_config(allow_http));
        daemon.signal("HUP");
        let deadline = Instant::now() + WAIT_MAX;
        while daemon.call("POST", "/endpoints", &with, &endpoint).await.0 != status {
            assert!(Instant::now() < deadline, "the reload to {allow_http} has no effect");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for text in BAD_CONFIGS {
            write_config(&config, text);
            daemon.signal("HUP");
        }
        assert_eq!(daemon.call("POST", "/endpoints", &with, &endpoint).await.0, status);
    }
    write_config(&config, &good_config(true));
    daemon.signal("HUP");
    let published = *published.lock().unwrap();
    let pending = async || daemon.call("GET", "/deliveries?limit=1&status=pending", &with, "").await.1;
    let deadline = Instant::now() + WAIT_MAX;
    while pending().await["data"] != json!([]) {
        assert!(Instant::now() < deadline, "deliveries wait");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let dead = daemon.call("GET", "/dead-letters", &with, "").await.1;
    say(&format!(
        "400 reloads, {published} published at the same time, {} dead letters",
        dead["data"].as_array().unwrap().len()
    ));
    assert!(published > 0);
    assert_eq!(daemon.terminate(), Some(0));
}

// ---- the supervisor ----------------------------------------------------------------

/// A receiver of supervisor messages.
struct Supervisor {
    socket: UnixDatagram,
    path: PathBuf,
    messages: Vec<String>,
}

impl Supervisor {
    fn new(below: &Path) -> Self {
        let path = below.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(WAIT_MAX)).unwrap();
        Self { socket, path, messages: Vec::new() }
    }

    /// The lines of the next message.
    fn receive(&mut self) -> Vec<String> {
        let mut bytes = [0; 4_096];
        let length = loop {
            match self.socket.recv(&mut bytes) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                received => break received.expect("the supervisor gets no message"),
            }
        };
        let message = String::from_utf8(bytes[..length].to_vec()).unwrap();
        self.messages.push(message.clone());
        message.lines().map(str::to_owned).collect()
    }

    /// Reads until a message has this line; returns the whole message.
    fn until(&mut self, line: &str) -> Vec<String> {
        loop {
            let message = self.receive();
            if message.iter().any(|found| found == line) {
                return message;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn supervisor_is_notified_of_start_watchdog_reload_and_stop() {
    let below = tempfile::tempdir().unwrap();
    let mut supervisor = Supervisor::new(below.path());
    let config = below.path().join("balto.toml");
    write_config(&config, "");
    let mut command =
        crate::support::serve(&below.path().join("data"), &["--dev", "--config", config.to_str().unwrap()]);
    command.env("NOTIFY_SOCKET", &supervisor.path).env("BALTO__LOG__LEVEL", "off");
    let mut daemon = Daemon::spawn(command);
    assert_eq!(supervisor.receive(), ["STATUS=recovering"]);
    // An early reload signal does not end the process, as it would by default.
    daemon.signal("HUP");
    // A slow start sends watchdog messages.
    let mut ready = supervisor.receive();
    while ready == ["WATCHDOG=1"] {
        ready = supervisor.receive();
    }
    assert_eq!(ready, ["READY=1", "STATUS=serving"], "{:?}", supervisor.messages);
    assert_eq!(readiness(&daemon).await.unwrap().0, 200, "READY=1 before the daemon is ready");
    assert_eq!(daemon.call("POST", "/events", &[], EVENT).await.0, 202);
    let reloaded = supervisor.until("RELOADING=1");
    assert!(reloaded.iter().any(|line| line.starts_with("MONOTONIC_USEC=")), "{reloaded:?}");
    supervisor.until("READY=1");
    for _ in 0..3 {
        supervisor.until("WATCHDOG=1");
    }
    write_config(&config, "[nonsense]");
    daemon.signal("HUP");
    supervisor.until("RELOADING=1");
    let ready = supervisor.until("READY=1");
    assert!(ready.iter().any(|line| line.starts_with("STATUS=serving; reload failed")), "{ready:?}");
    let (url, _listener) = silent_receiver().await;
    daemon.post("/endpoints", &json!({"url": url, "timeout": "60s"}).to_string()).await;
    daemon.post("/events", EVENT).await;
    daemon.until_metric("balto_deliveries_in_flight", "", |count| count > 0.0).await;
    daemon.signal("TERM");
    supervisor.until("STOPPING=1");
    // The watchdog messages continue during the drain.
    for _ in 0..2 {
        supervisor.until("WATCHDOG=1");
    }
    daemon.signal("TERM");
    assert_eq!(daemon.ended_within(WAIT_MAX).await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn supervisor_that_does_not_read_delays_nothing() {
    let below = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(below.path());
    let flood = std::os::unix::net::UnixDatagram::unbound().unwrap();
    flood.set_nonblocking(true).unwrap();
    while flood.send_to(b"STATUS=nothing more fits", &supervisor.path).is_ok() {}
    let mut command = crate::support::serve(&below.path().join("data"), &["--dev"]);
    command.env("NOTIFY_SOCKET", &supervisor.path).env("BALTO__LOG__LEVEL", "off");
    let mut daemon = Daemon::spawn(command);
    let deadline = Instant::now() + WAIT_MAX;
    while readiness(&daemon).await.is_none_or(|(status, _)| status != 200) {
        assert!(Instant::now() < deadline, "the daemon blocks on its supervisor");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // More messages than the socket buffers.
    for _ in 0..20 {
        daemon.signal("HUP");
        assert_eq!(daemon.call("POST", "/events", &[], EVENT).await.0, 202);
    }
    daemon.signal("TERM");
    assert_eq!(daemon.ended_within(WAIT_MAX).await, Some(0));
}

/// The exposure of the shipped unit as systemd rates it.
#[test]
fn shipped_unit_is_hardened() {
    if !has_program("systemd-analyze") {
        return say("SKIPPED: no systemd-analyze");
    }
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/balto.service");
    let mut command = std::process::Command::new("systemd-analyze");
    let output = command.args(["security", "--offline=yes", "--threshold=15"]).arg(unit).output().unwrap();
    let message = String::from_utf8_lossy(&output.stdout).into_owned();
    let exposure = message.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_default();
    say(exposure);
    assert!(output.status.success() && !exposure.is_empty(), "exposure level above 1.5:\n{message}");
}

//! How the process ends, reloads and talks to its supervisor: by signals, under load, politely and not.

use std::collections::{HashMap, HashSet};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::load::{Book, check_held, held, publishers};
use crate::support::raw::Raw;
use crate::support::{Daemon, PATIENCE, Receiver, answer, has, say, seed};
use fastrand::Rng;
use serde_json::json;
use tokio::net::TcpListener;

const EVENT: &str = r#"{"type":"a.b","data":1}"#;

/// What `/readyz` says.
async fn readiness(daemon: &Daemon) -> Option<(u16, String)> {
    let reply = reqwest::get(format!("{}/readyz", daemon.ops)).await.ok()?;
    Some((reply.status().as_u16(), reply.text().await.ok()?))
}

async fn until_draining(daemon: &Daemon) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match readiness(daemon).await {
            Some((503, text)) if text.contains("draining") => return,
            Some((200, _)) => {}
            other => panic!("while it drains: {other:?}"),
        }
        assert!(Instant::now() < deadline, "it does not drain");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A receiver that answers after a while, so that many requests are in flight.
async fn slow(delay: Duration) -> Receiver {
    Receiver::start(move |_, _| {
        std::thread::sleep(delay);
        answer(200)
    })
    .await
}

/// A receiver that takes connections and says nothing, until it is dropped.
async fn silence() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (format!("http://{}/", listener.local_addr().unwrap()), listener)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn told_to_stop_under_load_it_finishes_what_it_began_and_loses_nothing() {
    let mut random = Rng::with_seed(seed());
    let data = tempfile::tempdir().unwrap();
    let receiver = slow(Duration::from_millis(1)).await;
    let book = Arc::<Mutex<Book>>::default();
    for round in 0..5 {
        let mut daemon = Daemon::start(data.path()).await;
        if round == 0 {
            daemon.post("/endpoints", &json!({"url": receiver.url, "maxInFlight": 50}).to_string()).await;
        }
        let publishers = publishers(&book, &daemon, &mut random);
        tokio::time::sleep(Duration::from_millis(random.u64(50..500))).await;
        assert_eq!(daemon.terminate(), Some(0), "round {round}");
        for publisher in publishers {
            publisher.await.unwrap();
        }
    }
    let daemon = Daemon::start(data.path()).await;
    let held = held(&daemon).await;
    check_held(&book.lock().unwrap(), &held);
    daemon.until("/deliveries?limit=1&status=pending", |page| page["data"] == json!([])).await;
    let mut sent = HashMap::<String, u32>::new();
    for got in receiver.got() {
        assert_eq!(got.headers["balto-attempt"], "1", "a stop was charged");
        *sent.entry(got.headers["webhook-id"].clone()).or_default() += 1;
    }
    // Nothing was cut off, so nothing had to be sent again.
    assert!(sent.values().all(|times| *times == 1), "sent twice although nothing failed");
    let held: HashSet<_> = held.into_iter().map(|(_, id)| id).collect();
    assert!(sent.into_keys().collect::<HashSet<_>>() == held, "held and sent are not the same");
    say(&format!("5 stops, {} acknowledged, {} held", book.lock().unwrap().accepted.len(), held.len()));
}

/// Posts events to a receiver that never answers, waits until they are in flight, and ends the daemon by `end`.
async fn cut_off(drain_timeout: &str, end: impl AsyncFnOnce(&mut Daemon)) -> Option<i32> {
    const EVENTS: usize = 40;
    let data = tempfile::tempdir().unwrap();
    let environment = [("BALTO__DELIVERY__DRAIN_TIMEOUT", drain_timeout), ("BALTO__LOG__LEVEL", "error")];
    let mut daemon = Daemon::start_in(data.path(), &["--dev"], &environment).await;
    let (url, listener) = silence().await;
    let endpoint = json!({"url": url, "timeout": "60s", "maxInFlight": 100});
    let endpoint = daemon.post("/endpoints", &endpoint.to_string()).await;
    let events = vec![json!({"type": "a.b", "data": 1}); EVENTS];
    daemon.post("/events/batch", &json!({"events": events}).to_string()).await;
    let path = format!("/endpoints/{}", endpoint["id"].as_str().unwrap());
    daemon.until(&format!("{path}/lane"), |lane| lane["inFlight"] == EVENTS).await;
    // So that after the restart nothing is sent before the test looks.
    daemon.post(&format!("{path}/pause"), "").await;
    daemon.signal("TERM");
    until_draining(&daemon).await;
    end(&mut daemon).await;
    let code = daemon.ended_within(PATIENCE).await;
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
async fn the_drain_limit_cuts_off_without_charging() {
    assert_eq!(cut_off("1s", async |_| ()).await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_the_waiting() {
    for second in ["TERM", "INT"] {
        let code = cut_off("1h", async |daemon| {
            for _ in 0..5 {
                assert!(daemon.is_running(), "it did not wait for the receiver");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            daemon.signal("HUP"); // means nothing any more
            daemon.signal(second);
        })
        .await;
        assert_eq!(code, Some(0), "after TERM and {second}");
    }
}

#[tokio::test]
async fn clients_that_never_finish_do_not_hold_up_the_end_and_the_others_are_answered() {
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
    // This one is in the middle of a request.
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
    let deadline = Instant::now() + PATIENCE;
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < deadline, "it takes new connections");
    }
    busy.send(EVENT.as_bytes()).await;
    let accepted = busy.answer().await.unwrap();
    assert_eq!(accepted.status, 202, "{accepted:?}");
    assert_eq!(daemon.ended_within(PATIENCE).await, Some(0));
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(!said.contains("connections were cut"), "it waited for the time limit of requests: {said}");
    let daemon = Daemon::start(&data).await;
    assert_eq!(held(&daemon).await.len(), 1, "what was accepted at the last moment is not there");
}

// ---- reload ----------------------------------------------------------------------------------------------------

/// Replaced in one step, as careful people do.
fn write_config(path: &Path, text: &str) {
    let next = path.with_extension("next");
    std::fs::write(&next, text).unwrap();
    std::fs::rename(next, path).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_reloads_with_good_and_bad_files_disturbs_nobody() {
    const KEY: &str = "an-admin-key-that-is-long-enough-for-all";
    let good = |allow_http: bool| {
        format!(
            "[auth]\nadmin_key = \"{KEY}\"\n[egress]\nallow_http = {allow_http}\nallow_networks = [\"127.0.0.0/8\"]\n"
        )
    };
    let bad =
        ["[egress", "[egress]\nallow_http = 1", "[none]\nx = 1", "\0", "[server]\nmax_connections = 17"];
    let mut random = Rng::with_seed(seed());
    let below = tempfile::tempdir().unwrap();
    let config = below.path().join("balto.toml");
    write_config(&config, &good(true));
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
                0 => write_config(&config, &good(true)),
                1 => write_config(&config, random.choice(bad).unwrap()),
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
    // The limit of open files that counts is that of the start.
    let fewer = ["--pid", &daemon.pid().to_string(), "--nofile=250:250"];
    assert!(std::process::Command::new("prlimit").args(fewer).status().unwrap().success());
    // And the last good one is what holds, a bad one after it changes nothing.
    for (allow_http, status) in [(false, 422), (true, 201), (false, 422)] {
        write_config(&config, &good(allow_http));
        daemon.signal("HUP");
        let deadline = Instant::now() + PATIENCE;
        while daemon.call("POST", "/endpoints", &with, &endpoint).await.0 != status {
            assert!(Instant::now() < deadline, "the reload to {allow_http} is not seen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for text in bad {
            write_config(&config, text);
            daemon.signal("HUP");
        }
        assert_eq!(daemon.call("POST", "/endpoints", &with, &endpoint).await.0, status);
    }
    write_config(&config, &good(true));
    daemon.signal("HUP");
    let published = *published.lock().unwrap();
    let pending = async || daemon.call("GET", "/deliveries?limit=1&status=pending", &with, "").await.1;
    let deadline = Instant::now() + PATIENCE;
    while pending().await["data"] != json!([]) {
        assert!(Instant::now() < deadline, "deliveries wait");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let dead = daemon.call("GET", "/dead-letters", &with, "").await.1;
    say(&format!(
        "400 reloads, {published} published meanwhile, {} dead letters",
        dead["data"].as_array().unwrap().len()
    ));
    assert!(published > 0);
    assert_eq!(daemon.terminate(), Some(0));
}

// ---- the supervisor --------------------------------------------------------------------------------------------

/// What the supervisor hears.
struct Supervisor {
    socket: UnixDatagram,
    path: PathBuf,
    heard: Vec<String>,
}

impl Supervisor {
    fn new(below: &Path) -> Self {
        let path = below.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path, heard: Vec::new() }
    }

    /// The next message; its lines.
    fn hear(&mut self) -> Vec<String> {
        let mut bytes = [0; 4_096];
        let length = loop {
            match self.socket.recv(&mut bytes) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                heard => break heard.expect("the supervisor hears nothing"),
            }
        };
        let message = String::from_utf8(bytes[..length].to_vec()).unwrap();
        self.heard.push(message.clone());
        message.lines().map(str::to_owned).collect()
    }

    /// Listens until a message has this line; gives the whole message.
    fn until(&mut self, line: &str) -> Vec<String> {
        loop {
            let message = self.hear();
            if message.iter().any(|heard| heard == line) {
                return message;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_supervisor_hears_when_it_is_ready_turning_reloading_and_stopping() {
    let below = tempfile::tempdir().unwrap();
    let mut supervisor = Supervisor::new(below.path());
    let config = below.path().join("balto.toml");
    write_config(&config, "");
    let mut command =
        crate::support::serve(&below.path().join("data"), &["--dev", "--config", config.to_str().unwrap()]);
    command.env("NOTIFY_SOCKET", &supervisor.path).env("BALTO__LOG__LEVEL", "off");
    let mut daemon = Daemon::spawn(command);
    assert_eq!(supervisor.hear(), ["STATUS=recovering"]);
    // A reload that comes too early does not end it, as it would by default.
    daemon.signal("HUP");
    // A slow start turns meanwhile.
    let mut ready = supervisor.hear();
    while ready == ["WATCHDOG=1"] {
        ready = supervisor.hear();
    }
    assert_eq!(ready, ["READY=1", "STATUS=serving"], "{:?}", supervisor.heard);
    assert_eq!(readiness(&daemon).await.unwrap().0, 200, "it said that it was ready, and is not");
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
    let (url, _listener) = silence().await;
    daemon.post("/endpoints", &json!({"url": url, "timeout": "60s"}).to_string()).await;
    daemon.post("/events", EVENT).await;
    daemon.until_metric("balto_deliveries_in_flight", "", |count| count > 0.0).await;
    daemon.signal("TERM");
    supervisor.until("STOPPING=1");
    // As long as it drains, it turns.
    for _ in 0..2 {
        supervisor.until("WATCHDOG=1");
    }
    daemon.signal("TERM");
    assert_eq!(daemon.ended_within(PATIENCE).await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_that_does_not_read_holds_nothing_up() {
    let below = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(below.path());
    let flood = std::os::unix::net::UnixDatagram::unbound().unwrap();
    flood.set_nonblocking(true).unwrap();
    while flood.send_to(b"STATUS=nothing more fits", &supervisor.path).is_ok() {}
    let mut command = crate::support::serve(&below.path().join("data"), &["--dev"]);
    command.env("NOTIFY_SOCKET", &supervisor.path).env("BALTO__LOG__LEVEL", "off");
    let mut daemon = Daemon::spawn(command);
    let deadline = Instant::now() + PATIENCE;
    while readiness(&daemon).await.is_none_or(|(status, _)| status != 200) {
        assert!(Instant::now() < deadline, "the daemon waits for its supervisor");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // More words than can wait for it.
    for _ in 0..20 {
        daemon.signal("HUP");
        assert_eq!(daemon.call("POST", "/events", &[], EVENT).await.0, 202);
    }
    daemon.signal("TERM");
    assert_eq!(daemon.ended_within(PATIENCE).await, Some(0));
}

/// The unit that is shipped: what it may do to the machine, as systemd itself judges it.
#[test]
fn the_unit_is_hardened() {
    if !has("systemd-analyze") {
        return say("SKIPPED: no systemd-analyze");
    }
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/balto.service");
    let mut command = std::process::Command::new("systemd-analyze");
    let output = command.args(["security", "--offline=yes", "--threshold=15"]).arg(unit).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let exposure = said.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_default();
    say(exposure);
    assert!(output.status.success() && !exposure.is_empty(), "exposed by more than 1.5:\n{said}");
}

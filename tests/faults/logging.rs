//! Logging and panics. A closed, full or unread standard error costs only log lines. A panic in a
//! required thread or task ends the process. Client commands handle a closed or full output.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Daemon, Receiver, WAIT_MAX, say};
use serde_json::{Value, json};

const BALTO: &str = env!("CARGO_BIN_EXE_balto");
const DROPPED: &str = "balto_log_lines_dropped_total";
const EVENT: &str = r#"{"type":"a.b","data":1}"#;
/// Exit code of an internal error.
const INTERNAL_ERROR: i32 = 70;
/// Exit code of a failed store.
const STORE_FAILED: i32 = 74;
/// `O_NONBLOCK` on Linux.
const NON_BLOCKING: i32 = 0o4000;

/// Waits until a condition holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {WAIT_MAX:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn serve(data: &Path, level: &str) -> Command {
    let mut command = crate::support::serve(data, &["--dev"]);
    command.env("BALTO__LOG__LEVEL", level);
    command
}

/// Asserts that an event is accepted and delivered, and that the daemon is ready.
async fn check_health(daemon: &Daemon, receiver: &Receiver) {
    let before = receiver.count();
    daemon.post("/events", EVENT).await;
    receiver.until(before + 1).await;
    assert!(daemon.is_ready().await);
}

// ---- standard error ----------------------------------------------------------------

#[tokio::test]
async fn closed_stderr_costs_only_log_lines() {
    let data = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = serve(data.path(), "info");
    command.stderr(writer);
    let mut daemon = Daemon::spawn(command);
    daemon.until_ready().await;
    assert_eq!(daemon.metric(DROPPED, "").await, 0.0);
    assert!(daemon.metrics().await.contains(&format!("{DROPPED} 0")), "present from the start");
    drop(reader);
    // The line about the disabled endpoint is the first that is lost.
    let gone = Receiver::status(410).await;
    let endpoint = daemon.post("/endpoints", &json!({"url": gone.url}).to_string()).await;
    daemon.post("/events", EVENT).await;
    let path = format!("/endpoints/{}", endpoint["id"].as_str().unwrap());
    daemon.until(&path, |endpoint| endpoint["status"] == "disabled").await;
    until("the dropped line is counted", async || daemon.metric(DROPPED, "").await >= 1.0).await;
    daemon.signal("HUP");
    until("the dropped line of the reload is counted", async || daemon.metric(DROPPED, "").await >= 2.0)
        .await;
    let receiver = Receiver::status(200).await;
    daemon.post("/endpoints", &json!({"url": receiver.url}).to_string()).await;
    check_health(&daemon, &receiver).await;
    assert_eq!(daemon.terminate(), Some(0));
}

#[tokio::test]
async fn full_stderr_costs_only_log_lines() {
    let data = tempfile::tempdir().unwrap();
    let mut command = serve(data.path(), "debug");
    command.stderr(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let mut daemon = Daemon::spawn(command);
    daemon.until_ready().await;
    until("the dropped lines of the start are counted", async || daemon.metric(DROPPED, "").await >= 2.0)
        .await;
    let receiver = Receiver::status(200).await;
    daemon.post("/endpoints", &json!({"url": receiver.url}).to_string()).await;
    check_health(&daemon, &receiver).await;
    assert_eq!(daemon.terminate(), Some(0));
}

/// A full pipe that is unread until the test reads from it.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    fill(&writer);
    (reader, writer)
}

/// Through a separate file description, so that the pipe itself stays blocking.
fn fill(writer: &PipeWriter) {
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut other = OpenOptions::new().write(true).custom_flags(NON_BLOCKING).open(path).unwrap();
    let mut chunk = 4_096;
    while chunk > 0 {
        let mut line = vec![b'.'; chunk - 1];
        line.push(b'\n');
        match other.write(&line) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => chunk /= 2,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Posts events until log lines are dropped, and waits until all are delivered.
async fn publish_until_lines_are_dropped(daemon: &Daemon, receiver: &Receiver) {
    let batch = json!({"events": vec![json!({"type": "a.b", "data": 1}); 500]}).to_string();
    let mut published = 0;
    while daemon.metric(DROPPED, "").await == 0.0 {
        assert!(published < 50_000, "no line is dropped");
        daemon.post("/events/batch", &batch).await;
        published += 500;
        receiver.until(published).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_log_reader_costs_lines_and_gets_their_count() {
    let data = tempfile::tempdir().unwrap();
    let (mut reader, writer) = full_pipe();
    let mut command = serve(data.path(), "debug");
    command.stderr(writer);
    let mut daemon = Daemon::spawn(command);
    daemon.until_ready().await;
    let receiver = Receiver::status(200).await;
    let endpoint = json!({"url": receiver.url, "maxInFlight": 100});
    daemon.post("/endpoints", &endpoint.to_string()).await;
    publish_until_lines_are_dropped(&daemon, &receiver).await;
    check_health(&daemon, &receiver).await;

    let log = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    // The count comes when the buffer is empty again; then lines are written as before.
    until("a new line is written", async || {
        let before = daemon.metric(DROPPED, "").await;
        check_health(&daemon, &receiver).await;
        daemon.metric(DROPPED, "").await == before
    })
    .await;
    let dropped = daemon.metric(DROPPED, "").await;
    assert_eq!(daemon.terminate(), Some(0));
    let log = log.join().unwrap();
    let lines: Vec<Value> = log
        .lines()
        .filter(|line| !line.starts_with('.'))
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("an incomplete line: {line}")))
        .collect();
    let is_report =
        |line: &&Value| line["message"].as_str().is_some_and(|text| text.starts_with("log lines dropped"));
    let reports: Vec<_> = lines.iter().filter(is_report).collect();
    let reported: u64 = reports.iter().map(|report| report["lines"].as_u64().unwrap()).sum();
    assert!(reported > 0 && reported as f64 >= dropped, "{dropped} dropped, reported: {reports:?}");
    assert_eq!(reports.last().unwrap()["total"].as_u64(), Some(reported));
    assert!(lines.iter().any(|line| line["message"] == "stopped"), "lines after the report are lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_log_reader_does_not_delay_the_shutdown() {
    for level in ["info", "debug"] {
        let data = tempfile::tempdir().unwrap();
        let (_reader, writer) = full_pipe();
        let mut command = serve(data.path(), level);
        command.stderr(writer);
        let mut daemon = Daemon::spawn(command);
        daemon.until_ready().await;
        let receiver = Receiver::status(200).await;
        daemon.post("/endpoints", &json!({"url": receiver.url, "maxInFlight": 100}).to_string()).await;
        if level == "debug" {
            publish_until_lines_are_dropped(&daemon, &receiver).await;
        }
        check_health(&daemon, &receiver).await;
        daemon.signal("TERM");
        assert_eq!(daemon.ended_within(WAIT_MAX).await, Some(0), "at {level}");
    }
}

#[tokio::test]
async fn failed_start_exits_with_an_unread_error() {
    let data = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (_reader, writer) = full_pipe();
    let mut command = Command::new(BALTO);
    command.args(["serve", "--dev", "--data-dir"]).arg(data.path()).stderr(writer);
    command.env("BALTO__SERVER__API_LISTEN", taken.local_addr().unwrap().to_string());
    command.env("BALTO__SERVER__OPS_LISTEN", "127.0.0.1:0");
    let mut child = command.spawn().unwrap();
    assert_eq!(exit_code(&mut child).await, Some(1));
}

/// The exit code of a child that ends by itself.
async fn exit_code(child: &mut std::process::Child) -> Option<i32> {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the process does not end");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

// ---- panics ------------------------------------------------------------------------

/// Whether the daemon under test supports forced panics: a release build does not.
fn can_panic() -> bool {
    if cfg!(debug_assertions) {
        return true;
    }
    say("SKIPPED: a release build has no failpoints");
    false
}

/// A daemon that panics at a failpoint, and its log.
fn panicking(below: &Path, place: &str) -> (Daemon, PathBuf) {
    let log = below.join("log");
    let mut command = serve(&below.join("data"), "error");
    command.env("BALTO_TEST_PANIC", place).stderr(File::create(&log).unwrap());
    (Daemon::spawn(command), log)
}

fn panics_in(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|line| line["message"].as_str().is_some_and(|text| text.starts_with("internal error")))
        .collect()
}

#[tokio::test]
async fn panic_in_a_required_thread_ends_the_process() {
    if !can_panic() {
        return;
    }
    for (place, code) in [
        ("writer", INTERNAL_ERROR),
        ("state", STORE_FAILED),
        ("dispatcher", INTERNAL_ERROR),
        ("supervisor", INTERNAL_ERROR),
        ("accept", INTERNAL_ERROR),
        ("log", INTERNAL_ERROR),
    ] {
        let below = tempfile::tempdir().unwrap();
        let (mut daemon, log) = panicking(below.path(), place);
        let deadline = Instant::now() + WAIT_MAX;
        // Some failpoints need a request.
        while daemon.is_running() && Instant::now() < deadline {
            let _refused = daemon.is_ready().await;
        }
        assert_eq!(daemon.ended_within(Duration::ZERO).await, Some(code), "{place}");
        let panics = panics_in(&log);
        let named = panics.iter().any(|line| line["reason"] == format!("BALTO_TEST_PANIC names {place}"));
        // The log's own thread cannot write its last line.
        assert!(named || place == "log", "{place}: {panics:?}");
    }
}

#[tokio::test]
async fn panic_ends_the_process_with_a_stalled_stderr() {
    if !can_panic() {
        return;
    }
    for place in ["writer", "dispatcher"] {
        let data = tempfile::tempdir().unwrap();
        let (_reader, writer) = full_pipe();
        let mut command = serve(data.path(), "debug");
        command.env("BALTO_TEST_PANIC", place).stderr(writer);
        let mut daemon = Daemon::spawn(command);
        assert_eq!(daemon.ended_within(WAIT_MAX).await, Some(INTERNAL_ERROR), "{place}");
    }
}

#[tokio::test]
async fn panicked_attempt_costs_one_delivery() {
    if !can_panic() {
        return;
    }
    let below = tempfile::tempdir().unwrap();
    let (mut daemon, log) = panicking(below.path(), "attempt");
    daemon.until_ready().await;
    let receiver = Receiver::status(200).await;
    daemon.post("/endpoints", &json!({"url": receiver.url}).to_string()).await;
    for count in 1..=3 {
        daemon.post("/events", EVENT).await;
        until("the attempt panics", async || panics_in(&log).len() >= count).await;
    }
    assert!(daemon.is_ready().await);
    assert_eq!(daemon.terminate(), Some(0));
    let panics = panics_in(&log);
    assert!(panics.iter().all(|line| line["message"] == "internal error, request, attempt or task aborted"));
}

#[tokio::test]
async fn panicked_background_job_is_counted_and_begins_again() {
    if !can_panic() {
        return;
    }
    let below = tempfile::tempdir().unwrap();
    let (mut daemon, log) = panicking(below.path(), "retention");
    daemon.until_ready().await;
    until("the job panics twice", async || panics_in(&log).len() >= 2).await;
    assert!(daemon.is_ready().await);
    assert_eq!(daemon.terminate(), Some(0));
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("background task panicked, restarting"), "{text}");
}

#[tokio::test]
async fn panicked_handshake_is_repeated() {
    if !can_panic() {
        return;
    }
    let below = tempfile::tempdir().unwrap();
    let (mut daemon, log) = panicking(below.path(), "handshake");
    daemon.until_ready().await;
    let receiver = Receiver::status(200).await;
    daemon.post("/endpoints", &json!({"url": receiver.url, "handshake": {}}).to_string()).await;
    until("the second handshake request", async || panics_in(&log).len() >= 2).await;
    assert!(daemon.is_ready().await);
    assert_eq!(daemon.terminate(), Some(0));
}

#[tokio::test]
async fn panicked_request_costs_its_connection() {
    if !can_panic() {
        return;
    }
    let below = tempfile::tempdir().unwrap();
    let (mut daemon, log) = panicking(below.path(), "connection");
    until("requests panic", async || {
        assert!(!daemon.is_ready().await && daemon.is_running());
        panics_in(&log).len() >= 3
    })
    .await;
    assert_eq!(daemon.terminate(), Some(0));
}

// ---- client commands ---------------------------------------------------------------

/// Exit code and standard error of a command with this standard output.
async fn run_with_stdout(arguments: &[&str], url: &str, stdout: impl Into<Stdio>) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let errors = directory.path().join("stderr");
    let mut command = Command::new(BALTO);
    command.args(arguments).env("BALTO_URL", url).current_dir(&directory);
    let mut child = command.stdout(stdout).stderr(File::create(&errors).unwrap()).spawn().unwrap();
    let code = exit_code(&mut child).await;
    (code, std::fs::read_to_string(errors).unwrap())
}

/// Commands that print, each in a different way.
const PRINTING: [&[&str]; 7] = [
    &["events", "list"],
    &["events", "list", "--all", "--json"],
    &["send", "--type", "a.b", "--data", "1"],
    &["openapi"],
    &["check-config", "/dev/null"],
    &["--help"],
    &["--version"],
];

#[tokio::test]
async fn closed_stdout_ends_client_commands_quietly() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    daemon.post("/events", EVENT).await;
    let url = daemon.api.strip_suffix("/v1").unwrap();
    for arguments in PRINTING.into_iter().chain([&["demo"][..]]) {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = run_with_stdout(arguments, url, writer).await;
        assert_eq!(ended, (Some(0), String::new()), "{arguments:?}");
    }
}

#[tokio::test]
async fn full_stdout_fails_client_commands_with_a_message() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    daemon.post("/events", EVENT).await;
    let url = daemon.api.strip_suffix("/v1").unwrap();
    for arguments in PRINTING.into_iter().chain([&["demo"][..]]) {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (code, message) = run_with_stdout(arguments, url, full).await;
        assert_eq!(code, Some(1), "{arguments:?}: {message}");
        let expected = "balto: cannot write to standard output: No space left on device (os error 28)\n";
        assert_eq!(message, expected, "{arguments:?}");
    }
}

#[tokio::test]
async fn closed_stderr_does_not_change_the_exit_code() {
    for (arguments, code) in
        [(&["events", "list"][..], 1), (&["events", "lists"], 2), (&["serve", "--config", "/none"], 1)]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(BALTO);
        command.args(arguments).env("BALTO_URL", "http://127.0.0.1:9").stderr(writer).stdout(Stdio::null());
        assert_eq!(exit_code(&mut command.spawn().unwrap()).await, Some(code), "{arguments:?}");
    }
}

#[tokio::test]
async fn signal_ends_listen_with_an_unread_output() {
    for signal in ["TERM", "INT"] {
        let (_reader, writer) = full_pipe();
        let mut command = Command::new(BALTO);
        command.args(["listen", "--port", "0"]).stdout(writer).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut first).unwrap();
        let url = first.split_whitespace().find(|word| word.starts_with("http")).unwrap();
        // The request is printed before its response is sent.
        assert_eq!(reqwest::Client::new().post(url).body("{}").send().await.unwrap().status(), 200);
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status();
        assert!(sent.unwrap().success());
        assert_eq!(exit_code(&mut child).await, Some(0), "{signal}");
    }
}

/// Whether the process handles SIGTERM itself.
fn handles_sigterm(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() & (1 << 14) != 0)
}

#[tokio::test]
async fn sigterm_ends_commands_whose_outputs_are_both_stalled() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&data.path().join("data")).await;
    for _ in 0..10 {
        let event = json!({"type": "a.b", "data": "x".repeat(200_000)});
        daemon.post("/events", &event.to_string()).await;
    }
    let file = data.path().join("backup");
    let rows: [(&[&str], i32); 4] = [
        (&["listen", "--port", "0"], 0),
        (&["demo"], 1),
        (&["backup", "--to", "-"], 1),
        (&["backup", "--to", file.to_str().unwrap()], 0),
    ];
    for (arguments, code) in rows {
        let ((_out_reader, out), (_err_reader, err)) = (full_pipe(), full_pipe());
        let mut command = Command::new(BALTO);
        command.args(arguments).env("BALTO_URL", daemon.api.strip_suffix("/v1").unwrap());
        let mut child = command.stdout(out).stderr(err).spawn().unwrap();
        until("the command handles signals", async || handles_sigterm(child.id())).await;
        if code == 0 && arguments[0] == "backup" {
            until("the backup is complete", async || file.exists()).await;
        }
        // Time for the command to block on its output.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let sent = Command::new("kill").arg(child.id().to_string()).status();
        assert!(sent.unwrap().success());
        let since = Instant::now();
        assert_eq!(exit_code(&mut child).await, Some(code), "{arguments:?}");
        assert!(since.elapsed() < Duration::from_secs(10), "{arguments:?} took {:?}", since.elapsed());
    }
}

#[tokio::test]
async fn stalled_stderr_does_not_block_a_failed_start() {
    for (arguments, code) in [
        (&["serve", "--config", "/none"][..], 1),
        (&["serve", "--nonsense"], 2),
        (&["listen", "--secret", "x"], 2),
    ] {
        let (_reader, writer) = full_pipe();
        let mut child = Command::new(BALTO).args(arguments).stderr(writer).spawn().unwrap();
        assert_eq!(exit_code(&mut child).await, Some(code), "{arguments:?}");
    }
}

// ---- the supervisor's socket -------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abstract_notify_socket_gets_start_watchdog_and_stop() {
    let data = tempfile::tempdir().unwrap();
    let name = format!("balto-test-{}", std::process::id());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    socket.set_read_timeout(Some(WAIT_MAX)).unwrap();
    let hear = |expected: &str| {
        let mut bytes = [0; 4_096];
        loop {
            let length = socket.recv(&mut bytes).unwrap_or_else(|error| panic!("no {expected}: {error}"));
            if bytes[..length].starts_with(expected.as_bytes()) {
                return;
            }
        }
    };
    let mut command = serve(data.path(), "error");
    command.env("NOTIFY_SOCKET", format!("@{name}"));
    let mut daemon = Daemon::spawn(command);
    hear("STATUS=recovering\n");
    hear("READY=1\nSTATUS=serving\n");
    hear("WATCHDOG=1\n");
    daemon.signal("HUP");
    hear("RELOADING=1\nMONOTONIC_USEC=");
    hear("READY=1\n");
    daemon.signal("TERM");
    hear("STOPPING=1\nSTATUS=draining\n");
    assert_eq!(daemon.ended_within(WAIT_MAX).await, Some(0));
}

#[tokio::test]
async fn unreachable_notify_socket_is_logged_once() {
    for name in ["/nonexistent/notify", "@balto-nobody-listens", "vsock:2:1234"] {
        let below = tempfile::tempdir().unwrap();
        let log = below.path().join("log");
        let mut command = serve(&below.path().join("data"), "info");
        command.env("NOTIFY_SOCKET", name).stderr(File::create(&log).unwrap());
        let mut daemon = Daemon::spawn(command);
        daemon.until_ready().await;
        assert_eq!(daemon.terminate(), Some(0));
        let text = std::fs::read_to_string(&log).unwrap();
        let warnings = text.lines().filter(|line| line.contains("supervisor not reached")).count();
        assert_eq!(warnings, 1, "{name}: {text}");
        assert!(text.contains(name), "{text}");
    }
}

// ---- memory ------------------------------------------------------------------------

/// The kernel assigns the `/proc` files of such a process to root.
#[tokio::test]
async fn memory_of_the_daemon_cannot_be_dumped() {
    const SOMEBODY: u32 = 65_534;
    let below = tempfile::tempdir().unwrap();
    let data = below.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let is_root = below.path().metadata().unwrap().uid() == 0;
    let mut owners = Vec::new();
    for flags in [&["--dev"][..], &[]] {
        let mut command = crate::support::serve(&data, flags);
        if is_root {
            for path in [below.path(), &data] {
                std::os::unix::fs::chown(path, Some(SOMEBODY), None).unwrap();
            }
            if Command::new(BALTO).arg("--version").stdout(Stdio::null()).uid(SOMEBODY).status().is_err() {
                return say("SKIPPED: another user cannot run the executable here");
            }
            command.uid(SOMEBODY);
        }
        let mut daemon = Daemon::spawn(command);
        daemon.until_ready().await;
        assert!(daemon.metric("process_open_fds", "").await > 0.0, "it sees its own descriptors");
        owners.push(std::fs::metadata(format!("/proc/{}/mem", daemon.pid())).unwrap().uid());
        assert_eq!(daemon.terminate(), Some(0));
    }
    assert_ne!(owners[0], 0, "with --dev a debugger may attach");
    assert_eq!(owners[1], 0);
}

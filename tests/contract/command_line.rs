//! The command line for people and scripts, and the commands of the README.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::{Daemon, Receiver, WAIT_MAX, answer, has_program, say};
use super::{ADMIN, endpoint, keyed, list, text};

const BALTO: &str = env!("CARGO_BIN_EXE_balto");

#[derive(Debug)]
pub(crate) struct CommandOutput {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl CommandOutput {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("not JSON: {} {}", self.out, self.err))
    }
}

/// Runs a client command against a daemon.
fn balto_with(url: &str, key: &str, arguments: &[&str], input: &str) -> CommandOutput {
    let mut child = Command::new(BALTO)
        .args(arguments)
        .env("BALTO_URL", url)
        .env("BALTO_API_KEY", key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    CommandOutput { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

pub(crate) fn balto(daemon: &Daemon, arguments: &[&str]) -> CommandOutput {
    balto_with(daemon.api.strip_suffix("/v1").unwrap(), "", arguments, "")
}

/// The JSON output of a command that succeeds.
pub(crate) fn answer_of(daemon: &Daemon, arguments: &[&str]) -> Value {
    let message = balto(daemon, &[arguments, &["--json"]].concat());
    assert_eq!(message.code, 0, "{arguments:?}: {}", message.err);
    message.json()
}

/// A child process that is killed on drop.
struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_contract_works() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::start(|number, _| answer(if number < 2 { 500 } else { 200 })).await;
    let add =
        ["endpoints", "add", &receiver.url, "--event-types", "order.*,pet.#", "--retry-schedule", "10ms"];
    let made = answer_of(&daemon, &add);
    let id = text(&made, "id");
    assert_eq!(answer_of(&daemon, &["endpoints", "show", &id])["eventTypes"], json!(["order.*", "pet.#"]));
    assert_eq!(list(&answer_of(&daemon, &["endpoints", "list"])).len(), 1);
    assert_eq!(answer_of(&daemon, &["endpoints", "update", &id, "--description", "d"])["description"], "d");
    assert_eq!(answer_of(&daemon, &["endpoints", "pause", &id])["status"], "paused");
    assert_eq!(answer_of(&daemon, &["endpoints", "resume", &id])["status"], "active");
    assert_ne!(answer_of(&daemon, &["endpoints", "rotate-secret", &id])["secret"], made["secret"]);

    let event = answer_of(&daemon, &["send", "--type", "order.paid", "--data", r#"{"n": 1}"#]);
    daemon.until("/dead-letters", |letters| list(letters).len() == 1).await;
    let shown = answer_of(&daemon, &["events", "show", &text(&event, "id")]);
    assert_eq!((&shown["status"], &shown["data"]), (&json!("failed"), &json!({"n": 1})));
    let delivery = text(&shown["deliveries"][0], "id");
    let letters =
        answer_of(&daemon, &["dead-letters", "list", "--reason", "attemptsExhausted", "--since", "1h"]);
    assert_eq!(letters["data"][0]["deliveryId"], delivery.as_str());
    assert_eq!(answer_of(&daemon, &["dead-letters", "show", &delivery])["event"]["id"], event["id"]);
    assert_eq!(answer_of(&daemon, &["dead-letters", "redrive", &delivery])["status"], "pending");
    receiver.until(3).await;
    daemon.until("/deliveries?status=delivered", |found| list(found).len() == 1).await;
    assert_eq!(answer_of(&daemon, &["events", "replay", &text(&event, "id")]), json!({"count": 1}));
    receiver.until(4).await;
    daemon.until("/deliveries?status=delivered", |found| list(found).len() == 1).await;
    assert_eq!(answer_of(&daemon, &["deliveries", "retry", &delivery])["status"], "pending");
    receiver.until(5).await;
    daemon.until("/deliveries?status=delivered", |found| list(found).len() == 1).await;
    assert_eq!(
        answer_of(&daemon, &["deliveries", "show", &delivery])["attempts"].as_array().unwrap().len(),
        5
    );
    assert_eq!(answer_of(&daemon, &["endpoints", "test", &id])["type"], "balto.test");

    let later = answer_of(&daemon, &["send", "--type", "pet.a.b", "--deliver-at", "72h"]);
    let waiting = answer_of(&daemon, &["deliveries", "list", "--event", &text(&later, "id")]);
    let waiting = text(&waiting["data"][0], "id");
    assert_eq!(answer_of(&daemon, &["deliveries", "cancel", &waiting])["status"], "cancelled");
    assert_eq!(answer_of(&daemon, &["dead-letters", "redrive", "--all"])["count"], 0);
    assert_eq!(answer_of(&daemon, &["dead-letters", "purge", "--type", "order.paid"])["count"], 0);
    assert_eq!(answer_of(&daemon, &["endpoints", "rm", &id]), json!({}));
    assert_eq!(balto(&daemon, &["endpoints", "rm", &id]).code, 1);
    assert!(list(&answer_of(&daemon, &["events", "list", "--all"])).len() >= 3);
}

#[tokio::test]
async fn event_from_argument_file_or_stdin_keeps_its_bytes() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&data.path().join("d")).await;
    let url = daemon.api.strip_suffix("/v1").unwrap();
    let file = data.path().join("event.json");
    std::fs::write(&file, "{\"z\": 1.00}\n").unwrap();
    let file = format!("@{}", file.display());
    for (from, input, expected) in
        [("[ 1e2]", "", "[ 1e2]"), (file.as_str(), "", "{\"z\": 1.00}"), ("-", "\"in\"", "\"in\"")]
    {
        let message = balto_with(url, "", &["send", "--type", "a", "--data", from, "--json"], input);
        let shown = balto(&daemon, &["events", "show", &text(&message.json(), "id"), "--json"]);
        assert!(shown.out.contains(&format!("\"data\":{expected},")), "{from}: {}", shown.out);
    }
    let options = [
        "send",
        "--type",
        "a",
        "--tenant",
        "acme",
        "--stream",
        "s",
        "--idempotency-key",
        "k",
        "--id",
        "mine",
    ];
    let first = answer_of(&daemon, &options);
    assert_eq!(
        (&first["tenant"], &first["streamVersion"], &first["id"]),
        (&json!("acme"), &json!(1), &json!("mine"))
    );
    assert_eq!(answer_of(&daemon, &options)["duplicate"], true);
    assert_eq!(balto(&daemon, &["events", "show", "mine"]).code, 1, "it is not the default tenant's");
    assert_eq!(answer_of(&daemon, &["events", "show", "mine", "--tenant", "acme"])["stream"], "s");
    assert_eq!(answer_of(&daemon, &["events", "replay", "mine", "--tenant", "acme"]), json!({"count": 0}));
}

#[tokio::test]
async fn failure_exits_with_1_and_wrong_usage_with_2() {
    let data = tempfile::tempdir().unwrap();
    let daemon = keyed(data.path()).await;
    let url = daemon.api.strip_suffix("/v1").unwrap();
    let list = ["events", "list"];
    let rows: [(&str, &str, &[&str], i32, &str); 15] = [
        (url, ADMIN, &list, 0, "Nothing found."),
        (url, "", &list, 1, "BALTO_API_KEY"),
        (url, "wrong", &list, 1, "401 unauthorized"),
        ("http://127.0.0.1:1", "", &list, 1, "Start a daemon with"),
        ("nonsense", "", &list, 2, "not a URL"),
        (url, ADMIN, &["events", "list", "--status", "x"], 1, "status: must be one of pending"),
        (url, ADMIN, &["events", "show", "evt_nope"], 1, "404 not_found"),
        (url, ADMIN, &["events", "show", "chosen"], 1, "name the tenant with `--tenant`"),
        (url, ADMIN, &["send", "--type", "a b"], 1, "/type: event type must be"),
        (url, ADMIN, &["send", "--type", "a", "--data", "{"], 2, "--data is not JSON"),
        (url, ADMIN, &["send"], 2, "--type"),
        (url, ADMIN, &["events", "list", "--limit", "0"], 2, "1..=250"),
        (url, ADMIN, &["dead-letters", "purge"], 2, "give an id, a filter or --all"),
        (url, ADMIN, &["endpoints", "add", "nope"], 1, "not an absolute URL"),
        (url, ADMIN, &["nope"], 2, "unrecognized subcommand"),
    ];
    for (url, key, arguments, code, words) in rows {
        let message = balto_with(url, key, arguments, "");
        assert_eq!(message.code, code, "{arguments:?}: {}", message.err);
        assert!(message.err.contains(words), "{arguments:?}: {}", message.err);
        assert_eq!(message.out, "", "{arguments:?}: what went wrong is no output");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_show_the_columns_that_people_need() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(500).await;
    endpoint(&daemon, &receiver, json!({})).await;
    let event = answer_of(&daemon, &["send", "--type", "order.paid"]);
    daemon.until("/dead-letters", |letters| list(letters).len() == 1).await;
    let events = balto(&daemon, &["events", "list"]).out;
    let mut lines = events.lines();
    let titles: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(titles, ["ID", "TYPE", "TENANT", "STATUS", "STREAM", "VERSION", "TIMESTAMP"]);
    let row: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(row[..4], [text(&event, "id").as_str(), "order.paid", "default", "failed"]);
    let shown = balto(&daemon, &["events", "show", &text(&event, "id")]).out;
    assert!(shown.contains("status:     failed") && shown.contains("attemptsExhausted"), "{shown}");
    let delivery = text(&daemon.get("/deliveries").await["data"][0], "id");
    let shown = balto(&daemon, &["deliveries", "show", &delivery]).out;
    assert!(shown.contains("NUMBER  TRIGGER  STARTED") && shown.contains("status 500"), "{shown}");
}

#[test]
fn help_lists_every_command_of_the_contract() {
    let help = |arguments: &[&str]| {
        let output = Command::new(BALTO).args(arguments).arg("--help").output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let has_all = |help: &str, words: &str| {
        for word in words.split(' ') {
            assert!(help.contains(word), "{word} is not in {help}");
        }
    };
    has_all(
        &help(&[]),
        "serve demo listen send endpoints events deliveries dead-letters check-config verify backup restore openapi --json BALTO_URL BALTO_API_KEY",
    );
    has_all(&help(&["serve"]), "--config --data-dir --dev");
    has_all(&help(&["listen"]), "--port --secret --fail-first --status --latency");
    has_all(&help(&["send"]), "--type --data --tenant --stream --idempotency-key");
    has_all(&help(&["endpoints"]), "add list show update pause resume rotate-secret test rm");
    has_all(&help(&["events"]), "list show replay");
    has_all(&help(&["deliveries"]), "list show retry cancel");
    has_all(&help(&["dead-letters"]), "list show redrive purge");
    has_all(&help(&["backup"]), "--to");
    has_all(&help(&["restore"]), "--from --data-dir");
}

/// Starts `balto serve` in this directory and reads its output until the daemon is ready.
fn serve(directory: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> (ChildGuard, String) {
    let mut child = Command::new(BALTO)
        .arg("serve")
        .args(arguments)
        .current_dir(directory)
        .env("BALTO__SERVER__API_LISTEN", "127.0.0.1:0")
        .env("BALTO__SERVER__OPS_LISTEN", "127.0.0.1:0")
        .envs(environment.iter().copied())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut message = String::new();
    for line in lines.by_ref() {
        let line = line.unwrap();
        let last = line.contains("\"ready\"")
            || line.contains("INSECURE") && !environment.is_empty()
            || line.contains("admin.key") && !environment.is_empty();
        message += &line;
        message.push('\n');
        if last {
            break;
        }
    }
    // An unread pipe would block the daemon.
    std::thread::spawn(move || lines.for_each(drop));
    (ChildGuard(child), message)
}

#[test]
fn first_start_writes_a_key_and_dev_warns_that_it_is_insecure() {
    let directory = tempfile::tempdir().unwrap();
    let quiet = [("BALTO__LOG__LEVEL", "error")];
    let (running, message) = serve(directory.path(), &["--data-dir", "mine"], &quiet);
    let file = directory.path().join("mine/admin.key");
    assert!(message.contains("mine/admin.key"), "{message}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let key = std::fs::read_to_string(&file).unwrap();
    drop(running);
    let (running, message) = serve(directory.path(), &["--data-dir", "mine"], &[]);
    assert!(!message.contains("admin.key"), "the key file was rewritten: {message}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), key);
    // Port 0 selects a free port; the log names it.
    let ready: Value = serde_json::from_str(message.lines().last().unwrap()).unwrap();
    for listener in ["api", "ops"] {
        let address: std::net::SocketAddr = ready[listener].as_str().unwrap().parse().unwrap();
        assert_ne!(address.port(), 0, "{message}");
    }
    drop(running);
    let (_running, message) = serve(directory.path(), &["--dev"], &quiet);
    assert!(message.contains("INSECURE"), "{message}");
    let deadline = Instant::now() + WAIT_MAX;
    while !directory.path().join("balto-data/journal").is_dir() {
        assert!(Instant::now() < deadline, "--dev uses a temporary data directory");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn bad_configuration_error_names_file_line_key_and_reason() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("balto.toml");
    let run = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = Command::new(BALTO);
        let output = command
            .args(arguments)
            .envs(environment.iter().copied())
            .current_dir(&directory)
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let rows = [
        ("[server]\n\nnope = 1\n", "balto.toml:3", "server.nope"),
        ("[retry]\njitter = 7.0\n", "balto.toml:2", "retry.jitter"),
        ("[delivery]\ntimeout = 15\n", "balto.toml:2", "delivery.timeout"),
        ("[store]\nkind = \"postgres\"\n", "balto.toml:2", "store.kind"),
        ("[nope]\n", "balto.toml:1", "nope"),
        ("server = [\n", "balto.toml:", ""),
    ];
    for (text, place, key) in rows {
        std::fs::write(&file, text).unwrap();
        let (code, words) = run(&["check-config", "balto.toml"], &[]);
        assert_eq!(code, 2, "{text}: {words}");
        assert!(words.contains(place) && words.contains(key), "{text}: {words}");
        let (code, started) = run(&["serve", "--config", "balto.toml", "--data-dir", "d"], &[]);
        assert!(code != 0 && started.contains(place), "{text}: {started}");
        assert!(!directory.path().join("d").exists(), "{text}: it made a data directory");
    }
    std::fs::write(directory.path().join("empty.pem"), "").unwrap();
    let several = "[retry]\njitter = 7.0\n[auth]\nadmin_key_file = \"none\"\n[nope]\n[egress]\nca_file = \"empty.pem\"\n";
    std::fs::write(&file, several).unwrap();
    let (code, words) = run(&["check-config", "balto.toml"], &[]);
    let lines: Vec<_> = words.lines().collect();
    assert_eq!((code, lines.len()), (2, 4), "{words}");
    for (line, place) in lines.iter().zip([
        "balto.toml:2: retry.jitter",
        "balto.toml:5: nope",
        "balto.toml:4: auth.admin_key_file",
        "balto.toml:7: egress.ca_file: empty.pem: contains no certificate",
    ]) {
        assert!(line.contains(place), "{words}");
    }
    std::fs::write(&file, "[log]\nlevel = \"info\"\n").unwrap();
    assert_eq!(run(&["check-config", "balto.toml"], &[]).0, 0);
    let variable = [("BALTO__RETRY__JITTER", "7")];
    let (code, words) = run(&["serve", "--config", "balto.toml", "--data-dir", "d"], &variable);
    assert!(code != 0 && words.contains("BALTO__RETRY__JITTER"), "{words}");
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/config/balto.toml");
    assert_eq!(run(&["check-config", shipped], &[]).0, 0, "the file that we ship");
}

#[tokio::test]
async fn file_check_findings_as_json_have_the_same_exit_codes() {
    let below = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(BALTO).args(arguments).arg("--json").current_dir(&below).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        CommandOutput {
            code: output.status.code().unwrap(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    };
    std::fs::write(below.path().join("good.toml"), "[log]\nlevel = \"info\"\n").unwrap();
    std::fs::write(below.path().join("bad.toml"), "[retry]\njitter = 7.0\n[nope]\n").unwrap();
    let good = run(&["check-config", "good.toml"]);
    assert_eq!((good.code, good.json()), (0, json!({"ok": true, "errors": []})));
    let bad = run(&["check-config", "bad.toml"]);
    let reason = |at: usize| bad.json()["errors"][at]["reason"].clone();
    let errors = json!([
        {"file": "bad.toml", "line": 2, "key": "retry.jitter", "reason": reason(0)},
        {"file": "bad.toml", "line": 3, "key": "nope", "reason": "is not a known section"},
    ]);
    assert_eq!((bad.code, bad.json()), (2, json!({"ok": false, "errors": errors})));
    assert!(text(&bad.json()["errors"][0], "reason").contains("between 0.0 and 1.0"), "{}", bad.out);
    assert_eq!(bad.err, "", "the finding is printed twice");
    let missing = run(&["check-config", "none.toml"]).json()["errors"][0].clone();
    assert_eq!((&missing["line"], &missing["key"]), (&Value::Null, &Value::Null), "{missing}");

    let mut daemon = Daemon::start(&below.path().join("data")).await;
    let event = daemon.post("/events", r#"{"type":"a.b","data":"something-long-enough-to-find"}"#).await;
    // Damage at the very end of the file would look like an unfinished commit.
    daemon.post("/events", r#"{"type":"a.b","data":1}"#).await;
    assert_eq!(daemon.terminate(), Some(0));
    let verify = ["verify", "--data-dir", "data"];
    let sound = run(&verify);
    let found = sound.json();
    assert_eq!((sound.code, &found["ok"], &found["problems"]), (0, &json!(true), &json!([])), "{found}");
    assert!(found["journal"]["records"].as_u64() >= Some(1), "{found}");
    assert_eq!(
        (&found["state"]["found"], &found["state"]["position"]),
        (&json!("compared"), &found["journal"]["position"])
    );
    assert_eq!(found["secrets"], json!({"plain": 0, "encrypted": [], "opened": false}));
    let file = below.path().join(format!("data/journal/journal-{:020}.log", 1));
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(9).position(|window| window == b"something").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let damaged = run(&verify);
    let found = damaged.json();
    assert_eq!((damaged.code, &found["ok"]), (1, &json!(false)), "{found}");
    let problem = &found["problems"][0];
    let position = event["position"].as_u64();
    assert!(problem["firstPosition"].as_u64() <= position, "{found}");
    assert!(problem["lastPosition"].as_u64() >= position, "{found}");
    assert!(text(problem, "reason").contains("does not match its checksum"), "{found}");
    assert_eq!(
        found["problemCount"].as_u64(),
        Some(found["problems"].as_array().unwrap().len() as u64),
        "{found}"
    );

    for silent in [&["demo"][..], &["serve", "--dev"]] {
        let refused = run(silent);
        assert_eq!((refused.code, refused.out.as_str()), (2, ""), "{silent:?}");
        assert!(refused.err.contains("--json"), "{silent:?}: {}", refused.err);
    }
    assert!(!below.path().join("balto-data").exists(), "it was started all the same");
}

/// A `balto listen` on a free port, and its URL.
fn listen(arguments: &[&str]) -> (ChildGuard, BufReader<std::process::ChildStdout>, String) {
    let mut child = Command::new(BALTO)
        .args(["listen", "--port", "0"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut first).unwrap();
    let url = first.split_whitespace().find(|word| word.starts_with("http")).unwrap().to_owned();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (ChildGuard(child), lines, url)
}

/// Termination by SIGINT or SIGTERM is not a failure.
#[tokio::test]
async fn listen_exits_with_zero_on_sigint_and_sigterm() {
    for signal in ["-TERM", "-INT"] {
        let (mut running, _lines, _url) = listen(&[]);
        let sent = Command::new("kill").arg(signal).arg(running.0.id().to_string()).status().unwrap();
        assert!(sent.success());
        assert_eq!(running.0.wait().unwrap().code(), Some(0), "{signal}");
    }
}

#[test]
fn occupied_port_is_reported_once_with_a_remedy() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let data = tempfile::tempdir().unwrap();
    let message = |arguments: &[&str], key: &str| {
        let mut command = Command::new(BALTO);
        command.args(arguments).env("BALTO__SERVER__API_LISTEN", "127.0.0.1:0");
        command.env("BALTO__SERVER__OPS_LISTEN", "127.0.0.1:0").env("BALTO__LOG__LEVEL", "error");
        command.env("BALTO__".to_owned() + key, address.to_string());
        let output = command.current_dir(&data).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap().lines().last().unwrap().to_owned()
    };
    let in_use =
        format!("balto: {address} is in use by another process: stop that process, or choose another");
    assert_eq!(
        message(&["listen", "--port", &address.port().to_string()], "NONE"),
        format!("{in_use} port with --port (0 selects a free one)")
    );
    for (key, name) in
        [("SERVER__API_LISTEN", "server.api_listen"), ("SERVER__OPS_LISTEN", "server.ops_listen")]
    {
        assert_eq!(message(&["serve", "--dev"], key), format!("{in_use} address with {name}"));
    }
}

#[tokio::test]
async fn listen_verifies_prints_and_fails_on_request() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let secret = "whsec_wxRESeK8Anx6dxdg2gY7mrQuXLZPoCuy";
    let (_running, mut lines, url) =
        listen(&["--secret", secret, "--fail-first", "1", "--status", "204", "--json"]);
    let hook = json!({"url": url, "secret": secret, "retry": {"schedule": ["10ms"]}}).to_string();
    daemon.post("/endpoints", &hook).await;
    daemon.post("/events", r#"{"type":"a.b","data":1}"#).await;
    for status in [500, 204] {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let got: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&got["signature"], &got["status"], &got["type"]),
            (&json!("ok"), &json!(status), &json!("a.b"))
        );
    }
    let wrong = Command::new(BALTO).args(["listen", "--secret", "nope"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

/// The demo checks its own statements and fails when one is false.
#[test]
fn demo_passes_its_own_checks_and_leaves_no_files() {
    let temporary = tempfile::tempdir().unwrap();
    let output = Command::new(BALTO).arg("demo").env("TMPDIR", temporary.path()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
    for expected in [
        "A daemon starts",
        "answered 500",
        "signature ok",
        "attemptsExhausted",
        "redriven",
        "status: delivered",
        "exit code 0",
    ] {
        assert!(out.contains(expected), "the output lacks `{expected}`:\n{out}");
    }
    for counted in ["balto_events_accepted_total 3", r#"balto_deliveries_total{outcome="delivered"} 4"#] {
        assert!(out.contains(counted), "the output lacks `{counted}`:\n{out}");
    }
    assert!(!out.contains('\u{1b}'), "colours without a terminal: {out}");
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0, "files remain");
}

#[test]
fn demo_leaves_no_files_when_it_is_terminated() {
    for signal in ["-TERM", "-INT"] {
        let temporary = tempfile::tempdir().unwrap();
        let mut command = Command::new(BALTO);
        command.arg("demo").env("TMPDIR", temporary.path()).stdout(Stdio::piped());
        let mut running = ChildGuard(command.spawn().unwrap());
        let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("A daemon starts")));
        let sent = Command::new("kill").arg(signal).arg(running.0.id().to_string()).status().unwrap();
        assert!(sent.success());
        std::thread::spawn(move || lines.for_each(drop));
        assert_eq!(running.0.wait().unwrap().code(), Some(1), "{signal}");
        assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0, "{signal}: files remain");
    }
}

/// The commands are read from the README, so that they stay correct.
#[tokio::test(flavor = "multi_thread")]
async fn five_readme_commands_show_a_delivery() {
    if !has_program("curl") {
        say("SKIPPED: the machine has no curl");
        return;
    }
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let joined = readme.replace("\\\n", " ");
    let commands: Vec<_> = joined.lines().filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(commands.len(), 5, "{commands:?}");
    assert!(readme.contains("serve --dev") && readme.contains("listen --port 9000"));
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let (_running, _lines, url) = listen(&[]);
    let authority = |url: &str| url.split('/').nth(2).unwrap().to_owned();
    let mut answers = Vec::new();
    for command in commands {
        let command = command
            .replace("localhost:8400", &authority(&daemon.api))
            .replace("localhost:8401", &authority(&daemon.ops))
            .replace("127.0.0.1:9000", &authority(&url));
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        answers.push(String::from_utf8(output.stdout).unwrap());
        if answers.len() == 2 {
            daemon.until("/deliveries?status=delivered", |found| list(found).len() == 1).await;
        }
    }
    let parsed: Vec<Value> =
        answers[..4].iter().map(|answer| serde_json::from_str(answer).unwrap()).collect();
    assert!(
        text(&parsed[0], "id").starts_with("ep_") && parsed[0]["eventTypes"] == json!(["order.*"]),
        "{}",
        parsed[0]
    );
    assert_eq!(
        (&parsed[1]["type"], &parsed[1]["deliveries"]),
        (&json!("order.paid"), &json!(1)),
        "{}",
        parsed[1]
    );
    assert_eq!(parsed[2]["data"][0]["id"], parsed[1]["id"]);
    assert_eq!(parsed[3]["data"][0]["status"], "delivered", "{}", parsed[3]);
    assert!(answers[4].contains("\nbalto_events_accepted_total 1\n"), "{}", answers[4]);
}

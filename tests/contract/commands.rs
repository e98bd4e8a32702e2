//! The command line covers the API: every operation has a command, or a reason why it has none.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use balto::api::routes::{ROUTES, Route};
use serde_json::json;

use super::command_line::{answer_of, balto};
use super::support::{Daemon, Receiver, has_program, say};
use super::{list, text};

const BALTO: &str = env!("CARGO_BIN_EXE_balto");

/// An operation, and a command whose requests include it.
const COMMANDS: &[(&str, &str)] = &[
    ("publishEvent", "send --type a"),
    ("listEvents", "events list"),
    ("publishEvents", "events publish -"),
    ("getEvent", "events show evt_1"),
    ("replayEvent", "events replay evt_1"),
    ("eraseEvent", "events erase evt_1 --reason r"),
    ("listStreams", "streams list"),
    ("getStream", "streams version s"),
    ("appendToStream", "streams append s --type a"),
    ("readStream", "streams show s"),
    ("getStreamState", "streams state s"),
    ("eraseStream", "streams erase s --reason r"),
    ("createEndpoint", "endpoints add https://example.com/"),
    ("listEndpoints", "endpoints list"),
    ("getEndpoint", "endpoints show ep_1"),
    ("updateEndpoint", "endpoints update ep_1 --uid crm"),
    ("deleteEndpoint", "endpoints rm ep_1"),
    ("pauseEndpoint", "endpoints pause ep_1"),
    ("resumeEndpoint", "endpoints resume ep_1"),
    ("requestHandshake", "endpoints handshake ep_1"),
    ("testEndpoint", "endpoints test crm.main"),
    ("testEndpointFilter", "endpoints test-filter ep_1"),
    ("testQueueFilter", "queues test-filter q"),
    ("previewEndpoint", "endpoints preview ep_1 --event evt_1"),
    ("getEndpointSecret", "endpoints secret ep_1"),
    ("getEndpointPublicKeys", "endpoints public-keys ep_1"),
    ("rotateEndpointSecret", "endpoints rotate-secret ep_1"),
    ("getEndpointStats", "endpoints stats ep_1"),
    ("getEndpointLane", "endpoints lane ep_1"),
    ("replayEndpoint", "endpoints replay ep_1 --since 1h"),
    ("createQueue", "queues create q"),
    ("listQueues", "queues list"),
    ("getQueue", "queues show other"),
    ("updateQueue", "queues update q --max-leased 5"),
    ("deleteQueue", "queues rm q"),
    ("pauseQueue", "queues pause q"),
    ("resumeQueue", "queues resume q"),
    ("purgeQueue", "queues purge q --confirm q"),
    ("replayQueue", "queues replay q --since 1h"),
    ("receiveMessages", "work q -- true"),
    ("listLeases", "queues leases q"),
    ("getQueueStats", "queues stats q"),
    ("getQueueLane", "queues lane q"),
    ("listDeliveries", "deliveries list"),
    ("getDelivery", "deliveries show dlv_1"),
    ("getDeliveryCurl", "deliveries curl dlv_1"),
    ("retryDelivery", "deliveries retry dlv_1"),
    ("cancelDelivery", "deliveries cancel dlv_1"),
    ("listDeadLetters", "dead-letters list"),
    ("redriveDeadLetters", "dead-letters redrive --all"),
    ("purgeDeadLetters", "dead-letters purge --all"),
    ("getDeadLetter", "dead-letters show dlv_1"),
    ("purgeDeadLetter", "dead-letters purge dlv_1"),
    ("redriveDeadLetter", "dead-letters redrive dlv_1"),
    ("listConsumers", "consumers list"),
    ("putConsumer", "consumers create c"),
    ("getConsumer", "consumers show other"),
    ("deleteConsumer", "consumers rm c"),
    ("readConsumer", "feed --consumer c"),
    ("commitConsumer", "consumers commit c --position 5"),
    ("resetConsumer", "consumers reset c --to oldest"),
    ("getBackup", "backup --to -"),
    ("createKey", "keys create --role viewer"),
    ("listKeys", "keys list"),
    ("getKey", "keys show key_1"),
    ("updateKey", "keys update key_1 --description d"),
    ("deleteKey", "keys rm key_1"),
    ("listJobs", "jobs list"),
    ("getJob", "jobs show job_1"),
    ("cancelJob", "jobs cancel job_1"),
    ("listAudit", "audit"),
    ("createSource", "sources create s --url amqps://a/ --queue q"),
    ("listSources", "sources list"),
    ("getSource", "sources show s"),
    ("updateSource", "sources update s --queue q"),
    ("deleteSource", "sources rm s"),
    ("pauseSource", "sources pause s"),
    ("resumeSource", "sources resume s"),
    ("listTenants", "tenants list"),
    ("getTenant", "tenants show acme"),
    ("putTenant", "tenants set acme --name A"),
    ("updateTenant", "tenants set acme --name A"),
    ("deleteTenant", "tenants rm acme --confirm acme"),
    ("listEventTypes", "types list"),
    ("getEventType", "types show a"),
    ("putEventType", "types put a -"),
    ("deleteEventType", "types rm a"),
    ("getStats", "stats"),
    ("listLanes", "lanes"),
    ("readFeed", "feed"),
    ("listProjections", "projections"),
    ("rebuildState", "projections rebuild state --no-wait"),
    ("getAsyncapi", "asyncapi"),
];

/// Operations without a command, with the reason.
const WITHOUT: &[(&str, &str)] = &[
    ("openHandshake", "the receiver opens it, from a link that Balto sent"),
    ("grantHandshake", "the receiver calls it, with a token that Balto sent"),
    ("acknowledgeMessages", "`balto work` ends leases; a lease that outlives its command has no use"),
    ("rejectMessages", "as acknowledgeMessages"),
    ("releaseMessages", "as acknowledgeMessages"),
    ("extendLeases", "as acknowledgeMessages"),
    ("getOpenapi", "`balto openapi` prints the same document without a daemon"),
];

/// Two commands look at their resource before they make the request of the operation.
const FOUND: [&str; 2] = ["GET /v1/queues/q", "GET /v1/consumers/c"];

/// A server that answers 404 to everything but [`FOUND`], and records `METHOD /path` of each
/// request.
struct Recorder {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                Self::answer(stream.unwrap(), &recorded);
            }
        });
        Self { url, requests }
    }

    fn answer(mut stream: TcpStream, recorded: &Mutex<Vec<String>>) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut head, mut length) = (Vec::new(), 0);
        for line in reader.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()) {
            length = line.strip_prefix("content-length: ").map_or(length, |value| value.parse().unwrap());
            head.push(line);
        }
        reader.read_exact(&mut vec![0; length]).unwrap();
        let mut words = head[0].split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let request = format!("{method} {}", target.split('?').next().unwrap());
        let is_found = FOUND.contains(&request.as_str());
        recorded.lock().unwrap().push(request);
        let (status, body) = if is_found {
            ("200 OK", r#"{"position":"5","visibility":"30s"}"#)
        } else {
            ("404 Not Found", "{}")
        };
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).unwrap();
    }

    /// The requests of a command.
    fn requests_of(&self, command: &str) -> Vec<String> {
        self.requests.lock().unwrap().clear();
        let mut child = Command::new(BALTO)
            .args(command.split(' '))
            .env("BALTO_URL", &self.url)
            .env("BALTO_API_KEY", "")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"{}").ok();
        let output = child.wait_with_output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!words.contains("Usage:"), "`balto {command}` is wrong usage: {words}");
        assert_eq!(output.status.code(), Some(1), "`balto {command}` ignores a 404: {words}");
        self.requests.lock().unwrap().clone()
    }
}

fn is_of(route: &Route, request: &str) -> bool {
    let (method, path) = request.split_once(' ').unwrap();
    let (template, path): (Vec<_>, Vec<_>) = (route.path.split('/').collect(), path.split('/').collect());
    method == route.verb.as_str().to_uppercase()
        && template.len() == path.len()
        && template.iter().zip(path).all(|(part, found)| part.starts_with('{') || *part == found)
}

#[test]
fn every_operation_has_a_command_that_requests_it() {
    let recorder = Recorder::start();
    for route in ROUTES {
        let operation = route.operation;
        let command = COMMANDS.iter().find(|(known, _)| *known == operation);
        let reason = WITHOUT.iter().find(|(known, _)| *known == operation);
        match (command, reason) {
            (Some((_, command)), None) => {
                let requests = recorder.requests_of(command);
                let found = requests.iter().any(|request| is_of(route, request));
                assert!(found, "`balto {command}` requests {requests:?}, not {operation}");
            }
            (None, Some(_)) => {}
            (None, None) => panic!("{operation} has no command: add one to COMMANDS, or a reason to WITHOUT"),
            (Some(_), Some(_)) => panic!("{operation} has a command and a reason for none"),
        }
    }
    for (operation, _) in COMMANDS.iter().chain(WITHOUT) {
        assert!(ROUTES.iter().any(|route| route.operation == *operation), "{operation} is no operation");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_created_listed_and_revoked() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let create = ["keys", "create", "--role", "viewer", "--tenant", "acme", "--expires", "1h"];
    let made = answer_of(&daemon, &create);
    assert!(made["secret"].is_string() && made["expiresAt"].is_string(), "{made}");
    let id = text(&made, "id");
    let shown = answer_of(&daemon, &["keys", "show", &id]);
    assert_eq!((&shown["tenant"], &shown["secret"]), (&json!("acme"), &json!(null)));
    assert!(balto(&daemon, &["keys", "list"]).out.contains(&id));
    assert_eq!(balto(&daemon, &["keys", "rm", &id]).out, format!("{id} is deleted.\n"));
    assert_eq!(balto(&daemon, &["keys", "show", &id]).code, 1);
    assert_eq!(balto(&daemon, &["keys", "create", "--role", "owner"]).code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_accept_a_uid_and_every_member() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let made = answer_of(
        &daemon,
        &[
            "endpoints",
            "add",
            &receiver.url,
            "--uid",
            "crm.main",
            "--status",
            "paused",
            "--metadata",
            r#"{"team": "crm"}"#,
            "--members",
            r#"{"timeout": "7s"}"#,
        ],
    );
    assert_eq!((&made["status"], &made["timeout"]), (&json!("paused"), &json!("7s")), "{made}");
    assert_eq!(answer_of(&daemon, &["endpoints", "show", "crm.main"])["metadata"]["team"], "crm");
    let preview = ["endpoints", "preview", "crm.main", "--type", "order.paid", "--data", r#"{"n": 1.0}"#];
    let preview = answer_of(&daemon, &preview);
    assert!(text(&preview, "body").contains(r#""data":{"n": 1.0}"#), "{preview}");
    let file = data.path().join("events.ndjson");
    std::fs::write(&file, "{\"type\": \"a\", \"data\": 1}\n{\"type\": \"b c\", \"data\": 1}\n").unwrap();
    let published = balto(&daemon, &["events", "publish", file.to_str().unwrap()]);
    assert_eq!(published.code, 1, "{}", published.err);
    assert!(published.err.contains("event 2: ") && published.err.contains("/type: "), "{}", published.err);
    assert_eq!(published.out, "1 event is accepted, 1 is rejected\n");
    let replay = ["endpoints", "replay", "crm.main", "--since", "1h", "--type", "a"];
    // Its delivery waits at the paused endpoint.
    assert_eq!(answer_of(&daemon, &replay)["count"], 0);
    assert_eq!(list(&answer_of(&daemon, &["deliveries", "list"])).len(), 1);
}

/// Completions of a shell that has loaded the script; `None` without the shell.
fn completed(shell: &str, code: &str) -> Option<String> {
    if !has_program(shell) {
        say(&format!("SKIPPED: {shell}, which the machine does not have"));
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let script = Command::new(BALTO).args(["completions", shell]).output().unwrap();
    std::fs::write(directory.path().join("_balto"), script.stdout).unwrap();
    let plain = if shell == "fish" { "--no-config" } else { "-f" };
    let mut command = Command::new(shell);
    command.args([plain, "-c", code]).current_dir(directory.path()).env("HOME", directory.path());
    let ended = command.output().unwrap();
    let errors = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success() && errors.is_empty(), "{shell}: {errors}");
    Some(String::from_utf8(ended.stdout).unwrap())
}

/// The Debian package tries bash.
#[test]
fn completions_load_in_zsh_and_fish() {
    // The completion system finds the function, and its lists are shown without a terminal.
    let zsh = "fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D; print ${_comps[balto]}
        _describe() { print -rl -- \"${(@P)4}\" }; source ./_balto
        _balto_commands; _balto__subcmd__dead-letters_commands";
    if let Some(found) = completed("zsh", zsh) {
        for line in
            ["_balto", "dead-letters:List, show, redrive and purge dead letters", "purge:Delete permanently"]
        {
            assert!(found.lines().any(|found| found == line), "{line}: {found}");
        }
    }
    let fish =
        "source ./_balto; complete -C 'balto dead-l'; complete -C 'balto dead-letters redrive --status'";
    if let Some(found) = completed("fish", fish) {
        let words: Vec<_> = found.lines().filter_map(|line| line.split('\t').next()).collect();
        assert_eq!(words, ["dead-letters", "--status-code"], "{found}");
    }
}

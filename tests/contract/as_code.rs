//! Endpoints as code: `balto apply` and `balto export`, and `balto import` from another product.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::command_line::{answer_of, balto};
use super::support::{Daemon, Receiver};
use super::{list, text};

const SECRET: &str = "whsec_wxRESeK8Anx6dxdg2gY7mrQuXLZPoCuy";
const OTHER_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwabcd";

fn write(directory: &tempfile::TempDir, text: &str) -> String {
    let file = directory.path().join("endpoints.toml");
    std::fs::write(&file, text).unwrap();
    file.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn applied_file_is_what_the_daemon_has() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&data.path().join("d")).await;
    let file = write(
        &data,
        &format!(
            r#"
            tenant = "acme"
            [[eventTypes]]
            name = "order.paid"
            versions = {{ "1.0" = {{ schema = {{ type = "object" }} }} }}
            [[queues]]
            name = "mail"
            visibility = "60s"
            [[endpoints]]
            uid = "crm"
            url = "http://127.0.0.1:19999"
            eventTypes = ["order.*"]
            secret = "{SECRET}"
            headers = {{ X-Env = "prod" }}
            sensitiveHeaders = {{ X-Api-Key = "hunter2" }}
            auth = {{ basic = {{ username = "u", password = "hunter3" }} }}
            retry = {{ maxAttempts = 3 }}
            [[endpoints]]
            uid = "erp"
            url = "http://127.0.0.1:19999/erp"
            status = "paused""#
        ),
    );
    let dry = balto(&daemon, &["apply", "-f", &file, "--dry-run"]);
    assert_eq!(dry.code, 0, "{}", dry.err);
    assert!(dry.out.contains("+ endpoint acme/crm\n"), "{}", dry.out);
    assert!(
        dry.out.ends_with("Dry run: 4 to create, 0 to change, 0 to delete, 0 unchanged.\n"),
        "{}",
        dry.out
    );
    assert!(!dry.out.contains("hunter") && !dry.out.contains(SECRET), "{}", dry.out);
    assert!(list(&daemon.get("/endpoints").await).is_empty(), "a dry run changed something");

    let applied = balto(&daemon, &["apply", "-f", &file]);
    assert!(
        applied.out.ends_with("4 created, 0 changed, 0 deleted, 0 unchanged.\n"),
        "{}{}",
        applied.out,
        applied.err
    );
    assert_eq!(daemon.get("/endpoints/crm/secret").await["secret"], SECRET);
    assert_eq!(daemon.get("/endpoints/erp").await["status"], "paused");
    let again = balto(&daemon, &["apply", "-f", &file, "--prune"]);
    assert_eq!(again.out, "0 created, 0 changed, 0 deleted, 4 unchanged.\n", "{}", again.err);

    let changed = std::fs::read_to_string(&file).unwrap().replace(SECRET, OTHER_SECRET);
    let changed = changed.replace("X-Env", "X-Stage").replace("maxAttempts = 3", "schedule = ['5s']");
    let changed = write(&data, &changed.replace("60s", "30s"));
    let outcome = answer_of(&daemon, &["apply", "-f", &changed]);
    let steps = outcome["steps"].as_array().unwrap();
    assert_eq!((steps.len(), &outcome["unchanged"]), (2, &json!(2)), "{outcome}");
    assert_eq!(steps[1]["changes"]["secret"], json!({"from": "***", "to": "***"}));
    let crm = daemon.get("/endpoints/crm").await;
    assert_eq!((&crm["headers"], &crm["retry"]["schedule"]), (&json!({"X-Stage": "prod"}), &json!(["5s"])));
    assert_eq!(daemon.get("/endpoints/crm/secret").await["secret"], OTHER_SECRET);
    let again = balto(&daemon, &["apply", "-f", &changed]);
    assert_eq!(again.out, "0 created, 0 changed, 0 deleted, 4 unchanged.\n", "{}", again.err);

    // The export has no secret, and applying it changes nothing.
    let export = balto(&daemon, &["export", "--event-types"]);
    assert!(!export.out.contains("whsec_") && !export.out.contains("hunter"), "{}", export.out);
    assert!(export.err.contains("crm: the values of its sensitive headers are left out"), "{}", export.err);
    let exported = write(&data, &export.out);
    let again = balto(&daemon, &["apply", "-f", &exported]);
    assert_eq!(again.out, "0 created, 0 changed, 0 deleted, 4 unchanged.\n", "{}{}", again.err, export.out);

    prune(&daemon, &data).await;
}

async fn prune(daemon: &Daemon, data: &tempfile::TempDir) {
    let receiver = Receiver::status(200).await;
    for body in [json!({"tenant": "acme"}), json!({"tenant": "other", "uid": "crm"})] {
        let mut body = body;
        body["url"] = json!(receiver.url);
        daemon.post("/endpoints", &body.to_string()).await;
    }
    let file = write(data, "tenant = 'acme'\n[[endpoints]]\nuid = 'crm'\n");
    let refused = balto(daemon, &["apply", "-f", &file, "--prune"]);
    assert_eq!(refused.code, 2, "{}", refused.out);
    assert!(refused.err.contains("would delete 1 endpoint: add --yes"), "{}", refused.err);
    let pruned = balto(daemon, &["apply", "-f", &file, "--prune", "--yes"]);
    assert_eq!(
        pruned.out, "- endpoint acme/erp\n0 created, 0 changed, 1 deleted, 1 unchanged.\n",
        "{}",
        pruned.err
    );
    // Neither the one without a uid, nor that of another tenant.
    assert_eq!(list(&daemon.get("/endpoints").await).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_file_changes_nothing_and_a_failed_step_is_named() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&data.path().join("d")).await;
    for (text, expected) in [
        ("[[endpoints]]\nuid = 'a'\nurl = 'http://h/'\neventTyps = ['a']", "did you mean eventTypes?"),
        ("[[endpoint]]\nuid = 'a'", "did you mean endpoints?"),
        ("[[endpoints]]\nuid = 'a'\nsecret = '${NO_SUCH_VARIABLE}'", "NO_SUCH_VARIABLE is not set"),
    ] {
        let message = balto(&daemon, &["apply", "-f", &write(&data, text), "--dry-run"]);
        assert_eq!(message.code, 2, "{text}: {}", message.out);
        assert!(message.err.contains(expected), "{text}: {}", message.err);
    }
    let file = write(
        &data,
        "[[endpoints]]\nuid = 'a'\nurl = 'nonsense'\n[[endpoints]]\nuid = 'b'\nurl = 'http://127.0.0.1:19999/'",
    );
    let message = balto(&daemon, &["apply", "-f", &file]);
    assert_eq!(message.code, 1);
    assert!(message.err.contains("endpoint default/a: ") && message.err.contains("/url"), "{}", message.err);
    assert!(message.out.ends_with("1 created, 0 changed, 0 deleted, 0 unchanged.\n"), "{}", message.out);
    assert_eq!(balto(&daemon, &["apply", "-f", "/no/such/file"]).code, 2);
}

/// A server that answers as Svix documents its API. Lists have one row on each page; every third
/// request is answered with 429.
struct SvixServer {
    url: String,
    state: Arc<SvixState>,
}

#[derive(Default)]
struct SvixState {
    /// Answers are not as documented.
    is_broken: AtomicBool,
    /// Endpoints have no types and no metadata, and applications no metadata.
    is_cleared: AtomicBool,
}

impl SvixServer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(SvixState::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                Self::serve(stream.unwrap(), number % 3 == 2, &shared);
            }
        });
        Self { url, state }
    }

    fn serve(mut stream: TcpStream, is_busy: bool, state: &SvixState) {
        let mut head = Vec::new();
        for line in BufReader::new(stream.try_clone().unwrap()).lines() {
            match line.unwrap() {
                line if line.is_empty() => break,
                line => head.push(line),
            }
        }
        let target = head[0].split(' ').nth(1).unwrap().to_owned();
        let (status, body) = if !head.contains(&"authorization: Bearer testsk_1".to_owned()) {
            ("401 Unauthorized", json!({"code": "authentication_failed", "detail": "Invalid token"}))
        } else if is_busy {
            ("429 Too Many Requests\r\nretry-after: 0", json!({"code": "rate_limit"}))
        } else if state.is_broken.load(Ordering::Relaxed) {
            ("200 OK", json!({"data": [{"uid": "without an id"}], "done": true}))
        } else {
            Self::answer(&target, state.is_cleared.load(Ordering::Relaxed))
        };
        let body = body.to_string();
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).unwrap();
    }

    fn answer(target: &str, is_cleared: bool) -> (&'static str, Value) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let iterator = query.split('&').find_map(|pair| pair.strip_prefix("iterator="));
        let page = |rows: Vec<Value>| {
            let index: usize = iterator.map_or(0, |text| text.strip_prefix("it_").unwrap().parse().unwrap());
            let next = format!("it_{}", index + 1);
            let done = index + 1 >= rows.len();
            let row: Vec<_> = rows.into_iter().nth(index).into_iter().collect();
            ("200 OK", json!({"data": row, "done": done, "iterator": next, "prevIterator": null}))
        };
        let times = json!({"createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"});
        let with_times = |mut row: Value| {
            row.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
            row
        };
        let unless_cleared = |value: Value, cleared: Value| if is_cleared { cleared } else { value };
        let endpoint = |id: &str, uid: Value, disabled: bool, channels: Value| {
            // One takes all types from the start.
            let types = if id == "ep_4" { Value::Null } else { json!(["invoice.paid"]) };
            with_times(
                json!({"id": id, "uid": uid, "url": format!("http://127.0.0.1:19999/{id}"), "description": "d",
                "version": 1, "disabled": disabled, "filterTypes": unless_cleared(types, Value::Null),
                "channels": channels, "rateLimit": 50,
                "metadata": unless_cleared(json!({"team": "crm"}), json!({}))}),
            )
        };
        let plan = unless_cleared(json!({"plan": "pro"}), json!({}));
        match path.strip_prefix("/api/v1/").unwrap() {
            "app" => page(vec![
                with_times(json!({"id": "app_1", "uid": "acme", "name": "Acme Inc.", "metadata": plan})),
                with_times(json!({"id": "app_2", "uid": "not a tenant", "name": "Two", "metadata": {}})),
                with_times(json!({"id": "app_3", "name": "Empty", "metadata": {}})),
            ]),
            "app/app_1/endpoint" => page(vec![
                endpoint("ep_1", json!("crm"), false, Value::Null),
                endpoint("ep_2", Value::Null, true, Value::Null),
                endpoint("ep_3", Value::Null, false, json!(["project-1"])),
            ]),
            "app/app_2/endpoint" => {
                page(vec![endpoint("ep_4", json!("crm"), false, json!(["project-1", "eu.west"]))])
            }
            "app/app_3/endpoint" => page(Vec::new()),
            "event-type" => page(vec![
                with_times(
                    json!({"name": "invoice.paid", "description": "Paid.", "archived": false, "deprecated": false,
                    "schemas": {"1": {"type": "object", "properties": {"n": {"type": "integer"}}}}}),
                ),
                with_times(
                    json!({"name": "invoice.lost", "description": "", "deprecated": true, "schemas": null}),
                ),
            ]),
            path if path.ends_with("/headers") => {
                ("200 OK", json!({"headers": {"X-Env": "prod"}, "sensitive": ["Authorization"]}))
            }
            path if path.ends_with("/ep_3/secret") => ("200 OK", json!({"key": "whpk_abc"})),
            path if path.ends_with("/secret") => ("200 OK", json!({"key": SECRET})),
            _ => ("404 Not Found", json!({"code": "not_found", "detail": "Entity not found"})),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn import_from_svix_arrives_once() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let svix = SvixServer::start();
    let import = ["import", "svix", "--url", &svix.url, "--token", "testsk_1"];
    let dry = balto(&daemon, &[&import[..], &["--dry-run"]].concat());
    assert!(
        dry.out.ends_with("Dry run: 9 to create, 0 to change, 0 to delete, 0 unchanged.\n"),
        "{}{}",
        dry.out,
        dry.err
    );
    assert!(list(&daemon.get("/endpoints").await).is_empty(), "a dry run changed something");
    assert!(!dry.out.contains(SECRET), "{}", dry.out);
    let done = balto(&daemon, &import);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.out.ends_with("9 created, 0 changed, 0 deleted, 0 unchanged.\n"), "{}", done.out);
    for words in ["private key cannot be read", "Authorization cannot be read", "is not a name of a tenant"] {
        assert!(done.err.contains(words), "{words}: {}", done.err);
    }
    assert_eq!(daemon.get("/tenants/acme").await["metadata"], json!({"plan": "pro"}));
    let crm = daemon.get("/endpoints?tenant=acme&uid=crm").await["data"][0].clone();
    let expected = json!({"url": "http://127.0.0.1:19999/ep_1", "status": "active", "eventTypes": ["invoice.paid"],
        "headers": {"X-Env": "prod"}, "format": "raw", "signature": "svix", "metadata": {"team": "crm", "svixId": "ep_1"}});
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&crm[name], value, "{name}");
    }
    assert_eq!((&crm["rateLimit"]["limit"], &crm["rateLimit"]["per"]), (&json!(50), &json!("1s")));
    let secret = daemon.get(&format!("/endpoints/{}/secret", text(&crm, "id"))).await;
    assert_eq!(secret["secret"], SECRET);
    for uid in ["svix-ep_2", "svix-ep_3"] {
        assert_eq!(daemon.get(&format!("/endpoints/{uid}")).await["status"], "paused", "{uid}");
    }
    let labelled = daemon.get("/endpoints?label=project-1&tenant=app_2").await["data"][0].clone();
    assert_eq!((&labelled["uid"], &labelled["status"]), (&json!("crm"), &json!("active")), "{labelled}");
    assert_eq!(labelled["labels"], json!(["eu.west", "project-1"]));
    assert_eq!(labelled["eventTypes"], json!(["#"]));
    assert_eq!(
        (&crm["labels"], &daemon.get("/endpoints/svix-ep_3").await["labels"]),
        (&json!([]), &json!(["project-1"]))
    );
    let kind = daemon.get("/event-types/invoice.paid").await;
    assert_eq!(kind["versions"]["1.0"]["schema"]["properties"]["n"]["type"], "integer");

    // An operator's change stays, and a second run changes nothing.
    daemon.post("/endpoints/svix-ep_2/resume", "").await;
    let again = balto(&daemon, &import);
    assert_eq!(again.out, "0 created, 0 changed, 0 deleted, 9 unchanged.\n", "{}", again.err);
    assert_eq!(daemon.get("/endpoints/svix-ep_2").await["status"], "active");

    let wrong = balto(&daemon, &["import", "svix", "--url", &svix.url, "--token", "wrong"]);
    assert!(wrong.code == 1 && wrong.err.contains("Svix refuses the token"), "{}", wrong.err);
    let missing = balto(&daemon, &[&import[..], &["--application", "app_9"]].concat());
    assert!(missing.code == 1 && missing.err.contains("404 Not Found"), "{}", missing.err);
    svix.state.is_broken.store(true, Ordering::Relaxed);
    let broken = balto(&daemon, &import);
    assert!(broken.code == 1 && broken.err.contains("not as documented"), "{}", broken.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn cleared_members_of_svix_are_cleared_here() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let svix = SvixServer::start();
    let import = ["import", "svix", "--url", &svix.url, "--token", "testsk_1"];
    assert_eq!(balto(&daemon, &import).code, 0);
    svix.state.is_cleared.store(true, Ordering::Relaxed);
    let cleared = balto(&daemon, &import);
    // The tenant with metadata, and all endpoints.
    assert!(cleared.out.ends_with("0 created, 5 changed, 0 deleted, 4 unchanged.\n"), "{}", cleared.out);
    let crm = daemon.get("/endpoints?tenant=acme&uid=crm").await["data"][0].clone();
    assert_eq!((&crm["eventTypes"], &crm["metadata"]), (&json!(["#"]), &json!({"svixId": "ep_1"})));
    assert_eq!(daemon.get("/tenants/acme").await["metadata"], json!({}));
    let again = balto(&daemon, &import);
    assert_eq!(again.out, "0 created, 0 changed, 0 deleted, 9 unchanged.\n", "{}", again.err);
}

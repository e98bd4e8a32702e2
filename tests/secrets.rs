//! Encryption at rest in the real daemon: rotation of keys, and what a person who can write to the disk can change.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use support::{Daemon, PATIENCE, Receiver, serve};

const OLD: &str = "b2xkLW9sZC1vbGQtb2xkLW9sZC1vbGQtb2xkLW9sZC0=";
const NEW: &str = "bmV3LW5ldy1uZXctbmV3LW5ldy1uZXctbmV3LW5ldy0=";
/// First 4 bytes of the SHA-256 of the old key.
const OLD_ID: &str = "9c5230e7";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn start(data: &Path, keys: &str) -> Daemon {
    let environment = [("BALTO__SECRETS__KEY", keys)];
    let environment = if keys.is_empty() { &[][..] } else { &environment };
    Daemon::start_in(data, &["--dev"], environment).await
}

/// What a start that fails says.
async fn refused(data: &Path, keys: &str) -> String {
    let mut command = serve(data, &["--dev"]);
    command.stderr(Stdio::piped());
    if !keys.is_empty() {
        command.env("BALTO__SECRETS__KEY", keys);
    }
    let done = output(command).await;
    assert_eq!(done.status.code(), Some(1), "{}", text(&done.stderr));
    text(&done.stderr)
}

async fn verified(data: &Path, keys: &str) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balto"));
    command.args(["verify", "--json", "--data-dir"]).arg(data).env("BALTO__SECRETS__KEY", keys);
    let done = output(command).await;
    serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{}", text(&done.stderr)))
}

async fn until_resealed(daemon: &Daemon) {
    let deadline = Instant::now() + PATIENCE;
    while daemon.metric("balto_endpoints_to_reseal", "").await > 0.0 {
        assert!(Instant::now() < deadline, "secrets stay under the older key");
        tokio::task::yield_now().await;
    }
}

async fn add(daemon: &Daemon, receiver: &Receiver) -> String {
    let endpoint = json!({"url": receiver.url, "secret": SECRET, "sensitiveHeaders": {"X-Token": "hush"}});
    let endpoint = daemon.post("/endpoints", &endpoint.to_string()).await;
    endpoint["id"].as_str().unwrap().to_owned()
}

/// Whether deliveries have the secret's signature and the sensitive header.
async fn check_delivery(daemon: &Daemon, receiver: &Receiver, endpoint: &str) {
    let before = receiver.count();
    daemon.post(&format!("/endpoints/{endpoint}/test"), "").await;
    let got = receiver.until(before + 1).await.pop().unwrap();
    assert_eq!(got.headers["x-token"], "hush");
    let mut headers = axum::http::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, got.headers[name].parse().unwrap());
    }
    standardwebhooks::Webhook::new(SECRET).unwrap().verify(got.body.as_bytes(), &headers).unwrap();
    assert_eq!(daemon.get(&format!("/endpoints/{endpoint}/secret")).await["secret"], SECRET);
}

#[tokio::test]
async fn rotation_seals_again_and_ends_the_need_of_the_old_key() {
    let directory = tempfile::tempdir().unwrap();
    let (data, receiver) = (directory.path().join("data"), Receiver::status(200).await);
    let mut daemon = start(&data, OLD).await;
    let endpoint = add(&daemon, &receiver).await;
    let shown = daemon.get(&format!("/endpoints/{endpoint}")).await;
    assert_eq!(daemon.terminate(), Some(0));
    for keys in [NEW, ""] {
        let said = refused(&data, keys).await;
        assert!(said.contains(&endpoint) && said.contains(OLD_ID), "{said}");
    }
    // The old key first: nothing changes yet.
    for (keys, outdated) in [(format!("{OLD},{NEW}"), 0), (format!("{NEW},{OLD}"), 2)] {
        let found = verified(&data, &keys).await;
        assert_eq!(
            (&found["ok"], &found["secrets"]["outdated"]),
            (&json!(true), &json!(outdated)),
            "{found}"
        );
        let mut daemon = start(&data, &keys).await;
        until_resealed(&daemon).await;
        check_delivery(&daemon, &receiver, &endpoint).await;
        assert_eq!(daemon.get(&format!("/endpoints/{endpoint}")).await, shown);
        assert_eq!(daemon.terminate(), Some(0));
    }
    let daemon = start(&data, NEW).await;
    check_delivery(&daemon, &receiver, &endpoint).await;
    drop(daemon);
    let said = refused(&data, OLD).await;
    assert!(said.contains("which is not configured"), "{said}");
}

#[tokio::test]
async fn plain_secrets_are_sealed_once_there_is_a_key() {
    let directory = tempfile::tempdir().unwrap();
    let (data, receiver) = (directory.path().join("data"), Receiver::status(200).await);
    let mut daemon = start(&data, "").await;
    let endpoint = add(&daemon, &receiver).await;
    assert_eq!(daemon.terminate(), Some(0));
    assert_eq!(verified(&data, NEW).await["secrets"]["plain"], 2);
    let mut daemon = start(&data, NEW).await;
    until_resealed(&daemon).await;
    check_delivery(&daemon, &receiver, &endpoint).await;
    assert_eq!(daemon.terminate(), Some(0));
    let found = verified(&data, NEW).await;
    assert_eq!((&found["ok"], &found["secrets"]["plain"]), (&json!(true), &json!(0)), "{found}");
    assert!(refused(&data, "").await.contains("no key is configured"));
}

#[tokio::test]
async fn changes_keep_every_secret_that_they_do_not_name() {
    let directory = tempfile::tempdir().unwrap();
    let (data, receiver) = (directory.path().join("data"), Receiver::status(200).await);
    let daemon = start(&data, NEW).await;
    let endpoint = add(&daemon, &receiver).await;
    let path = format!("/endpoints/{endpoint}");
    for change in
        [json!({"description": "x"}), json!({"headers": {"X-Plain": "1"}}), json!({"rateLimit": null})]
    {
        let (status, body, _) = daemon.call("PATCH", &path, &[], &change.to_string()).await;
        assert_eq!(status, 200, "{body}");
        check_delivery(&daemon, &receiver, &endpoint).await;
    }
    for action in ["pause", "resume"] {
        daemon.post(&format!("{path}/{action}"), "").await;
    }
    check_delivery(&daemon, &receiver, &endpoint).await;
    // The rotated secret still signs, beside the new one, also after another change.
    let fresh = daemon.post(&format!("{path}/secret/rotate"), "").await;
    assert_eq!(fresh["previous"][0]["secret"], SECRET);
    daemon.call("PATCH", &path, &[], r#"{"description":"y"}"#).await;
    let shown = daemon.get(&format!("{path}/secret")).await;
    assert_eq!((&shown["secret"], &shown["previous"]), (&fresh["secret"], &fresh["previous"]));
    drop(daemon);
    let daemon = start(&data, NEW).await;
    assert_eq!(daemon.get(&format!("{path}/secret")).await, shown);
}

#[tokio::test]
async fn resealing_that_is_killed_goes_on_at_the_next_start() {
    const ENDPOINTS: usize = 60;
    let directory = tempfile::tempdir().unwrap();
    let (data, receiver) = (directory.path().join("data"), Receiver::status(200).await);
    let daemon = start(&data, OLD).await;
    let mut endpoints = Vec::new();
    for _ in 0..ENDPOINTS {
        endpoints.push(add(&daemon, &receiver).await);
    }
    drop(daemon);
    let keys = format!("{NEW},{OLD}");
    let mut killed_within = 0;
    for _ in 0..20 {
        let mut daemon = start(&data, &keys).await;
        daemon.kill();
        let found = verified(&data, &keys).await;
        assert_eq!(found["ok"], true, "{found}");
        let outdated = found["secrets"]["outdated"].as_u64().unwrap();
        killed_within += u64::from(outdated > 0);
        if outdated == 0 {
            break;
        }
    }
    support::say(&format!("killed {killed_within} times before it was done"));
    let mut daemon = start(&data, &keys).await;
    until_resealed(&daemon).await;
    assert_eq!(daemon.terminate(), Some(0));
    let daemon = start(&data, NEW).await;
    for endpoint in endpoints {
        assert_eq!(daemon.get(&format!("/endpoints/{endpoint}/secret")).await["secret"], SECRET);
    }
}

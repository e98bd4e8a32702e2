//! Promises about secrets, headers and formats, against the real process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::{Daemon, Receiver};

const HMAC: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const ED25519: &str =
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
const PUBLIC: &str = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";
const STORE_KEY: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I=";
const URL: &str = "http://127.0.0.1:9000/";

/// Where the problem points to.
async fn refused(daemon: &Daemon, method: &str, path: &str, body: &Value) -> Vec<String> {
    let (status, problem, _) = daemon.call(method, path, &[], &body.to_string()).await;
    assert_eq!(status, 422, "{method} {path} {body}: {problem}");
    let errors = problem["errors"].as_array().unwrap().iter();
    errors.map(|error| error["pointer"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn bad_secrets_headers_and_presets_are_refused_where_they_stand() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let rows = [
        (json!({"secret": "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}), "/secret"),
        (json!({"secret": "whsec_c2hvcnQ="}), "/secret"),
        (json!({"secret": format!("whsec_{}", "A".repeat(88))}), "/secret"),
        (json!({"secret": "whsec_!!"}), "/secret"),
        (json!({"secret": PUBLIC}), "/secret"),
        (json!({"secret": "whsk_c2hvcnQ="}), "/secret"),
        (json!({"secret": ""}), "/secret"),
        (json!({"secretType": "rsa"}), "/secretType"),
        (json!({"secretType": "hmac", "secret": HMAC}), "/secretType"),
        (json!({"secretType": "ed25519", "signature": "stripe"}), "/secretType"),
        (json!({"secret": ED25519, "signature": "github"}), "/secret"),
        (json!({"secret": "short", "signature": "github"}), "/secret"),
        (json!({"signature": "svix"}), "/signature"),
        (json!({"format": "xml"}), "/format"),
        (json!({"headers": {"Stripe-Signature": "x"}}), "/headers/Stripe-Signature"),
        (json!({"headers": {"X-Hub-Signature-256": "x"}}), "/headers/X-Hub-Signature-256"),
        (json!({"sensitiveHeaders": {"Host": "x"}}), "/sensitiveHeaders/Host"),
        (json!({"sensitiveHeaders": {"X-A": "a\r\nX-B: b"}}), "/sensitiveHeaders/X-A"),
        (json!({"sensitiveHeaders": {"X-A": 1}}), "/sensitiveHeaders/X-A"),
        (json!({"sensitiveHeaders": {"X-A": "1"}, "headers": {"x-a": "1"}}), "/sensitiveHeaders/x-a"),
    ];
    for (mut body, place) in rows {
        body["url"] = json!(URL);
        assert_eq!(refused(&daemon, "POST", "/endpoints", &body).await, [place], "{body}");
    }
    let text = json!({"url": URL, "signature": "github", "secret": "It's a Secret"});
    let made = daemon.post("/endpoints", &text.to_string()).await;
    let path = format!("/endpoints/{}", made["id"].as_str().unwrap());
    for (patch, place) in [
        (json!({"signature": "standard"}), "/signature"),
        (json!({"secret": HMAC}), "/secret"),
        (json!({"secretType": "hmac"}), "/secretType"),
        (json!({"sensitiveHeaders": {"X-A": 1}}), "/sensitiveHeaders/X-A"),
        (json!({"sensitiveHeaders": {"Via": "1"}}), "/sensitiveHeaders/Via"),
    ] {
        assert_eq!(refused(&daemon, "PATCH", &path, &patch).await, [place], "{patch}");
    }
    let rotate = format!("{path}/secret/rotate");
    for (body, place) in [
        (json!({"secret": ED25519}), "/secret"),
        (json!({"secret": "It's a Secret"}), "/secret"),
        (json!({"secretType": "ed25519"}), "/secretType"),
        (json!({"secretType": "hmac", "secret": HMAC}), "/secretType"),
        (json!({"overlap": "31d"}), "/overlap"),
    ] {
        assert_eq!(refused(&daemon, "POST", &rotate, &body).await, [place], "{body}");
    }
    // With a standard secret in place of the text, the preset can change.
    daemon.post(&rotate, &json!({"secret": HMAC, "overlap": "0s"}).to_string()).await;
    let (status, changed, _) = daemon.call("PATCH", &path, &[], r#"{"signature":"standard"}"#).await;
    assert_eq!((status, &changed["signature"]), (200, &json!("standard")));
    assert_eq!(daemon.get("/endpoints").await["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn sensitive_headers_are_sent_and_never_shown() {
    let data = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(data.path()).await;
    let receiver = Receiver::status(200).await;
    let body = json!({"url": receiver.url, "headers": {"X-Env": "prod"},
        "sensitiveHeaders": {"Authorization": "Bearer hush-1", "X-Token": "hush-2"}});
    let made = daemon.post("/endpoints", &body.to_string()).await;
    let path = format!("/endpoints/{}", made["id"].as_str().unwrap());
    assert_eq!(made["sensitiveHeaderNames"], json!(["authorization", "x-token"]));
    daemon.post("/events", r#"{"type":"a","data":1}"#).await;
    let got = receiver.until(1).await;
    let sent = |index: usize, name: &str| receiver.got()[index].headers.get(name).cloned();
    assert_eq!(got[0].headers["authorization"], "Bearer hush-1");
    assert_eq!((sent(0, "x-token").as_deref(), sent(0, "x-env").as_deref()), (Some("hush-2"), Some("prod")));
    // A change keeps what it does not name.
    let patch = r#"{"sensitiveHeaders":{"x-token":null,"X-New":"hush-3"},"description":"d"}"#;
    let (status, changed, _) = daemon.call("PATCH", &path, &[], patch).await;
    assert_eq!((status, &changed["sensitiveHeaderNames"]), (200, &json!(["authorization", "x-new"])));
    daemon.post("/events", r#"{"type":"a","data":1}"#).await;
    receiver.until(2).await;
    assert_eq!(sent(1, "authorization").as_deref(), Some("Bearer hush-1"));
    assert_eq!((sent(1, "x-token"), sent(1, "x-new").as_deref()), (None, Some("hush-3")));
    for shown in [made, changed, daemon.get(&path).await, daemon.get("/endpoints").await] {
        assert!(!shown.to_string().contains("hush"), "{shown}");
    }
    let (status, cleared, _) = daemon.call("PATCH", &path, &[], r#"{"sensitiveHeaders":null}"#).await;
    assert_eq!((status, &cleared["sensitiveHeaderNames"]), (200, &json!([])));
}

/// Whether any file of the data directory holds the text.
fn on_disk(directory: &Path, text: &str) -> bool {
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return on_disk(&path, text);
        }
        std::fs::read(&path).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
    })
}

#[tokio::test]
async fn with_a_key_nothing_secret_is_readable_on_disk_and_another_key_cannot_start() {
    let data = tempfile::tempdir().unwrap();
    let key = [("BALTO__SECRETS__KEY", STORE_KEY)];
    let mut daemon = Daemon::start_in(data.path(), &["--dev"], &key).await;
    let receiver = Receiver::status(200).await;
    let body = json!({"url": receiver.url, "signature": "github", "secret": "a-secret-in-text",
        "sensitiveHeaders": {"X-Token": "hush-hush-hush"}});
    let made = daemon.call("POST", "/endpoints", &[("idempotency-key", "k")], &body.to_string()).await;
    assert_eq!(made.0, 201, "{made:?}");
    let again = daemon.call("POST", "/endpoints", &[("idempotency-key", "k")], &body.to_string()).await;
    assert_eq!((again.0, &again.1), (201, &made.1), "the remembered answer opens");
    let path = format!("/endpoints/{}/secret", made.1["id"].as_str().unwrap());
    assert_eq!(daemon.terminate(), Some(0));
    assert!(on_disk(data.path(), "x-token"), "the test looks at the wrong place");
    for hidden in ["a-secret-in-text", "hush-hush-hush"] {
        assert!(!on_disk(data.path(), hidden), "{hidden}");
    }
    let other_key = STORE_KEY.replace("c2Vj", "b3Ro");
    for (other, words) in [(other_key.as_str(), "under another key"), ("", "no key is configured")] {
        let mut command = support::serve(data.path(), &["--dev"]);
        if !other.is_empty() {
            command.env("BALTO__SECRETS__KEY", other);
        }
        let output = command.stderr(std::process::Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{said}");
    }
    let daemon = Daemon::start_in(data.path(), &["--dev"], &key).await;
    assert_eq!(daemon.get(&path).await["secret"], "a-secret-in-text");
    daemon.post("/events", r#"{"type":"a","data":1}"#).await;
    assert_eq!(receiver.until(1).await[0].headers["x-token"], "hush-hush-hush");
}

#[tokio::test]
async fn a_key_that_comes_later_opens_what_was_stored_without_one() {
    let data = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(data.path()).await;
    let made = daemon.post("/endpoints", &json!({"url": URL, "secret": HMAC}).to_string()).await;
    assert_eq!(daemon.terminate(), Some(0));
    let daemon = Daemon::start_in(data.path(), &["--dev"], &[("BALTO__SECRETS__KEY", STORE_KEY)]).await;
    let path = format!("/endpoints/{}/secret", made["id"].as_str().unwrap());
    assert_eq!(daemon.get(&path).await["secret"], HMAC);
}

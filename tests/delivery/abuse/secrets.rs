//! Secrets and payloads in logs, metrics and files.

use serde_json::{Value, json};

use crate::support::{Daemon, Receiver, answer};

fn files(below: &std::path::Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(below).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), found);
        } else {
            found.push((entry.path().display().to_string(), std::fs::read(entry.path()).unwrap()));
        }
    }
}

/// Reads all output of a daemon that runs every operation at the most verbose log level.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_and_payloads_are_absent_from_logs_and_metrics() {
    use base64::Engine as _;
    let below = tempfile::tempdir().unwrap();
    let (data, log) = (below.path().join("data"), below.path().join("log"));
    let admin = "admin-canary-7f3a9c5e1b8d2604e6a90d53";
    let at_rest = base64::engine::general_purpose::STANDARD.encode([7; 32]);
    let mut command = crate::support::serve(&data, &[]);
    command
        .env("BALTO__AUTH__ADMIN_KEY", admin)
        .env("BALTO__SECRETS__KEY", &at_rest)
        .env("BALTO__LOG__LEVEL", "trace,balto=trace")
        .env("BALTO__EGRESS__ALLOW_HTTP", "true")
        .env("BALTO__EGRESS__ALLOW_NETWORKS", "127.0.0.0/8")
        .stderr(std::fs::File::create(&log).unwrap());
    let mut daemon = Daemon::spawn(command);
    daemon.until_ready().await;
    let receiver = Receiver::start(|number, _| answer(if number == 0 { 500 } else { 200 })).await;
    let authorization = format!("Bearer {admin}");
    let with = [("authorization", authorization.as_str())];
    let signing = "whsec_Y2FuYXJ5LXNpZ25pbmctc2VjcmV0LWNhbmFyeQ==";
    let endpoint = json!({"url": receiver.url, "secret": signing, "retry": {"schedule": ["10ms", "10ms"]},
        "sensitiveHeaders": {"X-Token": "header-canary"}});
    let (status, made, _) = daemon.call("POST", "/endpoints", &with, &endpoint.to_string()).await;
    assert_eq!(status, 201, "{made}");
    let path = format!("/endpoints/{}/secret/rotate", made["id"].as_str().unwrap());
    let (status, rotated, _) = daemon.call("POST", &path, &with, "").await;
    assert_eq!(status, 200, "{rotated}");
    let (_, key, _) = daemon.call("POST", "/keys", &with, r#"{"role":"publisher"}"#).await;
    let own = key["secret"].as_str().unwrap().to_owned();
    let authorization = format!("Bearer {own}");
    let event = r#"{"type":"a.b","data":"payload-canary","metadata":{"m":"metadata-canary"}}"#;
    let key = [("authorization", authorization.as_str()), ("idempotency-key", "idempotency-canary")];
    assert_eq!(daemon.call("POST", "/events", &key, event).await.0, 202);
    assert_eq!(daemon.call("POST", "/events", &key, &event[1..]).await.0, 400);
    assert_eq!(
        daemon.call("POST", "/events", &[("authorization", "Bearer wrong-canary")], event).await.0,
        401
    );
    receiver.until(2).await;
    let metrics = reqwest::get(format!("{}/metrics", daemon.ops)).await.unwrap().text().await.unwrap();
    daemon.signal("HUP");
    assert_eq!(daemon.terminate(), Some(0));

    let mut newest: Vec<String> = Vec::new();
    let mut collect = |value: &Value| {
        let texts = value.to_string();
        newest.extend(texts.split('"').filter(|text| text.starts_with("whsec_")).map(ToOwned::to_owned));
    };
    collect(&rotated);
    assert!(!newest.is_empty(), "{rotated}");
    let mut secrets: Vec<String> =
        vec![admin.into(), own, at_rest, "header-canary".into(), "wrong-canary".into()];
    for secret in newest.into_iter().chain([signing.to_owned()]) {
        let raw = base64::engine::general_purpose::STANDARD.decode(&secret["whsec_".len()..]).unwrap();
        secrets.push(secret["whsec_".len()..].trim_end_matches('=').to_owned());
        secrets.extend(String::from_utf8(raw));
    }
    let payloads = ["payload-canary", "metadata-canary", "idempotency-canary"].map(str::to_owned);
    let message = std::fs::read(&log).unwrap();
    assert!(message.len() > 10_000, "the log is almost empty");
    let holds = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    for canary in secrets.iter().chain(&payloads) {
        assert!(!holds(&message, canary), "{canary} is in the log");
        assert!(!holds(metrics.as_bytes(), canary), "{canary} is in the metrics");
    }
    let mut written = Vec::new();
    files(&data, &mut written);
    assert!(written.iter().any(|(_, bytes)| holds(bytes, "payload-canary")), "the journal is somewhere else");
    for (name, bytes) in &written {
        for secret in &secrets {
            assert!(!holds(bytes, secret), "{secret} is in {name}");
        }
    }
}

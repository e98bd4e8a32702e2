//! Traces in the log: one request is followed from its publisher to its receiver.

use std::fs::File;

use serde_json::{Value, json};

use crate::support::{Daemon, Receiver, serve};

const EVENT: &str = r#"{"type":"a.b","data":1}"#;

/// Posts an event with a trace and returns the log of its delivery.
async fn traced_log(level: &str, format: &str, trace: &str) -> String {
    let below = tempfile::tempdir().unwrap();
    let log = below.path().join("log");
    let mut command = serve(&below.path().join("data"), &["--dev"]);
    command
        .env("BALTO__LOG__LEVEL", level)
        .env("BALTO__LOG__FORMAT", format)
        .stderr(File::create(&log).unwrap());
    let mut daemon = Daemon::spawn(command);
    daemon.until_ready().await;
    let receiver = Receiver::status(200).await;
    daemon.post("/endpoints", &json!({"url": receiver.url}).to_string()).await;
    daemon.post("/events", EVENT).await;
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let (status, answer, _) = daemon.call("POST", "/events", &[("traceparent", &parent)], EVENT).await;
    assert_eq!(status, 202, "{answer}");
    receiver.until(2).await;
    let path = format!("/events/{}", answer["id"].as_str().unwrap());
    daemon.until(&path, |event| event["status"] == "delivered").await;
    assert_eq!(daemon.terminate(), Some(0));
    std::fs::read_to_string(log).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trace_id_is_in_the_lines_of_request_commit_and_attempt() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let log = traced_log("debug", "json", TRACE).await;
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let traced: Vec<_> = lines.iter().filter(|line| line["trace_id"] == TRACE).collect();
    let messages: Vec<_> = traced.iter().map(|line| line["message"].as_str().unwrap()).collect();
    for message in ["request", "event committed", "attempt"] {
        let count = messages.iter().filter(|other| **other == message).count();
        assert_eq!(count, 1, "{message}: {traced:?}");
    }
    assert_eq!(messages.len(), 3, "{traced:?}");
    let request = traced.iter().find(|line| line["message"] == "request").unwrap();
    let shown = (&request["method"], &request["path"], &request["status"]);
    assert_eq!(shown, (&json!("POST"), &json!("/v1/events"), &json!(202)));
    let is_untraced = |line: &&Value| line["message"] == "attempt" && line.get("trace_id").is_none();
    assert_eq!(lines.iter().filter(is_untraced).count(), 1, "the event without a trace");
    let text = traced_log("debug", "text", TRACE).await;
    let field = format!("trace_id={TRACE}");
    assert_eq!(text.lines().filter(|line| line.contains(&field)).count(), 3, "{text}");
    let quiet = traced_log("info", "json", TRACE).await;
    assert!(!quiet.contains(TRACE), "{quiet}");
}

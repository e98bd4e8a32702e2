//! The public contract of the real daemon: one test for each promise to a client or an operator.
//!
//! One file for each part of the contract. `refusals` reads the API document, so that its tests
//! cover every new operation.

#![expect(clippy::unwrap_used, reason = "a test fails on an error")]

#[path = "../support/mod.rs"]
mod support;

mod as_code;
mod as_code_round_trip;
mod attempts;
mod audit;
mod authorization;
mod changes;
mod cloudevents;
mod command_line;
mod commands;
mod consumers;
mod conventions;
mod deliveries;
mod endpoints;
mod erasure;
mod event_types;
mod events;
mod feed;
mod feed_projection;
mod feed_stream;
mod filters;
mod formats;
mod handshake;
mod isolation;
mod jobs;
mod keys;
mod listener;
mod operation;
mod outcomes;
mod outgoing;
mod overview;
mod pagination;
mod petstore;
mod pins;
mod queues;
mod rebuild;
mod refusals;
mod repetition;
mod requests;
mod secrets;
mod shared_endpoints;
mod shared_queues;
mod sharing;
mod stream_formats;
mod stream_states;
mod streams;
mod subscriber;
mod tenants;
mod uids;
mod waits;
mod workers;

use serde_json::{Value, json};
use support::{Daemon, Receiver};

/// The admin key of the test daemons.
const ADMIN: &str = "an-admin-key-that-is-long-enough-for-any-bound";

/// A daemon that requires a key, over `data`, that may send to loopback.
async fn keyed(data: &std::path::Path) -> Daemon {
    let environment = [
        ("BALTO__AUTH__ADMIN_KEY", ADMIN),
        ("BALTO__EGRESS__ALLOW_HTTP", "true"),
        ("BALTO__EGRESS__ALLOW_NETWORKS", "127.0.0.0/8"),
    ];
    Daemon::start_in(data, &[], &environment).await
}

/// Sends a request with this key; returns the status and the JSON body.
async fn call_as(daemon: &Daemon, key: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    let bearer = format!("Bearer {key}");
    let (status, answer, _) = daemon.call(method, path, &[("authorization", &bearer)], body).await;
    (status, answer)
}

/// Creates a key and returns its secret.
async fn key(daemon: &Daemon, role: &str, tenant: Option<&str>) -> String {
    let body = json!({"role": role, "tenant": tenant}).to_string();
    let (status, made) = call_as(daemon, ADMIN, "POST", "/keys", &body).await;
    assert_eq!(status, 201, "{made}");
    text(&made, "secret")
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("no `{name}` in {value}")).to_owned()
}

fn list(value: &Value) -> &Vec<Value> {
    value["data"].as_array().unwrap()
}

/// Registers an endpoint with two attempts and a short delay.
async fn endpoint(daemon: &Daemon, receiver: &Receiver, more: Value) -> Value {
    let mut body = json!({"url": receiver.url, "retry": {"schedule": ["10ms"]}});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    daemon.post("/endpoints", &body.to_string()).await
}

async fn publish(daemon: &Daemon, event: Value) -> Value {
    daemon.post("/events", &event.to_string()).await
}

/// The event's only delivery, after its event is settled.
async fn settled(daemon: &Daemon, event: &Value) -> Value {
    let path = format!("/events/{}", text(event, "id"));
    let shown = daemon.until(&path, |event| event["status"] != "pending").await;
    daemon.get(&format!("/deliveries/{}", text(&shown["deliveries"][0], "id"))).await
}

/// Asserts the members of RFC 9457, and this status and code.
fn is_problem(answer: &(u16, Value), status: u16, code: &str, story: &str) {
    let (got, problem) = answer;
    assert_eq!((*got, problem["code"].as_str()), (status, Some(code)), "{story}: {problem}");
    assert_eq!(problem["status"], status, "{story}: {problem}");
    assert_eq!(problem["type"], format!("urn:balto:problem:{code}"), "{story}: {problem}");
    for member in ["title", "detail"] {
        assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{story}: {problem}");
    }
    if code == "validation_failed" {
        let errors = problem["errors"].as_array().unwrap_or_else(|| panic!("{story}: {problem}"));
        assert!(!errors.is_empty(), "{story}: {problem}");
        for error in errors {
            assert!(error["pointer"].is_string() && error["detail"].is_string(), "{story}: {problem}");
        }
    }
}

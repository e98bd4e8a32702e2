//! The receiver of webhooks: it verifies each one and keeps each event once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tokio::net::TcpListener;

use crate::balto::{Client, text};

/// The webhooks of one subscription.
#[derive(Clone)]
pub(crate) struct Receiver(Arc<Mutex<Inbox>>);

struct Inbox {
    key: Option<Webhook>,
    /// Requests that are still answered with 503.
    failures: u32,
    /// Requests so far, failed and repeated ones included.
    requests: u32,
    /// Bodies by `webhook-id`, which a repetition has again.
    events: BTreeMap<String, Value>,
}

impl Receiver {
    /// Subscribes a receiver that fails at first. `subscription` has members of an endpoint.
    pub(crate) async fn subscribe(
        balto: &Client,
        mut subscription: Value,
        failures: u32,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        subscription["url"] = json!(format!("http://{}/", listener.local_addr()?));
        subscription["retry"] = json!({"schedule": ["100ms", "200ms", "1s", "1s"]});
        let endpoint = balto.post("/endpoints", subscription).await?;
        // The secret is in this one response only.
        let key = Some(Webhook::new(text(&endpoint, "secret")?)?);
        let inbox = Inbox { key, failures, requests: 0, events: BTreeMap::new() };
        let receiver = Self(Arc::new(Mutex::new(inbox)));
        let app = Router::new().route("/", post(receive)).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(receiver)
    }

    /// The events so far, by id.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).events.values().cloned().collect()
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> u32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).requests
    }
}

async fn receive(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let mut inbox = receiver.0.lock().unwrap_or_else(PoisonError::into_inner);
    inbox.requests += 1;
    let id = headers.get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    if inbox.key.as_ref().is_none_or(|key| key.verify(&body, &headers).is_err()) {
        return StatusCode::UNAUTHORIZED;
    }
    if inbox.failures > 0 {
        inbox.failures -= 1;
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    match serde_json::from_slice(&body) {
        Ok(event) => {
            inbox.events.insert(id, event);
            StatusCode::NO_CONTENT
        }
        Err(_) => StatusCode::BAD_REQUEST,
    }
}

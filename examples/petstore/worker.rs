//! A worker of a queue: it receives a message, handles it, and ends its lease.

use std::convert::Infallible;

use serde_json::{Value, json};

use crate::balto::{Client, list};

/// Handles messages one by one, for ever. A handler that fails gets the message again, after the
/// delay of the queue. A worker that dies says nothing: its lease runs out, and the message goes to
/// another worker. So a handler may meet an event twice, and must then do nothing.
pub(crate) async fn work<F: Future<Output = anyhow::Result<()>>>(
    balto: &Client,
    queue: &str,
    name: &str,
    mut handle: impl FnMut(Value) -> F,
) -> anyhow::Result<Infallible> {
    loop {
        let receive = json!({"max": 1, "wait": "20s", "worker": name});
        let received = balto.post(&format!("/queues/{queue}/receive"), receive).await?;
        for message in list(&received, "messages")? {
            let mut end = json!({"receipts": [message["receipt"]]});
            let action = match handle(message["event"].clone()).await {
                Ok(()) => "ack",
                Err(error) => {
                    end["reason"] = json!(format!("{error:#}"));
                    "nack"
                }
            };
            balto.post(&format!("/queues/{queue}/{action}"), end).await?;
        }
    }
}

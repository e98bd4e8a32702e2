//! Orders: an asynchronous API. `POST /orders` answers 202 with a status URL at once; the work goes
//! through a queue, and its result reaches the customer as a webhook.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::balto::{Client, list, text};
use crate::pets::{self, PetCommand};
use crate::worker::work;

/// The queue of orders to process.
const QUEUE: &str = "orders";

/// An order, as the customer posts it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Order {
    /// Chosen by the customer. The same order may be posted again: it is placed once.
    pub(crate) order_id: String,
    pub(crate) customer: String,
    pub(crate) pet: String,
    pub(crate) card: String,
}

/// Opens the shop, and starts its worker. Returns the URL.
pub(crate) async fn open(balto: &Client) -> anyhow::Result<String> {
    // One message at a time for each order; orders run side by side.
    let queue = json!({"name": QUEUE, "eventTypes": ["order.placed"], "ordering": "key"});
    balto.post("/queues", queue).await?;
    for name in ["till-1", "till-2"] {
        let balto = balto.clone();
        tokio::spawn(async move { work(&balto, QUEUE, name, |event| process(&balto, event)).await });
    }
    let routes = Router::new().route("/orders", post(place)).route("/orders/{id}", get(show));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let app = routes.with_state(balto.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}

/// `POST /orders`
async fn place(State(balto): State<Client>, body: Bytes) -> Response {
    let order: Order = match serde_json::from_slice(&body) {
        Ok(order) => order,
        Err(error) => return answer(422, &json!({"error": error.to_string()})),
    };
    if ![&order.order_id, &order.pet].into_iter().all(|name| is_name(name)) {
        return answer(422, &json!({"error": "ids have letters, digits and hyphens"}));
    }
    let id = &order.order_id;
    let append = json!({
        "expectedVersion": "none",
        "events": [{"type": "order.placed", "id": format!("{id}-placed"), "data": order}],
    });
    match balto.call(Method::POST, &format!("/streams/order-{id}/events"), Some(&append)).await {
        // Also for a repetition, which Balto recognises by the event's id.
        Ok((202, _)) => {
            let status = format!("/orders/{id}");
            let body = json!({"orderId": id, "status": "placed", "statusUrl": status});
            ([("location", status)], answer(202, &body)).into_response()
        }
        Ok((409 | 422, _)) => answer(409, &json!({"error": "another order has this id"})),
        Ok((status, problem)) => answer(status, &problem),
        Err(error) => answer(503, &json!({"error": error.to_string()})),
    }
}

/// Names become parts of paths and of event ids.
fn is_name(text: &str) -> bool {
    (1..=40).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// `GET /orders/{id}`: the last event of the order is its status.
async fn show(State(balto): State<Client>, Path(id): Path<String>) -> Response {
    if !is_name(&id) {
        return answer(404, &json!({"error": "no such order"}));
    }
    let path = format!("/streams/order-{id}/events?direction=backwards&limit=1");
    let shown = balto.call(Method::GET, &path, None).await;
    let Ok((200, page)) = shown else { return answer(404, &json!({"error": "no such order"})) };
    let kind = page["data"][0]["type"].as_str().unwrap_or_default();
    answer(200, &json!({"orderId": id, "status": kind.trim_start_matches("order.")}))
}

fn answer(status: u16, body: &Value) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [("content-type", "application/json")], body.to_string()).into_response()
}

/// Handles a placed order. Each step may be repeated, because a worker may die between two.
async fn process(balto: &Client, event: Value) -> anyhow::Result<()> {
    let order: Order = serde_json::from_value(event["data"].clone())?;
    if order.card == "declined" {
        return record(balto, &order, "failed", "the card was declined").await;
    }
    record(balto, &order, "paid", "").await?;
    let (adopter, order_id) = (order.customer.clone(), order.order_id.clone());
    let adopt = PetCommand::Adopt { adopter, order: order_id };
    match pets::execute(balto, &order.pet, &adopt).await? {
        Ok(_) => record(balto, &order, "fulfilled", "").await,
        Err(refusal) => record(balto, &order, "failed", &refusal).await,
    }
}

/// Adds an event to the order's stream. Its id names the step, so a repetition adds nothing.
async fn record(balto: &Client, order: &Order, step: &str, reason: &str) -> anyhow::Result<()> {
    let id = &order.order_id;
    let data = json!({"orderId": id, "pet": order.pet, "reason": reason});
    let (kind, event_id) = (format!("order.{step}"), format!("{id}-{step}"));
    let event = json!({"type": kind, "id": event_id, "data": data});
    balto.post(&format!("/streams/order-{id}/events"), json!({"events": [event]})).await?;
    Ok(())
}

/// The last word about each of these orders, as the customer's webhooks tell it.
pub(crate) fn outcomes(webhooks: &[Value]) -> anyhow::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for event in webhooks.iter().filter(|event| event["type"] != "order.paid") {
        let (order, kind) = (text(&event["data"], "orderId")?, text(event, "type")?);
        found.push((order.to_owned(), kind.to_owned()));
    }
    found.sort();
    Ok(found)
}

/// The same from the log, for the proof.
pub(crate) async fn outcomes_in_the_log(balto: &Client) -> anyhow::Result<Vec<(String, String)>> {
    let feed = balto.get("/feed?types=order.fulfilled,order.failed&limit=1000").await?;
    outcomes(list(&feed, "data")?)
}

//! Orders over RabbitMQ: the same shop, for a customer that speaks AMQP instead of HTTP.
//!
//! A message becomes the event that `POST /orders` appends, and each step of the order becomes a
//! message. Balto does both. The worker of the orders does not know the difference.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use serde_json::{Value, json};

use crate::balto::{Client, list, text};

const EXCHANGE: &str = "petstore";
const STEPS: [&str; 3] = ["order.paid", "order.fulfilled", "order.failed"];

/// Connects the shop with the broker: orders come in, and their steps go out.
pub(crate) async fn open(balto: &Client, url: &str) -> anyhow::Result<()> {
    // Declares the exchange, the queue and its binding.
    let source = json!({
        "name": "orders", "url": url, "queue": "petstore-orders",
        "exchange": EXCHANGE, "bindings": ["order.placed"], "stream": {"header": "x-stream"},
    });
    balto.post("/sources", source).await?;
    let amqp = json!({"exchange": EXCHANGE, "routingKey": "type"});
    let endpoint = json!({"url": url, "amqp": amqp, "eventTypes": STEPS, "ordering": "key"});
    balto.post("/endpoints", endpoint).await?;
    loop {
        let source = balto.get("/sources/orders").await?;
        match text(&source, "state")? {
            "connected" => return Ok(()),
            "failed" => anyhow::bail!("the broker: {}", source["lastError"]),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A customer with its own connection to the broker.
pub(crate) struct Customer {
    _connection: Connection,
    channel: Channel,
    steps: Consumer,
}

impl Customer {
    pub(crate) async fn connect(url: &str) -> anyhow::Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        // A queue that ends with the connection.
        let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), exclusive, FieldTable::default()).await?.name().clone();
        for step in STEPS {
            let (options, none) = (QueueBindOptions::default(), FieldTable::default());
            channel.queue_bind(queue.clone(), EXCHANGE.into(), step.into(), options, none).await?;
        }
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let steps = channel.basic_consume(queue, "customer".into(), options, none).await?;
        Ok(Self { _connection: connection, channel, steps })
    }

    /// Publishes an order, and waits until the broker has it in a queue. It may be published again:
    /// the `message-id` becomes the id of the event, so the order is placed once.
    pub(crate) async fn order(&self, order: &Value) -> anyhow::Result<()> {
        let id = text(order, "orderId")?;
        let mut headers = FieldTable::default();
        headers.insert("x-stream".into(), AMQPValue::LongString(format!("order-{id}").into()));
        let properties = BasicProperties::default()
            .with_message_id(format!("{id}-placed").into())
            .with_content_type("application/json".into())
            .with_delivery_mode(2)
            .with_headers(headers);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let body = order.to_string().into_bytes();
        let sent =
            self.channel.basic_publish(EXCHANGE.into(), "order.placed".into(), options, &body, properties);
        let confirm = sent.await?.await?;
        ensure!(matches!(confirm, Confirmation::Ack(None)), "the broker has no queue for {order}");
        Ok(())
    }

    /// The types of an order's steps, up to the last one. A message may come twice, with the same
    /// `message-id`.
    pub(crate) async fn steps_of(&mut self, order: &str) -> anyhow::Result<Vec<String>> {
        let (mut seen, mut kinds) = (Vec::new(), Vec::new());
        while kinds.last().is_none_or(|kind| kind == "order.paid") {
            let next = tokio::time::timeout(Duration::from_secs(30), self.steps.next());
            let message = next.await.context("no message within 30 s")?.context("the consumer ended")??;
            let event: Value = serde_json::from_slice(&message.data)?;
            let id = message.properties.message_id().clone();
            if event["data"]["orderId"] == order && !seen.contains(&id) {
                kinds.push(text(&event, "type")?.to_owned());
                seen.push(id);
            }
            message.acker.ack(BasicAckOptions::default()).await?;
        }
        Ok(kinds)
    }
}

/// The proof: one order, and each step once in the log and at the customer.
pub(crate) async fn prove(balto: &Client, order: &str, steps: &[String]) -> anyhow::Result<()> {
    ensure!(steps == ["order.paid", "order.fulfilled"], "{order}: {steps:?}");
    let stream = balto.get(&format!("/streams/order-{order}/events")).await?;
    let log: Vec<_> =
        list(&stream, "data")?.iter().map(|event| text(event, "type")).collect::<Result<_, _>>()?;
    ensure!(log == ["order.placed", "order.paid", "order.fulfilled"], "{order}: {log:?}");
    println!("proof: an order came over RabbitMQ twice and was placed once, and its steps went back");
    Ok(())
}

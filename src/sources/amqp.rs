//! The client of a RabbitMQ queue.

use async_trait::async_trait;
use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer, ExchangeKind};

use super::message::Message;
use super::{Incoming, Intake, IntakeError, Settled, SourceClient, SourceFailure, StopSignal};
use crate::context::Context;
use crate::courier::{BrokerSession, BrokerUrl, Courier};
use crate::domain::{ErrorClass, Source};
use crate::limits::broker::{BATCH_MESSAGES_MAX, BATCH_WAIT, SESSION_TIMEOUT};
use crate::service::Sources;

/// The name of the consumer at the broker.
const CONSUMER_TAG: &str = "balto";

/// Consumes one queue.
pub(super) struct AmqpClient {
    context: Context,
    courier: Courier,
    source: std::sync::Arc<Source>,
}

fn broker((class, text): (ErrorClass, String)) -> SourceFailure {
    SourceFailure::Broker(format!("{}: {text}", class.as_str()))
}

fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_else(|_| ShortString::from(""))
}

impl AmqpClient {
    pub(super) fn new(context: Context, courier: Courier, source: std::sync::Arc<Source>) -> Self {
        Self { context, courier, source }
    }

    async fn connect(&self) -> Result<BrokerSession, SourceFailure> {
        let credentials = Sources(&self.context).credentials(&self.source);
        let credentials = credentials.map_err(|error| SourceFailure::Broker(error.to_string()))?;
        let parsed = BrokerUrl::parse(&self.source.url);
        let (url, _) = parsed.map_err(|error| SourceFailure::Broker(error.to_string()))?;
        self.courier.open_broker(&url, &credentials, SESSION_TIMEOUT).await.map_err(broker)
    }

    /// Declares the queue with its bindings, and begins to consume it.
    async fn consume(&self, channel: &Channel) -> lapin::Result<Consumer> {
        let source = &*self.source;
        let queue = short(&source.queue);
        if source.declares {
            self.declare(channel).await?;
        }
        channel.basic_qos(source.prefetch, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        channel.basic_consume(queue, short(CONSUMER_TAG), options, FieldTable::default()).await
    }

    async fn declare(&self, channel: &Channel) -> lapin::Result<()> {
        let source = &*self.source;
        let queue = short(&source.queue);
        let mut arguments = FieldTable::default();
        let kind = AMQPValue::LongString(source.queue_type.as_str().into());
        arguments.insert(short("x-queue-type"), kind);
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.clone(), durable, arguments).await?;
        let Some(exchange) = &source.exchange else { return Ok(()) };
        if !exchange.starts_with("amq.") {
            let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            let none = FieldTable::default();
            channel.exchange_declare(short(exchange), ExchangeKind::Topic, durable, none).await?;
        }
        for binding in &source.bindings {
            let (options, none) = (QueueBindOptions::default(), FieldTable::default());
            channel.queue_bind(queue.clone(), short(exchange), short(binding), options, none).await?;
        }
        Ok(())
    }

    /// Takes messages until the stop or a failure.
    async fn take(
        &self,
        session: &BrokerSession,
        channel: &Channel,
        consumer: &mut Consumer,
        intake: &Intake,
        stop: &mut StopSignal,
    ) -> Result<(), SourceFailure> {
        loop {
            let first = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
                first = consumer.next() => first,
            };
            let deliveries = batch(first, consumer).await.map_err(|error| match error {
                Some(error) => broker(session.describe(&error)),
                None => {
                    SourceFailure::Broker("the broker cancelled the consumer; is the queue deleted?".into())
                }
            })?;
            let tags: Vec<_> = deliveries.iter().map(|delivery| delivery.delivery_tag).collect();
            let most = intake.max_event_bytes();
            let messages = deliveries.into_iter().map(|delivery| self.incoming(delivery, most)).collect();
            let settled = intake.offer(messages).await.map_err(|error| match error {
                IntakeError::Held => SourceFailure::Held,
                IntakeError::Stopping => SourceFailure::Stopping,
            })?;
            let acknowledged = acknowledge(channel, &tags, &settled).await;
            acknowledged.map_err(|error| broker(session.describe(&error)))?;
        }
    }

    fn incoming(&self, delivery: Delivery, max_bytes: usize) -> Incoming {
        let message = read(delivery);
        let draft = message.draft(&self.source, max_bytes);
        Incoming { draft, shown: message.shown(), body: message.body }
    }
}

#[async_trait]
impl SourceClient for AmqpClient {
    async fn run(&mut self, intake: &Intake, mut stop: StopSignal) -> Result<(), SourceFailure> {
        let mut stopped = stop.clone();
        let opened = async {
            let session = self.connect().await?;
            let channel = session.channel().await.map_err(broker)?;
            let consumer = self.consume(&channel).await;
            let consumer = consumer.map_err(|error| broker(session.describe(&error)))?;
            Ok((session, channel, consumer))
        };
        let (session, channel, mut consumer) = tokio::select! {
            opened = tokio::time::timeout(2 * SESSION_TIMEOUT, opened) => {
                opened.unwrap_or_else(|_| Err(SourceFailure::Broker("the broker does not answer".to_owned())))?
            }
            _ = stopped.wait_for(|stop| *stop) => return Ok(()),
        };
        intake.on_connected();
        // The connection is closed when it is dropped; the broker then sends again what was not
        // acknowledged.
        self.take(&session, &channel, &mut consumer, intake, &mut stop).await
    }
}

/// The first message and those that follow it soon. `None` in the error: the consumer has ended.
async fn batch(
    first: Option<lapin::Result<Delivery>>,
    consumer: &mut Consumer,
) -> Result<Vec<Delivery>, Option<lapin::Error>> {
    let mut deliveries = vec![first.ok_or(None)?.map_err(Some)?];
    let deadline = tokio::time::Instant::now() + BATCH_WAIT;
    let mut bytes = deliveries[0].data.len();
    while deliveries.len() < BATCH_MESSAGES_MAX && bytes < crate::limits::BATCH_BYTES_MAX {
        match tokio::time::timeout_at(deadline, consumer.next()).await {
            Ok(Some(Ok(delivery))) => {
                bytes += delivery.data.len();
                deliveries.push(delivery);
            }
            // The end is seen again by the next call, after this batch.
            Ok(Some(Err(_)) | None) | Err(_) => break,
        }
    }
    Ok(deliveries)
}

/// Acknowledges messages whose fate is durable. One acknowledgement covers all before it, so a
/// rejection is sent between two of them.
async fn acknowledge(channel: &Channel, tags: &[u64], settled: &[Settled]) -> lapin::Result<()> {
    let mut pending = None;
    for (tag, fate) in tags.iter().zip(settled) {
        match fate {
            Settled::Done => pending = Some(*tag),
            Settled::Rejected => {
                if let Some(tag) = pending.take() {
                    channel.basic_ack(tag, BasicAckOptions { multiple: true }).await?;
                }
                channel.basic_reject(*tag, BasicRejectOptions { requeue: false }).await?;
            }
        }
    }
    if let Some(tag) = pending {
        channel.basic_ack(tag, BasicAckOptions { multiple: true }).await?;
    }
    Ok(())
}

fn read(delivery: Delivery) -> Message {
    let properties = &delivery.properties;
    let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
    let headers = properties.headers().iter().flat_map(|table| table.inner().iter());
    let headers = headers.filter_map(|(name, value)| Some((name.to_string(), header_text(value)?)));
    Message {
        routing_key: delivery.routing_key.to_string(),
        exchange: delivery.exchange.to_string(),
        message_id: text(properties.message_id()),
        kind: text(properties.kind()),
        content_type: text(properties.content_type()),
        timestamp: *properties.timestamp(),
        headers: headers.collect(),
        redelivered: delivery.redelivered,
        body: delivery.data,
    }
}

fn header_text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        AMQPValue::Boolean(value) => Some(value.to_string()),
        AMQPValue::ShortShortInt(value) => Some(value.to_string()),
        AMQPValue::ShortShortUInt(value) => Some(value.to_string()),
        AMQPValue::ShortInt(value) => Some(value.to_string()),
        AMQPValue::ShortUInt(value) => Some(value.to_string()),
        AMQPValue::LongInt(value) => Some(value.to_string()),
        AMQPValue::LongUInt(value) => Some(value.to_string()),
        AMQPValue::LongLongInt(value) => Some(value.to_string()),
        _ => None,
    }
}

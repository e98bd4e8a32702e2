//! The client of a RabbitMQ queue.

use async_trait::async_trait;
use futures_util::{Stream, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer, ExchangeKind};

use super::message::Message;
use super::{Incoming, Intake, IntakeError, Settled, SourceClient, SourceFailure, StopSignal, Unsettled};
use crate::context::Context;
use crate::courier::broker::short;
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
            let MessageBatch { deliveries, end } = batch(first, consumer).await;
            let tags: Vec<_> = deliveries.iter().map(|delivery| delivery.delivery_tag).collect();
            let most = intake.max_event_bytes();
            let messages = deliveries.into_iter().map(|delivery| self.incoming(delivery, most)).collect();
            let (settled, failure) = match intake.offer(messages).await {
                Ok(settled) => (settled.into_iter().map(Some).collect(), None),
                Err(Unsettled { why: IntakeError::Held, settled }) => (settled, Some(SourceFailure::Held)),
                Err(Unsettled { why: IntakeError::Stopping, settled }) => {
                    (settled, Some(SourceFailure::Stopping))
                }
            };
            let answered = send_answers(channel, answers(&tags, &settled)).await;
            let ended = end.map(|end| match end {
                ConsumerEnd::Failed(error) => broker(session.describe(&error)),
                ConsumerEnd::Cancelled => {
                    SourceFailure::Broker("the broker cancelled the consumer; is the queue deleted?".into())
                }
            });
            if let Some(failure) = failure.or(ended) {
                return Err(failure);
            }
            answered.map_err(|error| broker(session.describe(&error)))?;
        }
    }

    fn incoming(&self, delivery: Delivery, max_bytes: usize) -> Incoming {
        let message = read(delivery);
        let draft = message.draft(&self.source, max_bytes);
        let id = message.dedup_id(&self.source).map(ToOwned::to_owned);
        Incoming { draft, id, shown: message.shown(), body: message.body }
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

/// Why a consumer yields no more messages.
#[derive(Debug)]
enum ConsumerEnd {
    Failed(lapin::Error),
    Cancelled,
}

/// Messages of one commit.
#[derive(Debug)]
struct MessageBatch {
    deliveries: Vec<Delivery>,
    /// lapin yields the end of a consumer once, and nothing after it.
    end: Option<ConsumerEnd>,
}

impl MessageBatch {
    /// Takes an item of the consumer. Returns the bytes of its message.
    fn add(&mut self, item: Option<lapin::Result<Delivery>>) -> usize {
        match item {
            Some(Ok(delivery)) => {
                let bytes = delivery.data.len();
                self.deliveries.push(delivery);
                return bytes;
            }
            Some(Err(error)) => self.end = Some(ConsumerEnd::Failed(error)),
            None => self.end = Some(ConsumerEnd::Cancelled),
        }
        0
    }
}

/// The first item of a consumer and those that follow it soon.
async fn batch(
    first: Option<lapin::Result<Delivery>>,
    consumer: &mut (impl Stream<Item = lapin::Result<Delivery>> + Unpin),
) -> MessageBatch {
    let mut batch = MessageBatch { deliveries: Vec::new(), end: None };
    let deadline = tokio::time::Instant::now() + BATCH_WAIT;
    let mut bytes = batch.add(first);
    while batch.end.is_none()
        && batch.deliveries.len() < BATCH_MESSAGES_MAX
        && bytes < crate::limits::BATCH_BYTES_MAX
    {
        match tokio::time::timeout_at(deadline, consumer.next()).await {
            Ok(item) => bytes += batch.add(item),
            Err(_) => break,
        }
    }
    batch
}

/// An answer to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BrokerAnswer {
    /// Acknowledges this message and all before it.
    AckThrough(u64),
    Ack(u64),
    Reject(u64),
}

/// The answers for messages whose fate is durable. One acknowledgement covers all before it, so a
/// rejection comes between two of them, and the messages after an unsettled one have their own.
fn answers(tags: &[u64], settled: &[Option<Settled>]) -> Vec<BrokerAnswer> {
    let (mut answers, mut pending, mut has_gap) = (Vec::new(), None, false);
    for (tag, fate) in tags.iter().zip(settled) {
        if *fate != Some(Settled::Done) {
            answers.extend(pending.take().map(BrokerAnswer::AckThrough));
        }
        match fate {
            Some(Settled::Done) if has_gap => answers.push(BrokerAnswer::Ack(*tag)),
            Some(Settled::Done) => pending = Some(*tag),
            Some(Settled::Rejected) => answers.push(BrokerAnswer::Reject(*tag)),
            None => has_gap = true,
        }
    }
    answers.extend(pending.map(BrokerAnswer::AckThrough));
    answers
}

async fn send_answers(channel: &Channel, answers: Vec<BrokerAnswer>) -> lapin::Result<()> {
    for answer in answers {
        match answer {
            BrokerAnswer::AckThrough(tag) => {
                channel.basic_ack(tag, BasicAckOptions { multiple: true }).await?;
            }
            BrokerAnswer::Ack(tag) => channel.basic_ack(tag, BasicAckOptions { multiple: false }).await?,
            BrokerAnswer::Reject(tag) => {
                channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await?;
            }
        }
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

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, stream};

    use super::*;

    fn delivery(tag: u64) -> Delivery {
        Delivery::mock(tag, short("shop"), short("pet.sold"), false, b"{}".to_vec())
    }

    #[tokio::test]
    async fn end_of_a_consumer_comes_with_its_batch() {
        // The end comes once; the stream then stays pending, as a consumer of lapin does.
        let ends: [fn() -> Option<lapin::Result<Delivery>>; 2] =
            [|| None, || Some(Err(lapin::ErrorKind::MissingHeartbeatError.into()))];
        for end in ends {
            let items = stream::iter([Some(Ok(delivery(1))), end()]);
            let mut items = Box::pin(items.chain(stream::pending()));
            let mut consumer = stream::poll_fn(move |cx| items.poll_next_unpin(cx).map(Option::flatten));
            let first = consumer.next().await;
            let found = batch(first, &mut consumer).await;
            let tags: Vec<_> = found.deliveries.iter().map(|delivery| delivery.delivery_tag).collect();
            assert_eq!(tags, [1]);
            let is_cancelled = matches!(found.end, Some(ConsumerEnd::Cancelled));
            assert_eq!((is_cancelled, found.end.is_some()), (end().is_none(), true));
            assert!(consumer.next().now_or_never().is_none(), "the end comes once");
        }
    }

    #[test]
    fn unsettled_message_is_not_acknowledged() {
        let (done, rejected) = (Some(Settled::Done), Some(Settled::Rejected));
        let fates = [done, done, rejected, done, None, done, rejected, done];
        let found = answers(&[1, 2, 3, 4, 5, 6, 7, 8], &fates);
        let expected = {
            use BrokerAnswer::{Ack, AckThrough, Reject};
            [AckThrough(2), Reject(3), AckThrough(4), Ack(6), Reject(7), Ack(8)]
        };
        assert_eq!(found, expected);
        assert_eq!(answers(&[1, 2], &[done, done]), [BrokerAnswer::AckThrough(2)]);
    }
}

//! A source and its broker. The broker survives the crashes of the daemon, and sends again what was
//! not acknowledged. Publishers sometimes send a message twice, or an invalid one.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use tokio::sync::watch;

use super::world::{Inner, World};
use crate::context::Context;
use crate::domain::{EventId, Record, Source, SourceFormat, SourceTenant, Tenant};
use crate::service::event_types::Unregistered;
use crate::sources::{
    Incoming, Intake, IntakeError, Message, Settled, SourceOptions, Unsettled, parked_key, sample_source,
};

/// Its own tenant, which has no quotas: the last messages must become durable at the end.
const TENANT: &str = "broker";
const EVENT_BYTES_MAX: usize = 1_000;

/// A message at the broker. Equal numbers are the same message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BrokerMessage {
    number: u64,
    redelivered: bool,
}

impl BrokerMessage {
    fn id(self) -> String {
        format!("message-{}", self.number)
    }

    fn is_valid(self) -> bool {
        !self.number.is_multiple_of(4)
    }

    fn incoming(self) -> Incoming {
        let body = if self.is_valid() { format!("{{\"n\":{}}}", self.number) } else { "{".to_owned() };
        let message = Message {
            routing_key: "broker.note".to_owned(),
            message_id: Some(self.id()),
            content_type: (!self.is_valid()).then(|| "application/cloudevents+json".to_owned()),
            redelivered: self.redelivered,
            body: body.into_bytes(),
            ..Message::default()
        };
        let draft = message.draft(&source(), EVENT_BYTES_MAX);
        Incoming { draft, id: Some(self.id()), shown: message.shown(), body: message.body }
    }
}

/// The queue of the source.
#[derive(Debug, Default)]
pub(super) struct Broker {
    /// Messages that are not acknowledged, oldest first.
    waiting: VecDeque<BrokerMessage>,
    sent: u64,
    /// Numbers of messages that were acknowledged.
    acknowledged: BTreeSet<u64>,
    /// The life with an open consumer.
    consumed_in: Option<u32>,
}

impl Broker {
    /// Messages for the consumer of a life, unless it has some already.
    fn take(&mut self, life: u32, most: usize) -> Vec<BrokerMessage> {
        if self.consumed_in == Some(life) || self.waiting.is_empty() {
            return Vec::new();
        }
        self.consumed_in = Some(life);
        let taken = self.waiting.iter().take(most).copied().collect();
        self.waiting.iter_mut().take(most).for_each(|message| message.redelivered = true);
        taken
    }

    fn acknowledge(&mut self, message: BrokerMessage) {
        let at = self.waiting.iter().position(|waiting| waiting.number == message.number);
        self.waiting.remove(at.expect("the messages of a consumer wait for its answers"));
        self.acknowledged.insert(message.number);
    }
}

fn source() -> Source {
    let tenant = SourceTenant::Fixed(TENANT.parse().expect("a legal tenant"));
    Source { tenant, ..sample_source(SourceFormat::Auto) }
}

/// Publishers send messages to the broker, or the source takes some.
pub(super) async fn work(context: &Context, world: &World) {
    let sends = world.with(|inner| {
        let sends = inner.chance.percent(50);
        for _ in 0..if sends { inner.chance.within(1, 3) } else { 0 } {
            let broker = &mut inner.broker;
            let is_repeated = broker.sent > 0 && inner.chance.percent(20);
            broker.sent += u64::from(!is_repeated);
            let number = if is_repeated { inner.chance.within(1, broker.sent) } else { broker.sent };
            broker.waiting.push_back(BrokerMessage { number, redelivered: false });
        }
        sends
    });
    if !sends {
        let loses_answers = world.chance(|chance| chance.percent(20));
        take(context, world, loses_answers).await;
    }
}

/// Takes the messages that are left.
pub(super) async fn finish(context: &Context, world: &World) {
    while world.is_alive() && !world.with(|inner| inner.broker.waiting.is_empty()) {
        if !take(context, world, false).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Offers a batch of messages, and acknowledges those that are settled. Returns whether there were
/// messages. `loses_answers`: the connection fails before the acknowledgements.
async fn take(context: &Context, world: &World, loses_answers: bool) -> bool {
    let (life, taken) = world.with(|inner| {
        let most = inner.chance.within(1, 4) as usize;
        (inner.life, inner.broker.take(inner.life, most))
    });
    if taken.is_empty() {
        return false;
    }
    let options = SourceOptions { max_event_bytes: EVENT_BYTES_MAX, unregistered: Unregistered::Accepted };
    let (_stop, stopped) = watch::channel(false);
    let intake = Intake::new(context.clone(), &source(), options, stopped);
    let offered = intake.offer(taken.iter().map(|message| message.incoming()).collect()).await;
    if !world.is_alive() {
        return false;
    }
    let (settled, is_stopping) = match offered {
        Ok(settled) => (settled.into_iter().map(Some).collect(), false),
        Err(Unsettled { why, settled }) => (settled, why == IntakeError::Stopping),
    };
    let violation = world.with(|inner| {
        let mut violation = None;
        for (message, fate) in taken.into_iter().zip(settled) {
            inner.note(format_args!("{} is {fate:?}", message.id()));
            let Some(fate) = fate else { continue };
            violation = violation.or_else(|| check_settled(inner, message, fate));
            if loses_answers {
                inner.count("acknowledgementsLost");
            } else {
                inner.count("messagesAcknowledged");
                inner.broker.acknowledge(message);
            }
        }
        inner.broker.consumed_in = inner.broker.consumed_in.filter(|consumed| *consumed != life);
        violation
    });
    if let Some(violation) = violation {
        world.record_violation(violation);
    }
    !is_stopping
}

/// Checks that a message is durable before its acknowledgement.
fn check_settled(inner: &Inner, message: BrokerMessage, fate: Settled) -> Option<String> {
    let is_durable = fate == Settled::Done && events(inner, message) > 0;
    (!is_durable).then(|| format!("{} is settled as {fate:?} before it is durable", message.id()))
}

/// Checks that each acknowledged message is one event, unless retention may have removed it before
/// a repetition.
pub(super) fn check_end(inner: &Inner) -> Result<(), String> {
    for number in &inner.broker.acknowledged {
        let message = BrokerMessage { number: *number, redelivered: false };
        let found = events(inner, message);
        if found == 0 || (found > 1 && inner.plan.keep.is_none()) {
            return Err(format!("{} is acknowledged and is {found} events", message.id()));
        }
    }
    if inner.broker.waiting.is_empty() { Ok(()) } else { Err("messages are left at the broker".to_owned()) }
}

/// The number of events that were ever made of a message.
fn events(inner: &Inner, message: BrokerMessage) -> usize {
    let id: EventId = message.id().parse().expect("a legal id");
    // An erasure removes the data of an operator event, and keeps its key.
    let parked = parked_key(&source().name, id.as_str(), &message.incoming().body);
    let is_of_message = |record: &Record| match record {
        Record::EventAccepted(event) if message.is_valid() => {
            event.tenant.as_str() == TENANT && event.id == id
        }
        Record::EventAccepted(event) => {
            event.tenant.as_str() == Tenant::OPERATOR
                && event.idempotency.iter().any(|key| key.scope == parked.scope)
        }
        _ => false,
    };
    inner.model.records.iter().filter(|(_, record)| is_of_message(record)).count()
}

//! How a subscriber gets its deliveries.

use std::time::Duration;

use super::{Event, QueueName};

/// How the deliveries of an endpoint leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EndpointTransport {
    /// Requests to the endpoint's URL.
    #[default]
    Http,
    /// Workers take them.
    Queue(QueueTarget),
    /// Messages to an exchange of the broker at the endpoint's URL.
    Amqp(AmqpTarget),
}

/// The part of a queue's policy that other endpoints lack. The visibility of a new lease is the
/// endpoint's `timeout`, the limit of messages under lease its `max_in_flight`, and the bounds of
/// deliveries and age those of its `retry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueTarget {
    /// Unique per tenant, among live queues.
    pub name: QueueName,
    /// Longest time from the start of a lease to its end, extensions included.
    pub lease_max: Duration,
}

/// The exchange that an endpoint publishes to. The credentials are the endpoint's `auth`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmqpTarget {
    /// Empty: the default exchange, whose routing key is the name of a queue.
    pub exchange: Box<str>,
    pub routing_key: RoutingKey,
    /// Whether each new channel declares the exchange, as a durable topic exchange.
    pub declares: bool,
}

/// The routing key of an endpoint's messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RoutingKey {
    #[default]
    Type,
    /// The stream of the event. An event without one is routed by its type.
    Stream,
    /// The ordering key of the event. An event without one is routed by its type.
    OrderingKey,
    Literal(Box<str>),
}

impl RoutingKey {
    /// The routing key of an event's message.
    #[must_use]
    pub fn of<'a>(&'a self, event: &'a Event) -> &'a str {
        let chosen = match self {
            Self::Type => None,
            Self::Stream => event.stream.as_ref().map(|(stream, _)| stream.as_str()),
            Self::OrderingKey => event.ordering_key.as_ref().map(super::OrderingKey::as_str),
            Self::Literal(text) => Some(&**text),
        };
        chosen.unwrap_or(event.event_type.as_str())
    }
}

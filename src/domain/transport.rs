//! How a subscriber gets its deliveries.

use std::time::Duration;

use super::QueueName;

/// How the deliveries of an endpoint leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EndpointTransport {
    /// Requests to the endpoint's URL.
    #[default]
    Http,
    /// Workers take them.
    Queue(QueueTarget),
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

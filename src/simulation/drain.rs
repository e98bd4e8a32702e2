//! The time in which all deliveries must end once receivers and disk are healthy.
//!
//! The rate of an endpoint lets one delivery out per interval, so a backlog may take longer than
//! any fixed time. The allowance is that of the endpoint whose backlog takes longest: lanes wait
//! for their rates side by side, and without a slot.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::model::Model;
use crate::domain::{DeliveryKey, Endpoint, EndpointNumber};
use crate::rules::handshake;

/// Simulated time for everything but the waits for rates.
const DRAIN_MAX: Duration = Duration::from_secs(600);

/// A drain in progress.
#[derive(Debug)]
pub(super) struct Drain {
    began: Instant,
    /// Deliveries that were pending since then.
    waited: BTreeSet<DeliveryKey>,
}

impl Drain {
    pub(super) fn begin() -> Self {
        Self { began: Instant::now(), waited: BTreeSet::new() }
    }

    /// Notes the pending deliveries. Returns whether they take longer than they may.
    pub(super) fn takes_too_long(&mut self, model: &Model) -> bool {
        self.waited.extend(model.pending().map(|(key, _)| *key));
        self.began.elapsed() > DRAIN_MAX + time_of_rates(&self.waited, model)
    }
}

/// Time that the deliveries may wait for the rates of their endpoints.
fn time_of_rates(deliveries: &BTreeSet<DeliveryKey>, model: &Model) -> Duration {
    let mut counts: BTreeMap<EndpointNumber, u32> = BTreeMap::new();
    for key in deliveries {
        *counts.entry(key.endpoint).or_default() += 1;
    }
    let waits = counts.into_iter().map(|(number, count)| {
        let known = model.subscriber(number).filter(|known| !known.deleted);
        known.map_or(Duration::ZERO, |known| interval(&known.endpoint) * count)
    });
    waits.max().unwrap_or_default()
}

/// Time between two requests at the rate of an endpoint.
fn interval(endpoint: &Endpoint) -> Duration {
    handshake::rate(endpoint).map_or(Duration::ZERO, |rate| rate.per / rate.limit)
}

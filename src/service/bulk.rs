//! Shared parts of bulk operations: the size of a step, the command that revives deliveries.

use std::collections::BTreeMap;

use crate::domain::{DeadReason, DeliveryKey, EndpointNumber, Record, Timestamp, Trigger};
use crate::failpoints::Bound;
use crate::outbox::unit::Command;
use crate::{failpoints, limits};

pub(crate) fn revive_command(deliveries: Vec<DeliveryKey>, trigger: Trigger, at: Timestamp) -> Command {
    Command::Record(Record::DeliveriesRevived { deliveries, trigger, at })
}

/// Maximum number of deliveries in one step. A step is one record.
pub(crate) fn deliveries_per_step() -> usize {
    failpoints::bound(Bound::BulkDeliveries, limits::BULK_STEP_DELIVERIES)
}

/// Deliveries that died together for one reason. Operator events report each endpoint once.
#[derive(Debug)]
pub(crate) struct Deaths {
    reason: DeadReason,
    /// The first dead delivery of each endpoint, and their number.
    by_endpoint: BTreeMap<EndpointNumber, (DeliveryKey, u64)>,
}

impl Deaths {
    pub(crate) fn new(reason: DeadReason) -> Self {
        Self { reason, by_endpoint: BTreeMap::new() }
    }

    pub(crate) fn reason(&self) -> DeadReason {
        self.reason
    }

    pub(crate) fn add(&mut self, delivery: DeliveryKey) {
        self.by_endpoint.entry(delivery.endpoint).or_insert((delivery, 0)).1 += 1;
    }

    pub(crate) fn by_endpoint(&self) -> impl Iterator<Item = (DeliveryKey, u64)> {
        self.by_endpoint.values().copied()
    }
}

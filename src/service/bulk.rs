//! Shared parts of bulk operations: the size of a step, the command that revives deliveries.

use crate::domain::{DeliveryKey, Record, Timestamp, Trigger};
use crate::failpoints::Bound;
use crate::outbox::draft::ChangeError;
use crate::outbox::unit::Command;
use crate::{failpoints, limits};

pub(crate) fn revive_command(deliveries: Vec<DeliveryKey>, trigger: Trigger, at: Timestamp) -> Command {
    Command::Record(Record::DeliveriesRevived { deliveries, trigger, at })
}

pub(crate) const DELETED: ChangeError = ChangeError::NotAllowed("the endpoint was deleted");

/// Maximum number of deliveries in one step. A step is one record.
pub(crate) fn deliveries_per_step() -> usize {
    failpoints::bound(Bound::BulkDeliveries, limits::BULK_DELIVERIES_MAX)
}

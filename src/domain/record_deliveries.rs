//! The deliveries that a record changes.

use super::{DeliveryKey, EndedLease, EndpointNumber, LeaseKey, Position, Record, TakenMessage};

/// See [`Record::deliveries`].
#[derive(Clone, Copy, Debug)]
pub enum RecordDeliveries<'a> {
    None,
    One(DeliveryKey),
    Listed(&'a [DeliveryKey]),
    /// An event, and its targets.
    Begun(Position, &'a [EndpointNumber]),
    Taken(EndpointNumber, &'a [TakenMessage]),
    Ended(EndpointNumber, &'a [EndedLease]),
    Extended(EndpointNumber, &'a [LeaseKey]),
}

impl RecordDeliveries<'_> {
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Listed(deliveries) => deliveries.len(),
            Self::Begun(_, targets) => targets.len(),
            Self::Taken(_, messages) => messages.len(),
            Self::Ended(_, ends) => ends.len(),
            Self::Extended(_, leases) => leases.len(),
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn at(&self, index: usize) -> Option<DeliveryKey> {
        let of_queue = |event, queue: &EndpointNumber| DeliveryKey { event, endpoint: *queue };
        match self {
            Self::None => None,
            Self::One(delivery) => Some(*delivery),
            Self::Listed(deliveries) => deliveries.get(index).copied(),
            Self::Begun(event, targets) => {
                targets.get(index).map(|endpoint| DeliveryKey { event: *event, endpoint: *endpoint })
            }
            Self::Taken(queue, messages) => messages.get(index).map(|taken| of_queue(taken.event, queue)),
            Self::Ended(queue, ends) => ends.get(index).map(|ended| of_queue(ended.key.event, queue)),
            Self::Extended(queue, leases) => leases.get(index).map(|lease| of_queue(lease.event, queue)),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = DeliveryKey> + '_ {
        (0..self.len()).filter_map(|index| self.at(index))
    }
}

impl Record {
    /// The deliveries that the record changes; of an event, those that it begins. `position` is the
    /// record's.
    #[must_use]
    pub fn deliveries(&self, position: Position) -> RecordDeliveries<'_> {
        match self {
            Self::EventAccepted(event) => RecordDeliveries::Begun(position, &event.targets),
            Self::AttemptFinished { delivery, .. } => RecordDeliveries::One(*delivery),
            Self::DeliveriesRevived { deliveries, .. }
            | Self::DeliveriesCancelled { deliveries, .. }
            | Self::DeliveriesDied { deliveries, .. }
            | Self::DeadLettersPurged { deliveries, .. }
            | Self::DeliveriesReordered { deliveries, .. } => RecordDeliveries::Listed(deliveries),
            Self::MessagesLeased { queue, messages, .. } => RecordDeliveries::Taken(*queue, messages),
            Self::LeasesEnded { queue, ends, .. } => RecordDeliveries::Ended(*queue, ends),
            Self::LeasesExtended { queue, leases, .. } => RecordDeliveries::Extended(*queue, leases),
            Self::EndpointPut(_)
            | Self::EndpointDeleted { .. }
            | Self::KeyPut(_)
            | Self::KeyDeleted { .. }
            | Self::KeyUsed { .. }
            | Self::TenantPut(_)
            | Self::TenantDeleted { .. }
            | Self::HorizonMoved { .. }
            | Self::TypePut(_)
            | Self::TypeDeleted { .. }
            | Self::SourcePut(_)
            | Self::SourceDeleted { .. }
            | Self::RequestAnswered { .. }
            | Self::RateReserved { .. }
            | Self::EventRejected { .. }
            | Self::ConsumerPut(_)
            | Self::ConsumerMoved { .. }
            | Self::ConsumerDeleted { .. }
            | Self::EventErased { .. }
            | Self::JobPut(_)
            | Self::JobMoved { .. }
            | Self::Audited(_) => RecordDeliveries::None,
        }
    }
}

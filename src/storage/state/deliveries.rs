//! How many deliveries a record changes: the size of its application.

use crate::domain::Record;

/// Number of deliveries that a record changes.
pub(super) fn deliveries_of(record: &Record) -> usize {
    match record {
        Record::EventAccepted(event) => event.targets.len(),
        Record::AttemptFinished { .. } => 1,
        Record::DeliveriesRevived { deliveries, .. }
        | Record::DeliveriesCancelled { deliveries, .. }
        | Record::DeliveriesDied { deliveries, .. }
        | Record::DeadLettersPurged { deliveries, .. }
        | Record::DeliveriesReordered { deliveries, .. } => deliveries.len(),
        Record::MessagesLeased { messages, .. } => messages.len(),
        Record::LeasesEnded { ends, .. } => ends.len(),
        Record::LeasesExtended { leases, .. } => leases.len(),
        Record::EndpointPut(_)
        | Record::EndpointDeleted { .. }
        | Record::KeyPut(_)
        | Record::KeyDeleted { .. }
        | Record::TenantPut(_)
        | Record::TenantDeleted { .. }
        | Record::HorizonMoved { .. }
        | Record::TypePut(_)
        | Record::TypeDeleted { .. }
        | Record::SourcePut(_)
        | Record::SourceDeleted { .. }
        | Record::RequestAnswered { .. }
        | Record::RateReserved { .. }
        | Record::EventRejected { .. }
        | Record::ConsumerPut(_)
        | Record::ConsumerMoved { .. }
        | Record::ConsumerDeleted { .. }
        | Record::EventErased { .. }
        | Record::JobPut(_)
        | Record::JobMoved { .. }
        | Record::Audited(_) => 0,
    }
}

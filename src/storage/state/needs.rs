//! The records that the state still needs in the journal.

use super::State;
use super::overlay::Overlay;
use super::registry_keys::use_key;
use crate::domain::{DeliveryKey, Event, IdMap, Position, Record};
use crate::failpoints::{self, Mutation};
use crate::projections::rows::Rows;
use crate::projections::{acts, consumers, counters, erasures, idempotency, jobs, pages, reserved, streams};

impl State {
    /// Whether the state still needs a record. An unneeded record is never needed again.
    pub fn needs_record(&self, events: &mut EventLookup, position: Position, record: &Record) -> bool {
        if position > self.applied {
            return true;
        }
        let of_any = |deliveries: &[DeliveryKey], events: &mut EventLookup| {
            deliveries.iter().any(|delivery| events.contains(&self.rows, delivery.event))
        };
        match record {
            Record::EventAccepted(_) if failpoints::is_active(Mutation::DropNeeded) => false,
            Record::EventAccepted(event) => {
                events.contains(&self.rows, position) || self.holds_stream_or_request(event, position)
            }
            Record::AttemptFinished { delivery, .. } => {
                let lane = counters::lane(&self.rows, delivery.endpoint);
                events.contains(&self.rows, delivery.event)
                    || lane.last_success == position
                    || lane.hold.is_some_and(|(_, held_by)| held_by == position)
            }
            Record::RateReserved { endpoint, .. } => {
                reserved::latest(&self.rows, *endpoint).is_some_and(|latest| latest.position == position)
            }
            // These records are few and small, and a rebuild needs them: each later record is
            // judged with the registry of its time.
            Record::EndpointPut(_)
            | Record::EndpointDeleted { .. }
            | Record::KeyPut(_)
            | Record::KeyDeleted { .. }
            | Record::TenantPut(_)
            | Record::TenantDeleted { .. }
            | Record::TypePut(_)
            | Record::TypeDeleted { .. }
            | Record::SourcePut(_)
            | Record::SourceDeleted { .. }
            | Record::ConsumerPut(_)
            | Record::ConsumerDeleted { .. } => true,
            Record::ConsumerMoved { key, .. } => {
                consumers::row(&self.rows, key).is_some_and(|row| row.moved == position)
            }
            Record::KeyUsed { id, .. } => {
                self.rows.get(&use_key(id)).is_some_and(|last| last == position.0.to_be_bytes())
            }
            Record::HorizonMoved { .. } => position == self.fold.horizon.record,
            Record::JobPut(_) => jobs::row(&self.rows, position).is_some(),
            Record::JobMoved { job, .. } => {
                jobs::row(&self.rows, *job).is_some_and(|row| row.moved == position)
            }
            Record::Audited(_) => acts::is_kept(&self.rows, position),
            Record::DeliveriesRevived { deliveries, .. }
            | Record::DeliveriesCancelled { deliveries, .. }
            | Record::DeliveriesDied { deliveries, .. }
            | Record::DeadLettersPurged { deliveries, .. }
            | Record::DeliveriesReordered { deliveries, .. } => of_any(deliveries, events),
            Record::MessagesLeased { messages, .. } => {
                messages.iter().any(|taken| events.contains(&self.rows, taken.event))
            }
            Record::LeasesEnded { ends, .. } => {
                ends.iter().any(|ended| events.contains(&self.rows, ended.key.event))
            }
            Record::LeasesExtended { leases, .. } => {
                leases.iter().any(|lease| events.contains(&self.rows, lease.event))
            }
            Record::EventErased { event, .. } => {
                events.contains(&self.rows, *event) || erasures::is_pending(&self.rows, *event)
            }
            Record::RequestAnswered { idempotency, .. } | Record::EventRejected { idempotency, .. } => {
                idempotency::known(&self.rows, &idempotency.scope)
                    .is_some_and(|known| known.position == position)
            }
        }
    }

    /// Whether a deleted event still defines a stream's version or the response of a stored
    /// request.
    fn holds_stream_or_request(&self, event: &Event, position: Position) -> bool {
        let head = event.stream.as_ref().and_then(|(stream, _)| {
            streams::head(&self.rows, &event.tenant, stream).filter(|head| head.last == position)
        });
        let remembered = || {
            let expiring = event.idempotency.iter().filter(|idempotency| idempotency.expires_at.is_some());
            let mut known =
                expiring.filter_map(|idempotency| idempotency::known(&self.rows, &idempotency.scope));
            known.any(|known| known.position == position)
        };
        head.is_some() || remembered()
    }
}

/// Cached lookups of the events in the state, by page.
#[derive(Debug, Default)]
pub struct EventLookup {
    pages: IdMap<u64, Vec<Position>>,
}

impl EventLookup {
    fn contains(&mut self, rows: &Overlay, position: Position) -> bool {
        let page = pages::page_of(position);
        let known = self.pages.entry(page).or_insert_with(|| pages::positions(rows, page));
        known.binary_search(&position).is_ok()
    }
}

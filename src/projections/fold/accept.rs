//! Application of new events, in parts of their deliveries.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::Step;
use crate::domain::{DeliveryKey, Event, Position, Progress, Tenant, Trigger};
use crate::projections::pages::{EventEntry, TargetList, Width};
use crate::projections::pending::{OrderId, Row};
use crate::projections::states::StatePlace;
use crate::projections::{idempotency, streams};

impl Step<'_> {
    /// Adds the deliveries to `targets`, a range of the event's endpoints. The part that begins at
    /// 0 also adds the event.
    pub(super) fn accept(&mut self, event: &Event, targets: Range<usize>, announced: bool) {
        let (due, order) = (event.first_due(), order_of(event, self.position));
        if targets.start == 0 {
            self.add_event(event, order);
        }
        let width = Width::of(&event.targets);
        let progress = Progress::begin(0, due, Trigger::Publish);
        for index in targets {
            let endpoint = event.targets[index];
            let delivery = DeliveryKey { event: self.position, endpoint };
            let order = self.queue_for(endpoint, order);
            let place = StatePlace::of_target(width, index);
            self.add_pending(delivery, due, Row { progress, order, place }, announced && order.is_none());
        }
    }

    fn add_event(&mut self, event: &Event, order: OrderId) {
        self.fold.totals.events += 1;
        let entry = EventEntry {
            position: self.position,
            accepted_at: event.accepted_at,
            first_due: event.first_due(),
            tenant: event.tenant.as_str().into(),
            event_type: event.event_type.as_str().into(),
            stream: event.stream.as_ref().map(|(name, version)| (name.as_str().into(), *version)),
            order,
            bytes: event.stored_bytes(),
            targets: TargetList::write(self.rows, self.position, &event.targets),
            // The record of the erasure sets it, also if this record has lost the content: what
            // preceded the erasure still applies.
            erased_at: None,
        };
        self.count_type(event);
        self.count_event(&event.tenant, event.accepted_at);
        let usage = self.usage(&event.tenant);
        usage.events += 1;
        usage.bytes += entry.bytes;
        self.fold.blocks.add_event(self.rows, self.fold.checkpoint, &entry);
        if let Some((stream, version)) = &event.stream {
            streams::append(self.rows, &event.tenant, stream, *version, event.accepted_at, self.position);
        }
        for idempotency in &event.idempotency {
            idempotency::remember(self.rows, self.fold.checkpoint, idempotency, self.position);
        }
    }
}

/// Distinguishes the orders of keys from those of single events, which are positions.
const KEY_ORDER: OrderId = 1 << 63;

/// Order of an event: that of its ordering key, else of its stream. An event without both is alone
/// in its order.
pub(super) fn order_of(event: &Event, position: Position) -> OrderId {
    let key = event.ordering_key.as_ref().map(|key| key.as_str());
    let key = key.or_else(|| event.stream.as_ref().map(|(stream, _)| stream.as_str()));
    key.map_or(position.0, |key| key_order(&event.tenant, key))
}

/// The order of a key: the first 8 bytes of the SHA-256 of the tenant's length, the tenant and the
/// key, with the highest bit set. No tenant can choose a key with the order of another one, or
/// that of a single event. It must never change, because rows store it.
#[must_use]
pub fn key_order(tenant: &Tenant, key: &str) -> OrderId {
    let tenant = tenant.as_str().as_bytes();
    let hash = Sha256::new_with_prefix((tenant.len() as u64).to_be_bytes());
    let hash = hash.chain_update(tenant).chain_update(key).finalize();
    KEY_ORDER | OrderId::from_be_bytes(hash[..8].try_into().expect("a hash has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_of_tenants_are_apart() {
        let hash = |tenant: &str, key| key_order(&tenant.parse().unwrap(), key);
        assert_ne!(hash("acme", "acme"), hash("globex", "globex"), "a key that is the tenant's name");
        assert_ne!(hash("a", "b"), hash("b", "a"));
        assert_ne!(hash("ab", "c"), hash("a", "bc"));
        assert_eq!(hash("acme", "k"), hash("acme", "k"));
        assert_ne!(hash("acme", "k") & KEY_ORDER, 0, "it may be that of a single event");
    }
}

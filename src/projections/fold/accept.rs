//! Application of new events, in parts of their deliveries.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::Step;
use crate::domain::{DeliveryKey, Event, Progress, Tenant, Trigger};
use crate::projections::pages::{EventEntry, TargetList, Width};
use crate::projections::pending::{OrderHash, Row, WHOLE_ENDPOINT};
use crate::projections::states::StatePlace;
use crate::projections::{idempotency, streams};

impl Step<'_> {
    /// Adds the deliveries to `targets`, a range of the event's endpoints. The part that begins at
    /// 0 also adds the event.
    pub(super) fn accept(&mut self, event: &Event, targets: Range<usize>, announced: bool) {
        let (due, key) = (event.first_due(), order_hash(&event.tenant, ordering_key(event)));
        if targets.start == 0 {
            self.add_event(event, key);
        }
        let width = Width::of(&event.targets);
        let progress = Progress::begin(0, due, Trigger::Publish);
        for index in targets {
            let endpoint = event.targets[index];
            let delivery = DeliveryKey { event: self.position, endpoint };
            let order = self.queue_for(endpoint, key);
            let place = StatePlace::of_target(width, index);
            self.add_pending(delivery, due, Row { progress, order, place }, announced && order.is_none());
        }
    }

    fn add_event(&mut self, event: &Event, key: OrderHash) {
        self.fold.totals.events += 1;
        let entry = EventEntry {
            position: self.position,
            accepted_at: event.accepted_at,
            first_due: event.first_due(),
            tenant: event.tenant.as_str().into(),
            event_type: event.event_type.as_str().into(),
            stream: event.stream.as_ref().map(|(name, version)| (name.as_str().into(), *version)),
            order: key,
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

/// The order of a key: the first 8 bytes of the SHA-256 of the tenant's length, the tenant and the
/// key. No tenant can choose a key with the order of another one. It must never change, because
/// rows store it.
#[must_use]
pub fn order_hash(tenant: &Tenant, key: &str) -> OrderHash {
    let tenant = tenant.as_str().as_bytes();
    let hash = Sha256::new_with_prefix((tenant.len() as u64).to_be_bytes());
    let hash = hash.chain_update(tenant).chain_update(key).finalize();
    let first = OrderHash::from_be_bytes(hash[..8].try_into().expect("a hash has 32 bytes"));
    // Not that of the endpoint's order.
    if first == WHOLE_ENDPOINT { 1 } else { first }
}

/// Ordering key of an event: its own, else its stream, else its unique id.
fn ordering_key(event: &Event) -> &str {
    match (&event.ordering_key, &event.stream) {
        (Some(key), _) => key.as_str(),
        (None, Some((stream, _))) => stream.as_str(),
        (None, None) => event.id.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_of_tenants_are_apart() {
        let hash = |tenant: &str, key| order_hash(&tenant.parse().unwrap(), key);
        assert_ne!(hash("acme", "acme"), hash("globex", "globex"), "a key that is the tenant's name");
        assert_ne!(hash("a", "b"), hash("b", "a"));
        assert_ne!(hash("ab", "c"), hash("a", "bc"));
        assert_eq!(hash("acme", "k"), hash("acme", "k"));
    }
}

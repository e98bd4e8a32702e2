//! Continues the trace of an event in its deliveries.

use std::num::NonZeroU64;

use sha2::{Digest, Sha256};

use crate::domain::{DeliveryKey, Event, TraceParent, attribute};

/// The `traceparent` of one attempt: the event's trace and a unique, deterministic span. So the
/// span of an attempt is known without storing it. `None` if the event has no valid `traceparent`.
#[must_use]
pub fn traceparent(event: &Event, delivery: DeliveryKey, attempt: u32) -> Option<TraceParent> {
    let parent = TraceParent::parse(event.attribute(attribute::TRACE_PARENT)?)?;
    Some(parent.child(span_id(event, delivery, attempt)))
}

/// Hashes the event id too: a trace may pass through several daemons with equal positions and
/// numbers.
fn span_id(event: &Event, delivery: DeliveryKey, attempt: u32) -> NonZeroU64 {
    let mut hasher = Sha256::new();
    hasher.update(event.id.as_str());
    hasher.update(delivery.event.0.to_be_bytes());
    hasher.update(delivery.endpoint.0.to_be_bytes());
    hasher.update(attempt.to_be_bytes());
    let digest: [u8; 32] = hasher.finalize().into();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    NonZeroU64::new(u64::from_be_bytes(first)).unwrap_or(NonZeroU64::MIN)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::domain::{EndpointNumber, Position, Timestamp};

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03";

    fn event(id: &str, parent: &str) -> Event {
        Event {
            id: id.parse().unwrap(),
            tenant: "default".parse().unwrap(),
            event_type: "a".parse().unwrap(),
            version: "1.0".parse().unwrap(),
            timestamp: Timestamp::ZERO,
            accepted_at: Timestamp::ZERO,
            stream: None,
            ordering_key: None,
            deliver_at: None,
            labels: Vec::new(),
            metadata: None,
            attributes: vec![(attribute::TRACE_PARENT.into(), parent.into())],
            data: bytes::Bytes::from_static(b"1"),
            targets: Vec::new(),
            idempotency: Vec::new(),
            erased_at: None,
        }
    }

    #[test]
    fn each_attempt_has_a_unique_deterministic_span() {
        let mut seen = BTreeSet::from([PARENT.to_owned()]);
        for id in ["evt_1", "evt_2"] {
            for position in 1..20 {
                for number in 1..20 {
                    for attempt in 1..4 {
                        let key = DeliveryKey { event: Position(position), endpoint: EndpointNumber(number) };
                        let made = || traceparent(&event(id, PARENT), key, attempt).unwrap().to_string();
                        assert_eq!(made(), made());
                        assert_eq!((&made()[..36], &made()[52..]), (&PARENT[..36], "-03"));
                        assert!(seen.insert(made()), "{id} {key:?} {attempt}");
                    }
                }
            }
        }
    }

    #[test]
    fn missing_or_malformed_parent_gives_no_traceparent() {
        let key = DeliveryKey { event: Position(1), endpoint: EndpointNumber(1) };
        assert_eq!(traceparent(&event("e", "00-nonsense"), key, 1), None);
        assert_eq!(traceparent(&Event { attributes: Vec::new(), ..event("e", PARENT) }, key, 1), None);
    }
}

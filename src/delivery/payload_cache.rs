//! A bounded cache of events from acceptance to first attempt. The journal has evicted events.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::domain::{Event, IdMap, Position};
use crate::failpoints::Bound;
use crate::{failpoints, limits};

#[derive(Debug, Default)]
pub(crate) struct Payloads {
    events: IdMap<Position, (Arc<Event>, usize)>,
    order: VecDeque<Position>,
    bytes: usize,
}

impl Payloads {
    /// Caches an event until each target has taken it. Evicts the oldest events beyond the bound.
    pub(crate) fn insert(&mut self, position: Position, event: &Arc<Event>) {
        if event.targets.is_empty() {
            return;
        }
        self.bytes += event.weight();
        self.events.insert(position, (event.clone(), event.targets.len()));
        self.order.push_back(position);
        while self.bytes > failpoints::bound(Bound::PayloadBytes, limits::PAYLOAD_CACHE_BYTES_MAX) {
            let Some(oldest) = self.order.pop_front() else { return };
            self.remove(oldest);
        }
    }

    /// Takes the event for one of its targets.
    pub(crate) fn take(&mut self, position: Position) -> Option<Arc<Event>> {
        let (event, targets_left) = self.events.get_mut(&position)?;
        let event = event.clone();
        *targets_left -= 1;
        if *targets_left == 0 {
            self.remove(position);
            // Compacts a queue that consists mostly of removed events behind an old one.
            if self.order.len() > 2 * self.events.len() + 1_024 {
                self.order.retain(|position| self.events.contains_key(position));
            }
        }
        Some(event)
    }

    /// Drops an erased event.
    pub(crate) fn forget(&mut self, position: Position) {
        self.remove(position);
    }

    fn remove(&mut self, position: Position) {
        if let Some((event, _)) = self.events.remove(&position) {
            self.bytes -= event.weight();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::EndpointNumber;
    use crate::rules::tests::event;

    #[test]
    fn all_event_fields_count_towards_the_byte_bound() {
        let large = 16 * 1024;
        let text: Box<str> = "x".repeat(large).into();
        let name = "x".repeat(limits::NAME_BYTES_MAX);
        let base = size_of::<Event>();
        let variants = [
            (base + large, Event { data: vec![b'1'; large].into(), ..event() }),
            (base + large, Event { metadata: Some(vec![b' '; large].into()), ..event() }),
            (base + large, Event { attributes: vec![(text.clone(), "a".into())], ..event() }),
            (base + large, Event { attributes: vec![("a".into(), text)], ..event() }),
            (base + 4 * large, Event { targets: vec![EndpointNumber(1); large], ..event() }),
            (
                base + 2 * name.len(),
                Event {
                    stream: Some((name.parse().unwrap(), 1)),
                    ordering_key: Some(name.parse().unwrap()),
                    ..event()
                },
            ),
            (base, event()),
        ];
        for (bytes_min, event) in variants {
            let event = Arc::new(event);
            let fit = limits::PAYLOAD_CACHE_BYTES_MAX / bytes_min;
            let mut payloads = Payloads::default();
            for position in 0..=fit as u64 {
                payloads.insert(Position(position), &event);
            }
            let count = payloads.events.len();
            assert!(count <= fit, "{count} cached events of at least {bytes_min} bytes");
            assert!(payloads.take(Position(0)).is_none(), "the oldest event was not evicted");
            assert!(payloads.take(Position(fit as u64)).is_some());
        }
    }
}

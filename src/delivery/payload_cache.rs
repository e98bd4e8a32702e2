//! Events between acceptance and first send, within a byte bound. What does not fit is read back from the journal.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::domain::{Event, Position};
use crate::failpoints::Bound;
use crate::{failpoints, limits};

#[derive(Debug, Default)]
pub(crate) struct Payloads {
    events: HashMap<Position, (Arc<Event>, usize)>,
    order: VecDeque<Position>,
    bytes: usize,
}

impl Payloads {
    /// Keeps an event until each of its targets has taken it, or until newer ones need the room.
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

    /// One target takes it.
    pub(crate) fn take(&mut self, position: Position) -> Option<Arc<Event>> {
        let (event, targets_left) = self.events.get_mut(&position)?;
        let event = event.clone();
        *targets_left -= 1;
        if *targets_left == 0 {
            self.remove(position);
            // Most places in the queue may be of events that have gone, behind an old one that nobody takes.
            if self.order.len() > 2 * self.events.len() + 1_024 {
                self.order.retain(|position| self.events.contains_key(position));
            }
        }
        Some(event)
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
    fn all_that_an_event_holds_counts_towards_the_bound() {
        let large = 16 * 1024;
        let text: Box<str> = "x".repeat(large).into();
        let name = "x".repeat(limits::NAME_BYTES_MAX);
        let own = size_of::<Event>();
        let variants = [
            (own + large, Event { data: vec![b'1'; large].into(), ..event() }),
            (own + large, Event { metadata: Some(vec![b' '; large].into()), ..event() }),
            (own + large, Event { attributes: vec![(text.clone(), "a".into())], ..event() }),
            (own + large, Event { attributes: vec![("a".into(), text)], ..event() }),
            (own + 4 * large, Event { targets: vec![EndpointNumber(1); large], ..event() }),
            (
                own + 2 * name.len(),
                Event {
                    stream: Some((name.parse().unwrap(), 1)),
                    ordering_key: Some(name.parse().unwrap()),
                    ..event()
                },
            ),
            (own, event()),
        ];
        for (least, event) in variants {
            let event = Arc::new(event);
            let fit = limits::PAYLOAD_CACHE_BYTES_MAX / least;
            let mut payloads = Payloads::default();
            for position in 0..=fit as u64 {
                payloads.insert(Position(position), &event);
            }
            assert!(payloads.events.len() <= fit, "{} of at least {least} bytes", payloads.events.len());
            assert!(payloads.take(Position(0)).is_none(), "the oldest goes first");
            assert!(payloads.take(Position(fit as u64)).is_some());
        }
    }
}

//! Events between acceptance and first send, within a byte bound. What does not fit is read back from the journal.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::domain::{Event, Position};
use crate::limits;

/// Bytes that an event holds beside its data.
const EVENT_OVERHEAD_BYTES: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Payloads {
    events: HashMap<Position, (Arc<Event>, usize)>,
    order: VecDeque<Position>,
    bytes: usize,
}

fn weight(event: &Event) -> usize {
    EVENT_OVERHEAD_BYTES + event.data.len()
}

impl Payloads {
    /// Keeps an event until each of its targets has taken it, or until newer ones need the room.
    pub(super) fn insert(&mut self, position: Position, event: &Arc<Event>) {
        if event.targets.is_empty() {
            return;
        }
        self.bytes += weight(event);
        self.events.insert(position, (event.clone(), event.targets.len()));
        self.order.push_back(position);
        while self.bytes > limits::PAYLOAD_CACHE_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            self.remove(oldest);
        }
    }

    /// One target takes it.
    pub(super) fn take(&mut self, position: Position) -> Option<Arc<Event>> {
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
            self.bytes -= weight(&event);
        }
    }
}

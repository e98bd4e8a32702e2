//! The tail: the last committed events in memory, for the readers of the feed.
//!
//! Owns a ring of events, bounded in bytes, and the position that wakes readers. The commit thread
//! adds each durable group before it answers its callers. A group without events wakes no reader.
//! Invariant: the ring has every event after [`Ring::complete_after`], each with one encoding that
//! all readers share.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use tokio::sync::watch;

use crate::domain::{Event, EventVersion, Horizon, Position, Record, Timestamp};
use crate::failpoints::{self, Bound, Mutation};
use crate::limits;
use crate::rules::feed::FeedFilter;

/// An event with its position, and its encodings once a reader has made them.
#[derive(Debug)]
pub struct FeedEvent {
    pub position: Position,
    pub event: Arc<Event>,
    /// The version as published, if the reader's is another one.
    pub stored_version: Option<EventVersion>,
    /// Why the event is not in the version that the reader wants.
    pub conversion_error: Option<Box<str>>,
    /// The JSON of the event, and its block of a `text/event-stream`.
    pub json: OnceLock<Bytes>,
    pub block: OnceLock<Bytes>,
}

impl FeedEvent {
    #[must_use]
    pub fn new(position: Position, event: Arc<Event>) -> Self {
        Self {
            position,
            event,
            stored_version: None,
            conversion_error: None,
            json: OnceLock::new(),
            block: OnceLock::new(),
        }
    }

    /// Bytes in memory, with both encodings.
    fn weight(&self) -> usize {
        3 * self.event.weight()
    }
}

/// Part of the ring that a reader wants.
#[derive(Clone, Debug)]
pub struct TailPage {
    pub events: Vec<Arc<FeedEvent>>,
    /// Every event up to here has been looked at.
    pub looked_at: Position,
    /// The last committed position.
    pub head: Position,
}

/// See the module.
#[derive(Debug)]
pub struct Tail {
    ring: RwLock<Ring>,
    /// Position of the last event.
    last_event: watch::Sender<Position>,
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<Arc<FeedEvent>>,
    bytes: usize,
    complete_after: Position,
    head: Position,
    horizon: Horizon,
}

impl Tail {
    /// An empty tail of a journal that ends at `head`.
    #[must_use]
    pub fn new(head: Position, horizon: Horizon) -> Self {
        let ring = Ring { events: VecDeque::new(), bytes: 0, complete_after: head, head, horizon };
        Self { ring: RwLock::new(ring), last_event: watch::Sender::new(head) }
    }

    /// Adds a durable group. Readers are woken by [`Self::wake`].
    pub fn on_commit(&self, records: &[(Position, Record)]) {
        let Some((head, _)) = records.last() else { return };
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        ring.head = *head;
        for (position, record) in records {
            match record {
                Record::EventAccepted(event) => {
                    ring.push(Arc::new(FeedEvent::new(*position, Arc::clone(event))));
                }
                Record::HorizonMoved { horizon, .. } => ring.horizon = *horizon,
                Record::EventErased { event, at, .. } => ring.erase(*event, *at),
                _ => {}
            }
        }
    }

    /// Wakes the readers if there are new events since the last call.
    pub fn wake(&self) {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let last = ring.events.back().map(|event| event.position);
        drop(ring);
        self.last_event.send_if_modified(|known| match last {
            Some(last) if last > *known => {
                *known = last;
                true
            }
            _ => false,
        });
    }

    /// The last committed position.
    #[must_use]
    pub fn head(&self) -> Position {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).head
    }

    /// How far retention may have forgotten events. Never behind the state.
    #[must_use]
    pub fn horizon(&self) -> Horizon {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).horizon
    }

    /// Positions up to here may be missing.
    #[must_use]
    pub fn complete_after(&self) -> Position {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).complete_after
    }

    /// Changes after each group with events.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Position> {
        self.last_event.subscribe()
    }

    /// Wanted events after a position, at most `limit`. `None` if the ring does not have all of
    /// them.
    #[must_use]
    pub fn after(&self, filter: &FeedFilter, after: Position, limit: usize) -> Option<TailPage> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        if after < ring.complete_after {
            return None;
        }
        let mut page = TailPage { events: Vec::new(), looked_at: after, head: ring.head };
        let mut sieve = filter.sieve();
        let first = ring.events.partition_point(|event| event.position <= after);
        for event in ring.events.range(first..) {
            if page.events.len() >= limit || sieve.work >= limits::SCAN_ENTRIES_MAX {
                return Some(page);
            }
            page.looked_at = event.position;
            if sieve.wants(&event.event) {
                page.events.push(Arc::clone(event));
            }
        }
        page.looked_at = page.looked_at.max(ring.head);
        Some(page)
    }
}

impl Ring {
    /// Replaces an event, and drops its encodings.
    fn erase(&mut self, position: Position, at: Timestamp) {
        if let Ok(number) = self.events.binary_search_by_key(&position, |event| event.position) {
            let before = &mut self.events[number];
            self.bytes -= before.weight();
            *before = Arc::new(FeedEvent::new(position, Arc::new(before.event.erased(at))));
            self.bytes += before.weight();
        }
    }

    fn push(&mut self, event: Arc<FeedEvent>) {
        self.bytes += event.weight();
        self.events.push_back(event);
        while self.bytes > failpoints::bound(Bound::TailBytes, limits::TAIL_BYTES_MAX)
            && let Some(oldest) = self.events.pop_front()
        {
            self.bytes -= oldest.weight();
            if !failpoints::is_active(Mutation::TailGap) {
                self.complete_after = oldest.position;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(bytes: usize) -> Record {
        let event = crate::rules::tests::event();
        Record::EventAccepted(Arc::new(Event { data: vec![b'1'; bytes].into(), ..event }))
    }

    fn positions(page: &TailPage) -> Vec<u64> {
        page.events.iter().map(|event| event.position.0).collect()
    }

    #[test]
    fn readers_before_the_ring_get_nothing() {
        let tail = Tail::new(Position(10), Horizon::default());
        let filter = FeedFilter::default();
        assert!(tail.after(&filter, Position(9), 10).is_none());
        let page = tail.after(&filter, Position(10), 10).unwrap();
        assert_eq!((positions(&page), page.looked_at), (vec![], Position(10)));
        tail.on_commit(&[(Position(11), event(1)), (Position(12), event(1))]);
        let page = tail.after(&filter, Position(10), 1).unwrap();
        assert_eq!((positions(&page), page.looked_at, page.head), (vec![11], Position(11), Position(12)));
        let page = tail.after(&filter, Position(10), 2).unwrap();
        assert_eq!((positions(&page), page.looked_at), (vec![11, 12], Position(12)));
    }

    #[test]
    fn ring_is_bounded_in_bytes() {
        let tail = Tail::new(Position(0), Horizon::default());
        let large = limits::EVENT_BYTES_MAX;
        for at in 1..=40 {
            tail.on_commit(&[(Position(at), event(large))]);
        }
        let ring = tail.ring.read().unwrap();
        assert!(ring.bytes <= limits::TAIL_BYTES_MAX && ring.events.len() > 5);
        assert_eq!(ring.complete_after.next(), ring.events[0].position);
    }

    #[test]
    fn erased_event_has_no_content_in_the_ring() {
        let tail = Tail::new(Position(0), Horizon::default());
        tail.on_commit(&[(Position(1), event(1_000)), (Position(2), event(1_000))]);
        let read = || tail.after(&FeedFilter::default(), Position(0), 9).unwrap().events;
        read()[0].json.set(Bytes::from_static(b"content")).unwrap();
        let (tenant, at) = ("default".parse().unwrap(), Timestamp::from_millis(7));
        let erased = Record::EventErased { event: Position(1), tenant, at, reason: "a".into() };
        tail.on_commit(&[(Position(3), erased)]);
        let events = read();
        assert_eq!((events[0].event.erased_at, events[0].event.data.len()), (Some(at), 0));
        assert_eq!((events[0].json.get(), events[1].event.data.len()), (None, 1_000));
        let bytes: usize = events.iter().map(|event| event.weight()).sum();
        assert_eq!(tail.ring.read().unwrap().bytes, bytes);
    }

    #[test]
    fn only_events_wake_readers() {
        let tail = Tail::new(Position(0), Horizon::default());
        let mut watch = tail.watch();
        let at = crate::domain::Timestamp::ZERO;
        let endpoint = crate::domain::EndpointNumber(1);
        tail.on_commit(&[(Position(1), Record::EndpointDeleted { endpoint, at })]);
        tail.wake();
        assert!(!watch.has_changed().unwrap());
        assert_eq!(tail.head(), Position(1));
        tail.on_commit(&[(Position(2), event(1))]);
        tail.wake();
        assert!(watch.has_changed().unwrap());
        assert_eq!(*watch.borrow_and_update(), Position(2));
        tail.wake();
        assert!(!watch.has_changed().unwrap());
    }
}

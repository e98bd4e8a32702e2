//! Places of pending deliveries after a change of ordering, and due deliveries that wait.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::domain::{Endpoint, Event, OrderingKey, Record, Tenant};
use crate::projections::fold::key_order;
use crate::projections::{Fold, LaneChange, counters};

const ONE: EndpointNumber = EndpointNumber(1);

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

#[derive(Default)]
struct World {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    fold: Fold,
    last: u64,
}

impl World {
    /// A world with an endpoint of this ordering.
    fn new(ordering: Ordering) -> Self {
        let mut world = Self::default();
        world.order(ordering);
        world
    }

    fn apply(&mut self, record: &Record) -> Vec<LaneChange> {
        self.last += 1;
        let mut changes = Vec::new();
        self.fold.apply(&mut self.rows, Position(self.last), record, false, &mut changes);
        self.fold.write_tallies(&mut self.rows);
        changes
    }

    fn order(&mut self, ordering: Ordering) {
        let known = crate::rules::tests::endpoint(ONE.0, Tenant::DEFAULT, &[]);
        self.apply(&Record::EndpointPut(Arc::new(Endpoint { ordering, ..known })));
    }

    /// Accepts an event for the endpoint. Returns its position.
    fn event(&mut self, time: u64, key: Option<&str>, deliver_at: Option<u64>) -> u64 {
        let event = Event {
            id: format!("evt_{}", self.last + 1).parse().unwrap(),
            tenant: "default".parse().unwrap(),
            event_type: "a.b".parse().unwrap(),
            version: "1.0".parse().unwrap(),
            timestamp: at(time),
            accepted_at: at(time),
            stream: None,
            ordering_key: key.map(|key| key.parse::<OrderingKey>().unwrap()),
            deliver_at: deliver_at.map(at),
            labels: Vec::new(),
            metadata: None,
            attributes: Vec::new(),
            data: "1".into(),
            targets: vec![ONE],
            idempotency: Vec::new(),
            erased_at: None,
        };
        self.apply(&Record::EventAccepted(Arc::new(event)));
        self.last
    }

    fn reorder(&mut self, events: &[u64]) -> Vec<LaneChange> {
        let deliveries = events.iter().map(|event| delivery(*event)).collect();
        self.apply(&Record::DeliveriesReordered { deliveries, at: at(0) })
    }

    fn sendable(&self) -> Vec<u64> {
        refill(&self.rows, ONE, None, usize::MAX).0.into_iter().map(|(key, _)| key.event.0).collect()
    }

    fn waiting(&self) -> (u64, u64) {
        let lane = counters::lane(&self.rows, ONE);
        (lane.pending, lane.waiting)
    }

    /// All misplaced deliveries, and the number of steps.
    fn misplaced(&self, ordering: Ordering, limit: usize) -> (Vec<u64>, usize) {
        let (mut all, mut after, mut steps) = (Vec::new(), None, 0);
        loop {
            let step = misplaced(&self.rows, ONE, ordering, after, limit);
            assert!(step.deliveries.len() <= limit);
            assert!(step.deliveries.is_sorted(), "not in order of acceptance: {:?}", step.deliveries);
            all.extend(step.deliveries.into_iter().map(|delivery| delivery.event.0));
            steps += 1;
            after = step.next;
            if after.is_none() {
                return (all, steps);
            }
        }
    }

    fn due_behind(&self, now: u64) -> Option<u64> {
        due_behind(&self.rows, ONE, 0, at(now), usize::MAX).oldest.map(Timestamp::millis)
    }
}

fn delivery(event: u64) -> DeliveryKey {
    DeliveryKey { event: Position(event), endpoint: ONE }
}

fn settled(due: u64, event: u64, position: u64) -> LaneChange {
    let key = DueKey { due: at(due), event: Position(event) };
    LaneChange::Settled { endpoint: ONE, key, at: Position(position) }
}

#[test]
fn removed_ordering_moves_the_queue_to_the_lane() {
    let mut world = World::new(Ordering::Endpoint);
    let events: Vec<_> = (10..14).map(|time| world.event(time, None, None)).collect();
    assert_eq!((world.sendable(), world.waiting()), (events[..1].to_vec(), (4, 3)));
    assert!(world.misplaced(Ordering::Endpoint, 10).0.is_empty());
    world.order(Ordering::None);
    assert_eq!(world.misplaced(Ordering::None, 10), (events.clone(), 1));
    assert_eq!(world.misplaced(Ordering::None, 1), (events.clone(), 4), "one step per delivery");
    world.reorder(&events[..1]);
    assert_eq!(world.sendable(), events[..2], "the queue releases its next delivery");
    world.reorder(&events[2..]);
    assert_eq!(world.misplaced(Ordering::None, 10).0, events[1..2]);
    world.reorder(&events);
    assert_eq!((world.sendable(), world.waiting()), (events.clone(), (4, 0)));
    assert!(world.misplaced(Ordering::None, 10).0.is_empty());
    assert_eq!(world.reorder(&events), [], "a second time changes nothing");
}

#[test]
fn added_ordering_moves_the_lane_to_the_queue() {
    let mut world = World::new(Ordering::None);
    let events: Vec<_> = (10..13).map(|time| world.event(time, Some("k"), None)).collect();
    world.order(Ordering::Endpoint);
    let new = world.event(13, Some("k"), None);
    assert_eq!(world.misplaced(Ordering::Endpoint, 2), (events.clone(), 2), "the new one is in place");
    let changes = world.reorder(&events);
    let position = world.last;
    let expected: Vec<_> = (10..).zip(&events).map(|(due, event)| settled(due, *event, position)).collect();
    assert_eq!(changes, expected, "older deliveries wait behind the sendable one");
    assert_eq!((world.sendable(), world.waiting()), (vec![new], (4, 3)));
    // The others follow in order of acceptance.
    for next in events {
        let deliveries = vec![delivery(world.sendable()[0])];
        world.apply(&Record::DeliveriesCancelled { deliveries, at: at(20) });
        assert_eq!(world.sendable(), [next]);
    }
}

#[test]
fn changed_ordering_keeps_due_times() {
    let mut world = World::new(Ordering::Endpoint);
    let first = world.event(10, Some("a"), None);
    let second = world.event(11, Some("b"), Some(50));
    let third = world.event(12, Some("a"), None);
    // A manual retry of a sendable delivery, and of a waiting one.
    for (event, time) in [(first, 30), (third, 31)] {
        let deliveries = vec![delivery(event)];
        world.apply(&Record::DeliveriesRevived { deliveries, trigger: Trigger::Manual, at: at(time) });
    }
    world.order(Ordering::Key);
    let all = [first, second, third];
    assert_eq!(world.misplaced(Ordering::Key, 10).0, all);
    world.reorder(&all);
    assert_eq!((world.sendable(), world.waiting()), (vec![first, second], (3, 1)));
    assert_eq!(
        queued(&world.rows, delivery(third), key_order(&crate::rules::tests::event().tenant, "a")).unwrap().0,
        at(31)
    );
    let lane: Vec<_> = refill(&world.rows, ONE, None, 9).0.into_iter().map(|(key, _)| key.due).collect();
    assert_eq!(lane, [at(30), at(50)]);
    world.order(Ordering::Endpoint);
    assert_eq!(world.misplaced(Ordering::Endpoint, 10).0, all);
    world.reorder(&all);
    assert_eq!((world.sendable(), world.waiting()), (vec![first], (3, 2)));
    assert!(world.misplaced(Ordering::Endpoint, 10).0.is_empty());
}

#[test]
fn reorder_ignores_ended_and_unknown_deliveries() {
    let mut world = World::new(Ordering::Endpoint);
    let (ended, left) = (world.event(10, None, None), world.event(11, None, None));
    world.apply(&Record::DeliveriesCancelled { deliveries: vec![delivery(ended)], at: at(20) });
    world.order(Ordering::None);
    assert_eq!(world.reorder(&[ended, 77]), []);
    assert_eq!(world.misplaced(Ordering::None, 10).0, [left]);
}

#[test]
fn misplaced_takes_several_steps_in_a_long_lane() {
    let mut world = World::new(Ordering::Key);
    let count = limits::SCAN_ENTRIES_MAX as u64 + 1;
    for time in 0..count {
        world.event(time, None, None);
    }
    assert_eq!(world.misplaced(Ordering::Key, 10), (vec![], 2), "each delivery has its own queue");
}

#[test]
fn due_behind_finds_waiting_deliveries_that_are_due() {
    let mut world = World::new(Ordering::Endpoint);
    let head = world.event(10, None, None);
    assert_eq!(world.due_behind(99), None, "no delivery waits");
    world.event(11, None, Some(60));
    world.event(12, None, None);
    world.event(13, None, None);
    assert_eq!(world.due_behind(11), None, "no waiting delivery is due");
    assert_eq!(world.due_behind(59), Some(12));
    assert_eq!(world.due_behind(60), Some(60), "the first due one of the queue");
    world.apply(&Record::DeliveriesRevived {
        deliveries: vec![delivery(head)],
        trigger: Trigger::Manual,
        at: at(70),
    });
    assert_eq!(world.due_behind(59), Some(12), "the due time of the head is irrelevant");
    // The first delivery of a queue is not always the sendable one.
    let mut world = World::new(Ordering::None);
    world.event(10, None, None);
    world.order(Ordering::Endpoint);
    world.event(11, None, None);
    world.reorder(&[2]);
    assert_eq!((world.sendable(), world.due_behind(99)), (vec![4], Some(10)));
}

#[test]
fn due_behind_step_is_bounded_and_names_the_next_queue() {
    let mut world = World::new(Ordering::Key);
    let shared = ["a", "b", "c", "d"];
    for (time, key) in (10..).zip(shared.iter().chain(&shared)) {
        world.event(time, Some(key), None);
        world.event(time, None, None);
    }
    let (mut found, mut next, mut steps) = (Vec::new(), Some(0), 0);
    while let Some(from) = next {
        let step = due_behind(&world.rows, ONE, from, at(99), 2);
        assert!((1..=4).contains(&step.looked_at), "{step:?}");
        found.extend(step.oldest.map(Timestamp::millis));
        (next, steps) = (step.next, steps + 1);
    }
    assert_eq!((found.iter().min(), steps > 4), (Some(&14), true), "{found:?} in {steps}");
    // The search does not reach deliveries far behind in a queue.
    let mut world = World::new(Ordering::Endpoint);
    for time in 0..=QUEUE_SCAN_MAX as u64 {
        world.event(time, None, Some(1_000));
    }
    world.event(99, None, None);
    assert_eq!((world.due_behind(999), world.due_behind(1_000)), (None, Some(1_000)));
}

#[test]
fn row_keeps_its_number_of_lost_answers() {
    for (place, order) in
        [(StatePlace::Page, None), (StatePlace::Part(300), Some(7)), (StatePlace::Page, Some(7))]
    {
        let mut sizes = Vec::new();
        for lost_answers in [0, 1, 300] {
            let progress = Progress { lost_answers, ..Progress::begin(2, at(5), Trigger::Replay) };
            let (row, mut bytes) = (Row { progress, order, place }, Vec::new());
            row.encode(&mut bytes);
            assert_eq!(Row::decode(&mut Reader::new(&bytes)), Ok(row));
            sizes.push(bytes.len());
        }
        assert_eq!((sizes[1] - sizes[0], sizes[2] - sizes[0]), (1, 2), "{place:?}");
    }
}

//! Expired events, kept events, and the results of a step.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::domain::{Attempt, DeadReason, Event, Next, Record, StreamName, Trigger};
use crate::projections::{Fold, reads};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

struct World {
    rows: Map,
    fold: Fold,
    next: u64,
}

impl World {
    fn new() -> Self {
        Self { rows: Map::new(), fold: Fold::default(), next: 1 }
    }

    fn apply(&mut self, record: &Record) -> Position {
        let position = Position(self.next);
        self.fold.apply(&mut self.rows, position, record, false, &mut Vec::new());
        self.fold.write_tallies(&mut self.rows);
        self.next += 1;
        position
    }

    /// As the retention task does before it forgets.
    fn move_horizon(&mut self, cutoffs: Cutoffs) {
        let wanted = horizon(&self.rows, cutoffs, 0, usize::MAX);
        self.fold.horizon.horizon = self.fold.horizon.horizon.max(wanted);
    }

    fn event(&mut self, time: u64, targets: &[u32], stream: bool) -> Position {
        let stream = stream.then(|| ("s".parse::<StreamName>().unwrap(), self.next));
        let event = Event {
            id: format!("evt_{}", self.next).parse().unwrap(),
            tenant: "default".parse().unwrap(),
            event_type: "a.b".parse().unwrap(),
            version: "1.0".parse().unwrap(),
            timestamp: at(time),
            accepted_at: at(time),
            stream,
            ordering_key: None,
            deliver_at: None,
            labels: Vec::new(),
            metadata: None,
            attributes: Vec::new(),
            data: "1".into(),
            targets: targets.iter().map(|number| crate::domain::EndpointNumber(*number)).collect(),
            idempotency: Vec::new(),
            erased_at: None,
        };
        self.apply(&Record::EventAccepted(Arc::new(event)))
    }

    fn attempt(&mut self, event: Position, endpoint: u32, accepted: u64, time: u64, next: Next) -> Position {
        let delivery = DeliveryKey { event, endpoint: crate::domain::EndpointNumber(endpoint) };
        let attempt =
            Attempt { started_at: at(time), status: Some(200), error: None, next, ..Attempt::for_tests() };
        self.apply(&Record::AttemptFinished { delivery, due: at(accepted), attempt: Arc::new(attempt) })
    }

    fn forget(&mut self, events: Option<u64>, stream_events: Option<u64>) -> Forgotten {
        let cutoffs = Cutoffs { events: events.map(at), stream_events: stream_events.map(at) };
        self.move_horizon(cutoffs);
        self.fold.forget(&mut self.rows, cutoffs, 0, usize::MAX)
    }

    fn has_event(&self, position: Position) -> bool {
        reads::has_event(&self.rows, position)
    }
}

#[test]
fn event_expires_if_its_deliveries_ended_before_the_cutoff() {
    let mut world = World::new();
    let unmatched = world.event(10, &[], false);
    let event = world.event(10, &[1, 2], false);
    let first = world.attempt(event, 1, 10, 20, Next::Delivered);
    assert_eq!(world.forget(Some(100), None).positions, [unmatched], "one delivery is pending");
    let second = world.attempt(event, 2, 10, 50, Next::Delivered);
    assert_eq!(world.forget(Some(50), None).events, 0, "ended at the cutoff, not before");
    let forgotten = world.forget(Some(51), None);
    assert_eq!((forgotten.events, forgotten.positions.len()), (1, 3));
    assert!([event, first, second].iter().all(|position| forgotten.positions.contains(position)));
    assert!(!world.has_event(event));
    let key = DeliveryKey { event, endpoint: crate::domain::EndpointNumber(1) };
    assert!(reads::delivery(&world.rows, key).is_none());
}

#[test]
fn pending_and_dead_deliveries_never_expire() {
    let mut world = World::new();
    let pending = world.event(10, &[1], false);
    let dead = world.event(10, &[1], false);
    let retried = world.event(10, &[1], false);
    world.attempt(dead, 1, 10, 20, Next::Dead(DeadReason::Gone));
    world.attempt(retried, 1, 10, 20, Next::RetryAt(at(30)));
    assert_eq!(world.forget(Some(u64::MAX / 2), None).events, 0);
    assert!([pending, dead, retried].into_iter().all(|position| world.has_event(position)));
    let delivery = DeliveryKey { event: dead, endpoint: crate::domain::EndpointNumber(1) };
    world.apply(&Record::DeadLettersPurged { deliveries: vec![delivery], at: at(60) });
    assert_eq!(world.forget(Some(60), None).events, 0, "purged at the cutoff, not before");
    assert_eq!(world.forget(Some(61), None).events, 1);
    assert!(!world.has_event(dead) && world.has_event(pending));
}

#[test]
fn pending_replay_keeps_the_event() {
    let mut world = World::new();
    let event = world.event(10, &[], false);
    let delivery = DeliveryKey { event, endpoint: crate::domain::EndpointNumber(7) };
    world.apply(&Record::DeliveriesRevived {
        deliveries: vec![delivery],
        trigger: Trigger::Replay,
        at: at(40),
    });
    assert_eq!(world.forget(Some(1_000), None).events, 0);
    world.attempt(event, 7, 40, 50, Next::Delivered);
    assert_eq!(world.forget(Some(1_000), None).events, 1);
}

#[test]
fn stream_events_have_a_separate_cutoff() {
    let mut world = World::new();
    let (mut plain, mut streamed) = (Vec::new(), Vec::new());
    for number in 0..2_000 {
        let event = world.event(10 + number, &[1], number % 2 == 0);
        world.attempt(event, 1, 10 + number, 10 + number, Next::Delivered);
        if number % 2 == 0 { streamed.push(event) } else { plain.push(event) }
    }
    let before: Vec<_> = streamed.iter().map(|event| reads::deliveries_of(&world.rows, *event)).collect();
    world.fold.on_checkpoint();
    assert_eq!(world.forget(Some(5_000), None).events, 1_000);
    assert!(plain.iter().all(|event| !world.has_event(*event)));
    let after: Vec<_> = streamed.iter().map(|event| reads::deliveries_of(&world.rows, *event)).collect();
    assert_eq!(before, after);
    assert_eq!(world.forget(None, Some(1_010)).events, 500, "events accepted before the cutoff");
    assert_eq!(world.forget(None, None), Forgotten::default());
}

#[test]
fn overdue_deliveries_are_pending_and_due_before_the_cutoff() {
    let mut world = World::new();
    let key = |event, endpoint| DeliveryKey { event, endpoint: crate::domain::EndpointNumber(endpoint) };
    let overdue = |world: &World, events: Option<u64>, streams: Option<u64>| {
        let cutoffs = Cutoffs { events: events.map(at), stream_events: streams.map(at) };
        super::overdue(&world.rows, cutoffs, 0).deliveries
    };
    let (first, streamed) = (world.event(10, &[1, 2, 3, 4], false), world.event(11, &[1], true));
    world.attempt(first, 1, 10, 20, Next::RetryAt(at(500)));
    world.attempt(first, 2, 10, 20, Next::Delivered);
    world.attempt(first, 3, 10, 20, Next::Dead(DeadReason::Gone));
    world.event(90, &[1], false);
    assert_eq!(overdue(&world, None, None), []);
    assert_eq!(overdue(&world, Some(10), Some(11)), [], "at the cutoff is not before it");
    assert_eq!(overdue(&world, Some(50), None), [key(first, 4)], "the first is due at 500");
    assert_eq!(overdue(&world, None, Some(50)), [key(streamed, 1)]);
    assert_eq!(overdue(&world, Some(60), Some(50)), [key(first, 4), key(streamed, 1)]);
    let deliveries = vec![key(first, 2), key(first, 4)];
    world.apply(&Record::DeliveriesRevived { deliveries, trigger: Trigger::Replay, at: at(70) });
    assert_eq!(overdue(&world, Some(60), None), [], "due since 70");
    assert_eq!(overdue(&world, Some(71), None), [key(first, 2), key(first, 4)]);
}

#[test]
fn overdue_step_is_bounded_and_names_the_next_page() {
    let mut world = World::new();
    for _ in 0..6_000 {
        world.event(10, &[1], false);
    }
    let (mut page, mut found) = (Some(0), Vec::new());
    while let Some(from) = page {
        let cutoffs = Cutoffs { events: Some(at(20)), stream_events: None };
        let step = super::overdue(&world.rows, cutoffs, from);
        assert!(step.deliveries.len() < limits::BULK_DELIVERIES_MAX + pages::PAGE_POSITIONS as usize);
        found.extend(step.deliveries.iter().map(|key| key.event.0));
        page = step.next;
    }
    assert_eq!(found, (1..=6_000).collect::<Vec<_>>());
}

#[test]
fn forget_step_is_bounded_and_names_the_next_page() {
    let mut world = World::new();
    for number in 0..2_000 {
        world.event(10 + number, &[], false);
    }
    let cutoffs = Cutoffs { events: Some(at(5_000)), stream_events: None };
    let (mut page, mut steps, mut events) = (Some(0), 0, 0);
    while let Some(from) = page {
        world.move_horizon(cutoffs);
        let step = world.fold.forget(&mut world.rows, cutoffs, from, 2);
        assert!(step.events <= 512);
        (page, steps, events) = (step.next, steps + 1, events + step.events);
    }
    assert_eq!((steps, events), (4, 2_000));
}

#[test]
fn state_change_after_a_page_rewrite_wins() {
    let mut world = World::new();
    let targets: Vec<_> = (1..=250).collect();
    world.event(10, &[], false);
    let events: Vec<_> = (0..12).map(|_| world.event(10, &targets, false)).collect();
    for event in &events {
        for target in &targets {
            world.attempt(*event, *target, 10, 20, Next::Dead(DeadReason::Gone));
        }
    }
    world.fold.on_checkpoint();
    // Rewrites the page as more than one block, then makes a checkpoint at the same position.
    assert_eq!(world.forget(Some(100), None).events, 1);
    world.fold.on_checkpoint();
    let last = DeliveryKey { event: events[11], endpoint: crate::domain::EndpointNumber(250) };
    world.apply(&Record::DeadLettersPurged { deliveries: vec![last], at: at(60) });
    let known = reads::delivery(&world.rows, last).unwrap();
    assert_eq!(known.state, DeliveryState::Purged);
}

#[test]
fn nothing_is_forgotten_beyond_the_recorded_horizon() {
    let mut world = World::new();
    let plain = world.event(10, &[], false);
    let of_stream = world.event(11, &[], true);
    let later = world.event(12, &[], false);
    let cutoffs = Cutoffs { events: Some(at(100)), stream_events: Some(at(100)) };
    let wanted = horizon(&world.rows, cutoffs, 0, usize::MAX);
    assert_eq!(wanted, Horizon { events: later, stream_events: of_stream });
    let forget = |world: &mut World| world.fold.forget(&mut world.rows, cutoffs, 0, usize::MAX).positions;
    assert_eq!(forget(&mut world), []);
    world.fold.horizon.horizon = Horizon { events: plain, ..wanted };
    assert_eq!(forget(&mut world), [plain, of_stream]);
    world.fold.horizon.horizon = wanted;
    assert_eq!(forget(&mut world), [later]);
}

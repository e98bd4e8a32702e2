//! Leases: who may take a message, and which receipt ends what.

use super::*;
use crate::domain::{
    DeadReason, DeliveryState, EndedLease, LeaseEnd, LeaseKey, LeaseOutcome, QueueTarget, TakenFrom,
    TakenMessage,
};
use crate::failpoints::{Mutation, fails_with};
use crate::projections::leases::{self, LeaseRow};
use crate::projections::reads::{self, DeliveryFacts};

/// A journal with a queue.
fn queue(ordering: Ordering) -> Journal {
    let mut journal = Journal::default();
    let target = QueueTarget { name: "work".parse().unwrap(), lease_max: Duration::from_secs(60) };
    let transport = crate::domain::EndpointTransport::Queue(target);
    journal.put(|endpoint| Endpoint { transport, ordering, ..endpoint });
    journal
}

impl Journal {
    fn take_from(&mut self, key: DeliveryKey, from: TakenFrom, now: u64) -> Position {
        let messages = vec![TakenMessage { event: key.event, from }];
        let (until, at) = (at(now + 100), at(now));
        self.apply(&Record::MessagesLeased { queue: ONE, messages, until, at, worker: None })
    }

    fn take(&mut self, key: DeliveryKey, now: u64) -> Position {
        self.take_from(key, TakenFrom::Due(at(0)), now)
    }

    fn end(&mut self, key: DeliveryKey, lease: Position, end: LeaseEnd, now: u64) -> Position {
        let ends = vec![EndedLease { key: LeaseKey { event: key.event, lease }, end }];
        self.apply(&Record::LeasesEnded { queue: ONE, ends, at: at(now), reason: None })
    }

    fn held(&self, key: DeliveryKey) -> Option<LeaseRow> {
        leases::get(&self.rows, key)
    }

    fn facts(&self, key: DeliveryKey) -> DeliveryFacts {
        reads::delivery(&self.rows, key).unwrap()
    }

    fn sendable(&self) -> Vec<Position> {
        let (found, _) = pending::refill(&self.rows, ONE, None, 10);
        found.into_iter().map(|(key, _)| key.event).collect()
    }
}

#[test]
fn leased_message_is_taken_by_naming_its_last_lease_only() {
    let mut journal = queue(Ordering::None);
    let key = journal.event();
    let first = journal.take(key, 1_000);
    assert_eq!(journal.held(key).unwrap().position, first);
    assert_eq!(journal.sendable(), []);
    journal.take(key, 1_001);
    journal.take_from(key, TakenFrom::Lease(Position(1)), 1_001);
    assert_eq!(journal.held(key).unwrap().position, first, "neither its due time nor another lease");
    let second = journal.take_from(key, TakenFrom::Lease(first), 1_200);
    let held = journal.held(key).unwrap();
    assert_eq!((held.position, held.row.progress.attempts_in_series), (second, 2));
    assert_eq!(journal.facts(key).attempts, [first, second]);
    assert_eq!(journal.lane().pending, 1);
}

/// Retention may have removed earlier messages of the queue, so that a rebuilt state has another
/// order than the state that leased the message.
#[test]
fn waiting_message_is_taken_before_the_first_of_its_queue() {
    let mut journal = queue(Ordering::Endpoint);
    let keys = [journal.event(), journal.event(), journal.event()];
    assert_eq!(journal.sendable(), [keys[0].event]);
    let lease = journal.take(keys[1], 1_000);
    assert_eq!(journal.held(keys[1]).map(|lease| lease.position), Some(lease));
    assert_eq!((journal.sendable(), journal.lane().waiting), (Vec::new(), 2));
    journal.take(keys[0], 1_001);
    assert_eq!(journal.held(keys[0]), None, "one of the queue is leased");
    journal.end(keys[1], lease, LeaseEnd::Acked, 1_002);
    assert_eq!(journal.facts(keys[1]).state, DeliveryState::Delivered);
    assert_eq!((journal.sendable(), journal.lane().waiting), (vec![keys[0].event], 1));
}

/// The delay and the count of a message hold also while it waits behind a message that was taken
/// before it.
#[test]
fn requeued_message_that_is_displaced_keeps_its_delay() {
    let mut journal = queue(Ordering::Endpoint);
    let keys = [journal.event(), journal.event()];
    let first = journal.take(keys[0], 1_000);
    journal.end(keys[0], first, LeaseEnd::Requeued(at(5_000)), 1_001);
    assert_eq!(journal.sendable(), [keys[0].event]);
    let lease = journal.take(keys[1], 1_002);
    assert_eq!((journal.sendable(), journal.lane().waiting), (Vec::new(), 1));
    assert_eq!(journal.facts(keys[0]).due, Some(at(5_000)));
    journal.end(keys[1], lease, LeaseEnd::Acked, 1_003);
    let (found, _) = pending::refill(&journal.rows, ONE, None, 10);
    let found: Vec<_> = found.iter().map(|(key, progress)| (key.due, progress.attempts)).collect();
    assert_eq!((found, journal.lane().waiting), (vec![(at(5_000), 1)], 0));
    journal.take(keys[0], 1_004);
    assert_eq!(journal.held(keys[0]), None, "it was due at its first time");
    let second = journal.take_from(keys[0], TakenFrom::Due(at(5_000)), 5_000);
    assert_eq!(journal.facts(keys[0]).attempts.last(), Some(&second));
    assert_eq!(journal.held(keys[0]).unwrap().row.progress.attempts, 2);
}

#[test]
fn stale_receipt_ends_nothing() {
    let mut journal = queue(Ordering::None);
    let key = journal.event();
    let first = journal.take(key, 1_000);
    let second = journal.take_from(key, TakenFrom::Lease(first), 1_200);
    for end in [LeaseEnd::Acked, LeaseEnd::Released, LeaseEnd::Dead(DeadReason::Refused)] {
        journal.end(key, first, end, 1_201);
        assert_eq!(journal.held(key).unwrap().position, second, "{end:?}");
    }
    let end = journal.end(key, second, LeaseEnd::Acked, 1_202);
    let facts = journal.facts(key);
    assert_eq!((facts.state, facts.attempts), (DeliveryState::Delivered, vec![first, second, end]));
    assert_eq!((journal.held(key), journal.lane().pending), (None, 0));
}

#[test]
fn lease_without_a_successor_ends_after_its_time() {
    let mut journal = queue(Ordering::None);
    let key = journal.event();
    let lease = journal.take(key, 1_000);
    journal.end(key, lease, LeaseEnd::Acked, 9_000);
    assert_eq!(journal.facts(key).state, DeliveryState::Delivered);
}

#[test]
fn released_lease_does_not_count() {
    let mut journal = queue(Ordering::None);
    let key = journal.event();
    let first = journal.take(key, 1_000);
    for now in [1_001, 1_002] {
        journal.end(key, first, LeaseEnd::Released, now);
        let held = journal.held(key).unwrap();
        assert_eq!((held.row.progress.attempts, held.is_released), (0, true), "at {now}");
        assert_eq!(held.until, at(1_001));
    }
    let second = journal.take_from(key, TakenFrom::Lease(first), 1_003);
    assert_eq!(journal.held(key).unwrap().row.progress.attempts_in_series, 1);
    journal.end(key, first, LeaseEnd::Acked, 1_004);
    assert_eq!(journal.held(key).unwrap().position, second, "the released receipt is stale now");
}

#[test]
fn lost_answers_are_counted_in_their_series() {
    let mut journal = queue(Ordering::None);
    let key = journal.event();
    let counts = |journal: &Journal| {
        let progress = journal.held(key).unwrap().row.progress;
        (progress.attempts, progress.attempts_in_series, progress.lost_answers)
    };
    let first = journal.take(key, 1_000);
    for (now, due) in [(1_001, None), (1_002, None), (1_003, Some(at(9_000)))] {
        journal.end(key, first, LeaseEnd::Lost(due), now);
        let held = journal.held(key).unwrap();
        assert_eq!((held.is_released, held.until, counts(&journal)), (true, at(1_001), (0, 0, 1)), "{now}");
    }
    let second = journal.take_from(key, TakenFrom::Lease(first), 1_003);
    assert_eq!(counts(&journal), (1, 1, 1));
    journal.end(key, second, LeaseEnd::Lost(Some(at(5_000))), 1_004);
    assert_eq!((journal.held(key), journal.facts(key).due), (None, Some(at(5_000))));
    let third = journal.take_from(key, TakenFrom::Due(at(5_000)), 5_000);
    assert_eq!(counts(&journal), (2, 2, 2));
    let deliveries = vec![key];
    journal.apply(&Record::DeliveriesRevived { deliveries, trigger: Trigger::Manual, at: at(5_001) });
    assert_eq!(counts(&journal), (2, 0, 0), "a new series");
    journal.end(key, third, LeaseEnd::Acked, 5_002);
    assert_eq!(journal.facts(key).state, DeliveryState::Delivered);
}

#[test]
fn requeued_message_is_due_again_and_dead_one_is_a_letter() {
    let mut journal = queue(Ordering::None);
    let key = journal.event();
    let first = journal.take(key, 1_000);
    journal.end(key, first, LeaseEnd::Requeued(at(5_000)), 1_001);
    assert_eq!((journal.held(key), journal.facts(key).due), (None, Some(at(5_000))));
    assert_eq!(journal.sendable(), [key.event]);
    let second = journal.take_from(key, TakenFrom::Due(at(5_000)), 5_000);
    assert_eq!(journal.held(key).unwrap().row.progress.attempts_in_series, 2);
    journal.end(key, second, LeaseEnd::Dead(DeadReason::Refused), 5_001);
    assert_eq!(journal.facts(key).state, DeliveryState::Dead(DeadReason::Refused));
    assert_eq!((journal.lane().pending, journal.lane().dead), (0, 1));
}

#[test]
fn success_counts_after_the_message_was_cancelled() {
    for is_last in [true, false] {
        let mut journal = queue(Ordering::None);
        let key = journal.event();
        let mut lease = journal.take(key, 1_000);
        if !is_last {
            journal.take_from(key, TakenFrom::Lease(lease), 1_200);
        }
        journal.apply(&Record::DeliveriesCancelled { deliveries: vec![key], at: at(1_300) });
        assert_eq!(journal.held(key), None);
        journal.end(key, lease, LeaseEnd::Requeued(at(2_000)), 1_301);
        assert_eq!(journal.facts(key).state, DeliveryState::Cancelled);
        journal.end(key, lease, LeaseEnd::Acked, 1_302);
        let expected = if is_last { DeliveryState::Delivered } else { DeliveryState::Cancelled };
        assert_eq!(journal.facts(key).state, expected, "last: {is_last}");
        lease = Position(0);
        journal.end(key, lease, LeaseEnd::Acked, 1_303);
    }
}

#[test]
fn each_lease_counts_once() {
    for late in [LeaseEnd::Acked, LeaseEnd::Requeued(at(2_000)), LeaseEnd::Dead(DeadReason::Refused)] {
        let mut journal = queue(Ordering::None);
        let key = journal.event();
        let lease = journal.take(key, 1_000);
        journal.end(key, lease, LeaseEnd::Released, 1_001);
        journal.end(key, lease, late, 1_002);
        assert_eq!(journal.held(key), None, "the late receipt counts");
        let counted: Vec<_> = journal
            .changes
            .iter()
            .filter_map(|change| match change {
                LaneChange::LeaseCounted { outcome, .. } => Some(*outcome),
                _ => None,
            })
            .collect();
        assert_eq!(counted, [LeaseOutcome::Released], "{late:?}");
    }
}

#[test]
fn next_of_an_order_waits_until_the_lease_has_ended() {
    let mut journal = queue(Ordering::Endpoint);
    let (first, second) = (journal.event(), journal.event());
    assert_eq!(journal.sendable(), [first.event]);
    let lease = journal.take(first, 1_000);
    assert_eq!(journal.sendable(), []);
    journal.take(second, 1_001);
    assert_eq!(journal.held(second), None);
    journal.end(first, lease, LeaseEnd::Released, 1_002);
    assert_eq!(journal.sendable(), [], "a released message is still the first");
    let lease = journal.take_from(first, TakenFrom::Lease(lease), 1_003);
    journal.end(first, lease, LeaseEnd::Requeued(at(3_000)), 1_004);
    assert_eq!(journal.sendable(), [first.event], "the delay holds the order");
    let lease = journal.take_from(first, TakenFrom::Due(at(3_000)), 3_000);
    journal.end(first, lease, LeaseEnd::Acked, 3_001);
    assert_eq!(journal.sendable(), [second.event]);
    assert_eq!(journal.lane().waiting, 0);
}

#[test]
fn change_of_ordering_reaches_a_lease_at_its_end() {
    let mut journal = queue(Ordering::Endpoint);
    let (first, second) = (journal.event(), journal.event());
    let lease = journal.take(first, 1_000);
    let misplaced =
        |journal: &Journal| pending::misplaced(&journal.rows, ONE, Ordering::None, None, 10).deliveries;
    let target = QueueTarget { name: "work".parse().unwrap(), lease_max: Duration::from_secs(60) };
    journal.put(|endpoint| Endpoint {
        transport: crate::domain::EndpointTransport::Queue(target),
        ordering: Ordering::None,
        ..endpoint
    });
    assert_eq!(misplaced(&journal), [second], "the leased one stays");
    journal.apply(&Record::DeliveriesReordered { deliveries: vec![first, second], at: at(1_001) });
    assert_eq!((journal.sendable(), misplaced(&journal)), (vec![second.event], vec![]));
    journal.end(first, lease, LeaseEnd::Requeued(at(0)), 1_002);
    assert_eq!(journal.sendable(), [first.event, second.event]);
    assert_eq!(pending::endpoint_deliveries(&journal.rows, ONE, 10), [first, second]);
    assert_eq!(journal.lane().waiting, 0);
    assert!(!journal.rows.keys().any(|key| key[0] == b'W' || key[0] == b'G'));
}

#[test]
fn retry_by_an_operator_begins_a_series_under_the_lease() {
    let mut journal = queue(Ordering::None);
    let key = journal.event();
    let lease = journal.take(key, 1_000);
    let trigger = Trigger::Manual;
    journal.apply(&Record::DeliveriesRevived { deliveries: vec![key], trigger, at: at(1_001) });
    let held = journal.held(key).unwrap();
    assert_eq!((held.position, held.until), (lease, at(1_100)), "the lease is respected");
    assert_eq!((held.row.progress.attempts, held.row.progress.attempts_in_series), (1, 0));
    journal.end(key, lease, LeaseEnd::Acked, 1_002);
    assert_eq!(journal.facts(key).state, DeliveryState::Delivered);
}

#[test]
fn extension_moves_the_end_of_its_own_lease_only() {
    let mut journal = queue(Ordering::None);
    let key = journal.event();
    let lease = journal.take(key, 1_000);
    let mut extend = |lease, until| {
        let leases = vec![LeaseKey { event: key.event, lease }];
        journal.apply(&Record::LeasesExtended { queue: ONE, leases, until: at(until), at: at(1_001) });
        journal.held(key).unwrap().until
    };
    assert_eq!(extend(lease, 9_000), at(9_000));
    assert_eq!(extend(Position(1), 99_000), at(9_000));
}

/// A late acknowledgement finds its lease by the last position.
#[test]
fn history_has_extension_and_end_before_their_lease() {
    let mut journal = queue(Ordering::None);
    let key = journal.event();
    let lease = journal.take(key, 1_000);
    let mut extend = || {
        let leases = vec![LeaseKey { event: key.event, lease }];
        journal.apply(&Record::LeasesExtended { queue: ONE, leases, until: at(9_000), at: at(1_001) })
    };
    let extended = [extend(), extend()][1];
    assert_eq!(journal.facts(key).attempts, [extended, lease], "the last extension alone");
    let cancelled = journal.apply(&Record::DeliveriesCancelled { deliveries: vec![key], at: at(8_000) });
    assert_eq!(journal.facts(key).attempts, [extended, cancelled, lease]);
    let acked = journal.end(key, lease, LeaseEnd::Acked, 8_001);
    let facts = journal.facts(key);
    assert_eq!(facts.state, DeliveryState::Delivered);
    assert_eq!(facts.attempts, [extended, cancelled, lease, acked]);
}

#[test]
fn injected_bugs_of_leases_are_caught() {
    fails_with(Mutation::LeaseTwice, leased_message_is_taken_by_naming_its_last_lease_only);
    fails_with(Mutation::AckStale, stale_receipt_ends_nothing);
    fails_with(Mutation::CountRelease, released_lease_does_not_count);
    fails_with(Mutation::ForgetLostAnswers, lost_answers_are_counted_in_their_series);
}

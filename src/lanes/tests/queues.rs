//! Lanes of queues: who gets which message, and when a lease runs out.

use super::*;
use crate::domain::{DeadReason, HeldLease, LeaseKey, TakenFrom, TakenMessage};
use crate::lanes::leases::JudgedLease;
use crate::lanes::queue::{QueueAction, QueueLane, QueuePolicy, WaiterNumber};
use crate::lanes::queues::QueueLanes;

fn queue_policy() -> QueuePolicy {
    QueuePolicy { gate: Gate::Open, leased_max: 10, deliveries_max: 20, age_max: None }
}

fn lane() -> QueueLane {
    QueueLane::new(queue_policy(), Backlog::None)
}

fn due(due: u64, event: u64) -> TakenMessage {
    TakenMessage { event: Position(event), from: TakenFrom::Due(key(due, event).due) }
}

fn again(event: u64, lease: u64) -> TakenMessage {
    TakenMessage { event: Position(event), from: TakenFrom::Lease(Position(lease)) }
}

/// A lease from now until then, after this number of deliveries.
fn held(lease: u64, now: u64, until: u64, deliveries: u32) -> HeldLease {
    let progress = Progress { attempts: deliveries, attempts_in_series: deliveries, ..FRESH };
    let (since, until) = (at(now).wall, at(until).wall);
    HeldLease { position: Position(lease), since, until, is_released: false, progress }
}

fn lease_key(event: u64, lease: u64) -> LeaseKey {
    LeaseKey { event: Position(event), lease: Position(lease) }
}

fn add(lane: &mut QueueLane, events: std::ops::Range<u64>) {
    events.for_each(|event| lane.on_due(key(0, event), FRESH, Position(event)));
}

/// Messages that the next receive gets.
fn receive(lane: &mut QueueLane, number: u64, most: usize, now: Now) -> Vec<TakenMessage> {
    lane.on_receive(WaiterNumber(number), most, now);
    match lane.next_action(Some(100), now) {
        Some(QueueAction::Take { waiter, messages }) => {
            assert_eq!(waiter, WaiterNumber(number));
            messages
        }
        None => Vec::new(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn returned_messages_go_out_before_fresh_ones() {
    let mut lane = lane();
    add(&mut lane, 1..4);
    assert_eq!(receive(&mut lane, 1, 2, at(0)), [due(0, 1), due(0, 2)]);
    for event in [1, 2] {
        lane.on_taken(due(0, event), Some(held(10, 0, 100, 1)), at(0));
    }
    assert_eq!(lane.judge(lease_key(2, 10)), JudgedLease::Held(held(10, 0, 100, 1)));
    let released = HeldLease { is_released: true, ..held(10, 0, 50, 0) };
    lane.on_lease(Position(2), released, at(50));
    assert_eq!(receive(&mut lane, 2, 1, at(50)), [again(2, 10)]);
    lane.on_taken(again(2, 10), Some(held(11, 50, 1_000, 1)), at(50));
    assert_eq!(receive(&mut lane, 3, 5, at(100)), [again(1, 10), due(0, 3)]);
}

#[test]
fn lease_runs_out_at_its_time_and_not_before() {
    let mut lane = lane();
    add(&mut lane, 1..2);
    receive(&mut lane, 1, 1, at(0));
    lane.on_taken(due(0, 1), Some(held(10, 0, 100, 1)), at(0));
    assert_eq!(lane.next_wakeup(at(0)), Some(Duration::from_millis(100)));
    // A step of the wall clock shortens no lease.
    let stepped = Now { wall: at(3_600_000).wall, ..at(99) };
    assert_eq!(receive(&mut lane, 2, 1, stepped), []);
    let action = lane.next_action(Some(100), at(100));
    let messages = vec![again(1, 10)];
    assert_eq!(action, Some(QueueAction::Take { waiter: WaiterNumber(2), messages }));
    assert_eq!(lane.judge(lease_key(1, 10)), JudgedLease::Busy, "its record is on its way");
    lane.on_taken(again(1, 10), None, at(101));
    assert!(matches!(lane.judge(lease_key(1, 10)), JudgedLease::Held(_)), "the record took nothing");
}

#[test]
fn restored_leases_are_respected() {
    let mut lane = QueueLane::new(queue_policy(), Backlog::None);
    lane.restore(vec![(Position(1), held(10, 0, 100, 1))], at(50));
    assert_eq!(receive(&mut lane, 1, 1, at(99)), []);
    assert!(matches!(lane.judge(lease_key(1, 10)), JudgedLease::Held(_)));
    assert_eq!(lane.judge(lease_key(1, 9)), JudgedLease::Stale);
    assert_eq!(lane.judge(lease_key(2, 10)), JudgedLease::Unknown);
}

#[test]
fn judged_lease_is_kept_from_others_until_it_is_free() {
    let mut lane = lane();
    lane.restore(vec![(Position(1), held(10, 0, 100, 1))], at(0));
    assert!(matches!(lane.judge(lease_key(1, 10)), JudgedLease::Held(_)));
    assert_eq!(receive(&mut lane, 1, 1, at(500)), [], "an end is on its way");
    lane.free(lease_key(1, 10), at(500));
    let messages = vec![again(1, 10)];
    let expected = QueueAction::Take { waiter: WaiterNumber(1), messages };
    assert_eq!(lane.next_action(Some(100), at(500)), Some(expected));
}

/// The daemon returns a message whose answer was lost, and its lease runs out before the record of
/// that is applied.
#[test]
fn taken_message_goes_to_no_second_worker() {
    let mut lane = lane();
    lane.restore(vec![(Position(1), held(10, 0, 100, 1))], at(0));
    assert_eq!(receive(&mut lane, 1, 1, at(100)), [again(1, 10)]);
    let returned = HeldLease { is_released: true, ..held(10, 0, 50, 1) };
    lane.on_lease(Position(1), returned, at(101));
    assert_eq!(receive(&mut lane, 2, 1, at(101)), [], "the first worker is taking it");
    lane.on_taken(again(1, 10), None, at(102));
    let expected = QueueAction::Take { waiter: WaiterNumber(2), messages: vec![again(1, 10)] };
    assert_eq!(lane.next_action(Some(100), at(102)), Some(expected));
}

#[test]
fn workers_are_served_in_order_of_arrival_within_the_limits() {
    let mut lane = QueueLane::new(QueuePolicy { leased_max: 3, ..queue_policy() }, Backlog::None);
    for number in 1..=3 {
        lane.on_receive(WaiterNumber(number), 2, at(0));
    }
    assert_eq!(lane.next_action(Some(100), at(0)), None);
    add(&mut lane, 1..9);
    let take = |lane: &mut QueueLane, left| lane.next_action(Some(left), at(0));
    let taken = |waiter, messages| Some(QueueAction::Take { waiter: WaiterNumber(waiter), messages });
    assert_eq!(take(&mut lane, 0), None, "no lease is left");
    assert_eq!(take(&mut lane, 100), taken(1, vec![due(0, 1), due(0, 2)]));
    assert!(lane.on_waiter_gone(WaiterNumber(2)));
    assert_eq!(take(&mut lane, 100), taken(3, vec![due(0, 3)]), "`maxLeased` is reached");
    lane.on_receive(WaiterNumber(4), 1, at(0));
    assert_eq!(take(&mut lane, 100), None);
    assert_eq!(lane.report(at(0)).reason, Some(WaitReason::LeaseLimit));
    lane.on_take_failed(&[due(0, 1), due(0, 2)], at(0));
    assert_eq!(take(&mut lane, 100), taken(4, vec![due(0, 1)]), "the failed take is undone");
    assert_eq!(lane.report(at(0)).reason, Some(WaitReason::NoWorker));
}

#[test]
fn exhausted_and_old_messages_are_given_up() {
    let policy = QueuePolicy { deliveries_max: 2, age_max: Some(Duration::from_secs(60)), ..queue_policy() };
    let mut lane = QueueLane::new(policy, Backlog::None);
    let fresh = Progress { series_started: at(0).wall, ..FRESH };
    lane.on_due(key(0, 1), fresh, Position(1));
    let lease = HeldLease {
        progress: Progress { series_started: at(0).wall, ..held(10, 0, 100, 2).progress },
        ..held(10, 0, 100, 2)
    };
    lane.restore(vec![(Position(2), lease)], at(0));
    assert_eq!(lane.next_action(Some(1), at(99)), None);
    let reason = DeadReason::AttemptsExhausted;
    let given_up = QueueAction::GiveUp { message: again(2, 10), reason };
    assert_eq!(lane.next_action(Some(1), at(100)), Some(given_up), "without a worker too");
    lane.on_lease_ended(Position(2));
    lane.on_given_up(again(2, 10), at(100));
    assert_eq!(lane.next_action(Some(1), at(60_000)), None);
    let reason = DeadReason::MaxAge;
    let given_up = QueueAction::GiveUp { message: due(0, 1), reason };
    assert_eq!(lane.next_action(Some(1), at(60_001)), Some(given_up));
}

#[test]
fn message_whose_answers_were_lost_goes_out_alone() {
    let mut lane = lane();
    let lost = |lost_answers| Progress { lost_answers, ..FRESH };
    for (event, progress) in [(1, FRESH), (2, lost(2)), (3, lost(1)), (4, FRESH)] {
        lane.on_due(key(0, event), progress, Position(event));
    }
    assert_eq!(receive(&mut lane, 1, 10, at(0)), [due(0, 1)]);
    assert_eq!(receive(&mut lane, 2, 10, at(0)), [due(0, 2)]);
    assert_eq!(receive(&mut lane, 3, 10, at(0)), [due(0, 3), due(0, 4)], "once is chance");
    for (event, progress) in [(1, FRESH), (2, lost(3)), (3, lost(1)), (4, FRESH)] {
        lane.on_taken(due(0, event), Some(HeldLease { progress, ..held(10, 0, 100, 1) }), at(0));
    }
    assert_eq!(receive(&mut lane, 4, 10, at(100)), [again(1, 10)]);
    assert_eq!(receive(&mut lane, 5, 10, at(100)), [again(2, 10)]);
    assert_eq!(receive(&mut lane, 6, 10, at(100)), [again(3, 10), again(4, 10)]);
}

#[test]
fn old_message_is_given_up_when_it_is_due_without_a_worker() {
    let policy = QueuePolicy { age_max: Some(Duration::from_secs(60)), ..queue_policy() };
    let mut lane = QueueLane::new(policy, Backlog::None);
    let progress = Progress { series_started: at(0).wall, ..FRESH };
    lane.on_due(key(70_000, 1), progress, Position(1));
    assert_eq!(lane.next_action(Some(1), at(0)), None);
    assert_eq!(lane.next_wakeup(at(0)), Some(at(70_000).monotonic));
    let reason = DeadReason::MaxAge;
    let given_up = QueueAction::GiveUp { message: due(70_000, 1), reason };
    assert_eq!(lane.next_action(Some(1), at(70_000)), Some(given_up));
}

#[test]
fn receive_that_does_not_wait_is_answered_after_the_search() {
    let mut lane = QueueLane::new(queue_policy(), Backlog::OnDisk);
    lane.on_receive(WaiterNumber(1), 1, at(0));
    lane.on_time_up(WaiterNumber(1));
    assert!(matches!(lane.next_action(Some(9), at(0)), Some(QueueAction::Refill { .. })));
    assert_eq!(lane.next_action(Some(9), at(0)), None, "the lane is still searching");
    lane.on_refilled(vec![(key(0, 1), FRESH)], true, Position(5));
    let taken = QueueAction::Take { waiter: WaiterNumber(1), messages: vec![due(0, 1)] };
    assert_eq!(lane.next_action(Some(9), at(0)), Some(taken));
    lane.on_receive(WaiterNumber(2), 1, at(0));
    lane.on_time_up(WaiterNumber(2));
    assert_eq!(lane.next_action(Some(9), at(0)), Some(QueueAction::Empty { waiter: WaiterNumber(2) }));
}

#[test]
fn paused_queue_gives_nothing_and_ends_leases() {
    let mut lane = QueueLane::new(QueuePolicy { gate: Gate::Paused, ..queue_policy() }, Backlog::None);
    add(&mut lane, 1..2);
    lane.restore(vec![(Position(9), held(10, 0, 100, 1))], at(0));
    assert_eq!(receive(&mut lane, 1, 1, at(200)), []);
    assert_eq!(lane.report(at(200)).reason, Some(WaitReason::Paused));
    assert!(matches!(lane.judge(lease_key(9, 10)), JudgedLease::Held(_)));
    lane.set_policy(queue_policy());
    assert!(matches!(lane.next_action(Some(9), at(200)), Some(QueueAction::Take { .. })));
}

#[test]
fn queues_take_turns_and_share_the_limit_of_leases() {
    let mut lanes = QueueLanes::default();
    for queue in [ONE, TWO] {
        lanes.on_queue(queue, queue_policy(), Backlog::None);
        lanes.with(queue, |lane| {
            add(lane, 1..9);
            (1..=2)
                .for_each(|number| lane.on_receive(WaiterNumber(u64::from(queue.0) * 10 + number), 1, at(0)));
        });
    }
    let order: Vec<_> = std::iter::from_fn(|| lanes.next_action(at(0))).map(|(queue, _)| queue).collect();
    assert_eq!(order, [ONE, TWO, ONE, TWO]);
    lanes.hold(SendHold::StoreFull);
    lanes.with(ONE, |lane| lane.on_receive(WaiterNumber(99), 1, at(0)));
    assert_eq!(lanes.next_action(at(0)), None, "nothing is leased while it cannot be recorded");
    assert_eq!(lanes.report(ONE, at(0)).unwrap().reason, Some(WaitReason::StoreFull));
    lanes.hold(SendHold::None);
    assert!(lanes.next_action(at(0)).is_some());
    let removed = lanes.on_queue_removed(ONE);
    assert!(removed.is_some() && lanes.report(ONE, at(0)).is_none());
    assert_eq!(lanes.next_action(at(0)), None);
}

#[test]
fn injected_bugs_of_queues_are_caught() {
    fails_with(Mutation::FreshFirst, returned_messages_go_out_before_fresh_ones);
    fails_with(Mutation::ExpireEarly, lease_runs_out_at_its_time_and_not_before);
    fails_with(Mutation::ForgetLease, restored_leases_are_respected);
}

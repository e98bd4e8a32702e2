//! Reasons that lanes report, and holds.

use super::*;

#[test]
fn failing_and_recovered_are_reported_once_each() {
    let mut lanes = lanes(100);
    let open = LanePolicy { max_in_flight: 1, ..policy() };
    lanes.on_endpoint(ONE, open.clone(), Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..50);
    let mut millis = 0;
    let mut finish_next = |lanes: &mut Lanes, outcome: AttemptOutcome| {
        millis += 100_000; // longer than any probe interval
        let sent = sends(lanes, at(millis));
        lanes.on_finished(ONE, sent[0].1, outcome, at(millis))
    };
    let reported: Vec<_> = (0..7).map(|_| finish_next(&mut lanes, AttemptOutcome::Failing)).collect();
    assert_eq!(reported, [None, None, None, None, Some(Turn::Failing), None, None]);
    assert_eq!(
        finish_next(&mut lanes, throttled(Timestamp::ZERO)),
        None,
        "a `Retry-After` is not a recovery"
    );
    assert_eq!(finish_next(&mut lanes, AttemptOutcome::Healthy), Some(Turn::Recovered));
    assert_eq!(finish_next(&mut lanes, AttemptOutcome::Healthy), None);
    lanes.on_endpoint(ONE, LanePolicy { gate: Gate::Disabled, ..open.clone() }, Backlog::None, at(0));
    lanes.on_endpoint(ONE, open, Backlog::None, at(0));
    assert_eq!(finish_next(&mut lanes, AttemptOutcome::Neutral), None);
    assert_eq!(
        finish_next(&mut lanes, AttemptOutcome::Healthy),
        Some(Turn::Recovered),
        "the endpoint was disabled before"
    );
}

#[test]
pub(super) fn retry_after_pause_and_disabling_report_their_reason() {
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, LanePolicy { max_in_flight: 1, ..policy() }, Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..9);
    let reason = |lanes: &Lanes, millis| lanes.explain(ONE, at(millis)).unwrap().reason;
    let first = sends(&mut lanes, at(1))[0].1;
    lanes.on_finished(ONE, first, throttled(at(30_000).wall), at(2));
    assert_eq!(sends(&mut lanes, at(29_999)), []);
    assert_eq!(reason(&lanes, 29_999), Some(WaitReason::RetryAfter));
    assert_eq!(lanes.next_wakeup(at(29_999)), Some(Duration::from_millis(1)));
    let second = sends(&mut lanes, at(30_000))[0].1;
    lanes.on_finished(ONE, second, AttemptOutcome::Healthy, at(30_000));
    for (gate, expected) in [(Gate::Paused, WaitReason::Paused), (Gate::Disabled, WaitReason::Disabled)] {
        lanes.on_endpoint(ONE, LanePolicy { gate, ..policy() }, Backlog::None, at(30_001));
        assert_eq!(sends(&mut lanes, at(30_001)), []);
        assert_eq!(reason(&lanes, 30_001), Some(expected));
    }
    lanes.on_endpoint(ONE, policy(), Backlog::None, at(30_002));
    assert_eq!(sends(&mut lanes, at(30_002)).len(), 6);
    lanes.on_due(ONE, key(90_000, 99), FRESH, Position(99), at(30_002));
    assert_eq!(sends(&mut lanes, at(30_003)), []);
    assert_eq!(reason(&lanes, 30_003), Some(WaitReason::NotDue));
}

/// Nothing can be sent before the hold ends, even if the hold itself postponed the delivery.
#[test]
fn retry_after_is_the_reason_for_deliveries_due_until_its_end() {
    for (due, expected, until) in [
        (2, WaitReason::RetryAfter, 30_000),
        (29_000, WaitReason::RetryAfter, 30_000),
        (30_000, WaitReason::RetryAfter, 30_000),
        (30_001, WaitReason::NotDue, 30_001),
    ] {
        let mut lanes = lanes(100);
        lanes.on_endpoint(ONE, policy(), Backlog::None, at(0));
        fill(&mut lanes, ONE, 1..2);
        let first = sends(&mut lanes, at(1))[0].1;
        lanes.on_finished(ONE, first, throttled(at(30_000).wall), at(2));
        lanes.on_settled(ONE, first, Position(2), at(2));
        lanes.on_due(ONE, key(due, 1), FRESH, Position(2), at(2));
        lanes.on_recorded(ONE, first, at(2));
        assert_eq!(sends(&mut lanes, at(3)), [], "due at {due}");
        let report = lanes.explain(ONE, at(3)).unwrap();
        assert_eq!((report.reason, report.retry_at), (Some(expected), Some(at(until).wall)), "due at {due}");
        assert_eq!(lanes.next_wakeup(at(3)), Some(Duration::from_millis(until - 3)), "due at {due}");
        assert_eq!(sends(&mut lanes, at(until - 1)), [], "due at {due}");
        assert_eq!(sends(&mut lanes, at(until)), [(ONE, key(due, 1))]);
    }
}

#[test]
fn opening_ends_earlier_holds_but_not_later_ones() {
    let changed = |gate, revision| LanePolicy { gate, revision: Position(revision), ..policy() };
    // Record 2 pauses the endpoint, record 3 opens it. The lane gets both after the reply.
    for (held_at, held) in [(1, false), (2, false), (3, true), (4, true)] {
        let mut lanes = lanes(100);
        lanes.on_endpoint(ONE, policy(), Backlog::None, at(0));
        fill(&mut lanes, ONE, 1..3);
        let sent = sends(&mut lanes, at(1));
        let outcome = AttemptOutcome::Throttled(Hold { until: at(30_000).wall, revision: Position(held_at) });
        lanes.on_finished(ONE, sent[0].1, outcome, at(2));
        // A shorter hold does not shorten it.
        let shorter = AttemptOutcome::Throttled(Hold { until: at(10).wall, revision: Position(1) });
        lanes.on_finished(ONE, sent[1].1, shorter, at(2));
        fill(&mut lanes, ONE, 3..4);
        lanes.on_endpoint(ONE, changed(Gate::Paused, 2), Backlog::None, at(3));
        lanes.on_endpoint(ONE, changed(Gate::Open, 3), Backlog::None, at(3));
        assert_eq!(sends(&mut lanes, at(29_999)).is_empty(), held, "hold at revision {held_at}");
        assert_eq!(sends(&mut lanes, at(30_000)).is_empty(), !held, "hold at revision {held_at}");
    }
}

/// Opening ends the long hold. The short hold begins after the opening, but the lane learns of it
/// before.
#[test]
fn ended_hold_does_not_extend_a_later_one() {
    let changed = |gate, revision| LanePolicy { gate, revision: Position(revision), ..policy() };
    for long_first in [true, false] {
        let mut lanes = lanes(100);
        lanes.on_endpoint(ONE, changed(Gate::Open, 5), Backlog::None, at(0));
        fill(&mut lanes, ONE, 1..3);
        let sent = sends(&mut lanes, at(1));
        let long = AttemptOutcome::Throttled(Hold { until: at(86_400_000).wall, revision: Position(5) });
        let short = AttemptOutcome::Throttled(Hold { until: at(1_000).wall, revision: Position(7) });
        let outcomes = if long_first { [long, short] } else { [short, long] };
        lanes.on_finished(ONE, sent[0].1, outcomes[0], at(2));
        lanes.on_finished(ONE, sent[1].1, outcomes[1], at(2));
        fill(&mut lanes, ONE, 3..5);
        assert_eq!(sends(&mut lanes, at(1_000)), [], "the lane does not know of the opening yet");
        lanes.on_endpoint(ONE, changed(Gate::Paused, 6), Backlog::None, at(3));
        lanes.on_endpoint(ONE, changed(Gate::Open, 7), Backlog::None, at(3));
        assert_eq!(sends(&mut lanes, at(999)), [], "the short hold began after the opening");
        assert_eq!(sends(&mut lanes, at(1_000)).len(), 2, "the long hold ended, long first: {long_first}");
    }
}

#[test]
fn held_lanes_send_nothing() {
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, policy(), Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..4);
    for (hold, reason) in [(SendHold::StoreFull, Some(WaitReason::StoreFull)), (SendHold::Shutdown, None)] {
        lanes.hold(hold);
        assert_eq!(sends(&mut lanes, at(1)), [], "{hold:?}");
        assert_eq!(lanes.explain(ONE, at(1)).unwrap().reason, reason, "{hold:?}");
    }
    lanes.hold(SendHold::None);
    assert_eq!(sends(&mut lanes, at(1)).len(), 3);
    assert_eq!(lanes.explain(ONE, at(1)).unwrap().reason, None);
}

#[test]
fn full_store_is_the_reason_only_of_lanes_without_another() {
    let mut lanes = lanes(100);
    let reason = |lanes: &Lanes| lanes.explain(ONE, at(5)).unwrap().reason;
    lanes.hold(SendHold::StoreFull);
    lanes.on_endpoint(ONE, policy(), Backlog::None, at(0));
    assert_eq!(reason(&lanes), None, "no delivery waits");
    lanes.on_due(ONE, key(6, 1), FRESH, Position(1), at(0));
    assert_eq!(reason(&lanes), Some(WaitReason::NotDue));
    fill(&mut lanes, ONE, 2..4);
    assert_eq!(reason(&lanes), Some(WaitReason::StoreFull));
    lanes.on_endpoint(ONE, LanePolicy { gate: Gate::Paused, ..policy() }, Backlog::None, at(5));
    assert_eq!(reason(&lanes), Some(WaitReason::Paused));
    assert_eq!(lanes.summary(&IdMap::default(), at(5)).waiting[WaitReason::Paused.index()], 1);
}

/// The record of a reservation cannot be written to a full store.
#[test]
fn lane_with_an_unwritten_reservation_waits_for_the_store() {
    let mut lanes = lanes(100);
    let rate = RateLimit { limit: 1, per: Duration::from_secs(1), burst: 1 };
    lanes.on_endpoint(ONE, LanePolicy { rate: Some(rate), ..policy() }, Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..3);
    let requested = lanes.next_action(at(1));
    assert!(matches!(requested, Some(Action::Reserve { .. })), "{requested:?}");
    let reason = |lanes: &Lanes| lanes.explain(ONE, at(2)).unwrap().reason;
    assert_eq!(reason(&lanes), Some(WaitReason::Rate));
    lanes.hold(SendHold::StoreFull);
    assert_eq!(reason(&lanes), Some(WaitReason::StoreFull));
}

/// A full store answers no refill.
#[test]
fn lane_with_its_backlog_on_disk_waits_for_the_store() {
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, policy(), Backlog::OnDisk, at(0));
    lanes.hold(SendHold::StoreFull);
    assert_eq!(lanes.explain(ONE, at(1)).unwrap().reason, Some(WaitReason::StoreFull));
}

#[test]
fn lane_waits_for_consent_and_then_sends_its_backlog() {
    let mut lanes = lanes(100);
    let gate = |gate| LanePolicy { gate, ..policy() };
    lanes.on_endpoint(ONE, gate(Gate::Handshake), Backlog::None, at(0));
    assert_eq!(lanes.explain(ONE, at(0)).unwrap().reason, None, "no delivery waits");
    fill(&mut lanes, ONE, 1..4);
    assert_eq!(sends(&mut lanes, at(1_000_000)), []);
    let report = lanes.explain(ONE, at(1_000_000)).unwrap();
    assert_eq!((report.reason, report.retry_at), (Some(WaitReason::Handshake), None));
    assert_eq!(lanes.summary(&IdMap::default(), at(1_000_000)).waiting[WaitReason::Handshake.index()], 1);
    lanes.on_endpoint(ONE, gate(Gate::Open), Backlog::None, at(1_000_001));
    assert_eq!(sends(&mut lanes, at(1_000_001)).len(), 3);
}

#[test]
fn blocked_deliveries_count_for_the_oldest_due_time() {
    let mut lanes = lanes(100);
    for endpoint in [ONE, TWO] {
        lanes.on_endpoint(endpoint, policy(), Backlog::None, at(0));
    }
    // The first delivery of ONE waits for its retry. TWO is paused and has none due.
    lanes.on_due(ONE, key(9_000, 1), FRESH, Position(1), at(0));
    lanes.on_endpoint(TWO, LanePolicy { gate: Gate::Paused, ..policy() }, Backlog::None, at(0));
    let oldest = |behind: &[(EndpointNumber, Option<u64>)], millis| {
        let behind = behind.iter().map(|(endpoint, due)| (*endpoint, due.map(|millis| key(millis, 1).due)));
        lanes.summary(&behind.collect(), at(millis)).oldest_due
    };
    let due = |millis| Some(key(millis, 1).due);
    assert_eq!(oldest(&[], 5_000), None);
    assert_eq!(oldest(&[(ONE, None)], 5_000), None, "no blocked delivery is due");
    assert_eq!(oldest(&[(ONE, Some(4_000))], 5_000), due(4_000));
    assert_eq!(
        oldest(&[(ONE, Some(4_000)), (TWO, Some(3_000))], 5_000),
        due(3_000),
        "also for a paused endpoint"
    );
    assert_eq!(oldest(&[(ONE, Some(9_500))], 9_600), due(9_000), "the first delivery is older");
    assert_eq!(oldest(&[(EndpointNumber(3), Some(1))], 5_000), None, "the endpoint was deleted");
}

#[test]
fn returned_delivery_is_due_again_unless_it_ended() {
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, LanePolicy { max_in_flight: 2, ..policy() }, Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..4);
    assert_eq!(sends(&mut lanes, at(1)), [(ONE, key(0, 1)), (ONE, key(0, 2))]);
    lanes.on_settled(ONE, key(0, 2), Position(9), at(1));
    for event in [1, 2] {
        lanes.on_returned(ONE, key(0, event), FRESH, at(1));
        // A second call changes nothing.
        lanes.on_returned(ONE, key(0, event), FRESH, at(1));
    }
    assert_eq!(lanes.explain(ONE, at(1)).unwrap().in_flight, 0);
    assert_eq!(
        sends(&mut lanes, at(1)),
        [(ONE, key(0, 1)), (ONE, key(0, 3))],
        "the second delivery was cancelled in flight"
    );
}

#[test]
fn moving_an_in_flight_delivery_waits_for_its_attempt() {
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, policy(), Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..2);
    let first = sends(&mut lanes, at(1))[0].1;
    // An operator retries it: it is due at once.
    let moved = key(2, 1);
    lanes.on_settled(ONE, first, Position(9), at(2));
    lanes.on_due(ONE, moved, FRESH, Position(9), at(2));
    assert_eq!(sends(&mut lanes, at(3)), [], "its attempt is in flight");
    lanes.on_finished(ONE, first, AttemptOutcome::Healthy, at(4));
    assert_eq!(sends(&mut lanes, at(5)), [], "its attempt is not recorded");
    let tried = Progress { attempts: 1, ..FRESH };
    lanes.on_settled(ONE, moved, Position(10), at(6));
    lanes.on_due(ONE, moved, tried, Position(10), at(6));
    lanes.on_recorded(ONE, first, at(6));
    let again = lanes.next_action(at(7));
    let progress = tried;
    assert_eq!(again, Some(Action::Send { endpoint: ONE, key: moved, progress, shut_since: None }));
    // It is cancelled in flight, and the attempt succeeds: no delivery is left.
    lanes.on_settled(ONE, moved, Position(11), at(8));
    lanes.on_recorded(ONE, moved, at(9));
    lanes.on_finished(ONE, moved, AttemptOutcome::Healthy, at(9));
    assert_eq!((sends(&mut lanes, at(9)), lanes.lanes[&ONE].window.tracked_attempts()), (Vec::new(), 0));
}

#[test]
fn sleeping_lanes_are_not_in_the_ring() {
    let mut lanes = lanes(100_000);
    for number in 1..=10_000 {
        lanes.on_endpoint(EndpointNumber(number), policy(), Backlog::None, at(0));
        lanes.on_due(EndpointNumber(number), key(100_000, u64::from(number)), FRESH, Position(1), at(0));
    }
    assert_eq!(sends(&mut lanes, at(0)), []);
    assert!(ring_len(&lanes) == 0, "no lane is in the ring");
    assert_eq!(lanes.next_wakeup(at(0)), Some(Duration::from_secs(100)));
    assert_eq!(sends(&mut lanes, at(100_000)).len(), 10_000);
}

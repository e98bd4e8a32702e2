//! Tests of lanes after repeated changes and after restarts.

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn policy_with_rate(limit: u32, per: Duration, burst: u32, revision: u64) -> LanePolicy {
    let rate = Some(RateLimit { limit, per, burst });
    LanePolicy { rate, max_in_flight: 1_000, revision: Position(revision), ..policy() }
}

/// Number of deliveries that the lanes send now.
fn count_sends(lanes: &mut Lanes, now: Now) -> usize {
    sends(lanes, now).len()
}

#[test]
fn changed_endpoint_keeps_its_spent_rate() {
    let mut lanes = lanes(1_000);
    lanes.on_endpoint(ONE, policy_with_rate(1, MINUTE, 5, 1), Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..100);
    assert_eq!(count_sends(&mut lanes, at(0)), 5);
    for revision in 2..6 {
        lanes.on_endpoint(ONE, policy_with_rate(1, MINUTE, 5, revision), Backlog::None, at(1_000));
        assert_eq!(count_sends(&mut lanes, at(1_000)), 0, "revision {revision}");
    }
    // Paused and resumed, twice.
    for revision in [6, 8] {
        let paused = LanePolicy { gate: Gate::Paused, ..policy_with_rate(1, MINUTE, 5, revision) };
        lanes.on_endpoint(ONE, paused, Backlog::None, at(2_000));
        lanes.on_endpoint(ONE, policy_with_rate(1, MINUTE, 5, revision + 1), Backlog::None, at(2_000));
        assert_eq!(count_sends(&mut lanes, at(2_000)), 0);
    }
    // Without a rate nothing is limited. A restored rate still counts earlier requests.
    assert_eq!(count_sends(&mut lanes, at(60_000)), 1);
    lanes.on_endpoint(ONE, LanePolicy { revision: Position(10), ..policy() }, Backlog::None, at(60_001));
    lanes.on_endpoint(ONE, policy_with_rate(1, MINUTE, 5, 11), Backlog::None, at(60_002));
    assert_eq!(count_sends(&mut lanes, at(60_002)), 0);
    assert_eq!(count_sends(&mut lanes, at(120_000)), 1);
}

#[test]
fn changed_rate_gives_no_fresh_burst() {
    let mut lanes = lanes(1_000);
    lanes.on_endpoint(ONE, policy_with_rate(1, MINUTE, 5, 1), Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..100);
    assert_eq!(count_sends(&mut lanes, at(0)), 5);
    lanes.on_endpoint(ONE, policy_with_rate(1, MINUTE, 8, 2), Backlog::None, at(0));
    assert_eq!(count_sends(&mut lanes, at(0)), 3, "five of the burst of eight are spent");
    lanes.on_endpoint(ONE, policy_with_rate(1, MINUTE, 2, 3), Backlog::None, at(0));
    assert_eq!(
        (count_sends(&mut lanes, at(59_999)), count_sends(&mut lanes, at(60_000))),
        (0, 1),
        "the spent part is at most the whole burst"
    );
    lanes.on_endpoint(ONE, policy_with_rate(10, MINUTE, 2, 4), Backlog::None, at(60_000));
    assert_eq!(
        (count_sends(&mut lanes, at(65_999)), count_sends(&mut lanes, at(66_000))),
        (0, 1),
        "ten times as fast"
    );
    for revision in (5..25).step_by(2) {
        lanes.on_endpoint(ONE, policy_with_rate(1, MINUTE, 3, revision), Backlog::None, at(66_000));
        lanes.on_endpoint(ONE, policy_with_rate(10, MINUTE, 2, revision + 1), Backlog::None, at(66_000));
    }
    assert_eq!(count_sends(&mut lanes, at(66_000)), 0);
    assert_eq!(count_sends(&mut lanes, at(72_000)), 1);
}

/// The next action, which must be a reservation.
fn next_reservation(lanes: &mut Lanes, millis: u64) -> Reservation {
    match lanes.next_action(at(millis)) {
        Some(Action::Reserve { endpoint: ONE, reservation }) => reservation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn reserving_lane_sends_nothing_and_reports_rate() {
    let mut lanes = lanes(1_000);
    lanes.on_endpoint(ONE, policy_with_rate(1, MINUTE, 3, 1), Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..10);
    let reservation = next_reservation(&mut lanes, 0);
    // One reservation is pending at a time.
    lanes.on_due(ONE, key(0, 10), FRESH, Position(10), at(10));
    assert_eq!(lanes.next_action(at(10)), None);
    let report = lanes.explain(ONE, at(10)).unwrap();
    assert_eq!((report.reason, report.in_flight, report.retry_at), (Some(WaitReason::Rate), 0, None));
    let summary = lanes.summary(&IdMap::default(), at(10));
    assert_eq!((summary.waiting[WaitReason::Rate.index()], summary.in_flight), (1, 0));
    // Another reservation does not end the wait.
    let other = Reservation { full_at: at(0).wall, ..reservation };
    lanes.on_reserved(ONE, &other, at(20));
    assert_eq!(lanes.next_action(at(20)), None);
    lanes.on_reserved(ONE, &reservation, at(20));
    assert_eq!(
        lanes.next_action(at(20)),
        Some(Action::Send { endpoint: ONE, key: key(0, 1), progress: FRESH, shut_since: None })
    );
    // A lane without a rate needs no reservation.
    next_reservation(&mut lanes, 20);
    lanes.on_endpoint(ONE, LanePolicy { revision: Position(2), ..policy() }, Backlog::None, at(30));
    assert_eq!(count_sends(&mut lanes, at(30)), 9);
}

#[test]
fn reserving_lane_leaves_its_slots_to_others() {
    for host_max_in_flight in [0, 1] {
        let mut lanes = lanes(if host_max_in_flight == 0 { 1 } else { 1_000 });
        lanes.reconfigure(LanesConfig { host_max_in_flight, ..lanes.config });
        lanes.on_endpoint(ONE, policy_with_rate(1, MINUTE, 3, 1), Backlog::None, at(0));
        lanes.on_endpoint(TWO, policy(), Backlog::None, at(0));
        for endpoint in [ONE, TWO] {
            fill(&mut lanes, endpoint, 1..10);
        }
        let reservation = next_reservation(&mut lanes, 0);
        // The disk is full for two minutes. The other lane uses the only slot.
        let first = sends(&mut lanes, at(1));
        assert_eq!(first, [(TWO, key(0, 1))]);
        lanes.on_finished(TWO, key(0, 1), AttemptOutcome::Healthy, at(120_000));
        assert_eq!(sends(&mut lanes, at(120_000)), [(TWO, key(0, 2))]);
        lanes.on_reserved(ONE, &reservation, at(120_001));
        assert_eq!(sends(&mut lanes, at(120_001)), []);
        // The reservation is too old: the lane requests another; its slot goes to the other lane.
        lanes.on_finished(TWO, key(0, 2), AttemptOutcome::Healthy, at(120_002));
        let reservation = next_reservation(&mut lanes, 120_002);
        assert_eq!(sends(&mut lanes, at(120_002)), [(TWO, key(0, 3))]);
        lanes.on_reserved(ONE, &reservation, at(120_003));
        assert_eq!(sends(&mut lanes, at(120_003)), []);
        // The lane spent its turn on the reservation, so it gets the next slot.
        lanes.on_finished(TWO, key(0, 3), AttemptOutcome::Healthy, at(180_000));
        assert_eq!(sends(&mut lanes, at(180_000)), [(ONE, key(0, 1))], "{host_max_in_flight}");
    }
}

#[test]
fn old_reservation_is_renewed_so_that_the_rate_holds() {
    let mut lanes = lanes(1_000);
    lanes.on_endpoint(ONE, policy_with_rate(1, MINUTE, 1, 1), Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..10);
    let first = next_reservation(&mut lanes, 0);
    // After a slow commit of a minute the reservation is too old.
    lanes.on_reserved(ONE, &first, at(60_000));
    let second = next_reservation(&mut lanes, 60_000);
    assert!(second.is_after(&first));
    // The next lead is twice that delay.
    lanes.on_reserved(ONE, &second, at(120_000));
    assert_eq!(sends(&mut lanes, at(120_000)).len(), 1);
    let durable = second.full_at.millis() - at(0).wall.millis();
    assert!(durable >= 180_000, "after a restart the lane would send at {durable} ms");
    assert_eq!(count_sends(&mut lanes, at(179_999)), 0, "no burst after the wait");
    // Commits are fast again: the lead shrinks.
    for minute in 3..=6 {
        assert_eq!(count_sends(&mut lanes, at(minute * 60_000)), 1, "minute {minute}");
    }
    let last = next_reservation(&mut lanes, 420_000);
    let ahead = last.full_at.since(at(420_000).wall);
    assert!(ahead < MINUTE + Duration::from_millis(200), "{ahead:?}");
}

#[test]
fn reserved_lane_waits_for_a_hold_or_an_open_circuit() {
    // Five failures open the circuit.
    for outcome in [throttled(at(60_000).wall), AttemptOutcome::Failing] {
        let mut lanes = lanes(1_000);
        lanes.on_endpoint(ONE, policy_with_rate(1, MINUTE, 10, 1), Backlog::None, at(0));
        fill(&mut lanes, ONE, 1..10);
        let mut sent = Vec::new();
        for _ in 0..5 {
            let reservation = next_reservation(&mut lanes, 0);
            lanes.on_reserved(ONE, &reservation, at(0));
            match lanes.next_action(at(0)) {
                Some(Action::Send { key, .. }) => sent.push(key),
                other => panic!("{other:?}"),
            }
        }
        let reservation = next_reservation(&mut lanes, 0);
        for key in sent {
            lanes.on_finished(ONE, key, outcome, at(1));
        }
        lanes.on_reserved(ONE, &reservation, at(2));
        assert_eq!(lanes.next_action(at(2)), None, "{outcome:?}");
        assert_eq!(lanes.explain(ONE, at(2)).unwrap().in_flight, 0);
    }
}

#[test]
fn fast_rate_reserves_for_many_requests_at_once() {
    let mut lanes = lanes(1_000);
    lanes.on_endpoint(ONE, policy_with_rate(100, Duration::from_secs(1), 10, 1), Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..120);
    let (mut sent, mut reserved) = (0, 0);
    for millis in 0..2_000 {
        while let Some(action) = lanes.next_action(at(millis)) {
            match action {
                Action::Send { key, .. } => {
                    sent += 1;
                    lanes.on_finished(ONE, key, AttemptOutcome::Healthy, at(millis));
                }
                Action::Reserve { reservation, .. } => {
                    reserved += 1;
                    lanes.on_reserved(ONE, &reservation, at(millis));
                }
                Action::Refill { .. } => {}
            }
        }
    }
    assert_eq!(sent, 119);
    assert!(reserved <= 3, "{reserved} records for {sent} requests");
}

#[test]
fn returned_probe_permits_another_one() {
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, LanePolicy { max_in_flight: 5, ..policy() }, Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..50);
    for (_, key) in sends(&mut lanes, at(1)) {
        lanes.on_finished(ONE, key, AttemptOutcome::Failing, at(1));
    }
    for round in 0..3 {
        let now = at(6_000 + round);
        let probe = sends(&mut lanes, now);
        assert_eq!(probe.len(), 1, "round {round}");
        assert_eq!(lanes.explain(ONE, now).unwrap().circuit, CircuitState::HalfOpen);
        lanes.on_returned(ONE, probe[0].1, FRESH, now);
        assert_eq!(lanes.explain(ONE, now).unwrap().circuit, CircuitState::Open);
    }
    // A failed probe and a returned one keep the probe interval.
    let probe = sends(&mut lanes, at(7_000));
    lanes.on_finished(ONE, probe[0].1, AttemptOutcome::Failing, at(7_000));
    assert_eq!(count_sends(&mut lanes, at(16_999)), 0);
    let probe = sends(&mut lanes, at(17_000));
    lanes.on_returned(ONE, probe[0].1, FRESH, at(17_000));
    let probe = sends(&mut lanes, at(17_001));
    lanes.on_finished(ONE, probe[0].1, AttemptOutcome::Healthy, at(17_001));
    assert_eq!(count_sends(&mut lanes, at(17_001)), 5);
}

#[test]
fn second_outage_is_probed_like_the_first() {
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, LanePolicy { max_in_flight: 5, ..policy() }, Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..100);
    let mut now = 0;
    for outage in 0..3 {
        for (_, key) in sends(&mut lanes, at(now)) {
            lanes.on_finished(ONE, key, AttemptOutcome::Failing, at(now));
        }
        assert_eq!(count_sends(&mut lanes, at(now + 4_999)), 0, "outage {outage}");
        now += 5_000;
        let probe = sends(&mut lanes, at(now));
        assert_eq!(probe.len(), 1, "outage {outage}");
        lanes.on_finished(ONE, probe[0].1, AttemptOutcome::Healthy, at(now));
    }
}

#[test]
fn second_opening_ends_a_second_hold() {
    let gate =
        |gate, revision| LanePolicy { gate, revision: Position(revision), max_in_flight: 1, ..policy() };
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, gate(Gate::Open, 1), Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..10);
    for round in 0..3 {
        let revision = 1 + 2 * round;
        let sent = sends(&mut lanes, at(1));
        let hold = Hold { until: at(86_400_000).wall, revision: Position(revision) };
        lanes.on_finished(ONE, sent[0].1, AttemptOutcome::Throttled(hold), at(1));
        assert_eq!(count_sends(&mut lanes, at(80_000_000)), 0, "round {round}");
        lanes.on_endpoint(ONE, gate(Gate::Paused, revision + 1), Backlog::None, at(2));
        assert_eq!(count_sends(&mut lanes, at(80_000_000)), 0, "round {round}");
        lanes.on_endpoint(ONE, gate(Gate::Open, revision + 2), Backlog::None, at(3));
    }
    assert_eq!(count_sends(&mut lanes, at(4)), 1);
}

#[test]
fn hold_and_circuit_end_when_the_host_changes() {
    for outcome in [throttled(at(60_000).wall), AttemptOutcome::Failing] {
        let mut lanes = lanes(100);
        let at_host = |host: &str, revision| LanePolicy {
            host: host.into(),
            revision: Position(revision),
            max_in_flight: 5,
            ..policy()
        };
        lanes.on_endpoint(ONE, at_host("a.example:443", 1), Backlog::None, at(0));
        fill(&mut lanes, ONE, 1..20);
        for (_, key) in sends(&mut lanes, at(0)) {
            lanes.on_finished(ONE, key, outcome, at(1));
        }
        lanes.on_endpoint(ONE, at_host("a.example:443", 2), Backlog::None, at(2));
        assert_eq!(count_sends(&mut lanes, at(2)), 0, "{outcome:?}: the receiver is the same");
        lanes.on_endpoint(ONE, at_host("b.example:443", 3), Backlog::None, at(3));
        assert_eq!(count_sends(&mut lanes, at(3)), 5, "{outcome:?}");
    }
}

/// `shut_since` of the next request, in milliseconds after the start.
fn shut_since(lanes: &mut Lanes, now: Now) -> Option<u64> {
    let Some(Action::Send { shut_since, .. }) = lanes.next_action(now) else {
        panic!("the lane sends nothing")
    };
    shut_since.map(|since| since.millis() - at(0).wall.millis())
}

#[test]
fn lane_reports_when_its_receiver_shut_it() {
    let gate =
        |gate, revision| LanePolicy { gate, revision: Position(revision), max_in_flight: 5, ..policy() };
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, gate(Gate::Open, 1), Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..40);
    let end = |lanes: &mut Lanes, event, outcome, millis| {
        lanes.on_finished(ONE, key(0, event), outcome, at(millis));
        lanes.on_settled(ONE, key(0, event), Position(100 + event), at(millis));
        lanes.on_recorded(ONE, key(0, event), at(millis));
    };
    for _ in 1..=5 {
        assert_eq!(shut_since(&mut lanes, at(0)), None);
    }
    (1..=5).for_each(|event| end(&mut lanes, event, AttemptOutcome::Failing, 100));
    // Two probes; the first one fails.
    assert_eq!(shut_since(&mut lanes, at(5_100)), Some(100));
    end(&mut lanes, 6, AttemptOutcome::Failing, 5_200);
    assert_eq!(shut_since(&mut lanes, at(20_000)), Some(100));
    end(&mut lanes, 7, AttemptOutcome::Healthy, 20_100);
    assert_eq!(shut_since(&mut lanes, at(20_100)), None);
    // Only the first request after a hold has it.
    end(&mut lanes, 8, throttled(at(60_000).wall), 20_200);
    assert_eq!(shut_since(&mut lanes, at(60_000)), Some(20_200));
    end(&mut lanes, 9, AttemptOutcome::Healthy, 60_100);
    assert_eq!(shut_since(&mut lanes, at(60_100)), None);
    // An operator opens the endpoint.
    end(&mut lanes, 10, throttled(at(90_000).wall), 60_200);
    lanes.on_endpoint(ONE, gate(Gate::Paused, 2), Backlog::None, at(61_000));
    lanes.on_endpoint(ONE, gate(Gate::Open, 3), Backlog::None, at(62_000));
    assert_eq!(shut_since(&mut lanes, at(62_000)), None);
}

#[test]
fn restored_hold_shuts_the_lane_from_the_restart() {
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, policy(), Backlog::None, at(7_000));
    let promises = Promises { held_until: Some(at(30_000).wall), reservation: None };
    lanes.restore(ONE, promises, at(7_000));
    fill(&mut lanes, ONE, 1..4);
    assert_eq!(shut_since(&mut lanes, at(30_000)), Some(7_000));
}

#[test]
fn hold_survives_a_restart_and_ends_with_an_opening() {
    for opens in [false, true] {
        let mut lanes = lanes(100);
        lanes.on_endpoint(ONE, policy(), Backlog::None, at(0));
        let promises = Promises { held_until: Some(at(30_000).wall), reservation: None };
        lanes.restore(ONE, promises, at(0));
        fill(&mut lanes, ONE, 1..4);
        assert_eq!(count_sends(&mut lanes, at(1)), 0);
        assert_eq!(lanes.explain(ONE, at(1)).unwrap().reason, Some(WaitReason::RetryAfter));
        for (gate, revision) in [(Gate::Paused, 2), (Gate::Open, 3)].into_iter().filter(|_| opens) {
            let policy = LanePolicy { gate, revision: Position(revision), ..policy() };
            lanes.on_endpoint(ONE, policy, Backlog::None, at(2));
        }
        assert_eq!(count_sends(&mut lanes, at(29_999)), if opens { 3 } else { 0 });
        assert_eq!(count_sends(&mut lanes, at(30_000)), if opens { 0 } else { 3 });
    }
}

#[test]
fn idle_endpoint_has_its_whole_burst_after_a_restart() {
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, policy_with_rate(1, MINUTE, 5, 1), Backlog::None, at(0));
    let rate = RateLimit { limit: 1, per: MINUTE, burst: 5 };
    let reservation = Reservation { revision: Position(1), rate, full_at: at(0).wall };
    lanes.restore(ONE, Promises { held_until: None, reservation: Some(reservation) }, at(1));
    fill(&mut lanes, ONE, 1..10);
    assert_eq!(count_sends(&mut lanes, at(1)), 5);
}

/// One lane with a rate, in a process that crashes at any moment and restarts.
struct RestartedLane {
    random: fastrand::Rng,
    wall: Timestamp,
    policy: LanePolicy,
    durable: Option<Reservation>,
    /// Wall-clock times of sent requests, in milliseconds.
    sent: Vec<u64>,
    /// Total time with an open gate.
    open: Duration,
}

impl RestartedLane {
    fn run_until_crash(&mut self, interval: Duration, lasts: Duration) {
        let mut now = Now { wall: self.wall, monotonic: Duration::ZERO };
        let mut lanes = lanes(1_000);
        lanes.on_endpoint(ONE, self.policy.clone(), Backlog::None, now);
        lanes.restore(ONE, Promises { held_until: None, reservation: self.durable }, now);
        let mut event = 0;
        while now.monotonic < lasts {
            while lanes.explain(ONE, now).unwrap().window < 20 {
                event += 1;
                let key = DueKey { due: Timestamp::ZERO, event: Position(event) };
                lanes.on_due(ONE, key, FRESH, Position(event), now);
            }
            let mut crashed = false;
            while let Some(action) = lanes.next_action(now) {
                match action {
                    Action::Reserve { reservation, .. } => {
                        // Crash before the commit, between commit and request, or later.
                        crashed = self.random.u8(0..100) == 0;
                        if crashed && self.random.bool() {
                            break;
                        }
                        // One in ten commits is slow.
                        let most = if self.random.u8(0..10) == 0 { 3_000 } else { 20 };
                        now = now.plus(Duration::from_millis(self.random.u64(0..most)));
                        let known = self.durable;
                        self.durable = Some(reservation)
                            .filter(|new| known.is_none_or(|known| new.is_after(&known)))
                            .or(known);
                        lanes.on_reserved(ONE, &reservation, now);
                        if crashed {
                            break;
                        }
                    }
                    Action::Send { key, .. } => {
                        self.sent.push(now.wall.millis());
                        // The outcome is recorded, or lost by the crash.
                        if self.random.u8(0..3) > 0 {
                            lanes.on_finished(ONE, key, AttemptOutcome::Healthy, now);
                            lanes.on_settled(ONE, key, Position(event), now);
                            lanes.on_recorded(ONE, key, now);
                        }
                    }
                    Action::Refill { .. } => {}
                }
            }
            if crashed {
                break;
            }
            if self.random.u8(0..40) == 0 {
                let gate = if self.random.bool() { Gate::Paused } else { Gate::Open };
                let revision = self.policy.revision.next();
                self.policy = LanePolicy { gate, revision, ..self.policy.clone() };
                lanes.on_endpoint(ONE, self.policy.clone(), Backlog::None, now);
            }
            let most = u64::try_from((interval / 2).as_millis()).unwrap();
            let step = Duration::from_millis(self.random.u64(1..most));
            now = now.plus(step);
            if self.policy.gate == Gate::Open {
                self.open += step;
            }
        }
        self.wall = now.wall;
    }
}

#[test]
fn rate_holds_across_random_crashes() {
    let first = crate::failpoints::seed();
    for seed in (0..crate::failpoints::rounds(60)).map(|round| first.wrapping_add(round)) {
        let mut random = fastrand::Rng::with_seed(seed);
        let interval = Duration::from_millis(random.u64(20..20_000));
        let burst = random.u32(1..5);
        let policy = policy_with_rate(1, interval, burst, 1);
        let wall = Timestamp::from_millis(1_000_000_000);
        let mut lane =
            RestartedLane { random, wall, policy, durable: None, sent: Vec::new(), open: Duration::ZERO };
        for _ in 0..80 {
            let lasts = interval.mul_f64(lane.random.f64() * 3.0);
            lane.run_until_crash(interval, lasts);
            let down =
                interval.mul_f64(lane.random.f64() * if lane.random.u8(0..20) == 0 { 9.0 } else { 0.5 });
            lane.wall = lane.wall.plus(down);
        }
        let interval = u64::try_from(interval.as_millis()).unwrap();
        for (from, start) in lane.sent.iter().enumerate() {
            for (to, end) in lane.sent.iter().enumerate().skip(from) {
                let allowed = u64::from(burst) + (end - start) / interval;
                let seen = (to - from + 1) as u64;
                assert!(
                    seen <= allowed,
                    "seed {seed}: {seen} within {} ms, burst {burst}, one per {interval} ms",
                    end - start
                );
            }
        }
        // Runs shorter than an interval do not starve the lane, unless the interval is shorter than
        // the reservation ahead.
        if interval > 1_000 {
            let expected = lane.open.as_millis() / u128::from(interval);
            let sent = lane.sent.len() as u128;
            assert!(sent * 3 >= expected, "seed {seed}: {sent} of {expected}");
        }
    }
}

//! Tests of single properties. `lives` and `promises` hold random tests and tests across restarts.

mod faults;
mod lives;
mod promises;
mod queues;
mod reports;
mod tenants;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::domain::{Position, Trigger};
use crate::failpoints::{Mutation, fails_with};
use lives::random_lane_sends_each_delivery_once_at_a_time;
use reports::retry_after_pause_and_disabling_report_their_reason;

const ONE: EndpointNumber = EndpointNumber(1);
const TWO: EndpointNumber = EndpointNumber(2);
const FRESH: Progress = Progress {
    attempts: 0,
    attempts_in_series: 0,
    series_started: Timestamp::ZERO,
    first_attempt: None,
    trigger: Trigger::Publish,
    lost_answers: 0,
};

fn lanes(max_in_flight: usize) -> Lanes {
    Lanes::new(LanesConfig {
        max_in_flight,
        host_max_in_flight: 0,
        breaker: BreakerConfig {
            failures_to_open: 5,
            probe_initial: Duration::from_secs(5),
            probe_max: Duration::from_secs(60),
        },
    })
}

fn policy() -> LanePolicy {
    LanePolicy {
        rate: None,
        max_in_flight: 16,
        gate: Gate::Open,
        tenant: "default".into(),
        host: "a.example:443".into(),
        revision: Position(1),
    }
}

fn throttled(until: Timestamp) -> AttemptOutcome {
    AttemptOutcome::Throttled(Hold { until, revision: policy().revision })
}

fn at(millis: u64) -> Now {
    Now { wall: Timestamp::from_millis(1_000_000 + millis), monotonic: Duration::from_millis(millis) }
}

fn key(due: u64, event: u64) -> DueKey {
    DueKey { due: Timestamp::from_millis(1_000_000 + due), event: Position(event) }
}

fn sends(lanes: &mut Lanes, now: Now) -> Vec<(EndpointNumber, DueKey)> {
    let mut sent = Vec::new();
    while let Some(action) = lanes.next_action(now) {
        match action {
            Action::Send { endpoint, key, .. } => sent.push((endpoint, key)),
            Action::Reserve { endpoint, reservation } => lanes.on_reserved(endpoint, &reservation, now),
            Action::Refill { .. } => {}
        }
    }
    sent
}

/// Lanes in the rings of all tenants.
fn ring_len(lanes: &Lanes) -> usize {
    lanes.lines.iter().map(|line| line.ring.len()).sum()
}

fn fill(lanes: &mut Lanes, endpoint: EndpointNumber, events: std::ops::Range<u64>) {
    for event in events {
        lanes.on_due(endpoint, key(0, event), FRESH, Position(event), at(0));
    }
}

#[test]
fn due_delivery_follows_a_step_of_the_wall_clock() {
    let hour = Duration::from_secs(3_600);
    let mut lanes = lanes(10);
    lanes.on_endpoint(ONE, policy(), Backlog::None, at(0));
    for (event, hours) in [(1, 1), (2, 3)] {
        lanes.on_due(ONE, key(hours * 3_600_000, event), FRESH, Position(event), at(0));
    }
    assert_eq!(sends(&mut lanes, at(0)), []);
    // The clock advances two hours within one second.
    let set = Now { wall: at(1_000).wall.plus(2 * hour), ..at(1_000) };
    assert_eq!(sends(&mut lanes, set), [(ONE, key(3_600_000, 1))]);
    let wakeup = lanes.next_wakeup(set).unwrap();
    assert_eq!(
        wakeup,
        hour - Duration::from_secs(1),
        "the lane sleeps until the second delivery, by the new clock"
    );
    assert_eq!(sends(&mut lanes, set.plus(wakeup)), [(ONE, key(3 * 3_600_000, 2))]);
}

#[test]
fn rate_holds_over_a_minute_without_slowing_other_lanes() {
    let mut lanes = lanes(10_000);
    let rate = RateLimit { limit: 20, per: Duration::from_secs(1), burst: 5 };
    lanes.on_endpoint(
        ONE,
        LanePolicy { rate: Some(rate), max_in_flight: 1_000, ..policy() },
        Backlog::None,
        at(0),
    );
    lanes.on_endpoint(TWO, LanePolicy { max_in_flight: 1_000, ..policy() }, Backlog::None, at(0));
    let mut pending: VecDeque<u64> = (1..=5_000).collect();
    let (mut per_second, mut other) = (vec![0; 60], 0);
    let mut millis = 0;
    while millis < 60_000 {
        let now = at(millis);
        while lanes.explain(ONE, now).unwrap().window < 50 {
            let event = pending.pop_front().unwrap();
            lanes.on_due(ONE, key(0, event), FRESH, Position(event), now);
            lanes.on_due(TWO, key(0, event), FRESH, Position(event), now);
        }
        for (endpoint, key) in sends(&mut lanes, now) {
            if endpoint == ONE {
                per_second[(millis / 1000) as usize] += 1
            } else {
                other += 1
            }
            lanes.on_finished(endpoint, key, AttemptOutcome::Healthy, now);
            lanes.on_settled(endpoint, key, Position(10_000), now);
            lanes.on_recorded(endpoint, key, now);
        }
        assert_eq!(lanes.explain(ONE, now).unwrap().reason, Some(WaitReason::Rate));
        assert_eq!(sends(&mut lanes, now).iter().filter(|(endpoint, _)| *endpoint == ONE).count(), 0);
        millis += u64::try_from(lanes.next_wakeup(now).unwrap().as_millis()).unwrap().max(1);
    }
    let waited = lanes.take_rate_waited().as_secs();
    assert!((55..=60).contains(&waited), "held for {waited} s of 60");
    assert_eq!(lanes.take_rate_waited(), Duration::ZERO, "reset by the previous call");
    let total: u32 = per_second.iter().sum();
    assert!((1_195..=1_260).contains(&total), "{total} in a minute at 20/s");
    assert!(per_second.iter().all(|count| *count <= 25), "{per_second:?}");
    assert!(other > 1_200, "the other lane sent {other}");
}

/// Number of sends per lane.
fn count_by_lane(sent: &[(EndpointNumber, DueKey)]) -> BTreeMap<EndpointNumber, usize> {
    sent.iter().fold(BTreeMap::new(), |mut counts, (endpoint, _)| {
        *counts.entry(*endpoint).or_default() += 1;
        counts
    })
}

/// Whether a new delivery of the lane is sent at once, and no other. Its receiver answers it.
fn sends_and_answers(lanes: &mut Lanes, endpoint: EndpointNumber, event: u64, now: Now) -> bool {
    lanes.on_due(endpoint, key(0, event), FRESH, Position(event), now);
    let sent = sends(lanes, now);
    let only = count_by_lane(&sent) == BTreeMap::from([(endpoint, 1)]);
    for (endpoint, key) in sent.into_iter().filter(|(sender, _)| *sender == endpoint) {
        lanes.on_finished(endpoint, key, AttemptOutcome::Healthy, now);
    }
    only
}

#[test]
fn healthy_receiver_gets_a_slot_beside_hanging_ones() {
    for hanging in [1, 2, 63, 64, 65, 100, 300, 1_000, 1_024, 5_000] {
        let mut lanes = lanes(1_024);
        for endpoint in 0..=hanging {
            lanes.on_endpoint(EndpointNumber(endpoint), policy(), Backlog::None, at(0));
        }
        let healthy = EndpointNumber(0);
        assert!(sends_and_answers(&mut lanes, healthy, 1, at(0)));
        for endpoint in 1..=hanging {
            let first = 1_000_000 + u64::from(endpoint) * 100;
            fill(&mut lanes, EndpointNumber(endpoint), first..first + 40);
        }
        let hung = sends(&mut lanes, at(1));
        // This also holds before any hanging attempt times out.
        for event in 2..100 {
            assert!(
                sends_and_answers(&mut lanes, healthy, event, at(1)),
                "beside {hanging} hanging receivers"
            );
        }
        if hanging >= 64 {
            let report = lanes.explain(EndpointNumber(hanging), at(1)).unwrap();
            assert_eq!(report.reason, Some(WaitReason::GlobalLimit), "{hanging}");
        }
        // A new receiver also gets a slot, unless too many unknown ones wait before it.
        if hanging < 1_000 {
            let new = EndpointNumber(hanging + 1);
            lanes.on_endpoint(new, policy(), Backlog::None, at(1));
            assert!(
                sends_and_answers(&mut lanes, new, 100, at(1)),
                "a new receiver beside {hanging} hanging ones"
            );
        }
        // The first attempts time out. Failing and unknown receivers leave half of the headroom,
        // except for the turns of 16 unknown ones.
        for (endpoint, key) in hung {
            lanes.on_finished(endpoint, key, AttemptOutcome::Failing, at(15_000));
        }
        let again = sends(&mut lanes, at(15_000));
        assert!(again.len() <= 1_024 - 64 + 16, "{} of {hanging}", again.len());
        assert!(sends_and_answers(&mut lanes, healthy, 101, at(15_000)), "{hanging}");
    }
}

#[test]
fn lanes_without_a_slot_queue_outside_the_ring() {
    let (mut lanes, count) = (lanes(64), 5_000);
    for endpoint in (1..=count).map(EndpointNumber) {
        lanes.on_endpoint(endpoint, policy(), Backlog::None, at(0));
        lanes.on_due(endpoint, key(0, u64::from(endpoint.0)), FRESH, Position(1), at(0));
        for (endpoint, key) in sends(&mut lanes, at(0)) {
            lanes.on_finished(endpoint, key, AttemptOutcome::Failing, at(0));
        }
        assert_eq!(sends(&mut lanes, at(0)), []);
    }
    for endpoint in (1..=count).map(EndpointNumber) {
        lanes.on_due(endpoint, key(1, 10_000 + u64::from(endpoint.0)), FRESH, Position(1), at(1));
    }
    let mut running: VecDeque<_> = sends(&mut lanes, at(1)).into();
    assert_eq!(running.len(), 64 - 8, "the headroom stays free");
    assert!(ring_len(&lanes) == 0, "{} lanes are in the ring", ring_len(&lanes));
    let healthy = EndpointNumber(0);
    lanes.on_endpoint(healthy, policy(), Backlog::None, at(1));
    assert!(sends_and_answers(&mut lanes, healthy, 1, at(1)));
    // Each released slot goes to the next lane in the queue, also if waiting lanes change.
    let mut order = Vec::new();
    while let Some((endpoint, key)) = running.pop_front() {
        order.push(endpoint);
        lanes.on_settled(EndpointNumber(count), self::key(7, 7), Position(1), at(1));
        lanes.on_finished(endpoint, key, AttemptOutcome::Failing, at(1));
        let next = sends(&mut lanes, at(1));
        assert!(next.len() == 1 || order.len() + running.len() == count as usize, "{next:?}");
        running.extend(next);
        assert!(ring_len(&lanes) <= 1);
    }
    assert!(order == (1..=count).map(EndpointNumber).collect::<Vec<_>>(), "a lane was overtaken");
}

#[test]
fn lane_without_a_slot_passes_on_its_host_offer() {
    let mut lanes = lanes(64);
    lanes.reconfigure(LanesConfig { host_max_in_flight: 1, ..lanes.config });
    let at_host = |name: &str| LanePolicy { host: name.into(), ..policy() };
    let (failing, healthy) = (ONE, TWO);
    for endpoint in [failing, healthy] {
        lanes.on_endpoint(endpoint, at_host("shared"), Backlog::None, at(0));
    }
    let finish = |lanes: &mut Lanes, endpoint, key, outcome| {
        lanes.on_finished(endpoint, key, outcome, at(0));
        lanes.on_recorded(endpoint, key, at(0));
    };
    for (endpoint, event, outcome) in
        [(failing, 1, AttemptOutcome::Failing), (healthy, 2, AttemptOutcome::Healthy)]
    {
        fill(&mut lanes, endpoint, event..event + 1);
        let sent = sends(&mut lanes, at(0));
        assert_eq!(sent, [(endpoint, key(0, event))]);
        finish(&mut lanes, endpoint, sent[0].1, outcome);
    }
    // The healthy lane has the host's only slot. The failing one is next, then the healthy one.
    for (endpoint, event) in [(healthy, 3), (failing, 4), (healthy, 5)] {
        fill(&mut lanes, endpoint, event..event + 1);
        assert_eq!(sends(&mut lanes, at(0)).len(), usize::from(event == 3));
    }
    for number in (100..200).map(EndpointNumber) {
        lanes.on_endpoint(number, at_host(&number.0.to_string()), Backlog::None, at(0));
        fill(&mut lanes, number, u64::from(number.0)..u64::from(number.0) + 1);
    }
    let hanging = sends(&mut lanes, at(1)).len();
    assert!(hanging > 50, "{hanging}");
    finish(&mut lanes, healthy, key(0, 3), AttemptOutcome::Healthy);
    assert_eq!(
        sends(&mut lanes, at(1)),
        [(healthy, key(0, 5))],
        "the host kept a slot for a lane that gets no slot"
    );
}

#[test]
fn healthy_lanes_use_almost_all_slots() {
    let mut lanes = lanes(1_024);
    for endpoint in 0..10 {
        let many = LanePolicy { max_in_flight: 1_000, ..policy() };
        lanes.on_endpoint(EndpointNumber(endpoint), many, Backlog::None, at(0));
        assert!(sends_and_answers(&mut lanes, EndpointNumber(endpoint), u64::from(endpoint) + 1, at(0)));
    }
    for endpoint in 0..10 {
        let first = u64::from(endpoint + 1) * 1_000;
        fill(&mut lanes, EndpointNumber(endpoint), first..first + 120);
    }
    let counts: Vec<_> = count_by_lane(&sends(&mut lanes, at(1))).into_values().collect();
    // Each lane leaves as many free slots as it holds.
    assert!(counts.len() == 10 && counts.iter().all(|count| (93..=94).contains(count)), "{counts:?}");
    let mut small = self::lanes(20);
    small.on_endpoint(ONE, LanePolicy { max_in_flight: 100, ..policy() }, Backlog::None, at(0));
    fill(&mut small, ONE, 1..100);
    assert_eq!(sends(&mut small, at(1)).len(), 20, "a low limit has no headroom");
}

#[test]
fn turns_are_fair_and_limits_hold() {
    let mut lanes = lanes(20);
    lanes.on_endpoint(ONE, policy(), Backlog::None, at(0));
    lanes.on_endpoint(TWO, policy(), Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..60);
    fill(&mut lanes, TWO, 100..160);
    let sent = sends(&mut lanes, at(1));
    assert_eq!(sent.iter().filter(|(endpoint, _)| *endpoint == ONE).count(), 10, "{sent:?}");
    assert_eq!(sent.len(), 20);
    assert_eq!(lanes.explain(ONE, at(1)).unwrap().reason, Some(WaitReason::GlobalLimit));
    for (endpoint, key) in sent {
        lanes.on_finished(endpoint, key, AttemptOutcome::Healthy, at(2));
    }
    lanes.reconfigure(LanesConfig { max_in_flight: 1_000, ..lanes.config });
    assert_eq!(sends(&mut lanes, at(2)).len(), 32);
    assert_eq!(lanes.explain(ONE, at(2)).unwrap().reason, Some(WaitReason::InFlightLimit));
}

/// Ends the oldest request in flight, and returns the lanes that send next.
fn next_turn(
    lanes: &mut Lanes,
    in_flight: &mut VecDeque<(EndpointNumber, DueKey)>,
    now: Now,
) -> Vec<EndpointNumber> {
    let (endpoint, key) = in_flight.pop_front().unwrap();
    lanes.on_finished(endpoint, key, AttemptOutcome::Healthy, now);
    lanes.on_settled(endpoint, key, Position(1_000_000), now);
    lanes.on_recorded(endpoint, key, now);
    let sent = sends(lanes, now);
    in_flight.extend(&sent);
    sent.into_iter().map(|(endpoint, _)| endpoint).collect()
}

#[test]
fn lanes_of_one_host_share_its_limit_in_turn() {
    let mut lanes = lanes(1_000);
    lanes.reconfigure(LanesConfig { host_max_in_flight: 4, ..lanes.config });
    let many = 30;
    for number in 1..=many {
        lanes.on_endpoint(EndpointNumber(number), policy(), Backlog::None, at(0));
    }
    // The first lane has twenty times the backlog of the others.
    fill(&mut lanes, ONE, 1..101);
    for number in 2..=many {
        fill(&mut lanes, EndpointNumber(number), 200..205);
    }
    let elsewhere = EndpointNumber(99);
    lanes.on_endpoint(
        elsewhere,
        LanePolicy { host: "b.example:443".into(), ..policy() },
        Backlog::None,
        at(0),
    );
    fill(&mut lanes, elsewhere, 1..4);

    let sent = sends(&mut lanes, at(1));
    assert_eq!(sent.iter().filter(|(endpoint, _)| *endpoint == elsewhere).count(), 3, "{sent:?}");
    let mut in_flight: VecDeque<_> =
        sent.into_iter().filter(|(endpoint, _)| *endpoint != elsewhere).collect();
    assert_eq!(in_flight.len(), 4, "the host's limit");
    assert_eq!(lanes.explain(EndpointNumber(20), at(1)).unwrap().reason, Some(WaitReason::GlobalLimit));
    assert_eq!(lanes.explain(elsewhere, at(1)).unwrap().reason, None);
    assert!(lanes.in_ring.iter().all(|endpoint| *endpoint == elsewhere), "queued lanes are not in the ring");

    // Each ended request lets the next queued lane send. No lane gets a second turn early.
    let mut turns: Vec<EndpointNumber> = in_flight.iter().map(|(endpoint, _)| *endpoint).collect();
    while turns.len() < 5 * many as usize {
        let sent = next_turn(&mut lanes, &mut in_flight, at(2));
        assert_eq!(sent.len(), 1, "one slot, one request");
        turns.extend(sent);
        // A new lane with an overdue delivery does not overtake queued lanes.
        if turns.len() == 50 {
            lanes.on_endpoint(EndpointNumber(77), policy(), Backlog::None, at(2));
            fill(&mut lanes, EndpointNumber(77), 1..2);
        }
    }
    for round in turns.chunks(many as usize).take(1) {
        let different: BTreeSet<_> = round.iter().collect();
        assert_eq!(different.len(), round.len(), "a lane sent twice before another sent: {round:?}");
    }
    let newcomer = turns.iter().position(|endpoint| *endpoint == EndpointNumber(77)).unwrap();
    assert!((50 + 25..=50 + 35).contains(&newcomer), "the new lane sent at turn {newcomer}");
    let count = |number| turns.iter().filter(|endpoint| **endpoint == EndpointNumber(number)).count();
    assert!((2..=many).all(|number| count(number) >= 4), "{turns:?}");
}

#[test]
fn host_slot_is_never_lost() {
    let mut lanes = lanes(1_000);
    lanes.reconfigure(LanesConfig { host_max_in_flight: 1, ..lanes.config });
    let three = EndpointNumber(3);
    for endpoint in [ONE, TWO, three] {
        lanes.on_endpoint(endpoint, policy(), Backlog::None, at(0));
        fill(&mut lanes, endpoint, 1..3);
    }
    let [(endpoint, first)] = sends(&mut lanes, at(1))[..] else { panic!("one slot") };
    assert_eq!(endpoint, ONE);
    // The next queued lane is paused, so the one behind it gets the slot.
    lanes.on_endpoint(TWO, LanePolicy { gate: Gate::Paused, ..policy() }, Backlog::None, at(1));
    lanes.on_finished(ONE, first, AttemptOutcome::Healthy, at(2));
    let [(endpoint, second)] = sends(&mut lanes, at(2))[..] else { panic!("one slot") };
    assert_eq!(endpoint, three);
    // A lane is removed while its request is in flight. The next one has moved to another host.
    lanes.on_endpoint(ONE, LanePolicy { host: "b.example:443".into(), ..policy() }, Backlog::None, at(2));
    assert_eq!(sends(&mut lanes, at(2)).len(), 1, "the other host has a free slot");
    lanes.on_endpoint(TWO, policy(), Backlog::None, at(2));
    assert_eq!(sends(&mut lanes, at(2)), []);
    lanes.on_endpoint_removed(three);
    let [(endpoint, _)] = sends(&mut lanes, at(3))[..] else { panic!("one slot") };
    assert_eq!(endpoint, TWO);
    lanes.on_finished(three, second, AttemptOutcome::Healthy, at(3));
    assert_eq!(sends(&mut lanes, at(3)), [], "a request of a removed lane frees no slot twice");
    // Without a limit all due deliveries are sent.
    lanes.reconfigure(LanesConfig { host_max_in_flight: 0, ..lanes.config });
    assert_eq!(sends(&mut lanes, at(4)).len(), 1, "the last due delivery");
    for endpoint in [ONE, TWO] {
        lanes.on_endpoint_removed(endpoint);
    }
    assert_eq!(lanes.hosts.count(), 0, "unused hosts are dropped");
}

#[test]
fn returned_delivery_frees_its_host_slot() {
    let mut lanes = lanes(1_000);
    lanes.reconfigure(LanesConfig { host_max_in_flight: 1, ..lanes.config });
    for endpoint in [ONE, TWO] {
        lanes.on_endpoint(endpoint, policy(), Backlog::None, at(0));
        fill(&mut lanes, endpoint, 1..3);
    }
    for round in 0..6 {
        let [(endpoint, key)] = sends(&mut lanes, at(1))[..] else { panic!("one slot in round {round}") };
        lanes.on_returned(endpoint, key, FRESH, at(1));
    }
}

#[test]
fn failed_receiver_is_probed_and_drained_after_recovery() {
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, LanePolicy { max_in_flight: 5, ..policy() }, Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..50);
    for (_, key) in sends(&mut lanes, at(1)) {
        lanes.on_finished(ONE, key, AttemptOutcome::Failing, at(1));
    }
    let report = lanes.explain(ONE, at(1)).unwrap();
    assert_eq!((report.reason, report.circuit), (Some(WaitReason::CircuitOpen), CircuitState::Open));
    assert_eq!(sends(&mut lanes, at(5_000)), []);
    let probe = sends(&mut lanes, at(5_001));
    assert_eq!(probe, [(ONE, key(0, 6))], "one probe, with the earliest delivery");
    lanes.on_finished(ONE, probe[0].1, AttemptOutcome::Failing, at(5_002));
    assert_eq!(sends(&mut lanes, at(15_001)), [], "the wait has doubled");
    let probe = sends(&mut lanes, at(15_002));
    assert_eq!(probe.len(), 1);
    assert_eq!(lanes.explain(ONE, at(15_002)).unwrap().circuit, CircuitState::HalfOpen);
    lanes.on_finished(ONE, probe[0].1, AttemptOutcome::Healthy, at(15_003));
    let drained: Vec<_> = sends(&mut lanes, at(15_003)).into_iter().map(|(_, key)| key.event.0).collect();
    assert_eq!(drained, [8, 9, 10, 11, 12]);
}

/// An untried delivery is due at its acceptance, a tried one at its retry time.
#[test]
fn backlog_drains_in_order_of_due_time_after_an_outage() {
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, LanePolicy { max_in_flight: 5, ..policy() }, Backlog::None, at(0));
    for event in 1..=20 {
        let accepted = 100 * event;
        lanes.on_due(ONE, key(accepted, event), FRESH, Position(event), at(accepted));
    }
    for (_, tried) in sends(&mut lanes, at(2_000)) {
        let event = tried.event.0;
        lanes.on_finished(ONE, tried, AttemptOutcome::Failing, at(2_000));
        lanes.on_settled(ONE, tried, Position(100 + event), at(2_000));
        let again = Progress { attempts: 1, attempts_in_series: 1, trigger: Trigger::Retry, ..FRESH };
        // As with jitter, the last of them is due first, amid untried ones.
        lanes.on_due(ONE, key(1_555 - event, event), again, Position(100 + event), at(2_000));
        lanes.on_recorded(ONE, tried, at(2_000));
    }
    let mut drained = Vec::new();
    for step in 0..20 {
        for (_, sent) in sends(&mut lanes, at(7_001 + step)) {
            drained.push(sent.event.0);
            lanes.on_finished(ONE, sent, AttemptOutcome::Healthy, at(7_001 + step));
        }
    }
    assert_eq!(drained, [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 3, 2, 1, 16, 17, 18, 19, 20]);
}

#[test]
fn mutations_are_caught() {
    fails_with(Mutation::NeverOpenCircuit, failed_receiver_is_probed_and_drained_after_recovery);
    fails_with(Mutation::ForgetUnrecorded, random_lane_sends_each_delivery_once_at_a_time);
    fails_with(Mutation::ForgetDuringRefill, random_lane_sends_each_delivery_once_at_a_time);
    fails_with(Mutation::SendBesideItself, random_lane_sends_each_delivery_once_at_a_time);
    fails_with(Mutation::IgnoreRetryAfter, retry_after_pause_and_disabling_report_their_reason);
}

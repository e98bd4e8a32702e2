//! One promise of the lanes at a time; random lives stand in a file of their own.

mod lives;
mod promises;

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::domain::{Position, Trigger};
use crate::failpoints::{Mutation, fails_with};
use lives::no_delivery_is_forgotten_or_sent_twice_at_once;

const ONE: EndpointNumber = EndpointNumber(1);
const TWO: EndpointNumber = EndpointNumber(2);
const FRESH: Progress = Progress {
    attempts: 0,
    attempts_in_series: 0,
    series_started: Timestamp::ZERO,
    first_attempt: None,
    trigger: Trigger::Publish,
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
        host: "a.example:443".into(),
        revision: Position(1),
    }
}

fn throttled(until: Timestamp) -> Outcome {
    Outcome::Throttled(Hold { until, revision: policy().revision })
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

fn fill(lanes: &mut Lanes, endpoint: EndpointNumber, events: std::ops::Range<u64>) {
    for event in events {
        lanes.on_due(endpoint, key(0, event), FRESH, Position(event), at(0));
    }
}

#[test]
fn what_is_due_at_a_time_of_day_goes_then_also_when_the_clock_is_set() {
    let hour = Duration::from_secs(3_600);
    let mut lanes = lanes(10);
    lanes.on_endpoint(ONE, policy(), Backlog::None, at(0));
    for (event, hours) in [(1, 1), (2, 3)] {
        lanes.on_due(ONE, key(hours * 3_600_000, event), FRESH, Position(event), at(0));
    }
    assert_eq!(sends(&mut lanes, at(0)), []);
    // Two hours by the clock, and one second in truth.
    let set = Now { wall: at(1_000).wall.plus(2 * hour), ..at(1_000) };
    assert_eq!(sends(&mut lanes, set), [(ONE, key(3_600_000, 1))]);
    let wakeup = lanes.next_wakeup(set).unwrap();
    assert_eq!(
        wakeup,
        hour - Duration::from_secs(1),
        "it sleeps until the second, by the clock as it stands now"
    );
    assert_eq!(sends(&mut lanes, set.plus(wakeup)), [(ONE, key(3 * 3_600_000, 2))]);
}

#[test]
fn a_rate_holds_over_a_minute_and_leaves_others_at_full_speed() {
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
            lanes.on_finished(endpoint, key, Outcome::Healthy, now);
            lanes.on_settled(endpoint, key, Position(10_000), now);
            lanes.on_recorded(endpoint, key, now);
        }
        assert_eq!(lanes.explain(ONE, now).unwrap().reason, Some(WaitReason::Rate));
        assert_eq!(sends(&mut lanes, now).iter().filter(|(endpoint, _)| *endpoint == ONE).count(), 0);
        millis += u64::try_from(lanes.next_wakeup(now).unwrap().as_millis()).unwrap().max(1);
    }
    let waited = lanes.take_rate_waited().as_secs();
    assert!((55..=60).contains(&waited), "held for {waited} s of 60");
    assert_eq!(lanes.take_rate_waited(), Duration::ZERO, "it was asked for just now");
    let total: u32 = per_second.iter().sum();
    assert!((1_195..=1_260).contains(&total), "{total} in a minute at 20/s");
    assert!(per_second.iter().all(|count| *count <= 25), "{per_second:?}");
    assert!(other > 1_200, "the other lane sent {other}");
}

/// Gives the sends of each lane.
fn counted(sent: &[(EndpointNumber, DueKey)]) -> BTreeMap<EndpointNumber, usize> {
    sent.iter().fold(BTreeMap::new(), |mut counts, (endpoint, _)| {
        *counts.entry(*endpoint).or_default() += 1;
        counts
    })
}

/// Whether one more delivery of a lane, and nothing else, is sent and answered at once.
fn answered(lanes: &mut Lanes, endpoint: EndpointNumber, event: u64, now: Now) -> bool {
    lanes.on_due(endpoint, key(0, event), FRESH, Position(event), now);
    let sent = sends(lanes, now);
    let only = counted(&sent) == BTreeMap::from([(endpoint, 1)]);
    for (endpoint, key) in sent.into_iter().filter(|(sender, _)| *sender == endpoint) {
        lanes.on_finished(endpoint, key, Outcome::Healthy, now);
    }
    only
}

#[test]
fn however_many_receivers_hang_one_that_answers_finds_a_slot() {
    for hanging in [1, 2, 63, 64, 65, 100, 300, 1_000, 1_024, 5_000] {
        let mut lanes = lanes(1_024);
        for endpoint in 0..=hanging {
            lanes.on_endpoint(EndpointNumber(endpoint), policy(), Backlog::None, at(0));
        }
        let well = EndpointNumber(0);
        assert!(answered(&mut lanes, well, 1, at(0)));
        for endpoint in 1..=hanging {
            let first = 1_000_000 + u64::from(endpoint) * 100;
            fill(&mut lanes, EndpointNumber(endpoint), first..first + 40);
        }
        let hung = sends(&mut lanes, at(1));
        // From the first moment, when nobody knows yet that they hang; and it never has to wait for one of them.
        for event in 2..100 {
            assert!(answered(&mut lanes, well, event, at(1)), "beside {hanging} that hang");
        }
        if hanging >= 64 {
            let report = lanes.explain(EndpointNumber(hanging), at(1)).unwrap();
            assert_eq!(report.reason, Some(WaitReason::GlobalLimit), "{hanging}");
        }
        // One that nobody has heard of yet, too, unless too many like it came before.
        if hanging < 1_000 {
            let new = EndpointNumber(hanging + 1);
            lanes.on_endpoint(new, policy(), Backlog::None, at(1));
            assert!(answered(&mut lanes, new, 100, at(1)), "a new one beside {hanging} that hang");
        }
        // Their first ones time out: the rest of them gets no further than the slots that are kept.
        for (endpoint, key) in hung {
            lanes.on_finished(endpoint, key, Outcome::Failing, at(15_000));
        }
        let again = sends(&mut lanes, at(15_000));
        assert!(again.len() <= 1_024 - 64, "{} of {hanging}", again.len());
        assert!(answered(&mut lanes, well, 101, at(15_000)), "{hanging}");
    }
}

#[test]
fn who_has_to_leave_the_last_slots_to_others_waits_in_line_and_costs_their_turns_nothing() {
    let (mut lanes, count) = (lanes(64), 5_000);
    for endpoint in (1..=count).map(EndpointNumber) {
        lanes.on_endpoint(endpoint, policy(), Backlog::None, at(0));
        lanes.on_due(endpoint, key(0, u64::from(endpoint.0)), FRESH, Position(1), at(0));
        for (endpoint, key) in sends(&mut lanes, at(0)) {
            lanes.on_finished(endpoint, key, Outcome::Failing, at(0));
        }
        assert_eq!(sends(&mut lanes, at(0)), []);
    }
    for endpoint in (1..=count).map(EndpointNumber) {
        lanes.on_due(endpoint, key(1, 10_000 + u64::from(endpoint.0)), FRESH, Position(1), at(1));
    }
    let mut running: VecDeque<_> = sends(&mut lanes, at(1)).into();
    assert_eq!(running.len(), 64 - 8, "the kept ones stay free");
    assert!(lanes.ring.is_empty(), "{} stand in the ring and are looked at in each turn", lanes.ring.len());
    let well = EndpointNumber(0);
    lanes.on_endpoint(well, policy(), Backlog::None, at(1));
    assert!(answered(&mut lanes, well, 1, at(1)));
    // Each slot that is given back goes to the next in line, whatever else happens to those who wait.
    let mut order = Vec::new();
    while let Some((endpoint, key)) = running.pop_front() {
        order.push(endpoint);
        lanes.on_settled(EndpointNumber(count), self::key(7, 7), Position(1), at(1));
        lanes.on_finished(endpoint, key, Outcome::Failing, at(1));
        let next = sends(&mut lanes, at(1));
        assert!(next.len() == 1 || order.len() + running.len() == count as usize, "{next:?}");
        running.extend(next);
        assert!(lanes.ring.len() <= 1);
    }
    assert!(order == (1..=count).map(EndpointNumber).collect::<Vec<_>>(), "somebody was overtaken");
}

#[test]
fn who_has_to_leave_the_last_slots_to_others_keeps_no_place_at_its_host() {
    let mut lanes = lanes(64);
    lanes.reconfigure(LanesConfig { host_max_in_flight: 1, ..lanes.config });
    let at_host = |name: &str| LanePolicy { host: name.into(), ..policy() };
    let (failing, well) = (ONE, TWO);
    for endpoint in [failing, well] {
        lanes.on_endpoint(endpoint, at_host("shared"), Backlog::None, at(0));
    }
    let over = |lanes: &mut Lanes, endpoint, key, outcome| {
        lanes.on_finished(endpoint, key, outcome, at(0));
        lanes.on_recorded(endpoint, key, at(0));
    };
    for (endpoint, event, outcome) in [(failing, 1, Outcome::Failing), (well, 2, Outcome::Healthy)] {
        fill(&mut lanes, endpoint, event..event + 1);
        let sent = sends(&mut lanes, at(0));
        assert_eq!(sent, [(endpoint, key(0, event))]);
        over(&mut lanes, endpoint, sent[0].1, outcome);
    }
    // The good one has the host's only place; the failing one is next, then the good one again.
    for (endpoint, event) in [(well, 3), (failing, 4), (well, 5)] {
        fill(&mut lanes, endpoint, event..event + 1);
        assert_eq!(sends(&mut lanes, at(0)).len(), usize::from(event == 3));
    }
    for number in (100..200).map(EndpointNumber) {
        lanes.on_endpoint(number, at_host(&number.0.to_string()), Backlog::None, at(0));
        fill(&mut lanes, number, u64::from(number.0)..u64::from(number.0) + 1);
    }
    let hanging = sends(&mut lanes, at(1)).len();
    assert!(hanging > 50, "{hanging}");
    over(&mut lanes, well, key(0, 3), Outcome::Healthy);
    assert_eq!(
        sends(&mut lanes, at(1)),
        [(well, key(0, 5))],
        "a place is kept for one that may not be sent to"
    );
}

#[test]
fn without_receivers_that_fail_few_slots_stay_unused() {
    let mut lanes = lanes(1_024);
    for endpoint in 0..10 {
        let many = LanePolicy { max_in_flight: 1_000, ..policy() };
        lanes.on_endpoint(EndpointNumber(endpoint), many, Backlog::None, at(0));
        assert!(answered(&mut lanes, EndpointNumber(endpoint), u64::from(endpoint) + 1, at(0)));
    }
    for endpoint in 0..10 {
        let first = u64::from(endpoint + 1) * 1_000;
        fill(&mut lanes, EndpointNumber(endpoint), first..first + 120);
    }
    let counts: Vec<_> = counted(&sends(&mut lanes, at(1))).into_values().collect();
    // Each holds what an eleventh would find.
    assert!(counts.len() == 10 && counts.iter().all(|count| (93..=94).contains(count)), "{counts:?}");
    let mut small = self::lanes(20);
    small.on_endpoint(ONE, LanePolicy { max_in_flight: 100, ..policy() }, Backlog::None, at(0));
    fill(&mut small, ONE, 1..100);
    assert_eq!(sends(&mut small, at(1)).len(), 20, "of so few none is kept");
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
        lanes.on_finished(endpoint, key, Outcome::Healthy, at(2));
    }
    lanes.reconfigure(LanesConfig { max_in_flight: 1_000, ..lanes.config });
    assert_eq!(sends(&mut lanes, at(2)).len(), 32);
    assert_eq!(lanes.explain(ONE, at(2)).unwrap().reason, Some(WaitReason::InFlightLimit));
}

/// Ends the oldest request that is under way, and gives what is sent instead.
fn next_turn(
    lanes: &mut Lanes,
    under_way: &mut VecDeque<(EndpointNumber, DueKey)>,
    now: Now,
) -> Vec<EndpointNumber> {
    let (endpoint, key) = under_way.pop_front().unwrap();
    lanes.on_finished(endpoint, key, Outcome::Healthy, now);
    lanes.on_settled(endpoint, key, Position(1_000_000), now);
    lanes.on_recorded(endpoint, key, now);
    let sent = sends(lanes, now);
    under_way.extend(&sent);
    sent.into_iter().map(|(endpoint, _)| endpoint).collect()
}

#[test]
fn lanes_of_one_host_share_its_limit_in_turn_and_leave_other_hosts_alone() {
    let mut lanes = lanes(1_000);
    lanes.reconfigure(LanesConfig { host_max_in_flight: 4, ..lanes.config });
    let many = 30;
    for number in 1..=many {
        lanes.on_endpoint(EndpointNumber(number), policy(), Backlog::None, at(0));
    }
    // The first has a hundred times as much as the others.
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
    let mut under_way: VecDeque<_> =
        sent.into_iter().filter(|(endpoint, _)| *endpoint != elsewhere).collect();
    assert_eq!(under_way.len(), 4, "the host's limit");
    assert_eq!(lanes.explain(EndpointNumber(20), at(1)).unwrap().reason, Some(WaitReason::GlobalLimit));
    assert_eq!(lanes.explain(elsewhere, at(1)).unwrap().reason, None);
    assert!(lanes.ring.iter().all(|endpoint| *endpoint == elsewhere), "those in line cost a turn nothing");

    // As one ends, the next in line goes: in 29 turns each of the others has had exactly one.
    let mut turns: Vec<EndpointNumber> = under_way.iter().map(|(endpoint, _)| *endpoint).collect();
    while turns.len() < 5 * many as usize {
        let sent = next_turn(&mut lanes, &mut under_way, at(2));
        assert_eq!(sent.len(), 1, "one slot, one request");
        turns.extend(sent);
        // A newcomer with work that is due long since does not overtake those in line.
        if turns.len() == 50 {
            lanes.on_endpoint(EndpointNumber(77), policy(), Backlog::None, at(2));
            fill(&mut lanes, EndpointNumber(77), 1..2);
        }
    }
    for round in turns.chunks(many as usize).take(1) {
        let different: BTreeSet<_> = round.iter().collect();
        assert_eq!(
            different.len(),
            round.len(),
            "a lane was served twice before another was served: {round:?}"
        );
    }
    let newcomer = turns.iter().position(|endpoint| *endpoint == EndpointNumber(77)).unwrap();
    assert!((50 + 25..=50 + 35).contains(&newcomer), "the newcomer came at {newcomer}");
    let count = |number| turns.iter().filter(|endpoint| **endpoint == EndpointNumber(number)).count();
    assert!((2..=many).all(|number| count(number) >= 4), "{turns:?}");
}

#[test]
fn a_slot_of_a_host_is_never_lost() {
    let mut lanes = lanes(1_000);
    lanes.reconfigure(LanesConfig { host_max_in_flight: 1, ..lanes.config });
    let three = EndpointNumber(3);
    for endpoint in [ONE, TWO, three] {
        lanes.on_endpoint(endpoint, policy(), Backlog::None, at(0));
        fill(&mut lanes, endpoint, 1..3);
    }
    let [(endpoint, first)] = sends(&mut lanes, at(1))[..] else { panic!("one slot") };
    assert_eq!(endpoint, ONE);
    // The next in line does not want its turn any more: the one behind it has it.
    lanes.on_endpoint(TWO, LanePolicy { gate: Gate::Paused, ..policy() }, Backlog::None, at(1));
    lanes.on_finished(ONE, first, Outcome::Healthy, at(2));
    let [(endpoint, second)] = sends(&mut lanes, at(2))[..] else { panic!("one slot") };
    assert_eq!(endpoint, three);
    // Its lane goes while its request is under way, and the next one leads elsewhere meanwhile.
    lanes.on_endpoint(ONE, LanePolicy { host: "b.example:443".into(), ..policy() }, Backlog::None, at(2));
    assert_eq!(sends(&mut lanes, at(2)).len(), 1, "the other host has room");
    lanes.on_endpoint(TWO, policy(), Backlog::None, at(2));
    assert_eq!(sends(&mut lanes, at(2)), []);
    lanes.on_endpoint_removed(three);
    let [(endpoint, _)] = sends(&mut lanes, at(3))[..] else { panic!("one slot") };
    assert_eq!(endpoint, TWO);
    lanes.on_finished(three, second, Outcome::Healthy, at(3));
    assert_eq!(sends(&mut lanes, at(3)), [], "a request of a lane that has gone frees nothing twice");
    // Without a limit all that waits goes.
    lanes.reconfigure(LanesConfig { host_max_in_flight: 0, ..lanes.config });
    assert_eq!(sends(&mut lanes, at(4)).len(), 1, "all that is left");
    for endpoint in [ONE, TWO] {
        lanes.on_endpoint_removed(endpoint);
    }
    assert_eq!(lanes.hosts.known(), 0, "hosts are forgotten");
}

#[test]
fn a_slot_of_a_host_comes_back_with_what_was_not_sent() {
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
fn a_receiver_that_is_down_is_probed_and_drained_when_it_is_back() {
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, LanePolicy { max_in_flight: 5, ..policy() }, Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..50);
    for (_, key) in sends(&mut lanes, at(1)) {
        lanes.on_finished(ONE, key, Outcome::Failing, at(1));
    }
    let report = lanes.explain(ONE, at(1)).unwrap();
    assert_eq!((report.reason, report.circuit), (Some(WaitReason::CircuitOpen), CircuitState::Open));
    assert_eq!(sends(&mut lanes, at(5_000)), []);
    let probe = sends(&mut lanes, at(5_001));
    assert_eq!(probe, [(ONE, key(0, 6))], "one probe, the first in line");
    lanes.on_finished(ONE, probe[0].1, Outcome::Failing, at(5_002));
    assert_eq!(sends(&mut lanes, at(15_001)), [], "the wait has doubled");
    let probe = sends(&mut lanes, at(15_002));
    assert_eq!(probe.len(), 1);
    assert_eq!(lanes.explain(ONE, at(15_002)).unwrap().circuit, CircuitState::HalfOpen);
    lanes.on_finished(ONE, probe[0].1, Outcome::Healthy, at(15_003));
    let drained: Vec<_> = sends(&mut lanes, at(15_003)).into_iter().map(|(_, key)| key.event.0).collect();
    assert_eq!(drained, [8, 9, 10, 11, 12]);
}

/// By due time: what was accepted is due then, what was tried is due when its retry is.
#[test]
fn after_an_outage_the_backlog_goes_out_in_order_of_acceptance_and_what_was_tried_at_its_retry_time() {
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, LanePolicy { max_in_flight: 5, ..policy() }, Backlog::None, at(0));
    for event in 1..=20 {
        let accepted = 100 * event;
        lanes.on_due(ONE, key(accepted, event), FRESH, Position(event), at(accepted));
    }
    for (_, tried) in sends(&mut lanes, at(2_000)) {
        let event = tried.event.0;
        lanes.on_finished(ONE, tried, Outcome::Failing, at(2_000));
        lanes.on_settled(ONE, tried, Position(100 + event), at(2_000));
        let again = Progress { attempts: 1, attempts_in_series: 1, trigger: Trigger::Retry, ..FRESH };
        // Spread as jitter does it: the last of them is due first, in the midst of the others.
        lanes.on_due(ONE, key(1_555 - event, event), again, Position(100 + event), at(2_000));
        lanes.on_recorded(ONE, tried, at(2_000));
    }
    let mut drained = Vec::new();
    for step in 0..20 {
        for (_, sent) in sends(&mut lanes, at(7_001 + step)) {
            drained.push(sent.event.0);
            lanes.on_finished(ONE, sent, Outcome::Healthy, at(7_001 + step));
        }
    }
    assert_eq!(drained, [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 3, 2, 1, 16, 17, 18, 19, 20]);
}

#[test]
fn trouble_and_its_end_are_told_once_each() {
    let mut lanes = lanes(100);
    let open = LanePolicy { max_in_flight: 1, ..policy() };
    lanes.on_endpoint(ONE, open.clone(), Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..50);
    let mut millis = 0;
    let mut turn = |lanes: &mut Lanes, outcome: Outcome| {
        millis += 100_000; // longer than any probe waits
        let sent = sends(lanes, at(millis));
        lanes.on_finished(ONE, sent[0].1, outcome, at(millis))
    };
    let told: Vec<_> = (0..7).map(|_| turn(&mut lanes, Outcome::Failing)).collect();
    assert_eq!(told, [None, None, None, None, Some(Turn::Failing), None, None]);
    assert_eq!(turn(&mut lanes, throttled(Timestamp::ZERO)), None, "alive is not yet well");
    assert_eq!(turn(&mut lanes, Outcome::Healthy), Some(Turn::Recovered));
    assert_eq!(turn(&mut lanes, Outcome::Healthy), None);
    lanes.on_endpoint(ONE, LanePolicy { gate: Gate::Disabled, ..open.clone() }, Backlog::None, at(0));
    lanes.on_endpoint(ONE, open, Backlog::None, at(0));
    assert_eq!(turn(&mut lanes, Outcome::Neutral), None);
    assert_eq!(turn(&mut lanes, Outcome::Healthy), Some(Turn::Recovered), "it had been disabled");
}

#[test]
fn retry_after_pause_and_disabling_hold_the_lane_and_say_so() {
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
    lanes.on_finished(ONE, second, Outcome::Healthy, at(30_000));
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

/// Until then nothing could be sent, so the wish is the reason, even when it is why the delivery is due no sooner.
#[test]
fn a_lone_delivery_waits_for_its_receivers_wish_and_one_that_is_due_after_it_for_its_time() {
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
fn opening_ends_the_wait_that_was_asked_for_before_it_and_not_the_one_after() {
    let changed = |gate, revision| LanePolicy { gate, revision: Position(revision), ..policy() };
    // The endpoint is paused by record 2 and opened by record 3; the lane hears of both after the answer.
    for (asked_at, held) in [(1, false), (2, false), (3, true), (4, true)] {
        let mut lanes = lanes(100);
        lanes.on_endpoint(ONE, policy(), Backlog::None, at(0));
        fill(&mut lanes, ONE, 1..3);
        let sent = sends(&mut lanes, at(1));
        let outcome = Outcome::Throttled(Hold { until: at(30_000).wall, revision: Position(asked_at) });
        lanes.on_finished(ONE, sent[0].1, outcome, at(2));
        // One that asked for less before does not shorten it.
        let shorter = Outcome::Throttled(Hold { until: at(10).wall, revision: Position(1) });
        lanes.on_finished(ONE, sent[1].1, shorter, at(2));
        fill(&mut lanes, ONE, 3..4);
        lanes.on_endpoint(ONE, changed(Gate::Paused, 2), Backlog::None, at(3));
        lanes.on_endpoint(ONE, changed(Gate::Open, 3), Backlog::None, at(3));
        assert_eq!(sends(&mut lanes, at(29_999)).is_empty(), held, "asked for at revision {asked_at}");
        assert_eq!(sends(&mut lanes, at(30_000)).is_empty(), !held, "asked for at revision {asked_at}");
    }
}

/// A long wait, ended by an operator who opens the endpoint again; a short one, asked for right after that and heard of
/// before it, does not prolong the long one.
#[test]
fn a_wait_that_is_over_does_not_live_on_in_a_later_one() {
    let changed = |gate, revision| LanePolicy { gate, revision: Position(revision), ..policy() };
    for long_first in [true, false] {
        let mut lanes = lanes(100);
        lanes.on_endpoint(ONE, changed(Gate::Open, 5), Backlog::None, at(0));
        fill(&mut lanes, ONE, 1..3);
        let sent = sends(&mut lanes, at(1));
        let long = Outcome::Throttled(Hold { until: at(86_400_000).wall, revision: Position(5) });
        let short = Outcome::Throttled(Hold { until: at(1_000).wall, revision: Position(7) });
        let outcomes = if long_first { [long, short] } else { [short, long] };
        lanes.on_finished(ONE, sent[0].1, outcomes[0], at(2));
        lanes.on_finished(ONE, sent[1].1, outcomes[1], at(2));
        fill(&mut lanes, ONE, 3..5);
        assert_eq!(sends(&mut lanes, at(1_000)), [], "the lane has not heard of the opening yet");
        lanes.on_endpoint(ONE, changed(Gate::Paused, 6), Backlog::None, at(3));
        lanes.on_endpoint(ONE, changed(Gate::Open, 7), Backlog::None, at(3));
        assert_eq!(sends(&mut lanes, at(999)), [], "the short wait came after the opening");
        assert_eq!(
            sends(&mut lanes, at(1_000)).len(),
            2,
            "the long wait was ended, long first: {long_first}"
        );
    }
}

#[test]
fn nothing_is_sent_while_held() {
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, policy(), Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..4);
    lanes.hold(true);
    assert_eq!(sends(&mut lanes, at(1)), []);
    lanes.hold(false);
    assert_eq!(sends(&mut lanes, at(1)).len(), 3);
}

#[test]
fn without_consent_nothing_is_sent_and_with_it_what_waited() {
    let mut lanes = lanes(100);
    let gate = |gate| LanePolicy { gate, ..policy() };
    lanes.on_endpoint(ONE, gate(Gate::Handshake), Backlog::None, at(0));
    assert_eq!(lanes.explain(ONE, at(0)).unwrap().reason, None, "nothing waits");
    fill(&mut lanes, ONE, 1..4);
    assert_eq!(sends(&mut lanes, at(1_000_000)), []);
    let report = lanes.explain(ONE, at(1_000_000)).unwrap();
    assert_eq!((report.reason, report.retry_at), (Some(WaitReason::Handshake), None));
    assert_eq!(lanes.summary(&HashMap::new(), at(1_000_000)).waiting[WaitReason::Handshake.index()], 1);
    lanes.on_endpoint(ONE, gate(Gate::Open), Backlog::None, at(1_000_001));
    assert_eq!(sends(&mut lanes, at(1_000_001)).len(), 3);
}

#[test]
fn what_is_due_behind_an_order_counts_as_due() {
    let mut lanes = lanes(100);
    for endpoint in [ONE, TWO] {
        lanes.on_endpoint(endpoint, policy(), Backlog::None, at(0));
    }
    // The head of the one waits for its retry; the other is closed, and nothing is due there.
    lanes.on_due(ONE, key(9_000, 1), FRESH, Position(1), at(0));
    lanes.on_endpoint(TWO, LanePolicy { gate: Gate::Paused, ..policy() }, Backlog::None, at(0));
    let oldest = |behind: &[(EndpointNumber, Option<u64>)], millis| {
        let behind = behind.iter().map(|(endpoint, due)| (*endpoint, due.map(|millis| key(millis, 1).due)));
        lanes.summary(&behind.collect(), at(millis)).oldest_due
    };
    let due = |millis| Some(key(millis, 1).due);
    assert_eq!(oldest(&[], 5_000), None);
    assert_eq!(oldest(&[(ONE, None)], 5_000), None, "nothing behind it is due");
    assert_eq!(oldest(&[(ONE, Some(4_000))], 5_000), due(4_000));
    assert_eq!(
        oldest(&[(ONE, Some(4_000)), (TWO, Some(3_000))], 5_000),
        due(3_000),
        "also where it is paused"
    );
    assert_eq!(oldest(&[(ONE, Some(9_500))], 9_600), due(9_000), "the head is older");
    assert_eq!(oldest(&[(EndpointNumber(3), Some(1))], 5_000), None, "that endpoint was deleted");
}

#[test]
fn what_comes_back_unsent_is_due_again_at_its_place_unless_it_is_over() {
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, LanePolicy { max_in_flight: 2, ..policy() }, Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..4);
    assert_eq!(sends(&mut lanes, at(1)), [(ONE, key(0, 1)), (ONE, key(0, 2))]);
    lanes.on_settled(ONE, key(0, 2), Position(9), at(1));
    for event in [1, 2] {
        lanes.on_returned(ONE, key(0, event), FRESH, at(1));
        // Once more changes nothing.
        lanes.on_returned(ONE, key(0, event), FRESH, at(1));
    }
    assert_eq!(lanes.explain(ONE, at(1)).unwrap().in_flight, 0);
    assert_eq!(
        sends(&mut lanes, at(1)),
        [(ONE, key(0, 1)), (ONE, key(0, 3))],
        "the second was cancelled meanwhile"
    );
}

#[test]
fn what_is_moved_while_it_is_under_way_waits_for_its_attempt_and_goes_on_with_the_next_number() {
    let mut lanes = lanes(100);
    lanes.on_endpoint(ONE, policy(), Backlog::None, at(0));
    fill(&mut lanes, ONE, 1..2);
    let first = sends(&mut lanes, at(1))[0].1;
    // Retried by an operator: it would be due at once.
    let moved = key(2, 1);
    lanes.on_settled(ONE, first, Position(9), at(2));
    lanes.on_due(ONE, moved, FRESH, Position(9), at(2));
    assert_eq!(sends(&mut lanes, at(3)), [], "its attempt is under way");
    lanes.on_finished(ONE, first, Outcome::Healthy, at(4));
    assert_eq!(sends(&mut lanes, at(5)), [], "its attempt is not recorded");
    let tried = Progress { attempts: 1, ..FRESH };
    lanes.on_settled(ONE, moved, Position(10), at(6));
    lanes.on_due(ONE, moved, tried, Position(10), at(6));
    lanes.on_recorded(ONE, first, at(6));
    let again = lanes.next_action(at(7));
    let progress = tried;
    assert_eq!(again, Some(Action::Send { endpoint: ONE, key: moved, progress, shut_since: None }));
    // This time it was cancelled, and the attempt succeeds: nothing is left.
    lanes.on_settled(ONE, moved, Position(11), at(8));
    lanes.on_recorded(ONE, moved, at(9));
    lanes.on_finished(ONE, moved, Outcome::Healthy, at(9));
    assert_eq!((sends(&mut lanes, at(9)), lanes.lanes[&ONE].window.remembered()), (Vec::new(), 0));
}

#[test]
fn ten_thousand_waiting_lanes_cost_a_turn_nothing() {
    let mut lanes = lanes(100_000);
    for number in 1..=10_000 {
        lanes.on_endpoint(EndpointNumber(number), policy(), Backlog::None, at(0));
        lanes.on_due(EndpointNumber(number), key(100_000, u64::from(number)), FRESH, Position(1), at(0));
    }
    assert_eq!(sends(&mut lanes, at(0)), []);
    assert!(lanes.ring.is_empty(), "nobody waits in the ring");
    assert_eq!(lanes.next_wakeup(at(0)), Some(Duration::from_secs(100)));
    assert_eq!(sends(&mut lanes, at(100_000)).len(), 10_000);
}

#[test]
fn bugs_that_are_put_in_are_caught() {
    fails_with(Mutation::NeverOpenCircuit, a_receiver_that_is_down_is_probed_and_drained_when_it_is_back);
    fails_with(Mutation::ForgetUnrecorded, no_delivery_is_forgotten_or_sent_twice_at_once);
    fails_with(Mutation::ForgetDuringRefill, no_delivery_is_forgotten_or_sent_twice_at_once);
    fails_with(Mutation::SendBesideItself, no_delivery_is_forgotten_or_sent_twice_at_once);
    fails_with(Mutation::IgnoreRetryAfter, retry_after_pause_and_disabling_hold_the_lane_and_say_so);
}

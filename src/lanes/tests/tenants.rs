//! Tests of turns by tenant. [`super::super::audit`] checks every send of every test as well.

use super::*;
use crate::domain::SharedSlots;
use crate::limits;

/// A receiver's lane of a tenant.
fn of_tenant(tenant: &str) -> LanePolicy {
    LanePolicy { tenant: tenant.into(), ..policy() }
}

fn add(lanes: &mut Lanes, tenant: &str, number: u32, deliveries: u64) -> EndpointNumber {
    let endpoint = EndpointNumber(number);
    lanes.on_endpoint(endpoint, of_tenant(tenant), Backlog::None, at(0));
    let first = u64::from(number) * 10_000;
    fill(lanes, endpoint, first..first + deliveries);
    endpoint
}

fn finish(lanes: &mut Lanes, endpoint: EndpointNumber, key: DueKey, outcome: AttemptOutcome, now: Now) {
    lanes.on_finished(endpoint, key, outcome, now);
    lanes.on_settled(endpoint, key, Position(u64::MAX), now);
    lanes.on_recorded(endpoint, key, now);
}

/// Endpoints of `evil` answer slowly, those of `good` at once.
#[test]
fn slow_receivers_leave_slots_to_another_tenant() {
    let mut lanes = lanes(128);
    let known = add(&mut lanes, "good", 1, 1);
    assert!(sends(&mut lanes, at(0)).len() == 1);
    finish(&mut lanes, known, key(0, 10_000), AttemptOutcome::Healthy, at(0));
    for number in 100..500 {
        add(&mut lanes, "evil", number, 30);
    }
    let mut slow: VecDeque<_> = sends(&mut lanes, at(1)).into();
    let mut event = 10_001;
    for round in 0..100 {
        // Each answers after 15 s, and the next requests take the slots.
        let now = at(15_000 * (round + 1));
        for _ in 0..slow.len() {
            let (endpoint, key) = slow.pop_front().unwrap();
            finish(&mut lanes, endpoint, key, AttemptOutcome::Healthy, now);
            slow.extend(sends(&mut lanes, now));
        }
        assert!((100..=112).contains(&slow.len()), "{} of all but the reserve", slow.len());
        let new = add(&mut lanes, "good", 2 + u32::try_from(round).unwrap(), 0);
        for endpoint in [known, new] {
            event += 1;
            lanes.on_due(endpoint, key(0, event), FRESH, Position(event), now);
            let sent = sends(&mut lanes, now);
            assert_eq!(sent.len(), 1, "round {round}: {:?}", lanes.explain(endpoint, now));
            finish(&mut lanes, sent[0].0, sent[0].1, AttemptOutcome::Healthy, now);
        }
    }
}

#[test]
fn new_receiver_gets_a_turn_beside_slow_ones_of_its_tenant() {
    let mut lanes = lanes(128);
    for number in 1..=200 {
        let endpoint = add(&mut lanes, "default", number, 0);
        assert!(sends_and_answers(&mut lanes, endpoint, u64::from(number), at(0)));
    }
    for number in 1..=200 {
        let first = u64::from(number) * 10_000;
        fill(&mut lanes, EndpointNumber(number), first..first + 20);
    }
    let mut slow: VecDeque<_> = sends(&mut lanes, at(1)).into();
    assert_eq!(slow.len(), 128, "receivers that answer may take every slot");
    let new = add(&mut lanes, "default", 1_000, 1);
    for turn in 0.. {
        assert!(turn <= 200, "every other lane had a turn before");
        let (endpoint, key) = slow.pop_front().unwrap();
        finish(&mut lanes, endpoint, key, AttemptOutcome::Healthy, at(2));
        let sent = sends(&mut lanes, at(2));
        assert_eq!(sent.len(), 1);
        if sent[0].0 == new {
            break;
        }
        slow.extend(sent);
    }
}

/// Number of slots that each tenant holds.
fn held(in_flight: &[(EndpointNumber, DueKey, u64)], tenants: usize) -> Vec<usize> {
    let mut held = vec![0; tenants];
    for (endpoint, ..) in in_flight {
        held[endpoint.0 as usize % tenants] += 1;
    }
    held
}

/// Tenants with very different numbers of endpoints and very different receivers, all with a
/// backlog. Each holds at least its share once earlier requests have ended.
#[test]
fn busy_tenants_hold_at_least_their_share() {
    for (seed, tenants) in [(1, 2), (2, 3), (3, 5), (4, 16), (5, 40)] {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut lanes = lanes(128);
        let slots = SharedSlots { limit: 128, taken: 0, active: tenants };
        // Endpoint numbers give the tenant. Tenant 0 has most endpoints and the slowest receivers.
        for number in 0..60 * tenants {
            let tenant = number % tenants;
            if tenant == 0 || number < 20 * tenants {
                add(&mut lanes, &format!("t{tenant}"), u32::try_from(number).unwrap(), 60);
            }
        }
        let mut in_flight: Vec<(EndpointNumber, DueKey, u64)> = Vec::new();
        let mut event = 100_000_000;
        for step in 0..3_000 {
            let now = at(step);
            for (endpoint, key) in sends(&mut lanes, now) {
                let tenant = endpoint.0 as usize % tenants;
                let takes = if tenant == 0 { 400 } else { 1 + random.u64(0..20 * tenant as u64) };
                in_flight.push((endpoint, key, step + takes));
            }
            if step > 1_000 {
                for (tenant, held) in held(&in_flight, tenants).into_iter().enumerate() {
                    assert!(held >= slots.share(), "seed {seed}: {tenant} holds {held} of {slots:?}");
                }
            }
            let (ended, running) = in_flight.into_iter().partition(|(.., end)| *end <= step);
            in_flight = running;
            for (endpoint, key, _) in ended {
                finish(&mut lanes, endpoint, key, AttemptOutcome::Healthy, now);
                event += 1;
                lanes.on_due(endpoint, self::key(0, event), FRESH, Position(event), now);
            }
        }
    }
}

#[test]
fn lone_tenant_uses_the_whole_machine() {
    for (tenants, expected) in [(1, 1_024), (2, 896)] {
        let mut lanes = lanes(1_024);
        // The other tenant has an endpoint and nothing to send.
        for other in 1..tenants {
            add(&mut lanes, &format!("other{other}"), other, 0);
        }
        for number in 100..1_200 {
            let endpoint = add(&mut lanes, "busy", number, 0);
            assert!(sends_and_answers(&mut lanes, endpoint, u64::from(number), at(0)));
        }
        for number in 100..1_200 {
            lanes.on_due(EndpointNumber(number), key(1, 1), FRESH, Position(1), at(1));
        }
        assert_eq!(sends(&mut lanes, at(1)).len(), expected);
    }
}

#[test]
fn lanes_of_a_full_host_take_turns_by_tenant() {
    let mut lanes = lanes(100);
    lanes.reconfigure(LanesConfig { host_max_in_flight: 1, ..lanes.config });
    for number in 1..20 {
        add(&mut lanes, "many", number, 2);
    }
    let few = add(&mut lanes, "few", 20, 3);
    let mut order = Vec::new();
    while let Some((endpoint, key)) = sends(&mut lanes, at(1)).pop() {
        order.push(endpoint);
        finish(&mut lanes, endpoint, key, AttemptOutcome::Healthy, at(1));
    }
    assert_eq!(order.len(), 2 * 19 + 3);
    let turns: Vec<_> = order.iter().take(7).map(|endpoint| *endpoint == few).collect();
    assert_eq!(turns.iter().filter(|is_few| **is_few).count(), 3, "{turns:?}");
}

/// Offers of a host to lanes of a tenant without a slot do not keep another tenant waiting.
#[test]
fn offer_to_a_tenant_without_a_slot_is_passed_on() {
    let mut lanes = lanes(16);
    lanes.reconfigure(LanesConfig { host_max_in_flight: 1, ..lanes.config });
    let at_host = |tenant: &str, host: &str| LanePolicy { host: host.into(), ..of_tenant(tenant) };
    let first = EndpointNumber(1);
    lanes.on_endpoint(first, at_host("good", "shared"), Backlog::None, at(0));
    fill(&mut lanes, first, 1..3);
    let sent = sends(&mut lanes, at(0));
    assert_eq!(sent.len(), 1);
    // The evil tenant waits at the shared host, and takes all slots that it may elsewhere.
    let evil = EndpointNumber(2);
    lanes.on_endpoint(evil, at_host("evil", "shared"), Backlog::None, at(0));
    fill(&mut lanes, evil, 10..12);
    assert_eq!(sends(&mut lanes, at(0)), []);
    for number in 100..130 {
        let endpoint = EndpointNumber(number);
        lanes.on_endpoint(endpoint, at_host("evil", &number.to_string()), Backlog::None, at(0));
        fill(&mut lanes, endpoint, u64::from(number)..u64::from(number) + 1);
    }
    let hanging = sends(&mut lanes, at(0));
    assert_eq!(hanging.len(), 13, "the reserve of two and the other tenant's slot stay");
    let other = EndpointNumber(3);
    lanes.on_endpoint(other, at_host("good", "third"), Backlog::None, at(0));
    fill(&mut lanes, other, 20..21);
    assert_eq!(sends(&mut lanes, at(0)).len(), 1);
    // One slot beyond the reserve is missing now, so the offer goes from the evil lane to the good.
    finish(&mut lanes, first, sent[0].1, AttemptOutcome::Healthy, at(1));
    assert_eq!(sends(&mut lanes, at(1)), [(first, key(0, 2))]);
}

/// Random tenants, limits, hosts, failures and changes; nothing is lost. The audit checks turns.
fn random_tenants_take_turns() {
    for seed in 1..=30 {
        let mut random = fastrand::Rng::with_seed(seed);
        let limits = [3, 8, 10, 16, 24, 128];
        let mut lanes = lanes(*random.choice(&limits).unwrap());
        let (mut endpoints, mut created, mut event) = (Vec::new(), 0, 0);
        let mut in_flight: Vec<(EndpointNumber, DueKey)> = Vec::new();
        let mut pending: BTreeMap<Position, EndpointNumber> = BTreeMap::new();
        for step in 0..1_500 {
            let now = at(step);
            match random.u32(0..12) {
                0 if endpoints.len() < 60 => {
                    created += 1;
                    endpoints.push(EndpointNumber(created));
                    // Squared, so that some tenants have many more.
                    let tenant = random.u32(0..3) * random.u32(0..3);
                    let rate = RateLimit { limit: 5, per: Duration::from_millis(100), burst: 3 };
                    let policy = LanePolicy {
                        host: random.u32(0..30).to_string().into(),
                        max_in_flight: 1 + random.u32(0..8),
                        rate: (random.u32(0..5) == 0).then_some(rate),
                        ..of_tenant(&tenant.to_string())
                    };
                    lanes.on_endpoint(EndpointNumber(created), policy, Backlog::None, now);
                }
                1..=3 if !endpoints.is_empty() => {
                    let endpoint = *random.choice(&endpoints).unwrap();
                    // More would not fit into the window.
                    let backlog = pending.values().filter(|other| **other == endpoint).count();
                    for _ in 0..random.usize(1..12).min(60_usize.saturating_sub(backlog)) {
                        event += 1;
                        lanes.on_due(endpoint, key(step, event), FRESH, Position(event), now);
                        pending.insert(Position(event), endpoint);
                    }
                }
                4 if random.u32(0..40) == 0 => {
                    let max_in_flight = *random.choice(&limits).unwrap();
                    let host_max_in_flight = *random.choice(&[0, 1, 2, 8]).unwrap();
                    lanes.reconfigure(LanesConfig { max_in_flight, host_max_in_flight, ..lanes.config });
                }
                5 if random.u32(0..60) == 0 && !endpoints.is_empty() => {
                    let removed = endpoints.swap_remove(random.usize(..endpoints.len()));
                    pending.retain(|_, endpoint| *endpoint != removed);
                    lanes.on_endpoint_removed(removed);
                    in_flight.retain(|(endpoint, _)| *endpoint != removed);
                }
                _ => {
                    in_flight.extend(sends(&mut lanes, now));
                    assert_eq!(in_flight.len(), lanes.tenants.taken(), "seed {seed}");
                    for _ in 0..random.usize(0..4).min(in_flight.len()) {
                        let (endpoint, key) = in_flight.swap_remove(random.usize(..in_flight.len()));
                        let outcome =
                            *random.choice(&[AttemptOutcome::Healthy, AttemptOutcome::Neutral]).unwrap();
                        finish(&mut lanes, endpoint, key, outcome, now);
                        pending.remove(&key.event);
                    }
                }
            }
        }
        let mut last = at(5_000);
        while !pending.is_empty() {
            in_flight.extend(sends(&mut lanes, last));
            let Some((endpoint, key)) = in_flight.pop() else {
                let wakeup =
                    lanes.next_wakeup(last).unwrap_or_else(|| panic!("seed {seed}: {pending:?} are lost"));
                last = last.plus(wakeup);
                continue;
            };
            finish(&mut lanes, endpoint, key, AttemptOutcome::Healthy, last);
            pending.remove(&key.event);
        }
    }
}

#[test]
fn waiting_tenant_is_passed_over_once_by_each_other() {
    random_tenants_take_turns();
}

#[test]
fn planted_bugs_of_turns_are_caught() {
    for bug in [Mutation::TurnsByLane, Mutation::GiveAboveShare, Mutation::KeepTurn] {
        fails_with(bug, random_tenants_take_turns);
    }
}

#[test]
fn handshakes_leave_room_to_another_tenant() {
    let mut lanes = lanes(1_000);
    let at_host = |tenant: &str, host: u32| LanePolicy {
        host: host.to_string().into(),
        gate: Gate::Handshake,
        ..of_tenant(tenant)
    };
    let mut due = Vec::new();
    for number in 1..=600 {
        // Half of the endpoints share a host.
        let host = if number <= 300 { 0 } else { number };
        lanes.on_endpoint(EndpointNumber(number), at_host("evil", host), Backlog::None, at(0));
        due.push(EndpointNumber(number));
    }
    let alone = lanes.start_handshakes(&mut due.clone());
    assert_eq!(alone.len(), limits::HANDSHAKES_MAX, "a lone tenant uses all");
    alone.iter().for_each(|endpoint| lanes.on_handshake_finished(*endpoint));
    let good = EndpointNumber(1_000);
    lanes.on_endpoint(good, at_host("good", 1_000), Backlog::None, at(0));
    let started = lanes.start_handshakes(&mut due);
    assert_eq!(started.len(), limits::HANDSHAKES_MAX * 7 / 8, "all but the reserve");
    let shared = started.iter().filter(|endpoint| endpoint.0 <= 300).count();
    assert_eq!(shared, limits::HANDSHAKES_PER_HOST_MAX);
    due.push(good);
    assert_eq!(lanes.start_handshakes(&mut due), [good]);
    assert!(lanes.start_handshakes(&mut due).is_empty(), "nothing starts twice");
    lanes.on_handshake_finished(started[0]);
    assert!(lanes.start_handshakes(&mut due).len() <= 1);
    lanes.on_endpoint_removed(good);
    lanes.on_handshake_finished(good);
    assert_eq!(lanes.start_handshakes(&mut vec![good]), [], "a removed endpoint");
}

#[test]
fn handshake_counts_in_its_hosts_limit() {
    let mut lanes = lanes(1_000);
    lanes.reconfigure(LanesConfig { host_max_in_flight: 1, ..lanes.config });
    lanes.on_endpoint(ONE, policy(), Backlog::None, at(0));
    lanes.on_endpoint(TWO, LanePolicy { gate: Gate::Handshake, ..policy() }, Backlog::None, at(0));
    let mut due = vec![TWO];
    assert_eq!(lanes.start_handshakes(&mut due), [TWO]);
    fill(&mut lanes, ONE, 1..2);
    assert_eq!(sends(&mut lanes, at(0)), [], "the host is full");
    lanes.on_handshake_finished(TWO);
    assert_eq!(sends(&mut lanes, at(0)), [(ONE, key(0, 1))]);
    due.push(TWO);
    assert_eq!(lanes.start_handshakes(&mut due), [], "the host is full");
    assert_eq!(due, [TWO], "it stays due");
    finish(&mut lanes, ONE, key(0, 1), AttemptOutcome::Healthy, at(1));
    assert_eq!(lanes.start_handshakes(&mut due), [TWO]);
}

#[test]
fn postponed_lane_holds_no_slot_and_reports_the_cause() {
    for (cause, reason, pause) in [
        (PostponeCause::AddressLimit, WaitReason::AddressLimit, 500),
        (PostponeCause::BrokerBlocked, WaitReason::BrokerBlocked, 1_000),
    ] {
        let mut lanes = lanes(1);
        lanes.on_endpoint(ONE, policy(), Backlog::None, at(0));
        lanes.on_endpoint(TWO, policy(), Backlog::None, at(0));
        fill(&mut lanes, ONE, 1..2);
        assert_eq!(sends(&mut lanes, at(0)), [(ONE, key(0, 1))]);
        lanes.on_postponed(ONE, key(0, 1), FRESH, cause, at(0));
        fill(&mut lanes, TWO, 2..3);
        assert_eq!(sends(&mut lanes, at(1)), [(TWO, key(0, 2))], "the slot is free");
        let report = lanes.explain(ONE, at(1)).unwrap();
        assert_eq!((report.reason, report.in_flight), (Some(reason), 0));
        finish(&mut lanes, TWO, key(0, 2), AttemptOutcome::Healthy, at(2));
        assert_eq!(sends(&mut lanes, at(2)), []);
        assert_eq!(lanes.next_wakeup(at(2)), Some(Duration::from_millis(pause - 2)));
        assert_eq!(sends(&mut lanes, at(pause)), [(ONE, key(0, 1))]);
    }
}

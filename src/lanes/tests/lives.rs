//! Random tests: lanes under long sequences of random changes, checked by a model.

use super::*;
use crate::lanes::lane::Readiness;

/// Lanes are added, removed, paused and moved to other hosts; limits change; receivers fail.
#[test]
#[expect(clippy::too_many_lines, reason = "one sequence of random changes")]
fn random_lanes_never_wait_while_slots_are_free() {
    for seed in 1..=20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let limit = |hosts: usize, all: usize| LanesConfig {
            max_in_flight: all,
            host_max_in_flight: hosts,
            breaker: BreakerConfig {
                failures_to_open: u32::MAX,
                probe_initial: Duration::from_secs(5),
                probe_max: Duration::from_secs(60),
            },
        };
        let hosts = random.usize(0..4) * 3;
        let mut lanes = Lanes::new(limit(hosts, 64));
        let policy_at = |host: u32, gate| LanePolicy {
            host: host.to_string().into(),
            max_in_flight: 3,
            gate,
            ..policy()
        };
        let (mut endpoints, mut created, mut event) = (Vec::new(), 0, 0);
        let mut in_flight: Vec<(EndpointNumber, DueKey)> = Vec::new();
        let mut pending: BTreeMap<Position, EndpointNumber> = BTreeMap::new();
        for step in 0..2_000 {
            let now = at(step);
            match random.u32(0..12) {
                0 if endpoints.len() < 150 => {
                    created += 1;
                    endpoints.push(EndpointNumber(created));
                    let policy = policy_at(random.u32(0..20), Gate::Open);
                    lanes.on_endpoint(EndpointNumber(created), policy, Backlog::None, now);
                }
                1..=3 if !endpoints.is_empty() => {
                    let endpoint = *random.choice(&endpoints).unwrap();
                    for _ in 0..3 {
                        event += 1;
                        lanes.on_due(endpoint, key(step, event), FRESH, Position(event), now);
                        pending.insert(Position(event), endpoint);
                    }
                }
                4 if random.u32(0..30) == 0 && !endpoints.is_empty() => {
                    let removed = endpoints.swap_remove(random.usize(..endpoints.len()));
                    lanes.on_endpoint_removed(removed);
                    in_flight.retain(|(endpoint, _)| *endpoint != removed);
                    pending.retain(|_, endpoint| *endpoint != removed);
                }
                5 if random.u32(0..10) == 0 && !endpoints.is_empty() => {
                    let gate = *random.choice(&[Gate::Open, Gate::Paused]).unwrap();
                    let endpoint = *random.choice(&endpoints).unwrap();
                    lanes.on_endpoint(endpoint, policy_at(random.u32(0..20), gate), Backlog::None, now);
                }
                6 if random.u32(0..50) == 0 => lanes.reconfigure(limit(hosts, 64 + random.usize(0..3) * 40)),
                _ => {
                    in_flight.extend(sends(&mut lanes, now));
                    assert_eq!(in_flight.len(), lanes.tenants.taken(), "seed {seed}");
                    let free = lanes.config.max_in_flight.saturating_sub(in_flight.len());
                    let waits = |lane: &&Lane| {
                        lane.readiness(now) == Readiness::Ready && !lanes.hosts.is_full(lane.host())
                    };
                    let idle = lanes.lanes.values().filter(waits).count();
                    assert!(
                        idle == 0 || free <= lanes.config.max_in_flight / 8,
                        "seed {seed}, step {step}: {idle} lanes wait, and {free} slots are free"
                    );
                    for _ in 0..random.usize(0..4).min(in_flight.len()) {
                        let (endpoint, key) = in_flight.swap_remove(random.usize(..in_flight.len()));
                        let outcomes = [
                            AttemptOutcome::Healthy,
                            AttemptOutcome::Neutral,
                            AttemptOutcome::Failing,
                            AttemptOutcome::Failing,
                        ];
                        let outcome = outcomes[(endpoint.0 as usize + random.usize(0..6)) % 4];
                        end(&mut lanes, endpoint, key, outcome, now);
                        pending.remove(&key.event);
                    }
                }
            }
        }
        let last = at(5_000);
        for endpoint in endpoints {
            lanes.on_endpoint(endpoint, policy_at(endpoint.0 % 20, Gate::Open), Backlog::None, last);
        }
        loop {
            in_flight.extend(sends(&mut lanes, last));
            let Some((endpoint, key)) = in_flight.pop() else { break };
            end(&mut lanes, endpoint, key, AttemptOutcome::Failing, last);
            pending.remove(&key.event);
        }
        assert!(pending.is_empty(), "seed {seed}: {} deliveries are lost", pending.len());
    }
}

/// Ends and records the last attempt of a delivery.
fn end(lanes: &mut Lanes, endpoint: EndpointNumber, key: DueKey, outcome: AttemptOutcome, now: Now) {
    lanes.on_finished(endpoint, key, outcome, now);
    lanes.on_settled(endpoint, key, Position(u64::MAX), now);
    lanes.on_recorded(endpoint, key, now);
}

/// Host counts stay exact under any change, and no ready lane waits at a host with free slots.
#[test]
fn random_lanes_keep_host_counts_exact() {
    for seed in 1..=60_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let mut lanes = lanes(1_000);
        let mut limit = 2;
        lanes.reconfigure(LanesConfig { host_max_in_flight: limit, ..lanes.config });
        let mut in_flight: Vec<(EndpointNumber, DueKey)> = Vec::new();
        for step in 0..3_000_u64 {
            let now = at(step);
            let endpoint = EndpointNumber(1 + random(8) as u32);
            match random(12) {
                0 => lanes.on_endpoint_removed(endpoint),
                1 => {
                    limit = 1 + random(4) as usize;
                    lanes.reconfigure(LanesConfig { host_max_in_flight: limit, ..lanes.config });
                }
                2 | 3 => {
                    let host = ["a", "b", "c"][random(3) as usize].into();
                    let gate = if random(3) == 0 { Gate::Paused } else { Gate::Open };
                    let policy = LanePolicy { host, gate, max_in_flight: 3, ..policy() };
                    lanes.on_endpoint(endpoint, policy, Backlog::None, now);
                }
                4..=7 => lanes.on_due(endpoint, key(step, step + 1), FRESH, Position(step + 1), now),
                _ if !in_flight.is_empty() => {
                    let (endpoint, key) = in_flight.swap_remove(random(in_flight.len() as u64) as usize);
                    lanes.on_finished(endpoint, key, AttemptOutcome::Healthy, now);
                    lanes.on_settled(endpoint, key, Position(step + 1), now);
                    lanes.on_recorded(endpoint, key, now);
                }
                _ => {}
            }
            in_flight.extend(sends(&mut lanes, now));
            for host in ["a", "b", "c"] {
                let here = lanes.lanes.values().filter(|lane| &**lane.host() == host);
                let (mut count, mut ready) = (0, 0);
                for lane in here {
                    count += lane.in_flight();
                    ready += usize::from(lane.readiness(now) == Readiness::Ready);
                }
                assert_eq!(lanes.hosts.is_full(host), count >= limit, "seed {seed} step {step} host {host}");
                assert!(
                    ready == 0 || count >= limit,
                    "seed {seed} step {step}: {ready} ready lanes wait at {host}"
                );
            }
        }
    }
}

/// Result of a refill: keys, whether the backlog is exhausted, and the position that it reflects.
type Refilled = (Vec<(DueKey, Progress)>, bool, Position);

/// A notice to the lane about one delivery.
#[derive(Clone, Copy)]
enum Notice {
    Due(DueKey, Progress),
    Settled(DueKey),
    Recorded(DueKey),
}

/// Model of one lane: pending deliveries and their numbers of attempts.
#[derive(Default)]
struct Model {
    position: u64,
    pending: BTreeMap<DueKey, Progress>,
    /// Recorded attempts of each event.
    attempts: BTreeMap<Position, u32>,
    /// Undelivered notices, in order.
    notices: VecDeque<(Notice, Position)>,
    /// Undelivered results of refills.
    refills: VecDeque<Refilled>,
    in_flight: BTreeMap<DueKey, Progress>,
    /// Ended attempts whose outcome is not recorded yet.
    outcomes: VecDeque<DueKey>,
}

impl Model {
    fn notify(&mut self, notice: Notice) {
        self.notices.push_back((notice, Position(self.position)));
    }

    fn schedule(&mut self, key: DueKey) {
        self.position += 1;
        let progress = Progress { attempts: self.attempts.get(&key.event).copied().unwrap_or(0), ..FRESH };
        self.pending.insert(key, progress);
        self.notify(Notice::Due(key, progress));
    }

    fn settle(&mut self, key: DueKey) {
        self.position += 1;
        if self.pending.remove(&key).is_some() {
            self.notify(Notice::Settled(key));
        }
    }

    /// Records an outcome. A success also ends a moved delivery; a failure leaves it at its new
    /// key.
    fn record(&mut self, key: DueKey, again: Option<DueKey>) {
        *self.attempts.entry(key.event).or_default() += 1;
        let current = self.pending.keys().find(|current| current.event == key.event).copied();
        if let Some(current) = current {
            self.settle(current);
            if let Some(again) = again {
                self.schedule(if current == key { again } else { current });
            }
        }
        self.notify(Notice::Recorded(key));
    }

    fn on_send(&mut self, key: DueKey, progress: Progress, context: &str) {
        let same = |other: &DueKey| other.event == key.event;
        assert!(!self.in_flight.keys().any(same), "{context}: {key:?} is in flight twice");
        assert!(!self.outcomes.iter().any(same), "{context}: an attempt of {key:?} is unrecorded");
        let recorded = self.attempts.get(&key.event).copied().unwrap_or(0);
        assert_eq!(progress.attempts, recorded, "{context}: {key:?} would reuse an attempt number");
        self.in_flight.insert(key, progress);
    }

    fn on_refill(&mut self, after: Option<DueKey>, limit: usize) {
        let later = self.pending.iter().filter(|(key, _)| after.is_none_or(|after| **key > after));
        let entries: Vec<_> = later.clone().take(limit).map(|(key, progress)| (*key, *progress)).collect();
        let exhausted = later.count() <= limit;
        self.refills.push_back((entries, exhausted, Position(self.position)));
    }

    /// Delivers the next notice. Returns whether there was one.
    fn deliver_notice(&mut self, lanes: &mut Lanes, now: Now) -> bool {
        let Some((notice, position)) = self.notices.pop_front() else { return false };
        match notice {
            Notice::Due(key, progress) => lanes.on_due(ONE, key, progress, position, now),
            Notice::Settled(key) => lanes.on_settled(ONE, key, position, now),
            Notice::Recorded(key) => lanes.on_recorded(ONE, key, now),
        }
        true
    }
}

/// Each pending delivery is sent, with one attempt at a time, in any order of notices and refills.
#[test]
#[expect(clippy::too_many_lines, reason = "one table of random operations")]
pub(super) fn random_lane_sends_each_delivery_once_at_a_time() {
    for seed in 1..=40_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let mut lanes = lanes(1_000);
        let mut model = Model::default();
        let mut event = 0;
        let mut millis = 0;
        let burst = [1, 40, 400][random(3) as usize];
        for _ in 0..random(600) {
            event += 1;
            model.schedule(key(random(50), event));
        }
        model.notices.clear();
        let backlog = if model.pending.is_empty() { Backlog::None } else { Backlog::OnDisk };
        lanes.on_endpoint(ONE, LanePolicy { max_in_flight: 30, ..policy() }, backlog, at(0));
        for step in 0..4_000_u64 {
            let last = step >= 2_000;
            millis += random(5);
            let now = at(millis);
            let context = format!("seed {seed} step {step}");
            match random(if last { 6 } else { 9 }) {
                0 => {
                    model.deliver_notice(&mut lanes, now);
                }
                1 => {
                    if let Some((entries, exhausted, as_of)) = model.refills.pop_front() {
                        lanes.on_refilled(ONE, entries, exhausted, as_of, now);
                    }
                }
                2 | 3 => {
                    for _ in 0..20 {
                        match lanes.next_action(now) {
                            Some(Action::Send { key, progress, .. }) => {
                                model.on_send(key, progress, &context)
                            }
                            Some(Action::Refill { after, limit, .. }) => model.on_refill(after, limit),
                            Some(Action::Reserve { .. }) => panic!("a lane without a rate reserves"),
                            None => break,
                        }
                    }
                }
                4 => {
                    while let Some((key, progress)) = model.in_flight.pop_first() {
                        if random(8) == 0 {
                            // The attempt was not made.
                            lanes.on_returned(ONE, key, progress, now);
                            continue;
                        }
                        if random(4) == 0 {
                            // The outcome is recorded before the lane learns of the end.
                            let again = self::key(millis + random(60), key.event.0);
                            model.record(key, (!last && random(2) == 0).then_some(again));
                            lanes.on_finished(ONE, key, AttemptOutcome::Healthy, now);
                            continue;
                        }
                        lanes.on_finished(ONE, key, AttemptOutcome::Healthy, now);
                        model.outcomes.push_back(key);
                    }
                }
                5 => {
                    for _ in 0..random(40) {
                        let Some(key) = model.outcomes.pop_front() else { break };
                        let again = self::key(millis + random(60), key.event.0);
                        model.record(key, (!last && random(4) == 0).then_some(again));
                    }
                }
                6 => {
                    for _ in 0..random(burst) + 1 {
                        event += 1;
                        model.schedule(key(millis + random(3), event));
                    }
                }
                7 => {
                    // An operator cancels any delivery, then redrives it at once or with its old
                    // key.
                    let nth = random(model.pending.len() as u64 + 1) as usize;
                    if let Some(key) = model.pending.keys().nth(nth).copied() {
                        model.settle(key);
                        match random(4) {
                            0 => model.schedule(key),
                            1 => model.schedule(self::key(millis, key.event.0)),
                            _ => {}
                        }
                    }
                }
                _ => {
                    // An operator moves a delivery on disk or in flight to another time.
                    let nth = random(model.pending.len() as u64 + 1) as usize;
                    let in_flight = model.in_flight.keys().find(|key| model.pending.contains_key(key));
                    let old = in_flight.or_else(|| model.pending.keys().nth(nth)).copied();
                    if let Some(old) = old.filter(|old| old.due != now.wall) {
                        model.settle(old);
                        model.schedule(key(millis, old.event.0));
                    }
                }
            }
        }
        for _ in 0..2_000 {
            if model.pending.is_empty() && model.notices.is_empty() {
                break;
            }
            millis += 50;
            let now = at(millis);
            while model.deliver_notice(&mut lanes, now) {}
            while let Some((entries, exhausted, as_of)) = model.refills.pop_front() {
                lanes.on_refilled(ONE, entries, exhausted, as_of, now);
            }
            while let Some(action) = lanes.next_action(now) {
                match action {
                    Action::Send { key, progress, .. } => {
                        model.on_send(key, progress, &format!("seed {seed}"))
                    }
                    Action::Refill { after, limit, .. } => model.on_refill(after, limit),
                    Action::Reserve { .. } => panic!("a lane without a rate reserves"),
                }
            }
            while let Some((key, _)) = model.in_flight.pop_first() {
                lanes.on_finished(ONE, key, AttemptOutcome::Healthy, now);
                model.record(key, None);
            }
            while let Some(key) = model.outcomes.pop_front() {
                model.record(key, None);
            }
        }
        assert!(model.pending.is_empty(), "seed {seed}: {} deliveries are lost", model.pending.len());
        let report = lanes.explain(ONE, at(millis)).unwrap();
        assert_eq!((report.window, report.in_flight), (0, 0), "seed {seed}");
        let lane = &lanes.lanes[&ONE];
        assert_eq!(lane.window.tracked_attempts(), 0, "seed {seed}: recorded attempts are still tracked");
    }
}

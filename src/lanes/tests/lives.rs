//! Random lives: lanes through a long sequence of random events, and a model that knows what has to come of it.

use super::*;

/// Lanes that come, go, pause, change hosts, fail and recover, under limits that change.
#[test]
#[expect(clippy::too_many_lines, reason = "one life, told in one piece")]
fn nobody_is_forgotten_in_a_line_or_waits_while_there_are_slots_for_all() {
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
        let (mut there, mut made, mut event) = (Vec::new(), 0, 0);
        let mut flying: Vec<(EndpointNumber, DueKey)> = Vec::new();
        let mut waiting: BTreeMap<Position, EndpointNumber> = BTreeMap::new();
        for step in 0..2_000 {
            let now = at(step);
            match random.u32(0..12) {
                0 if there.len() < 150 => {
                    made += 1;
                    there.push(EndpointNumber(made));
                    let policy = policy_at(random.u32(0..20), Gate::Open);
                    lanes.on_endpoint(EndpointNumber(made), policy, Backlog::None, now);
                }
                1..=3 if !there.is_empty() => {
                    let endpoint = *random.choice(&there).unwrap();
                    for _ in 0..3 {
                        event += 1;
                        lanes.on_due(endpoint, key(step, event), FRESH, Position(event), now);
                        waiting.insert(Position(event), endpoint);
                    }
                }
                4 if random.u32(0..30) == 0 && !there.is_empty() => {
                    let gone = there.swap_remove(random.usize(..there.len()));
                    lanes.on_endpoint_removed(gone);
                    flying.retain(|(endpoint, _)| *endpoint != gone);
                    waiting.retain(|_, endpoint| *endpoint != gone);
                }
                5 if random.u32(0..10) == 0 && !there.is_empty() => {
                    let gate = *random.choice(&[Gate::Open, Gate::Paused]).unwrap();
                    let endpoint = *random.choice(&there).unwrap();
                    lanes.on_endpoint(endpoint, policy_at(random.u32(0..20), gate), Backlog::None, now);
                }
                6 if random.u32(0..50) == 0 => lanes.reconfigure(limit(hosts, 64 + random.usize(0..3) * 40)),
                _ => {
                    flying.extend(sends(&mut lanes, now));
                    assert_eq!(flying.len(), lanes.slots.taken(), "seed {seed}");
                    let free = lanes.config.max_in_flight.saturating_sub(flying.len());
                    let waits = |lane: &&Lane| {
                        lane.readiness(now) == Readiness::Ready && !lanes.hosts.is_full(lane.host())
                    };
                    let idle = lanes.lanes.values().filter(waits).count();
                    assert!(
                        idle == 0 || free <= lanes.config.max_in_flight / 8,
                        "seed {seed}, step {step}: {idle} lanes wait, and {free} slots are free"
                    );
                    for _ in 0..random.usize(0..4).min(flying.len()) {
                        let (endpoint, key) = flying.swap_remove(random.usize(..flying.len()));
                        let outcomes =
                            [Outcome::Healthy, Outcome::Neutral, Outcome::Failing, Outcome::Failing];
                        let outcome = outcomes[(endpoint.0 as usize + random.usize(0..6)) % 4];
                        end(&mut lanes, endpoint, key, outcome, now);
                        waiting.remove(&key.event);
                    }
                }
            }
        }
        let last = at(5_000);
        for endpoint in there {
            lanes.on_endpoint(endpoint, policy_at(endpoint.0 % 20, Gate::Open), Backlog::None, last);
        }
        loop {
            flying.extend(sends(&mut lanes, last));
            let Some((endpoint, key)) = flying.pop() else { break };
            end(&mut lanes, endpoint, key, Outcome::Failing, last);
            waiting.remove(&key.event);
        }
        assert!(waiting.is_empty(), "seed {seed}: {} deliveries are forgotten", waiting.len());
    }
}

/// An attempt is over, recorded, and was the last.
fn end(lanes: &mut Lanes, endpoint: EndpointNumber, key: DueKey, outcome: Outcome, now: Now) {
    lanes.on_finished(endpoint, key, outcome, now);
    lanes.on_settled(endpoint, key, Position(u64::MAX), now);
    lanes.on_recorded(endpoint, key, now);
}

/// Whatever happens to lanes, their hosts' counts stay true and nothing that could be sent is left.
#[test]
fn hosts_are_counted_right_through_a_random_life() {
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
        let mut under_way: Vec<(EndpointNumber, DueKey)> = Vec::new();
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
                _ if !under_way.is_empty() => {
                    let (endpoint, key) = under_way.swap_remove(random(under_way.len() as u64) as usize);
                    lanes.on_finished(endpoint, key, Outcome::Healthy, now);
                    lanes.on_settled(endpoint, key, Position(step + 1), now);
                    lanes.on_recorded(endpoint, key, now);
                }
                _ => {}
            }
            under_way.extend(sends(&mut lanes, now));
            for host in ["a", "b", "c"] {
                let here = lanes.lanes.values().filter(|lane| &**lane.host() == host);
                let (mut in_flight, mut ready) = (0, 0);
                for lane in here {
                    in_flight += lane.in_flight();
                    ready += usize::from(lane.readiness(now) == Readiness::Ready);
                }
                assert_eq!(
                    lanes.hosts.is_full(host),
                    in_flight >= limit,
                    "seed {seed} step {step} host {host}"
                );
                assert!(
                    ready == 0 || in_flight >= limit,
                    "seed {seed} step {step}: {ready} wait at {host} for nothing"
                );
            }
        }
    }
}

/// What a refill answers: keys, whether that is all, as of which position.
type Refilled = (Vec<(DueKey, Progress)>, bool, Position);

/// What lanes are told of one delivery.
#[derive(Clone, Copy)]
enum News {
    Due(DueKey, Progress),
    Settled(DueKey),
    Recorded(DueKey),
}

/// The whole truth about one lane: what is pending, and how often it was tried.
#[derive(Default)]
struct Model {
    position: u64,
    pending: BTreeMap<DueKey, Progress>,
    /// Recorded attempts of each event.
    attempts: BTreeMap<Position, u32>,
    /// News on their way to the lanes, in order.
    news: VecDeque<(News, Position)>,
    /// Answers to a refill on their way.
    refills: VecDeque<Refilled>,
    in_flight: BTreeMap<DueKey, Progress>,
    /// Ended attempts whose outcome is not recorded yet.
    outcomes: VecDeque<DueKey>,
}

impl Model {
    fn tell(&mut self, news: News) {
        self.news.push_back((news, Position(self.position)));
    }

    fn put(&mut self, key: DueKey) {
        self.position += 1;
        let progress = Progress { attempts: self.attempts.get(&key.event).copied().unwrap_or(0), ..FRESH };
        self.pending.insert(key, progress);
        self.tell(News::Due(key, progress));
    }

    fn take(&mut self, key: DueKey) {
        self.position += 1;
        if self.pending.remove(&key).is_some() {
            self.tell(News::Settled(key));
        }
    }

    /// An outcome is recorded. What was moved meanwhile is done when it has succeeded, and stays where it is when not.
    fn record(&mut self, key: DueKey, again: Option<DueKey>) {
        *self.attempts.entry(key.event).or_default() += 1;
        let place = self.pending.keys().find(|place| place.event == key.event).copied();
        if let Some(place) = place {
            self.take(place);
            if let Some(again) = again {
                self.put(if place == key { again } else { place });
            }
        }
        self.tell(News::Recorded(key));
    }

    fn sends(&mut self, key: DueKey, progress: Progress, story: &str) {
        let same = |other: &DueKey| other.event == key.event;
        assert!(!self.in_flight.keys().any(same), "{story}: {key:?} is in flight twice");
        assert!(!self.outcomes.iter().any(same), "{story}: an attempt of {key:?} is unrecorded");
        let recorded = self.attempts.get(&key.event).copied().unwrap_or(0);
        assert_eq!(progress.attempts, recorded, "{story}: {key:?} would get a number twice");
        self.in_flight.insert(key, progress);
    }

    fn refill(&mut self, after: Option<DueKey>, limit: usize) {
        let later = self.pending.iter().filter(|(key, _)| after.is_none_or(|after| **key > after));
        let entries: Vec<_> = later.clone().take(limit).map(|(key, progress)| (*key, *progress)).collect();
        let exhausted = later.count() <= limit;
        self.refills.push_back((entries, exhausted, Position(self.position)));
    }

    /// The next news arrive. Gives whether there were any.
    fn hear(&mut self, lanes: &mut Lanes, now: Now) -> bool {
        let Some((news, position)) = self.news.pop_front() else { return false };
        match news {
            News::Due(key, progress) => lanes.on_due(ONE, key, progress, position, now),
            News::Settled(key) => lanes.on_settled(ONE, key, position, now),
            News::Recorded(key) => lanes.on_recorded(ONE, key, now),
        }
        true
    }
}

/// Every pending delivery is sent, none twice at once, none after it was settled, whatever the order in which news arrive.
#[test]
#[expect(clippy::too_many_lines, reason = "one table of random operations reads better in one piece")]
pub(super) fn no_delivery_is_forgotten_or_sent_twice_at_once() {
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
            model.put(key(random(50), event));
        }
        model.news.clear();
        let backlog = if model.pending.is_empty() { Backlog::None } else { Backlog::OnDisk };
        lanes.on_endpoint(ONE, LanePolicy { max_in_flight: 30, ..policy() }, backlog, at(0));
        for step in 0..4_000_u64 {
            let last = step >= 2_000;
            millis += random(5);
            let now = at(millis);
            let story = format!("seed {seed} step {step}");
            match random(if last { 6 } else { 9 }) {
                0 => {
                    model.hear(&mut lanes, now);
                }
                1 => {
                    if let Some((entries, exhausted, as_of)) = model.refills.pop_front() {
                        lanes.on_refilled(ONE, entries, exhausted, as_of, now);
                    }
                }
                2 | 3 => {
                    for _ in 0..20 {
                        match lanes.next_action(now) {
                            Some(Action::Send { key, progress, .. }) => model.sends(key, progress, &story),
                            Some(Action::Refill { after, limit, .. }) => model.refill(after, limit),
                            Some(Action::Reserve { .. }) => panic!("a lane without a rate reserves"),
                            None => break,
                        }
                    }
                }
                4 => {
                    while let Some((key, progress)) = model.in_flight.pop_first() {
                        if random(8) == 0 {
                            // Nothing was sent after all.
                            lanes.on_returned(ONE, key, progress, now);
                            continue;
                        }
                        if random(4) == 0 {
                            // Recorded before its lane hears that it is over.
                            let again = self::key(millis + random(60), key.event.0);
                            model.record(key, (!last && random(2) == 0).then_some(again));
                            lanes.on_finished(ONE, key, Outcome::Healthy, now);
                            continue;
                        }
                        lanes.on_finished(ONE, key, Outcome::Healthy, now);
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
                        model.put(key(millis + random(3), event));
                    }
                }
                7 => {
                    // Cancelled by an operator, wherever it is; and set going again, at once or at the same place.
                    let nth = random(model.pending.len() as u64 + 1) as usize;
                    if let Some(key) = model.pending.keys().nth(nth).copied() {
                        model.take(key);
                        match random(4) {
                            0 => model.put(key),
                            1 => model.put(self::key(millis, key.event.0)),
                            _ => {}
                        }
                    }
                }
                _ => {
                    // Moved to another time by an operator: one that lies on disk, or one that is under way.
                    let nth = random(model.pending.len() as u64 + 1) as usize;
                    let under_way = model.in_flight.keys().find(|key| model.pending.contains_key(key));
                    let old = under_way.or_else(|| model.pending.keys().nth(nth)).copied();
                    if let Some(old) = old.filter(|old| old.due != now.wall) {
                        model.take(old);
                        model.put(key(millis, old.event.0));
                    }
                }
            }
        }
        for _ in 0..2_000 {
            if model.pending.is_empty() && model.news.is_empty() {
                break;
            }
            millis += 50;
            let now = at(millis);
            while model.hear(&mut lanes, now) {}
            while let Some((entries, exhausted, as_of)) = model.refills.pop_front() {
                lanes.on_refilled(ONE, entries, exhausted, as_of, now);
            }
            while let Some(action) = lanes.next_action(now) {
                match action {
                    Action::Send { key, progress, .. } => model.sends(key, progress, &format!("seed {seed}")),
                    Action::Refill { after, limit, .. } => model.refill(after, limit),
                    Action::Reserve { .. } => panic!("a lane without a rate reserves"),
                }
            }
            while let Some((key, _)) = model.in_flight.pop_first() {
                lanes.on_finished(ONE, key, Outcome::Healthy, now);
                model.record(key, None);
            }
            while let Some(key) = model.outcomes.pop_front() {
                model.record(key, None);
            }
        }
        assert!(model.pending.is_empty(), "seed {seed}: {} are forgotten", model.pending.len());
        let report = lanes.explain(ONE, at(millis)).unwrap();
        assert_eq!((report.window, report.in_flight), (0, 0), "seed {seed}");
        let lane = &lanes.lanes[&ONE];
        assert_eq!(lane.window.remembered(), 0, "seed {seed}: attempts are remembered for ever");
    }
}

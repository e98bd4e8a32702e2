//! A lane under repeated random faults.

use super::*;

/// One lane with repeated faults of its receiver, endpoint and store.
struct FaultyLane {
    random: fastrand::Rng,
    lanes: Lanes,
    revision: u64,
    in_flight: Vec<DueKey>,
    reserving: Option<Reservation>,
    pending: BTreeSet<Position>,
}

impl FaultyLane {
    fn set_policy(&mut self, gate: Gate, now: Now) {
        self.revision += 1;
        let rate = RateLimit { limit: 10, per: Duration::from_secs(1), burst: self.random.u32(1..4) };
        let rate = Some(rate).filter(|_| self.random.bool());
        let policy = LanePolicy { gate, rate, revision: Position(self.revision), ..policy() };
        self.lanes.on_endpoint(ONE, policy, Backlog::None, now);
    }

    fn send(&mut self, now: Now) {
        while let Some(action) = self.lanes.next_action(now) {
            match action {
                Action::Send { key, .. } => self.in_flight.push(key),
                Action::Reserve { reservation, .. } => {
                    assert_eq!(self.reserving.replace(reservation), None, "one reservation at a time");
                }
                Action::Refill { .. } => {}
            }
        }
    }

    /// Ends a random request. An answered delivery is settled.
    fn end(&mut self, now: Now) {
        let nth = self.random.usize(0..self.in_flight.len());
        let key = self.in_flight.swap_remove(nth);
        let hold =
            Hold { until: now.plus(Duration::from_millis(300)).wall, revision: Position(self.revision) };
        let outcome = match self.random.u8(0..9) {
            0 | 1 => return self.lanes.on_returned(ONE, key, FRESH, now),
            2..6 => AttemptOutcome::Failing,
            6 => AttemptOutcome::Neutral,
            7 => AttemptOutcome::Throttled(hold),
            _ => AttemptOutcome::Healthy,
        };
        self.finish(key, outcome, now);
    }

    /// Makes the pending reservation durable.
    fn confirm_reservation(&mut self, now: Now) {
        if let Some(reservation) = self.reserving.take() {
            self.lanes.on_reserved(ONE, &reservation, now);
        }
    }

    fn finish(&mut self, key: DueKey, outcome: AttemptOutcome, now: Now) {
        self.lanes.on_finished(ONE, key, outcome, now);
        self.lanes.on_settled(ONE, key, Position(u64::MAX), now);
        self.lanes.on_recorded(ONE, key, now);
        self.pending.remove(&key.event);
    }
}

#[test]
fn lane_recovers_from_repeated_random_faults() {
    let first = crate::failpoints::seed();
    for seed in (0..crate::failpoints::rounds(60)).map(|round| first.wrapping_add(round)) {
        let (random, lanes) = (fastrand::Rng::with_seed(seed), lanes(4));
        let (in_flight, pending) = (Vec::new(), BTreeSet::new());
        let mut faulty = FaultyLane { random, lanes, revision: 0, in_flight, reserving: None, pending };
        faulty.set_policy(Gate::Open, at(0));
        let mut millis = 0;
        for event in 1..600 {
            millis += faulty.random.u64(0..200);
            let now = at(millis);
            match faulty.random.u8(0..10) {
                0 => faulty.set_policy(Gate::Paused, now),
                1 | 2 => faulty.set_policy(Gate::Open, now),
                3..6 => {
                    faulty.lanes.on_due(ONE, key(millis, event), FRESH, Position(event), now);
                    faulty.pending.insert(Position(event));
                }
                6 => faulty.confirm_reservation(now),
                _ if !faulty.in_flight.is_empty() => faulty.end(now),
                _ => {}
            }
            faulty.send(now);
        }
        // No faults from now on.
        faulty.set_policy(Gate::Open, at(millis));
        for _ in 0..faulty.pending.len() * 4 + 1_000 {
            millis += 100;
            faulty.confirm_reservation(at(millis));
            for key in std::mem::take(&mut faulty.in_flight) {
                faulty.finish(key, AttemptOutcome::Healthy, at(millis));
            }
            faulty.send(at(millis));
        }
        let report = faulty.lanes.explain(ONE, at(millis));
        assert!(
            faulty.pending.is_empty(),
            "seed {seed}: {} deliveries are stuck: {report:?}",
            faulty.pending.len()
        );
    }
}

//! Effects of endpoint changes on the receiver's health, and the age of a retry series.

mod leases;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::domain::{Attempt, Hold, Next, RateLimit, Tenant, Trigger};
use crate::projections::counters;

const ONE: EndpointNumber = EndpointNumber(1);

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

#[derive(Default)]
struct Journal {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    fold: Fold,
    last: u64,
    changes: Vec<LaneChange>,
}

impl Journal {
    /// A journal with an endpoint.
    fn new() -> Self {
        let mut journal = Self::default();
        journal.put(|endpoint| endpoint);
        journal
    }

    fn apply(&mut self, record: &Record) -> Position {
        self.last += 1;
        self.fold.apply(&mut self.rows, Position(self.last), record, false, &mut self.changes);
        self.fold.write_tallies(&mut self.rows);
        Position(self.last)
    }

    fn put(&mut self, change: impl FnOnce(Endpoint) -> Endpoint) -> Position {
        let endpoint = change(crate::rules::tests::endpoint(ONE.0, Tenant::DEFAULT, &[]));
        self.apply(&Record::EndpointPut(Arc::new(endpoint)))
    }

    fn event(&mut self) -> DeliveryKey {
        let event = crate::rules::tests::event();
        DeliveryKey { event: self.apply(&Record::EventAccepted(Arc::new(event))), endpoint: ONE }
    }

    fn fail(&mut self, delivery: DeliveryKey, due: u64, attempt: Attempt) {
        self.apply(&Record::AttemptFinished { delivery, due: at(due), attempt: Arc::new(attempt) });
    }

    fn reserve(&mut self, full_at: u64) {
        let rate = RateLimit { limit: 1, per: Duration::from_secs(1), burst: 1 };
        let reservation = Reservation { revision: Position(1), rate, full_at: at(full_at) };
        self.apply(&Record::RateReserved { endpoint: ONE, reservation });
    }

    fn lane(&self) -> Lane {
        counters::lane(&self.rows, ONE)
    }

    fn reserved(&self) -> Option<Timestamp> {
        reserved::latest(&self.rows, ONE).map(|reserved| reserved.reservation.full_at)
    }
}

#[test]
fn deleted_endpoint_keeps_no_reservation() {
    let mut journal = Journal::new();
    journal.reserve(1_000);
    assert_eq!(journal.reserved(), Some(at(1_000)));
    journal.apply(&Record::EndpointDeleted { endpoint: ONE, at: at(2_000) });
    assert_eq!(journal.reserved(), None);
    // A reservation that was committed late.
    journal.reserve(3_000);
    assert_eq!(journal.reserved(), None);
    assert!(!journal.rows.keys().any(|key| key[0] == b'R'));
}

#[test]
fn resealing_secrets_keeps_the_evidence() {
    let mut journal = Journal::new();
    let delivery = journal.event();
    let attempt = Attempt { next: Next::RetryAt(at(500)), ..Attempt::for_tests() };
    journal.fail(delivery, 0, attempt);
    let evidence = journal.lane().failing;
    assert!(evidence.is_some());
    journal.put(|endpoint| Endpoint { description: "sealed again".into(), ..endpoint });
    assert_eq!(journal.lane().failing, evidence);
    // After a restart.
    journal.fold = Fold::default();
    journal.fold.restore_endpoint(&crate::rules::tests::endpoint(ONE.0, Tenant::DEFAULT, &[]));
    journal.put(|endpoint| endpoint);
    assert_eq!(journal.lane().failing, evidence);
    journal.put(|endpoint| Endpoint { updated_at: at(600), ..endpoint });
    assert_eq!(journal.lane().failing, None, "an operator changed the endpoint");
}

#[test]
fn hold_ends_when_the_endpoint_moves_to_another_host() {
    let mut journal = Journal::new();
    let delivery = journal.event();
    let attempt_with_hold = |due, revision| Attempt {
        started_at: at(due),
        next: Next::RetryAt(at(due + 1)),
        hold: Some(Hold { until: at(90_000), revision }),
        ..Attempt::for_tests()
    };
    journal.fail(delivery, 0, attempt_with_hold(0, Position(1)));
    let move_to = |url: &'static str| {
        move |endpoint: Endpoint| Endpoint { url: url.into(), updated_at: at(9), ..endpoint }
    };
    journal.put(move_to("https://example.com/elsewhere"));
    assert_eq!(journal.lane().hold.map(|(until, _)| until), Some(at(90_000)), "the receiver is the same");
    let moved = journal.put(move_to("https://other.example/elsewhere"));
    assert_eq!((journal.lane().hold, journal.lane().opened), (None, moved));
    // An attempt that is recorded late.
    journal.fail(delivery, 1, attempt_with_hold(1, Position(1)));
    assert_eq!(journal.lane().hold, None);
    journal.fail(delivery, 2, attempt_with_hold(2, moved));
    assert!(journal.lane().hold.is_some());
    journal.put(move_to("https://other.example:8443/"));
    assert_eq!(journal.lane().hold, None, "another port is another receiver");
}

#[test]
fn delay_of_an_attempt_does_not_count_as_age() {
    let mut journal = Journal::new();
    let delivery = journal.event();
    let mut due = 0;
    let mut first = |started, delay, next| {
        let (started_at, delay) = (at(started), Duration::from_millis(delay));
        journal.fail(
            delivery,
            due,
            Attempt { started_at, delay, next: Next::RetryAt(at(next)), ..Attempt::for_tests() },
        );
        due = next;
        pending::detail(&journal.rows, delivery).unwrap().progress.first_attempt
    };
    assert_eq!(first(5_000, 5_000, 6_000), Some(at(5_000)), "age begins with the first attempt");
    assert_eq!(first(6_000, 0, 7_000), Some(at(5_000)));
    assert_eq!(first(99_000, 92_000, 100_000), Some(at(97_000)));
    assert_eq!(first(100_500, 200, 200_000), Some(at(97_200)));
}

#[test]
fn event_without_a_key_is_alone_in_its_order() {
    let mut event = crate::rules::tests::event();
    (event.ordering_key, event.stream) = (None, None);
    let alone = accept::order_of(&event, Position(7));
    assert_ne!(alone, accept::order_of(&event, Position(8)));
    assert_ne!(alone, pending::WHOLE_ENDPOINT);
    event.ordering_key = Some(event.id.to_string().parse().unwrap());
    assert_eq!(accept::order_of(&event, Position(7)), accept::order_of(&event, Position(8)));
}

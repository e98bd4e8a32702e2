//! The cost of a change of one delivery does not depend on the number of targets of its event.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::*;
use crate::domain::{Attempt, Next, Trigger};
use crate::projections::reads;
use crate::projections::rows::Visit;

/// Rows that count the bytes of all values that were read.
#[derive(Default)]
struct CountedRows {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    read: Cell<usize>,
}

impl CountedRows {
    fn count(&self, value: &[u8]) {
        self.read.set(self.read.get() + value.len());
    }

    fn counted<'a>(&'a self, visit: Visit<'a>) -> impl FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a {
        move |key, value| {
            self.count(value);
            visit(key, value)
        }
    }
}

impl Rows for CountedRows {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let value = Rows::get(&self.rows, key);
        self.count(value.as_deref().unwrap_or_default());
        value
    }

    fn put(&mut self, key: &[u8], value: Vec<u8>) {
        Rows::put(&mut self.rows, key, value);
    }

    fn put_new(&mut self, key: &[u8], value: Vec<u8>) {
        Rows::put_new(&mut self.rows, key, value);
    }

    fn append(&mut self, key: &[u8], bytes: &[u8]) -> usize {
        Rows::append(&mut self.rows, key, bytes)
    }

    fn remove(&mut self, key: &[u8]) {
        Rows::remove(&mut self.rows, key);
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) {
        self.rows.scan(from, to, &mut self.counted(visit));
    }

    fn scan_back(&self, from: &[u8], to: &[u8], visit: Visit<'_>) {
        self.rows.scan_back(from, to, &mut self.counted(visit));
    }
}

/// The largest number of bytes that each kind of change reads for one delivery, among events with
/// this number of targets.
fn costs(targets: u32) -> Vec<(&'static str, usize)> {
    let (mut rows, mut fold, mut last) = (CountedRows::default(), Fold::default(), 0);
    let mut apply = |record: &Record| {
        last += 1;
        rows.read.set(0);
        fold.apply(&mut rows, Position(last), record, false, &mut Vec::new());
        let read = rows.read.get();
        fold.write_tallies(&mut rows);
        (Position(last), read)
    };
    let at = Timestamp::from_millis(1_000);
    for number in 1..=targets {
        let endpoint = crate::rules::tests::endpoint(number, crate::domain::Tenant::DEFAULT, &[]);
        apply(&Record::EndpointPut(Arc::new(endpoint)));
    }
    let all: Vec<_> = (1..=targets).map(EndpointNumber).collect();
    let mut positions = Vec::new();
    for _ in 0..3 {
        let event = Event { targets: all.clone(), ..crate::rules::tests::event() };
        positions.push(apply(&Record::EventAccepted(Arc::new(event))).0);
    }
    type Change = fn(Vec<DeliveryKey>, Timestamp) -> Record;
    let changes: [(&str, Change); 7] = [
        ("death", |deliveries, at| Record::DeliveriesDied {
            deliveries,
            reason: DeadReason::EndpointDeleted,
            at,
        }),
        ("redrive", |deliveries, at| Record::DeliveriesRevived { deliveries, trigger: Trigger::Redrive, at }),
        ("cancellation", |deliveries, at| Record::DeliveriesCancelled { deliveries, at }),
        ("replay", |deliveries, at| Record::DeliveriesRevived { deliveries, trigger: Trigger::Replay, at }),
        ("reordering", |deliveries, at| Record::DeliveriesReordered { deliveries, at }),
        ("second death", |deliveries, at| Record::DeliveriesDied {
            deliveries,
            reason: DeadReason::EndpointDeleted,
            at,
        }),
        ("purge", |deliveries, at| Record::DeadLettersPurged { deliveries, at }),
    ];
    let mut costs = Vec::new();
    for (name, change) in changes {
        let keys = positions
            .iter()
            .flat_map(|event| all.iter().map(|endpoint| DeliveryKey { event: *event, endpoint: *endpoint }));
        let most = keys.map(|key| apply(&change(vec![key], at)).1).max();
        costs.push((name, most.unwrap()));
    }
    for (name, next) in [("failure", Next::Dead(DeadReason::Gone)), ("success", Next::Delivered)] {
        let event = Event { targets: all.clone(), ..crate::rules::tests::event() };
        let due = event.first_due();
        let (position, _) = apply(&Record::EventAccepted(Arc::new(event)));
        let most = all.iter().map(|endpoint| {
            let attempt = Arc::new(Attempt { next, ..Attempt::for_tests() });
            let delivery = DeliveryKey { event: position, endpoint: *endpoint };
            apply(&Record::AttemptFinished { delivery, due, attempt }).1
        });
        costs.push((name, most.max().unwrap()));
    }
    costs
}

#[test]
fn change_of_a_delivery_costs_the_same_for_many_targets() {
    // The largest narrow event, and a wide one.
    for ((name, few), (_, many)) in costs(16).into_iter().zip(costs(3_000)) {
        // A lookup of a state reads the list of targets.
        let list = if ["redrive", "replay", "purge"].contains(&name) { 4 * 3_000 } else { 0 };
        assert!(many <= 2 * few + list + 2_048, "{name}: {few} bytes for 16 targets, {many} for 3,000");
    }
}

#[test]
fn list_of_another_tenant_reads_no_targets() {
    let (mut rows, mut fold) = (CountedRows::default(), Fold::default());
    let targets: Vec<_> = (1..=3_000).map(EndpointNumber).collect();
    let wide = Event { targets: targets.clone(), ..crate::rules::tests::event() };
    for position in 1..=200 {
        fold.apply(
            &mut rows,
            Position(position),
            &Record::EventAccepted(Arc::new(wide.clone())),
            false,
            &mut Vec::new(),
        );
    }
    let deliveries: Vec<_> =
        targets.iter().map(|endpoint| DeliveryKey { event: Position(7), endpoint: *endpoint }).collect();
    let died = Record::DeliveriesDied { deliveries, reason: DeadReason::Gone, at: Timestamp::from_millis(9) };
    fold.apply(&mut rows, Position(201), &died, false, &mut Vec::new());
    let own = Event { tenant: "good".parse().unwrap(), ..crate::rules::tests::event() };
    fold.apply(&mut rows, Position(202), &Record::EventAccepted(Arc::new(own)), false, &mut Vec::new());
    fold.write_tallies(&mut rows);
    rows.read.set(0);
    let filter = reads::Filter { tenant: Some("good".parse().unwrap()), ..reads::Filter::default() };
    let found = reads::deliveries(&rows, &filter, None, 50);
    assert!(found.next.is_none());
    let events = reads::events(&rows, &filter, None, 50, |_| "pending");
    assert_eq!(events.items, [Position(202)]);
    assert!(rows.read.get() < 64 * 1024, "two lists read {} bytes", rows.read.get());
}

/// Bytes that lists of a tenant with three events read, among this many events of `others` tenants.
fn cost_of_a_small_tenant(events: u64, others: u64) -> [usize; 4] {
    let (mut rows, mut fold) = (CountedRows::default(), Fold::default());
    let mut accept = |position: u64, tenant: String| {
        let event = Event {
            tenant: tenant.parse().unwrap(),
            targets: vec![EndpointNumber(if tenant == "small" { 1 } else { 2 })],
            accepted_at: Timestamp::from_millis(position),
            ..crate::rules::tests::event()
        };
        let record = Record::EventAccepted(Arc::new(event));
        fold.apply(&mut rows, Position(position), &record, false, &mut Vec::new());
    };
    for position in 1..=events {
        // Of the oldest, the middle and the newest page.
        let is_own = [300, events / 2, events - 300].contains(&position);
        accept(position, if is_own { "small".to_owned() } else { format!("t{}", position % others) });
    }
    fold.write_tallies(&mut rows);
    let of_tenant = reads::Filter { tenant: Some("small".parse().unwrap()), ..reads::Filter::default() };
    let of_endpoint = reads::Filter {
        events_of: Some("small".parse().unwrap()),
        endpoint: Some(EndpointNumber(1)),
        ..reads::Filter::default()
    };
    let old = reads::Filter { until: Some(Timestamp::from_millis(events / 2)), ..of_tenant.clone() };
    let measure = |found: usize, wanted: usize| {
        assert_eq!(found, wanted);
        rows.read.take()
    };
    rows.read.set(0);
    let list = |filter| reads::events(&rows, filter, None, 50, |_| "pending");
    let found = list(&of_tenant);
    assert!(found.next.is_none());
    let events = measure(found.items.len(), 3);
    let old = measure(list(&old).items.len(), 1);
    let deliveries = measure(reads::deliveries(&rows, &of_endpoint, None, 50).items.len(), 3);
    let step = crate::projections::feed::look(
        &rows,
        (Some("small"), None),
        (Position(0), Position(u64::MAX)),
        50,
        |_| (true, 1),
    );
    [events, old, deliveries, measure(step.events.len(), 3)]
}

#[test]
fn list_of_a_small_tenant_reads_its_pages_only() {
    let few = cost_of_a_small_tenant(3_000, 1);
    for (events, others) in [(12_000, 1), (12_000, 200)] {
        let many = cost_of_a_small_tenant(events, others);
        // A walk over everything reads 700 kB. The search by time looks at two more pages.
        let more = |(few, many): (&usize, &usize)| *many > few + 2 * 32 * 1_024;
        assert!(!few.iter().zip(&many).any(more), "{few:?} bytes, then {many:?} of {others} tenants");
        assert!(many.iter().all(|read| *read < 192 * 1_024), "{many:?} bytes of {others} tenants");
    }
}

#[test]
fn list_among_equal_tenants_reads_a_page_per_event() {
    let (mut rows, mut fold) = (CountedRows::default(), Fold::default());
    for position in 1..=20_000 {
        let tenant = format!("t{}", position % 1_000).parse().unwrap();
        let record = Record::EventAccepted(Arc::new(Event { tenant, ..crate::rules::tests::event() }));
        fold.apply(&mut rows, Position(position), &record, false, &mut Vec::new());
    }
    fold.write_tallies(&mut rows);
    rows.read.set(0);
    let filter = reads::Filter { tenant: Some("t7".parse().unwrap()), ..reads::Filter::default() };
    assert_eq!(reads::events(&rows, &filter, None, 10, |_| "pending").items.len(), 10);
    let read = rows.read.get();
    assert!(read < 11 * 20 * 1_024, "{read} bytes for 11 pages; a walk over everything reads 50");
}

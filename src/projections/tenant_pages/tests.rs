//! The index lists the pages of each tenant, and lists by the index have what a walk over
//! everything finds.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::domain::{EndpointNumber, Event, Position, Record, Tenant, Timestamp};
use crate::failpoints::{TestOverrides, fails_with};
use crate::projections::pages::{EventEntry, all_events, page_of};
use crate::projections::reads::{self, Cursor, Filter, Found};
use crate::projections::retention::{self, Cutoffs};
use crate::projections::{Fold, feed, lag, pages};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

const TENANTS: [&str; 4] = ["a", "a.b", "b", "rare"];

fn index(rows: &Map) -> Map {
    rows.range(b"t".to_vec()..b"u".to_vec()).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The index, derived from the events.
fn expected_index(rows: &Map) -> Map {
    let mut index = Map::new();
    for event in all_events(rows) {
        add(&mut index, &event.tenant, page_of(event.position));
    }
    index
}

/// A fold under random records, checkpoints, restarts and retention.
struct World {
    rows: Map,
    fold: Fold,
    random: fastrand::Rng,
    last: u64,
    now: u64,
    records: Vec<(Position, Record)>,
    retained: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        let (rows, fold, records) = (Map::new(), Fold::default(), Vec::new());
        Self { rows, fold, random, last: 0, now: 1_000, records, retained: false }
    }

    fn apply(&mut self, record: Record) -> Position {
        self.last += 1 + self.random.u64(0..3) / 2;
        let position = Position(self.last);
        self.fold.apply(&mut self.rows, position, &record, false, &mut Vec::new());
        self.fold.write_tallies(&mut self.rows);
        self.records.push((position, record));
        position
    }

    fn accept(&mut self, tenant: &str) -> Position {
        self.now += self.random.u64(0..4);
        let accepted_at = Timestamp::from_millis(self.now);
        // An event with a delivery stays: the delivery is pending.
        let targets = if self.random.u8(..) < 30 { vec![EndpointNumber(1)] } else { Vec::new() };
        let tenant = tenant.parse().unwrap();
        let event = Event { tenant, accepted_at, targets, ..crate::rules::tests::event() };
        self.apply(Record::EventAccepted(Arc::new(event)))
    }

    fn retain(&mut self, before: u64) {
        let cutoffs = Cutoffs { events: Some(Timestamp::from_millis(before)), stream_events: None };
        let horizon = retention::horizon(&self.rows, cutoffs, 0, usize::MAX);
        self.fold.horizon.horizon = self.fold.horizon.horizon.max(horizon);
        self.retained |= self.fold.forget(&mut self.rows, cutoffs, 0, usize::MAX).events > 0;
    }

    fn restart(&mut self) {
        self.fold.on_checkpoint();
        self.fold = Fold::resume(self.fold.checkpoints(), self.fold.totals, self.fold.horizon);
    }

    fn step(&mut self) {
        match self.random.u32(0..100) {
            0..4 => self.fold.on_checkpoint(),
            4..8 => self.restart(),
            8..10 => {
                let before = (self.now + 1).saturating_sub(self.random.u64(0..300));
                self.retain(before);
            }
            10..13 => {
                let events = all_events(&self.rows);
                if let Some(event) = self.random.choice(&events) {
                    let (event, at) = (event.position, Timestamp::from_millis(self.now));
                    self.apply(Record::EventErased {
                        event,
                        at,
                        tenant: "a".parse().unwrap(),
                        reason: "".into(),
                    });
                }
            }
            13..25 => {
                self.apply(Record::DeliveriesCancelled { deliveries: Vec::new(), at: Timestamp::ZERO });
            }
            25..28 => {
                self.accept("rare");
            }
            _ => {
                let tenant = TENANTS[self.random.usize(0..3)];
                self.accept(tenant);
            }
        }
    }
}

/// Reads a list from its first page to its last.
fn follow<T>(limit: usize, page: impl Fn(Option<Cursor>, usize) -> Found<T>) -> Vec<T> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let found = page(after, limit);
        all.extend(found.items);
        after = found.next;
        if after.is_none() {
            return all;
        }
    }
}

/// Compares all lists of a tenant with all its events.
fn compare_lists(world: &mut World, tenant: &str, story: &str) {
    let events = all_events(&world.rows);
    let first = events.first().map_or(0, |event| event.accepted_at.millis());
    let mut time = || {
        let millis = world.random.u64(first..=world.now + 1);
        world.random.bool().then_some(Timestamp::from_millis(millis))
    };
    let (since, until) = (time(), time());
    let own: Tenant = tenant.parse().unwrap();
    let limit = world.random.usize(1..40);
    let is_within = |event: &&EventEntry| {
        *event.tenant == *tenant
            && since.is_none_or(|since| event.accepted_at >= since)
            && until.is_none_or(|until| event.accepted_at < until)
    };
    let wanted: Vec<_> = events.iter().filter(is_within).collect();
    let newest: Vec<Position> = wanted.iter().rev().map(|event| event.position).collect();
    let rows = &world.rows;
    for (owner, events_of) in [(Some(own.clone()), None), (None, Some(own))] {
        let filter = Filter { tenant: owner, events_of, since, until, ..Filter::default() };
        let listed = follow(limit, |after, limit| reads::events(rows, &filter, after, limit, |_| "any"));
        assert_eq!(listed, newest, "{story}: events");
        let past = follow(limit, |after, limit| reads::past(rows, &filter, EndpointNumber(1), after, limit));
        assert!(past.iter().map(|past| past.position).eq(newest.iter().copied()), "{story}: the past");
        let filter = Filter { endpoint: Some(EndpointNumber(1)), ..filter };
        let listed = follow(limit, |after, limit| reads::deliveries(rows, &filter, after, limit));
        let has_delivery = |event: &&&EventEntry| !pages::targets(rows, event).is_empty();
        let with_delivery = wanted.iter().rev().filter(has_delivery).map(|event| event.position);
        assert!(listed.iter().map(|facts| facts.key.event).eq(with_delivery), "{story}: deliveries");
    }
    let (after, until) = (Position(world.last / 3), Position(world.last));
    let is_ahead = |event: &&EventEntry| *event.tenant == *tenant && event.position > after;
    let ahead: Vec<Position> = events.iter().filter(is_ahead).map(|event| event.position).collect();
    let (mut looked_at, mut fed) = (after, Vec::new());
    while looked_at < until {
        let step = feed::look(rows, (Some(tenant), None), (looked_at, until), limit, |_| (true, 1));
        assert!(step.looked_at > looked_at && step.events.len() <= limit, "{story}: {step:?}");
        fed.extend(step.events);
        looked_at = step.looked_at;
    }
    assert_eq!(fed, ahead, "{story}: the feed");
    let count = lag::count(rows, (Some(tenant), None), after, usize::MAX, &mut |_| true);
    assert_eq!((count.events, count.is_cut), (ahead.len() as u64, false), "{story}: the lag");
}

#[test]
fn lists_by_the_index_equal_a_walk_over_everything() {
    let seed = crate::failpoints::seed();
    for seed in seed..seed.saturating_add(crate::failpoints::rounds(60)) {
        let mut world = World::new(seed);
        let bounds = BTreeMap::from([
            (Bound::PagePositions, world.random.choice([1, 3, 16, 256]).unwrap()),
            (Bound::SpanPages, world.random.choice([1, 2, 5, 1_024]).unwrap()),
            (Bound::ScanEntries, world.random.choice([1, 2, 50, 10_000]).unwrap()),
        ]);
        let story = format!("BALTO_TEST_SEED={seed}, {bounds:?}");
        TestOverrides { bounds, ..TestOverrides::default() }.activate();
        for _ in 0..world.random.usize(1..4) {
            for _ in 0..world.random.usize(1..150) {
                world.step();
            }
            assert_eq!(index(&world.rows), expected_index(&world.rows), "{story}");
            for tenant in TENANTS.into_iter().chain(["never"]) {
                compare_lists(&mut world, tenant, &format!("{story}, tenant {tenant}"));
            }
        }
        // Restarts leave no trace: a fold from the start gives the same index.
        let (mut rows, mut fold) = (Map::new(), Fold::default());
        for (position, record) in world.records.iter().filter(|_| !world.retained) {
            fold.apply(&mut rows, *position, record, false, &mut Vec::new());
        }
        assert!(world.retained || index(&rows) == index(&world.rows), "{story}");
        TestOverrides::default().activate();
    }
}

/// Events of the newest page expire, and later ones of the same tenant follow on it.
fn page_is_listed_again_after_retention() {
    let mut world = World::new(1);
    let expired = ["a", "b"].map(|tenant| {
        world.random = fastrand::Rng::with_seed(2);
        world.accept(tenant)
    });
    world.now += 100;
    world.retain(world.now - 50);
    assert!(world.retained && index(&world.rows).is_empty(), "{:?}", all_events(&world.rows));
    let later = world.accept("a");
    assert_eq!(page_of(expired[0]), page_of(later), "all are on one page");
    let filter = Filter { tenant: Some("a".parse().unwrap()), ..Filter::default() };
    assert_eq!(reads::events(&world.rows, &filter, None, 9, |_| "any").items, [later]);
}

#[test]
fn expired_page_is_listed_again() {
    page_is_listed_again_after_retention();
}

fn each_tenant_of_a_page_is_listed() {
    let mut world = World::new(3);
    for tenant in TENANTS.iter().chain(&TENANTS) {
        world.accept(tenant);
    }
    assert_eq!(index(&world.rows), expected_index(&world.rows));
}

#[test]
fn mutations_are_caught() {
    each_tenant_of_a_page_is_listed();
    fails_with(Mutation::ForgetTenantPage, each_tenant_of_a_page_is_listed);
    fails_with(Mutation::TrustOpenPage, page_is_listed_again_after_retention);
}

#[test]
fn malformed_rows_are_recognised() {
    let (key, number) = place("a.b", 7);
    let two = [number, [0, 9]].concat();
    assert_eq!(read(&key, &number), Some(("a.b", 1)));
    assert_eq!(read(&key, &two), Some(("a.b", 2)));
    let beyond = (SPAN_PAGES as u16).to_be_bytes();
    let twice = [number, number].concat();
    for value in [&[][..], &[1], &two[..3], &beyond, &twice, &[0, 9, 0, 7]] {
        assert_eq!(read(&key, value), None, "{value:?}");
    }
    let no_separator = [b"ta", &7_u64.to_be_bytes()[..]].concat();
    let great = [b"ta\0", &u64::MAX.to_be_bytes()[..]].concat();
    for key in [&b"t"[..], b"t\0", &key[..key.len() - 1], &no_separator, &great] {
        assert_eq!(read(key, &number), None, "{key:?}");
    }
}

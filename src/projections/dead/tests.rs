//! Lists of dead letters by endpoint and owner have what a walk over all letters finds, and pass
//! over no others.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::domain::{Endpoint, EndpointOwner, Event, IdSet, Record, Trigger};
use crate::failpoints::{Bound, TestOverrides, fails_with};
use crate::projections::Fold;
use crate::projections::reads::{self, Cursor, EndpointChoice, Filter, Found};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Owners of the endpoints, by number from 1.
const OWNERS: [&str; 7] = ["a", "a", "a.b", "b", Tenant::EVERY, Tenant::EVERY, "rare"];
const TENANTS: [&str; 4] = ["a", "a.b", "b", "rare"];

fn owner(name: &str) -> Tenant {
    name.parse().map(|EndpointOwner(tenant)| tenant).unwrap()
}

fn endpoint(number: u32) -> Endpoint {
    let tenant = owner(OWNERS[number as usize - 1]);
    Endpoint { tenant, ..crate::rules::tests::endpoint(number, "a", &[]) }
}

fn numbers() -> impl Iterator<Item = EndpointNumber> {
    (1..).map(EndpointNumber).take(OWNERS.len())
}

fn is_shared(number: EndpointNumber) -> bool {
    OWNERS[number.0 as usize - 1] == Tenant::EVERY
}

fn shared() -> Arc<IdSet<EndpointNumber>> {
    Arc::new(numbers().filter(|number| is_shared(*number)).collect())
}

/// A fold under random deaths, revivals, purges and restarts.
struct World {
    rows: Map,
    fold: Fold,
    random: fastrand::Rng,
    last: u64,
    events: Vec<(Position, Vec<EndpointNumber>)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        let mut world = Self { rows: Map::new(), fold: Fold::default(), random, last: 0, events: Vec::new() };
        for number in numbers() {
            world.apply(&Record::EndpointPut(Arc::new(endpoint(number.0))));
        }
        world
    }

    fn apply(&mut self, record: &Record) -> Position {
        self.last += 1;
        let position = Position(self.last);
        self.fold.apply(&mut self.rows, position, record, false, &mut Vec::new());
        self.fold.write_tallies(&mut self.rows);
        position
    }

    fn restart(&mut self) {
        self.fold.on_checkpoint();
        self.fold = Fold::resume(self.fold.checkpoints(), self.fold.totals, self.fold.horizon);
        for number in numbers() {
            // The even ones are deleted, and their letters still have an owner.
            match number.0 % 2 {
                0 => self.fold.restore_deleted_endpoint(&endpoint(number.0)),
                _ => self.fold.restore_endpoint(&endpoint(number.0)),
            }
        }
    }

    fn accept(&mut self, tenant: &str) {
        let takes = |number: &EndpointNumber| {
            let owner = OWNERS[number.0 as usize - 1];
            owner == tenant || owner == Tenant::EVERY
        };
        let targets: Vec<_> = numbers().filter(takes).collect();
        let event = Event {
            tenant: tenant.parse().unwrap(),
            event_type: ["order.paid", "order.sent"][self.random.usize(0..2)].parse().unwrap(),
            targets: targets.clone(),
            ..crate::rules::tests::event()
        };
        let position = self.apply(&Record::EventAccepted(Arc::new(event)));
        self.events.push((position, targets));
    }

    /// Some deliveries of some events.
    fn some_deliveries(&mut self) -> Vec<DeliveryKey> {
        let mut some = Vec::new();
        for _ in 0..self.random.usize(0..4) {
            let Some((event, targets)) = self.random.choice(&self.events) else { break };
            let wanted = targets.iter().filter(|_| self.random.bool());
            some.extend(wanted.map(|endpoint| DeliveryKey { event: *event, endpoint: *endpoint }));
        }
        some.sort_unstable();
        some.dedup();
        some
    }

    fn step(&mut self) {
        let (at, deliveries) = (Timestamp::from_millis(self.last), self.some_deliveries());
        match self.random.u32(0..100) {
            0..5 => self.restart(),
            5..40 => {
                let tenant = TENANTS[self.random.usize(0..TENANTS.len())];
                self.accept(tenant);
            }
            40..80 => {
                let reason = [DeadReason::Gone, DeadReason::Expired][self.random.usize(0..2)];
                self.apply(&Record::DeliveriesDied { deliveries, reason, at });
            }
            80..90 => {
                self.apply(&Record::DeliveriesRevived { deliveries, trigger: Trigger::Redrive, at });
            }
            _ => {
                self.apply(&Record::DeadLettersPurged { deliveries, at });
            }
        }
    }

    fn draw_filter(&mut self) -> Filter {
        let random = &mut self.random;
        let name = random.choice([Tenant::EVERY, "never", "a", "a.b", "b", "rare"]).unwrap();
        let number = EndpointNumber(random.u32(1..=OWNERS.len() as u32));
        let choices = [
            EndpointChoice::Listed(Arc::new(IdSet::from_iter([number]))),
            EndpointChoice::Listed(Arc::new(IdSet::from_iter([number, EndpointNumber(1)]))),
            EndpointChoice::Range(number, number),
            EndpointChoice::Range(number, EndpointNumber(u32::MAX)),
        ];
        let choice = random.choice(choices);
        let last = self.last;
        let mut some = || random.u32(0..4) == 0;
        Filter {
            shared: shared(),
            tenant: (some() || some()).then(|| owner(name)),
            endpoint: some().then_some(number),
            endpoints: choice.filter(|_| some()),
            event_type: some().then(|| "order.paid".parse().unwrap()),
            reason: some().then_some(DeadReason::Gone),
            since: some().then(|| Timestamp::from_millis(last / 4)),
            until: some().then(|| Timestamp::from_millis(last / 2)),
            ..Filter::default()
        }
    }
}

/// The index, derived from the letters.
fn expected_index(rows: &Map) -> Map {
    let mut index = Map::new();
    for letter in all_letters(rows) {
        put(&mut index, &letter, is_shared(letter.delivery.endpoint));
    }
    index.into_iter().filter(|(key, _)| key[0] != b'X').collect()
}

fn index(rows: &Map) -> Map {
    let rows = rows.iter().filter(|(key, _)| matches!(key[0], b'x' | b'o'));
    rows.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// All letters, newest first, without an index.
fn all_letters(rows: &Map) -> Vec<Letter> {
    let letters = rows.iter().rev().filter(|(key, _)| key[0] == b'X');
    letters.map(|(key, value)| decode(key, value).unwrap()).collect()
}

fn follow(rows: &Map, filter: &Filter, mut after: Option<Cursor>, limit: usize) -> Vec<Letter> {
    let mut all = Vec::new();
    loop {
        let Found { items, next } = reads::dead_letters(rows, filter, after, limit);
        assert!(items.len() <= limit && next.is_none_or(|next| Some(next) != after));
        all.extend(items);
        after = next;
        if after.is_none() {
            return all;
        }
    }
}

fn lists_equal_a_walk_over_all_letters() {
    let seed = crate::failpoints::seed();
    for seed in seed..seed.saturating_add(crate::failpoints::rounds(40)) {
        let mut world = World::new(seed);
        for _ in 0..world.random.usize(1..4) {
            for _ in 0..world.random.usize(1..120) {
                world.step();
            }
            let story = format!("BALTO_TEST_SEED={seed}");
            assert_eq!(index(&world.rows), expected_index(&world.rows), "{story}");
            let letters = all_letters(&world.rows);
            for _ in 0..30 {
                let (filter, limit) = (world.draw_filter(), world.random.usize(1..20));
                let wanted: Vec<_> =
                    letters.iter().filter(|letter| filter.wants_letter(letter)).cloned().collect();
                let story = format!("{story}, {filter:?} in pages of {limit}");
                assert_eq!(follow(&world.rows, &filter, None, limit), wanted, "{story}");
                // A cursor of a list with another filter.
                let Some(letter) = world.random.choice(&letters) else { continue };
                let DeliveryKey { event, endpoint } = letter.delivery;
                let after = Cursor { position: letter.death, event, endpoint };
                let place = |letter: &Letter| (letter.death, letter.delivery);
                let older = wanted.iter().filter(|other| place(other) < place(letter));
                let found = follow(&world.rows, &filter, Some(after), limit);
                assert!(found.iter().eq(older), "{story} after {after:?}");
            }
        }
    }
}

#[test]
fn lists_by_the_index_equal_a_walk_over_everything() {
    lists_equal_a_walk_over_all_letters();
    for entries in [1, 2, 3, 50] {
        let bounds = BTreeMap::from([(Bound::ScanEntries, entries), (Bound::PagePositions, 16)]);
        TestOverrides { bounds, ..TestOverrides::default() }.activate();
        lists_equal_a_walk_over_all_letters();
    }
    TestOverrides::default().activate();
}

#[test]
fn mutations_are_caught() {
    fails_with(Mutation::ForgetOwner, lists_equal_a_walk_over_all_letters);
}

/// 5,000 letters of one tenant's endpoints are older and newer than three of another.
#[test]
fn list_of_one_owner_passes_over_no_other() {
    let mut world = World::new(1);
    for tenant in std::iter::repeat_n("b", 2_500).chain(["a.b"; 3]).chain(std::iter::repeat_n("b", 2_500)) {
        world.accept(tenant);
        let (event, endpoint) = (Position(world.last), EndpointNumber(if tenant == "b" { 4 } else { 3 }));
        let deliveries = vec![DeliveryKey { event, endpoint }];
        world.apply(&Record::DeliveriesDied { deliveries, reason: DeadReason::Gone, at: Timestamp::ZERO });
    }
    let of = |name| Filter { tenant: Some(owner(name)), shared: shared(), ..Filter::default() };
    let endpoint = |number| Filter { endpoint: Some(EndpointNumber(number)), ..Filter::default() };
    let bounds = BTreeMap::from([(Bound::ScanEntries, 10)]);
    TestOverrides { bounds, ..TestOverrides::default() }.activate();
    for (filter, expected) in [(of("a.b"), 3), (endpoint(3), 3), (of("a"), 0), (endpoint(1), 0)] {
        let found = reads::dead_letters(&world.rows, &filter, None, 50);
        assert_eq!((found.items.len(), found.next), (expected, None), "{filter:?}");
    }
    TestOverrides::default().activate();
}

#[test]
fn malformed_rows_are_recognised() {
    let delivery = DeliveryKey { event: Position(7), endpoint: EndpointNumber(3) };
    let (of_endpoint, of_owner) =
        (endpoint_key(Position(9), delivery), owner_key("a.b", Position(9), delivery));
    for key in [&of_endpoint, &of_owner] {
        assert_eq!(named(key), Some((Position(9), delivery)));
        for length in 0..key.len() - 1 {
            assert_ne!(named(&key[..length]), Some((Position(9), delivery)), "{length}");
        }
    }
    let no_text = [b"o\xff\0", &of_owner[5..]].concat();
    for key in [&b""[..], b"x", b"o\0", &of_endpoint[..20], &no_text, &key(Position(9), delivery)] {
        assert_eq!(named(key), None, "{key:?}");
    }
}

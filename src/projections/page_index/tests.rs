//! Lists of a stream have what a walk over everything finds, also below the first version that can
//! be read, and pass over no other events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::*;
use crate::domain::{DeliveryKey, EndpointNumber, Event, Position, Record, StreamName, Tenant, Timestamp};
use crate::failpoints::{Bound, Mutation, TestOverrides, fails_with};
use crate::projections::audit::{Terms, audit};
use crate::projections::pages::{EventEntry, all_events};
use crate::projections::reads::{self, Cursor, Filter, Found};
use crate::projections::retention::{self, Cutoffs};
use crate::projections::{Fold, feed, lag};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

const TENANTS: [&str; 3] = ["a", "a.b", "b"];
const STREAMS: [&str; 3] = ["order-1", "order-10", "pet"];
const ENDPOINT: EndpointNumber = EndpointNumber(1);

/// A fold under random events, ends of deliveries, restarts and retention.
struct World {
    rows: Map,
    fold: Fold,
    random: fastrand::Rng,
    last: u64,
    now: u64,
    records: Vec<(Position, Record)>,
    versions: BTreeMap<(String, String), u64>,
    cutoffs: Cutoffs,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            rows: Map::new(),
            fold: Fold::default(),
            random: fastrand::Rng::with_seed(seed),
            last: 0,
            now: 1_000,
            records: Vec::new(),
            versions: BTreeMap::new(),
            cutoffs: Cutoffs::default(),
        }
    }

    fn apply(&mut self, record: Record) {
        self.last += 1 + self.random.u64(0..3) / 2;
        let position = Position(self.last);
        self.fold.apply(&mut self.rows, position, &record, false, &mut Vec::new());
        self.fold.write_tallies(&mut self.rows);
        self.records.push((position, record));
    }

    /// Accepts an event. One with a delivery stays until the delivery has ended.
    fn accept(&mut self, tenant: &str, stream: Option<&str>, is_delivered: bool) {
        self.now += self.random.u64(0..4);
        let stream = stream.map(|stream| {
            let version = self.versions.entry((tenant.into(), stream.into())).or_default();
            *version += 1;
            (stream.parse::<StreamName>().unwrap(), *version)
        });
        let event = Event {
            tenant: tenant.parse().unwrap(),
            stream,
            accepted_at: Timestamp::from_millis(self.now),
            targets: if is_delivered { vec![ENDPOINT] } else { Vec::new() },
            ..crate::rules::tests::event()
        };
        self.apply(Record::EventAccepted(Arc::new(event)));
    }

    fn cancel(&mut self, event: Position) {
        let deliveries = vec![DeliveryKey { event, endpoint: ENDPOINT }];
        self.apply(Record::DeliveriesCancelled { deliveries, at: Timestamp::from_millis(self.now) });
    }

    fn retain(&mut self, cutoffs: Cutoffs) {
        self.cutoffs = Cutoffs {
            events: self.cutoffs.events.max(cutoffs.events),
            stream_events: self.cutoffs.stream_events.max(cutoffs.stream_events),
        };
        let horizon = retention::horizon(&self.rows, cutoffs, 0, usize::MAX);
        self.fold.horizon.horizon = self.fold.horizon.horizon.max(horizon);
        self.fold.forget(&mut self.rows, cutoffs, 0, usize::MAX);
    }

    fn step(&mut self) {
        match self.random.u32(0..100) {
            0..3 => self.fold.on_checkpoint(),
            3..6 => {
                self.fold.on_checkpoint();
                self.fold = Fold::resume(self.fold.checkpoints(), self.fold.totals, self.fold.horizon);
            }
            6..9 => {
                let before = Timestamp::from_millis((self.now + 1).saturating_sub(self.random.u64(0..200)));
                let mut cutoff = || self.random.bool().then_some(before);
                let cutoffs = Cutoffs { events: cutoff(), stream_events: cutoff() };
                self.retain(cutoffs);
            }
            9..25 => {
                let events = all_events(&self.rows);
                if let Some(event) = self.random.choice(&events) {
                    self.cancel(event.position);
                }
            }
            _ => {
                let stream = self.random.choice([None, Some(STREAMS[0]), Some(STREAMS[1]), Some(STREAMS[2])]);
                let (tenant, is_delivered) = (TENANTS[self.random.usize(0..3)], self.random.u8(..) < 60);
                self.accept(tenant, stream.flatten(), is_delivered);
            }
        }
    }

    /// A fold of what the journal still has after retention: all events that the rows have, the
    /// last one of each stream, and some of the others.
    fn fold_the_rest(&mut self) -> Map {
        let known: BTreeSet<Position> = all_events(&self.rows).iter().map(|event| event.position).collect();
        let (mut rows, mut fold, mut before) = (Map::new(), Fold::default(), Position(0));
        for (position, record) in &self.records {
            let is_needed = match record {
                Record::EventAccepted(event) => {
                    let head = |(stream, version): &(StreamName, u64)| {
                        let name = (event.tenant.to_string(), stream.to_string());
                        self.versions[&name] == *version
                    };
                    known.contains(position) || event.stream.as_ref().is_some_and(head)
                }
                _ => true,
            };
            if is_needed || self.random.u8(..) < 40 {
                if before.next() < *position {
                    fold.on_gap(Position(position.0 - 1));
                }
                fold.apply(&mut rows, *position, record, false, &mut Vec::new());
                before = *position;
            }
        }
        fold.write_tallies(&mut rows);
        rows
    }
}

/// Reads a list from its first page to its last.
fn follow<T>(page: impl Fn(Option<Cursor>) -> Found<T>) -> Vec<T> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let found = page(after);
        assert!(found.next.is_none_or(|next| Some(next) != after));
        all.extend(found.items);
        after = found.next;
        if after.is_none() {
            return all;
        }
    }
}

/// Compares all lists of a stream with all its events.
fn compare_lists(
    rows: &Map,
    (tenant, stream): (Option<&str>, &str),
    random: &mut fastrand::Rng,
    story: &str,
) {
    let events = all_events(rows);
    let wants = |event: &&EventEntry| {
        tenant.is_none_or(|tenant| *event.tenant == *tenant)
            && event.stream.as_ref().is_some_and(|(name, _)| **name == *stream)
    };
    let wanted: Vec<&EventEntry> = events.iter().filter(wants).collect();
    let mut time = || random.bool().then(|| events.get(random.usize(0..=events.len()))).flatten();
    let (since, until) = (time().map(|event| event.accepted_at), time().map(|event| event.accepted_at));
    let limit = random.usize(1..40);
    let is_within = |event: &&&EventEntry| {
        since.is_none_or(|since| event.accepted_at >= since)
            && until.is_none_or(|until| event.accepted_at < until)
    };
    let newest: Vec<Position> = wanted.iter().rev().filter(is_within).map(|event| event.position).collect();
    let owner: Option<Tenant> = tenant.map(|tenant| tenant.parse().unwrap());
    let stream_name = Some(stream.parse().unwrap());
    let filter = Filter { tenant: owner, stream: stream_name, since, until, ..Filter::default() };
    let listed = follow(|after| reads::events(rows, &filter, after, limit, |_| "any"));
    assert_eq!(listed, newest, "{story}: events");
    let past = follow(|after| reads::past(rows, &filter, ENDPOINT, after, limit));
    assert!(past.iter().map(|past| past.position).eq(newest.iter().copied()), "{story}: the past");
    let listed = follow(|after| reads::deliveries(rows, &filter, after, limit));
    let has_delivery = |event: &&&EventEntry| !pages::targets(rows, event).is_empty();
    let with_delivery =
        wanted.iter().rev().filter(is_within).filter(has_delivery).map(|event| event.position);
    assert!(listed.iter().map(|facts| facts.key.event).eq(with_delivery), "{story}: deliveries");
    let last = events.last().map_or(Position(1), |event| event.position);
    let (after, until) = (Position(random.u64(0..=last.0)), last);
    let ahead: Vec<Position> =
        wanted.iter().map(|event| event.position).filter(|position| *position > after).collect();
    let (mut looked_at, mut fed) = (after, Vec::new());
    while looked_at < until {
        let step = feed::look(rows, (tenant, Some(stream)), (looked_at, until), limit, |event| {
            (event.stream == Some(stream), 1)
        });
        assert!(step.looked_at > looked_at && step.events.len() <= limit, "{story}: {step:?}");
        fed.extend(step.events);
        looked_at = step.looked_at;
    }
    assert_eq!(fed, ahead, "{story}: the feed");
    let count = lag::count(rows, (tenant, Some(stream)), after, usize::MAX, &mut |event| {
        event.stream == Some(stream)
    });
    assert_eq!((count.events, count.is_cut), (ahead.len() as u64, false), "{story}: the lag");
}

/// The differences that an audit of the streams finds.
fn differences(kept: &Map, folded: &Map, world: &World) -> Vec<String> {
    let (cutoffs, horizon) = (world.cutoffs, world.fold.horizon.horizon);
    let terms = Terms { cutoffs, horizon, gaps: true, ..Terms::default() };
    let mut found = Vec::new();
    audit(kept, folded, &terms, &mut |difference| found.push(difference), &mut |_| ());
    found.retain(|difference| difference.contains("stream"));
    found
}

fn lists_of_a_stream_equal_a_walk_over_everything() {
    let seed = crate::failpoints::seed();
    for seed in seed..seed.saturating_add(crate::failpoints::rounds(15)) {
        let mut world = World::new(seed);
        for _ in 0..world.random.usize(1..4) {
            for _ in 0..world.random.usize(1..150) {
                world.step();
            }
            let folded = world.fold_the_rest();
            let story = format!("BALTO_TEST_SEED={seed}");
            assert_eq!(differences(&world.rows, &folded, &world), Vec::<String>::new(), "{story}");
            for (rows, what) in [(&world.rows, "kept"), (&folded, "folded")] {
                for tenant in [Some(TENANTS[0]), Some(TENANTS[1]), Some("never"), None] {
                    for stream in [STREAMS[0], STREAMS[1], "order"] {
                        let story = format!("{story}, {what}, stream {stream} of {tenant:?}");
                        compare_lists(rows, (tenant, stream), &mut world.random, &story);
                    }
                }
            }
        }
    }
}

#[test]
fn lists_by_the_index_equal_a_walk_over_everything() {
    for (page, block, entries) in [(256, 64, 10_000), (1, 1, 1), (3, 2, 2), (16, 3, 50), (5, 64, 10_000)] {
        let bounds = BTreeMap::from([
            (Bound::PagePositions, page),
            (Bound::StreamBlock, block),
            (Bound::ScanEntries, entries),
        ]);
        TestOverrides { bounds, ..TestOverrides::default() }.activate();
        lists_of_a_stream_equal_a_walk_over_everything();
    }
    TestOverrides::default().activate();
}

/// Of a block of events, retention deletes the later one.
fn kept_event_below_the_first_version_is_listed() {
    let mut world = World::new(1);
    world.accept("a", Some("pet"), true);
    for _ in 0..70 {
        world.accept("a", Some("pet"), false);
    }
    let kept = Position(1);
    let cutoff = Some(Timestamp::from_millis(world.now + 1));
    world.retain(Cutoffs { events: cutoff, stream_events: cutoff });
    assert_eq!(all_events(&world.rows).iter().map(|event| event.position).collect::<Vec<_>>(), [kept]);
    let filter = Filter {
        tenant: Some("a".parse().unwrap()),
        stream: Some("pet".parse().unwrap()),
        ..Filter::default()
    };
    assert_eq!(reads::events(&world.rows, &filter, None, 9, |_| "any").items, [kept]);
    let versions = streams::positions(&world.rows, &"a".parse().unwrap(), &"pet".parse().unwrap(), 1..=99);
    assert_eq!(versions, [], "reads by version begin behind the deleted events");
    world.cancel(kept);
    world.now += 10;
    let cutoff = Some(Timestamp::from_millis(world.now));
    world.retain(Cutoffs { events: cutoff, stream_events: cutoff });
    assert!(world.rows.keys().all(|key| key[0] != b'V'), "blocks without events are removed");
}

#[test]
fn mutations_are_caught() {
    kept_event_below_the_first_version_is_listed();
    fails_with(Mutation::DropKeptVersions, kept_event_below_the_first_version_is_listed);
}

/// Three events of a stream among 5,000 of its tenant: a step of few entries finds them all.
#[test]
fn list_of_a_stream_passes_over_no_other_event() {
    let mut world = World::new(1);
    for number in 0..5_003 {
        let stream = if matches!(number, 0 | 2_500 | 5_002) { STREAMS[0] } else { STREAMS[1] };
        world.accept("a", Some(stream), false);
    }
    let bounds = BTreeMap::from([(Bound::ScanEntries, 1_000)]);
    TestOverrides { bounds, ..TestOverrides::default() }.activate();
    for tenant in [Some("a"), None] {
        let tenant: Option<Tenant> = tenant.map(|tenant| tenant.parse().unwrap());
        let filter = Filter { tenant, stream: Some(STREAMS[0].parse().unwrap()), ..Filter::default() };
        let found = reads::events(&world.rows, &filter, None, 50, |_| "any");
        assert_eq!((found.items.len(), found.next), (3, None));
    }
    TestOverrides::default().activate();
    let index = PageIndex::new(&world.rows, Some("a"), Some(STREAMS[0]));
    assert_eq!(index.at_or_below(&world.rows, u64::MAX), Some(pages::page_of(Position(world.last))));
    assert_eq!(index.at_or_above(&world.rows, u64::MAX), None);
}

/// Streams of one name of many tenants are found by a walk over all events.
#[test]
fn many_tenants_are_walked() {
    let mut world = World::new(1);
    for number in 0..=TENANTS_MAX {
        world.accept(&format!("tenant-{number}"), Some("pet"), false);
        let index = PageIndex::new(&world.rows, None, Some("pet"));
        assert_eq!(index == PageIndex::All, number == TENANTS_MAX, "{number}");
    }
    compare_lists(&world.rows, (None, "pet"), &mut fastrand::Rng::with_seed(1), "many tenants");
}

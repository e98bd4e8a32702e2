//! Lists: each item once, also during changes; the same by the index and by a walk over everything.

use std::collections::BTreeMap;

use super::super::pages::{Blocks, TargetList};
use super::super::states;
use super::*;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Rows, with the events that lists should find.
struct World {
    rows: Map,
    blocks: Blocks,
    random: fastrand::Rng,
    events: Vec<(EventEntry, &'static str)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        let mut world = Self { rows: Map::new(), blocks: Blocks::default(), random, events: Vec::new() };
        for _ in 0..world.random.usize(1..1_500) {
            world.accept();
        }
        world
    }

    fn accept(&mut self) {
        let random = &mut self.random;
        let (position, at) = self.events.last().map_or((1, 1_000), |(event, _)| {
            (event.position.0 + random.u64(1..4), event.accepted_at.millis())
        });
        let at = Timestamp::from_millis(at + random.u64(0..3));
        let entry = EventEntry {
            position: Position(position),
            accepted_at: at,
            first_due: at,
            tenant: if random.u8(..) < 20 { "small".into() } else { "default".into() },
            event_type: if random.u8(..) < 64 { "rare".into() } else { "common".into() },
            stream: None,
            order: 0,
            bytes: 10,
            targets: TargetList::Listed(vec![EndpointNumber(1)]),
            erased_at: None,
        };
        self.blocks.add_event(&mut self.rows, 0, &entry);
        let pending = random.u8(..) < 6;
        if !pending {
            let state = StateEntry {
                delivery: DeliveryKey { event: entry.position, endpoint: EndpointNumber(1) },
                state: DeliveryState::Delivered,
                at,
                death: Position(0),
                last: LastAttempt { status: Some(200), failure: None },
                attempts_made: 1,
                attempts: Vec::new(),
            };
            states::put(&mut self.rows, &mut self.blocks, 0, StatePlace::Page, &state);
        }
        self.events.push((entry, if pending { "pending" } else { "delivered" }));
    }

    fn filter(&mut self) -> Filter {
        let last = self.events.last().map_or(0, |(event, _)| event.accepted_at.millis());
        let mut when =
            || self.random.bool().then(|| Timestamp::from_millis(self.random.u64(900..last + 100)));
        let (since, until) = (when(), when());
        let tenant = self.random.choice([None, Some("small"), Some("default")]).flatten();
        Filter {
            tenant: tenant.map(|tenant| tenant.parse().unwrap()),
            since,
            until,
            event_type: self.random.bool().then(|| "rare".parse().unwrap()),
            event_status: self.random.bool().then_some("pending"),
            ..Filter::default()
        }
    }

    fn expected(&self, filter: &Filter) -> Vec<u64> {
        let wanted = |(event, status): &&(EventEntry, &'static str)| {
            filter.wants_event(&event.traits()) && filter.event_status.is_none_or(|wanted| wanted == *status)
        };
        self.events.iter().rev().filter(wanted).map(|(event, _)| event.position.0).collect()
    }

    /// Follows a list to its end. Calls `between_pages` after each page.
    fn follow(
        &mut self,
        filter: &Filter,
        limit: usize,
        mut between_pages: impl FnMut(&mut Self),
    ) -> Vec<u64> {
        let (mut listed, mut cursor) = (Vec::new(), None);
        let status = |states: &mut dyn Iterator<Item = DeliveryState>| match states.next() {
            Some(DeliveryState::Pending) => "pending",
            _ => "delivered",
        };
        loop {
            let found = events(&self.rows, filter, cursor, limit, status);
            assert!(found.items.len() <= limit);
            listed.extend(found.items.iter().map(|position| position.0));
            cursor = found.next;
            if cursor.is_none() {
                return listed;
            }
            between_pages(self);
        }
    }
}

#[test]
fn list_has_each_event_once_during_inserts_and_deletes() {
    let seed =
        std::env::var("BALTO_TEST_SEED").map_or_else(|_| fastrand::u64(..), |text| text.parse().unwrap());
    for seed in seed..seed.saturating_add(40) {
        let mut world = World::new(seed);
        let (filter, limit) = (world.filter(), world.random.usize(1..60));
        let expected = world.expected(&filter);
        let listed = world.follow(&filter, limit, World::accept);
        let story = format!("BALTO_TEST_SEED={seed}: {filter:?}, {limit} a page");
        assert_eq!(listed, expected, "{story}, with inserts");

        let mut gone = 0;
        let expected = world.expected(&filter);
        let listed = world.follow(&filter, limit, |world| {
            pages::remove_page(&mut world.rows, gone);
            gone += 1;
        });
        let kept = |list: &[u64]| -> Vec<u64> {
            list.iter().copied().filter(|at| *at >= first_position(gone)).collect()
        };
        assert_eq!(kept(&listed), kept(&expected), "{story}, with deletes");
        assert!(listed.windows(2).all(|two| two[0] > two[1]), "{story}: {listed:?}");
    }
}

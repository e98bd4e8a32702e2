//! Positions of events in ascending order, for the feed.

use super::page_index::PageIndex;
use super::pages::{self, EventTraits, page_of};
use super::rows::Rows;
use crate::domain::Position;
use crate::failpoints::{self, Bound};
use crate::limits;

/// Result of a look at the events after a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedStep {
    /// Wanted events, ascending.
    pub events: Vec<Position>,
    /// Every event up to here has been looked at.
    pub looked_at: Position,
}

/// Looks at the events after `after` and up to `until`, of the tenant if there is one, until
/// `limit` of them are wanted or the work of this step is done. If they are of one stream, only
/// looks at pages with such events. `wants` returns the work so far, to which the events of other
/// tenants add one each.
pub fn look(
    rows: &dyn Rows,
    (tenant, stream): (Option<&str>, Option<&str>),
    (after, until): (Position, Position),
    limit: usize,
    mut wants: impl FnMut(&EventTraits<'_>) -> (bool, usize),
) -> FeedStep {
    let work_max = failpoints::bound(Bound::ScanEntries, limits::SCAN_ENTRIES_MAX);
    let mut step = FeedStep { events: Vec::new(), looked_at: after };
    let mut skipped = 0;
    let index = PageIndex::new(rows, tenant, stream);
    let mut page = index.at_or_above(rows, page_of(after.next()));
    while let Some(current) = page {
        let events = pages::events_where(rows, current, &mut |event| {
            let is_its = tenant.is_none_or(|tenant| tenant == event.tenant);
            skipped += usize::from(!is_its);
            is_its && event.position > after
        });
        for event in &events {
            if event.position > until {
                step.looked_at = step.looked_at.max(until);
                return step;
            }
            let (is_wanted, work) = wants(&event.traits());
            step.looked_at = event.position;
            if is_wanted {
                step.events.push(event.position);
            }
            if step.events.len() >= limit || work + skipped >= work_max {
                return step;
            }
        }
        page = index.at_or_above(rows, current + 1);
    }
    step.looked_at = step.looked_at.max(until);
    step
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::Timestamp;

    fn rows(positions: impl IntoIterator<Item = u64>) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let (mut rows, mut blocks) = (BTreeMap::new(), pages::Blocks::default());
        for position in positions {
            let at = Timestamp::from_millis(position);
            let entry = pages::EventEntry {
                position: Position(position),
                accepted_at: at,
                first_due: at,
                tenant: "acme".into(),
                event_type: "a".into(),
                stream: None,
                order: 0,
                bytes: 1,
                targets: pages::TargetList::Listed(Vec::new()),
                erased_at: None,
            };
            blocks.add_event(&mut rows, 1, &entry);
        }
        rows
    }

    #[test]
    fn steps_cover_every_event_once() {
        let rows = rows((1..2_000).filter(|at| at % 3 == 0 || (600..1_300).contains(at)));
        for (limit, until) in [(1, 1_999), (7, 1_000), (10_000, 5_000)] {
            let (mut after, mut found) = (Position(0), Vec::new());
            while after < Position(until) {
                let step = look(&rows, (None, None), (after, Position(until)), limit, |event| {
                    (event.position.0 % 2 == 0, 0)
                });
                assert!(step.looked_at > after && step.events.len() <= limit);
                found.extend(step.events.iter().map(|at| at.0));
                after = step.looked_at;
            }
            assert_eq!(after, Position(until));
            let all = (1..2_000).filter(|at| at % 3 == 0 || (600..1_300).contains(at));
            let all: Vec<_> = all.filter(|at| at % 2 == 0 && *at <= until).collect();
            assert_eq!(found, all, "limit {limit}");
        }
    }

    #[test]
    fn step_without_matches_ends_with_its_work() {
        let rows = rows(1..30_000);
        let mut work = 0;
        let step = look(&rows, (None, None), (Position(0), Position(40_000)), 10, |_| {
            work += 1;
            (false, work)
        });
        assert_eq!((step.events.len(), step.looked_at.0), (0, limits::SCAN_ENTRIES_MAX as u64));
    }
}

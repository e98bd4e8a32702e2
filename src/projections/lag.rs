//! How many events are ahead of a position in the log.

use super::page_index::PageIndex;
use super::pages::{self, EventTraits, page_of};
use super::rows::Rows;
use crate::domain::{Position, Timestamp};

/// The events after a position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    pub events: u64,
    /// When the first of them was accepted. If the count ended before one was found: when the
    /// last examined event was.
    pub since: Option<Timestamp>,
    /// The count ended before the end of the log: `events` is a lower bound.
    pub is_cut: bool,
}

/// Counts the wanted events after a position, of the tenant if there is one. If they are of one
/// stream, only looks at pages with such events. Examines about `entries_max` events.
pub fn count(
    rows: &dyn Rows,
    (tenant, stream): (Option<&str>, Option<&str>),
    after: Position,
    entries_max: usize,
    wants: &mut dyn FnMut(&EventTraits<'_>) -> bool,
) -> Lag {
    let (mut lag, mut examined) = (Lag::default(), 0);
    let mut next = Some(page_of(after.next()));
    let index = PageIndex::new(rows, tenant, stream);
    let page_from = |page| index.at_or_above(rows, page);
    while let Some(page) = next.and_then(page_from) {
        let events = pages::events_where(rows, page, &mut |event| {
            examined += 1;
            event.position > after && tenant.is_none_or(|tenant| tenant == event.tenant)
        });
        for event in &events {
            if wants(&event.traits()) {
                lag.since = lag.since.filter(|_| lag.events > 0).or(Some(event.accepted_at));
                lag.events += 1;
            } else if lag.events == 0 {
                lag.since = Some(event.accepted_at);
            }
        }
        next = page.checked_add(1);
        if examined >= entries_max {
            lag.is_cut = next.and_then(page_from).is_some();
            break;
        }
    }
    if lag.events == 0 && !lag.is_cut {
        lag.since = None;
    }
    lag
}

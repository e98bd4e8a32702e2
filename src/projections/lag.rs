//! How many events are ahead of a position in the log.

use super::pages::{self, EventEntry, page_of};
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

/// Counts the wanted events after a position. Examines about `entries_max` events.
pub fn count(
    rows: &dyn Rows,
    after: Position,
    entries_max: usize,
    wants: &mut dyn FnMut(&EventEntry) -> bool,
) -> Lag {
    let (mut lag, mut examined) = (Lag::default(), 0);
    let mut next = Some(page_of(after.next()));
    while let Some(page) = next.and_then(|page| pages::page_at_or_above(rows, page)) {
        for entry in pages::events(rows, page).iter().filter(|entry| entry.position > after) {
            examined += 1;
            if wants(entry) {
                lag.since = lag.since.filter(|_| lag.events > 0).or(Some(entry.accepted_at));
                lag.events += 1;
            } else if lag.events == 0 {
                lag.since = Some(entry.accepted_at);
            }
        }
        next = page.checked_add(1);
        if examined >= entries_max {
            lag.is_cut = next.and_then(|page| pages::page_at_or_above(rows, page)).is_some();
            break;
        }
    }
    if lag.events == 0 && !lag.is_cut {
        lag.since = None;
    }
    lag
}

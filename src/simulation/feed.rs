//! A reader of the feed, whose cursor survives restarts and power cuts.
//!
//! It must get each event once and in order, or learn where the log begins.

use super::operations::check_refusal;
use super::world::World;
use crate::context::Context;
use crate::domain::{Position, Tenant};
use crate::rules::feed::FeedFilter;
use crate::service::Feed;
use crate::service::feed::FeedBounds;
use crate::service::types::{FeedError, FeedPage, FeedStart, WaitError};

/// Reads from the cursor to the end of the log.
pub(super) async fn read_on(context: &Context, world: &World) {
    let (filter, feed) = (FeedFilter::default(), Feed(context));
    let (events, is_new) = world.chance(|chance| (chance.within(1, 5) as usize, chance.percent(30)));
    if is_new {
        // A reader that never read before, or comes back after a long time.
        world.with(|inner| inner.feed_cursor = Position(0));
    }
    loop {
        let after = world.with(|inner| inner.feed_cursor);
        let begun = feed.begin(&filter, FeedStart::After(after));
        let read = match begun {
            Ok(from) => feed.read(&filter, from, FeedBounds { events, bytes: 1 << 20 }).await,
            Err(error) => Err(error),
        };
        let goes_on = match read {
            Ok(page) => take(world, after, events, &page),
            Err(FeedError::Gone { oldest }) => begin_again(world, after, oldest),
            Err(FeedError::Wait(WaitError::Unavailable(error))) => {
                check_refusal(world, "feed", &error);
                false
            }
            Err(error) => {
                world.record_violation(format!("feed after {after}: {error}"));
                false
            }
        };
        if !goes_on {
            return;
        }
    }
}

/// Compares a page with the committed events. Returns whether more may follow.
fn take(world: &World, after: Position, most: usize, page: &FeedPage) -> bool {
    let violation = world.with(|inner| {
        // The model may learn of a commit later than the reader.
        let to = page.next.min(inner.model.last());
        let committed = inner.model.oracle.events.range(after.next()..);
        let wanted: Vec<_> = committed
            .take_while(|(position, _)| **position <= to)
            .filter(|(_, event)| event.tenant.as_str() != Tenant::OPERATOR)
            .map(|(position, event)| (*position, event.id.clone()))
            .collect();
        let read: Vec<_> = page.events.iter().map(|entry| (entry.position, entry.event.id.clone())).collect();
        let known: Vec<_> = read.iter().filter(|(position, _)| *position <= to).cloned().collect();
        inner.feed_cursor = to.max(after);
        let is_ordered = read.is_sorted_by_key(|(position, _)| *position) && read.len() <= most;
        let ends = read.last().is_none_or(|(position, _)| *position <= page.next) && page.next >= after;
        (known != wanted || !is_ordered || !ends)
            .then(|| format!("feed after {after} up to {to}: {read:?}, not {wanted:?}"))
    });
    if let Some(violation) = violation {
        world.record_violation(violation);
        return false;
    }
    world.count("feedPages");
    world.with(|inner| inner.feed_cursor > after)
}

/// Goes on at the oldest position. Returns whether that is one.
fn begin_again(world: &World, after: Position, oldest: Position) -> bool {
    world.with(|inner| inner.feed_cursor = oldest);
    let is_right = check_oldest(world, &FeedFilter::default(), after, oldest);
    if is_right {
        world.count("feedGone");
    }
    is_right
}

/// Checks the position where a reader that lost events begins again: it is the recorded horizon.
/// [`Model::check_horizon`](super::model::Model::check_horizon) checks its record.
pub(super) fn check_oldest(world: &World, filter: &FeedFilter, after: Position, oldest: Position) -> bool {
    let violation = world.with(|inner| {
        let horizon = inner.model.oracle.horizon.horizon;
        let recorded = if filter.has_only_streams() { horizon.stream_events } else { horizon.of_all() };
        let is_right = oldest > after && oldest == recorded;
        (!is_right).then(|| {
            format!("a reader after {after} begins again at {oldest}, and the horizon is {recorded}")
        })
    });
    let is_right = violation.is_none();
    if let Some(violation) = violation {
        world.record_violation(violation);
    }
    is_right
}

//! Two instances of one consumer keep a read model outside of the daemon, as applications do.
//!
//! An instance reads a page after the committed position, commits it with `from`, and then adds its
//! rows in one transaction that compares the cursor. An instance may die in between: then the
//! cursor is behind the position, and the next instance reads the missing rows from the feed. After
//! each transaction the rows must be all events of the consumer in the model, once and in order.

use std::collections::BTreeSet;

use super::consumers::{check, check_move};
use super::feed::check_oldest;
use super::operations::check_refusal;
use super::world::{Inner, World};
use crate::context::Context;
use crate::domain::{ConsumerFilter, ConsumerKey, Position};
use crate::outbox::conformance::consumers::reads;
use crate::outbox::registry::ConsumerStatus;
use crate::rules::feed::FeedFilter;
use crate::service::consumers::{ConsumerError, Start};
use crate::service::feed::FeedBounds;
use crate::service::types::{FeedError, FeedPage, FeedStart, WaitError};
use crate::service::{Consumers, Feed};

/// Rows, and the cursor that changes together with them. It survives crashes of the daemon.
#[derive(Debug, Default)]
pub(super) struct ReadModel {
    filter: ConsumerFilter,
    /// The rows begin after this position.
    start: Position,
    cursor: Position,
    rows: Vec<Position>,
}

impl ReadModel {
    fn begin(&mut self, filter: &ConsumerFilter, start: Position) {
        *self = Self { filter: filter.clone(), start, cursor: start, rows: Vec::new() };
    }

    /// Begins again after a reset to an earlier position. A changed filter keeps the position.
    fn follow(&mut self, status: &ConsumerStatus) {
        let place = status.place.position;
        if place < self.cursor || self.filter != status.consumer.filter {
            self.begin(&status.consumer.filter, place.min(self.cursor));
        }
    }
}

/// Work of both instances at once.
pub(super) async fn work(context: &Context, world: &World, key: &ConsumerKey) {
    tokio::join!(work_once(context, world, key), work_once(context, world, key));
}

async fn work_once(context: &Context, world: &World, key: &ConsumerKey) {
    let Some(status) = Consumers(context).status(key) else { return };
    let place = status.place.position;
    if !world.is_alive() {
        return;
    }
    world.with(|inner| inner.read_models.entry(key.clone()).or_default().follow(&status));
    if !repair(context, world, &status).await {
        return;
    }
    let events = world.chance(|chance| chance.within(1, 5)) as usize;
    let Some(page) = read(context, world, &status, place, events).await else { return };
    if page.next <= place {
        return;
    }
    let committed = Consumers(context).commit(key.clone(), page.next, Some(place)).await;
    match &committed {
        Ok(_) => {
            check_move(world, key, place, page.next);
            // Sometimes the instance dies here.
            if world.chance(|chance| chance.percent(80)) {
                add(world, &status, place, &page, page.next);
            }
        }
        Err(ConsumerError::Moved { .. }) => world.count("instancesFenced"),
        Err(_) => {}
    }
    let what = format!("instance of {} commits {place} to {}", key.name, page.next);
    check(world, &what, committed.map(drop));
}

/// Adds the rows of commits whose instances died. Returns whether the cursor is at the position.
async fn repair(context: &Context, world: &World, status: &ConsumerStatus) -> bool {
    let (key, place) = (&status.consumer.key, status.place.position);
    loop {
        let (cursor, is_current) = world.with(|inner| {
            let model = inner.read_models.entry(key.clone()).or_default();
            (model.cursor, model.filter == status.consumer.filter)
        });
        if cursor >= place {
            return cursor == place;
        }
        // The other instance follows a newer definition. None of these rows would be added.
        if !is_current {
            world.count("instancesOutdated");
            return false;
        }
        let events = world.chance(|chance| chance.within(1, 5)) as usize;
        let Some(page) = read(context, world, status, cursor, events).await else { return false };
        let to = page.next.min(place);
        if to <= cursor || !world.is_alive() || world.has_violation() {
            return false;
        }
        add(world, status, cursor, &page, to);
        world.count("rowsRepaired");
    }
}

/// A page of the consumer's events. `None` if there is none now.
async fn read(
    context: &Context,
    world: &World,
    status: &ConsumerStatus,
    after: Position,
    events: usize,
) -> Option<FeedPage> {
    let (filter, feed) = (FeedFilter::from(&*status.consumer), Feed(context));
    let found = match feed.begin(&filter, FeedStart::After(after)) {
        Ok(from) => feed.read(&filter, from, FeedBounds { events, bytes: 1 << 20 }).await,
        Err(error) => Err(error),
    };
    match found {
        Ok(page) => return Some(page),
        Err(FeedError::Gone { oldest }) => begin_again(context, world, status, after, oldest).await,
        Err(FeedError::Wait(WaitError::Unavailable(error))) => check_refusal(world, "consumer", &error),
        Err(error) => world.record_violation(format!("{} after {after}: {error}", status.consumer.key.name)),
    }
    None
}

/// Resets the consumer and its read model to the oldest position.
async fn begin_again(
    context: &Context,
    world: &World,
    status: &ConsumerStatus,
    after: Position,
    oldest: Position,
) {
    let key = &status.consumer.key;
    let filter = FeedFilter::from(&*status.consumer);
    if !check_oldest(world, &filter, after, oldest) {
        return;
    }
    world.count("consumersGone");
    let reset = Consumers(context).reset(key.clone(), Start::After(oldest)).await;
    if reset.is_ok() && world.is_alive() {
        world.with(|inner| {
            let model = inner.read_models.entry(key.clone()).or_default();
            model.begin(&status.consumer.filter, oldest);
        });
    }
    check(world, "reset consumer to the oldest position", reset.map(drop));
}

/// Adds the rows of a page up to `to`, unless another instance has done so. Compares all rows with
/// the committed events.
fn add(world: &World, status: &ConsumerStatus, from: Position, page: &FeedPage, to: Position) {
    if !world.is_alive() {
        return;
    }
    let violation = world.with(|inner| {
        let model = inner.read_models.entry(status.consumer.key.clone()).or_default();
        if model.cursor != from || model.filter != status.consumer.filter {
            return None;
        }
        let rows = page.events.iter().map(|entry| entry.position).filter(|position| *position <= to);
        model.rows.extend(rows);
        model.cursor = to;
        inner.count("rowsAdded");
        compare(inner, status)
    });
    if let Some(violation) = violation {
        world.record_violation(violation);
    }
}

fn compare(inner: &Inner, status: &ConsumerStatus) -> Option<String> {
    let model = &inner.read_models[&status.consumer.key];
    let events = inner.model.oracle.events.range(model.start.next()..=model.cursor);
    let of_consumer = events.filter(|(_, event)| reads(&status.consumer, event));
    let wanted: Vec<_> = of_consumer.map(|(position, _)| *position).collect();
    if model.rows == wanted {
        return None;
    }
    let read: BTreeSet<_> = model.rows.iter().collect();
    let missed: Vec<_> = wanted.iter().filter(|position| !read.contains(position)).collect();
    let (name, rows) = (&status.consumer.key.name, &model.rows);
    Some(format!("the read model of {name} has {rows:?}, not {wanted:?}; it misses {missed:?}"))
}

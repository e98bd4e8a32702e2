//! Random work on consumers: definitions, commits at random positions, resets, deletions.

use super::operations::check_refusal;
use super::read_models;
use super::world::{World, wall};
use crate::context::Context;
use crate::domain::{Consumer, ConsumerFilter, ConsumerKey, ConsumerPlace, Position, StreamChoice};
use crate::service::Consumers;
use crate::service::consumers::{ConsumerError, Start};

/// One of two consumers.
fn key(world: &World) -> ConsumerKey {
    let name = world.chance(|chance| *chance.pick(&["search", "mail"]));
    ConsumerKey { tenant: None, name: name.parse().expect("a legal name") }
}

pub(super) async fn change_consumer(context: &Context, world: &World) {
    let key = key(world);
    let known = world.with(|inner| inner.model.oracle.consumers.all.get(&key).map(|(_, place)| *place));
    match (known, world.chance(|chance| chance.within(0, 19))) {
        (None, _) | (_, 0) => define(context, world, key).await,
        (_, 1) => check(world, "delete consumer", Consumers(context).delete(key).await),
        (_, 2) => {
            let to = world.chance(|chance| *chance.pick(&[Start::Oldest, Start::Now]));
            let reset = Consumers(context).reset(key, to).await;
            check(world, "reset consumer", reset.map(drop));
        }
        (Some(_), 3..12) => read_models::work(context, world, &key).await,
        (Some(place), _) => commit(context, world, key, place).await,
    }
}

async fn define(context: &Context, world: &World, key: ConsumerKey) {
    let (pattern, streams) = world.chance(|chance| {
        let pattern = *chance.pick(&["order.*", "#.paid"]);
        let streams = match chance.within(0, 3) {
            0 => StreamChoice::Prefix("order-".into()),
            1 => StreamChoice::One("order-1".parse().expect("a legal stream")),
            _ => StreamChoice::Any,
        };
        (pattern, streams)
    });
    let consumer = Consumer {
        key,
        filter: ConsumerFilter { types: vec![pattern.parse().expect("a legal pattern")], streams },
        versions: Vec::new(),
        description: "".into(),
        created_at: wall(),
        updated_at: wall(),
        place: ConsumerPlace::default(),
    };
    let put = Consumers(context).put(consumer, Start::Oldest).await;
    if put.is_ok() {
        world.count("consumersDefined");
    }
    check(world, "define consumer", put.map(drop));
}

/// Commits from the place that an instance has seen, which may be out of date.
async fn commit(context: &Context, world: &World, key: ConsumerKey, seen: ConsumerPlace) {
    let (from, to) = world.with(|inner| {
        let head = inner.model.last().0;
        let chance = &mut inner.chance;
        let seen = seen.position.0.min(head);
        let from = if chance.percent(70) { seen } else { chance.within(0, head) };
        (Position(from), Position(chance.within(from, head)))
    });
    let committed = Consumers(context).commit(key.clone(), to, Some(from)).await;
    match &committed {
        Ok(_) => world.count("consumersCommitted"),
        Err(ConsumerError::Moved { .. }) => world.count("consumersFenced"),
        Err(_) => {}
    }
    let is_done = committed.is_ok();
    check(world, &format!("commit {} from {from} to {to}", key.name), committed.map(drop));
    if is_done {
        check_move(world, &key, from, to);
    }
}

/// Checks that an acknowledged commit is durable, and that it began where the consumer was.
pub(super) fn check_move(world: &World, key: &ConsumerKey, from: Position, to: Position) {
    let is_durable = world.with(|inner| inner.model.consumer_moves.contains(&(key.clone(), from, to)));
    if !is_durable && world.is_alive() {
        let name = &key.name;
        world.record_violation(format!("{name}: no durable commit from {from} to {to}"));
    }
}

pub(super) fn check(world: &World, what: &str, result: Result<(), ConsumerError>) {
    match result {
        Ok(()) => world.note(format_args!("{what}: done")),
        Err(ConsumerError::Store(error)) => check_refusal(world, what, &error),
        Err(error) => world.note(format_args!("{what}: {error}")),
    }
}

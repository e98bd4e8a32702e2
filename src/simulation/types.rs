//! Random registrations of event types.

use super::operations::check_change;
use super::states::RULES;
use super::world::{World, wall};
use crate::context::Context;
use crate::domain::EventType;
use crate::outbox::conformance::types::open_type;
use crate::outbox::draft::ChangeError;
use crate::service::EventTypes;
use crate::service::event_types::{Effect, Strictness, TypeChangeError};

/// Registers a type that accepts everything, changes it, or deletes it.
pub(super) async fn change_type(context: &Context, world: &World) {
    let (name, deletes, rules) = world.chance(|chance| {
        let names = ["order.paid", "order.sent", "user.new", "order.lost"];
        let name: EventType = chance.pick(&names).parse().expect("a legal type");
        let rules = chance.percent(80).then(|| chance.pick(&RULES).0);
        (name, chance.percent(25), rules)
    });
    if deletes {
        finish(world, EventTypes(context).delete(&name, Strictness::Force).await);
    } else {
        register(context, world, name, rules).await;
    }
}

/// Registers or changes a type that accepts everything.
pub(super) async fn register(context: &Context, world: &World, name: EventType, rules: Option<&str>) {
    let deprecated = world.chance(|chance| chance.percent(50));
    let definition = open_type(name, deprecated, rules, wall());
    let put = EventTypes(context).put(definition, Strictness::Compatible, Effect::Store).await;
    finish(world, put.map(drop));
}

fn finish(world: &World, result: Result<(), TypeChangeError>) {
    let result = match result {
        Ok(()) => {
            world.count("typesChanged");
            Ok(())
        }
        Err(TypeChangeError::Change(ChangeError::NotFound)) => Ok(()),
        Err(TypeChangeError::Change(error)) => Err(error),
        Err(other) => return world.record_violation(format!("change of an event type: {other:?}")),
    };
    check_change(world, "event type", &result);
}

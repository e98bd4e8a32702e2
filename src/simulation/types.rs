//! Random registrations of event types.

use super::operations::check_change;
use super::world::{World, wall};
use crate::context::Context;
use crate::domain::{Compatibility, EventType, EventVersion, Position, TypeDefinition, TypeVersion};
use crate::outbox::draft::ChangeError;
use crate::service::EventTypes;
use crate::service::event_types::{Effect, Strictness, TypeChangeError};

/// Rules that accept every event.
const RULES: &str = r#"[{"op":"copy","from":"/data","path":"/state"}]"#;

/// Registers a type that accepts everything, changes it, or deletes it.
pub(super) async fn change_type(context: &Context, world: &World) {
    let (name, deprecated, deletes) = world.chance(|chance| {
        let name: EventType = chance.pick(&["order.paid", "order.lost"]).parse().expect("a legal type");
        (name, chance.percent(50), chance.percent(25))
    });
    let types = EventTypes(context);
    let result = if deletes {
        types.delete(&name, Strictness::Force).await
    } else {
        let version = TypeVersion {
            version: EventVersion::default(),
            schema: "true".into(),
            deprecated,
            sunset: None,
            examples: Vec::new(),
        };
        let definition = TypeDefinition {
            name,
            description: "".into(),
            compatibility: Compatibility::default(),
            transitive: false,
            versions: vec![version],
            migrations: Vec::new(),
            state: deprecated.then(|| RULES.into()),
            created_at: wall(),
            updated_at: wall(),
            revision: Position(0),
        };
        types.put(definition, Strictness::Compatible, Effect::Store).await.map(drop)
    };
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

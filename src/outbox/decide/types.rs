//! Decisions about event types.

use std::sync::Arc;

use super::{Committer, StagedGroup, read};
use crate::domain::{EventType, Position, Record, Timestamp, TypeDefinition};
use crate::outbox::unit::Outcome;

impl Committer {
    pub(super) fn put_type(&self, definition: &TypeDefinition, staged: &mut StagedGroup) -> Outcome {
        let registry = read(&self.registry);
        let current = registry.event_type(&definition.name).map(|known| known.definition().revision);
        if current.unwrap_or(Position(0)) != definition.revision {
            return Outcome::Conflict;
        }
        let definition = Arc::new(TypeDefinition { revision: staged.next, ..definition.clone() });
        staged.push(Record::TypePut(definition.clone()));
        Outcome::Type(definition)
    }

    pub(super) fn delete_type(&self, name: &EventType, at: Timestamp, staged: &mut StagedGroup) -> Outcome {
        if read(&self.registry).event_type(name).is_none() {
            return Outcome::Conflict;
        }
        Outcome::Written(staged.push(Record::TypeDeleted { name: name.clone(), at }))
    }
}

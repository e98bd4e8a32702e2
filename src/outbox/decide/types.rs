//! Judges changes of event types, and events by the type as it is now.
//!
//! An event is checked before it enters the queue, and so is whether a version has events. Another
//! request may have changed the type, or published an event, since then.

use std::collections::HashMap;
use std::sync::Arc;

use super::staged::StagedGroup;
use super::{Committer, Outcome, read};
use crate::domain::{EventType, EventVersion, Position, Record, Timestamp, TypeDefinition};
use crate::outbox::draft::EventDraft;
use crate::outbox::unit::ProposedType;
use crate::schemas::TypeRefusal;

/// The last event of each registered version since the start.
#[derive(Debug, Default)]
pub(super) struct LastEvents(HashMap<EventType, HashMap<EventVersion, Position>>);

impl LastEvents {
    fn has_after(&self, proposed: &ProposedType) -> bool {
        let Some(versions) = self.0.get(&proposed.name) else { return false };
        let has = |version| versions.get(version).is_some_and(|last| *last > proposed.as_of);
        proposed.replaced.iter().any(has)
    }
}

impl Committer {
    pub(super) fn put_type(&self, proposed: &ProposedType, staged: &mut StagedGroup) -> Outcome {
        let registry = read(&self.registry);
        let current = registry.event_type(&proposed.name).map(|known| known.definition().revision);
        if current.unwrap_or(Position(0)) != proposed.revision || self.last_events.has_after(proposed) {
            return Outcome::Conflict;
        }
        let definition = Arc::new(TypeDefinition { revision: staged.next, ..proposed.definition.clone() });
        staged.push(Record::TypePut(definition.clone()));
        Outcome::Type(definition)
    }

    pub(super) fn delete_type(
        &mut self,
        name: &EventType,
        at: Timestamp,
        staged: &mut StagedGroup,
    ) -> Outcome {
        if read(&self.registry).event_type(name).is_none() {
            return Outcome::Conflict;
        }
        self.last_events.0.remove(name);
        Outcome::Written(staged.push(Record::TypeDeleted { name: name.clone(), at }))
    }

    /// Why the event's type refuses the event.
    pub(super) fn refusal(&self, draft: &EventDraft) -> Option<Box<TypeRefusal>> {
        let registry = read(&self.registry);
        match (draft.type_revision, registry.event_type(&draft.event_type)) {
            (Some(revision), Some(registered)) if registered.definition().revision != revision => {
                registered.check(&draft.version, &draft.data).err().map(Box::new)
            }
            _ => draft.refusal.clone(),
        }
    }

    /// Remembers an event of a registered type.
    pub(super) fn remember_version(&mut self, draft: &EventDraft, position: Position) {
        let registry = read(&self.registry);
        let registered = registry.event_type(&draft.event_type);
        if registered.is_none_or(|known| known.definition().version(&draft.version).is_none()) {
            return;
        }
        drop(registry);
        // Looked up by reference first: one event of many brings a new name.
        if let Some(last) =
            self.last_events.0.get_mut(&draft.event_type).and_then(|own| own.get_mut(&draft.version))
        {
            *last = position;
        } else {
            let versions = self.last_events.0.entry(draft.event_type.clone()).or_default();
            versions.insert(draft.version.clone(), position);
        }
    }
}

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

    pub(super) fn delete_type(&self, name: &EventType, at: Timestamp, staged: &mut StagedGroup) -> Outcome {
        if read(&self.registry).event_type(name).is_none() {
            return Outcome::Conflict;
        }
        Outcome::Written(staged.push(Record::TypeDeleted { name: name.clone(), at }))
    }

    /// Why the event's type refuses the event. A type that was deleted since the check is not
    /// judged again.
    pub(super) fn refusal(&self, draft: &EventDraft) -> Option<Box<TypeRefusal>> {
        let registry = read(&self.registry);
        match (draft.type_revision, registry.event_type(&draft.event_type)) {
            (Some(revision), Some(registered)) if registered.definition().revision != revision => {
                registered.check(&draft.version, &draft.data).err().map(Box::new)
            }
            _ => draft.refusal.clone(),
        }
    }

    /// Remembers the versions of written events.
    pub(super) fn remember_versions(&mut self, written: &[(Position, Record)]) {
        let registry = read(&self.registry);
        for (position, record) in written {
            match record {
                Record::EventAccepted(event) => {
                    let registered = registry.event_type(&event.event_type);
                    if registered.is_some_and(|known| known.definition().version(&event.version).is_some()) {
                        let versions = self.last_events.0.entry(event.event_type.clone()).or_default();
                        versions.insert(event.version.clone(), *position);
                    }
                }
                Record::TypeDeleted { name, .. } => drop(self.last_events.0.remove(name)),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::conformance::types::open_type;
    use crate::outbox::decide::tests::{committed, committer_with};
    use crate::outbox::unit::Command;
    use crate::storage::disk::MemoryDisk;

    fn version() -> EventVersion {
        EventVersion::default()
    }

    /// Data of the version must be of a kind of JSON value.
    fn put(committer: &mut Committer, kind: &str, revision: Position, as_of: Position) -> Outcome {
        let mut definition = open_type("a.b".parse().unwrap(), false, None, Timestamp::ZERO);
        definition.versions[0].schema = format!(r#"{{"type":"{kind}"}}"#).into();
        definition.revision = revision;
        let replaced = if revision == Position(0) { Vec::new() } else { vec![version()] };
        let proposed = ProposedType { definition, replaced, as_of };
        committed(committer, vec![Command::PutType(Box::new(proposed))]).0.remove(0)
    }

    fn revision(outcome: Outcome) -> Position {
        match outcome {
            Outcome::Type(definition) => definition.revision,
            other => panic!("{other:?}"),
        }
    }

    /// An event that was checked against a revision of the type.
    fn event(checked: Position, data: &'static str, refusal: Option<TypeRefusal>) -> Command {
        let (tenant, name) = ("acme".parse().unwrap(), "a.b".parse().unwrap());
        let draft = EventDraft::new(tenant, name, data.into());
        let refusal = refusal.map(Box::new);
        Command::Publish(Box::new(EventDraft { type_revision: Some(checked), refusal, ..draft }))
    }

    #[test]
    fn version_that_got_an_event_keeps_its_schema() {
        let mut committer = committer_with(&MemoryDisk::new(), 0);
        let first = revision(put(&mut committer, "object", Position(0), Position(0)));
        let outcome = committed(&mut committer, vec![event(first, "{}", None)]).0.remove(0);
        let Outcome::Accepted(accepted) = outcome else { panic!("{outcome:?}") };
        assert!(matches!(put(&mut committer, "string", first, first), Outcome::Conflict));
        // It had been looked at after the event, which was another one's.
        assert!(matches!(put(&mut committer, "string", first, accepted.position), Outcome::Type(_)));
    }

    #[test]
    fn event_is_checked_again_after_a_change_of_its_type() {
        let mut committer = committer_with(&MemoryDisk::new(), 0);
        let first = revision(put(&mut committer, "object", Position(0), Position(0)));
        let second = revision(put(&mut committer, "string", first, first));
        let mut publish = |checked, data, refusal| {
            committed(&mut committer, vec![event(checked, data, refusal)]).0.remove(0)
        };
        let refusal = Some(TypeRefusal::UnknownType);
        assert!(matches!(publish(first, "{}", None), Outcome::Refused(_)));
        assert!(matches!(publish(first, "\"a\"", refusal.clone()), Outcome::Accepted(_)));
        assert!(matches!(publish(second, "\"a\"", refusal), Outcome::Refused(_)), "not checked twice");
    }

    #[test]
    fn event_of_a_refused_batch_does_not_use_its_version() {
        let mut committer = committer_with(&MemoryDisk::new(), 0);
        let first = revision(put(&mut committer, "object", Position(0), Position(0)));
        let batch = vec![
            Command::Atomic(None),
            event(first, "{}", None),
            event(first, "1", Some(TypeRefusal::UnknownType)),
        ];
        let outcomes = committed(&mut committer, batch).0;
        assert!(!outcomes.iter().any(|outcome| matches!(outcome, Outcome::Accepted(_))), "{outcomes:?}");
        assert!(matches!(put(&mut committer, "string", first, first), Outcome::Type(_)));
    }
}

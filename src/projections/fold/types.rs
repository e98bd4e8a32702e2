//! Registered event types: the events of their versions are counted.

use super::{Fold, Step};
use crate::domain::{Event, EventType, TypeDefinition};
use crate::failpoints::{self, Mutation};
use crate::projections::type_usage;

impl Fold {
    /// Restores a type that was recorded before the checkpoint.
    pub fn restore_type(&mut self, definition: &TypeDefinition) {
        self.types.insert(definition.name.clone());
    }
}

impl Step<'_> {
    pub(super) fn put_type(&mut self, definition: &TypeDefinition) {
        self.fold.types.insert(definition.name.clone());
    }

    pub(super) fn delete_type(&mut self, name: &EventType) {
        self.fold.types.remove(name);
        self.fold.tallies.forget_type(name);
        type_usage::forget(self.rows, name);
    }

    /// Counts an event of a registered type.
    pub(super) fn count_type(&mut self, event: &Event) {
        if self.fold.types.contains(&event.event_type) && !failpoints::is_active(Mutation::ForgetTypeUsage) {
            let usage = self.fold.tallies.type_usage(self.rows, &event.event_type, &event.version);
            usage.count(event.accepted_at);
        }
    }
}

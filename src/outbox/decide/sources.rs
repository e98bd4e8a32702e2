//! Decisions about sources.

use std::sync::Arc;

use super::{Committer, StagedGroup, read};
use crate::domain::{Position, Record, Source, SourceName, Timestamp};
use crate::outbox::unit::Outcome;

impl Committer {
    pub(super) fn put_source(&self, source: &Source, staged: &mut StagedGroup) -> Outcome {
        let current = read(&self.registry).source(&source.name).map(|known| known.revision);
        if current.unwrap_or(Position(0)) != source.revision {
            return Outcome::Conflict;
        }
        let source = Arc::new(Source { revision: staged.next, ..source.clone() });
        staged.push(Record::SourcePut(source.clone()));
        Outcome::Source(source)
    }

    pub(super) fn delete_source(
        &self,
        name: &SourceName,
        at: Timestamp,
        staged: &mut StagedGroup,
    ) -> Outcome {
        if read(&self.registry).source(name).is_none() {
            return Outcome::Conflict;
        }
        Outcome::Written(staged.push(Record::SourceDeleted { name: name.clone(), at }))
    }
}

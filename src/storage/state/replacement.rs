//! Replacement of the state by one that was rebuilt from the journal beside it.

use std::path::Path;

use super::State;
use super::StateError;
use super::row_store::{RebuildSite, ReplaceError};
use crate::domain::{Position, Timestamp};

impl RebuildSite {
    /// Creates an empty state.
    ///
    /// # Errors
    /// When the disk fails or is full.
    pub(crate) fn create_state(&self) -> Result<State, StateError> {
        State::with_rows(self.create()?, Position(0))
    }
}

impl State {
    /// The place beside this state where another one is built.
    #[must_use]
    pub(crate) fn rebuild_site(&self) -> RebuildSite {
        self.rows.base().rebuild_site()
    }

    /// Replaces this state by one that has applied the same records. A crash leaves one of the two.
    ///
    /// # Errors
    /// When this state is kept, or when the new one is in place and must be reopened with
    /// [`Self::reopen`].
    pub(crate) fn replace_with(&mut self, mut fresh: Self) -> Result<(), ReplaceError> {
        let (applied, part) = (self.applied, self.part);
        assert!(part.is_none() && fresh.part.is_none(), "a record is applied in part: {part:?}");
        assert!(fresh.applied == applied, "the new state is at {}, the old at {applied}", fresh.applied);
        fresh.dirty_without_record = true;
        fresh.checkpoint(Timestamp::default()).map_err(ReplaceError::Kept)?;
        let replaced = self.rows.base_mut().replace_with(fresh.rows.base_mut());
        if matches!(replaced, Err(ReplaceError::Kept(_))) {
            return replaced;
        }
        // The handle of the new rows has their final directory.
        std::mem::swap(self.rows.base_mut(), fresh.rows.base_mut());
        *self = fresh;
        replaced
    }
}

/// Removes a new state that an earlier process left unfinished beside the state in `directory`.
///
/// # Errors
/// When the disk fails.
pub(crate) fn remove_unfinished(directory: &Path) -> Result<(), StateError> {
    RebuildSite::beside(directory).clear()
}

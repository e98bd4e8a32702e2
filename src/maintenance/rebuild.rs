//! Rebuild of the state from the journal, while the old state serves.
//!
//! Owns the order of the work. The records are folded into a new state beside the old one, in
//! steps. When it is at most one step behind, the apply thread folds the rest and replaces the old
//! state. A crash at any point leaves a valid state: an unfinished one is removed at the next
//! start, and a complete one takes its place by a rename. Needs as much memory and disk as a second
//! state. Never takes space from the disk reserve.

use std::time::Duration;

use super::retention::run_blocking;
use crate::domain::Position;
use crate::failpoints::{self, Bound};
use crate::outbox::Outbox;
use crate::outbox::rebuild::{RebuildError, fold_to};
use crate::storage::state::{RebuildSite, State};

/// Records that are folded per step.
const RECORDS_PER_STEP: usize = 5_000;
/// Pause between two steps, so that the work of requests comes first on a small machine.
const STEP_PAUSE: Duration = Duration::from_millis(1);

/// Rebuilds the state. Reports the last folded position, and that of the old state, to `progress`.
/// Waits for a retention or erasure pass in progress, and excludes them until the end.
///
/// # Errors
/// When the old state was kept, or the outbox has failed.
pub async fn rebuild(
    outbox: &Outbox,
    progress: &mut (dyn FnMut(Position, Position) + Send),
) -> Result<Position, RebuildError> {
    let _held = outbox.hold_maintenance().await;
    let site = outbox.rebuild_site().await?;
    match fold_and_replace(outbox, &site, progress).await {
        Ok(position) => Ok(position),
        Err(error) => {
            if let Err(leftover) = run_blocking(move || site.clear()).await? {
                tracing::warn!(error = %leftover, "removal of an unfinished state failed, the next start repeats it");
            }
            Err(error)
        }
    }
}

async fn fold_and_replace(
    outbox: &Outbox,
    site: &RebuildSite,
    progress: &mut (dyn FnMut(Position, Position) + Send),
) -> Result<Position, RebuildError> {
    check_reserve(outbox)?;
    let new_site = site.clone();
    let mut fresh: State = run_blocking(move || new_site.create_state()).await??;
    let step = failpoints::bound(Bound::RebuildRecords, RECORDS_PER_STEP) as u64;
    loop {
        // Records that the apply thread has not applied would be ahead of the old state.
        let (done, total) = (fresh.applied(), outbox.applied());
        progress(done, total);
        if total.0.saturating_sub(done.0) <= step {
            outbox.replace_state(fresh).await?;
            return Ok(total);
        }
        let reader = outbox.journal().clone();
        let until = Position(done.0 + step);
        fresh = run_blocking(move || fold_to(&mut fresh, &reader, until).map(|()| fresh)).await??;
        check_reserve(outbox)?;
        tokio::time::sleep(STEP_PAUSE).await;
    }
}

fn check_reserve(outbox: &Outbox) -> Result<(), RebuildError> {
    outbox.disk_shortage().map_or(Ok(()), |shortage| Err(shortage.into()))
}

//! The rebuild of the state that an operator requested: at most one at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::{Position, Timestamp};

/// The current rebuild, or the last one since the start of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebuildStatus {
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    /// The last position in the new state.
    pub done: Position,
    /// The position of the old state.
    pub total: Position,
    /// Why the old state was kept.
    pub error: Option<String>,
}

/// Requests for a rebuild, and its status.
#[derive(Debug, Default)]
pub(crate) struct Rebuilds {
    status: Mutex<Option<RebuildStatus>>,
    requested: Notify,
}

impl Rebuilds {
    fn lock(&self) -> MutexGuard<'_, Option<RebuildStatus>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn status(&self) -> Option<RebuildStatus> {
        self.lock().clone()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.lock().as_ref().is_some_and(|status| status.ended_at.is_none())
    }

    /// Requests a rebuild. Returns `false` while one runs.
    pub(crate) fn request(&self, now: Timestamp, total: Position) -> bool {
        let mut status = self.lock();
        if status.as_ref().is_some_and(|status| status.ended_at.is_none()) {
            return false;
        }
        *status =
            Some(RebuildStatus { started_at: now, ended_at: None, done: Position(0), total, error: None });
        self.requested.notify_one();
        true
    }

    /// Waits for a request.
    pub(crate) async fn requested(&self) {
        self.requested.notified().await;
    }

    pub(crate) fn on_progress(&self, done: Position, total: Position) {
        if let Some(status) = self.lock().as_mut() {
            (status.done, status.total) = (done, total);
        }
    }

    /// Ends the rebuild that runs, if one does.
    pub(crate) fn end(&self, now: Timestamp, result: Result<Position, String>) {
        let mut status = self.lock();
        let Some(status) = status.as_mut().filter(|status| status.ended_at.is_none()) else { return };
        status.ended_at = Some(now);
        match result {
            Ok(position) => (status.done, status.total) = (position, position),
            Err(error) => status.error = Some(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rebuild_runs_at_a_time() {
        let (rebuilds, at) = (Rebuilds::default(), Timestamp::from_millis);
        assert_eq!(rebuilds.status(), None);
        rebuilds.end(at(1), Ok(Position(1)));
        assert_eq!(rebuilds.status(), None);
        assert!(rebuilds.request(at(2), Position(9)));
        assert!(!rebuilds.request(at(3), Position(9)));
        rebuilds.on_progress(Position(4), Position(10));
        rebuilds.end(at(5), Err("the disk is full".to_owned()));
        let failed = RebuildStatus {
            started_at: at(2),
            ended_at: Some(at(5)),
            done: Position(4),
            total: Position(10),
            error: Some("the disk is full".to_owned()),
        };
        assert_eq!(rebuilds.status(), Some(failed));
        assert!(rebuilds.request(at(6), Position(12)));
        rebuilds.end(at(7), Ok(Position(12)));
        let status = rebuilds.status().unwrap();
        assert_eq!((status.done, status.error, status.ended_at), (Position(12), None, Some(at(7))));
    }
}

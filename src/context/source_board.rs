//! Reports of sources for readers, and the call to look at the sources again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::{SourceName, SourceOutcome, SourceState, Timestamp};

/// The report of one source. Counts are since the start of the process.
#[derive(Clone, Debug)]
pub struct SourceReport {
    pub state: SourceState,
    pub since: Timestamp,
    pub last_error: Option<(Timestamp, Box<str>)>,
    pub last_message_at: Option<Timestamp>,
    /// Messages of the current batch: received, and not yet durable.
    pub unacknowledged: u64,
    /// Connections that were opened.
    pub connections: u64,
    counts: [u64; SourceOutcome::ALL.len()],
}

impl SourceReport {
    fn new(at: Timestamp) -> Self {
        Self {
            state: SourceState::Connecting,
            since: at,
            last_error: None,
            last_message_at: None,
            unacknowledged: 0,
            connections: 0,
            counts: [0; SourceOutcome::ALL.len()],
        }
    }

    #[must_use]
    pub fn count(&self, outcome: SourceOutcome) -> u64 {
        self.counts[outcome as usize]
    }

    pub(crate) fn add(&mut self, outcome: SourceOutcome) {
        self.counts[outcome as usize] += 1;
    }

    pub(crate) fn enter(&mut self, state: SourceState, at: Timestamp) {
        if self.state != state {
            (self.state, self.since) = (state, at);
        }
    }
}

/// The reports of all sources. Bounded by the number of sources.
#[derive(Debug, Default)]
pub struct SourceBoard {
    reports: Mutex<HashMap<SourceName, SourceReport>>,
    changed: Notify,
    /// Connections of an earlier number must be opened again.
    epoch: AtomicU64,
}

impl SourceBoard {
    fn lock(&self) -> MutexGuard<'_, HashMap<SourceName, SourceReport>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn report(&self, name: &SourceName) -> Option<SourceReport> {
        self.lock().get(name).cloned()
    }

    /// Begins the report of a source, unless it has one.
    pub(crate) fn insert(&self, name: &SourceName, at: Timestamp) {
        self.lock().entry(name.clone()).or_insert_with(|| SourceReport::new(at));
    }

    /// Changes the report of a source. A deleted source has none.
    pub(crate) fn update(&self, name: &SourceName, change: impl FnOnce(&mut SourceReport)) {
        if let Some(report) = self.lock().get_mut(name) {
            change(report);
        }
    }

    pub(crate) fn states(&self) -> Vec<SourceState> {
        self.lock().values().map(|report| report.state).collect()
    }

    /// Forgets sources that do not exist.
    pub(crate) fn retain(&self, exists: impl Fn(&SourceName) -> bool) {
        self.lock().retain(|name, _| exists(name));
    }

    /// The sources have changed.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }

    /// All connections must be opened again, because the policy for them has changed.
    pub(crate) fn restart(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
        self.wake();
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Waits for [`Self::wake`].
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deleted_source_gets_no_report_again() {
        let (board, name) = (SourceBoard::default(), "shop".parse().unwrap());
        board.insert(&name, Timestamp::ZERO);
        board.update(&name, |report| report.enter(SourceState::Connected, Timestamp::ZERO));
        board.insert(&name, Timestamp::ZERO);
        assert_eq!(board.states(), [SourceState::Connected]);
        board.retain(|_| false);
        board.update(&name, |report| report.add(SourceOutcome::Accepted));
        assert!(board.states().is_empty() && board.report(&name).is_none());
    }
}

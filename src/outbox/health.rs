//! Health of the outbox, reported by both of its threads.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// A thread's file: the commit thread writes the journal, the apply thread writes the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskThread {
    Journal,
    State,
}

/// Health of the outbox. Each thread reports its own part.
pub(super) struct HealthCell {
    sender: watch::Sender<Health>,
    /// Whether the disk is full for the journal and for the state.
    full: Mutex<[bool; 2]>,
}

impl HealthCell {
    pub(super) fn new(sender: watch::Sender<Health>) -> Self {
        Self { sender, full: Mutex::default() }
    }

    pub(super) fn is_full_for(&self, part: DiskThread) -> bool {
        self.full.lock().expect("no holder panics")[part as usize]
    }

    pub(super) fn set_full(&self, part: DiskThread, is_full: bool) {
        let mut full = self.full.lock().expect("no holder panics");
        full[part as usize] = is_full;
        self.change_to(if full.contains(&true) { Health::DiskFull } else { Health::Good });
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(&*self.sender.borrow(), Health::Failed(_))
    }

    /// Sets the final state. Later reasons are ignored.
    pub(super) fn fail(&self, reason: &str) {
        self.change_to(Health::Failed(reason.into()));
    }

    fn change_to(&self, health: Health) {
        self.sender.send_if_modified(|current| {
            let changed = !matches!(current, Health::Failed(_)) && *current != health;
            if changed {
                tracing::warn!(?health, "outbox health changed");
                *current = health;
            }
            changed
        });
    }
}

/// Time at which each thread began to wait for the disk. The commit thread's wait for the apply
/// thread counts as well.
#[derive(Clone, Default)]
pub(super) struct DiskWaits(Arc<[Mutex<Option<Instant>>; 2]>);

impl DiskWaits {
    /// Starts the wait now, even if an earlier wait is recorded.
    pub(super) fn begin(&self, part: DiskThread) {
        self.set(part, Some(Instant::now()));
    }

    pub(super) fn end(&self, part: DiskThread) {
        self.set(part, None);
    }

    fn set(&self, part: DiskThread, since: Option<Instant>) {
        *self.0[part as usize].lock().expect("no holder of this lock panics") = since;
    }

    /// Duration of the longest current wait.
    pub(super) fn longest(&self) -> Duration {
        let since = |part: &Mutex<Option<Instant>>| *part.lock().expect("no holder of this lock panics");
        self.0.iter().filter_map(since).min().map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// Health of the outbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    #[default]
    Good,
    /// Recovers when the disk has space again.
    DiskFull,
    /// The process must end. The next start recovers.
    Failed(Arc<str>),
}

//! Whether the outbox can make anything durable, as both of its threads know it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// What the disk can be too full for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskThread {
    Journal,
    State,
}

/// The outbox's health, which both threads know a part of.
pub(super) struct HealthCell {
    sender: watch::Sender<Health>,
    /// Whether the disk is full, for the journal and for the state.
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

    /// For good: the first reason is the one that counts.
    pub(super) fn fail(&self, reason: &str) {
        self.change_to(Health::Failed(reason.into()));
    }

    fn change_to(&self, health: Health) {
        self.sender.send_if_modified(|current| {
            let changed = !matches!(current, Health::Failed(_)) && *current != health;
            if changed {
                tracing::warn!(?health, "the outbox's health changed");
                *current = health;
            }
            changed
        });
    }
}

/// Since when each of the threads has been at the disk; the writer also: has waited for the state.
#[derive(Clone, Default)]
pub(super) struct DiskWaits(Arc<[Mutex<Option<Instant>>; 2]>);

impl DiskWaits {
    /// From now on, also when it was before: it has come back in between.
    pub(super) fn begin(&self, part: DiskThread) {
        self.set(part, Some(Instant::now()));
    }

    pub(super) fn end(&self, part: DiskThread) {
        self.set(part, None);
    }

    fn set(&self, part: DiskThread, since: Option<Instant>) {
        *self.0[part as usize].lock().expect("no holder of this lock panics") = since;
    }

    /// For how long the one that has been away longest has been.
    pub(super) fn longest(&self) -> Duration {
        let since = |part: &Mutex<Option<Instant>>| *part.lock().expect("no holder of this lock panics");
        self.0.iter().filter_map(since).min().map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// Whether the outbox can make anything durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    #[default]
    Good,
    /// It recovers by itself when space returns.
    DiskFull,
    /// The process has to end; the next start recovers.
    Failed(Arc<str>),
}

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

/// An activity of a thread that may take long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// A write or sync of the journal or the state.
    Disk,
    /// The commit thread judges a group of requests.
    Judging,
    /// The commit thread waits until the apply thread is less far behind.
    WaitingForState,
    /// The apply thread applies one step of a commit.
    Applying,
    /// The apply thread answers one query.
    Answering,
}

/// An activity that has not ended yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    pub activity: Activity,
    pub duration: Duration,
}

impl std::fmt::Display for Stall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.duration.as_secs();
        match self.activity {
            Activity::Disk => write!(f, "the disk has not answered for {seconds} s"),
            Activity::Judging => write!(f, "the writer is busy: it has judged one group for {seconds} s"),
            Activity::WaitingForState => {
                write!(f, "the state is busy: the writer has waited for it for {seconds} s")
            }
            Activity::Applying => write!(f, "the state is busy: it has applied one step for {seconds} s"),
            Activity::Answering => write!(f, "the state is busy: it has answered one query for {seconds} s"),
        }
    }
}

/// The current activity of a thread and its start.
type ActivityCell = Mutex<Option<(Instant, Activity)>>;

/// Current activity of each thread, since when. The commit thread's wait for the apply thread
/// counts as well.
#[derive(Clone, Default)]
pub(super) struct DiskWaits(Arc<[ActivityCell; 2]>);

impl DiskWaits {
    /// Starts an activity now, even if an earlier one is recorded.
    pub(super) fn begin(&self, part: DiskThread, activity: Activity) {
        self.set(part, Some((Instant::now(), activity)));
    }

    pub(super) fn end(&self, part: DiskThread) {
        self.set(part, None);
    }

    fn set(&self, part: DiskThread, current: Option<(Instant, Activity)>) {
        *self.0[part as usize].lock().expect("no holder of this lock panics") = current;
    }

    /// The longest current activity. Among those of more than `long`, a wait for the disk comes
    /// first, because it explains the others.
    pub(super) fn longest(&self, long: Duration) -> Option<Stall> {
        let current =
            |part: &Mutex<Option<(Instant, Activity)>>| *part.lock().expect("no holder of this lock panics");
        let stall = |(since, activity): (Instant, Activity)| Stall { activity, duration: since.elapsed() };
        let stalls = self.0.iter().filter_map(current).map(stall);
        stalls.max_by_key(|stall| (stall.activity == Activity::Disk && stall.duration > long, stall.duration))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_disk_wait_explains_other_activities() {
        let waits = DiskWaits::default();
        assert_eq!(waits.longest(Duration::ZERO), None);
        waits.begin(DiskThread::Journal, Activity::WaitingForState);
        let stall = waits.longest(Duration::from_secs(9)).unwrap();
        assert_eq!(stall.activity, Activity::WaitingForState);
        waits.begin(DiskThread::State, Activity::Disk);
        let longest = || waits.longest(Duration::ZERO).unwrap().activity;
        let deadline = Instant::now() + Duration::from_secs(60);
        while longest() != Activity::Disk {
            assert!(Instant::now() < deadline, "{:?}", longest());
        }
        waits.end(DiskThread::State);
        assert_eq!(longest(), Activity::WaitingForState);
        let busy = Stall { activity: Activity::Judging, duration: Duration::from_secs(7) };
        assert_eq!(busy.to_string(), "the writer is busy: it has judged one group for 7 s");
    }
}

//! Notifications of the supervisor (systemd, over `NOTIFY_SOCKET`).
//!
//! A send blocks while the supervisor does not read its socket. A separate thread sends, so neither
//! requests nor deliveries wait for it. Notifications beyond its queue are dropped. An unreachable
//! socket is logged once.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::notify::{self, Notification};
use crate::panics;

/// Bound of the queued states. Further states are dropped.
const QUEUED_MAX: usize = 16;
/// Time limit of the last notification at the end of the process.
const LAST_NOTIFICATION_MAX: Duration = Duration::from_secs(1);

pub(super) enum DaemonState {
    Recovering,
    /// The daemon serves, after its start or a reload; with a problem of the reload.
    Ready(Option<String>),
    /// The delivery loop turns.
    Alive,
    Reloading,
    Stopping,
}

/// Cheap handle.
#[derive(Clone)]
pub(super) struct Supervisor {
    states: SyncSender<DaemonState>,
    /// Whether [`DaemonState::Alive`] is queued. One is enough, and leaves room for the others.
    is_alive_queued: Arc<AtomicBool>,
}

/// The thread of the notifications, which ends after the last handle.
pub(super) struct SupervisorThread(JoinHandle<()>);

impl Supervisor {
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn new() -> std::io::Result<(Self, SupervisorThread)> {
        let (states, queued) = sync_channel(QUEUED_MAX);
        let is_alive_queued = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("balto-supervisor".to_owned()).spawn({
            let is_alive_queued = is_alive_queued.clone();
            move || send_all(&queued, &is_alive_queued)
        })?;
        Ok((Self { states, is_alive_queued }, SupervisorThread(thread)))
    }

    /// Never waits.
    pub(super) fn tell(&self, state: DaemonState) {
        let is_alive = matches!(state, DaemonState::Alive);
        if is_alive && self.is_alive_queued.swap(true, Ordering::Relaxed) {
            return;
        }
        if self.states.try_send(state).is_err() {
            tracing::debug!("notification dropped: supervisor does not read its socket");
            if is_alive {
                self.is_alive_queued.store(false, Ordering::Relaxed);
            }
        }
    }
}

impl SupervisorThread {
    /// Waits for the last notification, within a limit. A join has no limit, so this polls.
    pub(super) fn end(self) {
        let since = Instant::now();
        while !self.0.is_finished() && since.elapsed() < LAST_NOTIFICATION_MAX {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn send_all(states: &Receiver<DaemonState>, is_alive_queued: &AtomicBool) {
    let mut socket = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()).map(NotifySocket::new);
    for state in states {
        panics::test_point("supervisor");
        if matches!(state, DaemonState::Alive) {
            is_alive_queued.store(false, Ordering::Relaxed);
        }
        // Without the variable the daemon has no supervisor.
        if let Some(socket) = &mut socket {
            socket.send(&state.notifications());
        }
    }
}

impl DaemonState {
    fn notifications(&self) -> Vec<Notification> {
        let status = |text: &str| Notification::Status(text.to_owned());
        match self {
            Self::Recovering => vec![status("recovering")],
            Self::Ready(None) => vec![Notification::Ready, status("serving")],
            Self::Ready(Some(problem)) => vec![Notification::Ready, status(&format!("serving; {problem}"))],
            Self::Alive => vec![Notification::Watchdog],
            Self::Reloading => vec![Notification::Reloading],
            Self::Stopping => vec![Notification::Stopping, status("draining")],
        }
    }
}

/// The supervisor's socket.
struct NotifySocket {
    name: OsString,
    is_reached: bool,
}

impl NotifySocket {
    fn new(name: OsString) -> Self {
        Self { name, is_reached: true }
    }

    /// Repeats the send while the socket is not read, because a busy supervisor still needs the
    /// start's notification.
    fn send(&mut self, notifications: &[Notification]) {
        loop {
            match notify::send(&self.name, notifications) {
                Ok(()) => {
                    self.is_reached = true;
                    return;
                }
                Err(error) => {
                    self.warn(&error);
                    if error.kind() != ErrorKind::WouldBlock {
                        return;
                    }
                }
            }
        }
    }

    /// Logs the first failure as a warning, further ones at level debug.
    fn warn(&mut self, error: &std::io::Error) {
        let socket = OsStr::display(&self.name);
        if std::mem::replace(&mut self.is_reached, false) {
            tracing::warn!(%error, %socket, "supervisor not reached: check NOTIFY_SOCKET");
        } else {
            tracing::debug!(%error, %socket, "supervisor not reached");
        }
    }
}

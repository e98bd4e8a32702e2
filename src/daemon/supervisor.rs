//! What the supervisor (systemd, over `NOTIFY_SOCKET`) is told.
//!
//! Telling waits while the supervisor does not read its socket. A thread of its own does that waiting: neither requests nor
//! deliveries ever stand still for it. Of what it cannot tell in time the rest is dropped. A socket that cannot be reached
//! is logged once.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::notify::{self, Notification};
use crate::panics;

/// Words that wait to be told. A supervisor that is further behind hears no more of them.
const WAITING_MAX: usize = 16;
/// How long the end of the process waits for the supervisor to take the last word.
const LAST_WORD_MAX: Duration = Duration::from_secs(1);

pub(super) enum Word {
    Recovering,
    /// It serves, after its start or after a reload; with why the reload changed nothing, if that was so.
    Ready(Option<String>),
    /// The delivery loop turns.
    Alive,
    Reloading,
    Stopping,
}

/// Cheap handle.
#[derive(Clone)]
pub(super) struct Supervisor {
    words: SyncSender<Word>,
    /// Whether the word waits that it is alive. One of them is enough, and leaves room for the others.
    alive_waits: Arc<AtomicBool>,
}

/// Its thread, which ends when the last handle is gone.
pub(super) struct Telling(JoinHandle<()>);

impl Supervisor {
    /// # Errors
    /// When there can be no thread.
    pub(super) fn new() -> std::io::Result<(Self, Telling)> {
        let (words, waiting) = sync_channel(WAITING_MAX);
        let alive_waits = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("balto-supervisor".to_owned()).spawn({
            let alive_waits = alive_waits.clone();
            move || tell_all(&waiting, &alive_waits)
        })?;
        Ok((Self { words, alive_waits }, Telling(thread)))
    }

    /// Never waits.
    pub(super) fn tell(&self, word: Word) {
        let is_alive = matches!(word, Word::Alive);
        if is_alive && self.alive_waits.swap(true, Ordering::Relaxed) {
            return;
        }
        if self.words.try_send(word).is_err() {
            tracing::debug!("the supervisor does not listen");
            if is_alive {
                self.alive_waits.store(false, Ordering::Relaxed);
            }
        }
    }
}

impl Telling {
    /// Waits until the last word is told, but not for ever: a thread can be joined without a limit only, so it is looked at.
    pub(super) fn end(self) {
        let since = Instant::now();
        while !self.0.is_finished() && since.elapsed() < LAST_WORD_MAX {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn tell_all(words: &Receiver<Word>, alive_waits: &AtomicBool) {
    let mut socket = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()).map(NotifySocket::new);
    for word in words {
        panics::test_point("supervisor");
        if matches!(word, Word::Alive) {
            alive_waits.store(false, Ordering::Relaxed);
        }
        // Without a socket there is no supervisor.
        if let Some(socket) = &mut socket {
            socket.tell(&word.notifications());
        }
    }
}

impl Word {
    fn notifications(&self) -> Vec<Notification> {
        let status = |text: &str| Notification::Status(text.to_owned());
        match self {
            Self::Recovering => vec![status("recovering")],
            Self::Ready(None) => vec![Notification::Ready, status("serving")],
            Self::Ready(Some(why)) => {
                vec![
                    Notification::Ready,
                    Notification::Status(format!("serving; the new configuration is bad: {why}")),
                ]
            }
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

    /// Goes on for as long as nobody reads the socket: a supervisor that is busy still has to hear of the start.
    fn tell(&mut self, notifications: &[Notification]) {
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

    /// The first failure is logged as a warning, those that follow at debug.
    fn warn(&mut self, error: &std::io::Error) {
        let socket = OsStr::display(&self.name);
        if std::mem::replace(&mut self.is_reached, false) {
            tracing::warn!(%error, %socket, "supervisor not reached: check NOTIFY_SOCKET");
        } else {
            tracing::debug!(%error, %socket, "supervisor not reached");
        }
    }
}

//! What the supervisor (systemd, over `NOTIFY_SOCKET`) is told.
//!
//! Telling waits while the supervisor does not read its socket. A thread of its own does that waiting: neither requests nor
//! deliveries ever stand still for it. Of what it cannot tell in time the rest is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

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
    for word in words {
        if matches!(word, Word::Alive) {
            alive_waits.store(false, Ordering::Relaxed);
        }
        if let Err(error) = tell(&word) {
            tracing::debug!(%error, "the supervisor could not be told");
        }
    }
}

/// Without a supervisor there is nobody to tell.
fn tell(word: &Word) -> std::io::Result<()> {
    match word {
        Word::Recovering => sd_notify::notify(false, &[NotifyState::Status("recovering")]),
        Word::Ready(None) => sd_notify::notify(false, &[NotifyState::Ready, NotifyState::Status("serving")]),
        Word::Ready(Some(why)) => {
            let status = format!("serving; the new configuration is bad: {why}").replace('\n', " ");
            sd_notify::notify(false, &[NotifyState::Ready, NotifyState::Status(&status)])
        }
        Word::Alive => sd_notify::notify(false, &[NotifyState::Watchdog]),
        Word::Reloading => {
            sd_notify::notify(false, &[NotifyState::Reloading, NotifyState::monotonic_usec_now()?])
        }
        Word::Stopping => sd_notify::notify(false, &[NotifyState::Stopping, NotifyState::Status("draining")]),
    }
}

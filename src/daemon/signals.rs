//! Signals of the daemon: SIGTERM and SIGINT end it, SIGHUP reloads the configuration.
//!
//! Owns: the waits for signals, and how long the end waits for the store.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

use crate::context::Context;
use crate::outbox::draft::Unavailable;

/// Time that the store has for its last writes after a second signal.
const STORE_STOP_MAX: Duration = Duration::from_secs(5);

/// The result of the delivery loop.
pub(super) type Delivered = Result<Result<(), Unavailable>, tokio::task::JoinError>;

/// SIGHUP alone. Once this is created, an early SIGHUP waits; by default it would end the process.
pub(super) struct Hangup(Signal);

impl Hangup {
    pub(super) fn new() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }
}

pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn new(hangup: Hangup) -> io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, hangup: hangup.0 })
    }

    /// Waits for SIGTERM or SIGINT.
    pub(super) async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Stops the store, which writes its queue. Returns whether it did. Another signal, or an
    /// earlier failure, limits the wait to [`STORE_STOP_MAX`].
    pub(super) async fn stop_store(&mut self, context: Context, has_failed: bool) -> bool {
        let limit = async {
            if !has_failed {
                self.end().await;
            }
            tokio::time::sleep(STORE_STOP_MAX).await;
        };
        let mut stopping = tokio::task::spawn_blocking(move || context.stop_outbox());
        tokio::select! {
            stopped = &mut stopping => {
                if let Err(error) = &stopped {
                    tracing::error!(%error, "store not stopped");
                }
                stopped.is_ok()
            }
            () = limit => {
                tracing::error!("disk not answering, ending without its last writes; acknowledged events are on disk");
                false
            }
        }
    }

    /// Waits for a signal that ends the daemon. Begins a reload on SIGHUP, one at a time. A reload
    /// reads files, which may block: the end does not wait for it. Returns the result of the
    /// delivery loop when the loop ended first.
    pub(super) async fn until_end(
        &mut self,
        on_hangup: impl Fn() -> JoinHandle<()>,
        delivery: &mut JoinHandle<Result<(), Unavailable>>,
    ) -> Option<Delivered> {
        let mut reload: Option<JoinHandle<()>> = None;
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return None,
                _ = self.interrupt.recv() => return None,
                ended = &mut *delivery => return Some(ended),
                _ = async { reload.as_mut()?.await.ok() }, if reload.is_some() => reload = None,
                _ = self.hangup.recv(), if reload.is_none() => reload = Some(on_hangup()),
            }
        }
    }
}

//! The signals that stop a command: SIGINT (Ctrl-C), SIGTERM, and SIGHUP (a closed terminal).

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Once created, the signals no longer end the process by themselves.
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
    /// `None` if it is ignored, as by `nohup`, or if that is unknown.
    hangup: Option<Signal>,
}

impl Stop {
    pub(super) fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        let hangup = if is_hangup_ignored() { None } else { Some(on(SignalKind::hangup())?) };
        Ok(Self { interrupt: on(SignalKind::interrupt())?, terminate: on(SignalKind::terminate())?, hangup })
    }

    /// Waits for one of the signals.
    pub(super) async fn signal(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = received(self.hangup.as_mut()) => {}
        }
    }
}

async fn received(signal: Option<&mut Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether the process ignores SIGHUP, signal 1. Without `/proc` it is left alone.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_none_or(|mask| mask & 1 == 1)
}

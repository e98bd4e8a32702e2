//! Progress of long operations: a line that is overwritten on a terminal, lines of the log
//! elsewhere.
//!
//! Owns: text and interval. Progress goes to standard error, as the log does. The daemon writes
//! through the log's buffer, so that a stopped terminal does not stop the daemon.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use super::log::LogSink;
use crate::storage::WorkProgress;

/// Interval of changes on a terminal.
const LINE_INTERVAL: Duration = Duration::from_millis(100);
/// Interval of lines in the log, also before the first.
const LOG_INTERVAL: Duration = Duration::from_secs(2);

/// The destination of progress.
enum ProgressOutput {
    /// The terminal of the daemon, through the log's buffer.
    DaemonTerminal(LogSink),
    /// The terminal of a command.
    CommandTerminal,
    Log,
    /// A command without a terminal.
    Nowhere,
}

/// Shows the progress of one operation.
pub(super) struct Meter {
    output: ProgressOutput,
    what: &'static str,
    /// Time and position of the beginning.
    began: Option<(Instant, u64)>,
    shown: Option<Instant>,
}

impl Meter {
    /// For the daemon: on the terminal, or in the log.
    pub(super) fn of_the_daemon(what: &'static str, log: &LogSink) -> Self {
        let terminal = io::stderr().is_terminal();
        let output = if terminal { ProgressOutput::DaemonTerminal(log.clone()) } else { ProgressOutput::Log };
        Self { output, what, began: None, shown: None }
    }

    /// For a command: on the terminal, or nowhere.
    pub(super) fn of_a_command(what: &'static str) -> Self {
        let output = if io::stderr().is_terminal() {
            ProgressOutput::CommandTerminal
        } else {
            ProgressOutput::Nowhere
        };
        Self { output, what, began: None, shown: None }
    }

    pub(super) fn on(&mut self, progress: WorkProgress) {
        let now = Instant::now();
        let (began, from) = *self.began.get_or_insert((now, progress.done));
        let interval = if self.output.is_terminal() { LINE_INTERVAL } else { LOG_INTERVAL };
        if now.duration_since(self.shown.unwrap_or(began)) < interval {
            return;
        }
        self.shown = Some(now);
        let pace = Pace::new(progress, from, now.duration_since(began));
        match &self.output {
            ProgressOutput::DaemonTerminal(_) | ProgressOutput::CommandTerminal => {
                self.output.write(&format!("\r\x1b[2K{}: {}", self.what, pace.words(progress)));
            }
            ProgressOutput::Log => tracing::info!(
                at = progress.done,
                of = progress.total,
                per_second = pace.per_second,
                seconds_left = pace.seconds_left,
                "{}",
                self.what
            ),
            ProgressOutput::Nowhere => {}
        }
    }
}

impl Drop for Meter {
    /// Clears the line.
    fn drop(&mut self) {
        if self.output.is_terminal() && self.shown.is_some() {
            self.output.write("\r\x1b[2K");
        }
    }
}

impl ProgressOutput {
    fn is_terminal(&self) -> bool {
        matches!(self, Self::DaemonTerminal(_) | Self::CommandTerminal)
    }

    fn write(&self, text: &str) {
        match self {
            Self::DaemonTerminal(log) => log.text(text),
            // A closed terminal does not stop the operation.
            Self::CommandTerminal => drop(io::stderr().lock().write_all(text.as_bytes())),
            Self::Log | Self::Nowhere => {}
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    per_second: u64,
    /// `None` without progress.
    seconds_left: Option<u64>,
}

impl Pace {
    fn new(progress: WorkProgress, from: u64, time: Duration) -> Self {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
        let per_second = progress.done.saturating_sub(from).saturating_mul(1_000) / millis;
        let left = progress.total.saturating_sub(progress.done);
        Self { per_second, seconds_left: left.checked_div(per_second) }
    }

    fn words(self, progress: WorkProgress) -> String {
        let WorkProgress { done: at, total: of } = progress;
        // The length of a stream is unknown.
        if of == 0 && at > 0 {
            return format!("{at}, {}/s", self.per_second);
        }
        let percent = at.saturating_mul(100).checked_div(of).unwrap_or(100).min(100);
        let left = self.seconds_left.map_or_else(String::new, |seconds| format!(", {seconds} s left"));
        format!("{at} of {of} ({percent} %), {}/s{left}", self.per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_has_speed_and_remaining_time() {
        let progress = WorkProgress { done: 3_000, total: 10_000 };
        let pace = Pace::new(progress, 1_000, Duration::from_secs(2));
        assert_eq!(pace, Pace { per_second: 1_000, seconds_left: Some(7) });
        assert_eq!(pace.words(progress), "3000 of 10000 (30 %), 1000/s, 7 s left");
        let standing = Pace::new(progress, 3_000, Duration::ZERO);
        assert_eq!(standing.words(progress), "3000 of 10000 (30 %), 0/s");
        let stream = WorkProgress { done: 3_000, total: 0 };
        assert_eq!(Pace::new(stream, 1_000, Duration::from_secs(2)).words(stream), "3000, 1000/s");
        let nothing = WorkProgress::default();
        assert_eq!(Pace::new(nothing, 0, Duration::ZERO).words(nothing), "0 of 0 (100 %), 0/s");
    }
}

//! The guard of a worker: a process that ends the commands of a worker that was killed.
//!
//! A killed worker cannot end its commands, and their messages go to other workers. The guard
//! learns the process group of each command from its standard input, which ends with the worker. A
//! parent-death signal needs `unsafe` code, and would reach only the command itself.

use std::collections::HashSet;
use std::io::BufRead;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, test_kill_process_group};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::Mutex;

use super::signal;

/// First argument of the process. `balto --help` does not show it.
pub(in crate::cli) const ARGUMENT: &str = "__worker-guard";
/// How often the guard looks whether the commands have ended. They are not its children, so it
/// cannot wait for them.
const POLL: Duration = Duration::from_millis(20);

/// A worker's handle of its guard.
pub(super) struct Guard {
    notes: Mutex<ChildStdin>,
    /// It ends by itself, after the worker.
    _process: Child,
}

impl Guard {
    /// Starts the guard. Commands of a killed worker get SIGTERM, and SIGKILL after `grace`.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub(super) fn start(grace: Duration) -> std::io::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args([ARGUMENT, &grace.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal must not reach it.
            .process_group(0)
            .spawn()?;
        let notes = process.stdin.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        Ok(Self { notes: Mutex::new(notes), _process: process })
    }

    pub(super) async fn on_started(&self, group: Pid) {
        self.note('+', group).await;
    }

    /// The command has ended. Processes that it left in its group go on.
    pub(super) async fn on_ended(&self, group: Pid) {
        self.note('-', group).await;
    }

    /// Without a guard the commands still run.
    async fn note(&self, sign: char, group: Pid) {
        let note = format!("{sign}{}\n", group.as_raw_nonzero());
        self.notes.lock().await.write_all(note.as_bytes()).await.ok();
    }
}

/// Runs the guard with the arguments behind [`ARGUMENT`].
pub(in crate::cli) fn run(grace: Option<&str>) {
    let grace = Duration::from_millis(grace.and_then(|millis| millis.parse().ok()).unwrap_or_default());
    let left = read_groups(std::io::stdin().lock());
    left.iter().for_each(|group| signal(Some(*group), Signal::TERM));
    let mut waited = Duration::ZERO;
    while waited < grace && left.iter().any(|group| is_alive(*group)) {
        std::thread::sleep(POLL);
        waited += POLL;
    }
    left.iter().for_each(|group| signal(Some(*group), Signal::KILL));
}

/// Reads notes until the worker has gone. Returns the groups of the commands that run then.
fn read_groups(mut notes: impl BufRead) -> HashSet<Pid> {
    let (mut groups, mut note) = (HashSet::new(), String::new());
    while notes.read_line(&mut note).is_ok_and(|bytes| bytes > 0) {
        let line = std::mem::take(&mut note);
        // A torn number could be that of another process.
        let Some((sign, group)) = line.strip_suffix('\n').and_then(|line| line.split_at_checked(1)) else {
            continue;
        };
        let Some(group) = group.parse().ok().and_then(Pid::from_raw) else { continue };
        if sign == "+" {
            groups.insert(group)
        } else {
            groups.remove(&group)
        };
    }
    groups
}

fn is_alive(group: Pid) -> bool {
    test_kill_process_group(group).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_ended_commands_are_forgotten() {
        let found = read_groups(&b"+12\n+13\n-12\n+14\nx\n\n+0\n+1"[..]);
        let mut found: Vec<_> = found.into_iter().map(|group| group.as_raw_nonzero().get()).collect();
        found.sort_unstable();
        assert_eq!(found, [13, 14]);
    }
}

//! The command of one message: its process, the extension of the lease, the end of the lease.

use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::{EXTENSIONS_PER_LEASE, Message, Phase, RETRY_DELAY, Worker, is_transient};
use crate::cli::output::note_async;

/// Bytes of the reason of a return.
const REASON_BYTES_MAX: usize = 512;

/// One message and its command.
pub(super) struct Handler {
    worker: Arc<Worker>,
    message: Message,
    phases: watch::Receiver<Phase>,
    /// Last time at which the lease began or was extended.
    leased_at: Instant,
}

/// The members of an event that the environment of the command has.
#[derive(Default, Deserialize)]
#[serde(default)]
struct EventHead {
    id: String,
    #[serde(rename = "type")]
    event_type: String,
    tenant: String,
    attributes: TraceAttribute,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TraceAttribute {
    traceparent: Option<String>,
}

/// The end of a command.
enum CommandEnd {
    Exited(ExitStatus),
    /// The worker stopped, and the command did not succeed.
    Stopped,
    /// Another worker has the message, or it was cancelled.
    LeaseLost,
}

/// The way to end a lease.
enum LeaseEnd {
    Ack,
    Nack { reason: String },
    Release,
}

#[derive(Deserialize)]
struct Results {
    results: Vec<ReceiptStatus>,
}

#[derive(Deserialize)]
struct ReceiptStatus {
    status: String,
}

impl Handler {
    pub(super) fn new(worker: Arc<Worker>, message: Message, phases: watch::Receiver<Phase>) -> Self {
        Self { worker, message, phases, leased_at: Instant::now() }
    }

    /// Runs the command and ends the lease.
    ///
    /// # Errors
    /// When the command cannot be started. The message is released first.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let head: EventHead = serde_json::from_str(self.message.event.get()).unwrap_or_default();
        if *self.phases.borrow() != Phase::Working {
            self.end_lease(LeaseEnd::Release, &head, started).await;
            return Ok(());
        }
        let child = match self.spawn(&head) {
            Ok(child) => child,
            Err(error) => {
                self.end_lease(LeaseEnd::Release, &head, started).await;
                let command = self.worker.command[0].to_string_lossy().into_owned();
                return Err(error).with_context(|| format!("cannot run `{command}`"));
            }
        };
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some((guard, group)) = self.worker.guard.as_ref().zip(group) {
            guard.on_started(group).await;
        }
        let ended = self.wait(child, group).await;
        if let Some((guard, group)) = self.worker.guard.as_ref().zip(group) {
            guard.on_ended(group).await;
        }
        let end = match ended.context("cannot wait for the command")? {
            CommandEnd::Exited(status) if status.success() => LeaseEnd::Ack,
            CommandEnd::Exited(status) => LeaseEnd::Nack { reason: status.to_string() },
            CommandEnd::Stopped => LeaseEnd::Release,
            CommandEnd::LeaseLost => {
                let text = format!("balto work: lease of {} lost; the command was ended", head.id);
                note_async(text).await;
                return Ok(());
            }
        };
        self.end_lease(end, &head, started).await;
        Ok(())
    }

    /// Starts the command in a separate process group, so that Ctrl-C in a terminal reaches the
    /// worker alone.
    fn spawn(&self, head: &EventHead) -> std::io::Result<Child> {
        let Worker { command, queue, .. } = &*self.worker;
        let mut spawned = Command::new(&command[0]);
        spawned
            .args(&command[1..])
            .env("BALTO_QUEUE", &queue.name)
            .env("BALTO_EVENT_ID", &head.id)
            .env("BALTO_EVENT_TYPE", &head.event_type)
            .env("BALTO_TENANT", &head.tenant)
            .env("BALTO_DELIVERY_ID", &self.message.delivery_id)
            .env("BALTO_DELIVERY_COUNT", self.message.delivery_count.to_string())
            .stdin(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(trace) = &head.attributes.traceparent {
            spawned.env("TRACEPARENT", trace);
        }
        spawned.spawn()
    }

    /// Feeds the command, extends the lease while it runs, and ends it when the worker stops.
    async fn wait(&mut self, mut child: Child, group: Option<Pid>) -> std::io::Result<CommandEnd> {
        let input = format!("{}\n", self.message.event.get());
        let stdin = child.stdin.take();
        let mut feed = std::pin::pin!(async move {
            if let Some(mut stdin) = stdin {
                // A command need not read its input.
                stdin.write_all(input.as_bytes()).await.ok();
            }
        });
        let mut is_fed = false;
        let mut extend = tokio::time::interval(self.worker.visibility / EXTENSIONS_PER_LEASE);
        extend.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        extend.tick().await;
        let mut phases = self.phases.clone();
        loop {
            tokio::select! {
                status = child.wait() => return Ok(CommandEnd::Exited(status?)),
                () = &mut feed, if !is_fed => is_fed = true,
                _ = extend.tick() => {
                    if !self.extend().await {
                        stop_command(&mut child, group, self.worker.grace, &mut phases).await?;
                        return Ok(CommandEnd::LeaseLost);
                    }
                }
                () = until(&mut phases, Phase::Ending) => {
                    let status = stop_command(&mut child, group, self.worker.grace, &mut phases).await?;
                    return Ok(match status.success() {
                        true => CommandEnd::Exited(status),
                        false => CommandEnd::Stopped,
                    });
                }
            }
        }
    }

    /// Extends the lease. Returns whether this worker may still have it.
    async fn extend(&mut self) -> bool {
        let visibility = format!("{}ms", self.worker.visibility.as_millis());
        let body = json!({"receipts": [self.message.receipt], "visibility": visibility});
        match self.worker.post("extend", body.to_string()).await {
            Ok(answer) => {
                self.leased_at = Instant::now();
                first_status(&answer).is_some_and(|status| status == "extended")
            }
            Err(error) => {
                note_async(format!("balto work: lease not extended: {error}")).await;
                true
            }
        }
    }

    /// Ends the lease. Repeats the request while the daemon cannot answer and the lease may live.
    async fn end_lease(&self, end: LeaseEnd, head: &EventHead, started: Instant) {
        let receipts = [self.message.receipt.as_str()];
        let (action, body) = match &end {
            LeaseEnd::Ack => ("ack", json!({"receipts": receipts})),
            LeaseEnd::Release => ("release", json!({"receipts": receipts})),
            LeaseEnd::Nack { reason } => {
                let reason: String = reason.chars().take(REASON_BYTES_MAX / 4).collect();
                ("nack", json!({"receipts": receipts, "reason": reason}))
            }
        };
        let mut delay = RETRY_DELAY.0;
        let outcome = loop {
            match self.worker.post(action, body.to_string()).await {
                Ok(answer) => break first_status(&answer).unwrap_or_default(),
                // A late acknowledgement counts while no other worker has the message.
                Err(error)
                    if is_transient(&error) && self.leased_at.elapsed() < 2 * self.worker.visibility =>
                {
                    note_async(format!("balto work: {action} failed: {error}; trying again")).await;
                }
                Err(error) => break format!("lost: {action} failed: {error}"),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_DELAY.1);
        };
        let is_good = matches!(end, LeaseEnd::Ack) && outcome == "acked";
        if is_good && self.worker.quiet {
            return;
        }
        let reason = match end {
            LeaseEnd::Nack { reason } => format!(" ({reason})"),
            LeaseEnd::Ack | LeaseEnd::Release => String::new(),
        };
        let EventHead { id, event_type, .. } = head;
        let took = started.elapsed().as_millis();
        let count = self.message.delivery_count;
        note_async(format!("{outcome} {id} {event_type} delivery {count} in {took} ms{reason}")).await;
    }
}

fn first_status(answer: &str) -> Option<String> {
    let results: Results = serde_json::from_str(answer).ok()?;
    results.results.into_iter().next().map(|result| result.status)
}

/// Waits until the worker is in this phase, or a later one.
async fn until(phases: &mut watch::Receiver<Phase>, wanted: Phase) {
    if phases.wait_for(|phase| *phase >= wanted).await.is_err() {
        // The worker has ended. Its runtime drops this task.
        std::future::pending().await
    }
}

/// Ends a command: SIGTERM, the grace period, SIGKILL.
async fn stop_command(
    child: &mut Child,
    group: Option<Pid>,
    grace: Duration,
    phases: &mut watch::Receiver<Phase>,
) -> std::io::Result<ExitStatus> {
    signal(group, Signal::TERM);
    tokio::select! {
        status = child.wait() => return status,
        () = tokio::time::sleep(grace) => {}
        () = until(phases, Phase::Killing) => {}
    }
    signal(group, Signal::KILL);
    child.wait().await
}

pub(super) fn signal(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // It may have ended.
        kill_process_group(group, signal).ok();
    }
}

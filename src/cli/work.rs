//! `balto work`: receives the messages of a queue and runs a command for each.
//!
//! Owns: the loop that receives, and the order of a stop. [`handler`] runs the command of one
//! message and ends its lease. A receive in progress is never dropped for a handler that ends,
//! because its answer may already be on the way; only a stop drops it.

pub(super) mod guard;
mod handler;

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::args;
use super::client::{Client, Error};
use super::output::{Session, note_async};
use super::queues::Queue;
use super::stop::Stop;
use crate::config::units::parse_duration;
use guard::Guard;
use handler::{Handler, signal};

/// Time that a receive waits for a message.
const RECEIVE_WAIT: &str = "20s";
/// Delay of the first repetition of a failed request, and the longest one.
const RETRY_DELAY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// Lease time of a key that may not read the queue.
const VISIBILITY_DEFAULT: Duration = Duration::from_secs(30);
/// A lease is extended this many times within its length, so that one lost request costs nothing.
const EXTENSIONS_PER_LEASE: u32 = 3;

/// Run a command for each message of a queue.
///
/// The command reads the event as JSON on standard input. Exit code 0 acknowledges the message,
/// any other returns it to the queue, which hands it out again by its retry policy. Balto extends
/// the lease while the command runs.
#[derive(Debug, Args)]
#[command(after_help = "The environment of the command has BALTO_QUEUE, BALTO_EVENT_ID, BALTO_EVENT_TYPE, \
    BALTO_TENANT, BALTO_DELIVERY_ID, BALTO_DELIVERY_COUNT and, with a trace, TRACEPARENT.\n\n\
    SIGTERM, SIGINT and a closed terminal end the worker: the commands get SIGTERM and the grace period; messages of commands \
    that do not end with 0 go back to the queue at once, without a charge.\n\n\
    Examples:\n  \
    balto work mails --concurrency 4 -- ./send-mail\n  \
    balto work mails --until-empty -- sh -c 'jq -r .data.address >> addresses'")]
pub(crate) struct WorkArgs {
    #[command(flatten)]
    queue: Queue,
    /// Commands that run at once.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    concurrency: u16,
    /// Time of a lease, which is extended while the command runs [default: that of the queue].
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    visibility: Option<Duration>,
    /// Name of this worker in the history of a message [default: host and process].
    #[arg(long, value_name = "NAME")]
    worker: Option<String>,
    /// Time that commands have to end after a stop.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = args::duration)]
    grace: Duration,
    /// End when the queue has no message that can be handed out.
    #[arg(long)]
    until_empty: bool,
    /// Print nothing about messages that end well.
    #[arg(long)]
    quiet: bool,
    /// The command and its arguments, after `--`.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Settings that all handlers share.
struct Worker {
    client: Client,
    queue: Queue,
    name: String,
    command: Vec<OsString>,
    visibility: Duration,
    grace: Duration,
    quiet: bool,
    /// `None` if it could not be started.
    guard: Option<Guard>,
}

/// State of the worker, as its handlers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Working,
    /// Commands get SIGTERM and the grace period.
    Ending,
    /// Commands are killed.
    Killing,
}

/// A leased message.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message {
    receipt: String,
    delivery_id: String,
    delivery_count: u32,
    event: Box<RawValue>,
}

#[derive(Deserialize)]
struct Received {
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct QueueSettings {
    visibility: String,
}

impl WorkArgs {
    pub(crate) async fn run(self, session: Session) -> anyhow::Result<()> {
        let mut stop = Stop::new()?;
        let visibility = match self.visibility {
            Some(visibility) => visibility,
            None => queue_visibility(&session.client, &self.queue).await?,
        };
        // The commands of a killed worker end before their messages go to another one.
        let grace = self.grace.min(visibility / EXTENSIONS_PER_LEASE);
        let guard = match Guard::start(grace) {
            Ok(guard) => Some(guard),
            Err(error) => {
                let text = format!("balto work: no guard: commands go on if this worker is killed: {error}");
                note_async(text).await;
                None
            }
        };
        let worker = Arc::new(Worker {
            client: session.client,
            queue: self.queue,
            name: self.worker.unwrap_or_else(default_name),
            command: self.command,
            visibility,
            grace: self.grace,
            quiet: self.quiet,
            guard,
        });
        let (phase, phases) = watch::channel(Phase::Working);
        let mut handlers = JoinSet::new();
        let ended = tokio::select! {
            ended = worker.work(usize::from(self.concurrency), self.until_empty, &mut handlers, &phases) => ended,
            () = stop.signal() => {
                phase.send_replace(Phase::Ending);
                Ok(())
            }
        };
        // After an error, the commands that run may end.
        let mut first_error = None;
        while !handlers.is_empty() {
            tokio::select! {
                Some(done) = handlers.join_next() => first_error = first_error.or_else(|| error_of(done)),
                () = stop.signal() => {
                    phase.send_modify(|phase| {
                        *phase = if *phase == Phase::Working { Phase::Ending } else { Phase::Killing };
                    });
                }
            }
        }
        ended.and(first_error.map_or(Ok(()), Err))
    }
}

type Handled = Result<anyhow::Result<()>, tokio::task::JoinError>;

/// The error of a handler that cannot do its work at all.
fn error_of(done: Handled) -> Option<anyhow::Error> {
    match done {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(error) => Some(error.into()),
    }
}

impl Worker {
    /// Receives messages and starts handlers, until an error that repetition does not mend, or
    /// until the queue is empty.
    async fn work(
        self: &Arc<Self>,
        concurrency: usize,
        until_empty: bool,
        handlers: &mut JoinSet<anyhow::Result<()>>,
        phases: &watch::Receiver<Phase>,
    ) -> anyhow::Result<()> {
        loop {
            while let Some(done) = handlers.try_join_next() {
                error_of(done).map_or(Ok(()), Err)?;
            }
            if handlers.len() == concurrency {
                let done = handlers.join_next().await;
                done.and_then(error_of).map_or(Ok(()), Err)?;
                continue;
            }
            let wait = if until_empty { "0s" } else { RECEIVE_WAIT };
            let messages = self.receive(concurrency - handlers.len(), wait).await?;
            if messages.is_empty() && until_empty {
                // A handler may return its message.
                let Some(done) = handlers.join_next().await else { return Ok(()) };
                error_of(done).map_or(Ok(()), Err)?;
            }
            for message in messages {
                let handler = Handler::new(Arc::clone(self), message, phases.clone());
                handlers.spawn(handler.run());
            }
        }
    }

    /// Receives up to `max` messages. Repeats the request while the daemon cannot answer.
    ///
    /// # Errors
    /// For a refusal that repetition does not mend, such as an unknown queue.
    async fn receive(&self, max: usize, wait: &str) -> anyhow::Result<Vec<Message>> {
        let visibility = format!("{}ms", self.visibility.as_millis());
        let body = json!({"max": max, "wait": wait, "visibility": visibility, "worker": self.name});
        let mut delay = RETRY_DELAY.0;
        loop {
            match self.post("receive", body.to_string()).await {
                Ok(answer) => {
                    let received: Received =
                        serde_json::from_str(&answer).context("the answer has no messages")?;
                    return Ok(received.messages);
                }
                Err(error) if is_transient(&error) => {
                    note_async(format!("balto work: {error}; trying again")).await;
                }
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_DELAY.1);
        }
    }

    async fn post(&self, action: &str, body: String) -> Result<String, Error> {
        self.client.post_to(&self.queue.path(&[action]), &self.queue.query().0, body).await
    }
}

/// Whether the same request may succeed later.
fn is_transient(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } => true,
        Error::Refused(problem) => problem.status == 429 || problem.status >= 500,
        Error::Untrusted { .. } | Error::Tls { .. } | Error::Plain { .. } | Error::TooLarge { .. } => false,
    }
}

/// Reads the lease time of the queue. A key of the role `worker` may not be allowed to.
async fn queue_visibility(client: &Client, queue: &Queue) -> anyhow::Result<Duration> {
    match client.get(&queue.path(&[]), &queue.query().0).await {
        Ok(answer) => {
            let settings: QueueSettings =
                serde_json::from_str(&answer).context("the answer is not a queue")?;
            parse_duration(&settings.visibility).context("the queue's visibility is not a duration")
        }
        Err(Error::Refused(problem)) if problem.status == 403 => Ok(VISIBILITY_DEFAULT),
        Err(error) => Err(error.into()),
    }
}

fn default_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || "_-.".contains(*c);
    let host: String = host.chars().filter(is_plain).take(40).collect();
    format!("{}-{}", if host.is_empty() { "balto" } else { host.as_str() }, std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_outages_are_repeated() {
        let refused = |status| {
            let body = format!("{{\"title\":\"t\",\"status\":{status}}}");
            let mut problem: super::super::client::ProblemBody = serde_json::from_str(&body).unwrap();
            problem.status = status;
            Error::Refused(problem)
        };
        for (status, expected) in [(429, true), (503, true), (507, true), (401, false), (404, false)] {
            assert_eq!(is_transient(&refused(status)), expected, "{status}");
        }
        assert!(is_transient(&Error::Unreachable { url: String::new(), cause: String::new() }));
        assert!(!is_transient(&Error::Plain { url: String::new() }));
    }

    #[test]
    fn worker_has_a_plain_name() {
        let name = default_name();
        assert!(name.len() <= 64 && name.ends_with(&std::process::id().to_string()), "{name}");
    }
}

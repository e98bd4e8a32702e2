//! Notifications: a worker process that sends a mail for each adoption.
//!
//! Sending is the kind of work that a queue is for: slow, and not to be repeated. The mailbox is a
//! directory with a file for each event id, so a second try for the same event finds the first.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::balto::{Client, text};
use crate::worker::work;

const QUEUE: &str = "notifications";
/// Mails that the mail server refuses at first.
pub(crate) const REFUSALS: u32 = 2;

/// Creates the queue. Its worker knows version 1.0 of `pet.adopted` only.
pub(crate) async fn create_queue(balto: &Client) -> anyhow::Result<()> {
    let queue = json!({
        "name": QUEUE, "eventTypes": ["pet.adopted"], "versions": {"pet.adopted": "1.0"},
        "visibility": "1s", "retry": {"initial": "50ms", "maxInterval": "100ms"},
    });
    balto.post("/queues", queue).await?;
    Ok(())
}

/// The trouble of a worker.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// It hangs after its first mail, before it acknowledges the message.
    Hangs,
    /// Its mail server refuses the first mails.
    Refused,
}

/// The worker process: `petstore notify API MAILBOX MOOD`.
pub(crate) async fn run(api: &str, mailbox: &Path, mood: Mood) -> anyhow::Result<()> {
    let balto = Client::new(api.to_owned())?;
    let refusals = AtomicU32::new(if mood == Mood::Refused { REFUSALS } else { 0 });
    let name = if mood == Mood::Hangs { "mailer-1" } else { "mailer-2" };
    let handle = |event: Value| {
        let refusals = &refusals;
        async move {
            if refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                say("refused", &event)?;
                bail!("the mail server is down");
            }
            say(if send_mail(mailbox, &event)? { "sent" } else { "duplicate" }, &event)?;
            if mood == Mood::Hangs {
                std::future::pending::<()>().await;
            }
            Ok(())
        }
    };
    match work(&balto, QUEUE, name, handle).await? {}
}

/// Sends a mail unless one was sent for the event. Returns whether it did.
fn send_mail(mailbox: &Path, event: &Value) -> anyhow::Result<bool> {
    let file = mailbox.join(text(event, "id")?);
    match OpenOptions::new().write(true).create_new(true).open(file) {
        Ok(mut mail) => {
            let data = &event["data"];
            writeln!(mail, "Dear {}, {} is yours.", text(data, "adopter")?, text(data, "petId")?)?;
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Tells the parent process.
fn say(what: &str, event: &Value) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{what} {}", text(event, "id")?)?)
}

/// A running worker process, seen from its parent. It ends with this value.
pub(crate) struct Worker {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    pub(crate) fn start(balto: &Client, mailbox: &PathBuf, mood: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("notify").arg(&balto.api).arg(mailbox).arg(mood);
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let output = child.stdout.take().context("the worker has an output")?;
        Ok(Self { child, lines: BufReader::new(output).lines() })
    }

    /// The next line: `sent`, `duplicate` or `refused`, and the id of an event.
    pub(crate) async fn next(&mut self) -> anyhow::Result<(String, String)> {
        let line = self.lines.next_line().await?.context("the worker ended")?;
        let (what, id) = line.split_once(' ').context("a line has two words")?;
        Ok((what.to_owned(), id.to_owned()))
    }

    /// `kill -9`
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}

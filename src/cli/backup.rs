//! `balto backup`: everything that a running daemon holds, into one file or stream.

mod target;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::output::{Progress, Session, harmless, line_async, note_async};
use super::stop::Stop;
use target::{Sink, Target};

/// Save everything that a running daemon holds.
#[derive(Debug, Args)]
#[command(after_help = "The file has what was accepted before the command began. With a secrets.key \
    its secrets are encrypted and the file is authenticated: keep that key, too.\n\n\
    Examples:\n  balto backup --to balto-$(date +%F).backup\n  balto backup --to - | zstd > balto.backup.zst")]
pub(crate) struct BackupArgs {
    /// The file, which appears when the backup is complete; `-` is standard output, and a FIFO is written to.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Replace the file when there is one already.
    #[arg(long)]
    force: bool,
}

/// What has been fetched.
#[derive(Default)]
struct Fetched {
    bytes: u64,
    /// Everything up to this position is in it.
    position: u64,
    damaged: Vec<Range>,
}

#[derive(Deserialize)]
struct Part {
    /// Of an authenticated backup.
    id: Option<String>,
    text: String,
    next: Option<u64>,
    until: u64,
    damaged: Vec<Range>,
}

#[derive(Deserialize)]
struct Range {
    first: u64,
    last: u64,
}

impl BackupArgs {
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<()> {
        let target = Target::find(&self.to, self.force)?;
        let on_standard_output = target == Target::StandardOutput;
        let mut stop = Stop::new()?;
        let fetched = tokio::select! {
            fetched = fetch(session, target) => fetched?,
            () = stop.told() => anyhow::bail!("told to stop; there is no backup"),
        };
        tokio::select! {
            reported = self.report(fetched, on_standard_output, session.json) => reported,
            // The backup is complete.
            () = stop.told() => Ok(()),
        }
    }

    async fn report(self, fetched: Fetched, on_standard_output: bool, as_json: bool) -> anyhow::Result<()> {
        let Fetched { bytes, position, damaged } = fetched;
        for range in &damaged {
            let text =
                format!("positions {} to {} are damaged and not in the backup", range.first, range.last);
            note_async(text).await;
        }
        let path = if on_standard_output { "standard output".into() } else { self.to.display().to_string() };
        anyhow::ensure!(damaged.is_empty(), "the journal is damaged; what can be read is in {path}");
        let text = if as_json {
            harmless(&json!({"path": path, "bytes": bytes, "position": position}).to_string())
        } else {
            format!("{path}: {bytes} bytes, everything up to position {position}")
        };
        if on_standard_output {
            note_async(text).await;
            return Ok(());
        }
        Ok(line_async(text).await?)
    }
}

/// Writes all parts to the target.
async fn fetch(session: &Session, target: Target) -> anyhow::Result<Fetched> {
    let mut sink: Sink = target.open().await?;
    let (mut query, mut fetched) = (Vec::new(), Fetched::default());
    let progress = Progress::start();
    loop {
        let answer = session.client.get(&["v1", "backup"], &query).await?;
        let part: Part = serde_json::from_str(&answer).context("the answer is not a part of a backup")?;
        sink.write(&part.text).await?;
        fetched.bytes += part.text.len() as u64;
        fetched.position = part.until;
        fetched.damaged.extend(part.damaged);
        let Some(next) = part.next else { break };
        progress.show(format!("position {next} of {}", part.until));
        query = vec![("after", next.to_string()), ("until", part.until.to_string())];
        query.extend(part.id.map(|id| ("id", id)));
    }
    sink.finish().await?;
    Ok(fetched)
}

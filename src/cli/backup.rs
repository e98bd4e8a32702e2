//! `balto backup`: writes all data of a running daemon to a file or stream.

mod target;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::output::{ProgressLine, Session, harmless, line_async, note_async};
use super::stop::Stop;
use crate::quantity::quantity;
use target::{Sink, Target};

/// Back up all data of a running daemon.
#[derive(Debug, Args)]
#[command(after_help = "The backup contains everything that was accepted before the command began. With a \
    secrets.key, secrets are encrypted and the backup is authenticated: keep that key, too.\n\n\
    Examples:\n  balto backup --to balto-$(date +%F).backup\n  balto backup --to - | zstd > balto.backup.zst")]
pub(crate) struct BackupArgs {
    /// A file, which appears when the backup is complete; `-` is standard output; a FIFO works,
    /// too.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Replace an existing file.
    #[arg(long)]
    force: bool,
}

/// Summary of the parts that were fetched.
#[derive(Default)]
struct Fetched {
    bytes: u64,
    /// Last position of the backup.
    position: u64,
    damaged: Vec<Range>,
}

#[derive(Deserialize)]
struct Part {
    /// Id of an authenticated backup.
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
            () = stop.signal() => anyhow::bail!("interrupted by a signal; no backup was written"),
        };
        tokio::select! {
            reported = self.report(fetched, on_standard_output, session.json) => reported,
            // The backup is complete.
            () = stop.signal() => Ok(()),
        }
    }

    async fn report(self, fetched: Fetched, on_standard_output: bool, as_json: bool) -> anyhow::Result<()> {
        let Fetched { bytes, position, damaged } = fetched;
        for range in &damaged {
            let text =
                format!("positions {} to {} are damaged and missing in the backup", range.first, range.last);
            note_async(text).await;
        }
        let path = if on_standard_output { "standard output".into() } else { self.to.display().to_string() };
        anyhow::ensure!(damaged.is_empty(), "the journal is damaged; {path} contains the readable part");
        let text = if as_json {
            harmless(&json!({"path": path, "bytes": bytes, "position": position}).to_string())
        } else {
            format!("{path}: {}, up to position {position}", quantity(bytes, "byte", "bytes"))
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
    let progress = ProgressLine::start();
    loop {
        let answer = session.client.get(&["v1", "backup"], &query).await?;
        let part: Part = serde_json::from_str(&answer)
            .context("the response is not a part of a backup: does the URL name a Balto daemon?")?;
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

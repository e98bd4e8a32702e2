//! `balto backup`: everything that a running daemon holds, into one file.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;

use super::output::{Progress, Session, note};

/// Save everything that a running daemon holds.
#[derive(Debug, Args)]
#[command(
    after_help = "The file has what was accepted before the command began. Secrets in it are encrypted with the \
    daemon's secrets.key, where it has one: keep that key, too.\n\n\
    Example:\n  balto backup --to balto-$(date +%F).backup"
)]
pub(crate) struct BackupArgs {
    /// The file; it is replaced when the backup is whole.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

#[derive(Deserialize)]
struct Part {
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
        let name = self.to.file_name().context("--to names no file")?;
        let partial = self.to.with_file_name(format!("{}.partial", name.to_string_lossy()));
        let damaged = fetch(session, &partial).await?;
        fs::rename(&partial, &self.to).with_context(|| format!("cannot rename {}", partial.display()))?;
        let directory = self.to.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or_else(|| Path::new("."))).and_then(|directory| directory.sync_all())?;
        for range in &damaged {
            note(&format!("positions {} to {} are damaged and not in the backup", range.first, range.last));
        }
        anyhow::ensure!(
            damaged.is_empty(),
            "the journal is damaged; what can be read is in {}",
            self.to.display()
        );
        Ok(())
    }
}

/// Writes all parts durably; gives what is damaged.
async fn fetch(session: &Session, path: &Path) -> anyhow::Result<Vec<Range>> {
    let failed = || format!("cannot write {}", path.display());
    let mut file = File::create(path).with_context(failed)?;
    let (mut query, mut damaged) = (Vec::new(), Vec::new());
    let mut progress = Progress::default();
    loop {
        let answer = session.client.get(&["v1", "backup"], &query).await?;
        let part: Part = serde_json::from_str(&answer).context("the answer is not a part of a backup")?;
        file.write_all(part.text.as_bytes()).with_context(failed)?;
        damaged.extend(part.damaged);
        let Some(next) = part.next else { break };
        progress.show(&format!("position {next} of {}", part.until));
        query = vec![("after", next.to_string()), ("until", part.until.to_string())];
    }
    file.sync_all().with_context(failed)?;
    Ok(damaged)
}

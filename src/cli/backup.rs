//! `balto backup`: everything that a running daemon holds, into one file.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::output::{Progress, Session, note};
use super::stop::Stop;

/// Save everything that a running daemon holds.
#[derive(Debug, Args)]
#[command(
    after_help = "The file has what was accepted before the command began. Secrets in it are encrypted with the \
    daemon's secrets.key, where it has one: keep that key, too.\n\n\
    Example:\n  balto backup --to balto-$(date +%F).backup"
)]
pub(crate) struct BackupArgs {
    /// The file; it is there when the backup is whole, and not before.
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
        anyhow::ensure!(
            self.force || !self.to.exists(),
            "{} is there already; name another file, or replace it with --force",
            self.to.display()
        );
        let mut stop = Stop::new()?;
        let mut name = name.to_owned();
        name.push(".partial");
        let partial = Partial::create(self.to.with_file_name(name))?;
        let Fetched { bytes, position, damaged } = tokio::select! {
            fetched = partial.fetch(session) => fetched?,
            () = stop.told() => anyhow::bail!("told to stop; there is no backup"),
        };
        partial.rename(&self.to)?;
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
        let path = self.to.display().to_string();
        let words = format!("{path}: {bytes} bytes, everything up to position {position}");
        let answer = json!({"path": path, "bytes": bytes, "position": position});
        session.done(&if session.json { answer.to_string() } else { String::new() }, &words)
    }
}

/// The file while it is not whole. It is gone when it is dropped, but not when the process is killed.
struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    /// What is left of a backup that broke off makes room. Nobody else may read it: payloads are in it, and secrets that no
    /// key encrypts.
    fn create(path: PathBuf) -> anyhow::Result<Self> {
        let cleared = match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        let created =
            cleared.and_then(|()| File::options().write(true).create_new(true).mode(0o600).open(&path));
        let file = created.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, file })
    }

    /// Writes all parts durably.
    async fn fetch(&self, session: &Session) -> anyhow::Result<Fetched> {
        let failed = || format!("cannot write {}", self.path.display());
        let (mut query, mut fetched) = (Vec::new(), Fetched::default());
        let mut progress = Progress::default();
        loop {
            let answer = session.client.get(&["v1", "backup"], &query).await?;
            let part: Part = serde_json::from_str(&answer).context("the answer is not a part of a backup")?;
            (&self.file).write_all(part.text.as_bytes()).with_context(failed)?;
            fetched.bytes += part.text.len() as u64;
            fetched.position = part.until;
            fetched.damaged.extend(part.damaged);
            let Some(next) = part.next else { break };
            progress.show(&format!("position {next} of {}", part.until));
            query = vec![("after", next.to_string()), ("until", part.until.to_string())];
        }
        self.file.sync_all().with_context(failed)?;
        Ok(fetched)
    }

    fn rename(self, to: &Path) -> anyhow::Result<()> {
        fs::rename(&self.path, to).with_context(|| format!("cannot rename {}", self.path.display()))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // It has another name by now, or nobody can be told.
        fs::remove_file(&self.path).ok();
    }
}

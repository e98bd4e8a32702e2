//! `balto restore`: creates a data directory from a backup. Progress counts the bytes that were
//! read.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;

use super::progress::Meter;
use super::settings::load;
use super::{Findings, ServeOptions, make_files_private};
use crate::config::SecretsKey;
use crate::context::clock;
use crate::maintenance::backup::{self, BackupKey, BackupTrust, RestoreReport};
use crate::quantity::quantity;
use crate::storage::WorkProgress;
use crate::vault::Vault;

const UNAUTHENTICATED: &str = "warning: the backup is not authenticated, so changes of the file cannot be detected; a daemon with secrets.key writes authenticated backups";

/// Settings of the check of a backup's authenticity.
#[derive(Clone, Debug, Default)]
pub struct RestoreKeys {
    /// Configuration file with the secrets key.
    pub config: Option<PathBuf>,
    /// Accept a backup that is not authenticated.
    pub unauthenticated: bool,
}

/// A backup with a meter of the bytes read.
struct MeteredBackup {
    file: Box<dyn Read>,
    meter: Meter,
    progress: WorkProgress,
}

impl Read for MeteredBackup {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.progress.done += read as u64;
        self.meter.on(self.progress);
        Ok(read)
    }
}

/// Opens a backup; `-` is standard input. Returns also its length, 0 for a stream.
fn open(from: &Path) -> anyhow::Result<(Box<dyn Read>, u64)> {
    if from == Path::new("-") {
        let input = io::stdin();
        anyhow::ensure!(!input.is_terminal(), "standard input is a terminal: redirect it from a backup file");
        return Ok((Box::new(input), 0));
    }
    let unreadable = || format!("cannot read {}", from.display());
    let file = File::open(from).with_context(unreadable)?;
    let found = file.metadata().with_context(unreadable)?;
    anyhow::ensure!(!found.is_dir(), "{} is a directory, not a backup", from.display());
    Ok((Box::new(file), if found.is_file() { found.len() } else { 0 }))
}

/// Creates a data directory from a backup.
///
/// # Errors
/// When the directory is not empty, the backup is incomplete or damaged, or a file cannot be read
/// or written.
pub fn restore(from: &Path, directory: &Path, wanted: &RestoreKeys) -> anyhow::Result<Findings> {
    make_files_private();
    let options = ServeOptions {
        config: wanted.config.clone(),
        data_dir: Some(directory.to_owned()),
        ..ServeOptions::default()
    };
    let keys = load(&options)?.secrets_keys()?;
    let vault = Vault::new(keys.iter().map(SecretsKey::expose));
    let keys: Vec<_> =
        vault.backup_keys().map(|(id, bytes)| BackupKey::new(id.to_string().into(), bytes)).collect();
    let trust = BackupTrust { keys: &keys, unauthenticated: wanted.unauthenticated };
    let (file, of) = open(from)?;
    let metered = MeteredBackup {
        file,
        meter: Meter::of_a_command("restoring"),
        progress: WorkProgress { done: 0, total: of },
    };
    let salt = u32::from_le_bytes(clock::random_bytes());
    let mut lines = BufReader::new(metered);
    let restored = backup::restore(&mut lines, directory, salt, trust);
    // Clears the line of the meter before any other output.
    drop(lines);
    let RestoreReport { records, last, authenticated } = restored?;
    let remark = (!authenticated).then(|| UNAUTHENTICATED.to_owned());
    let path = directory.display().to_string();
    let words = format!("{path}: {}, up to position {last}", quantity(records, "record", "records"));
    let json = json!({"path": path, "records": records, "position": last.0});
    Ok(Findings { words, json, is_good: true, remark })
}

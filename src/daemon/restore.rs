//! `balto restore`: a data directory from a backup, with progress by the bytes that were read.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;

use super::progress::Meter;
use super::settings::load;
use super::{Findings, Options, make_files_private};
use crate::config::SecretsKey;
use crate::engine::clock;
use crate::maintenance::backup::{self, BackupKey, Restored, Trust};
use crate::storage::Progress;
use crate::vault::Vault;

/// What the operator is told of such a backup.
const UNAUTHENTICATED: &str = "the backup is not authenticated, so a change of the file would not be noticed; daemons with secrets.key write authenticated ones";

/// How the authenticity of a backup is checked.
#[derive(Clone, Debug, Default)]
pub struct RestoreKeys {
    /// Configuration file with the secrets key.
    pub config: Option<PathBuf>,
    /// Accept a backup that is not authenticated.
    pub unauthenticated: bool,
}

/// A backup that shows how far it has been read.
struct Watched {
    file: Box<dyn Read>,
    meter: Meter,
    progress: Progress,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.progress.at += read as u64;
        self.meter.on(self.progress);
        Ok(read)
    }
}

/// Opens a backup; `-` is standard input. Returns its length, 0 for a stream.
fn open(from: &Path) -> anyhow::Result<(Box<dyn Read>, u64)> {
    if from == Path::new("-") {
        let input = io::stdin();
        anyhow::ensure!(!input.is_terminal(), "standard input is a terminal: redirect it from a backup");
        return Ok((Box::new(input), 0));
    }
    let unreadable = || format!("cannot read {}", from.display());
    let file = File::open(from).with_context(unreadable)?;
    let found = file.metadata().with_context(unreadable)?;
    anyhow::ensure!(!found.is_dir(), "{} is a directory, not a backup", from.display());
    Ok((Box::new(file), if found.is_file() { found.len() } else { 0 }))
}

/// Makes a data directory from a backup, and reports what is in it.
///
/// # Errors
/// When the directory is not empty, the backup is not whole, or something cannot be read or written.
pub fn restore(from: &Path, directory: &Path, wanted: &RestoreKeys) -> anyhow::Result<Findings> {
    make_files_private();
    let options =
        Options { config: wanted.config.clone(), data_dir: Some(directory.to_owned()), ..Options::default() };
    let keys = load(&options)?.secrets_keys()?;
    let vault = Vault::new(keys.iter().map(SecretsKey::expose));
    let keys: Vec<_> =
        vault.backup_keys().map(|(id, bytes)| BackupKey::new(id.to_string().into(), bytes)).collect();
    let trust = Trust { keys: &keys, unauthenticated: wanted.unauthenticated };
    let (file, of) = open(from)?;
    let watched = Watched { file, meter: Meter::of_a_command("restoring"), progress: Progress { at: 0, of } };
    let salt = u32::from_le_bytes(clock::random_bytes());
    let mut lines = BufReader::new(watched);
    let restored = backup::restore(&mut lines, directory, salt, trust);
    // Its line on the terminal goes before anything else is said.
    drop(lines);
    let Restored { records, last, authenticated } = restored?;
    let remark = (!authenticated).then(|| UNAUTHENTICATED.to_owned());
    let path = directory.display().to_string();
    let words = format!("{records} records, up to position {last}, are in {path}");
    let json = json!({"path": path, "records": records, "position": last.0});
    Ok(Findings { words, json, is_good: true, remark })
}

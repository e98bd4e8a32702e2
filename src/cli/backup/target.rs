//! The destination of a backup: a regular file, a FIFO or standard output.
//!
//! Owns: the classification of the path, and the writes. Invariants: only a regular file is ever
//! replaced, by a rename, after the backup is complete and durable. A symbolic link stays, and its
//! target is replaced.

use std::fs::{self, File};
use std::io;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use tokio::io::AsyncWriteExt as _;

/// Paths that name standard output.
const STANDARD_OUTPUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];
/// Bound of a chain of symbolic links, as in the kernel.
const LINKS_MAX: usize = 40;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    StandardOutput,
    /// Written to in place.
    Fifo(PathBuf),
    /// Replaced when the backup is complete. The last segment of the path is not a link.
    File(PathBuf),
}

impl Target {
    /// # Errors
    /// When the path cannot be the destination of a backup, or names an existing file without
    /// `force`.
    pub(super) fn find(path: &Path, force: bool) -> anyhow::Result<Self> {
        if STANDARD_OUTPUT.iter().any(|name| path == Path::new(name)) {
            ensure!(
                !io::stdout().is_terminal(),
                "standard output is a terminal: redirect it to a file, or pipe it to a program"
            );
            return Ok(Self::StandardOutput);
        }
        let shown = path.display();
        let kind = match fs::metadata(path) {
            Ok(found) => found.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                ensure!(path.file_name().is_some(), "{shown} names no file");
                return Ok(Self::File(resolve(path)?));
            }
            Err(error) => return Err(error).with_context(|| format!("cannot write {shown}")),
        };
        if kind.is_fifo() {
            return Ok(Self::Fifo(path.to_owned()));
        }
        ensure!(!kind.is_dir(), "{shown} is a directory: name a file in it");
        ensure!(!kind.is_socket(), "{shown} is a socket: name a file, or pipe `--to -` to a program");
        ensure!(
            kind.is_file(),
            "{shown} is a device: name a file, or use `--to -` and redirect standard output"
        );
        ensure!(force, "{shown} exists already; name another file, or replace it with --force");
        Ok(Self::File(resolve(path)?))
    }

    pub(super) async fn open(self) -> anyhow::Result<Sink> {
        let (name, file, partial) = match self {
            Self::StandardOutput => {
                let file = io::stdout().as_fd().try_clone_to_owned().context("cannot use standard output")?;
                ("standard output".to_owned(), File::from(file).into(), None)
            }
            Self::Fifo(path) => {
                // Opening waits for a reader.
                let opened = tokio::fs::OpenOptions::new().write(true).open(&path).await;
                let name = path.display().to_string();
                (name, opened.with_context(|| format!("cannot write {}", path.display()))?, None)
            }
            Self::File(to) => {
                let (partial, file) = Partial::create(to)?;
                (partial.path.display().to_string(), file.into(), Some(partial))
            }
        };
        Ok(Sink { name, file, partial })
    }
}

/// Follows the links at the end of a path, also a link to a missing file.
fn resolve(path: &Path) -> anyhow::Result<PathBuf> {
    let mut resolved = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::read_link(&resolved) {
            // A relative link is relative to its own directory.
            Ok(next) => resolved = resolved.with_file_name("").join(next),
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {
                return Ok(resolved);
            }
            Err(error) => return Err(error).with_context(|| format!("cannot follow {}", resolved.display())),
        }
    }
    bail!("{} is a chain of more than {LINKS_MAX} symbolic links, or a loop", path.display())
}

/// An open destination.
pub(super) struct Sink {
    name: String,
    file: tokio::fs::File,
    /// `None` for a stream.
    partial: Option<Partial>,
}

impl Sink {
    pub(super) async fn write(&mut self, text: &str) -> anyhow::Result<()> {
        let written = self.file.write_all(text.as_bytes()).await;
        written.map_err(|error| self.failed(&error))
    }

    /// Flushes a stream, or makes a file durable and renames it.
    pub(super) async fn finish(mut self) -> anyhow::Result<()> {
        let flushed = self.file.flush().await;
        flushed.map_err(|error| self.failed(&error))?;
        if let Some(partial) = self.partial.take() {
            self.file.sync_all().await.map_err(|error| self.failed(&error))?;
            partial.rename()?;
        }
        Ok(())
    }

    /// The error is not its source: a closed pipe is a failure here, and no failure for a list.
    fn failed(&self, error: &io::Error) -> anyhow::Error {
        let name = &self.name;
        match error.kind() {
            io::ErrorKind::BrokenPipe => {
                anyhow::anyhow!("the reader of {name} closed it: the backup is incomplete")
            }
            _ => anyhow::anyhow!("cannot write {name}: {error}"),
        }
    }
}

/// The file of an incomplete backup. Dropping this removes it; a killed process leaves it behind.
struct Partial {
    path: PathBuf,
    to: PathBuf,
}

impl Partial {
    /// Replaces the file of an interrupted backup. Only the owner can read the file: it contains
    /// payloads, and without a secrets key also plain secrets.
    fn create(to: PathBuf) -> anyhow::Result<(Self, File)> {
        let mut name = to.file_name().with_context(|| format!("{} names no file", to.display()))?.to_owned();
        name.push(".partial");
        let path = to.with_file_name(name);
        let cannot = || format!("cannot write {}", path.display());
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() || found.is_symlink() => {
                fs::remove_file(&path).with_context(cannot)?
            }
            Ok(_) => bail!("{} exists and is not a regular file: remove it", path.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(cannot),
        }
        let file =
            File::options().write(true).create_new(true).mode(0o600).open(&path).with_context(cannot)?;
        Ok((Self { path, to }, file))
    }

    fn rename(self) -> anyhow::Result<()> {
        let (from, to) = (self.path.display(), self.to.display());
        if let Ok(found) = fs::symlink_metadata(&self.to) {
            ensure!(found.is_file(), "{to} is no longer a regular file and was not replaced");
        }
        fs::rename(&self.path, &self.to).with_context(|| format!("cannot rename {from} to {to}"))?;
        let directory = self.to.parent().filter(|parent| !parent.as_os_str().is_empty());
        let synced = File::open(directory.unwrap_or_else(|| Path::new("."))).and_then(|open| open.sync_all());
        synced.with_context(|| format!("cannot sync the directory of {to}"))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After a rename there is nothing to remove.
        fs::remove_file(&self.path).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn refusal(path: &Path) -> String {
        Target::find(path, true).unwrap_err().to_string()
    }

    #[test]
    fn every_kind_of_file_is_classified() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        assert_eq!(Target::find(&at("missing"), false).unwrap(), Target::File(at("missing")));
        fs::write(at("file"), "").unwrap();
        assert_eq!(Target::find(&at("file"), true).unwrap(), Target::File(at("file")));
        assert!(Target::find(&at("file"), false).unwrap_err().to_string().contains("--force"));
        assert!(refusal(directory.path()).contains("is a directory"));
        let _listener = UnixListener::bind(at("socket")).unwrap();
        assert!(refusal(&at("socket")).contains("is a socket"));
        assert!(refusal(Path::new("/dev/null")).contains("is a device"));
        let made = std::process::Command::new("mkfifo").arg(at("fifo")).status().unwrap();
        assert!(made.success());
        symlink("fifo", at("link to a fifo")).unwrap();
        for name in ["fifo", "link to a fifo"] {
            assert_eq!(Target::find(&at(name), false).unwrap(), Target::Fifo(at(name)));
        }
    }

    #[test]
    fn link_to_a_file_is_followed_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("store")).unwrap();
        symlink("store/today", at("latest")).unwrap();
        symlink("latest", at("link")).unwrap();
        for _ in 0..2 {
            assert_eq!(Target::find(&at("link"), true).unwrap(), Target::File(at("store/today")));
            fs::write(at("store/today"), "").unwrap();
        }
        assert!(Target::find(&at("link"), false).unwrap_err().to_string().contains("--force"));
        symlink(at("store/absolute"), at("absolute")).unwrap();
        assert_eq!(Target::find(&at("absolute"), false).unwrap(), Target::File(at("store/absolute")));
        symlink("circle", at("circle")).unwrap();
        assert!(Target::find(&at("circle"), true).is_err());
        symlink("/dev/null", at("link to a device")).unwrap();
        assert!(refusal(&at("link to a device")).contains("is a device"));
    }

    #[test]
    fn rename_replaces_regular_files_only() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let (partial, _) = Partial::create(at("target")).unwrap();
        fs::create_dir(at("target")).unwrap();
        assert!(partial.rename().unwrap_err().to_string().contains("no longer a regular file"));
        assert!(at("target").is_dir() && !at("target.partial").exists());
        fs::create_dir(at("other.partial")).unwrap();
        assert!(Partial::create(at("other")).is_err());
        assert!(at("other.partial").is_dir());
    }
}

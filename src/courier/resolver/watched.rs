//! Configuration files that change while the daemon runs.
//!
//! Owns: what a file said when it was last read, and how a change is noticed. A file that is missing
//! or unusable leaves the earlier contents in force, and is read once it can be.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

/// Device, inode, length, and the times of the last changes of contents and of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// `None` for a file that is missing.
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            file: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// A file's contents as they were parsed, with the state of the file at that time.
pub(super) struct Watched<T> {
    stamp: Option<Stamp>,
    pub(super) value: Arc<T>,
}

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Self { stamp: self.stamp, value: self.value.clone() }
    }
}

impl<T> Watched<T> {
    /// Of no file.
    pub(super) fn fixed(value: T) -> Self {
        Self { stamp: None, value: Arc::new(value) }
    }

    /// From the file when it can be used, else `otherwise`.
    pub(super) fn read(path: &Path, parse: impl FnOnce(&[u8]) -> io::Result<T>, otherwise: Arc<T>) -> Self {
        Self { stamp: None, value: otherwise }.reread(path, parse)
    }

    fn reread(&self, path: &Path, parse: impl FnOnce(&[u8]) -> io::Result<T>) -> Self {
        // Before the contents: a change between the two is noticed at the next look.
        let stamp = Stamp::of(path);
        let text = fs::read(path);
        let is_unread = text.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::NotFound);
        let value = text.and_then(|text| parse(&text)).map(Arc::new).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "configuration file unusable, keeping the earlier contents");
            self.value.clone()
        });
        // Without a file descriptor, for instance: the next look tries again.
        Self { stamp: if is_unread { self.stamp } else { stamp }, value }
    }

    /// Reads the file again if it has changed. A file that cannot be used any more changes nothing: it is often about to
    /// be written.
    pub(super) fn refreshed(&self, path: &Path, parse: impl FnOnce(&[u8]) -> io::Result<T>) -> Self {
        if Stamp::of(path) == self.stamp {
            return self.clone();
        }
        tracing::info!(path = %path.display(), "configuration file changed");
        self.reread(path, parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_cannot_be_read_once_is_read_later() {
        let below = tempfile::tempdir().unwrap();
        let path = below.path().join("resolv.conf");
        let parse = |text: &[u8]| Ok(text.to_vec());
        fs::write(&path, "before").unwrap();
        let known = Watched::read(&path, parse, Arc::default());
        // A directory in its place stands for any failure to read.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let known = known.refreshed(&path, parse);
        assert_eq!(**known.value, *b"before");
        assert_ne!(Stamp::of(&path), known.stamp, "the next look tries again");
        fs::remove_dir(&path).unwrap();
        let known = known.refreshed(&path, parse);
        assert_eq!(**known.value, *b"before", "a missing file leaves the earlier contents");
        fs::write(&path, "after").unwrap();
        assert_eq!(**known.refreshed(&path, parse).value, *b"after");
    }
}

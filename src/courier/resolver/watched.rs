//! Configuration files that change while the daemon runs.
//!
//! Owns: what a file said when it was last read, and how a change is noticed. A missing file is an empty one, so that it is
//! read once it appears.

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
        // Before the contents: a change between the two is noticed at the next look.
        let stamp = Stamp::of(path);
        let parsed = fs::read(path).and_then(|text| parse(&text));
        let value = parsed.map(Arc::new).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "configuration file unusable, keeping the earlier contents");
            otherwise
        });
        Self { stamp, value }
    }

    /// Reads the file again if it has changed. A file that cannot be used any more changes nothing: it is often about to
    /// be written.
    pub(super) fn refreshed(&self, path: &Path, parse: impl FnOnce(&[u8]) -> io::Result<T>) -> Self {
        if Stamp::of(path) == self.stamp {
            return self.clone();
        }
        tracing::info!(path = %path.display(), "configuration file changed");
        Self::read(path, parse, self.value.clone())
    }
}

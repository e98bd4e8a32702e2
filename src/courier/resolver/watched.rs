//! Configuration files that change while the daemon runs.
//!
//! Owns: the contents of a file when it was last read, and how a change is noticed. A file that is missing
//! or unusable leaves the earlier contents in use, and is read once it can be.

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

    /// From the file, or `otherwise` with the reason why the file cannot be used.
    pub(super) fn read(
        path: &Path,
        parse: impl FnOnce(&[u8]) -> io::Result<T>,
        otherwise: Arc<T>,
    ) -> (Self, Option<io::Error>) {
        Self { stamp: None, value: otherwise }.reread(path, parse)
    }

    fn reread(&self, path: &Path, parse: impl FnOnce(&[u8]) -> io::Result<T>) -> (Self, Option<io::Error>) {
        // Before the contents: a change between the two is noticed at the next look.
        let stamp = Stamp::of(path);
        let text = fs::read(path);
        // Without a file descriptor, for instance: the next look tries again.
        let is_unread = text.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::NotFound);
        let stamp = if is_unread { self.stamp } else { stamp };
        match text.and_then(|text| parse(&text)) {
            Ok(value) => (Self { stamp, value: Arc::new(value) }, None),
            Err(error) => (Self { stamp, value: self.value.clone() }, Some(error)),
        }
    }

    /// Reads the file again if it has changed. A file that can no longer be used changes nothing: it is often about to be
    /// written.
    pub(super) fn refreshed(&self, path: &Path, parse: impl FnOnce(&[u8]) -> io::Result<T>) -> Self {
        if Stamp::of(path) == self.stamp {
            return self.clone();
        }
        let (fresh, unusable) = self.reread(path, parse);
        let path = path.display();
        match unusable {
            None => tracing::info!(%path, "file changed, new contents in use"),
            Some(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(%path, "file removed, earlier contents stay in use");
            }
            Some(error) => tracing::warn!(%path, %error, "file unusable, earlier contents stay in use"),
        }
        fresh
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
        let (known, unusable) = Watched::read(&path, parse, Arc::default());
        assert!(unusable.is_none());
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

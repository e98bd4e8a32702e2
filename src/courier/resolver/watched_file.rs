//! Configuration files that change while the daemon runs.
//!
//! Owns a file's parsed contents and the detection of changes. If the file is missing or invalid,
//! the previous contents stay in force until it becomes valid.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

/// Device, inode, length, and the times of the last changes of contents and of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    file: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileStamp {
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

/// A file's parsed contents, with the file's metadata at that time.
pub(super) struct WatchedFile<T> {
    stamp: Option<FileStamp>,
    pub(super) value: Arc<T>,
}

impl<T> Clone for WatchedFile<T> {
    fn clone(&self) -> Self {
        Self { stamp: self.stamp, value: self.value.clone() }
    }
}

impl<T> WatchedFile<T> {
    /// A constant value without a file.
    pub(super) fn fixed(value: T) -> Self {
        Self { stamp: None, value: Arc::new(value) }
    }

    /// The file's contents if it is valid, else `default` with the error.
    pub(super) fn read(
        path: &Path,
        parse: impl FnOnce(&[u8]) -> io::Result<T>,
        default: Arc<T>,
    ) -> (Self, Option<io::Error>) {
        Self { stamp: None, value: default }.reread(path, parse)
    }

    fn reread(&self, path: &Path, parse: impl FnOnce(&[u8]) -> io::Result<T>) -> (Self, Option<io::Error>) {
        // The stamp is taken before the contents, so that the next check detects a change in
        // between.
        let stamp = FileStamp::of(path);
        let text = fs::read(path);
        // If reading failed, for example for lack of a file descriptor, the next check tries again.
        let is_unread = text.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::NotFound);
        let stamp = if is_unread { self.stamp } else { stamp };
        match text.and_then(|text| parse(&text)) {
            Ok(value) => (Self { stamp, value: Arc::new(value) }, None),
            Err(error) => (Self { stamp, value: self.value.clone() }, Some(error)),
        }
    }

    /// Reads the file again if it has changed. An invalid file keeps the previous contents, because
    /// it is often about to be written.
    pub(super) fn refreshed(&self, path: &Path, parse: impl FnOnce(&[u8]) -> io::Result<T>) -> Self {
        if FileStamp::of(path) == self.stamp {
            return self.clone();
        }
        let (refreshed, error) = self.reread(path, parse);
        let path = path.display();
        match error {
            None => tracing::info!(%path, "file changed, new contents in use"),
            Some(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(%path, "file removed, previous contents stay in use");
            }
            Some(error) => tracing::warn!(%path, %error, "file unusable, previous contents stay in use"),
        }
        refreshed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_file_is_read_again_later() {
        let below = tempfile::tempdir().unwrap();
        let path = below.path().join("resolv.conf");
        let parse = |text: &[u8]| Ok(text.to_vec());
        fs::write(&path, "before").unwrap();
        let (known, error) = WatchedFile::read(&path, parse, Arc::default());
        assert!(error.is_none());
        // Reading a directory fails; this simulates any read error.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let known = known.refreshed(&path, parse);
        assert_eq!(**known.value, *b"before");
        assert_ne!(FileStamp::of(&path), known.stamp, "the next check tries again");
        fs::remove_dir(&path).unwrap();
        let known = known.refreshed(&path, parse);
        assert_eq!(**known.value, *b"before", "a missing file keeps the previous contents");
        fs::write(&path, "after").unwrap();
        assert_eq!(**known.refreshed(&path, parse).value, *b"after");
    }
}

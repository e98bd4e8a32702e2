//! The data directory: its file names, format stamp and lock.
//!
//! One process at a time uses a directory: it holds an exclusive lock on `LOCK`. `FORMAT` states
//! that the directory is complete, and its format. A directory with a journal and without a stamp
//! is rejected as foreign.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::disk::{PRIVATE_FILE_MODE, create_private};
use super::permissions::{self, PermissionError};

/// Directory of the journal.
pub(crate) const JOURNAL: &str = "journal";
/// Directory of the state.
pub(crate) const STATE: &str = "state";
/// File with the format stamp.
pub(crate) const FORMAT_FILE: &str = "FORMAT";
/// The format stamp.
pub(crate) const FORMAT: &str = "balto data directory, format 1\n";
/// Name of the stamp until the directory is complete.
pub(crate) const STAMP_BEGUN_FILE: &str = "FORMAT.new";
/// File with the durable id of the log.
pub(crate) const LOG_ID_FILE: &str = "LOG";
/// Name of that file until it is complete.
pub(crate) const LOG_ID_BEGUN_FILE: &str = "LOG.new";
/// Bytes of a log's id, in hexadecimal.
const LOG_ID_BYTES: usize = 32;
/// File with the exclusive lock.
pub(crate) const LOCK_FILE: &str = "LOCK";

/// Why a process cannot use a data directory.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
    #[error("the data directory {0} is in use by another process")]
    Locked(String),
    #[error(transparent)]
    Permission(#[from] PermissionError),
    #[error("{path} is not a data directory of this program version: FORMAT contains {found:?}")]
    Foreign { path: String, found: String },
}

/// Adds the path to an error.
pub(crate) fn failed(path: &Path) -> impl FnOnce(io::Error) -> ClaimError {
    move |error| ClaimError::Io { path: path.display().to_string(), error }
}

/// Creates the directory or checks its permissions and stamp; returns its lock.
pub(crate) fn claim(path: &Path) -> Result<File, ClaimError> {
    create_private(path).map_err(failed(path))?;
    permissions::check(path)?;
    let lock = lock(path).map_err(failed(path))?;
    let lock = lock.ok_or_else(|| ClaimError::Locked(path.display().to_string()))?;
    let foreign = |found| ClaimError::Foreign { path: path.display().to_string(), found };
    let stamp_file = path.join(FORMAT_FILE);
    match std::fs::read_to_string(&stamp_file) {
        Ok(found) if found == FORMAT => {}
        Ok(found) => return Err(foreign(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if path.join(JOURNAL).exists() || path.join(STATE).exists() {
                return Err(foreign("nothing".to_owned()));
            }
            stamp(path).map_err(failed(path))?;
        }
        Err(error) => return Err(failed(&stamp_file)(error)),
    }
    Ok(lock)
}

/// The id of the directory's log. `fresh` becomes the id of a directory without one, such as a
/// restored one, whose log may continue differently than that of the backup.
pub(crate) fn log_id(path: &Path, fresh: u128) -> io::Result<String> {
    let file = path.join(LOG_ID_FILE);
    match std::fs::read_to_string(&file) {
        Ok(id) if id.len() == LOG_ID_BYTES && id.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            return Ok(id);
        }
        // A damaged id is replaced: readers then check their positions.
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
        Err(error) => return Err(error),
    }
    let (id, begun) = (format!("{fresh:032x}"), path.join(LOG_ID_BEGUN_FILE));
    let mut options = File::options();
    let mut out = options.create(true).truncate(true).write(true).mode(PRIVATE_FILE_MODE).open(&begun)?;
    out.write_all(id.as_bytes())?;
    out.sync_all()?;
    std::fs::rename(begun, file)?;
    File::open(path)?.sync_all()?;
    Ok(id)
}

/// Locks the directory for as long as the file is open; `None` when another process holds the lock.
pub(crate) fn lock(path: &Path) -> io::Result<Option<File>> {
    let mut options = File::options();
    let lock = options
        .create(true)
        .truncate(false)
        .write(true)
        .mode(PRIVATE_FILE_MODE)
        .open(path.join(LOCK_FILE))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Records durably that the directory is incomplete.
pub(crate) fn begin_stamp(path: &Path) -> io::Result<()> {
    let fresh = path.join(STAMP_BEGUN_FILE);
    let mut file =
        File::options().create(true).truncate(true).write(true).mode(PRIVATE_FILE_MODE).open(&fresh)?;
    file.write_all(FORMAT.as_bytes())?;
    file.sync_all()?;
    File::open(path)?.sync_all()
}

/// Records durably that the directory is complete and of this format.
pub(crate) fn stamp(path: &Path) -> io::Result<()> {
    // The rename is atomic, because a partial stamp would look foreign.
    begin_stamp(path)?;
    std::fs::rename(path.join(STAMP_BEGUN_FILE), path.join(FORMAT_FILE))?;
    File::open(path)?.sync_all()
}

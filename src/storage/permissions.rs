//! Permissions of a data directory: only the daemon's user may own, read and write its files.
//!
//! Owns the check before a directory is opened. Makes files of earlier versions private. Rejects a
//! directory in which other users could have placed files, because a planted `admin.key` or journal
//! would be trusted.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::data_directory::{
    FORMAT_FILE, JOURNAL, LOCK_FILE, LOG_ID_BEGUN_FILE, LOG_ID_FILE, STAMP_BEGUN_FILE,
};

/// Permission bits of the group and of all other users.
const OTHERS: u32 = 0o077;
/// Write permission of all users.
const WORLD_WRITE: u32 = 0o002;

/// Why a data directory is rejected.
#[derive(Debug, thiserror::Error)]
pub enum PermissionError {
    #[error(
        "every user can write to {path} and could have placed files in it: check its content and run `chmod 700 {path}`, or set store.path to a directory below it"
    )]
    WorldWritable { path: String },
    #[error(
        "{path} belongs to user id {owner}, but this process runs as user id {user}: run as the owner, or change the owner with chown"
    )]
    ForeignOwner { path: String, owner: u32, user: u32 },
    #[error("cannot read the permissions of {path}: {error}")]
    Io { path: String, error: io::Error },
}

fn failed(path: &Path, error: io::Error) -> PermissionError {
    PermissionError::Io { path: path.display().to_string(), error }
}

/// Checks the data directory and makes its files private.
///
/// # Errors
/// When another user owns the directory or one of its files, or every user can write to the
/// directory.
pub(crate) fn check(directory: &Path) -> Result<(), PermissionError> {
    let found = fs::metadata(directory).map_err(|error| failed(directory, error))?;
    check_owner(directory, &found)?;
    let path = directory.display();
    if found.mode() & WORLD_WRITE != 0 {
        return Err(PermissionError::WorldWritable { path: path.to_string() });
    }
    if found.mode() & OTHERS != 0 {
        let mode = format!("{:o}", found.mode() & 0o7777);
        tracing::warn!(%path, mode, "data directory accessible to other users; run: chmod 700 {path}");
    }
    let mut repaired = 0;
    for entry in entries(directory)?.into_iter().filter(|entry| is_ours(entry)) {
        repaired += make_private(&entry)?;
    }
    if repaired > 0 {
        tracing::warn!(%path, files = repaired, "permissions of other users removed");
    }
    Ok(())
}

fn is_ours(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    // Copies of the state have names that begin with `state`.
    name.is_some_and(|name| {
        let ours = [FORMAT_FILE, STAMP_BEGUN_FILE, LOG_ID_FILE, LOG_ID_BEGUN_FILE, LOCK_FILE, JOURNAL]
            .contains(&name);
        ours || name.starts_with("state")
    })
}

fn check_owner(path: &Path, found: &Metadata) -> Result<(), PermissionError> {
    let (owner, user) = (found.uid(), rustix::process::geteuid().as_raw());
    if owner == user || owner == 0 {
        return Ok(());
    }
    Err(PermissionError::ForeignOwner { path: path.display().to_string(), owner, user })
}

/// Removes all permissions of other users from a file, or from a directory and its content. Returns
/// the number of changed files.
fn make_private(path: &Path) -> Result<u64, PermissionError> {
    let found = fs::symlink_metadata(path).map_err(|error| failed(path, error))?;
    check_owner(path, &found)?;
    // A symbolic link has no permissions.
    if found.is_symlink() {
        return Ok(0);
    }
    let mut repaired = 0;
    if found.mode() & OTHERS != 0 {
        let private = Permissions::from_mode(found.mode() & 0o7777 & !OTHERS);
        match fs::set_permissions(path, private) {
            Ok(()) => repaired += 1,
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, %error, "cannot remove permissions of other users");
            }
        }
    }
    if found.is_dir() {
        for entry in entries(path)? {
            repaired += make_private(&entry)?;
        }
    }
    Ok(repaired)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, PermissionError> {
    let all = fs::read_dir(directory).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    all.map_err(|error| failed(directory, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn files_of_the_data_directory_become_private() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("journal")).unwrap();
        fs::create_dir_all(at("state.damaged/blobs")).unwrap();
        for name in ["journal/1", "state.damaged/blobs/2", "FORMAT", "LOCK", "balto.toml"] {
            fs::write(at(name), "").unwrap();
            set(&at(name), 0o666);
        }
        set(&at("journal"), 0o755);
        set(&at("state.damaged/blobs"), 0o777);
        check(directory.path()).unwrap();
        for name in ["journal/1", "state.damaged/blobs/2", "FORMAT", "LOCK"] {
            assert_eq!(mode(&at(name)), 0o600, "{name}");
        }
        assert_eq!((mode(&at("journal")), mode(&at("state.damaged/blobs"))), (0o700, 0o700));
        assert_eq!(mode(&at("balto.toml")), 0o666);
    }

    #[test]
    fn world_writable_directory_is_rejected() {
        let directory = tempfile::tempdir().unwrap();
        for (others, refused) in
            [(0o702, true), (0o777, true), (0o1777, true), (0o755, false), (0o770, false)]
        {
            set(directory.path(), others);
            let checked = check(directory.path());
            assert_eq!(
                matches!(checked, Err(PermissionError::WorldWritable { .. })),
                refused,
                "{others:o}: {checked:?}"
            );
        }
        set(directory.path(), 0o700);
    }

    #[test]
    fn links_are_not_followed() {
        let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = elsewhere.path().join("file");
        fs::write(&file, "").unwrap();
        set(&file, 0o644);
        std::os::unix::fs::symlink(elsewhere.path(), directory.path().join("journal")).unwrap();
        std::os::unix::fs::symlink(&file, directory.path().join("LOCK")).unwrap();
        check(directory.path()).unwrap();
        assert_eq!(mode(&file), 0o644);
    }
}

//! Files that the configuration consists of or names: reading them within bounds.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{ConfigError, ConfigErrors, Origin};

/// Bound of a file, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Reads a secret from a file. One line break at the end of the file is not part of the secret.
pub(super) fn from_file<T>(
    path: &Path,
    key: &str,
    parse: impl Fn(&str) -> Result<T, &'static str>,
) -> Result<T, ConfigError> {
    let error = |reason: String| ConfigError { origin: Origin::Default, key: Some(key.to_owned()), reason };
    let text = read_secret(path).map_err(|cause| error(unreadable(path, &cause)))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    parse(text).map_err(|rule| error(format!("what is in {} {rule}", path.display())))
}

pub(super) fn read_file(path: &Path) -> Result<String, ConfigErrors> {
    read_bounded(path).map_err(|cause| {
        let origin = Origin::File { path: path.to_owned(), line: None };
        ConfigErrors(vec![ConfigError { origin, key: None, reason: format!("cannot be read: {cause}") }])
    })
}

fn unreadable(path: &Path, cause: &io::Error) -> String {
    format!("{} cannot be read: {cause}", path.display())
}

/// As [`read_bounded`], for a file with a secret.
///
/// The operator chooses the path, so links, other owners and read permissions are accepted:
/// Kubernetes secrets and systemd credentials have them.
///
/// # Errors
/// As [`read_bounded`], and when every user can write to the file.
pub fn read_secret(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    if found.is_file() && found.mode() & 0o002 != 0 {
        return Err(io::Error::other("every user can write to it; run `chmod o-w` on it"));
    }
    read_to_bound(file)
}

/// The text of a file that the configuration names.
///
/// # Errors
/// When the file cannot be read, is not UTF-8, or is longer than [`FILE_BYTES_MAX`].
pub fn read_bounded(path: &Path) -> io::Result<String> {
    read_to_bound(File::open(path)?)
}

fn read_to_bound(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

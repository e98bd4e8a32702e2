//! The admin key: from the configuration, or from `admin.key` in the data directory, which the
//! first start writes.
//!
//! Owns: that file. It is written under a temporary name, synced and renamed, so a crash leaves a
//! complete key or none. A file that other users can have placed or changed is refused.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::log::NOTICE;
use crate::config::{AdminKey, Config};
use crate::context::clock::random_bytes;

const FILE: &str = "admin.key";
/// Name of the file until it is complete.
const UNFINISHED_FILE: &str = "admin.key.new";
/// Prefix of generated keys.
const PREFIX: &str = "balto_";
/// Bound of the file, in bytes: the longest key and a line end.
const FILE_BYTES_MAX: u64 = 258;

/// # Errors
/// When the file of the key cannot be read or written, can have been changed by other users, or has
/// no valid key.
pub(super) fn admin_key(config: &Config) -> anyhow::Result<AdminKey> {
    if let Some(key) = config.admin_key()? {
        return Ok(key);
    }
    let directory = &config.store.path;
    let path = directory.join(FILE);
    match read(&path)? {
        Found::Key(key) => Ok(key),
        Found::Nothing => write(directory),
        Found::Unfinished => {
            tracing::warn!(path = %path.display(), "admin key file is incomplete, writing a new key");
            write(directory)
        }
    }
}

enum Found {
    Key(AdminKey),
    Nothing,
    /// A part of a generated key, from a crash of an earlier version.
    Unfinished,
}

fn read(path: &Path) -> anyhow::Result<Found> {
    let shown = path.display();
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error).with_context(|| format!("cannot read the admin key {shown}")),
    };
    let user = rustix::process::geteuid().as_raw();
    anyhow::ensure!(
        found.is_file(),
        "the admin key {shown} is not a regular file: remove it, or name its target in auth.admin_key_file"
    );
    anyhow::ensure!(
        found.uid() == user || found.uid() == 0,
        "the admin key {shown} belongs to user id {}, who can read it: remove the file, and the next start writes a new key",
        found.uid()
    );
    anyhow::ensure!(
        found.mode() & 0o022 == 0,
        "other users can write to the admin key {shown}: remove the file, and the next start writes a new key"
    );
    if found.mode() & 0o077 != 0 {
        let private = fs::set_permissions(path, Permissions::from_mode(0o600));
        let is_private = private.is_ok();
        tracing::warn!(path = %shown, is_private, "admin key was readable by other users, consider a new key");
    }
    let mut text = String::new();
    let file = File::open(path).with_context(|| format!("cannot read the admin key {shown}"))?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read the admin key {shown}"))?;
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    match AdminKey::parse(text) {
        Ok(key) => Ok(Found::Key(key)),
        Err(_) if is_unfinished(text) => Ok(Found::Unfinished),
        Err(rule) => anyhow::bail!(
            "the admin key in {shown} {rule}: write a valid key to it, or remove the file, and the next start writes a new key"
        ),
    }
}

/// Whether the text is the beginning of a generated key, and too short for a key.
fn is_unfinished(text: &str) -> bool {
    text.len() < AdminKey::CHARACTERS_MIN && (text.starts_with(PREFIX) || PREFIX.starts_with(text))
}

fn write(directory: &Path) -> anyhow::Result<AdminKey> {
    let (path, unfinished) = (directory.join(FILE), directory.join(UNFINISHED_FILE));
    let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random_bytes::<32>()));
    let written = replace(directory, &unfinished, &path, &text);
    written.with_context(|| format!("cannot write {}", path.display()))?;
    tracing::warn!(target: NOTICE, "new admin key written to {}", path.display());
    AdminKey::parse(&text).map_err(anyhow::Error::msg)
}

fn replace(directory: &Path, unfinished: &Path, path: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(unfinished)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(unfinished, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(directory: &Path) -> Config {
        let mut config = Config::default();
        config.store.path = directory.to_owned();
        config
    }

    fn key(directory: &Path) -> Result<String, String> {
        let found = admin_key(&config(directory));
        found.map(|key| key.expose().to_owned()).map_err(|error| format!("{error:#}"))
    }

    fn put(directory: &Path, text: &str, mode: u32) {
        let path = directory.join(FILE);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn first_start_writes_a_private_key_and_later_ones_read_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(UNFINISHED_FILE), "balto_").unwrap();
        let first = key(directory.path()).unwrap();
        assert_eq!(key(directory.path()), Ok(first.clone()));
        let found = fs::metadata(directory.path().join(FILE)).unwrap();
        assert_eq!((found.mode() & 0o777, found.len()), (0o600, first.len() as u64 + 1));
        assert!(!directory.path().join(UNFINISHED_FILE).exists());
    }

    #[test]
    fn incomplete_key_file_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        for left in ["", "\n", "bal", "balto_", "balto_abc", "balto_abc\0\0\0", "\0\0\0\0"] {
            put(directory.path(), left, 0o600);
            let fresh = key(directory.path()).unwrap_or_else(|error| panic!("{left:?}: {error}"));
            assert_eq!(fresh.len(), 49, "{left:?}: {fresh}");
        }
    }

    #[test]
    fn invalid_key_of_an_operator_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["letmein", "balto key with spaces in it", "fifteen-letters", "ключ-администратора"]
        {
            put(directory.path(), text, 0o600);
            let refused = key(directory.path()).unwrap_err();
            assert!(refused.contains("16 to 256 visible ASCII characters"), "{text}: {refused}");
            assert_eq!(fs::read_to_string(directory.path().join(FILE)).unwrap(), text);
        }
        put(directory.path(), "sixteen-letters!\n", 0o600);
        assert_eq!(key(directory.path()).as_deref(), Ok("sixteen-letters!"));
    }

    #[test]
    fn key_file_that_others_can_have_placed_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let text = "a-key-that-is-long-enough";
        for (mode, good) in [(0o600, true), (0o400, true), (0o644, true), (0o620, false), (0o602, false)] {
            put(directory.path(), text, mode);
            assert_eq!(key(directory.path()).is_ok(), good, "{mode:o}");
        }
        put(directory.path(), text, 0o644);
        key(directory.path()).unwrap();
        assert_eq!(fs::metadata(directory.path().join(FILE)).unwrap().mode() & 0o777, 0o600);
        let elsewhere = directory.path().join("elsewhere");
        fs::rename(directory.path().join(FILE), &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, directory.path().join(FILE)).unwrap();
        assert!(key(directory.path()).unwrap_err().contains("is not a regular file"));
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), text);
    }

    #[test]
    fn key_file_of_another_user_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        put(directory.path(), "a-key-that-is-long-enough", 0o600);
        let path = directory.path().join(FILE);
        // Only root can give a file away.
        if std::os::unix::fs::chown(&path, Some(65_534), None).is_ok() {
            assert!(key(directory.path()).unwrap_err().contains("belongs to user id 65534"));
        }
    }
}

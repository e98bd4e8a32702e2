//! Authentication of a backup with a key derived from the secrets key.
//!
//! Owns the keyed checksum of a line. Its key is derived from a secrets key with a separate label,
//! so it decrypts no secret. Each checksum covers a random backup id, so lines of two backups
//! cannot be mixed. Each line names the position of the line before, so none can be removed or
//! moved.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// Length of a backup id, in bytes.
pub(super) const BACKUP_ID_BYTES: usize = 16;

/// Identifies a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupId(pub [u8; BACKUP_ID_BYTES]);

impl BackupId {
    /// Parses the hexadecimal form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        from_hexadecimal(text).map(Self)
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hexadecimal(&self.0))
    }
}

/// A key that authenticates backups. Its `Debug` output hides the bytes.
#[derive(Clone)]
pub struct BackupKey {
    /// The id of the secrets key that it is derived from.
    pub id: Box<str>,
    bytes: [u8; 32],
}

impl fmt::Debug for BackupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackupKey({})", self.id)
    }
}

impl BackupKey {
    #[must_use]
    pub fn new(id: Box<str>, bytes: [u8; 32]) -> Self {
        Self { id, bytes }
    }

    fn checksum(&self, backup: BackupId, line: &str) -> Hmac<Sha256> {
        let mut checksum =
            Hmac::<Sha256>::new_from_slice(&self.bytes).expect("HMAC takes keys of any length");
        checksum.update(&backup.0);
        checksum.update(line.as_bytes());
        checksum
    }

    /// The keyed checksum of a line, in hexadecimal.
    pub(super) fn sign(&self, backup: BackupId, line: &str) -> String {
        hexadecimal(&self.checksum(backup, line).finalize().into_bytes())
    }

    /// Verifies a checksum in constant time.
    pub(super) fn verifies(&self, backup: BackupId, line: &str, checksum: &str) -> bool {
        from_hexadecimal::<32>(checksum)
            .is_some_and(|expected| self.checksum(backup, line).verify_slice(&expected).is_ok())
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hexadecimal<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

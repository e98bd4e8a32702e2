//! Backups through the API, in parts.

use std::time::{Duration, Instant};

use crate::context::Context;
use crate::context::home::Home;
use crate::domain::Position;
use crate::failpoints;
use crate::failpoints::Bound;
use crate::maintenance::backup;
use crate::maintenance::backup::{BackupId, BackupKey, BackupPart, BackupSigning};
use crate::outbox::draft::Unavailable;

/// Approximate bytes of a backup part.
const BACKUP_PART_BYTES: usize = 4 * 1024 * 1024;

/// How long retention waits after a request for a backup part.
const BACKUP_HOLD: Duration = Duration::from_secs(120);

/// Operations on backups.
#[derive(Clone, Copy)]
pub struct Backups<'a>(pub &'a Context);

impl Backups<'_> {
    /// Whether all parts of a backup need its id.
    #[must_use]
    pub fn are_authenticated(self) -> bool {
        self.0.vault().sealing_key().is_some()
    }

    /// Returns the backup part after a position, the backup's last position, and its id if it is
    /// authenticated. Requests for later parts carry the id of the first. See [`backup::part`].
    ///
    /// # Errors
    /// When the outbox is unavailable.
    pub async fn part(
        self,
        after: Position,
        until: Option<Position>,
        id: Option<BackupId>,
    ) -> Result<(BackupPart, Position, Option<BackupId>), Unavailable> {
        let reader = self.0.outbox_of(Home::All).journal().clone();
        let last = reader.last_position();
        let until = until.map_or(last, |until| until.min(last));
        let bytes = failpoints::bound(Bound::BackupBytes, BACKUP_PART_BYTES);
        let signing = self.0.vault().backup_keys().next().map(|(key, bytes)| BackupSigning {
            key: BackupKey::new(key.to_string().into(), bytes),
            backup: id.unwrap_or_else(|| BackupId(self.0.random_bytes())),
        });
        let id = signing.as_ref().map(|signing| signing.backup);
        let part = self
            .0
            .blocking(move || {
                // Waits for a rewrite in progress.
                reader.hold_rewrites(Instant::now() + BACKUP_HOLD);
                backup::part(&reader, after, until, bytes, signing.as_ref())
            })
            .await?;
        let part = part.map_err(|error| Unavailable::Failed(error.to_string().into()))?;
        Ok((part, until, id))
    }
}

//! A part of a backup.

use schemars::JsonSchema;
use serde::Serialize;

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupBody {
    /// The `id` parameter of the other parts. Only for authenticated backups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Lines to append to the backup file.
    pub text: String,
    /// The `after` parameter of the next part; null if this is the last part.
    pub next: Option<u64>,
    /// The backup's last position: the `until` parameter of the other parts.
    pub until: u64,
    /// Positions of unreadable records.
    pub damaged: Vec<Range>,
}

/// A range of positions, both inclusive.
#[derive(Serialize, JsonSchema)]
pub struct Range {
    pub first: u64,
    pub last: u64,
}

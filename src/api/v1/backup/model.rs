//! A part of a backup.

use schemars::JsonSchema;
use serde::Serialize;

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupBody {
    /// What `id` is for the other parts, of a backup that is authenticated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Lines to append to the file.
    pub text: String,
    /// What the next part comes after; none when the backup is whole.
    pub next: Option<u64>,
    /// The backup's last position: to be given as `until` for the other parts.
    pub until: u64,
    /// Positions that cannot be read any more.
    pub damaged: Vec<Range>,
}

/// Positions, both included.
#[derive(Serialize, JsonSchema)]
pub struct Range {
    pub first: u64,
    pub last: u64,
}

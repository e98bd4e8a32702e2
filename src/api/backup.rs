//! `GET /v1/backup`: the journal as text, part by part.

use schemars::JsonSchema;
use serde::Serialize;

use super::Call;
use super::problem::Problem;
use super::reply::Reply;
use crate::domain::Position;
use crate::engine::types::BackupId;

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

/// `GET /v1/backup`
pub async fn part(call: &Call) -> Result<Reply, Problem> {
    let position = |name| call.query.number(name).map(|number| number.map(Position));
    let (after, until) = (position("after")?.unwrap_or_default(), position("until")?);
    let unreadable = || Problem::parameter("id", "must be 32 hexadecimal digits");
    let id = call.query.text("id").map(|text| BackupId::parse(text).ok_or_else(unreadable)).transpose()?;
    if id.is_none() && after > Position(0) && call.api.engine.authenticates_backups() {
        // Parts with several ids make no backup that can be restored.
        return Err(Problem::parameter(
            "id",
            "is missing: use the `id` of the first part, as the current `balto backup` does",
        ));
    }
    let (part, until, id) = call.api.engine.backup(after, until, id).await?;
    let damaged = part.damaged.iter().map(|(first, last)| Range { first: first.0, last: last.0 }).collect();
    let id = id.map(|id| id.to_string());
    let body =
        BackupBody { id, text: part.text, next: part.next.map(|next| next.0), until: until.0, damaged };
    Ok(Reply::json(200, &body))
}

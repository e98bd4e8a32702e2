//! `GET /v1/backup`: the journal as text, part by part.

use schemars::JsonSchema;
use serde::Serialize;

use super::Call;
use super::problem::Problem;
use super::reply::Reply;
use crate::domain::Position;

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupBody {
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
    let (part, until) =
        call.api.engine.backup(position("after")?.unwrap_or_default(), position("until")?).await?;
    let damaged = part.damaged.iter().map(|(first, last)| Range { first: first.0, last: last.0 }).collect();
    let body = BackupBody { text: part.text, next: part.next.map(|next| next.0), until: until.0, damaged };
    Ok(Reply::json(200, &body))
}

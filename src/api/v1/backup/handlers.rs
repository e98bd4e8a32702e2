//! `GET /v1/backup`: a part of the journal as text.

use super::model::{BackupBody, Range};
use crate::api::Call;
use crate::api::http::problem::Problem;
use crate::api::http::response::Json;
use crate::domain::Position;
use crate::service::Backups;
use crate::service::types::BackupId;

/// `GET /v1/backup`
pub async fn part(call: &Call) -> Result<Json<BackupBody>, Problem> {
    let position = |name| call.query.number(name).map(|number| number.map(Position));
    let (after, until) = (position("after")?.unwrap_or_default(), position("until")?);
    let malformed = || Problem::parameter("id", "must be 32 hexadecimal digits");
    let id = call.query.text("id").map(|text| BackupId::parse(text).ok_or_else(malformed)).transpose()?;
    if id.is_none() && after > Position(0) && Backups(&call.api.context).are_authenticated() {
        // A backup whose parts have different ids cannot be restored.
        return Err(Problem::parameter(
            "id",
            "is missing: use the `id` of the first part, as the current `balto backup` does",
        ));
    }
    let (part, until, id) = Backups(&call.api.context).part(after, until, id).await?;
    let damaged = part.damaged.iter().map(|(first, last)| Range { first: first.0, last: last.0 }).collect();
    let id = id.map(|id| id.to_string());
    let body =
        BackupBody { id, text: part.text, next: part.next.map(|next| next.0), until: until.0, damaged };
    Ok(Json::new(&body))
}

//! Projections: list, rebuild.

use super::model::ProjectionBody;
use crate::api::Call;
use crate::api::http::problem::Problem;
use crate::api::http::response::{Accepted, Json};
use crate::api::v1::consumers::handlers as consumers;
use crate::api::v1::lists::{self, List, ListBody};
use crate::domain::{Audience, ConsumerKey};
use crate::service::Projections;

/// `GET /v1/projections`: the state and all consumers; for a key of one tenant, its consumers and
/// the state's position without the numbers of all tenants.
pub async fn list(call: &Call) -> Result<Json<ListBody<ProjectionBody>>, Problem> {
    let limit = call.query.limit()?;
    let cursor = call.query.text("cursor").map(decode_place).transpose()?;
    let projections = Projections(&call.api.context);
    let mut data = Vec::new();
    if cursor.is_none() {
        let mut state = ProjectionBody::from(projections.state().await?);
        if call.principal.audience() == Audience::Tenant {
            (state.rows, state.bytes, state.rebuild) = (None, None, None);
        }
        data.push(state);
    }
    let (tenant, after) = (call.principal.scope.0.as_ref(), cursor.flatten());
    let (consumers, more) = projections.consumers(tenant, after.as_ref(), limit - data.len()).await?;
    let place = consumers.last().map(|last| consumers::encode_key(&last.key)).unwrap_or_default();
    let next = more.then(|| lists::encode(List::Projections, &place));
    data.extend(consumers.into_iter().map(ProjectionBody::from));
    Ok(lists::list_reply(&call.path, &call.query, data, next))
}

/// The last consumer of the previous page; `None` if it had the state only.
fn decode_place(cursor: &str) -> Result<Option<ConsumerKey>, Problem> {
    let text = lists::decode_text(List::Projections, cursor)?;
    if text.is_empty() { Ok(None) } else { consumers::decode_key(&text).map(Some) }
}

/// `POST /v1/projections/state/rebuild`: the answer shows the state with its `rebuild`.
///
/// # Errors
/// 409 while another rebuild runs, 507 without free disk space.
pub async fn rebuild(call: &Call) -> Result<Accepted<ProjectionBody>, Problem> {
    let projections = Projections(&call.api.context);
    if !projections.rebuild_state().await? {
        return Err(Problem::Conflict("a rebuild of the state runs already".to_owned()));
    }
    Ok(Accepted::new(&ProjectionBody::from(projections.state().await?)))
}
